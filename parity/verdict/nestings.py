"""Derivatives that an operator of torch gives wrongly in forward mode, or in one nesting of transforms.

Some operators of torch have wrong tangents. Others treat what the forward saved (the mean of a norm, a factorisation)
as a constant, so that derivatives of their derivatives are wrong (pytorch #198017 collects them). This is not the fault
of the port.
"""

from __future__ import annotations

from dataclasses import replace

from parity.execution.calls import Call, Numbers
from parity.execution.endings import RAISED
from parity.execution.outputs import Runs, world_of
from parity.explanation import trials
from parity.explanation.gathering import Judging
from parity.operator import transforms
from parity.records import SETTLED, Cell, Diagnosis

FIRST = ("forward", "vjp")
"""What has to agree before another derivative is torch's own fault."""

FORWARD_MODE = ("jvp", "jacfwd")
"""First derivatives that do not take the way of `vjp`."""

NESTINGS = ("hvp-forward-over-reverse", "hvp-reverse-over-forward", "second-tangent", "hessian")
"""Second derivatives that go through forward mode."""

WITNESS = "hvp-reverse-over-reverse"
"""The second derivative that does not."""

SEEN_IN = {
    "native_layer_norm": "#196700",
    "native_batch_norm": "#196699",
    "_native_batch_norm_legit": "#196699",
    "_linalg_det": "#196696",
    "_linalg_slogdet": "#196697",
    "_linalg_solve_ex": "#192540",
    "linalg_householder_product": "#198017",
    "cholesky_inverse": "#198017",
    "cholesky_solve": "#198017",
}
"""Operators in which it was seen, with torch's issues. They give a name; the verdict is found without them."""


FIX = (
    "There is nothing to mend in the port. Where torch needs this derivative, take reverse mode, or write the operator "
    "out of others. `strict` makes this a failure."
)


def of_torch_alone(runs: Runs, cell: Cell, held: Judging) -> Diagnosis | None:
    """Return that a difference of derivatives is the fault of torch's own operators; None if it is not shown.

    It is shown by all of these: the functions and their gradients agree; of second derivatives reverse over reverse
    agrees as well; by finite differences torch's derivative is wrong and JAX's right; and no derivative in the torch
    function was written by its author.

    Args:
        runs: Runs of the pair.
        cell: A cell that differs.
        held: Judges another cell.
    """
    second = cell.transform in NESTINGS
    if not second and cell.transform not in FORWARD_MODE:
        return None

    def agree(transform: str) -> bool:
        return held(replace(cell, transform=transform)).verdict in SETTLED

    if not trials.only_torch_is_wrong(runs, cell) or _has_own_rules(runs, cell):
        return None
    if not all(map(agree, (*FIRST, WITNESS) if second else FIRST)):
        return None
    reading = runs.reading(replace(cell, transform="forward"), "torch", "float64")
    ran = set() if reading is None else {name for found in reading.types.values() for name in found}
    names = [name for name in SEEN_IN if name in ran]
    which = f" (among them {', '.join(f'{name}, pytorch {SEEN_IN[name]}' for name in names)})" if names else ""
    nested = ", so does reverse over reverse," if second else ""
    text = (
        f"torch's own operators{which} differentiate wrongly under {cell.transform}: the functions and their gradients "
        f"agree{nested} and by finite differences torch is wrong and JAX right"
    )
    return Diagnosis("torch's own derivative", text, FIX)


def _has_own_rules(runs: Runs, cell: Cell) -> bool:
    numbers = runs.numbers_of(cell, "torch")
    if not isinstance(numbers, Numbers):
        return True
    asked = Call(runs.pair.torch, transforms.get("forward"), numbers, "float64")

    def find() -> bool:
        try:
            return bool(world_of("torch").has_own_rules(asked, cell.device))
        except RAISED:
            # It takes no numbers that require a gradient (statistics of batch_norm): nothing is known of its rules.
            return True

    found: bool = runs.once(("own rules", cell.device), find)
    return found
