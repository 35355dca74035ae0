"""Changes made by hand: faults that only layers of real size show, which the grid of small cells let pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from parity.suites.mutants.changes import Change


@dataclass(frozen=True)
class ByHand:
    """One fault.

    Attributes:
        what: In words.
        framework: "torch" or "jax".
        file: File of the twin's package.
        old: What is written there, once.
        new: What is written in its place.
    """

    what: str
    framework: str
    file: str
    old: str
    new: str

    def change(self, package: Path) -> Change:
        """Return the change to a twin.

        Raises:
            ValueError: What is to be changed is not there, or more than once.
        """
        text = (package / self.file).read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.framework}/{self.file}: expected {self.old!r} once, found it {text.count(self.old)} times; "
                "write the change anew (parity/suites/mutants/by_hand.py)"
            )
        first = text[: text.index(self.old)].count("\n") + 1
        last = first + self.old.count("\n")
        return Change(
            self.framework, self.file, "by hand", self.what, "wrong", (first, last), text.replace(self.old, self.new)
        )


_SIXTEEN = "sums of few single elements made in 16 bits"
_LAST = "the row that a batch cut in pieces leaves over"
_BORDER = "the border of the halves of a large weight's packed elements"
_LONGER = "digits cut one bit lower"
_SHORTER = "digits cut one bit higher"
_NEGATIVE = "negative traced positions"

BY_HAND = (
    ByHand(_SIXTEEN, "torch", "kinds/sums.py",
           "tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor", "tensor"),
    ByHand(_SIXTEEN, "jax", "kinds/sums.py",
           "array.astype(jnp.float32) if array.dtype in (jnp.bfloat16, jnp.float16) else array", "array"),
    ByHand(_LAST, "torch", "kinds/blocks.py", "range(size, g.shape[0], size)", "range(size, g.shape[0] - 1, size)"),
    ByHand(_LAST, "jax", "kinds/blocks.py", "self._product(g[count * size :], kept[count * size :])",
           "self._product(g[count * size + 1 :], kept[count * size + 1 :])"),
    ByHand(_BORDER, "torch", "indexing.py", "[stop * columns for _, stop in chunks]",
           "[stop * columns - 1 for _, stop in chunks[:-1]] + [rows * columns]"),
    ByHand(_BORDER, "jax", "indexing.py", "(numbers >= first) & (numbers < last)",
           "(numbers >= first) & (numbers < last - 1)"),
    ByHand(_LONGER, "torch", "integer_products.py", "(bits + 1) // 2 if is_short", "bits // 2 if is_short"),
    ByHand(_LONGER, "jax", "integer_products.py", "(bits + 1) // 2 if is_short", "bits // 2 if is_short"),
    ByHand(_SHORTER, "torch", "integer_products.py", "(bits + 1) // 2 if is_short", "(bits + 3) // 2 if is_short"),
    ByHand(_SHORTER, "jax", "integer_products.py", "(bits + 1) // 2 if is_short", "(bits + 3) // 2 if is_short"),
    ByHand(_NEGATIVE, "torch", "lowering.py", "torch.where(numbers < 0, numbers + size, numbers)", "numbers"),
    ByHand(_NEGATIVE, "jax", "lowering.py", "jnp.where(numbers < 0, numbers + size, numbers)", "numbers"),
)  # fmt: skip
"""The faults."""
