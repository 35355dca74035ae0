"""Running: what the functions of a pair give, in any world and dtype, and how far rounding moves it; each once."""

from __future__ import annotations

import hashlib
import importlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from parity.execution.calls import Call, Failure, Numbers, Outputs
from parity.operator import data, transforms, trees
from parity.operator.faults import Fault, ask
from parity.operator.pair import Deferred, Pair
from parity.operator.transforms import Transform
from parity.records import Cell
from parity.verdict import sensitivity
from parity.verdict.bounds import UNIT

BESIDE_ZERO = ("small", "subnormal")
"""Kinds whose numbers are next to nothing beside 1."""

EAGER = {"torch": "torch-eager", "jax": "jax-eager"}
OTHER = {"torch": "jax", "jax": "torch"}


_last: dict[str, tuple[Any, dict[str, Any]]] = {}
"""By framework, what was compiled last of a pair that has a form, and the key of it."""


class Runs:
    """What the functions of one pair give; what several cells need is kept.

    Args:
        pair: The pair.
        seed: Of the numbers.
    """

    def __init__(self, pair: Pair, seed: int = 0) -> None:
        self.pair = pair
        self.seed = seed
        self._kept: dict[str, dict[str, Any]] = {"torch": {}, "jax": {}}
        self._seen: dict[tuple[str, ...], Any] = {}

    def arguments(self, kind: str, dtype: str) -> tuple[Any, ...]:
        """Return the arguments of a kind, of values that the dtype holds."""
        own = self._own(kind, dtype)
        if own is not None:
            return own.arguments
        return self._once(("arguments", kind, dtype), lambda: data.make(self.pair, kind, dtype, self.seed))

    def _own(self, kind: str, dtype: str) -> Numbers | None:
        """Return the numbers that the pair makes itself, as far as it does."""
        made = self.pair.numbers
        return None if made is None else self._once(("own", kind, dtype), lambda: self._made(made, kind, dtype))

    def _made(self, made: Callable[..., Any], kind: str, dtype: str) -> Numbers | None:
        found = ask("numbers", made, kind, dtype, self.seed)
        if not (found is None or isinstance(found, Numbers)):
            raise Fault(f"numbers: expected Numbers or None, got {type(found).__name__}")

        def check(leaf: np.ndarray) -> np.ndarray:
            if not np.array_equal(leaf, data.rounded(leaf, dtype), equal_nan=True):
                raise Fault(
                    f"numbers: expected values that {dtype} holds, got others; "
                    "round them (parity.operator.data.rounded)"
                )
            return leaf

        if found is not None:
            found.changed(check)
        return found

    def sha256(self, cell: Cell) -> str:
        """Return a hash of the numbers that go into a cell."""
        return self._once(("sha256", cell.data, cell.dtype), lambda: _digest(self.arguments(cell.data, cell.dtype)))

    def numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        """Return all that goes into a transform; cotangents are shaped as the framework's float64 results.

        What the pair makes itself stays as it is.
        """
        return self._once(
            ("numbers", kind, dtype, framework, device), lambda: self._numbers(kind, dtype, framework, device)
        )

    def _numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        plain = self.plain(kind, dtype)
        shapes: list[tuple[int, ...]] = []
        if not plain.cotangents:
            seen = self._forward_of(framework, device, kind, dtype)
            if isinstance(seen, Failure):
                return seen
            floats = ("float", "bfloat")
            shapes = [value.shape for name, value in seen.values.items() if seen.dtypes[name].startswith(floats)]
        rng = np.random.Generator(np.random.PCG64([zlib.crc32(self.pair.name.encode()), self.seed, 1]))
        directions = plain.directions or tuple(
            tuple(_draw(rng, leaf.shape, dtype) for leaf in plain.theta) for _ in range(2)
        )
        copies = plain.copies or tuple(
            np.stack([data.rounded(leaf * scale, dtype) for scale in transforms.SCALES]) for leaf in plain.theta
        )
        cotangents = plain.cotangents or tuple(_draw(rng, shape, dtype) for shape in shapes)
        return replace(plain, cotangents=cotangents, directions=directions, copies=copies)

    def _forward_of(self, framework: str, device: str, kind: str, dtype: str) -> Outputs | Failure:
        if self.pair.transform("forward").everything:
            return self.outputs(EAGER[framework], device, "float64", kind, dtype, "forward")
        # A forward of the pair's own may want cotangents itself.
        shared = transforms.get("forward")
        try:
            return self._called(EAGER[framework], device, "float64", shared, self.plain(kind, dtype), {}, {})
        except Fault:
            raise
        except Exception as error:
            # As in _outputs.
            return _failure(error)

    def plain(self, kind: str, dtype: str) -> Numbers:
        """Return the arguments with their names, and what the pair makes itself."""
        arguments, own = self.arguments(kind, dtype), self._own(kind, dtype)
        if own is None:
            return Numbers.of(arguments, self.pair.names())
        return replace(own, arguments=arguments, theta=Numbers.of(arguments, self.pair.names()).theta)

    def outputs(
        self, world: str, device: str, dtype: str, kind: str, inputs: str, transform: str
    ) -> Outputs | Failure:  # fmt: skip
        """Run a transform in a world and dtype, on numbers that the dtype `inputs` holds."""
        key = ("outputs", world, device, dtype, kind, inputs, transform)
        return self._once(key, lambda: self._outputs(world, device, dtype, kind, inputs, transform))

    def _outputs(
        self, world: str, device: str, dtype: str, kind: str, inputs: str, name: str, numbers: Numbers | None = None
    ) -> Outputs | Failure:
        transform = self.pair.transform(name)
        framework = world.split("-")[0]
        if numbers is None:
            found = (
                self.plain(kind, inputs) if transform.everything else self.numbers(kind, inputs, framework, device)
            )  # fmt: skip
            if isinstance(found, Failure):
                return found
            numbers = found
        if not transform.everything and not numbers.cotangents:
            return Failure("no floating output: nothing to differentiate")
        compiler = self._compiler(self.pair.cell(self.pair.name, self.pair.group, inputs, name, world, device, kind))
        try:
            return self._called(world, device, dtype, transform, numbers, compiler, self._kept[framework])
        except Fault:
            raise
        except Exception as error:
            # Whatever a framework or the user's function raises is the cell's result, and the run goes on.
            return _failure(error)

    def compute(self, cell: Cell) -> Outputs:
        """Run a cell's program once, keeping no outputs, and return what it gives; raises what the function raises."""
        framework = cell.world.split("-")[0]
        transform = self.pair.transform(cell.transform)
        plain = transform.everything and not self.pair.numbers
        numbers = (
            self.plain(cell.data, cell.dtype) if plain else self.numbers(cell.data, cell.dtype, framework, cell.device)
        )
        if isinstance(numbers, Failure):
            raise RuntimeError(numbers.text)
        compiler = self._compiler(cell)
        kept = self._of_form(framework, cell, compiler)
        return self._called(cell.world, cell.device, cell.dtype, transform, numbers, compiler, kept)

    def _of_form(self, framework: str, cell: Cell, compiler: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was compiled for the cell before, where it was of a pair of the same form; else nothing."""
        if self.pair.form is None or cell.world in EAGER.values():
            return {}
        key = (self.pair.form, cell.world, cell.transform, cell.dtype, cell.device, str(compiler))
        if framework not in _last or _last[framework][0] != key:
            _last[framework] = (key, {})
        return _last[framework][1]

    def _compiler(self, cell: Cell) -> Mapping[str, Any]:
        return {} if self.pair.compiler is None else self.pair.compiler(cell)

    def attempt(self, cell: Cell) -> Outputs | Failure:
        """Run a cell's program once and return what it gives, or what it raises."""
        try:
            return self.compute(cell)
        except Fault:
            raise
        except Exception as error:
            # As in _outputs.
            return _failure(error)

    def _called(
        self, world: str, device: str, dtype: str, transform: Transform, numbers: Numbers, compiler: Mapping[str, Any],
        kept: dict[str, Any],
    ) -> Outputs:  # fmt: skip
        framework = world.split("-")[0]
        asked = Call(self._function(framework), transform, numbers, dtype, compiler)
        outputs = world_of(framework).call(asked, world, device, kept)
        if transform.finish is None:
            return outputs
        return Outputs(transform.finish(numbers, outputs.values))

    def _function(self, framework: str) -> Any:
        given = self.pair.torch if framework == "torch" else self.pair.jax
        return given.make() if isinstance(given, Deferred) else given

    def spread(self, device: str, kind: str, inputs: str, transform: str, unit: float) -> dict[str, np.ndarray]:
        """Return the sensitivity of the float64 results (sensitivity.py), of torch, or of JAX where torch fails."""
        # At random numbers one measurement, in units of float32, serves float64 as well.
        measured = max(unit, UNIT["float32"]) if kind == "random" else unit
        key = ("spread", device, kind, inputs, transform, str(measured))
        found = self._once(key, lambda: self._spread(device, kind, inputs, transform, measured, kind == "random"))
        if measured != unit:
            found = {name: value * (unit / measured) for name, value in found.items()}
        return self._with_cancelled(found, device, inputs, transform, unit) if kind in BESIDE_ZERO else found

    def _with_cancelled(
        self, spread: dict[str, np.ndarray], device: str, inputs: str, transform: str, unit: float
    ) -> dict[str, np.ndarray]:
        """Return the sensitivity beside zero with what cancellation leaves at zero itself, in the float64 runs.

        Numbers far below 1 move nothing where parts of the size of 1 cancel, and moving them by more would hide what
        such numbers are for. Where two float64 results at zeros differ by rounding, it is the rounding of the parts.
        """
        runs = [self.outputs(world, device, "float64", "zeros", inputs, transform) for world in EAGER.values()]
        if not all(isinstance(one, Outputs) for one in runs):
            return spread
        left, right = (one.values for one in runs if isinstance(one, Outputs))
        noise = self.spread(device, "zeros", inputs, transform, UNIT["float64"])
        wider = dict(spread)
        for name in wider.keys() & left.keys() & right.keys() & noise.keys():
            if left[name].shape == right[name].shape == wider[name].shape and left[name].dtype.kind == "f":
                with np.errstate(invalid="ignore"):
                    rest = np.abs(left[name] - right[name])
                rest = np.where(np.isfinite(rest) & (rest <= 64 * noise[name]), rest, 0.0)
                wider[name] = wider[name] + float(np.max(rest, initial=0.0)) * (unit / UNIT["float64"])
        return wider

    def _spread(
        self, device: str, kind: str, inputs: str, transform: str, unit: float, jumps: bool
    ) -> dict[str, np.ndarray]:
        for framework in ("torch", "jax"):
            world = EAGER[framework]
            at = self.outputs(world, device, "float64", kind, inputs, transform)
            numbers = self.numbers(kind, inputs, framework, device)
            if isinstance(at, Outputs) and isinstance(numbers, Numbers):

                def again(numbers: Numbers, world: str = world) -> Outputs | Failure:
                    return self._outputs(world, device, "float64", kind, inputs, transform, numbers)

                return sensitivity.spread(again, numbers, at, unit, jumps=jumps)
        return {}

    def _once(self, key: tuple[str, ...], make: Any) -> Any:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]


def world_of(name: str) -> Any:
    """Return the module of a world."""
    return importlib.import_module(f"parity.execution.{name.split('-')[0]}_backend")


def _digest(arguments: tuple[Any, ...]) -> str:
    found = hashlib.sha256()
    for path, leaf in trees.leaves(arguments):
        found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
        found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()


def _failure(error: Exception) -> Failure:
    raised = f"{type(error).__name__}: "
    return Failure(raised + _first_line(error), f"{raised}{error}")


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return data.rounded(rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape), dtype)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
