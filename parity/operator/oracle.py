"""The right answers of a pair for each transform, and the kinds of data on which they are met bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from parity.execution.calls import Numbers

Tree = Mapping[str, np.ndarray]
"""Arrays by name of output."""

Answer = Callable[[Numbers], Tree]
"""What a transform must give on some numbers, in float64."""

STAGES = 4
"""How often a result is stored on its way, and again for each order of derivative, unless an oracle says otherwise."""


@dataclass(frozen=True)
class Oracle:
    """The right answer for each transform that it knows; other transforms are compared with the float64 runs.

    Attributes:
        answers: By name of transform, a function of the numbers that returns float64 arrays by name of output.
            Outputs are named as the transforms name them: "output", "tangent", "by x" (`parity.operator.transforms`).
        majorants: The same with absolute values for all numbers and a plus for every sign: what rounding errors are
            proportional to. With it a result is held to the bound of `parity.verdict.bounds`, without it to the
            float64 run of its framework, and that to the answer.
        terms: The length of the longest chain of sums; None for the size of the largest input.
        stages: How often a result is stored on its way, per order of derivative and once more.

    Raises:
        TypeError: An answer or a majorant is not a function.
        ValueError: There is no answer at all, or a transform has a majorant and no answer.

    Example:
        >>> square = Oracle({"vjp": lambda n: {"by x": 2 * n.theta[0] * n.cotangents[0]}})
        >>> square.answers["vjp"](Numbers(((),), (np.ones(1),), ("x",), (0,), (np.array([3.0]),)))
        {'by x': array([6.])}
    """

    answers: Mapping[str, Answer]
    majorants: Mapping[str, Answer] = field(default_factory=dict)
    terms: Callable[[Numbers], int] | None = None
    stages: int = STAGES

    def __post_init__(self) -> None:
        for what, given in (("answers", self.answers), ("majorants", self.majorants)):
            if not (isinstance(given, Mapping) and all(map(callable, given.values()))):
                raise TypeError(f"{what}: expected a dict of functions by name of transform, got {given!r:.80}")
        if not self.answers:
            raise ValueError("answers: expected one for at least one transform, got none")
        alone = sorted(set(self.majorants) - set(self.answers))
        if alone:
            raise ValueError(f"majorants: expected those of transforms that have an answer, got {', '.join(alone)}")
        if not (self.terms is None or callable(self.terms)):
            raise TypeError(f"terms: expected a function of the numbers, got {type(self.terms).__name__}")


@dataclass(frozen=True)
class Exact:
    """A kind of data on which an oracle's answers are met bit for bit.

    Attributes:
        why: Why the answer must be exact there; a failure prints it.
        zeros: Whether the signs of zeros count.
    """

    why: str = "every sum is exact"
    zeros: bool = False
