"""Ways to keep weights that ports in the wild have: heads interleaved, flat names, stacks, a bias by itself."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import parity


class _NeoX(nn.Module):
    def __init__(self):
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(12, 36), nn.Linear(12, 12)


@pytest.mark.parametrize("heads", [1, 3], ids=["parts", "heads"])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero biases"])
def test_values_say_whether_heads_hold_their_own_queries(heads, zero, tmp_path):
    model = _NeoX()
    fused, rest = model.query_key_value, 12 // heads
    if zero:
        nn.init.zeros_(fused.bias)
    weight = fused.weight.detach().numpy().reshape(heads, 3, rest, 12)
    bias = fused.bias.detach().numpy().reshape(heads, 3, rest)
    params = {
        name: {"kernel": jnp.asarray(weight[:, at].reshape(12, 12).T), "bias": jnp.asarray(bias[:, at].ravel())}
        for at, name in enumerate("qkv")
    }
    params["dense"] = {"kernel": model.dense.weight.detach().numpy().T, "bias": model.dense.bias.detach().numpy()}
    port = (lambda params, x: x, params)
    found = parity.map_weights(model, port)
    assert found.ok, found
    found.save(tmp_path / "map.toml")
    again = parity.WeightMap.load(tmp_path / "map.toml")
    other = _NeoX()
    loaded = again.load_into_jax(other, port)
    assert again.check(other, loaded) == ()
    wanted = other.query_key_value.weight.detach().numpy().reshape(heads, 3, rest, 12)[:, 1].reshape(12, 12).T
    assert np.array_equal(loaded[1]["k"]["kernel"], wanted)
    assert torch.equal(again.load_into_torch(loaded, _NeoX()).query_key_value.weight, other.query_key_value.weight)


@pytest.mark.parametrize("name", ["head_bias", "out_bias"], ids=["by name", "by values"])
def test_the_bias_of_a_tied_head_may_stand_alone(name):
    model = nn.Module()
    model.embed, model.head = nn.Embedding(9, 4), nn.Linear(4, 9)
    model.head.weight = model.embed.weight
    params = {"embed": jnp.asarray(model.embed.weight.detach()), name: jnp.asarray(model.head.bias.detach())}
    assert parity.map_weights(model, (lambda params, x: x, params)).ok


def test_a_flat_dict_has_paths_with_numbers_in_them():
    """`blocks_0_skip` has as many weights as `blocks_0_gate` has numbers: the shapes of both fit crossed."""
    block = lambda: nn.ModuleDict({"gate": nn.Conv1d(6, 6, 2), "skip": nn.Conv1d(6, 12, 1)})  # noqa: E731
    model = nn.ModuleDict({"blocks": nn.ModuleList([block(), block()])})
    params = {
        f"wave/~/{name.rpartition('.')[0].replace('.', '_')}/{'w' if 'weight' in name else 'b'}": jnp.asarray(
            value.numpy().T if value.ndim == 3 else value.numpy()
        )
        for name, value in model.state_dict().items()
    }
    found = parity.map_weights(model, (lambda params, x: x, params))
    assert found.ok, found
    assert {pair.evidence for pair in found.pairs} == {"name and shape"}


def test_a_stack_of_two_layers_is_no_weight_of_twice_the_size():
    model = nn.Module()
    model.layers = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(6, 12), "down": nn.Linear(12, 6)}) for _ in range(2))
    for layer in model.layers:
        layer["attn"] = nn.Linear(6, 6)
    names = {"up": (2, 12, 6), "down": (2, 6, 12), "attn": (2, 6, 6)}
    params = {
        "blocks": {
            name: {
                "weight": jnp.stack([jnp.asarray(layer[name].weight.detach()) for layer in model.layers]),
                "bias": jnp.stack([jnp.asarray(layer[name].bias.detach()) for layer in model.layers]),
            }
            for name in names
        }
    }
    found = parity.map_weights(model, (lambda params, x: x, params))
    assert found.ok, found


def test_a_transposed_convolution_as_wide_in_as_out_is_refused_unless_values_tell():
    model = nn.Module()
    model.up = nn.ConvTranspose2d(4, 4, 2, 2, bias=False)
    weight = model.up.weight.detach().numpy()
    turned = weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    for value in (weight.transpose(2, 3, 1, 0), turned):
        port = (lambda params, x: x, {"up": {"kernel": jnp.asarray(value)}})
        assert parity.map_weights(model, port).ok
    found = parity.map_weights(model, (lambda params, x: x, {"up": {"kernel": jnp.zeros((2, 2, 4, 4))}}))
    assert [one.torch for one in found.ambiguous] == ["up.weight"]
    assert "transpose_kernel" in found.ambiguous[0].text


@pytest.mark.parametrize("known", [True, False], ids=["", "nothing known"])
def test_norms_go_with_the_convolutions_beside_them(known):
    """As Linen names them by itself; the order of a sorted dict says nothing."""

    def double(into, out):
        return nn.Sequential(
            nn.Conv2d(into, out, 3), nn.GroupNorm(2, out), nn.SiLU(), nn.Conv2d(out, out, 3), nn.GroupNorm(2, out)
        )

    model = nn.ModuleDict({"d1": double(3, 4), "d2": double(4, 8), "mid": double(8, 8), "u1": double(12, 4)})
    homes = {"d1": "down1", "d2": "down2", "mid": "bottleneck", "u1": "dec1"}
    params: dict = {}
    for ours, theirs in sorted(homes.items(), key=lambda one: one[1]):
        into = params.setdefault(theirs, {})
        for at, name in ((0, "Conv_0"), (3, "Conv_1"), (1, "GroupNorm_0"), (4, "GroupNorm_1")):
            layer = model[ours][at]
            weight = layer.weight.detach().numpy() if known or "Norm" in name else np.zeros(layer.weight.shape)
            own = ("kernel", weight.transpose(2, 3, 1, 0)) if weight.ndim == 4 else ("scale", weight)
            bias = layer.bias.detach().numpy() if known else np.zeros(layer.bias.shape)
            into[name] = {"bias": jnp.asarray(bias), own[0]: jnp.asarray(own[1])}
    found = parity.map_weights(model, (lambda params, x: x, params))
    if known:
        assert found.ok, found
    wrong = [pair for pair in found.pairs if homes[pair.torch[0].split(".")[0]] != pair.jax[0].split(".")[0]]
    assert not wrong, wrong
    assert found.pair("d1.4.weight").jax == ("down1.GroupNorm_1.scale",)
