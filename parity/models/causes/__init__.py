"""Why a module of a port makes an error of its own: causes that are proved by substitution, and the fix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from parity.models.causes.calls import Calls
from parity.models.causes.weights import diagnose_weights
from parity.models.pairing import Pair
from parity.records import Diagnosis

__all__ = ["diagnose", "diagnose_weights"]


def diagnose(pair: Pair, call: int, work: list[float] | None = None, inner: Sequence[Pair] = ()) -> Diagnosis | None:
    """Return why a module differs from its counterpart, or None where nothing is proved or likely.

    Args:
        pair: The module, its counterpart and what both were called with.
        call: Which of the calls.
        work: Where it is noted how many steps were run.
        inner: Modules in it that differ as well: JAX's stand in the place of torch's.

    Returns:
        A cause that is proved by substitution (with one thing changed the two agree, on these numbers and on others),
        or one whose text begins with "Likely: ".
    """
    from parity.models.causes.context import Context
    from parity.models.causes.inner import Inner
    from parity.models.causes.proposers import PROPOSERS  # torch and JAX

    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            put = Inner(inner, pair.torch_calls[call]) if inner else None
            context = Context(Calls(pair, call, put))
        except Exception:  # calls that cannot be made functions of the same arrays have no programs to look at
            return None
        found = _first(context, PROPOSERS)
        if work is not None:
            work.append(context.work)
        return found


def beside(pair: Pair, call: int, inner: Sequence[Pair]) -> float | None:
    """Return how far a module differs where JAX's modules stand in the place of those in it that differ.

    Args:
        pair: The module and its counterpart.
        call: Which of the calls.
        inner: The modules in it that differ.

    Returns:
        The relative distance of its outputs, or None where that cannot be told.
    """
    import torch

    from parity.models.causes.inner import MOST, Inner
    from parity.models.matching import relative_distance

    if len(inner) > MOST:
        return None
    with np.errstate(all="ignore"), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            calls = Calls(pair, call, Inner(inner, pair.torch_calls[call]))
            ours = calls.torch_function({}, *map(_tensor, calls.arrays))
            theirs = calls.jax_function({}, *calls.arrays)
        except Exception:  # modules that cannot be put in another's place say nothing
            return None
    both = [(np.asarray(one), np.asarray(other)) for one, other in zip(ours, theirs, strict=True)]
    return max((relative_distance(*one) for one in both if one[0].dtype.kind == "f"), default=None)


def _tensor(array: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


def _first(context: Any, proposers: Sequence[Any]) -> Diagnosis | None:
    for propose in proposers:
        try:
            found: Diagnosis | None = next(iter(propose(context)), None)
        except Exception:  # a program that cannot be changed so explains nothing; the next cause is tried
            found = None
        if found is not None or context.late:
            return found
    return None
