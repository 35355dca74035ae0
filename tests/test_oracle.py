"""The oracle itself is held to something simpler: exact finite differences of the polynomial that the op is."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from parity.suites.masked_linear import cases, oracle

CASES = ("columns", "elements", "submatrix", "no-batch", "no-bias", "none")


def _problem(name):
    return cases.make(cases.BY_ID[name], "float64", "exact", 3)


def _moved(point, steps):
    """The point moved along masked directions: integers, so that everything below is exact."""
    theta = {name: value.copy() for name, value in point.theta.items()}
    for size, direction in steps:
        for name, part in oracle.masked(point, direction).items():
            theta[name] = theta[name] + size * part
    return replace(point, theta=theta)


def _mixed_difference(f, v, w):
    """d^2/ds dt f(s v + t w) at 0 of a polynomial of degree four: two step sizes cancel the next order exactly."""

    def at(h):
        signs = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
        return sum(sign * f([(a * h, v), (b * h, w)]) for a, b, sign in signs) / (4 * h * h)

    return (4 * at(1.0) - at(2.0)) / 3


@pytest.mark.parametrize("name", CASES)
def test_jvp_is_the_derivative(name):
    problem = _problem(name)
    direction = problem.directions[0]
    # The op is bilinear: a central difference has no truncation error.
    ahead = oracle.forward(_moved(problem.point, [(1.0, direction)]))
    behind = oracle.forward(_moved(problem.point, [(-1.0, direction)]))
    np.testing.assert_array_equal(oracle.jvp(problem.point, direction), (ahead - behind) / 2)


@pytest.mark.parametrize("name", CASES)
def test_vjp_is_the_transpose_of_jvp(name):
    problem = _problem(name)
    direction, g = problem.directions[1], problem.cotangent
    forward = np.sum(oracle.jvp(problem.point, direction) * g)
    assert forward == sum(np.sum(part * direction[key]) for key, part in oracle.vjp(problem.point, g).items())


@pytest.mark.parametrize("name", CASES)
def test_second_derivative_of_the_test_function(name):
    problem = _problem(name)
    v, w = problem.directions[:2]

    def f(steps):
        moved = _moved(problem.point, steps)
        return problem.point.scale * oracle.forward(moved) ** 2 / 2

    np.testing.assert_array_equal(oracle.quadratic(problem.point, (v, w)), _mixed_difference(f, v, w))


@pytest.mark.parametrize("name", CASES)
def test_hessian_agrees_with_second_derivatives(name):
    problem = _problem(name)
    c, (v, w, _) = problem.cotangent, problem.directions
    expected = np.sum(c * oracle.quadratic(problem.point, (v, w)))
    blocks = oracle.hessian(problem.point, c)
    total = 0.0
    for names, block in blocks.items():
        left, right = names.split("/")
        total += np.sum(np.tensordot(block, w[right], axes=w[right].ndim) * v[left])
    assert total == expected


@pytest.mark.parametrize("name", CASES)
def test_frozen_entries_have_no_derivative_of_any_order(name):
    problem = _problem(name)
    for count in range(3):
        gradients = oracle.quadratic_gradient(problem.point, problem.cotangent, problem.directions[:count])
        assert not gradients["weight"][~problem.point.mask].any()


@pytest.mark.parametrize("name", CASES)
def test_majorant_bounds_the_value(name):
    problem = _problem(name)
    assert (oracle.forward(problem.point.majorant()) >= np.abs(oracle.forward(problem.point))).all()


def test_exact_tier_really_is_exact():
    """In float32 the integer problems give the oracle's value in any order of additions; random ones do not."""
    problem = cases.make(cases.BY_ID["elements"], "float32", "exact", 0)
    x, w = (problem.point.theta[name].astype(np.float32) for name in ("input", "weight"))
    order = np.random.default_rng(0).permutation(x.shape[1])
    shuffled = np.zeros((x.shape[0], w.shape[0]), np.float32)
    for k in order:
        shuffled += np.outer(x[:, k], w[:, k])
    bias = problem.point.theta["bias"].astype(np.float32)
    np.testing.assert_array_equal(shuffled + bias, oracle.forward(problem.point))


def test_exactness_is_refused_where_it_does_not_hold():
    assert cases.exact_order(cases.make(cases.BY_ID["columns"], "float32", "exact", 0)) == 3
    assert cases.exact_order(cases.make(cases.BY_ID["rows"], "bfloat16", "exact", 0)) < 3


def test_oracle_imports_no_framework():
    modules = ", ".join(f"parity.suites.masked_linear.{name}" for name in ("oracle", "cases", "transforms"))
    code = f"import sys, {modules}; print({{'torch', 'jax'}} & set(sys.modules))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "set()"
