"""Prints which planted faults are named: `python -m tests.model_ports [--seeds N] [--only TEXT] [--markdown FILE]`."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path

from tests.model_ports.fault import Port
from tests.model_ports.faults import PORTS
from tests.model_ports.score import Score, scored

PLANTED, STRANGERS = "planted faults", "ports by strangers"
"""Parts of a page that are written anew, each between comments of its name."""


def main(arguments: list[str] | None = None) -> int:
    """Score all faults, and right ports over seeds; return 1 where a right port is not quiet."""
    parser = argparse.ArgumentParser(prog="python -m tests.model_ports", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="right ports are compared over so many seeds")
    parser.add_argument("--only", default="", help="score faults whose model and name have this text")
    parser.add_argument("--strangers", action="store_true", help="of the ports in other people's styles, not the three")
    parser.add_argument("--markdown", type=Path, help="the part of a page that is written anew")
    options = parser.parse_args(arguments)
    scores = []
    for port in strangers() if options.strangers else PORTS:
        for fault in (*port.faults, *[None] * options.seeds):
            if options.only not in f"{port.name} {fault.name if fault else 'right'}":
                continue
            seed = sum(one.port == port.name and one.fault is None for one in scores) if fault is None else 0
            scores.append(scored(port, fault, seed))
            one = scores[-1]
            name = fault.name if fault else f"right, seed {seed}"
            print(f"{one.port}: {name}: module {one.module} ({one.path}), cause {one.cause}; {one.said[:200]}; "
                  f"{one.seconds:.0f} s", file=sys.stderr, flush=True)  # fmt: skip
    how = (
        (" --strangers" if options.strangers else "")
        + f" --seeds {options.seeds}"
        + (f" --only '{options.only}'" if options.only else "")
    )
    text = page(scores, how, "other people's" if options.strangers else "three")
    print(text)
    if options.markdown is not None:
        write(options.markdown, text, STRANGERS if options.strangers else PLANTED)
    return int(any(one.module == "false alarm" for one in scores))


def page(scores: list[Score], how: str, what: str = "three") -> str:
    """Return the table as Markdown, and how it was made."""
    planted = [one for one in scores if one.fault is not None]
    right = [one for one in scores if one.fault is None]
    modules, causes = (Counter(getattr(one, name) for one in planted) for name in ("module", "cause"))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "jax", "flax", "equinox"))
    lines = [
        f"## Faults planted in {what} ports",
        "",
        f"Made by `python -m tests.model_ports{how}` on {datetime.date.today()} with {versions}.",
        "",
        f"{len(planted)} faults: the module named {_counts(modules)}; the cause {_counts(causes)}. "
        f"{len(right)} right ports: {_counts(Counter(one.module for one in right))}.",
        "",
        "| model | fault | module | named | cause | what the report says |",
        "|---|---|---|---|---|---|",
    ]
    for one in planted:
        said = " ".join(one.said.split()).replace("|", "\\|")
        lines.append(
            f"| {one.port} | {one.fault.name} | {one.path or '(the model)'} | {one.module} | {one.cause} | {said} |"
        )  # type: ignore[union-attr]
    return "\n".join(lines) + "\n"


def strangers() -> tuple[Port, ...]:
    """Return the models and ports in the styles of other people."""
    from tests.model_ports.strangers import flax_nnx, functions, others, vision, wrapped

    return (*flax_nnx.PORTS, *functions.PORTS, *vision.PORTS, *others.PORTS, *wrapped.PORTS)


def write(path: Path, text: str, part: str) -> None:
    """Put the text into its part of a page; the rest of the page stays."""
    page = path.read_text() if path.exists() else "# Model ports\n\n"
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    before, _, rest = page.partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{text}{end}{after or chr(10)}")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{how} {count}" for how, count in counts.most_common())


if __name__ == "__main__":
    sys.exit(main())
