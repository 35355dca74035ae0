"""Right ports, made as users make them, are no differences; `python -m tests.right_ports --seeds 20` tries more."""

import pytest

from tests.right_ports import PORTS, compare


@pytest.mark.parametrize("name", PORTS)
def test_a_right_port_is_no_difference(name):
    report = compare(
        name, 0, transforms=["forward", "vjp"], data=["random"], dtypes=["float64", "float32"], worlds=["jax-eager"]
    )
    assert report.ok, str(report)


def test_a_port_with_a_fault_is_one(monkeypatch):
    theirs, mine, *rest = PORTS["SwiGLU"]
    monkeypatch.setitem(PORTS, "planted", (theirs, lambda x, g, u, d: mine(x, g, u * 1.0001, d), *rest))
    report = compare("planted", 0, transforms=["forward"], data=["random"], dtypes=["float32"], worlds=["jax-eager"])
    assert not report.ok


@pytest.mark.parametrize("seed", [10, 13, 17])
def test_an_error_of_float32_inside_is_no_fault_of_float64(seed):
    """Both round in float32 inside, a little more often down: counted in units of float64 that is many."""
    report = compare("RMSNorm, written", seed, transforms=["forward"], data=["random"], dtypes=["float64"],
                     worlds=["jax-eager", "jax-jit"])  # fmt: skip
    assert report.ok, str(report)


def test_four_units_of_float32_inside_are_a_fault_in_float64(monkeypatch):
    theirs, mine, *rest = PORTS["RMSNorm, written"]
    monkeypatch.setitem(PORTS, "planted", (theirs, lambda x, w: mine(x, w) * (1 + 4 * 2.0**-23), *rest))
    report = compare("planted", 0, transforms=["forward"], data=["random"], dtypes=["float64"], worlds=["jax-eager"])
    assert not report.ok
