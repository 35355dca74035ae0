"""Why two results differ, in words, with what to do about it: one small function for each cause, tried in order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from parity.execution.calls import Failure, Outputs
from parity.explanation import default_arguments as hypotheses
from parity.explanation.claims import ADD_STEP
from parity.explanation.evidence import Evidence
from parity.explanation.precision import bfloat16_inputs, distance, lost_precision, low_accumulator, tf32
from parity.explanation.selections import THRESHOLD
from parity.explanation.trials import BESIDE, BOTH_RIGHT, NEAR
from parity.operator.data import SUBNORMAL
from parity.operator.tolerance import TOLERATED
from parity.records import WHO, Diagnosis
from parity.verdict.judge import same_dtype

Cause = Callable[[Evidence], Diagnosis | None]

BEYOND = ("infinite", "nan", "subnormal", "large", "small", "sweep")
"""Kinds of data far from what people compute with."""

FEW = 3
"""Numbers that are named in a sentence, at most."""

SMALL = 1e-6
"""A difference of a smaller part is of a small number, not of another function."""

FLUSH_FIX = "XLA on CPUs flushes subnormal numbers: keep away from them (add a larger eps), or list the cell as known."


def diagnose(evidence: Evidence) -> Diagnosis | None:
    """Return the first cause that explains a cell, or None where there is nothing to explain."""
    if evidence.verdict == "within bound":
        return summation_order(evidence)
    for cause in CAUSES:
        found = cause(evidence)
        if found is not None:
            return found
    return None


def raises(e: Evidence) -> Diagnosis | None:
    """One framework raises where the other returns."""
    if e.verdict == "unsupported" and e.forward is not None and e.forward.cause == "dtype promotion":
        return follows(e)  # an integer has no derivative
    if e.verdict == "unsupported":
        if e.mistake:
            return Diagnosis("error in the function", f"Nothing was compared: {e.reason}.",
                             "Mend the functions, and hand them arguments that both take.")  # fmt: skip
        where = f"{e.cell.transform} in {e.cell.world}, {e.cell.dtype}"
        if "SystemExit" in e.reason:
            return Diagnosis("error in the function", f"{where} is not compared: {e.reason}", "Raise an error in its place: "
                             "whoever calls the function goes on.")  # fmt: skip
        fix = next((one for part, one in TRACED.items() if part in e.reason), UNSUPPORTED)
        return Diagnosis("unsupported", f"{where} raises: {e.reason}", fix)
    if e.output:
        return None
    fix = "Check arguments alike on both sides, or list the cell as known."
    if "dtype" in e.reason:
        fix = (
            "Everything runs in several dtypes, and what a function brings along keeps its own: pass weights as "
            "inputs, or cast them to the dtype of the argument."
        )
    return Diagnosis("raises in one", f"Only one framework refuses these numbers: {e.reason}", fix)


TRACED = {
    "Unsupported: ": "torch.compile takes it in one graph (fullgraph=True) here: keep such lines out of what is compared, or "
    "list torch-compiled as known with the reason.",
    "TracerArrayConversionError": "jax.jit traces without numbers: use jnp in the place of NumPy, and return JAX's arrays.",
    "ConcretizationTypeError": "jax.jit traces without numbers: use jnp.where and jax.lax.cond in the place of if, float and "
    "tolist, or list jax-jit as known with the reason.",
}  # fmt: skip
"""What to do about an error of a compiler, by a part of its text."""

UNSUPPORTED = "Write the operator of parts that can do this, or list the cell as known with the reason."


def oracle(e: Evidence) -> Diagnosis | None:
    """The two agree, and the oracle does not."""
    if not e.against_oracle or (e.same_shape and not _explains(e.got, e.want)):
        return None
    return Diagnosis("oracle", f"The two frameworks agree with each other, and not with the oracle: {e.reason}.",
                     "Look at the oracle first; if it is right, both functions share one mistake.")  # fmt: skip


def unsteady(e: Evidence) -> Diagnosis | None:
    """A function that draws random numbers."""
    if not e.unsteady:
        return None
    who = " and ".join(WHO[name] for name in e.unsteady)
    return Diagnosis("not deterministic", f"Run again on the same numbers, the function in {who} gives other results.",
                     "Switch dropout off (eval mode), and pass what is drawn at random, or kept from call to call, as an input to both.")  # fmt: skip


def structure(e: Evidence) -> Diagnosis | None:
    """Other outputs."""
    if e.output != "structure":
        return None
    return Diagnosis("structure", f"The two do not return the same outputs: {e.reason}.",
                     "Return the same nesting of dicts and tuples; torch functions with a dim return (values, indices).")  # fmt: skip


def shape(e: Evidence) -> Diagnosis | None:
    """Another shape: transposed, broadcast, or reduced."""
    if e.got.shape == e.want.shape:
        return None
    shapes = f"{e.name} has shape {e.got.shape}, the other framework's {e.want.shape}"
    if not e.at_random and e.cell.data == "subnormal" and e.framework == "jax":
        return Diagnosis("flushed subnormals", f"{shapes}: JAX takes numbers below {SUBNORMAL[e.cell.dtype]:.3g} for "
                         "zero, all of them for one number.", FLUSH_FIX)  # fmt: skip
    if not e.at_random and e.cell.data != "random":
        return Diagnosis("shape", f"{shapes}, on {_points(e)} alone: how many there are depends on the numbers.",
                         "Check what is counted as equal: jnp.unique takes all NaN for one, torch.unique does not.")  # fmt: skip
    if 1 < e.got.ndim <= 4:
        for order in itertools.permutations(range(e.got.ndim)):
            if np.transpose(e.got, order).shape == e.want.shape and _explains(np.transpose(e.got, order), e.want):
                return Diagnosis("transposed", f"{shapes}: with its axes in the order {order} the two agree.",
                                 "Transpose one of them: check dim and axis, indexing= of meshgrid ('xy' in JAX), and "
                                 "channels first (torch) or last (JAX).")  # fmt: skip
    if sorted(e.got.shape) == sorted(e.want.shape):
        return Diagnosis("transposed", f"{shapes}: the axes are in another order.",
                         "Transpose one of them: check dim and axis, and channels first (torch) or last (JAX).")  # fmt: skip
    if e.got.size != e.want.size:
        return Diagnosis("broadcast", f"{shapes}: an operand was broadcast, or an axis reduced, on one side only.",
                         "Give both the same keepdim, and reshape operands where they should meet.")  # fmt: skip
    return Diagnosis("shape", f"{shapes}: the same numbers in other shapes.", "Reshape one of them.")


def promotion(e: Evidence) -> Diagnosis | None:
    """Another dtype of the result."""
    if not (isinstance(e.own, Outputs) and isinstance(e.other, Outputs)):
        return None
    own, other = (one.dtypes.get(e.output, "") for one in (e.own, e.other))
    if not own or not other or same_dtype(own, other):
        return None
    if "ndarray" in (own, other):
        whose = e.who if own == "ndarray" else e.whose
        return Diagnosis("structure", f"{e.name} is a NumPy array in {whose}, and the framework's own in the other.",
                         "Return tensors and JAX arrays: a NumPy array has no derivative, and no compiler traces it.")  # fmt: skip
    if e.got.dtype.kind in "iu" and e.want.dtype.kind in "iu":
        return Diagnosis("integer width", f"{e.name} is {own} in {e.who} and {other} in the other.",
                         "Cast the result to one type on both sides: in the narrower one large numbers wrap around.")  # fmt: skip
    return Diagnosis("dtype promotion", f"{e.name} is {own} in {e.who} and {other} in the other: a constant or an "
                     "operand of another dtype was promoted differently.",
                     "Cast operands and result explicitly; Python scalars promote nothing, NumPy scalars do.")  # fmt: skip


def ordinary(e: Evidence) -> Diagnosis | None:
    """A difference at special numbers of functions that differ at the user's own: it is that one."""
    if e.cell.data not in BEYOND:
        return None
    return e.at_ordinary() if e.at_random else follows(e)


def transposed(e: Evidence) -> Diagnosis | None:
    """The right numbers in transposed places."""
    if not e.same_shape or e.got.ndim < 2 or not e.off.any() or _explains(e.got, e.want):
        return None
    for i in range(e.got.ndim):
        for j in range(i + 1, e.got.ndim):
            if e.got.shape[i] == e.got.shape[j] and _explains(np.swapaxes(e.got, i, j), e.want):
                return Diagnosis("transposed", f"{e.name} is right with axes {i} and {j} exchanged.",
                                 "Transpose one of them: check dim, axis and the order of einsum's letters.")  # fmt: skip
    return None


def signed_zero(e: Evidence) -> Diagnosis | None:
    """Only the signs of zeros differ."""
    if not e.same_shape or e.off.any() or e.cell.data != "signed zeros":
        return None
    sign = (e.got == 0) & (e.want == 0) & (np.signbit(e.got) != np.signbit(e.want))
    if not sign.any():
        return None
    if e.at_random and (usual := e.at_ordinary()) is not None:
        return usual  # zeros of other places
    return Diagnosis("signed zero", f"{int(sign.sum())} {'zeros have' if sign.sum() > 1 else 'zero has'} the other sign (-0.0 for +0.0) in {e.name}.",
                     "Harmless unless 1/x, atan2, copysign or sqrt follow; add 0.0 to the result to make zeros positive.")  # fmt: skip


def small_enough(e: Evidence) -> Diagnosis | None:
    """An eps or a threshold that shows on zeros and tiny numbers alone: it is found on tiny numbers."""
    tiny = e.cell.data in ("zeros", "signed zeros", "subnormal", "small") and not e.at_random
    if not tiny or e.verdict != "differs" or e.judged != "meaning" or not e.same_shape:
        return None
    if e.derivative and e.forward is not None:
        return (
            follows(e) if e.forward.cause == "default argument: eps" or e.forward.text.startswith(NEAR_ZERO) else None
        )
    found = e.near_zero()
    if found is None or (found.cause == "default argument: eps" and (e.derivative or not _differs_in_kind(e))):
        return None
    return Diagnosis(found.cause, f"{NEAR_ZERO} {found.text}", found.fix)


NEAR_ZERO = "Near zero,"


def _differs_in_kind(e: Evidence) -> bool:
    return bool(e.off.any() or np.isnan(e.got).any() != np.isnan(e.want).any())


def special(e: Evidence) -> Diagnosis | None:
    """A special function that one framework computes less exactly."""
    return e.inexact() if e.same_shape and e.verdict == "differs" and e.judged == "meaning" else None


def nan_in_one(e: Evidence) -> Diagnosis | None:
    """NaN or infinity on one side only."""
    if not e.same_shape:
        return None
    left, right = np.isnan(e.got), np.isnan(e.want)
    nan = bool((left != right).any())
    here, there = (left, right) if nan else (np.isinf(e.got), np.isinf(e.want))
    mine = bool((here & ~there).any())
    name = e.framework if mine else {"torch": "jax", "jax": "torch"}[e.framework]
    if nan:
        count, at = int((left != right).sum()), left != right
        finite = float((e.want if mine else e.got)[at][0])
        made = _made(e, name, True)
        if not made and (stopped := _stopped(e, name, "NaN")) is not None:
            return stopped
        return Diagnosis("nan in one", f"NaN in {WHO[name]} only ({count} element{'s' * (count > 1)} of {e.name}), on {_points(e)}{made}. The "
                         f"other has {finite:.4g} there.",
                         "Decide what it should be there, and select that on both sides with where, before the operation "
                         "that makes the NaN as well as after it (the double where), or keep roots and divisors from "
                         "zero by a small number.")  # fmt: skip
    if e.output and (here != there).any() and e.cell.data != "subnormal":
        made = _made(e, name, False)
        if not made and any(np.isinf(leaf).any() for leaf in e.numbers.theta):
            other = float((e.want if mine else e.got)[here & ~there if mine else there & ~here][0])
            return _stopped(e, name, "Infinity") or Diagnosis(
                "infinity in one", f"Infinity in {WHO[name]} only, on {_points(e)}. The other has {other:.4g} there.",
                "Decide what it should be there, and select that on both sides with where.")  # fmt: skip
        made = made or ": one formula overflows or divides by zero where the other does not"
        pole = "zero" in e.cell.data or e.cell.data == "kinks"
        return Diagnosis("overflow in one", f"Infinity in {WHO[name]} only, on {_points(e)}{made}.",
                         "Decide what it should be there, and select that on both sides with where." if pole else
                         "Use the formula that scales first (subtract the maximum, hypot) on both sides.")  # fmt: skip
    return None


def _made(e: Evidence, framework: str, nan: bool) -> str:
    """Return where a NaN or an infinity comes from, to add to a sentence."""
    made = e.made_by(framework, nan) if e.judged == "meaning" else ""
    return f": {made}" if made else ""


def _stopped(e: Evidence, framework: str, what: str) -> Diagnosis | None:
    """Return that a step of the other framework makes a number of the NaN or infinity that goes in, where it does."""
    other = {"torch": "jax", "jax": "torch"}[framework]
    found = e.stopped_by(other, what == "NaN") if e.judged == "meaning" and e.cell.data in ("nan", "infinite") else ""
    return (
        Diagnosis("another formula", f"{what} in {WHO[framework]} only, on {_points(e)}: {found}.", ADD_STEP)
        if found
        else None
    )


def flushed(e: Evidence) -> Diagnosis | None:
    """Subnormal numbers were taken for zero, or products of small numbers were lost."""
    if not e.same_shape or e.at_random or e.cell.data not in ("subnormal", "small"):
        return None
    if e.judged == "meaning" and (e.cell.dtype != "float64" or _is_as_good_as_zero(e)):
        return None  # float64 loses nothing there
    tiny = SUBNORMAL[e.cell.dtype]
    if e.framework == "jax" and e.cell.data == "subnormal":
        return Diagnosis("flushed subnormals", f"JAX takes numbers below {tiny:.3g} for zero, and {e.name} shows it.",
                         FLUSH_FIX)  # fmt: skip
    return Diagnosis("underflow", f"Products of such numbers are below {tiny:.3g}, the smallest normal {e.cell.dtype}, and "
                     f"{e.name} shows it: the two lose them differently.",
                     "Scale before squaring (divide by the largest), or add eps under the root, on both sides.")  # fmt: skip


def follows(e: Evidence) -> Diagnosis | None:
    """A derivative of what differs already."""
    if not e.derivative or e.forward is None:
        return None
    if e.forward.text.startswith(TOLERATED):
        return e.forward
    return Diagnosis(
        e.forward.cause, f"The forward differs already, and its derivative with it: {e.forward.text}", e.forward.fix
    )


def proved(e: Evidence) -> Diagnosis | None:
    """A constant, an operator, an order or a type that is proved by substitution (proof.py)."""
    if e.judged != "meaning" or e.verdict != "differs" or e.derivative:
        return None
    special = ("zeros", "signed zeros", "nan", "infinite", "subnormal")
    return None if e.cell.data in special and not e.at_random else e.proved()


def default_argument(e: Evidence) -> Diagnosis | None:
    """A default argument that differs: known ones are tried."""
    return hypotheses.default_argument(e) if e.same_shape and e.judged == "meaning" else None


def overflowed(e: Evidence) -> Diagnosis | None:
    """An intermediate result overflowed, and what was divided by it is zero."""
    if not e.same_shape or e.at_random or e.cell.data != "large" or not e.off.any():
        return None
    got, want = e.got[e.off], e.want[e.off]
    if np.all((got == 0) & (want != 0)):
        who = e.who
    elif np.all((want == 0) & (got != 0)):
        who = "the other"
    else:
        return None
    return Diagnosis("overflow in one", f"{int(e.off.sum())} of {e.got.size} elements of {e.name} are zero in {who}, on large numbers, "
                     "and should not be: an intermediate result (a square, an exponential) overflows, and dividing by "
                     "infinity gives 0.", "Use the formula that scales first (subtract the maximum, hypot) on both sides.")  # fmt: skip


def tie_or_kink(e: Evidence) -> Diagnosis | None:
    """A convention at a point where the function has no derivative, or more than one answer."""
    special = e.cell.data in ("zeros", "signed zeros", "ties", "kinks") and not e.at_random
    special |= _is_as_good_as_zero(e)
    if not e.same_shape or not (special or (e.cell.data == "random" and e.judged == "meaning")):
        return None
    index = np.argwhere(e.off)
    if not len(index):
        return None
    if not e.alike_nearby():
        return None
    if (
        e.cell.data == "kinks"
        and special
        and not e.derivative
        and e.judged == "meaning"
        and (found := e.proved()) is not None
    ):
        return found
    first = tuple(int(i) for i in index[0])
    what = "derivative" if e.derivative else "value"
    point = "ties" if e.cell.data == "ties" else "zero" if "zero" in e.cell.data else "kinks and edges"
    point = "numbers next to zero" if e.cell.data in ("subnormal", "small") else point
    if e.cell.data == "random":
        point = "some of these numbers, which are ties, kinks or edges,"
    if e.judged == "meaning" and not e.alike_nearby(NEAR):
        found = e.near_zero()
        if found is not None and found.cause == THRESHOLD:
            return Diagnosis(found.cause, f"{NEAR_ZERO} {found.text}", found.fix)
        return Diagnosis("another formula", f"The {what} differs at {point.rstrip(',')} and as near as {NEAR:.0e}, in {len(index)} of {e.got.size} "
                         f"elements of {e.name}, and agrees as far as {BESIDE:.0e} from there: an eps or a threshold differs.",
                         "Compare what keeps roots and quotients from zero: its size, and whether it stands under the root.")  # fmt: skip
    point = point.rstrip(",") + where if (where := _where(e)) else point
    return Diagnosis("tie or kink", f"The {what} at {point} is a convention, and the two follow different ones: "
                     f"{e.name} is {float(e.got[first]):.4g} in {e.who} and {float(e.want[first]):.4g} in the other, "
                     f"at {len(index)} of {e.got.size} elements. At points beside them they agree.",
                     "Write the convention out (where, or a custom rule) on one side, or list the cell as known.")  # fmt: skip


def _is_as_good_as_zero(e: Evidence) -> bool:
    """Return whether a derivative differs at numbers so small that the function is at a kink, as at zero itself."""
    tiny = e.cell.data in ("subnormal", "small") and e.derivative and not e.at_random
    return bool(tiny and e.judged == "meaning" and e.same_shape and e.off.any() and e.alike_nearby(NEAR))


def gradient_missing(e: Evidence) -> Diagnosis | None:
    """All of a gradient is zero on one side."""
    if not e.same_shape or not e.derivative or not e.off.any():
        return None
    for (who, whose), zero, other in (((e.who, e.whose), e.got, e.want), ((e.whose, e.who), e.want, e.got)):
        if not zero.any() and other.any():
            return Diagnosis("gradient missing", f"The derivative {e.output} is zero everywhere in {who}, and is not in {whose}.",
                             f"Either {who} stops it (detach, no_grad, stop_gradient, a round trip through NumPy, an "
                             f"integer cast) where it should not, or {whose} should stop it as well.")  # fmt: skip
    return None


def gradient_masked(e: Evidence) -> Diagnosis | None:
    """Some of a gradient is zero on one side, and the rest agrees."""
    if not e.same_shape or not e.derivative or not e.off.any() or e.judged != "meaning":
        return None  # in less than float64 a zero may be what rounding left
    got, want = e.got[e.off], e.want[e.off]
    who = e.who
    counted = f"{int(e.off.sum())} of {e.got.size} elements of {e.name}"
    if not got.any():
        return Diagnosis("gradient masked", f"{counted} are zero in {who} and are not in the other; the rest agrees.",
                         f"A mask or a branch stops the gradient in {who} only: compare where, clip and stop_gradient.")  # fmt: skip
    if not want.any():
        return Diagnosis("gradient leaking", f"{counted} are not zero in {who} and are zero in the other; the rest agrees.",
                         f"{who} lets the gradient through what the other masks: compare where, masks and detach.")  # fmt: skip
    return None


def gradient_rule(e: Evidence) -> Diagnosis | None:
    """The functions agree, and their derivatives do not."""
    if not e.same_shape or not e.derivative or e.judged != "meaning":
        return None
    if e.cell.data != "random" and not e.at_random:
        return None
    if e.cell.data != "random" and not e.off.any():
        return e.at_ordinary()  # no more than there
    factor = hypotheses.factor_of(e.got, e.want)
    wrong = e.wrong_derivative()
    if not e.off.any() and "derivative is wrong" not in wrong:
        return None  # of a small difference only a rule that is wrong tells something
    count = int(e.off.sum()) or "some"
    if BOTH_RIGHT in wrong:
        return Diagnosis("another formula", f"The derivative {e.output} differs, in {count} of {e.got.size} elements, and the "
                         f"functions agree on these numbers.{wrong} So the functions part from each other beside these numbers.",
                         "Compare the two on other inputs (equal arguments, constants and zeros hide much), then their arguments.")  # fmt: skip
    by = "" if factor is None else f": it is {factor:.6g} times the other's everywhere"
    if _as_rounded(e.got, e.want):
        return Diagnosis("gradient rule", f"The functions agree, and the derivative {e.output} is off by {_off_by(e):.2g} of its size "
                         f"everywhere, as a factor of it that one side rounded to float32 makes it.{wrong}", "In float32 and below the "
                         "two are alike: list float64 as known, or write the derivative out on that side.")  # fmt: skip
    return Diagnosis("gradient rule", f"The functions agree, and the derivative {e.output} does not, in {count} of "
                     f"{e.got.size} elements{by}.{wrong}", "One side does not differentiate what it computes: look at custom_vjp, custom_jvp "
                     "and autograd.Function, and for detach and stop_gradient.")  # fmt: skip


def other_formula(e: Evidence) -> Diagnosis | None:
    """The meaning differs, and nothing above says why."""
    if not e.same_shape or not (e.off.any() or (e.verdict == "differs" and e.judged == "meaning")):
        return None
    error = distance(e.got, e.want)
    count = int(e.off.sum()) or "some"
    if 0 < float(np.nanmax(error, initial=0.0)) < SMALL:
        on = "" if e.cell.data == "random" else f", on {_points(e)},"
        return Diagnosis("another formula", f"In float64{on or ','} {e.name} differs by up to {_off_by(e):.2g} of its size: the two agree "
                         f"to {int(-np.log10(_off_by(e)))} digits, and no further. A small number (eps), a constant of few digits "
                         "or an approximation is another.", "Compare eps and constants; of special functions, how exact each is.")  # fmt: skip
    return Diagnosis("another formula", f"In float64, on {_points(e)}, {count} of {e.got.size} elements of "
                     f"{e.name} differ, by up to {float(np.nanmax(error, initial=0.0)):.2g} of its size: the two compute "
                     "different functions.", "Compare default arguments and conventions in both documentations.")  # fmt: skip


def integers(e: Evidence) -> Diagnosis | None:
    """Results that are no floats: indices, counts, truth values."""
    if not e.output or e.got.shape != e.want.shape or (e.got.dtype.kind == "f" and e.want.dtype.kind == "f"):
        return None
    count = int(np.sum(e.got != e.want))
    if not count:
        return None
    special = e.cell.data in ("zeros", "signed zeros", "ties", "kinks") and not e.at_random
    if (special or e.cell.data == "random") and e.alike_nearby():
        return Diagnosis("tie or kink", f"{e.name} names other elements in {count} of {e.got.size} places where numbers are equal; "
                         "beside these the two agree.", "Let both take the first of equal numbers, as argmax, argmin, max(dim) and min(dim) do, and stable "
                         "sorts; or compare values instead of indices.")  # fmt: skip
    return proved(e) or Diagnosis("another formula", f"{count} of {e.got.size} elements of {e.name} differ, on {_points(e)}, and they are "
                     "no floats.", "Compare conventions: where counting begins, which side is meant, what is true.")  # fmt: skip


def summation_order(e: Evidence) -> Diagnosis | None:
    """Within the bound, with other bits."""
    if e.verdict != "within bound" or isinstance(e.other, Failure) or e.cell.world.startswith("torch"):
        return None
    return Diagnosis("rounding only", "Other bits, within the bound: sums in another order, or functions rounded "
                     "differently.", "Nothing to do.")  # fmt: skip


CAUSES: tuple[Cause, ...] = (
    raises, structure, unsteady, oracle, shape, promotion, ordinary, small_enough, signed_zero, transposed, flushed, special, nan_in_one, overflowed, tie_or_kink,
    follows, integers, proved, default_argument, gradient_missing, gradient_masked, gradient_rule, tf32, bfloat16_inputs,
    low_accumulator, lost_precision, other_formula,
)  # fmt: skip
"""What is tried, in this order."""


def _explains(values: np.ndarray, target: np.ndarray) -> bool:
    return hypotheses.explains(values, target)


def _off_by(e: Evidence) -> float:
    return float(np.nanmax(distance(e.got, e.want), initial=0.0))


def _as_rounded(got: np.ndarray, want: np.ndarray) -> bool:
    """Return whether one result is the other times a number so near to one that rounding to float32 makes it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        off = (got / want - 1)[np.isfinite(got) & np.isfinite(want) & (want != 0)]
    return bool(off.size) and 2.0**-30 < abs(off[0]) <= 2.0**-24 and bool(np.all(np.abs(off - off[0]) < 2.0**-44))


def _where(e: Evidence) -> str:
    """Return at which numbers a gradient differs, if they are few and not all zero."""
    named = dict(zip((f"by {name}" for name in e.numbers.names), e.numbers.theta, strict=True))
    leaf = named.get(e.output)
    if leaf is None or leaf.shape != e.got.shape:
        return ""
    there = [f"{one:.6g}" for one in np.unique(leaf[e.off])]
    few = len(there) <= FEW and any(one.strip("-0") for one in there)
    return f", where {e.output.removeprefix('by ')} is {' or '.join(there)}," if few else ""


def _points(e: Evidence) -> str:
    plain = {"zeros": "zeros", "signed zeros": "zeros of both signs", "ties": "equal numbers", "kinks": "kinks and edges",
             "nan": "numbers with NaN among them", "infinite": "numbers with infinities among them"}  # fmt: skip
    return plain.get(e.cell.data, f"{e.cell.data} numbers")
