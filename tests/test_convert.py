"""Whole models (S8): converted in one line, the same outputs bit for bit, and plain again with the trained weights."""

import copy
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import prune

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements, rows

X = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
MASKS = {"layers.*": lambda name, linear: columns([0, 2]), "out": elements(np.eye(3, 8) > 0)}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8, bias=False)])
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def steps(model, count=5):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    mt.hold_frozen(optimizer, model) if any(isinstance(m, mt.MaskedLinear) for m in model.modules()) else None
    for _ in range(count):
        optimizer.zero_grad()
        model(torch.from_numpy(X)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_there_and_back(packed):
    model, plain = Net(), Net()
    before = copy.deepcopy(model.state_dict())
    want = model(torch.from_numpy(X))
    assert mt.mask_linears(model, MASKS, packed=packed) is model
    assert torch.equal(model(torch.from_numpy(X)), want)
    # The state_dict of the plain model loads into the masked one, and the other way round.
    assert set(model.state_dict()) == set(before)
    model.load_state_dict(before)
    assert torch.equal(model(torch.from_numpy(X)), want)
    steps(model)
    mt.assert_frozen(before, model)
    plain.load_state_dict(model.state_dict())
    trained = model(torch.from_numpy(X))
    assert torch.equal(plain(torch.from_numpy(X)), trained)
    assert not torch.equal(trained, want)
    assert mt.unmask_linears(model) is model
    assert [type(m) for m in model.modules() if isinstance(m, nn.Linear)] == [nn.Linear] * 3
    assert torch.equal(model(torch.from_numpy(X)), trained)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_only_the_trained_share_takes_part():
    model = mt.mask_linears(Net(), {"layers.0": columns([1])}, packed=True, freeze_others=True)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["layers.0.values"]
    steps(model)
    optimizer = torch.optim.AdamW(one for one in model.parameters() if one.requires_grad)
    assert sum(one.numel() for group in optimizer.param_groups for one in group["params"]) == 8


def test_a_linear_layer_is_a_model():
    layer = mt.mask_linears(nn.Linear(4, 3), {"": rows([0])}, packed=True)
    assert type(layer) is mt.PackedLinear
    assert type(mt.unmask_linears(layer)) is nn.Linear


def test_a_module_in_two_places_stays_one():
    shared = nn.Linear(6, 6)
    model = mt.mask_linears(nn.Sequential(shared, nn.ReLU(), shared), {"0": columns([0])}, packed=True)
    assert model[0] is model[2]
    assert type(mt.unmask_linears(model)[2]) is nn.Linear


@pytest.mark.parametrize("packed", [False, True])
def test_hooks_of_every_sort_move_along_and_are_let_go(packed):
    """Those that take keywords, those that always run, and the full backward ones, by their own handles."""
    seen = []
    model = nn.Sequential(nn.Linear(6, 8))
    layer, x = model[0], torch.ones(2, 6, requires_grad=True)
    handles = [
        layer.register_forward_pre_hook(lambda module, args, keywords: seen.append("before"), with_kwargs=True),
        layer.register_forward_hook(lambda module, args, keywords, output: seen.append("after"), with_kwargs=True),
        layer.register_forward_hook(lambda module, args, output: seen.append("always"), always_call=True),
        layer.register_full_backward_hook(lambda module, inner, outer: seen.append(tuple(inner[0].shape))),
        layer.register_full_backward_pre_hook(lambda module, outer: seen.append("backward")),
    ]
    for convert in (
        lambda: mt.mask_linears(model, {"0": columns([1])}, packed=packed),
        lambda: mt.unmask_linears(model),
    ):
        convert()
        seen.clear()
        model(x).sum().backward()
        assert seen == ["before", "after", "always", "backward", (2, 6)]
    for handle in handles:
        handle.remove()
    seen.clear()
    model(x).sum().backward()
    assert seen == []


COMPUTED = {"spectral norm": nn.utils.spectral_norm, "pruning": lambda one: prune.l1_unstructured(one, "weight", 0.5)}


@pytest.mark.parametrize("how", COMPUTED)
def test_a_weight_computed_from_others_is_refused(how):
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    COMPUTED[how](model[1])
    with pytest.raises(TypeError, match="mask_linears: 1: expected a weight and bias that are parameters"):
        mt.mask_linears(model, {"*": columns([0])}, strict=True)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


def test_names_that_read_alike_are_refused(tmp_path):
    """A key with a dot and two keys: one of the two would be lost."""
    one, other = (mj.MaskedLinear(4, 2, grad_mask=columns([seed]), seed=seed) for seed in (0, 1))
    model = {"a.b": one, "a": {"b": other}}
    for call in (lambda: mj.save_packed(tmp_path / "file", model), lambda: mj.assert_frozen(model, model)):
        with pytest.raises(
            ValueError, match=r"expected a name of its own for each part of the model, got 'a\.b' twice"
        ):
            call()


def test_hooks_move_along():
    seen = []
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    mt.mask_linears(model, {"0": columns([0])})(torch.ones(1, 6))
    assert seen == [mt.MaskedLinear]


def test_attention_reads_the_weight_of_its_output_layer():
    """nn.MultiheadAttention never calls out_proj: a packed layer's weight guards itself, as nothing else would."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(2, 4, 8)
    want = attention(x, x, x)[0]
    with pytest.raises(TypeError, match="expected a plain linear layer, got NonDynamicallyQuantizableLinear"):
        mt.mask_linears(nn.ModuleDict({"out_proj": attention.out_proj}), {"out_proj": rows([1])})
    mt.mask_linears(attention, {"out_proj": rows([1])}, packed=True)
    assert torch.equal(attention(x, x, x)[0], want)
    before = copy.deepcopy(attention.state_dict())
    optimizer = torch.optim.SGD(attention.out_proj.parameters(), lr=0.1)
    attention(x, x, x)[0].square().sum().backward()
    optimizer.step()
    changed = (attention.out_proj.weight != before["out_proj.weight"]).any(1)
    assert changed.tolist() == [row == 1 for row in range(8)]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


class Subclass(nn.Linear):
    pass


REFUSED = {
    "tied": (Tied, {"head": rows([0])}, {}, ValueError, r"head: expected a weight of its own, got one tied to embe"),
    "nothing": (Net, {"encoder.*": rows([0])}, {}, ValueError, r"got 'encoder.\*'; the model's linear layers are"),
    "overtaken": (Net, {"*": rows([0]), "out": rows([1])}, {}, ValueError, r"that no pattern before it did, got 'out'"),
    "position": (Net, {"out": rows([9])}, {}, IndexError, r"mask_linears: out: rows: expected positions from -3 to 2"),
    "shape": (Net, {"out": elements(np.ones((2, 2), bool))}, {}, ValueError, r"mask_linears: out: elements: expected"),
    "mask": (Net, {"out": 3}, {}, TypeError, r"grad_mask: expected columns"),
    "list": (Net, [("out", rows([0]))], {}, TypeError, r"expected masks as a dict of pattern: mask, got list"),
    "model": (lambda: 3, {"out": rows([0])}, {}, TypeError, r"expected a torch.nn.Module, got int"),
    "subclass": (lambda: nn.Sequential(Subclass(2, 2)), {"0": rows([0])}, {}, TypeError, r"0: expected a plain linear"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_and_unchanged(name):
    make, masks, keywords, error, says = REFUSED[name]
    model = make()
    before = repr(model)
    with pytest.raises(error, match=says):
        mt.mask_linears(model, masks, **keywords)
    assert repr(model) == before


def test_tied_linears_stay_tied():
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    model = mt.mask_linears(nn.Sequential(one, two), {"*": columns([1])})
    assert model[0].weight is model[1].weight
    model(torch.ones(2, 4)).sum().backward()
    assert not model[0].weight.grad[:, [0, 2, 3]].any()
    one, two = nn.Linear(4, 4), nn.Linear(4, 4)
    two.weight = one.weight
    with pytest.raises(ValueError, match=r"expected a weight of its own, got one tied to 1\.weight"):
        mt.mask_linears(nn.Sequential(one, two), {"0": columns([1]), "1": columns([2])})


class NnxNet(nnx.Module):
    def __init__(self, rngs, dtype=jnp.float32):
        self.layers = nnx.List([
            nnx.Linear(6, 8, rngs=rngs, param_dtype=dtype),
            nnx.Linear(8, 8, use_bias=False, rngs=rngs, param_dtype=dtype)
        ])  # fmt: skip
        self.out = nnx.Linear(8, 3, rngs=rngs, param_dtype=dtype)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return self.out(x)


def kernels(model):
    return [np.asarray(layer.kernel[...]) for layer in (*model.layers, model.out)]


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_nnx_there_and_back(packed):
    model = NnxNet(nnx.Rngs(0))
    want, before = np.asarray(model(X)), kernels(model)
    plain_state = nnx.state(model, nnx.Param)
    assert in_nnx.mask_linears(model, MASKS, packed=packed) is model
    np.testing.assert_array_equal(model(X), want)
    if not packed:  # the very same Params
        assert jax.tree.structure(nnx.state(model, nnx.Param)) == jax.tree.structure(plain_state)
    optimizer = nnx.Optimizer(model, optax.adamw(0.01, weight_decay=0.1 if packed else 0.0), wrt=nnx.Param)
    traces = []

    @nnx.jit
    def step(model, optimizer, x):
        traces.append(1)
        optimizer.update(model, nnx.grad(lambda model: jnp.square(model(x)).sum())(model))

    for _ in range(5):
        step(model, optimizer, X)
    trained = np.asarray(model(X))
    assert type(in_nnx.unmask_linears(model).out) is nnx.Linear
    np.testing.assert_allclose(model(X), trained, rtol=0, atol=0)
    masks = [columns([0, 2]), columns([0, 2]), MASKS["out"]]
    for old, new, mask in zip(before, kernels(model), masks, strict=True):
        trains = mask.to_array(old.T.shape).T
        np.testing.assert_array_equal((old != new), trains)
    assert len(traces) == 1


def test_nnx_values_and_moments_have_the_share():
    model = in_nnx.mask_linears(NnxNet(nnx.Rngs(0)), {"layers.0": columns([1])}, packed=True)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    shapes = {str(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(nnx.state(optimizer))}
    assert sum("values" in path and shape == (8, 1) for path, shape in shapes.items()) == 2
    assert not any("base" in path for path in shapes)


def test_nnx_mask_with_a_partly_frozen_bias():
    for cls, bias in ((in_nnx.MaskedLinear, "bias"), (in_nnx.PackedLinear, "bias_values")):
        layer = cls(6, 4, grad_mask=rows([1]), bias_mask=np.arange(4) == 1, rngs=nnx.Rngs(0))
        grads = nnx.grad(lambda layer: layer(jnp.asarray(X)).sum())(layer)
        seen = np.asarray(grads[bias].get_value())
        np.testing.assert_array_equal(seen, [0, 5, 0, 0] if bias == "bias" else [5])
        assert layer.to_linear().bias.shape == (4,)


def test_nnx_another_mask_compiles_once():
    layer = in_nnx.MaskedLinear(6, 4, grad_mask=columns([1]), rngs=nnx.Rngs(0))
    traces = []

    @nnx.jit
    def gradient(layer):
        traces.append(1)
        return nnx.grad(lambda layer: layer(jnp.asarray(X)).sum())(layer)

    for mask in (columns([1]), columns([4])):
        layer.positions.set_value(mask.packed((4, 6)))
        seen = np.asarray(gradient(layer)["kernel"].get_value())
        np.testing.assert_array_equal((seen != 0).T, mask.to_array((4, 6)))
    assert len(traces) == 1


def test_nnx_bfloat16_compute_over_float32_params():
    linear = nnx.Linear(6, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    want = np.asarray(linear(X).astype(jnp.float32))
    for cls in (in_nnx.MaskedLinear, in_nnx.PackedLinear):
        layer = cls.from_linear(linear, grad_mask=columns([1]))
        assert layer(X).dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.asarray(layer(X).astype(jnp.float32)), want)


def test_nnx_refuses_tied_kernels_and_unknown_patterns():
    model = NnxNet(nnx.Rngs(0))
    model.layers[1].kernel = model.layers[0].kernel
    with pytest.raises(ValueError, match="expected a weight of its own"):
        in_nnx.mask_linears(model, {"layers.0": columns([1])})
    with pytest.raises(ValueError, match=r"got 'encoder'; the model's linear layers are: layers.0, layers.1, out"):
        in_nnx.mask_linears(model, {"encoder": columns([1])})
    with pytest.raises(TypeError, match=r"expected a flax\.nnx\.Module, got dict"):
        in_nnx.mask_linears({}, {})


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_equinox_there_and_back(packed):
    # Equinox multiplies W x, in an order of its own: of eighths all products and sums are exact, in any order.
    plain = jax.tree.map(
        lambda leaf: jnp.round(leaf * 8) / 8 if eqx.is_inexact_array(leaf) else leaf,
        eqx.nn.MLP(6, 3, 8, 2, key=jax.random.key(0)),
    )
    x = np.round(X * 8) / 8
    model = in_equinox.mask_linears(plain, {"layers.[01]": rows([0, 2])}, packed=packed)
    np.testing.assert_array_equal(jax.vmap(model)(x), jax.vmap(plain)(x))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    optimizer = optimizer if packed else mj.hold_frozen(optimizer, model)
    state = optimizer.init(params)

    @eqx.filter_jit
    def step(params, state):
        grads = eqx.filter_grad(lambda params: jnp.square(jax.vmap(eqx.combine(params, rest))(X)).sum())(params)
        updates, state = optimizer.update(grads, state, params)
        return eqx.apply_updates(params, updates), state

    for _ in range(5):
        params, state = step(params, state)
    trained = eqx.combine(params, rest)
    assert mj.assert_frozen(model, trained) == 6 * 6 + 8 * 6
    back = in_equinox.unmask_linears(trained)
    assert jax.tree.structure(back) == jax.tree.structure(plain)
    np.testing.assert_allclose(jax.vmap(back)(X), jax.vmap(trained)(X), rtol=1e-5, atol=1e-6)
    for one, other in zip(back.layers, trained.layers, strict=True):
        np.testing.assert_array_equal(one.weight, other.weight)
        np.testing.assert_array_equal(one.bias, other.bias)
    assert (back.layers[0].weight != plain.layers[0].weight).any(1).tolist() == [True, False, True] + [False] * 5


def test_equinox_sequential_passes_a_key():
    model = eqx.nn.Sequential([eqx.nn.Linear(6, 4, key=jax.random.key(0)), eqx.nn.Dropout(0.5)])
    masked = in_equinox.mask_linears(model, {"layers.0": columns([1])})
    assert masked(jnp.ones(6), key=jax.random.key(1)).shape == (4,)


def test_equinox_refuses_shared_weights():
    linear = eqx.nn.Linear(6, 6, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"expected a weight of its own, got one tied to 0\.weight, 1\.weight"):
        in_equinox.mask_linears([linear, linear], {"0": columns([1])})
    with pytest.raises(ValueError, match="expected every pattern to match"):
        in_equinox.mask_linears(linear, {"x": columns([1])})


def test_pytrees_of_the_package():
    plain = mj.MaskedLinear(6, 4, grad_mask=columns([]), seed=0).to_linear()
    model = mj.mask_linears({"a": [plain]}, {"a.0": columns([1])}, packed=True)
    assert type(model["a"][0]) is mj.PackedLinear
    np.testing.assert_array_equal(model["a"][0](X), plain(X))
    np.testing.assert_array_equal(mj.unmask_linears(model)["a"][0].weight, plain.weight)


@pytest.mark.parametrize("adapter", ["equinox", "flax"])
def test_a_missing_library_names_its_extra(adapter, monkeypatch):
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, adapter, None)
    name = {"equinox": "equinox", "flax": "nnx"}[adapter]
    monkeypatch.delitem(sys.modules, f"maskedlinear_jax.{name}")
    with pytest.raises(ImportError, match=rf"needs {adapter}: pip install 'maskedlinear\[{name}\]'"):
        importlib.import_module(f"maskedlinear_jax.{name}")


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_every_library_loads_what_another_saved(tmp_path, packed):
    """One network in torch, NNX and Equinox: trained in one, loaded in the others over their own plain layers."""
    names = {"layers.0": columns([0, 2]), "layers.1": elements(np.eye(8) > 0)}
    plain = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)])})
    weights = [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in plain["layers"]]

    class Stack(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(0))])
            for layer, (weight, bias) in zip(self.layers, weights, strict=True):
                layer.kernel.set_value(jnp.asarray(weight.T))
                layer.bias.set_value(jnp.asarray(bias))

    class Module(eqx.Module):
        layers: list

        def __init__(self):
            empty = [eqx.nn.Linear(6, 8, key=jax.random.key(0)), eqx.nn.Linear(8, 8, key=jax.random.key(0))]
            both = lambda layer: (layer.weight, layer.bias)  # noqa: E731
            self.layers = [
                eqx.tree_at(both, layer, tuple(map(jnp.asarray, parts)))
                for layer, parts in zip(empty, weights, strict=True)
            ]

    model = mt.mask_linears(copy.deepcopy(plain), names, packed=packed)
    model["layers"][0].bias_mask = np.arange(8) < 3
    with torch.no_grad():
        for layer in model["layers"]:
            layer.values.add_(1.0) if packed else layer.weight.add_(torch.from_numpy(
                layer.grad_mask.to_array((layer.out_features, layer.in_features))).float())  # fmt: skip
    mt.save_packed(tmp_path / "torch", model)
    in_flax = in_nnx.load_packed(tmp_path / "torch", Stack())
    in_nnx.save_packed(tmp_path / "nnx", in_flax)
    in_eqx = in_equinox.load_packed(tmp_path / "nnx", Module())
    in_equinox.save_packed(tmp_path / "equinox", in_eqx)
    again = mt.load_packed(tmp_path / "equinox", copy.deepcopy(plain))
    assert len({(tmp_path / name).read_bytes() for name in ("torch", "nnx", "equinox")}) == 1
    for i, layer in enumerate(model["layers"]):
        want = layer.weight.detach().numpy()
        np.testing.assert_array_equal(np.asarray(in_flax.layers[i].kernel[...]).T, want)
        np.testing.assert_array_equal(in_eqx.layers[i].weight, want)
        np.testing.assert_array_equal(again["layers"][i].weight.detach().numpy(), want)
        assert type(again["layers"][i]) is (mt.PackedLinear if packed else mt.MaskedLinear)
        assert type(in_eqx.layers[i]) is (in_equinox.PackedLinear if packed else in_equinox.MaskedLinear)
    other = Stack()
    other.layers[1].kernel.set_value(other.layers[1].kernel.get_value() + 1)
    before = kernels_of(other)
    with pytest.raises(ValueError, match="expected the frozen entries that the values were trained over, got others"):
        in_nnx.load_packed(tmp_path / "nnx", other)
    assert all(type(layer) is nnx.Linear for layer in other.layers)
    for left, right in zip(before, kernels_of(other), strict=True):
        np.testing.assert_array_equal(left, right)


def kernels_of(stack):
    return [np.asarray(layer.kernel[...]) for layer in stack.layers]


class Dense(nnx.Linear):
    """A user's own."""


ONE = {
    "a torch embedding": (
        lambda: mt.MaskedEmbedding.from_embedding(nn.Embedding(3, 2, max_norm=1.0), grad_mask=rows([0])),
        "from_embedding: expected an embedding without max_norm, got",
    ),
    "an nnx.Linear": (
        lambda: in_nnx.MaskedLinear.from_linear(Dense(3, 2, rngs=nnx.Rngs(0)), grad_mask=rows([0])),
        "from_linear: expected a plain linear layer, got Dense",
    ),
    "an nnx.Embed": (
        lambda: in_nnx.PackedEmbed.from_embedding(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), grad_mask=rows([0])),
        "from_embedding: expected a flax.nnx.Embed, got Linear",
    ),
    "an nnx.LinearGeneral": (
        lambda: in_nnx.MaskedLinearGeneral.from_linear(
            nnx.LinearGeneral((4, 3), 2, axis=(-2, -1), batch_axis={0: 5}, rngs=nnx.Rngs(0)), grad_mask=rows([0])
        ),
        "from_linear: expected an nnx.LinearGeneral without batch_axis, got",
    ),
}


@pytest.mark.parametrize("name", ONE)
def test_a_layer_that_is_refused_alone_is_refused_by_the_function_that_was_called(name):
    call, text = ONE[name]
    with pytest.raises(TypeError, match="^" + re.escape(text)):
        call()
