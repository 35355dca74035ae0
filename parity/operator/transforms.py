"""The transforms of any function, as data: programs that both frameworks run.

A program is written once, on the names that torch.func and JAX share; each framework supplies its own `ops`
(torch_backend.py, jax_backend.py). It gets `f(*theta)`, a function of the floating leaves of the arguments that
returns a tuple of the floating leaves of the result, and the arrays `a` (`calls.Numbers`), and returns arrays by
name. Keywords that a program gives to `f` reach the function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Program = Callable[[Any, Callable[..., Any], dict[str, Any]], dict[str, Any]]

SCALES = (1.0, 0.5, 0.75)
"""What copies are made by: multiples, so that signs, orders and definiteness stay; exact, or rounded to the dtype."""

MOST_DENSE = 128
"""Numbers that go in, up to which whole Jacobians are made unless asked for; Hessians to half of it."""


@dataclass(frozen=True)
class Transform:
    """One transform. A pair may add transforms of its own, or replace one (`Pair.transforms`).

    Attributes:
        name: Its name.
        order: The order of the derivative. Results are rounded once more for each order.
        program: The program that each framework runs.
        everything: Whether it is the function itself, so that outputs that are not floats count as well.
        dense: By which power of the input's size the result is larger than the function's output: 1 for a Jacobian.
        keywords: Keywords that the function gets under this transform, besides its arguments.
        outside: Whether torch.compile compiles only the function, and it is differentiated outside.
        same: Outputs that must have the bits of another output: its name, and why. An oracle need not answer it.
        finish: Turns the outputs, NumPy in float64, into what is compared. It gets the numbers, too.
        values: Whether values are compared, or only frozen entries (`Pair.frozen`).
        clause: What the transform tests: a clause of the contract, or of yours.

    Example:
        >>> from parity.execution.calls import Call, Numbers
        >>> twice = Transform("twice", 0, lambda ops, f, a: {"output": f(*f(*a["theta"]))[0]})
        >>> numbers = Numbers((np.ones(2),), (np.ones(2),), ("x",), (0,))
        >>> call = Call(lambda x: x + 1, twice, numbers, "float64")
        >>> call.program(np, lambda leaf: True, call.arrays(np.asarray, np.asarray))
        {'output': array([3., 3.])}
    """

    name: str
    order: int
    program: Program
    everything: bool = False
    dense: int = 0
    keywords: Mapping[str, Any] = field(default_factory=dict)
    outside: bool = False
    same: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    finish: Callable[[Any, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    values: bool = True
    clause: str = "S11"


def _all(a: dict[str, Any]) -> tuple[int, ...]:
    return tuple(range(len(a["theta"])))


def _tree(a: dict[str, Any], parts: Any) -> dict[str, Any]:
    return {f"by {name}": part for name, part in zip(a["names"], parts, strict=True)}


def _numbered(name: str, parts: Any) -> dict[str, Any]:
    return {name if len(parts) == 1 else f"{name}[{i}]": part for i, part in enumerate(parts)}


def _loss(ops: Any, f: Callable[..., Any], a: dict[str, Any]) -> Callable[..., Any]:
    """Return <c, f^2> / 2, whose second derivatives hold both derivatives of f; with scales u, <c u, f^2> / 2."""
    scales = a["scales"]
    factors = [c * u for c, u in zip(a["cotangents"], scales, strict=True)] if scales else a["cotangents"]
    return lambda *theta: ops.energy(tuple(factors), tuple(f(*theta)))


def energy(factors: Any, outputs: Any) -> Any:
    """Return <c, y^2> / 2, of the arrays of either framework."""
    return sum((c * y**2).sum() for c, y in zip(factors, outputs, strict=True)) * 0.5


def inner(left: Any, right: Any) -> Any:
    """Return <left, right>, of the arrays of either framework."""
    return sum((x * y).sum() for x, y in zip(left, right, strict=True))


def _forward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _numbered("output", f(*a["theta"]))


def _vjp(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.vjp(f, *a["theta"])[1](a["cotangents"]))


def _backward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.backward(f, a["theta"], (a["cotangents"],)))


def _jvp(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _numbered("tangent", ops.jvp(f, a["theta"], a["directions"][0])[1])


def _vmap(argument: int) -> Program:
    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        batched = [owner == argument for owner in a["owners"]]
        args = [c if b else t for b, c, t in zip(batched, a["copies"], a["theta"], strict=True)]
        return _numbered("output", ops.vmap(f, tuple(0 if b else None for b in batched))(*args))

    return program


def _gradient_per_copy(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def one(*theta: Any) -> Any:
        return tuple(ops.vjp(f, *theta)[1](a["cotangents"]))

    return _tree(a, ops.vmap(one, tuple(0 for _ in a["copies"]))(*a["copies"]))


def _gradient_of_vmap(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    # Copies of the first argument, with one of every other: gradients of those are sums over the copies.
    batched = [owner == a["owners"][0] for owner in a["owners"]]
    args = tuple(c if b else t for b, c, t in zip(batched, a["copies"], a["theta"], strict=True))

    def value(*theta: Any) -> Any:
        outputs = ops.vmap(f, tuple(0 if b else None for b in batched))(*theta)
        return ops.inner(tuple(a["cotangents"]), tuple(outputs))

    return _tree(a, ops.grad(value, _all(a))(*args))


def _jacobian(mode: str) -> Program:
    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        rows = getattr(ops, mode)(f, _all(a))(*a["theta"])
        outputs = _numbered("output", rows)
        return {f"{output} {by}": part for output, row in outputs.items() for by, part in _tree(a, row).items()}

    return program


def _hessian(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    rows = ops.hessian(_loss(ops, f, a), _all(a))(*a["theta"])
    return {f"{left} {right}": part for left, row in _tree(a, rows).items() for right, part in _tree(a, row).items()}


def _hvp_forward_over_reverse(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.jvp(ops.grad(_loss(ops, f, a), _all(a)), a["theta"], a["directions"][0])[1])


def _hvp_reverse_over_reverse(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    gradient = ops.grad(_loss(ops, f, a), _all(a))
    return _tree(
        a, ops.grad(lambda *theta: ops.inner(tuple(gradient(*theta)), tuple(a["directions"][0])), _all(a))(*a["theta"])
    )


def _hvp_reverse_over_forward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def along(*theta: Any) -> Any:
        return ops.jvp(_loss(ops, f, a), theta, a["directions"][0])[1]

    return _tree(a, ops.grad(along, _all(a))(*a["theta"]))


def _second_tangent(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def tangent(*theta: Any) -> Any:
        return ops.jvp(f, theta, a["directions"][0])[1]

    return _numbered("tangent", ops.jvp(tangent, a["theta"], a["directions"][1])[1])


TRANSFORMS = (
    Transform("forward", 0, _forward, everything=True),
    Transform("vjp", 1, _vjp),
    Transform("backward", 1, _backward, outside=True),
    Transform("jvp", 1, _jvp),
    Transform("gradient-per-copy", 1, _gradient_per_copy),
    Transform("gradient-of-vmap", 1, _gradient_of_vmap),
    Transform("jacrev", 1, _jacobian("jacrev"), dense=1),
    Transform("jacfwd", 1, _jacobian("jacfwd"), dense=1),
    Transform("hessian", 2, _hessian, dense=2),
    Transform("hvp-forward-over-reverse", 2, _hvp_forward_over_reverse),
    Transform("hvp-reverse-over-reverse", 2, _hvp_reverse_over_reverse),
    Transform("hvp-reverse-over-forward", 2, _hvp_reverse_over_forward),
    Transform("second-tangent", 2, _second_tangent),
)
"""The transforms of any function; besides them vmap-0, vmap-1, ... over one argument each."""

BY_NAME = {transform.name: transform for transform in TRANSFORMS}


def get(name: str) -> Transform:
    """Return the transform of a name.

    Example:
        >>> get("vmap-2").order
        0
    """
    if re.fullmatch(r"vmap-\d+", name):
        return Transform(name, 0, _vmap(int(name.removeprefix("vmap-"))))
    return BY_NAME[name]


def names(floating: Sequence[int]) -> tuple[str, ...]:
    """Return the names of all transforms of a function.

    Args:
        floating: The numbers of the arguments that are differentiated.
    """
    if not floating:
        return ("forward",)  # there is nothing to differentiate
    return (*BY_NAME, *(f"vmap-{number}" for number in floating))
