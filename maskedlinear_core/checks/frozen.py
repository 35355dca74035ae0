"""What is held frozen (contract S8, S10)."""

from __future__ import annotations

from typing import NoReturn

from maskedlinear_core.checks.words import Shape

REMOVED = "remove that first (e.g. torch.nn.utils.parametrize.remove_parametrizations)"
"""What to do about a weight that torch computes."""


def same_names(before: set[str], after: set[str], masks: set[str]) -> None:
    """Check that both sides hold arrays of the same names, and masks of these.

    Raises:
        ValueError: They do not.
    """
    if before != after:
        raise ValueError(
            f"assert_frozen: expected the same arrays before and after, got {sorted(before ^ after)} on one side only; "
            "compare the same model"
        )
    if not masks <= before:
        raise ValueError(
            f"assert_frozen: expected masks of the arrays {sorted(before)}, got masks of {sorted(masks - before)} too; "
            "check the names"
        )


def refuse_side(value: object) -> NoReturn:
    """Refuse what has no arrays by name."""
    raise TypeError(
        "assert_frozen: expected a module, a state_dict or a tensor before and after, and masks by the same names (one "
        f"mask for a tensor), got {type(value).__name__}; e.g. assert_frozen({{name: before}}, {{name: after}}, "
        "{name: mask})"
    )


def is_array(name: str, value: object) -> None:
    """Check that what is compared is an array.

    Raises:
        TypeError: It is not.
    """
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        raise TypeError(
            f"assert_frozen: expected arrays by name, got {type(value).__name__} by the name {name!r}; pass the "
            "state_dict itself, and without what is no array"
        )


def same_shape(name: str, before: Shape, after: Shape) -> None:
    """Check that an array kept its shape.

    Raises:
        ValueError: It did not.
    """
    if before != after:
        raise ValueError(
            f"assert_frozen: expected {name} of shape {before} as before, got shape {after}; compare the same model"
        )


def bool_of_shape(name: str, dtype: str, shape: Shape, expected: Shape) -> None:
    """Check a mask that came as an array.

    Raises:
        TypeError: It is not bool.
        ValueError: It has another shape.
    """
    if dtype != "bool":
        raise TypeError(
            f"mask of {name}: expected a bool array (True = the gradient flows), got dtype {dtype}; "
            "compare first, e.g. values != 0"
        )
    if shape not in ((), expected):
        raise ValueError(f"mask of {name}: expected shape {expected}, got shape {shape}; masks have the array's shape")


def refuse_nothing_frozen() -> NoReturn:
    """Refuse a proof that proves nothing."""
    raise ValueError(
        "assert_frozen: expected frozen entries to compare, got none; pass masks, or a model with masked layers"
    )


def refuse_masks(value: object) -> NoReturn:
    """Refuse to guess what is frozen."""
    raise TypeError(
        f"assert_frozen: expected masks beside {type(value).__name__}, got none; pass {{name: mask}} or a model with "
        "masked layers"
    )


def refuse_optimizer(expected: str, value: object, function: str = "hold_frozen") -> NoReturn:
    """Refuse what is no optimizer."""
    raise TypeError(f"{function}: expected {expected}, got {type(value).__name__}; pass the optimizer itself")


def refuse_no_positions(kind: str, function: str = "hold_frozen") -> NoReturn:
    """Refuse what is left of a model where its positions were taken away."""
    raise TypeError(
        f"{function}: expected a model with its masks, got parameters alone (a {kind} without positions, as partition "
        "and gradients have it); pass the model itself, or grad_masks(model)"
    )


def refuse_positions(name: str) -> NoReturn:
    """Refuse the positions of a mask among the parameters of an optimizer."""
    raise TypeError(
        f"hold_frozen: expected parameters of floats alone, got the positions of a mask among them ({name}); hand init "
        "partition(model)[0], which is equinox.filter(model, equinox.is_inexact_array)"
    )


def refuse_behind(name: str) -> NoReturn:
    """Refuse what moves frozen entries after they were held."""
    raise ValueError(
        f"hold_frozen: expected nothing after it that moves frozen entries, got {name}; put "
        "hold_frozen around the whole chain"
    )


def refuse_other_state() -> NoReturn:
    """Refuse a state that was made for other masks."""
    raise ValueError(
        "hold_frozen: expected a state and parameters of one model, got a state that was made for other masks or "
        "before mask_linears; move it along with repack_state(optimizer, state, before, after), or make it anew with "
        "init"
    )


def refuse_nothing_held() -> NoReturn:
    """Refuse to hold nothing."""
    raise ValueError(
        "hold_frozen: expected a model with masked layers whose parameters the optimizer has, got none; "
        "convert the model first, and make the optimizer from that very model, not from a copy of it (a packed layer "
        "needs no holding)"
    )


def refuse_computed(layer: str, name: str, function: str = "hold_frozen", remedy: str = REMOVED) -> NoReturn:
    """Refuse to hold what is computed anew from other parameters in each forward.

    Args:
        layer: Its name.
        name: Name of what is computed.
        function: That refuses.
        remedy: What makes it a parameter.
    """
    raise ValueError(
        f"{function}: expected {layer or 'the layer'} to have its {name} as a parameter of its own, got one that is "
        f"computed from others (weight norm, a parametrization, pruning), which move it; {remedy}"
    )


def refuse_other_masks(one: str, other: str) -> NoReturn:
    """Refuse two masks of one parameter: what one of the layers trains the other one would put back."""
    raise ValueError(
        f"hold_frozen: expected layers that share a parameter to have one mask, got {one} and {other}; give both the "
        "same mask, or untie them"
    )


def refuse_other_gradient(name: str, count: int) -> NoReturn:
    """Refuse to hold by masks that are not the layer's any more."""
    raise ValueError(
        f"hold_frozen: {name or 'the parameter'}: expected a gradient of zero where the mask freezes it, got {count} "
        "entries that are not zero among others that are; a penalty on some places of the weight has such a gradient, "
        "and so has a layer with another mask; pass masks=grad_masks(model) to update: both are held"
    )


def refuse_plain(name: str, now: str) -> NoReturn:
    """Refuse a plain layer in the place of a masked one that is held."""
    raise ValueError(
        f"hold_frozen: {name or 'the layer'}: expected the masked layer that is held, got a plain {now} in its place, "
        "all of which learns (resize_token_embeddings makes such a head); mask it again with mask_linears, or let go "
        "with the hold's remove()"
    )


def refuse_replaced(optimizer: str, how: str, now: str) -> NoReturn:
    """Refuse a step that would train nothing of a layer any more."""
    raise RuntimeError(
        f"{optimizer}.step: expected an optimizer of the parameters that learn now, got one with a parameter from "
        f"before {how}; make the optimizer after that, or hand it the layer's {now}"
    )


def refuse_unaveraged(how: str, now: str) -> NoReturn:
    """Refuse a wrapper that would let each worker train a model of its own."""
    raise RuntimeError(
        f"DistributedDataParallel: expected a wrapper of the parameters that learn now, got one from before {how}, "
        f"which would not average the gradients of {now} over the workers; wrap the model anew"
    )


def refuse_other_shapes(
    optimizer: str, name: str, key: str, found: tuple[int, ...], shape: tuple[int, ...]
) -> NoReturn:  # fmt: skip
    """Refuse a step with a state that is of another shape than its parameter: half of the step would be done."""
    raise RuntimeError(
        f"{optimizer}.step: expected {key} of the shape of its parameter {name}, {shape}, got {found}: a state that "
        "was made before the layer was packed, or for another mask; nothing was stepped; load the state that was saved "
        "with this mask, or begin with a new optimizer"
    )


def refuse_first_step_in_a_graph(optimizer: str) -> NoReturn:
    """Refuse a CUDA graph of a held step that makes the optimizer's state: what it is to stay cannot be looked at."""
    raise RuntimeError(
        f"{optimizer}.step: expected a state that a held step has seen, got one that is new while a CUDA graph is "
        "captured; take some steps before the capture (on a side stream, as torch's pages on CUDA graphs say)"
    )


def other_moments(optimizer: str, how: str) -> str:
    """Return the words about moments that were made for other positions."""
    return (
        f"{optimizer}.step: expected moments of the positions that learn now, got those from before {how}; hand it the "
        "optimizer (repack(mask, optimizer), mask_linears(..., optimizer=optimizer)), which takes them along"
    )


def plain_tie(plain: str, layer: str) -> str:
    """Return the words about a plain layer that has the weight of a masked one."""
    return (
        f"{layer}: expected its weight in masked layers alone, got it in a plain {plain} too (a head tied by hand), "
        "whose gradient has no mask: all of the weight trains; tie them before mask_linears and give both one mask, or "
        "hold the frozen entries by hold_frozen"
    )


def refuse_moved_constants(optimizer: str, count: int, shape: Shape) -> NoReturn:
    """Refuse an optimizer that moves parameters which take no gradient."""
    raise RuntimeError(
        f"{optimizer}.step: expected parameters that take no gradient to stay, got {count} of them moved (the first of "
        f"shape {shape}), and put them back; hand the optimizer what learns alone: [one for one in model.parameters() "
        "if one.requires_grad]"
    )


def refuse_unknown_masks(masks: list[str], parameters: list[str]) -> NoReturn:
    """Refuse masks none of which belongs to a parameter."""
    raise ValueError(
        f"hold_frozen: expected masks of the parameters {sorted(parameters)}, got masks of {sorted(masks)} only; hand "
        "it the model whose parameters the optimizer has, or masks under the same keys"
    )


def matrix(name: str, shape: Shape) -> NoReturn:
    """Refuse a mask of a weight for what is none."""
    raise ValueError(
        f"mask of {name}: expected a weight of shape (out_features, in_features), got shape {shape}; write a bool "
        "array for other parameters"
    )
