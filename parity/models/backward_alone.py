"""The backward of each module alone: which module turns a right gradient into a wrong one.

If the outputs of two models agree and their gradients do not, each module runs backward alone: on the inputs of torch's
module, and with the same random numbers as the gradient of its output. Only this shows a `stop_gradient` or a
`custom_vjp` in a module.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from parity.models.capture.call import Call
from parity.models.matching import feed, makes_channels, pair_outputs, rearranged, relative_distance
from parity.models.runs import Judgement
from parity.records import Diagnosis

CLEAR = {"float64": 1e-7, "float32": 1e-3}
"""How far gradients are apart, relative to a typical element, that differ clearly, by what the modules compute in. In
16 bits none does, but one that is stopped."""

SECONDS = 40.0
"""How long modules are run backward, of this process' time."""


def first(judgements: Sequence[Judgement], *, double: bool, seed: int) -> tuple[Judgement, Diagnosis] | None:
    """Return the first module, in torch's order, whose backward alone is wrong while those in it are right, and why."""
    start = time.process_time()
    wrong: dict[int, tuple[float, bool]] = {}
    for at in _inner_first(judgements):
        one = judgements[at]
        if time.process_time() - start > SECONDS:
            break
        if any(child in wrong for child in one.children) or not one.agrees:
            continue
        found = _apart(one.pair.torch_calls[0], one.pair.jax_calls[0], seed)
        dtype = one.found.dtype if double else "float32"
        if found is not None and (found[1] or not found[0] <= CLEAR.get(dtype, np.inf)):
            wrong[at] = found
    if not wrong:
        return None
    at = min(wrong, key=lambda place: judgements[place].pair.torch_calls[0].order)
    return judgements[at], _diagnosis(judgements[at], *wrong[at])


def _inner_first(judgements: Sequence[Judgement]) -> list[int]:
    def depth(at: int) -> int:
        above = judgements[at].parent
        return 0 if above is None else 1 + depth(above)

    return sorted(range(len(judgements)), key=lambda at: -depth(at))


def _apart(torch_call: Call, jax_call: Call, seed: int) -> tuple[float, bool] | None:
    """Return how far apart the gradients of the inputs are, and whether JAX's are zero; None where there are none."""
    if torch_call.graph is None or jax_call.trace is None:
        return None
    try:
        return _compared(torch_call, jax_call, np.random.Generator(np.random.PCG64(seed)))
    except Exception:  # a module that cannot be run backward alone is judged by what is around it
        return None


def _compared(torch_call: Call, jax_call: Call, rng: np.random.Generator) -> tuple[float, bool] | None:
    import jax
    import jax.numpy as jnp
    import torch

    fed = feed(torch_call, jax_call)
    places = [at for at, leaf in enumerate(jax_call.inputs) if leaf.is_float and leaf.name in fed.arrays]
    sources = {leaf.name: at for at, leaf in enumerate(torch_call.inputs)}
    if not places:
        return None

    def outputs(*given: Any) -> list[Any]:
        values = list(fed.values)
        for at, value in zip(places, given, strict=True):
            values[at] = value
        return jax_call.trace(values)  # type: ignore[misc] # looked at above

    found, pull = jax.vjp(outputs, *(jnp.asarray(fed.values[at]) for at in places))
    names = list(jax_call.outputs)
    theirs = {name: np.asarray(value) for name, value in zip(names, found, strict=True)}
    placed, _, _ = pair_outputs(
        torch_call.outputs, theirs, moved=fed.moved, channels=makes_channels(torch_call.class_name)
    )
    values = [torch.from_numpy(np.array(leaf.value)) if leaf.is_array else leaf.value for leaf in torch_call.inputs]
    for at in {sources[fed.arrays[jax_call.inputs[place].name]] for place in places}:
        values[at].requires_grad_(True)
    made = torch_call.graph(values)  # type: ignore[misc] # looked at above
    cotangents = {name: np.zeros(value.shape, value.dtype) for name, value in theirs.items()}
    loss: Any = 0.0
    for one in placed:
        if one.torch.dtype.kind != "f" or not made[one.name].requires_grad:
            continue
        factor = rng.standard_normal(torch_call.outputs[one.name].shape)
        name = next(name for name in names if theirs[name] is one.jax)
        cotangents[name] = one.arranged(factor).astype(theirs[name].dtype)
        loss = loss + (made[one.name] * torch.from_numpy(factor).to(made[one.name].dtype)).sum()
    if not isinstance(loss, torch.Tensor):
        return None
    got = pull([_cotangent(cotangents[name], value) for name, value in zip(names, found, strict=True)])
    back = {at: value for at, value in enumerate(values) if isinstance(value, torch.Tensor) and value.requires_grad}
    want = dict(zip(back, torch.autograd.grad(loss, list(back.values()), allow_unused=True), strict=True))
    worst, alive, flows = 0.0, False, False
    for array, place, source in _matched(got, places, jax_call, fed, sources, torch_call):
        gradient = want[source]
        mine = np.zeros(torch_call.inputs[source].value.shape) if gradient is None else gradient.detach().numpy()
        arranged = _as_fed(torch_call.inputs[source].value, mine, fed.values[place])
        alive, flows = alive or bool(np.any(mine)), flows or bool(np.any(array))
        worst = max(worst, relative_distance(arranged, array))
    return worst, alive and not flows


def _matched(
    got: Sequence[Any], places: Sequence[int], jax_call: Call, fed: Any, sources: dict[str, int], torch_call: Call
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield JAX's gradients with the places of both inputs; of an input that torch's module takes twice, none."""
    values = [leaf.value for leaf in torch_call.inputs]
    for gradient, place in zip(got, places, strict=True):
        source = sources[fed.arrays[jax_call.inputs[place].name]]
        same = [at for at, value in enumerate(values) if isinstance(value, np.ndarray) and at != source
                and value.shape == values[source].shape and np.array_equal(value, values[source])]  # fmt: skip
        if not same:
            yield np.asarray(gradient), place, source


def _as_fed(source: np.ndarray, gradient: np.ndarray, fed: np.ndarray) -> np.ndarray:
    """Return a gradient of torch's input in the arrangement in which the input went into JAX's module."""
    for value, moved in zip(rearranged(source, fed.shape), rearranged(gradient, fed.shape), strict=True):
        if relative_distance(value, fed.astype(value.dtype)) <= 1e-6:
            return moved
    raise ValueError("the input was not found in JAX's arrangement")


def _cotangent(value: np.ndarray, output: Any) -> Any:
    import jax

    if np.issubdtype(np.asarray(output).dtype, np.inexact):
        return value
    return np.zeros(np.shape(output), jax.dtypes.float0)


def _diagnosis(one: Judgement, error: float, stopped: bool) -> Diagnosis:
    torch_call, jax_call = one.pair.torch_calls[0], one.pair.jax_calls[0]
    where = f"{one.pair.path or 'the model'} ({torch_call.class_name})"
    if stopped:
        text = f"{where}: no gradient comes out of JAX's module, alone, where torch's gives one; its outputs agree."
        return Diagnosis("gradient stopped", text, f"Look for jax.lax.stop_gradient in {jax_call.class_name}.")
    text = (
        f"{where}: the backward of JAX's module, alone and from the same gradient of its output, is another one, by "
        f"{error:.2g} of a typical element; its outputs agree."
    )
    fix = f"Look for jax.custom_vjp, jax.custom_jvp and stop_gradient in {jax_call.class_name}, and detach in torch."
    return Diagnosis("backward", text, fix)
