"""A program of either framework as a list of steps, any of which can be changed when it runs again.

Here the programs of both frameworks run in float64 throughout, also where they would cast to another dtype. The
question is whether two functions are the same in real numbers once a step is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from parity.execution.calls import Numbers

Key = Hashable
"""Of a step: its place in the program."""

Operand = str | int
"""Of a step: the name of an argument or parameter, or its place."""


@dataclass(frozen=True)
class Operation:
    """A step while it runs: what goes in, and how to get its result.

    Attributes:
        name: Of the operator.
        operands: What goes in, by name or place.
        compute: Returns the result for operands, changed or not.
        numpy: Turns a framework's array into NumPy.
        like: Turns NumPy into the framework's array, of the dtype of another.
    """

    name: str
    operands: dict[Operand, Any]
    compute: Callable[[dict[Operand, Any]], Any]
    numpy: Callable[[Any], np.ndarray]
    like: Callable[[np.ndarray, Any], Any]


Edit = Callable[[Operation], Any]
"""What runs in the place of a step: it returns the step's result."""

Edits = Mapping[Key, Edit]


@dataclass(frozen=True)
class Step:
    """A step as it ran.

    Attributes:
        key: Its place.
        name: Of the operator: `rsqrt`, `native_layer_norm`.
        operands: What went in: NumPy arrays, numbers, and whatever else it takes.
        result: Its first result as NumPy, or None where that is no array.
        sources: The steps that made its operands.
        dtypes: Types of floats among what went in and came out, before they were widened.
    """

    key: Key
    name: str
    operands: Mapping[Operand, Any]
    result: np.ndarray | None
    sources: Mapping[Operand, Key] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A number that stands in a program.

    Attributes:
        step: Where.
        operand: As which operand.
        value: The number, as people write it: 1e-06 for the float32 9.99999997e-07.
        name: What the operator calls it (`eps`), or the name of the operator (`add`).
        role: What it is there for: "eps", or the name of an argument, or nothing.
    """

    step: Key
    operand: Operand
    value: float
    name: str
    role: str = ""


class Program(Protocol):
    """What both frameworks' programs have."""

    @property
    def framework(self) -> str: ...

    @property
    def steps(self) -> Sequence[Step]: ...

    @property
    def constants(self) -> Sequence[Constant]: ...

    def run(self, numbers: Numbers, edits: Edits) -> dict[str, np.ndarray] | None:
        """Return the outputs by name, or None where the changed program does not run."""


def set_operand(*changes: tuple[Operand, Any]) -> Edit:
    """Return the edit that gives a step other operands."""

    def edit(operation: Operation) -> Any:
        return operation.compute({**operation.operands, **dict(changes)})

    return edit


def set_result(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Return the edit that changes the first result of a step."""

    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        first = result[0] if isinstance(result, tuple | list) else result
        changed = operation.like(change(operation.numpy(first)), first)
        return type(result)([changed, *result[1:]]) if isinstance(result, tuple | list) else changed

    return edit


def set_unary(function: Callable[[np.ndarray], np.ndarray], operand: Operand) -> Edit:
    """Return the edit that computes another function of one operand."""

    def edit(operation: Operation) -> Any:
        values = operation.operands[operand]
        return operation.like(function(operation.numpy(values)), values)

    return edit


def as_written(value: float, dtype: str) -> float:
    """Return a number as it was written before a type rounded it.

    Example:
        >>> as_written(float(np.float32(1e-6)), "float32")
        1e-06
    """
    return float(str(np.float32(value))) if dtype in ("float32", "float16", "bfloat16") else float(value)


def roles(steps: Sequence[Step], constants: Sequence[Constant]) -> list[Constant]:
    """Return constants with what they are for: an eps is a small number on the way into a root, log or quotient."""
    users: dict[Key, list[tuple[Step, Operand]]] = {}
    for step in steps:
        for operand, source in step.sources.items():
            users.setdefault(source, []).append((step, operand))
    by_key = {step.key: step for step in steps}
    return [
        Constant(c.step, c.operand, c.value, c.name, c.role or _role(c, by_key[c.step], users, by_key))
        for c in constants
    ]


PRODUCTS = ("mm", "bmm", "matmul", "addmm", "baddbmm", "dot", "mv", "dot_general")
"""What a softmax of scores goes into: without one there is no attention, as where a loss has a temperature."""

SOFTMAXES = ("_softmax", "_safe_softmax", "exp")


SUMS = ("add", "add_", "add_any")
"""Operators that add two arrays."""

ADDS = ("add", "sub", "rsub", "max", "maximum", "clamp", "clamp_min", "clip", "add_any")
ROOTS = ("sqrt", "rsqrt", "log", "log1p", "log2", "pow", "integer_pow", "reciprocal")
PASSES = (
    "broadcast_in_dim",
    "reshape",
    "convert_element_type",
    "_to_copy",
    "squeeze",
    "unsqueeze",
    "expand",
    "view",
    "mul",
    "copy",
    "transpose",
    *ADDS,
)
SMALL = 1e-2
"""An eps is smaller."""


ROPE_BASE, ATTENTION_SCALE = "rope base", "attention scale"


def _of_scores(step: Step, constant: Constant, by_key: Mapping[Key, Step]) -> bool:
    """Return whether a number scales scores, or what they are made of: no positions, and no soft cap."""
    operand = next((o for o, v in step.operands.items() if o != constant.operand and isinstance(v, np.ndarray)), None)
    for _ in range(10):
        source = by_key.get(step.sources.get(operand)) if operand is not None else None
        if source is None or source.name in PRODUCTS:
            return True
        if source.name not in ON_THE_WAY:
            return source.name not in ("tanh", "iota", "arange", "abs", "jit")
        step, operand = source, next(iter(source.sources), None)
    return True


def _role(
    constant: Constant, step: Step, users: Mapping[Key, list[tuple[Step, Operand]]], by_key: Mapping[Key, Step]
) -> str:  # fmt: skip
    if step.name == "pow" and constant.operand in (0, "self") and _leads(step, ("cos", "sin"), users):
        return ROPE_BASE
    scales = step.name in ("mul", "div") and _of_scores(step, constant, by_key)
    softmax = _leads(step, SOFTMAXES, users, POWERS) if scales else None
    if softmax is not None and _leads(softmax, PRODUCTS, users):
        return ATTENTION_SCALE
    if step.name not in (*ADDS, "scalar_tensor") or abs(constant.value) > SMALL:
        return ""
    reached, seen = [step.key], {step.key}
    for _ in range(6):
        following = [pair for key in reached for pair in users.get(key, ())]
        if any(user.name in ROOTS for user, _ in following):
            return "eps"
        if any(user.name in ("div", "true_divide") and operand in (1, "other") for user, operand in following):
            return "eps"
        reached = [user.key for user, _ in following if user.name.rstrip("_") in PASSES and user.key not in seen]
        seen.update(reached)
    return ""


ON_THE_WAY = (*PASSES, "where", "_where", "select_n", "masked_fill", "neg", "div", "pow", "dot_general", "bmm",
              "_unsafe_view", "jit", "baddbmm")  # fmt: skip
"""What numbers pass on the way from a constant to a cosine or a softmax."""


POWERS = ("pow",)
"""What is no scale of attention any more: a slope 2^(-8 i / h) of ALiBi is added to the scores."""


def _leads(
    step: Step, targets: tuple[str, ...], users: Mapping[Key, list[tuple[Step, Operand]]], ends: tuple[str, ...] = ()
) -> Step | None:
    """Return the first step of one of some names that a step leads to, not by way of others, or None."""
    reached, seen = [step.key], {step.key}
    for _ in range(10):
        following = [user for key in reached for user, _ in users.get(key, ()) if user.key not in seen]
        if found := next((user for user in following if user.name in targets), None):
            return found
        reached = [user.key for user in following if user.name in ON_THE_WAY and user.name not in ends]
        seen.update(reached)
    return None


def is_number(value: Any) -> bool:
    """Return whether an operand is one number."""
    return not isinstance(value, bool) and (
        isinstance(value, int | float)
        or (isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind == "f")
    )


def first_of(result: Any) -> Any:
    """Return a result, or the first of several."""
    return result[0] if isinstance(result, tuple | list) else result


def with_first(result: Any, first: Any) -> Any:
    """Return a result, or several, of which the first is another."""
    return type(result)([first, *result[1:]]) if isinstance(result, tuple | list) else first
