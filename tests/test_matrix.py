"""The matrix of versions (tests/matrix.py) runs what pyproject.toml declares, and cannot pass by running nothing."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

spec = importlib.util.spec_from_file_location("matrix", ROOT / "tests" / "matrix.py")
matrix = importlib.util.module_from_spec(spec)
sys.modules["matrix"] = matrix
spec.loader.exec_module(matrix)
BY_NAME = {one.name: one for one in matrix.ENVIRONMENTS}


def declared():
    """Return the lower bounds of the extras that users install, by package."""
    extras = PROJECT["optional-dependencies"]
    wanted = [
        line for name in ("torch", "jax", "storage", "optax", "equinox", "nnx", "parity") for line in extras[name]
    ]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in wanted)


@pytest.mark.parametrize("package", sorted(declared()))
def test_the_lowest_version_that_is_declared_is_one_that_runs(package):
    for name in ("torch-lowest", "jax-lowest", "both-lowest"):
        pins = dict(pin.split("==") for pin in BY_NAME[name].requirements)
        if package in pins or name == "both-lowest":
            assert re.fullmatch(re.escape(declared()[package]) + r"(\.0)*", pins[package]), name


@pytest.mark.parametrize("name", ["optax", "equinox", "nnx"])
def test_an_extra_of_jax_alone_declares_which_jax(name):
    """`optax` did not: with the lowest optax, and beside an older JAX, it brought one that this cannot run with."""
    extras = PROJECT["optional-dependencies"]
    assert set(extras["jax"]) < set(extras[name])


def test_what_no_environment_holds_has_the_bound_that_the_tests_pin():
    """Matplotlib >=3.9, transformers >=5 and peft >=0.17 were declared, and never installed."""
    extras = PROJECT["optional-dependencies"]
    pins = dict(line.split("==") for line in extras["test"])
    for name in ("bench", "minilm"):
        for line in extras[name]:
            package, _, bound = line.partition(">=")
            if package not in declared():
                assert not bound or re.fullmatch(re.escape(bound) + r"(\.0)*", pins[package]), line


def test_every_declared_python_runs():
    minors = {line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    assert minors == {one.python for one in matrix.ENVIRONMENTS}


def test_an_environment_holds_what_its_name_says():
    for one in matrix.ENVIRONMENTS:
        names = {re.split("==", requirement)[0] for requirement in one.requirements}
        framework = one.name.split("-")[0]
        assert names & {"torch", "jax"} == ({"torch", "jax"} if framework == "both" else {framework}), one.name


def test_each_file_has_tests_to_count():
    files = {path.name for path in (ROOT / matrix.TESTS).glob("test_*.py")}
    files |= {f"../test_private_names{name}.py" for name in ("_torch", "_jax", "_parity")}
    assert files == set(matrix.LEAST) == {file for one in matrix.ENVIRONMENTS for file in one.tests}


def test_what_is_left_out_is_a_fault_of_torch():
    """`-k "not still"` leaves out tests by their names: of others, none may be called so."""
    left_out = {
        file
        for file in matrix.LEAST
        if re.search(r"def test_\w*still", (ROOT / matrix.TESTS / file).read_text("utf-8"))
    }
    assert left_out == {"../test_private_names_torch.py"}


WARNS = """
import warnings
def f():
    warnings.warn("goes away", DeprecationWarning, stacklevel=1)
"""


@pytest.mark.parametrize(("module", "code"), [("maskedlinear_planted", 1), ("parity", 1), ("another", 0)])
def test_a_deprecated_name_fails_where_a_package_of_ours_uses_it(tmp_path, module, code):
    """Before it is gone: `nnx.pure` in the place of `nnx.as_pure` passed with the newest Flax."""
    (tmp_path / f"{module}.py").write_text(WARNS, "utf-8")
    (tmp_path / "test_it.py").write_text(f"import {module}\ndef test_it():\n    {module}.f()\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, *matrix.WARNINGS, "-p", "no:parity", "test_it.py"]
    ran = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False)
    assert ran.returncode == code


class Planted(matrix.Processes):
    """These results in the place of those of uv, uv and pytest."""

    def __init__(self, outcomes):
        self.outcomes = iter(outcomes)

    def run(self, command, settings, folder=None):
        code, text = next(self.outcomes, (0, "[]"))
        return subprocess.CompletedProcess(command, code, stdout=text, stderr=text)


@pytest.mark.parametrize(
    ("outcomes", "says"),
    [
        ([(1, "no such interpreter")], "no such interpreter"),
        ([(0, ""), (1, "no such version")], "no such version"),
        ([(0, ""), (0, ""), (1, "1 failed, 90 passed")], "1 failed"),
        ([(0, ""), (0, ""), (0, "3 passed")], "only 3 tests passed, 81 are expected"),
    ],
)
def test_what_fails_is_said(tmp_path, outcomes, says):
    assert says in matrix.run(BY_NAME["jax-lowest"], tmp_path, Planted(outcomes)).failed


def test_what_passes_is_a_row(tmp_path):
    outcomes = [(0, ""), (0, ""), (0, "81 passed"), (0, '[{"name": "jax", "version": "0.8.3"}]')]
    result = matrix.run(BY_NAME["jax-lowest"], tmp_path, Planted(outcomes))
    assert result.failed is None
    row = "| jax-lowest | 3.11 | jax 0.8.3 | test_jax, test_equinox, test_nnx, test_private_names_jax | 81 | passed |"
    assert row in matrix.markdown([result])


def test_the_page_has_a_passed_row_of_every_environment():
    page = (ROOT / "docs" / "evidence" / "versions.md").read_text("utf-8")
    for one in matrix.ENVIRONMENTS:
        (row,) = re.findall(rf"^\| {re.escape(one.name)} \|.*$", page, re.M)
        python, versions, ran, passed, result = [part.strip() for part in row.strip("|").split("|")[1:]]
        assert (python, result) == (one.python, "passed"), row
        assert ran.split(", ") == [Path(file).stem for file in one.tests], row
        assert int(passed) >= sum(matrix.LEAST[file] for file in one.tests), row
        pins = [" ".join(pin.split("==")) for pin in one.requirements if "==" in pin]
        assert set(pins) <= set(versions.split(", ")), row


def test_a_misspelt_name_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        matrix.main(["--run", "jax-lowst"])
    assert "did you mean 'jax-lowest'?" in capsys.readouterr().err


def test_an_environment_without_its_python_is_named_at_the_end_and_fails(monkeypatch, capsys):
    ran = lambda one, *_: matrix.Result(one, 81, None, {}, 1.0)  # noqa: E731
    monkeypatch.setattr(matrix, "run", ran)
    monkeypatch.setattr(matrix, "_interpreter", lambda version: None if version == "3.13" else "python")
    said = "jax-newest: DID NOT RUN: Python 3.13 is not here"
    assert matrix.main(["--quick", "--allow-absent"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert matrix.main(["--quick", "--here"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{said}; install it, or let it be with --allow-absent"
    monkeypatch.setattr(matrix, "_interpreter", lambda version: None)
    with pytest.raises(SystemExit, match="2"):
        matrix.main(["--quick", "--here"])
    assert "none of these has its Python here" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "code"), [("60", 0), ("0", 1)])
def test_a_run_that_takes_too_long_fails(limit, code, monkeypatch, capsys):
    """It passed in ten minutes, where four were promised and nothing looked."""
    monkeypatch.setattr(matrix, "run", lambda one, *_: matrix.Result(one, 81, None, {}, 1.0))
    assert matrix.main(["--run", "jax-lowest", "--limit", limit]) == code
    said = capsys.readouterr().out
    assert "1 environments in 0 s" in said
    assert ("expected at most 0 s, got 0 s: a download was slow" in said) == bool(code)


def test_ci_holds_the_quick_part_to_four_minutes():
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "MOST_MATRIX_SECONDS=240\n" in script
    assert re.search(r'tests\.matrix --quick .*--limit "\$MOST_MATRIX_SECONDS"', script)


UV = """#!/bin/sh
# Makes a file in the environment, and then hangs in a process of its own.
[ "$1" = venv ] && { for last; do :; done; mkdir "$last"; exit 0; }
echo 14 GB >"$VIRTUAL_ENV/torch"
sleep 600 &
echo $! >"$STARTED.new"; mv "$STARTED.new" "$STARTED"
wait
"""


@pytest.fixture
def hanging(tmp_path):
    """A run of the matrix that hangs in uv: its process, where its folder lies, and the number of what uv started."""
    uv, folders, started = tmp_path / "bin" / "uv", tmp_path / "folders", tmp_path / "started"
    uv.parent.mkdir()
    folders.mkdir()
    uv.write_text(UV)
    uv.chmod(0o755)
    variables = os.environ | {
        "PATH": f"{uv.parent}:{os.environ['PATH']}", "TMPDIR": str(folders), "STARTED": str(started)
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.matrix", "--run", "jax-lowest"]
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(started.exists)
        yield process, folders, int(started.read_text())
    finally:
        process.kill()
        process.wait()
        if started.exists() and is_alive(int(started.read_text())):
            os.kill(int(started.read_text()), signal.SIGKILL)


def is_alive(process):
    """Tell whether a process runs; one that is over and that nobody asked for is none."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sigterm_ends_what_runs_and_removes_the_environments(hanging):
    process, folders, started = hanging
    (left,) = folders.iterdir()
    assert (left / "jax-lowest" / "torch").exists()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(folders.iterdir()) == []
    until(lambda: not is_alive(started))


def test_what_a_killed_run_left_is_removed_by_the_next(hanging, monkeypatch):
    process, folders, _ = hanging
    process.kill()
    process.wait()
    assert len(list(folders.iterdir())) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    monkeypatch.setattr(matrix, "run", lambda one, *_: matrix.Result(one, 81, None, {}, 1.0))
    assert matrix.main(["--run", "jax-lowest"]) == 0
    assert list(folders.iterdir()) == []
