"""The least a step can cost, as a share of the dense layer's.

A step is up to three products of batch B, in_features I, out_features O, each of 2 B I O FLOPs dense:

    y = x W^T        always
    d_x = g W        in an inner layer
    d_W = g^T x      p of it, where p is the trainable share

so that a large step costs at least (2 + p) / 3 of the dense one, (1 + p) / 2 in a first layer. A product that moves
more bytes than its FLOPs can hide is bound by memory; with F the FLOP rate and M the bandwidth, both measured in the
same run, a product takes at least

    max(FLOPs / F, bytes / M)

    y:      reads x, W; writes y                       B I + O I + B O
    d_x:    reads g, W; writes d_x                     B O + O I + B I
    d_W:    reads the wanted parts of g and x          q_r B O + q_c B I
            writes the gradient: O I masked (its zeros too), p O I packed
    AdamW:  reads parameter, gradient, two moments;    7 O I masked, 7 p O I packed
            writes parameter and two moments

entries, where q_r and q_c are the shares of rows and columns that hold a trainable entry. The limit is the sum over the
step's parts by the sum for the dense layer (p = q_r = q_c = 1). Biases, which are small, are left out; so is the copy
of the matrix that the packed form writes: physics does not ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, mask_of

SIZES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Machine:
    """What a machine can do.

    Attributes:
        flops: Of a large product, a second.
        bandwidth: Bytes a second, read or written, of a large copy.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Shares:
    """What learns: p of the entries, in q_r of the rows and q_c of the columns."""

    entries: float
    rows: float
    columns: float


DENSE = Shares(1, 1, 1)


def shares(row: Row) -> Shares:
    """Return what learns in the mask of a row."""
    mask = mask_of(row).to_array(row.weight_shape)
    return Shares(float(mask.mean()), float(mask.any(1).mean()), float(mask.any(0).mean()))


def limit(row: Row, form: str, machine: Machine, learns: Shares | None = None) -> float:
    """Return the least time of a row over the dense layer's least time.

    Args:
        row: What is measured.
        form: "masked" or "packed".
        machine: What it runs on.
        learns: Of the row's mask, if known already.

    Example:
        >>> row = Row("torch", "forward+backward", "columns", 0.1, (4096, 1000, 1000), "float32", "eager", "inner")
        >>> round(limit(row, "masked", Machine(1e9, 1e12)), 3)
        0.7
    """
    return least(row, form, machine, learns or shares(row)) / least(row, "masked", machine, DENSE)


def least(row: Row, form: str, machine: Machine, learns: Shares) -> float:
    """Return the least seconds of a row."""
    size, batch, (outputs, inputs) = SIZES[row.dtype], row.batch, row.weight_shape
    x, w, y = batch * inputs, outputs * inputs, batch * outputs
    parts: list[tuple[float, float]] = [(2.0 * batch * w, x + w + y)]
    if row.work != "forward":
        if row.place == "inner":
            parts.append((2.0 * batch * w, x + w + y))
        stored = w if form == "masked" else learns.entries * w
        parts.append((2.0 * batch * w * learns.entries, learns.rows * y + learns.columns * x + stored))
        if row.work == "adamw step":
            parts.append((0.0, 7 * stored))
    return sum(max(flops / machine.flops, entries * size / machine.bandwidth) for flops, entries in parts)


def is_memory_bound(row: Row, machine: Machine) -> bool:
    """Tell whether moving W takes longer than multiplying by it."""
    return 2.0 * row.batch / machine.flops < SIZES[row.dtype] / machine.bandwidth


def as_data(machine: Machine) -> dict[str, Any]:
    """Return the figures for JSON."""
    return {"flops per second": machine.flops, "bytes per second": machine.bandwidth}
