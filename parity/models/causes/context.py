"""What causes look at: one module of torch and its counterpart, as two programs whose steps can be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from parity.execution._compat import torch_dispatch_mode
from parity.execution.calls import Numbers
from parity.explanation._compat import torch_schema
from parity.explanation.claims import Claim
from parity.explanation.substitution import ROUNDING, SHRINK, WORK, Bench, bench, distance
from parity.models.bounds import was_rounded
from parity.models.causes.calls import Calls
from parity.records import Diagnosis


class Context:
    """A module pair, its two programs and what each of them returns, made once."""

    def __init__(self, pair: Calls) -> None:
        self.pair = pair

    @property
    def late(self) -> bool:
        """Whether as much was tried as is tried at most."""
        return self.work > WORK

    @property
    def work(self) -> float:
        """Steps that were run so far."""
        made = self.__dict__.get("bench")  # not read only to say that nothing was done
        return 0.0 if made is None else made.work

    @cached_property
    def numbers(self) -> Numbers:
        """The arrays, named by their places."""
        arrays = tuple(np.asarray(one) for one in self.pair.arrays)
        return Numbers.of(arrays, tuple(f"input {i}" for i in range(len(arrays))))

    @cached_property
    def bench(self) -> Bench | None:
        """Both programs, or None where one cannot be read."""
        made = bench(self._held(self.torch), self.jax, self.numbers)
        if made is not None:
            made.rounded = any(map(was_rounded, self.pair.fixed.values()))
        return made

    def _held(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of the arrays that is given those that JAX's module does not take as they were captured.

        Causes are proved on other numbers too. A mask that only torch's module is given must not change with them.
        """
        fixed = self.pair.fixed

        def held(*arrays: Any) -> Any:
            return function(*(_as(fixed[at], one) if at in fixed else one for at, one in enumerate(arrays)))

        return held

    def torch(self, *arrays: Any) -> Any:
        """Run the torch module with its own weights."""
        return self.pair.torch_function({}, *arrays)

    def jax(self, *arrays: Any) -> Any:
        """Run the JAX module with its own weights."""
        return self.pair.jax_function({}, *arrays)

    @cached_property
    def scopes(self) -> Mapping[Any, str]:
        """The module that ran each step of the torch program, by the step's place: "" is the module itself."""
        return dict(enumerate(self._record.owners))

    @cached_property
    def calls(self) -> tuple[str, ...]:
        """The modules that were called, in order, by relative name."""
        return tuple(self._record.calls)

    @cached_property
    def _record(self) -> _Scopes:
        from parity.explanation.programs.torch_program import TorchProgram

        record = _Scopes()
        try:
            steps = TorchProgram(record.watched(self.torch), self.numbers).steps
        except Exception:  # a module that cannot be watched has no scopes
            return _Scopes()
        # What is run before the module, such as copies of its arrays, has no owner.
        names = [step.name for step in steps]
        spare = range(len(names) - len(record.names) + 1)
        before = next((at for at in spare if names[at : at + len(record.names)] == record.names), None)
        record.owners = [] if before is None else [""] * before + record.owners
        return record

    def agree(self, torch_function: Any, *, where_finite: bool = False) -> bool:
        """Return whether another torch function gives the JAX module's results, on all the numbers.

        Args:
            torch_function: Of the arrays, in the place of the torch module.
            where_finite: Whether elements that become NaN are left out: what is masked whole is NaN in torch and the
                mean in JAX.
        """
        from parity.explanation.programs.torch_program import TorchProgram

        at = self.bench
        if at is None:
            return False
        for number, numbers in enumerate(at.numbers):
            at.work += at.cost["torch"]
            try:
                found = TorchProgram(self._held(torch_function), numbers).outputs
            except Exception:  # a change that does not run explains nothing
                return False
            want, was = at.outputs["jax"][number], at.outputs["torch"][number]
            if where_finite:
                found, want, was = _where_finite(found, want, was)
            before, after = distance(was, want), distance(found, want)
            if not after <= at.agreement or not after <= max(before / SHRINK, ROUNDING):
                return False
        return True

    def first(self, claims: Iterable[Claim]) -> Diagnosis | None:
        """Return the first claim that is proved, or None."""
        at = self.bench
        if at is None:
            return None
        for claim in claims:
            if self.late:
                return None
            if at.proves(claim.change):
                return claim.diagnosis()
        return None


def _as(array: np.ndarray, like: Any) -> Any:
    """Return an array as a tensor of another's type."""
    import torch

    return torch.from_numpy(np.array(array)).to(like.dtype)


def _where_finite(found: Any, *others: Any) -> list[dict[str, np.ndarray]]:
    """Return outputs without the elements that are NaN in the first: nothing of an output that has no other."""
    kept = {name: ~np.isnan(value) for name, value in found.items() if value.dtype.kind == "f"}
    return [
        {
            name: value[kept[name]] if name in kept and kept[name].shape == value.shape else value
            for name, value in one.items()
        }
        for one in (found, *others)
    ]


class _Scopes:
    """Which module runs each operator, seen by hooks on all modules and a mode that counts operators."""

    def __init__(self) -> None:
        self.owners: list[str] = []
        self.names: list[str] = []
        self.calls: list[str] = []
        self.stack: list[str] = []
        self._names: dict[int, str] = {}

    def watched(self, function: Any) -> Any:
        """Return a function that records while it runs."""
        from torch.nn.modules import module as hooks

        record = self

        class Counter(torch_dispatch_mode()):  # type: ignore[misc]
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                name = torch_schema(func).name
                if name != "aten::detach":
                    record.names.append(name.split("::")[-1])
                    record.owners.append(record.stack[-1] if record.stack else "")
                return func(*args, **(kwargs or {}))

        def enter(module: Any, inputs: Any) -> None:
            if not record.stack:
                record._names = {id(one): name for name, one in module.named_modules()}
            name = record._names.get(id(module), "?")
            record.calls.append(name)
            record.stack.append(name)

        def leave(module: Any, inputs: Any, outputs: Any) -> None:
            record.stack.pop()

        def run(*arrays: Any) -> Any:
            handles = [
                hooks.register_module_forward_pre_hook(enter),
                hooks.register_module_forward_hook(leave),
            ]
            try:
                with Counter():
                    return function(*arrays)
            finally:
                for handle in handles:
                    handle.remove()

        return run
