# pyright: strict
"""A user's own functions and classes around the layers of the torch twin, checked and run as the other pages."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Protocol, TypeVar, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import maskedlinear_torch as ml
from maskedlinear_torch import Mask, MaskedEmbedding, MaskedLinear, PackedEmbedding, PackedLinear

Layer = TypeVar("Layer", MaskedLinear, PackedLinear)
AnyModule = TypeVar("AnyModule", bound=nn.Module)
MakesMask = Callable[[Sequence[int]], Mask]


class HasMask(Protocol):
    """Whatever has a mask."""

    @property
    def grad_mask(self) -> Mask: ...


@dataclass(frozen=True)
class Plan:
    """What trains, and how."""

    masks: Mapping[str, Mask]
    default: Mask | None = None
    make: MakesMask = ml.columns
    packed: bool = True
    bias: NDArray[np.bool_] | None = None
    seen: list[Mask] = field(default_factory=lambda: [ml.rows([0])])

    def apply(self, model: AnyModule) -> AnyModule:
        return ml.mask_linears(model, dict(self.masks), packed=self.packed)


class Lora(PackedLinear):
    """A packed layer with a term of the user's own."""

    def __init__(self, in_features: int, out_features: int, mask: Mask, rank: int = 2) -> None:
        super().__init__(in_features, out_features, grad_mask=mask, bias=False, seed=0)
        self.down = nn.Parameter(torch.zeros(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.T @ self.up.T


class Stack(nn.Module, Generic[Layer]):
    """Layers of one class."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def twice(layer: Layer, x: Tensor) -> Tensor:
    return layer.forward(layer.forward(x))


def same_class(layer: Layer) -> Layer:
    return copy.deepcopy(layer)


def share(layer: HasMask, shape: tuple[int, int]) -> float:
    return layer.grad_mask.density(shape)


def learned(module: nn.Module) -> Tensor:
    """Narrow by class, as a loop over `model.modules()` does."""
    if isinstance(module, PackedLinear | PackedEmbedding):
        return assert_type(module.values, nn.Parameter)
    if isinstance(module, MaskedLinear):
        return assert_type(module.weight, Tensor)
    if isinstance(module, MaskedEmbedding):
        return module.weight
    return torch.zeros(0)


def kind(layer: MaskedLinear | PackedLinear) -> str:
    match layer:
        case PackedLinear():
            return "packed"
        case MaskedLinear():
            return "masked"


def train(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
    ml.hold_frozen(optimizer, model)
    losses: list[float] = []
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(model(x))
        value.backward()  # type: ignore[no-untyped-call]  # torch's own
        optimizer.step()  # pyright: ignore[reportUnknownMemberType] (torch leaves its closure open)
        losses.append(float(value.detach()))
    return losses


def main(folder: Path) -> float:
    plan = Plan({"0": ml.columns([0, 1])}, default=None, make=ml.rows, bias=np.array([True]))
    makers: dict[str, MakesMask] = {"columns": ml.columns, "rows": ml.rows}
    half = functools.partial(MaskedLinear, 4, 4, seed=0)
    masked = assert_type(half(grad_mask=plan.make([0])), MaskedLinear)
    packed = functools.partial(ml.packed_linear, precision="native", grad_mask=makers["rows"]([1]))
    base = torch.ones(4, 4)
    x = torch.ones(2, 4)
    assert_type(packed(x, base, base[1:2]), Tensor)
    top = functools.partial(ml.select.top_k, density=0.5)
    assert_type(top(np.eye(4)), Mask)

    model = assert_type(plan.apply(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), masked)), nn.Sequential)
    losses = train(model, lambda y: y.square().mean(), x)
    entries = sum(learned(module).numel() for module in model.modules())
    lora = Lora(4, 4, ml.columns([1]))
    stack = Stack([lora, PackedLinear(4, 4, grad_mask=ml.rows([0]), seed=1)])
    assert_type(stack, Stack[PackedLinear])
    assert_type(same_class(masked), MaskedLinear)
    assert_type(same_class(lora), PackedLinear)
    moved: MaskedLinear = masked.to(torch.float64).eval().requires_grad_(True)
    assert kind(moved) == "masked"
    assert share(lora, (4, 4)) == 0.25

    table = ml.summary(model)
    print(table)
    written: int = ml.save_packed(folder / "plan.safetensors", model)
    masks = ml.grad_masks(model)
    for name, mask in masks.items():
        if isinstance(mask, Mask):
            union: Mask = functools.reduce(lambda one, other: one | other, [mask, ml.rows([0])])
            assert union.to_array((4, 4)).any(), name
        elif isinstance(mask, np.ndarray):
            assert mask.dtype == np.bool_
    return float(written + entries + losses[0] + twice(masked.float(), x).sum().detach() + stack(x).sum().detach())
