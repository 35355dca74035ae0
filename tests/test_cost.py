"""What learning costs (S6), counted, not timed: FLOPs, and bytes kept for the backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_jax import masked_linear as in_jax
from maskedlinear_torch import masked_linear as in_torch

B, O, I = 64, 128, 256
DENSE = 2 * B * O * I
SHARES = {
    "columns": (columns(range(0, I, 8)), 1 / 8),
    "rows": (rows(range(0, O, 8)), 1 / 8),
    "submatrix": (submatrix(range(0, O, 4), range(0, I, 2)), 1 / 8),
    "blocks": (blocks(np.eye(8, dtype=bool), (16, 32)), 1 / 8),
    "a third of the blocks": (blocks(np.arange(64).reshape(8, 8) < 21, (16, 32)), 21 / 64),
    "more blocks": (blocks(np.arange(64).reshape(8, 8) < 22, (16, 32)), 1),  # cheaper as a whole
    "elements": (elements(np.indices((O, I)).sum(0) % 8 == 0), 1),
    "few elements": (elements(np.indices((O, I)).sum(0) == 3), 0),
    "none": (columns([]), 0),
    "none of elements": (elements(np.zeros((O, I), bool)), 0),
    "all": (columns(slice(None)), 1),
}
KEPT = {"columns": 1 / 8, "submatrix": 1 / 2, "none": 0, "none of elements": 0}
"""Share of the input that is kept for the backward; 1 for the other kinds."""


def torch_step(mask, x_learns=True, w_learns=True, bias=False):
    x = torch.ones(B, I, requires_grad=x_learns)
    w = torch.ones(O, I, requires_grad=w_learns)
    b = torch.ones(O, requires_grad=True) if bias else None
    return x, w, b, lambda: in_torch(x, w, b, grad_mask=mask)


def torch_flops(*args, **keywords):
    *_, forward = torch_step(*args, **keywords)
    with FlopCounterMode(display=False) as counter:
        forward().sum().backward()
    return counter.get_total_flops()


def torch_kept(x, w, forward):
    """Bytes that autograd keeps beside the arguments themselves, and whether it keeps the input."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        forward()
    own = [t for t in kept if t.data_ptr() not in (x.data_ptr(), w.data_ptr()) and t.is_floating_point()]
    return sum(t.numel() * t.element_size() for t in own), any(t.data_ptr() == x.data_ptr() for t in kept)


@pytest.mark.parametrize("name", SHARES)
def test_flops_in_torch(name):
    mask, share = SHARES[name]
    assert torch_flops(mask) == DENSE * (2 + share)


@pytest.mark.parametrize("name", SHARES)
def test_flops_of_compiled_torch(name):
    mask, share = SHARES[name]
    x, w, _, _ = torch_step(mask)
    counted = []

    def count(graph, inputs):
        for node in graph.graph.nodes:
            if node.target in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                left, right = (arg.meta["val"].shape for arg in node.args)
                counted.append(2 * left.numel() * right[-1])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=count, bw_compiler=count)
    compiled = torch.compile(lambda x, w: in_torch(x, w, grad_mask=mask), fullgraph=True, backend=backend)
    compiled(x, w).sum().backward()
    # The compiler cannot read elements: that none or few of them train is not seen.
    assert sum(counted) == DENSE * (2 + (1 if name in ("none of elements", "few elements") else share))


@pytest.mark.parametrize("forward_mode", [False, True], ids=["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", SHARES)
def test_flops_in_jax(name, forward_mode):
    mask, share = SHARES[name]

    def gradient(x, w, g):
        return jax.vjp(lambda w: in_jax(x, w, grad_mask=mask, forward_mode=forward_mode), w)[1](g)

    args = [jnp.ones(shape) for shape in ((B, I), (O, I), (B, O))]
    flops = jax.jit(gradient).lower(*args).compile().cost_analysis().get("flops", 0)
    # The forward is dead code here. XLA also counts what is not a product: index arithmetic and selects,
    # a few for each entry of the weight.
    assert DENSE * share <= flops <= DENSE * share + 4 * O * I


@pytest.mark.parametrize("name", SHARES)
def test_bytes_kept_in_torch(name):
    x, w, _, forward = torch_step(SHARES[name][0])
    own, keeps_input = torch_kept(x, w, forward)
    share = KEPT.get(name, 1)
    if share == 1:
        assert (own, keeps_input) == (0, True)
    else:
        assert (own, keeps_input) == (share * B * I * 4, False)


@pytest.mark.parametrize("name", SHARES)
def test_bytes_kept_in_jax(name):
    x, w = jnp.ones((B, I)), jnp.ones((O, I))
    pull = jax.jit(lambda x, w: jax.vjp(lambda w: in_jax(x, w, grad_mask=SHARES[name][0]), w)[1])(x, w)
    kept = sum(leaf.size * 4 for leaf in jax.tree.leaves(pull) if jnp.issubdtype(leaf.dtype, jnp.floating))
    assert kept == KEPT.get(name, 1) * B * I * 4


class Made(TorchDispatchMode):
    """How many tensors of floats and of the weight's size operations make."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(ret.alias_info is not None for ret in func._schema.returns):
            made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
            self.count += sum(leaf.numel() == O * I for leaf in made)
        return out


@pytest.mark.parametrize("name", ["elements", "few elements", "columns", "rows", "submatrix"])
def test_one_buffer_of_the_weights_size_and_none_in_the_forward(name):
    """The gradient itself: no copy of the weight, and no second gradient to mask it."""
    _, _, _, forward = torch_step(SHARES[name][0])
    with Made() as made:
        output = forward()
    assert made.count == 0
    with Made() as made:
        output.sum().backward()
    assert made.count == 1


def test_frozen_weight_keeps_no_input_and_costs_no_product():
    x, w, _, forward = torch_step(columns([0]), w_learns=False)
    assert torch_kept(x, w, forward) == (0, False)
    assert torch_flops(columns(range(100)), w_learns=False) == 2 * DENSE


def test_first_layer_computes_no_input_gradient():
    assert torch_flops(columns(range(0, I, 8)), x_learns=False) == DENSE * (1 + 1 / 8)


def test_only_the_bias_learns_from_a_batch_of_three_dimensions():
    x, w, b = torch.ones(2, 3, I), torch.ones(O, I), torch.ones(O, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        in_torch(x, w, b, grad_mask=columns([0])).sum().backward()
    assert counter.get_total_flops() == 2 * 6 * O * I
    np.testing.assert_array_equal(b.grad.numpy(), np.full(O, 6.0))


def test_frozen_weight_keeps_no_input_in_jax():
    x, w, b = jnp.ones((B, I)), jnp.ones((O, I)), jnp.ones(O)
    pull = jax.jit(lambda x, w, b: jax.vjp(lambda b: in_jax(x, w, b, grad_mask=columns([0])), b)[1])(x, w, b)
    assert sum(leaf.size for leaf in jax.tree.leaves(pull)) <= 1


def test_no_grad_keeps_nothing():
    x, w, _, forward = torch_step(columns([0]))
    with torch.no_grad():
        assert torch_kept(x, w, forward) == (0, False)


def test_values_survive_what_was_saved():
    """Counting proves nothing if the gradient is wrong: the same steps against the dense product."""
    rng = np.random.default_rng(0)
    x, g = (torch.from_numpy(rng.integers(-2, 3, s).astype(np.float32)) for s in ((B, I), (B, O)))
    for mask, _ in SHARES.values():
        w = torch.zeros(O, I, requires_grad=True)
        in_torch(x, w, grad_mask=mask).backward(g)
        np.testing.assert_array_equal(w.grad.numpy(), np.where(mask.to_array((O, I)), (g.T @ x).numpy(), 0))
