"""Times side by side: interleaved rounds, ratios taken round by round, and the refusal to print an unclear one.

In each round every program is timed once, in another order each time, so that what drifts (clock, temperature,
neighbours) meets all of them alike; a ratio is of two times of the same round. Of the ratios the median is given, with
the interval between two of their order statistics that holds the true median with 95 % confidence, whatever the
distribution (a sign test turned round).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
LEAST_ROUNDS = 6
"""With fewer rounds even the whole range misses the median more often than once in twenty."""
MOST_ROUNDS = 99
LEAST_SECONDS = 2e-3
"""Of one sample: below, the clock and the call of it count. Shorter programs run several times a sample."""
WIDTH = 0.02
"""Of an interval, relative: narrower ones are not asked for."""
CHANGE = 0.05
"""A change of a ratio between two runs that is less than this is never reported."""


@dataclass(frozen=True)
class Ratio:
    """The median of a ratio and the interval it is in.

    Attributes:
        median: Of the rounds.
        low: Lower end of the 95 % interval of the median.
        high: Upper end.
    """

    median: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the effect, the distance from 1, is at least the interval's width.

        Example:
            >>> Ratio(0.7, 0.69, 0.72).is_clear, Ratio(0.98, 0.95, 1.01).is_clear
            (True, False)
        """
        return self.high - self.low <= abs(self.median - 1)

    def __str__(self) -> str:
        if self.is_clear:
            return f"{self.median:.2f}"
        return f"unclear {self.low:.2f}..{self.high:.2f}"

    def over(self, share: float) -> Ratio:
        """Return the ratio to something that is `share` of the denominator.

        Example:
            >>> Ratio(0.7, 0.6, 0.8).over(0.5).median
            1.4
        """
        return Ratio(self.median / share, self.low / share, self.high / share)

    def at_most(self, bound: float) -> str:
        """Return "met", "missed", or "unclear" where the bound is inside of the interval.

        Example:
            >>> Ratio(1.0, 0.9, 1.1).at_most(1.2), Ratio(1.0, 0.9, 1.1).at_most(1.05)
            ('met', 'unclear')
        """
        if self.high <= bound:
            return "met"
        return "missed" if self.low > bound else "unclear"


def median(values: Sequence[float]) -> Ratio:
    """Return the median and its interval, from order statistics.

    Args:
        values: One for each round; independent, of any distribution.

    Example:
        >>> median([1, 2, 3, 4, 5, 6, 7])
        Ratio(median=4.0, low=1.0, high=7.0)
    """
    ordered = np.sort(np.asarray(values, float))
    cut = _cut(len(ordered))
    return Ratio(float(np.median(ordered)), float(ordered[cut]), float(ordered[len(ordered) - 1 - cut]))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Ratio:
    """Return the ratio of two programs' times, taken round by round.

    Example:
        >>> ratio([2, 4, 6, 8, 10, 12, 14], [1, 2, 3, 4, 5, 6, 7])
        Ratio(median=2.0, low=2.0, high=2.0)
    """
    return median(np.asarray(numerator, float) / np.asarray(denominator, float))


def changed(before: Ratio, after: Ratio) -> str:
    """Return "slower", "faster", or "" where two runs do not differ clearly.

    Both must hold: the intervals do not touch, and the medians are apart by `CHANGE` or more. The first alone would
    call each twentieth repeat of the same code a change, as the intervals know nothing of what differs
    between runs (where memory lies, say).

    Example:
        >>> changed(Ratio(0.70, 0.69, 0.71), Ratio(0.77, 0.76, 0.78))
        'slower'
        >>> changed(Ratio(0.70, 0.69, 0.71), Ratio(0.73, 0.72, 0.74))
        ''
    """
    if after.low > before.high and after.median >= before.median * (1 + CHANGE):
        return "slower"
    if after.high < before.low and after.median * (1 + CHANGE) <= before.median:
        return "faster"
    return ""


def interleave(
    programs: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    rounds: tuple[int, int] = (LEAST_ROUNDS, MOST_ROUNDS),
    least: float = LEAST_SECONDS,
    enough: Callable[[Mapping[str, Sequence[float]]], bool] = lambda samples: False,
) -> dict[str, list[float]]:
    """Time programs side by side.

    Args:
        programs: Each runs to its end when called (a device is waited for). They are warmed up here.
        seconds: Stop after these, once the least number of rounds is done.
        rounds: How many at least and at most.
        least: Seconds that one sample takes at least, by calling a fast program several times.
        enough: Asked after the least number of rounds, and after each further one, whether to stop.

    Returns:
        Seconds of one call, for each program and round.
    """
    calls = {name: _calls(program, least) for name, program in programs.items()}
    samples: dict[str, list[float]] = {name: [] for name in programs}
    names, rng = list(programs), np.random.default_rng(0)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for done in range(rounds[1]):
            if done >= rounds[0] and (time.perf_counter() - start > seconds or enough(samples)):
                break
            # In a drawn order: who runs after whom matters, by caches and by the memory that is freed.
            for at in rng.permutation(len(names)):
                name = names[at]
                if calls[name] > 1:
                    programs[name]()
                samples[name].append(_sample(programs[name], calls[name]))
    finally:
        if was_enabled:
            gc.enable()
    return samples


def narrow(
    samples: Mapping[str, Sequence[float]], names: Iterable[str], base: str = "dense", width: float = WIDTH
) -> bool:
    """Tell whether the ratios of some programs to another are known to `width` of their size."""
    found = [ratio(samples[name], samples[base]) for name in names]
    return all(one.high - one.low <= width * one.median for one in found)


def _calls(program: Callable[[], object], least: float) -> int:
    program()
    return max(1, math.ceil(least / max(_sample(program, 1), 1e-9)))


def _sample(program: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        program()
    return (time.perf_counter() - start) / calls


def _cut(count: int) -> int:
    # The largest k with P(at most k of `count` fair coins show heads) <= (1 - CONFIDENCE) / 2; 0 if there is none.
    total, cut = 0.0, 0
    for heads in range(count // 2):
        total += math.comb(count, heads) / 2**count
        if total > (1 - CONFIDENCE) / 2:
            break
        cut = heads
    return cut
