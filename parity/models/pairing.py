"""Which modules of the two models correspond: those that hold the same paired weights."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from parity.models.capture.call import Call
from parity.models.matching import feed, pair_outputs, relative_distance
from parity.models.weights.tree import BUFFER


@dataclass(frozen=True)
class Node:
    """A module as it runs: in a stack, which layer; of a module with several methods, which method."""

    path: str
    layer: int | None = None
    method: str = "__call__"

    def __str__(self) -> str:
        text = self.path or "(the model)"
        text += "" if self.layer is None else f"[{self.layer}]"
        return text if self.method == "__call__" else f"{text}.{self.method}"


@dataclass
class Pair:
    """A torch module and a JAX module that hold the same weights."""

    torch: Node
    jax: Node
    torch_calls: list[Call]
    jax_calls: list[Call]
    weights: list[Any] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Of the torch module."""
        return self.torch.path


def modules(
    torch_calls: Sequence[Call], jax_calls: Sequence[Call], weight_pairs: Sequence[Any],
    aliases: Mapping[str, Iterable[str]], told: Mapping[str, str],
) -> list[Pair]:  # fmt: skip
    """Return the pairs of modules, in the order in which torch runs them.

    Args:
        torch_calls: Of the torch model.
        jax_calls: Of the JAX model.
        weight_pairs: Of a `WeightMap`.
        aliases: Further names of torch's weights (tied ones), by name.
        told: Paths of torch modules, and of the JAX modules that they are: as the user says.
    """
    torch_nodes = _by_node(torch_calls, {})
    jax_nodes = _by_node(jax_calls, _stacks(weight_pairs, jax_calls))
    owned_torch = _owned(torch_nodes, [[(n, None) for n in _names(one, aliases)] for one in weight_pairs])
    owned_jax = _owned(
        jax_nodes, [[(clean(path), getattr(one, "index", None)) for path in one.jax] for one in weight_pairs]
    )
    _give_to_callers(owned_jax, jax_nodes, jax_calls)
    found: list[Pair] = []
    used: set[Node] = set()

    def add(torch: Node, jax: Node) -> None:
        held = [weight_pairs[at] for at in sorted(owned_torch.get(torch, frozenset()))]
        found.append(Pair(torch, jax, torch_nodes[torch], jax_nodes[jax], held))
        used.update((torch, jax))

    for path, jax_path in told.items():
        torch, jax = _told(path, torch_nodes), _told(jax_path, jax_nodes)
        if not owned_torch.get(torch, frozenset()) & owned_jax.get(jax, frozenset()):
            _check_sizes(torch_nodes[torch][0], jax_nodes[jax][0])
        add(torch, jax)
    roots = Node("")
    if roots in torch_nodes and roots in jax_nodes and roots not in used:
        add(roots, roots)
    # A buffer that several modules of torch share is paired with that of each of JAX's, and tells none of them.
    counts = Counter(name for one in weight_pairs if one.kind == BUFFER for name in one.torch)
    shared = {at for at, one in enumerate(weight_pairs) if any(counts[name] > 1 for name in one.torch)}
    for left_out in [frozenset[int](), frozenset(shared)][: 1 + bool(shared)]:
        groups: dict[frozenset[int], tuple[list[Node], list[Node]]] = defaultdict(lambda: ([], []))
        for side, owned in enumerate((owned_torch, owned_jax)):
            for node, held in owned.items():
                if held - left_out and node.path and node not in used:
                    groups[held - left_out][side].append(node)
        for torch_side, jax_side in groups.values():
            for torch, jax in _chains(torch_side, jax_side, torch_nodes, jax_nodes):
                add(torch, jax)
    return sorted(found, key=lambda pair: pair.torch_calls[0].order)


def clean(path: str) -> str:
    """Return a path of a weight as modules are named: with dots, without the names of collections.

    Example:
        >>> clean("params.layers[0].kernel")
        'layers.0.kernel'
    """
    path = re.sub(r"\[['\"]?([^\]'\"]+)['\"]?\]", r".\1", path).lstrip(".")
    head, _, rest = path.partition(".")
    return rest if head in ("params", "batch_stats") and rest else path


def _names(pair: Any, aliases: Mapping[str, Iterable[str]]) -> list[str]:
    return [name for own in pair.torch for name in (own, *aliases.get(own, ()))]


def _stacks(weight_pairs: Sequence[Any], jax_calls: Sequence[Call]) -> dict[str, int]:
    """Return the paths of modules that are layers of a stack, and how many layers it has."""
    layers: dict[str, int] = defaultdict(int)
    for one in weight_pairs:
        index = getattr(one, "index", None)
        if index is not None:
            for path in one.jax:
                layers[clean(path)] = max(layers[clean(path)], index + 1)
    counts: dict[str, int] = defaultdict(int)
    for call in jax_calls:
        counts[call.path] += 1
    found: dict[str, int] = {}
    for leaf, number in layers.items():
        for path in counts:
            if path and is_below(leaf, path) and number > 1 and counts[path] % number == 0:
                found[path] = number
    return found


def _by_node(calls: Sequence[Call], stacks: Mapping[str, int]) -> dict[Node, list[Call]]:
    nodes: dict[Node, list[Call]] = defaultdict(list)
    seen: dict[tuple[str, str], int] = defaultdict(int)
    for call in calls:
        at = seen[call.path, call.method]
        seen[call.path, call.method] += 1
        layer = at % stacks[call.path] if call.path in stacks else None
        nodes[Node(call.path, layer, call.method)].append(call)
    return dict(nodes)


def _owned(
    nodes: Mapping[Node, list[Call]], weights: Sequence[Sequence[tuple[str, int | None]]]
) -> dict[Node, frozenset[int]]:
    return {
        node: frozenset(
            at
            for at, names in enumerate(weights)
            if any(is_below(name, node.path) and (node.layer is None or index == node.layer) for name, index in names)
        )
        for node in nodes
    }


def _give_to_callers(
    owned: dict[Node, frozenset[int]], nodes: Mapping[Node, list[Call]], calls: Sequence[Call]
) -> None:
    """Give modules what the modules that they call own and that stand beside them: an RNN of Linen runs a cell.

    A module that owns something itself, as `PreNorm(Attention())` its norm, is given what no other module calls.
    """
    of_call = {call.order: node for node, own in nodes.items() for call in own}
    parents = {call.order: call.parent for call in calls}
    callers: dict[Node, list[set[Node]]] = {node: [] for node in nodes}
    for order, node in of_call.items():
        above = parents[order]
        around: set[Node] = set()
        while above is not None:
            around.add(of_call[above])
            above = parents[above]
        callers[node].append(around)
    given: dict[Node, frozenset[int]] = {}
    for node, sets in callers.items():
        if not sets:
            continue  # never called
        always = set.intersection(*sets)
        for caller in set.union(*sets) if owned[node] else ():
            if not owned[caller] or (caller in always and not is_below(node.path, caller.path)):
                given[caller] = given.get(caller, frozenset()) | owned[node]
    for node, held in given.items():
        owned[node] |= held


def is_below(name: str, path: str) -> bool:
    """Return whether a name is a module path, or of something in that module."""
    return not path or name == path or name.startswith(path + ".")


def _told(path: str, nodes: Mapping[Node, list[Call]]) -> Node:
    from parity.names import unknown

    found = [node for node in nodes if path in (node.path, str(node))]
    if not found:
        raise ValueError(unknown("modules", path, [str(node) for node in nodes]))
    return found[0]


def _check_sizes(torch: Call, jax: Call) -> None:
    """Refuse two modules, told to be one, that share no weight and that take or give arrays of other sizes."""
    if not pair_outputs(torch.outputs, jax.outputs)[0]:
        what, sides = "give", [call.outputs.items() for call in (torch, jax)]
    elif not feed(*((jax, torch) if jax.stored is not None else (torch, jax))).complete:
        what = "take"
        sides = [{one.name: one.value for one in call.inputs if one.is_array}.items() for call in (torch, jax)]
    else:
        return
    shown = [", ".join(f"{name} {list(value.shape)}" for name, value in side) or "nothing" for side in sides]
    raise ValueError(
        f"modules: expected modules of the same sizes, got {torch.path!r} of torch and {jax.path!r} of JAX, which "
        f"{what} {shown[0]} and {shown[1]}"
    )


def _chains(
    torch_side: list[Node], jax_side: list[Node], torch_nodes: Mapping[Node, list[Call]],
    jax_nodes: Mapping[Node, list[Call]],
) -> list[tuple[Node, Node]]:  # fmt: skip
    """Return pairs of nodes that hold the same weights: wrappers with wrappers, layers with layers."""
    torch_side = sorted(torch_side, key=lambda node: node.path.count("."))
    jax_side = sorted(jax_side, key=lambda node: node.path.count("."))
    fits = {(torch, jax): _fit(torch_nodes[torch][0], jax_nodes[jax][0]) for torch in torch_side for jax in jax_side}
    alike = len(torch_side) == len(jax_side)
    candidates = sorted(
        (pair for pair, fit in fits.items() if fit > 0),
        key=lambda pair: (
            -fits[pair],
            # What holds a cell is called once; the cell, once for every step.
            len(torch_nodes[pair[0]]) != len(jax_nodes[pair[1]]),
            abs(torch_side.index(pair[0]) - jax_side.index(pair[1])) if alike else 0,
            # Else from the innermost outwards: what wraps a layer on one side only has no partner.
            abs((len(torch_side) - torch_side.index(pair[0])) - (len(jax_side) - jax_side.index(pair[1]))),
        ),
    )
    found: list[tuple[Node, Node]] = []
    for torch, jax in candidates:
        if any(torch == one or jax == other for one, other in found):
            continue
        if any(
            (torch_side.index(torch) - torch_side.index(one)) * (jax_side.index(jax) - jax_side.index(other)) < 0
            for one, other in found
            if _nested(torch, one) and _nested(jax, other)
        ):
            continue
        found.append((torch, jax))
    return found


def _nested(one: Node, other: Node) -> bool:
    return is_below(one.path, other.path) or is_below(other.path, one.path)


def _fit(torch: Call, jax: Call) -> int:
    """Return how well two calls fit: 0 where they cannot be the same, 3 where they gave the same in place."""
    kinds = [
        next((leaf.value.dtype.kind == "f" for leaf in call.inputs if leaf.is_array), None) for call in (torch, jax)
    ]
    if kinds[0] != kinds[1] and None not in kinds:
        return 0
    outputs, _, _ = pair_outputs(torch.outputs, jax.outputs)
    if not outputs:
        return 1
    return 3 if relative_distance(outputs[0].torch, outputs[0].jax) < 1e-3 else 2
