"""Held to bits: outputs that must be equal bit for bit, and entries that must be +0.0."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from parity.execution.calls import Numbers
from parity.operator.faults import Fault
from parity.operator.oracle import Exact
from parity.operator.pair import Pair
from parity.verdict import compare


def held_to_promises(
    outputs: Mapping[str, np.ndarray], pair: Pair, transform: str, numbers: Numbers
) -> dict[str, np.ndarray]:
    """Raise unless outputs that must be the same bits are, and every frozen entry is +0.0 bit for bit.

    Args:
        outputs: By name.
        pair: Says which entries are frozen.
        transform: The name of what gave the outputs; it says which of them must be the same.
        numbers: What went in.

    Returns:
        The outputs, without those that only served to hold another to.
    """
    left = dict(outputs)
    for name, (reference, why) in pair.transform(transform).same.items():
        if not {name, reference} <= set(left):
            raise Fault(f"{transform}: expected the outputs {name} and {reference} (same), got {', '.join(left)}")
        compare.assert_same_bits(name, left[name], left.pop(reference), why)
    for name, got in left.items():
        frozen = pair.frozen_in(transform, name, numbers)
        if frozen is not None:
            if got.shape[got.ndim - frozen.ndim :] != frozen.shape:
                # What is frozen is said of the last axes, of which 1 stands for any length.
                frozen = _broadcast(name, got, frozen)
            compare.assert_frozen_zero(name, got, frozen)
    return left


def held_to_answers(outputs: Mapping[str, np.ndarray], answers: Mapping[str, np.ndarray], exact: Exact) -> None:
    """Raise unless every output has the bits of the answer."""
    for name, got in outputs.items():
        compare.assert_same_bits(name, got, answers[name], exact.why, zeros=exact.zeros)


def _broadcast(name: str, got: np.ndarray, frozen: np.ndarray) -> np.ndarray:
    try:
        return np.broadcast_to(frozen, got.shape)
    except ValueError:
        compare.assert_same_shape(name, got, frozen)
        raise
