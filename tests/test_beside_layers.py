"""What users put beside a layer's weight and bias is carried, saved and counted, or refused by name, in each twin."""

import copy
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns

FORMS = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
X = torch.ones(2, 4)


def with_parts():
    layer = nn.Linear(4, 3)
    layer.scale = nn.Parameter(torch.full((3,), 5.0))
    layer.register_buffer("mean", torch.ones(3))
    layer.register_buffer("count", torch.ones(1), persistent=False)
    layer.lora = nn.Linear(4, 3)
    layer.register_forward_hook(lambda module, args, y: y * module.scale + module.mean + module.lora(args[0]))
    return nn.Sequential(layer)


@FORMS
def test_what_stands_beside_a_plain_layer_goes_along_and_comes_back(packed):
    model = with_parts()
    before, state = model(X), copy.deepcopy(model.state_dict())
    kept = {name: id(one) for name, one in model.named_parameters() if "weight" not in name and "bias" not in name}
    mt.mask_linears(model, {"0": columns([1])}, packed=packed)
    assert torch.equal(model(X), before)
    assert model.state_dict().keys() == state.keys()
    assert kept.items() <= {name: id(one) for name, one in model.named_parameters()}.items()
    assert {"0.scale", "0.lora.weight", "0.mean"} <= mt.packed_arrays(model).keys()
    mt.unmask_linears(model)
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(X), before)
    assert all(torch.equal(state[name], one) for name, one in model.state_dict().items())
    assert "count" in model[0]._non_persistent_buffers_set


@FORMS
def test_what_stands_beside_a_layer_is_saved_and_loaded(packed):
    one, other = with_parts(), with_parts()
    with torch.no_grad():
        other[0].weight.copy_(one[0].weight)  # the matrix that the file goes over
    mt.mask_linears(one, {"0": columns([1])}, packed=packed)
    optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], 0.1)
    one(X).sum().backward()
    optimizer.step()
    file = io.BytesIO()
    if not packed:
        mt.hold_frozen(optimizer, one)
    mt.save_packed(file, one)
    file.seek(0)
    assert torch.equal(mt.load_packed(file, other)(X), one(X))


def test_freezing_the_others_freezes_what_stands_beside_a_layer():
    model = mt.mask_linears(with_parts(), {"0": columns([1])}, packed=True, freeze_others=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.values"]
    assert mt.grad_masks(model)["0.scale"] is False


def test_a_name_that_the_packed_layer_has_is_refused_and_nothing_is_changed():
    model = nn.Sequential(nn.Linear(4, 3))
    model[0].values = nn.Parameter(torch.ones(3))
    plain = model[0]
    with pytest.raises(TypeError, match=r"mask_linears: 0: .*names that the layer has not, got 'values'; rename it"):
        mt.mask_linears(model, {"0": columns([1])}, packed=True)
    assert model[0] is plain


@pytest.mark.parametrize("kind", ["MaskedLinear", "PackedLinear"])
def test_from_linear_takes_along_what_a_subclass_has(kind):
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.scale = nn.Parameter(torch.ones(3))

    layer = getattr(mt, kind).from_linear(Scaled(), grad_mask=columns([1]))
    assert "scale" in dict(layer.named_parameters())
    assert "scale" in dict(layer.to_linear().named_parameters())


def of_a_user(packed):
    class Scaled(mt.PackedLinear if packed else mt.MaskedLinear):
        def __init__(self):
            super().__init__(4, 3, grad_mask=columns([1]), seed=0)
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return super().forward(x) * self.scale

    return nn.Sequential(Scaled())


@FORMS
def test_what_a_users_class_has_is_counted_and_compared(packed):
    model = of_a_user(packed)
    seen = mt.summary(model)
    assert (seen.learns, seen.total) == (3 + 3 + 3, 12 + 3 + 3)
    assert ("0.scale", 3, 3) in [(part.name, part.learns, part.total) for part in seen.parts]
    assert mt.grad_masks(model) == {"0.weight": columns([1]), "0.bias": None, "0.scale": None}
    after = copy.deepcopy(model)
    with torch.no_grad():
        after[0].scale.mul_(2)
    assert mt.assert_frozen(model, after) == 9
    model[0].scale.requires_grad_(False)
    with pytest.raises(AssertionError, match=r"0.scale: 3 of 3 frozen entries moved"):
        mt.assert_frozen(model, after, mt.grad_masks(model))


@FORMS
def test_a_users_class_is_no_plain_layer(packed):
    with pytest.raises(TypeError, match=r"unmask_linears: 0: expected a masked layer of this package, got Scaled"):
        mt.unmask_linears(of_a_user(packed))
    if not packed:
        with pytest.raises(TypeError, match="got Scaled, whose forward may be another"):
            mt.mask_linears(of_a_user(False), {"0": columns([0])}, packed=True)
    model = of_a_user(packed)
    layer = mt.mask_linears(model, {"0": columns([0])}, packed=packed and None)[0]
    assert layer.grad_mask == columns([0])
    assert type(layer).__name__ == "Scaled"


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


PUT = {
    "weight norm": nn.utils.parametrizations.weight_norm,
    "a parametrization": lambda layer, name: parametrize.register_parametrization(layer, name, Twice()),
}


@pytest.mark.parametrize("name", ["values", "base", "bias_values", "bias_base"])
@pytest.mark.parametrize("what", PUT)
def test_a_parametrization_of_a_packed_layer_is_refused_and_undone(name, what):
    layer = mt.PackedLinear(4, 3, grad_mask=columns([1]), bias_mask=[True, False, True], seed=0)
    kind, before = type(layer), layer(X)
    names = [name for name, _ in layer.named_parameters()]
    # (torch itself makes no parameter of a constant.)
    with pytest.raises((TypeError, RuntimeError), match=rf"expected {name} to be the layer's|of type Constant"):
        PUT[what](layer, name)
    assert type(layer) is kind
    assert [name for name, _ in layer.named_parameters()] == names
    assert not parametrize.is_parametrized(layer)
    assert torch.equal(layer(X), before)


def test_a_parametrization_of_what_stands_beside_is_the_users():
    layer = of_a_user(True)[0]
    parametrize.register_parametrization(layer, "scale", Twice())
    assert torch.equal(layer.scale, torch.full((3,), 2.0))
    with pytest.raises(TypeError, match="expected values to be the layer's own"):
        parametrize.register_parametrization(layer, "values", Twice())
    assert "values" in layer._parameters


def nnx_of_a_user(packed):
    class Scaled(in_nnx.PackedLinear if packed else in_nnx.MaskedLinear):
        def __init__(self, *given, **keywords):
            super().__init__(*given, **keywords)
            self.scale = nnx.Param(jnp.ones(self.out_features))

        def __call__(self, x):
            return super().__call__(x) * self.scale[...]

    def make(mask):
        return nnx.Sequential(Scaled(4, 3, grad_mask=mask, rngs=nnx.Rngs(0)))

    return make


@pytest.mark.parametrize("as_arrays", [False, True], ids=["file", "arrays"])
@FORMS
def test_what_a_users_nnx_class_has_is_saved_loaded_and_counted(packed, as_arrays):
    make = nnx_of_a_user(packed)
    model, x = make(columns([1])), jnp.ones((1, 4))
    layer = model.layers[0]
    layer.scale[...] = jnp.array([4.0, 5.0, 6.0])
    if packed:
        layer.values[...] = layer.values[...] + 1
    else:
        layer.kernel[...] = layer.kernel[...].at[1].add(1)
    layer.bias[...] = jnp.arange(3.0)
    stored = in_nnx.packed_arrays(model) if as_arrays else in_nnx.packed_bytes(model)
    again = in_nnx.load_packed(stored, make(columns([1] if as_arrays else [0, 2])))
    assert type(again.layers[0]) is type(layer)
    assert again.layers[0].grad_mask == columns([1])
    assert bool((again(x) == model(x)).all())
    seen = in_nnx.summary(model)
    assert (seen.learns, seen.total) == (9, 18)
    before = nnx.clone(model)
    layer.scale[...] = jnp.zeros(3)
    assert in_nnx.assert_frozen(before, model) == 9


def test_a_users_nnx_class_of_the_other_form_is_refused():
    stored = in_nnx.packed_bytes(nnx_of_a_user(False)(columns([1])))
    with pytest.raises(TypeError, match=r"load_packed: layers.0: expected a plain linear layer, got Scaled"):
        in_nnx.load_packed(stored, nnx_of_a_user(True)(columns([1])))
    with pytest.raises(TypeError, match=r"unmask_linears: layers.0: expected a masked layer of this package"):
        in_nnx.unmask_linears(nnx_of_a_user(True)(columns([1])))
    with pytest.raises(TypeError, match="got Scaled, whose forward may be another"):
        in_nnx.mask_linears(nnx_of_a_user(False)(columns([1])), {"*0": columns([0])}, packed=True)


@FORMS
def test_what_stands_beside_an_nnx_layer_goes_along_and_comes_back(packed):
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    model.layers[0].scale = scale = nnx.Param(jnp.ones(3))
    model.layers[0].note = "mine"
    in_nnx.mask_linears(model, {"*": columns([1])}, packed=packed)
    assert model.layers[0].scale is scale
    assert "layers.0.scale" in in_nnx.packed_arrays(model)
    loaded = in_nnx.load_packed(in_nnx.packed_bytes(model), nnx.clone(model))
    assert bool((loaded.layers[0].scale[...] == scale[...]).all())
    in_nnx.unmask_linears(model)
    assert type(model.layers[0]) is nnx.Linear
    assert model.layers[0].scale is scale
    assert model.layers[0].note == "mine"


@FORMS
@pytest.mark.parametrize("norm", [nnx.WeightNorm, nnx.SpectralNorm])
def test_an_nnx_norm_that_is_put_over_a_masked_layer_later_is_refused(norm, packed):
    kind = in_nnx.PackedLinear if packed else in_nnx.MaskedLinear
    layer = kind(4, 3, grad_mask=columns([1]), rngs=nnx.Rngs(0))
    normed = norm(nnx.Sequential(layer), rngs=nnx.Rngs(0))
    for call in (lambda normed, x: normed(x), nnx.jit(lambda normed, x: normed(x))):
        with pytest.raises(
            ValueError, match=r"its kernel as a parameter of its own, .* take the layer out of nnx.Weight"
        ):
            call(normed, jnp.ones((1, 4)))
    assert layer(jnp.ones((1, 4))).shape == (1, 3), "the layer itself computes"


def test_a_packed_embedding_under_a_norm_is_refused():
    layer = in_nnx.PackedEmbed(4, 3, grad_mask=mj.rows([1]), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="its embedding as a parameter of its own"):
        nnx.SpectralNorm(layer, rngs=nnx.Rngs(0))(jnp.array([1]))


NORMS = {
    "WeightNorm": lambda layer: eqx.nn.WeightNorm(layer),
    "SpectralNorm": lambda layer: eqx.nn.SpectralNorm(layer, "weight", key=jax.random.key(1)),
}


def call_normed(norm, layer):
    made, state = eqx.nn.make_with_state(lambda: norm(layer))()
    return made(jnp.ones(4), state) if isinstance(made, eqx.nn.SpectralNorm) else made(jnp.ones(4))


@FORMS
@pytest.mark.parametrize("norm", NORMS)
def test_equinox_norms_over_masked_layers_are_refused(norm, packed):
    plain = eqx.nn.Linear(4, 3, key=jax.random.key(0))
    model = {"one": NORMS[norm](plain), "two": eqx.nn.Linear(4, 3, key=jax.random.key(1))}
    with pytest.raises(
        TypeError, match=r"one.layer: expected a weight and bias that are parameters, .* take the layer"
    ):
        in_equinox.mask_linears(model, {"one.layer": columns([1])}, packed=packed)
    kind = in_equinox.PackedLinear if packed else in_equinox.MaskedLinear
    layer = kind.from_linear(plain, grad_mask=columns([1]))
    with pytest.raises(ValueError, match=r"its weight as a parameter of its own, .* take the layer out of equinox"):
        call_normed(NORMS[norm], layer)
    with pytest.warns(UserWarning, match=r"one\.layer"):
        left = in_equinox.mask_linears(model, {"*": columns([1])}, packed=packed)
    assert type(left["one"].layer) is eqx.nn.Linear


def test_a_normed_equinox_layer_is_constant_as_a_whole():
    key, x = jax.random.key(0), jnp.ones(4)
    model = {"one": NORMS["WeightNorm"](eqx.nn.Linear(4, 3, key=key)), "two": eqx.nn.Linear(3, 2, key=key)}
    forward = lambda model: model["two"](model["one"](x))  # noqa: E731
    frozen = in_equinox.mask_linears(model, {"two": columns([1])}, packed=True, freeze_others=True)
    assert bool((forward(frozen) == forward(model)).all())
    grads = eqx.filter_grad(lambda model: forward(model).sum())(frozen)
    assert [leaf.shape for leaf in jax.tree.leaves(grads)] == [(2, 1)]
    assert repr(grads["one"]) == "Constant(...)"
    assert type(in_equinox.unmask_linears(frozen)["one"]) is eqx.nn.WeightNorm


@jax.tree_util.register_pytree_with_keys_class
class ScaledTree(mj.MaskedLinear):
    """A layer of a user's, with a leaf of its own."""

    def __init__(self, *given, **keywords):
        super().__init__(*given, **keywords)
        self.scale = jnp.ones(self.out_features)

    def __call__(self, input, **keywords):
        return super().__call__(input, **keywords) * self.scale

    def tree_flatten_with_keys(self):
        names = ("weight", "bias", "grad_mask", "bias_mask", "scale")
        leaves, static = self.tree_flatten()
        return tuple((jax.tree_util.GetAttrKey(name), leaf) for name, leaf in zip(names, leaves, strict=True)), static

    def tree_flatten(self):
        leaves, static = super().tree_flatten()
        return (*leaves, self.scale), static

    @classmethod
    def tree_unflatten(cls, static, leaves):
        layer = super().tree_unflatten(static, leaves[:-1])
        layer.scale = leaves[-1]
        return layer


def test_a_users_pytree_class_is_counted_and_compared_and_refused_by_name_where_its_leaf_would_be_lost():
    layer = ScaledTree(4, 3, grad_mask=columns([1]), seed=0)
    assert (mj.summary({"one": layer}).learns, mj.summary({"one": layer}).total) == (9, 18)
    assert mj.grad_masks({"one": layer})["one"].scale is True
    assert mj.assert_frozen({"one": layer}, {"one": layer.replace(bias=layer.bias + 1)}) == 9
    with pytest.raises(ValueError, match=r"save_packed: one: .* got ScaledTree with scale too, which would be lost"):
        mj.packed_bytes({"one": layer})
    with pytest.raises(ValueError, match=r"got ScaledTree with scale too"):
        mj.packed_arrays({"one": layer})
    with pytest.raises(TypeError, match=r"from_linear: .* got ScaledTree with scale too, which would be lost"):
        mj.PackedLinear.from_linear(layer, grad_mask=columns([1]))
    with pytest.raises(TypeError, match=r"unmask_linears: one: expected a masked layer of this package"):
        mj.unmask_linears({"one": layer})
    with pytest.raises(TypeError, match="got ScaledTree, whose forward may be another"):
        mj.mask_linears({"one": layer}, {"one": columns([0])}, packed=True)
    plain = layer.replace(grad_mask=columns(slice(None)))
    with pytest.raises(TypeError, match="got ScaledTree, whose forward may be another"):
        mj.mask_linears({"one": plain}, {"one": columns([0])})


class Beside(nnx.Module):
    """A masked layer, and a plain one after it."""

    def __init__(self, kind):
        self.masked = kind(4, 4, grad_mask=columns([1]), rngs=nnx.Rngs(0))
        self.other = nnx.Linear(4, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.other(self.masked(x))


@FORMS
def test_an_nnx_norm_of_the_layer_beside_it_is_none_of_a_masked_one(packed):
    model = Beside(in_nnx.PackedLinear if packed else in_nnx.MaskedLinear)
    others = nnx.All(nnx.PathContains("other"), nnx.PathContains("kernel"))
    normed = nnx.WeightNorm(model, variable_filter=others, rngs=nnx.Rngs(0))
    assert normed(jnp.ones((1, 4))).shape == (1, 4)


class Around(eqx.Module):
    """A weight of its own, which a norm may compute, behind a masked layer."""

    weight: jax.Array
    inner: eqx.Module

    def __call__(self, x):
        return self.weight @ self.inner(x)


@FORMS
def test_an_equinox_norm_of_the_module_around_it_is_none_of_a_masked_one(packed):
    kind = in_equinox.PackedLinear if packed else in_equinox.MaskedLinear
    layer = kind.from_linear(eqx.nn.Linear(4, 3, key=jax.random.key(0)), grad_mask=columns([0]))
    assert eqx.nn.WeightNorm(Around(jnp.ones((3, 3)), layer), weight_name="weight")(jnp.ones(4)).shape == (3,)


def test_what_computes_a_weight_does_not_go_along_with_a_layer_packed_by_hand():
    pruned, x = nn.Linear(4, 3), torch.randn(2, 4)
    prune.l1_unstructured(pruned, "weight", 0.5)
    normed = parametrizations.weight_norm(nn.Linear(4, 3))
    for plain in (pruned, normed):
        packed = mt.PackedLinear.from_linear(plain, grad_mask=columns([0]))
        assert torch.equal(packed(x), plain(x))
        assert {name for name, _ in packed.named_parameters()} == {"base", "values", "bias_values"}


@pytest.mark.parametrize("name", ["base", "values", "embedding"])
def test_a_part_of_any_name_comes_back_from_a_masked_layer(name):
    plain = nn.Linear(4, 3)
    part = nn.Parameter(torch.ones(2))
    plain.register_parameter(name, part)
    masked = mt.mask_linears(nn.Sequential(plain), {"0": columns([0])})
    assert getattr(masked[0], name) is part
    assert getattr(mt.unmask_linears(masked)[0], name) is part


def test_a_norm_that_is_frozen_with_its_layer_is_counted():
    one, two = (eqx.nn.Linear(4, 4, key=jax.random.key(at)) for at in range(2))
    model = {"normed": eqx.nn.WeightNorm(one), "packed": two}
    model = in_equinox.mask_linears(model, {"packed": columns([0])}, packed=True, freeze_others=True)
    counts = {part.name: (part.learns, part.total) for part in mj.summary(model).parts}
    assert counts["normed"][0] == 0
    assert counts["normed"][1] >= 4 * 4 + 4


@pytest.mark.parametrize("name", ["_extra", "values", "base", "positions"])
@FORMS
def test_a_variable_of_any_name_beside_an_nnx_layer_goes_along_or_is_refused(name, packed):
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    extra = nnx.Param(jnp.ones(2))
    setattr(model.layers[0], name, extra)
    if name != "_extra":
        with pytest.raises(TypeError, match=rf"mask_linears: layers\.0: .*got '{name}'; rename it, it would be lost"):
            in_nnx.mask_linears(model, {"*": columns([1])}, packed=packed)
        assert type(model.layers[0]) is nnx.Linear
        return
    in_nnx.mask_linears(model, {"*": columns([1])}, packed=packed)
    assert getattr(model.layers[0], name) is extra
    in_nnx.unmask_linears(model)
    assert getattr(model.layers[0], name) is extra
