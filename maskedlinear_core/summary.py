"""What learns in a model and what is frozen, counted: in words and as a table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One layer, or one parameter outside of the masked layers.

    Attributes:
        name: Dotted.
        kind: The class of the layer, or "parameter".
        learns: How many numbers learn.
        total: How many numbers it has.
        mask: The mask in words, or "".
    """

    name: str
    kind: str
    learns: int
    total: int
    mask: str = ""


@dataclass(frozen=True)
class Summary:
    """A count of what learns; `str()` gives words and a table.

    Attributes:
        parts: Masked layers, and other parameters, in the model's order.

    Example:
        >>> print(Summary((Part("0", "PackedLinear", 3, 12, "columns([1])"), Part("1.weight", "parameter", 0, 8))))
        3 of 20 numbers learn (15%), 17 are frozen; 1 of 2 parts learns.
        part      kind          learns  of  mask
        0         PackedLinear       3  12  columns([1])
        1.weight  parameter          0   8
    """

    parts: tuple[Part, ...]

    @property
    def learns(self) -> int:
        """How many numbers learn."""
        return sum(part.learns for part in self.parts)

    @property
    def total(self) -> int:
        """How many numbers there are."""
        return sum(part.total for part in self.parts)

    @property
    def frozen(self) -> int:
        """How many numbers are frozen."""
        return self.total - self.learns

    @property
    def words(self) -> str:
        """The count in a sentence."""
        share = f" ({100 * self.learns / self.total:.3g}%)" if self.total else ""
        learning = sum(part.learns > 0 for part in self.parts)
        verb = "learns" if learning == 1 else "learn"
        return (
            f"{self.learns} of {self.total} numbers learn{share}, {self.frozen} are frozen; "
            f"{learning} of {len(self.parts)} parts {verb}."
        )

    @property
    def table(self) -> str:
        """The count of each part."""
        rows = [("part", "kind", "learns", "of", "mask")]
        rows += [
            (part.name or "the model", part.kind, str(part.learns), str(part.total), part.mask) for part in self.parts
        ]
        wide = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join(
            "  ".join((a.ljust(wide[0]), b.ljust(wide[1]), c.rjust(wide[2]), d.rjust(wide[3]), e)).rstrip()
            for a, b, c, d, e in rows
        )

    def __str__(self) -> str:
        return f"{self.words}\n{self.table}"
