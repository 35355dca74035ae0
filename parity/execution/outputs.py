"""The outputs of the functions of a pair, in any world and dtype. Everything runs once and is kept."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np

from parity.execution import plan
from parity.execution.calls import Call, Failure, Numbers, Outputs
from parity.execution.endings import RAISED
from parity.execution.programs import Reading
from parity.operator import data, transforms, trees
from parity.operator.faults import Fault, ask
from parity.operator.pair import Deferred, Pair
from parity.operator.transforms import Transform
from parity.records import Cell

EAGER = {"torch": "torch-eager", "jax": "jax-eager"}
OTHER = {"torch": "jax", "jax": "torch"}


def framework_of(cell: Cell) -> str:
    """Return the framework that a cell runs in."""
    return cell.world.split("-")[0]


_last: dict[str, tuple[Any, dict[str, Any]]] = {}
"""By framework, what was compiled last of a pair that has a form, and the key of it."""


class Runs:
    """What the functions of one pair give; what several cells need is kept.

    Args:
        pair: The pair.
        seed: Seed of the numbers.

    Attributes:
        shortens: Whether special numbers may be fewer than the user's own (verdict/shortened.py).
    """

    shortens = True

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
        dtype = self.drawn(kind, dtype)
        return self.once(("arguments", kind, dtype), lambda: data.make(self.pair, kind, dtype, self.seed))

    def drawn(self, kind: str, dtype: str) -> str:
        """Return the dtype whose numbers a kind of data takes, for results in another.

        Special points are the same in float64 as in float32, and so are sweeps of usual sizes. There both take the same
        numbers, so that what is run in float64 to hold float32 to is the run of float64 itself.
        """
        same = kind.partition("#")[0] in data.POINTS or kind.startswith("sweep#near.")
        if dtype != "float64" or self.pair.numbers is not None or not same:
            return dtype
        single = self.once(("keeps range",), lambda: data.keeps_range(self.pair, "float32", self.seed))
        return "float32" if single else dtype

    def _own(self, kind: str, dtype: str) -> Numbers | None:
        """Return the numbers that the pair makes itself, as far as it does."""
        made = self.pair.numbers
        return None if made is None else self.once(("own", kind, dtype), lambda: self._made(made, kind, dtype))

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
        return self.once(("sha256", cell.data, cell.dtype), lambda: _digest(self.arguments(cell.data, cell.dtype)))

    def numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        """Return all that goes into a transform; cotangents are shaped as the framework's float64 results.

        What the pair makes itself stays as it is.
        """
        dtype = self.drawn(kind, dtype)
        return self.once(
            ("numbers", kind, dtype, framework, device), lambda: self._numbers(kind, dtype, framework, device)
        )

    def _numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        plain = self.plain(kind, dtype)
        shapes: list[tuple[int, ...]] = []
        if not plain.cotangents:
            seen = self._forward_of(framework, device, kind, dtype)
            if isinstance(seen, Failure):
                return seen
            floats = ("float", "bfloat", "complex")
            shapes = [
                value.shape for name, value in seen.values.items()
                if seen.dtypes[name].startswith(floats) and seen.dtypes[name] not in ("float", "complex")
            ]  # fmt: skip
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
            return self.outputs(self._cell(kind, dtype, "forward", EAGER[framework], device), dtype="float64")
        # A forward of the pair's own may want cotangents itself.
        shared = transforms.get("forward")
        try:
            return self._called(EAGER[framework], device, "float64", shared, self.plain(kind, dtype), {}, {})
        except Fault:
            raise
        except RAISED as error:
            # As in rerun.
            return _failure(error)

    def _cell(self, kind: str, dtype: str, transform: str, world: str, device: str) -> Cell:
        return self.pair.cell(self.pair.name, self.pair.group, dtype, transform, world, device, kind)

    def plain(self, kind: str, dtype: str) -> Numbers:
        """Return the arguments with their names, and what the pair makes itself."""
        arguments, own = self.arguments(kind, dtype), self._own(kind, dtype)
        if own is None:
            return Numbers.of(arguments, self.pair.names())
        return replace(own, arguments=arguments, theta=Numbers.of(arguments, self.pair.names()).theta)

    def numbers_of(self, cell: Cell, framework: str | None = None) -> Numbers | Failure:
        """Return all that goes into a cell; cotangents are shaped as the results of its framework, or of another."""
        return self.numbers(cell.data, cell.dtype, framework or framework_of(cell), cell.device)

    def numbers_in(self, cell: Cell, framework: str | None = None) -> Numbers | Failure:
        """Return what goes into a cell's program: no more than the arguments, where it only runs the function."""
        if self.pair.transform(cell.transform).everything:
            return self.plain(cell.data, cell.dtype)
        return self.numbers_of(cell, framework)

    def _numbers_key(self, cell: Cell) -> tuple[str, str]:
        return cell.data, self.drawn(cell.data, cell.dtype)

    def outputs(self, cell: Cell, *, world: str | None = None, dtype: str | None = None) -> Outputs | Failure:
        """Return what a cell gives, or what its function raises: once run, it is kept.

        Args:
            cell: Its numbers are such that its dtype holds.
            world: To run it in, in place of its own.
            dtype: To compute in, in place of its own.
        """
        world, dtype = world or cell.world, dtype or cell.dtype
        key = ("outputs", world, cell.device, dtype, *self._numbers_key(cell), cell.transform)
        return self.once(key, lambda: self.rerun(replace(cell, world=world), dtype))

    def reference(self, framework: str, cell: Cell) -> str:
        """Return the world in which a framework's program of a cell runs where other runs are held to it.

        Eager, but JAX's derivatives under transforms: eager, JAX compiles a program for each operator in them, of which
        there are dozens; under jit one, which cells of jit share.
        """
        world = EAGER[framework]
        if framework == "torch" or cell.transform in plan.AT_SPECIAL_POINTS:
            return world
        compiled = self.outputs(cell, world="jax-jit", dtype="float64")
        return world if isinstance(compiled, Failure) else "jax-jit"

    def rerun(self, cell: Cell, dtype: str, numbers: Numbers | None = None) -> Outputs | Failure:
        """Run a cell anew, computing in a dtype, perhaps on other numbers than its own."""
        transform = self.pair.transform(cell.transform)
        if numbers is None:
            found = self.numbers_in(cell)
            if isinstance(found, Failure):
                return found
            numbers = found
        if not transform.everything and not numbers.cotangents:
            return Failure("no floating output: nothing to differentiate")
        compiler, kept = self._compiler(replace(cell, dtype=dtype)), self._kept[framework_of(cell)]
        try:
            return self._called(cell.world, cell.device, dtype, transform, numbers, compiler, kept)
        except Fault:
            raise
        except RAISED as error:
            # Whatever a framework or the user's function raises is the cell's result, and the run goes on.
            return _failure(error)

    def in_parts(self, cell: Cell, dtype: str) -> Outputs | Failure:
        """Return what a cell gives in eager torch with fused operators taken apart; once run, it is kept."""
        there = replace(cell, world=EAGER["torch"])

        def run() -> Outputs | Failure:
            with world_of("torch").in_parts():
                return self.rerun(there, dtype)

        return self.once(("in parts", cell.device, dtype, *self._numbers_key(cell), cell.transform), run)

    def prepare(self, cells: Iterable[Cell], pool: Executor) -> None:
        """Compile the programs of cells side by side, before they are asked for; what raises does so when it runs."""
        for cell in cells:
            transform, framework = self.pair.transform(cell.transform), framework_of(cell)
            if cell.world != "jax-jit" or cell.device not in world_of(framework).devices():
                continue
            with contextlib.suppress(*RAISED):
                numbers = self.numbers_in(cell)
                if isinstance(numbers, Numbers) and (transform.everything or numbers.cotangents):
                    asked = Call(self.function(framework), transform, numbers, cell.dtype, self._compiler(cell))
                    world_of(framework).prepare(asked, cell.world, cell.device, self._kept[framework], pool)

    def reading(
        self, cell: Cell, framework: str, dtype: str, *, ranges: bool = False, x64: bool | None = None
    ) -> Reading | None:  # fmt: skip
        """Return what a framework's program of a cell does inside, computing in a dtype, or None where it raises.

        Args:
            cell: On its numbers; its world does not matter.
            framework: Whose.
            dtype: To compute in.
            ranges: Whether it is seen where numbers leave the range: then every operator runs by itself.
            x64: Whether float64 is the framework's default dtype; None where `dtype` is float64.
        """
        key = ("reading", framework, dtype, cell.device, *self._numbers_key(cell), cell.transform, f"{ranges} {x64}")
        return self.once(key, lambda: self._reading(cell, framework, dtype, ranges, x64))

    def _reading(
        self, cell: Cell, framework: str, dtype: str, ranges: bool, x64: bool | None
    ) -> Reading | None:  # fmt: skip
        transform, numbers = self.pair.transform(cell.transform), self.numbers_in(cell, framework)
        if isinstance(numbers, Failure):
            return None
        asked = Call(self.function(framework), transform, numbers, dtype)
        try:
            kept = self._kept[framework]
            return world_of(framework).read(asked, cell.device, kept, ranges=ranges, x64=x64)
        except RAISED:
            # What raises here raised before, and that is the cell's result; or it cannot be read.
            return None

    def made_wide(self, cell: Cell, framework: str) -> set[str]:
        """Return the outputs of a cell that are float64 whatever goes in, where that is a framework's default dtype."""

        def find() -> set[str]:
            transform, numbers = self.pair.transform(cell.transform), self.numbers_in(cell, framework)
            if isinstance(numbers, Failure):
                return set()
            asked = Call(self.function(framework), transform, numbers, "float32")
            try:
                return set(world_of(framework).made_wide(asked, cell.device))
            except RAISED:
                # It cannot run in a mixture of types: then nothing is known of it.
                return set()

        key = ("made wide", framework, cell.device, *self._numbers_key(cell), cell.transform)
        found: set[str] = self.once(key, find)
        return found

    def compute(self, cell: Cell) -> Outputs:
        """Run a cell's program once, keeping no outputs, and return what it gives; raises what the function raises."""
        framework = framework_of(cell)
        transform = self.pair.transform(cell.transform)
        plain = transform.everything and not self.pair.numbers
        numbers = self.plain(cell.data, cell.dtype) if plain else self.numbers_of(cell)
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
        if self.pair.compiler is not None:
            return self.pair.compiler(cell)
        return world_of(framework_of(cell)).compiler(cell)

    def attempt(self, cell: Cell) -> Outputs | Failure:
        """Run a cell's program once and return what it gives, or what it raises."""
        try:
            return self.compute(cell)
        except Fault:
            raise
        except RAISED as error:
            # As in rerun.
            return _failure(error)

    def _called(
        self, world: str, device: str, dtype: str, transform: Transform, numbers: Numbers, compiler: Mapping[str, Any],
        kept: dict[str, Any],
    ) -> Outputs:  # fmt: skip
        framework = world.split("-")[0]
        asked = Call(self.function(framework), transform, numbers, dtype, compiler)
        here = os.getpid()
        try:
            outputs = world_of(framework).call(asked, world, device, kept)
        finally:
            # A child that the function forked and that came back: it would run what is left, and fork again.
            if os.getpid() != here:
                os._exit(0)
        if transform.finish is None:
            return outputs
        return Outputs(transform.finish(numbers, outputs.values))

    def function(self, framework: str) -> Any:
        """Return the function of a framework."""
        given = self.pair.torch if framework == "torch" else self.pair.jax
        return given.make() if isinstance(given, Deferred) else given

    def once(self, key: tuple[str, ...], make: Callable[[], Any]) -> Any:
        """Return what was made under a key, making it the first time."""
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


def _failure(error: BaseException) -> Failure:
    raised = f"{type(error).__name__}: "
    if isinstance(error, SystemExit):
        return Failure(f"{raised}the function ends the process ({error})", f"{raised}{error}")
    return Failure(raised + _said(error), f"{raised}{error}")


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return data.rounded(rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape), dtype)


def _said(error: BaseException) -> str:
    """Return an error in a line: its first one, and of what torch.compile says why, and at which line of the user's."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [""]
    why = next((line.removeprefix("Explanation: ") for line in lines if line.startswith("Explanation: ")), "")
    if not why and lines[0].endswith(":"):
        why = next(filter(None, lines[1:]), "")
    told = [lines[0][:LINE] + ("" if not why or lines[0].endswith(":") else ":"), why[:LINE]]
    if USERS in lines:
        code = list(itertools.takewhile(bool, lines[lines.index(USERS) + 1 :]))
        code = [line for line in code if line.strip("^~")]
        told.append(f"(at `{code[-1][:LINE]}`)" if code else "")
    return " ".join(filter(None, told))


LINE = 200
"""Characters of each line of an error that are told."""

USERS = "from user code:"
"""What torch.compile writes before the lines of the user's that it could not take."""
