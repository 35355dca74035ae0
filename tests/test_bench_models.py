"""`python -m benchmarks models`: whole models, the refusal of what computes something else, and what is written."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import models
from benchmarks.model_shapes import FULL, SHAPES, Way, quickly, ways
from benchmarks.models import FRAMEWORKS, Job
from benchmarks.operands import NotTheSame

FORMS = ("full", "masked", "packed", "one-liner", "hook", "delta", "lora")


def world(framework):
    return importlib.import_module(f"benchmarks.{framework}_models")


@pytest.fixture(scope="module", params=FRAMEWORKS)
def programs(request):
    """One of each form on a tiny decoder."""
    shape = quickly(SHAPES["decoder"])
    found = {way.form: way for way in reversed(ways(request.param, quick=True))}
    how = FRAMEWORKS[request.param][0]
    return shape, {form: world(request.param).Program(shape, found[form], how) for form in FORMS}


def test_each_form_steps_runs_generates_and_is_weighed(programs):
    shape, found = programs
    models.check(found, shape)
    for form, program in found.items():
        program.step()
        assert program.forward(1)() is not None
        if form in ("full", "packed"):
            assert generated(program).shape == (1, 32)
        assert program.trained() > 0
        assert all(size >= 0 for size in program.weighed().values())
    assert found["packed"].weighed()["optimizer state"] < found["full"].weighed()["optimizer state"] / 5


def test_a_cache_generates_what_the_whole_sequence_does(programs):
    _, found = programs
    full = found["full"]
    tokens = generated(full)[0]
    sequence = [int(np.asarray(full.data)[0, 0])]
    for want in tokens[:4]:
        sequence.append(next_token(full, sequence))
        assert sequence[-1] == want


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_encoder_learns(framework):
    shape = quickly(SHAPES["encoder"])
    program = world(framework).Program(shape, FULL, FRAMEWORKS[framework][0])
    before = program.first_gradient()
    assert before.shape == (64, 64)
    assert (before != 0).all()


def generated(program):
    found = program.generate()
    return np.asarray(found() if callable(found) else found)


def next_token(program, sequence):
    if hasattr(program, "model"):
        import torch

        return int(program.model(torch.tensor([sequence]))[0, -1].argmax())
    import jax.numpy as jnp

    return int(program._run(program.learned, program.rest, jnp.array([sequence]), None)[0, -1].argmax())


@pytest.mark.parametrize("form", ["packed", "one-liner"])
def test_another_gradient_is_refused(programs, form):
    shape, found = programs
    right = found[form].first_gradient()

    class Wrong:
        way = found[form].way

        def __init__(self, gradient):
            self.first_gradient = lambda: gradient

    models.check({"full": found["full"], "right": Wrong(right)}, shape)
    leak = right.copy()
    leak[tuple(np.argwhere(right == 0)[0])] = 1e-30
    for wrong in (right * 1.01, np.zeros_like(right), leak):
        with pytest.raises(NotTheSame, match=r"^wrong computes another gradient than the masked one, and is not timed"):
            models.check({"full": found["full"], "wrong": Wrong(wrong)}, shape)


def test_every_way_is_of_both_frameworks_and_has_a_name_of_its_own():
    for framework in FRAMEWORKS:
        names = [way.name for way in ways(framework, quick=False)]
        assert len(set(names)) == len(names)
        assert {way.form for way in ways(framework, quick=True)} == set(FORMS)
    ours = [[way for way in ways(name, quick=False) if way.form in ("masked", "packed")] for name in FRAMEWORKS]
    assert ours[0] == ours[1]


def test_the_models_are_of_the_size_that_is_said():
    """MiniLM has 10.6 million numbers in its layers; the decoder is between 20 and 60 million in all."""
    sizes = {name: sum(a * b for _, (a, b) in shape.linears()) for name, shape in SHAPES.items()}
    assert sizes["encoder"] == 6 * (4 * 384**2 + 2 * 384 * 1536)
    decoder = SHAPES["decoder"]
    assert 20e6 < sizes["decoder"] + 2 * decoder.tokens * decoder.width < 60e6


def test_a_run_keeps_every_figure_and_writes_the_page(tmp_path, capsys):
    file, page = tmp_path / "models.json", tmp_path / "models.md"
    arguments = ["--quick", "--framework", "torch", "--how", "eager", "--model", "encoder", "--match", "packed *"]
    assert models.main([*arguments, "--seconds", "0.01", "--json", str(file), "--markdown", str(page)]) == 0
    found = json.loads(file.read_text("utf-8"))
    assert next(iter(found["records"]))["id"] == "torch/eager/encoder/full"
    for record in found["records"]:
        assert set(record["ratios"]) == {"step", "forward, batch 1", "forward, batch 32"}
        assert all(low <= middle <= high for middle, low, high in record["ratios"].values())
    text = page.read_text("utf-8")
    assert found["environment"]["commit"] in text
    assert ("on a busy machine" in text) == found["busy"]
    assert text in capsys.readouterr().out
    for record in found["records"]:
        assert f"| {record['id'].rpartition('/')[2]} |" in text


def test_the_page_is_that_of_the_record():
    folder = Path(__file__).parent.parent / "docs" / "evidence"
    found = json.loads((folder / "models-cpu.json").read_text("utf-8"))
    assert models.page(found) == (folder / "models-speed.md").read_text("utf-8")


def test_a_failure_is_one(monkeypatch, capsys):
    monkeypatch.setattr(models, "run", _fails)
    assert models.main(["--quick", "--framework", "torch", "--how", "eager", "--model", "encoder"]) == 1
    assert "FAILED torch: it broke" in capsys.readouterr().out


def _fails(job, connection, log):
    connection.send(("error", "it broke"))


def test_bad_usage_is_two(capsys):
    with pytest.raises(SystemExit, match="2"):
        models.main(["--framework", "jax", "--how", "eager"])
    assert "--how: jax has no eager" in capsys.readouterr().err


def test_a_job_says_its_shape():
    job = Job("torch", "eager", "encoder", True, (FULL, Way("x", "packed", "rows", 0.1)), 1.0)
    assert job.shape == quickly(SHAPES["encoder"])
    assert dataclasses.replace(job, quick=False).shape == SHAPES["encoder"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_device_that_is_not_there_is_said(framework, capsys):
    arguments = ["--quick", "--framework", framework, "--model", "encoder", "--match", "packed *", "--device", "cuda"]
    assert models.main(arguments) == 1
    assert f"FAILED {framework}: no device: {framework} sees no cuda here" in capsys.readouterr().out


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_model_in_bfloat16_steps_and_its_gradient_is_held_in_float32(framework):
    shape = quickly(SHAPES["decoder"])
    found = {way.form: way for way in reversed(ways(framework, quick=True))}
    made = {
        form: world(framework).Program(shape, found[form], FRAMEWORKS[framework][0], "cpu", "bfloat16")
        for form in FORMS
    }
    models.check(made, shape)
    for program in made.values():
        program.step()
        assert "bfloat16" in str(program.forward(1)().dtype)
        assert "bfloat16" in str(program.learned[0].dtype if framework == "torch" else leaves(program)[0].dtype)


def leaves(program):
    import jax

    return jax.tree.leaves(program.learned)
