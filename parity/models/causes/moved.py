"""An activation before a sum on one side, after it on the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from parity.explanation.activations import ACTIVATIONS, SPELT
from parity.explanation.claims import Claim
from parity.explanation.programs.program import Operation, Step
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

ADDS = ("add", "add_")
FIX = "Put the activation in one place: f(x + y) is after the sum, f(x) + y before it."


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield an activation that is moved to the other side of a sum in torch: the two agree then."""
    at = context.bench
    if at is None:
        return
    found = context.first(_claims(at.programs["torch"].steps))
    if found is not None:
        yield found


def _claims(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield moves in all places that are alike at once, then in each alone."""
    by_key = {step.key: step for step in steps}
    after = [(by_key[step.sources["self"]], step) for step in steps if _is_activation(step) and _of_sum(step, by_key)]
    before = [
        (step, by_key[source], operand)
        for step in steps
        if step.name in ADDS
        for operand, source in step.sources.items()
        if source in by_key and _is_activation(by_key[source])
    ]
    for operand in ("self", "other"):
        for pairs in (after, *([pair] for pair in after if len(after) > 1)):
            if pairs:
                edits: dict[Any, Any] = {}
                for total, activation in pairs:
                    edits |= {total.key: _before(activation, operand), activation.key: _left_out}
                yield _claim(edits, pairs[0][1], "after a sum", "before it, on one term")
    for group in (before, *([one] for one in before if len(before) > 1)):
        if group:
            edits = {}
            for total, activation, _ in group:
                edits |= {total.key: _after(activation), activation.key: _left_out}
            yield _claim(edits, group[0][1], "before a sum", "after it")


def _claim(edits: dict[Any, Any], activation: Step, mine: str, theirs: str) -> Claim:
    name = SPELT.get(activation.name, activation.name)
    return Claim(Change("torch", edits), "activation order", f"{name} {mine}", f"it {theirs}", FIX)


def _is_activation(step: Step) -> bool:
    return SPELT.get(step.name, step.name) in ACTIVATIONS and "self" in step.operands


def _of_sum(step: Step, by_key: dict[Any, Step]) -> bool:
    source = by_key.get(step.sources.get("self"))
    return source is not None and source.name in ADDS


def _left_out(operation: Operation) -> Any:
    return operation.operands["self"]


def _applied(activation: Step, value: Any) -> Any:
    import torch

    rest = [one for name, one in activation.operands.items() if name != "self"]
    return getattr(torch.ops.aten, activation.name.rstrip("_")).default(value, *rest)


def _before(activation: Step, operand: str) -> Any:
    def edit(operation: Operation) -> Any:
        changed = _applied(activation, operation.operands[operand])
        return operation.compute({**operation.operands, operand: changed})

    return edit


def _after(activation: Step) -> Any:
    def edit(operation: Operation) -> Any:
        return _applied(activation, operation.compute(operation.operands))

    return edit
