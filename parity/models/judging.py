"""The verdict on one pair of modules: its own error, on torch's inputs, and the error that it inherits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from parity.models import bounds
from parity.models.bounds import Sensitivity
from parity.models.capture.call import Call, Outputs
from parity.models.matching import KINDS, Fed, Output, feed, makes_channels, pair_outputs, relative_distance
from parity.models.padded import fitted
from parity.records import AGREES as AGREES
from parity.records import Finding

PADDED = "one side pads before the layer, the other in it"


@dataclass
class Judged:
    """What came of one call of a pair of modules.

    Attributes:
        verdict: "identical", "within bound", "differs", "unsupported" or "not judged".
        own_error: The largest error on torch's inputs, relative to a typical output; None where nothing was compared.
        inherited_error: The same where the model runs as a whole.
        ratio: The largest error over its bound.
        reason: In words, where there is one.
        finding: The worst element.
        dtype: The arithmetic that the bound is of.
        inputs: How far JAX's own inputs were from torch's, relative.
        worst_input: Which of them.
        fed: Names of JAX's inputs, and of those of torch's that were put in their place.
        precision: Who computes in less than the models' own dtype, where the other does not.
    """

    verdict: str
    own_error: float | None = None
    inherited_error: float | None = None
    ratio: float = 0.0
    reason: str = ""
    finding: Finding | None = None
    dtype: str = "float64"
    inputs: float = 0.0
    worst_input: str = ""
    fed: dict[str, str] = field(default_factory=dict)
    precision: str = ""


Seen = dict[tuple[str, str], Judged]
"""By the classes of two modules, the first pair of them that differs clearly."""

AS_MUCH, AT_LEAST = 0.1, 1e-6
"""Part of an earlier module's error, and relative error, from which on a module of its classes differs like that one:
the layers of a model have one fault each, and what rounding does to them is measured once."""


def judge(
    torch_call: Call, jax_call: Call, *, tables: bool, double: bool, native: str, seen: Seen | None = None
) -> Judged:
    """Judge a JAX module on the inputs of its torch module.

    Args:
        torch_call: Of the torch module.
        jax_call: Of the JAX module.
        tables: Whether either has numbers of its own that are no weights of both.
        double: Whether both ran in float64.
        native: The dtype of the user's torch model.
        seen: Of modules of the same model that were judged before.
    """
    seen = {} if seen is None else seen
    fed = feed(*directed(torch_call, jax_call))
    placed, _, _ = _paired(torch_call, fed, torch_call.outputs, jax_call.outputs)
    found = Judged("not judged", inputs=fed.distance, worst_input=fed.farthest, fed=fed.arrays)
    found.inherited_error = max((relative_distance(one.torch, one.jax) for one in placed), default=None)
    if not fed.complete:
        if torch_call.path == jax_call.path == "":
            return _in_place(torch_call, jax_call, found, placed)
        if jax_call.stored is None and (given := fitted(torch_call, jax_call)) is not None:
            fed = feed(given, jax_call)
            made = _alone(torch_call, jax_call, fed, replace(found, fed=fed.arrays), tables, double, native, seen)
            if made.verdict in AGREES:  # else it is not known on which side zeros are missing
                return replace(made, reason=made.reason or PADDED)
        return replace(found, reason="the inputs of the two do not correspond")
    if placed and fed.distance == 0 and _same(placed):
        return replace(found, verdict="identical", own_error=0.0)
    if placed and double and fed.floats <= bounds.NOTHING and _all_negligible(placed):
        return replace(found, verdict="within bound", own_error=found.inherited_error)
    first: Judged | None = None
    tried: dict[str, str] = {}
    for kind in KINDS:
        fed = feed(*directed(torch_call, jax_call), kind)
        if first is not None and fed.arrays == tried:
            continue
        tried = fed.arrays
        made = _alone(torch_call, jax_call, fed, replace(found, fed=fed.arrays), tables, double, native, seen)
        if made.verdict in AGREES:
            # With another choice of what goes in it is the same: it was given what it does not take.
            return made
        first = made if first is None else first
    assert first is not None
    if first.verdict == "differs" and placed and double and _all_negligible(placed):
        return replace(found, reason="cut differently in JAX: in its own place it gives the same")
    if first.verdict == "differs" and first.ratio > bounds.CLEAR and not first.precision and first.own_error:
        seen.setdefault((torch_call.owner, jax_call.owner), first)
    return first


def _paired(torch_call: Call, fed: Fed, ours: Outputs, theirs: Outputs) -> tuple[list[Output], list[str], list[str]]:
    return pair_outputs(ours, theirs, moved=fed.moved, channels=makes_channels(torch_call.class_name))


def directed(torch_call: Call, jax_call: Call) -> tuple[Call, Call]:
    """Return the call whose inputs are taken, and the one that runs on them: JAX's, unless JAX ran elsewhere."""
    return (torch_call, jax_call) if jax_call.stored is None else (jax_call, torch_call)


def _alone(
    torch_call: Call, jax_call: Call, fed: Fed, found: Judged, tables: bool, double: bool, native: str, seen: Seen
) -> Judged:  # fmt: skip
    """Judge a JAX module run alone on what it is fed."""
    given, alone = directed(torch_call, jax_call)
    try:
        own = alone.run(fed.values)
    except Exception as raised:
        lines = str(raised).strip().splitlines()[:1]
        sides = ("JAX's", "torch's") if alone is jax_call else ("torch's", "JAX's")
        text = f"{sides[0]} module does not run on {sides[1]} inputs: {type(raised).__name__}: {''.join(lines)}"
        if torch_call.path == jax_call.path == "":
            placed, _, _ = _paired(torch_call, fed, torch_call.outputs, jax_call.outputs)
            return _in_place(torch_call, jax_call, replace(found, reason=text), placed)
        return replace(found, reason=text)
    ours, theirs = (torch_call.outputs, own) if alone is jax_call else (own, jax_call.outputs)
    # What only one module is given, a rotary table, the other computes: it was float32 where it came from.
    kept = [leaf.value for leaf in given.inputs if leaf.is_float and leaf.name not in fed.arrays.values()]
    tables = tables or any(map(bounds.was_rounded, kept))
    outputs, _, _ = _paired(torch_call, fed, ours, theirs)
    if not outputs:
        text = _no_partner(ours, theirs)
        # Frameworks' own layers do one thing: of others it is not known where each ends.
        if torch_call.owner.startswith("torch.nn.modules."):
            return replace(found, verdict="differs", ratio=np.inf, reason=text)
        return replace(found, reason=text)
    found.own_error = max(relative_distance(one.torch, one.jax) for one in outputs)
    found.verdict = "identical" if _same(outputs) else "within bound"
    if found.verdict == "identical" or (double and _all_negligible(outputs)):
        return found
    alike = seen.get((torch_call.owner, jax_call.owner))
    if alike is not None and alike.own_error and found.own_error >= max(AS_MUCH * alike.own_error, AT_LEAST):
        return _like(alike, outputs, found)
    found.dtype = "float32"
    if double:
        used = bounds.arithmetic(torch_call, jax_call, tables=tables, native=native)
        found.dtype, found.reason = "float32" if fed.rounded and used.dtype == "float64" else used.dtype, used.text
        if used.uneven:
            found.verdict, found.precision = "differs", used.text
    return _bounded(torch_call, outputs, found)


def _in_place(torch_call: Call, jax_call: Call, found: Judged, outputs: list[Output]) -> Judged:
    """Judge the models themselves, each on its own inputs, which the user says are the same.

    What one of them computes of its inputs the other may have been given, rounded.
    """
    if not outputs or found.inherited_error is None:
        return replace(found, reason=found.reason or "the inputs of the two do not correspond")
    found.own_error, found.dtype, found.reason = found.inherited_error, "float32", ""
    found.verdict = "identical" if _same(outputs) else "within bound"
    return found if found.verdict == "identical" else _bounded(torch_call, outputs, found)


def _like(alike: Judged, outputs: list[Output], found: Judged) -> Judged:
    """Judge a module as an earlier one of its classes, whose bound is known: relative to it the error is as large."""
    assert alike.own_error is not None
    assert found.own_error is not None
    found.dtype, found.ratio = alike.dtype, alike.ratio * found.own_error / alike.own_error
    for one in outputs:
        if one.torch.dtype.kind == "f":
            size = np.nan_to_num(np.abs(one.jax.astype(np.float64) - one.torch), nan=np.inf)
            _note(found, one, size, found.ratio, "as in an earlier module of its class")
    found.verdict = "differs"
    return found


def _bounded(torch_call: Call, outputs: list[Output], found: Judged) -> Judged:
    measured = Sensitivity(torch_call)
    for one in outputs:
        if one.torch.dtype.kind != "f":
            wrong = one.torch != one.jax
            if wrong.any():
                _note(found, one, wrong.astype(float), np.inf, f"{int(wrong.sum())} of {wrong.size} elements differ")
            continue
        want, got = one.torch.astype(np.float64), one.jax.astype(np.float64)
        finite = np.isfinite(want) & np.isfinite(got)
        alike = (want == got) | (np.isnan(want) & np.isnan(got))
        for draws in (1, bounds.DRAWS):
            s = one.arranged(measured.of(one.name, found.dtype, draws))
            allowed = bounds.allowed(np.where(finite, np.abs(want), 0.0), s, found.dtype)
            with np.errstate(invalid="ignore", over="ignore"):
                ratio = np.where(alike, 0.0, np.where(finite, np.abs(got - want) / allowed, np.inf))
            if float(ratio.max(initial=0.0)) > bounds.CLEAR:
                break
        largest = float(ratio.max(initial=0.0))
        found.ratio = max(found.ratio, largest)
        if largest > 1:
            text = f"{int((ratio > 1).sum())} of {ratio.size} elements are beyond the bound of {found.dtype}"
            _note(found, one, ratio, largest, text)
    return found


def _note(found: Judged, one: Output, size: np.ndarray, ratio: float, text: str) -> None:
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(size)), size.shape))
    if found.finding is not None and found.finding.ratio >= ratio:
        return
    found.verdict = "differs"
    found.finding = Finding(one.name, index, float(one.jax[index]), float(one.torch[index]), ratio, text)


def _floats(outputs: list[Output]) -> list[Output]:
    return [one for one in outputs if one.torch.dtype.kind == "f"]


def _same(outputs: list[Output]) -> bool:
    return _discrete_alike(outputs) and all(
        np.array_equal(one.torch, one.jax, equal_nan=True) for one in _floats(outputs)
    )


def _discrete_alike(outputs: list[Output]) -> bool:
    return all(np.array_equal(one.torch, one.jax) for one in outputs if one.torch.dtype.kind != "f")


def _all_negligible(outputs: list[Output]) -> bool:
    return _discrete_alike(outputs) and all(bounds.negligible(one.jax, one.torch) for one in _floats(outputs))


def _no_partner(torch_out: Outputs, jax_out: Outputs) -> str:
    shapes = [
        ", ".join(f"{name} {list(value.shape)}" for name, value in out.items()) or "nothing"
        for out in (torch_out, jax_out)
    ]
    return f"the outputs do not correspond: torch gives {shapes[0]}; JAX {shapes[1]}"
