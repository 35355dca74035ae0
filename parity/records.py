"""What is asked of the harness, and what it saw."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal[
    "identical", "within bound", "edge", "unsupported", "no device", "timed out", "crashed", "differs"
]  # fmt: skip
VERDICTS: tuple[Verdict, ...] = (
    "identical", "within bound", "edge", "unsupported", "no device", "timed out", "crashed", "differs",
)  # fmt: skip
"""All verdicts, from best to worst (contract S11); a process that ended or hung is one, too."""

AGREES: tuple[Verdict, ...] = ("identical", "within bound")
SETTLED: tuple[Verdict, ...] = (*AGREES, "edge")
"""Verdicts of two functions that are the same; and with those that differ at the edge of the range only."""

Judged = Literal["bits", "meaning", "precision", "ratio"]
"""By what: equal bits; the float64 runs; a run against its own float64 run; the two frameworks' errors."""

WHO = {"torch": "torch", "jax": "JAX"}
"""The frameworks as people write them, in the order of a pair."""

WORLDS = ("torch-eager", "torch-compiled", "jax-eager", "jax-jit")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "float16")

BINS = tuple(range(-12, 13, 2))
"""Edges of the histogram of error over bound, as powers of two: below 2^-12, ... 2^10 to 2^12, beyond."""


@dataclass(frozen=True)
class Cell:
    """One comparison: a pair of functions under a transform, in one world, dtype and device, on one kind of data.

    Attributes:
        pair: The name of the pair (of the masked linear layer: the case).
        group: What pairs are sorted by (there: the kind of mask).
        dtype: Dtype of the numbers.
        transform: What is done to the function.
        world: Whose function, and how it is run.
        device: Where.
        data: The kind of numbers (there: the tier).
    """

    pair: str
    group: str
    dtype: str
    transform: str
    world: str
    device: str
    data: str

    @property
    def id(self) -> str:
        """A name to read and to filter by."""
        return "/".join((self.pair, self.dtype, self.transform, self.world, self.device, self.data))

    def rerun(self, seed: int) -> str:
        """Return the command that runs this cell again; FILE is where the pair is defined."""
        return (
            f"python -m parity check FILE --pair {shlex.quote(self.pair)} --transform {self.transform} "
            f"--world {self.world} --dtype {self.dtype} --data {shlex.quote(self.data)} --seed {seed}"
        )


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
class Diagnosis:
    """Why two results differ.

    Attributes:
        cause: Its short name.
        text: What was seen, in words.
        fix: What to do.
    """

    cause: str
    text: str
    fix: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was seen in one cell."""

    cell: Cell
    clause: str
    verdict: Verdict
    known: bool
    """Whether the cell is listed among the known ones."""
    reason: str
    finding: Finding | None
    ratio: float | None
    """Largest error over bound; None where bits were compared."""
    twin_ratio: float | None
    """RMS error of JAX over that of torch for the same cell."""
    seed: int
    seconds: float
    judged: Judged | None = None
    diagnosis: Diagnosis | None = None
    histogram: tuple[int, ...] | None = None
    """How many elements have an error over bound between the powers of two of BINS."""
    inputs_sha256: str | None = None
    alike: bool = False
    """Whether the other framework refuses the cell as well: then the two do not differ."""
    strict: bool = False
    """Whether a difference at the edge of the range is a failure."""

    @property
    def failed(self) -> bool:
        """Whether this cell breaks the promise."""
        if self.verdict == "edge" and not self.strict:
            return False
        return self.verdict not in AGREES and not self.known and not self.alike

    @property
    def rerun(self) -> str:
        """The command that runs this cell again."""
        return self.cell.rerun(self.seed)

    # What a reader of a report looks for first, under short names.

    @property
    def transform(self) -> str:
        """What was done to the functions."""
        return self.cell.transform

    @property
    def world(self) -> str:
        """Whose function, and how it was run."""
        return self.cell.world

    @property
    def dtype(self) -> str:
        """Of the numbers."""
        return self.cell.dtype

    @property
    def device(self) -> str:
        """Where it ran."""
        return self.cell.device

    @property
    def data(self) -> str:
        """The kind of numbers."""
        return self.cell.data

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as it is written to files; finite or not, numbers are floats."""
        worst = self.finding
        return {
            "id": self.cell.id,
            **asdict(self.cell),
            "clause": self.clause,
            "seed": self.seed,
            "verdict": self.verdict,
            "known": self.known,
            "failed": self.failed,
            "judged": self.judged,
            "reason": self.reason,
            "diagnosis": None if self.diagnosis is None else asdict(self.diagnosis),
            "output": None if worst is None else worst.output,
            "index": [] if worst is None else list(worst.index),
            "got": None if worst is None else worst.got,
            "want": None if worst is None else worst.want,
            "ratio": self.ratio if worst is None else worst.ratio,
            "twin_ratio": self.twin_ratio,
            "histogram": None if self.histogram is None else list(self.histogram),
            "inputs_sha256": self.inputs_sha256,
            "seconds": self.seconds,
            "rerun": self.rerun,
        }
