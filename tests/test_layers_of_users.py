"""What users' classes and models bring along: parameters beside a layer's, layers in two places, kept references."""

import warnings

import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax.nnx as masked_nnx
from maskedlinear_jax import columns as jax_columns
from maskedlinear_torch import PackedLinear, columns, mask_linears


class Scaled(PackedLinear):
    """A packed layer with a parameter, a buffer and a module of its own."""

    def __init__(self, seed):
        super().__init__(4, 3, grad_mask=columns([1]), seed=seed)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3))
        self.lora = nn.Linear(4, 3)

    def forward(self, x):
        return super().forward(x) * self.scale + self.mean + self.lora(x)


def test_a_state_dict_has_what_a_packed_layer_of_a_users_class_has_beside():
    one, other = Scaled(0), Scaled(1)
    with torch.no_grad():
        one.scale.fill_(4.0)
        one.mean.fill_(2.0)
    names = [name for name, _ in other.named_parameters()]
    state = one.state_dict()
    assert list(state) == ["weight", "bias", "scale", "mean", "lora.weight", "lora.bias"]
    other.load_state_dict(state)
    x = torch.randn(2, 4)
    assert torch.equal(one(x), other(x))
    assert [name for name, _ in other.named_parameters()] == names, "optimizers go by the order"
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if name != "scale"})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**state, "extra": torch.ones(1)})


def test_a_kept_reference_to_a_plain_layer_that_was_converted_is_no_tie():
    model = nn.Sequential(nn.Linear(4, 3))
    kept = model[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mask_linears(model, {"0": columns([1])})
        model(torch.ones(1, 4)).sum().backward()
    assert kept is not model[0]


def test_names_of_a_users_own_that_end_as_those_of_norms_do_are_parameters():
    layer = PackedLinear(4, 3, grad_mask=columns([1]), seed=0)
    layer.gate = nn.Parameter(torch.ones(1))
    layer.gate_v = nn.Parameter(torch.ones(1))
    assert {"gate", "gate_v"} <= dict(layer.named_parameters()).keys()
    with pytest.warns(FutureWarning, match="weight_norm"), pytest.raises(TypeError, match="computed"):
        nn.utils.weight_norm(layer, "values")


def test_a_late_write_into_a_view_that_repeats_entries_loses_no_training():
    layer = PackedLinear(4, 6, grad_mask=columns([1]), seed=0)
    repeated = layer.weight[:1].expand(6, 4)
    with torch.no_grad():
        layer.values.fill_(7.0)
        with pytest.raises(RuntimeError, match="read before the layer changed"):
            repeated.zero_()
    assert bool((layer.values == 7.0).all())


class Shared(nnx.Module):
    """A layer under two names, and one of a list under a third."""

    def __init__(self, rngs):
        self.a = nnx.Linear(4, 4, rngs=rngs)
        self.b = self.a
        self.several = nnx.List([nnx.Linear(4, 4, rngs=rngs)])
        self.c = self.several[0]

    def __call__(self, x):
        return self.b(self.a(x))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_layer_in_two_places_is_converted_and_loaded_in_both(packed):
    model = Shared(nnx.Rngs(0))
    masked_nnx.mask_linears(model, {"*": jax_columns([1])}, packed=packed)
    assert model.a is model.b
    assert model.c is model.several[0]
    assert type(model.c).__name__ == ("PackedLinear" if packed else "MaskedLinear")
    if packed:
        loaded = masked_nnx.load_packed(masked_nnx.packed_bytes(model), Shared(nnx.Rngs(0)))
        assert loaded.a is loaded.b


@pytest.mark.parametrize("norm", [nnx.WeightNorm, nnx.SpectralNorm])
def test_a_norm_over_a_module_with_layers_is_refused(norm):
    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.norm = norm(Shared(rngs), rngs=rngs)

    with pytest.raises(TypeError, match="computed from others"):
        masked_nnx.mask_linears(Normed(nnx.Rngs(0)), {"*": jax_columns([1])})


def test_a_users_packed_class_trains_its_own_parameters_and_no_frozen_entry():
    layer = Scaled(0)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.ones(2, 4)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    after = layer.weight.detach()
    assert not torch.equal(layer.scale, torch.ones(3))
    assert torch.equal(after[:, [0, 2, 3]], before[:, [0, 2, 3]])
    assert not torch.equal(after[:, 1], before[:, 1])
