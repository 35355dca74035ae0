"""Frozen for good (S8): 200 steps of every optimizer, and not one bit of a frozen entry moves."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements, rows
from maskedlinear_core.frozen import FrozenMoved

O, I, STEPS = 8, 12, 200
MASKS = {
    "columns": (columns([0, 3, 5]), columns([1, 3, 7])),
    "elements": (elements(np.eye(O, I) > 0), elements(np.eye(O, I, 1) > 0)),
}
BIAS_MASK = np.arange(O) < 5
X = np.random.default_rng(0).standard_normal((STEPS, 16, I)).astype(np.float32)

TORCH = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "SGD-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "AdamW-fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.1),
    "Muon": lambda p: torch.optim.Muon([one for one in p if one.dim() == 2], lr=0.01, weight_decay=0.1),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1),
}
STILL_WITHOUT_DECAY = {"Rprop"}
"""Optimizers that leave an entry alone whose gradient is and was zero."""

JAX = {
    "SGD": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9)),
    "SGD-nesterov": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9, nesterov=True)),
    "Adam": lambda: optax.chain(optax.add_decayed_weights(0.1), optax.amsgrad(0.01)),
    "AdamW": lambda: optax.adamw(0.01, weight_decay=0.1),
    "Adafactor": lambda: optax.adafactor(0.01, min_dim_size_to_factor=4, weight_decay_rate=0.1),
    "Lion": lambda: optax.lion(0.01, weight_decay=0.1),
    "Muon": lambda: optax.contrib.muon(0.01, weight_decay=0.1),
    "clip": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1)),
}


def torch_layer(cls=mt.MaskedLinear, mask=None):
    layer = cls(I, O, grad_mask=MASKS["columns"][0] if mask is None else mask, bias_mask=BIAS_MASK, seed=0)
    with torch.no_grad():  # numbers that addition would change
        (layer.weight if cls is mt.MaskedLinear else layer.base)[7, 10:] = torch.tensor([-0.0, 1e-40])
    return layer


def train_torch(layer, optimizer, x, clip=False):
    for batch in x:
        optimizer.zero_grad()
        layer(torch.from_numpy(batch)).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        optimizer.step()


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", TORCH)
def test_held_in_torch(name, kind):
    first, second = MASKS[kind]
    layer = torch_layer(mask=first)
    optimizer = TORCH[name](layer.parameters())
    mt.hold_frozen(optimizer, layer)
    for mask, part in ((first, X[: STEPS // 2]), (second, X[STEPS // 2 :])):
        layer.grad_mask = mask
        before = copy.deepcopy(layer.state_dict())
        train_torch(layer, optimizer, part, clip=True)
        assert mt.assert_frozen(before, layer) == O * I - mask.to_array((O, I)).sum() + (~BIAS_MASK).sum()
        trained = layer.weight.detach().numpy() != before["weight"].numpy()
        assert trained[mask.to_array((O, I))].any(), "nothing learned: the test is void"
        # Nor the moments: a momentum built up by decay alone would move the entry when it is let go.
        for state in optimizer.state.values():
            for moment in state.values():
                if torch.is_tensor(moment) and moment.shape == layer.weight.shape and name != "Rprop":
                    never = ~(first.to_array((O, I)) | second.to_array((O, I)))
                    assert not moment.numpy()[never].any()


@pytest.mark.parametrize("name", sorted(set(TORCH) - STILL_WITHOUT_DECAY))
def test_a_masked_gradient_alone_does_move(name):
    """What the tests above would look like without holding: the demonstration that they can fail."""
    layer = torch_layer()
    before = copy.deepcopy(layer.state_dict())
    train_torch(layer, TORCH[name](layer.parameters()), X[:3])
    with pytest.raises(FrozenMoved, match=r"weight: \d+ of 72 frozen entries moved") as raised:
        mt.assert_frozen(before, layer)
    assert raised.value.moved["weight"] >= 70


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", JAX)
def test_held_in_jax(name, kind):
    first, second = MASKS[kind]
    layer = mj.MaskedLinear(I, O, grad_mask=first, bias_mask=BIAS_MASK, seed=0)
    layer = layer.replace(weight=jnp.asarray(torch_layer().weight.detach().numpy()))
    optimizer = mj.hold_frozen(JAX[name](), layer)
    params, rest = mj.partition(layer)
    state = optimizer.init(params)
    traces = []

    @jax.jit
    def step(params, rest, state, x):
        traces.append(1)
        grads = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(x)).sum())(params)
        masks = mj.grad_masks(mj.combine(params, rest))
        updates, state = optimizer.update(grads, state, params, masks=masks)
        return mj.apply_updates(params, updates), state

    for mask, part in ((first, X[: STEPS // 2]), (second, X[STEPS // 2 :])):
        layer = mj.combine(params, rest).replace(grad_mask=mask)
        params, rest = mj.partition(layer)
        for batch in part:
            params, state = step(params, rest, state, batch)
        now = mj.combine(params, rest)
        assert mj.assert_frozen(layer, now) == O * I - mask.to_array((O, I)).sum() + (~BIAS_MASK).sum()
        assert (np.asarray(now.weight) != np.asarray(layer.weight))[mask.to_array((O, I))].any()
    assert len(traces) == 1, "another mask recompiled"


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Lion"])
def test_a_masked_gradient_alone_does_move_in_jax(name):
    layer = mj.MaskedLinear(I, O, grad_mask=columns([0, 3, 5]), seed=0)
    params, rest = mj.partition(layer)
    optimizer = JAX[name]()
    grads = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(X[0])).sum())(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    with pytest.raises(FrozenMoved, match=r"weight: 72 of 72 frozen entries moved, first \[0, 1\] from"):
        mj.assert_frozen(layer, mj.combine(optax.apply_updates(params, updates), rest))


@pytest.mark.parametrize("name", TORCH)
def test_packed_needs_no_holding_in_torch(name):
    """No bit moves, and the optimizer's state has the share of the dense one's size."""
    mask = columns([0, 3, 5])
    layer, dense = torch_layer(mt.PackedLinear, mask), nn.Linear(I, O)
    sizes = []
    before = copy.deepcopy(layer.state_dict())
    for model, weight in ((layer, layer.values), (dense, dense.weight)):
        optimizer = TORCH[name](model.parameters())
        train_torch(model, optimizer, X)
        sizes.append(sum(t.numel() for t in optimizer.state[weight].values() if torch.is_tensor(t) and t.dim()))
    assert mt.assert_frozen(before, layer) == O * I - 3 * O + (~BIAS_MASK).sum()
    if name != "Adafactor":  # it keeps sums of rows and columns
        assert sizes[0] == sizes[1] * mask.density((O, I))


@pytest.mark.parametrize("name", JAX)
def test_packed_needs_no_holding_in_jax(name):
    mask = columns([0, 3, 5])
    layer = mj.PackedLinear(I, O, grad_mask=mask, bias_mask=BIAS_MASK, seed=0)
    params, rest = mj.partition(layer)
    optimizer = JAX[name]()
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, x):
        grads = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(x)).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for batch in X:
        params, state = step(params, state, batch)
    assert mj.assert_frozen(layer, mj.combine(params, rest)) == O * I - 3 * O + (~BIAS_MASK).sum()
    if name not in ("Adafactor", "Muon"):
        dense = jax.tree.leaves(optimizer.init(mj.partition(layer.to_linear())[0]))
        sizes = [sum(leaf.size for leaf in leaves if leaf.ndim == 2) for leaves in (jax.tree.leaves(state), dense)]
        assert sizes[0] == sizes[1] * mask.density((O, I)) > 0


def test_hold_with_groups_scaler_closure_and_removal():
    layer, other = torch_layer(), nn.Linear(O, 2)
    optimizer = torch.optim.AdamW([{"params": layer.parameters(), "weight_decay": 0.1}, {"params": other.parameters()}])
    hold = mt.hold_frozen(optimizer, nn.Sequential(layer, other))
    scaler = torch.amp.GradScaler("cpu")
    before = copy.deepcopy(layer.state_dict())
    for batch in X[:20]:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = other(layer(torch.from_numpy(batch))).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    mt.assert_frozen(before, layer)

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.from_numpy(X[0])).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    mt.assert_frozen(before, layer)
    hold.remove()
    optimizer.step(closure)
    with pytest.raises(FrozenMoved, match="frozen entries moved"):
        mt.assert_frozen(before, layer)


def test_a_layer_that_comes_to_the_optimizer_later_is_held():
    first, later = torch_layer(), torch_layer()
    optimizer = torch.optim.AdamW(first.parameters(), lr=0.01, weight_decay=0.1)
    mt.hold_frozen(optimizer, nn.ModuleList([first, later]))
    optimizer.add_param_group({"params": later.parameters()})
    before = copy.deepcopy(later.state_dict())
    train_torch(later, optimizer, X[:3])
    assert mt.assert_frozen(before, later) == O * I - 3 * O + (~BIAS_MASK).sum()


@pytest.mark.parametrize("name", JAX)
def test_held_in_nnx(name):
    model = nnx.Sequential(nnx.Linear(I, O, rngs=nnx.Rngs(0)), nnx.Linear(O, 2, rngs=nnx.Rngs(1)))
    in_nnx.mask_linears(model, {"layers.0": columns([0, 3, 5])})
    optimizer = nnx.Optimizer(model, mj.hold_frozen(JAX[name](), in_nnx.grad_masks(model)), wrt=nnx.Param)
    before = np.asarray(model.layers[0].kernel[...])

    @nnx.jit
    def step(model, optimizer, x):
        optimizer.update(model, nnx.grad(lambda model: jnp.square(model(x)).sum())(model))

    for batch in X[:20]:
        step(model, optimizer, batch)
    changed = (np.asarray(model.layers[0].kernel[...]).view(np.uint32) != before.view(np.uint32)).any(1)
    assert np.flatnonzero(changed).tolist() == [0, 3, 5]


def test_the_weights_of_a_lookahead_are_held_too():
    """State that is like a parameter but no moment stays as it was: zero would be wrong there."""
    layer = mj.MaskedLinear(I, O, grad_mask=columns([0]), seed=0)
    params, rest = mj.partition(layer)
    averaged = optax.ema(0.9)
    optimizer = mj.hold_frozen(optax.chain(optax.adamw(0.1, weight_decay=0.1), averaged), layer)
    state = optimizer.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert mj.assert_frozen(layer, mj.combine(params, rest)) == O * (I - 1)


WRONG = [
    (lambda: mt.hold_frozen(nn.Linear(2, 2), torch_layer()), TypeError, "expected a torch.optim.Optimizer, got Linear"),
    (lambda: mj.hold_frozen(3, mj.MaskedLinear(2, 2, grad_mask=rows([0]), seed=0)), TypeError,
     "expected an optax.GradientTransformation, got int"),
    (lambda: mt.hold_frozen(torch.optim.SGD(nn.Linear(2, 2).parameters()), torch_layer()), ValueError,
     "expected a model with masked layers whose parameters the optimizer has, got none"),
    (lambda: mj.hold_frozen(optax.sgd(0.1), {"w": True}), ValueError, "expected a model with masked layers"),
    (lambda: mt.hold_frozen(torch.optim.SGD(torch_layer().parameters()), 3), TypeError, "expected modules"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"v": torch.ones(2)}, {}), ValueError, "expected the same arrays"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"w": torch.ones(3)}, {}), ValueError, "of shape"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"w": torch.ones(2)}), TypeError, "expected masks beside dict"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"w": None}), ValueError, "got none"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"v": None}), ValueError, "masks of"),
    (lambda: mt.assert_frozen({"w": torch.ones(2)}, {"w": torch.ones(2)}, {"w": np.ones(2)}), TypeError, "bool array"),
    (lambda: mj.assert_frozen({"w": jnp.ones(2)}, {"w": jnp.ones(2)}), ValueError, "got none"),
    (lambda: mj.assert_frozen({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, {"w": np.ones(3, bool)}), ValueError, "shape"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_calls(number):
    call, error, says = WRONG[number]
    with pytest.raises(error, match=says):
        call()


def test_grad_masks_of_a_model():
    model = nn.Sequential(torch_layer(), torch_layer(mt.PackedLinear), nn.Linear(2, 2))
    model[2].bias.requires_grad_(False)
    found = mt.grad_masks(model)
    assert set(found) == set(model.state_dict())
    assert found["0.weight"] == columns([0, 3, 5])
    assert found["2.weight"] is None
    assert found["2.bias"] is False
