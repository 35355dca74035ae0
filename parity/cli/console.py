"""Where commands print."""

from __future__ import annotations

from rich.console import Console

WIDTH = 120
"""Of output that goes to a file."""


def console() -> Console:
    """Return where to print: a terminal as wide as it is, or a file."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=WIDTH)


def verdict(failed: bool, out: Console) -> int:
    """Print the last line of a command and return its exit code."""
    out.print("[bold red]FAILED[/]" if failed else "[bold green]as promised[/]")
    return int(failed)
