"""What users of masked gradients complain about today, each gone: a test for each, with where it was raised."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import maskedlinear_jax as mj
from maskedlinear_core import columns, elements
from maskedlinear_jax import masked_linear as in_jax
from maskedlinear_torch import MaskedLinear, hold_frozen
from maskedlinear_torch import masked_linear as in_torch

MASK = columns([0, 3])
FROZEN = ~MASK.to_array((4, 6))


def test_torch_func_does_not_ignore_the_mask():
    """Hooks are ignored by torch.func.grad(functional_call): it gave the unmasked gradient, without an error."""
    layer = MaskedLinear(6, 4, grad_mask=MASK)

    def loss(params):
        return torch.func.functional_call(layer, params, (torch.ones(2, 6),)).sum()

    seen = torch.func.grad(loss)(dict(layer.named_parameters()))["weight"].detach().numpy()
    assert not seen[FROZEN].any()
    assert seen[~FROZEN].all()


def test_autograd_grad_does_not_ignore_the_mask():
    """register_post_accumulate_grad_hook is not run by torch.autograd.grad."""
    layer = MaskedLinear(6, 4, grad_mask=MASK)
    (seen,) = torch.autograd.grad(layer(torch.ones(2, 6)).sum(), layer.weight)
    assert not seen.numpy()[FROZEN].any()


def test_part_of_a_tensor_can_be_frozen():
    """Accelerate #2202, transformers #35022: "freeze part of a tensor" has no supported answer."""
    layer = MaskedLinear(6, 4, grad_mask=MASK, seed=0)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        layer(torch.randn(8, 6)).square().sum().backward()
        optimizer.step()
    assert (before.view(torch.int32) == layer.weight.detach().view(torch.int32)).numpy()[FROZEN].all()
    assert (before != layer.weight.detach()).numpy()[~FROZEN].all()


def test_jax_freezes_below_a_leaf():
    """Jax #4752, optax #159: masks are whole leaves, and selected indices pay for the dense gradient."""
    x, w, g = jnp.ones((64, 512)), jnp.ones((256, 512)), jnp.ones((64, 256))

    def gradient(w):
        return jax.vjp(lambda w: in_jax(x, w, grad_mask=columns(range(16))), w)[1](g)[0]

    dense = 2 * 64 * 512 * 256
    flops = jax.jit(gradient).lower(w).compile().cost_analysis()["flops"]
    assert flops < dense * 16 / 512 + 4 * w.size
    assert not np.asarray(gradient(w))[:, 16:].any()


def test_masked_learning_does_not_cost_full_learning():
    """GPS #6, optax #290: "memory and time are not significantly different from full fine-tuning"."""
    flops = {}
    for name, mask in {"dense": columns(slice(None)), "tenth": columns(range(0, 500, 10))}.items():
        layer = MaskedLinear(500, 64, grad_mask=mask)
        with FlopCounterMode(display=False) as counter:
            layer(torch.ones(32, 500, requires_grad=True)).sum().backward()
        flops[name] = counter.get_total_flops()
    assert flops["tenth"] / flops["dense"] == pytest.approx((2 + 0.1) / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_non_finite_numbers_do_not_reach_frozen_weights(bad):
    """A mask that multiplies makes NaN of NaN * 0: one bad sample then destroys the whole weight."""
    mask = elements(np.eye(4, 6) == 1)
    x = np.ones((3, 6), np.float32)
    x[1, 2] = bad
    w = torch.ones(4, 6, requires_grad=True)
    in_torch(torch.from_numpy(x), w, grad_mask=mask).sum().backward()
    in_both = (w.grad.numpy(), jax.grad(lambda w: in_jax(jnp.asarray(x), w, grad_mask=mask).sum())(jnp.ones((4, 6))))
    for seen in in_both:
        still = np.asarray(seen)[np.eye(4, 6) != 1]
        assert (still.view(np.int32) == 0).all()


def test_hessians_do_not_leak():
    """A rule right at first order and wrong at the second puts a gradient penalty on frozen weights."""
    x, w = torch.randn(3, 6), torch.randn(4, 6)
    hessian = torch.func.hessian(lambda w: in_torch(x, w, grad_mask=MASK).pow(3).sum())(w).numpy()
    assert not hessian[FROZEN].any()
    assert not hessian[:, :, FROZEN].any()
    assert np.abs(hessian[~FROZEN][:, ~FROZEN]).max() > 0


def test_forward_mode_works_through_the_layer():
    """Jax #3996, DeepSpeed #7323: custom linears break forward mode and torch.func."""
    w = np.arange(24, dtype=np.float32).reshape(4, 6)
    tangent = np.ones_like(w)
    in_t = torch.func.jvp(
        lambda w: in_torch(torch.ones(1, 6), w, grad_mask=MASK), *((torch.from_numpy(a),) for a in (w, tangent))
    )
    in_j = jax.jvp(lambda w: in_jax(jnp.ones((1, 6)), w, grad_mask=MASK, forward_mode=True), (w,), (tangent,))
    np.testing.assert_array_equal(in_t[1].numpy(), np.full((1, 4), 2.0))
    np.testing.assert_array_equal(in_j[1], np.full((1, 4), 2.0))


def test_no_surgery_on_names_or_copies():
    """Pytorch #37322, Lightning #8542: a pruned module renames its weight and cannot be copied."""
    layer = MaskedLinear(6, 4, grad_mask=MASK)
    copied = copy.deepcopy(layer)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert copied.grad_mask == layer.grad_mask


def test_bfloat16_and_three_dimensions_work():
    """Pytorch #105548, #164666: sparse kernels fail on bf16 and on batches of sequences."""
    layer = MaskedLinear(6, 4, grad_mask=elements(~FROZEN), dtype=torch.bfloat16)
    layer(torch.ones(2, 3, 6, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad.dtype == torch.bfloat16
    assert not layer.weight.grad.float().numpy()[FROZEN].any()
    assert (layer.weight.grad.float().numpy()[~FROZEN] == 6).all()


def test_weight_decay_still_moves_what_only_the_gradient_masks():
    """Unlearn-Saliency #32: said plainly, because it is the first complaint. A masked gradient is no frozen weight."""
    layer = MaskedLinear(6, 4, grad_mask=MASK, seed=0)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, weight_decay=0.1)
    layer(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert (before != layer.weight.detach()).numpy()[FROZEN].any()


KEPT = np.random.default_rng(3).random((4, 6)) > 0.5


def test_momentum_revives_no_pruned_weight_in_torch():
    """filter-pruning-geometric-median #47: a mask of gradients came after the momentum, which moved what was cut."""
    layer = MaskedLinear(6, 4, grad_mask=columns(slice(None)), seed=0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)

    def train():
        for _ in range(4):
            optimizer.zero_grad()
            (layer(torch.eye(6)) - 1).square().sum().backward()
            optimizer.step()

    train()
    with torch.no_grad():
        layer.weight *= torch.from_numpy(KEPT)
    layer.grad_mask = elements(KEPT)
    hold_frozen(optimizer, layer)
    train()
    assert ((layer.weight.detach().numpy() != 0) == KEPT).all()


def test_momentum_revives_no_pruned_weight_in_jax():
    """The same; a state that was made for other masks is refused, and moves along by `repack_state`."""
    layer = mj.MaskedLinear(6, 4, grad_mask=columns(slice(None)), seed=0)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))

    def train(optimizer, layer, state):
        params, rest = mj.partition(layer)
        for _ in range(4):
            grads = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(jnp.eye(6)) - 1).sum())(params)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return mj.combine(params, rest), state

    layer, state = train(optimizer, layer, optimizer.init(mj.partition(layer)[0]))
    pruned = layer.replace(weight=layer.weight * KEPT, grad_mask=elements(KEPT))
    held = mj.hold_frozen(optimizer, pruned)
    with pytest.raises(
        ValueError,
        match=r"got a state that was made for other masks or before mask_linears; move it along with repack_state",
    ):
        train(held, pruned, state)
    trained, _ = train(held, pruned, mj.repack_state(optimizer, state, layer, pruned))
    assert ((np.asarray(trained.weight) != 0) == KEPT).all()
