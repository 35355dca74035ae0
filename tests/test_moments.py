"""What an optimizer keeps goes along where a packed layer's mask changes, and is its own where learning begins (S7)."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedulefree
import torch
from flax import nnx

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as me
import maskedlinear_jax.nnx as mn
import maskedlinear_torch as mt
from maskedlinear_core import columns
from maskedlinear_jax import moments

O, I = 4, 6
X = torch.randn(8, I, generator=torch.Generator().manual_seed(0))
OLD = columns([0, 1])
NEW = {"as many": columns([1, 2]), "more": columns([1, 2, 4])}
RATE = 0.01


def steps(layer, optimizer, count=3):
    for _ in range(count):
        optimizer.zero_grad()
        (layer(X) - 1).square().mean().backward()
        optimizer.step()


class Wrapping:
    """What has another optimizer, as Accelerate's does."""

    def __init__(self, optimizer):
        self.optimizer, self.step = optimizer, optimizer.step


class MasterCopy(torch.optim.Optimizer):
    """Of somebody else: float64 copies and marks of 8 bits in its state."""

    def __init__(self, params):
        super().__init__(params, {"lr": RATE})
        self.calls = [0]

    @torch.no_grad()
    def step(self, closure=None):
        self.calls[0] += 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state |= {"master": p.double(), "code": torch.full_like(p, 127, dtype=torch.uint8)}
                state["master"].sub_(p.grad.double(), alpha=group["lr"])
                state["code"].fill_(120)
                p.copy_(state["master"])


class Grumpy(MasterCopy):
    """Its step cannot be made without a gradient."""

    @torch.no_grad()
    def step(self, closure=None):
        if not any(p.grad.any() for group in self.param_groups for p in group["params"]):
            raise ArithmeticError
        super().step()


TORCH = {
    "schedule-free AdamW": (lambda p: schedulefree.AdamWScheduleFree(p, lr=RATE, weight_decay=0.1), "z"),
    "schedule-free SGD": (lambda p: schedulefree.SGDScheduleFree(p, lr=RATE), "z"),
    "ASGD": (lambda p: torch.optim.ASGD(p, lr=RATE, t0=0), "ax"),
    "master copies": (MasterCopy, "master"),
    "step sizes": (lambda p: torch.optim.Rprop(p, lr=RATE), RATE),
    "sums that start above zero": (lambda p: torch.optim.Adagrad(p, lr=RATE, initial_accumulator_value=0.5), 0.5),
    "moments": (lambda p: torch.optim.Adam(p, lr=RATE, amsgrad=True), 0.0),
}
NAMES = {"step sizes": "step_size", "sums that start above zero": "sum", "moments": "max_exp_avg_sq"}


@pytest.mark.parametrize("count", NEW)
@pytest.mark.parametrize("name", TORCH)
def test_what_begins_to_learn_has_the_state_that_the_optimizer_makes(name, count):
    make, expected = TORCH[name]
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    optimizer = make([layer.values])
    getattr(optimizer, "train", lambda: None)()
    steps(layer, optimizer)
    key = NAMES.get(name, expected)
    before, weight = optimizer.state[layer.values][key].clone(), layer.weight.detach().clone()
    layer.repack(NEW[count], optimizer)
    now = optimizer.state[layer.values][key]
    assert torch.equal(now[:, 0], before[:, 1])
    assert torch.equal(
        now[:, 1:].float(), layer.values[:, 1:] if key == expected else torch.full((O, now.shape[1] - 1), expected)
    )
    steps(layer, optimizer, 1)
    moved = (layer.weight - weight).abs().amax(0)
    assert (moved[NEW[count].to_array((O, I))[0]] > 0).all()
    assert (moved < 2 * RATE).all()  # no jump to a state of zero


def test_the_state_is_made_apart_from_the_optimizer():
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    optimizer = MasterCopy([layer.values])
    steps(layer, optimizer)
    layer.repack(NEW["more"], optimizer)
    assert optimizer.calls == [3]
    assert optimizer.state[layer.values]["code"].tolist() == [[120, 120, 120]] * O
    assert optimizer.state[layer.values]["master"].dtype == torch.float64


def test_a_state_that_cannot_be_made_starts_anew():
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    optimizer = Grumpy([layer.values])
    steps(layer, optimizer)
    layer.repack(NEW["as many"], optimizer)
    assert layer.values not in optimizer.state
    weight = layer.weight.detach().clone()
    steps(layer, optimizer, 1)
    assert ((layer.weight - weight).abs().amax(0) < 2 * RATE).all()


def test_the_moments_of_a_wrapped_optimizer_move():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer, self.param_groups = optimizer, optimizer.param_groups

        def step(self):
            self.optimizer.step()

    layer = mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    optimizer = torch.optim.Adam([layer.values], lr=RATE)
    steps(layer, optimizer)
    before = optimizer.state[layer.values]["exp_avg"].clone()
    layer.repack(NEW["more"], Wrapper(optimizer))
    assert torch.equal(optimizer.state[layer.values]["exp_avg"][:, 0], before[:, 1])


def test_h5_moments_of_other_positions_are_warned_of():
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    optimizer = torch.optim.Adam([layer.values], lr=RATE)
    layer.repack(OLD)
    steps(layer, optimizer)  # nothing changed
    layer.repack(NEW["as many"])
    with pytest.warns(
        UserWarning, match=r"Adam.step: expected moments of the positions that learn now, .*before repack of"
    ):
        steps(layer, optimizer, 1)
    steps(layer, optimizer)
    layer.repack(OLD)
    steps(layer, torch.optim.Adam([layer.values], lr=RATE))  # one that has no moments yet


@pytest.mark.parametrize("bias_mask", [[False, True, True, False], [True, True, True, False], None], ids=str)
@pytest.mark.parametrize("handed", [False, True], ids=["without the optimizer", "with it"])
def test_h5_a_bias_whose_mask_changes_keeps_its_moments_or_is_noticed(bias_mask, handed):
    model = torch.nn.Sequential(torch.nn.Linear(I, O))
    mt.mask_linears(model, {"0": OLD}, packed=True, bias_masks={"0": [True, True, False, False]})
    layer = model[0]
    optimizer = torch.optim.Adam([layer.values, layer.bias_values], lr=RATE)
    steps(model, optimizer)
    before, bias = optimizer.state[layer.bias_values]["exp_avg"].clone(), layer.bias.detach().clone()
    given = [True] * O if bias_mask is None else bias_mask
    if handed:
        mt.mask_linears(model, {"0": OLD}, bias_masks={"0": given}, optimizer=optimizer)
        now = optimizer.state[layer.bias_values]["exp_avg"]
        assert now[given[:2].count(True) - 1] == before[1]
        assert now.count_nonzero() == given[:2].count(True)
        steps(model, optimizer, 1)
        assert (layer.bias != bias).tolist() == given
        return
    layer.bias_mask = bias_mask
    if len(before) == sum(given):
        with pytest.warns(UserWarning, match=r"before another bias_mask of PackedLinear"):
            steps(model, optimizer, 1)
    else:
        with pytest.raises(RuntimeError, match=r"before another bias_mask of .*hand it the layer's bias_values"):
            steps(model, optimizer, 1)


def test_h5_a_bias_that_is_packed_needs_another_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(I, O))
    optimizer = torch.optim.SGD([model[0].bias], lr=RATE)
    mt.mask_linears(model, {"0": OLD}, packed=True, bias_masks={"0": [True, True, False, False]})
    with pytest.raises(RuntimeError, match=r"before mask_linears\(packed=True\) of '0'.*bias_values"):
        steps(model, optimizer, 1)


def test_h5_a_file_with_another_mask_needs_another_optimizer():
    layer, other = (mt.PackedLinear(I, O, bias=False, grad_mask=mask, seed=0) for mask in (OLD, NEW["more"]))
    optimizer = torch.optim.Adam([layer.values], lr=RATE)
    steps(layer, optimizer)
    layer.repack(NEW["as many"], optimizer)
    mt.load_packed(mt.packed_bytes(mt.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0), with_base=True), layer)
    with pytest.warns(UserWarning, match=r"before load_packed into PackedLinear"):
        steps(layer, optimizer, 1)
    mt.load_packed(mt.packed_bytes(other, with_base=True), layer)
    with pytest.raises(RuntimeError, match=r"before load_packed into PackedLinear"):
        steps(layer, optimizer, 1)


@pytest.mark.parametrize("foreach", [False, True], ids=["one by one", "foreach"])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "RMSprop", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam"])
def test_a_state_from_before_packing_is_refused_before_anything_is_stepped(name, foreach):
    def made(model):
        keywords = {"momentum": 0.9} if name == "SGD" else {}
        learns = [(key, one) for key, one in model.named_parameters() if one.requires_grad]
        return getattr(torch.optim, name)(learns, lr=RATE, foreach=foreach, **keywords)

    plain = torch.nn.Sequential(torch.nn.Linear(I, O))
    before = made(plain)
    steps(plain, before, 1)
    model = mt.mask_linears(plain, {"0": OLD}, packed=True)
    optimizer = made(model)
    fresh, state = copy.deepcopy(optimizer.state_dict()), before.state_dict()
    state["param_groups"][0]["param_names"] = fresh["param_groups"][0]["param_names"]
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    for _ in range(2):  # loaded again, it is looked at again
        optimizer.load_state_dict(fresh)
        optimizer.load_state_dict(state)
        with pytest.raises(RuntimeError, match=rf"{name}.step: expected \w+ of the shape of its parameter '0.values'"):
            steps(model, optimizer, 1)
        for key, value in model.state_dict().items():
            assert torch.equal(value, kept[key]), key
        optimizer.load_state_dict(fresh)
        steps(model, optimizer, 1)  # a new state is right, and what learned is kept for the next round
        kept = {key: value.clone() for key, value in model.state_dict().items()}


def test_m1_what_is_frozen_keeps_no_gradient_that_an_optimizer_would_step_with():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(I, I), torch.nn.Linear(I, O))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    steps(model, optimizer)
    mt.mask_linears(model, {"1": OLD}, freeze_others=True)
    mt.hold_frozen(optimizer, model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        model(X).square().mean().backward()
        optimizer.step()
    assert mt.assert_frozen(before, model.state_dict(), mt.grad_masks(model)) == I * I + I + O * I - 2 * O + O
    assert (model[1].weight != before["1.weight"]).any()


JAX = {
    "schedule-free": lambda: optax.contrib.schedule_free_adamw(RATE),
    "step sizes": lambda: optax.rprop(RATE),
    "a copy of the first weights": lambda: optax.contrib.mechanize(optax.sgd(RATE)),
    "moments": lambda: optax.adam(RATE),
}


def _pytree():
    layer = mj.PackedLinear(I, O, bias=False, grad_mask=OLD, seed=0)
    return layer, lambda layer: layer.weight, lambda layer, mask: layer.repack(mask)


def _equinox():
    model = me.mask_linears(eqx.nn.Linear(I, O, use_bias=False, key=jax.random.key(0)), {"": OLD}, packed=True)
    return model, lambda model: model.weight, lambda model, mask: me.mask_linears(model, {"": mask})


@pytest.mark.parametrize("count", NEW)
@pytest.mark.parametrize("make", [_pytree, _equinox])
@pytest.mark.parametrize("name", JAX)
def test_what_begins_to_learn_has_the_state_that_the_optimizer_makes_in_jax(name, make, count):
    before, weight_of, repack = make()
    optimizer, x = JAX[name](), jnp.asarray(X.numpy())

    @jax.jit
    def step(params, rest, state):
        loss = lambda params: jnp.square(jax.vmap(mj.combine(params, rest))(x) - 1).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, rest = mj.partition(before)
    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, rest, state)
    before = mj.combine(params, rest)
    after = repack(before, NEW[count])
    params, rest = mj.partition(after)
    state = mj.repack_state(optimizer, state, before, after)
    for _ in range(2):  # Rprop waits for a second gradient
        params, state = step(params, rest, state)
    moved = np.abs(weight_of(mj.combine(params, rest)) - weight_of(before)).max(0)
    if name != "a copy of the first weights":  # which learns more slowly than that at first
        assert (moved[NEW[count].to_array((O, I))[0]] > 0).all()
    assert (moved < 4 * RATE).all()  # no jump to a state of zero


@pytest.mark.parametrize("name", JAX)
def test_what_begins_to_learn_has_the_state_that_the_optimizer_makes_in_nnx(name):
    model = mn.mask_linears(nnx.Sequential(nnx.Linear(I, O, rngs=nnx.Rngs(0))), {"layers.0": OLD}, packed=True)
    optimizer, x = nnx.Optimizer(model, JAX[name](), wrt=nnx.Param), jnp.asarray(X.numpy())
    gradient = nnx.jit(nnx.grad(lambda model: jnp.square(model(x) - 1).mean()))
    for _ in range(3):
        optimizer.update(model, gradient(model))
    before = np.asarray(model.layers[0].to_linear().kernel[...])
    model.layers[0].repack(NEW["more"], optimizer, model=model)
    optimizer.update(model, gradient(model))
    assert (np.abs(np.asarray(model.layers[0].to_linear().kernel[...]) - before) < 2 * RATE).all()


class Wrapper:
    """Reached by two paths, with a state of its own: as a look-ahead and its scheduler are."""

    def __init__(self, optimizer):
        self.optimizer, self.again, self.state = optimizer, self, {}
        self.scheduler = type("Scheduler", (), {"optimizer": optimizer, "step": lambda self: None})()

    def step(self):
        self.optimizer.step()


def test_moments_move_once_and_stay_plain_tensors():
    """A wrapper reaches the optimizer by two paths and has a state of its own; the second mask only shrinks."""
    layer = mt.PackedLinear(I, O, grad_mask=columns([0, 1, 2]))
    optimizer = torch.optim.Adam([layer.values], lr=RATE)
    steps(layer, optimizer)
    before = optimizer.state[layer.values]["exp_avg"].clone()
    wrapper = Wrapper(optimizer)
    wrapper.state[layer.values] = {"slow": torch.zeros_like(layer.values)}
    layer.repack(columns([1, 2, 3]), wrapper)
    moved = optimizer.state[layer.values]["exp_avg"]
    assert torch.equal(moved[:, :2], before[:, 1:])
    assert not moved[:, 2].any()
    layer.repack(columns([1]), optimizer)
    assert not optimizer.state[layer.values]["exp_avg"].requires_grad
    copy.deepcopy(optimizer)


def test_the_gradient_of_a_bias_goes_along():
    layer = mt.PackedLinear(I, O, grad_mask=OLD, bias_mask=[True, True, False, False])
    layer(X).sum().backward()
    layer.bias_values.grad.copy_(torch.tensor([1.0, 2.0]))
    layer.bias_mask = [False, True, True, False]
    assert layer.bias_values.grad.tolist() == [2, 0]


def test_a_file_of_another_bias_mask_is_noticed(tmp_path):
    layer, other = (
        mt.PackedLinear(I, O, grad_mask=OLD, bias_mask=bias_mask)
        for bias_mask in ([True, True, False, False], [False, True, True, False])
    )
    mt.save_packed(tmp_path / "other.safetensors", other, with_base=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=RATE)
    steps(layer, optimizer, 1)
    mt.load_packed(tmp_path / "other.safetensors", layer)
    with pytest.warns(UserWarning, match="got those from before load_packed"):
        steps(layer, optimizer, 1)


def test_state_that_is_factored_from_now_on_starts_anew():
    before = mj.PackedLinear(300, 256, grad_mask=columns(range(100)), seed=0)
    after = before.repack(columns(range(200)))
    optimizer = optax.adafactor(RATE)
    state = mj.repack_state(optimizer, optimizer.init(mj.partition(before)[0]), before, after)
    fresh = optimizer.init(mj.partition(after)[0])
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [leaf.shape for leaf in jax.tree.leaves(fresh)]


BIASES = {"as many": [1, 2], "more": [1, 2, 3], "fewer": [1], "all": [0, 1, 2, 3]}


def _bias_mask(trained):
    return np.isin(np.arange(O), trained)


def _expected(before, trained):
    return [float(before[[0, 1].index(one)]) if one in (0, 1) else 0.0 for one in trained]


@pytest.mark.parametrize("trained", BIASES.values(), ids=BIASES)
def test_h5_the_moments_of_a_bias_follow_its_mask_in_a_pytree(trained):
    before = mj.PackedLinear(I, O, grad_mask=OLD, bias_mask=_bias_mask([0, 1]), seed=0)
    optimizer, (params, rest) = optax.adam(RATE), mj.partition(before)
    gradient = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(jnp.ones(I)) - 1).sum())(params)
    _, state = optimizer.update(gradient, optimizer.init(params), params)
    after = mj.mask_linears(before, {"": OLD}, bias_masks={"": _bias_mask(trained)})
    moved = mj.repack_state(optimizer, state, before, after)
    assert moved[0].mu.bias_values.tolist() == _expected(state[0].mu.bias_values, trained)
    assert moved[0].mu.values.tolist() == state[0].mu.values.tolist()


@pytest.mark.parametrize(("kind", "name"), [(nnx.Linear, "more"), (nnx.LinearGeneral, "as many")])
def test_h5_the_moments_of_a_bias_follow_its_mask_in_nnx(kind, name):
    trained, model = BIASES[name], nnx.Sequential(kind(I, O, rngs=nnx.Rngs(0)))
    mn.mask_linears(model, {"layers.0": OLD}, packed=True, bias_masks={"layers.0": _bias_mask([0, 1])})
    optimizer = nnx.Optimizer(model, optax.adam(RATE), wrt=nnx.Param)
    gradient = nnx.grad(lambda model: jnp.square(model(jnp.ones(I)) - 1).sum())
    optimizer.update(model, gradient(model))
    before = optimizer.opt_state[0].mu["layers"][0]["bias_values"][...]
    mn.mask_linears(model, {"layers.0": OLD}, bias_masks={"layers.0": _bias_mask(trained)}, optimizer=optimizer)
    now = optimizer.opt_state[0].mu["layers"][0]["bias_values"][...]
    assert now.ravel().tolist() == _expected(before, trained)
    optimizer.update(model, gradient(model))


def test_h2_decay_moves_no_frozen_bias_of_a_packed_layer_with_axes():
    """The bias of a packed `LinearGeneral` was one parameter, of which a mask froze the gradient only."""
    model = nnx.Sequential(nnx.LinearGeneral(I, (2, 2), rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones))
    mn.mask_linears(
        model, {"layers.0": OLD}, packed=True, bias_masks={"layers.0": _bias_mask([0, 3])}, freeze_others=True
    )
    optimizer = nnx.Optimizer(model, optax.adamw(RATE, weight_decay=0.5), wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, nnx.grad(lambda model: model(jnp.ones((2, I))).sum())(model))
    assert model.layers[0].bias_values.get_value().shape == (2,)
    bias = model.layers[0].bias.get_value()
    assert (np.asarray(bias) != 1).tolist() == [[True, False], [False, True]]
    again = mn.load_packed(mn.packed_bytes(model, with_base=True), nnx.clone(model))
    assert again.layers[0].bias.get_value().tolist() == bias.tolist()


def test_h5_an_entry_of_a_bias_that_begins_to_learn_has_what_the_optimizer_makes():
    moved = moments.MovedBias(_bias_mask([0, 1]), _bias_mask([1, 3]), (2,), (2,))
    assert moved.carry(jnp.array([5.0, 6.0]), jnp.array([0.5, 0.5])).tolist() == [6.0, 0.5]


@pytest.mark.parametrize("wrap", [lambda one: one, Wrapping], ids=["the optimizer", "a wrapper"])
@pytest.mark.parametrize("first", [None, OLD], ids=["plain", "masked"])
def test_h5_an_optimizer_that_is_handed_steps_with_the_values_of_a_layer_that_is_packed_now(first, wrap):
    """Pruning or freezing in the middle of training: it was taken, and its next step raised."""
    model = torch.nn.Sequential(torch.nn.Linear(I, O), torch.nn.Linear(O, O))
    if first is not None:
        mt.mask_linears(model, {"0": first})
    inner = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=0.1)
    steps(model, inner)
    other, before = inner.state[model[1].weight]["momentum_buffer"].clone(), model[0].weight.detach().clone()
    mt.mask_linears(
        model, {"0": NEW["more"]}, packed=True, bias_masks={"0": [True, False, True, False]}, optimizer=wrap(inner)
    )
    assert torch.equal(inner.state[model[1].weight]["momentum_buffer"], other)
    assert {id(one) for one in inner.param_groups[0]["params"]} == {
        id(one) for one in model.parameters() if one.requires_grad
    }
    assert model[0].values not in inner.state
    steps(model, inner, 1)
    alone = inner.state[model[0].values]["momentum_buffer"]
    assert torch.equal(alone, model[0].values.grad.add(mt.pack(before, grad_mask=NEW["more"]), alpha=0.1))
    assert mt.assert_frozen({"w": before}, {"w": model[0].weight}, {"w": NEW["more"]}) == O * 3
    assert (model[0].weight != before).any(0).tolist() == NEW["more"].to_array((1, I))[0].tolist()


def test_h5_an_optimizer_that_is_handed_steps_with_the_values_of_attention_that_is_packed_now():
    model = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    optimizer, x = torch.optim.AdamW(model.parameters(), lr=RATE), torch.ones(2, 3, 8)

    def step():
        model(x, x, x)[0].sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    model = mt.mask_linears(model, {"*": mt.columns([1])}, packed=True, optimizer=optimizer)
    assert {id(one) for one in optimizer.param_groups[0]["params"]} == {
        id(one) for one in model.parameters() if one.requires_grad
    }
    step()


@pytest.mark.parametrize("freeze_others", [False, True])
def test_h5_an_optimizer_of_nnx_that_is_handed_steps_with_the_values_of_a_layer_that_is_packed_now(freeze_others):
    """It was taken, and its next step raised of pytrees."""
    model = nnx.Sequential(nnx.Linear(I, O, rngs=nnx.Rngs(0)), nnx.Linear(O, O, rngs=nnx.Rngs(1)))
    optimizer = nnx.Optimizer(model, optax.adamw(RATE, weight_decay=0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda model: jnp.square(model(jnp.ones(I)) - 1).sum())
    optimizer.update(model, gradient(model))
    other, before = optimizer.opt_state[0].mu["layers"][1]["kernel"][...], nnx.clone(model)
    mn.mask_linears(model, {"layers.0": NEW["more"]}, packed=True, freeze_others=freeze_others, optimizer=optimizer)
    mu = optimizer.opt_state[0].mu["layers"]
    assert not mu[0]["values"][...].any()
    if not freeze_others:
        assert mu[1]["kernel"][...].tolist() == other.tolist()
    optimizer.update(model, gradient(model))
    moved = model.layers[0].kernel[...] != before.layers[0].kernel[...]
    assert moved.any(1).tolist() == NEW["more"].to_array((1, I))[0].tolist()
    assert bool((model.layers[1].kernel[...] == before.layers[1].kernel[...]).all()) == freeze_others
