"""`python -m parity model FILE.py`: hold a JAX model to its torch model, module by module."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from parity.cli import options
from parity.cli.console import console, verdict
from parity.isolation.sources import NotUnderstood, import_file
from parity.names import unknown

FILES = ("html", "json", "md", "txt")

NEEDED = ("torch_model", "jax_model", "inputs")
OPTIONAL = ("weights", "modules", "rules", "loss", "mode", "optimizer", "steps")

HOW = (
    "define torch_model, jax_model and inputs (or functions without arguments that make them); "
    f"{', '.join(OPTIONAL[:-1])} and {OPTIONAL[-1]} are optional"
)

description = (
    f"Hold the JAX model in a file to its torch model. In the file, {HOW}. "
    "`parity.compare_models` says what each may be. The file runs in this process."
)

STYLE = {"X": "red", "=": "green", "~": "cyan", "?": "yellow", "o": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = description
    parser.add_argument("file", metavar="FILE.py", help="defines torch_model, jax_model and inputs")
    parser.add_argument("--only", metavar="PATH", help="judge this torch module and what is in it only")
    parser.add_argument("--mode", choices=("eval", "train"), help="what both models are put into (eval)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    parser.add_argument("--no-perturb", action="store_true", help="compare with the weights as they are only")
    parser.add_argument("--fail-fast", action="store_true", help="stop after the first run in which a module differs")
    parser.add_argument("--strict", action="store_true", help="a weight without a partner fails too")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the tree of modules to unfold")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what is known of every module")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the report in Markdown")
    parser.add_argument("--txt", type=Path, metavar="FILE", help="write the report as text")


def run(asked: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    options.check(asked, FILES)
    made: argparse.ArgumentParser = asked.parser
    out = console()
    try:
        found = _models(Path(asked.file))
        report = _compare(found, asked, out)
    except NotUnderstood as error:
        made.error(str(error))
    except (TypeError, ValueError) as error:
        made.error(f"{asked.file}: {error}")
    for line in str(report).splitlines():
        out.print(Text(line, style=STYLE.get(line[:1], "") if line[1:2] == " " else ""), soft_wrap=True)
    for name in FILES:
        if getattr(asked, name):
            report.save(getattr(asked, name), kind=name)
    return verdict(not report.ok, out)


def _models(file: Path) -> dict[str, Any]:
    names = import_file(file)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        others = [name for name in names if not name.startswith("_")]
        hint = unknown(missing[0], missing[0], others).partition("; ")[2] if others else ""
        raise NotUnderstood(f"{file} does not define {' and '.join(missing)}{'; ' + hint if hint else ''}: {HOW}")
    found = {name: names[name] for name in (*NEEDED, *OPTIONAL) if name in names}
    for name in NEEDED:
        if _is_maker(found[name]):
            found[name] = found[name]()
    return found


def _is_maker(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _compare(found: dict[str, Any], asked: argparse.Namespace, out: Console) -> Any:
    from parity.models.compare import compare_models

    given = dict(found)
    if asked.mode is not None:
        given["mode"] = asked.mode
    torch_model, jax_model, inputs = (given.pop(name) for name in NEEDED)
    with out.status("running both models") as status:
        return compare_models(
            torch_model, jax_model, inputs, name=Path(asked.file).name, perturb=not asked.no_perturb, seed=asked.seed,
            fail_fast=asked.fail_fast, only=asked.only, strict=asked.strict,
            progress=lambda path: status.update(Text(f"comparing {path}")), **given,
        )  # fmt: skip
