"""`python -m benchmarks models`: whole models, fine-tuned in part in each way, beside full fine-tuning.

A step, a forward, a generation; bytes; seconds until the first step. Every ratio is taken round by round in one
process. What masks the same positions otherwise is held to the gradient of the plain model, or is not timed.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import command, timing, worker
from benchmarks.model_shapes import FORWARD_BATCHES, FULL, GENERATED, SHAPES, Shape, Way, quickly, ways
from benchmarks.operands import NotTheSame
from benchmarks.timing import Ratio
from parity.report.content import write_text
from parity.report.environment import environment
from parity.suites.gpu import devices

FRAMEWORKS = {"torch": ("eager", "compiled", "graphs"), "jax": ("jit",)}
"""In which ways each runs a model. "graphs" is `torch.compile(mode="reduce-overhead")`: CUDA graphs, on a GPU alone."""
SECONDS, QUICK_SECONDS = 40.0, 0.5
"""Of timing all programs beside each other, at least `timing.LEAST_ROUNDS` rounds."""
BUSY = 0.75
"""Other work per core from which on the machine is called busy."""
SLACK = 1e-3
"""Of the largest entry of a gradient: it is a sum of a thousand float32 products behind six layers, in another order.

A mask that is wrong, or a factor, changes entries by their own size.
"""


@dataclass(frozen=True)
class Job:
    """What one process does."""

    framework: str
    how: str
    model: str
    quick: bool
    ways: tuple[Way, ...]
    seconds: float
    device: str = "cpu"
    dtype: str = "float32"

    @property
    def shape(self) -> Shape:
        """The model's."""
        return quickly(SHAPES[self.model]) if self.quick else SHAPES[self.model]


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code: 0 measured, 1 not, 2 not understood."""
    asked = _parse(arguments)
    console = Console(highlight=False, soft_wrap=True)
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) > BUSY
    found: dict[str, Any] = {"environment": environment(), "busy": busy, "dtype": asked.dtype, "records": []}
    found |= {"threads": {}, "gpu": devices.of_driver() if asked.device == "cuda" else []}
    if asked.add and asked.json.exists():
        before = json.loads(asked.json.read_text("utf-8"))
        if any(before.get(name) != found[name] for name in ("environment", "dtype", "gpu")):
            asked.parser.error(f"--add: {asked.json} was measured elsewhere, or at another commit; measure all again")
        found = before | {"busy": busy or before["busy"]}
    try:
        for job in _jobs(asked):
            console.print(f"{job.framework} {job.how} {job.model}: {len(job.ways)} ways to learn")
            for kind, content in command._messages(job, run):  # type: ignore[arg-type]
                if kind == "threads":
                    found["threads"][job.framework] = content
                else:
                    found["records"].append(command._rounded(content))
            if asked.json:
                write_text(asked.json, json.dumps(found, indent=1) + "\n")
    except command.Failed as failure:
        console.print(f"[bold red]FAILED[/] {failure}", markup=True)
        return 1
    text = page(found)
    console.print(text, markup=False)
    if asked.markdown:
        write_text(asked.markdown, text)
    return 0


def run(job: Job, connection: Connection, log: str) -> None:
    """Send ("threads", number), ("record", record) for each way to learn, and ("done", None), or ("error", text)."""
    worker.send(measure(job), connection, log, needs="peft")


def measure(
    job: Job, alter: Callable[[dict[str, Any]], dict[str, Any]] = lambda programs: programs
) -> Iterator[tuple[str, Any]]:
    """Yield what a job finds.

    Args:
        job: What to do.
        alter: Changes the programs, by name, before they are checked and timed.

    Raises:
        NotTheSame: A rival, or ours, computes another gradient.
        NoDevice: The framework does not see the device.
    """
    world = importlib.import_module(f"benchmarks.{job.framework}_models")
    if job.device not in importlib.import_module(f"benchmarks.{job.framework}_machine").devices():
        raise worker.NoDevice(f"no device: {job.framework} sees no {job.device} here")
    yield "threads", world.threads()
    shape = job.shape
    programs = alter({way.name: world.Program(shape, way, job.how, job.device, job.dtype) for way in job.ways})
    check(programs, shape)
    works: dict[str, dict[str, Callable[[], object]]] = {"step": {name: one.step for name, one in programs.items()}}
    for batch in FORWARD_BATCHES:
        works[f"forward, batch {batch}"] = {name: one.forward(batch) for name, one in programs.items()}
    if shape.tokens and job.how in ("eager", "jit"):  # the others would compile a program for each length
        made = job.framework == "jax"
        works["generation"] = {name: one.generate() if made else one.generate for name, one in programs.items()}
    samples = {}
    for work, runs in works.items():
        samples[work] = timing.interleave(runs, seconds=job.seconds)
    first = next(iter(programs))
    for way in job.ways:
        program = programs[way.name]
        times = {work: each[way.name] for work, each in samples.items()}
        ratios = {work: timing.ratio(one, samples[work][first]) for work, one in times.items()}
        seconds = {work: timing.median(one).median for work, one in times.items()}
        record = {
            "id": f"{job.framework}/{job.how}/{job.model}/{way.name}",
            "trained": program.trained(),
            "rounds": {work: len(one) for work, one in times.items()},
            "ratios": {work: [one.median, one.low, one.high] for work, one in ratios.items()},
            "seconds": seconds | program.seconds,
            "bytes": program.weighed(),
        }
        if "generation" in seconds:
            record["tokens per second"] = GENERATED / seconds["generation"]
        yield "record", record


def check(programs: dict[str, Any], shape: Shape) -> None:
    """Refuse a program whose gradient is not the plain model's, masked. LoRA learns other numbers: it has none.

    Args:
        programs: By name, the plain model first.
        shape: Of the model.

    Raises:
        NotTheSame: With the name and the first entry that is wrong.
    """
    plain, *others = programs.items()
    whole = plain[1].first_gradient()
    slack = SLACK * np.abs(whole).max()
    for name, program in others:
        if program.way.form == "lora":
            continue
        mask = program.way.mask(next(shape.linears())[1]).to_array(whole.shape)
        got, want = program.first_gradient(), np.where(mask, whole, 0)
        wrong = (np.abs(got - want) > slack) | (~mask & (got != 0))
        if wrong.any() or not mask.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise NotTheSame(
                f"{name} computes another gradient than the masked one, and is not timed: weight{list(at)} of the "
                f"first layer is {got[at]}, expected {want[at]}"
            )


def page(found: dict[str, Any]) -> str:
    """Return the page of docs/evidence from what was measured."""
    env = found["environment"]
    frameworks = {record["id"].partition("/")[0] for record in found["records"]}
    versions = ", ".join(f"{'JAX' if one == 'jax' else one} {env[one]}" for one in FRAMEWORKS if one in frameworks)
    threads = ", ".join(f"{name}: {number}" for name, number in found["threads"].items())
    lines = [
        "# Whole models",
        "",
        f"`python -m benchmarks models`{' on a busy machine' if found['busy'] else ''}: "
        f"{', '.join([*found.get('gpu', []), env['processor']])}, {env['cpus']} cores, "
        f"threads {threads}; Python {env['python']}, {versions}; commit {env['commit']}.",
        "",
        f"Times are over those of full fine-tuning in the same round, {found.get('dtype', 'float32')}: medians, with "
        "the interval that holds the median with 95 % confidence. Nothing but the stated share of the blocks' linear "
        "layers learns. A forward and a generation are without gradients; JAX's packed models are merged for them. "
        "LoRA learns other numbers; "
        "every other program was held to the gradient of the plain model.",
    ]
    if found["busy"]:
        lines += ["", "Other work ran beside it: take the times as a rough guide. Bytes are exact."]
    for title in dict.fromkeys(record["id"].rpartition("/")[0] for record in found["records"]):
        records = [record for record in found["records"] if record["id"].rpartition("/")[0] == title]
        works, weighed = list(records[0]["ratios"]), list(records[0]["bytes"])
        heads = ["learns", "trained", *works, *weighed, "conversion", "first step"]
        if "tokens per second" in records[0]:
            heads.insert(2 + len(works), "tokens / s")
        framework, how, model = title.split("/")
        lines += ["", f"## {'JAX' if framework == 'jax' else framework}, {how}: the {model}", ""]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for record in records:
            cells = [record["id"].rpartition("/")[2], f"{record['trained']:,}"]
            cells += [_ratio(record["ratios"][work]) for work in works]
            if "tokens per second" in record:
                cells.append(f"{record['tokens per second']:.0f}")
            cells += [f"{record['bytes'][name] / 2**20:.2f} MiB" for name in weighed]
            cells += [f"{record['seconds'][name]:.2f} s" for name in ("conversion", "first step")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(values: Sequence[float]) -> str:
    one = Ratio(*values)
    return "1" if one.low == one.high == 1 else f"{one.median:.2f} ({one.low:.2f} to {one.high:.2f})"


def _jobs(asked: argparse.Namespace) -> list[Job]:
    jobs = []
    for framework, hows in FRAMEWORKS.items():
        for how in hows:
            if asked.framework not in ("all", framework) or (asked.how and how not in asked.how):
                continue
            if how == "graphs" and asked.device == "cpu":
                continue
            for model in asked.model or SHAPES:
                planned = ways(framework, quick=asked.quick)
                chosen = tuple(way for way in planned if way == FULL or _is_asked(way, asked.match))
                seconds = asked.seconds or (QUICK_SECONDS if asked.quick else SECONDS)
                jobs.append(Job(framework, how, model, asked.quick, tuple(chosen), seconds, asked.device, asked.dtype))
    if not jobs:
        asked.parser.error(f"--how: {asked.framework} has no {', '.join(asked.how)} on {asked.device}")
    return jobs


def _is_asked(way: Way, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatch.fnmatchcase(way.name, pattern) for pattern in patterns)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks models", description=__doc__)
    parser.add_argument("--framework", default="all", choices=(*FRAMEWORKS, "all"), help="(all)")
    parser.add_argument("--device", default="cpu", choices=command.DEVICES, help="(cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of all weights (float32)")
    hows = [how for each in FRAMEWORKS.values() for how in each]
    parser.add_argument("--how", action="append", choices=hows, help="repeatable; default: all of the framework")
    parser.add_argument("--model", action="append", choices=SHAPES, help="repeatable; default: all")
    parser.add_argument(
        "--match", action="append", metavar="PATTERN", help="only full and ways to learn that are like this; repeatable"
    )
    parser.add_argument("--seconds", type=float, help=f"of timing each work (default: {SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help="tiny models and a few ways, in about a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep every figure, with versions, machine, commit")
    parser.add_argument("--add", action="store_true", help="add to what the --json file has")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page docs/evidence/models-speed.md")
    asked = parser.parse_args(arguments)
    for option in ("json", "markdown"):
        file = getattr(asked, option)
        if file and not file.parent.is_dir():
            parser.error(f"--{option}: expected a file in a folder that exists, got {file}")
    if asked.add and not asked.json:
        parser.error("--add: expected --json FILE with it")
    asked.parser = parser
    return asked
