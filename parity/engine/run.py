"""Planning and running the cells of a pair: which there are, and the verdict on each (SPEC S11).

*Meaning*: both functions run in float64, on the same numbers, and must agree there to a float64 bound.
*Precision*: a run in a lower dtype is held against the float64 run of its own framework on the same numbers, whose
values that dtype holds exactly. *Ratio*: then the RMS errors of the two frameworks are compared, on both sides.
What JAX does is held against torch, so that a difference in meaning is in the cells of JAX; where the user says what
is right (an oracle), forward results of both are held against that first.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from typing import Any

import numpy as np

from parity.engine import compare, data, diagnosis, judge, outcomes, sensitivity, transforms, trees
from parity.engine.bounds import UNIT
from parity.engine.calls import Call, Failure, Numbers, Outputs
from parity.engine.evidence import Evidence
from parity.engine.outcomes import Error, Outcome
from parity.engine.pairs import Pair, check_names, is_float
from parity.engine.records import DEVICES, DTYPES, WORLDS, Cell, Diagnosis, Judged, Record

DEFAULT_DTYPES = ("float64", "float32", "bfloat16")

AT_SPECIAL_POINTS = ("forward", "vjp")
"""What runs on all kinds of data; the other transforms on the user's own numbers."""

COMPILED = ("forward", "vjp")
"""What torch.compile runs, in float32 on the user's own numbers: it takes seconds for each."""

BESIDE_ZERO = ("small", "subnormal")
"""Kinds whose numbers are next to nothing beside 1."""

EAGER = {"torch": "torch-eager", "jax": "jax-eager"}
OTHER = {"torch": "jax", "jax": "torch"}

Choice = Sequence[str] | None


def plan(
    pair: Pair, *, transforms: Choice = None, dtypes: Choice = None, devices: Choice = None, worlds: Choice = None,
    data: Choice = None,
) -> list[Cell]:  # fmt: skip
    """Return the cells of a pair; None leaves a choice to the pair, and then to what fits. Imports no framework.

    Without an oracle there is no cell of torch-eager in float64: that is what the others are held to.

    Args:
        pair: The pair.
        transforms: Names of transforms (`parity.engine.transforms`).
        dtypes: "float64", "float32", "bfloat16", "float16".
        devices: "cpu", "cuda".
        worlds: "torch-eager", "torch-compiled", "jax-eager", "jax-jit".
        data: Kinds of data (`parity.engine.data`).

    Raises:
        ValueError: A name is not known.

    Example:
        >>> pair = Pair(torch=abs, jax=abs, inputs=(np.ones(3),))
        >>> [cell.id for cell in plan(pair, transforms=["vjp"], dtypes=["float32"], worlds=["jax-jit"], data=["ties"])]
        ['abs/float32/vjp/jax-jit/cpu/ties']
    """
    arguments = pair.make(0)
    floating = [i for i, argument in enumerate(arguments) if any(is_float(leaf) for _, leaf in trees.leaves(argument))]
    offered = _transforms.names(floating)
    chosen = {
        "transforms": (pair.transforms if transforms is None else transforms, offered),
        "dtypes": (pair.dtypes if dtypes is None else dtypes, DTYPES),
        "devices": (devices, DEVICES),
        "worlds": (pair.worlds if worlds is None else worlds, WORLDS),
        "data": (pair.data if data is None else data, tuple(_data.KINDS)),
    }
    for what, (given, known) in chosen.items():
        check_names(what, given, known)
    asked, _ = chosen["transforms"]
    kinds = chosen["data"][0] or _data.kinds(pair)
    used = chosen["dtypes"][0] or DEFAULT_DTYPES
    size = sum(leaf.size for _, leaf in trees.leaves(arguments) if is_float(leaf))
    cells = []
    for transform in asked or [name for name in offered if _fits(name, size, floating)]:
        for kind in kinds:
            if kind != "random" and transform not in AT_SPECIAL_POINTS and data is None and pair.data is None:
                continue
            for dtype in DTYPES:
                for device in devices or ("cpu",):
                    for world in chosen["worlds"][0] or WORLDS:
                        if dtype in used and _runs_in(transform, kind, dtype, world, chosen, pair):
                            cells.append(Cell(pair.name, pair.group, dtype, transform, world, device, kind))
    return cells


_transforms, _data = transforms, data  # the functions here have arguments of these names


def _fits(name: str, size: int, floating: Sequence[int]) -> bool:
    dense = transforms.get(name).dense
    # Over the only argument there is, vmap-0 is the function itself in gradient-per-copy.
    return size * max(dense, 1) <= transforms.MOST_DENSE if dense else True


def _runs_in(transform: str, kind: str, dtype: str, world: str, chosen: dict[str, Any], pair: Pair) -> bool:
    if world == "torch-eager" and dtype == "float64":
        return pair.oracle is not None
    asked = chosen["worlds"][0] is not None and chosen["transforms"][0] is not None
    if world == "torch-compiled" and not asked:
        return dtype == "float32" and kind == "random" and transform in COMPILED
    special = kind != "random" and chosen["data"][0] is None
    return not (special and dtype in ("bfloat16", "float16") and chosen["dtypes"][0] is None)


def run(pair: Pair, cells: Collection[Cell], seed: int = 0) -> Iterator[Record]:
    """Run cells of a pair one by one, yielding a record of each; what they share runs once.

    An entry of `pair.known` that no cell confirms is found by `settle`, when all of them have run.

    Args:
        pair: The pair.
        cells: From `plan`.
        seed: Of the numbers.
    """
    return Runner(pair, seed).records(cells)


def settle(pair: Pair, records: Sequence[Record]) -> list[Record]:
    """Return the records with every entry of `pair.known` that holds for none of its cells made a failure.

    The failure is that of its first cell: the entry is to be taken off the list.
    """
    settled = list(records)
    for entry in pair.known or ():
        mine = [i for i, record in enumerate(settled) if matches(entry, record.cell) and record.cell.pair == pair.name]
        if mine and not any(settled[i].known for i in mine):
            first = settled[mine[0]]
            if not first.failed:
                reason = f"listed as known ({entry['reason']}), but nothing differs: take it off the list"
                text = (
                    f"An entry of `known` says that this differs ({entry['reason']}), and it agrees in all such cells."
                )
                about = Diagnosis("stale entry", text, "Take the entry off the list.")
                settled[mine[0]] = replace(first, verdict="differs", reason=reason, diagnosis=about)
    return settled


def matches(entry: Any, cell: Cell) -> bool:
    """Return whether an entry of `known` speaks of a cell."""
    return all(fnmatch(getattr(cell, name), entry.get(name, "*")) for name in ("transform", "world", "dtype", "data"))


class Runner(outcomes.Runner):
    """Runs cells of one pair and keeps what several of them need."""

    def __init__(self, pair: Pair, seed: int = 0) -> None:
        super().__init__(seed)
        self.pair = pair
        self.functions = {"torch": pair.torch, "jax": pair.jax}
        self._kept: dict[str, dict[str, Any]] = {"torch": {}, "jax": {}}
        self._seen: dict[tuple[str, ...], Any] = {}
        self._against_oracle: set[str] = set()

    def record(self, cell: Cell) -> Record:
        """Run one cell."""
        with np.errstate(all="ignore"), warnings.catch_warnings():
            # Infinities, NaN and overflow are what is compared; what the user's functions warn of is not.
            warnings.simplefilter("ignore")
            return super().record(cell)

    def settled(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Return the outcome with what the pair says of it, and a hash of what went in."""
        known = next((entry for entry in self.pair.known or () if matches(entry, cell)), None)
        outcome = replace(outcome, inputs_sha256=self.sha256(cell))
        if known is None or outcome.verdict in ("identical", "within bound", "no device"):
            return outcome
        return replace(outcome, known=True, reason=f"{outcome.reason}; known: {known['reason']}")

    def arguments(self, kind: str, dtype: str) -> tuple[Any, ...]:
        """Return the arguments of a kind, of values that the dtype holds."""
        return self._once(("arguments", kind, dtype), lambda: data.make(self.pair, kind, dtype, self.seed))

    def sha256(self, cell: Cell) -> str:
        """Return a hash of the numbers that go into a cell."""
        found = hashlib.sha256()
        for path, leaf in trees.leaves(self.arguments(cell.data, cell.dtype)):
            found.update(f"{path} {leaf.dtype} {leaf.shape}".encode())
            found.update(np.ascontiguousarray(leaf).tobytes())
        return found.hexdigest()

    def numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        """Return all that goes into a transform; cotangents are shaped as the framework's float64 results."""
        return self._once(
            ("numbers", kind, dtype, framework, device), lambda: self._numbers(kind, dtype, framework, device)
        )

    def _numbers(self, kind: str, dtype: str, framework: str, device: str) -> Numbers | Failure:
        plain = self.plain(kind, dtype)
        seen = self.outputs(EAGER[framework], device, "float64", kind, dtype, "forward")
        if isinstance(seen, Failure):
            return seen
        shapes = [seen.values[name].shape for name in seen.values if seen.dtypes[name].startswith(("float", "bfloat"))]
        rng = np.random.Generator(np.random.PCG64([zlib.crc32(self.pair.name.encode()), self.seed, 1]))
        directions = tuple(tuple(_draw(rng, leaf.shape, dtype) for leaf in plain.theta) for _ in range(2))
        return replace(
            plain,
            cotangents=tuple(_draw(rng, shape, dtype) for shape in shapes),
            directions=directions,
            copies=tuple(
                np.stack([data.rounded(leaf * scale, dtype) for scale in transforms.SCALES]) for leaf in plain.theta
            ),
        )

    def plain(self, kind: str, dtype: str) -> Numbers:
        """Return the arguments with their names."""
        return Numbers.of(self.arguments(kind, dtype), self.pair.names())

    def outputs(
        self, world: str, device: str, dtype: str, kind: str, inputs: str, transform: str
    ) -> Outputs | Failure:  # fmt: skip
        """Run a transform in a world and dtype, on numbers that the dtype `inputs` holds."""
        key = ("outputs", world, device, dtype, kind, inputs, transform)
        return self._once(key, lambda: self._outputs(world, device, dtype, kind, inputs, transform))

    def _outputs(
        self, world: str, device: str, dtype: str, kind: str, inputs: str, name: str, numbers: Numbers | None = None
    ) -> Outputs | Failure:
        transform = transforms.get(name)
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
        asked = Call(self.functions[framework], transform, numbers, dtype)
        try:
            return world_of(framework).call(asked, world, device, self._kept[framework])
        except Exception as error:
            # Whatever a framework or the user's function raises is the cell's result, and the run goes on.
            return Failure(f"{type(error).__name__}: {_first_line(error)}")

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

    def outcome(self, cell: Cell) -> Outcome:
        """Judge one cell, and say why if it differs."""
        return self._once(("outcome", cell.id), lambda: self._outcome(cell))

    def _outcome(self, cell: Cell) -> Outcome:
        framework = cell.world.split("-")[0]
        if cell.device not in world_of(framework).devices():
            return Outcome("no device", f"{framework} sees no {cell.device} here")
        found = self._verdict(cell)
        if found.verdict == "identical":
            return found
        return replace(found, diagnosis=diagnosis.diagnose(self._evidence(cell, found, framework)))

    def _verdict(self, cell: Cell) -> Outcome:
        return self._once(("verdict", cell.id), lambda: self._judged(cell, cell.world.split("-")[0]))

    def _evidence(self, cell: Cell, found: Outcome, framework: str) -> Evidence:
        def ran(world: str, dtype: str) -> Outputs | Failure:
            return self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)

        own, twin = ran(cell.world, cell.dtype), ran(EAGER[OTHER[framework]], cell.dtype)
        got, want = own, ran(EAGER[framework], "float64")
        whose = framework
        output = found.finding.output if found.finding is not None else ""
        if found.judged == "meaning":
            got, want = (own if cell.dtype == "float64" else want), ran(EAGER[OTHER[framework]], "float64")
        elif found.judged == "ratio" and found.finding is not None and found.finding.want > found.finding.got:
            got, want, whose = twin, ran(EAGER[OTHER[framework]], "float64"), OTHER[framework]
        if _same_dtypes(own, twin):
            # What is promoted in float64 only is seen there.
            own64, twin64 = ran(EAGER[framework], "float64"), ran(EAGER[OTHER[framework]], "float64")
            if not _same_dtypes(own64, twin64):
                own, twin = own64, twin64
        if output == "error ratio":
            output = found.reason.split(": the RMS")[0]
        none = np.zeros(0)
        left, right = ((one.values.get(output, none) if isinstance(one, Outputs) else none) for one in (got, want))
        unit = UNIT["float64" if found.judged == "meaning" else cell.dtype]
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, unit) if output else {}
        numbers = self.numbers(cell.data, cell.dtype, whose, cell.device)

        def recompute(numbers: Numbers) -> Outputs | Failure:
            return self._outputs(EAGER[whose], cell.device, "float64", cell.data, cell.dtype, cell.transform, numbers)

        differs, derivative = found.verdict == "differs", cell.transform != "forward"
        random = replace(cell, data="random")
        return Evidence(
            cell, found.verdict, found.judged, found.reason, output, left, right, spread.get(output, none), own, twin,
            numbers if isinstance(numbers, Numbers) else self.plain(cell.data, cell.dtype), whose,
            differs and cell.data != "random" and self._verdict(random).verdict == "differs",
            self._forward(cell) if derivative and found.verdict in ("differs", "unsupported") else None,
            recompute, cell.id in self._against_oracle, self._unsteady(cell.device) if differs else (),
        )  # fmt: skip

    def _unsteady(self, device: str) -> tuple[str, ...]:
        """Return the frameworks whose function, run twice on the user's numbers, gives two results."""
        return self._once(("unsteady", device), lambda: tuple(name for name in EAGER if self._changes(name, device)))

    def _changes(self, framework: str, device: str) -> bool:
        plain = self.plain("random", "float64")
        runs = [
            self._outputs(EAGER[framework], device, "float64", "random", "float64", "forward", plain) for _ in range(2)
        ]
        one, two = (run if isinstance(run, Outputs) else None for run in runs)
        return one is not None and two is not None and not judge.same_bits(one, two)

    def _forward(self, cell: Cell) -> Diagnosis | None:
        # A derivative can differ where the function does not: then it follows from what differs elsewhere.
        for kind in (cell.data, "random"):
            found = self.outcome(replace(cell, transform="forward", data=kind))
            if found.verdict == "differs" and found.judged == "meaning":
                return found.diagnosis
        return None

    def _judged(self, cell: Cell, framework: str) -> Outcome:
        other = OTHER[framework]

        def ran(world: str, dtype: str) -> Outputs | Failure:
            return self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)

        own, twin = ran(cell.world, cell.dtype), ran(EAGER[other], cell.dtype)
        own64 = own if cell.dtype == "float64" else ran(EAGER[framework], "float64")
        twin64 = ran(EAGER[other], "float64")
        if isinstance(own, Failure):
            alike = isinstance(twin, Failure)
            return Outcome("unsupported", f"{own.text} ({other} raises as well)" if alike else own.text, alike=alike)
        if isinstance(own64, Failure):
            return Outcome("unsupported", f"in float64, {own64.text}")
        order = transforms.get(cell.transform).order
        terms = self.plain(cell.data, cell.dtype).terms
        signs = cell.data == "signed zeros" and cell.transform == "forward"
        judged: Judged = "meaning"
        error = None
        try:
            if cell.transform == "forward" and self.pair.oracle is not None:
                error = self._held_to_oracle(cell, own64, terms, framework)
            if framework == "jax":
                if isinstance(twin64, Failure):
                    return Outcome("differs", f"torch raises {twin64.text}; JAX does not", "meaning")
                judge.assert_same_outputs(own64, twin64)
                if isinstance(twin, Outputs):
                    judge.assert_same_outputs(own, twin)
                double = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT["float64"])
                got = own if cell.dtype == "float64" else own64
                try:
                    error = judge.assert_close(got, twin64, double, "float64", terms=terms, order=order, signs=signs)
                except compare.Mismatch:
                    double = self._with_formula(cell, double)
                    error = judge.assert_close(got, twin64, double, "float64", terms=terms, order=order, signs=signs)
            judged = "precision"
            if cell.dtype != "float64":
                error = self._precision(cell, own, own64, twin, twin64, terms, order)
                judged = "ratio"
                twin_ratio = self._ratio(cell, framework, error, twin, twin64, terms, order)
            else:
                twin_ratio = None
        except compare.Mismatch as mismatch:
            if mismatch.finding.output == "error ratio":
                judged = "ratio"
            return Outcome("differs", str(mismatch), judged, mismatch.finding, error)
        if isinstance(twin, Outputs) and judge.same_bits(own, twin):
            return Outcome("identical", "", "bits", error=error, twin_ratio=twin_ratio)
        return Outcome(
            "within bound", "", "meaning" if cell.dtype == "float64" else "precision", None, error, twin_ratio
        )

    def _with_formula(self, cell: Cell, double: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the sensitivity with what the two formulas lose by themselves, as their float32 runs show.

        A formula that cancels (log(1 + x) for log1p) is off in float64 as well: by its float32 error, times the ratio
        of the units, times 16 for luck. Beyond that the meaning differs. Of the user's own numbers only.
        """
        if cell.data != "random":
            return double
        wider = dict(double)
        for world in EAGER.values():
            single, exact = (
                self.outputs(world, cell.device, dtype, cell.data, cell.dtype, cell.transform)
                for dtype in ("float32", "float64")
            )
            if not isinstance(single, Outputs) or not isinstance(exact, Outputs):
                continue
            for name, value in exact.values.items():
                if name in wider and value.dtype.kind == "f" and value.shape == single.values[name].shape:
                    with np.errstate(invalid="ignore"):
                        error = np.abs(single.values[name] - value)
                    largest = float(np.max(error[np.isfinite(error)], initial=0.0))
                    wider[name] = wider[name] + 16 * UNIT["float64"] / UNIT["float32"] * largest
        return wider

    def _precision(
        self, cell: Cell, own: Outputs, own64: Outputs, twin: Any, twin64: Any, terms: int, order: int
    ) -> Error:  # fmt: skip
        judge.assert_same_outputs(_kinds_only(own), _kinds_only(own64), cell.dtype, "float64")
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT[cell.dtype])
        both = (twin, twin64) if isinstance(twin, Outputs) and isinstance(twin64, Outputs) else None
        return judge.assert_close(own, own64, spread, cell.dtype, terms=terms, order=order, twin=both)

    def _ratio(
        self, cell: Cell, framework: str, error: Error, twin: Any, twin64: Any, terms: int, order: int
    ) -> float | None:
        # Of the user's own numbers: the others are too few, and chosen.
        if framework != "jax" or cell.data != "random" or isinstance(twin, Failure) or isinstance(twin64, Failure):
            return None
        spread = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT[cell.dtype])
        try:
            torch = judge.assert_close(twin, twin64, spread, cell.dtype, terms=terms, order=order)
        except compare.Mismatch:
            return None  # a cell of torch's own
        return judge.assert_error_ratios(torch, error)

    def _held_to_oracle(self, cell: Cell, own64: Outputs, terms: int, framework: str) -> Error:
        assert self.pair.oracle is not None
        arguments = self.arguments(cell.data, cell.dtype)
        with np.errstate(all="ignore"):
            right = self.pair.oracle(*arguments)
        values = {
            path: np.asarray(leaf, np.float64) if np.asarray(leaf).dtype.kind == "f" else np.asarray(leaf)
            for path, leaf in trees.leaves(right, "output")
        }
        want = Outputs(values)
        double = self.spread(cell.device, cell.data, cell.dtype, cell.transform, UNIT["float64"])
        try:
            judge.assert_same_outputs(Outputs(own64.values), want, framework, "the oracle")
            return judge.assert_close(own64, want, double, "float64", terms=terms, order=0)
        except compare.Mismatch as mismatch:
            self._against_oracle.add(cell.id)
            finding = mismatch.finding
            raise compare.Mismatch(replace(finding, text=f"against the oracle, {finding.text}")) from None

    def _once(self, key: tuple[str, ...], make: Any) -> Any:
        if key not in self._seen:
            self._seen[key] = make()
        return self._seen[key]


def world_of(name: str) -> Any:
    """Return the module of a world."""
    return importlib.import_module(f"parity.engine.{name.split('-')[0]}_world")


def _same_dtypes(own: Outputs | Failure, twin: Outputs | Failure) -> bool:
    """Return whether results came in the same dtypes, as far as both came."""
    if isinstance(own, Failure) or isinstance(twin, Failure):
        return True
    return all(twin.dtypes.get(name, dtype) == dtype for name, dtype in own.dtypes.items())


def _draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return data.rounded(rng.uniform(0.5, 1.5, shape) * rng.choice((-1.0, 1.0), shape), dtype)


def _kinds_only(outputs: Outputs) -> Outputs:
    return Outputs(outputs.values)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
