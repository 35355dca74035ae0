"""Why two optimizers take other steps, proved: torch's, made otherwise, takes JAX's of the same gradients."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEPS, MOST_STEPS = 3, 20
"""How many steps are tried: a first step with Nesterov's momentum is that of another learning rate."""

SIZES = (0.01, 1.0, 100.0)
"""Of the gradients, relative to the model's: a gradient that is clipped is a smaller rate at one size alone."""

AGREE = 1e-6
"""How far apart, relative to the largest, updates in float64 of the same gradients may be that are the same."""

SIDE = 4
"""The longest side of the arrays that stand for parameters: only their paths and axes count."""

Make = Callable[[list[Any]], Any]
BETAS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)
EPS = (0.0, 1e-10, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


class Alone:
    """Both optimizers without the models: small parameters that stay where they are, and random gradients.

    Args:
        transformation: Of optax.
        shapes: Of the parameters in JAX, by path, in torch's order.
        norm: Of all gradients of the model.
        steps: How many are tried, at least `STEPS`.

    Example:
        >>> import functools, optax, torch
        >>> alone = Alone(optax.sgd(0.1), {"w": (2, 3)}, 1.0, 1)
        >>> alone.apart(functools.partial(torch.optim.SGD, lr=0.1)) < AGREE
        True
    """

    def __init__(self, transformation: Any, shapes: Mapping[str, tuple[int, ...]], norm: float, steps: int) -> None:
        draw = np.random.default_rng(0)
        small = {path: tuple(min(side, SIDE) for side in shape) for path, shape in shapes.items()}
        count = max(steps, STEPS)
        self.start = {path: np.asarray(draw.standard_normal(shape)) for path, shape in small.items()}
        drawn = [{path: np.asarray(draw.standard_normal(s)) for path, s in small.items()} for _ in range(count)]
        unit = (norm or 1.0) / np.linalg.norm(_flat(drawn[0]))
        self.gradients = {
            size: [{path: g * (unit * size) for path, g in one.items()} for one in drawn] for size in SIZES
        }
        self.transformation = transformation
        self._of_jax: dict[float, list[np.ndarray]] = {}

    def of_jax(self, size: float) -> list[np.ndarray]:
        """Return the updates of JAX's optimizer, each flat."""
        if size not in self._of_jax:
            with jax.enable_x64(True):
                self._of_jax[size] = self._jax(self.transformation, self.gradients[size])
        return self._of_jax[size]

    def _jax(self, transformation: Any, gradients: Sequence[Mapping[str, np.ndarray]]) -> list[np.ndarray]:
        at = {path: jnp.asarray(value) for path, value in self.start.items()}
        state, made = transformation.init(at), []
        for one in gradients:
            update, state = transformation.update({path: jnp.asarray(g) for path, g in one.items()}, state, at)
            made.append(_flat({path: np.asarray(update[path], np.float64) for path in at}))
        return made

    def of_torch(self, make: Make, size: float) -> list[np.ndarray]:
        """Return the updates of torch's optimizer, each flat."""
        import torch

        start = {path: torch.from_numpy(np.array(value)) for path, value in self.start.items()}
        parameters = {path: torch.nn.Parameter(value.clone()) for path, value in start.items()}
        optimizer, made = make(list(parameters.values())), []
        for one in self.gradients[size]:
            for path, g in one.items():
                parameters[path].grad = torch.from_numpy(np.array(g))
            optimizer.step()
            made.append(_flat({path: (p.detach() - start[path]).numpy() for path, p in parameters.items()}))
            with torch.no_grad():
                for path, p in parameters.items():
                    p.copy_(start[path])
        return made

    def apart(self, make: Make, sizes: Sequence[float] = SIZES, steps: int | None = None) -> float:
        """Return how far apart updates are, at any size and step, relative to the largest of the step."""
        most = 0.0
        for size in sizes:
            for ours, theirs in list(zip(self.of_torch(make, size), self.of_jax(size), strict=True))[:steps]:
                largest = max(np.abs(ours).max(), np.abs(theirs).max())
                most = max(most, float(np.abs(ours - theirs).max() / largest) if largest else 0.0)
                if not most <= AGREE:
                    return most
        return most


def explain(optimizer: Any, make: Make, alone: Alone) -> str:
    """Return which other optimizer of torch's takes JAX's steps, or that its own does, in words, or nothing.

    Args:
        optimizer: Torch's, of the model's parameters.
        make: What makes it.
        alone: Both without the models.
    """
    for words, other in _others(optimizer, make, alone):
        with contextlib.suppress(Exception):  # an optimizer that cannot be made so explains nothing
            if alone.apart(other) <= AGREE:
                return words
    return ""


def _others(optimizer: Any, make: Make, alone: Alone) -> Iterator[tuple[str, Make]]:
    import torch

    same = "of the same gradients both optimizers take the same steps: JAX's gradients, or what is trained, are others"
    yield same, make
    if len(optimizer.param_groups) != 1:
        return
    cls, now = type(optimizer), optimizer.defaults
    twin: Any = {torch.optim.Adam: torch.optim.AdamW, torch.optim.AdamW: torch.optim.Adam}.get(cls)
    if twin is not None and now.get("weight_decay"):
        kinds = {torch.optim.Adam: "added to the gradient", torch.optim.AdamW: "taken off the weight"}
        yield (
            f"JAX's steps are those of torch.optim.{twin.__name__}: its weight decay is {kinds[twin]}, and "
            f"{cls.__name__}'s {kinds[cls]}",
            _made(twin, now, {}),
        )
    if cls is torch.optim.SGD:
        yield from _momenta(cls, now)
    ours, theirs = alone.of_torch(make, 1.0), alone.of_jax(1.0)
    times = [constant(other, one) for one, other in zip(ours, theirs, strict=True)]
    known = [one for one in times if one is not None]
    if times[0] is not None and times[0] > 0:
        words = f"JAX's step is {times[0]:.6g} times torch's: another learning rate"
        yield words, _made(cls, now, {"lr": now["lr"] * times[0]})
    if len(known) == len(times):
        listed = ", ".join(f"{one:.6g}" for one in known[:5]) + (", ..." if len(known) > 5 else "")
        words = f"another schedule of the learning rate: JAX's is {listed} times torch's, step by step"
        yield words, lambda parameters: _Scheduled(make(parameters), known)
    decay = constant(alone.of_torch(make, 0.01)[0] - alone.of_jax(0.01)[0], _flat(alone.start))
    if decay is not None and now["lr"] and "weight_decay" in now:
        more = decay / now["lr"]
        found = now["weight_decay"] + more
        found = 0.0 if abs(found) <= AGREE * abs(more) else found
        words = (
            f"another weight decay, {found:.6g} where torch has {now['weight_decay']:.6g} (AdamW's default is 0.01 in "
            "torch and 0.0001 in optax)"
        )
        yield words, _made(cls, now, {"weight_decay": found})
    for at in range(len(now.get("betas", ()))):
        for beta in BETAS:
            betas = tuple(beta if i == at else one for i, one in enumerate(now["betas"]))
            words = f"another beta{at + 1}: {beta:g} in JAX, and torch has {now['betas'][at]:g}"
            yield words, _made(cls, now, {"betas": betas})
    for eps in EPS if "eps" in now else ():
        yield f"another eps: {eps:g} in JAX, and torch has {now['eps']:g}", _made(cls, now, {"eps": eps})
    yield from _clipped(make, alone)


def _momenta(cls: Any, now: Mapping[str, Any]) -> Iterator[tuple[str, Make]]:
    if now["momentum"]:
        other = not now["nesterov"]
        words = f"JAX's steps are those of SGD with nesterov={other}, and torch has {not other}"
        yield words, _made(cls, now, {"nesterov": other, "dampening": 0.0})
        plain = {"momentum": 0.0, "nesterov": False, "dampening": 0.0}
        yield "JAX's steps are those of SGD without momentum", _made(cls, now, plain)
        words = f"JAX's steps are those of SGD with dampening=0, and torch has {now['dampening']:g}"
        yield words, _made(cls, now, {"dampening": 0.0})
    for momentum in BETAS[1:]:
        words = f"another momentum: {momentum:g} in JAX, and torch has {now['momentum']:g}"
        yield words, _made(cls, now, {"momentum": momentum})


def _clipped(make: Make, alone: Alone) -> Iterator[tuple[str, Make]]:
    """Yield torch's optimizer of clipped gradients, clipped where JAX's first update stops growing."""
    large = SIZES[-1]
    ours, theirs, g = alone.of_torch(make, large)[0], alone.of_jax(large)[0], _flat(alone.gradients[large][0])
    for what, size in (("norm", np.linalg.norm), ("elements", lambda array: np.abs(array).max())):
        limit = float(size(theirs) / size(ours) * size(g))
        words = f"JAX clips the {what} of the gradients at {limit:.4g}, and torch does not"
        yield (
            words,
            lambda parameters, limit=limit, norm=what == "norm": _Clipped(  # type: ignore[misc]
                make(parameters), parameters, limit, norm
            ),
        )


class _Clipped:
    def __init__(self, optimizer: Any, parameters: list[Any], limit: float, norm: bool) -> None:
        self.optimizer, self.parameters, self.limit, self.norm = optimizer, parameters, limit, norm

    def step(self) -> None:
        # torch.nn.utils adds 1e-6 to the norm, and optax does not.
        gradients = [one.grad for one in self.parameters]
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        for g in gradients:
            if not self.norm:
                g.clamp_(-self.limit, self.limit)
            elif norm > self.limit:
                g.mul_(self.limit / norm)
        self.optimizer.step()


class _Scheduled:
    def __init__(self, optimizer: Any, times: Sequence[float]) -> None:
        self.optimizer, self.rates = optimizer, [one * optimizer.defaults["lr"] for one in times]

    def step(self) -> None:
        self.optimizer.param_groups[0]["lr"] = self.rates.pop(0)
        self.optimizer.step()


def constant(one: np.ndarray, other: np.ndarray) -> float | None:
    """Return the factor by which one is the other throughout, or None."""
    large = np.abs(other) > 1e-3 * np.abs(other).max(initial=0.0)
    if large.sum() < 2:
        return None
    ratios = one[large] / other[large]
    return float(ratios[0]) if float(np.ptp(ratios)) <= 1e-5 * abs(float(ratios[0])) else None


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([one.ravel() for one in arrays.values()])


def _made(cls: Any, now: Mapping[str, Any], changes: Mapping[str, Any]) -> Make:
    known = inspect.signature(cls).parameters
    options = {name: value for name, value in {**now, **changes}.items() if name in known}
    return lambda parameters: cls(parameters, **options)
