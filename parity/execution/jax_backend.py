"""The worlds of JAX: the only file of the engine that imports it. Twin of torch_backend.py, function by function."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.execution.calls import Call, Outputs

FRAMEWORK = "jax"
VERSION = jax.__version__

DTYPES = {name: jnp.dtype(name) for name in ("float32", "float64", "bfloat16", "float16")}

CACHED = 800
"""Cells after which JAX forgets what it compiled: every one compiles programs of its own, and keeps them in memory."""

_cells = itertools.count(1)


class Ops:
    """The names that the programs of transforms.py use."""

    framework = FRAMEWORK

    grad = staticmethod(jax.grad)
    vjp = staticmethod(jax.vjp)
    jvp = staticmethod(jax.jvp)
    vmap = staticmethod(jax.vmap)
    jacrev = staticmethod(jax.jacrev)
    jacfwd = staticmethod(jax.jacfwd)
    hessian = staticmethod(jax.hessian)

    @staticmethod
    def linear(input: Any, weight: Any, bias: Any = None) -> Any:
        """Compute the framework's own linear layer (S2)."""
        return input @ weight.T if bias is None else input @ weight.T + bias

    @staticmethod
    def backward(f: Callable[..., Any], theta: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
        """Differentiate in the framework's ordinary way, accumulating over the cotangents."""
        gradients = [jax.vjp(f, *theta)[1](cotangent) for cotangent in cotangents]
        return tuple(sum(parts[1:], start=parts[0]) for parts in zip(*gradients, strict=True))


def devices() -> tuple[str, ...]:
    """Return the devices that are present."""
    return ("cpu", "cuda") if any(device.platform in ("gpu", "cuda") for device in jax.devices()) else ("cpu",)


@contextlib.contextmanager
def settings(x64: bool = False) -> Iterator[None]:
    """Set what decides precision: float32 products in float32, never TF32; float64 on request. Restored afterwards."""
    with jax.default_matmul_precision("highest"), jax.enable_x64(x64):
        yield


def call(asked: Call, world: str, device: str, kept: dict[str, Any]) -> Outputs:
    """Run a transform's program on a function and return what came out, as NumPy.

    Args:
        asked: The function, the program, and the numbers.
        world: "jax-eager" or "jax-jit".
        device: "cpu" or "cuda".
        kept: Compiled programs, by the call's key: the same ones run again on other numbers.
    """

    def array(values: np.ndarray) -> jax.Array:
        return jax.device_put(values, on(device))

    def floating(values: np.ndarray) -> jax.Array:
        # Converted by NumPy, whose values the dtype holds exactly: JAX would compile a program for each shape.
        return array(np.asarray(values, DTYPES[asked.dtype]))

    with settings(x64=asked.dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = asked.arrays(floating, array)
        if world == "jax-eager":
            outputs = _outputs(asked.program(Ops, is_float, arrays))
        else:
            key = f"{world} {device} {asked.key}"
            if key not in kept:
                kept[key] = jax.jit(lambda a: asked.program(Ops, is_float, a), **asked.compiler)
            outputs = _outputs(kept[key](arrays))
    forget_now_and_then()
    return outputs


def is_float(leaf: Any) -> bool:
    """Return whether an output has derivatives."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)


def on(name: str) -> Any:
    """Return a device by its name here, "cpu" or "cuda"."""
    return jax.devices("cpu" if name == "cpu" else "gpu")[0]


def forget_now_and_then() -> None:
    """Count a cell, and let JAX forget its compiled programs after many."""
    if next(_cells) % CACHED == 0:
        jax.clear_caches()


def _outputs(outputs: dict[str, Any]) -> Outputs:
    return Outputs(
        {name: _numpy(leaf) for name, leaf in outputs.items()}, {name: _dtype(leaf) for name, leaf in outputs.items()}
    )


def _numpy(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    return array.astype(np.float64) if isinstance(leaf, jax.Array) and is_float(leaf) else array


def _dtype(leaf: Any) -> str:
    return str(leaf.dtype) if isinstance(leaf, jax.Array) else type(leaf).__name__
