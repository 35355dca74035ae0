"""A report as text: the verdict, the first cause and its fix, then the tree of modules, folded where they agree."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from parity.models.judging import AGREES
from parity.models.replay import WHOLE
from parity.report.content import plural, visible

if TYPE_CHECKING:
    from parity.models.report import ModelReport, Module

SIGN = {"identical": "=", "within bound": "~", "differs": "X", "unsupported": "o", "not judged": "?"}
MOST = 60
"""Lines of the tree; a file of --json keeps all modules."""

MOST_CAUSES, MOST_NAMES, MOST_ALIKE = 5, 8, 6


def render(report: ModelReport) -> str:
    """Return the whole text."""
    parts = [headline(report), *_causes(report), "", *tree(report), *_weights(report), *_gradients(report)]
    parts += [f"note: {note}" for note in report.notes]
    return visible("\n".join(parts).rstrip())


def headline(report: ModelReport) -> str:
    """Return the verdict in a line."""
    counts = Counter(one.verdict for one in report.modules)
    tally = ", ".join(f"{counts[name]:,} {name}" for name in SIGN if counts[name])
    about = f"{plural(len(report.modules), 'module')}: {tally}; {report.mode} mode, {report.precision}"
    if report.ok:
        return f"{report.name}: the same function ({about})"
    what = "gradients" if any(one.verdict == "differs" for one in report.gradients) else "training"
    same = bool(report.modules) and report.modules[0].verdict in AGREES
    if same and report.first is not None and report.first.verdict in AGREES:
        return f"{report.name}: the same outputs, but other {what}, first in {place(report.first)} ({about})"
    if report.first is None and same:
        worse = [one.torch for one in (*report.gradients, *report.training) if one.verdict == "differs"]
        if worse:
            return f"{report.name}: the same outputs, but other {what}, first of {worse[0]} ({about})"
        if report.weights is not None and report.weights.unequal:
            wrong = plural(len(report.weights.unequal), "weight")
            return f"{report.name}: the same function, but {wrong} not equal ({about})"
        return f"{report.name}: not the same ({about})"
    if report.first is None:
        return f"{report.name}: not the same, or not judged ({about})"
    return f"{report.name}: different, first in {place(report.first)} ({about})"


def place(module: Module) -> str:
    """Return the torch path of a module, in words for the model itself."""
    return module.path or "the code of the model itself"


def by_cause(report: ModelReport) -> list[list[Module]]:
    """Return the modules that fail in groups, that of the first module first.

    Modules of one cause and one fix are one group: a fault is told once. A cause that is not known is told for each.
    """
    groups: dict[object, list[Module]] = {}
    for one in sorted(report.failed, key=lambda one: (one is not report.first, one.order)):
        known = one.diagnosis if one.diagnosis is not None and one.diagnosis.cause != "unknown" else None
        key = one.path if known is None else (known.cause, known.fix)
        groups.setdefault(key, []).append(one)
    return list(groups.values())


def _causes(report: ModelReport) -> list[str]:
    lines = []
    alike = by_cause(report)
    for one, *others in alike[:MOST_CAUSES]:
        lines += [
            "",
            f"{place(one)}  <->  {one.jax_path or 'the JAX model'}"
            + (" (with perturbed weights)" if one.perturbed else ""),
        ]
        if one.diagnosis is not None:
            lines += [f"  cause: {one.diagnosis.cause}: {one.diagnosis.text}", f"  fix:   {one.diagnosis.fix}"]
        if one.own_error is not None and one.verdict not in AGREES:
            lines.append(
                f"  own error {one.own_error:.2g} of a typical output, {one.ratio:.3g} times the bound of {one.dtype}"
            )
        if one.finding is not None:
            where = f"{one.finding.output}{list(one.finding.index)}"
            lines.append(
                f"  worst: {where}: torch {one.finding.want:.9g}, JAX {one.finding.got:.9g}; {one.finding.text}"
            )
        if one.reason:
            lines.append(f"  {one.reason}")
        if report.command:
            lines.append(f"  again: {_again(report, one)}")
        if others:
            named = ", ".join(place(other) for other in others[:MOST_ALIKE])
            more = f" and {len(others) - MOST_ALIKE} more" if len(others) > MOST_ALIKE else ""
            lines.append(f"  also in: {named}{more}")
    rest = sum(len(group) for group in alike[MOST_CAUSES:])
    if rest:
        lines.append(f"... and {rest} modules more that make errors of their own")
    return lines


def _again(report: ModelReport, one: Module) -> str:
    """Return the command that runs a module again: on the inputs that a file keeps, if there is one, and it alone."""
    if report.replay and one.path in [saved.path for saved in report.saved]:
        return f"{report.command} --replay {shlex.quote(f'{report.replay}#{one.path or WHOLE}')}"
    return " ".join([report.command, *report.options]) + (f" --only {shlex.quote(one.path)}" if one.path else "")


def tree(report: ModelReport, *, most: int | None = MOST) -> list[str]:
    """Return the modules as a tree, a line each: what agrees is folded into the line above it."""
    children: dict[int | None, list[int]] = {}
    for at, one in enumerate(report.modules):
        children.setdefault(one.parent, []).append(at)
    lines = [f"{'module':<44} {'own':>9} {'inherited':>9}   JAX"]

    def show(at: int, depth: int) -> None:
        one = report.modules[at]
        below = children.get(at, [])
        whole = _all_agree(report.modules, children, at)
        folded = _count(children, at) if whole and depth else 0
        name = "  " * depth + (one.path or "(model)")
        more = f"  [{plural(folded, 'module')} in it agree]" if folded else ""
        said = f"  ({one.reason})" if one.reason and not one.makes else ""
        errors = f"{_number(one.own_error)} {_number(one.inherited_error)}"
        lines.append(f"{SIGN[one.verdict]} {name:<42} {errors}   {one.jax_path or '(model)'}{more}{said}")
        if folded:
            return
        for child in below:
            show(child, depth + 1)

    for at in children.get(None, []):
        show(at, 0)
    if most is not None and len(lines) > most:
        # What differs stays; of what agrees only as much as there is room for.
        kept = [line for line in lines if not line.startswith(("=", "~"))]
        left = len(lines) - len(kept)
        lines = kept[:most]
        lines.append(
            f"... {plural(left, 'line')} of modules that agree"
            + (f" and {len(kept) - most} others" if len(kept) > most else "")
        )
    return [*lines, "= identical, ~ within bound, X differs, ? not judged; errors relative to a typical output"]


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2g}"


def _all_agree(modules: Sequence[Module], children: dict[int | None, list[int]], at: int) -> bool:
    return modules[at].verdict in AGREES and all(_all_agree(modules, children, one) for one in children.get(at, []))


def _count(children: dict[int | None, list[int]], at: int) -> int:
    return sum(1 + _count(children, one) for one in children.get(at, []))


def _weights(report: ModelReport) -> list[str]:
    found = report.weights
    if found is None:
        return []
    lines = ["", f"weights: {plural(len(found.pairs), 'pair')}, {len(found.unequal)} not equal"]
    lines += [f"  not equal: {one}" for one in found.unequal[:MOST_NAMES]]
    lines += [f"  ambiguous: {one}" for one in found.ambiguous[:MOST_NAMES]]
    for side in ("torch", "jax"):
        lone = list(getattr(found.unpaired, side, ()))
        if lone:
            some = ", ".join(lone[:MOST_NAMES]) + (
                f" and {len(lone) - MOST_NAMES} more" if len(lone) > MOST_NAMES else ""
            )
            lines.append(f"  without a partner in {'JAX' if side == 'torch' else 'torch'}: {some}")
    return lines


def _gradients(report: ModelReport) -> list[str]:
    lines = []
    for what, found in (("gradients", report.gradients), ("after training", report.training)):
        wrong = [one for one in found if one.verdict not in AGREES]
        if found:
            lines += ["", f"{what}: {len(found) - len(wrong)} of {len(found)} agree"]
        for one in wrong[:MOST_NAMES]:
            reason = (one.reason or str(one.error)).removeprefix(f"{one.verdict}, ")
            lines.append(f"  {one.torch}: {one.verdict}, {reason}")
    if report.steps is not None:
        from parity.models import curve

        lines += ["", "training steps: how far apart the parameters are, relative to how far torch's have moved"]
        lines += curve.table(report.steps)
        if len(report.steps.distances) == 1:
            lines.append("  one step: momentum, betas and schedules show from the second")
    return lines


def markdown(report: ModelReport) -> str:
    """Return the report as Markdown: the same text, with the tree as a block."""
    head, *rest = render(report).splitlines()
    return "\n".join([f"# {report.name}", "", head, "", "```text", *rest, "```", ""])
