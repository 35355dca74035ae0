"""What a function that raises is worth: a mistake, or something that a framework does not have."""

from __future__ import annotations

import re
from dataclasses import replace

from parity.execution.calls import Failure, Outputs
from parity.execution.outputs import EAGER, Runs, framework_of
from parity.records import Cell
from parity.verdict.outcomes import Outcome

MISTAKES = ("NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError", "SyntaxError", "RecursionError",
            "AttributeError", "KeyError", "ZeroDivisionError", "NotImplementedError: ")  # fmt: skip
"""Errors of a program, whoever else makes them as well. The last is a user's own, if nothing says what is missing."""


OWN_ERROR, RAN_IN_NEITHER = "an error of the function's own code", "the function ran in neither"
"""How a reason ends where both sides raise, and the function itself is why."""


def refused(runs: Runs, cell: Cell, own: Failure, twin: Outputs | Failure, other: str) -> Outcome:
    """Return the outcome of a cell whose function raises.

    Where the other framework raises as well, the two do not differ, if the function itself ran in both: then it is a
    derivative, a dtype or numbers that both refuse. Else it is a failure: nothing was compared. A derivative that a
    framework itself does not have is no fault of the port either.

    Args:
        runs: Runs of the pair.
        cell: The cell.
        own: What it raised.
        twin: What the other framework gave.
        other: The name of that framework.
    """
    if not isinstance(twin, Failure):
        return Outcome("unsupported", own.text, alike=lacks(runs, cell, own) or refuses_dtype(runs, cell, own))
    if runs.pair.brings(cell.transform):
        # A transform of the pair's own is meant to run: raised in both worlds, its program is wrong.
        return Outcome("unsupported", own.text)
    if any(is_mistake(one) for one in (own, twin)):
        return Outcome("unsupported", f"{own.text} ({other} raises {twin.text}): {OWN_ERROR}")
    if not _ran(runs, cell):
        return Outcome("unsupported", f"{own.text} ({other} raises {twin.text}): {RAN_IN_NEITHER}")
    return Outcome("unsupported", f"{own.text} ({other} raises as well)", alike=True)


GAPS = (
    r"^NotImplementedError: .*does not support it because it has not been implemented",
    r"^(NotImplementedError|RuntimeError): (the )?derivative for '?[\w:]+'? is not implemented",
    r"^RuntimeError: The function '\w+' is not differentiable with respect to argument",
    r"^NotImplementedError: (Forward-mode differentiation|Differentiation|Transpose|Batching|Transposition)"
    r" rule \(?.*not implemented",
)
"""What a framework says where it has no derivative of an operator of its own."""

NO_BATCHES = r"^RuntimeError: Batching rule not implemented for aten::\w+"
"""What torch says where it has no rule under vmap for an operator of its own."""


def is_gap(failure: Failure) -> bool:
    """Return whether a framework says that it has no derivative of an operator of its own.

    Example:
        >>> text = "NotImplementedError: Differentiation rule for 'eig' not implemented"
        >>> is_gap(Failure(text, text)), is_gap(Failure("NotImplementedError: later", "NotImplementedError: later"))
        (True, False)
    """
    return any(re.search(one, failure.raised.strip()) for one in GAPS)


LOW = ("bfloat16", "float16")
"""Types that many operators of either framework do not take."""

NOT_OF_THIS_TYPE = (
    r"not implemented for '(BFloat16|Half)'",
    r"[Ll]ow precision dtypes not supported\. Got (BFloat16|Half)",
    r"Unsupported dtype (BFloat16|Half|bfloat16|float16)\b",
    r"input tensor must be either float or double dtype",
    r"to be Half, Float or Double tensors but got BFloat16",
    r"(doesn't handle types other than float and double|of float, double, cfloat or cdouble types)",
)
"""What an operator of a framework says of a type that it does not take."""

MIXED = r"same dtype|scalar type \w+ but found|!="
"""What is said of two types that do not go together: the function mixes them."""


def is_of_this_type(failure: Failure) -> bool:
    """Return whether an operator of a framework says that it takes no numbers of a type of 16 bits.

    Example:
        >>> text = "RuntimeError: Unsupported dtype BFloat16"
        >>> mixed = "RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16"
        >>> is_of_this_type(Failure(text, text)), is_of_this_type(Failure(mixed, mixed))
        (True, False)
    """
    text = failure.raised
    return not re.search(MIXED, text) and any(re.search(one, text) for one in NOT_OF_THIS_TYPE)


def refuses_dtype(runs: Runs, cell: Cell, failure: Failure) -> bool:
    """Return whether a cell cannot be compared as an operator of torch takes no numbers of its dtype.

    A port that refuses what the torch function takes is another function: it lacks a cast.
    """
    if framework_of(cell) != "torch" and not isinstance(runs.outputs(cell, world=EAGER["torch"]), Failure):
        return False
    return cell.dtype in LOW and not runs.pair.brings(cell.transform) and is_of_this_type(failure) and _ran(runs, cell)


def lacks(runs: Runs, cell: Cell, failure: Failure) -> bool:
    """Return whether a cell cannot be compared as one framework has no such derivative, or torch no rule under vmap.

    The function itself ran in both, and is compared there.

    Args:
        runs: Runs of the pair.
        cell: The cell.
        failure: What one of the frameworks raised.
    """
    order = runs.pair.transform(cell.transform).order
    gap = (order > 0 and is_gap(failure)) or re.search(NO_BATCHES, failure.raised.strip()) is not None
    return gap and not runs.pair.brings(cell.transform) and _ran(runs, cell)


def takes(runs: Runs, cell: Cell) -> bool:
    """Return whether torch's function takes a cell's numbers: integers may be beyond what it indexes."""
    plain = replace(cell, transform="forward")
    return isinstance(runs.outputs(plain, world=EAGER["torch"], dtype="float64"), Outputs)


def is_mistake(failure: Failure) -> bool:
    """Return whether an error is one of a program.

    Example:
        >>> is_mistake(Failure("NameError: name 'y' is not defined", "NameError: name 'y' is not defined"))
        True
    """
    kind = failure.raised.split(":")[0]
    return kind in MISTAKES or failure.raised.strip() == MISTAKES[-1].strip()


def _ran(runs: Runs, cell: Cell) -> bool:
    """Return whether the function itself ran, in both frameworks, on the user's own numbers."""
    usual = "random" if runs.pair.numbers is None else cell.data
    dtype = "float64" if runs.pair.numbers is None else cell.dtype
    plain = replace(cell, transform="forward", data=usual, dtype=dtype)
    return all(isinstance(runs.outputs(plain, world=world, dtype="float64"), Outputs) for world in EAGER.values())
