"""Uses of partial training that ended in a framework's own error, or in silence, each told in words now (S8, S10)."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as me
import maskedlinear_jax.nnx as mn
import maskedlinear_torch as mt
from maskedlinear_core import columns, rows
from maskedlinear_core.patterns import LeftOut
from maskedlinear_core.storage import StorageError

FORMS = pytest.mark.parametrize("packed", [True, False], ids=["packed", "masked"])


def linears():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.BatchNorm1d(2)), {"0": columns([1])}


def attention():
    torch.manual_seed(0)
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)), {"*q_proj": rows([1]), "*1": rows([0])}


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    return GPT2LMHeadModel(config), {"*.c_attn": rows([1]), "*.wte": rows([9, 10]), "lm_head": rows([9, 10])}


@FORMS
def test_a_pruned_bias_is_refused_with_nothing_done(packed):
    model, masks = linears()
    mt.mask_linears(model, masks, packed=packed)
    before = dict(model.named_parameters())
    with pytest.raises(TypeError, match=r"Linear: expected (buffers of other names|bias to be the layer's own)"):
        prune.random_unstructured(model[0], "bias", 0.5)
    assert {id(one) for one in model.parameters()} == {id(one) for one in before.values()}
    assert model[0].bias_mask is None
    assert "bias_mask" not in model.state_dict()


class TorchNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head, self.own = nn.Conv2d(1, 2, 3), nn.LSTM(3, 4), nn.Linear(4, 4), Subclass(4, 4)


class Subclass(nn.Linear):
    pass


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.conv, self.rnn = nnx.Conv(1, 2, (3,), rngs=rngs), nnx.Einsum("ab,bc->ac", (2, 3), rngs=rngs)
        self.head, self.own = nnx.Linear(4, 4, rngs=rngs), NnxSubclass(4, 4, rngs=rngs)


class NnxSubclass(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x)


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    rnn: eqx.nn.GRUCell
    head: eqx.nn.Linear
    own: eqx.nn.Linear

    def __init__(self):
        key = jax.random.key(0)
        self.conv, self.rnn = eqx.nn.Conv2d(1, 2, 3, key=key), eqx.nn.GRUCell(3, 4, key=key)
        self.head, self.own = eqx.nn.Linear(4, 4, key=key), EquinoxSubclass(4, 4, key=key)


class EquinoxSubclass(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return super().__call__(x)


@pytest.mark.parametrize("library", [(mt, TorchNet), (mn, NnxNet), (me, EquinoxNet)], ids=["torch", "nnx", "equinox"])
def test_m7_convolutions_and_recurrent_layers_are_listed_where_someone_asks(library):
    twin, make = library
    mask = {"own": None, "*": rows([0])}
    assert hasattr(twin.mask_linears(make(), mask).head, "grad_mask")  # no warning
    with pytest.raises(TypeError, match=r"conv: expected a linear layer, got Conv.*_parameter, or map it to None"):
        twin.mask_linears(make(), mask, strict=True)
    named = {"conv": None, "rnn": None, **mask}
    assert hasattr(twin.mask_linears(make(), named, strict=True).head, "grad_mask")
    with pytest.warns(LeftOut, match="left 3 of the layers") as seen:
        twin.mask_linears(make(), {"*": rows([0])})
    assert sorted(seen[0].message.left) == ["conv", "own", "rnn"]


def test_names_of_positions_are_those_of_jax():
    """Users save leaves by these names: a sentence in them, for the sake of one error of JAX, changed them."""
    layer = mj.MaskedLinear(4, 3, grad_mask=columns([1]), seed=0)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(layer)]
    assert names == [".weight", ".bias", ".grad_mask[<flat index 0>]"]


def test_m2_equinox_tree_at_of_a_packed_bias_is_refused():
    model = eqx.nn.MLP(4, 2, 3, 1, key=jax.random.key(0))
    model = me.mask_linears(model, {"layers.0": columns([1])}, packed=True, freeze_others=True)
    with pytest.raises(TypeError, match=r"PackedLinear: expected its constant matrix as the bits of float32"):
        eqx.tree_at(lambda model: model.layers[0].bias, model, jnp.zeros(3))


def in_tree():
    return {"a": mj.MaskedLinear(4, 3, grad_mask=columns([]), seed=0).to_linear()}


def in_equinox():
    return {"a": eqx.nn.Linear(4, 3, key=jax.random.key(0))}


class NnxOne(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(4, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("library", [(mj, in_tree), (me, in_equinox), (mn, NnxOne)], ids=["tree", "equinox", "nnx"])
def test_m1_what_a_new_mask_freezes_of_a_masked_layer_in_jax_is_warned_of(library):
    """It may have learned, and a file without the matrix lacks it: the file was refused only when it was loaded."""
    twin, make = library
    model = twin.mask_linears(make(), {"a": columns([1])}, freeze_others=True)
    with pytest.warns(UserWarning, match=r"^a: entries that could learn are frozen .*with_base=True"):
        model = twin.mask_linears(model, {"a": columns([2])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = twin.mask_linears(model, {"a": columns([0, 2])})  # what learned learns on
        model = twin.mask_linears(model, {"a": columns([0, 2])})
    twin.load_packed(twin.packed_bytes(model, with_base=True), make())
    packed = twin.mask_linears(make(), {"a": columns([1])}, packed=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twin.mask_linears(packed, {"a": columns([2])})  # a packed layer knows


def test_m1_torch_knows_what_a_new_mask_froze():
    torch.manual_seed(0)
    model = mt.mask_linears(nn.Sequential(nn.Linear(4, 3)), {"0": columns([1])})
    with torch.no_grad():
        model[0].weight[:, 1] += 1
    mt.mask_linears(model, {"0": columns([2])})
    torch.manual_seed(0)
    again = mt.load_packed(mt.packed_bytes(model), nn.Sequential(nn.Linear(4, 3)))
    assert torch.equal(again[0].weight, model[0].weight)
    assert not np.array_equal(mt.summary(model).learns, 0)
    with pytest.raises(StorageError, match="expected arrays of the positions that learn in this model"):
        mt.load_packed(mt.packed_arrays(model), mt.mask_linears(nn.Sequential(nn.Linear(4, 3)), {"0": columns([1])}))


def embedding():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), {"0": rows([3]), "1": columns([0])}


FROZEN = [linears, attention, gpt2, embedding]


@FORMS
@pytest.mark.parametrize("make", FROZEN)
def test_m1_what_a_mask_names_learns_in_a_model_that_was_frozen_before(make, packed):
    """Freeze all, then say what shall learn: masked layers learned nothing in silence, packed attention too much."""
    model, masks = make()
    mt.mask_linears(model.requires_grad_(False), masks, packed=packed)
    other = mt.mask_linears(make()[0], masks, packed=packed, freeze_others=True)
    learns = [name for name, one in model.named_parameters() if one.requires_grad and one.numel()]
    assert learns == [name for name, one in other.named_parameters() if one.requires_grad and one.numel()]
    assert mt.summary(model).learns == mt.summary(other).learns > 0


def test_m1_a_mask_of_nothing_lets_nothing_learn():
    model = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    mt.mask_linears(model, {"0": rows([])})
    assert not any(one.requires_grad for one in model.parameters())
    model = mt.mask_linears(nn.Sequential(nn.Linear(4, 3)).requires_grad_(False), {"0": rows([0])},
                            bias_masks={"0": np.arange(3) < 1})  # fmt: skip
    assert all(one.requires_grad for one in model.parameters())


@FORMS
def test_m1_a_file_makes_a_frozen_model_learn_as_it_did(packed):
    model, masks = linears()
    data = mt.packed_bytes(mt.mask_linears(model, masks, packed=packed, freeze_others=True))
    again = mt.load_packed(data, linears()[0].requires_grad_(False))
    assert mt.summary(again).learns == mt.summary(model).learns


@FORMS
@pytest.mark.parametrize("make", [linears, attention, embedding])
def test_m1_another_mask_of_a_frozen_model_learns(make, packed):
    """Masked, frozen, masked anew: the layers learned nothing, in silence."""
    model, masks = make()
    mt.mask_linears(model, {name: rows([0]) for name in masks}, packed=packed).requires_grad_(False)
    mt.mask_linears(model, masks, packed=packed)
    fresh = mt.mask_linears(make()[0].requires_grad_(False), masks, packed=packed)
    assert mt.summary(model).learns == mt.summary(fresh).learns > 0


def test_m1_a_refused_mask_leaves_a_frozen_model_frozen():
    model = linears()[0].requires_grad_(False)
    with pytest.raises(IndexError, match="mask_linears: 1: "):
        mt.mask_linears(model, {"0": columns([1]), "1": columns([7])})
    assert not any(one.requires_grad for one in model.parameters())
