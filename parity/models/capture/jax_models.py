"""The JAX model as something that can be captured, whatever library it is written in."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from parity.models.capture.call import Call
from parity.models.inputs import Call as Arguments


class JaxModel(Protocol):
    """What each library's file has: the calls of a model's modules on some inputs."""

    modules: dict[str, Any]

    def capture(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Run the model and return the calls of its modules, in the order in which they began."""


def jax_model(
    framework: str, model: Any, mode: str, *, double: bool, mapped: bool = False,
    native: str = "float32",
) -> JaxModel:  # fmt: skip
    """Return a copy of a model that can be captured.

    Args:
        framework: "nnx", "linen", "equinox" or "function", as `JaxTree` has it.
        model: The user's.
        mode: "eval" or "train".
        double: Whether floats become float64.
        mapped: Whether the model takes one example.
        native: The dtype of torch's model: where a module of JAX's says it, it becomes float64 as well.
    """
    file = importlib.import_module(
        "parity.models.capture." + ("function" if framework == "function" else f"{framework}_modules")
    )
    made: JaxModel = file.made(model, mode, double=double, mapped=mapped, native=native)
    return made


def candidates(framework: str) -> tuple[bool, ...]:
    """Return whether a model may take one example instead of a batch: Equinox's modules do."""
    return (False, True) if framework in ("equinox", "function") else (False,)


__all__ = ["Arguments", "JaxModel", "candidates", "jax_model"]
