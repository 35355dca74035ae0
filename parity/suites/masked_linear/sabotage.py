"""Deliberately wrong twins: each must be rejected, by a named cell, for the stated reason.

A harness that accepts one of these proves nothing by accepting the real ones. The wrong twins are
written once, on the few parts that each world lends (`Parts` in torch_side.py and jax_side.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from maskedlinear_core import constructors, reproducible
from parity.suites.masked_linear.cases import BY_ID
from parity.suites.masked_linear.grid import plan, world_of
from parity.suites.masked_linear.records import Cell

Layer = Callable[..., Any]


@dataclass(frozen=True)
class Sabotage:
    """One wrong twin.

    Attributes:
        name: What is wrong with it.
        make: Makes the wrong layer from a world's parts and the right layer.
        case: The case of the cell that must reject it.
        transform: The transform of that cell.
        output: The output that must be found wrong.
        says: What the finding must say.
        frameworks: Where the fault can be made.
        precision: Precision of that cell.
        dtypes: Where it is a fault.
    """

    name: str
    make: Callable[[Any, Layer], Layer]
    case: str
    transform: str
    output: str
    says: str
    frameworks: tuple[str, ...] = ("torch", "jax")
    precision: str = "native"
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    def cell(self, framework: str, dtype: str = "float32") -> Cell:
        """Return the cell that must reject it; in a dtype that `plan` leaves out for the case, one like it."""
        (cell,) = plan(
            cases=[self.case], transforms=[self.transform], worlds=[f"{framework}-eager"], dtypes=["float32"],
            precisions=[self.precision],
        )  # fmt: skip
        return replace(cell, dtype=dtype)

    def subject(self, framework: str) -> dict[str, Layer]:
        """Return the wrong layer, as `parity.suites.masked_linear.run` takes it."""
        world = world_of(f"{framework}-eager")
        return {framework: self.make(world.Parts, world.SUBJECTS[BY_ID[self.case].packed])}


def _linear(x: Any, w: Any, b: Any) -> Any:
    return x @ w.T if b is None else x @ w.T + b


def _flat(array: Any) -> Any:
    return array.reshape(-1, array.shape[-1])


def _in_precision(other: Any) -> Callable[[Any, Layer], Layer]:
    """A layer that computes in another precision than it is asked for."""
    return lambda parts, honest: lambda *theta, precision, **keywords: honest(*theta, precision=other, **keywords)


def _keeps_subnormals(parts: Any, honest: Layer) -> Layer:
    # 2^20 times larger the sums are normal, and the answer is that of a layer that does not flush.
    return lambda x, w, b, **keywords: honest(x * 2.0**20, w, b * 2.0**20, **keywords) * 2.0**-20


def _rounded_on_the_way(parts: Any, honest: Layer) -> Layer:
    return lambda x, w, b, **keywords: parts.cast(parts.cast(honest(x, w, b, **keywords), "bfloat16"), "float32")


def _rounds_twice(parts: Any, honest: Layer) -> Layer:
    return lambda x, w, b, **keywords: honest(x, w, parts.zeros_like(b), **keywords) + b


def _by_rule(wrong: Callable[..., Any]) -> Callable[[Any, Layer], Layer]:
    """A layer whose backward is right but for what `wrong(parts, grads, x, w, b, mask, bias_mask, g)` makes of it."""

    def make(parts: Any, honest: Layer) -> Layer:
        def backward(x: Any, w: Any, b: Any, mask: Any, bias_mask: Any, g: Any) -> Any:
            view = parts.where(mask, w, parts.stop_gradient(w))
            d_w = _flat(g).T @ _flat(x)
            d_b = _flat(g).sum(0)
            right = {
                "input": g @ view,
                "weight": parts.where(mask, d_w, parts.zeros_like(d_w)),
                "bias": d_b if bias_mask is None else parts.where(bias_mask, d_b, parts.zeros_like(d_b)),
            }
            right |= wrong(parts, x, w, mask, g)
            return right["input"], right["weight"], right["bias"]

        rule = parts.rule(_linear, backward)

        def layer(x: Any, w: Any, b: Any = None, *, grad_mask: Any, bias_mask: Any = None, **_: Any) -> Any:
            return rule(x, w, b, parts.dense(grad_mask, w), bias_mask)

        return layer

    return make


def _with(change: Callable[..., dict[str, Any]]) -> Callable[[Any, Layer], Layer]:
    """The right layer, called with changed arguments."""

    def make(parts: Any, honest: Layer) -> Layer:
        def layer(x: Any, w: Any, b: Any = None, **keywords: Any) -> Any:
            given = {"input": x, "weight": w, "bias": b, **keywords}
            given |= change(parts, **given)
            return honest(given.pop("input"), given.pop("weight"), given.pop("bias"), **given)

        return layer

    return make


def _columns_off_by_one(parts: Any, *, grad_mask: Any, **_: Any) -> dict[str, Any]:
    return {"grad_mask": constructors.columns([int(i) + 1 for i in grad_mask.index.values])}


def _mask_on_input(parts: Any, *, input: Any, weight: Any, grad_mask: Any, **_: Any) -> dict[str, Any]:
    used = parts.dense(grad_mask, weight)[0]
    return {"input": parts.where(used, input, parts.stop_gradient(input))}


def _mask_in_forward(parts: Any, *, weight: Any, grad_mask: Any, **_: Any) -> dict[str, Any]:
    return {"weight": weight * parts.dense(grad_mask, weight)}


def _seed_fault(parts: Any, *, weight: Any, grad_mask: Any, **_: Any) -> dict[str, Any]:
    return {"grad_mask": grad_mask | constructors.columns(slice(20, None))}


def _bias_by_rows(parts: Any, *, weight: Any, grad_mask: Any, **_: Any) -> dict[str, Any]:
    return {"bias_mask": parts.dense(grad_mask, weight)[:, 0]}


def _ignored_under_vmap(parts: Any, honest: Layer) -> Layer:
    def layer(x: Any, w: Any, b: Any = None, *, grad_mask: Any, **keywords: Any) -> Any:
        return honest(x, w, b, grad_mask=parts.dense(grad_mask, w) | parts.under_vmap(x), **keywords)

    return layer


def _times_mask(parts: Any, x: Any, w: Any, mask: Any, g: Any) -> dict[str, Any]:
    # A float mask: XLA turns a product with a converted bool into a select, which is right.
    return {"weight": (_flat(g).T @ _flat(x)) * parts.cast(mask, "float32")}


def _packed_off_by_one(parts: Any, honest: Layer) -> Layer:
    def layer(x: Any, w: Any, b: Any = None, *, grad_mask: Any, **keywords: Any) -> Any:
        values = parts.pack(w, **_columns_off_by_one(parts, grad_mask=grad_mask))
        return parts.packed_linear(x, w, values, b, grad_mask=grad_mask, **keywords)

    return layer


def _matrix_learns(parts: Any, honest: Layer) -> Layer:
    def layer(x: Any, w: Any, b: Any = None, **keywords: Any) -> Any:
        return honest(x, parts.stop_gradient(w), b, **keywords) + _linear(x, w - parts.stop_gradient(w), None)

    return layer


def _values_cut_off(parts: Any, honest: Layer) -> Layer:
    def layer(x: Any, w: Any, b: Any = None, *, grad_mask: Any, **keywords: Any) -> Any:
        values = parts.stop_gradient(parts.pack(w, grad_mask=grad_mask))
        return parts.packed_linear(x, w, values, b, grad_mask=grad_mask, **keywords)

    return layer


def _plain_in_forward_mode(parts: Any, honest: Layer) -> Layer:
    def layer(x: Any, w: Any, b: Any = None, *, forward_mode: bool = False, **keywords: Any) -> Any:
        return _linear(x, w, b) if forward_mode else honest(x, w, b, **keywords)

    return layer


def _rounded_to_tf32(parts: Any, honest: Layer) -> Layer:
    def cut(array: Any) -> Any:
        high = array * (2.0**13 + 1)  # Veltkamp's splitting: the upper 11 of 24 bits
        return high - (high - array)

    return lambda x, w, b=None, **keywords: honest(cut(x), cut(w), b, **keywords)


def _bfloat16_accumulator(parts: Any, x: Any, w: Any, mask: Any, g: Any) -> dict[str, Any]:
    def add(total: Any, row_g: Any, row_x: Any) -> Any:
        return total + parts.cast(row_g[:, None] * row_x, "bfloat16")

    total = parts.fold(add, parts.cast(parts.zeros_like(w), "bfloat16"), g, x)
    total = parts.cast(total, parts.name(w))
    return {"weight": parts.where(mask, total, parts.zeros_like(total))}


def _torch_only(call: Callable[..., Any]) -> Callable[[Any, Layer], Layer]:
    def make(parts: Any, honest: Layer) -> Layer:
        def layer(x: Any, w: Any, b: Any = None, *, grad_mask: Any, **_: Any) -> Any:
            return call(parts, x, w, b, grad_mask)

        return layer

    return make


def _slice_saved(parts: Any, x: Any, w: Any, b: Any, grad_mask: Any) -> Any:
    return parts.slice_saved_in_setup_context(x, w, b, grad_mask.index.views["torch"])


_LEAK = "frozen entries are not zero"
_ANSWER = "the answer is a function of the inputs"
_BITS = "elements differ"
_BOUND = "times the bound"

SABOTAGES = (
    Sabotage("mask inverted", _with(lambda parts, *, grad_mask, **_: {"grad_mask": ~grad_mask}),
             "columns", "vjp", "by weight", _LEAK),
    Sabotage("mask ignored", _with(lambda parts, **_: {"grad_mask": constructors.columns(slice(None))}),
             "elements", "vjp", "by weight", _LEAK),
    Sabotage("one column off", _with(_columns_off_by_one), "columns", "vjp", "by weight", _LEAK),
    Sabotage("columns beyond 20 train, as in the seed", _with(_seed_fault), "wide-columns", "vjp", "by weight", _LEAK),
    Sabotage("mask on the input gradient", _with(_mask_on_input), "columns", "vjp", "by input", _BITS),
    Sabotage("mask in the forward", _with(_mask_in_forward), "columns", "forward", "output", "own linear layer"),
    Sabotage("bias mask ignored", _with(lambda parts, **_: {"bias_mask": None}), "columns", "vjp", "by bias", _LEAK),
    Sabotage("bias masked by the weight's rows", _with(_bias_by_rows), "rows", "vjp", "by bias", _BITS),
    Sabotage("mask ignored under vmap", _ignored_under_vmap, "columns", "vmap-input", "by weight", _LEAK),
    Sabotage("mask ignored in forward mode", _plain_in_forward_mode, "columns", "jvp", "tangent", _BITS),
    Sabotage("inputs rounded to TF32", _rounded_to_tf32, "wide-columns", "vjp", "by input", _BOUND),
    Sabotage("gradient times mask: NaN leaks",
             _by_rule(_times_mask),
             "elements", "non-finite", "by weight", _LEAK),
    Sabotage("gradient times mask: -0.0",
             _by_rule(_times_mask),
             "elements", "vjp", "by weight", "frozen entries are -0.0"),
    Sabotage("raw W in the backward: leaks at second order",
             _by_rule(lambda parts, x, w, mask, g: {"input": g @ w}),
             "columns", "gradient-penalty", "by weight", _LEAK),
    Sabotage("masked W in the input gradient",
             _by_rule(lambda parts, x, w, mask, g: {"input": g @ (w * mask)}),
             "columns", "vjp", "by input", _BITS),
    Sabotage("wrong transpose",
             _by_rule(lambda parts, x, w, mask, g: {"weight": (_flat(x).T @ _flat(g)).reshape(w.shape) * mask + 0.0}),
             "elements", "vjp", "by weight", _BITS),
    Sabotage("last row of the batch dropped",
             _by_rule(lambda parts, x, w, mask, g: {"weight": (g[:-1].T @ x[:-1]) * mask + 0.0}),
             "elements", "vjp", "by weight", _BITS),
    Sabotage("mean over the batch instead of the sum",
             _by_rule(lambda parts, x, w, mask, g: {"bias": _flat(g).mean(0)}),
             "blocks", "vjp", "by bias", _BITS),
    Sabotage("gradient cut off from the second order",
             _by_rule(lambda parts, x, w, mask, g: {"input": parts.stop_gradient(g @ w)}),
             "blocks", "hvp-reverse-over-reverse", "by input", _BITS),
    Sabotage("bfloat16 accumulator", _by_rule(_bfloat16_accumulator), "wide-elements", "vjp", "by weight",
             "times the"),
    Sabotage("packed entries of other columns", _packed_off_by_one, "packed-columns", "forward", "output", _BITS),
    Sabotage("the matrix under the packed values learns", _matrix_learns, "packed-columns", "vjp", "by weight", _LEAK),
    Sabotage("packed values cut off from their gradient", _values_cut_off, "packed-elements", "vjp",
             "by weight", _BITS),
    Sabotage("slice saved in setup_context", _torch_only(_slice_saved),
             "columns-bools", "hvp-reverse-over-reverse", "by input", _BITS, ("torch",)),
    Sabotage("stale vmap dimension",
             _torch_only(lambda parts, x, w, b, grad_mask: parts.stale_vmap_dimension(
                 x, w, b, parts.dense(grad_mask, w))),
             "columns-bools", "vmap-input", "output", _BITS, ("torch",)),
    Sabotage("native products for reproducible ones", _in_precision("native"), "hard-exponents-60", "forward", "output",
             _ANSWER, precision="reproducible"),
    Sabotage("more bits than the definition's", _in_precision(reproducible(bits=33)), "hard-exponents-60",
             "forward", "output", _ANSWER, precision="reproducible"),
    Sabotage("subnormal results kept", _keeps_subnormals, "hard-flushed", "forward", "output", _ANSWER, ("torch",),
             precision="reproducible"),
    Sabotage("rounded to bfloat16 on the way", _rounded_on_the_way, "hard-columns", "forward", "output", _ANSWER,
             precision="reproducible", dtypes=("float32",)),  # of bfloat16 that is the answer
    Sabotage("bias added after a second rounding", _rounds_twice, "hard-columns", "forward", "output", _ANSWER,
             precision="reproducible", dtypes=("bfloat16",)),  # float32 has digits enough for this case's answer
)  # fmt: skip
"""Every wrong twin."""
