"""What a report says first: whether it is one function at ordinary numbers, then a line for each cause."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from parity import Pair, Tolerance, compare
from parity.report import content, table
from parity.report.report import Report
from parity.verdict.runner import plan, run
from tests.pairs_at_hand import ROWS


def report(torch_function, jax_function, data, transforms=("forward", "vjp"), name="pair"):
    pair = Pair(torch_function, jax_function, ROWS, name)
    chosen = plan(pair, transforms=transforms, dtypes=["float64"], worlds=["jax-eager", "jax-jit"], data=data)
    return Report(name, list(run(pair, chosen)))


def test_one_fault_is_one_line_and_one_fix():
    text = str(report(lambda x: F.gelu(x).tanh(), lambda x: jnp.tanh(jax.nn.gelu(x)), ["random"]))
    first, second = text.splitlines()[:2]
    assert first == "pair: not the same function at ordinary numbers"
    assert second.startswith("  default argument: approximate, 4 cells: the exact GELU (erf) in torch where JAX has")
    assert text.count("fix:") == 1
    assert text.index("fix:") < text.index("transform")
    assert "S11" not in text


def test_edges_alone_leave_the_function_the_same():
    differs = report(lambda x: torch.where(x > 0, x, 0), lambda x: jnp.where(x >= 0, x, 0), ["random", "kinks"])
    assert str(differs).startswith("pair: the same function at ordinary numbers; not at kinks\n  tie or kink")
    same = report(torch.tanh, jnp.tanh, ["random"])
    assert table.summary(same) == "pair: the same function at ordinary numbers"


def test_control_characters_are_written_out():
    name = "a\x1b[31m\u202eb"
    text = str(report(torch.tanh, jnp.sin, ["random"], ["forward"], name))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "a\\x1b[31m\\u202eb" in text
    assert content.visible("plain\n\ttext ü") == "plain\n\ttext ü"


def test_the_call_gives_the_same_report():
    found = compare(torch.tanh, jnp.sin, ROWS, transforms=["forward"], worlds=["jax-eager"], data=["random"])
    assert str(found).startswith("tanh: not the same function at ordinary numbers\n")


def test_a_tolerance_that_decides_is_printed_with_its_reason():
    x = np.random.default_rng(0).standard_normal((4, 6))
    options = {"transforms": ["forward"], "worlds": ["jax-jit"], "dtypes": ["float64"], "data": ["random"]}
    found = compare(
        torch.tanh, lambda x: jnp.tanh(x) * 1.001, (x,), tolerance=Tolerance("a table", rtol=2e-3), **options
    )
    assert found.ok
    assert "  1 cell within the tolerance given: a table" in str(found).splitlines()
    right = compare(torch.tanh, jnp.tanh, (x,), tolerance=Tolerance("a table", rtol=2e-3), **options)
    assert "tolerance" not in str(right)


class NoDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError("no derivative")


def test_cells_without_a_result_are_counted_in_the_first_line():
    @jax.custom_vjp
    def double(x):
        return x * 2

    def backward(_, g):
        raise NotImplementedError("no derivative")

    double.defvjp(lambda x: (x * 2, None), backward)
    first = str(report(NoDerivative.apply, double, ["random"])).splitlines()[0]
    assert first == "pair: the same function at ordinary numbers; 2 cells unsupported"
