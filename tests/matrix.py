"""The lowest and the newest version of every dependency, each in an environment of its own, made by uv.

    python -m tests.matrix --list
    python -m tests.matrix --run jax-lowest [--run ...] [--quick] [--here] [--limit SECONDS] [--markdown FILE]

An environment of a twin holds one framework and no other; those called `both` hold both, for files that are traded
and for `parity`. What runs there is tests/versions/, whose answers are exact or golden hashes, and the canaries of
private names. `--quick` chooses what `.ci/run` runs; torch's environments download gigabytes and are run by hand. They
are removed at the end, also where SIGTERM ends the run; those of a run that was killed are removed by the next.
Exit code: 0 all passed, 1 something failed or did not run, 2 not understood, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
TESTS = Path("tests") / "versions"
SIDE_BY_SIDE = 2
"""How many environments run at once: their tests are one process each."""


@dataclass(frozen=True)
class Environment:
    """What is installed, and what runs there.

    Attributes:
        name: To choose it by.
        python: The version of Python.
        requirements: What uv installs; a name alone is the newest.
        tests: Files in tests/versions/.
        quick: Whether `.ci/run` runs it.
    """

    name: str
    python: str
    requirements: tuple[str, ...]
    tests: tuple[str, ...]
    quick: bool = False


JAX = ("test_jax.py", "test_equinox.py", "test_nnx.py", "../test_private_names_jax.py")
TORCH = ("test_torch.py", "../test_private_names_torch.py")
BOTH = ("test_both.py", "test_parity.py", "../test_private_names_parity.py")
JAX_LOWEST = (
    "jax==0.8.3", "jaxlib==0.8.3", "flax==0.12.3", "equinox==0.13.0", "optax==0.2.5", "safetensors==0.5.0",
    "numpy==2.0.0",
)  # fmt: skip
TORCH_LOWEST = ("torch==2.12.1", "safetensors==0.5.0", "numpy==1.26.0")
JAX_NEWEST = ("jax", "jaxlib", "flax", "equinox", "optax", "safetensors", "numpy")
ENVIRONMENTS = (
    Environment("jax-lowest", "3.11", JAX_LOWEST, JAX, quick=True),
    Environment("jax-lowest-python-3.12", "3.12", JAX_LOWEST, JAX),
    Environment("jax-newest", "3.13", JAX_NEWEST, JAX, quick=True),
    Environment("torch-lowest", "3.11", TORCH_LOWEST, TORCH),
    Environment("torch-lowest-python-3.12", "3.12", TORCH_LOWEST, TORCH),
    Environment("torch-newest", "3.13", ("torch", "safetensors", "numpy"), TORCH),
    Environment("both-lowest", "3.11", ("torch==2.12.1", *JAX_LOWEST, "rich==13.0.0", "scikit-learn==1.5.0"), BOTH),
    Environment("both-newest", "3.13", ("torch", *JAX_NEWEST, "rich", "scikit-learn"), (*TORCH, *JAX, *BOTH)),
    Environment(
        "both-newest-python-3.14", "3.14", ("torch", *JAX_NEWEST, "rich", "scikit-learn"), (*TORCH, *JAX, *BOTH)
    ),
)
LEAST = {
    "test_jax.py": 58,
    "test_equinox.py": 2,
    "test_nnx.py": 4,
    "test_torch.py": 92,
    "test_both.py": 12,
    "test_parity.py": 14,
    "../test_private_names_torch.py": 48,
    "../test_private_names_jax.py": 17,
    "../test_private_names_parity.py": 29,
}
"""How many tests of a file must have passed: an environment cannot pass by running nothing."""
WARNINGS = ("-o", "filterwarnings=error::DeprecationWarning:(maskedlinear_|parity)")
"""A name that one of our packages uses and that a version says will go is a failure there, before it is gone."""


@dataclass(frozen=True)
class Result:
    """What came of one environment.

    Attributes:
        environment: Which.
        passed: How many tests passed.
        failed: The last lines of what failed, or None.
        versions: What was installed, by name.
        seconds: How long it took, with its installation.
    """

    environment: Environment
    passed: int
    failed: str | None
    versions: dict[str, str]
    seconds: float


class Processes:
    """What runs now, each in a group of its own, so that it ends with all that it started."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._ended = threading.Lock(), False

    def run(
        self, command: Sequence[str], settings: Mapping[str, str], folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with these variables of the environment, in this folder."""
        with self._lock:
            if self._ended:
                raise RuntimeError("the run was ended")
            process = subprocess.Popen(
                command, env=settings, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            self._running.add(process)
        out, err = process.communicate()
        with self._lock:
            self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def end(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def run(environment: Environment, folder: Path, processes: Processes, wheel: Path | None = None) -> Result:
    """Make an environment in a folder and run its tests.

    Args:
        environment: Which.
        folder: Where.
        processes: What runs the commands.
        wheel: What is tested, installed; None for the checkout.
    """
    started = time.perf_counter()
    home = folder / environment.name
    python = home / "bin" / "python"
    settings = os.environ | {"VIRTUAL_ENV": str(home), "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
    settings |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    settings.pop("PYTHONPATH", None)
    steps = (
        ["uv", "venv", "--quiet", "--python", _interpreter(environment.python) or environment.python, str(home)],
        ["uv", "pip", "install", "--quiet", *environment.requirements, "pytest", *([str(wheel)] if wheel else [])],
    )
    for step in steps:
        made = processes.run(step, settings)
        if made.returncode:
            return Result(environment, 0, f"{' '.join(step[:3])}: {made.stderr[-800:]}", {}, _since(started))
    # Only what lies in tests/versions/ configures these tests: tests/conftest.py imports both frameworks. What a name
    # with "still" shows is a fault of one version of torch, which others have mended.
    command = [
        str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={ROOT}",
        f"--confcutdir={ROOT / TESTS}", "--import-mode=importlib", *WARNINGS, "-k", "not still",
        *(str(ROOT / TESTS / file) for file in environment.tests),
    ]  # fmt: skip
    # Python looks in the current folder first: there the checkout is, or nothing.
    ran = processes.run(command, settings, home if wheel else ROOT)
    passed = int((re.search(r"(\d+) passed", ran.stdout) or [0, 0])[1])
    failed = None if ran.returncode == 0 else (ran.stdout + ran.stderr)[-3000:]
    least = sum(LEAST[file] for file in environment.tests)
    if failed is None and passed < least:
        failed = f"only {passed} tests passed, {least} are expected"
    return Result(environment, passed, failed, _versions(processes, settings), _since(started))


def markdown(results: Sequence[Result]) -> str:
    """Return a table of results, with the date."""
    head = "| environment | Python | versions | ran | passed | result |\n|---|---|---|---|---|---|\n"
    rows = [
        f"| {one.environment.name} | {one.environment.python} | "
        f"{', '.join(f'{name} {version}' for name, version in one.versions.items())} | "
        f"{', '.join(Path(file).stem for file in one.environment.tests)} | {one.passed} | "
        f"{'passed' if one.failed is None else 'failed'} |\n"
        for one in results
    ]
    names = " ".join(f"--run {one.environment.name}" for one in results)
    return f"{datetime.date.today()}, by `python -m tests.matrix {names}`:\n\n{head}{''.join(rows)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the environments and stop")
    parser.add_argument("--run", action="append", default=[], metavar="NAME", help="run this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="run those of .ci/run")
    parser.add_argument(
        "--here",
        action="store_true",
        help="install no Python: an environment whose Python is not here does not run, which is a failure",
    )
    parser.add_argument(
        "--allow-absent",
        action="store_true",
        help="as --here, but what does not run is no failure; it is said at the end",
    )
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="test what this installs, not the checkout")
    parser.add_argument(
        "--limit", type=float, metavar="SECONDS", help="fail if all of it takes longer, its downloads counted"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the results as a table")
    asked = parser.parse_args(arguments)
    known = {one.name: one for one in ENVIRONMENTS}
    for name in asked.run:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            parser.error(
                f"--run: expected one of {', '.join(known)}, got {name!r}" + f"; did you mean {near[0]!r}?" * len(near)
            )
    if asked.list:
        for one in ENVIRONMENTS:
            print(f"{one.name}: Python {one.python}, {', '.join(one.requirements)}{' (quick)' if one.quick else ''}")
        return 0
    chosen = [one for one in ENVIRONMENTS if one.name in asked.run or (asked.quick and one.quick)]
    if not chosen:
        parser.error("nothing to do: give --list, --run NAME or --quick")
    here = asked.here or asked.allow_absent
    absent = [one for one in chosen if here and _interpreter(one.python) is None]
    chosen = [one for one in chosen if one not in absent]
    if not chosen:
        parser.error("none of these has its Python here; without --here and --allow-absent, uv fetches it")
    results, started = [], time.perf_counter()
    wheel = asked.wheel and asked.wheel.resolve(strict=True)
    folder, processes, pool = _scratch().make_folder(), Processes(), ThreadPoolExecutor(SIDE_BY_SIDE)
    try:
        print(f"{', '.join(one.name for one in chosen)}: running", flush=True)
        for result in pool.map(lambda one: run(one, folder, processes, wheel), chosen):
            results.append(result)
            print(f"{result.environment.name}: {result.passed} passed in {result.seconds:.0f} s", flush=True)
            if result.failed is not None:
                print(result.failed)
    finally:
        # Gigabytes: what still runs is ended first, or it would go on to fill the folder.
        processes.end()
        pool.shutdown(cancel_futures=True)
        shutil.rmtree(folder, ignore_errors=True)
    took = _since(started)
    print(f"{len(results)} environments in {took:.0f} s")
    is_late = asked.limit is not None and took > asked.limit
    if is_late:
        print(
            f"expected at most {asked.limit:.0f} s, got {took:.0f} s: a download was slow, the machine was busy, or "
            "there is too much to run; give another --limit if this machine is a slow one"
        )
    # Last, where it is seen: what ran says nothing of these.
    for one in absent:
        told = "" if asked.allow_absent else "; install it, or let it be with --allow-absent"
        print(f"{one.name}: DID NOT RUN: Python {one.python} is not here{told}")
    if asked.markdown:
        asked.markdown.write_text(markdown(results), "utf-8")
    is_red = any(one.failed is not None for one in results) or bool(absent and not asked.allow_absent)
    return int(is_red or is_late)


def _scratch() -> ModuleType:
    """Return `parity.scratch`, by its file: a machine that runs the matrix has uv, and not what `parity` imports."""
    found = importlib.util.spec_from_file_location("scratch", ROOT / "parity" / "scratch.py")
    assert found is not None
    assert found.loader is not None
    scratch = importlib.util.module_from_spec(found)
    found.loader.exec_module(scratch)
    return scratch


def _interpreter(version: str) -> str | None:
    """Return the path of an interpreter of pyenv's or of the search path, or None."""
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(folder.glob(f"{version}.*/bin/python"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


def _versions(processes: Processes, settings: dict[str, str]) -> dict[str, str]:
    listed = processes.run(["uv", "pip", "list", "--quiet", "--format", "json"], settings)
    names = ("torch", "jax", "jaxlib", "flax", "equinox", "optax", "safetensors", "numpy", "rich", "scikit-learn")
    found = {one["name"]: one["version"] for one in json.loads(listed.stdout or "[]")}
    return {name: found[name] for name in names if name in found}


def _since(started: float) -> float:
    return time.perf_counter() - started


if __name__ == "__main__":
    _scratch().end_by_sigterm()
    sys.exit(main())
