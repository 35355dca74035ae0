"""The cells of the masked linear layer's grid: cases in tiers, in native or reproducible precision."""

from __future__ import annotations

from dataclasses import dataclass

from parity import records

TIERS = ("exact", "random", "hard", "real-size")
PRECISIONS = ("native", "reproducible")


@dataclass(frozen=True)
class Cell(records.Cell):
    """One comparison: a case (`pair`) with a kind of mask (`group`) in a tier (`data`), and in one precision."""

    precision: str = "native"

    @property
    def id(self) -> str:
        """A name to read and to filter by."""
        return f"{super().id}/{self.precision}"

    def rerun(self, seed: int) -> str:
        """Return the command that runs this cell again."""
        return (
            f"python -m parity grid --case {self.pair} --dtype {self.dtype} --transform {self.transform} "
            f"--world {self.world} --device {self.device} --tier {self.data} --precision {self.precision} "
            f"--seed {seed}"
        )
