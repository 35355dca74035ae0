"""The packed form (S7): the trainable entries as a leaf of their own, over a constant matrix."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.test_util import check_grads
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, positions, rows, submatrix
from maskedlinear_core.positions import SPARSE
from maskedlinear_torch.kinds import sums

O, I, B = 6, 8, 5
RNG = np.random.default_rng(0)
MASKS = {
    "columns": (columns([6, 1, 1, -5]), (6, 3)),
    "rows": (rows([4, 0]), (2, 8)),
    "submatrix": (submatrix([1, 5], [7, 0, 2]), (2, 3)),
    "blocks": (blocks([[True, False], [False, True], [True, True]], (2, 4)), (4, 2, 4)),
    "elements": (elements(RNG.random((O, I)) < 0.4), None),
    "union": (columns([1]) | rows([2]), (13,)),
    "none": (columns([]), (6, 0)),
    "all": (rows(slice(None)), (6, 8)),
}
X, W, G = (RNG.integers(-3, 4, shape).astype(np.float64) for shape in ((B, I), (O, I), (B, O)))
BIAS = RNG.integers(-3, 4, O).astype(np.float64)


def ordered(mask, array):
    """The packed values by definition: what a bool mask selects, row by row; blocks one after the other."""
    found = mask.canonical(array.shape)
    if found.kind == "blocks":
        h, w = found.block_shape
        across = found.grid_shape[1]
        corners = [(n // across * h, n % across * w) for n in found.arrays[0]]
        return np.stack([array[y : y + h, x : x + w] for y, x in corners])
    return array[mask.to_array(array.shape)]


@pytest.mark.parametrize("name", MASKS)
def test_pack_and_unpack(name):
    mask, shape = MASKS[name]
    for twin, array in ((mt, torch.from_numpy), (mj, jnp.asarray)):
        weight = array(W.astype(np.float32))
        values = twin.pack(weight, grad_mask=mask)
        np.testing.assert_array_equal(np.asarray(values).ravel(), ordered(mask, W).ravel())
        assert shape is None or tuple(values.shape) == shape
        zeros = array(np.zeros((O, I), np.float32))
        placed = twin.unpack(zeros, values, grad_mask=mask)
        np.testing.assert_array_equal(np.asarray(placed), np.where(mask.to_array((O, I)), W, 0))
        assert not np.asarray(zeros).any()


@pytest.mark.parametrize("name", MASKS)
def test_gradcheck(name):
    """Finite differences hold, in every mode that torch can check, batched too."""
    mask = MASKS[name][0]
    x, w, b = (torch.from_numpy(a).requires_grad_() for a in (X, W, BIAS))
    values = mt.pack(w.detach(), grad_mask=mask).requires_grad_()
    layer = lambda x, v, b: mt.packed_linear(x, w, v, b, grad_mask=mask)  # noqa: E731
    everything = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(layer, (x, values, b), check_batched_forward_grad=True, **everything)
    assert torch.autograd.gradgradcheck(layer, (x, values, b), check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("name", MASKS)
def test_check_grads(name):
    mask = MASKS[name][0]
    with jax.enable_x64(True):
        values = mj.pack(jnp.asarray(W), grad_mask=mask)
        args = (jnp.asarray(X), values, jnp.asarray(BIAS))
        for forward_mode, modes in ((False, ["rev"]), (True, ["fwd", "rev"])):
            layer = lambda x, v, b, f=forward_mode: mj.packed_linear(x, W, v, b, grad_mask=mask, forward_mode=f)  # noqa: E731
            check_grads(jax.jit(layer), args, order=2, modes=modes)


@pytest.mark.parametrize("name", MASKS)
def test_forward_has_the_bits_of_the_plain_layer(name):
    mask = MASKS[name][0]
    x, w, v = (RNG.standard_normal(s).astype(np.float32) for s in ((B, I), (O, I), (O, I)))
    values = mt.pack(torch.from_numpy(v), grad_mask=mask)
    whole = torch.from_numpy(np.where(mask.to_array((O, I)), v, w))
    seen = mt.packed_linear(torch.from_numpy(x), torch.from_numpy(w), values, grad_mask=mask)
    assert torch.equal(seen, torch.nn.functional.linear(torch.from_numpy(x), whole))
    seen = mj.packed_linear(x, w, mj.pack(v, grad_mask=mask), grad_mask=mask)
    np.testing.assert_array_equal(np.asarray(seen), np.asarray(jnp.asarray(x) @ jnp.asarray(whole.numpy()).T))


@pytest.mark.parametrize("name", MASKS)
def test_nothing_flows_to_the_matrix(name):
    mask = MASKS[name][0]
    w = torch.from_numpy(W).requires_grad_()
    values = mt.pack(w.detach(), grad_mask=mask).requires_grad_()
    mt.packed_linear(torch.from_numpy(X), w, values, grad_mask=mask).sum().backward()
    assert w.grad is None
    with jax.enable_x64(True):
        seen = jax.grad(lambda w: mj.packed_linear(X, w, values.detach().numpy(), grad_mask=mask).sum())(jnp.asarray(W))
    assert not np.asarray(seen).any()


def test_values_in_float32_over_a_bfloat16_matrix():
    """Small steps are not lost, and the gradient of the values is computed in float32."""
    mask = columns([0, 3])
    w = torch.from_numpy(W).bfloat16()
    x = torch.from_numpy(RNG.standard_normal((64, I))).bfloat16()
    g = torch.from_numpy(RNG.standard_normal((64, O))).bfloat16()
    values = (mt.pack(w, grad_mask=mask).float() + 2.0**-20).requires_grad_()
    mt.packed_linear(x, w, values, grad_mask=mask).backward(g)
    assert values.grad.dtype == torch.float32
    exact = (g.double().t() @ x.double())[:, [0, 3]]
    size = (g.double().abs().t() @ x.double().abs())[:, [0, 3]]
    assert ((values.grad - exact).abs() <= 64 * 2.0**-24 * size).all()
    assert ((values.grad - exact).abs() <= 2.0**-9 * exact.abs()).all(), "coarser than a bfloat16: the test is void"
    wj, xj, gj = (jnp.asarray(t.float().numpy(), jnp.bfloat16) for t in (w, x, g))
    pull = jax.vjp(lambda v: mj.packed_linear(xj, wj, v, grad_mask=mask), jnp.asarray(values.detach().numpy()))[1]
    seen = np.asarray(pull(gj)[0])
    assert seen.dtype == np.float32
    assert (np.abs(seen - exact.numpy()) <= 64 * 2.0**-24 * size.numpy()).all()


class Largest(TorchDispatchMode):
    """Sizes of all tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        aliases = any(ret.alias_info is not None for ret in func._schema.returns)
        if not aliases:
            self.sizes += [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return out


N = 128
WIDE = {
    "columns": (columns(range(0, N, 8)), 1 / 8),
    "rows": (rows(range(0, N, 8)), 1 / 8),
    "submatrix": (submatrix(range(0, N, 4), range(0, N, 2)), 1 / 8),
    "blocks": (blocks(np.eye(8, dtype=bool), (16, 16)), 1 / 8),
    "many blocks": (blocks(np.arange(64).reshape(8, 8) % 5 < 2, (16, 16)), 1),
    "many blocks in one row": (blocks([[True, False, False, True, False, False, True, False]], (N, 16)), 3 / 8),
    "elements": (elements(RNG.random((N, N)) < 0.1), 1),
    "few elements": (elements(np.indices((N, N)).sum(0) == 7), 0),
    "none": (columns([]), 0),
}
"""Masks, and the share of the dense product that dW costs."""


@pytest.mark.parametrize("name", WIDE)
def test_cost_in_torch(name):
    """DW costs its share of FLOPs; nothing of the weight's size is kept, and no gradient of its size is made."""
    mask, share = WIDE[name]
    x, w = torch.ones(16, N), torch.ones(N, N)
    values = mt.pack(w, grad_mask=mask).requires_grad_()
    assert values.numel() * SPARSE <= N * N or name != "few elements"
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = mt.packed_linear(x, w, values, grad_mask=mask)
    own = [t for t in kept if t.data_ptr() not in (x.data_ptr(), w.data_ptr(), values.data_ptr())]
    assert all(t.numel() < N * N // 2 for t in own)
    with Largest() as made, FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert max(made.sizes, default=0) <= N * N // 2
    assert counter.get_total_flops() == 2 * 16 * N * N * share


@pytest.mark.parametrize("forward_mode", [False, True], ids=["custom_vjp", "custom_jvp"])
@pytest.mark.parametrize("name", WIDE)
def test_cost_in_jax(name, forward_mode):
    mask, share = WIDE[name]
    x, w, g = jnp.ones((16, N)), jnp.ones((N, N)), jnp.ones((16, N))
    values = mj.pack(w, grad_mask=mask)

    def gradient(x, w, v, g):
        layer = lambda v: mj.packed_linear(x, w, v, grad_mask=mask, forward_mode=forward_mode)  # noqa: E731
        return jax.vjp(layer, v)[1](g)

    flops = jax.jit(gradient).lower(x, w, values, g).compile().cost_analysis().get("flops", 0)
    dense = 2 * 16 * N * N
    if name == "many blocks" and forward_mode:
        share = values.size / N**2  # the transpose of a tangent goes block by block
    # Beside products XLA counts index arithmetic and selects: some for each entry and chunk.
    assert dense * share <= flops <= dense * share + 100 * max(values.size, N)
    pull = jax.jit(lambda x, v: jax.vjp(lambda v: mj.packed_linear(x, w, v, grad_mask=mask), v)[1])(x, values)
    made = [var.aval.size for eqn in jax.make_jaxpr(pull)(g).eqns for var in eqn.outvars]
    assert max(made, default=0) <= N * N // 2
    assert all(leaf.size <= max(16 * N, values.size) for leaf in jax.tree.leaves(pull))


REPACKS = {
    "columns": (columns([0, 3]), columns([3, 5])),
    "rows to columns": (rows([1]), columns([0, 2])),
    "elements": (elements(np.eye(O, I) > 0), elements(np.eye(O, I, 1) > 0)),
    "to blocks": (columns([0]), blocks([[True, False], [False, True], [True, True]], (2, 4))),
}


@pytest.mark.parametrize("name", REPACKS)
def test_repack(name):
    old, new = REPACKS[name]
    both = old.to_array((O, I)) & new.to_array((O, I))
    for twin, array in ((mt, torch.from_numpy), (mj, jnp.asarray)):
        weight = array(W.astype(np.float32))
        values = twin.pack(weight, grad_mask=old) + 10
        moved = twin.repack(values, old, new, weight=weight)
        np.testing.assert_array_equal(np.asarray(moved).ravel(), ordered(new, np.where(both, W + 10, W)).ravel())
        moments = twin.repack(values, old, new, shape=(O, I))
        np.testing.assert_array_equal(np.asarray(moments).ravel(), ordered(new, np.where(both, W + 10, 0)).ravel())


@pytest.mark.parametrize("mask", [columns([1, 4]), columns([0, 1, 4])], ids=["same count", "another count"])
def test_state_that_is_not_kept_by_value_starts_anew(mask):
    """Adafactor keeps sums of rows and columns: those of other columns would be wrong, or not fit."""
    layer = mt.PackedLinear(6, 4, grad_mask=columns([0, 1]), seed=0)
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.1)
    for step in range(2):
        layer(torch.ones(1, 6)).square().sum().backward()
        optimizer.step()
        if step == 0:
            layer.repack(mask, optimizer)
            assert layer.values not in optimizer.state
    assert optimizer.state[layer.values]["step"] == 1
    assert optimizer.state[layer.values]["col_var"].shape == (1, layer.values.shape[1])


def test_repack_in_training_keeps_the_moments_and_compiles_once():
    layer = mt.PackedLinear(I, O, grad_mask=columns([0, 3]), seed=0)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    frames = CompileCounter()
    compiled = torch.compile(layer, backend=frames, fullgraph=True)
    x = torch.randn(16, I)

    def step():
        optimizer.zero_grad()
        compiled(x).square().sum().backward()
        optimizer.step()

    step()
    moments = optimizer.state[layer.values]["exp_avg"].clone()
    before, values = layer.weight.detach().clone(), layer.values
    layer.repack(columns([3, 5]), optimizer)
    assert layer.values is values
    assert torch.equal(layer.weight, before)
    now = optimizer.state[layer.values]["exp_avg"]
    assert torch.equal(now[:, 0], moments[:, 1])
    assert not now[:, 1].any()
    step()
    assert frames.frame_count == 1
    changed = (layer.weight.detach() != before).any(0).tolist()
    assert changed == [False, False, False, True, False, True, False, False]
    # Another count: another parameter, which the optimizer gets.
    before = layer.weight.detach().clone()
    layer.repack(rows([2]), optimizer)
    assert layer.values is not values
    assert any(layer.values is parameter for group in optimizer.param_groups for parameter in group["params"])
    assert optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape
    step()
    assert (layer.weight.detach() != before).any(1).tolist() == [False, False, True, False, False, False]


def test_repack_in_jax_compiles_once():
    traces = []

    @jax.jit
    def gradient(params, rest):
        traces.append(1)
        return jax.grad(lambda params: jnp.square(mj.combine(params, rest)(X.astype(np.float32))).sum())(params)

    layer = mj.PackedLinear(I, O, grad_mask=columns([0, 3]), seed=0)
    for mask in (columns([3, 5]), columns([1, 2])):
        gradient(*mj.partition(layer))
        moved = layer.repack(mask)
        np.testing.assert_array_equal(moved.weight, layer.weight)
        layer = moved
    gradient(*mj.partition(layer))
    assert len(traces) == 1


@pytest.mark.parametrize("name", MASKS)
def test_traced_positions(name):
    """A packed mask can be an argument of jit, and its positions can be mapped over."""
    mask = MASKS[name][0].packed((O, I))
    values = mj.pack(jnp.asarray(W, jnp.float32), grad_mask=mask)

    @jax.jit
    def gradient(v, mask):
        return jax.grad(lambda v: jnp.square(mj.packed_linear(X, W, v, grad_mask=mask)).sum())(v)

    with jax.enable_x64(True):
        values = mj.pack(jnp.asarray(W), grad_mask=mask)
        want = np.where(mask.to_array((O, I)), 2 * (X @ W.T).T @ X, 0)
        np.testing.assert_array_equal(np.asarray(gradient(values, mask)).ravel(), ordered(mask, want).ravel())


def test_elements_of_an_enormous_weight_are_refused(monkeypatch):
    monkeypatch.setattr("maskedlinear_core.positions.LARGEST", O * I)
    for twin, array in ((mt, torch.from_numpy), (mj, jnp.asarray)):
        with pytest.raises(ValueError, match=r"expected a weight of fewer than 48 elements .* got 48; use columns"):
            twin.pack(array(W.astype(np.float32)), grad_mask=elements(np.eye(O, I) > 0))


def test_a_bool_mask_has_no_count_under_jit():
    with pytest.raises(TypeError, match=r"expected a mask whose number of positions is known.*mask.packed"):
        jax.jit(lambda mask: mj.pack(jnp.ones((2, 2)), grad_mask=elements(mask)))(jnp.ones((2, 2), bool))
    with pytest.raises(TypeError, match=r"expected a mask whose number of positions is known.*mask.packed"):
        torch.vmap(lambda mask: mt.pack(torch.ones(2, 2), grad_mask=elements(mask)))(torch.ones(3, 2, 2, dtype=bool))


def test_modules_agree():
    mask, x = elements(RNG.random((O, I)) < 0.4), X.astype(np.float32)
    in_torch = mt.PackedLinear(I, O, grad_mask=mask, bias_mask=np.arange(O) % 2 == 0, seed=1)
    in_jax = mj.PackedLinear(I, O, grad_mask=mask, bias_mask=np.arange(O) % 2 == 0, seed=1)
    np.testing.assert_array_equal(in_torch.weight.detach().numpy(), np.asarray(in_jax.weight))
    in_torch(torch.from_numpy(x)).sum().backward()
    params, rest = mj.partition(in_jax)
    grads = jax.grad(lambda params: mj.combine(params, rest)(jnp.asarray(x)).sum())(params)
    np.testing.assert_array_equal(in_torch.values.grad.numpy(), np.asarray(grads.values))
    np.testing.assert_array_equal(in_torch.bias_values.grad.numpy(), np.asarray(grads.bias_values))
    assert repr(in_torch) == repr(in_jax)


def test_state_dict_is_that_of_a_plain_layer():
    plain = torch.nn.Linear(I, O)
    layer = mt.PackedLinear(I, O, grad_mask=columns([1, 2]), seed=0)
    values = layer.values
    layer.load_state_dict(plain.state_dict())
    assert layer.values is values
    assert torch.equal(layer.weight, plain.weight)
    with torch.no_grad():
        layer.values.add_(1)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.weight, plain.weight)
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        layer.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.ones(O)})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "bias"'):
        layer.load_state_dict({"weight": torch.ones(O, I)})
    assert torch.equal(layer.weight, plain.weight) or torch.equal(layer.weight, torch.ones(O, I))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(copied):
    layer = mt.PackedLinear(I, O, grad_mask=columns([1, 2]), seed=0)
    other = copied(layer)
    with torch.no_grad():
        other.values.add_(1.0)
    other.repack(columns([4, 5]))
    assert layer.grad_mask == columns([1, 2])
    assert not torch.equal(layer.weight, other.weight)
    other = copied(mj.PackedLinear(I, O, grad_mask=columns([1, 2]), seed=0))
    np.testing.assert_array_equal(other.weight, layer.weight.detach().numpy())


def test_from_meta_and_assign():
    layer = mt.PackedLinear(I, O, grad_mask=elements(RNG.random((O, I)) < 0.4), device="meta")
    plain = torch.nn.Linear(I, O)
    layer.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(layer.weight, plain.weight)
    layer(torch.ones(1, I)).sum().backward()
    assert layer.values.grad.shape == layer.values.shape


def test_what_reads_the_weight_trains_the_values_only():
    layer = mt.PackedLinear(I, O, grad_mask=rows([2]), seed=0)
    (layer.weight**2).sum().backward()
    assert layer.base.grad is None
    assert torch.equal(layer.values.grad, 2 * layer.values.detach())
    in_jax = mj.PackedLinear(I, O, grad_mask=rows([2]), seed=0)
    params, rest = mj.partition(in_jax)
    seen = jax.grad(lambda params: (mj.combine(params, rest).weight ** 2).sum())(params)
    assert [leaf.shape for leaf in jax.tree.leaves(seen)] == [(1, 8), (6,)]


def test_the_matrix_is_no_parameter_to_anything_in_jax():
    layer = mj.PackedLinear(I, O, grad_mask=rows([2]), seed=0)
    floats = [leaf.shape for leaf in jax.tree.leaves(layer) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    assert floats == [(1, 8), (6,)]
    with pytest.raises(TypeError, match=r"grad requires real- or complex-valued inputs"):
        jax.grad(lambda layer: layer(X.astype(np.float32)).sum())(layer)


def test_values_dtype_is_checked():
    for twin, half, double in ((mt, torch.bfloat16, torch.float64), (mj, "bfloat16", "float64")):
        with pytest.raises(TypeError, match=r"PackedLinear: expected values_dtype float32 over a weight of float32"):
            twin.PackedLinear(I, O, grad_mask=rows([0]), seed=0, values_dtype=half)
        with pytest.raises(TypeError, match=r"expected values_dtype bfloat16 or float32 over a weight of bfloat16"):
            twin.PackedLinear(I, O, grad_mask=rows([0]), seed=0, dtype=half, values_dtype=double)


class Products(TorchDispatchMode):
    """Whether a matrix product was made."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [0, 1, 30, 654, 656, 1400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_elements_are_dot_products_over_pieces_of_the_batch(batch, dtype):
    """One in 200: of integers exactly what the dense product has at these places, whatever the frozen ones hold."""
    rng = np.random.default_rng(batch)
    array = np.zeros(200 * 200, bool)
    array[rng.permutation(array.size)[:200]] = True
    mask = mt.elements(array.reshape(200, 200))
    assert positions.SAMPLED // 200 == 655, "between the batches"
    x, g = (torch.from_numpy(rng.integers(-3, 4, (batch, 200))).to(dtype) for _ in range(2))
    values = mt.pack(torch.zeros(200, 200, dtype=dtype), grad_mask=mask).requires_grad_()
    mt.packed_linear(x, torch.full((200, 200), torch.inf).to(dtype), values, grad_mask=mask).backward(g)
    assert torch.equal(values.grad, (g.t() @ x)[torch.from_numpy(mask.to_array((200, 200)))])


def test_few_elements_make_no_matrix_product(monkeypatch):
    """Counted where a mode that looks on does not change what is done."""
    monkeypatch.setattr(sums._compat, "in_dispatch_mode", lambda: False)
    seen = {}
    for one_in in (positions.SPARSE_IN_PIECES, positions.SPARSE_IN_PIECES // 2):
        mask = mt.elements(np.arange(200 * 200).reshape(200, 200) % one_in == 0)
        x, w = torch.ones(30, 200), torch.ones(200, 200)
        values = mt.pack(w, grad_mask=mask).requires_grad_()
        y = mt.packed_linear(x, w, values, grad_mask=mask)
        with Products() as products:
            y.sum().backward()
        seen[one_in] = "aten.mm.default" in products.names
    assert seen == {200: False, 100: True}


MANY = np.random.default_rng(0).random((600, 1200)) < 0.01


@pytest.mark.parametrize("how", ["batched", "autocast"])
def test_elements_by_pieces_of_a_large_weight_in_torch(how):
    """A batch of cotangents, and a backward inside of autocast: neither is written into memory of another kind."""
    w, x = torch.randn(MANY.shape), torch.randn(30, 1200)
    values = mt.pack(w, grad_mask=mt.elements(MANY)).requires_grad_()
    y = mt.packed_linear(x, w, values, grad_mask=mt.elements(MANY))
    g = torch.randn(2, *y.shape)
    want = torch.stack([(one.t() @ x)[torch.from_numpy(MANY)] for one in g])
    if how == "batched":
        got, bound = torch.autograd.grad(y, values, g, is_grads_batched=True)[0], 2.0**-18
    else:
        with torch.autocast("cpu", torch.bfloat16):
            got = torch.stack([torch.autograd.grad(y, values, one, retain_graph=True)[0] for one in g])
        bound = 2.0**-6  # operands in bfloat16
    assert ((got - want).abs() <= bound * (1 + want.abs().max())).all()
