"""A training run that ends in the same bits in every world; and what is seen when it does not (contract S9)."""

import contextlib
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from parity.cli import main as cli
from parity.suites.training.course import recipe, run


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line's run: what it saw, printed and wrote. Compiled once, for all tests."""
    folder, kept, real = tmp_path_factory.mktemp("course"), [], run.run
    report, figure = folder / "report.json", folder / "figure.svg"
    arguments = ["digits", "--quick", "--precision", "reproducible", "--json", str(report), "--plot", str(figure)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(run, "run", lambda **keywords: kept.append(real(**keywords | {"worlds": run.WORLDS})) or kept[0])
        code = cli.main(arguments)
    return SimpleNamespace(code=code, printed=printed.getvalue(), report=report, figure=figure, seen=kept[0])


@pytest.fixture(scope="module")
def seen(command):
    return command.seen


def test_one_hash_in_all_worlds_and_in_the_oracle(seen):
    assert seen.faults == ()
    digests = {course.digests for course in (*seen.same.values(), seen.oracle)}
    assert len(digests) == 1
    assert len(seen.same) == 4
    assert len(set(next(iter(digests)))) == len(seen.task.snapshots)  # it trains


def test_one_loss_curve(seen):
    for course in seen.same.values():
        np.testing.assert_array_equal(course.losses, seen.oracle.losses)
    assert seen.oracle.losses[-1] < 0.8 * seen.oracle.losses[0]


def test_native_runs_part(seen):
    torch, jax = seen.native.values()
    assert torch.digests[0] == jax.digests[0]
    assert torch.digests[-1] != jax.digests[-1]
    assert seen.differing[0] == 0 < seen.differing[-1]
    assert seen.distance[0] == 0 < seen.distance[-1]


def test_runs_that_part_are_faults(seen):
    """The same check on native runs."""
    faults = run._faults(seen.task, seen.native, seen.oracle)
    assert any(fault.startswith("jax jit parts from torch eager by step") for fault in faults)
    assert any("parts from the oracle by step" in fault for fault in faults)


def test_a_moved_frozen_weight_is_a_fault(seen):
    wrong = {name: course for name, course in seen.same.items()}
    first = wrong["torch eager"]
    end = [part.copy() for part in first.weights[-1]]
    frozen = np.argwhere(~seen.task.layers[0].trains[0])[0]
    end[0][tuple(frozen)] += 1
    wrong["torch eager"] = replace(first, weights=(*first.weights[:-1], tuple(end)))
    assert any("1 frozen weights changed (S3)" in fault for fault in run._faults(seen.task, wrong, seen.oracle))


def test_digest_is_of_bits():
    zero, minus = np.zeros(2, np.float32), -np.zeros(2, np.float32)
    assert recipe.digest((zero,)) != recipe.digest((minus,))
    assert recipe.digest((zero, zero)) == recipe.digest((np.zeros(4, np.float32),))


def test_command_line(command):
    assert command.code == 0, command.printed
    for part in ("one SHA-256 in torch eager, torch compiled, jax eager, jax jit", "oracle, by hand", "same bits"):
        assert part in command.printed.replace("\n", " ")
    found = json.loads(command.report.read_text("utf-8"))["digits, reproducible"]
    assert len(set(found["sha256"].values())) == 1
    assert len(set(found["sha256 native"].values())) == 2
    assert command.figure.read_text("utf-8").count("<path") > 10
    assert "parity digits" not in command.printed


def test_command_line_fails_where_runs_part(seen, monkeypatch, capsys):
    monkeypatch.setattr(run, "run", lambda **keywords: replace(seen, faults=("jax jit parts",)))
    assert cli.main(["digits", "--quick", "--precision", "reproducible"]) == 1
    assert "digits, reproducible, differs: jax jit parts" in capsys.readouterr().out
