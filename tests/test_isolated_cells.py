"""`python -m parity check`: a cell that dies or hangs is a verdict, the run goes on, and cells can be replayed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from parity.cli import check
from parity.isolation import inputs, sources, supervisor
from parity.records import Cell

FILE = """
import os, time
import jax, numpy as np, torch
import torch.nn.functional as F

TRACED = jax.core.Tracer

def inputs(seed):
    return (np.random.default_rng(seed).standard_normal((3, 4)),)

def torch_gelu(x): return F.gelu(x)
def jax_gelu(x): return jax.nn.gelu(x)

def torch_dies(x): return x * 2
def jax_dies(x):
    print("about to die")
    if isinstance(x, TRACED): os.abort()
    return x * 2

def torch_hangs(x): return x * 3
def jax_hangs(x):
    while isinstance(x, TRACED): time.sleep(0.1)
    return x * 3

def torch_silu(x): return F.silu(x)
def jax_silu(x): return jax.nn.silu(x)
"""
CHOICE = ("--transform", "forward", "--data", "random", "--dtype", "float32", "--world", "jax-eager,jax-jit")
ROOT = Path(__file__).parent.parent


def parity(*arguments):
    command = [sys.executable, "-m", "parity", *map(str, arguments)]
    seen = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return seen.returncode, seen.stdout, seen.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of the file, in 15 seconds: exit code, what it printed, the files it left."""
    folder = tmp_path_factory.mktemp("check")
    (folder / "four.py").write_text(FILE, "utf-8")
    kept = [part for kind in ("json", "html", "md") for part in (f"--{kind}", folder / f"r.{kind}")]
    code, printed, errors = parity("check", folder / "four.py", *CHOICE, "--timeout", "10", *kept)
    assert (folder / "r.json").exists(), errors
    return code, printed, folder, json.loads((folder / "r.json").read_text("utf-8"))


def cell(run, pair, world):
    (found,) = [cell for cell in run[3]["cells"] if (cell["pair"], cell["world"]) == (pair, world)]
    return found


def test_a_cell_that_kills_its_process_is_crashed_with_the_signal_and_the_line(run):
    dead = cell(run, "dies", "jax-jit")
    assert (dead["verdict"], dead["failed"]) == ("crashed", True)
    line = 1 + FILE.splitlines().index("    if isinstance(x, TRACED): os.abort()")
    assert dead["reason"] == f"the process ended by SIGABRT, in jax_dies (four.py, line {line})"


def test_a_cell_that_hangs_is_timed_out_with_the_seconds_and_the_line(run):
    hung = cell(run, "hangs", "jax-jit")
    assert (hung["verdict"], hung["failed"]) == ("timed out", True)
    line = 1 + FILE.splitlines().index("    while isinstance(x, TRACED): time.sleep(0.1)")
    assert hung["reason"] == f"no result after 10 s, in jax_hangs (four.py, line {line})"


def test_the_run_goes_on(run):
    assert {cell["pair"] for cell in run[3]["cells"]} == {"gelu", "dies", "hangs", "silu"}
    assert len(run[3]["cells"]) == 8
    for pair, world in (("dies", "jax-eager"), ("hangs", "jax-eager"), ("silu", "jax-eager"), ("silu", "jax-jit")):
        assert cell(run, pair, world)["verdict"] in ("identical", "within bound")
    assert cell(run, "gelu", "jax-jit")["verdict"] == "differs"


def test_exit_code_and_text(run):
    code, printed, folder, _ = run
    assert code == 1
    assert "FAILED" in printed
    assert "about to die" not in printed
    commands = re.findall(r"rerun: (python -m parity check \S+ --pair dies)", printed)
    assert commands == [f"python -m parity check {folder / 'four.py'} --pair dies"]


def test_every_failed_cell_keeps_its_inputs(run):
    for one in run[3]["cells"]:
        assert (one["inputs_sha256"] in run[3]["inputs"]) == one["failed"] or not one["failed"]
    assert {path.name for path in run[2].glob("r.*")} == {"r.json", "r.html", "r.md"}
    assert "dies" in (run[2] / "r.html").read_text("utf-8")
    assert "in jax_dies" in (run[2] / "r.md").read_text("utf-8")


def test_a_cell_that_died_is_replayed_too(run):
    """A process that is gone has hashed nothing."""
    dead = cell(run, "dies", "jax-jit")
    code, printed, errors = parity("check", "--run-source", "--replay", f"{run[2] / 'r.json'}#{dead['id']}")
    assert (code, "then: crashed; now: crashed" in printed) == (1, True), errors
    assert "kept in the report" in printed


def test_a_cell_is_replayed_from_its_bytes_alone(run):
    """Even where the file makes other numbers now."""
    folder, report = run[2], run[3]
    failed = cell(run, "gelu", "jax-eager")
    other = folder / "other.py"
    other.write_text(FILE.replace("standard_normal((3, 4))", "uniform(5, 6, (3, 4))"), "utf-8")
    code, printed, errors = parity("check", other, "--replay", f"{folder / 'r.json'}#{failed['id']}")
    assert code == 1, errors
    assert f"SHA-256 {failed['inputs_sha256'][:16]} as in the report" in printed
    assert "then: differs; now: differs" in printed
    assert repr(failed["got"]) in printed
    assert report["source"].endswith("four.py")


WRONG = {
    "a cell that is not there": (lambda report, id: id.replace("gelu", "glue"), "has no cell 'glue/"),
    "a cell without inputs": (lambda report, id: report["inputs"].clear() or id, "the report keeps no inputs of gelu/"),
    "inputs that were changed": (
        lambda report, id: report["inputs"].update({key: _other() for key in report["inputs"]}) or id,
        "the saved inputs are not those of the cell: their SHA-256 is",
    ),
    "inputs of another shape": (
        lambda report, id: report["inputs"].update({key: _other(2) for key in report["inputs"]}) or id,
        "saved inputs: expected the 1 arrays that gelu takes, got 2",
    ),
}


def _first(report):
    return report["cells"][0]


DAMAGED = {
    "a cell without its dtype": lambda report: _first(report).pop("dtype"),
    "a seed that is text": lambda report: _first(report).update(seed="0"),
    "a cell that is no cell": lambda report: report["cells"].append(3),
    "inputs that are no list": lambda report: report.update(inputs=7),
    "a source that is a number": lambda report: report.update(source=3),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_report_is_refused_in_a_sentence(name, run, tmp_path):
    report = json.loads(json.dumps(run[3]))
    DAMAGED[name](report)
    (tmp_path / "r.json").write_text(json.dumps(report), "utf-8")
    with pytest.raises(sources.NotUnderstood, match="is no report of `python -m parity check --json`"):
        check.saved(f"{tmp_path / 'r.json'}#{cell(run, 'gelu', 'jax-eager')['id']}")


def test_inputs_that_cannot_be_read_are_refused_in_a_sentence():
    with pytest.raises(sources.NotUnderstood, match="inputs cannot be read"):
        check._shapes("no base64")


def test_a_replay_runs_no_file_that_only_the_report_names(run):
    failed = cell(run, "gelu", "jax-eager")
    code, printed, errors = parity("check", "--replay", f"{run[2] / 'r.json'}#{failed['id']}")
    assert (code, printed) == (2, "")
    assert "four.py, and a replay runs that file" in " ".join(errors.split())
    assert "--run-source" in errors


def _other(count=1):
    return inputs.pack([np.full((3, 4), 2.5)] * count)


@pytest.mark.parametrize("name", WRONG)
def test_a_replay_that_cannot_be_says_why(name, run, tmp_path):
    change, says = WRONG[name]
    report = json.loads(json.dumps(run[3]))
    chosen = change(report, cell(run, "gelu", "jax-eager")["id"])
    (tmp_path / "r.json").write_text(json.dumps(report), "utf-8")
    code, _, errors = parity("check", "--run-source", "--replay", f"{tmp_path / 'r.json'}#{chosen}")
    assert code == 2
    assert says in " ".join(errors.split())


def test_a_file_that_is_no_report_is_refused(tmp_path):
    (tmp_path / "r.json").write_text("[]", "utf-8")
    with pytest.raises(sources.NotUnderstood, match="is no report of `python -m parity check --json`"):
        check.saved(f"{tmp_path / 'r.json'}#a")


def test_a_pair_that_always_ends_its_process_is_left_after_three_cells(monkeypatch):
    """Without a process: each of these would cost seconds."""

    def dies(self, seconds):
        raise supervisor._Ended("crashed", "the process ended by SIGSEGV")

    monkeypatch.setattr(supervisor.Supervisor, "_start", lambda self: None)
    monkeypatch.setattr(supervisor.Supervisor, "_ask", lambda self, request, **arguments: ("digest", "inputs"))
    monkeypatch.setattr(supervisor.Supervisor, "_receive", dies)
    cells = [Cell("f", "", "float32", "forward", "jax-jit", "cpu", f"kind {number}") for number in range(5)]
    with supervisor.Supervisor("a.py") as here:
        monkeypatch.setattr(here, "_send", lambda request, arguments: None)
        records = list(here.run("f", cells, seed=0))
    assert [(record.cell, record.verdict) for record, _ in records] == [(cell, "crashed") for cell in cells]
    assert [kept for _, kept in records] == ["inputs"] * 3 + [None] * 2
    assert records[2][0].reason == "the process ended by SIGSEGV"
    assert records[3][0].reason.startswith("not run: the 3 cells before it each ended the process")
