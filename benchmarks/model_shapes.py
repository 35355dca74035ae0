"""The whole models that are measured, what is done with them, and in which ways they learn: data alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchmarks import rows
from maskedlinear_core.masks import Mask


@dataclass(frozen=True)
class Shape:
    """A transformer.

    Attributes:
        name: "encoder", of the shape of MiniLM without its embedding, or "decoder", of the shape of Llama.
        layers: How many.
        width: Of the vectors.
        heads: Of attention.
        hidden: Width of the perceptrons.
        tokens: Of the vocabulary; 0 = vectors go in.
        batch: Of a training step.
        length: Of the sequences.
    """

    name: str
    layers: int
    width: int
    heads: int
    hidden: int
    tokens: int
    batch: int
    length: int

    def linears(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the linear layers of the blocks in the order in which they are called: name, (out, in)."""
        w, h = self.width, self.hidden
        block = {"q": (w, w), "k": (w, w), "v": (w, w), "o": (w, w)}
        block |= {"gate": (h, w)} if self.tokens else {}
        block |= {"up": (h, w), "down": (w, h)}
        for layer in range(self.layers):
            for name, shape in block.items():
                yield f"blocks.{layer}.{name}", shape


SHAPES = {
    "encoder": Shape("encoder", 6, 384, 12, 1536, 0, 8, 64),
    "decoder": Shape("decoder", 8, 512, 8, 1408, 4096, 4, 64),
}
FORWARD_BATCHES = (1, 32)
GENERATED = 32
"""Tokens of a greedy generation, after one token that is given."""


def quickly(shape: Shape) -> Shape:
    """Return a model of the same form that takes seconds."""
    return replace(shape, layers=1, width=64, heads=4, hidden=128, tokens=min(shape.tokens, 64), batch=2, length=8)


@dataclass(frozen=True)
class Way:
    """A way to learn a part of a model.

    Attributes:
        name: For people.
        form: What computes it: "full", "masked", "packed", or a rival.
        kind: Of mask, one of `rows.KINDS`.
        p: The share of each linear layer's weight that learns.
        rank: Of LoRA.
    """

    name: str
    form: str
    kind: str = ""
    p: float = 1.0
    rank: int = 0

    def mask(self, shape: tuple[int, int]) -> Mask:
        """Return the mask of a weight: positions drawn at random, the same in every run."""
        return rows.mask_of(rows.Row("", "", self.kind, self.p, (1, *shape), "float32", "", ""))


FULL = Way("full", "full")
RIVALS = {
    "torch": {"one-liner": "one-liner", "hook": "gradient hook", "delta": "SHiRA's delta"},
    "jax": {"one-liner": "one-liner", "hook": "optax mask", "delta": ".at[].add"},
}
"""What masks the same positions otherwise: its form, and its name in each framework."""
FEW = 1 / 250


def ways(framework: str, *, quick: bool) -> list[Way]:
    """Return what is measured, full fine-tuning first.

    Args:
        framework: "torch" or "jax".
        quick: One of each form.
    """
    found = [FULL, Way("masked columns, held, 1 in 10", "masked", "columns", 0.1)]
    shares = {"1 in 10": 0.1, "1 in 100": 0.01}
    kinds = ("columns", "rows", "submatrix", "blocks")
    found += [Way(f"packed {kind}, {name}", "packed", kind, p) for name, p in shares.items() for kind in kinds]
    found += [Way(f"packed elements, 1 in {n}", "packed", "elements", 1 / n) for n in (100, 250, 1000)]
    found += [Way(f"{name}, 1 in 250", form, "elements", FEW) for form, name in RIVALS[framework].items()]
    found += [Way(f"LoRA, rank {rank}", "lora", rank=rank) for rank in (8, 16)]
    if quick:
        firsts = {way.form: way for way in reversed(found)}
        some = {*firsts.values(), next(way for way in found if way.form == "packed" and way.p == FEW)}
        found = [way for way in found if way in some]
    return found
