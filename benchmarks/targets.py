"""What the rows shall reach, and how many do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.timing import Ratio

VERDICTS = ("met", "missed", "unclear")


@dataclass(frozen=True)
class Target:
    """A bound on a ratio.

    Attributes:
        name: For people.
        of: Which ratio of a record: over "dense", "limit" or a rival.
        at_most: The bound.
        applies: Whether a record is held to it.
    """

    name: str
    of: str
    at_most: float
    applies: Callable[[dict[str, Any]], bool]


def _is_large_step(record: dict[str, Any]) -> bool:
    return record["large"] and record["work"] == "forward+backward"


TARGETS = (
    Target("near the limit, large", "limit", 1.05, lambda r: _is_large_step(r) and r["kind"] != "elements"),
    Target("elements near dense, large", "dense", 1.03, lambda r: _is_large_step(r) and r["kind"] == "elements"),
    Target("not slower than the one-liner", "one-liner", 1.0, lambda r: True),
    Target("not slower than masking afterwards", "masked afterwards", 1.0, lambda r: True),
)


@dataclass(frozen=True)
class Verdict:
    """What came of one record and one target.

    Attributes:
        target: Its name.
        id: Of the record.
        verdict: One of `VERDICTS`.
        value: What was measured.
        at_most: What was wanted.
    """

    target: str
    id: str
    verdict: str
    value: Ratio
    at_most: float

    @property
    def excess(self) -> float:
        """How far the value is over the bound, relative to it."""
        return self.value.median / self.at_most - 1


def judge(records: Iterable[dict[str, Any]], overheads: Iterable[dict[str, Any]] = ()) -> list[Verdict]:
    """Hold every record to every target that applies to it.

    A target is met where the whole interval of the ratio is within the bound, missed where all of it is beyond, and
    unclear where the bound is inside.

    Args:
        records: Of rows.
        overheads: Of host overhead and compile time, each with its own bound.
    """
    found = []
    for record in records:
        for target in TARGETS:
            if target.of in record["ratios"] and target.applies(record):
                value = Ratio(*record["ratios"][target.of])
                verdict = value.at_most(target.at_most)
                found.append(Verdict(target.name, record["id"], verdict, value, target.at_most))
    for overhead in overheads:
        value = Ratio(*overhead["value"])
        bound = overhead["at most"]
        found.append(Verdict(overhead["target"], overhead["id"], value.at_most(bound), value, bound))
    return found


def summary(verdicts: list[Verdict]) -> dict[str, dict[str, Any]]:
    """Return, for each target, counts of verdicts and the worst miss."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(verdict.target for verdict in verdicts):
        of_it = [verdict for verdict in verdicts if verdict.target == name]
        counts = Counter(verdict.verdict for verdict in of_it)
        misses = sorted((v for v in of_it if v.verdict == "missed"), key=lambda v: -v.excess)
        found[name] = {
            "at most": of_it[0].at_most,
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "misses": [{"id": miss.id, "value": miss.value.median, "at most": miss.at_most} for miss in misses],
        }
    return found


def line(verdicts: list[Verdict]) -> str:
    """Return the summary in one line: how many meet their target, how many miss, and the worst miss by name.

    Example:
        >>> line([Verdict("fast", "a", "met", Ratio(1, 1, 1), 2), Verdict("fast", "b", "missed", Ratio(3, 3, 3), 2)])
        '2 held to targets: 1 met, 1 missed, 0 unclear; worst miss: b, fast: 3.00 where at most 2 was wanted'
    """
    counts = Counter(verdict.verdict for verdict in verdicts)
    text = f"{len(verdicts)} held to targets: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    misses = [verdict for verdict in verdicts if verdict.verdict == "missed"]
    if not misses:
        return text
    worst = max(misses, key=lambda verdict: verdict.excess)
    return (
        f"{text}; worst miss: {worst.id}, {worst.target}: "
        f"{worst.value.median:.2f} where at most {worst.at_most:g} was wanted"
    )
