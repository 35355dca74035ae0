"""What programs around a masked model do that no other test has: each lost, hid or misnamed something once."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core.checks.storage import StorageError

X = torch.linspace(-1, 1, 12).reshape(3, 4)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def masked(packed=False):
    return mt.mask_linears(plain(), {"0": mt.columns([1, 3]), "2": mt.rows([1])}, packed=packed)


def train(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        model(X.to(next(model.parameters()).dtype)).square().mean().backward()
        optimizer.step()


def decayed(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)


class Twice(nn.Module):
    """One layer, and the running statistics of one norm, under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.second = self.first

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("packed", [False, True])
def test_a_layer_under_two_names_has_its_mask_under_both(packed):
    torch.manual_seed(0)
    model = mt.mask_linears(Twice(), {"first.0": mt.columns([1])}, packed=packed)
    optimizer, before = decayed(model), copy.deepcopy(model)
    if not packed:
        mt.hold_frozen(optimizer, model)
    train(model, optimizer)
    assert mt.assert_frozen(before, model) == 2 * 12  # by both names
    assert mt.grad_masks(model)["second.0.weight"] == mt.columns([1])


def test_a_hold_can_be_removed_twice_and_other_holds_stay():
    model = masked()
    optimizer = decayed(model)
    hold, other = mt.hold_frozen(optimizer, model), mt.hold_frozen(optimizer, model)
    hold.remove()
    hold.remove()
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    assert mt.assert_frozen(before, model) == 12
    other.remove()
    train(model, optimizer)
    with pytest.raises(AssertionError, match="frozen entries moved"):
        mt.assert_frozen(before, model)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("there", [torch.float16, torch.bfloat16])
def test_a_model_cast_to_fewer_bits_and_back_is_saved_with_its_rounded_matrices(packed, there):
    model = masked(packed)
    model.to(there).float()
    train(model, decayed(model) if packed else torch.optim.SGD(model.parameters(), lr=0.1))
    again = mt.load_packed(mt.packed_bytes(model), plain())
    assert torch.equal(again(X), model(X))


@pytest.mark.parametrize("packed", [False, True])
def test_a_cast_that_the_first_matrices_can_follow_stores_none(packed):
    stored, wider = masked(packed), masked(packed)
    size = len(mt.packed_bytes(stored))
    assert len(mt.packed_bytes(wider.double().float())) == size
    low = masked(packed).half()
    assert torch.equal(mt.load_packed(mt.packed_bytes(low), plain().half())(X.half()), low(X.half()))
    assert len(mt.packed_bytes(low)) < size


@pytest.mark.parametrize("packed", [False, True])
def test_a_load_that_assigns_leaves_an_optimizer_with_the_old_parameters_as_in_torch(packed):
    model, other = masked(packed), masked(packed)
    optimizer = decayed(model)
    train(model, optimizer)
    model.load_state_dict(other.state_dict(), assign=True)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    train(model, decayed(model))
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])


def test_an_optimizer_of_a_copy_is_told_from_a_model_without_masks():
    model = masked()
    with pytest.raises(ValueError, match="make the optimizer from that very model, not from a copy"):
        mt.hold_frozen(decayed(model), copy.deepcopy(model))


def test_a_file_of_a_wrapped_model_says_how_to_rename_in_both():
    data = mt.packed_bytes(nn.DataParallel(masked(packed=True)))
    for load, model in ((mt.load_packed, plain()), (mj.load_packed, jax_plain())):
        with pytest.raises(StorageError, match=r"module\.0: .* got no such layer; .* say with rename="):
            load(data, model)
    again = mt.load_packed(data, plain(), rename=lambda name: name.removeprefix("module."))
    assert torch.equal(again(X), masked()(X))


def jax_plain():
    return {"0": mj.MaskedLinear(4, 4, grad_mask=mj.columns([]), seed=0).to_linear()}


def jax_case():
    layer = mj.MaskedLinear(4, 3, grad_mask=mj.columns([1]), seed=0)
    params, rest = mj.partition(layer)
    gradient = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(jnp.asarray(X.numpy()))).sum())
    return layer, params, rest, gradient


def test_schedule_free_around_a_hold_is_refused_and_within_it_holds():
    layer, params, rest, gradient = jax_case()
    around = optax.contrib.schedule_free(mj.hold_frozen(optax.sgd(0.1), layer), 0.1)
    state = around.init(params)
    with pytest.raises(ValueError, match="got schedule_free around it; put hold_frozen around the whole chain"):
        jax.jit(around.update)(gradient(params), state, params)
    within = mj.hold_frozen(optax.contrib.schedule_free(optax.sgd(0.1), 0.1), layer)
    state = within.init(params)
    for _ in range(5):
        updates, state = within.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    assert mj.assert_frozen(layer, mj.combine(params, rest)) == 9


def test_a_held_state_can_be_mapped_by_tree_map_params():
    layer, params, rest, gradient = jax_case()
    held = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.5), layer)
    _, state = held.update(gradient(params), held.init(params), params)
    halved = optax.tree_utils.tree_map_params(held, lambda leaf: leaf / 2, state)
    one, other = (optax.tree_utils.tree_get(node, "mu").weight for node in (state, halved))
    assert np.array_equal(one / 2, other)
    assert one.any()
    updates, _ = held.update(gradient(params), halved, params)
    assert mj.assert_frozen(layer, mj.combine(optax.apply_updates(params, updates), rest)) == 9


@pytest.mark.parametrize("compiled", [False, True])
def test_a_held_lbfgs_trains_as_a_packed_one(compiled):
    """Its state has the parameters of the last step, zeros at first: kept, these were steps that nobody took."""
    masked, packed = jax_case()[0], mj.PackedLinear(4, 3, grad_mask=mj.columns([1]), seed=0)
    losses = []
    for layer in (masked, packed):
        params, rest = mj.partition(layer)

        def loss(params, rest=rest):
            return jnp.square(mj.combine(params, rest)(jnp.asarray(X.numpy())) - 1).mean()

        optimizer = mj.hold_frozen(optax.lbfgs(), layer) if layer is masked else optax.lbfgs()

        def step(params, state, loss=loss, optimizer=optimizer):
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
            return optax.apply_updates(params, updates), state, value

        step, state, course = jax.jit(step) if compiled else step, optimizer.init(params), []
        for _ in range(5):
            params, state, value = step(params, state)
            course.append(float(value))
        losses.append(course)
        if layer is masked:
            assert mj.assert_frozen(layer, mj.combine(params, rest)) == 9
    assert losses[0][4] < losses[0][1] < losses[0][0]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # sums over other shapes, in float32, and a search along a line
