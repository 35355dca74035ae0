"""A count of what learns and what is frozen, the same in both twins (S8)."""

import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements


def models(packed):
    made = []
    for twin in (mt, mj):
        kind = twin.PackedLinear if packed else twin.MaskedLinear
        made.append(kind(6, 4, grad_mask=columns([1, 2]), bias_mask=[True, False, False, False], seed=0))
    return nn.ModuleDict({"a": made[0]}), {"a": made[1]}


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_both_twins_count_the_same(packed):
    in_torch, in_jax = models(packed)
    in_torch.register_parameter("scale", nn.Parameter(torch.ones(3)))
    ours, theirs = mt.summary(in_torch), mj.summary(in_jax | {"scale": jnp.ones(3)})
    for one in (ours, theirs):
        assert (one.learns, one.frozen, one.total) == (2 * 4 + 1 + 3, 28 + 3 - 12, 31)
    assert ours.words == theirs.words
    assert sorted(map(str, ours.parts)) == sorted(map(str, theirs.parts))


def test_the_count_is_that_of_what_an_optimizer_would_get():
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4))
    mt.mask_linears(model, {"0": elements(torch.rand(16, 8).numpy() < 0.2)}, packed=True)
    assert mt.summary(model).learns == sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.requires_grad_(False)
    assert mt.summary(model).learns == 0


def test_a_tied_weight_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert mt.summary(model).total == 16


def test_a_tied_masked_weight_counts_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    mt.mask_linears(model, {"0": columns([1]), "1": columns([1])})
    seen = mt.summary(model)
    assert [(part.learns, part.total) for part in seen.parts] == [(4, 16), (4, 4)]


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_nnx_models_are_counted(packed):
    model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Embed(5, 6, rngs=nnx.Rngs(0)))
    in_nnx.mask_linears(model, {"layers.0": columns([1])}, packed=packed)
    for summary in (mj.summary, in_nnx.summary):
        seen = summary(model)
        assert [(part.name, part.learns, part.total) for part in seen.parts] == [
            ("layers.0", 8, 28), ("layers.1.embedding", 30, 30),
        ]  # fmt: skip


@pytest.mark.parametrize("adapter", [in_nnx, in_equinox], ids=["nnx", "equinox"])
def test_adapters_have_the_functions_of_the_package(adapter):
    for name in ("hold_frozen", "assert_frozen", "keep_frozen", "summary"):
        assert getattr(adapter, name) is getattr(mj, name)
    assert callable(adapter.grad_masks)


def test_no_model():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got dict"):
        mt.summary({})
