"""The figures as a person sees them: tables, and the lines that matter."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import targets
from benchmarks.timing import Ratio

OVER = ("dense", "limit", "one-liner", "masked afterwards", "densified", "seed's loop")
BYTES = ("kept for the backward", "peak", "optimizer state")


def show(found: dict[str, Any], console: Console) -> None:
    """Print a run.

    Args:
        found: As `command.run` makes it: environment, machines, rows, growth, overhead.
        console: To print to.
    """
    show_machine(found, console)
    for framework in found["machines"]:
        records = [record for record in found["rows"] if record["framework"] == framework]
        if records:
            console.print(times(framework, records))
            console.print(weights(framework, records))
    if found["growth"]:
        console.print(curves(found["growth"]))
    if found["overhead"]:
        console.print(overheads(found["overhead"]))
    show_targets(found, console)


def show_machine(found: dict[str, Any], console: Console) -> None:
    """Print what it ran on."""
    env = found["environment"]
    versions = ", ".join(f"{name} {env[name]}" for name in ("python", "torch", "jax", "numpy"))
    console.print(f"{env['processor']}, {env['cpus']} cores, {env['machine']}; {versions}; commit {env['commit']}")
    for framework, machine in found["machines"].items():
        rates = ", ".join(
            f"{dtype} {rate['flops per second'] / 1e9:.0f} GFLOP/s" for dtype, rate in machine["rates"].items()
        )
        bytes_per_second = next(iter(machine["rates"].values()))["bytes per second"]
        console.print(
            f"{framework} on {machine['device']}, {machine['threads']} threads: {rates}, "
            f"{bytes_per_second / 1e9:.1f} GB/s"
        )


def times(framework: str, records: Iterable[dict[str, Any]]) -> Table:
    """Return the table of times: milliseconds, and ratios to everything else."""
    table = Table(title=f"{framework}: time of ours over that of ... (unclear: the interval, not a ratio)")
    for column in ("row", "ms", *OVER):
        table.add_column(column, justify="left" if column == "row" else "right")
    last = ""
    for record in records:
        if (group := _group(record)) != last:
            table.add_section()
            table.add_row(f"[bold]{group}[/]")
            last = group
        ratios = {name: Ratio(*value) for name, value in record["ratios"].items()}
        cells = [_cell(ratios[name]) if name in ratios else "" for name in OVER]
        table.add_row(_line(record), f"{1e3 * record['seconds'][record['form']]:.3g}", *cells)
    return table


def weights(framework: str, records: Iterable[dict[str, Any]]) -> Table:
    """Return the table of bytes, each over the dense layer's, beside the share that learns."""
    table = Table(title=f"{framework}: bytes over the dense layer's: ours, then one-liner and densified")
    for column in ("row", "p", *BYTES):
        table.add_column(column, justify="left" if column == "row" else "right")
    last = ""
    for record in records:
        if not record["bytes"]:
            continue
        if (group := _group(record)) != last:
            table.add_section()
            table.add_row(f"[bold]{group}[/]")
            last = group
        cells = []
        for what in BYTES:
            if what not in record["bytes"]["dense"]:
                cells.append("")
                continue
            dense = record["bytes"]["dense"][what]
            shown = (record["form"], "one-liner", "densified")
            cells.append("  ".join(f"{record['bytes'][name][what] / dense:.3g}" for name in shown))
        table.add_row(_line(record), f"{record['share that learns']:.3g}", *cells)
    return table


def curves(growth: Iterable[dict[str, Any]]) -> Table:
    """Return the table of fits."""
    table = Table(title="growth: forward and backward with columns")
    for column in ("framework", "over", "form", "fit of time", "fit of bytes kept"):
        table.add_column(column)
    for curve in growth:
        for form, fit in curve["fits"].items():
            if curve["over"] == "p":
                frozen = curve["frozen"][0]
                time = (
                    f"{fit['intercept']:.3f} + {fit['slope']:.3f} p of dense, no point further off than "
                    f"{fit['worst']:.3f}; a frozen layer: {frozen:.3f}, the limit: 0.667 + 0.333 p"
                )
                kept = f"proportional to p, to {fit['kept: worst over slope']:.0e}"
                if abs(fit["kept: intercept over slope"]) > 1e-3:
                    kept = f"{fit['kept: intercept over slope']:.3f} + p"
            else:
                time = f"size^{fit['exponent']:.2f}, dense size^{fit['exponent of dense']:.2f}"
                kept = f"size^{fit['kept: exponent']:.2f}"
            table.add_row(curve["framework"], curve["over"], form, time, kept)
    return table


def overheads(found: Iterable[dict[str, Any]]) -> Table:
    """Return the table of host overhead and compile time."""
    table = Table(title="what a call, and a compilation, takes beyond the plain layer's")
    for column in ("what", "median", "95 %", "at most"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for one in found:
        middle, low, high = one["value"]
        table.add_row(one["id"], f"{middle:.2f}", f"{low:.2f}..{high:.2f}", f"{one['at most']:g}")
    return table


def show_targets(found: dict[str, Any], console: Console) -> None:
    """Print how many rows meet each target, and the worst miss by name; then all of it in one line."""
    verdicts = targets.judge(found["rows"], found["overhead"])
    table = Table(title="targets (met or missed by the whole interval; else unclear)")
    for column in ("target", "at most", *targets.VERDICTS, "worst miss"):
        table.add_column(column, justify="left" if column in ("target", "worst miss") else "right")
    for name, one in targets.summary(verdicts).items():
        worst = one["misses"][0] if one["misses"] else None
        told = f"{worst['value']:.2f} {worst['id']}" if worst else ""
        table.add_row(name, f"{one['at most']:g}", *(str(one[verdict]) for verdict in targets.VERDICTS), told)
    console.print(table)
    console.print(f"[bold]{targets.line(verdicts)}[/]", highlight=False)


def _group(record: dict[str, Any]) -> str:
    shape = "x".join(map(str, record["shape"]))
    place = "" if record["place"] == "inner" else ", first layer"
    return f"{record['work']}, {shape}, {record['dtype']}, {record['how']}{place}"


def _line(record: dict[str, Any]) -> str:
    return f"  {record['kind']} {Fraction(record['p']).limit_denominator(1000)} {record['form']}"


def _cell(value: Ratio) -> str:
    return str(value).replace("unclear ", "unclear\n") if value.is_clear or value.median < 10 else f"{value.median:.0f}"
