"""The list of known gaps: each entry has a reason, matches cells, and still holds."""

import subprocess
import sys

import pytest

from parity.records import Cell
from parity.suites.masked_linear import pairs, plan, run
from parity.suites.masked_linear.grid import known

ENTRIES = [{name: value for name, value in entry.items() if value not in ("*", ["*"])} for entry in pairs.known()]
CRASHES = [entry for entry in ENTRIES if entry.get("crashes")]

PLAIN = """
import torch.nn.functional as F
from parity.execution.outputs import Runs
from parity.suites.masked_linear.pairs import pair
plain = lambda x, w, b=None, **_: F.linear(x, w, b)
runs = Runs(pair("columns", subjects={{"torch": plain}}))
runs.compute(runs.pair.cell("columns", "columns", "float32", "{transform}", "torch-compiled", "cpu", "exact"))
"""


@pytest.fixture(scope="module")
def planned():
    return plan()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry['transform']}-{entry['world']}")
def test_entry_has_a_reason_and_matches_cells(entry, planned):
    assert len(entry["reason"]) > 20
    assert any(known(cell) is entry or known(cell) == entry for cell in planned)


@pytest.mark.parametrize("entry", CRASHES, ids=lambda entry: entry["transform"])
def test_crash_is_still_there_and_not_ours(entry):
    """A plain linear layer ends the process just so: once this fails, the entry can go."""
    code = PLAIN.format(transform=entry["transform"])
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert seen.returncode == -11, f"torch.compile no longer crashes on {entry['transform']}: run it in the grid"


def test_listed_cell_that_works_is_a_failure():
    """A subject that has forward mode everywhere makes the JAX entry wrong, and the grid says so."""
    (cell,) = plan(cases=["columns"], dtypes=["float32"], transforms=["jvp-default-rule"], worlds=["jax-eager"])
    from maskedlinear_jax import masked_linear

    def always(*args, forward_mode, **keywords):
        return masked_linear(*args, forward_mode=True, **keywords)

    (record,) = run([cell], subjects={"jax": always})
    assert record.failed
    assert "take it off the list" in record.reason


def test_unlisted_exception_is_a_failure():
    (cell,) = plan(
        cases=["columns"], dtypes=["float32"], transforms=["vjp"], worlds=["torch-eager"], precisions=["native"]
    )

    def broken(*args, **keywords):
        raise RuntimeError("no such kernel")

    (record,) = run([cell], subjects={"torch": broken})
    assert (record.verdict, record.known, record.failed) == ("unsupported", False, True)
    assert record.reason == "RuntimeError: no such kernel"


def test_absent_device_is_a_failure():
    (record,) = run([Cell("columns", "columns", "float32", "vjp", "jax-eager", "tpu", "exact")])
    assert (record.verdict, record.failed) == ("no device", True)
