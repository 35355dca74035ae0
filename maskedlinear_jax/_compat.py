"""The parts of JAX whose names move between versions, in one place (tests/test_private_names.py watches them)."""

from __future__ import annotations

from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def is_tracer(value: Any) -> bool:
    """Tell whether a value is traced: its shape is known, its numbers are not."""
    return isinstance(value, jax.core.Tracer)


def x64_enabled() -> bool:
    """Tell whether float64 stays float64 (`jax_enable_x64`, also as a context manager)."""
    return bool(getattr(jax.config, "jax_enable_x64"))  # noqa: B009  (made at run time, unknown to type checkers)


def is_symbolic_zero(tangent: Any) -> bool:
    """Tell whether a tangent or cotangent is a zero that was never computed."""
    return isinstance(tangent, SymbolicZero) or getattr(tangent, "dtype", None) == jax.dtypes.float0


def device_of(value: Any) -> Any:
    """Return the one device an array was put on, or None where JAX is free to choose or several hold it."""
    if not isinstance(value, jax.Array) or is_tracer(value) or not value.committed:
        return None
    devices = value.sharding.device_set
    return next(iter(devices)) if len(devices) == 1 else None
