"""Masks of whole models (S14): one budget over all layers, the same in every framework, from scores of batches."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import select

RNG = np.random.default_rng(0)
SCORES = {name: RNG.integers(-2, 3, (4, 4)).astype(np.float32) for name in ("z", "a", "m")}  # ties abound
ALONG = ("elements", "columns", "rows", "blocks")


def by_hand(scores, count, along, cap=None):
    """All candidates of all layers in one sorted list: the score, then the order of definition, then the position."""
    groups = {
        "elements": [[(i, j)] for i in range(4) for j in range(4)],
        "columns": [[(i, j) for i in range(4)] for j in range(4)],
        "rows": [[(i, j) for j in range(4)] for i in range(4)],
        "blocks": [[(y * 2 + i, x * 2 + j) for i in range(2) for j in range(2)] for y in range(2) for x in range(2)],
    }[along]
    order = sorted(
        (-sum(float(array[at]) for at in group), layer, number)
        for layer, array in enumerate(scores.values())
        for number, group in enumerate(groups)
    )
    found, taken = {name: np.zeros((4, 4), bool) for name in scores}, [0] * len(scores)
    for _, layer, number in order:
        if count and (cap is None or taken[layer] < cap):
            count, taken[layer] = count - 1, taken[layer] + 1
            for at in groups[number]:
                found[list(scores)[layer]][at] = True
    return found


@pytest.mark.parametrize("cap", [None, 2])
@pytest.mark.parametrize("along", ALONG)
def test_M8_one_budget_for_all_layers(along, cap):
    block = (2, 2) if along == "blocks" else None
    for count in range(0, 7):
        masks = select.model_top_k(SCORES, count=count, along=along, per_layer_max=cap, block_shape=block)
        assert list(masks) == list(SCORES)
        for name, want in by_hand(SCORES, count, along, cap).items():
            np.testing.assert_array_equal(masks[name].to_array((4, 4)), want)


def test_M8_density_and_a_share_of_each_layer():
    masks = select.model_top_k(SCORES, 0.05)
    assert sum(mask.to_array((4, 4)).sum() for mask in masks.values()) == 2  # floor(0.05 * 48 + 1/2)
    masks = select.model_top_k(SCORES, density=0.25, per_layer_max=0.25)
    assert [mask.density((4, 4)) for mask in masks.values()] == [0.25] * 3


def test_M8_every_framework_and_every_tree_chooses_the_same():
    want = select.model_top_k(SCORES, count=11)
    nested = {name: {"weight": array, "bias": np.ones(4)} for name, array in SCORES.items()}
    for scores in (
        {name: torch.from_numpy(array) for name, array in SCORES.items()},
        {name: jnp.asarray(array) for name, array in SCORES.items()},
        {f"{name}.weight": array for name, array in SCORES.items()},
        nested,
        {name: {"kernel": array.T} for name, array in SCORES.items()},
    ):
        assert select.model_top_k(scores, count=11) == want
    assert list(select.model_top_k(list(SCORES.values()), count=3)) == ["0", "1", "2"]


class NnxModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.z, self.a = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, 4, rngs=rngs)
        self.tokens = nnx.Embed(4, 4, rngs=rngs)

    def __call__(self, x):
        return self.tokens.attend(self.a(nnx.tanh(self.z(x))))


def test_M8_nnx_kernels_are_told_apart_where_square():
    model = NnxModel()
    model.z.kernel.set_value(jnp.arange(16.0).reshape(4, 4))
    with pytest.raises(TypeError, match=r"got a Flax variable of shape \(4, 4\), and kernels of Flax are \(in_f"):
        select.top_k(model.z.kernel, 0.25)
    for scores in (nnx.state(model, nnx.Param), model):
        masks = select.model_top_k(scores, density=0.1)
        assert set(masks) == {"z", "a", "tokens"}
        # The highest five of the kernel are 11 to 15: its last row, which is a column of the weight, and one more.
        want = np.asarray(model.z.kernel[...]).T >= 11
        np.testing.assert_array_equal(masks["z"].to_array((4, 4)), want)
        in_nnx.mask_linears(NnxModel(), masks)


X = RNG.standard_normal((2, 5, 4)).astype(np.float32)


@pytest.mark.parametrize("of", ["gradient", "fisher", "weight", "weight_gradient"])
def test_M8_scores_of_batches_are_the_same_in_every_framework(of):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    weights = {name: model[int(name)].weight.detach().numpy().copy() for name in ("0", "2")}
    in_torch, in_jax, in_flax, in_eqx = (select.Scores(of) for _ in range(4))

    def loss(params, x):
        return jnp.square(jnp.tanh(x @ params["0"].T) @ params["2"].T).sum()

    for x in X:
        model.zero_grad()
        with torch.no_grad():
            model[0].bias.zero_(), model[2].bias.zero_()
        model(torch.from_numpy(x)).square().sum().backward()
        in_torch.add(model)
        grads = jax.grad(loss)({name: jnp.asarray(weight) for name, weight in weights.items()}, x)
        in_jax.add(grads, weights)
        kernels = [{"0": {"kernel": one["0"].T}, "2": {"kernel": one["2"].T}} for one in (grads, weights)]
        in_flax.add(*kernels)
        modules = []
        for one in (grads, weights):
            plain = eqx.nn.MLP(4, 4, 4, 1, key=jax.random.key(0))
            both = lambda model: [layer.weight for layer in model.layers]  # noqa: E731
            modules.append(eqx.tree_at(both, plain, [one["0"], one["2"]]))
        in_eqx.add(*modules)
    assert in_torch.count == 2
    for name, other in (("0", "layers.0"), ("2", "layers.1")):
        for scores, key in ((in_jax, name), (in_flax, name), (in_eqx, other)):
            np.testing.assert_allclose(scores.by_name[key], in_torch.by_name[name], rtol=1e-4, atol=1e-6)  # their sums
    masks = select.model_top_k(in_torch, density=0.25)
    mt.mask_linears(model, masks)
    masks = select.model_top_k(in_eqx, density=0.25)
    in_equinox.mask_linears(modules[0], masks)


def test_M8_scores_of_nnx_models_and_gradients():
    model, x = NnxModel(), jnp.asarray(X[0])
    scores = select.Scores("weight_gradient")
    for _ in range(2):
        scores.add(nnx.grad(lambda model: jnp.square(model(x)).sum())(model), model)
    kernel = np.asarray(model.a.kernel[...])
    gradient = nnx.grad(lambda model: jnp.square(model(x)).sum())(model)["a"]["kernel"][...]
    np.testing.assert_allclose(scores.by_name["a"], np.abs(kernel * np.asarray(gradient)).T, rtol=1e-6)
    in_nnx.mask_linears(model, select.model_top_k(scores, count=5))


WRONG = {
    "neither": ({}, ValueError, "expected exactly one of density and count, got neither"),
    "both": ({"density": 0.1, "count": 3}, ValueError, "expected exactly one of density and count, got both"),
    "too many": ({"count": 49}, ValueError, "expected a count from 0 to 48, all that there are, got 49"),
    "limits": ({"density": 0.5, "per_layer_max": 0.25}, ValueError, "expected limits that leave 24 candidates"),
    "share": ({"count": 3, "per_layer_max": 1.5}, ValueError, "expected a density from 0 to 1, got 1.5"),
    "float count": ({"count": 0.5}, TypeError, "expected count as an integer, got 0.5"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    keywords, error, says = WRONG[name]
    with pytest.raises(error, match=says):
        select.model_top_k(SCORES, **keywords)


def test_wrong_scores():
    with pytest.raises(ValueError, match="a: model_top_k: expected scores that can be ordered, got NaN"):
        select.model_top_k({"a": np.array([[np.nan]])}, count=1)
    with pytest.raises(TypeError, match="a: model_top_k: expected scores as an array of real numbers, got str"):
        select.model_top_k({"a": "b"}, count=1)
    with pytest.raises(ValueError, match="expected one of gradient, fisher, weight or weight_gradient, got 'taylor'"):
        select.Scores("taylor")
    scores = select.Scores("gradient")
    with pytest.raises(TypeError, match="expected gradients for scores of 'gradient', got none"):
        scores.add()
    scores.add(SCORES)
    with pytest.raises(ValueError, match=r"expected the layers \['a', 'm', 'z'\], got others"):
        scores.add({"a": SCORES["a"]})
    with pytest.raises(ValueError, match=r"expected a of shape \(4, 4\), got \(2, 2\)"):
        scores.add({**SCORES, "a": np.ones((2, 2))})
    assert scores.count == 1


@pytest.mark.parametrize("given", [nn.Linear, nn.Linear(2, 2), 3])
def test_M11_random_of_a_layer_says_what_is_wanted(given):
    with pytest.raises(TypeError, match=r"random: expected shape as \(out_features, in_features\), got an? \w+; pass"):
        select.random(given, 0.1, seed=0)


@pytest.mark.parametrize("wrap", [lambda one: {"a": one}, lambda one: {"b": {"a": one}}, lambda one: {"a": [one]}])
def test_a_square_kernel_of_flax_under_the_name_of_its_layer_is_refused(wrap):
    kernel = nnx.Linear(4, 4, rngs=nnx.Rngs(0)).kernel
    for use in (lambda scores: select.model_top_k(scores, count=2), lambda scores: select.Scores().add(scores)):
        with pytest.raises(TypeError, match=r"[a0]: expected .* got a Flax variable of shape \(4, 4\)"):
            use(wrap(kernel))
    by_own_name = select.model_top_k({"a": {"kernel": kernel}}, count=2)["a"]
    assert by_own_name == select.model_top_k({"a": kernel[...].T}, count=2)["a"]
