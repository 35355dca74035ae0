"""`python -m parity`: exit codes, filters, what a failure says, and the file it leaves."""

import contextlib
import importlib.util
import io
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from parity.cli import main as cli
from parity.records import Finding
from parity.report.terminal import failure
from parity.suites.masked_linear import grid
from parity.verdict.outcomes import Outcome, record_of

ROOT = Path(__file__).parent.parent


def parity(*arguments):
    """Run here, where the frameworks are imported."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = cli.main([*arguments])
    return code, out.getvalue(), errors.getvalue()


def from_outside(*arguments):
    """Run in a process of its own."""
    command = [sys.executable, "-m", "parity", *arguments]
    seen = subprocess.run(command, capture_output=True, text=True, check=False)
    return seen.returncode, seen.stdout, seen.stderr


SMALL = (
    "--case", "columns", "--dtype", "float32", "--transform", "forward,vjp", "--world", "torch-eager,jax-eager",
    "--precision", "native",
)  # fmt: skip


def test_success_is_zero_and_leaves_every_record(tmp_path):
    file = tmp_path / "report.json"
    code, printed, errors = from_outside("grid", *SMALL, "--json", str(file))
    assert code == 0, errors
    assert "4 cells: 4 identical" in printed
    report = json.loads(file.read_text("utf-8"))
    assert report["counts"]["identical"] == len(report["cells"]) == 4
    assert {"python", "numpy", "torch", "jax", "commit", "machine"} <= set(report["environment"])
    assert {"pair", "transform", "world", "device", "dtype", "data", "verdict", "clause"} <= set(report["cells"][0])
    assert not list(tmp_path.glob("*.tmp"))


USAGE = {
    "unknown transform": (["--transform", "vpj"], "did you mean 'vjp'?"),
    "unknown case": (["--case", "colums"], "did you mean 'columns'?"),
    "unknown dtype": (["--dtype", "float23"], "did you mean 'float32'?"),
    "unknown mask": (["--mask", "diagonals"], "expected one of columns, rows"),
    "unknown world": (["--world", "jax"], "expected one of torch-eager"),
    "unknown device": (["--device", "tpu"], "expected one of cpu, cuda, all"),
    "unknown command": (["girds"], "did you mean 'grid'?"),
    "another name for a command": (["compare", "pairs.py"], "compare: no command; `check FILE` compares"),
    "unknown option": (["--tolerance", "1"], "unrecognized arguments: --tolerance"),
    "no such combination": (["grid", "--case", "columns", "--tier", "random"], "no cell is all of that at once"),
    "negative seed": (["--seed", "-1"], "expected 0 or more, got -1"),
    "no such folder": (["--json", "/nowhere/at/all.json"], "expected a file in a folder that exists"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage_is_two(name, capsys):
    arguments, says = USAGE[name]
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert says in capsys.readouterr().err


def test_bad_usage_is_two_from_outside():
    assert from_outside("--transform", "vpj")[0] == 2


def test_absent_device_that_was_asked_for_is_a_failure():
    code, printed, _ = parity("grid", *SMALL, "--device", "cuda")
    assert code == 1
    assert "torch sees no cuda here" in printed


def test_absent_device_among_all_is_said_and_not_counted():
    code, printed, _ = parity("grid", *SMALL, "--device", "all")
    assert code == 0
    assert "no device: cuda is not here; its 4 cells did not run" in printed
    assert "4 cells: 4 identical" in printed


def test_list_names_cells_without_running_them(capsys):
    assert cli.main(["--list", *SMALL]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "columns/float32/forward/torch-eager/cpu/exact/native",
        "columns/float32/forward/jax-eager/cpu/exact/native",
        "columns/float32/vjp/torch-eager/cpu/exact/native",
        "columns/float32/vjp/jax-eager/cpu/exact/native",
    ]


def test_list_imports_no_framework():
    code = "import sys; from parity.cli import main; main.main(['--list']); print(*{'torch', 'jax'} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = seen.stdout.splitlines()
    assert lines[-1] == ""
    assert len(lines) > 8000


def test_the_versions_are_printed_without_a_framework():
    """What a stranger pastes into a report of a fault, also from the wheel, where no suite is."""
    code = (
        "import sys; from parity.cli import main; main.main(['--version']); print(*{'torch', 'jax'} & {*sys.modules})"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    *lines, last = seen.stdout.splitlines()
    assert last == ""
    found = dict(line.split(": ", 1) for line in lines)
    assert [*found][:7] == ["maskedlinear", "commit", "python", "numpy", "torch", "jax", "jaxlib"]
    assert {"machine", "processor", "cpus"} == {*found} - {*[*found][:7]}
    assert found["jax"] == metadata.version("jax")


def test_the_commit_is_of_our_sources(tmp_path):
    """Installed into an environment inside of a user's repository, a report named the user's commit as ours."""
    file = tmp_path / "environment.py"
    shutil.copy(ROOT / "parity" / "report" / "environment.py", file)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for step in (["init"], ["commit", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *step], capture_output=True, check=True)
    spec = importlib.util.spec_from_file_location("environment_of_a_user", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.environment()["commit"] == "unknown"
    subprocess.run([*git, "add", file.name], capture_output=True, check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    assert module.environment()["commit"] == head.stdout.strip()


def test_difference_is_one_and_names_everything(monkeypatch, capsys):
    """A wrong twin in the place of the right one: exit code, case, clause, element, got, want, ratio, rerun."""
    from maskedlinear_core import columns
    from parity.suites.masked_linear import torch_side

    right = torch_side.SUBJECTS[False]

    def wrong(*args, grad_mask, **keywords):
        return right(*args, grad_mask=columns([1]), **keywords)

    real = grid.run
    monkeypatch.setattr(grid, "run", lambda cells, seed: real(cells, seed=seed, subjects={"torch": wrong}))
    assert cli.main(["grid", *SMALL, "--seed", "5"]) == 1
    printed = capsys.readouterr().out
    for part in ("case columns, clause S3", "weight[", "got ", "want 0.0", "error/bound inf", "FAILED", "1 differs"):
        assert part in printed
    assert "--transform vjp --world torch-eager" in printed.replace("\n", " ")
    assert "--seed 5" in printed


def test_rerun_command_runs_that_cell_alone():
    (cell,) = grid.plan(cases=["rows"], dtypes=["float32"], transforms=["vjp"], worlds=["jax-eager"])
    (record,) = grid.run([cell], seed=7)
    arguments = record.rerun.split()[3:]
    code, printed, _ = parity(*arguments)
    assert code == 0
    assert "1 cells: 1 identical" in printed


def test_failure_text():
    (cell,) = grid.plan(cases=["rows"], dtypes=["float32"], transforms=["vjp"], worlds=["jax-eager"])
    finding = Finding("weight", (1, 2), 0.25, 0.0, float("inf"), "")
    record = record_of(cell, Outcome("differs", "why", finding=finding, clause="S3"), seed=0, seconds=0.0)
    assert failure(record).splitlines() == [
        "case rows, clause S3",
        "why",
        "worst: weight[1, 2]  got 0.25  want 0.0  error/bound inf",
        f"rerun: {record.rerun}",
    ]


def test_the_plan_does_not_shrink():
    cells = grid.plan()
    assert len(cells) >= 8800
    assert {cell.world for cell in grid.plan(quick=True)} == {cell.world for cell in cells}


def test_the_grid_is_written_as_a_page_and_as_markdown(tmp_path):
    code, _, errors = parity("grid", *SMALL, "--html", str(tmp_path / "r.html"), "--md", str(tmp_path / "r.md"))
    assert code == 0, errors
    assert "4 cells of 1 pair: 4 identical." in (tmp_path / "r.html").read_text("utf-8")
    assert "| forward | = | = |" in (tmp_path / "r.md").read_text("utf-8")
