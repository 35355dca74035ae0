"""Eager JAX on many numbers: what is recorded gives the program's bits; what asks for its numbers is not recorded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from parity.execution.jax_recorded import Recorded

RNG = np.random.default_rng(0)


def drawn():
    return {"x": jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32)}


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)


PROGRAMS = {
    "a function": lambda a: {"y": norm(a["x"])},
    "its gradient": lambda a: {"x": jax.vjp(norm, a["x"])[1](jnp.cos(a["x"]))[0]},
    "a rule of its author": lambda a: {"y": jax.grad(lambda x: jax.nn.relu(x).sum())(a["x"])},
    "a loop": lambda a: {"y": jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x) * 2, a["x"])},
    "beside a constant": lambda a: {"x": a["x"] * 2, "third": jnp.float32(1 / 3)},
    "integers": lambda a: {"at": jnp.argmax(a["x"], -1)},
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_what_was_recorded_gives_the_same_bits(program):
    recorded = Recorded(program)
    for _ in range(4):
        arrays = drawn()
        want, got = program(arrays), recorded(arrays)
        assert want.keys() == got.keys()
        for name, leaf in want.items():
            assert isinstance(got[name], jax.Array)
            assert got[name].dtype == leaf.dtype
            assert np.asarray(got[name]).tobytes() == np.asarray(leaf).tobytes()


def test_the_function_itself_runs_twice_and_is_traced_once():
    seen = []

    def program(a):
        seen.append(isinstance(a["x"], jax.core.Tracer))
        return {"y": norm(a["x"])}

    recorded = Recorded(program)
    for _ in range(5):
        recorded(drawn())
    assert seen == [False, False, True]


ASKING = {
    "a branch": lambda a: {"y": a["x"] if bool((a["x"] > 0).all()) else -a["x"]},
    "NumPy": lambda a: {"y": jnp.asarray(np.sort(np.asarray(a["x"])))},
    "another random number each time": lambda a: {"y": a["x"] + RNG.standard_normal()},
    "what is no array": lambda a: {"y": a["x"], "n": 3},
}


@pytest.mark.parametrize("program", ASKING.values(), ids=ASKING)
def test_what_asks_for_its_numbers_runs_each_time(program):
    seen = []

    def counted(a):
        seen.append(isinstance(a["x"], jax.core.Tracer))
        return program(a)

    recorded = Recorded(counted)
    for _ in range(5):
        recorded(drawn())
    assert seen.count(False) == 5


def test_a_branch_that_only_eager_jax_takes_is_compared_at_special_numbers():
    """The other side has no such branch: at zeros it differs, and nowhere else."""

    def mine(x):
        return jnp.full_like(x, 7) if not bool((x != 0).any()) else x * 2

    report = parity.compare(
        lambda x: x * 2, mine, (RNG.standard_normal((3, 4)),), transforms=["forward"], worlds=["jax-eager"],
        data=["random", "kinks", "ties", "zeros"], dtypes=["float64"],
    )  # fmt: skip
    assert [cell.cell.data for cell in report.failed] == ["zeros"]
