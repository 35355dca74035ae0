"""Ports in other people's styles (`tests/model_ports/strangers`): faults that were named wrongly, or not at all."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import parity
from tests.model_ports.strangers import others, vision, wrapped

PORTS = {port.name: port for port in (*vision.PORTS, *others.PORTS, *wrapped.PORTS)}
FAULTS = {
    "squeeze": ("relu for silu", "the maximum squeezed", "gate left out"),
    "convnext": ("norm before the pooling",),
    "dit": ("period of the times", "scale before shift"),
    "gcn": ("no loops", "elu", "softmax without logarithm"),
    "radiance field": ("without pi", "sines before cosines", "relu for softplus"),
    "dilated": ("no holes",),
    "queries": ("keys without places",),
    "wrapped": ("eps", "heads mixed the other way"),
    "waves": ("residuals left out", "skips left out"),
}
CASES = [(port, fault) for port, faults in FAULTS.items() for fault in faults]


def compared(port, options, **how):
    model = port.torch(0)
    return parity.compare_models(model, port.jax(model, **options), port.inputs(0), **how)


@pytest.mark.parametrize(("port", "fault"), CASES, ids=[" ".join(case).replace(" ", "-") for case in CASES])
def test_the_fault_is_named(port, fault):
    found = next(one for one in PORTS[port].faults if one.name == fault)
    first = compared(PORTS[port], found.options, perturb=False).first
    assert re.fullmatch(found.module, first.path), first.diagnosis
    assert re.search(found.cause, first.diagnosis.cause), first.diagnosis
    assert not first.diagnosis.text.startswith("Likely"), first.diagnosis


@pytest.mark.parametrize("name", ["squeeze", "queries", "wrapped"])
def test_the_right_port_is_left_alone(name):
    report = compared(PORTS[name], {})
    assert report.ok, str(report)


class TwoNorms(torch.nn.Module):
    """Two norms that nothing but their order tells apart."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)

    def forward(self, x):
        return self.b(self.fc(self.a(x)))


class JaxNorms(nnx.Module):
    """The port, whose names go against the order of its definition."""

    def __init__(self, rngs):
        self.zeta, self.eta = (nnx.LayerNorm(4, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.fc = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.eta(self.fc(self.zeta(x)))


def norms(merged):
    torch.manual_seed(0)
    model, port = TwoNorms(), JaxNorms(nnx.Rngs(0))
    port.fc.kernel[...], port.fc.bias[...] = (
        jnp.asarray(model.fc.weight.detach().T),
        jnp.asarray(model.fc.bias.detach()),
    )
    port = nnx.clone(port) if merged else port  # Flax puts the attributes of a clone in the order of their names
    return parity.compare_models(model, port, (np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32),))


def test_weights_that_their_order_alone_pairs_are_not_said_to_be_exchanged_for_certain():
    assert norms(merged=False).ok
    found = norms(merged=True).first.diagnosis
    assert found.cause == "weights: paired by order", found
    assert found.text.startswith("Likely: "), found
    assert "rules=[Rule" in found.fix, found


def test_a_port_that_is_loaded_keeps_the_order_of_its_attributes():
    model, port = TwoNorms(), JaxNorms(nnx.Rngs(0))
    loaded = parity.map_weights(model, port).load_into_jax(model, port)
    names = [name for name in vars(loaded) if not name.startswith("_")]
    assert names == ["zeta", "eta", "fc"] == [name for name in vars(port) if not name.startswith("_")]


def test_norms_of_a_merged_module_go_with_the_layer_that_they_are_named_after():
    port = nnx.clone(vision.NnxSqueeze(nnx.Rngs(0)))
    pairs = {pair.torch[0]: pair for pair in parity.map_weights(vision.TorchSqueeze(), port).pairs}
    for norm, (path, evidence) in {
        "bn0": ("expand_bn", "the layer beside it"),
        "bn1": ("dw_bn", "the layer beside it"),
        "bn2": ("project_bn", "shape alone"),
    }.items():
        found = pairs[f"{norm}.weight"]
        assert (found.jax[0], found.evidence) == (f"{path}.scale", evidence)


class Sized(torch.nn.Module):
    """A layer whose inner size the port does not read."""

    def __init__(self, inner):
        super().__init__()
        self.mlp = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in {
            "up": (4, inner), "gate": (4, 4), "down": (inner, 4)}.items()})  # fmt: skip

    def forward(self, x):
        return self.mlp["gate"](x) + self.mlp["down"](torch.relu(self.mlp["up"](x)))


def sized(params, x):
    up, gate, down = (params["mlp"][name] for name in ("up", "gate", "down"))
    linear = lambda layer, x: x @ layer["kernel"] + layer["bias"]  # noqa: E731
    return linear(gate, x) + linear(down, jnp.maximum(linear(up, x), 0))


def test_layers_of_one_path_in_another_size_are_said_to_be_so_and_are_no_others():
    torch.manual_seed(0)
    model, rng = Sized(8), np.random.default_rng(1)
    params = {
        "mlp": {
            name: {role: rng.standard_normal(size, np.float32) for role, size in (("kernel", (4, 4)), ("bias", 4))}
            for name in ("up", "gate", "down")
        }
    }
    weights = parity.map_weights(model, (sized, params))
    assert [pair.torch[0] for pair in weights.pairs] == ["mlp.gate.weight", "mlp.gate.bias"]
    assert not weights.ambiguous
    assert "(8, 4)" in weights.unpaired.reasons["mlp.up.weight"]
    port = weights.load_into_jax(model, (sized, params), partial=True)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    found = parity.compare_models(model, port, (x,), perturb=False).first.diagnosis
    assert found.cause == "weights not paired", found
    assert "mlp.up.weight" in found.text, found
