"""Operators of torch beside ones that are nearly the same: losses, pools and samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation, Step, set_operand, set_result
from parity.explanation.substitution import Change


def quadratic(step: Step) -> Iterator[Claim]:
    """Yield the Huber loss in the place of the smooth L1 loss, and the other way round."""
    if "beta" in step.operands:
        name, bound = "beta", float(step.operands["beta"])
        factor, has, needs = bound, f"smooth_l1_loss with beta={bound:g}", f"the Huber loss, {bound:g} times it"
    else:
        name, bound = "delta", float(step.operands["delta"])
        factor, has, needs = (
            1 / bound,
            f"the Huber loss, {bound:g} times smooth L1",
            f"smooth_l1_loss with beta={bound:g}",
        )
    yield Claim(
        Change("torch", {step.key: set_result(lambda loss: loss * factor)}),
        f"default argument: {name}",
        has,
        needs,
        "smooth_l1_loss(beta=b) is huber_loss(delta=b) divided by b; optax.huber_loss is the latter.",
    )


def padded_pool(step: Step) -> Iterator[Claim]:
    """Yield zeros around what is pooled: torch pads a maximum with -inf."""
    import torch.nn.functional as F

    padding = step.operands.get("padding", 0)
    sides = [padding] * 2 if isinstance(padding, int) else [*padding] * (2 // len(padding))
    if not any(sides):
        return

    def pooled(operation: Operation) -> Any:
        around = [side for side in sides[::-1] for _ in range(2)]
        given = {**operation.operands, "self": F.pad(operation.operands["self"], around), "padding": [0, 0]}
        return operation.compute(given)

    yield Claim(
        Change("torch", {step.key: pooled}),
        "padding",
        "a maximum over windows padded with -inf (max_pool2d)",
        "one over windows padded with zeros",
        "Pad with -inf before a maximum: lax.reduce_window and flax.linen.max_pool do so by their padding=.",
    )


SAMPLING = {"padding_mode": ("zeros", "border", "reflection"), "interpolation_mode": ("bilinear", "nearest", "bicubic")}


def sampled(step: Step) -> Iterator[Claim]:
    """Yield samples between pixels, and beyond them, of another mode."""
    for name, modes in SAMPLING.items():
        for number, mode in enumerate(modes):
            if number != (now := step.operands[name]):
                yield Claim(
                    Change("torch", {step.key: set_operand((name, number))}),
                    f"default argument: {name.removeprefix('interpolation_')}",
                    f"{name}={modes[now]!r} (grid_sample)",
                    f"{mode!r}",
                    "Sample alike: padding_mode of grid_sample is mode= of map_coordinates ('constant', 'nearest'), "
                    "its mode is order=.",
                )
