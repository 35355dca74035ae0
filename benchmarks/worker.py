"""One framework's share of a run, in a process of its own: it measures, and sends what it finds as plain data."""

from __future__ import annotations

import importlib
import os
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from benchmarks import growth, limits, operands, rows, timing
from benchmarks.limits import Machine
from benchmarks.rows import Row

SECONDS, QUICK_SECONDS = 10.0, 0.4
"""Of timing a row, at least `timing.LEAST_ROUNDS` rounds."""
FORMS = ("masked", "packed")
PEAK_AT = 0.1
"""The share whose rows have their peak of memory taken: it takes as long as timing does."""
SECTIONS = ("rows", "growth", "overhead")


class NoDevice(RuntimeError):
    """A device that was asked for is not there."""


@dataclass(frozen=True)
class Job:
    """What one process does.

    Attributes:
        framework: "torch" or "jax".
        device: "cpu" or "cuda".
        rows: To measure.
        quick: Measure shortly.
        sections: Of `SECTIONS`.
    """

    framework: str
    device: str
    rows: tuple[Row, ...]
    quick: bool
    sections: tuple[str, ...]

    @property
    def parts(self) -> int:
        """How many messages `measure` sends, beside the machine's."""
        sizes = {"rows": len(self.rows), "growth": len(growth.heats(self.framework, self.quick)), "overhead": 1}
        return sum(sizes[section] for section in self.sections)


def run(job: Job, connection: Connection, log: str) -> None:
    """Send ("machine", ...), then one ("rows", records), ("growth", ...) or ("overhead", ...) each, and ("done", None).

    What goes wrong is sent as ("error", text).

    Args:
        job: What to do.
        connection: To send to.
        log: A file for what the frameworks' own code writes to the standard error.
    """
    send(measure(job), connection, log)


def send(messages: Iterable[tuple[str, Any]], connection: Connection, log: str, *, needs: str = "") -> None:
    """Send messages as they come, and ("done", None); or what goes wrong as ("error", text).

    Args:
        messages: What a measurement yields.
        connection: To send to. It is closed.
        log: A file for what the frameworks' own code writes to the standard error.
        needs: What is to be installed beside the extra `bench`.
    """
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for message in messages:
                connection.send(message)
        connection.send(("done", None))
    except (operands.NotTheSame, NoDevice) as error:
        connection.send(("error", str(error)))
    except ImportError as error:
        connection.send(("error", f"{error}: pip install 'maskedlinear[bench]' {needs}".rstrip()))
    except Exception:
        connection.send(("error", traceback.format_exc()))
    finally:
        connection.close()


def measure(job: Job) -> Iterator[tuple[str, Any]]:
    """Yield what a job finds, part by part."""
    world = importlib.import_module(f"benchmarks.{job.framework}_machine")
    if job.device not in world.devices():
        raise NoDevice(f"no device: {job.framework} sees no {job.device} here")
    # Of a row's own dtype: bfloat16 has its own units on some processors, and none on others.
    machines = {
        dtype: Machine(world.flops(dtype, job.device), world.bandwidth(job.device))
        for dtype in sorted({row.dtype for row in job.rows} | {"float32"})
    }
    yield (
        "machine",
        {"threads": world.threads(), "rates": {dtype: limits.as_data(one) for dtype, one in machines.items()}},
    )
    if "rows" in job.sections:
        for row in job.rows:
            yield "rows", measure_row(row, machines[row.dtype], job.device, QUICK_SECONDS if job.quick else SECONDS)
    if "growth" in job.sections:
        for heat in growth.heats(job.framework, job.quick):
            yield "growth", growth.measure(heat, job.device)
    if "overhead" in job.sections:
        overhead = importlib.import_module(f"benchmarks.{job.framework}_overhead")
        yield "overhead", overhead.measure(job.device, job.quick)


def measure_row(
    row: Row,
    machine: Machine,
    device: str,
    seconds: float,
    alter: Callable[[dict[str, Any]], dict[str, Any]] = lambda programs: programs,
) -> list[dict[str, Any]]:
    """Return a record for each of our forms: times, ratios to everything else, bytes.

    Args:
        row: What to measure.
        machine: For the limit.
        device: "cpu" or "cuda".
        seconds: Of timing, about.
        alter: Changes the programs, by name, before they are checked and timed.

    Raises:
        NotTheSame: A rival, or ours, computes another gradient.
    """
    world = importlib.import_module(f"benchmarks.{row.framework}_steps")
    numbers, learns = operands.draw(row), limits.shares(row)
    mask = rows.mask_of(row).to_array(row.weight_shape)
    steps = alter(world.steps(row, numbers, device))
    for name, step in steps.items():
        if name != "dense":
            step.check(name, mask, numbers)
    samples = timing.interleave(steps, seconds=seconds, enough=lambda found: timing.narrow(found, FORMS))
    weighed: dict[str, dict[str, int]] = {}
    if row.work != "forward" and row.how != "compiled":
        weighed = {
            name: {"kept for the backward": step.kept(), "optimizer state": step.state()}
            for name, step in steps.items()
        }
        if row.p == PEAK_AT:
            for name, step in steps.items():
                weighed[name]["peak"] = step.peak()
    return [_record(row, form, samples, weighed, machine, learns) for form in FORMS]


def _record(
    row: Row,
    form: str,
    samples: dict[str, list[float]],
    weighed: dict[str, dict[str, int]],
    machine: Machine,
    learns: limits.Shares,
) -> dict[str, Any]:
    ours = samples[form]
    others = {name: times for name, times in samples.items() if name not in FORMS}
    ratios = {name: timing.ratio(ours, times) for name, times in others.items()}
    share = limits.limit(row, form, machine, learns)
    ratios["limit"] = ratios["dense"].over(share)
    return {
        **asdict(row),
        "id": f"{row.id}/{form}",
        "form": form,
        "share that learns": learns.entries,
        "large": row.is_large,
        "memory bound": limits.is_memory_bound(row, machine),
        "limit over dense": share,
        "rounds": len(ours),
        "seconds": {name: timing.median(times).median for name, times in samples.items()},
        "ratios": {name: [value.median, value.low, value.high] for name, value in ratios.items()},
        "bytes": {name: found for name, found in weighed.items() if name not in FORMS or name == form},
    }
