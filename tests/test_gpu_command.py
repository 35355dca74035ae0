"""`python -m parity gpu`: what each step comes to is told apart, and the report holds it."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parity import suites
from parity.cli.main import main
from parity.suites.gpu import devices, steps
from parity.suites.gpu.steps import Step


@pytest.mark.parametrize(
    ("step", "limit", "result"),
    [
        (Step("passes", "json.tool", ("--help",)), 60, "as promised"),
        (Step("fails", "json.tool", ("no-such-file.json",)), 60, "was not understood"),
        (Step("hangs", "http.server", ("0", "--bind", "127.0.0.1")), 1, "stopped: out of time"),
    ],
    ids=lambda one: getattr(one, "name", None),
)
def test_what_a_step_comes_to(tmp_path, step, limit, result):
    found = steps.run(step, tmp_path, limit=limit, say=lambda line: None)
    assert found["result"] == result
    assert found["command"].startswith(f"python -m {step.module}")
    assert found["record"] is None


WORKER = """
import subprocess, sys, time
print("begun", subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
time.sleep(600)
"""


def test_a_step_that_is_stopped_ends_with_what_it_started_and_keeps_what_it_printed(tmp_path, monkeypatch):
    """What goes on holds the memory of the GPU, which the next step needs."""
    (tmp_path / "worker_of_a_step.py").write_text(WORKER, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = steps.run(Step("hangs", "worker_of_a_step", ()), tmp_path, limit=3, say=lambda line: None)
    assert found["result"] == "stopped: out of time"
    (worker,) = [int(line.split()[1]) for line in found["printed"] if line.startswith("begun")]
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and "State:\tZ" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < until, "the worker of a step that was stopped goes on"
        time.sleep(0.05)


def test_jax_leaves_memory_of_the_gpu_to_torch(tmp_path, monkeypatch):
    """It would take three quarters of it at once, in each process (jax2torch #2): a step has both and workers."""
    (tmp_path / "asked_step.py").write_text(
        "import os; print(os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'])", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = steps.run(Step("asks", "asked_step", ()), tmp_path, limit=60, say=lambda line: None)
    assert found["printed"] == ["false"]


def test_the_process_of_the_command_asks_no_framework(tmp_path):
    """A framework that was asked for its devices keeps memory of each until its process ends."""
    program = (
        "import sys; from parity.cli.main import main; main(['gpu', '--json', sys.argv[1]]);"
        "assert not {'torch', 'jax'} & set(sys.modules), 'a framework was imported'"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "report.json")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "no device" in ran.stdout


def test_without_a_gpu_nothing_passes(capsys, tmp_path):
    report = tmp_path / "report.json"
    assert main(["gpu", "--json", str(report)]) == 1
    assert "no device" in capsys.readouterr().out
    assert not report.exists()


def test_the_rehearsal_says_that_it_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "steps", lambda device, **_: [Step(device, "json.tool", ("--help",))])
    report = tmp_path / "report.json"
    assert main(["gpu", "--pretend", "cpu", "--json", str(report)]) == 0
    kept = json.loads(report.read_text("utf-8"))
    assert "says nothing of a GPU" in kept["about"]
    assert [step["step"] for step in kept["steps"]] == ["cpu"]
    assert kept["results"]["cpu"].startswith("as promised, ")
    assert {"date", "environment", "device"} < set(kept)
    assert set(kept["devices"]) == {"torch", "jax", "driver"}


def test_a_report_says_which_gpus_it_is_of_and_which_framework_saw_none(monkeypatch, tmp_path, capsys):
    found = {"torch": [{"name": "a GPU"}], "jax": [], "driver": []}
    monkeypatch.setattr(devices, "seen", lambda: found)
    monkeypatch.setattr(steps, "steps", lambda device, **_: [Step(n, "json.tool", ("--help",)) for n in ("one", "two")])
    report = tmp_path / "report.json"
    assert main(["gpu", "--only", "one", "--json", str(report)]) == 0
    kept = json.loads(report.read_text("utf-8"))
    assert kept["devices"] == found
    assert kept["results"]["two"] == "did not run"
    assert "jax sees no GPU" in capsys.readouterr().out


def test_a_framework_that_cannot_be_asked_is_no_absent_gpu(monkeypatch):
    monkeypatch.setattr(devices.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="cannot be asked for their devices"):
        devices.seen()


def test_a_step_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["gpu", "--only", "golden"])
    assert "golden hashes" in capsys.readouterr().err


def parsed(command, options):
    """What a command of parity makes of its options; it ends as the command line does where it knows one not."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.set_defaults(command=command, parser=parser)
    (suite,) = [one for one in suites.found().values() if command in one.commands]
    suite.load().add_arguments(parser)
    return parser.parse_args(options)


@pytest.mark.parametrize("quick", [False, True], ids=["whole", "quick"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_planned_command_is_understood(device, quick):
    for step in steps.steps(device, quick=quick):
        if step.module == "parity":
            command, *options = step.arguments
            asked = parsed(command, options + (["--json", "record.json"] if step.record else []))
            assert "--device" not in options or asked.device == device


def test_a_command_that_is_not_understood_is_noticed():
    with pytest.raises(SystemExit, match="2"):
        parsed("golden", ["--no-such-option"])
