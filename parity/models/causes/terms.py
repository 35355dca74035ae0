"""Terms that only one side adds: a residual, an embedding; and masks that only one side has."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.programs.program import SUMS, Operation, Step
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

TURNS = (2, 3, 4)
"""How many sums a layer that runs several times may have in one run."""

SELECTS = ("where", "masked_fill", "masked_fill_", "select_n", "_where")


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield proved terms and masks that one side lacks."""
    at = context.bench
    if at is None:
        return
    for found in (context.first(_added(context, "torch")), context.first(_added(context, "jax"))):
        if found is not None:
            yield found
    for framework in ("torch", "jax"):
        found = context.first(_masked(context, framework))
        if found is not None:
            yield found


def _added(context: Context, framework: str) -> Iterator[Claim]:
    """Yield sums without one of their terms, and with one of them twice."""
    at = context.bench
    assert at is not None
    # What a residual adds is what the module is given first: further inputs are biases, times, positions.
    stream = {leaf.tobytes() for leaf in at.numbers[0].theta[:1]}
    steps = at.programs[framework].steps
    groups = [[step] for step in steps if _is_sum(step)]
    if framework == "torch":
        groups.sort(key=lambda group: context.scopes.get(group[0].key, "?").count(".") + 1)
    whole = [group[0] for group in groups]
    kinds: dict[Any, list[Step]] = {}
    for step in whole:  # in a model whose layers are lists of parts, the sums of all layers
        kinds.setdefault(tuple(_kind(context, framework, step, one) for one in _terms(step)), []).append(step)
    alike = [kind for kind in kinds.values() if 1 < len(kind) < len(whole)]
    # A layer that runs several times has its sums by turns.
    turns = [whole[at::by] for by in TURNS if len(whole) % by == 0 and len(whole) > by for at in range(by)]
    for group in [*groups, *alike, *turns, *([whole] if len(whole) > 1 else [])]:
        left, right = _terms(group[0])
        for dropped, kept in ((left, right), (right, left)):
            term, other = group[0].operands[dropped], group[0].operands[kept]
            if not isinstance(term, np.ndarray) or not isinstance(other, np.ndarray):
                continue
            name = _made_by(context, framework, group[0], dropped)
            goes_in = group[0].sources.get(dropped)
            residual = (term.tobytes() in stream and other.tobytes() not in stream) or (
                goes_in is not None and goes_in in _ancestors(steps, group[0].sources.get(kept))
            )
            what = "the residual" if residual else f"what {name} returns" if name else "a term"
            cause = "residual" if residual else "term left out"
            yield Claim(
                Change(framework, {step.key: _only(kept) for step in group}),
                cause,
                f"{what} is added ({group[0].name})",
                "no such term",
                "Add the residual, x + f(x), on both sides." if residual else f"Add {what} on both sides.",
            )
        if _same_size(group[0].operands[left], group[0].operands[right]):
            for twice in (left, right):
                yield Claim(
                    Change(framework, {step.key: _doubled(twice) for step in group}),
                    "residual",
                    "the residual is added once",
                    "it twice",
                    "Add the residual once: a sublayer that adds it itself must not be given to x + f(x).",
                )


def _masked(context: Context, framework: str) -> Iterator[Claim]:
    """Yield selections without their mask, and masks turned around."""
    at = context.bench
    assert at is not None
    fix = "Mask on both sides, along the keys: mask[:, None, None, :]."
    for step in at.programs[framework].steps:
        if step.name in SELECTS and step.result is not None and step.result.dtype.kind == "f":
            for operand, values in step.operands.items():
                if isinstance(values, np.ndarray) and values.dtype.kind == "f" and values.ndim:
                    yield Claim(Change(framework, {step.key: _only(operand)}), "mask: left out", "a mask", "none", fix)
    for step in at.programs[framework].steps:
        mask = step.result
        if mask is None or mask.dtype != bool or mask.ndim < 2 or mask.size < 2:
            continue
        for i in range(mask.ndim):
            for j in range(i + 1, mask.ndim):
                if mask.shape[i] > 1 or mask.shape[j] > 1:
                    yield Claim(
                        Change(framework, {step.key: _turned(i, j)}),
                        "mask: axes",
                        "a mask",
                        f"it with axes {i} and {j} exchanged (along queries, not keys)",
                        fix,
                    )


def _is_sum(step: Step) -> bool:
    return step.name in SUMS and step.result is not None and step.result.dtype.kind == "f" and step.result.ndim > 0


def _terms(step: Step) -> tuple[Any, Any]:
    return ("self", "other") if "self" in step.operands else (0, 1)


def _same_size(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape


def _made_by(context: Context, framework: str, step: Step, operand: Any) -> str:
    """Return the child module whose result an operand is, or nothing."""
    if framework == "jax" or operand not in step.sources:
        return ""
    scope = context.scopes.get(step.sources[operand], "")
    return scope if scope != context.scopes.get(step.key, "") else ""


def _kind(context: Context, framework: str, step: Step, operand: Any) -> str:
    """Return the name of the list of parts that made a term, or nothing."""
    found = re.sub(r"\d+", "#", _made_by(context, framework, step, operand))
    return found if "#" in found else ""


def _ancestors(steps: Sequence[Step], key: Any) -> set[Any]:
    """Return the steps that a step's result was made of."""
    sources = {step.key: set(step.sources.values()) for step in steps}
    found: set[Any] = set()
    reached = [key] if key is not None else []
    while reached:
        reached = [one for key in reached for one in sources.get(key, ()) if one not in found]
        found.update(reached)
    return found


def _only(operand: Any) -> Any:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        values = operation.numpy(operation.operands[operand])
        return operation.like(np.broadcast_to(values, operation.numpy(result).shape), result)

    return edit


def _doubled(operand: Any) -> Any:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        return operation.like(operation.numpy(result) + operation.numpy(operation.operands[operand]), result)

    return edit


def _turned(i: int, j: int) -> Any:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        return operation.like(np.ascontiguousarray(np.swapaxes(operation.numpy(result), i, j)), result)

    return edit
