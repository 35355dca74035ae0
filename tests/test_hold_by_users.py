"""Ways in which users move weights, beside those of the table: what is held stays to the last bit (S8)."""

import collections
import copy
import pickle

import jax
import numpy as np
import optax
import pytest
import torch
from torch import nn
from torch.optim import swa_utils

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import columns

O, I, STEPS = 4, 6, 3
MASK, FROZEN = columns([1]), [0, 2, 3, 4, 5]
X = torch.randn(8, I, generator=torch.Generator().manual_seed(0))
Y = torch.randn(8, O, generator=torch.Generator().manual_seed(1))


def backward(model, dtype=None):
    model.zero_grad()
    loss = (model(X.to(dtype)) - Y.to(dtype)).square().mean()
    loss.backward()
    return loss


def steps(model, optimizer, dtype=None):
    for _ in range(STEPS):
        backward(model, dtype)
        optimizer.step()


def adamw(model, **keywords):
    return torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, **keywords)


def optimizer(name, closure=False, **keywords):
    def train(model):
        made = getattr(torch.optim, name)(model.parameters(), **keywords)
        mt.hold_frozen(made, model)
        for _ in range(STEPS):
            if closure:
                made.step(lambda: backward(model))
            else:
                backward(model)
                made.step()
        return model

    return train


def held(then):
    """A model that is held by AdamW and trained, and what a user does then; it is trained on."""

    def train(model):
        made = adamw(model)
        mt.hold_frozen(made, model)
        steps(model, made)
        model, made = then(model, made) or (model, made)
        steps(model, made)
        return model

    return train


def cast(*dtypes):
    def train(model):
        mt.hold_frozen(adamw(model), model)
        for dtype in dtypes:
            steps(model.to(dtype), adamw(model), dtype)
        return model

    return train


def meta(model, made):
    state = copy.deepcopy(model.state_dict())
    model.to("meta").to_empty(device="cpu").load_state_dict(state)
    return model, adamw(model)


def multiplied(model, made):
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def vector(model, made):
    flat = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(flat * 0.9, model.parameters())


def clipped(model, made):
    backward(model)
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    nn.utils.clip_grad_value_(model.parameters(), 0.001)
    made.step()


def averaged(model, made):
    mean = swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(STEPS):
        steps(model, made)
        mean.update_parameters(model)
    swa_utils.update_bn([X, X], mean)
    return mean.module, adamw(mean.module)


def no_gradient(model, made):
    made.zero_grad()
    made.step()


def by_checkpoint(model, made):
    from torch.distributed.checkpoint import state_dict as distributed

    saved = copy.deepcopy(distributed.get_state_dict(model, made))
    steps(model, made)
    distributed.set_state_dict(model, made, model_state_dict=saved[0], optim_state_dict=saved[1])


def in_inference(model, made):
    with torch.inference_mode():
        model(X)


def recomputed(model, made):
    x = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).square().mean().backward()
    made.step()


def copied(model, made):
    model = copy.deepcopy(model)
    return model, adamw(model)


TORCH = {
    "Adafactor": optimizer("Adafactor", lr=0.1, weight_decay=0.1),
    "Muon": optimizer("Muon", lr=0.1, weight_decay=0.1),
    "Adagrad, fused": optimizer("Adagrad", lr=0.1, weight_decay=0.1, fused=True),
    "Adagrad, not from zero": optimizer("Adagrad", lr=0.1, weight_decay=0.1, initial_accumulator_value=0.3),
    "Adam, maximize and amsgrad": optimizer("Adam", lr=0.1, weight_decay=0.1, maximize=True, amsgrad=True),
    "Adam, fused and amsgrad": optimizer("Adam", lr=0.1, weight_decay=0.1, fused=True, amsgrad=True),
    "AdamW, a tensor for lr": optimizer("AdamW", lr=torch.tensor(0.1), weight_decay=0.1, foreach=False),
    "SGD, dampened": optimizer("SGD", lr=0.1, weight_decay=0.1, momentum=0.9, dampening=0.5, maximize=True),
    "RMSprop, centered": optimizer("RMSprop", lr=0.1, weight_decay=0.1, centered=True, momentum=0.9, foreach=True),
    "LBFGS, a short history": optimizer("LBFGS", closure=True, lr=0.5, history_size=2),
    "the state cleared": held(lambda model, made: made.state.clear()),
    "another state": held(lambda model, made: setattr(made, "state", collections.defaultdict(dict))),
    "zero_grad that keeps zeros": held(lambda model, made: made.zero_grad(set_to_none=False)),
    "a step without a gradient": held(no_gradient),
    "clipped gradients": held(clipped),
    "vector_to_parameters": held(vector),
    ".data replaced": held(multiplied),
    "meta, to_empty, load_state_dict": held(meta),
    "copy.copy": held(lambda model, made: (copy.copy(model), made)),
    "share_memory": held(lambda model, made: model.share_memory() and None),
    "pickled, the optimizer first": held(lambda model, made: pickle.loads(pickle.dumps((made, model)))[::-1]),
    "a deepcopy and an optimizer of its own": held(copied),
    "gradients off and on": held(lambda model, made: model.requires_grad_(False).requires_grad_(True) and None),
    "averaged, with update_bn": held(averaged),
    "distributed checkpoint": held(by_checkpoint),
    "inference_mode in between": held(in_inference),
    "activation checkpointing": held(recomputed),
    "double": cast(torch.float64),
    "half and back": cast(torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_held_in_torch(name):
    model = nn.Sequential(mt.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0))
    before = model[0].weight.detach().clone()
    after = TORCH[name](model)
    layer = after[0]
    now, before = layer.weight.detach(), before.to(layer.weight.dtype)
    assert mt.assert_frozen({"w": before}, {"w": now}, {"w": MASK}) == O * len(FROZEN)
    assert torch.equal(layer(torch.eye(I, dtype=now.dtype)).t()[:, FROZEN], before[:, FROZEN])
    assert not torch.equal(now, before)


def _decayed(**keywords):
    return optax.adamw(0.05, weight_decay=0.1, **keywords)


contrib = optax.contrib
JAX = {
    "lamb": lambda: optax.lamb(0.05, weight_decay=0.1),
    "adan": lambda: optax.adan(0.05, weight_decay=0.1),
    "noise": lambda: optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)),
    "ema of updates": lambda: optax.chain(_decayed(), optax.ema(0.9)),
    "prodigy": lambda: contrib.prodigy(weight_decay=0.1),
    "ademamix": lambda: contrib.ademamix(0.05, weight_decay=0.1),
    "mechanize": lambda: contrib.mechanize(_decayed()),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(0.05, weight_decay=0.1),
    "sam": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=False),
    "a moment in bfloat16": lambda: _decayed(mu_dtype="bfloat16"),
    "a partition in a partition": lambda: optax.partition(
        {"a": optax.partition({"b": _decayed()}, lambda tree: jax.tree.map(lambda _: "b", tree))},
        lambda tree: jax.tree.map(lambda _: "a", tree),
    ),
    "conditionally_transform": lambda: optax.conditionally_transform(_decayed(), lambda step, **_: step >= 1),
}


@pytest.mark.parametrize("name", JAX)
def test_held_in_jax(name):
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
    made = mj.hold_frozen(JAX[name](), layer)
    params, rest = mj.partition(layer)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda params: ((mj.combine(params, rest)(X.numpy()) - Y.numpy()) ** 2).mean())(params)
        updates, state = made.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = made.init(params)
    for _ in range(STEPS + 1):
        params, state = step(params, state)
    assert mj.assert_frozen({"w": layer.weight}, {"w": params.weight}, {"w": MASK}) == O * len(FROZEN)
    assert bool(np.any(np.asarray(params.weight) != np.asarray(layer.weight)))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "masked"])
def test_labels_that_are_a_layer_themselves_are_told_how_to_be_handed(packed):
    """Since a layer can be called, optax calls them: the text was of an input that is no array, to be converted."""
    layer = (mj.PackedLinear if packed else mj.MaskedLinear)(I, O, grad_mask=MASK, seed=0)
    params, _ = mj.partition(layer)
    labels = jax.tree.map(lambda leaf: "a", params)
    with pytest.raises(TypeError, match=r"got a layer \((Masked|Packed)Linear\).* hand it lambda params: labels"):
        optax.multi_transform({"a": optax.sgd(0.1)}, labels).init(params)
    made = optax.multi_transform({"a": optax.sgd(0.1)}, lambda params: labels)
    made.init(params)


def test_a_compiled_step_refuses_another_mask_and_takes_a_penalty_and_a_threshold():
    """One look tells whether frozen entries are reached at all; what reaches them is looked at in that case alone."""
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
    params, rest = mj.partition(layer)
    held = mj.hold_frozen(optax.sgd(0.1), layer)

    @jax.jit
    def step(params, rest, penalty):
        def loss(params):
            weight = params.weight
            large = jax.numpy.where(abs(weight) > 0.3, weight, 0.0)
            whole = mj.combine(params, rest)(X.numpy()).sum()
            return whole + penalty[0] * (weight**2).sum() + penalty[1] * (large**2).sum()

        updates, _ = held.update(jax.grad(loss)(params), held.init(params), params)
        return mj.apply_updates(params, updates)

    for penalty in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        moved = step(params, rest, np.float32(penalty))
        assert mj.assert_frozen(layer, mj.combine(moved, rest)) == O * len(FROZEN)
    _, other = mj.partition(layer.replace(grad_mask=columns([2])))
    with pytest.raises(jax.errors.JaxRuntimeError, match="has a layer with another mask"):
        jax.block_until_ready(step(params, other, np.float32((0.0, 0.0))))
