"""Both models run, their modules paired and judged: once with the weights as they are, once with perturbed ones."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from parity.models import findings, pairing, perturb
from parity.models.capture.call import Call
from parity.models.capture.once import Once, keep
from parity.models.inputs import Call as Arguments
from parity.models.judging import AGREES, Judged, Seen, directed, judge
from parity.models.matching import feed, pair_outputs
from parity.models.optimizers import OptimizerRefused
from parity.models.pairing import Pair
from parity.models.report import ModelReport
from parity.models.shelf import Shelf, give_back, give_back_large, layered
from parity.models.sides import NotInFloat64, Setting, float64, root, said, shapes
from parity.models.taken import LossIsNoNumber
from parity.models.weighing import Compared, Training
from parity.models.weights.jax_side import in_call_order
from parity.models.weights.mapping import map_trees
from parity.models.weights.matching import GUESS
from parity.models.weights.weight_map import WeightMap
from parity.names import unknown
from parity.verdict.bounds import UNIT

ORDER = ("identical", "within bound", "not judged", "unsupported", "differs")
"""Verdicts of a module, from best to worst."""

LARGE = 2**28
"""Bytes of weights from which on no call is kept from one run of the models to the next: they are run again instead."""

CUT = 1e-4
"""An error, relative, that does not vanish in the module around: if that agrees, the two are cut differently."""


@dataclass(eq=False)  # one is itself alone
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


@dataclass
class Comparison:
    """What `compare_models` was asked for; each side runs here, or ran elsewhere (`parity.models.sides`)."""

    torch: Any
    jax: Any
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
    changed: Mapping[str, np.ndarray] | None = None
    large: bool = False
    _again: tuple[Pass, Pass] | None = None

    def report(self) -> ModelReport:
        """Run everything and return the report."""
        self.begin()
        passes = [self._pass(None)]
        notes = [*self._settle(passes[0]), *self._dropout(), *getattr(self.jax, "notes", [])]
        if guessed := [pair.torch[0] for pair in self.map.pairs if pair.evidence == GUESS]:
            notes.append(f"paired by a guess, as neither names nor values say which is which: {', '.join(guessed)}")
        stop = self.fail_fast and any(not one.agrees for one in passes[0].judgements)
        pairs = [pair for pair in self.map.pairs if pair.kind != "buffer" and id(pair) not in self.doubted]
        if self.perturb and pairs and not stop and not (lone := self._perturbed_alone(pairs)):
            self.changed = Shelf(self.perturbed(pairs).items())
            give_back()
            second = self._pass(self.changed)
            if _is_finite(second) or not _is_finite(passes[0]):
                passes.append(second)
            else:
                notes.append("perturbed weights made infinities: judged with the weights as they are only")
        elif self.perturb and pairs and not stop:
            notes.append(
                f"perturbed weights were not compared: the dump changed {lone}, which the other model does not have"
            )
        return findings.report(self, passes, notes)

    def begin(self) -> None:
        """Read the weights of both sides and pair them."""
        self.tree, self.leaves = self.jax.tree, self.torch.tree.leaves
        self.torch_weights = self.torch.tree.weights()
        if self.weights is None:
            tree = in_call_order(self.tree, self.inputs[1]) if self.jax.live else self.tree
            self.map = map_trees(self.torch.tree, tree, rules=self.rules)
        else:
            self.map = replace(self.weights, unequal=self.weights.checked(self.torch.tree, self.tree))
        self.native = self.torch.native()
        self.outputs_alone: list[list[str]] = [[], []]
        self.other_axes: list[str] = []
        self.trained: Training | None = None
        self.once, self.changed = Once(), None
        size = sum(value.nbytes for value in self.torch_weights.values())
        self.large = size > LARGE
        if size > LARGE / 8:
            give_back_large()

    def _perturbed_alone(self, pairs: Sequence[Any]) -> str:
        """Return a weight that was perturbed where a model ran, and that is paired with none here; or nothing."""
        for side, attribute in ((self.torch, "torch"), (self.jax, "jax")):
            if not side.live:
                paired = {name for pair in pairs for name in getattr(pair, attribute)}
                changed = side.perturbed()
                lone = [name for name in changed if name not in paired]
                return lone[0] if lone else "" if changed else "nothing"
        return ""

    def perturbed(self, pairs: Sequence[Any]) -> dict[str, np.ndarray]:
        """Return perturbed weights by torch's names: made here, or where one of the models ran."""
        if self.jax.live:
            made: dict[str, np.ndarray] = self.torch.perturbed(pairs, self.seed)
            low = {
                name
                for pair in pairs
                if {self.leaves[name].dtype for name in pair.torch} & perturb.LOW
                or {self.tree.leaves[path].dtype for path in pair.jax} & perturb.LOW
                for name in pair.torch
            }
            return {name: perturb.shortened(value) if name in low else value for name, value in made.items()}
        values = {**self.tree.weights(), **self.jax.perturbed()}
        changed = {name: np.array(self.torch_weights[name]) for pair in pairs for name in pair.torch}
        for pair in pairs:
            for view, value in zip(pair.torch_views, pair.to_torch(values).values(), strict=True):
                view.put(changed[view.name], value)
        return changed

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

    def _dropout(self) -> list[str]:
        """Name the dropout that is off though the models train, or though torch's was handed over in training."""
        found = self.torch.dropout() if self.mode == "train" else self.torch.dropout_of_training()
        if not found:
            return []
        shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        if self.mode == "eval":
            return [f"the torch model is in training, with dropout ({shown}): both were compared as in evaluation"]
        text = f"dropout is off on both sides ({shown}): the frameworks draw other random numbers"
        if self.tree.framework in ("linen", "function"):
            text += "; a Linen module or a function follows its own arguments: pass deterministic=True"
        return [text]

    def again(self, one: Pass) -> Pass:
        """Return a pass whose calls can be run, and with what was judged: the same, or run anew where it let go."""
        if not any(call.forgotten for call in one.jax_calls):
            return one
        if self._again is None or self._again[0] is not one:
            self._again = None
            give_back()
            self._again = one, self._pass(self.changed if one.perturbed else None, judged=False)
        made = self._again[1]
        for old, new in zip(one.judgements, made.judgements, strict=True):
            new.found, new.call, new.perturbed = old.found, old.call, old.perturbed
        return made

    def gradients(self, one: Pass) -> tuple[list[Compared], str]:
        """Return the gradients of the paired weights and of the inputs, or why they were not compared."""
        if self.loss is not None and not (self.torch.live and self.jax.live):
            return [], "gradients were not compared: those of a dump are of a random projection, not of the loss given"
        if not self.tree.leaves:
            return [], "gradients were not compared: the JAX model has no weights that are seen from outside"
        try:
            run = self._backward(one)
            with float64(self.jax, on=one.double):
                return list(run.compare()), ""
        except LossIsNoNumber:
            raise
        except Exception as error:
            return [], f"gradients were not compared: {said(error)}"

    def training(self, one: Pass) -> tuple[list[Compared], str]:
        """Return running statistics after a forward, and parameters after steps, or why they were not compared."""
        found: list[Compared] = []
        if self.mode != "train" and self.optimizer is None:
            return found, ""
        if not (self.torch.live and self.jax.live):
            return found, "training was not compared: both models must run here for it"
        from parity.models import training

        try:
            with float64(self.jax, on=one.double):
                if self.mode == "train":
                    found += training.statistics(self._backward(one))
                if self.optimizer is not None:
                    self.trained = training.train(self._backward(one), self.optimizer, max(self.steps, 1))
                    found += self.trained.parameters
        except OptimizerRefused:
            raise
        except Exception as error:
            return found, f"training was not compared: {said(error)}"
        return found, ""

    def _backward(self, one: Pass) -> Any:
        from parity.models.backward import Backward

        types = {judgement.found.dtype for judgement in one.judgements if judgement.found.dtype in UNIT}
        least = max(types, key=lambda name: UNIT[name], default="float64")
        with float64(self.jax, on=one.double):
            return Backward(
                self.torch.model, self.jax.model, self.inputs, self.map, loss=self.loss, mode=self.mode,
                seed=self.seed, double=one.double, mapped=self.jax.mapped, native=self.native, least=least,
                outputs=(root(one.torch_calls).outputs, root(one.jax_calls).outputs),
                exact=self._settled(self.torch_weights, self.tree.weights()),
                elsewhere={name: side.elsewhere() for name, side in (("torch", self.torch), ("jax", self.jax))
                           if not side.live},
            )  # fmt: skip

    def _settled(self, ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return torch's weights in float64 where JAX's were computed of them, and rounded."""
        wrong = {id(one.pair) for one in self.map.unequal}
        return perturb.settled((pair for pair in self.map.pairs if id(pair) not in wrong), ours, theirs)

    def run_once(self, changed: Mapping[str, np.ndarray] | None) -> Pass:
        """Run both models, with other values of some weights, and pair their modules; nothing is judged."""
        return self._pass(changed, judged=False)

    def _pass(self, changed: Mapping[str, np.ndarray] | None, *, judged: bool = True) -> Pass:
        theirs: Mapping[str, np.ndarray] | None = None
        weights = self.tree.weights()
        exact = self._settled(self.torch_weights, weights)
        if changed is not None:
            whole = layered(changed, self.torch_weights)
            pairs = [pair for pair in self.map.pairs if any(name in changed for name in pair.torch)]
            theirs = Shelf(perturb.into_jax(pairs, whole, weights).items())
            exact = self._settled(whole, layered(theirs, weights))
            give_back()
        try:
            with float64(self.jax, on=True):
                return self._run(changed, theirs, exact, double=True, judged=judged)
        except NotInFloat64 as error:
            with float64(self.jax, on=False):
                made = self._run(changed, theirs, exact, double=False, why=str(error), judged=judged)
            made.why_single = str(error)
            return made

    def _run(
        self, changed: Mapping[str, np.ndarray] | None, theirs: Mapping[str, np.ndarray] | None,
        exact: dict[str, np.ndarray], *, double: bool, why: str = "", judged: bool = True,
    ) -> Pass:  # fmt: skip
        setting = Setting(self.mode, double, self.native, why)
        torch_calls = self.torch.calls(self.inputs[0], setting, changed, exact)
        self.native = self.torch.native()  # it is known now whether autocast is on
        wanted = root(torch_calls).outputs
        if changed is None:
            _check_outputs(wanted)
        jax_calls = self.jax.calls(self.inputs[1], replace(setting, native=self.native), theirs, wanted)
        placed, *self.outputs_alone = pair_outputs(wanted, root(jax_calls).outputs)
        self.other_axes = [
            f"{one.name} is {list(shape)} in torch and {list(one.jax.shape)} in JAX"
            for one in placed
            if (shape := wanted[one.name].shape) and len(shape) != one.jax.ndim
        ]
        keep((*torch_calls, *jax_calls), self.once)
        moved = feed(*directed(root(torch_calls), root(jax_calls))).moved
        for call in (*torch_calls, *jax_calls):
            call.moved = moved
        aliases = {name: leaf.alias_names for name, leaf in self.leaves.items()}
        pairs = pairing.modules(torch_calls, jax_calls, self.map.pairs, aliases, self.told)
        made = Pass(_nested(pairs, torch_calls), torch_calls, jax_calls, double, perturbed=changed is not None)
        if judged:
            self._judge(made)
            if self.large or made.perturbed or all(one.agrees for one in made.judgements):
                _forget([] if self.large else made.judgements, torch_calls, jax_calls)
        return made

    def _judge(self, made: Pass) -> None:
        """Judge each pair of modules, those that are asked for."""
        tables, seen = self.tables(), Seen()
        paths = [one.pair.path for one in made.judgements]
        if self.only is not None and not any(_is_wanted(path, self.only) for path in paths):
            raise ValueError(unknown("only", self.only, [path for path in paths if path]))
        for one in made.judgements:
            if self.only is not None and not _is_wanted(one.pair.path, self.only):
                one.found = Judged("not judged", reason="not asked for")
                continue
            if self.progress is not None:
                self.progress(one.pair.path or "the whole model")
            start = time.perf_counter()
            _judge(one, tables, seen, double=made.double, native=self.native)
            one.seconds = time.perf_counter() - start
            one.perturbed = made.perturbed
        _mark_cuts(made.judgements)

    def tables(self) -> Callable[[Pair], bool]:
        """Return what says whether a pair of modules keeps floats that are no weights of both, or that were computed.

        A sum of two biases is rounded where the port keeps it. A torch model that runs here is given such as give it.
        """
        ours = {name for pair in self.map.pairs for name in pair.torch}
        theirs = {pairing.clean(path) for pair in self.map.pairs for path in pair.jax}
        lone_torch = [name for name, leaf in self.leaves.items() if name not in ours and "float" in leaf.dtype]
        lone_jax = [
            pairing.clean(path)
            for path, leaf in self.tree.leaves.items()
            if pairing.clean(path) not in theirs and "float" in leaf.dtype
        ]

        def has(pair: Pair) -> bool:
            return (
                (not self.torch.live and any(held.transform.computes for held in pair.weights))
                or any(pairing.is_below(name, pair.torch.path) for name in lone_torch)
                or any(pairing.is_below(path, pair.jax.path) for path in lone_jax)
            )

        return has


def _judge(one: Judgement, tables: Callable[[Pair], bool], seen: Seen, *, double: bool, native: str) -> None:
    pair = one.pair
    worst: tuple[int, float] | None = None
    for at, (torch_call, jax_call) in enumerate(zip(pair.torch_calls, pair.jax_calls, strict=False)):
        found = judge(torch_call, jax_call, tables=tables(pair), double=double, native=native, seen=seen)
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


def _forget(judgements: Sequence[Judgement], torch_calls: Sequence[Call], jax_calls: Sequence[Call]) -> None:
    """Let go of what was captured of modules that agree, and with it of the copies of the models: they fill memory."""
    needed = {id(call) for one in judgements if not one.agrees for call in (*one.pair.torch_calls, *one.pair.jax_calls)}
    for call in (*torch_calls, *jax_calls):
        if id(call) not in needed and call.stored is None:
            call.forget(outputs=bool(call.path))
    give_back()


def _mark_cuts(judgements: Sequence[Judgement]) -> None:
    """Take back what was said of modules whose surrounding module agrees: the two models are cut differently there."""
    for one in judgements:
        above = one.parent
        while above is not None:
            around = judgements[above]
            if around.agrees and one.found.verdict == "differs":
                error = one.found.own_error or 0.0
                if (around.found.dtype == "float64" or error >= CUT) and _has_effect(one, around):
                    text = f"cut differently in JAX: {around.pair.path or 'the whole model'}, which holds it, agrees"
                    one.found = replace(one.found, verdict="not judged", reason=text, finding=None)
                break
            above = around.parent


def _has_effect(one: Judgement, around: Judgement) -> bool:
    """Return whether what a torch module gives matters to the module around it: not where a zero scale comes after it.

    That the one around agrees says nothing of a module whose outputs it multiplies by zero.
    """
    inner, outer = one.pair.torch_calls[0], around.pair.torch_calls[0]
    if inner.stored is not None or outer.stored is not None or inner.module is outer.module:
        return True
    from parity.models.capture.torch_modules import noisy

    try:
        with noisy(inner.module) as changed:
            found = outer.run(outer.values)
    except Exception:  # a module that does not run with other numbers: nothing is said against the one around
        return True
    before = outer.outputs.items()
    return not changed or any(not np.array_equal(found[name], value, equal_nan=True) for name, value in before)


def _check_outputs(outputs: Mapping[str, np.ndarray]) -> None:
    """Refuse a run that nothing can be told from."""
    if not any(value.size for value in outputs.values()):
        raise ValueError(f"the torch model gives {shapes(dict(outputs))}: expected at least one element to compare")
    floats = [value for value in outputs.values() if value.dtype.kind == "f" and value.size]
    if floats and not any(np.isfinite(value).any() for value in floats):
        raise ValueError("the torch model gives no finite number on these inputs: there is nothing to compare")


def _is_wanted(path: str, only: str) -> bool:
    return pairing.is_below(path, only) or fnmatch.fnmatchcase(path, only)


def _is_finite(one: Pass) -> bool:
    out = root(one.torch_calls).outputs
    return all(bool(np.isfinite(value).all()) for value in out.values() if value.dtype.kind == "f")


__all__ = ["Comparison", "Judgement", "Pass"]
