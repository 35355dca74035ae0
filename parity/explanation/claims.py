"""A claim: a possible cause, with the change of a program that would prove it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from parity.explanation.programs.program import Edit, Step
from parity.explanation.substitution import Change, other
from parity.records import WHO, Diagnosis

ADD_STEP = "Add the step on the side that lacks it, or leave it out on both."


@dataclass(frozen=True)
class Claim:
    """One thing that may be different between two programs.

    Attributes:
        change: What makes the two agree, if the claim is true.
        cause: A slug.
        has: What the changed side has.
        needs: What it would need: what the other has.
        fix: What to do.
    """

    change: Change
    cause: str
    has: str
    needs: str
    fix: str

    def diagnosis(self) -> Diagnosis:
        """Return the claim as a proved cause."""
        mine, theirs = WHO[self.change.framework], WHO[other(self.change.framework)]
        return Diagnosis(
            self.cause,
            f"{self.has} in {mine} where {theirs} has {self.needs}; with it replaced the two agree.",
            self.fix,
        )


def place(step: Step) -> str:
    """Return the place of a step, to read.

    Example:
        >>> place(Step((3, 1), "add", {}, None))
        '3.1'
    """
    return ".".join(str(part) for part in (step.key if isinstance(step.key, tuple) else (step.key,)))


def grouped(steps: Sequence[Step], wanted: Callable[[Step], bool]) -> Iterator[list[Step]]:
    """Yield all steps that are wanted and of one name together, then each alone."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        if wanted(step):
            groups.setdefault(step.name, []).append(step)
    for group in groups.values():
        yield group
        for turns in (2, 3):  # what a loop does at one place
            yield from (group[at::turns] for at in range(turns if len(group) >= 2 * turns else 0))
        if len(group) > 1:
            yield from ([step] for step in group)


def change_all(framework: str, group: Sequence[Step], edit: Edit) -> Change:
    """Return one edit of several steps."""
    return Change(framework, {step.key: edit for step in group})
