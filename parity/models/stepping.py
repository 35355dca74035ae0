"""Why two optimizers take other steps, proved: torch's, made otherwise, takes JAX's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

STEPS = 3
"""How many steps must be JAX's: a first step with Nesterov's momentum is that of another learning rate."""

AGREE = {True: 1e-9, False: 1e-4}
"""How far apart parameters may be, relative to how far they have moved, that were stepped alike, by float64."""

Make = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Facts:
    """Of the first step: JAX's over torch's; and what of the weight JAX's takes off more; None where it is no number.

    Example:
        >>> Facts(2.0, None).times
        2.0
    """

    times: float | None
    decay: float | None


def explain(optimizer: Any, apart: Callable[[Make], float], facts: Facts, *, double: bool) -> str:
    """Return which other optimizer of torch's takes JAX's steps, in words, or nothing.

    Args:
        optimizer: Torch's, of the model's parameters.
        apart: How far parameters are from JAX's after some steps of an optimizer that is made so.
        facts: Of the first step.
        double: Whether both models run in float64.
    """
    for words, make in _others(optimizer, facts):
        try:
            if apart(make) <= AGREE[double]:
                return words
        except Exception:  # an optimizer that cannot be made so explains nothing
            continue
    return ""


def _others(optimizer: Any, facts: Facts) -> Iterator[tuple[str, Make]]:
    import torch

    if len(optimizer.param_groups) != 1:
        return
    cls, now = type(optimizer), optimizer.defaults
    twin: Any = {torch.optim.Adam: torch.optim.AdamW, torch.optim.AdamW: torch.optim.Adam}.get(cls)
    if twin is not None and now.get("weight_decay"):
        kinds = {torch.optim.Adam: "added to the gradient", torch.optim.AdamW: "taken off the weight"}
        yield (
            f"JAX's steps are those of torch.optim.{twin.__name__}: its weight decay is {kinds[twin]}, and "
            f"{cls.__name__}'s {kinds[cls]}",
            _made(twin, now, {}),
        )
    if cls is torch.optim.SGD and now.get("momentum"):
        other = not now["nesterov"]
        words = f"JAX's steps are those of SGD with nesterov={other}, and torch has {not other}"
        yield words, _made(cls, now, {"nesterov": other, "dampening": 0.0})
        yield "JAX's steps are those of SGD without momentum", _made(cls, now, {"momentum": 0.0, "nesterov": False})
    if facts.times is not None and facts.times > 0:
        words = f"JAX's step is {facts.times:.6g} times torch's: another learning rate, or scale of the loss"
        yield words, _made(cls, now, {"lr": now["lr"] * facts.times})
    if facts.decay is not None and now["lr"] and "weight_decay" in now:
        decay = now["weight_decay"] + facts.decay / now["lr"]
        words = (
            f"JAX's is torch's less {facts.decay:.6g} times the weight: another weight decay, {decay:.6g} where torch "
            f"has {now['weight_decay']:.6g} (AdamW's default is 0.01 in torch and 0.0001 in optax)"
        )
        yield words, _made(cls, now, {"weight_decay": decay})


def _made(cls: Any, now: dict[str, Any], changes: dict[str, Any]) -> Make:
    known = inspect.signature(cls).parameters
    options = {name: value for name, value in {**now, **changes}.items() if name in known}
    return lambda parameters: cls(parameters, **options)
