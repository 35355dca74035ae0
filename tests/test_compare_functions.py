"""`parity.compare` as a user meets it: what may go in, what comes out, and what is said when it may not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from parity.execution.outputs import Runs
from parity.verdict import sensitivity
from parity.verdict.bounds import UNIT
from parity.verdict.runner import plan
from tests.pairs_at_hand import numbers

X = np.linspace(-2, 2, 12).reshape(3, 4)
QUICK = {"transforms": ["forward", "vjp"], "worlds": ["jax-eager"], "dtypes": ["float64"], "data": ["random"]}


def double(x):
    return x * 2


def test_default_plan_asks_for_every_kind_of_cell():
    cells = plan(parity.Pair(double, double, (X,)))
    assert {cell.world for cell in cells} == {"torch-eager", "torch-compiled", "jax-eager", "jax-jit"}
    assert {cell.dtype for cell in cells} == {"float64", "float32", "bfloat16"}
    kinds = {
        "random",
        "zeros",
        "signed zeros",
        "ties",
        "kinks",
        "infinite",
        "nan",
        "subnormal",
        "large",
        "small",
        "sweep",
    }
    assert kinds == {cell.data for cell in cells}
    assert {"hessian", "jacfwd", "jacrev", "jvp", "vmap-0", "gradient-of-vmap"} <= {cell.transform for cell in cells}
    assert len({cell.id for cell in cells}) == len(cells)


def test_large_inputs_have_no_whole_jacobians_unless_asked():
    pair = parity.Pair(double, double, (np.ones((40, 40)),))
    assert not {"jacrev", "hessian"} & {cell.transform for cell in plan(pair)}
    assert {cell.transform for cell in plan(pair, transforms=["jacrev"])} == {"jacrev"}


def test_numbers_that_end_at_zero_are_tried_below_it():
    assert "negative" in {cell.data for cell in plan(parity.Pair(torch.sqrt, jnp.sqrt, (np.ones(3),)))}


def test_nested_arguments_results_and_integers():
    def torch_lookup(table, where):
        rows = table["rows"][where]
        return {"rows": rows * table["scale"], "count": (where + 1,)}

    def jax_lookup(table, where):
        rows = table["rows"][where]
        return {"count": (where + 1,), "rows": rows * table["scale"]}

    inputs = ({"scale": np.array(3.0), "rows": X}, np.array([2, 0]))
    report = parity.assert_parity(
        torch_lookup, jax_lookup, inputs, **QUICK | {"transforms": ["forward", "vjp", "vmap-0"]}
    )
    verdicts = {record.cell.transform: record.verdict for record in report.cells}
    # The gradient of the scale is a sum, whose order is each framework's own.
    assert verdicts.pop("vjp") in ("identical", "within bound")
    assert verdicts == {"forward": "identical", "vmap-0": "identical"}


def test_every_transform_agrees_on_a_layer():
    report = parity.assert_parity(
        lambda x, w: torch.tanh(x @ w), lambda x, w: jnp.tanh(x @ w), numbers((3, 4), (4, 2)),
        worlds=["jax-jit"], dtypes=["float64"], data=["random"],
    )  # fmt: skip
    assert len({record.transform for record in report.cells}) == 15
    assert {record.verdict for record in report.cells} <= {"identical", "within bound"}


def test_an_oracle_is_the_third_party():
    """Two functions that agree are both wrong where NumPy says so."""
    chosen = QUICK | {"transforms": ["forward"], "worlds": ["torch-eager", "jax-eager"]}
    report = parity.compare(double, double, (X,), oracle=lambda x: x * 3, **chosen)
    assert [(record.world, record.verdict, record.judged) for record in report.cells] == [
        ("torch-eager", "differs", "meaning"),
        ("jax-eager", "differs", "meaning"),
    ]
    assert parity.compare(double, double, (X,), oracle=double, **chosen).ok


KNOWN = {"transform": "vjp", "world": "jax-*", "data": "kinks", "reason": "relu's derivative at zero is a convention"}


def relu(x):
    return jnp.where(x >= 0, x, 0)


def test_a_known_difference_is_no_failure():
    report = parity.compare(torch.relu, relu, (X,), known=[KNOWN], **QUICK | {"data": ["random", "kinks"]})
    assert report.ok
    assert [record.cell.data for record in report.cells if record.known] == ["kinks"]


def test_a_known_difference_that_is_gone_is_a_failure():
    report = parity.compare(double, double, (X,), known=[KNOWN], **QUICK | {"data": ["kinks"]})
    (failed,) = report.failed
    assert "take it off the list" in failed.reason
    assert failed.diagnosis.cause == "stale entry"


def test_an_unlisted_difference_raises_with_the_table_and_the_reason():
    with pytest.raises(parity.ParityError, match=r"tie or kink|convention") as caught:
        parity.assert_parity(torch.relu, relu, (X,), **QUICK | {"data": ["kinks"]})
    text = str(caught.value)
    assert "1 identical, 1 differs" in text
    assert "fix: Write the convention out" in text
    assert not caught.value.report.ok


def test_settings_of_jax_are_as_before():
    before = dict(jax.config.values), torch.get_float32_matmul_precision()
    parity.compare(double, double, (X,), **QUICK)
    assert (dict(jax.config.values), torch.get_float32_matmul_precision()) == before


WRONG = {
    "a bare array": (TypeError, r"expected a tuple of arguments, got a bare array; write \(array,\)", {"inputs": X}),
    "no NumPy": (TypeError, r"inputs\[0\]: expected a NumPy array, got Tensor", {"inputs": (torch.ones(2),)}),
    "a number": (TypeError, r"inputs\[0\]: expected a NumPy array, got float", {"inputs": (1.0,)}),
    "a tensor": (TypeError, "got Tensor; convert it with np.asarray", {"inputs": (torch.ones(3),)}),
    "no elements": (ValueError, r"array with elements, got \(0, 3\): nothing would", {"inputs": (np.zeros((0, 3)),)}),
    "no inputs": (ValueError, "expected at least one array, got none", {"inputs": ()}),
    "no function": (TypeError, "torch: expected a function, got int", {"torch_fn": 3}),
    "transform": (ValueError, "transforms: expected some of .* got 'vpj'; did you mean 'vjp'", {"transforms": ["vpj"]}),
    "a string": (ValueError, r"transforms: expected a list of names, got the string 'vjp'; write \['vjp'\]",
                 {"transforms": "vjp"}),
    "dtype": (ValueError, "dtypes: expected some of .* did you mean 'float32'", {"dtypes": ["flaot32"]}),
    "world": (ValueError, "worlds: expected some of .* got 'jax'", {"worlds": ["jax"]}),
    "data": (ValueError, "data: expected some of .* did you mean 'kinks'", {"data": ["kink"]}),
    "device": (ValueError, "devices: expected some of cpu, cuda, got 'tpu'", {"devices": ["tpu"]}),
    "vmap over what is not there": (ValueError, "got 'vmap-1'", {"transforms": ["vmap-1"]}),
    "known without a reason": (ValueError, "got one with no reason", {"known": [{"transform": "vjp"}]}),
    "known of what is unknown": (ValueError, "unknown transfrom", {"known": [{"transfrom": "vjp", "reason": "so"}]}),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "says", "given"), WRONG.values(), ids=WRONG)
def test_wrong_argument_is_refused_at_the_call(kind, says, given):
    arguments = {"torch_fn": double, "jax_fn": double, "inputs": (X,)} | given
    with pytest.raises(kind, match=says):
        parity.compare(**arguments)


def test_an_operator_on_integers_alone_is_compared_forwards():
    numbers = np.arange(6, dtype=np.int32)
    right = parity.compare(lambda x: x // 4, lambda x: x // 4, (numbers,), name="quarter", worlds=["jax-eager"])
    assert {(cell.transform, cell.verdict) for cell in right.cells} == {("forward", "identical")}
    wrong = parity.compare(lambda x: x // 4, lambda x: x // 5, (numbers,), name="quarter", worlds=["jax-eager"])
    assert {cell.verdict for cell in wrong.cells} == {"differs"}
    with pytest.raises(ValueError, match="transforms: expected some of forward, got 'vjp'"):
        parity.compare(double, double, (numbers,), transforms=["vjp"])


def test_a_report_says_how_to_run_its_cell_again_and_counts_it_as_one():
    once = QUICK | {"transforms": ["forward"], "dtypes": ["float32"]}
    text = str(parity.compare(double, lambda x: x * 3, (X,), **once, seed=3))
    assert ": 1 cell: 1 differs" in text
    call = " ".join(text.replace("│", " ").split()).partition("rerun: ")[2]
    assert call.startswith(
        f"parity.compare(..., transforms={once['transforms']}, worlds=['jax-eager'], dtypes=['float32']"
    )
    assert "data=['random'], devices=['cpu'], seed=3)" in call


def test_report_is_saved_by_its_suffix(tmp_path):
    report = parity.compare(double, double, (X,), **QUICK)
    for suffix in ("json", "html", "md"):
        report.save(tmp_path / f"report.{suffix}")
        assert "double" in (tmp_path / f"report.{suffix}").read_text("utf-8")
    with pytest.raises(ValueError, match=r"ends in \.json, \.html or \.md, got 'report\.txt'"):
        report.save("report.txt")
    with pytest.raises(FileNotFoundError, match=r"a folder that exists, got '.*nowhere/report\.md'"):
        report.save(tmp_path / "nowhere" / "report.md")


def test_the_worst_of_a_result_that_is_one_number_is_shown():
    report = parity.compare(torch.sum, lambda x: x.sum() + 1, (X,), **QUICK | {"transforms": ["forward"]})
    assert "worst: output  got " in str(report)


def spread_of(function, at, kind="random", dtype="float32", **how):
    """Return what rounding does to the results of a torch function, in units of the dtype."""
    pair = parity.Pair(function, jnp.negative, (at,), "spread")
    cell = parity.Cell("spread", "", dtype, "forward", "torch-eager", "cpu", kind)
    return sensitivity.of_cell(Runs(pair), cell, UNIT[dtype], **how).spread["output"] / UNIT[dtype]


def test_sensitivity_knows_cancellation():
    """What is left of (a + x) - a is off by |a| u, however small x is; the sum of two numbers by its own size."""
    x = np.array([1.0, 3.0])
    assert 0.1 < spread_of(lambda x: (x + 2.0**20) - 2.0**20, x).min() / 2**20 < 3
    assert spread_of(lambda x: x + x, x).max() < 6


def test_sensitivity_is_of_each_element():
    """A number of 1e30 beside others, that was only put there, moves none of them, and is not moved itself."""
    x = np.array([1.0, -1.0])
    seen = spread_of(lambda x: torch.where(x > 0, x * x, torch.full_like(x, -1e30)), x)
    assert 0 < seen[0] < 2
    assert seen[1] == 0


def test_sensitivity_leaves_jumps_out_where_points_are_chosen():
    def steps(x):
        return torch.where(x * 1 >= x, x + x, torch.zeros_like(x))

    assert spread_of(steps, np.array([1.0, 2.0, 3.0, 6.0])).max() > 2.0**20
    assert spread_of(steps, np.array([1.0, 2.0, 3.0, 6.0]), kind="kinks").max() < 8


def test_sensitivity_sees_what_cancels_to_zero_at_zeros():
    """The gradient of log_softmax at zeros is a difference of parts that cancel: rounding is left of it."""
    seen = spread_of(lambda x: torch.softmax(x, -1) - 0.25, np.zeros(4), kind="zeros")
    assert np.all((seen > 0.01) & (seen < 8))


def test_sensitivity_is_that_of_the_arithmetic_inside():
    """What goes through float32 on its way is off by its unit, in float64 too; what does not is not."""
    x = np.linspace(1, 2, 5)
    single = spread_of(lambda x: torch.exp(x.float()).double(), x, dtype="float64", lower=True)
    assert single.min() > 2.0**27
    assert spread_of(lambda x: torch.exp(x), x, dtype="float64", lower=True).max() < 2.0**10


@pytest.mark.parametrize("kind", ["zeros", "signed zeros", "ties", "subnormal", "small"])
def test_what_cancels_to_zero_is_no_difference(kind):
    """The divergence of equal distributions: its gradient is 0, and one unit of rounding in torch."""

    def torch_divergence(x, y):
        return torch.nn.functional.kl_div(torch.log_softmax(x, -1), torch.softmax(y, -1), reduction="batchmean")

    def jax_divergence(x, y):
        q = jax.nn.softmax(y, -1)
        return jnp.sum(q * (jax.nn.log_softmax(y, -1) - jax.nn.log_softmax(x, -1))) / x.shape[0]

    report = parity.compare(
        torch_divergence, jax_divergence, numbers((4, 5), (4, 5)), transforms=["vjp"], worlds=["jax-jit"], data=[kind],
        dtypes=["float64", "float32"],
    )  # fmt: skip
    assert report.ok, str(report)


PLUGIN = """
import numpy as np, parity, torch, jax.numpy as jnp
def test_relu():
    parity.assert_parity(torch.relu, lambda x: jnp.where(x >= 0, x, 0), (np.ones(3),), transforms=["vjp"],
                         worlds=["jax-eager"], dtypes=["float64"], data=["kinks"])
"""


def test_plugin_shows_the_table_instead_of_a_traceback(tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    (tmp_path / "test_relu.py").write_text(PLUGIN, "utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "_parity_pytest", "-q", str(tmp_path), "-c", "/dev/null"]
    seen = subprocess.run(
        [*command, "--rootdir", str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=Path(parity.__file__).parent.parent,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # where parity is installed, it is there already
    ).stdout  # fmt: skip
    assert "test_relu.py:4: torch and JAX differ: relu" in seen
    assert "The derivative at kinks and edges is a convention" in seen
    assert "Traceback" not in seen
    assert "raise_if_failed" not in seen
