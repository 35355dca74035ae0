"""The atlas: the operators that both frameworks offer, as people write them."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table
from rich.text import Text

from parity.cli import options, session
from parity.cli.console import console, verdict
from parity.isolation.sources import MODULE, NotUnderstood
from parity.isolation.supervisor import Supervisor
from parity.records import AGREES
from parity.report import content, markdown
from parity.report.terminal import STYLE

TITLE = "Operators of torch and JAX, side by side"

description = "operators that torch and JAX both offer, as people write them"

SOURCE = f"{MODULE}parity.suites.atlas.pairs"
HELP = (
    "Operators that torch and JAX both offer, with the arguments people write: forward, both modes and per copy, in "
    "float32 and the float64 runs it is judged by, at random numbers, zeros, ties and kinks. Not in it unless asked "
    "for by --transform, --data, --dtype: higher orders, infinities and NaN, subnormal and huge numbers, 16-bit dtypes."
)

USUAL = (
    {
        "transforms": ["forward", "vjp", "jvp", "gradient-per-copy"],
        "dtypes": ["float32"], "worlds": ["torch-eager", "jax-eager", "jax-jit"], "data": ["random"],
    },
    {
        "transforms": ["forward", "vjp"], "dtypes": ["float32"], "worlds": ["torch-eager", "jax-eager"],
        "data": ["zeros", "ties", "kinks"],
    },
)  # fmt: skip
"""The cells of an operator. Those of JAX hold its float64 run against torch's, too; that needs no cell of its own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = HELP
    options.add_pairs(parser)
    parser.add_argument("--group", action="append", metavar="NAME", help="only this group; may be repeated")


def run(asked: argparse.Namespace) -> int:
    """Run the atlas and return the exit code."""
    options.check(asked)
    made, out = asked.parser, console()
    try:
        with Supervisor(SOURCE, asked.timeout) as here:
            cells = session.planned(here, asked, made, out, USUAL)
            if asked.group:
                groups = {about.name: about.group for about in here.pairs()}
                for name in asked.group:
                    if name not in groups.values():
                        options.unknown(made, "--group", name, list(dict.fromkeys(groups.values())))
                cells = {name: mine for name, mine in cells.items() if groups[name] in asked.group}
            if asked.list:
                return session.list_cells(cells, out)
            seen = session.execute(here, cells, asked, out)
    except NotUnderstood as error:
        made.error(str(error))
    kept = session.report(TITLE, seen, SOURCE, "parity atlas")
    _show(kept, out)
    session.keep(asked, kept, out)
    return verdict(content.failed(kept), out)


def _show(kept: content.Content, out: Console) -> None:
    table = Table(title="operators that differ somewhere, and those that failed", title_justify="left")
    for name in ("operator", "torch", "JAX", "where"):
        table.add_column(name, overflow="fold")
    for pair, about in kept["pairs"].items():
        cells = [c for c in kept["cells"] if c["pair"] == pair and c["verdict"] not in AGREES]
        if not cells:
            continue
        where = ", ".join(dict.fromkeys(f"{cell['transform']} {cell['data']}" for cell in cells))
        style = STYLE["differs" if any(cell["failed"] for cell in cells) else "unsupported"]
        table.add_row(Text(pair, style=style), *map(Text, (about["torch"], about["jax"], where)))
    out.print(table)
    failures = [cell for cell in kept["cells"] if cell["failed"]]
    for cell in failures[:20]:
        out.print("\n".join(line for line in markdown.failure(cell) if line), style="red", markup=False)
    if len(failures) > 20:
        out.print(f"... and {len(failures) - 20} failures more (--json FILE keeps them all)")
    out.print(content.headline(kept), markup=False)
