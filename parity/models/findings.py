"""The report of two passes over the models, with the first module that makes an error, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.models import pairing, replay, second_faults
from parity.models.capture.call import Call
from parity.models.causes import diagnose, shared, sizes
from parity.models.causes.weights import diagnose_weights
from parity.models.judging import AGREES
from parity.models.report import ModelReport, Module
from parity.models.shelf import layered
from parity.models.weighing import Compared, Statistic
from parity.models.weights.tree import shared_path
from parity.records import WHO, Diagnosis

if TYPE_CHECKING:
    from parity.models.runs import Comparison, Judgement, Pass

AGREE_IN_PLACE = {True: 1e-9, False: 1e-4}
"""Relative distance of inputs that count as equal, by whether both computed in float64 throughout."""

WEIGHTS = "weight value"
BETWEEN = "code between the children"
UNKNOWN = "unknown"
PRECISION = "precision"
SHAPE = "output shape"
OUTPUTS = "number of outputs"


BUDGET = 900_000
"""Steps that are run while causes are looked for, after the first module: that one is looked at whole."""

NOT_SEARCHED = "its cause was not looked for, because one of the two ran elsewhere"

ELSEWHERE = (
    "{}'s model ran elsewhere, so causes that are proved by changing its program were not looked for: arguments and "
    "constants such as eps, a scale or a rotary base, activations, masks, positions, order of heads and of norms, "
    "residuals, terms left out. Weights, types and shapes were. Compare both models in one process to have such a "
    "cause named"
)
"""Beside a module that differs from its counterpart in a dump."""


@dataclass
class Searched:
    """What was found of modules so far: a model of many layers has the same fault in each.

    Attributes:
        found: The first module of each pair of classes and kind that a cause was looked for in, and what came of it.
        work: Steps that were run for the modules so far, one number for each.
        elsewhere: Names of the frameworks whose modules ran elsewhere, so that no cause was looked for in them.
    """

    found: dict[tuple[Any, ...], tuple[str, Diagnosis | None]] = field(default_factory=dict)
    work: list[float] = field(default_factory=list)
    elsewhere: set[str] = field(default_factory=set)

    def named(self, asked: Comparison, one: Pass, at: int) -> Diagnosis | None:
        """Return the cause of a module: as of an earlier one of its classes, or looked for where not too much was."""
        pair, call = one.judgements[at].pair, one.judgements[at].call
        stored = pair.torch_calls[call], pair.jax_calls[call]
        dumped = {name for name, side in zip(WHO.values(), stored, strict=True) if side.stored and not side.forgotten}
        if dumped:  # there is no program of it here
            self.elsewhere |= dumped
            return None
        classes = stored[0].owner, stored[1].owner, _kind(asked, pair)
        if classes in self.found:
            path, known = self.found[classes]
            return None if known is None else replace(known, text=f"Likely as {path or 'the model'}: {known.text}")
        if sum(self.work) > BUDGET:
            return None
        import jax  # only here: what was judged of a dump needs one framework

        judgement = one.judgements[at]
        if any(side.forgotten for side in stored):  # the models run again where its calls were let go of
            judgement = asked.again(one).judgements[at]
        with jax.enable_x64(one.double):
            made = diagnose(judgement.pair, judgement.call, self.work)
        self.found[classes] = pair.torch.path, made
        return made


def report(asked: Comparison, passes: Sequence[Pass], notes: list[str]) -> ModelReport:
    """Return the report of passes: of each module the worst of them."""
    from parity.models.runs import ORDER

    modules: list[Module] = []
    shown: list[tuple[Pass, Judgement]] = []
    by_key: dict[tuple[Any, Any], list[tuple[Pass, Judgement]]] = {}
    for one in passes:
        for judgement in one.judgements:
            by_key.setdefault((judgement.pair.torch, judgement.pair.jax), []).append((one, judgement))
    unequal = _unequal(asked)
    place: dict[tuple[Any, Any], int] = {}
    for key, seen in by_key.items():
        worst = max(seen, key=lambda one: ORDER.index(one[1].found.verdict))
        if worst[1].found.verdict != "differs" and seen[0][1].found.verdict in AGREES:
            worst = seen[0]
        place[key] = len(modules)
        shown.append(worst)
        modules.append(_module(worst[1], weights=unequal))
    for (one, judgement), module in zip(shown, modules, strict=True):
        parent = one.judgements[judgement.parent] if judgement.parent is not None else None
        module.parent = None if parent is None else place.get((parent.pair.torch, parent.pair.jax))
    children: dict[int | None, list[int]] = {}
    for at, module in enumerate(modules):
        children.setdefault(module.parent, []).append(at)
    made = _makers(modules, children, None)
    searched = Searched()
    for at in made:
        one, judgement = shown[at]
        below = [modules[i] for i in children.get(at, [])]
        modules[at].makes = True
        modules[at].diagnosis = _diagnosis(asked, one, judgement, below, unequal, searched)
    made += second_faults.found(asked, shown, modules, children, searched.work)
    notes += [ELSEWHERE.format(name) for name in sorted(searched.elsewhere)]
    for module in modules:
        if module.verdict == "differs" and not module.makes and not module.reason:
            inside = next((modules[i].path for i in made if pairing.is_below(modules[i].path, module.path)), "")
            module.reason = f"of what is in it: {inside}" if inside else ""
    first = passes[0]
    single = next((one.why_single for one in passes if not one.double), "")
    if single:
        notes.append(f"judged in float32: {single}")
    gradients: list[Compared] = []
    trained: list[Compared] = []
    if not made and asked.only is None:
        gradients, note = asked.gradients(passes[0])
        trained, other = asked.training(passes[0])
        if any(one.verdict == "differs" for one in gradients):
            made = _backward_alone(asked, passes[0], modules, place)
        made = made or _statistics(modules, trained)
        notes += [text for text in (note, other) if text]
    elif made:
        notes.append("gradients are compared where the outputs agree")
    if asked.only is None and (lone := _other_outputs(asked, first) or _other_axes(asked)) is not None:
        root = place.get((pairing.Node(""), pairing.Node("")))
        if root is not None and all(modules[at].verdict != "differs" for at in made):
            # What both give may agree, or all but its gradients: the models are two functions all the same.
            if (also := modules[root].diagnosis) is not None:
                lone = replace(lone, text=f"{lone.text}; and {also.cause}: {also.text}", fix=f"{lone.fix} {also.fix}")
            modules[root].verdict, modules[root].makes, modules[root].diagnosis = "differs", True, lone
            made = [root, *(at for at in made if at != root)]
        else:
            notes.append(lone.text)
    if asked.tree.framework == "function":
        notes.append("a function has no modules: it is judged as a whole")
        if not asked.tree.leaves:
            notes.append(
                "the function holds its own weights: pass (function, params) to have them paired and perturbed"
            )
    saved = replay.few(
        [
            replay.kept(asked, modules[at].path, shown[at][1].pair.torch_calls[modules[at].call], modules[at].call,
                        shown[at][0].perturbed, modules[at].verdict)
            for at in made
            if modules[at].verdict == "differs" and asked.jax.live
        ]
    )  # fmt: skip
    alone = _unpaired(first)
    notes += [*_parted(asked, alone, "torch", "jax"), *_parted(asked, alone, "jax", "torch")]
    return ModelReport(
        name=asked.name,
        modules=modules,
        first=modules[made[0]] if made else None,
        weights=asked.map,
        gradients=gradients,
        training=trained,
        steps=asked.trained,
        unpaired=alone,
        notes=notes,
        mode=asked.mode,
        framework=asked.tree.framework,
        precision="float64" if not single else "float32",
        seed=asked.seed,
        perturbed=len(passes) > 1,
        strict=asked.strict,
        saved=saved,
    )


def _other_outputs(asked: Comparison, one: Pass) -> Diagnosis | None:
    """Say that one model gives outputs that the other does not, and which layers it does not run, if so."""
    lone = {WHO[side]: names for side, names in zip(WHO, asked.outputs_alone, strict=True) if names}
    if not lone:
        return None
    each = [
        f"only {side} gives {', '.join(names[:4])}" + (", ..." if names[4:] else "") for side, names in lone.items()
    ]
    text = f"the two models give other numbers of outputs: {' and '.join(each)}"
    if idle := _never_called(asked, one):
        text += f"; JAX never calls {', '.join(idle[:4])}, whose weights are paired"
    return Diagnosis(OUTPUTS, text, "Return the same from both, or compare a wrapper that returns what both have.")


def _other_axes(asked: Comparison) -> Diagnosis | None:
    """Say that an output of the models has another number of axes: it was compared without those of length 1."""
    if not asked.other_axes:
        return None
    text = f"{' and '.join(asked.other_axes)}: the numbers of axes differ"
    return Diagnosis(SHAPE, text, "Return one shape from both: squeeze the axis of length 1, or add it.")


def _never_called(asked: Comparison, one: Pass) -> list[str]:
    """Return the modules of JAX that own weights of layers that torch runs, and that JAX never calls."""
    if asked.tree.framework == "function":
        return []
    ran, called = {call.path for call in one.torch_calls}, {call.path for call in one.jax_calls}
    found: dict[str, bool] = {}
    for pair in asked.map.pairs:
        if all(name.rpartition(".")[0] in ran for name in pair.torch):
            owner = pairing.clean(pair.jax[0]).rpartition(".")[0]
            found[owner] = found.get(owner, False) or owner in called
    return [owner for owner, runs in found.items() if owner and not runs]


def _kind(asked: Comparison, pair: Any) -> tuple[Any, ...]:
    """Return what else tells layers of one class apart: which weights lack a partner, and the sizes of its kernels.

    A convolution of one place needs no padding: what is wrong with it is not what is wrong with one of three.
    """
    path = pair.torch.path
    left = {name.rpartition(".")[2] for name in asked.map.unpaired.torch if path and name.startswith(f"{path}.")}
    kernels = {view.name: asked.leaves[view.name].shape[2:] for one in pair.weights for view in one.torch_views}
    return frozenset(left), frozenset(kernels.values())


def _backward_alone(
    asked: Comparison, one: Pass, modules: list[Module], place: dict[tuple[Any, Any], int]
) -> list[int]:
    """Name the module whose backward alone is wrong, where there is one; return its place."""
    from parity.models import backward_alone
    from parity.models.sides import float64

    with float64(asked.jax, on=one.double):
        found = backward_alone.first(asked.again(one).judgements, double=one.double, seed=asked.seed)
    if found is None:
        return []
    at = place[found[0].pair.torch, found[0].pair.jax]
    modules[at].makes, modules[at].diagnosis = True, found[1]
    return [at]


def _statistics(modules: Sequence[Module], trained: Sequence[Compared]) -> list[int]:
    """Name the first module whose running statistics are others after a step, where there is one; return its place."""
    wrong = [one for one in trained if isinstance(one, Statistic) and one.verdict == "differs"]
    owners = [one.torch.rpartition(".")[0] for one in wrong]
    for at, module in enumerate(modules):
        found = [one for one, owner in zip(wrong, owners, strict=True) if owner == module.path]
        if found:
            told = next((one for one in found if "momentum" in one.reason), found[0])
            cause = "momentum" if "momentum" in told.reason else "running statistics"
            fix = "Use one momentum (torch's momentum m is 1 - m in Flax and Equinox), and keep the new statistics."
            module.makes, module.diagnosis = True, Diagnosis(cause, f"{told.torch} after a step: {told.reason}", fix)
            return [at]
    return []


def _module(judgement: Judgement, *, weights: dict[str, Any]) -> Module:
    found, pair = judgement.found, judgement.pair
    return Module(
        path=pair.torch.path,
        jax_path=pair.jax.path if pair.jax.layer is None else f"{pair.jax.path}[{pair.jax.layer}]",
        verdict=found.verdict,
        own_error=found.own_error,
        inherited_error=found.inherited_error,
        torch_type=pair.torch_calls[0].class_name,
        jax_type=pair.jax_calls[0].class_name,
        ratio=found.ratio,
        dtype=found.dtype,
        reason=found.reason,
        finding=found.finding,
        calls=len(pair.torch_calls),
        call=judgement.call,
        perturbed=judgement.perturbed and found.verdict == "differs",
        seconds=judgement.seconds,
        order=pair.torch_calls[0].order,
    )


def _makers(modules: Sequence[Module], children: dict[int | None, list[int]], at: int | None) -> list[int]:
    """Return the modules that make an error of their own, in the order in which torch runs them."""
    below = [maker for child in children.get(at, []) for maker in _makers(modules, children, child)]
    if at is None or modules[at].verdict != "differs":
        return below
    return below or [at]


def _unequal(asked: Comparison) -> dict[str, Any]:
    """Return the pairs of weights that are not equal, by the names of torch's."""
    return {name: one for one in asked.map.unequal for name in one.pair.torch}


def _unpaired(one: Pass) -> dict[str, list[str]]:
    """Return the modules that ran and have no partner, of each side: only those that own weights can have one."""
    paired = [{judgement.pair.torch.path for judgement in one.judgements},
              {judgement.pair.jax.path for judgement in one.judgements}]  # fmt: skip
    found: dict[str, list[str]] = {}
    for side, calls, known in (("torch", one.torch_calls, paired[0]), ("jax", one.jax_calls, paired[1])):
        found[side] = list(dict.fromkeys(call.path for call in calls if call.path not in known))
    return found


def _parted(asked: Comparison, unpaired: dict[str, list[str]], side: str, other: str) -> list[str]:
    """Return which modules hold the weights of several of the other side, as an LSTM of torch those of its layers."""
    found: dict[str, list[str]] = {}
    for path in sorted(unpaired[side], key=len, reverse=True):
        if not path or any(pairing.is_below(inner, path) for inner in found):
            continue
        names = [
            tuple(pairing.clean(name).split("."))
            for one in asked.map.pairs
            if any(pairing.is_below(pairing.clean(name), path) for name in getattr(one, side))
            for name in getattr(one, other)
        ]
        depth = len(shared_path(names)) + 1
        parts = list(dict.fromkeys(".".join(name[:depth]) for name in names))
        if len(parts) > 1 and all(part in unpaired[other] for part in parts):
            found[path] = parts
    return [
        f"{path} is one module in {WHO[side]} and {len(parts)} in {WHO[other]} ({', '.join(parts[:4])}"
        f"{', ...' * (len(parts) > 4)}): all are judged as part of what is around them"
        for path, parts in found.items()
    ]


def _diagnosis(
    asked: Comparison, one: Pass, judgement: Judgement, below: Sequence[Module], unequal: dict[str, Any],
    searched: Searched,
) -> Diagnosis:  # fmt: skip
    pair = judgement.pair
    torch_call, jax_call = pair.torch_calls[judgement.call], pair.jax_calls[judgement.call]
    if not one.perturbed:
        wrong = [unequal[name] for held in pair.weights for name in held.torch if name in unequal]
        if wrong:
            return _of_weights(asked, wrong)
    values = layered(asked.changed, asked.torch_weights) if one.perturbed and asked.changed else asked.torch_weights
    if not below and (swapped := shared.diagnose(judgement, one.judgements, values)) is not None:
        return swapped
    if judgement.found.precision:
        text = judgement.found.precision
        return Diagnosis(PRECISION, text, "compute in the dtype of the other, or give both models the same dtype")
    alone = any(pairing.is_below(pairing.clean(name), pair.jax.path) for name in asked.map.unpaired.jax)
    if alone and (apart := _without_partner(asked, one, pair.torch.path)) is not None:
        return apart  # both keep weights that nobody compared: what would be proved of them is chance
    found = searched.named(asked, one, one.judgements.index(judgement))
    if found is not None:
        return found
    where = f"{pair.torch.path or 'the model'} ({torch_call.class_name})"
    if below:
        unsure = [module.path for module in below if module.verdict not in AGREES]
        each = f"each of them agrees but {', '.join(unsure[:3])}, which could not be judged" if unsure else (
            "each of them agrees"
        )  # fmt: skip
        text = f"the code between the children of {where}: {each}, and the whole does not"
        text += f" ({NOT_SEARCHED})" if searched.elsewhere else ""
        near = _between(one, judgement, below)
        if (apart := _without_partner(asked, one, pair.torch.path)) is not None:
            return replace(apart, text=apart.text + near)
        fix = f"compare what {torch_call.class_name}.forward and {jax_call.class_name}"
        return Diagnosis(BETWEEN, text + near, f"{fix} do there, line by line")
    if judgement.found.own_error is None:
        again = (
            judgement if torch_call.module is not None else asked.again(one).judgements[one.judgements.index(judgement)]
        )
        if (other := sizes.diagnose(again)) is not None:
            return other
        return Diagnosis(
            SHAPE, f"{where}: {judgement.found.reason}", "compare stride, padding and sizes of the two layers"
        )
    if not asked.map.pairs and asked.torch_weights and asked.tree.leaves:
        return _unpaired_weights(asked)
    if (apart := _without_partner(asked, one, pair.torch.path)) is not None:
        return apart
    weights = " with the same weights" if pair.weights else "" if asked.map.pairs else ", and no weights are paired"
    searched_for = NOT_SEARCHED if searched.elsewhere else "no known cause explains it"
    text = f"{where} gives another result on the same input{weights}; {searched_for}"
    return Diagnosis(UNKNOWN, text, f"compare its forward with {jax_call.class_name} in JAX")


def _without_partner(asked: Comparison, one: Pass, path: str) -> Diagnosis | None:
    """Say of a module that no weight of JAX is paired with some that are used in it, if there are any."""
    ran = {call.path for call in one.torch_calls}
    left = [
        name
        for name in asked.map.unpaired.torch
        if (not path or name.startswith(f"{path}.")) and name.rpartition(".")[0] in ran
    ]
    if not left or not asked.map.pairs:  # nothing is paired: that is said apart, or the function holds its weights
        return None
    why = next((asked.map.unpaired.reasons[name] for name in left if name in asked.map.unpaired.reasons), "")
    more = f" and {len(left) - 1} more have" if len(left) > 1 else " has"
    return Diagnosis(
        "weights not paired",
        f"Likely: {left[0]}{more} no partner in JAX" + (f": {why}" if why else ""),
        "Build both with the same sizes; where names and layouts differ, say which is which: rules=[parity.Rule(..)]",
    )


def _unpaired_weights(asked: Comparison) -> Diagnosis:
    """Say that no weight of torch's has a partner, with the first of each side."""
    ours, theirs = next(iter(asked.leaves.values())), next(iter(asked.tree.leaves.values()))
    text = (
        f"no weight of torch's has a partner in JAX: torch has {ours.name} {list(ours.shape)} .., JAX "
        f"{theirs.name} {list(theirs.shape)} .."
    )
    return Diagnosis(
        "weights not paired", text,
        "Build both with the same sizes; where names and layouts differ, say which is which: rules=[parity.Rule(..)]",
    )  # fmt: skip


def _of_weights(asked: Comparison, wrong: Sequence[Any]) -> Diagnosis:
    names = list(dict.fromkeys(str(one) for one in wrong))
    total = len(asked.map.pairs)
    exchanged = all(one.cause == "exchanged" for one in asked.map.unequal)
    if len(asked.map.unequal) > total / 2 and not exchanged:
        text = f"{len(asked.map.unequal)} of {total} weights are not equal ({names[0]}): were torch's loaded?"
        return Diagnosis(
            WEIGHTS,
            text,
            "jax_model = parity.map_weights(torch_model, jax_model).load_into_jax(torch_model, jax_model)",
        )
    pairs = [one.pair for one in asked.map.unequal if one not in wrong]
    pairs = [*(one.pair for one in wrong), *pairs, *asked.map.pairs]
    explained = diagnose_weights(pairs, asked.torch_weights, asked.tree.weights())
    if explained and min(explained) < len(wrong):
        return explained[min(explained)]
    return Diagnosis(WEIGHTS, "; ".join(names[:3]), f"load {wrong[0].pair.torch[0]} as {wrong[0].pair.rule}")


def _unpaired_before(one: Pass, judgement: Judgement, child: Judgement, since: int) -> str:
    """Return the first torch module with paired weights and no partner that ran before a child, after another."""
    weights = [name for pair in judgement.pair.weights for name in pair.torch]
    paired = {other.pair.torch.path for other in one.judgements}
    for call in sorted(one.torch_calls, key=lambda call: call.order):
        ours = any(pairing.is_below(name, call.path) for name in weights)
        if since < call.order < child.pair.torch_calls[0].order and ours and call.path not in paired:
            return call.path
    return ""


def _times(child: Judgement, limit: float) -> str:
    """Say of a child's input that it is a number times torch's, where every element is."""
    found = child.found
    sides = (child.pair.torch_calls, found.fed.get(found.worst_input)), (child.pair.jax_calls, found.worst_input)
    want, got = (
        next((leaf.value for leaf in calls[child.call].inputs if leaf.name == name and leaf.is_float), None)
        for calls, name in sides
    )
    if want is None or got is None or want.shape != got.shape or want.size < 2 or not np.any(want):
        return ""
    want, got = want.astype(np.float64), got.astype(np.float64)
    times = float(np.vdot(want, got) / np.vdot(want, want))
    if not times or not np.abs(got - times * want).max() <= limit * np.abs(got).max():
        return ""
    return f": it is {times:.6g} times torch's everywhere, so a factor is left out or added, as a scale of embeddings"


def _between(one: Pass, judgement: Judgement, below: Sequence[Module]) -> str:
    """Return where between the children the two part: the first whose inputs differ, where the models run whole."""
    # Some module computes in less than float64, so what comes after it parts by as much.
    in_double = one.double and all(other.found.dtype == "float64" for other in one.judgements)
    limit = AGREE_IN_PLACE[in_double]
    if judgement.found.inputs > limit:
        return ""  # what its children were given is inherited
    inside = sorted(
        (one.judgements[at] for at in judgement.children), key=lambda child: child.pair.torch_calls[0].order
    )
    before = unsure = ""
    since = -1
    for child in inside:
        if child.found.inputs > limit:
            name = child.found.worst_input
            after = f"though {before} agrees" if before else "before any weight is used"
            if unsure:
                after = f"after {unsure}, which could not be judged"
            elif alone := _unpaired_before(one, judgement, child, since):
                after = f"after {alone}, whose weights are paired, and which is no one module in JAX"
            return f". The input {name!r} of {child.pair.path} differs {after}{_times(child, limit)}"
        before, unsure = child.pair.path, "" if child.agrees else child.pair.path
        since = child.pair.torch_calls[0].order
    return f". The inputs of all of them agree: it is after {before}" if before else ""


__all__ = ["Call", "report"]
