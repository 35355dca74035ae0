"""Where a small number (eps) stands beside a root, or a difference, and where it stands on one side only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from parity.explanation.claims import Claim
from parity.explanation.constants import reduced
from parity.explanation.programs.program import Constant, Key, Operand, Step, set_result, set_unary
from parity.explanation.substitution import Bench, Change

SMALL = 1e-2
"""Constants that are taken for an eps are smaller."""

# Where eps stands beside a root: sqrt(v + eps), sqrt(v) + eps, max(sqrt(v), eps).

PLACES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "under the root": lambda root, eps: np.sqrt(root**2 + eps),
    "added to the root": lambda root, eps: root + eps,
    "as the least root": np.maximum,
}
NOW = {
    "add": "added to the root",
    **dict.fromkeys(("max", "maximum", "clamp", "clamp_min", "clip"), "as the least root"),
}
ROOTS = ("sqrt", "rsqrt", "norm", "linalg_vector_norm", "linalg_norm", "pow", "abs", "std")
NEAR = 2
"""So many steps before a sum a root is looked for."""
EPS_FIX = (
    "Put eps in one place: sqrt(v + eps) in norms, sqrt(v) + eps in torch's optimizers (optax: eps, not eps_root)."
)


def places(bench: Bench, framework: str) -> Iterator[Claim]:
    """Yield every small constant of one side at another place beside a root, or left out."""
    small = {name: [c for c in one.constants if 0 < c.value <= SMALL] for name, one in bench.programs.items()}
    mine = small.pop(framework)
    ((_, theirs),) = small.items()
    by_key = {step.key: step for step in bench.programs[framework].steps}
    roots = [step for step in by_key.values() if step.name in ("sqrt", "rsqrt")]
    together: dict[tuple[float, str], list[Constant]] = {}
    for constant in mine:
        together.setdefault((constant.value, constant.name), []).append(constant)
    # All of one eps first: each step of an optimizer has it.
    groups = [*(group for group in together.values() if len(group) > 1), *([constant] for constant in mine)]
    for group in groups:
        constant = group[0]
        values = dict.fromkeys([constant.value, *(c.value for c in theirs)])
        others = {c.step: o for c in group if (o := _array(by_key[c.step], c.operand)) is not None}
        step = by_key[constant.step]
        if step.name.rstrip("_") in NOW and others.keys() == {c.step for c in group}:
            now = NOW[step.name.rstrip("_")]
            if not theirs:  # then any least root, too small to count, would fit as well
                none = Change(framework, {key: set_unary(np.array, o) for key, o in others.items()})
                source = by_key.get(step.sources.get(others[step.key]))
                where, fix = _place(by_key, source, now)
                yield Claim(none, "default argument: eps", f"eps = {constant.value:.12g} {where}", "none", fix)
            for where, eps in itertools.product(PLACES, values) if _rooted(by_key, step) else ():
                if where != now:
                    placed = partial(_placed, where=where, eps=eps)
                    change = Change(framework, {key: set_unary(placed, o) for key, o in others.items()})
                    yield _claim_eps(change, constant.value, now, eps, where)
            # A layer norm by std has another divisor as well.
            for n, eps in itertools.product(reduced(bench), values) if _rooted(by_key, step) else ():
                biased = partial(_biased, part=(n - 1) / n, eps=eps)
                change = Change(framework, {key: set_unary(biased, o) for key, o in others.items()})
                has = f"{now} of a variance over n - 1, with n = {n},"
                yield _claim_eps(change, constant.value, has, eps, "under the root of one over n")
        made = {name: [root for root in roots if root.name == name] for name in ("sqrt", "rsqrt")}
        pairs = [[root] for root in roots] if len(group) == 1 else [one for one in made.values() if len(one) > 1]
        for several in pairs if step.name == "add" else ():
            for where, eps in itertools.product(("added to the root", "as the least root"), values):
                edit = set_unary(
                    partial(_under, now=constant.value, where=where, eps=eps, inverse=several[0].name == "rsqrt"),
                    0 if framework == "jax" else "self",
                )
                change = Change(framework, {root.key: edit for root in several})
                yield _claim_eps(change, constant.value, "under the root", eps, where)


def _place(by_key: Mapping[Key, Step], source: Step | None, now: str) -> tuple[str, str]:
    """Return in words where an eps stands that the other side does not have, and what to do."""
    if source is not None and source.name == "sub":
        return "added to a difference", EPS_FIX
    near = [source]
    for _ in range(NEAR):  # a root may be divided, or laid out, before eps is added
        near += [by_key.get(key) for step in near if step is not None for key in step.sources.values()]
    if now != NOW["add"] or any(step is not None and step.name.rstrip("_") in ROOTS for step in near):
        return now, EPS_FIX
    return "added", "Add it on both sides, or on neither."


def _rooted(by_key: Mapping[Key, Step], step: Step) -> bool:
    """Return whether what an eps is added to may be a root: what is on its way into a logarithm is none."""
    return not any(step.key in one.sources.values() and one.name.startswith("log") for one in by_key.values())


def _array(step: Step, constant: Operand) -> Operand | None:
    """Return the operand of a step that is an array, beside the constant."""
    return next((o for o, v in step.operands.items() if o != constant and isinstance(v, np.ndarray)), None)


def _placed(root: np.ndarray, where: str, eps: float) -> np.ndarray:
    return PLACES[where](root, eps)


def _biased(root: np.ndarray, part: float, eps: float) -> np.ndarray:
    return np.sqrt(root**2 * part + eps)


def _under(values: np.ndarray, now: float, where: str, eps: float, inverse: bool) -> np.ndarray:
    root = PLACES[where](np.sqrt(values - now), eps)
    return 1 / root if inverse else root


def _claim_eps(change: Change, now: float, place: str, eps: float, where: str) -> Claim:
    return Claim(change, "default argument: eps", f"eps = {now:.12g} {place}", f"{eps:.12g} {where}", EPS_FIX)


def distances(bench: Bench) -> Iterator[Claim]:
    """Yield eps that torch adds to a difference before its norm, under the root: as pairwise_distance and optax do."""
    by_key = {step.key: step for step in bench.programs["torch"].steps}
    norms = {
        step.key: source
        for step in by_key.values()
        if step.name in ("norm", "linalg_vector_norm")
        and (source := by_key.get(step.sources.get("self"))) is not None
        and source.name == "add" and isinstance(source.operands["other"], float)
    }  # fmt: skip
    for eps in dict.fromkeys(c.value for c in bench.programs["jax"].constants if 0 < c.value <= SMALL) if norms else ():
        under = partial(_under_root, eps=eps)
        edits = dict.fromkeys((one.key for one in norms.values()), set_unary(np.array, "self"))
        now = next(iter(norms.values())).operands["other"]
        change = Change("torch", {**edits, **dict.fromkeys(norms, set_result(under))})
        yield _claim_eps(change, now, "added to a difference", eps, "under the root")


def _under_root(root: np.ndarray, eps: float) -> np.ndarray:
    return np.sqrt(root**2 + eps)
