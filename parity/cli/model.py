"""`python -m parity model FILE.py`: compare a JAX model with its torch model, module by module."""

from __future__ import annotations

import argparse
import shlex
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from parity.cli import options
from parity.cli.console import console, verdict
from parity.isolation.sources import NotUnderstood, import_file
from parity.models.judging import AGREES
from parity.models.replay import WHOLE, NotReplayed, read
from parity.names import unknown
from parity.report.content import visible

FILES = ("html", "json", "md", "txt")

NEEDED = ("torch_model", "jax_model", "inputs")
OPTIONAL = ("weights", "modules", "rules", "loss", "mode", "optimizer", "steps")

AGAINST = "python -m parity model FILE.py --against"

HOW = (
    "define torch_model, jax_model and inputs (or functions without arguments that make them); "
    f"{', '.join(OPTIONAL[:-1])} and {OPTIONAL[-1]} are optional"
)

description = (
    f"Compare the JAX model in a file with its torch model. In the file, {HOW}. "
    "`parity.compare_models` says what each may be. The file runs in this process."
)

STYLE = {"X": "red", "=": "green", "~": "cyan", "?": "yellow", "o": "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.description = description
    parser.add_argument("file", metavar="FILE.py", help="defines torch_model, jax_model and inputs")
    parser.add_argument("--only", metavar="PATH", help="judge only this torch module and the modules in it")
    parser.add_argument(
        "--replay", metavar="REPORT.json#PATH", help="run one module on the inputs that --json kept of it"
    )
    parser.add_argument("--mode", choices=("eval", "train"), help="the mode of both models (eval)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (0)")
    parser.add_argument("--no-perturb", action="store_true", help="compare with your weights only")
    parser.add_argument("--fail-fast", action="store_true", help="stop after the first run in which a module differs")
    parser.add_argument("--strict", action="store_true", help="a weight without a partner is a failure, too")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="run one model, and write what a comparison needs")
    parser.add_argument("--against", type=Path, metavar="DIR", help="compare the model with one that --dump kept")
    parser.add_argument("--side", choices=("torch", "jax"), help="which model --dump runs, where FILE.py has both")
    parser.add_argument("--float32", action="store_true", help="with --dump: run in float32, not in float64")
    parser.add_argument("--optimizer", metavar="NAME", help="compare training steps of sgd, adam, adamw or rmsprop")
    parser.add_argument("--steps", type=int, metavar="N", help="how many training steps are compared (1)")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw how far apart the two are after each step")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as a page, in one file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument("--md", type=Path, metavar="FILE", help="write the report in Markdown")
    parser.add_argument("--txt", type=Path, metavar="FILE", help="write the report as text")


def run(asked: argparse.Namespace) -> int:
    """Run the command and return the exit code."""
    options.check(asked, (*FILES, "plot"))
    if asked.plot is not None and asked.plot.suffix != ".svg":
        asked.parser.error(f"--plot: expected a name that ends in .svg, got {str(asked.plot)!r}")
    if asked.steps is not None and asked.steps < 1:
        asked.parser.error(f"--steps: expected 1 or more, got {asked.steps}")
    made: argparse.ArgumentParser = asked.parser
    out = console()
    try:
        if asked.replay is not None:
            return _replay(asked, out)
        if asked.dump is not None:
            return _dump(Path(asked.file), asked, out)
        report = _compare(_models(Path(asked.file), against=asked.against), asked, out)
    except (NotUnderstood, NotReplayed) as error:
        made.error(str(error))
    except (TypeError, ValueError, OSError, ModuleNotFoundError) as error:
        made.error(f"{asked.file}: {error}")
    for line in str(report).splitlines():
        out.print(Text(line, style=STYLE.get(line[:1], "") if line[1:2] == " " else ""), soft_wrap=True)
    if asked.plot is not None and report.steps is not None:
        report.save_steps(asked.plot)
    elif asked.plot is not None:
        out.print(Text(f"{asked.plot} is not drawn: training steps are compared where the outputs agree"))
    for name in FILES:
        if getattr(asked, name):
            report.save(getattr(asked, name), kind=name)
    return verdict(not report.ok, out)


def _models(file: Path, *, against: Path | None = None, needed: Sequence[str] = NEEDED) -> dict[str, Any]:
    names = import_file(file)
    dumped: dict[str, Any] = {}
    if against is not None:
        from parity.models.dump.files import Dump

        dump = Dump.read(against)
        dumped = {f"{dump.side}_model": dump, "mode": dump.meta["mode"]}
        dumped |= {} if "inputs" in names else {"inputs": None}
    names = {**names, **dumped}
    missing = [name for name in needed if name not in names]
    if missing:
        others = [name for name in names if not name.startswith("_")]
        hint = unknown(missing[0], missing[0], others).partition("; ")[2] if others else ""
        raise NotUnderstood(f"{file} does not define {' and '.join(missing)}{'; ' + hint if hint else ''}: {HOW}")
    found = {name: names[name] for name in (*NEEDED, *OPTIONAL) if name in names}
    for name in NEEDED:
        if _is_maker(found.get(name)):
            found[name] = found[name]()
    return found


def _dump(file: Path, asked: argparse.Namespace, out: Console) -> int:
    """Run one model and keep what a comparison needs of it."""
    from parity.models.dump.writing import dump_model
    from parity.models.inputs import Inputs

    found = _models(file, needed=("inputs",))
    sides = [side for side in ("torch", "jax") if f"{side}_model" in found and asked.side in (None, side)]
    if not sides:
        raise NotUnderstood(f"{file} does not define {asked.side or 'torch'}_model, which --dump is to run")
    side, inputs = sides[0], found["inputs"]
    with out.status(f"running {side}_model"):
        dump_model(
            found[f"{side}_model"], getattr(inputs, side) if isinstance(inputs, Inputs) else inputs, asked.dump,
            mode=asked.mode or found.get("mode", "eval"), seed=asked.seed, name=file.name,
            perturb=not asked.no_perturb, double=not asked.float32,
        )  # fmt: skip
    other = "jax" if side == "torch" else "torch"
    out.print(Text(f"{asked.dump}: {side}_model is kept. Where {other}_model runs: {AGAINST} {asked.dump}"))
    return 0


ALONE = (
    "dump", "against", "side", "float32", "only", "fail_fast", "strict", "optimizer", "steps", "plot", *FILES,
)  # fmt: skip
"""Options that have no effect with --replay."""


def _replay(asked: argparse.Namespace, out: Console) -> int:
    """Run one module again on the inputs that a report kept. The report is data: only FILE.py runs."""
    from parity.models import compare

    idle = [name.replace("_", "-") for name in ALONE if getattr(asked, name) not in (None, False)]
    if idle:
        asked.parser.error(f"--replay: runs one module alone, so --{idle[0]} has no effect")
    saved = read(asked.replay)
    found = _models(Path(asked.file))
    torch_model, jax_model, given = (found.pop(name) for name in NEEDED)
    for name in ("optimizer", "steps", "loss"):
        found.pop(name, None)
    with out.status("running both models"):
        made = compare.replayed(torch_model, jax_model, given, saved, **{**found, "mode": saved.mode})
    now, name = made.found, saved.path or WHOLE
    out.print(Text(visible(f"{name}  <->  {made.jax_path or 'the JAX model'}: {now.verdict}")), soft_wrap=True)
    shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in saved.arrays)
    weights = "perturbed weights" if saved.perturbed else "weights as they are"
    lines = [f"inputs: {shapes}, as kept in {asked.replay.rpartition('#')[0]}; {weights}"]
    if made.diagnosis is not None:
        lines += [f"cause: {made.diagnosis.cause}: {made.diagnosis.text}", f"fix:   {made.diagnosis.fix}"]
    if now.own_error is not None:
        lines.append(f"own error {now.own_error:.2g} of a typical output")
    if now.finding is not None:
        where = f"{now.finding.output}{list(now.finding.index)}"
        lines.append(f"worst: {where}: torch {now.finding.want:.9g}, JAX {now.finding.got:.9g}")
    lines += [now.reason] if now.reason else []
    changed = "" if saved.verdict == now.verdict else " (it has changed)"
    lines.append(f"then: {saved.verdict}; now: {now.verdict}{changed}")
    for line in lines:
        out.print(Text(visible(f"  {line}")), soft_wrap=True)
    return verdict(now.verdict not in AGREES, out)


def _is_maker(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _compare(found: dict[str, Any], asked: argparse.Namespace, out: Console) -> Any:
    from parity.models.compare import compare_models

    given = dict(found)
    if asked.mode is not None:
        given["mode"] = asked.mode
    if asked.optimizer is not None or asked.steps is not None or asked.plot is not None:
        given["optimizer"] = asked.optimizer or given.get("optimizer", "sgd")
        given["steps"] = asked.steps or given.get("steps", 1)
    torch_model, jax_model, inputs = (given.pop(name) for name in NEEDED)
    with out.status("running both models") as status:
        report = compare_models(
            torch_model, jax_model, inputs, name=Path(asked.file).name, perturb=not asked.no_perturb, seed=asked.seed,
            fail_fast=asked.fail_fast, only=asked.only, strict=asked.strict,
            progress=lambda path: status.update(Text(f"comparing {path}")), **given,
        )  # fmt: skip
    given_too = [f"--{name} {shlex.quote(str(getattr(asked, name)))}" for name in ("against", "mode")
                 if getattr(asked, name) is not None]  # fmt: skip
    given_too += [f"--seed {asked.seed}"] if asked.seed else []
    given_too += ["--no-perturb"] if asked.no_perturb else []
    command = f"python -m parity model {shlex.quote(str(asked.file))}"
    report.command, report.replay = command, "" if asked.json is None else str(asked.json)
    report.options = given_too
    return report
