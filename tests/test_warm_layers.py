"""A packed layer that was called before does in every way what a new one does, errors included (S7): by exact bits.

Its calls ask little where nothing has changed. Each case changes something, or calls in another way.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from maskedlinear_torch import PackedLinear, blocks, columns, elements, pack, packed_linear, rows, submatrix
from maskedlinear_torch.kept_matrix import KeptMatrix

I, O = 6, 4
X = torch.from_numpy(np.random.default_rng(0).standard_normal((3, I)).astype(np.float32))
MASKS = {
    "columns": columns([1, 4]),
    "rows": rows([0, 2]),
    "submatrix": submatrix([1, 3], [0, 2]),
    "blocks": blocks(np.eye(2, dtype=bool), (2, 3)),
    "elements": elements(np.arange(O * I).reshape(O, I) % 5 == 0),
}


def made(mask=MASKS["columns"], **keywords):
    return PackedLinear(I, O, grad_mask=mask, seed=0, **keywords)


def warm(layer):
    layer(X).sum().backward()
    with torch.no_grad():
        layer(X)
    layer.zero_grad()
    return layer


def outcome(run, layer):
    """What a run gives: tensors, or the error's class and text."""
    try:
        return run(layer)
    except Exception as error:
        return type(error).__name__, str(error)


def both(layer):
    y = layer(X)
    return [y, *torch.autograd.grad(y.square().sum(), [layer.values, layer.bias_values])]


def at_second_order(layer):
    x = X.clone().requires_grad_()
    first = torch.autograd.grad(layer(x).square().sum(), [x, layer.values], create_graph=True)
    return [*first, *torch.autograd.grad(sum(one.square().sum() for one in first), [x, layer.values])]


def forward_mode(layer):
    with forward_ad.dual_level():
        return list(forward_ad.unpack_dual(layer(forward_ad.make_dual(X, X + 1))))


def under(context, run=both):
    def inside(layer):
        with context():
            return run(layer)

    return inside


def replaced(name, value):
    return lambda layer: torch.func.functional_call(layer, {name: value}, (X,))


def with_changed(change, run=both):
    def changed(layer):
        change(layer)
        return run(layer)

    return changed


def parametrized(layer):
    parametrize.register_parametrization(layer, "bias_values", Doubled())
    return layer(X)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Told(torch.Tensor):
    """Refuses to be multiplied by a matrix, and says its numbers to whoever asks for them in another way."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.data_ptr:
            raise TypeError("the numbers are not in memory")
        return super().__torch_function__(func, types, args, kwargs or {})


def half_of_the_base(layer):
    layer.base.data = layer.base.detach()[:2]


def bits_of_another_dtype(layer):
    layer.base.data = layer.base.detach().view(torch.int32)


def turned(layer):
    layer.values.data = layer.values.detach().reshape(2, O)


def accumulated(layer):
    for _ in range(3):
        layer(X).sum().backward()
    return [layer.values.grad, layer.bias_values.grad]


def graph_kept(layer):
    y = layer(X).square().sum()
    return [torch.autograd.grad(y, layer.values, retain_graph=True)[0] for _ in range(2)]


def written_between(layer):
    y = layer(X).square().sum()
    with torch.no_grad():
        layer.values.mul_(2)
    return torch.autograd.grad(y, layer.values)


def left_behind(layer):
    seen = []
    torch.func.vmap(lambda x: seen.append(x) or x)(X)  # a tensor of a transform that is over
    return layer(seen[0])


RUNS = {
    "both": both,
    "without gradients": under(torch.no_grad, lambda layer: layer(X)),
    "inference mode": under(torch.inference_mode, lambda layer: layer(X).clone()),
    "second order": at_second_order,
    "forward mode": forward_mode,
    "accumulation": accumulated,
    "a graph that is kept": graph_kept,
    "a value written between": written_between,
    "vmap": lambda layer: torch.func.vmap(layer)(X[:, None]),
    "grad": lambda layer: torch.func.grad(lambda x: layer(x).square().sum())(X),
    "a tensor left behind": left_behind,
    "checkpoint": lambda layer: checkpoint(both, layer, use_reentrant=False),
    "saved on the CPU": under(torch.autograd.graph.save_on_cpu),
    "autocast": under(lambda: torch.autocast("cpu", torch.bfloat16)),
    "a mode that looks on": under(lambda: FlopCounterMode(display=False)),
    "trace": lambda layer: torch.jit.trace(layer, X, check_trace=False),
    "export": lambda layer: torch.export.export(layer, (X,), strict=False).module()(X),
    "one vector": lambda layer: layer(X[0]),
    "no rows": lambda layer: layer(X[:0]),
    "three axes": lambda layer: layer(X[None]),
    "a number": lambda layer: layer(X[0, 0]),
    "wrong width": lambda layer: layer(X[:, 1:]),
    "wrong dtype": lambda layer: layer(X.double()),
    "wrong dtype, no bias": with_changed(
        lambda layer: setattr(layer, "bias_values", None), lambda layer: layer(X.double())
    ),
    "wrong device": lambda layer: layer(X.to("meta")),
    "no tensor": lambda layer: layer(X.tolist()),
    "other values": replaced("values", torch.ones(O, 2)),
    "values of another class": lambda layer: replaced("values", Told(layer.values.detach()))(layer),
    "values of the same bits": lambda layer: replaced("values", nn.Parameter(layer.values.detach().clone()))(layer),
    "other base": replaced("base", torch.ones(O, I)),
    "other bias": replaced("bias_values", torch.ones(O)),
    "a bias that is too short": replaced("bias_values", nn.Parameter(torch.ones(1))),
    "a bias of another dtype": replaced("bias_values", nn.Parameter(torch.ones(O, dtype=torch.float64))),
    "other positions": replaced("_position_1", torch.tensor([0, 2])),
    "a bias that is computed": parametrized,
    "half of the base": with_changed(half_of_the_base),
    "a base of other bits": with_changed(bits_of_another_dtype),
    "values of another shape": with_changed(turned),
    "a bias mask": with_changed(lambda layer: setattr(layer, "bias_mask", [True, False, True, False])),
    "another mask": with_changed(lambda layer: layer.repack(columns([0, 2]))),
    "another precision": with_changed(lambda layer: setattr(layer, "precision", "reproducible")),
    "all frozen": with_changed(lambda layer: layer.values.requires_grad_(False), lambda layer: layer(X)),
    "double": with_changed(lambda layer: layer.double(), lambda layer: layer(X.double())),
    "a written base": with_changed(lambda layer: layer.base.detach().add_(1)),
    "base.data": with_changed(lambda layer: layer.base.data.add_(1)),
    "values.data": with_changed(lambda layer: layer.values.data.add_(1)),
    "bias.data": with_changed(lambda layer: layer.bias_values.data.add_(1)),
    "a hook": with_changed(lambda layer: layer.register_forward_hook(lambda layer, args, y: 2 * y)),
    "a pre-hook": with_changed(lambda layer: layer.register_forward_pre_hook(lambda layer, args: (2 * args[0],))),
    "a hook on the values": with_changed(lambda layer: layer.values.register_hook(lambda g: 2 * g)),
}
"""What is done with a layer. A copy of one has no matrix of before, so it is what a warm one is held to."""


def same(found, want):
    if isinstance(want, torch.Tensor):
        return (
            isinstance(found, torch.Tensor)
            and type(found) is type(want)
            and found.dtype == want.dtype
            and torch.equal(found, want)
        )
    if isinstance(want, list | tuple):
        return len(found) == len(want) and all(map(same, found, want))
    return found == want


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_warm_layer_does_what_a_new_one_does(run):
    layer = made()
    new = copy.deepcopy(layer)
    assert same(outcome(RUNS[run], warm(layer)), outcome(RUNS[run], new))


def test_other_positions_of_the_bias_are_used():
    """A bias of which all learns by a mask has the length of a whole one."""
    layer = made(bias_mask=[True] * O)
    run = replaced("_bias_position", torch.arange(O - 1, -1, -1))
    with torch.no_grad():
        layer.bias_values.copy_(torch.arange(O))
    want = run(copy.deepcopy(layer))
    assert torch.equal(run(warm(layer)), want)
    assert not torch.equal(layer(X), want)


@pytest.mark.parametrize("run", ["both", "without gradients", "second order"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_every_kind_is_warm_as_it_is_new(mask, run, bias, dtype, monkeypatch):
    layer = made(MASKS[mask], bias=bias, dtype=dtype)
    if not bias:
        layer.bias_values = None
    x = X.to(dtype)

    def step(layer):
        if run == "without gradients":
            with torch.no_grad():
                return [layer(x)]
        leaves = [x.clone().requires_grad_(), *(one for one in layer.parameters() if one.requires_grad)]
        first = torch.autograd.grad(layer(leaves[0]).square().sum(), leaves, create_graph=run == "second order")
        if run == "both":
            return first
        second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves, allow_unused=True)
        return [*first, *(one for one in second if one is not None)]

    want = step(copy.deepcopy(layer))
    step(layer)
    serves, seen = KeptMatrix.serves, []
    monkeypatch.setattr(KeptMatrix, "serves", lambda *args: seen.append(serves(*args)) or seen[-1])
    assert same(step(layer), want)
    assert seen == [True], "the short way was taken"


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", ["odd address", "some columns"])
def test_a_matrix_from_an_odd_address_is_differentiated_twice(layout, mask):
    """Its copy starts from such an address too. The numbers are whole, so that sums are exact in any order."""
    numbers = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, 100)).double()
    base = numbers[1 : 1 + O * I].view(O, I) if layout == "odd address" else numbers[: O * 10].view(O, 10)[:, 3 : 3 + I]
    assert base.data_ptr() % 64 > 0
    x, found = X.double().round().requires_grad_(), []
    for matrix in (base, base.clone(memory_format=torch.contiguous_format)):
        values = pack(matrix, grad_mask=MASKS[mask]).requires_grad_()
        y = packed_linear(x, matrix, values, grad_mask=MASKS[mask])
        first = torch.autograd.grad(y.square().sum(), [x, values], create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), [x, values])
        found.append([y, *first, *second])
    assert same(*found)
    plain = nn.Linear(I, O, dtype=torch.float64)
    plain.weight = nn.Parameter(base)
    layer = PackedLinear.from_linear(plain, grad_mask=MASKS[mask])
    with torch.inference_mode():
        assert torch.equal(layer(x), plain(x))
    assert layer._kept.matrix.data_ptr() % 64 == base.data_ptr() % 64
    torch.optim.SGD([layer.values], lr=1.0).step(lambda: layer(x).sum().backward())
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight.detach().clone(), layer.bias_values))


def test_the_cases_hold_errors_and_numbers():
    found = {name: outcome(run, made()) for name, run in RUNS.items()}
    errors = {name for name, value in found.items() if isinstance(value, tuple) and isinstance(value[0], str)}
    assert {"wrong width", "wrong dtype", "wrong device", "no tensor", "a number", "trace"} <= errors
    assert len(errors) < len(RUNS) // 3


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_m5_a_batch_that_is_not_contiguous_has_the_bits_of_the_plain_layer(warm, no_grad):
    """Of three axes torch makes one product where the weight learns, and else a batch of them, with other bits."""
    torch.manual_seed(0)
    plain = nn.Linear(8, 24)
    packed = PackedLinear.from_linear(plain, grad_mask=columns([1, 2]))
    x = torch.randn(3, 2, 8).transpose(0, 1)
    if warm:
        packed(x)
    with torch.no_grad() if no_grad else contextlib.nullcontext():
        assert torch.equal(packed(x), plain(x))
    assert packed.base.grad is None
    assert not packed.base.requires_grad
