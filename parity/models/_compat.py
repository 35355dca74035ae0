"""Names of JAX and Flax that are private, or may move: what whole models are read with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def identity_operator(name: str, see: Callable[..., list[Any]], batch: Callable[..., Any]) -> Any:
    """Return an operator of JAX that gives back what it takes, under every transformation.

    Args:
        name: Of the operator.
        see: What it calls with numbers, and with the keywords that it is bound with; it returns a list of the numbers.
        batch: Its rule under vmap: of values, their axes and the keywords.

    Example:
        >>> import numpy as np
        >>> seen = []
        >>> operator = identity_operator("see", lambda *values: seen.extend(values) or list(values), None)
        >>> [float(value) for value in operator.bind(np.float32(1.5))]
        [1.5]
        >>> [float(value) for value in seen]
        [1.5]
    """
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    operator = Primitive(name)
    operator.multiple_results = True

    def tangent(primals: Sequence[Any], tangents: Sequence[Any], **keywords: Any) -> Any:
        return operator.bind(*primals, **keywords), list(tangents)

    operator.def_impl(see)
    operator.def_abstract_eval(lambda *values, **_: list(values))
    batching.primitive_batchers[operator] = batch
    ad.primitive_jvps[operator] = tangent
    mlir.register_lowering(operator, lambda _, *values, **keywords: list(values))
    return operator


def nnx_attributes(module: Any) -> dict[str, Any]:
    """Return what a user put into a module of Flax NNX; Flax keeps notes of its own beside it."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_pytree__")}
