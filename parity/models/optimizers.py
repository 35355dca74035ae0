"""Optimizers that mean the same in torch.optim and optax, by torch's names and options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from parity.names import unknown

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Known:
    """An optimizer of both frameworks.

    Attributes:
        torch: The class in torch.optim.
        options: Torch's options that both have, with torch's defaults.
        optax: From all options to the transformation.
    """

    torch: str
    options: Options
    optax: Callable[..., Any]


def _decayed(decay: float, transformation: Any) -> Any:
    """Return a transformation with torch's `weight_decay` before it: decay * weight is added to the gradient."""
    import optax

    return optax.chain(optax.add_decayed_weights(decay), transformation) if decay else transformation


def _sgd(lr: float, momentum: float, nesterov: bool, weight_decay: float) -> Any:
    import optax

    return _decayed(weight_decay, optax.sgd(lr, momentum=momentum or None, nesterov=nesterov))


def _adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Any:
    import optax

    return _decayed(weight_decay, optax.adam(lr, *betas, eps=eps))


def _adamw(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Any:
    import optax

    return optax.adamw(lr, *betas, eps=eps, weight_decay=weight_decay)


def _rmsprop(lr: float, alpha: float, eps: float, weight_decay: float, momentum: float, centered: bool) -> Any:
    import optax

    options = {"decay": alpha, "eps": eps, "momentum": momentum or None, "centered": centered, "eps_in_sqrt": False}
    return _decayed(weight_decay, optax.rmsprop(lr, **options))


_BETAS = {"betas": (0.9, 0.999), "eps": 1e-8}
KNOWN = {
    "sgd": Known("SGD", {"lr": 1e-3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}, _sgd),
    "adam": Known("Adam", {"lr": 1e-3, **_BETAS, "weight_decay": 0.0}, _adam),
    "adamw": Known("AdamW", {"lr": 1e-3, **_BETAS, "weight_decay": 1e-2}, _adamw),
    "rmsprop": Known(
        "RMSprop",
        {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0, "centered": False},
        _rmsprop,
    ),
}
"""Optimizers by name. Adagrad is none: optax adds eps inside of the root, and torch outside."""


class OptimizerRefused(ValueError):
    """Torch's optimizer cannot be made of the parameters; the message says why."""


def made(make: Callable[[list[Any]], Any], parameters: list[Any]) -> Any:
    """Return torch's optimizer of parameters.

    Raises:
        OptimizerRefused: It cannot be made, as with a learning rate below 0.
    """
    try:
        return make(parameters)
    except Exception as error:  # whatever a maker raises
        raise OptimizerRefused(f"optimizer: torch's cannot be made: {type(error).__name__}: {error}") from error


def both(optimizer: Any) -> tuple[Callable[[list[Any]], Any], Any]:
    """Return what makes torch's optimizer of a list of parameters, and optax's transformation.

    Args:
        optimizer: A name; a name with torch's options; or a pair (maker, transformation) of the user's own.

    Raises:
        ValueError: The name or an option is not known.
        TypeError: It is none of these.

    Example:
        >>> make, transformation = both(("adamw", {"lr": 1e-2}))
        >>> hasattr(transformation, "update")
        True
    """
    if isinstance(optimizer, str):
        optimizer = (optimizer, {})
    if not isinstance(optimizer, tuple) or len(optimizer) != 2:
        raise TypeError(
            "optimizer: expected a name, (name, options) or (maker of a torch optimizer, optax transformation), got"
            f" {optimizer!r}"
        )
    first, second = optimizer
    if isinstance(first, str):
        if first not in KNOWN:
            raise ValueError(unknown("optimizer", first, list(KNOWN)))
        known = KNOWN[first]
        if not isinstance(second, Mapping):
            raise TypeError(f"optimizer: expected a dict of options beside {first!r}, got {second!r}")
        for name in second:
            if name not in known.options:
                raise ValueError(unknown(f"an option of {first}", name, list(known.options)))
            if isinstance(second[name], str) or second[name] is None:
                raise TypeError(
                    f"optimizer: {name} of {first}: expected a value as {known.options[name]}, got {second[name]!r}"
                )
        options = {**known.options, **second}

        def make(parameters: list[Any]) -> Any:
            import torch

            return getattr(torch.optim, known.torch)(parameters, **options)

        return make, known.optax(**options)
    if not callable(first) or not hasattr(second, "update"):
        raise TypeError(
            "optimizer: expected what makes a torch optimizer of a list of parameters (such as"
            " functools.partial(torch.optim.SGD, lr=0.1)) and a transformation of optax, got"
            f" {type(first).__name__} and {type(second).__name__}"
        )
    return first, second
