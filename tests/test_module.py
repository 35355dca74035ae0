"""MaskedLinear in both twins (S8): a drop-in for a linear layer, from the same bits."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import maskedlinear_jax as jax_twin
import maskedlinear_torch as torch_twin
from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_jax import MaskedLinear as JaxLinear
from maskedlinear_jax import combine, partition
from maskedlinear_torch import MaskedLinear as TorchLinear

MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1]),
    "submatrix": submatrix([0], [1, 2]),
    "blocks": blocks(np.eye(2, dtype=bool), (2, 3)),
    "elements": elements(np.arange(24).reshape(4, 6) % 5 == 0),
    "union": columns([0]) | rows([2]),
    "none": columns([]),
}
X = np.random.default_rng(0).integers(-3, 4, (5, 6)).astype(np.float32)


def gradients(layer):
    """Weight and bias gradient of the sum of outputs, as NumPy."""
    if isinstance(layer, nn.Module):
        layer.zero_grad()
        layer(torch.from_numpy(X)).sum().backward()
        return layer.weight.grad.numpy(), layer.bias.grad.numpy()
    params, rest = partition(layer)
    seen = jax.grad(lambda params: combine(params, rest)(jnp.asarray(X)).sum())(params)
    return np.asarray(seen.weight), np.asarray(seen.bias)


@pytest.mark.parametrize("name", MASKS)
def test_gradients_are_masked_and_the_same(name):
    bias_mask = [True, False, True, True]
    want = np.where(MASKS[name].to_array((4, 6)), np.broadcast_to(X.sum(0), (4, 6)), 0.0)
    for kind in (TorchLinear, JaxLinear):
        weight, bias = gradients(kind(6, 4, grad_mask=MASKS[name], bias_mask=bias_mask, seed=0))
        np.testing.assert_array_equal(weight, want)
        np.testing.assert_array_equal(bias, np.where(bias_mask, 5.0, 0.0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_seed_gives_both_the_same_bits(dtype, bias):
    in_torch = TorchLinear(6, 4, bias, grad_mask=rows([0]), seed=3, dtype=getattr(torch, dtype))
    in_jax = JaxLinear(6, 4, bias, grad_mask=rows([0]), seed=3, dtype=dtype)
    assert str(in_torch.weight.dtype) == f"torch.{in_jax.weight.dtype.name}"
    for left, right in zip((in_torch.weight, in_torch.bias), (in_jax.weight, in_jax.bias), strict=True):
        if left is None:
            assert right is None
        else:
            np.testing.assert_array_equal(left.detach().float().numpy(), np.asarray(right).astype(np.float32))


def test_seed_gives_both_the_same_bits_in_float64():
    in_torch = TorchLinear(6, 4, grad_mask=rows([0]), seed=3, dtype=torch.float64)
    with jax.enable_x64(True):
        in_jax = JaxLinear(6, 4, grad_mask=rows([0]), seed=3, dtype=jnp.float64)
    np.testing.assert_array_equal(in_torch.weight.detach().numpy(), np.asarray(in_jax.weight))


def test_initial_values_fill_the_interval_of_both_frameworks():
    """Not only the same bits: the right distribution, both signs (a twin once shipped half of it)."""
    weight = TorchLinear(400, 300, grad_mask=rows([]), seed=0).weight.detach().numpy()
    assert weight.max() == pytest.approx(0.05, rel=1e-3)
    assert weight.min() == pytest.approx(-0.05, rel=1e-3)
    assert weight.mean() == pytest.approx(0, abs=4 * 0.05 / np.sqrt(3 * weight.size))
    drawn = JaxLinear(400, 300, grad_mask=rows([]), key=jax.random.key(0)).weight
    assert float(jnp.std(drawn)) == pytest.approx(float(weight.std()), rel=0.01)


def test_from_location_is_the_seeds_constructor(twin):
    layer = twin.MaskedLinear.from_location(30, 3, np.array([1, 25]), seed=0)
    weight = twin.numpy(layer.weight)
    assert np.abs(weight).max() <= 0.1
    assert np.abs(weight).max() > 0.09
    assert layer.grad_mask == columns([1, 25])


def test_repr_is_the_same():
    made = [
        kind(6, 4, grad_mask=columns([0]), bias_mask=[True] * 3 + [False], seed=0) for kind in (TorchLinear, JaxLinear)
    ]
    assert repr(made[0]) == repr(made[1])
    assert repr(made[0]) == (
        "MaskedLinear(in_features=6, out_features=4, bias=True, grad_mask=columns([0]), bias_mask=3 trained)"
    )


def test_exactly_one_source_of_numbers_in_jax():
    with pytest.raises(ValueError, match="exactly one of seed and key, got neither"):
        JaxLinear(6, 4, grad_mask=rows([0]))
    with pytest.raises(ValueError, match="exactly one of seed and key, got both"):
        JaxLinear(6, 4, grad_mask=rows([0]), seed=0, key=jax.random.key(0))


# torch


def test_is_a_linear_layer_to_torch():
    assert isinstance(TorchLinear(6, 4, grad_mask=rows([0])), nn.Linear)


def test_state_dict_is_that_of_a_linear_layer():
    layer, plain = TorchLinear(6, 4, grad_mask=columns([0])), nn.Linear(6, 4)
    assert list(layer.state_dict()) == ["weight", "bias"]
    layer.load_state_dict(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(torch.from_numpy(X)), plain(torch.from_numpy(X)), rtol=0, atol=0)


def test_from_and_to_linear_share_the_parameters():
    plain = nn.Linear(6, 4, bias=False).eval()
    layer = TorchLinear.from_linear(plain, grad_mask=columns([0]))
    back = layer.to_linear()
    assert layer.weight is plain.weight is back.weight
    assert layer.bias is back.bias is None
    assert not layer.training
    assert not back.training
    assert type(back) is nn.Linear


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("name", MASKS)
def test_copies_keep_the_mask(clone, name):
    layer = TorchLinear(6, 4, grad_mask=MASKS[name], seed=0)
    twin = clone(layer)
    assert twin.grad_mask == layer.grad_mask
    np.testing.assert_array_equal(gradients(twin)[0], gradients(layer)[0])
    assert twin.weight is not layer.weight


def test_moving_to_another_dtype_keeps_the_positions():
    layer = TorchLinear(6, 4, grad_mask=columns([0, 3]), seed=0).to(torch.float64)
    layer(torch.from_numpy(X).double()).sum().backward()
    assert layer.weight.grad.dtype == torch.float64
    np.testing.assert_array_equal(layer.weight.grad.numpy() != 0, layer.grad_mask.to_array((4, 6)) & (X.sum(0) != 0))


def test_made_on_meta_and_filled_later_keeps_the_positions():
    """Large models are made on the meta device: positions without values must not come back as anything."""
    layer = TorchLinear(6, 4, grad_mask=columns([0, 3]), bias_mask=[True, False, True, True], device="meta")
    layer.to_empty(device="cpu")
    np.testing.assert_array_equal(gradients(layer)[0], gradients(TorchLinear(6, 4, grad_mask=columns([0, 3])))[0])
    np.testing.assert_array_equal(gradients(layer)[1], [5, 0, 5, 5])


def test_made_on_meta_and_assigned_later_keeps_the_positions():
    layer = TorchLinear(6, 4, grad_mask=columns([0, 3]), bias_mask=[True, False, True, True], device="meta")
    layer.load_state_dict(nn.Linear(6, 4).state_dict(), assign=True)
    layer.requires_grad_(True)
    np.testing.assert_array_equal(gradients(layer)[0], gradients(TorchLinear(6, 4, grad_mask=columns([0, 3])))[0])
    np.testing.assert_array_equal(gradients(layer)[1], [5, 0, 5, 5])


def test_another_mask_can_be_set():
    layer = TorchLinear(6, 4, grad_mask=columns([0]), seed=0)
    for mask in MASKS.values():
        layer.grad_mask = mask
        np.testing.assert_array_equal(gradients(layer)[0], gradients(TorchLinear(6, 4, grad_mask=mask))[0])


def test_setting_another_mask_leaves_the_old_one_alone():
    for first, second in ((columns([0]), columns([3])), (elements(np.eye(4, 6) == 1), elements(np.eye(4, 6, 1) == 1))):
        before = first.to_array((4, 6))
        layer = TorchLinear(6, 4, grad_mask=first, bias_mask=(kept := np.array([True, False, True, True])))
        layer.grad_mask = second
        np.testing.assert_array_equal(first.to_array((4, 6)), before)
        np.testing.assert_array_equal(kept, [True, False, True, True])
        assert layer.grad_mask == second


def test_models_of_one_shape_stack_under_vmap():
    """torch.func.stack_module_state, with another mask in each model."""
    layers = [TorchLinear(6, 4, grad_mask=columns([i, i + 1]), seed=i) for i in range(3)]
    params, buffers = torch.func.stack_module_state(layers)
    base = copy.deepcopy(layers[0])

    def loss(params, buffers):
        return torch.func.functional_call(base, (params, buffers), (torch.from_numpy(X),)).sum()

    seen = torch.func.vmap(torch.func.grad(loss))(params, buffers)
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(seen["weight"][i].detach().numpy(), gradients(layer)[0])


# JAX


@pytest.mark.parametrize("name", MASKS)
def test_is_a_pytree(name):
    layer = JaxLinear(6, 4, grad_mask=MASKS[name], bias_mask=[True] * 4, seed=0)
    leaves, tree = jax.tree.flatten(layer)
    again = jax.tree.unflatten(tree, leaves)
    assert again.grad_mask == layer.grad_mask
    np.testing.assert_array_equal(gradients(again)[0], gradients(layer)[0])
    assert jax.tree_util.tree_leaves_with_path(layer)[0][0] == (jax.tree_util.GetAttrKey("weight"),)


def test_layers_go_through_scan_and_checkpoint():
    masks = [columns([0, i]) for i in range(1, 4)]
    layers = [JaxLinear(6, 6, grad_mask=mask, seed=i) for i, mask in enumerate(masks)]
    params, rest = partition(jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))

    def scanned(params):
        step = jax.checkpoint(lambda x, layer: (jnp.tanh(layer(x)), None))
        return jax.lax.scan(step, jnp.asarray(X), combine(params, rest))[0].sum()

    def looped(params):
        x = jnp.asarray(X)
        for weight, bias, mask in zip(params.weight, params.bias, masks, strict=True):
            x = jnp.tanh(JaxLinear.from_linear(layers[0], grad_mask=mask).replace(weight=weight, bias=bias)(x))
        return x.sum()

    in_scan, in_loop = jax.grad(scanned)(params), jax.grad(looped)(params)
    np.testing.assert_allclose(in_scan.weight, in_loop.weight, rtol=1e-5, atol=1e-6)  # tanh, fused or not
    for gradient, mask in zip(in_scan.weight, masks, strict=True):
        assert not np.asarray(gradient)[~mask.to_array((6, 6))].any()


def test_parameters_can_be_donated():
    params, rest = partition(JaxLinear(6, 4, grad_mask=columns([0, 3]), seed=0))

    def step(params):
        seen = jax.grad(lambda params: combine(params, rest)(jnp.asarray(X)).sum())(params)
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, seen)

    want = step(params)
    got = jax.jit(step, donate_argnums=0)(params)
    np.testing.assert_array_equal(got.weight, want.weight)


def test_from_and_to_linear_in_jax():
    layer = JaxLinear(6, 4, grad_mask=columns([0]), seed=0)
    plain = layer.to_linear()
    assert plain.weight is layer.weight
    np.testing.assert_array_equal(gradients(plain)[0], np.broadcast_to(X.sum(0), (4, 6)))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_functions_take_a_list_as_a_bias_mask_as_layers_do(packed, compiled):
    trains, mask = [True, False, True], columns([1])
    x, w, b = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32), np.zeros(3, np.float32)

    def in_torch(x, w, b):
        if packed:
            return torch_twin.packed_linear(x, w, w[:, 1:2], b, grad_mask=mask, bias_mask=trains).sum()
        return torch_twin.masked_linear(x, w, b, grad_mask=mask, bias_mask=trains).sum()

    def in_jax(b):
        if packed:
            return jax_twin.packed_linear(x, w, w[:, 1:2], b, grad_mask=mask, bias_mask=trains).sum()
        return jax_twin.masked_linear(x, w, b, grad_mask=mask, bias_mask=trains).sum()

    call = torch.compile(in_torch, backend="aot_eager", fullgraph=True) if compiled else in_torch
    bias = torch.from_numpy(b).requires_grad_()
    call(torch.from_numpy(x), torch.from_numpy(w), bias).backward()
    gradient = jax.grad(in_jax)
    assert bias.grad.tolist() == (jax.jit(gradient) if compiled else gradient)(b).tolist() == [2, 0, 2]
