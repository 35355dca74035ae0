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
