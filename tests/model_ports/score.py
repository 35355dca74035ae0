"""Which planted faults `parity.compare_models` names: the module, the cause, and what it says of right ports."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from parity import compare_models
from tests.model_ports.fault import Fault, Port


@dataclass(frozen=True)
class Score:
    """What a report said of one fault.

    Attributes:
        port: The model.
        fault: What was planted; None for a right port.
        module: "right", "wrong" or "missed"; of a right port "quiet" or "false alarm".
        cause: "right", "likely", "wrong" or "unnamed".
        path: The module that was named.
        said: The cause and what was said of it.
        seconds: Of the comparison.
    """

    port: str
    fault: Fault | None
    module: str
    cause: str
    path: str
    said: str
    seconds: float


LIKELY = "Likely: "
UNNAMED = ("unknown", "between", "code between children", "another formula", "")


def scored(port: Port, fault: Fault | None, seed: int = 0) -> Score:
    """Compare a model with a port in which a fault is planted, and judge the report."""
    start = time.perf_counter()
    model = port.torch(seed)
    made = port.jax(model, **(fault.options if fault is not None else {}))
    report = compare_models(
        model, made, port.inputs(seed), mode=fault.mode if fault is not None else "eval", name=port.name, seed=seed
    )
    seconds = time.perf_counter() - start
    first = report.first
    if fault is None:
        said = "" if report.ok else (first.path + ": " + _said(first) if first is not None else str(report)[:300])
        return Score(port.name, None, "quiet" if report.ok else "false alarm", "", "", said, seconds)
    if first is None:
        how = "missed" if report.ok else "wrong"
        return Score(port.name, fault, how, "unnamed", "", "" if report.ok else str(report)[:300], seconds)
    module = "right" if re.fullmatch(fault.module, first.path) else "wrong"
    return Score(port.name, fault, module, _cause(fault, first.diagnosis), first.path, _said(first), seconds)


def _cause(fault: Fault, found: Any) -> str:
    if (
        found is None
        or found.cause in UNNAMED
        or "no known cause" in found.text
        or "between the children" in found.cause
    ):
        return "unnamed"
    if re.search(fault.cause, found.cause):
        return "right"
    return "likely" if found.text.startswith(LIKELY) else "wrong"


def _said(module: Any) -> str:
    found = module.diagnosis
    return "" if found is None else f"{found.cause}: {found.text}"
