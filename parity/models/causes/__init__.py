"""Why a module of a port makes an error of its own: causes that are proved by substitution, and the fix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.models.causes.weights import diagnose_weights
from parity.models.pairing import Pair
from parity.records import Diagnosis

__all__ = ["diagnose", "diagnose_weights"]


def diagnose(pair: Pair, call: int, work: list[float] | None = None) -> Diagnosis | None:
    """Return why a module differs from its counterpart, or None where nothing is proved or likely.

    Args:
        pair: The module, its counterpart and what both were called with.
        call: Which of the calls.
        work: Where it is noted how many steps were run.

    Returns:
        A cause that is proved by substitution (with one thing changed the two agree, on these numbers and on others),
        or one whose text begins with "Likely: ".
    """
    from parity.models.causes.calls import Calls
    from parity.models.causes.context import Context
    from parity.models.causes.proposers import PROPOSERS  # torch and JAX

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            context = Context(Calls(pair, call))
        except Exception:  # calls that cannot be made functions of the same arrays have no programs to look at
            return None
        found = _first(context, PROPOSERS)
        if work is not None:
            work.append(context.work)
        return found


def _first(context: Any, proposers: Sequence[Any]) -> Diagnosis | None:
    for propose in proposers:
        try:
            found: Diagnosis | None = next(iter(propose(context)), None)
        except Exception:  # a program that cannot be changed so explains nothing; the next cause is tried
            found = None
        if found is not None or context.late:
            return found
    return None
