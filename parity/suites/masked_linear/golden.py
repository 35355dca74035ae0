"""Golden hashes: the answers of the reproducible precision, to check any machine by one framework alone (contract S9).

For each hard case the SHA-256 of its inputs, of the output, and of each gradient. Inputs have a hash of their
own, so that a NumPy which draws other numbers is told from a machine that computes other answers.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from parity.execution.outputs import Runs
from parity.suites.masked_linear import cases, pairs

WORLDS = {"torch": "torch-eager", "jax": "jax-jit"}
_NAME = "golden.json"


@dataclass(frozen=True)
class Check:
    """One answer of one framework beside its golden hash.

    Attributes:
        case: The case and its dtype.
        framework: "torch" or "jax".
        verdict: "identical", "differs", "other inputs" or "no hash".
        wrong: Which of its outputs differ.
    """

    case: str
    framework: str
    verdict: str
    wrong: tuple[str, ...] = ()


def frameworks() -> tuple[str, ...]:
    """Return the frameworks that are installed."""
    return tuple(name for name in WORLDS if importlib.util.find_spec(name) is not None)


def names() -> list[tuple[cases.Case, str]]:
    """Return the cases and dtypes that have hashes."""
    core = [(case, dtype) for case in cases.HARD if case.core for dtype in ("bfloat16", "float16")]
    return [*((case, "float32") for case in cases.HARD + cases.LARGE), *core]


def answers(case: cases.Case, dtype: str, framework: str, device: str) -> dict[str, str]:
    """Return the hashes of a case: of its inputs, the output and the gradients."""
    runs = Runs(pairs.pair(case.id, "reproducible"))
    numbers = runs.plain("hard", dtype)
    found = {"inputs": _digest([*numbers.theta, *numbers.cotangents])}
    for name in ("forward", "backward"):
        outputs = runs.compute(runs.pair.cell(case.id, case.mask, dtype, name, WORLDS[framework], device, "hard"))
        found |= {output.replace("by ", "d "): _digest([value]) for output, value in outputs.values.items()}
    return found


def check(device: str, chosen: Sequence[str], golden: dict[str, dict[str, str]] | None = None) -> Iterator[Check]:
    """Compute every case on a device and compare with the golden hashes.

    Args:
        device: "cpu" or "cuda".
        chosen: Frameworks.
        golden: Other hashes than the stored ones, to show that a wrong one is seen.
    """
    golden = load() if golden is None else golden
    for framework in chosen:
        for case, dtype in names():
            name = f"{case.id}/{dtype}"
            if name not in golden:
                yield Check(name, framework, "no hash")
                continue
            found = answers(case, dtype, framework, device)
            wrong = tuple(
                sorted(key for key in found.keys() | golden[name].keys() if found.get(key) != golden[name].get(key))
            )
            verdict = "identical" if not wrong else "other inputs" if "inputs" in wrong else "differs"
            yield Check(name, framework, verdict, wrong)


def load() -> dict[str, dict[str, str]]:
    """Return the stored hashes."""
    return json.loads(resources.files("parity.suites.masked_linear").joinpath(_NAME).read_text("utf-8"))["answers"]


def write(file: Path, environment: dict[str, Any], framework: str) -> None:
    """Compute every case on the CPU and store its hashes."""
    made = {f"{case.id}/{dtype}": answers(case, dtype, framework, "cpu") for case, dtype in names()}
    file.write_text(json.dumps({"environment": environment, "answers": made}, indent=1) + "\n", "utf-8")


def show(checks: Sequence[Check], device: str, console: Console) -> bool:
    """Print what was found; return whether anything differs."""
    for found in checks:
        if found.verdict != "identical":
            console.print(f"[bold red]{found.verdict}[/]: {found.case} in {found.framework}: {', '.join(found.wrong)}")
    for framework in dict.fromkeys(found.framework for found in checks):
        of_it = [found for found in checks if found.framework == framework]
        same = sum(found.verdict == "identical" for found in of_it)
        console.print(f"golden: {framework} on {device}: {same} of {len(of_it)} answers have the golden hashes")
    return any(found.verdict != "identical" for found in checks)


def _digest(arrays: Sequence[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array, "<f8").tobytes())
    return found.hexdigest()
