"""Faults of a module around others that differ: what still differs with JAX's modules in the place of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from parity.models.causes import beside, diagnose
from parity.models.judging import AGREES
from parity.records import Diagnosis

if TYPE_CHECKING:
    from parity.models.pairing import Pair
    from parity.models.report import Module
    from parity.models.runs import Comparison, Judgement, Pass

LEFT, LEFT_BELOW = 1e-6, 2e-3
"""Relative error that a second fault leaves at least, of a module in float64 and in lower types: what is less may be
the rounding of the numbers that went from one framework to the other."""

BUDGET = 900_000
"""Steps run for causes after which none is looked for any more."""

CAUSE = "a second fault"


def found(
    asked: Comparison, shown: Sequence[tuple[Pass, Judgement]], modules: Sequence[Module],
    children: Mapping[int | None, list[int]], work: list[float],
) -> list[int]:  # fmt: skip
    """Note the modules that make an error beside that of modules in them, with its cause; return their places.

    Args:
        asked: The comparison.
        shown: Of each module the pass that is shown, and what came of it there.
        modules: Those of the report; the ones that make an error are known.
        children: The modules in each, by place; None for those in no other.
        work: Steps that were run for causes so far.
    """
    made: list[int] = []
    if not (asked.torch.live and asked.jax.live):
        return made

    def look(at: int | None) -> list[int]:
        """Return the modules, of those in one or it alone, that JAX's have to stand for, for all else to agree."""
        inner = [one for child in children.get(at, []) for one in look(child)]
        if at is None or modules[at].verdict != "differs":
            return inner
        if modules[at].makes or not inner:
            return [at]
        why = _left(asked, shown, modules, at, inner, work)
        if why is None:
            return inner
        modules[at].makes, modules[at].diagnosis = True, why
        made.append(at)
        return [at]

    look(None)
    return made


def _left(
    asked: Comparison, shown: Sequence[tuple[Pass, Judgement]], modules: Sequence[Module], at: int, inner: list[int],
    work: list[float],
) -> Diagnosis | None:  # fmt: skip
    """Return what a module does wrong beside those in it, or None where nothing is left."""
    import jax

    one, judgement = shown[at]
    place = one.judgements.index(judgement)
    by_path = {(other.pair.torch, other.pair.jax): n for n, other in enumerate(one.judgements)}
    keys = [(shown[i][1].pair.torch, shown[i][1].pair.jax) for i in inner]
    if judgement.found.own_error is None or any(key not in by_path for key in keys):
        return None
    one = asked.again(one)
    pair: Pair = one.judgements[place].pair
    pairs = [one.judgements[by_path[key]].pair for key in keys]
    if any(call.stored is not None for other in (pair, *pairs) for call in (*other.torch_calls, *other.jax_calls)):
        return None
    call = judgement.call
    with jax.enable_x64(one.double):
        far = beside(pair, call, pairs)
        if far is None or not far > (LEFT if judgement.found.dtype == "float64" else LEFT_BELOW):
            return None
        why = diagnose(pair, call, work, pairs) if sum(work) < BUDGET else None
    paths = [modules[i].path for i in inner]
    names = ", ".join(paths[:3]) + (", ..." if paths[3:] else "")
    where = f"{pair.path or 'the model'} ({pair.torch_calls[call].class_name})"
    if why is not None:
        return Diagnosis(why.cause, f"{why.text} (beside what is wrong in {names})", why.fix)
    unsure = [one.path for one in modules if one.parent == at and one.verdict not in (*AGREES, "differs")]
    text = f"with JAX's modules in the place of {names}, {where} still differs, by {far:.2g} of a typical output"
    if unsure:
        text += f"; {', '.join(unsure[:3])} could not be judged"
    return Diagnosis(CAUSE, f"Likely: {text}", f"compare the code around {names} in both, line by line")
