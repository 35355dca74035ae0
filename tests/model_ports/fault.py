"""A fault planted in the port of a model, and a model with its port, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Fault:
    """A fault in a port.

    Attributes:
        name: Of the fault, in words.
        options: What the port is built with in the place of what is right.
        module: A pattern of the torch path that must be named first.
        cause: A pattern of the cause that must be named.
        mode: How the two models are run.
    """

    name: str
    options: Mapping[str, Any]
    module: str
    cause: str
    mode: str = "eval"


@dataclass(frozen=True)
class Port:
    """A torch model and its port.

    Attributes:
        name: Of the model.
        torch: Makes the torch model of a seed.
        jax: Makes the port of a torch model, given options that are wrong.
        inputs: Makes the inputs of a seed, and says how both models take them.
        faults: What may be wrong in the port.
    """

    name: str
    torch: Callable[[int], Any]
    jax: Callable[..., Any]
    inputs: Callable[[int], Any]
    faults: tuple[Fault, ...] = field(default=())
