"""The example this project grew from runs alike in both twins, and each fault of its first version is gone."""

import difflib
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from maskedlinear_core import columns
from maskedlinear_torch import MaskedLinear

EXAMPLES = Path(__file__).parent.parent / "examples"
LOCATION = np.array([0, 3, 25])


def run_example(name):
    seen = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, check=False, cwd=EXAMPLES.parent
    )
    assert seen.returncode == 0, seen.stderr
    return seen.stdout


def test_examples_print_the_same():
    in_torch, in_jax = run_example("seed_torch.py"), run_example("seed_jax.py")
    assert in_torch == in_jax
    assert "columns with a gradient: [ 0  3  7 12 19]" in in_torch
    assert "weights that changed: 20 of 80" in in_torch


def test_examples_are_the_same_line_by_line():
    texts = [(EXAMPLES / f"seed_{name}.py").read_text("utf-8").splitlines() for name in ("torch", "jax")]
    same = difflib.SequenceMatcher(None, *texts).ratio()
    assert same > 0.6, f"only {same:.0%} of the lines are shared"


def gradients(t, x, weight, bias, **keywords):
    """Gradients of the sum of outputs for the arguments that are there, as NumPy."""
    args = [a for a in (x, weight, bias) if a is not None]
    _, pull = t.vjp(lambda *args: t.masked_linear(*args, **keywords).sum(), *args)
    return [t.numpy(part) for part in pull(t.array(1.0))]


def test_columns_beyond_twenty_are_masked_too(twin):
    x, w = twin.array(np.ones((2, 30))), twin.array(np.ones((4, 30)))
    _, d_w = gradients(twin, x, w, None, grad_mask=columns(LOCATION))
    np.testing.assert_array_equal(np.flatnonzero(d_w.any(axis=0)), LOCATION)


def test_bias_gradient_is_in_the_slot_of_the_bias(twin):
    x, w, b = twin.array(np.ones((2, 30))), twin.array(np.ones((4, 30))), twin.array(np.zeros(4))
    _, _, d_b = gradients(twin, x, w, b, grad_mask=columns(LOCATION))
    np.testing.assert_array_equal(d_b, np.full(4, 2.0))


def test_bias_learns_when_the_weight_does_not(twin):
    x, w = twin.array(np.ones((2, 30))), twin.array(np.ones((4, 30)))
    _, pull = twin.vjp(
        lambda b: twin.masked_linear(x, w, b, grad_mask=columns(LOCATION)).sum(), twin.array(np.zeros(4))
    )
    np.testing.assert_array_equal(twin.numpy(pull(twin.array(1.0))[0]), np.full(4, 2.0))


def test_frozen_weight_does_not_crash_torch():
    layer = MaskedLinear.from_location(30, 4, LOCATION)
    layer.weight.requires_grad_(False)
    layer(torch.ones(2, 30)).sum().backward()
    assert layer.weight.grad is None
    np.testing.assert_array_equal(layer.bias.grad.numpy(), np.full(4, 2.0))


def test_no_bias(twin):
    keywords = {} if twin.name == "torch" else {"key": jax.random.key(0)}
    layer = twin.MaskedLinear.from_location(30, 4, LOCATION, bias=False, **keywords)
    assert layer.bias is None
    assert layer(twin.array(np.ones((2, 30)))).shape == (2, 4)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3), (2, 3, 1)], ids=str)
def test_any_number_of_batch_dimensions(twin, batch):
    x, w = twin.array(np.ones((*batch, 30))), twin.array(np.ones((4, 30)))
    _, d_w = gradients(twin, x, w, None, grad_mask=columns(LOCATION))
    assert set(d_w[:, LOCATION].ravel()) == {float(np.prod(batch))}


def test_no_python_loop_over_rows():
    """The seed walked every row in Python: ten thousand rows took it seconds."""
    layer = MaskedLinear.from_location(30, 10_000, LOCATION)
    start = time.perf_counter()
    layer(torch.ones(2, 30)).sum().backward()
    assert time.perf_counter() - start < 0.5


def test_functional_transforms_see_the_mask():
    layer = MaskedLinear.from_location(30, 4, LOCATION)
    params = dict(layer.named_parameters())

    def loss(params):
        return torch.func.functional_call(layer, params, (torch.ones(2, 30),)).sum()

    seen = torch.func.grad(loss)(params)["weight"]
    np.testing.assert_array_equal(np.flatnonzero(seen.detach().numpy().any(axis=0)), LOCATION)
