"""Numbers that are rounded to few values: states of optimizers are held and moved, weights refused, quantizers told."""

import copy
import re
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import columns, rows
from tests.small_language import learning

aten = torch.ops.aten


class Coarse(torch.Tensor):
    """Floats as codes of 8 bits with one scale, in a wrapper that knows few operations, as torchao's states are."""

    @staticmethod
    def __new__(cls, codes, scale):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32, device=codes.device)

    def __init__(self, codes, scale):
        self.codes, self.scale = codes, scale

    def dequantize(self):
        return self.codes.float() * self.scale

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is aten.copy_.default:
            target, source = args
            source = source.dequantize() if isinstance(source, Coarse) else source
            if not isinstance(target, Coarse):
                return target.copy_(source)
            target.scale.copy_(source.abs().max() / 127)
            target.codes.copy_((source / target.scale.clamp_min(1e-30)).round().to(torch.int8))
            return target
        if func is aten.lerp.Scalar:
            return func(*[one.dequantize() if isinstance(one, Coarse) else one for one in args])
        if func is aten.detach.default:
            return Coarse(args[0].codes, args[0].scale)
        raise NotImplementedError(f"{func} of Coarse")

    __torch_function__ = torch._C._disabled_torch_function_impl


class CoarseAdamW(torch.optim.Optimizer):
    """AdamW whose two moments are `Coarse`, each step of which reads, updates and rounds them anew."""

    def __init__(self, params, lr=1e-2, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.zero = 0

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                if one.grad is None:
                    continue
                state = self.state[one]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    for name in ("exp_avg", "exp_avg_sq"):
                        state[name] = Coarse(torch.zeros(one.shape, dtype=torch.int8), torch.tensor(0.0))
                state["step"] += 1
                first = state["exp_avg"].lerp(one.grad, 0.1)
                second = state["exp_avg_sq"].lerp(one.grad.square(), 0.01)
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)
                one.mul_(1 - group["lr"] * group["weight_decay"])
                one.sub_(group["lr"] * first / (second.sqrt() + 1e-4))


MASK = columns([0, 1, 4])
X, Y = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)), torch.ones(16, 6)


def made(packed, mask=MASK):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6))
    mt.mask_linears(model, {"0": mask}, packed=packed)
    optimizer = CoarseAdamW(learning(model))
    if not packed:
        mt.hold_frozen(optimizer, model)
    return model, optimizer


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_h1_states_of_few_bits_are_held(packed):
    model, optimizer = made(packed)
    before = model[0].weight.detach().clone()
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 20) < first
    assert isinstance(next(iter(optimizer.state.values()))["exp_avg"], Coarse)
    assert mt.assert_frozen(before, model[0].weight.detach(), MASK) == 6 * 5


@pytest.mark.parametrize("other", [columns([1, 4, 5]), columns([1]), rows([0, 2])], ids=str)
@pytest.mark.parametrize("way", ["repack", "mask_linears"])
def test_h5_moments_of_few_bits_move_with_their_positions(way, other):
    """A packed layer whose mask changed left its optimizer with an operation that such a state does not know."""
    model, optimizer = made(packed=True)
    train(model, optimizer)
    old = optimizer.state[model[0].values]["exp_avg"].dequantize()
    if way == "repack":
        model[0].repack(other, optimizer)
    else:
        mt.mask_linears(model, {"0": other}, packed=True, optimizer=optimizer)
    state = optimizer.state[model[0].values]
    now = state["exp_avg"]
    want = mt.repack(old, MASK, other, shape=(6, 8))
    assert isinstance(now, Coarse)
    assert state["step"] == 3
    # Half of the distance of two codes: it was rounded once more.
    np.testing.assert_allclose(now.dequantize(), want, rtol=0, atol=0.51 * float(want.abs().max()) / 127)
    before = model[0].weight.detach().clone()
    train(model, optimizer)
    assert mt.assert_frozen(before, model[0].weight.detach(), other) == 48 - other.to_array((6, 8)).sum()


def coarse(weight):
    return Coarse(torch.zeros(weight.shape, dtype=torch.int8), torch.tensor(0.0)).copy_(weight)


WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
QUANTIZED = {
    "torch's own": (lambda: torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8), "qint8"),
    "a class of its own": (lambda: coarse(WEIGHT), "Coarse"),
}


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(("function", "name"), [
    *[(function, name) for name in QUANTIZED for function in ("masked_parameter", "pack")],
    *[(function, "a class of its own") for function in ("mask_parameter", "mask_linears", "assignment")],
])  # fmt: skip
def test_quantized_weights_are_refused(function, name):
    """They ended in operations that torch does not have, or in an IndexError of the quantizer's."""
    make, kind = QUANTIZED[name]
    weight = make()
    plain = nn.Linear(8, 6)
    if name != "torch's own":  # of which torch makes no parameters
        plain.weight = nn.Parameter(weight, requires_grad=False)
    masked = mt.MaskedLinear(8, 6, grad_mask=MASK)
    calls = {
        "masked_parameter": lambda: mt.masked_parameter(weight, MASK),
        "pack": lambda: mt.pack(weight, grad_mask=MASK),
        "mask_parameter": lambda: mt.mask_parameter(plain, "weight", grad_mask=MASK),
        "mask_linears": lambda: mt.mask_linears(nn.Sequential(plain), {"0": MASK}),
        "assignment": lambda: setattr(masked, "weight", nn.Parameter(weight, requires_grad=False)),
    }
    before = masked.weight
    with pytest.raises(TypeError, match=rf"expected weight of floats that can learn, got a quantized one \({kind}\)"):
        calls[function]()
    assert masked.weight is before


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_a_parameter_that_cannot_learn_is_refused_in_both_twins(dtype):
    match = f"masked_parameter: expected a weight of a float or complex dtype, got {dtype}, which takes no gradient"
    with pytest.raises(TypeError, match=match):
        mt.masked_parameter(torch.ones(6, 8, dtype=getattr(torch, dtype)), MASK)
    with pytest.raises(TypeError, match=match):
        mj.masked_parameter(jnp.ones((6, 8), dtype), MASK)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantized tensor creation functions")
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_quantizer_that_passes_a_masked_layer_by_is_told(packed):
    """`quantize_dynamic` left masked layers in floats, without a word; unmasked ones it quantizes."""
    model, _ = made(packed)
    with pytest.warns(UserWarning, match=re.escape(f"got a {type(model[0]).__name__}, which keeps its mask and its")):
        passed_by = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert type(passed_by[0]) is type(model[0])
    assert torch.equal(passed_by[0].weight, model[0].weight)
    copy.deepcopy(passed_by)(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = torch.ao.quantization.quantize_dynamic(mt.unmask_linears(model), {nn.Linear}, dtype=torch.qint8)
    assert isinstance(plain[0], torch.ao.nn.quantized.dynamic.Linear)
