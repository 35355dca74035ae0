"""Both models run, their modules paired and judged: once with the weights as they are, once with perturbed ones."""

from __future__ import annotations

import copy
import fnmatch
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from parity.models import findings, pairing, perturb, training
from parity.models.backward import Backward
from parity.models.capture.call import Call
from parity.models.capture.jax_models import candidates
from parity.models.capture.jax_models import jax_model as jax_side
from parity.models.capture.torch_modules import TorchModel, without_dropout
from parity.models.inputs import Call as Arguments
from parity.models.judging import AGREES, Judged, judge
from parity.models.matching import pair_outputs, relative_distance
from parity.models.pairing import Pair
from parity.models.report import ModelReport
from parity.models.weights.jax_side import JaxTree, jax_tree
from parity.models.weights.mapping import map_trees
from parity.models.weights.torch_side import TorchTree
from parity.models.weights.weight_map import WeightMap
from parity.verdict.bounds import UNIT

ORDER = ("identical", "within bound", "not judged", "unsupported", "differs")
"""Verdicts of a module, from best to worst."""

CUT = 1e-4
"""An error, relative, that does not vanish in the module around: if that agrees, the two are cut differently."""


@dataclass
class Judgement:
    """A pair of modules and what came of it.

    Attributes:
        pair: The pair.
        found: Of the call that is worst.
        call: Which call that is.
        parent: The nearest pair around it, as a place in the list, or None.
        children: The nearest pairs in it.
        seconds: What judging took.
        perturbed: Whether it was seen with perturbed weights.
    """

    pair: Pair
    found: Judged
    call: int = 0
    parent: int | None = None
    children: list[int] = field(default_factory=list)
    seconds: float = 0.0
    perturbed: bool = False

    @property
    def agrees(self) -> bool:
        """Whether the JAX module is its torch module."""
        return self.found.verdict in AGREES


@dataclass
class Pass:
    """One run of both models.

    Attributes:
        judgements: In the order in which torch begins the modules.
        torch_calls: All calls of torch's modules.
        jax_calls: All calls of JAX's modules.
        double: Whether both ran in float64.
        why_single: Why not, where they did not.
        perturbed: Whether the weights were perturbed.
    """

    judgements: list[Judgement]
    torch_calls: list[Call]
    jax_calls: list[Call]
    double: bool
    why_single: str = ""
    perturbed: bool = False


def check_torch(model: Any) -> None:
    """Raise TypeError unless a model is one of torch's."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"torch_model: expected an nn.Module, got {type(model).__name__}")


@dataclass
class Comparison:
    """What `compare_models` was asked for."""

    torch_model: torch.nn.Module
    jax_model: Any
    inputs: tuple[Arguments, Arguments]
    weights: WeightMap | None
    told: dict[str, str]
    mode: str
    perturb: bool
    seed: int
    name: str
    rules: Sequence[Any]
    fail_fast: bool
    only: str | None
    strict: bool
    progress: Callable[[str], object] | None
    loss: Any
    optimizer: Any
    steps: int

    def report(self) -> ModelReport:
        """Run everything and return the report."""
        self.tree: JaxTree = jax_tree(self.jax_model)
        torch_tree = TorchTree(self.torch_model)
        self.torch_weights = torch_tree.weights()
        if self.weights is None:
            self.map = map_trees(torch_tree, self.tree, rules=self.rules)
        else:
            self.map = replace(self.weights, unequal=self.weights.check(self.torch_model, self.jax_model))
        self.leaves = torch_tree.leaves
        floats = [leaf.dtype for leaf in self.leaves.values() if leaf.kind == "parameter" and leaf.dtype in UNIT]
        self.native = max(floats, key=lambda name: UNIT[name], default="float32")
        self.outputs_alone: list[list[str]] = [[], []]
        passes = [self._pass(None)]
        notes = [*self._settle(passes[0]), *self._dropout(), *self._alone()]
        stop = self.fail_fast and any(not one.agrees for one in passes[0].judgements)
        pairs = [pair for pair in self.map.pairs if pair.kind != "buffer" and id(pair) not in self.doubted]
        if self.perturb and pairs and not stop:
            layers = {name: leaf.layer for name, leaf in self.leaves.items()}
            values = torch_tree.weights()
            changed = perturb.perturbed(values, layers, pairs, self.seed)
            second = self._pass(changed)
            if _is_finite(second) or not _is_finite(passes[0]):
                passes.append(second)
            else:
                notes.append("perturbed weights made infinities: judged with the weights as they are only")
        return findings.report(self, passes, notes)

    def _settle(self, first: Pass) -> list[str]:
        """Take back what was said of weights that cannot be wrong: their module agrees, so the rule was."""
        agree = {one.pair.torch.path: one.agrees for one in first.judgements if not one.children}
        kept, notes = [], []
        self.doubted: set[int] = set()
        for unequal in self.map.unequal:
            owners = {name.rpartition(".")[0] for name in unequal.pair.torch}
            if all(agree.get(owner, False) for owner in owners):
                self.doubted.add(id(unequal.pair))
                notes.append(
                    f"{unequal.pair.torch[0]}: its module agrees, so the rule {unequal.pair.rule!r} is wrong here"
                )
            else:
                kept.append(unequal)
        self.map = replace(self.map, unequal=tuple(kept))
        return notes

    def _alone(self) -> list[str]:
        """Name outputs that only one of the models gives."""
        return [
            f"only {side} gives the output{'s' * (len(names) > 1)} {', '.join(names[:4])}: not compared"
            for side, names in zip(("torch", "JAX"), self.outputs_alone, strict=True)
            if names
        ]

    def _dropout(self) -> list[str]:
        """Name the dropout that is off though the models train."""
        found = without_dropout(copy.deepcopy(self.torch_model).train()) if self.mode == "train" else []
        if not found:
            return []
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        text = f"dropout is off on both sides ({shown}): the frameworks draw other random numbers"
        if self.tree.framework in ("linen", "function"):
            text += "; a Linen module or a function follows its own arguments: pass deterministic=True"
        return [text]

    def gradients(self, one: Pass) -> tuple[list[Any], str]:
        """Return the gradients of the paired weights and of the inputs, or why they were not compared."""
        try:
            run = self._backward(one)
            with jax.enable_x64(one.double):
                return list(run.compare()), ""
        except Exception as error:
            return [], f"gradients were not compared: {_said(error)}"

    def training(self, one: Pass) -> tuple[list[Any], str]:
        """Return running statistics after a forward, and parameters after steps, or why they were not compared."""
        found: list[Any] = []
        try:
            with jax.enable_x64(one.double):
                if self.mode == "train":
                    found += training.statistics(self._backward(one))
                if self.optimizer is not None:
                    found += training.train(self._backward(one), self.optimizer, max(self.steps, 1)).parameters
        except Exception as error:
            return found, f"training was not compared: {_said(error)}"
        return found, ""

    def _backward(self, one: Pass) -> Backward:
        types = {judgement.found.dtype for judgement in one.judgements if judgement.found.dtype in UNIT}
        least = max(types, key=lambda name: UNIT[name], default="float64")
        with jax.enable_x64(one.double):
            return Backward(
                self.torch_model, self.jax_model, self.inputs, self.map, loss=self.loss, mode=self.mode,
                seed=self.seed, double=one.double, mapped=self.mapped, native=self.native, least=least,
            )  # fmt: skip

    def _pass(self, changed: dict[str, np.ndarray] | None) -> Pass:
        model = self.jax_model
        if changed is not None:
            whole = {**TorchTree(self.torch_model).weights(), **changed}
            pairs = [pair for pair in self.map.pairs if any(name in changed for name in pair.torch)]
            model = self.tree.replace(perturb.into_jax(pairs, whole, self.tree.weights()))
        try:
            with jax.enable_x64(True):
                return self._judged(model, changed, double=True)
        except _NotInFloat64 as error:
            made = self._judged(model, changed, double=False)
            made.why_single = str(error)
            return made

    def _judged(self, model: Any, changed: dict[str, np.ndarray] | None, *, double: bool) -> Pass:
        torch_calls = self._run_torch(changed, double=double)
        jax_calls = self._run_jax(model, torch_calls, double=double)
        aliases = {name: leaf.alias_names for name, leaf in self.leaves.items()}
        pairs = pairing.modules(torch_calls, jax_calls, self.map.pairs, aliases, self.told)
        judgements = _nested(pairs, torch_calls)
        tables = self._tables()
        for one in judgements:
            if self.only is not None and not _is_wanted(one.pair.path, self.only):
                one.found = Judged("not judged", reason="not asked for")
                continue
            if self.progress is not None:
                self.progress(one.pair.path or "the whole model")
            start = time.perf_counter()
            _judge(one, tables, double=double, native=self.native)
            one.seconds = time.perf_counter() - start
            one.perturbed = changed is not None
        _mark_cuts(judgements)
        return Pass(judgements, torch_calls, jax_calls, double, perturbed=changed is not None)

    def _run_torch(self, changed: dict[str, np.ndarray] | None, *, double: bool) -> list[Call]:
        side = TorchModel(self.torch_model, self.mode, double=double)
        if changed is not None:
            TorchTree(side.model).write(changed)
        args, kwargs = self.inputs[0]
        try:
            return side.capture(args, kwargs)
        except Exception as error:
            if double:
                raise _NotInFloat64(f"the torch model does not run in float64 ({_said(error)})") from error
            raise ValueError(f"the torch model does not run on these inputs: {_said(error)}") from error

    def _run_jax(self, model: Any, torch_calls: list[Call], *, double: bool) -> list[Call]:
        args, kwargs = jax.tree.map(lambda leaf: _device(leaf, double=double), self.inputs[1])
        wanted = next(call for call in torch_calls if not call.path).outputs
        found: list[tuple[float, bool, list[Call]]] = []
        errors: list[Exception] = []
        gave = ""
        for mapped in candidates(self.tree.framework):
            try:
                side = jax_side(self.tree.framework, model, self.mode, double=double, mapped=mapped, native=self.native)
                calls = side.capture(args, kwargs)
            except Exception as error:
                errors.append(error)
                continue
            out = next(call for call in calls if not call.path).outputs
            placed, _, _ = pair_outputs(wanted, out)
            gave = gave or _shapes(out)
            if placed:
                found.append((max(relative_distance(one.torch, one.jax) for one in placed), mapped, calls))
        if found:
            _, self.mapped, calls = min(found, key=lambda one: one[0])
            _, *self.outputs_alone = pair_outputs(wanted, next(call for call in calls if not call.path).outputs)
            return calls
        if not gave:
            if double:
                raise _NotInFloat64(f"the JAX model does not run in float64 ({_said(errors[0])})")
            raise ValueError(f"the JAX model does not run on these inputs: {_said(errors[0])}") from errors[0]
        raise ValueError(
            f"the outputs do not correspond: the torch model gives {_shapes(wanted)}; the JAX model {gave}"
        )

    def _tables(self) -> Callable[[Pair], bool]:
        """Return what says whether a pair of modules keeps floats that are no weights of both."""
        ours = {name for pair in self.map.pairs for name in pair.torch}
        theirs = {pairing.clean(path) for pair in self.map.pairs for path in pair.jax}
        lone_torch = [name for name, leaf in self.leaves.items() if name not in ours and "float" in leaf.dtype]
        lone_jax = [
            pairing.clean(path)
            for path, leaf in self.tree.leaves.items()
            if pairing.clean(path) not in theirs and "float" in leaf.dtype
        ]

        def has(pair: Pair) -> bool:
            return any(pairing.is_below(name, pair.torch.path) for name in lone_torch) or any(
                pairing.is_below(path, pair.jax.path) for path in lone_jax
            )

        return has


class _NotInFloat64(Exception):
    """One of the models does not run in float64; the message says which, and why."""


def _judge(one: Judgement, tables: Callable[[Pair], bool], *, double: bool, native: str) -> None:
    pair = one.pair
    worst: tuple[int, float] | None = None
    for at, (torch_call, jax_call) in enumerate(zip(pair.torch_calls, pair.jax_calls, strict=False)):
        found = judge(torch_call, jax_call, tables=tables(pair), double=double, native=native)
        badness = (ORDER.index(found.verdict), found.own_error or 0.0)
        if worst is None or badness > worst:
            worst, one.found, one.call = badness, found, at
    numbers = len(pair.torch_calls), len(pair.jax_calls)
    if numbers[0] != numbers[1]:
        said = f"torch calls it {_times(numbers[0])}, JAX {_times(numbers[1])}"
        one.found.reason = f"{one.found.reason}; {said}" if one.found.reason else said


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _nested(pairs: Sequence[Pair], torch_calls: Sequence[Call]) -> list[Judgement]:
    """Return pairs with the nearest pair around each: by who calls whom."""
    by_order = {call.order: call for call in torch_calls}
    place = {call.order: at for at, pair in enumerate(pairs) for call in pair.torch_calls}
    made = [Judgement(pair, Judged("not judged")) for pair in pairs]
    for at, one in enumerate(made):
        above = one.pair.torch_calls[0].parent
        while above is not None:
            if above in place and place[above] != at:
                one.parent = place[above]
                made[place[above]].children.append(at)
                break
            above = by_order[above].parent
    return made


def _mark_cuts(judgements: Sequence[Judgement]) -> None:
    """Take back what was said of modules whose surrounding module agrees: the two models are cut differently there."""
    for one in judgements:
        above = one.parent
        while above is not None:
            around = judgements[above]
            if around.agrees and one.found.verdict == "differs":
                error = one.found.own_error or 0.0
                if around.found.dtype == "float64" or error >= CUT:
                    text = f"cut differently in JAX: {around.pair.path or 'the whole model'}, which holds it, agrees"
                    one.found = replace(one.found, verdict="not judged", reason=text, finding=None)
                break
            above = around.parent


def _is_wanted(path: str, only: str) -> bool:
    return pairing.is_below(path, only) or fnmatch.fnmatchcase(path, only)


def _device(leaf: Any, *, double: bool) -> Any:
    if not isinstance(leaf, np.ndarray):
        return leaf
    return jnp.asarray(leaf, jnp.float64 if double else jnp.float32) if leaf.dtype.kind == "f" else jnp.asarray(leaf)


def _is_finite(one: Pass) -> bool:
    out = next(call for call in one.torch_calls if not call.path).outputs
    return all(bool(np.isfinite(value).all()) for value in out.values() if value.dtype.kind == "f")


def _shapes(outputs: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items()) or "no array"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


__all__ = ["Comparison", "Judgement", "Pass", "check_torch"]
