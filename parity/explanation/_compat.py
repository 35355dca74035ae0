"""Names of the frameworks that are private, or may move: what programs are read with."""

from __future__ import annotations

from typing import Any


def torch_schema(operator: Any) -> Any:
    """Return the schema of an ATen operator: names, types and defaults of its arguments."""
    return operator._schema


def is_jax_literal(atom: Any) -> bool:
    """Tell whether an operand of an equation is a number that is written in the jaxpr, and no variable."""
    from jax.extend.core import Literal

    return isinstance(atom, Literal)


def scan_counts(params: Any) -> tuple[int, int]:
    """Return how many operands of a scan are fixed and how many are carried: trees, and numbers before jax 0.11."""
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    fixed, carried, _ = params["ft_in"].unpack()
    return len(fixed), len(carried)
