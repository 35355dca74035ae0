"""Faults that hid behind others, exchanged blocks, outputs of dicts, and models whose functions close over modules."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.models import Inputs
from parity.models.capture.torch_modules import copied

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((3, 8)).astype(np.float32)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.hidden = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return {"logits": self.fc(x), "hid": torch.tanh(self.hidden(x))}


class NamedHeads(nnx.Module):
    """The same two outputs under names of its own; JAX sorts them."""

    def __init__(self, names, wrong=False):
        rngs = nnx.Rngs(0)
        self.fc, self.hidden = nnx.Linear(8, 4, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.names, self.wrong = names, wrong

    def __call__(self, x):
        outputs = self.fc(x), self.hidden(x) if self.wrong else jnp.tanh(self.hidden(x))
        return dict(zip(self.names, outputs, strict=True))


def loaded(model, port):
    return parity.map_weights(model, port).load_into_jax(model, port)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_outputs_of_a_dict_with_other_names_are_paired_by_values(names):
    model = Heads()
    report = parity.compare_models(model, loaded(model, NamedHeads(names)), (ROWS,))
    assert report.ok, str(report)
    assert f"logits is {names[0]}" in str(report)
    assert not parity.compare_models(model, loaded(model, NamedHeads(names, wrong=True)), (ROWS,)).ok


def test_outputs_in_another_order_are_a_fault_where_there_is_an_order():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = Heads()

        def forward(self, x):
            return tuple(self.heads(x).values())

    class Port(nnx.Module):
        def __init__(self):
            self.heads = NamedHeads(("a", "b"))

        def __call__(self, x):
            return tuple(self.heads(x).values())[::-1]

    model = Pair()
    report = parity.compare_models(model, loaded(model, Port()), (ROWS,))
    assert report.first.diagnosis.cause == "structure: order of outputs"


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block(8) for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class PortBlock(linen.Module):
    eps: float = 1e-5
    approximate: bool = False
    residual: bool = True

    @linen.compact
    def __call__(self, x):
        y = linen.Dense(16)(linen.LayerNorm(epsilon=self.eps)(x))
        y = linen.Dense(8)(linen.gelu(y, approximate=self.approximate))
        return x + y if self.residual else y


class PortStack(linen.Module):
    options: tuple = ()

    @linen.compact
    def __call__(self, x):
        for _ in range(3):
            x = PortBlock(**dict(self.options))(x)
        return linen.Dense(3)(x)


def stacks(**options):
    torch.manual_seed(0)
    model, port = Stack(), PortStack(tuple(options.items()))
    for value in model.parameters():
        value.data = torch.randn_like(value) * 0.4
    module, variables = loaded(model, (port, port.init(jax.random.key(0), ROWS)))
    return model, module, variables


@pytest.mark.parametrize(
    ("options", "cause"), [({"approximate": True}, "default argument: approximate"), ({"residual": False}, "residual")]
)
def test_a_fault_around_a_module_that_has_one_is_named_as_well(options, cause):
    model, *port = stacks(eps=1e-3, **options)
    report = parity.compare_models(model, tuple(port), (ROWS,))
    made = {one.path: one.diagnosis.cause for one in report.modules if one.makes}
    assert report.first.path == "layers.0.norm"
    assert made["layers.0.norm"] == "default argument: eps"
    assert made["layers.0"] == cause, made
    assert "" not in made


def test_two_faults_in_the_code_around_are_said_without_a_cause():
    model, *port = stacks(eps=1e-3, approximate=True, residual=False)
    report = parity.compare_models(model, tuple(port), (ROWS,))
    found = next(one for one in report.modules if one.path == "layers.0")
    assert found.makes
    assert found.diagnosis.cause == "a second fault"
    assert "in the place of layers.0.norm" in found.diagnosis.text


def test_one_fault_in_a_module_is_none_of_those_around_it():
    model, *port = stacks(eps=1e-3)
    report = parity.compare_models(model, tuple(port), (ROWS,))
    assert {one.path for one in report.modules if one.makes} == {f"layers.{at}.norm" for at in range(3)}


@pytest.mark.parametrize("mapped", [False, True])
def test_blocks_that_were_exchanged_in_loading_are_said_to_be(mapped):
    """Their values are those of other layers as they are: the numbers of the blocks say which is which."""
    model, module, variables = stacks()
    params = dict(variables["params"])
    params["PortBlock_0"], params["PortBlock_2"] = params["PortBlock_2"], params["PortBlock_0"]
    if mapped:
        params = jax.tree.map(jnp.asarray, params)
    report = parity.compare_models(model, (module, {"params": params}), (ROWS,))
    assert report.first.path == "layers.0.norm"
    assert report.first.diagnosis.cause == "weight: layer order"
    assert "layers 0 and 2 are exchanged" in report.first.diagnosis.text
    right = parity.compare_models(model, (module, jax.tree.map(jnp.asarray, variables)), (ROWS,))
    assert right.ok, str(right)


class Closing(nn.Module):
    """As a GPT whose feed-forward part is a function that closes over a dict of modules."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.mlp = nn.ModuleDict({"up": nn.Linear(8, 16), "down": nn.Linear(16, 8), "dropout": nn.Dropout(0.5)})
        parts = self.mlp
        later = [parts["down"]]
        self.run = lambda x: parts["dropout"](later[0](torch.relu(parts["up"](x))))

    def forward(self, x):
        return x + self.run(self.norm(x))


class Closed(linen.Module):
    @linen.compact
    def __call__(self, x):
        y = linen.Dense(16, name="up")(linen.LayerNorm(epsilon=1e-5, name="norm")(x))
        return x + linen.Dense(8, name="down")(linen.relu(y))


def test_a_function_that_closes_over_modules_runs_those_of_the_copy():
    model, port = Closing(), Closed()
    made = loaded(model, (port, port.init(jax.random.key(0), ROWS)))
    report = parity.compare_models(model, made, (ROWS,))
    assert report.ok, str(report)
    assert report.precision == "float64"
    assert model.mlp["dropout"].training
    other = copied(model)
    other.double()
    assert model(torch.from_numpy(ROWS)).dtype == torch.float32


class Keyed(linen.Module):
    @linen.compact
    def __call__(self, x, train=False):
        return linen.Dense(2)(linen.Dropout(0.5, deterministic=not train)(linen.Dense(4)(x)))


def test_what_apply_takes_may_be_among_the_inputs_of_a_linen_model():
    model, port = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 2)).eval(), Keyed()
    made = loaded(model, (port, port.init(jax.random.key(0), ROWS)))
    for more in ({"rngs": {"dropout": jax.random.key(1)}}, {"rngs": jax.random.PRNGKey(1)}, {"mutable": False}):
        report = parity.compare_models(model, made, Inputs(torch=(ROWS,), jax={"x": ROWS, **more}))
        assert report.ok, str(report)
        assert report.gradients


class Padded(nnx.Module):
    """A convolution whose padding is put on before it."""

    def __init__(self, sides=(1, 1)):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(4, 6, 3, padding="VALID", rngs=rngs)
        self.fc = nnx.Linear(6, 3, rngs=rngs)
        self.sides = sides

    def __call__(self, x):
        return self.fc(nnx.relu(self.conv(jnp.pad(x, ((0, 0), self.sides, (0, 0))))).mean(1))


class Pads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean(-1))


@pytest.mark.parametrize("sides", [(1, 1), (2, 0)])
def test_a_convolution_that_is_padded_before_it_is_judged(sides):
    model, x = Pads(), RNG.standard_normal((2, 4, 12)).astype(np.float32)
    report = parity.compare_models(model, loaded(model, Padded(sides)), Inputs(torch=(x,), jax=(x.transpose(0, 2, 1),)))
    conv = next(one for one in report.modules if one.path == "conv")
    assert conv.verdict == "within bound"
    assert "one side pads before the layer" in conv.reason
    assert report.ok == (sides == (1, 1))
    if not report.ok:
        assert (report.first.path, report.first.diagnosis.cause) == ("", "padding")


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv1d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(nn.functional.max_pool1d(self.conv(x), 3, 2, padding=1).mean(-1))


class PortPooled(linen.Module):
    padding: object

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(6, (3,), padding=1)(x)
        return linen.Dense(3)(linen.max_pool(x, (3,), (2,), self.padding).mean(1))


def test_the_padding_of_a_pool_along_one_axis_is_named():
    """Its mean over the positions is the same for the reversed input: that is no cause."""
    model, x = Pooled(), RNG.standard_normal((2, 4, 8)).astype(np.float32)
    for padding, cause in ((((1, 1),), ""), ("SAME", "padding")):
        port = PortPooled(padding)
        made = loaded(model, (port, port.init(jax.random.key(0), x.transpose(0, 2, 1))))
        report = parity.compare_models(model, made, Inputs(torch=(x,), jax=(x.transpose(0, 2, 1),)))
        assert report.ok == (not cause)
        assert report.ok or report.first.diagnosis.cause == cause


class Normed(linen.Module):
    axes: tuple

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.LayerNorm(reduction_axes=self.axes, feature_axes=(-2, -1), epsilon=1e-5)(x))


@pytest.mark.parametrize(("axes", "cause"), [((-2, -1), ""), ((-1,), "normalization axes")])
def test_a_norm_over_other_axes_is_named(axes, cause):
    model, port = nn.Sequential(nn.LayerNorm([6, 8]), nn.Linear(8, 3)), Normed(axes)
    x = RNG.standard_normal((2, 6, 8)).astype(np.float32)
    report = parity.compare_models(model, loaded(model, (port, port.init(jax.random.key(0), x))), (x,))
    assert report.ok == (not cause)
    if cause:
        assert (report.first.path, report.first.diagnosis.cause) == ("0", cause)
        assert (
            "a norm over axes 1 and 2 (native_layer_norm) in torch where JAX has one over axis 2"
            in report.first.diagnosis.text
        )


class Experts(nn.Module):
    """Lists of layers, under other names than the port's, which keeps each kind in one array beside a router."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(8, 5, bias=False), "w2": nn.Linear(5, 8, bias=False)}) for _ in range(3)
        )

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        return sum(shares[:, at : at + 1] * one["w2"](torch.relu(one["w1"](x))) for at, one in enumerate(self.experts))


def experts(params, x):
    shares = jax.nn.softmax(x @ params["router"]["kernel"], -1)
    hidden = jax.nn.relu(jnp.einsum("td,edh->teh", x, params["w_up"]))
    return jnp.einsum("te,teh,ehd->td", shares, hidden, params["w_down"])


def test_experts_in_one_array_beside_a_router_are_mapped():
    model = Experts()
    params = {"router": {"kernel": np.zeros((8, 3))}, "w_up": np.zeros((3, 8, 5)), "w_down": np.zeros((3, 5, 8))}
    params = jax.tree.map(lambda one: jnp.asarray(one, jnp.float32), params)
    report = parity.compare_models(model, loaded(model, (experts, params)), (ROWS,))
    assert report.ok, str(report)
    assert len(report.weights.pairs) == 7


class Coupling(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)
        self.scale, self.shift = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        kept = x * self.mask
        return kept + (1 - self.mask) * (x * self.scale(kept).tanh().exp() + self.shift(kept))


class PortCoupling(nnx.Module):
    def __init__(self, mask, rngs, activation):
        self.mask = nnx.Variable(mask)
        self.s, self.t = nnx.Linear(8, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.activation = activation

    def __call__(self, x):
        kept = x * self.mask[...]
        return kept + (1 - self.mask[...]) * (x * jnp.exp(self.activation(self.s(kept))) + self.t(kept))


class Flows(nnx.Module):
    def __init__(self, activation=jnp.tanh):
        rngs, mask = nnx.Rngs(0), jnp.tile(jnp.array([0.0, 1.0]), 4)
        masks = mask, 1 - mask, mask
        self.flows = nnx.List([PortCoupling(one, rngs, activation) for one in masks])

    def __call__(self, x):
        for flow in self.flows:
            x = flow(x)
        return x


@pytest.mark.parametrize("wrong", [False, True])
def test_lists_of_other_names_are_paired_by_their_numbers(wrong):
    """The first and the last mask of torch are one tensor, which tells neither module."""
    torch.manual_seed(0)
    mask = torch.tensor([0.0, 1.0] * 4)
    model = nn.ModuleDict({"layers": nn.Sequential(Coupling(mask), Coupling(1 - mask), Coupling(mask))})
    model.forward = model["layers"].forward
    port = loaded(model, Flows(jax.nn.sigmoid if wrong else jnp.tanh))
    report = parity.compare_models(model, port, (ROWS,))
    assert {f"layers.{at}" for at in range(3)} <= {one.path for one in report.modules}
    assert report.ok == (not wrong), str(report)
    if wrong:
        assert (report.first.path, report.first.diagnosis.cause) == ("layers.0", "another formula: activation")


class Relative(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias, self.fc = nn.Embedding(11, 2), nn.Linear(8, 8)

    def forward(self, x):
        at = torch.arange(6)
        scores = self.bias(at[None, :] - at[:, None] + 5)[..., 0]
        return self.fc(scores.softmax(-1) @ x)


class PortRelative(linen.Module):
    sign: int

    @linen.compact
    def __call__(self, x):
        at = jnp.arange(6)
        scores = linen.Embed(11, 2)(self.sign * (at[None, :] - at[:, None]) + 5)[..., 0]
        return linen.Dense(8)(jax.nn.softmax(scores, -1) @ x)


def test_positions_with_the_other_sign_are_no_fault_of_the_embedding():
    model, x = Relative(), RNG.standard_normal((2, 6, 8)).astype(np.float32)
    for sign in (1, -1):
        port = PortRelative(sign)
        report = parity.compare_models(model, loaded(model, (port, port.init(jax.random.key(0), x))), (x,))
        assert report.ok == (sign == 1)
        assert report.ok or report.first.path == "", str(report)
