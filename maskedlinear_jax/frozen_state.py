"""What an optimizer keeps of frozen entries stays as it was, whatever its values (SPEC S8)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp

from maskedlinear_jax import _compat
from maskedlinear_jax.frozen_entries import Path, path_of

_MOVES = ("add_decayed_weights", "add_noise", "keep_params_nonnegative", "centralize", "scale_by_muon")
"""What makes of an update of zero another one."""


def found_behind(update: CodeType) -> str | None:
    """Return what moves an update of zero and comes behind a held transformation in `optax.chain`, by its name.

    A transformation does not know what it stands in: the calls around it do.

    Args:
        update: The code that holds. Inside of another call of it nothing is looked for, since that holds too.
    """
    found = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is update:
            return None
        if found is None and frame.f_code.co_qualname == "chain.<locals>.update_fn":
            steps, step = frame.f_locals.get("update_fns", ()), frame.f_locals.get("fn")
            found = _mover(steps[steps.index(step) + 1 :]) if step in steps else None
        frame = frame.f_back
    return found


def _mover(node: Any, deep: int = 12) -> str | None:
    # Looks into what functions of optax are made of.
    parts: Any = ()
    if isinstance(node, functools.partial):
        parts = node.func, *node.args
    elif isinstance(node, tuple | list):
        parts = node
    elif isinstance(node, dict):
        parts = node.values()
    elif isinstance(node, MethodType):
        parts = vars(node.__self__).values()
    elif isinstance(node, FunctionType) and node.__module__.startswith("optax"):
        cells = zip(node.__code__.co_freevars, node.__closure__ or (), strict=True)
        inside = {name: cell.cell_contents for name, cell in cells}
        name, decay = node.__qualname__.partition(".")[0], inside.get("weight_decay")
        if name in _MOVES and not (isinstance(decay, int | float) and decay == 0):
            return name
        parts = inside.values()
    return next((found for one in parts if deep and (found := _mover(one, deep - 1))), None)


def keep_state(where: Mapping[Path, Any], now: Any, before: Any) -> Any:
    """Return the new state with the old values where a parameter is frozen.

    A leaf of the state belongs to the parameter whose path its own ends with. If it has the parameter's shape, it is
    kept entry by entry. Nothing else is touched.

    Args:
        where: Where each parameter trains of which a part is frozen, by path.
        now: The state after the step.
        before: The state before it.
    """

    def hold(keys: Any, new: Any, old: Any) -> Any:
        path = path_of(keys)
        mask = next((where[path[i:]] for i in range(len(path) + 1) if path[i:] in where), None)
        if mask is None or mask.ndim == 0 or getattr(new, "shape", None) != mask.shape:
            return new
        return jnp.where(_compat.laid_out_as(mask, new), new, old)

    return jax.tree_util.tree_map_with_path(hold, now, before)
