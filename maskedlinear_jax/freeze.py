"""Frozen for good: what an optimizer may not move (contract S8)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from maskedlinear_core import frozen
from maskedlinear_core.annotations import Later
from maskedlinear_core.arrays import is_framework_array
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import frozen as frozen_checks
from maskedlinear_core.masks import Mask
from maskedlinear_jax import _compat, stacked
from maskedlinear_jax.bits import as_bits
from maskedlinear_jax.constant import Constant
from maskedlinear_jax.frozen_entries import (
    Path,
    as_rows,
    by_path,
    keep,
    lies_in_blocks,
    lies_in_columns,
    masks_by_path,
    path_of,
    trains,
)
from maskedlinear_jax.frozen_state import update_and_keep
from maskedlinear_jax.module import MaskedLinear, Tree, _is_float, beside
from maskedlinear_jax.packed_module import PackedLinear

if TYPE_CHECKING:
    import optax
else:
    optax = Later("optax")


def hold_frozen(optimizer: optax.GradientTransformation, model: Any) -> optax.GradientTransformationExtraArgs:
    """Keep the frozen entries of masked layers bit for bit as they are in every step.

    A masked gradient is not a frozen weight: weight decay, momentum from before, and optimizers that mix
    entries (Muon) still move it. A frozen update becomes -0.0, which `optax.apply_updates` adds without changing a
    bit (+0.0 would turn a weight of -0.0 into +0.0). Subnormal weights are the exception: XLA on CPU flushes them to
    zero in any addition, and `apply_updates` of this package leaves them alone too. The optimizer's state at a frozen
    entry stays as it was: a moment zero, a copy of the weight (`schedule_free`, `lookahead`) equal to the weight.

    Wrap the whole chain: what another transformation adds outside of this one is not held. A decay after it in
    `optax.chain` or `optax.named_chain` is refused, and so are `optax.contrib.schedule_free` around it (hold that
    instead) and what is not optax's own; a function of yours that calls this one and adds to its updates is not seen.
    It works within `optax.partition` and `optax.masked`, around them, around or within `optax.MultiSteps`, and for a
    part of the parameters (`nnx.Optimizer(..., wrt=...)`). Parameters that are computed from a state
    instead of updates (`optax.contrib.schedule_free_eval_params`, an average) are rounded anew: `keep_frozen` puts
    the frozen entries back.

    A penalty on a layer's weight in a loss has a gradient at frozen entries, because only the layer's own product is
    masked. These entries are held like all others. A penalty on a part of the weight, such as
    `(weight[:2] ** 2).sum()`, cannot be told from a mask that changed, so its update is refused. Hand the masks to
    `update`, as below, and it is held too.

    Args:
        optimizer: An optax gradient transformation, or an `optax.MultiSteps`.
        model: A pytree that contains `MaskedLinear` layers; a Flax NNX module; what `grad_masks` gives; or a pytree
            like the parameters or a part of them, of masks, bool arrays, False for what is frozen as a whole, and
            None or True for what trains as a whole. What has no mask trains.

    Returns:
        A gradient transformation. When a mask changes during training, hand the new ones to
        `update(gradients, state, params, masks=grad_masks(model))`. Its arguments hold no mask otherwise: positions
        are no parameters. An update whose gradient seems to be of another mask is refused; a compiled one stops with
        the same words (a `jax.errors.JaxRuntimeError`) when it runs, by a callback that runs in that case alone. JAX
        keeps no program with a callback in its persistent cache, and lowers none for another platform. With `masks=`
        there is no such check and no callback.

    Raises:
        TypeError: `optimizer` is no optax transformation, or the parameters have positions among them (at `init`).
        ValueError: The model has nothing to hold, or no mask is of a parameter (at `init`), or does not fit it; or
            what may move frozen entries comes after this in a chain of optax (at `update`).
        ImportError: optax is missing.

    Example:
        >>> import optax
        >>> from maskedlinear_jax import columns, combine, partition
        >>> layer = MaskedLinear(3, 2, grad_mask=columns([0]), seed=0)
        >>> optimizer = hold_frozen(optax.adamw(0.1, weight_decay=0.5), layer)
        >>> params, rest = partition(layer)
        >>> grads = jax.grad(lambda params: combine(params, rest)(jnp.ones((1, 3))).sum())(params)
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> assert_frozen(layer, combine(optax.apply_updates(params, updates), rest))
        4
    """
    try:
        import optax  # not on import: the rest of the package does without, and starts faster
    except ImportError as error:
        raise ImportError("hold_frozen needs optax: pip install 'maskedlinear[optax]'") from error
    if isinstance(optimizer, optax.MultiSteps):
        optimizer = optimizer.gradient_transformation()
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        frozen_checks.refuse_optimizer("an optax.GradientTransformation", optimizer)
    held = masks_by_path(_masks_of(model, "hold_frozen"))
    of_layers = _is_model(model)
    if of_layers:  # what is left of the layers' own masks says nothing
        held = {path: mask for path, mask in held.items() if not isinstance(mask, Mask)}
    if not held or (of_layers and not _holds(held)):
        frozen_checks.refuse_nothing_held()
    held = {path: as_rows(mask) for path, mask in held.items()}
    in_blocks, in_columns = (
        {p for p, mask in held.items() if lies(mask)} for lies in (lies_in_blocks, lies_in_columns)
    )
    inner = optax.with_extra_args_support(optimizer)

    def branches(tree: Any) -> tuple[Any, ...]:
        return tuple(tree) if isinstance(tree, optax.LookaheadParams) else (tree,)

    def init(params: Any) -> Any:
        for path, node in by_path(branches(params)[0], is_leaf=lambda node: isinstance(node, Mask)).items():
            if isinstance(node, Mask) and jax.tree.leaves(node):
                frozen_checks.refuse_positions(".".join(path))
        known = by_path(branches(params)[0], is_leaf=lambda node: isinstance(node, optax.MaskedNode))
        # (`optax.tree_utils.tree_map_params` asks for the state of no parameters.)
        if known and not any(path[: len(mask)] == mask for path in known for mask in held):
            frozen_checks.refuse_unknown_masks([".".join(p) for p in held], [".".join(p) for p in known])
        for path, leaf in known.items():
            if is_framework_array(leaf):
                trains(held, path, leaf)
        return inner.init(params)

    def update(updates: Any, state: Any, params: Any = None, *, masks: Any = None, **extra: Any) -> tuple[Any, Any]:
        if behind := _compat.found_behind(update.__code__):
            frozen_checks.refuse_behind(behind)
        now, refused = held if masks is None else masks_by_path(masks), {}
        updates = _laid_out(updates, in_blocks)
        if masks is None and of_layers and params is not None:
            refused = _check_masks(held, (in_blocks, in_columns), branches(updates)[0], branches(params)[0])
        _check_state(state, updates)
        try:
            moved, kept = update_and_keep(inner.update, now, (updates, state, params), extra)
        except (TypeError, ValueError):
            _check_structure(inner, state, updates if params is None else params)
            raise

        def where(path: Path, leaf: Any) -> Any:
            # What is refused does not move. This is also how the compiler knows to look before it moves: it would copy
            # what it looks at otherwise.
            mask = trains(now, path, leaf)
            return mask & (refused[path] == 0) if path in refused and mask is not None else mask

        parts = [keep(part, where, lambda path, leaf: jnp.asarray(-0.0, leaf.dtype)) for part in branches(moved)]
        return type(moved)(*parts) if isinstance(moved, optax.LookaheadParams) else parts[0], kept

    return optax.GradientTransformationExtraArgs(init, update)


def keep_frozen(params: Tree, before: Any, masks: Any) -> Tree:
    """Return parameters with the frozen entries of others: for what no optimizer's update made.

    `optax.contrib.schedule_free_eval_params`, an average of parameters (`optax.incremental_update`) and the like
    compute each entry anew, and round it: an entry that never moved then differs in its last bits. With a Flax NNX
    module as `masks`, the variables that are `Frozen` are put back in a state of all variables, too.

    Args:
        params: The parameters as computed.
        before: Parameters of the same structure that have the frozen entries as they should be.
        masks: As for `hold_frozen`: a model with masked layers, what `grad_masks` gives, or a pytree of masks.

    Raises:
        TypeError, ValueError: A mask does not fit its parameter, or `before` has no such parameter.

    Example:
        >>> from maskedlinear_jax import columns
        >>> keep_frozen({"w": jnp.ones((1, 2))}, {"w": jnp.zeros((1, 2))}, {"w": columns([1])})["w"]
        Array([[0., 1.]], dtype=float32)
    """
    old = by_path(before)

    def frozen(path: Path, leaf: Any) -> Any:
        if path not in old:
            frozen_checks.refuse_unknown_masks([".".join(path)], [".".join(p) for p in old])
        frozen_checks.same_shape(".".join(path), tuple(old[path].shape), tuple(leaf.shape))
        return old[path]

    found = masks_by_path(_masks_of(masks, "keep_frozen"))
    kept: Tree = keep(params, lambda path, leaf: trains(found, path, leaf), frozen)
    return kept


def grad_masks(model: Any) -> Any:
    """Return what trains in a model: a pytree like `partition(model)[0]`, of bool arrays.

    Args:
        model: Any pytree, or a Flax NNX module.

    Returns:
        The bool array of each weight and bias of the masked layers; True for every other float leaf, which
        trains as a whole.

    Example:
        >>> from maskedlinear_jax import columns
        >>> grad_masks(MaskedLinear(3, 1, grad_mask=columns([0]), seed=0)).weight
        Array([[ True, False, False]], dtype=bool)
    """

    def masks(node: Any) -> Any:
        if not isinstance(node, MaskedLinear):
            return jax.tree.map(lambda leaf: True if _is_float(leaf) else None, node)
        bias = True if node.bias_mask is None else jnp.asarray(node.bias_mask)
        if node.bias_mask is not None and node.bias is not None and hasattr(node.bias, "shape"):
            bias = jnp.broadcast_to(bias, node.bias.shape)
        if not _has_positions(node.grad_mask):
            frozen_checks.refuse_no_positions(type(node).__name__)
        weight: Any = node.weight  # a layer that shares another's (`equinox.nn.Shared`) has a mark in its place
        weight = stacked.to_array(node.grad_mask, weight.shape) if hasattr(weight, "shape") else weight
        own = {id(leaf) for leaf in beside(node).values()}
        node = jax.tree.map(lambda leaf: True if id(leaf) in own else leaf, node) if own else node
        return node.replace(weight=weight, bias=None if node.bias is None else bias, grad_mask=_nothing(node.grad_mask),
                            bias_mask=None)  # fmt: skip

    for kind, masks_of, _ in _MODELS:
        if isinstance(model, kind):
            return masks_of(model, "grad_masks")
    return jax.tree.map(masks, model, is_leaf=lambda node: isinstance(node, MaskedLinear))


def assert_frozen(before: Any, after: Any, masks: Any = None) -> int:
    """Prove that every frozen entry has the bits it had.

    Args:
        before: A pytree or Flax NNX module from before (a copy: a module's own variables move along).
        after: A pytree or module from now, of the same structure.
        masks: What trains: a pytree of the same structure, of masks and bool arrays, None or True for all of an
            array, False for none of it; what is not there is wholly frozen. Left out, it is asked of the masked and
            packed layers in `after`; every other float leaf is taken to train as a whole.

    Returns:
        How many frozen entries were compared.

    Raises:
        FrozenMoved: Some entry changed; the text names it. It is an AssertionError.
        ValueError: The names or shapes differ, or nothing is frozen.

    Example:
        >>> from maskedlinear_jax import columns
        >>> assert_frozen({"w": jnp.ones((1, 2))}, {"w": jnp.array([[1.0, 2.0]])}, {"w": columns([1])})
        1
    """
    named = _named_masks(after) if masks is None else _named(masks, _is_mask_or_none)
    return frozen.assert_same_bits(_named_arrays(before), _named_arrays(after), named)


def apply_updates(params: Tree, updates: Any) -> Tree:
    """Add updates to parameters as `optax.apply_updates` does, leaving a parameter alone where its update is zero.

    Example:
        >>> apply_updates(jnp.array([1.0, 1e-40]), jnp.array([0.5, -0.0])).tolist()[0]
        1.5
    """

    def add(parameter: Any, update: Any) -> Any:
        moved = jnp.asarray(parameter + update, parameter.dtype)
        return jnp.where(update == 0, parameter, moved)

    moved: Tree = jax.tree.map(add, params, updates)
    return moved


def _has_layers(tree: Any) -> bool:
    # What `grad_masks` and `partition` make of a model has layers too, of masks and of nothing.
    leaves = jax.tree.leaves(tree, is_leaf=_is_layer)
    return any(
        _is_float(node.values if isinstance(node, PackedLinear) else node.weight) for node in leaves if _is_layer(node)
    )


def _is_layer(node: Any) -> bool:
    return isinstance(node, MaskedLinear | PackedLinear)


def _is_layer_or_constant(node: Any) -> bool:
    return _is_layer(node) or isinstance(node, Constant)


def _is_mask_or_none(node: Any) -> bool:
    return node is None or isinstance(node, Mask)


def register_models(kind: type, masks: Callable[[Any, str], Any], parts: Callable[[Any], tuple[Any, Any]]) -> None:
    """Let models that are no pytrees of layers be held and compared (an adapter calls this on import).

    Args:
        kind: The class of such models.
        masks: From a model and the name of the function that asks (for its errors), what `grad_masks` gives.
        parts: From a model, its arrays and masks by name.
    """
    _MODELS.append((kind, masks, parts))


_MODELS: list[tuple[type, Callable[[Any, str], Any], Callable[[Any], tuple[Any, Any]]]] = []


def _is_model(model: Any) -> bool:
    return isinstance(model, tuple(kind for kind, _, _ in _MODELS)) or _has_layers(model)


def _masks_of(model: Any, function: str) -> Any:
    for kind, masks_of, _ in _MODELS:
        if isinstance(model, kind):
            return masks_of(model, function)
    return grad_masks(model) if _has_layers(model) else model


def _holds(held: Any) -> bool:
    # Whether anything is frozen; a mask that is traced may freeze something.
    return any(mask is False or _compat.is_tracer(mask) or not bool(jnp.all(mask)) for mask in held.values())


def _check_state(state: Any, updates: Any) -> None:
    # A tree of other masks has another structure, of which JAX says no more than where.
    kinds = [
        {jax.tree.structure(node) for node in jax.tree.leaves(tree, is_leaf=_is_mask_or_none) if isinstance(node, Mask)}
        for tree in (updates, state)
    ]
    if kinds[0] and not kinds[1] <= kinds[0]:
        frozen_checks.refuse_other_state()


def _check_structure(optimizer: Any, state: Any, params: Any) -> None:
    # A state from before a conversion has leaves of other names: optax says of it no more than where the trees part.
    made: Any = jax.tree.structure(jax.eval_shape(optimizer.init, params))
    if made != jax.tree.structure(state):
        frozen_checks.refuse_other_state()


def _check_masks(held: Any, kinds: tuple[set[Path], set[Path]], gradients: Any, params: Any) -> dict[Path, Any]:
    # The gradient of a layer is zero where its mask freezes. One that is not, and is zero at other frozen weights, is
    # of a layer with another mask; a penalty on the whole weight reaches all of them. It may be zero for small ones (a
    # threshold, a number too small for the dtype): then no weight that it leaves out is larger than one it reaches.
    # Compiled code gets what `_left_out` says of each parameter.
    weights = by_path(params)
    found: dict[Path, Any] = {}
    for path, gradient in by_path(gradients).items():
        where, weight = trains(held, path, gradient) if is_framework_array(gradient) else None, weights.get(path)
        if where is not None and weight is not None:
            found[path] = _left_out(where, gradient, weight, *(path in kind for kind in kinds))
    if not found:
        return {}
    counts = jnp.stack(list(found.values()))
    refuse = functools.partial(_refuse_other_gradients, [".".join(path) for path in found])
    if not _compat.is_tracer(counts):
        refuse(counts)
        return {}
    # Compiled code has numbers only when it runs: then it stops with the same words.
    jax.lax.cond(counts.any(), functools.partial(jax.debug.callback, refuse), lambda counts: None, counts)
    return found


def _laid_out(updates: Any, in_blocks: set[Path]) -> Any:
    # The gradient of blocks is made block by block. Compiled code would turn it into rows anew for each use.
    def lay_out(keys: Any, leaf: Any) -> Any:
        return jax.lax.optimization_barrier(leaf) if path_of(keys) in in_blocks and _compat.is_tracer(leaf) else leaf

    return jax.tree_util.tree_map_with_path(lay_out, updates) if in_blocks else updates


def _left_out(where: Any, gradient: Any, weight: Any, in_blocks: bool, in_columns: bool) -> Any:
    # How many frozen weights a gradient reaches, if it leaves out a larger one; else 0. Of a large weight this is
    # asked on the lines that cross at an entry which it reaches: to find one is a single look at the gradient. XLA
    # reduces up to 31 numbers as it reads them; of more it writes down what they are made of, and reads that. It goes
    # through integers in a third of the time that bools take, but not where it makes the gradient as it reads it.
    moves = ~where & (gradient != 0)
    if weight.size <= _SMALL:
        return _left_out_of(where, moves, weight)
    last = weight.shape[-1]
    fits = [number for number in range(31, 0, -1) if last % number == 0]
    if in_columns:
        some = moves.reshape(*weight.shape[:-1], fits[0], last // fits[0]).any(-2)
    else:
        part = next((number for number in fits if last // number > 31), fits[0])
        kind = jnp.finfo(gradient.dtype)
        bits = as_bits(gradient) & ((1 << kind.nexp) - 1 << kind.nmant)  # the exponent, zero where XLA sees a zero
        frozen = jnp.where(where, jnp.zeros_like(bits), bits).reshape(*weight.shape[:-1], part, last // part)
        found = jax.lax.reduce(frozen, jnp.zeros_like(bits, shape=()), jax.lax.bitwise_or, (weight.ndim - 1,))
        some = jax.lax.optimization_barrier(found) != 0  # else it makes one reduction of this and the next
    start = jnp.unravel_index(some.any(-1).reshape(-1).argmax(), weight.shape[:-1])
    array = gradient if in_blocks else moves  # that of blocks is laid out already
    point = (*start, (~where[start] & (array[start] != 0)).argmax())
    lines = [(*point[:axis], slice(None), *point[axis + 1 :]) for axis in range(weight.ndim)]
    where, moves, weight = (jnp.concatenate([one[line] for line in lines]) for one in (where, array, weight))
    return _left_out_of(where, ~where & (moves != 0), weight)


def _left_out_of(where: Any, moves: Any, weight: Any) -> Any:
    size = jnp.abs(weight).astype(jnp.float32)
    least = jnp.where(moves, size, jnp.inf).min(initial=jnp.inf)
    left_out = jnp.where(where | moves, 0, size).max(initial=0)
    return jnp.where(left_out > least, moves.sum(), 0)


_SMALL = 4096
"""A weight of no more numbers is looked at whole."""


def _refuse_other_gradients(names: list[str], counts: Any) -> None:
    for name, count in zip(names, counts, strict=True):
        if count:
            frozen_checks.refuse_other_gradient(name, int(count))


def _has_positions(mask: Any) -> bool:
    # `partition` and gradients leave None in the place of positions.
    return all(leaf is not None for leaf in jax.tree.leaves(mask, is_leaf=lambda leaf: leaf is None))


def _nothing(tree: Any) -> Any:
    # As `partition` leaves it: the structure, without leaves.
    return jax.tree.map(lambda leaf: None, tree)


def _named(tree: Any, is_leaf: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
    return convert_checks.by_name((".".join(path_of(path)), leaf) for path, leaf in leaves)


def _named_arrays(tree: Any) -> dict[str, Any]:
    for kind, _, named in _MODELS:
        if isinstance(tree, kind):
            return named(tree)[0]
    found: dict[str, Any] = {}
    for name, node in _named(tree, _is_layer_or_constant).items():
        if isinstance(node, Constant):
            found |= _inside(name, node)
        elif _is_layer(node):
            for one, layer in stacked.layers_of(name, node).items():
                parts = {"weight": layer.weight, "bias": layer.bias}
                found |= {_join(one, part): array for part, array in parts.items() if hasattr(array, "shape")}
            found |= {_join(name, one): leaf for one, leaf in beside(node).items()}
        elif _is_float(node):
            found[name] = node
    return found


def _named_masks(tree: Any) -> dict[str, Any]:
    for kind, _, named in _MODELS:
        if isinstance(tree, kind):
            return named(tree)[1]
    found: dict[str, Any] = {}
    for name, node in _named(tree, _is_layer_or_constant).items():
        if isinstance(node, Constant):
            found |= dict.fromkeys(_inside(name, node), False)
        elif _is_layer(node):
            for one, layer in stacked.layers_of(name, node).items():
                if not _has_positions(layer.grad_mask):
                    frozen_checks.refuse_no_positions(type(layer).__name__, "assert_frozen")
                if isinstance(layer, PackedLinear) or hasattr(layer.weight, "shape"):
                    found[_join(one, "weight")] = layer.grad_mask
                if layer.bias is not None:
                    found[_join(one, "bias")] = layer.bias_mask
            found |= {_join(name, one): None for one in beside(node)}
        elif _is_float(node):
            found[name] = None
    return found


def _inside(name: str, constant: Constant) -> dict[str, Any]:
    # The arrays of floats that a constant holds, which is what `freeze_others` makes of a parameter.
    return {_join(name, one): leaf for one, leaf in _named(constant.value, None).items() if _is_float(leaf)}


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
