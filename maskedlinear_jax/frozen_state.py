"""What an optimizer keeps of frozen entries stays as it was, whatever its values (SPEC S8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from maskedlinear_jax import _compat
from maskedlinear_jax.frozen_entries import Path, path_of


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
