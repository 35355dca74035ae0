"""Second derivatives that an operator of torch gives wrongly in one nesting of transforms, and rightly in another.

Torch's tangents of some fused operators take what the forward kept (a norm's mean, a factorisation) for constants.
The gradient of such a tangent is wrong whatever the function is, and the port is not to blame.
"""

from __future__ import annotations

from dataclasses import replace

from parity.execution.calls import Call, Numbers
from parity.execution.outputs import Runs, world_of
from parity.explanation import trials
from parity.explanation.gathering import Judging
from parity.operator import transforms
from parity.records import Cell, Diagnosis

FIRST = ("forward", "vjp", "jvp")
"""What has to agree before a second derivative is torch's own fault."""

NESTINGS = (
    "hvp-reverse-over-reverse",
    "hvp-forward-over-reverse",
    "hvp-reverse-over-forward",
    "second-tangent",
    "hessian",
)
"""The second derivatives: one mathematical quantity, taken in several ways."""

SEEN_IN = {
    "native_layer_norm": "pytorch #196700",
    "native_batch_norm": "batch norm in training, instance norm",
    "_native_batch_norm_legit": "batch norm in training, instance norm",
    "_linalg_det": "det",
    "_linalg_slogdet": "slogdet",
}
"""The operators of torch 2.13 in which it was seen. They give a name; the verdict is found without them."""


FIX = (
    "There is nothing to mend in the port. Where torch's second derivative is needed, take reverse over reverse, or "
    "write the operator out in torch. `strict` makes this a failure."
)


def of_torch_alone(runs: Runs, cell: Cell, held: Judging) -> Diagnosis | None:
    """Return that a difference of second derivatives is the fault of torch's own operators; None if it is not shown.

    It is shown by all of these: the functions and their first derivatives agree; so does another nesting of second
    derivatives; by finite differences torch's derivative is wrong and JAX's right; and no derivative in the torch
    function was written by its author.

    Args:
        runs: Of the pair.
        cell: A cell that differs.
        held: Judges another cell.
    """
    if cell.transform not in NESTINGS:
        return None

    def agree(transform: str) -> bool:
        return held(replace(cell, transform=transform)).verdict in ("identical", "within bound", "edge")

    if not all(map(agree, FIRST)) or not any(agree(other) for other in NESTINGS if other != cell.transform):
        return None
    if not trials.only_torch_is_wrong(runs, cell) or _has_own_rules(runs, cell):
        return None
    reading = runs.reading(replace(cell, transform="forward"), "torch", "float64")
    ran = set() if reading is None else {name for found in reading.types.values() for name in found}
    names = [name for name in SEEN_IN if name in ran]
    which = f" ({', '.join(f'{name}: {SEEN_IN[name]}' for name in names)})" if names else ""
    text = (
        f"torch's own operators{which} differentiate wrongly under {cell.transform}: the functions, their gradients "
        "and tangents agree, another nesting of the two transforms as well, and by finite differences torch is wrong "
        "and JAX right"
    )
    return Diagnosis("torch's own derivative", text, FIX)


def _has_own_rules(runs: Runs, cell: Cell) -> bool:
    numbers = runs.numbers_of(cell, "torch")
    if not isinstance(numbers, Numbers):
        return True
    asked = Call(runs.pair.torch, transforms.get("forward"), numbers, "float64")
    found: bool = runs.once(("own rules", cell.device), lambda: world_of("torch").has_own_rules(asked, cell.device))
    return found
