# pyright: strict
"""A page of a user's code in torch, checked by `mypy --strict` and pyright, and run (tests/test_typing.py)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import maskedlinear_torch as ml
from maskedlinear_torch import Mask, MaskedLinear, PackedLinear, columns, elements, rows


class Model(nn.Module):
    """Two layers, of which the first is masked and the second packed."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.first: MaskedLinear = MaskedLinear(8, 6, grad_mask=mask, seed=0)
        self.second: PackedLinear = PackedLinear(6, 4, grad_mask=rows([0, 2]), seed=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x)
        output: Tensor = self.second(hidden.relu())
        return output


def strongest(layer: MaskedLinear) -> Tensor:
    return layer.weight.abs().amax(1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> float:
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call] # torch's own, of which it gives no type
        optimizer.step()
    return loss.item()


def main(folder: Path) -> float:
    x, y = torch.ones(3, 8), torch.zeros(3, 4)
    mask: Mask = columns([1, 5])
    model = Model(mask)
    before: dict[str, Tensor] = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ml.hold_frozen(optimizer, model)
    loss = train(model, optimizer, x, y, 2)
    frozen: int = ml.assert_frozen(before, model)
    assert frozen > 0

    first = nn.Linear(8, 6)
    plain = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 4))
    scores: Tensor = first.weight.detach().abs()
    ml.mask_linears(plain, {"0": ml.select.top_k(scores, 0.25, along="columns"), "2": rows([1])}, packed=True)
    train(plain, torch.optim.SGD([one for one in plain.parameters() if one.requires_grad], lr=0.1), x, y, 1)
    ml.save_packed(folder / "learned.safetensors", plain)
    ml.load_packed(folder / "learned.safetensors", plain)
    arrays: dict[str, np.ndarray] = ml.packed_arrays(plain)
    assert arrays
    print(ml.summary(plain))
    whole: nn.Module = ml.unmask_linears(plain)
    assert isinstance(whole, nn.Sequential)

    words = ml.MaskedEmbedding(10, 8, grad_mask=rows([8, 9]), seed=2)
    scored: Tensor = words.attend(words(torch.tensor([1, 9])))
    tied = nn.ModuleDict({"words": nn.Embedding(10, 8), "head": nn.Linear(8, 10, bias=False)})
    ml.train_new_tokens(tied, first=8, embedding="words")
    torch.optim.AdamW(ml.parameter_groups(tied, weight_decay=0.1))
    data: bytes = ml.packed_bytes(tied)
    ml.load_packed(data, tied, rename={"words": "words"})
    assert strongest(model.first).numel() + scored.shape[0] > 0

    weight, bias = torch.ones(4, 8, requires_grad=True), torch.zeros(4)
    output: Tensor = ml.masked_linear(x, weight, bias, grad_mask=elements(np.eye(4, 8, dtype=bool)))
    exact: Tensor = ml.masked_linear(x, weight, bias, grad_mask=mask, precision=ml.reproducible())
    values: Tensor = ml.pack(weight, grad_mask=mask)
    again: Tensor = ml.packed_linear(x, weight.detach(), values, bias, grad_mask=mask)
    gradient: Tensor = torch.autograd.grad(output.sum() + exact.sum() + again.sum(), weight)[0]
    assert gradient.shape == weight.shape
    return loss
