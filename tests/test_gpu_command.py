"""`python -m parity gpu`: what each step comes to is told apart, and the report holds it."""

import argparse
import json

import pytest

from parity import suites
from parity.cli.main import main
from parity.suites.gpu import steps
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
