"""Weights whose names are a class and a count: what the counts say of layers, and where they contradict themselves."""

import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from torch import nn

import parity


class Mlp(nn.Module):
    def __init__(self, width=8, hidden=16, bias=True):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)


class Bottleneck(nn.Module):
    def __init__(self, outer, inner=8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(outer, inner, 1, bias=False), nn.Conv2d(inner, inner, 3, bias=False)
        self.conv3 = nn.Conv2d(inner, outer, 1, bias=False)


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(Bottleneck(16), Bottleneck(16))
        self.layer2 = nn.Sequential(Bottleneck(24), Bottleneck(24))


def mapped(model, params):
    found = parity.map_weights(model, (lambda params, x: x, params))
    return found, {pair.torch[0]: (pair.jax[0], pair.rule) for pair in found.pairs}


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def norms():
    return {"scale": normal(8), "bias": normal(8)}


def test_the_first_norm_of_torch_is_the_norm_that_linen_counts_as_0():
    _, pairs = mapped(Mlp(), {f"LayerNorm_{k}": norms() for k in range(2)})
    assert [pairs[f"norm{k + 1}.weight"][0] for k in range(2)] == ["LayerNorm_0.scale", "LayerNorm_1.scale"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", ["w", "weight"])
def test_the_second_dense_layer_of_linen_is_not_torchs_fc1(name, turned):
    shapes = [(16, 8), (8, 16)] if turned else [(8, 16), (16, 8)]
    _, pairs = mapped(Mlp(bias=False), {f"Dense_{k}": {name: normal(*shape)} for k, shape in enumerate(shapes)})
    rule = f"{name} = weight" + (".T" if not turned else "")
    assert pairs["fc1.weight"] == (f"Dense_0.{name}", rule)
    assert pairs["fc2.weight"] == (f"Dense_1.{name}", rule)


def blocks_of(model, order):
    """Return Linen's parameters of a model whose blocks were made in some order of stages, with torch's values."""
    made = {stage: iter(blocks) for stage, blocks in (("1", model.layer1), ("2", model.layer2))}
    return {
        f"Bottleneck_{k}": {
            f"Conv_{n}": {"kernel": conv.weight.detach().numpy().transpose(2, 3, 1, 0)}
            for n, conv in enumerate(next(made[stage]).children())
        }
        for k, stage in enumerate(order)
    }


def expected(order):
    blocks, seen = {}, {"1": 0, "2": 0}
    for k, stage in enumerate(order):
        block = f"layer{stage}.{seen[stage]}"
        blocks |= {f"{block}.conv{n + 1}.weight": f"Bottleneck_{k}.Conv_{n}.kernel" for n in range(3)}
        seen[stage] += 1
    return blocks


@pytest.mark.parametrize("order", ["1212", "1221", "2211", "2121", "1122"])
def test_blocks_whose_counts_alternate_between_stages_are_right_or_open(order):
    """`conv2` has one shape in both stages, and was exchanged with certainty."""
    torch.manual_seed(0)
    model, right = Stages(), expected(order)
    other = {
        block: {conv: {"kernel": normal(*leaf["kernel"].shape)} for conv, leaf in convs.items()}
        for block, convs in blocks_of(model, order).items()
    }
    found, pairs = mapped(model, other)
    wrong = {name: path for name, (path, _) in pairs.items() if right[name] != path}
    assert not wrong
    left = {one.torch: one.candidates for one in found.ambiguous}
    assert set(left) | set(pairs) == set(right)
    if order in ("2211", "2121"):
        assert left  # else the counts tell, and the other convolutions of the block
    for name, candidates in left.items():
        assert any(right[name].startswith(candidate) for candidate in candidates)


@pytest.mark.parametrize("order", ["1212", "1221", "2211", "2121"])
def test_equal_values_tell_blocks_apart_whose_counts_alternate(order):
    torch.manual_seed(0)
    model = Stages()
    found, pairs = mapped(model, blocks_of(model, order))
    assert {name: path for name, (path, _) in pairs.items()} == expected(order)
    assert not found.ambiguous
    assert not found.unequal


class TurnedNorms(nn.Module):
    """`norm2` is defined first: whether Linen made it first too, no name says."""

    def __init__(self):
        super().__init__()
        self.norm2, self.norm1 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)


def test_norms_that_are_defined_against_their_numbers_are_open():
    found, pairs = mapped(TurnedNorms(), {f"LayerNorm_{k}": norms() for k in range(2)})
    assert "norm1.weight" not in pairs
    assert {one.torch: one.candidates for one in found.ambiguous} == {
        f"norm{k}.weight": ("LayerNorm_1", "LayerNorm_0") for k in (1, 2)
    }


@pytest.mark.parametrize("first", ["norm1", "norm2"])
def test_equal_values_say_which_norm_was_made_first(first):
    model = TurnedNorms()
    order = (first, "norm2" if first == "norm1" else "norm1")
    with torch.no_grad():
        for one in model.parameters():
            one.normal_()
    made = {name: model.get_submodule(name) for name in order}
    port = {
        f"LayerNorm_{k}": {"scale": made[name].weight.detach().numpy(), "bias": made[name].bias.detach().numpy()}
        for k, name in enumerate(order)
    }
    found, pairs = mapped(model, port)
    assert [pairs[f"{name}.weight"][0] for name in order] == ["LayerNorm_0.scale", "LayerNorm_1.scale"]
    assert not found.unequal


def test_a_weight_of_the_model_itself_is_no_layers():
    """`gamma` of the model was exchanged with norms of its width."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.gamma, self.b = nn.LayerNorm(8), nn.Parameter(torch.ones(8)), nn.LayerNorm(8, bias=False)

    port = {"a": norms(), "b": {"scale": normal(8)}, "gamma": normal(8)}
    found, pairs = mapped(Scaled(), port)
    assert pairs["gamma"] == ("gamma", "gamma = gamma")
    assert not found.ambiguous


@pytest.mark.parametrize(
    ("torchs", "jaxs"),
    [(("w1", "w3", "w2"), ("gate", "up", "down")), (("wi_0", "wi_1", "wo"), ("gate_proj", "up_proj", "down_proj"))],
    ids=["llama", "t5"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_the_gate_of_llama_and_t5_is_what_the_activation_takes(torchs, jaxs, turned):
    """They were exchanged, and the port was called wrong."""
    ours, theirs = (jaxs, torchs) if turned else (torchs, jaxs)
    sizes = ((8, 12), (8, 12), (12, 8))
    model = nn.ModuleDict(
        {"mlp": nn.ModuleDict({n: nn.Linear(*s, bias=False) for n, s in zip(ours, sizes, strict=True)})}
    )
    _, pairs = mapped(model, {"mlp": {n: {"kernel": normal(*s)} for n, s in zip(theirs, sizes, strict=True)}})
    assert {name: path for name, (path, _) in pairs.items()} == {
        f"mlp.{one}.weight": f"mlp.{other}.kernel" for one, other in zip(ours, theirs, strict=True)
    }


@pytest.mark.parametrize("kind", ["dict", "frozen", "listed"])
def test_a_model_that_was_loaded_keeps_the_order_that_tells_its_layers_apart(kind):
    """JAX's own functions sort the keys of a dict; `w2` before `w10` and `z` before `a` is the order of definition."""
    params = {f"{name}{k}": {"scale": normal(8) + k} for k, name in enumerate("zyxw")}
    made = {"frozen": FrozenDict(params), "listed": {"parts": [params]}}.get(kind, params)
    model = nn.ModuleDict({name: nn.LayerNorm(8, bias=False) for name in ("first", "after", "next", "behind")})
    jax_model = (lambda params, x: x, made)
    found = parity.map_weights(model, jax_model)
    loaded = found.load_into_jax(model, jax_model)
    again = parity.map_weights(model, loaded)
    assert len(found.pairs) == 4
    assert [pair.jax for pair in again.pairs] == [pair.jax for pair in found.pairs]
    assert type(loaded[1]) is type(made)
    assert list(params) == ["z0", "y1", "x2", "w3"]
    assert not again.ambiguous
