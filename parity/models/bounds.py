"""How far the output of a JAX module may be from that of its torch module, element by element (contract S11).

Both run in float64 on the same numbers. If neither computes or stores anything in a lower dtype, the bound is that of
float64. Otherwise it is that of the lowest dtype that either uses. How far rounding moves an element is measured: the
torch module runs again with random rounding errors (see `parity.verdict.sensitivity`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.execution.programs import Reading
from parity.models.capture.call import Call, Outputs
from parity.models.matching import pieces, relative_distance, typical
from parity.records import WHO
from parity.verdict import sensitivity
from parity.verdict.bounds import UNIT

DRAWS = 4
"""How often the sensitivity is measured."""

CLEAR = 1000.0
"""Times the bound of one draw: what is beyond it differs, and is not measured further."""

UNMEASURED = 4.0
"""Units of a typical element that rounding is taken to do where it cannot be measured: of what norms and softmax do."""

SAME_AGAIN = 1e-3
"""How far two runs of one program may be apart, relative to a typical element: threads add in another order."""

SIDES = 2.0
"""Both modules err, each within the bound of one."""

NOTHING = 2.0**-40
"""Relative to an element and to a typical one: some thousand roundings of float64, and less than float32 can show."""


@dataclass
class Arithmetic:
    """The least precise types that two modules compute in, and who uses less than the other."""

    dtype: str = "float64"
    text: str = ""
    uneven: bool = False
    """Whether one side computes in less than the models' own dtype, and the other does not."""


@dataclass
class Sensitivity:
    """What rounding does to the outputs of a torch call, measured when it is first asked for."""

    call: Call
    found: dict[str, Outputs] = field(default_factory=dict)

    def of(self, name: str, dtype: str, draws: int = DRAWS) -> np.ndarray:
        """Return what rounding to a type does to an output, in the root mean square of some draws."""
        if self.call.stored is not None:
            kept = self.call.stored.moved.get(name)
            return self._guessed(name, dtype) if kept is None else kept.astype(np.float64) * UNIT[dtype]
        key = f"{dtype}/{draws}"
        if key not in self.found:
            self.found[key] = self._measured(dtype, draws)
        measured = self.found[key].get(name)
        if measured is not None and draws < DRAWS:
            # One draw may leave an element where it is by chance: a typical one counts as well.
            return measured + sensitivity.rms(measured)
        if measured is not None:
            return measured
        return self._guessed(name, dtype)

    def _guessed(self, name: str, dtype: str) -> np.ndarray:
        """Return what rounding may do where it was not measured: to every element what it does to a typical one."""
        value = self.call.outputs[name]
        return np.full(value.shape, UNMEASURED * UNIT[dtype] * typical(value))

    def _measured(self, dtype: str, draws: int) -> Outputs:
        unit = UNIT[dtype]
        size = max(unit, sensitivity.IN_FLOAT64)
        total: Outputs = {}
        still = self._run(0.0, 0)
        if still is None or not self._repeats(still):
            return {}
        for draw in range(draws):
            for name, value in (self._run(size, draw) or {}).items():
                at = still.get(name)
                if at is None or at.shape != value.shape or value.dtype.kind != "f":
                    continue
                with np.errstate(all="ignore"):
                    change = np.abs(value.astype(np.float64) - at)
                change = np.where(np.isfinite(change), change, 0.0)
                total[name] = np.hypot(total.get(name, 0.0), change)
        return {name: value * (unit / size / math.sqrt(draws)) for name, value in total.items()}

    def _repeats(self, again: Outputs) -> bool:
        """Return whether a second run gave what the first did: what random numbers do is not rounding."""
        return all(
            relative_distance(value, again[name]) <= SAME_AGAIN
            for name, value in self.call.outputs.items()
            if value.dtype.kind == "f" and name in again and again[name].shape == value.shape
        )

    def _run(self, size: float, draw: int) -> Outputs | None:
        from parity.execution import torch_programs

        try:
            with torch_programs.Rounding(size, draw, counts=True):
                return self.call.run(self.call.values)
        except Exception:  # a module that a dispatch mode cannot see into: its elements have their own bound only
            return None


def arithmetic(torch_call: Call, jax_call: Call, *, tables: bool, native: str) -> Arithmetic:
    """Return what two modules compute in.

    Args:
        torch_call: Of the torch module, in float64.
        jax_call: Of the JAX module, in float64.
        tables: Whether one of them has numbers of its own that are no weights of both: they were float32.
        native: The dtype of the user's torch model.
    """
    low = {"torch": low_types(torch_call, torch=True), "jax": low_types(jax_call, torch=False)}
    types = {side: max(found, key=lambda name: UNIT[name], default="float64") for side, found in low.items()}
    least = max(types.values(), key=lambda name: UNIT[name])
    text = ""
    if types["torch"] != types["jax"]:
        side, other = ("torch", "jax") if UNIT[types["torch"]] > UNIT[types["jax"]] else ("jax", "torch")
        shown = ", ".join(low[side][types[side]][:3])
        theirs = types[other] if types[other] != "float64" else native
        text = f"{WHO[side]} computes {shown} in {types[side]}, {WHO[other]} in {theirs}"
    if tables and UNIT[least] < UNIT["float32"]:
        least = "float32"
    lower = {side: UNIT[name] > UNIT[native] for side, name in types.items()}
    return Arithmetic(least, text, lower["torch"] != lower["jax"])


def low_types(call: Call, *, torch: bool) -> Mapping[str, Sequence[str]]:
    """Return the types below float64 that a call computes in, with the operators that do."""
    if call.stored is not None:
        return call.stored.low
    reading = _read_torch(call) if torch else _read_jax(call)
    if "float32" in reading.casts:
        # The rest may be float64 here and still be rounded: what the module takes or gives.
        reading.note("float32", "a cast")
    return reading.below("float64")


def _read_torch(call: Call) -> Reading:
    from parity.execution import torch_programs

    reader = torch_programs.Reader(used=True)
    try:
        with reader:
            call.run(call.values)
    except Exception:  # what cannot be read is taken for what the models are in
        return Reading()
    return reader.reading


def _read_jax(call: Call) -> Reading:
    import jax

    from parity.execution import jax_programs

    arrays = [at for at, leaf in enumerate(call.inputs) if leaf.is_array]

    def function(own: Sequence[object], given: Sequence[object]) -> object:
        values = list(call.values)
        for at, value in zip(arrays, given, strict=True):
            values[at] = value
        return call.trace(values, own)  # type: ignore[misc] # every call of JAX has it

    given = [call.values[at] for at in arrays]
    closed = None
    for own, traced in ((call.state, True), ((), False)):
        try:  # with the module's own arrays as arguments, where it lets them be, so that what is left is no weight
            closed = jax.make_jaxpr(function if traced else lambda _, given: function(call.state, given))(own, given)
            break
        except Exception:  # what cannot be read is taken for what the models are in
            traced = False
    if closed is None:
        return Reading()
    reading = jax_programs.read_jaxpr(closed.jaxpr)
    for constant in closed.consts:
        dtype = str(getattr(constant, "dtype", ""))
        if getattr(constant, "size", 0) > 1 and dtype in ("float32", "bfloat16", "float16"):
            reading.note(dtype, "a table")
    if traced and any(map(was_rounded, (*closed.consts, *_literals(closed.jaxpr)))):
        reading.note("float32", "a constant")
    return reading


SHORT = 2.0**16
"""Numbers with fewer binary digits are what people write: 0.5, 3, 0.0078125."""


def was_rounded(value: object) -> bool:
    """Return whether float64 numbers are all such as float32 has, and no short ones: they were rounded to it once.

    Example:
        >>> [was_rounded(np.float64(one)) for one in (np.float32(12**0.5), 12**0.5, 3.0)]
        [True, False, False]
    """
    if str(getattr(value, "dtype", type(value).__name__)) not in ("float64", "float"):
        return False
    array = np.asarray(value, np.float64).ravel()
    with np.errstate(over="ignore"):
        same = np.all((array == array.astype(np.float32)) | ~np.isfinite(array))
    digits = np.frexp(array[np.isfinite(array)])[0] * SHORT
    return bool(same and np.any(digits != np.round(digits)))


def _literals(jaxpr: Any) -> Iterator[object]:
    """Yield the numbers that stand in a program, and in those in it."""
    for equation in jaxpr.eqns:
        yield from (one.val for one in equation.invars if hasattr(one, "val"))
        for value in equation.params.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                inner = getattr(part, "jaxpr", part)
                yield from getattr(part, "consts", ())
                if hasattr(inner, "eqns"):
                    yield from _literals(inner)


def allowed(size: np.ndarray, s: np.ndarray, dtype: str) -> np.ndarray:
    """Return the bound, elementwise."""
    return SIDES * sensitivity.bound(size, s, dtype, order=0)


def negligible(got: np.ndarray, want: np.ndarray) -> bool:
    """Return whether two float64 results differ by less than anyone could mean."""
    if not same_kind(got, want):
        return False
    some = [np.abs(part[np.isfinite(part) & (part != 0)][:: 1 + want.size // SOME]) for (part,) in pieces(want)]
    typical = float(np.median(np.concatenate(some))) if any(part.size for part in some) else 0.0
    return all(_is_nothing(a, b, typical) for a, b in pieces(got, want))


def _is_nothing(got: np.ndarray, want: np.ndarray, typical: float) -> bool:
    finite = np.isfinite(want)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite, np.abs(got - want), 0.0)
    return bool(np.all(difference <= NOTHING * (np.abs(np.where(finite, want, 0.0)) + typical)))


SOME = 2**22
"""Elements of whose sizes the median is taken: of more, every second, or third."""


def same_kind(got: np.ndarray, want: np.ndarray) -> bool:
    """Return whether NaN and infinities are at the same places."""
    if got.shape != want.shape:
        return False
    return all(
        np.array_equal(test(one), test(other))
        for one, other in pieces(got, want)
        for test in (np.isnan, np.isposinf, np.isneginf)
    )
