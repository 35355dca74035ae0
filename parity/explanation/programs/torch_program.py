"""A torch function, run under a mode that sees and can change every ATen operator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from parity.execution._compat import torch_dispatch_mode
from parity.execution.calls import Call, Numbers
from parity.execution.endings import RAISED
from parity.execution.torch_backend import Ops, is_float
from parity.explanation._compat import torch_schema
from parity.explanation.programs.program import Constant, Edits, Key, Operand, Operation, Step, as_written, roles
from parity.operator import transforms
from parity.operator.transforms import Transform

FORWARD = transforms.get("forward")

LOW = (torch.float32, torch.float16, torch.bfloat16)

INTEGERS = ("correction", "diagonal")
"""Integer arguments that are constants; others are sizes and axes."""

UNTOLD = ("alpha", "input_scale", "scale_factors", "scales_h", "scales_w", "value")
"""Arguments that are constants only where they are given; `input_scale` of ELU no function of torch gives."""


class TorchProgram:
    """The steps of a torch function (see `program.Program`)."""

    framework = "torch"

    def __init__(
        self, function: Callable[..., Any], numbers: Numbers, *, transform: Transform = FORWARD, dtype: str = "float64"
    ) -> None:
        self._function, self._transform, self._dtype = function, transform, getattr(torch, dtype)
        mode = _mode({}, record=True)
        self.outputs = self._run(numbers, mode)
        self.steps = mode.steps
        self.constants = roles(self.steps, mode.constants)

    def run(self, numbers: Numbers, edits: Edits) -> dict[str, np.ndarray] | None:
        """Return the outputs with steps changed, or None where that does not run."""
        try:
            return self._run(numbers, _mode(edits, record=False))
        except RAISED:  # an operator that refuses the change: it explains nothing
            return None

    def _run(self, numbers: Numbers, mode: Any) -> dict[str, np.ndarray]:
        call = Call(self._function, self._transform, numbers, "float64")
        arrays = call.arrays(
            lambda v: torch.from_numpy(np.array(v, np.float64)).to(self._dtype), lambda v: torch.from_numpy(np.array(v))
        )
        with warnings.catch_warnings(), _decomposed_attention(), mode:
            warnings.simplefilter("ignore")
            outputs = call.program(Ops, is_float, arrays)
        return {name: _numpy(leaf) for name, leaf in outputs.items()}


def called(function: Callable[..., Any], numbers: Numbers) -> dict[str, str]:
    """Return by ATen operator the function of torch that a program called it by, where that is one."""
    calls: list[str] = []
    seen: dict[str, set[str]] = {}

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(getattr(func, "__name__", "")).strip("_"))
            try:
                return func(*args, **(kwargs or {}))
            finally:
                calls.pop()

    class Operators(torch_dispatch_mode()):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if calls:
                seen.setdefault(torch_schema(func).name.split("::")[-1], set()).add(calls[0])
            return func(*args, **(kwargs or {}))

    call = Call(function, FORWARD, numbers, "float64")
    arrays = call.arrays(lambda v: torch.from_numpy(np.array(v, np.float64)), lambda v: torch.from_numpy(np.array(v)))
    with warnings.catch_warnings(), Functions(), Operators():
        warnings.simplefilter("ignore")
        call.program(Ops, is_float, arrays)
    return {name: several.pop() for name, several in seen.items() if len(several) == 1}


@contextlib.contextmanager
def _decomposed_attention() -> Iterator[None]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


def _mode(edits: Edits, record: bool) -> Any:
    class Mode(torch_dispatch_mode()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[Step] = []
            self.constants: list[Constant] = []
            self.count = 0
            self.made: dict[int, Key] = {}
            self.kept: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            schema = torch_schema(func)
            operands, types_seen = _operands(schema, args, kwargs or {})
            if schema.name == "aten::detach":
                return self._detached(func(operands["self"]), operands["self"])
            key = self.count
            self.count += 1

            def compute(changed: dict[Operand, Any]) -> Any:
                _assert_statistics(changed)
                given = [changed[a.name] for a in schema.arguments if not a.kwarg_only and a.name in changed]
                named = {a.name: changed[a.name] for a in schema.arguments if a.kwarg_only and a.name in changed}
                return _widened(func, given, named)

            name = schema.name.split("::")[-1]
            edit = edits.get(key)
            operation = Operation(name, operands, compute, _numpy, _like)
            if edit is None:
                result = compute(operands)
            else:
                # On copies: a norm's running statistics must not be moved twice.
                usual = compute({o: v.clone() if isinstance(v, torch.Tensor) else v for o, v in operands.items()})
                result = _checked(edit(operation), usual)
            if record:
                self._record(key, name, schema, operands, result, types_seen)
            return result

        def _detached(self, result: Any, source: Any) -> Any:
            # Torch runs it where a tensor is held by others as well, as it is by what records: no step of the program.
            if record and id(source) in self.made:
                self.made[id(result)] = self.made[id(source)]
                self.kept.append(result)
            return result

        def _record(
            self,
            key: int,
            name: str,
            schema: Any,
            operands: dict[Operand, Any],
            result: Any,
            types_seen: tuple[str, ...],
        ) -> None:
            first = result[0] if isinstance(result, tuple | list) and result else result
            self.kept.append((operands, result))  # alive, so that no other tensor gets the same id
            sources = {o: self.made[id(v)] for o, v in operands.items() if id(v) in self.made}
            plain = {o: _numpy(v) if isinstance(v, torch.Tensor) else v for o, v in operands.items()}
            value = _numpy(first) if isinstance(first, torch.Tensor) else None
            self.steps.append(Step(key, name, plain, value, sources, types_seen))
            for one in result if isinstance(result, tuple | list) else (result,):
                if isinstance(one, torch.Tensor):
                    self.made[id(one)] = key
            self.constants.extend(_constants(key, name, schema, operands, sources))

    return Mode()


def _checked(changed: Any, usual: Any) -> Any:
    """Return a changed result that has as many tensors as the usual one: code in C++ (an LSTM's) reads them unasked."""
    if isinstance(usual, tuple | list):
        if not isinstance(changed, tuple | list) or len(changed) != len(usual):
            raise TypeError(f"expected {len(usual)} results")
    elif isinstance(usual, torch.Tensor) and not isinstance(changed, torch.Tensor):
        raise TypeError("expected a tensor")
    return changed


def _assert_statistics(operands: dict[Operand, Any]) -> None:
    """Raise where a norm that is told not to train has no statistics: torch ends the process."""
    if operands.get("training") is False and "running_mean" in operands and operands["running_mean"] is None:
        raise TypeError("expected running statistics where training is False")


def _widened(func: Any, given: list[Any], named: dict[str, Any]) -> Any:
    """Run an operator; where it makes float32 of integers, run it on float64 instead."""
    result = func(*given, **named)
    if not isinstance(result, torch.Tensor) or result.dtype not in LOW:
        return result
    wide = [v.to(torch.float64) if isinstance(v, torch.Tensor) and not v.is_floating_point() else v for v in given]
    try:
        again = func(*wide, **named)
    except RuntimeError:  # integers are what it takes
        return result.to(torch.float64)
    return again if again.dtype == torch.float64 else result.to(torch.float64)


def _operands(schema: Any, args: Any, kwargs: dict[str, Any]) -> tuple[dict[Operand, Any], tuple[str, ...]]:
    """Return what an operator was given by name, defaults with it, every float widened to float64; and its types."""
    given: dict[Operand, Any] = {}
    types: list[str] = []
    for place, argument in enumerate(schema.arguments):
        if place < len(args):
            value = args[place]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        elif argument.has_default_value():
            value = argument.default_value
        else:
            continue
        if isinstance(value, torch.Tensor) and value.dtype in LOW:
            types.append(_type(value.dtype))
            value = value.to(torch.float64)
        elif isinstance(value, torch.dtype) and value in LOW:
            types.append(_type(value))
            value = torch.float64
        elif isinstance(value, list) and any(isinstance(v, torch.Tensor) and v.dtype in LOW for v in value):
            value = [v.to(torch.float64) if isinstance(v, torch.Tensor) and v.dtype in LOW else v for v in value]
        given[argument.name] = value
    return given, tuple(types)


def _constants(
    key: int, name: str, schema: Any, operands: dict[Operand, Any], sources: dict[Operand, Key]
) -> Iterator[Constant]:
    for argument in schema.arguments:
        value = operands.get(argument.name)
        if isinstance(value, torch.Tensor) and value.ndim == 0 and value.is_floating_point():
            if argument.name not in sources:
                yield Constant(key, argument.name, as_written(float(value), _type(value.dtype)), name)
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if str(argument.type) in ("int", "Optional[int]") and argument.name not in INTEGERS:
            continue
        if argument.name in UNTOLD and argument.has_default_value() and value == argument.default_value:
            continue
        sums = argument.name == "alpha" and name.rstrip("_") in ("add", "sub", "rsub")  # no one passes it
        own = argument.name not in ("self", "other", "exponent", "value", "min", "max", "s") and not sums
        yield Constant(key, argument.name, float(value), argument.name if own else name, argument.name if own else "")


def _numpy(leaf: Any) -> np.ndarray:
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    if leaf.is_meta:
        return np.zeros(0)  # of which forward mode asks the shape alone
    leaf = leaf.detach()
    # By force: conjugates, and the tangents that forward mode knows to be zero, are no plain arrays.
    return np.array((leaf.to(torch.float64) if leaf.dtype in LOW else leaf).numpy(force=True))


def _like(values: np.ndarray, leaf: Any) -> Any:
    values = np.array(values)
    return torch.from_numpy(values).to(leaf.dtype if isinstance(leaf, torch.Tensor) else torch.float64)


def _type(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
