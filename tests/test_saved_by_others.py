"""Checkpoints and loops of others, around masked and packed layers: what they save comes back.

torch.distributed.checkpoint, safetensors, `torch.load(weights_only=True)`, Accelerate, Equinox, Flax; a step in the
backward, an optimizer that is another class for the time of training (Lightning's), averages of checkpoints.
"""

import copy
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.distributed.checkpoint as dcp
from flax.core import freeze
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as me
import maskedlinear_torch as mt
from maskedlinear_core import columns, rows

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
LEARNS = np.zeros((16, 8), bool)
LEARNS[:, 1:3] = True


def model_of(packed, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return mt.mask_linears(model, {"0": columns([1, 2]), "2": rows([0])}, packed=packed)


def trained(packed, seed=0, steps=2):
    model = model_of(packed, seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    if not packed:
        mt.hold_frozen(optimizer, model)
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def by_distributed_checkpoint(one, other, folder):
    (model, optimizer), (fresh, stepper) = one, other
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=folder, no_dist=True)
    state, moments = get_state_dict(fresh, stepper)
    known = {"model": state, "optimizer": moments}
    dcp.load(known, checkpoint_id=folder, no_dist=True)
    set_state_dict(fresh, stepper, model_state_dict=known["model"], optim_state_dict=known["optimizer"])


def by_safetensors(one, other, folder):
    save_model(one[0], f"{folder}/model")
    load_model(other[0], f"{folder}/model")
    other[1].load_state_dict(copy.deepcopy(one[1].state_dict()))


def by_torch(one, other, folder):
    torch.save([part.state_dict() for part in one], f"{folder}/state")
    for part, state in zip(other, torch.load(f"{folder}/state", weights_only=True), strict=True):
        part.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*torch.distributed.*:UserWarning")
@pytest.mark.parametrize("packed", [False, True], ids=["held", "packed"])
@pytest.mark.parametrize("steps", [0, 1], ids=["into a new model", "into one that trains"])
@pytest.mark.parametrize("trip", [by_distributed_checkpoint, by_safetensors, by_torch])
def test_m1_a_checkpoint_of_another_model_comes_back_and_trains_on(trip, packed, steps, tmp_path):
    """DCP writes into the tensors of the state_dict: a hold put its own frozen entries back before they were loaded."""
    one, other = trained(packed), trained(packed, seed=3, steps=steps)
    trip(one, other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m, _ in (one, other)), strict=True))
    for pair in (one, other):
        step(*pair)
    assert torch.equal(one[0](X), other[0](X))


def frozen_of(model):
    return model.state_dict()["0.weight"][torch.from_numpy(~LEARNS)].clone()


def in_backward(model):
    steppers = {p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.5) for p in model.parameters()}
    for one in steppers.values():
        mt.hold_frozen(one, model)

    def step_now(parameter):
        steppers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step_now)
    for _ in range(3):
        model(X).square().mean().backward()


def by_another_class(model):
    inner = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    mt.hold_frozen(inner, model)

    class Wrapper:
        def step(self, closure=None):
            return inner.step(closure)

    wrapper = type("Lightning", (Wrapper, torch.optim.AdamW), {}).__new__(Wrapper)
    wrapper.__dict__.update({name: value for name, value in vars(inner).items() if name != "step"})

    def closure():
        inner.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        wrapper.step(closure)


def with_edited_gradients(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True, weight_decay=0.5)
    mt.hold_frozen(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        model(X).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for parameter in model.parameters():
            parameter.grad.add_(1e-2)  # as filters of gradients do
        optimizer.step()


LOOPS = [in_backward, by_another_class, with_edited_gradients]


@pytest.mark.parametrize("loop", LOOPS)
def test_h3_loops_of_others_move_nothing_that_is_frozen(loop):
    model = model_of(packed=False)
    before, whole = frozen_of(model), model.state_dict()["0.weight"].clone()
    loop(model)
    assert torch.equal(frozen_of(model), before)
    assert not torch.equal(model.state_dict()["0.weight"], whole)


@pytest.mark.parametrize("packed", [False, True], ids=["held", "packed"])
def test_h4_the_average_of_two_checkpoints_has_the_frozen_entries_of_both(packed):
    one, other = trained(packed, steps=1)[0], trained(packed, steps=3)[0]
    before = frozen_of(one)
    mean = {name: (value + other.state_dict()[name]) / 2 for name, value in one.state_dict().items()}
    one.load_state_dict(mean)
    assert torch.equal(frozen_of(one), before)
    assert torch.equal(one.state_dict()["0.weight"], mean["0.weight"])


def tree(seed=0):
    return mj.mask_linears(
        {"a": mj.MaskedLinear(8, 16, grad_mask=columns([]), seed=seed).to_linear()}, {"a": columns([1, 2])}
    )


OPTIMIZERS = {
    "prodigy": optax.contrib.prodigy(1.0, weight_decay=0.1),
    "muon": optax.contrib.muon(1e-2, weight_decay=0.1),
    "mechanize": optax.contrib.mechanize(optax.adamw(1e-2, weight_decay=0.1)),
    "ademamix": optax.contrib.ademamix(1e-2, weight_decay=0.1),
    "dadapt": optax.contrib.dadapt_adamw(1.0),
    "dowg": optax.contrib.dowg(1.0),
    "apply_if_finite": optax.apply_if_finite(optax.adamw(1e-2, weight_decay=0.1), 3),
    "inject_hyperparams": optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=0.1),
    "adafactor": optax.adafactor(1e-2, weight_decay_rate=0.1, min_dim_size_to_factor=2),
    "lamb": optax.lamb(1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_h3_optimizers_of_others_move_nothing_that_is_frozen_in_jax(name):
    model = tree()
    params, rest = mj.partition(model)
    optimizer = mj.hold_frozen(OPTIMIZERS[name], model)
    state, before = optimizer.init(params), np.asarray(model["a"].weight)
    gradient = jax.jit(jax.grad(lambda params: jnp.square(mj.combine(params, rest)["a"](X.numpy())).mean()))
    for _ in range(3):
        updates, state = optimizer.update(gradient(params), state, params)
        params = mj.apply_updates(params, updates)
    moved = np.asarray(params["a"].weight) != before
    assert moved.any()
    assert not moved[~LEARNS].any()


@pytest.mark.parametrize("make", [dict, freeze], ids=["dict", "FrozenDict"])
def test_h3_masks_of_a_frozen_dict_of_flax_need_not_be_one(make):
    params = freeze({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, "bias": jnp.ones(2)})
    masks = make({"dense": {"kernel": np.array([[True, False, False]] * 2), "bias": False}})
    optimizer = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.5), masks)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    moved = jax.tree.map(lambda one: np.asarray(one) != 1, optax.apply_updates(params, updates))
    assert moved["dense"]["kernel"].tolist() == [[True, False, False]] * 2
    assert not moved["dense"]["bias"].any()
    assert moved["bias"].all()


@pytest.mark.parametrize("packed", [False, True], ids=["held", "packed"])
def test_m1_leaves_that_equinox_writes_come_back(packed):
    def make(seed):
        return me.mask_linears([eqx.nn.Linear(8, 4, key=jax.random.key(seed))], {"0": columns([1])}, packed=packed)

    file = io.BytesIO()
    eqx.tree_serialise_leaves(file, make(0))
    file.seek(0)
    loaded = eqx.tree_deserialise_leaves(file, make(1))
    np.testing.assert_array_equal(loaded[0].weight, make(0)[0].weight)
