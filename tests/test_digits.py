"""The training run on real digits: one course in both frameworks; every planted fault is seen."""

import json
from dataclasses import replace

import numpy as np
import pytest

from maskedlinear_core import columns
from parity.cli import main as cli
from parity.suites.training import suite
from parity.suites.training.digits import compare, network, numpy_training, run

STEPS = 40


@pytest.fixture(scope="module")
def seen():
    return run.run(steps=STEPS)


def test_data_are_the_real_images():
    task = network.task(steps=1)
    assert task.images.shape == (1437, 64)
    assert len(task.images) + len(task.test_images) == 1797
    assert set(np.unique(task.images * 16)) == set(range(17))
    assert not {row.tobytes() for row in task.images} & {row.tobytes() for row in task.test_images}


def test_layers_have_different_kinds_of_mask():
    kinds = {type(spec.grad_mask).__name__ for spec in network.task(steps=1).layers}
    assert kinds == {"Columns", "Blocks", "Submatrix", "Elements"}


def test_both_frameworks_go_one_course(seen):
    _, comparison = seen
    assert comparison.faults == ()
    torch, jax = comparison.histories
    np.testing.assert_allclose(torch.losses, jax.losses, rtol=1e-5)  # thousands of roundings of 6e-8
    assert torch.losses[-1] < 0.7 * torch.losses[0]
    assert comparison.changed == {"torch": 0, "jax": 0}
    assert comparison.frozen == 6665
    assert min(comparison.moved.values()) > 0.99


def test_both_start_from_the_same_bits(seen):
    assert seen[1].apart[0] == 0.0


def _faults(seen, **changes):
    """Compare again with some run changed."""
    task, comparison = seen
    torch, jax = comparison.histories
    runs = {"torch": torch, "jax": jax, "oracle": comparison.oracle, "yardstick": comparison.yardstick} | changes
    return compare.compare(task, **runs).faults


def _nudged(history, layer, where, by):
    """The history with one weight of the last snapshot changed."""
    last = [part.copy() for part in history.weights[-1]]
    last[layer][where] = np.nextafter(last[layer][where], by, dtype=np.float32)
    return replace(history, weights=(*history.weights[:-1], tuple(last)))


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_one_bit_of_one_frozen_weight_is_seen(seen, name):
    task, comparison = seen
    history = dict(zip(("torch", "jax"), comparison.histories, strict=True))[name]
    frozen = tuple(np.argwhere(~task.layers[0].trains[0])[0])
    assert _faults(seen, **{name: _nudged(history, 0, frozen, np.float32(9))}) == (
        f"{name}: 1 frozen weights changed (S3)",
    )


def test_layer_that_does_not_learn_is_seen(seen):
    _, comparison = seen
    still = replace(
        comparison.histories[0], weights=(comparison.histories[0].weights[0],) * len(comparison.oracle.weights)
    )
    assert any("only 0% of the trainable weights moved" in fault for fault in _faults(seen, torch=still))


def test_lower_precision_is_seen(seen):
    """A run that strays a thousand times further, as TF32 would."""
    task, comparison = seen
    torch, oracle = comparison.histories[0], comparison.oracle
    coarse = tuple(
        tuple(
            np.where(trains, o + 1000 * (t - o), t).astype(np.float32)
            for t, o, trains in zip(weights, exact, [p for s in task.layers for p in s.trains], strict=True)
        )
        for weights, exact in zip(torch.weights, oracle.weights, strict=True)
    )
    faults = _faults(seen, torch=replace(torch, weights=coarse))
    assert any("times what float32 strays by rounding" in fault for fault in faults)


def test_twin_that_ignores_a_mask_is_seen():
    task = network.task(0, STEPS)
    everything = replace(task, layers=(replace(task.layers[0], grad_mask=columns(slice(None))), *task.layers[1:]))
    _, comparison = run.run(steps=STEPS, tasks={"jax": everything})
    assert any(fault.startswith("jax:") and "frozen weights changed" in fault for fault in comparison.faults)
    assert not any(fault.startswith("torch:") for fault in comparison.faults)


def test_third_party_follows_finite_differences():
    """The hand-written derivative: the first step's change against differences of the loss, float64."""
    task = network.task(0, 1)
    history = numpy_training.train(task, np.float64)
    change = history.weights[1][4] - history.weights[0][4]
    trains = task.layers[2].trains[0]
    at = tuple(np.argwhere(trains)[7])

    def loss(delta):
        spec = task.layers[2]
        moved = spec.initial()[0].astype(np.float64)
        moved[at] += delta
        x = task.images[task.batches[0]].astype(np.float64)
        for number, layer in enumerate(task.layers):
            weight, bias = (part.astype(np.float64) for part in layer.initial())
            x = x @ (moved if number == 2 else weight).T + bias
            x = np.tanh(x) if number < 3 else x
        shifted = x - np.log(np.exp(x).sum(-1, keepdims=True))
        return -shifted[np.arange(len(x)), task.labels[task.batches[0]]].mean()

    # The truncation error of a central difference is h^2, its rounding error 1e-16 / h.
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert change[at] == pytest.approx(-network.LEARNING_RATE * slope, rel=1e-5)
    assert not change[~trains].any()


def test_command_line_and_its_file(tmp_path, capsys):
    file = tmp_path / "digits.json"
    assert cli.main(["digits", "--quick", "--precision", "native", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for part in ("loss torch", "loss jax", "0 of 6665", "every frozen weight has its initial bits"):
        assert part in printed
    report = json.loads(file.read_text("utf-8"))["digits"]
    assert len(report["losses"]["torch"]) == len(report["losses"]["jax"]) == run.QUICK_STEPS
    assert report["frozen_changed"] == {"torch": 0, "jax": 0}


def test_command_line_fails_where_the_runs_differ(seen, monkeypatch, capsys):
    task, comparison = seen
    wrong = task, replace(comparison, faults=("torch: 1 frozen weights changed (S3)",))
    monkeypatch.setattr(run, "run", lambda **keywords: wrong)
    assert cli.main(["digits", "--quick", "--precision", "native"]) == 1
    assert "digits differs: torch: 1 frozen weights changed" in capsys.readouterr().out


@pytest.mark.parametrize("failing", [None, "_digits", "_course"])
def test_command_line_runs_both_precisions(failing, monkeypatch):
    """What is not asked for by precision is both, and one that fails is enough."""
    ran = []
    for name in ("_digits", "_course"):
        monkeypatch.setattr(suite, name, lambda asked, console, name=name: (ran.append(name) or {}, name == failing))
    assert cli.main(["digits", "--quick"]) == int(failing is not None)
    assert ran == ["_digits", "_course"]
