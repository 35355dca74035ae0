"""Trial H4: nothing that averages, casts, moves or loads a model's buffers changes a position (S8)."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import maskedlinear_jax as mj
from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_torch import mask_linears

O, I = 4, 32
MASKS = {
    "columns": columns([11, 22, 29]),
    "rows": rows([1, 3]),
    "submatrix": submatrix([0, 3], [11, 29]),
    "blocks": blocks(np.arange(8).reshape(2, 4) % 3 == 1, (2, 8)),
    "elements": elements(np.random.default_rng(0).random((O, I)) < 0.1),
}
X = torch.randn(5, I)


def made(name, packed):
    model = nn.Sequential(nn.Linear(I, O), nn.ReLU(), nn.BatchNorm1d(O), nn.Linear(O, 2))
    mask_linears(model, {"0": MASKS[name]}, packed=packed)
    model[0].bias_mask = np.arange(O) % 2 == 0
    return model


def what_learns(model):
    """Where the gradient of the layer's weight and bias flows, as NumPy."""
    layer = model[0]
    for parameter in model.parameters():
        parameter.grad = None
    x = torch.ones(2, I, dtype=layer.weight.dtype, device=layer.weight.device)
    weight = torch.zeros(O, I, dtype=x.dtype)
    layer(x).sum().backward()
    if hasattr(layer, "values"):
        weight = layer._positions().merge_into(weight, layer.values.grad)
        return weight.numpy() != 0
    return layer.weight.grad.numpy() != 0


def _ema_of_buffers(model):
    for average in ({"multi_avg_fn": get_ema_multi_avg_fn(0.9999)}, {"avg_fn": get_ema_avg_fn(0.9999)}, {}):
        ema = AveragedModel(model, use_buffers=True, **average)
        for _ in range(4):
            ema.update_parameters(model)
        torch.testing.assert_close(ema(X), model(X), rtol=0, atol=1e-5)  # averages of equal numbers, rounded
    return ema.module


def _ema_by_hand(model):
    ema = copy.deepcopy(model)
    with torch.no_grad():
        for mine, its in zip([*ema.parameters(), *ema.buffers()], [*model.parameters(), *model.buffers()], strict=True):
            mine.copy_(mine * 0.9999 + its * 0.0001)
    return ema


def _ema_of_state_dict(model):
    ema, shifted = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shifted.parameters():
            parameter.add_(1.0)
        want = {name: (a + b) / 2 for (name, a), b in zip(
            copy.deepcopy(ema.state_dict()).items(), shifted.state_dict().values(), strict=True)}  # fmt: skip
        for mine, its in zip(ema.state_dict().values(), shifted.state_dict().values(), strict=True):
            mine.copy_((mine + its) / 2)
    for name, value in ema.state_dict().items():
        torch.testing.assert_close(value, want[name].to(value.dtype), rtol=1e-6, atol=1e-6)
    return ema


def _zeroed(model):
    for buffer in model.buffers():
        buffer.data.zero_()
    return model


TRIPS = {
    "averages of buffers": _ema_of_buffers,
    "an average by hand": _ema_by_hand,
    "an average of state_dicts": _ema_of_state_dict,
    "buffers written": _zeroed,
    "double": lambda model: model.double(),
    "to half and back": lambda model: model.half().float(),
    "to bfloat16 and back": lambda model: model.to(torch.bfloat16).to(torch.float32),
    "deepcopy": copy.deepcopy,
    "meta and back": lambda model: _refilled(model.to("meta").to_empty(device="cpu")),
    "a plain state_dict": lambda model: _loaded(model),
    "a plain state_dict, assigned": lambda model: _loaded(model, assign=True),
}


def _refilled(model):
    return _loaded(model)


def _plain():
    return nn.Sequential(nn.Linear(I, O), nn.ReLU(), nn.BatchNorm1d(O), nn.Linear(O, 2))


def _loaded(model, **keywords):
    model.load_state_dict(_plain().state_dict(), **keywords)
    return model


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("name", MASKS)
def test_h4_positions_stay(name, trip, packed):
    model = TRIPS[trip](made(name, packed))
    np.testing.assert_array_equal(what_learns(model), MASKS[name].to_array((O, I)))
    assert model[0].grad_mask.to_array((O, I)).tolist() == MASKS[name].to_array((O, I)).tolist()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_h4_the_average_of_a_model_that_is_trained_has_its_own_values(packed):
    model = made("columns", packed)
    ema = AveragedModel(model, use_buffers=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        model(X).sum().backward()
        optimizer.step()
        ema.update_parameters(model)
        seen.append(model[0].weight.detach().clone())
    torch.testing.assert_close(ema.module[0].weight.detach(), torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(what_learns(ema.module), MASKS["columns"].to_array((O, I)))


def test_h4_another_layers_buffers_bring_its_positions():
    """Stacked for vmap, or one by one: an ensemble of masks."""
    one, other = made("columns", False), made("columns", False)
    other[0].grad_mask = columns([1, 2, 3])
    parameters = {name: p.detach().clone().requires_grad_() for name, p in one.named_parameters()}
    seen = torch.func.functional_call(one, (parameters, dict(other.named_buffers())), (X,))
    seen.sum().backward()
    assert not parameters["0.weight"].grad[:, [0, *range(4, I)]].any()


def _ema_of_leaves(model):
    ema = model
    for _ in range(30):  # 0.7 * 63 + 0.3 * 63 is less than 63 in float32
        ema = jax.tree.map(lambda one, other: 0.7 * one + 0.3 * other, ema, model)
    return ema


IN_JAX = {
    "columns": columns(np.arange(0, 300, 3)),
    "rows": rows([1, 63]),
    "submatrix": submatrix([0, 63], [126, 252]),
    "blocks": blocks(np.arange(128).reshape(32, 4) % 3 == 0, (2, 75)),
    "elements": elements(np.random.default_rng(0).random((64, 300)) < 0.1),
}


def _learns(layer):
    x = jnp.ones((1, layer.weight.shape[1]), layer.weight.dtype)
    return jax.grad(lambda weight: layer.replace(weight=weight)(x).astype(jnp.float32).sum())(layer.weight) != 0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("name", IN_JAX)
def test_h4_an_average_of_all_leaves_keeps_the_positions_in_jax(name, compiled):
    layer = mj.MaskedLinear(300, 64, grad_mask=IN_JAX[name], seed=0)
    ema = _ema_of_leaves(layer)
    learns = (jax.jit(_learns) if compiled else _learns)(ema)
    np.testing.assert_array_equal(learns, IN_JAX[name].to_array((64, 300)))
    assert name == "elements" or ema.grad_mask == IN_JAX[name]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_h4_a_cast_that_moves_positions_is_refused_in_jax(compiled):
    learns = jax.jit(_learns) if compiled else _learns
    layer, small = (mj.MaskedLinear(size, 2, grad_mask=columns([1, size - 1]), seed=0) for size in (1000, 256))
    cast = lambda layer: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer)  # noqa: E731
    with pytest.raises(TypeError, match=r"columns: expected positions as integers, got bfloat16, .*floats alone"):
        learns(cast(layer))
    np.testing.assert_array_equal(learns(cast(small)), columns([1, 255]).to_array((2, 256)))


def test_h4_an_average_of_two_masks_is_refused_in_jax():
    one, other = (mj.MaskedLinear(6, 4, grad_mask=columns([place]), seed=0) for place in (1, 2))
    with pytest.raises(TypeError, match=r"got float64 between two integers; .*models with one mask"):
        jax.tree.map(lambda a, b: (a + b) / 2, one, other)(jnp.ones(6))
