"""Positions that begin elsewhere, and rotary angles of another base or scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from parity.explanation.claims import Claim
from parity.explanation.programs.program import Program, Step, set_result
from parity.explanation.substitution import Change
from parity.models.causes.context import Context
from parity.records import Diagnosis

OFFSETS = (1, -1, 2, -2)
COUNTS = ("arange", "iota")
ORDERED = ("lt", "le", "gt", "ge", "less", "less_equal", "greater", "greater_equal")


def propose(context: Context) -> Iterator[Diagnosis]:
    """Yield proved offsets of positions, and proved other rotary angles."""
    at = context.bench
    if at is None:
        return
    for found in (context.first(_offsets(context)), _angles(context), _angles_of_inputs(context)):
        if found is not None:
            yield found


def _offsets(context: Context) -> Iterator[Claim]:
    at = context.bench
    assert at is not None
    for framework in ("torch", "jax"):
        steps = [s for s in at.programs[framework].steps if s.name in COUNTS and s.result is not None]
        steps += [s for s in at.programs[framework].steps if _counted(s)]
        for step in steps:
            masks = _is_of_mask(step, at.programs[framework].steps)
            for by in OFFSETS:
                if masks:
                    yield _of_mask(framework, step, by)
                    continue
                yield Claim(
                    Change(framework, {step.key: set_result(partial(np.add, by))}),
                    "position offset",
                    "positions that begin at 0" if step.name in COUNTS else "positions as they are",
                    f"positions {abs(by)} {'more' if by > 0 else 'less'}",
                    "Begin positions alike: BERT's are 0, 1, ..; RoBERTa's begin after the padding id.",
                )


def _of_mask(framework: str, step: Step, by: int) -> Claim:
    return Claim(
        Change(framework, {step.key: set_result(partial(np.add, by))}),
        "mask: diagonal",
        f"a mask cut by positions ({step.name}) that begin at 0",
        f"positions {abs(by)} {'more' if by > 0 else 'less'}, which is another diagonal",
        "Cut the mask along the same diagonal: tril(k=0), or query >= key, sees itself.",
    )


def _is_of_mask(step: Step, steps: Sequence[Step]) -> bool:
    """Return whether positions are only compared in order, as a causal mask does, and are no input of anything else."""
    reached, compared = {step.key}, False
    for other in steps:
        if other.result is None or not reached & set(other.sources.values()):
            continue
        if other.name in ORDERED:
            compared = True
        elif other.result.dtype.kind in "iu":
            reached.add(other.key)
        else:
            return False
    return compared


def _counted(step: Step) -> bool:
    """Return whether a step returns consecutive integers along its last axis, in every row."""
    result = step.result
    if result is None or result.dtype.kind not in "iu" or not 1 <= result.ndim <= 4 or result.size < 3:
        return False
    rows = result.reshape(-1, result.shape[-1])
    return result.shape[-1] > 2 and bool(np.all(np.diff(rows, axis=1) == 1)) and step.name not in COUNTS


def _angles(context: Context) -> Diagnosis | None:
    """Put JAX's cosines and sines into torch's program: with them the two agree, if angles are what differs."""
    at = context.bench
    assert at is not None
    torch_program, jax_program = at.programs["torch"], at.programs["jax"]
    steps = [step for step in torch_program.steps if step.result is not None]
    mine = {name: [step for step in steps if step.name == name] for name in ("cos", "sin")}
    if not mine["cos"] or not mine["sin"]:
        return None
    shape = mine["cos"][0].result.shape  # type: ignore[union-attr]
    for cos, sin in _tables(jax_program, shape):
        edits = {step.key: set_result(partial(_in_place_of, values=cos)) for step in mine["cos"]}
        edits |= {step.key: set_result(partial(_in_place_of, values=sin)) for step in mine["sin"]}
        if at.proves(Change("torch", edits)):
            return _told(mine["cos"][0].result, mine["sin"][0].result, cos, sin)
    return None


def _angles_of_inputs(context: Context) -> Diagnosis | None:
    """Do the same where torch's module is given its cosines and sines, and JAX's makes its own."""
    at = context.bench
    assert at is not None
    arrays = [np.asarray(one, np.float64) if one.dtype.kind == "f" else one for one in context.pair.arrays]
    tables = [k for k, one in enumerate(arrays) if one.dtype.kind == "f" and _bounded(one)]
    for c in (k for k in tables if _first_row(arrays[k], 1.0)):
        for s in (k for k in tables if _first_row(arrays[k], 0.0) and arrays[k].shape == arrays[c].shape):
            for cos, sin in _tables(at.programs["jax"], arrays[c].shape):
                given = {c: torch.from_numpy(np.array(cos)), s: torch.from_numpy(np.array(sin))}

                def run(*own: Any, given: dict[int, torch.Tensor] = given) -> Any:
                    return context.torch(*(given.get(k, one) for k, one in enumerate(own)))

                if context.agree(run):
                    return _told(arrays[c], arrays[s], cos, sin)
    return None


def _tables(program: Program, shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield cosines and sines of a shape that stand in a JAX program, as steps' results or as what goes into one."""
    arrays: list[np.ndarray] = []
    for step in program.steps:
        for values in (step.result, *step.operands.values()):
            if isinstance(values, np.ndarray) and values.dtype.kind == "f" and _bounded(values):
                arrays.append(values)
    cosines = [a for a in arrays if _first_row(a, 1.0)]
    sines = [a for a in arrays if _first_row(a, 0.0)]
    for c in cosines[:6]:
        for s in sines[:6]:
            if c.shape != s.shape:
                continue
            fitted = _fit(c, s, shape)
            if fitted is not None and np.allclose(fitted[0] ** 2 + fitted[1] ** 2, 1, atol=1e-5):
                yield fitted


def _in_place_of(_: np.ndarray, values: np.ndarray) -> np.ndarray:
    return values


def _bounded(values: np.ndarray) -> bool:
    return values.ndim >= 2 and values.size > 3 and bool(np.all(np.abs(values) <= 1 + 1e-6))


def _first_row(values: np.ndarray, number: float) -> bool:
    squeezed = _of_one(values)
    return squeezed.ndim == 2 and bool(np.all(squeezed[0] == number)) and bool(np.any(squeezed[1:] != number))


def _of_one(values: np.ndarray) -> np.ndarray:
    """Return a table without axes of length one, and of one example where all have the same."""
    squeezed = values.reshape([n for n in values.shape if n > 1] or [1])
    return squeezed[0] if squeezed.ndim == 3 and bool(np.all(squeezed == squeezed[:1])) else squeezed


def _fit(c: np.ndarray, s: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return tables (time, channel) in another shape: repeated for halves, or each channel twice."""
    c, s = _of_one(c), _of_one(s)
    wide = [n for n in shape if n > 1]
    if len(wide) == 3 and wide[0] != c.shape[0]:
        wide = wide[1:]
    if len(wide) != 2 or c.shape[0] < wide[0]:
        return None
    c, s = c[: wide[0]], s[: wide[0]]
    if c.shape[1] * 2 == wide[1]:
        c, s = np.concatenate([c, c], 1), np.concatenate([s, s], 1)
    elif c.shape[1] == 2 * wide[1]:
        c, s = c[:, : wide[1]], s[:, : wide[1]]
    if c.shape[1] != wide[1]:
        return None
    try:
        target = np.broadcast_to(c.reshape([1] * (len(shape) - 2) + list(c.shape)), shape)
        return np.array(target), np.array(np.broadcast_to(s.reshape([1] * (len(shape) - 2) + list(s.shape)), shape))
    except ValueError:
        return None


def frequencies(cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Return the angles of position one, by channel, of tables whose last axes are time and channel.

    Example:
        >>> turn = np.arange(3)[:, None] * np.array([1.0, 0.01])
        >>> frequencies(np.cos(turn), np.sin(turn)).round(4)
        array([1.  , 0.01])
    """
    c, s = (one.reshape(-1, *one.shape[-2:])[0] for one in (cos, sin))
    return np.arctan2(s[1], c[1])


def base_of(angles: np.ndarray) -> float | None:
    """Return the base of rotary frequencies base^(-i/n), or None where they are no such series.

    Example:
        >>> round(base_of(10000.0 ** (-np.arange(4) / 4)))
        10000
    """
    half = angles[: len(angles) // 2] if len(angles) % 2 == 0 and _alike(angles) else angles
    if len(half) < 2 or np.any(half <= 0):
        return None
    ratios = half[1:] / half[:-1]
    if not np.allclose(ratios, ratios[0], rtol=1e-3):
        return None
    return float(ratios[0] ** (-len(half)))


def _alike(angles: np.ndarray) -> bool:
    first, second = np.split(angles, 2)
    return bool(np.allclose(first, second))


def _told(cos: Any, sin: Any, jax_cos: np.ndarray, jax_sin: np.ndarray) -> Diagnosis:
    mine, theirs = frequencies(cos, sin), frequencies(jax_cos, jax_sin)
    bases = base_of(mine), base_of(theirs)
    proof = "with JAX's angles in torch the two agree."
    if all(bases) and abs(bases[0] / bases[1] - 1) > 1e-2 and abs(mine[0] / theirs[0] - 1) < 1e-3:  # type: ignore[operator]
        there, here = (f"{float(f'{one:.3g}'):g}" for one in bases)
        return Diagnosis(
            "rope base",
            f"The base of the rotary angles is {there} in torch and {here} in JAX; {proof}",
            f"Use the base {there} (rope_theta) in JAX.",
        )
    with np.errstate(all="ignore"):
        ratio = (theirs / mine)[np.isfinite(theirs / mine)]
    if ratio.size and np.allclose(ratio, ratio[0], rtol=1e-3):
        return Diagnosis(
            "rope scaling",
            f"Rotary angles in JAX are {float(ratio[0]):.4g} times torch's; {proof}",
            "Divide positions by the scaling factor (rope_scaling) in JAX as torch does.",
        )
    return Diagnosis(
        "rope angles",
        f"The rotary angles of position 1 are {np.round(mine[:4], 5).tolist()} .. in torch and "
        f"{np.round(theirs[:4], 5).tolist()} .. in JAX; {proof}",
        "Compute frequencies and their scaling (rope_theta, rope_scaling) in JAX as torch does.",
    )
