"""Why a result loses precision: rounded inputs, results kept in 16 bits, or a formula that cancels.

A constant that depends on the dtype (another factor in bfloat16 alone) is no loss of precision. To tell the two apart,
the program that the function has in that dtype runs in float64: the error that remains there is not rounding.
"""

from __future__ import annotations

import numpy as np

from parity.explanation import default_arguments as hypotheses
from parity.explanation.evidence import Evidence, Widened
from parity.records import Diagnosis
from parity.verdict.bounds import UNIT

LEFT = 0.5
"""The part of an error that is left in float64, from which on rounding is not what made it."""

FEW = 4
"""Numbers of which it is no chance that all are short."""


def tf32(e: Evidence) -> Diagnosis | None:
    """Inputs rounded to the 11 digits of TF32."""
    return _rounded_inputs(e, 11, "tf32 inputs", "TF32", "Set torch.set_float32_matmul_precision('highest') and "
                           "jax_default_matmul_precision='highest'.")  # fmt: skip


def bfloat16_inputs(e: Evidence) -> Diagnosis | None:
    """Inputs rounded to the 8 digits of bfloat16."""
    return _rounded_inputs(e, 8, "bfloat16 inputs", "bfloat16", "Look for a cast, autocast or a matmul precision of "
                           "bfloat16 on that side.")  # fmt: skip


def low_accumulator(e: Evidence) -> Diagnosis | None:
    """Sums kept in 16 bits."""
    if not e.same_shape or e.judged not in ("precision", "ratio", "meaning") or e.cell.dtype == "float64":
        return None
    error = float(np.nanmax(distance(e.got, e.want), initial=0.0))
    if e.cell.dtype == "float32":
        return _short(e, error)
    return None if e.judged == "meaning" else _sixteen_bits(e, error)


def _short(e: Evidence, error: float) -> Diagnosis | None:
    """Return that numbers of float32 have the digits of bfloat16, where the others have more."""
    short = e.got[np.isfinite(e.got) & (e.got != 0)]
    exact = e.want[np.isfinite(e.want) & (e.want != 0)]
    if e.judged == "meaning" and error > 2 * UNIT["bfloat16"]:
        return None  # more than bfloat16 loses: round numbers happen to be short
    if short.size < FEW or np.any(_digits_of(short) > 8) or np.all(_digits_of(exact) <= 8):
        return None
    return Diagnosis(
        "bfloat16 accumulation",
        f"Every number of {e.name} has the 8 digits of bfloat16: it was summed or stored in bfloat16.",
        "Accumulate in float32 (preferred_element_type, or a cast first).",
    )


def _sixteen_bits(e: Evidence, error: float) -> Diagnosis | None:
    """Return why a result in 16 bits is off, by its own program, run in float64."""
    wide: Widened | None = e.widened()
    value = None if wide is None else wide.outputs.get(e.output)
    if wide is None or value is None or value.shape != e.want.shape:
        return None
    left = _rms(value - e.want)
    if left > LEFT * _rms(e.got - e.want):
        factor = hypotheses.factor_of(value, e.want)
        what = f"{factor:.6g} times" if factor is not None else f"off by {_relative(left, e.want):.2g} of"
        return Diagnosis(
            "another formula" if factor is None else "constant factor",
            f"In {e.cell.dtype}, {e.who} runs another program: computed in float64, its {e.name} is {what} what it "
            "gives when it is called with float64. Rounding does not explain it.",
            f"Look for what depends on the dtype in {e.who}: a branch, a scale, an eps or a constant of that type.",
        )
    if not wide.sums:
        return None
    units = f"{error / UNIT[e.cell.dtype]:.0f} units of {e.cell.dtype}"
    return Diagnosis(
        "bfloat16 accumulation",
        f"{e.name} is off by {error:.2g} of its size, {units}: {e.who} adds in 16 bits ({', '.join(wide.sums)}). "
        "The same program in float64 is right.",
        "Accumulate in float32: cast before the sum and back after it.",
    )


def lost_precision(e: Evidence) -> Diagnosis | None:
    """Another formula, that rounds worse."""
    if not e.same_shape or e.judged not in ("precision", "ratio"):
        return None
    error = float(np.nanmax(distance(e.got, e.want), initial=0.0))
    return Diagnosis(
        "loss of precision",
        f"In {e.cell.dtype}, {e.who} is off by {_size(e, error)}; in float64 the two agree. Its formula rounds more, "
        "or cancels.",
        "Use the stable form on both sides (log1p, expm1, logsumexp, two-pass variance).",
    )


def _size(e: Evidence, error: float) -> str:
    if error <= 1:
        return f"{error:.2g} of the size of {e.name}"
    return f"{float(np.nanmax(np.abs(e.got - e.want))):.2g}, where {e.name} is zero or as good as zero"


def _rounded_inputs(e: Evidence, digits: int, cause: str, name: str, fix: str) -> Diagnosis | None:
    if not e.same_shape or e.judged not in ("precision", "ratio") or e.cell.dtype != "float32":
        return None
    plain = _rms(e.got - e.want)
    rounded = min((_rms(e.got - explained) for explained in e.with_rounded(digits)), default=plain)
    if not plain > 0 or rounded > plain / 4:
        return None
    times = f"{plain / max(rounded, 1e-300):.0f} times"
    return Diagnosis(
        cause,
        f"The error of {e.name} is that of inputs rounded to {name}: {times} smaller against the float64 function of "
        "such inputs.",
        fix,
    )


def _digits_of(values: np.ndarray) -> np.ndarray:
    mantissa = np.ldexp(np.frexp(np.abs(values))[0], 53).astype(np.int64)
    return 53 - np.log2((mantissa & -mantissa).astype(np.float64)).astype(int)


def distance(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Return the differences relative to the largest finite number of the result."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(got - want)
    size = float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0)) or 1.0
    return np.where(np.isfinite(difference), difference / size, 0.0)


def _relative(error: float, want: np.ndarray) -> float:
    return error / (_rms(want) or 1.0)


def _rms(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
