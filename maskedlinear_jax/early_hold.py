"""Put frozen optimizer state back before the update is computed, where that changes no result (contract S8).

An optimizer computes its update from its new state. Compiled code that puts the old state back afterwards needs both
states at once: it copies the old one, and computes the new one twice. Where every number that comes of a leaf of the
new state is of one entry alone, and of the parameter whose leaf it is, the frozen entries of these numbers are put
back or thrown away themselves. So they may come of the old entries just as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maskedlinear_jax import _compat

_OF_ONE_ENTRY = {
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos",
    "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "pow", "reduce_precision", "rem",
    "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "sub", "tan", "tanh", "xor",
}  # fmt: skip
"""Operations of JAX of which a number of the result is of one number of each operand."""

_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call")


class Output(NamedTuple):
    """A number that a program returns, of each entry of a parameter: whose, and what puts it back where frozen.

    `owner` is None for what is of no one parameter. `hold` is None for what is not put back.
    """

    owner: Any
    hold: Callable[[Any], Any] | None


def run_held(program: Any, inputs: Sequence[Any], outputs: Sequence[Output]) -> list[Any]:
    """Run a traced program and return what it returns, put back where it is frozen.

    What its other outputs are where their owner is frozen is open.
    """
    early = _early(program.jaxpr, outputs)
    values: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= dict(zip(program.jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Any:
        return values[atom] if _is_variable(atom) else atom.val

    for step in program.jaxpr.eqns:
        results = _compat.evaluate(step, [read(atom) for atom in step.invars])
        for variable, result in zip(step.outvars, results, strict=True):
            hold = early.get(variable)
            values[variable] = result if hold is None else hold(result)
    found = []
    for atom, one in zip(program.jaxpr.outvars, outputs, strict=True):
        is_kept = one.hold is None or (_is_variable(atom) and early.get(atom) is one.hold)
        found.append(read(atom) if is_kept or one.hold is None else one.hold(read(atom)))
    return found


def _early(jaxpr: Any, outputs: Sequence[Output]) -> dict[Any, Callable[[Any], Any]]:
    # The variables that can be put back at once. Whose numbers go elsewhere, of that owner none is.
    made = {variable for step in jaxpr.eqns for variable in step.outvars}
    holds: dict[Any, Output] = {}
    mixed: set[Any] = set()
    for atom, one in zip(jaxpr.outvars, outputs, strict=True):
        if one.hold is not None and _is_variable(atom) and atom in made:
            if atom in holds:
                mixed |= {one.owner, holds[atom].owner}
            holds[atom] = one
    owners: dict[Any, Any] = {}
    for step in jaxpr.eqns:
        come = [owners[atom] for atom in step.invars if _is_variable(atom) and atom in owners]
        alone = not come or (all(one == come[0] for one in come) and _is_of_one_entry(step))
        if not alone:
            mixed |= set(come)
        for variable in step.outvars:
            owner = holds[variable].owner if variable in holds else come[0] if come else None
            if come and owner != come[0]:
                mixed |= {come[0], owner}
            if owner is not None:
                owners[variable] = owner
    for atom, one in zip(jaxpr.outvars, outputs, strict=True):
        if _is_variable(atom) and atom in owners and owners[atom] != one.owner:
            mixed |= {owners[atom], one.owner}
    return {variable: one.hold for variable, one in holds.items() if one.owner not in mixed and one.hold}


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")  # of a literal


def _is_of_one_entry(step: Any) -> bool:
    name = step.primitive.name
    if name in _CALLS:
        inner = step.params.get("jaxpr") or step.params.get("call_jaxpr")
        return all(map(_is_of_one_entry, inner.jaxpr.eqns))
    if name == "broadcast_in_dim":
        return all(not atom.aval.shape for atom in step.invars)
    return name in _OF_ONE_ENTRY
