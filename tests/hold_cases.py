"""Ways in which weights are moved, each a case of `hold_frozen`: the data of tests/test_hold_table.py.

A case trains a layer without a bias, and returns the layer whose forward is to be looked at. `hold` is
`hold_frozen`, or does nothing: what would move without it.
"""

import copy
import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from accelerate import Accelerator
from flax import nnx
from torch import nn
from torch.optim import swa_utils

import maskedlinear_jax as mj
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns

O, I, STEPS = 4, 6, 4
MASK = columns([1])
X = np.random.default_rng(0).standard_normal((8, I)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((8, O)).astype(np.float32)


def layer_of(mask=MASK):
    return mt.MaskedLinear(I, O, bias=False, grad_mask=mask, seed=0)


def backward(layer):
    layer.zero_grad()
    loss = (layer(torch.from_numpy(X)) - torch.from_numpy(Y)).square().mean()
    loss.backward()
    return loss


def steps(layer, optimizer, count=STEPS):
    for _ in range(count):
        backward(layer)
        optimizer.step()
    return layer


def plain(make, closure=False):
    """A torch optimizer, by its `step`."""

    def case(hold):
        layer = layer_of()
        optimizer = make(layer.parameters())
        hold(optimizer, layer)
        if closure:
            for _ in range(STEPS):
                optimizer.step(lambda: backward(layer))
            return layer
        return steps(layer, optimizer)

    return case


class SAM(torch.optim.Optimizer):
    """Two calls a step, neither of which is `step`, and writes to `.data`."""

    def __init__(self, params):
        super().__init__(params, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, weight_decay=0.1, momentum=0.9)

    @torch.no_grad()
    def first_step(self):
        for p in self.param_groups[0]["params"]:
            self.state[p]["old"] = p.data.clone()
            p.data.mul_(1.01).add_(p.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.data = self.state[p]["old"]
            p.data.mul_(0.99).sub_(p.grad, alpha=0.1)


def sam(hold):
    layer = layer_of()
    optimizer = SAM(layer.parameters())
    hold(optimizer, layer)
    for _ in range(STEPS):
        backward(layer)
        optimizer.first_step()
        backward(layer)
        optimizer.second_step()
    return layer


class Lookahead:
    """No torch optimizer: it wraps one, and averages its weights."""

    def __init__(self, optimizer):
        self.optimizer, self.count = optimizer, 0
        self.slow = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]

    def step(self):
        self.optimizer.step()
        self.count += 1
        if self.count % 2 == 0:
            for slow, p in zip(self.slow, self.optimizer.param_groups[0]["params"], strict=True):
                slow.lerp_(p.detach(), 0.3)
                p.data.copy_(slow * 1.001)


class LightningLike:
    """What Lightning hands to its users: `.optimizer` inside, `step` outside."""

    def __init__(self, optimizer):
        self._optimizer = optimizer

    @property
    def optimizer(self):
        return self._optimizer

    def step(self):
        self._optimizer.step()


def adamw(params, **more):
    return torch.optim.AdamW(params, lr=0.05, weight_decay=0.1, **more)


def wrapped(wrap):
    def case(hold):
        layer = layer_of()
        optimizer = wrap(adamw(layer.parameters()))
        hold(optimizer, layer)
        return steps(layer, optimizer)

    return case


class MasterCopies:
    """As DeepSpeed and apex have it: the optimizer steps float64 copies, which are then written to the model."""

    def __init__(self, params):
        self.params = list(params)
        self.masters = [nn.Parameter(p.detach().double()) for p in self.params]
        self.optimizer = adamw(self.masters)

    def step(self):
        for p, master in zip(self.params, self.masters, strict=True):
            master.grad = p.grad.double()
        self.optimizer.step()
        for p, master in zip(self.params, self.masters, strict=True):
            p.data.copy_(master)


class MasterInState(torch.optim.Optimizer):
    """A float64 copy of each parameter, kept in the state."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if "master" not in state:
                state["master"] = p.double()
            state["master"].mul_(0.99).sub_(p.grad, alpha=0.1)
            p.copy_(state["master"])


class EightBit(torch.optim.Optimizer):
    """A momentum in codes of 8 bits, of which 0 is the most negative."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if "codes" not in state:
                state["codes"] = torch.full(p.shape, 128, dtype=torch.uint8)
            momentum = (state["codes"].float() - 128) / 128 * 0.9 + p.grad
            state["codes"] = (momentum.clamp(-0.99, 0.99) * 128 + 128).round().to(torch.uint8)
            p.mul_(0.99).sub_(momentum, alpha=0.1)


def schedule_free(name):
    def case(hold):
        import schedulefree

        layer = layer_of()
        optimizer = getattr(schedulefree, name)(layer.parameters(), lr=0.1, weight_decay=0.1)
        optimizer.train()
        hold(optimizer, layer)
        steps(layer, optimizer)
        optimizer.eval()
        layer(torch.from_numpy(X))
        optimizer.train()
        steps(layer, optimizer)
        optimizer.eval()
        return layer

    return case


def schedule_free_wrapper(hold):
    """Around any optimizer, and no torch optimizer itself."""
    import schedulefree

    layer = layer_of()
    optimizer = schedulefree.ScheduleFreeWrapper(OPTIM.SGD(layer.parameters(), **DECAY), momentum=0.9)
    optimizer.train()
    hold(optimizer, layer)
    steps(layer, optimizer)
    optimizer.eval()
    return layer


def scaler(hold):
    layer = layer_of()
    optimizer, scaling = adamw(layer.parameters()), torch.amp.GradScaler("cpu")
    hold(optimizer, layer)
    for _ in range(STEPS):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = layer(torch.from_numpy(X)).square().mean()
        scaling.scale(loss).backward()
        scaling.step(optimizer)
        scaling.update()
    return layer


def copied(copying):
    def case(hold):
        layer = layer_of()
        optimizer = adamw(layer.parameters())
        hold(optimizer, layer)
        return steps(*copying((layer, optimizer)))

    return case


def pickled(both):
    file = io.BytesIO()
    torch.save(both, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(**keywords):
    def case(hold):
        layer = layer_of()
        optimizer = adamw(layer.parameters())
        hold(optimizer, layer)
        mean = swa_utils.AveragedModel(layer, **keywords)
        for _ in range(STEPS):
            steps(layer, optimizer, 1)
            mean.update_parameters(layer)
        return mean.module

    return case


def swapped(hold):
    """An average of weights that is rounded, put into the model through `.data`."""
    layer = layer_of()
    optimizer = adamw(layer.parameters())
    hold(optimizer, layer)
    steps(layer, optimizer)
    layer.weight.data.copy_(0.9 * layer.weight.data + 0.1 * layer.weight.data)
    return layer


def compiled(hold):
    layer = layer_of()
    optimizer = adamw(layer.parameters())
    optimizer.param_groups[0]["lr"] = torch.tensor(0.05)
    hold(optimizer, layer)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Dynamo about the profiler's ranges
        for _ in range(STEPS):
            backward(layer)
            step()
    return layer


def in_backward(hold):
    layer = layer_of()
    optimizer = adamw(layer.parameters())
    hold(optimizer, layer)
    layer.weight.register_post_accumulate_grad_hook(lambda p: optimizer.step())
    for _ in range(STEPS):
        backward(layer)
    return layer


def loaded(load):
    def case(hold):
        layer = layer_of()
        optimizer = adamw(layer.parameters())
        hold(optimizer, layer)
        steps(layer, optimizer)
        load(layer, optimizer)
        return steps(layer, optimizer)

    return case


def later(replace):
    """A layer that comes to a held model, or takes another's place, and to the optimizer as a group."""

    def case(hold):
        model = nn.Sequential(layer_of())
        optimizer = adamw(model.parameters())
        hold(optimizer, model)
        layer = layer_of()
        if replace:
            model[0] = layer
        else:
            model.append(nn.Identity())
            model.extra = layer
        optimizer.add_param_group({"params": layer.parameters()})
        return steps(layer, optimizer)

    return case


def penalty(hold):
    """An L2 penalty on `.weight`: its gradient does reach frozen entries."""
    layer = layer_of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    hold(optimizer, layer)
    for _ in range(STEPS):
        layer.zero_grad()
        (layer(torch.from_numpy(X)).square().mean() + layer.weight.square().sum()).backward()
        optimizer.step()
    return layer


OPTIM = torch.optim
DECAY = {"lr": 0.05, "weight_decay": 0.1}
TORCH = {
    "SGD": plain(lambda p: OPTIM.SGD(p, **DECAY)),
    "SGD, momentum, Nesterov": plain(lambda p: OPTIM.SGD(p, momentum=0.9, nesterov=True, **DECAY)),
    "SGD, fused": plain(lambda p: OPTIM.SGD(p, momentum=0.9, fused=True, **DECAY)),
    "Adam, amsgrad": plain(lambda p: OPTIM.Adam(p, amsgrad=True, **DECAY)),
    "AdamW": plain(adamw),
    "AdamW, foreach": plain(lambda p: adamw(p, foreach=True)),
    "AdamW, fused": plain(lambda p: adamw(p, fused=True)),
    "NAdam": plain(lambda p: OPTIM.NAdam(p, **DECAY)),
    "RAdam": plain(lambda p: OPTIM.RAdam(p, **DECAY)),
    "Adamax": plain(lambda p: OPTIM.Adamax(p, **DECAY)),
    "Adagrad": plain(lambda p: OPTIM.Adagrad(p, initial_accumulator_value=0.1, **DECAY)),
    "Adadelta": plain(lambda p: OPTIM.Adadelta(p, **DECAY)),
    "RMSprop, centered, momentum": plain(lambda p: OPTIM.RMSprop(p, centered=True, momentum=0.9, **DECAY)),
    "Rprop": plain(lambda p: OPTIM.Rprop(p, lr=0.05)),
    "ASGD": plain(lambda p: OPTIM.ASGD(p, t0=0, **DECAY)),
    "Adafactor": plain(lambda p: OPTIM.Adafactor(p, **DECAY)),
    "Muon": plain(lambda p: OPTIM.Muon(p, **DECAY)),
    "LBFGS": plain(lambda p: OPTIM.LBFGS(p, lr=0.5), closure=True),
    "LBFGS, strong Wolfe": plain(lambda p: OPTIM.LBFGS(p, line_search_fn="strong_wolfe"), closure=True),
    "AdamW with a closure": plain(adamw, closure=True),
    "schedule-free SGD, train and eval": schedule_free("SGDScheduleFree"),
    "schedule-free AdamW, train and eval": schedule_free("AdamWScheduleFree"),
    "schedule-free around SGD": schedule_free_wrapper,
    "SAM by two calls, through `.data`": sam,
    "Lookahead around AdamW": wrapped(Lookahead),
    "Accelerate's optimizer": wrapped(lambda optimizer: Accelerator(cpu=True).prepare_optimizer(optimizer)),
    "Lightning's optimizer (a stand-in)": wrapped(LightningLike),
    "GradScaler and autocast": scaler,
    "master copies outside (a stand-in)": plain(MasterCopies),
    "master copies in the state (a stand-in)": plain(MasterInState),
    "8-bit state (a stand-in)": plain(EightBit),
    "a deep copy of model and optimizer": copied(copy.deepcopy),
    "a pickle of model and optimizer": copied(pickled),
    "SWA": averaged(),
    "EMA": averaged(multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9)),
    "weights swapped for an average": swapped,
    "a compiled step": compiled,
    "a step within the backward": in_backward,
    "optimizer.load_state_dict": loaded(lambda layer, optimizer: optimizer.load_state_dict(optimizer.state_dict())),
    "model.load_state_dict": loaded(lambda layer, optimizer: layer.load_state_dict(copy.deepcopy(layer.state_dict()))),
    "a layer added later": later(replace=False),
    "a layer replaced later": later(replace=True),
    "an L2 penalty on the weight": penalty,
}
STILL = {
    "Rprop", "Muon", "LBFGS", "LBFGS, strong Wolfe", "SWA", "EMA",
    "weights swapped for an average",
}  # fmt: skip
"""Cases whose frozen entries need not move without a hold either: their gradient is zero, and nothing decays."""


def updated(make, wrap=lambda tx: tx, steps=STEPS, apply=mj.apply_updates):
    """An optax transformation, held or not, over a dict with a masked weight and one that trains."""

    def case(hold):
        layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
        model = {"a": layer, "b": jnp.ones(O)}
        split, rest = mj.partition(model)
        tx = wrap(hold(make(), model))
        state = tx.init(split)
        for _ in range(steps):
            grads = jax.grad(lambda split: jnp.square(outputs(split, rest)).mean())(split)
            updates, state = tx.update(grads, state, split)
            split = apply(split, updates)
        return mj.combine(split, rest)["a"]

    return case


def layer_in_jax():
    """The layer of the cases."""
    return mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)


def outputs(split, rest):
    model = mj.combine(split, rest)
    return model["a"](X) * model["b"] - Y


def labels(tree):
    return {"a": jax.tree.map(lambda leaf: "masked", tree["a"]), "b": "other"}


def lookahead(hold):
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
    split, rest = mj.partition(layer)
    tx = hold(optax.lookahead(decayed(), sync_period=2, slow_step_size=0.5), layer)
    params = optax.LookaheadParams.init_synced(split)
    state = tx.init(params)
    for _ in range(STEPS):
        grads = jax.grad(lambda fast: jnp.square(mj.combine(fast, rest)(X) - Y).mean())(params.fast)
        updates, state = tx.update(grads, state, params)
        params = mj.apply_updates(params, updates)
    return mj.combine(params.slow, rest)


def schedule_free_in_jax(hold):
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
    split, rest = mj.partition(layer)
    start, tx = split, hold(optax.contrib.schedule_free(decayed(), learning_rate=0.1), layer)
    state = tx.init(split)
    for _ in range(STEPS):
        grads = jax.grad(lambda split: jnp.square(mj.combine(split, rest)(X) - Y).mean())(split)
        updates, state = tx.update(grads, state, split)
        split = mj.apply_updates(split, updates)
    split = optax.contrib.schedule_free_eval_params(state, split)
    return mj.combine(split if hold is unheld else mj.keep_frozen(split, start, layer), rest)


def nnx_part(hold):
    model = nnx.Sequential(nnx.Linear(I, O, use_bias=False, rngs=nnx.Rngs(0)), nnx.Linear(O, 2, rngs=nnx.Rngs(1)))
    kernel = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0).weight.T
    model.layers[0].kernel.set_value(kernel)
    in_nnx.mask_linears(model, {"layers.0": MASK})
    wrt = nnx.All(nnx.Param, nnx.PathContains(0))
    optimizer = nnx.Optimizer(model, hold(decayed(), model), wrt=wrt)
    for _ in range(STEPS):
        grads = nnx.grad(lambda model: jnp.square(model(X)).mean(), argnums=nnx.DiffState(0, wrt))(model)
        optimizer.update(model, grads)
    return mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0).replace(weight=model.layers[0].kernel[...].T)


def unheld(optimizer, model):
    """What `hold_frozen` is held against."""
    return optimizer


def decayed(**keywords):
    return optax.adamw(0.05, weight_decay=0.1, **keywords)


def by_masks(hold):
    """Masks of a part of the parameters, as a pytree of their own; None and what is absent trains."""
    return updated(decayed)(lambda tx, model: hold(tx, {"a": mj.partition(model["a"])[0].replace(weight=MASK)}))


JAX = {
    "sgd, decay before": updated(lambda: optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))),
    "sgd, decay after": updated(lambda: optax.chain(optax.sgd(0.05, momentum=0.9), optax.add_decayed_weights(-0.01))),
    "adamw": updated(decayed),
    "lion": updated(lambda: optax.lion(0.05, weight_decay=0.1)),
    "adafactor": updated(lambda: optax.adafactor(0.05, min_dim_size_to_factor=2, weight_decay_rate=0.1)),
    "muon": updated(lambda: optax.contrib.muon(0.05, weight_decay=0.1)),
    "within partition": updated(
        decayed, lambda tx: optax.partition({"masked": tx, "other": optax.sgd(0.1)}, labels)
    ),
    "around partition": updated(
        lambda: optax.partition({"masked": decayed(), "other": optax.sgd(0.1)}, labels)
    ),
    "within masked": updated(decayed, lambda tx: optax.masked(tx, lambda tree: {"a": True, "b": False})),
    "around masked": updated(lambda: optax.masked(decayed(), lambda tree: {"a": True, "b": False})),
    "within MultiSteps": updated(decayed, lambda tx: optax.MultiSteps(tx, 2)),
    "around MultiSteps": updated(lambda: optax.MultiSteps(decayed(), 2)),
    "within a chain, first": updated(decayed, lambda tx: optax.chain(tx, optax.clip(1.0))),
    "within a chain, last": updated(decayed, lambda tx: optax.chain(optax.clip(1.0), tx)),
    "inject_hyperparams": updated(lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=0.05, weight_decay=0.1)),
    "apply_if_finite": updated(lambda: optax.apply_if_finite(decayed(), 2)),
    "schedule_free, with keep_frozen of its eval params": schedule_free_in_jax,
    "lookahead": lookahead,
    "masks of a part of the parameters": by_masks,
    "Flax NNX, wrt= of a part": nnx_part,
}  # fmt: skip


def by_hand(inner):
    """A transformation of a user's own, which optax knows nothing of, around another: decay after it."""

    def update(updates, state, params=None):
        updates, state = inner.update(updates, state, params)
        return jax.tree.map(lambda update, one: update - 0.01 * one, updates, params), state

    return optax.GradientTransformation(inner.init, update)


def added_with_decay(params, updates):
    """A user's own way to add updates."""
    return jax.tree.map(lambda one, update: 0.99 * one + update, params, updates)


def added_as_average(params, updates):
    """Polyak's average of what was and what is."""
    return optax.incremental_update(optax.apply_updates(params, updates), params, 0.3)


UNSEEN = {
    "a function of your own around the hold that adds to its updates": updated(decayed, by_hand),
    "decay of your own where updates are added": updated(decayed, apply=added_with_decay),
    "an average of parameters, which rounds": updated(decayed, apply=added_as_average),
}
"""In JAX a hold is a part of the program that updates, and does not see the rest of it."""
