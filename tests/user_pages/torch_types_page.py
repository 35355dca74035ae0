# pyright: strict
"""What a type checker takes the results of the torch twin for: `assert_type` fails where a type is lost.

A model that goes through a function of ours is of its own class afterwards, so `model = mask_linears(model, ...)` is
an assignment of like to like.
"""

import copy
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import maskedlinear_torch as ml
from maskedlinear_torch import Mask


class Scaled(ml.MaskedLinear):
    """A layer of the user's own."""

    def __init__(self, size: int, mask: Mask, scale: float) -> None:
        super().__init__(size, size, grad_mask=mask, seed=0)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


class Net(nn.Module):
    """Three layers, of which one is masked already."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.words = nn.Embedding(6, 4)
        self.inner = Scaled(4, mask, 0.5)
        self.outer = nn.Linear(4, 2)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.outer.forward(self.inner.forward(self.words.forward(numbers)))


def masks() -> Mask:
    columns, rows = ml.columns([1, 2]), ml.rows(slice(0, None, 2))
    assert_type(~columns, Mask)
    assert_type(columns | rows & ml.submatrix(range(2), torch.tensor([1])), Mask)
    assert_type(ml.simplify(np.eye(4, dtype=bool)), Mask)
    assert_type(columns.to_array((4, 4)), NDArray[np.bool_])
    assert_type(columns.density((4, 4)), float)
    assert_type(ml.select.top_k(torch.arange(16.0).reshape(4, 4), 0.5), Mask)
    assert_type(ml.select.model_top_k({"a": np.ones((4, 4))}, density=0.5), dict[str, Mask])
    assert_type(ml.select.n_of_m(torch.ones(4, 4), 2, 4), Mask)
    assert_type(ml.select.random((4, 4), 0.5, along="blocks", block_shape=[2, 2], seed=0), Mask)
    scores = ml.select.Scores("weight")
    scores.add(nn.Linear(4, 4))
    assert_type(scores.by_name, dict[str, NDArray[Any]])
    return columns


def functions(mask: Mask) -> None:
    weight = torch.ones(4, 4, requires_grad=True)
    values = assert_type(ml.pack(weight, grad_mask=mask), Tensor)
    assert_type(ml.unpack(weight, values, grad_mask=mask), Tensor)
    assert_type(ml.repack(values, mask, ml.rows([0]), weight=weight), Tensor)
    assert_type(ml.masked_linear(weight, weight, grad_mask=mask), Tensor)
    assert_type(ml.packed_linear(weight, weight.detach(), values, grad_mask=mask), Tensor)
    assert_type(ml.masked_parameter(weight, np.eye(4, dtype=bool)), Tensor)


def layers(mask: Mask) -> None:
    masked = ml.MaskedLinear(4, 2, grad_mask=mask, bias_mask=np.array([True, False]), seed=0)
    assert_type(masked.weight, Tensor)
    assert_type(masked.bias, nn.Parameter)  # as torch's own layers say
    assert_type(masked.grad_mask, Mask)
    masked.grad_mask = ml.rows([0])
    packed = assert_type(ml.PackedLinear.from_linear(nn.Linear(4, 2), grad_mask=mask), ml.PackedLinear)
    assert_type(packed.values, nn.Parameter)
    assert_type(packed.weight, Tensor)
    assert_type(packed.bias, Tensor | None)
    assert_type(packed.to_linear(), nn.Linear)
    assert_type(copy.deepcopy(masked), ml.MaskedLinear)
    assert_type(ml.MaskedLinear.from_location(4, 2, np.array([1])), ml.MaskedLinear)
    words = ml.PackedEmbedding.from_embedding(nn.Embedding(4, 4), grad_mask=ml.rows([1]))
    assert_type(words.values, nn.Parameter)


def models(mask: Mask, folder: Path) -> Net:
    model = Net(mask)
    model = ml.mask_linears(model, {"outer": ml.rows([0])}, packed=True, freeze_others=True)
    assert_type(model, Net)
    optimizer = torch.optim.AdamW(ml.parameter_groups(model, weight_decay=0.1), lr=0.1)
    ml.hold_frozen(optimizer, model)
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    torch.func.functional_call(model, parameters, (torch.tensor([1, 5]),))
    assert_type(ml.save_packed(folder / "learned.safetensors", model), int)
    model = ml.load_packed(folder / "learned.safetensors", model, rename=lambda name: name)
    assert_type(ml.grad_masks(model), dict[str, Mask | NDArray[Any] | bool | None])
    assert_type(ml.assert_frozen(model.state_dict(), model.state_dict(), ml.grad_masks(model)), int)
    assert_type(ml.load_packed(ml.packed_bytes(model, with_base=True)), dict[str, Any])
    assert_type(ml.mask_parameter(nn.Conv2d(1, 1, 2), "weight", grad_mask=np.ones((1, 1, 2, 2), bool)), nn.Conv2d)
    assert_type(ml.assert_frozen(model, model), int)
    assert_type(ml.unmask_linears(nn.Sequential(ml.MaskedLinear(2, 2, grad_mask=ml.rows([0]), seed=0))), nn.Sequential)
    # A layer alone becomes one of another class: it is told which.
    alone: ml.PackedLinear = ml.mask_linears(nn.Linear(4, 2), {"": mask}, packed=True)
    plain: nn.Linear = ml.unmask_linears(alone)
    assert plain.in_features == 4
    new = ml.train_new_tokens(nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 2)), first=4)
    assert_type(new, nn.Sequential)
    return model


def main(folder: Path) -> float:
    mask = masks()
    functions(mask)
    layers(mask)
    return float(models(mask, folder).forward(torch.tensor([1])).sum().detach())
