"""Conventions of operators that ports get wrong: how a quotient is rounded, which windows pools have.

Each is a claim that is proved by substitution, as those of `operators`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from parity.explanation import alike, eps, windows
from parity.explanation.claims import Claim
from parity.explanation.programs.program import (
    Operand,
    Operation,
    Step,
    set_operand,
    set_result,
    set_unary,
)
from parity.explanation.substitution import Bench, Change

MASK_FIX = "Write masks with the same comparison; check whether True means keep or drop, and the diagonal."
MASKED = -1e9
"""Scores at most as large are masked."""

ROUND: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "trunc": np.trunc,
    "round": np.round,
    "ceil": np.ceil,
}
ROUND_FIX = (
    "Round alike: // and % go with the floor in Python, torch and JAX; lax.div, lax.rem, fmod and casts truncate."
)
HALVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "to even": np.round,
    "up": lambda x: np.floor(x + 0.5),
    "away from zero": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
}
HALF_FIX = (
    "Round halves alike: torch.round and jnp.round go to the even neighbour, floor(x + 0.5) goes up, and jax.lax.round "
    "away from zero unless it is told otherwise."
)
MOST = 64
"""Of the claims of one kind so many are tried."""


def claims(bench: Bench) -> Iterator[Claim]:
    """Yield what may be another convention, the commonest first."""
    yield from exchanged(bench)
    yield from windows.sides(bench.programs["torch"].steps, of_window=True)
    yield from _repeats(bench.programs["torch"].steps)
    for framework in ("torch", "jax"):
        yield from itertools.islice(eps.places(bench, framework), MOST)
    yield from eps.distances(bench)
    for step in bench.programs["torch"].steps:
        for name, made in OF_TORCH.items():
            if step.name.removeprefix("_") == name:
                yield from made(step)
    for framework in ("torch", "jax"):
        yield from _quantiles(framework, bench.programs[framework].steps)
        yield from _roundings(framework, bench.programs[framework].steps)
        yield from _diagonals(bench, framework)
        yield from _masks(framework, bench.programs[framework].steps)


def exchanged(bench: Bench) -> Iterator[Claim]:
    """Yield outputs in another order."""
    outputs = bench.outputs["jax"][0]
    for one, two in itertools.combinations(outputs, 2):
        if outputs[one].shape == outputs[two].shape and one.rpartition(".")[2] not in ("real", "imag"):

            def swapped(found: dict[str, np.ndarray], one: str = one, two: str = two) -> dict[str, np.ndarray]:
                return {**found, one: found[two], two: found[one]}

            yield Claim(
                Change("jax", outputs=swapped),
                "structure: order of outputs",
                f"{one} and {two}",
                "them exchanged",
                "Return the outputs in the same order.",
            )


def averages(bench: Bench) -> Iterator[Claim]:
    """Yield sums over one axis in the place of the mean over all: reduction='batchmean' is the sum over classes."""
    for step in bench.programs["torch"].steps:
        values = np.asarray(step.operands.get("self"))
        plain = step.name == "mean" and not step.operands.get("dim")
        if not values.ndim or not (plain or ("loss" in step.name and step.operands.get("reduction") == 1)):
            continue
        for axis in (None, *range(values.ndim if values.ndim > 1 else 0)):
            yield Claim(
                Change("torch", {step.key: partial(_summed, axis=axis)}),
                "default argument: reduction",
                f"the mean over all {values.size} numbers ({step.name})",
                "their sum" if axis is None else f"their sum over axis {axis}, and the mean of that",
                "Say reduction on both sides: for kl_div reduction='batchmean' is the sum over classes and the mean of "
                "the rest, 'mean' divides by the classes too.",
            )


def _summed(operation: Operation, axis: int | None) -> Any:
    o = operation.operands
    values = operation.numpy(o["self"] if operation.name == "mean" else operation.compute({**o, "reduction": 0}))
    return operation.like(values.sum(axis).mean(), o["self"])


REPEAT = (
    "torch's x.repeat and tile lay copies of the whole side by side, as jnp.tile; jnp.repeat repeats each element, as "
    "torch.repeat_interleave."
)


def _repeats(steps: Any) -> Iterator[Claim]:
    """Yield each element repeated in the place of copies of the whole, and the other way around."""
    by_key = {step.key: step for step in steps}
    for step in steps:
        if step.name == "repeat" and len(step.operands["repeats"]) == np.ndim(step.operands["self"]):
            change = Change("torch", {step.key: _each_repeated})
            yield Claim(
                change, "another formula: repeat", "copies of the whole (repeat)", "each element repeated", REPEAT
            )
        chain = step
        while chain.name in ("view", "_unsafe_view", "clone") and "self" in chain.sources:
            chain = by_key[chain.sources["self"]]
        before = by_key.get(chain.sources.get("self")) if chain.name == "expand" and chain is not step else None
        if before is not None and before.name == "unsqueeze" and step.name in ("view", "_unsafe_view"):
            change = Change("torch", {step.key: partial(_whole_repeated, axis=before.operands["dim"])})
            yield Claim(
                change, "another formula: repeat", "each element repeated (repeat_interleave)", "copies of the whole",
                REPEAT,
            )  # fmt: skip


def _each_repeated(operation: Operation) -> Any:
    values = operation.numpy(operation.operands["self"])
    for axis, count in enumerate(operation.operands["repeats"]):
        values = np.repeat(values, count, axis)
    return operation.like(values, operation.operands["self"])


def _whole_repeated(operation: Operation, axis: int) -> Any:
    values = operation.numpy(operation.operands["self"])
    whole = np.swapaxes(values, axis, axis - 1).reshape(operation.compute(operation.operands).shape)
    return operation.like(whole, operation.operands["self"])


def _roundings(framework: str, steps: Any) -> Iterator[Claim]:
    """Yield other ways to round, and quotients and remainders that go with them."""
    cause = "another formula: rounding"
    for step in steps:
        o = step.operands
        if framework == "torch" and step.name in ("remainder", "fmod"):
            other = {"remainder": np.fmod, "fmod": np.mod}[step.name]
            has, needs = "the divisor's sign", "the dividend's"
            if step.name == "fmod":
                has, needs = needs, has
            yield Claim(
                Change(framework, {step.key: _binary(other)}),
                cause,
                f"a remainder with {has} ({step.name})",
                needs,
                ROUND_FIX,
            )
        elif framework == "torch" and (step.name == "floor_divide" or o.get("rounding_mode")):
            now = str(o.get("rounding_mode") or "floor")
            needs = {"floor": "trunc", "trunc": "floor"}[now]
            yield Claim(
                Change(framework, {step.key: _binary(partial(_quotient, how=needs))}),
                cause,
                f"a quotient rounded by {now} ({step.name})",
                needs,
                ROUND_FIX,
            )
        elif step.name in ROUND and step.result is not None and step.result.dtype.kind == "f":
            operand = 0 if framework == "jax" else "self"
            for name, function in ROUND.items():
                if name != step.name:
                    yield Claim(
                        Change(framework, {step.key: set_unary(function, operand)}), cause, step.name, name, ROUND_FIX
                    )
            halves = [one for one, way in HALVES.items() if step.name == "round" and _gives(way, step, operand)]
            for name, function in HALVES.items() if len(halves) == 1 else ():
                if name not in halves:
                    yield Claim(
                        Change(framework, {step.key: set_unary(function, operand)}), cause,
                        f"halves rounded {halves[0]} (round)", f"them rounded {name}", HALF_FIX,
                    )  # fmt: skip


def _gives(function: Callable[[np.ndarray], np.ndarray], step: Step, operand: Operand) -> bool:
    return step.result is not None and np.array_equal(function(step.operands[operand]), step.result, equal_nan=True)


def _quotient(a: np.ndarray, b: np.ndarray, how: str) -> np.ndarray:
    if np.result_type(a, b).kind in "iu":
        floor = a // b
        return floor + ((floor < 0) & (floor * b != a)) if how == "trunc" else floor
    return ROUND[how](a / b)


def _binary(function: Callable[[Any, Any], np.ndarray]) -> Callable[[Operation], Any]:
    def edit(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        a, b = (operation.numpy(operation.operands[place]) for place in ("self", "other"))
        return operation.like(function(a, b), result)

    return edit


def _diagonals(bench: Bench, framework: str) -> Iterator[Claim]:
    """Yield other offsets of positions, as `jnp.tril` adds them before it compares."""
    by_key = {step.key: step for step in bench.programs[framework].steps}
    compared = {
        source for step in by_key.values() if step.name in ("ge", "gt", "le", "lt") for source in step.sources.values()
    }
    for constant in bench.programs[framework].constants:
        result = by_key[constant.step].result
        if constant.step not in compared or by_key[constant.step].name not in ("add", "sub"):
            continue
        if result is None or result.dtype.kind not in "iu" or result.ndim < 2:
            continue
        apart = abs(result.shape[-1] - result.shape[-2])
        for offset in dict.fromkeys((0, 1, -1, apart, -apart, 2, -2)):
            if offset != constant.value:
                yield Claim(
                    Change(framework, {constant.step: set_operand((constant.operand, offset))}),
                    "another formula: mask",
                    f"the diagonal {constant.value:g} of a mask",
                    f"{offset}",
                    f"{MASK_FIX} With a cache the diagonal is the number of keys less that of queries.",
                )


def _masks(framework: str, steps: Any) -> Iterator[Claim]:
    """Yield scores without the mask that is added to them."""
    for step in steps:
        floats = {o: v for o, v in step.operands.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        if step.name != "add" or len(floats) != 2 or step.result is None:
            continue
        for (_, mask), (scores, values) in itertools.permutations(floats.items()):
            if mask.size > 1 and np.any(mask <= MASKED) and values.shape == step.result.shape:
                yield Claim(
                    Change(framework, {step.key: partial(_only, operand=scores)}),
                    "another formula: mask",
                    "a mask that is added to the scores (add)",
                    "none",
                    "Mask on both sides: is_causal= and attn_mask= in torch, is_causal= and mask= in JAX.",
                )


def _quantiles(framework: str, steps: Any) -> Iterator[Claim]:
    """Yield quantiles that are not interpolated: the rank is rounded."""
    if not any(step.name == "sort" for step in steps):
        return
    for step in steps:
        rank = step.result
        if step.name == "mul" and rank is not None and rank.dtype.kind == "f" and rank.ndim <= 1 and np.any(rank % 1):
            for how, name in (("floor", "lower"), ("ceil", "higher"), ("round", "nearest")):
                yield Claim(
                    Change(framework, {step.key: set_result(ROUND[how])}),
                    "default argument: interpolation",
                    "a quantile between two numbers",
                    f"the {name} one",
                    "Pass interpolation= to torch.quantile, method= to jnp.quantile.",
                )


def _only(operation: Operation, operand: Operand) -> Any:
    return operation.operands[operand]


# Operators of torch.


def _softplus(step: Step) -> Iterator[Claim]:
    if (beta := step.operands.get("beta", 1)) != 1:
        yield Claim(
            Change("torch", {step.key: set_operand(("beta", 1))}),
            "default argument: beta",
            f"beta = {beta:g} of softplus",
            "1",
            "jax.nn.softplus has no beta: softplus(beta * x) / beta.",
        )


def _ignored(step: Step) -> Iterator[Claim]:
    target, label = step.operands.get("target"), step.operands.get("ignore_index")
    if not isinstance(target, np.ndarray) or step.operands.get("reduction") != 1 or not np.any(target == label):
        return
    share = float(np.mean(target != label))
    yield Claim(
        Change("torch", {step.key: set_operand(("ignore_index", -100))}),
        "default argument: ignore_index",
        f"labels {label} that do not count",
        "them like all others",
        "Leave them out on both sides: sum(losses * mask) / sum(mask).",
    )
    yield Claim(
        Change("torch", {step.key: set_result(lambda loss: loss * share)}),
        "default argument: ignore_index",
        f"a mean over the labels that are not {label}",
        "one over all labels",
        "Divide by the number of labels that count: sum(losses * mask) / sum(mask).",
    )


def _with_first(result: Any, first: Any) -> Any:
    """Return a result, or several, of which the first is another."""
    return type(result)([first, *result[1:]]) if isinstance(result, tuple | list) else first


def _median(step: Step) -> Iterator[Claim]:
    axis = step.operands.get("dim")

    def middle(operation: Operation) -> Any:
        result = operation.compute(operation.operands)
        values = operation.numpy(operation.operands["self"])
        mean = np.median(values, axis=axis, keepdims=bool(operation.operands.get("keepdim")))
        return _with_first(result, operation.like(mean, result[0] if isinstance(result, tuple | list) else result))

    yield Claim(
        Change("torch", {step.key: middle}),
        "default argument: median of an even count",
        "the lower of the two middle values",
        "their mean",
        "Use torch.quantile(x, 0.5), or jnp.quantile(x, 0.5, method='lower').",
    )


def _adaptive(step: Step) -> Iterator[Claim]:
    """Yield windows of one size and stride in the place of adaptive ones, which overlap where sizes do not divide."""
    import torch.nn.functional as F

    pool: Any = F.avg_pool2d if "avg" in step.name else F.max_pool2d
    inner, outer = step.operands["self"].shape[-2:], step.operands["output_size"]
    if all(i % o == 0 for i, o in zip(inner, outer, strict=True)):
        return
    stride = [i // o for i, o in zip(inner, outer, strict=True)]
    rest = [i - (o - 1) * s for i, o, s in zip(inner, outer, stride, strict=True)]
    for window in (stride, rest):

        def pooled(operation: Operation, window: list[int] = window) -> Any:
            result = operation.compute(operation.operands)
            made = pool(operation.operands["self"], window, stride)[..., : outer[0], : outer[1]]
            return _with_first(result, made)

        yield Claim(
            Change("torch", {step.key: pooled}),
            "another formula: pooling",
            f"adaptive windows ({step.name})",
            f"windows of {tuple(window)} with stride {tuple(stride)}",
            "Where sizes do not divide, adaptive windows overlap: from floor(i n / m) to ceil((i + 1) n / m).",
        )


def _convolution(step: Step) -> Iterator[Claim]:
    o = step.operands
    kernel = o["weight"].shape[2:]
    if o["transposed"]:
        yield from _crops(step)
        return
    for dilation in (1, 2, 3, 4):
        before = o["dilation"] * (len(kernel) // len(o["dilation"]))
        padding = o["padding"] * (len(kernel) // len(o["padding"]))
        wider = [2 * p + (dilation - d) * (k - 1) for p, d, k in zip(padding, before, kernel, strict=True)]
        if dilation not in before and all(one >= 0 and one % 2 == 0 for one in wider):
            edit = set_operand(("dilation", [dilation] * len(kernel)), ("padding", [one // 2 for one in wider]))
            yield Claim(
                Change("torch", {step.key: edit}),
                "default argument: dilation",
                f"dilation {before[0]}",
                f"{dilation}",
                "Pass dilation= to torch, rhs_dilation= or kernel_dilation= to JAX.",
            )


def _crops(step: Step) -> Iterator[Claim]:
    """Yield transposed convolutions from which the other end is cut off."""
    import torch.nn.functional as F

    o = step.operands
    count = o["weight"].ndim - 2
    padding = o["padding"] * (count // len(o["padding"]))
    for first in range(max(o["weight"].shape[2:])):
        if [first] * count == padding or step.result is None:
            continue

        def cropped(operation: Operation, first: int = first) -> Any:
            usual = operation.compute(operation.operands)
            whole = operation.compute({**operation.operands, "padding": [0] * count, "output_padding": [0] * count})
            missing = [
                n
                for size, have in zip(usual.shape[:1:-1], whole.shape[:1:-1], strict=True)
                for n in (0, max(0, first + size - have))
            ]
            cut = tuple(slice(first, first + size) for size in usual.shape[2:])
            return F.pad(whole, missing)[(slice(None), slice(None), *cut)]

        yield Claim(
            Change("torch", {step.key: cropped}),
            "padding",
            f"a transposed convolution less its first {padding[0]}",
            f"less its first {first}",
            "SAME and explicit pairs of lax.conv_transpose pad another end than torch's padding= and "
            "output_padding=: pass pairs (k - 1 - p, k - 1 - p + output_padding).",
        )


def _groups(step: Step) -> Iterator[Claim]:
    o = step.operands
    channels, now = o["input"].shape[1], o["group"]
    fix = (
        "Group neighbouring channels, and as many: reshape(batch, groups, channels // groups, ...) with channels first."
    )
    for count in range(1, channels + 1):
        if channels % count == 0 and count != now:
            yield Claim(
                Change("torch", {step.key: set_operand(("group", count))}),
                "default argument: groups",
                f"{now} groups",
                f"{count}",
                fix,
            )
    if 1 < now < channels:
        order = np.arange(channels).reshape(channels // now, now).T.ravel()

        def spread(operation: Operation) -> Any:
            given = operation.operands
            moved: dict[Operand, Any] = {"input": given["input"][:, order]}
            for name in ("weight", "bias"):
                if given.get(name) is not None:
                    moved[name] = given[name][order]
            first, *rest = operation.compute({**given, **moved})
            return (first[:, np.argsort(order)], *rest)

        yield Claim(
            Change("torch", {step.key: spread}),
            "arrangement: channel order",
            "groups of neighbouring channels",
            f"groups of every {now}th channel",
            fix,
        )


def _running(step: Step) -> Iterator[Claim]:
    """Yield the running variance over n in the place of that over n - 1; what is normalised has n in both."""
    if not step.operands.get("training") or step.operands.get("running_var") is None:
        return

    def biased(operation: Operation) -> Any:
        o = operation.operands
        n, kept = o["input"].numel() / o["input"].shape[1], (1 - o["momentum"]) * o["running_var"]
        result = operation.compute(o)
        o["running_var"].copy_(kept + (o["running_var"] - kept) * ((n - 1) / n))
        return result

    yield Claim(
        Change("torch", {step.key: biased}),
        "default argument: ddof",
        "a running variance that divides by n - 1",
        "one that divides by n",
        "torch's running_var has n - 1 (what it normalises with has n), Flax's has n: scale it on one side.",
    )


OF_TORCH: dict[str, Callable[[Step], Iterator[Claim]]] = {
    "softplus": _softplus,
    "nll_loss_forward": _ignored,
    "median": _median,
    "convolution": _convolution,
    "adaptive_avg_pool2d": _adaptive,
    "adaptive_max_pool2d": _adaptive,
    "native_group_norm": _groups,
    "native_batch_norm": _running,
    "smooth_l1_loss": alike.quadratic,
    "huber_loss": alike.quadratic,
    "max_pool2d_with_indices": alike.padded_pool,
    "grid_sampler_2d": alike.sampled,
    **dict.fromkeys(("hann_window", "hamming_window", "blackman_window", "bartlett_window"), windows.tapers),
}
"""Claims of single operators."""
