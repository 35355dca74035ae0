"""A JAX function as its jaxpr, run equation by equation, any of which can be changed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.execution._compat import bind
from parity.execution.calls import Call, Numbers
from parity.execution.jax_backend import Ops, is_float, settings
from parity.execution.jax_programs import INLINED, ONCE
from parity.explanation._compat import is_jax_literal, scan_counts
from parity.explanation.programs.program import Constant, Edits, Key, Operand, Operation, Step, as_written, roles
from parity.operator import transforms
from parity.operator.transforms import Transform

FORWARD = transforms.get("forward")

LONGEST = 4096
"""Turns of a loop that are run one by one; a longer one is not."""


class JaxProgram:
    """The steps of a JAX function (see `program.Program`)."""

    framework = "jax"

    def __init__(
        self, function: Callable[..., Any], numbers: Numbers, *, transform: Transform = FORWARD, dtype: str = "float64"
    ) -> None:
        self._function, self._transform = function, transform
        with settings(x64=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # As the function is when it is called with the dtype; it runs in float64.
            arrays = _arrays(function, numbers, dtype)
            closed, shape = jax.make_jaxpr(self._program(numbers), return_shape=True)(arrays)
            self._closed, self._names = closed, list(shape)
            self.held = tuple(closed.consts)
            """Arrays that the function brings along, in the types that it holds them in."""
            self._before: dict[int, tuple[Numbers, list[list[Any]]]] = {}
            reader = _Reader({}, record=True)
            self.outputs = self._run(numbers, reader)
        self.steps = reader.steps
        self.constants = roles(self.steps, reader.constants)

    def run(self, numbers: Numbers, edits: Edits) -> dict[str, np.ndarray] | None:
        """Return the outputs with steps changed, or None where that does not run."""
        try:
            with settings(x64=True), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader = _Reader(edits, record=False)
                known = self._before.get(id(numbers))
                reader.before = known[1] if known is not None else None
                found = self._run(numbers, reader)
                if not edits and known is None:
                    self._before[id(numbers)] = (numbers, reader.ran)
                return found
        except Exception:  # an operator that refuses the change: it explains nothing
            return None

    def _program(self, numbers: Numbers) -> Callable[[Any], Any]:
        call = Call(self._function, self._transform, numbers, "float64")
        return lambda a: call.program(Ops, is_float, a)

    def _run(self, numbers: Numbers, reader: _Reader) -> dict[str, np.ndarray]:
        flat = jax.tree.leaves(_arrays(self._function, numbers))
        consts = [_wide(one) for one in self._closed.consts]
        outputs = reader.read(self._closed.jaxpr, consts, flat, ())
        # A dict's leaves come in the order of its sorted keys.
        return {name: _numpy(leaf) for name, leaf in zip(sorted(self._names), outputs, strict=True)}


def _arrays(function: Callable[..., Any], numbers: Numbers, dtype: str = "float64") -> Any:
    call = Call(function, FORWARD, numbers, "float64")
    return call.arrays(lambda v: jnp.asarray(np.asarray(v, np.float64)).astype(dtype), jnp.asarray)


class _Reader:
    """Runs the equations of a jaxpr one by one, and records them where that is asked."""

    def __init__(self, edits: Edits, record: bool) -> None:
        self.edits, self.record = edits, record
        self.steps: list[Step] = []
        self.constants: list[Constant] = []
        self._made: dict[int, Key] = {}
        self._kept: list[Any] = []
        self._seen: set[Key] = set()
        self.before: list[list[Any]] | None = None
        """What each equation of the outermost program returned, unchanged, on the same numbers."""
        self.ran: list[list[Any]] = []

    def read(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any], path: tuple[int, ...]) -> list[Any]:
        values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def value(atom: Any) -> Any:
            if not is_jax_literal(atom):
                return values[atom]
            dtype = str(getattr(atom.val, "dtype", "float64"))
            return _wide(
                atom.val if np.ndim(atom.val) or not _floating(atom.val) else as_written(float(atom.val), dtype)
            )

        touched = {key[0] for key in self.edits} if not path else set()  # type: ignore[index]
        changed_values: set[Any] = set()
        live = set(range(len(jaxpr.eqns))) if path else _live(jaxpr)
        for number, equation in enumerate(jaxpr.eqns):
            key = (*path, number)
            if number not in live:
                self.ran.append([])
                continue
            if not path and self.before is not None:
                atoms = (atom for atom in equation.invars if not is_jax_literal(atom))
                if number not in touched and not any(atom in changed_values for atom in atoms):
                    values.update(zip(equation.outvars, self.before[number], strict=True))
                    continue  # nothing that goes in has changed
                changed_values.update(equation.outvars)
            operands: dict[Operand, Any] = {place: value(atom) for place, atom in enumerate(equation.invars)}
            places = len(operands)
            if equation.primitive.name == "integer_pow":
                operands["y"] = equation.params["y"]

            def compute(changed: dict[Operand, Any], equation: Any = equation, key: Any = key, n: int = places) -> Any:
                found = self._compute(
                    equation,
                    [_of_type(changed[i], atom) for i, atom in zip(range(n), equation.invars, strict=True)],
                    key,
                    changed,
                )
                return found if equation.primitive.multiple_results else found[0]

            edit = self.edits.get(key)
            if edit is None:
                result = compute(operands)
            else:
                result = edit(Operation(_name(equation), operands, compute, _numpy, _like))
            results = list(result) if equation.primitive.multiple_results else [result]
            if self.record and key not in self._seen:
                self._note(equation, key, operands, results)
            values.update(zip(equation.outvars, results, strict=True))
            if not path and self.before is None:
                self.ran.append(results)
        return [value(atom) for atom in jaxpr.outvars]

    def _compute(
        self, equation: Any, operands: list[Any], key: tuple[int, ...], changed: dict[Operand, Any]
    ) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if name == "integer_pow":
            y = changed["y"]
            return [jax.lax.integer_pow(operands[0], y) if y == int(y) else jnp.power(operands[0], float(y))]
        if name == "scan" and params["length"] <= LONGEST:
            return self._scan(params, operands, key)
        if name == "while":
            return self._while(params, operands, key)
        if name == "cond":
            which = int(np.clip(int(operands[0]), 0, len(params["branches"]) - 1))
            branch = params["branches"][which]
            return self.read(branch.jaxpr, list(map(_wide, branch.consts)), operands[1:], (*key, which))
        inner = [params[one] for one in INLINED if one in params and name in ONCE]
        if inner and not hasattr(inner[0], "consts"):
            return self.read(inner[0], (), operands, key)
        if inner:
            return self.read(inner[0].jaxpr, list(map(_wide, inner[0].consts)), operands, key)
        if name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.floating):
            return [operands[0].astype(jnp.float64)]
        return bind(equation, operands, _wide_params(params))

    def _scan(self, params: Any, operands: list[Any], key: tuple[int, ...]) -> list[Any]:
        inner, (consts, carry) = params["jaxpr"], scan_counts(params)
        fixed, state, along = operands[:consts], operands[consts : consts + carry], operands[consts + carry :]
        rows: dict[int, list[Any]] = {}
        turns = range(params["length"])
        for turn in reversed(turns) if params["reverse"] else turns:
            arguments = [*fixed, *state, *(one[turn] for one in along)]
            found = self.read(inner.jaxpr, list(map(_wide, inner.consts)), arguments, key)
            state, rows[turn] = found[:carry], found[carry:]
        return [*state, *(jnp.stack(parts) for parts in zip(*(rows[turn] for turn in turns), strict=True))]

    def _while(self, params: Any, operands: list[Any], key: tuple[int, ...]) -> list[Any]:
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        test, body, state = operands[:first], operands[first:second], operands[second:]
        condition, inner = params["cond_jaxpr"], params["body_jaxpr"]
        for _ in range(LONGEST):
            if not bool(self.read(condition.jaxpr, list(map(_wide, condition.consts)), [*test, *state], (*key, 0))[0]):
                return state
            state = self.read(inner.jaxpr, list(map(_wide, inner.consts)), [*body, *state], (*key, 1))
        raise RuntimeError(f"a loop of more than {LONGEST} turns")

    def _note(self, equation: Any, key: tuple[int, ...], operands: dict[Operand, Any], results: list[Any]) -> None:
        self._seen.add(key)  # a loop's body is one program: its first turn is recorded
        self._kept.append((operands, results))
        sources = {o: self._made[id(v)] for o, v in operands.items() if id(v) in self._made}
        plain = {o: v if isinstance(o, str) else _numpy(v) for o, v in operands.items()}
        atoms = [*equation.invars, *equation.outvars]
        dtypes = tuple(str(a.aval.dtype) for a in atoms if _is_floating(a.aval))
        self.steps.append(Step(key, _name(equation), plain, _numpy(results[0]) if results else None, sources, dtypes))
        for one in results:
            self._made.setdefault(id(one), key)
        self.constants.extend(_constants(equation, key))


def _live(jaxpr: Any) -> set[int]:
    """Return the equations that something is made of: what is written and not used is no step of a function."""
    wanted = {atom for atom in jaxpr.outvars if not is_jax_literal(atom)}
    found: set[int] = set()
    for number in reversed(range(len(jaxpr.eqns))):
        equation = jaxpr.eqns[number]
        if equation.effects or not wanted.isdisjoint(equation.outvars):
            found.add(number)
            wanted.update(atom for atom in equation.invars if not is_jax_literal(atom))
    return found


def _constants(equation: Any, key: Key) -> Iterator[Constant]:
    name = equation.primitive.name
    if name == "integer_pow":
        yield Constant(key, "y", float(equation.params["y"]), "integer_pow", "exponent")
    for place, atom in enumerate(equation.invars):
        if is_jax_literal(atom) and np.ndim(atom.val) == 0 and np.asarray(atom.val).dtype.kind in "fiu":
            dtype = str(np.asarray(atom.val).dtype)
            yield Constant(key, place, as_written(float(atom.val), dtype), _name(equation))


def _name(equation: Any) -> str:
    name = equation.primitive.name
    return equation.params.get("name", name) if name in ("jit", "custom_jvp_call", "custom_vjp_call") else name


def _of_type(value: Any, atom: Any) -> Any:
    """Return an operand as an array: a number put in the place of a literal is of the literal's kind."""
    if hasattr(value, "astype"):
        return value
    return jnp.asarray(value, jnp.float64 if _is_floating(atom.aval) else atom.aval.dtype)


def _is_floating(aval: Any) -> bool:
    return hasattr(aval, "dtype") and bool(jnp.issubdtype(aval.dtype, jnp.floating))


def _floating(value: Any) -> bool:
    return bool(jnp.issubdtype(jnp.asarray(value).dtype, jnp.floating))


def _wide(value: Any) -> Any:
    array = jnp.asarray(value)
    return array.astype(jnp.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _wide_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters with every type of floats float64."""

    def wide(value: Any) -> Any:
        try:
            low = value is not None and jnp.issubdtype(value, jnp.floating)
        except TypeError:
            return value
        return np.dtype("float64") if low else value

    names = ("dtype", "preferred_element_type", "new_dtype", "index_dtype")
    return {name: wide(value) if name in names else value for name, value in params.items()}


def _numpy(leaf: Any) -> np.ndarray:
    try:
        array = np.asarray(leaf)
    except TypeError:  # keys of random numbers
        return np.asarray(jax.random.key_data(leaf))
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _like(values: np.ndarray, leaf: Any) -> Any:
    return jnp.asarray(values, leaf.dtype)
