"""What a client sends, as arrays by name: nothing hides behind another's name, and positions are told apart."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements
from maskedlinear_core.storage import StorageError


def layer_in_jax():
    return mj.PackedLinear(8, 4, grad_mask=columns([1, 2]), seed=0)


class Positioned(mt.MaskedLinear):
    """A layer with parameters of its own, which are called as what a client sends is."""

    def __init__(self, *own):
        super().__init__(6, 4, grad_mask=columns([1, 2]), seed=0)
        for name in own:
            self.register_parameter(name, nn.Parameter(torch.ones(3)))


def test_m10_a_parameter_that_is_called_positions_is_sent():
    sent = mt.packed_arrays(Positioned("positions"))
    assert {name: array.shape for name, array in sent.items()} == {
        "values": (4, 2), "bias": (4,), "positions": (3,), "positions_": (8,)
    }  # fmt: skip
    loaded = mt.load_packed(sent | {"positions": sent["positions"] + 1}, Positioned("positions"))
    assert loaded.positions.tolist() == [2, 2, 2]
    with pytest.raises(StorageError, match=r"expected one array by each name, got two by 'values'"):
        mt.packed_arrays(Positioned("values"))
    in_jax = {"in": layer_in_jax(), "in.positions": jnp.ones(3)}
    assert mj.packed_arrays(in_jax)["in.positions"].tolist() == [1, 1, 1]
    assert mj.load_packed(mj.packed_arrays(in_jax), in_jax)["in.positions"].shape == (3,)
    with pytest.raises(StorageError, match=r"expected one array by each name, got two by 'in.values'"):
        mj.packed_arrays({"in": layer_in_jax(), "in.values": jnp.ones(3)})


def whole(kind, number):
    if kind == "attention":
        return mt.mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": mt.rows([number])})
    return mt.mask_parameter(nn.Conv1d(4, 4, 1), "weight", grad_mask=mt.rows([number]))


@pytest.mark.parametrize("kind", ["attention", "a parameter"])
def test_m10_arrays_of_other_positions_of_whole_parameters_are_refused(kind):
    sent = mt.packed_arrays(whole(kind, 1))
    mt.load_packed(sent, whole(kind, 1))
    with pytest.raises(StorageError, match=r"positions: expected arrays of the positions that learn"):
        mt.load_packed(sent, whole(kind, 2))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m10_arrays_of_the_same_positions_in_another_kind_are_refused_by_their_shape(packed):
    """Values of rows have two axes and those of single entries one, though both are the same numbers."""
    entries = np.zeros((4, 8), bool)
    entries[[1, 3]] = True
    for twin in (mt, mj):
        kind = twin.PackedLinear if packed else twin.MaskedLinear
        by_rows, by_entries = (kind(8, 4, grad_mask=one, seed=0) for one in (mt.rows([1, 3]), elements(entries)))
        one, other = (twin.packed_arrays(layer)["values"] for layer in (by_rows, by_entries))
        np.testing.assert_array_equal(one.ravel(), other.ravel())
        with pytest.raises(StorageError, match=r"expected a"):
            twin.load_packed(twin.packed_arrays(by_rows), by_entries)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m10_arrays_of_a_model_with_frozen_biases_go_from_one_twin_to_the_other(packed):
    """A frozen bias is no parameter that learns in torch and a mask of nothing in JAX: one sent it, and one did not."""
    everything, masks = columns(slice(None)), {"*": columns([0, 2])}
    in_torch = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 2)})
    layers = {"a": mj.MaskedLinear(6, 4, grad_mask=everything, seed=0),
              "b": mj.MaskedLinear(4, 2, grad_mask=everything, seed=1)}  # fmt: skip
    for name, layer in in_torch.items():
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(np.asarray(layers[name].weight)))
            layer.bias.copy_(torch.tensor(np.asarray(layers[name].bias)))
    in_jax = mj.mask_linears(layers, masks, packed=packed, freeze_others=True)
    mt.mask_linears(in_torch, masks, packed=packed, freeze_others=True)
    names = ["a.positions", "a.values", "b.positions", "b.values"]
    for sent in (mt.packed_arrays(in_torch), mj.packed_arrays(in_jax)):
        assert sorted(sent) == names
        moved = {name: array + (1 if "values" in name else 0) for name, array in sent.items()}
        moved["a.bias"] = np.zeros(0, np.float32)  # what holds no number may come or not
        mt.load_packed({name: torch.tensor(array, requires_grad=True) for name, array in moved.items()}, in_torch)
        loaded = mj.load_packed(moved, in_jax)
        for name in "ab":
            np.testing.assert_array_equal(in_torch[name].weight.detach().numpy(), loaded[name].weight)
            np.testing.assert_array_equal(loaded[name].bias, in_jax[name].bias)
