"""Right ports, made as users make them, are no differences; `python -m tests.right_ports --seeds 20` tries more."""

import pytest

from tests.right_ports import PORTS, compare


@pytest.mark.parametrize("name", PORTS)
def test_a_right_port_is_no_difference(name):
    report = compare(
        name, 0, transforms=["forward", "vjp"], data=["random"], dtypes=["float64", "float32"], worlds=["jax-eager"]
    )
    assert report.ok, str(report)


def test_a_port_with_a_fault_is_one():
    PORTS["planted"] = (
        PORTS["SwiGLU"][0],
        lambda x, g, u, d: PORTS["SwiGLU"][1](x, g, u * 1.0001, d),
        *PORTS["SwiGLU"][2:],
    )
    try:
        report = compare(
            "planted", 0, transforms=["forward"], data=["random"], dtypes=["float32"], worlds=["jax-eager"]
        )
    finally:
        del PORTS["planted"]
    assert not report.ok
