"""What is asked of the harness, and what it saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["identical", "within bound", "differs", "unsupported", "no device"]
VERDICTS: tuple[Verdict, ...] = ("identical", "within bound", "unsupported", "no device", "differs")
"""All verdicts, from best to worst (SPEC S11)."""

WORLDS = ("torch-eager", "torch-compiled", "jax-eager", "jax-jit")
TIERS = ("exact", "random", "hard")
PRECISIONS = ("native", "reproducible")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True)
class Cell:
    """One comparison: a case under a transform, in one world, dtype, device, tier and precision."""

    case: str
    mask: str
    dtype: str
    transform: str
    world: str
    device: str
    tier: str
    precision: str = "native"

    @property
    def id(self) -> str:
        """A name to read and to filter by."""
        return "/".join(
            (self.case, self.dtype, self.transform, self.world, self.device, self.tier, self.precision)
        )  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """The worst element of an output: where, what came, what was expected, and by how much it is off."""

    output: str
    index: tuple[int, ...]
    got: float
    want: float
    ratio: float
    """Error over bound; infinite where bits had to be equal and are not."""
    text: str


@dataclass(frozen=True)
class Record:
    """What was seen in one cell."""

    cell: Cell
    clause: str
    verdict: Verdict
    known: bool
    """Whether an unsupported cell is listed in known.toml."""
    reason: str
    finding: Finding | None
    ratio: float | None
    """Largest error over bound; None where bits were compared."""
    twin_ratio: float | None
    """RMS error of JAX over that of torch for the same cell."""
    seed: int
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether this cell breaks the promise."""
        return self.verdict in ("differs", "no device") or (self.verdict == "unsupported" and not self.known)

    @property
    def rerun(self) -> str:
        """The command that runs this cell again."""
        cell = self.cell
        return (
            f"python -m parity grid --case {cell.case} --dtype {cell.dtype} --transform {cell.transform} "
            f"--world {cell.world} --device {cell.device} --tier {cell.tier} --precision {cell.precision} "
            f"--seed {self.seed}"
        )
