"""What a pair promises of its own results, in theory: what is right, how far off rounding may be, what is frozen.

Where a pair says all that (an oracle with majorants, or an exact kind of data), a cell is held to it and runs once:
the float64 runs, which stand in for what is right elsewhere, are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from parity.execution.calls import Numbers
from parity.operator.faults import Fault, ask, ask_tree
from parity.operator.oracle import Exact, Oracle
from parity.operator.transforms import Transform
from parity.records import Finding
from parity.verdict import bounds, compare
from parity.verdict.judge import histogram
from parity.verdict.outcomes import Error


def assert_promised(
    outputs: dict[str, np.ndarray], transform: Transform, frozen: Callable[[str], np.ndarray | None]
) -> dict[str, np.ndarray]:
    """Raise unless outputs that must be the same bits are, and every frozen entry is +0.0 bit for bit.

    Args:
        outputs: By name.
        transform: What gave them.
        frozen: Tells of an output which entries are frozen, or None.

    Returns:
        The outputs, without those that only served to hold another to.
    """
    left = dict(outputs)
    for name, (reference, why) in transform.same.items():
        if not {name, reference} <= set(left):
            raise Fault(f"{transform.name}: expected the outputs {name} and {reference} (same), got {', '.join(left)}")
        compare.assert_same_bits(name, left[name], left.pop(reference), why)
    for name, got in left.items():
        still = frozen(name)
        if still is not None:
            if got.shape[got.ndim - still.ndim :] != still.shape:
                # What is frozen is said of the last axes, of which 1 stands for any length.
                still = _broadcast(name, got, still)
            compare.assert_frozen_zero(name, got, still)
    return left


def _assert_majorant(name: str, majorant: np.ndarray, answer: np.ndarray) -> None:
    # One that is negative or infinite would let any error pass.
    finite = np.isfinite(answer)
    if majorant.shape != answer.shape or not (np.isfinite(majorant) | ~finite).all() or (majorant[finite] < 0).any():
        text = (
            f"{name}: expected a majorant of shape {answer.shape}, finite and not negative, got shape {majorant.shape} "
            f"from {np.min(majorant, initial=np.inf):.3g}; take absolute values of the numbers (n.changed(np.abs))"
        )
        raise Fault(text)


def _broadcast(name: str, got: np.ndarray, still: np.ndarray) -> np.ndarray:
    try:
        return np.broadcast_to(still, got.shape)
    except ValueError:
        compare.assert_same_shape(name, got, still)
        raise


def assert_answered(
    outputs: dict[str, np.ndarray], oracle: Oracle, transform: Transform, numbers: Numbers, dtype: str,
    exact: Exact | None,
) -> Error | None:  # fmt: skip
    """Raise unless outputs are what the oracle says: in their bits where the data is exact, else within its bound.

    Returns:
        None where bits were compared, else the error over its bound.
    """
    want = ask_tree(f"the oracle's answer for {transform.name}", oracle.answers[transform.name], numbers)
    if set(want) != set(outputs):
        text = f"{transform.name} returns {', '.join(outputs) or 'nothing'}; the oracle {', '.join(want) or 'nothing'}"
        raise compare.Mismatch(Finding("structure", (), np.nan, np.nan, np.inf, text))
    for name, got in outputs.items():
        compare.assert_same_shape(name, got, want[name])
    if not transform.values:
        return None
    if exact is not None:
        for name, got in outputs.items():
            compare.assert_same_bits(name, got, want[name], exact.why, zeros=exact.zeros)
        return None
    majorants = ask_tree(f"the oracle's majorant for {transform.name}", oracle.majorants[transform.name], numbers)
    if set(majorants) != set(want):
        raise Fault(
            f"the oracle's majorant for {transform.name} is of {', '.join(majorants)}; its answer of {', '.join(want)}"
        )
    terms = numbers.terms if oracle.terms is None else ask("the oracle's terms", oracle.terms, numbers)
    stages = oracle.stages * (transform.order + 1)
    ratios = {}
    for name, got in outputs.items():
        _assert_majorant(name, majorants[name], want[name])
        bound = bounds.error_bound(majorants[name], dtype, terms=terms, stages=stages)
        compare.assert_within(name, got, want[name], bound)
        ratios[name] = compare.error_ratio(got, want[name], bound)
    rms = {
        name: (float(np.sqrt(np.mean(ratio**2))) if ratio.size else 0.0, ratio.size) for name, ratio in ratios.items()
    }
    flat = np.concatenate([ratio.ravel() for ratio in ratios.values()])
    return Error(float(flat.max(initial=0.0)), rms, histogram(flat))
