"""Steps at another place: a norm before or after a sum, an activation before a norm, a gate before a product."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.activations import ACTIVATIONS, SPELT
from parity.explanation.claims import Claim
from parity.explanation.programs.program import (
    Edit,
    Edits,
    Key,
    Operand,
    Operation,
    Program,
    Step,
    first_of,
    with_first,
)  # fmt: skip
from parity.explanation.substitution import MASKED, Bench, Change

NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm", "native_group_norm", "native_batch_norm")
MASKS = ("masked_fill", "masked_fill_", "where")
SOFTMAXES = ("_softmax", "_safe_softmax")
PLAIN = ("clone", "view", "_unsafe_view", "expand", "_to_copy", "t", "transpose", "alias", "slice", "unsqueeze")
"""Steps that only hand numbers on: nothing comes before or after them."""

PRODUCTS = {"addmm": "mat1", "mm": "self", "bmm": "self", "baddbmm": "batch1", "convolution": "input"}
"""Products, and the operand that is no weight."""

PARTS = ("split", "split_with_sizes", "unsafe_split", "slice", "select", "view", "_unsafe_view", "add")
MOST = 400
"""Places that are tried."""

FIXES = {
    "norm order": "Put the norm in one place: x + f(norm(x)) is norms first, norm(x + f(x)) norms last.",
    "operator order": "Apply the two in one order.",
}


@dataclass(frozen=True)
class _Moving:
    """A step that gives what it is given in another form, of one shape.

    Attributes:
        step: The step.
        operand: What it takes.
    """

    step: Step
    operand: Operand

    @property
    def cause(self) -> str:
        return "norm order" if self.step.name in NORMS else "operator order"


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield steps of torch's program at other places."""
    program = bench.programs["torch"]
    yield from _masks(program)
    yield from _gated(program)
    found = (
        claim for one in _movable(program) if bench.in_focus("torch", [one.step.key]) for claim in _of(program, one)
    )
    yield from itertools.islice(found, MOST)


def _movable(program: Program) -> Iterator[_Moving]:
    for step in program.steps:
        name, result = SPELT.get(step.name, step.name), step.result
        if result is None or result.dtype.kind != "f" or not result.ndim:
            continue
        operands = (
            ("input", "self") if name in NORMS or name in ACTIVATIONS else ("self", "other") if name == "mul" else ()
        )
        for operand in operands:
            if getattr(step.operands.get(operand), "shape", None) == result.shape:
                yield _Moving(step, operand)


def _of(program: Program, moving: _Moving) -> Iterator[Claim]:
    at, shape = moving.step, getattr(moving.step.result, "shape", ())
    yield _left_out(moving)  # what is left out may look like what stands where it changes nothing
    place = {step.key: number for number, step in enumerate(program.steps)}
    for step in program.steps:
        if step.key == at.key or step.result is None or step.result.dtype.kind != "f" or step.name in PLAIN:
            continue
        if place[step.key] > place[at.key]:
            if step.result.shape == shape:
                yield _claim(moving, step, None, "before", "after")
        else:
            for operand, values in step.operands.items():
                if isinstance(values, np.ndarray) and values.shape == shape and values.dtype.kind == "f":
                    yield _claim(moving, step, operand, "after", "before")


def _left_out(moving: _Moving) -> Claim:
    name = SPELT.get(moving.step.name, moving.step.name)
    what = "norm" if name in NORMS else "factor" if name == "mul" else "activation"
    other = moving.step.operands.get("other" if moving.operand == "self" else "self")
    by = f" by {other:.12g}" if what == "factor" and isinstance(other, int | float) else ""
    return Claim(
        Change("torch", {moving.step.key: _first_taken(moving.operand)}),
        f"{what} left out",
        f"a step ({name}{by})",
        "none",
        f"Apply {name}{by} on both sides.",
    )


def _claim(moving: _Moving, step: Step, operand: Operand | None, has: str, needs: str) -> Claim:
    edits = partial(_edits, moving=moving, to=step.key, operand=operand)
    return Claim(
        Change("torch", {moving.step.key: _first_taken(moving.operand)}, edits_for=edits),
        moving.cause,
        f"{moving.step.name} {has} {step.name}",
        f"it {needs} {step.name}",
        FIXES[moving.cause],
    )


def recorded(program: Program, numbers: Any, key: Key) -> dict[Key, Operation]:
    """Return a step as it runs on some numbers."""
    found: dict[Key, Operation] = {}

    def keep(operation: Operation) -> Any:
        copies = {o: v.clone() if hasattr(v, "clone") else v for o, v in operation.operands.items()}
        found[key] = Operation(operation.name, copies, operation.compute, operation.numpy, operation.like)
        return operation.compute(operation.operands)

    program.run(numbers, {key: keep})
    return found


def _edits(program: Program, numbers: Any, moving: _Moving, to: Key, operand: Operand | None) -> Edits:
    held = recorded(program, numbers, moving.step.key).get(moving.step.key)
    if held is None:
        return {}

    def again(values: Any) -> Any:
        return first_of(held.compute({**held.operands, moving.operand: values.clone()}))

    def there(operation: Operation) -> Any:
        if operand is not None:
            return operation.compute({**operation.operands, operand: again(operation.operands[operand])})
        result = operation.compute(operation.operands)
        return with_first(result, again(first_of(result)))

    return {moving.step.key: _first_taken(moving.operand), to: there}


def _first_taken(operand: Operand) -> Edit:
    def edit(operation: Operation) -> Any:
        taken = operation.operands[operand]
        if operation.name in NORMS:
            return with_first(operation.compute(operation.operands), taken)
        return taken.clone()

    return edit


def _masks(program: Program) -> Iterator[Claim]:
    """Yield masks that are laid on what a softmax returns, and not on the scores: the rest does not add up to one."""
    by_key: Mapping[Key, Step] = {step.key: step for step in program.steps}
    for step in program.steps:
        source = by_key.get(step.sources.get("self")) if step.name in SOFTMAXES else None
        if source is None or source.name not in MASKS or source.result is None or step.result is None:
            continue
        kept = np.abs(source.result) < MASKED
        if kept.all() or kept.shape != step.result.shape:
            continue
        shape = source.result.shape
        names = ("self", "other")
        scores = next((o for o in names if getattr(source.operands.get(o), "shape", None) == shape), "self")
        state: dict[str, Any] = {}

        def unmasked(operation: Operation, scores: Operand = scores, state: dict[str, Any] = state) -> Any:
            state["kept"] = abs(operation.compute(operation.operands)) < MASKED
            return operation.operands[scores].clone()

        def masked(operation: Operation, state: dict[str, Any] = state) -> Any:
            return operation.compute(operation.operands) * state["kept"]

        yield Claim(
            Change("torch", {source.key: unmasked, step.key: masked}),
            "mask: after the softmax",
            "scores that are masked before the softmax",
            "a mask after it, so that the rest does not add up to one",
            "Mask the scores with -inf before the softmax on both sides.",
        )


def _gated(program: Program) -> Iterator[Claim]:
    """Yield factors that what goes into a product is multiplied by, and not what comes out: a reset gate before it."""
    by_key = {step.key: step for step in program.steps}
    for step in program.steps:
        for factor, made in (("self", "other"), ("other", "self")) if step.name == "mul" else ():
            shape = getattr(step.operands.get(factor), "shape", ())
            if not shape or getattr(step.operands.get(made), "shape", None) != shape:
                continue
            chain = [by_key[step.sources[made]]] if made in step.sources else []
            while chain and chain[-1].name in PARTS and "self" in chain[-1].sources and len(chain) < 5:
                chain.append(by_key[chain[-1].sources["self"]])
            given = PRODUCTS.get(chain[-1].name, "") if chain else ""
            if given and np.shape(chain[-1].operands[given]) == np.shape(step.operands[factor]):
                edits = partial(_gate_first, at=step, chain=chain, factor=factor, made=made)
                yield Claim(
                    Change("torch", {step.key: _first_taken(made)}, edits_for=edits),
                    "operator order",
                    f"a factor ({step.name}) of what {chain[-1].name} returns",
                    "a factor of what goes in",
                    "Multiply at one place: the reset gate of torch's GRU comes after the product, r * (h @ W + b).",
                )


def _gate_first(program: Program, numbers: Any, at: Step, chain: list[Step], factor: str, made: str) -> Edits:
    held: dict[Key, Operation] = {}
    for one in chain:
        held |= recorded(program, numbers, one.key)
    if len(held) != len(chain):
        return {}

    def edit(operation: Operation) -> Any:
        product = held[chain[-1].key]
        given = PRODUCTS[product.name]
        usual = product.compute(product.operands)
        value = product.compute({**product.operands, given: operation.operands[factor] * product.operands[given]})
        for one in reversed(chain[:-1]):
            usual, value = (held[one.key].compute({**held[one.key].operands, "self": v}) for v in (usual, value))
            if isinstance(value, tuple | list):
                which = next(at for at, v in enumerate(usual) if _alike(v, operation.operands[made]))
                usual, value = usual[which], value[which]
        return value

    return {at.key: edit}


def _alike(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.allclose(other))
