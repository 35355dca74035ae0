"""Stored layers (contract S7, S10)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NoReturn


class StorageError(ValueError):
    """A file that does not hold what it should; nothing was changed."""


def refuse(why: str) -> NoReturn:
    """Refuse a file."""
    raise StorageError(f"stored layers: expected a file that save_packed wrote, but {why}; nothing was changed")


def version(number: Any, newest: int) -> None:
    """Check a file's version.

    Raises:
        StorageError: It is a later one.
    """
    if number not in range(1, newest + 1):
        raise StorageError(
            f"stored layers: expected version {newest}, got {number!r}; update maskedlinear to read this file"
        )


def same(what: str, got: Any, expected: Any) -> None:
    """Check that a file agrees with itself.

    Raises:
        StorageError: It does not.
    """
    if got != expected:
        refuse(f"{what} is {got}, expected {expected}")


def all_used(left: list[str]) -> None:
    """Check that a file holds nothing that belongs to no layer.

    Raises:
        StorageError: It does.
    """
    if left:
        refuse(f"it holds {', '.join(left[:3])}, which belongs to no layer")


NO_LAYER = "no such layer"
"""What is there where a model has no layer of a stored name."""


def refuse_layer(name: str, expected: str, got: str) -> NoReturn:
    """Refuse to load a stored layer into a model."""
    remedy = "load into the model that the values were trained on"
    if got == NO_LAYER:  # a wrapper (DataParallel, torch.compile) gives all of them other names
        remedy = "load into a model of the same parts, or say with rename= what they are called in it"
    raise StorageError(
        f"stored layers: {name or 'the layer'}: expected {expected}, got {got}; {remedy}. Nothing was changed"
    )


def refuse_base(name: str) -> NoReturn:
    """Refuse values over other frozen entries than they were trained over."""
    raise StorageError(
        f"stored layers: {name or 'the layer'}: expected the frozen entries that the values were trained over, got "
        "others; load into the model that the values were trained on, or, if an optimizer moved frozen entries or an "
        "average of models (EMA, SWA) rounded them, save again with with_base=True. Nothing was changed"
    )


def refuse_beside(name: str, layer: str, beside: list[str]) -> NoReturn:
    """Refuse a layer with numbers that learn and have no place in a file."""
    raise ValueError(
        f"save_packed: {name or 'the layer'}: expected a layer of a weight and a bias alone, got {layer} with "
        f"{', '.join(beside)} too, which would be lost; keep the layer and these inside of a pytree of your own"
    )


def refuse_empty(function: str = "save_packed") -> NoReturn:
    """Refuse a model that has no masked layer, to store it or to put arrays into it, which say nothing of masks."""
    raise ValueError(f"{function}: expected a model with masked or packed layers, got none; convert it first")


def dtype(name: str, got: str, known: list[str]) -> None:
    """Check that what learns can be stored.

    Raises:
        ValueError: It is of a dtype that the file has no form for.
    """
    if got not in known:
        raise ValueError(
            f"save_packed: {name}: expected one of the dtypes {', '.join(known)}, got {got}; convert it, or let it "
            "take no gradient. Nothing was written"
        )


def names_fit(size: int, limit: int) -> None:
    """Check that the names and shapes of what is stored are not longer than a reader will take.

    Raises:
        ValueError: They are.
    """
    if size > limit:
        raise ValueError(
            f"save_packed: expected names and shapes of at most {limit} bytes, got {size}; save parts of the model in "
            "files of their own"
        )


def refuse_meta(name: str) -> NoReturn:
    """Refuse to store or load a tensor that has no numbers."""
    raise StorageError(
        f"stored layers: {name or 'the layer'}: expected a tensor with numbers, got one on the meta device, which has "
        "none; move the model with to_empty(device=...) and load its own weights first. Nothing was changed"
    )


def refuse_other(name: str, expected: str, got: str) -> NoReturn:
    """Refuse to load a stored parameter or buffer into a model."""
    raise StorageError(
        f"stored layers: {name}: expected {expected}, got {got}; load into a model of the same parts, or say with "
        "rename= what they are called in it. Nothing was changed"
    )


def names(what: str, expected: list[str], got: list[str]) -> None:
    """Check that arrays of what learned are those of a model.

    Raises:
        StorageError: Some are missing, or belong to nothing.
    """
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or unknown:
        raise StorageError(
            f"{what}: expected arrays of the names that packed_arrays(model) gives, got none for "
            f"{', '.join(missing[:3]) or 'no name'} and {', '.join(unknown[:3]) or 'none'} beside them; convert the "
            "model first, or say with rename= what its parts are called. Nothing was changed"
        )


def refuse_layer_alone(name: str) -> NoReturn:
    """Refuse to make a layer of a file that holds no matrix."""
    raise StorageError(
        f"stored layers: {name or 'the layer'}: expected a file with its matrix to make a layer of, got none; save it "
        "with with_base=True, or give the model that it was trained in"
    )


def rename(given: Any) -> None:
    """Check what shall rename, where it is no function.

    Raises:
        TypeError: It is no mapping either.
    """
    if not isinstance(given, Mapping):
        raise TypeError(
            f"load_packed: expected rename= to be a mapping of stored names to names of the model, or a function of a "
            f"name, got {type(given).__name__}; nothing was loaded"
        )


def renamed(names: list[str], unused: list[str]) -> None:
    """Check a renaming.

    Raises:
        ValueError: It names what is not stored, or gives one name to two.
    """
    if unused:
        raise ValueError(
            f"load_packed: expected rename= to map names that are stored, got {', '.join(map(repr, unused[:3]))}; "
            f"stored are {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}"
        )


def one_name_each(to: dict[str, str]) -> None:
    """Check that no two parts are given one name.

    Raises:
        ValueError: Two are.
    """
    seen: dict[str, str] = {}
    for name, new in to.items():
        if new in seen:
            raise ValueError(
                f"load_packed: expected rename= to give each part a name of its own, got {new!r} for {seen[new]!r} and "
                f"{name!r}"
            )
        seen[new] = name


def refuse_stacked(name: str) -> NoReturn:
    """Refuse a stack of layers, whose masks may differ."""
    raise ValueError(
        f"save_packed: {name or 'the layer'}: expected one layer, got a stack of them; save each by itself, such as "
        "jax.tree.map(lambda leaf: leaf[0], layers), or save all leaves (orbax, equinox.tree_serialise_leaves)"
    )


def array(name: str, shape: tuple[int, ...], dtype: str, expected: tuple[int, ...]) -> None:
    """Check an array that what learned is set to.

    Raises:
        StorageError: It is of another shape, or not of real numbers.
    """
    if tuple(shape) != tuple(expected):
        refuse_other(name, f"an array of shape {tuple(expected)}", f"one of shape {tuple(shape)}")
    if not dtype.startswith(("float", "bfloat", "int", "uint", "bool")):
        refuse_other(name, "an array of real numbers", f"one of {dtype}")


def names_apart(own: Collection[str], others: Collection[str]) -> None:
    """Check that no parameter has the name that the packed numbers of a masked layer go by.

    Raises:
        StorageError: One has.
    """
    both = sorted(set(own) & set(others))
    if both:
        raise StorageError(
            f"packed_arrays: expected one array by each name, got two by {both[0]!r}: what learns of the masked layer, "
            "and a parameter that is called so; call it otherwise, or use packed_bytes"
        )


def refuse_positions(name: str) -> NoReturn:
    """Refuse learned arrays of other positions than those of the model."""
    raise StorageError(
        f"load_packed: {name}: expected arrays of the positions that learn in this model, got arrays of others; give "
        "both models the same masks. (These numbers tell positions apart: send them along, and compute nothing with "
        "them but averages.) Nothing was changed"
    )


def refuse_state(kind: str, wanted: Mapping[str, object], got: Mapping[str, object]) -> NoReturn:
    """Refuse the stored state of another layer."""
    name = next(name for name in (*wanted, *got) if wanted.get(name) != got.get(name))
    raise ValueError(
        f"from_state_dict: {kind}: expected {name} {wanted.get(name, 'nowhere')}, got {got.get(name, 'none')}; "
        "restore into a layer with the same mask"
    )
