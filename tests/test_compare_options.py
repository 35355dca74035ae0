"""What `compare` may be asked besides: a quick run, to stop at a failure, to tell of each cell as it comes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity
from parity import compare
from parity.execution import jax_backend, jax_eager
from parity.operator import transforms

X = (np.linspace(-2, 2, 6).reshape(2, 3),)
FEW = {"dtypes": ["float32"], "worlds": ["torch-eager", "jax-eager", "jax-jit"], "data": ["random"]}


def test_quick_runs_forward_and_vjp():
    report = compare(torch.tanh, jnp.tanh, X, quick=True, **FEW)
    assert report.ok
    assert {cell.transform for cell in report.cells} == {"forward", "vjp"}


def test_quick_keeps_what_was_asked_for():
    report = compare(torch.tanh, jnp.tanh, X, quick=True, transforms=["vjp", "jvp"], **FEW)
    assert {cell.transform for cell in report.cells} == {"vjp"}


def test_quick_of_an_integer_function_is_its_forward():
    report = compare(torch.neg, jnp.negative, (np.arange(4),), quick=True, worlds=["jax-eager"])
    assert {cell.transform for cell in report.cells} == {"forward"}


def test_quick_with_nothing_left_is_refused():
    with pytest.raises(ValueError, match="quick: expected a pair with one of the transforms forward, vjp, got none"):
        compare(torch.tanh, jnp.tanh, X, quick=True, transforms=["jvp"])


def test_fail_fast_stops_at_the_first_failure():
    report = compare(torch.tanh, jnp.sin, X, fail_fast=True, **FEW)
    assert not report.ok
    assert report.cells[-1].failed
    assert len(report.failed) == 1
    assert len(report.cells) < len(compare(torch.tanh, jnp.tanh, X, **FEW).cells)


def test_progress_is_told_of_each_cell_and_the_report_is_in_order():
    told = []
    report = compare(torch.tanh, jnp.tanh, X, transforms=["forward"], dtypes=["float32"], progress=told.append)
    assert {record.cell for record in told} == {record.cell for record in report.cells}
    assert (told[0].transform, told[0].data) == ("forward", "random")
    assert told[-1].world == "torch-compiled"
    worlds = [record.world for record in report.cells if record.data == "random"]
    assert worlds == ["torch-eager", "torch-compiled", "jax-eager", "jax-jit"]


def test_jobs_change_no_verdict():
    one, two = (
        compare(F.gelu, jax.nn.gelu, X, transforms=["forward", "vjp"], jobs=jobs, **FEW).cells for jobs in (1, 2)
    )
    assert [(r.cell, r.verdict, r.reason, r.ratio) for r in one] == [
        (r.cell, r.verdict, r.reason, r.ratio) for r in two
    ]


def test_jobs_must_be_positive():
    with pytest.raises(ValueError, match="jobs: expected 1 or more, got 0"):
        compare(torch.tanh, jnp.tanh, X, jobs=0)
    with pytest.raises(TypeError, match=r"jobs: expected a whole number from 0 on, got 2\.0"):
        compare(torch.tanh, jnp.tanh, X, jobs=2.0)


def two(x, w):
    return jnp.tanh(x @ w), (x * x).sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_jacobians_are_those_of_jax(name, dtype):
    """Two arguments, two outputs of which one is a number; bit for bit what JAX's own function gives."""
    with jax_backend.settings(x64=dtype == "float64"):
        rng = np.random.default_rng(0)
        theta = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 3), (3, 4))]
        found, right = (getattr(of, name)(two, (0, 1))(*theta) for of in (jax_eager, jax))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one, np.float64), np.asarray(other, np.float64))
    assert jax.tree.structure(found) == jax.tree.structure(right)


def test_hessian_is_that_of_jax():
    def f(x, w):
        return jnp.tanh(x @ w).sum()

    with jax_backend.settings(x64=True):
        theta = [jnp.asarray(np.random.default_rng(0).standard_normal(shape)) for shape in ((2, 3), (3, 4))]
        found, right = (of.hessian(f, (0, 1))(*theta) for of in (jax_eager, jax))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-15)
    assert jax.tree.structure(found) == jax.tree.structure(right)


def test_what_the_eager_programs_use_is_what_the_others_do():
    left = (jnp.asarray([1.0, 2.0]), jnp.asarray([3.0]))
    right = (jnp.asarray([4.0, -1.0]), jnp.asarray([0.5]))
    assert float(jax_eager.energy(left, right)) == float(transforms.energy(left, right)) == (16 + 2 + 0.75) / 2
    assert float(jax_eager.inner(left, right)) == float(transforms.inner(left, right)) == 4 - 2 + 1.5


def test_a_small_function_compiles_few_programs():
    """Of eager cells, the programs are the function's own, not those of a basis or of a sum around it."""
    compiled = []

    def listen(name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            compiled.append(name)

    def cube(x):
        return x * x * x

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        report = compare(cube, cube, X, worlds=["jax-eager"], dtypes=["float32"], data=["random"])
    finally:
        jax.monitoring.clear_event_listeners()
    assert report.ok
    assert len(report.cells) >= 13
    assert len(compiled) < 90, len(compiled)


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_a_seed_of_numpy_is_python_s_and_is_saved(kind, tmp_path):
    """Reports with it were lost on saving: "int64 is not JSON serializable" (as in test-tube #57)."""
    chosen = {"transforms": ["forward"], "dtypes": ["float32"], "worlds": ["jax-eager"], "data": ["random"]}
    report = compare(torch.tanh, jnp.tanh, X, seed=kind(3), **chosen)
    report.save(tmp_path / "report.json")
    assert {cell["seed"] for cell in json.loads((tmp_path / "report.json").read_text("utf-8"))["cells"]} == {3}
    layer = torch.nn.Linear(3, 2)
    params = {name: jnp.asarray(value.detach()) for name, value in layer.named_parameters()}
    port, x = (lambda p, x: x @ p["weight"].T + p["bias"]), np.ones((2, 3), np.float32)
    models = parity.compare_models(layer, (port, params), (x,), seed=kind(3), steps=kind(0))
    models.save(tmp_path / "models.json")
    assert json.loads((tmp_path / "models.json").read_text("utf-8"))["seed"] == 3
    parity.dump_model(layer, (x,), tmp_path / "dump", seed=kind(3))


@pytest.mark.parametrize(
    ("seed", "error", "said"),
    [
        (-1, ValueError, "got -1"),
        (np.int64(-1), ValueError, "got -1"),
        (3.0, TypeError, "got 3.0"),
        ("3", TypeError, "got '3'"),
        (True, TypeError, "got True"),
        (None, TypeError, "got None"),
    ],
)
def test_what_is_no_seed_is_refused(seed, error, said, tmp_path):
    expected = f"^seed: expected a whole number from 0 on, {re.escape(said)}$"
    with pytest.raises(error, match=expected):
        compare(torch.tanh, jnp.tanh, X, seed=seed)
    with pytest.raises(error, match=expected):
        parity.compare_models(torch.sin, jnp.sin, X, seed=seed)
    with pytest.raises(error, match=expected):
        parity.dump_model(torch.nn.Linear(3, 2), X, tmp_path / "dump", seed=seed)
