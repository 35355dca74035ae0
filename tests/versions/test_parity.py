"""What `parity` must do in every version that pyproject.toml allows: right is called right, and wrong is named."""

import __future__

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import parity
from parity.execution import jax_programs, jax_rounding

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def root_mean_square(x, eps=1e-6):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + eps)


RIGHT = {
    "silu": (F.silu, jax.nn.silu),
    "softmax": (lambda x: torch.softmax(x, -1), jax.nn.softmax),
    "rms norm": (lambda x: F.rms_norm(x, (8,), eps=1e-6), root_mean_square),
    "sort": (lambda x: torch.sort(x, -1).values, lambda x: jnp.sort(x, -1)),
}
WRONG = {
    "gelu": (F.gelu, jax.nn.gelu, "exact GELU"),
    "eps": (lambda x: F.rms_norm(x, (8,), eps=1e-5), root_mean_square, "1e-06 in JAX where torch has 1e-05"),
    "divisor": (lambda x: x.var(-1), lambda x: x.var(-1), "n/(n-1)"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_passes(name):
    report = parity.compare(*RIGHT[name], (X,), quick=True)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_port_is_named(name):
    *pair, cause = WRONG[name]
    report = parity.compare(*pair, (X,), quick=True)
    assert not report.ok
    assert cause in " ".join(str(report).split()), str(report)


TYPED = """
def torch_sin(x: Tensor, scale: Session = 2.0) -> Tensor:
    return torch.sin(x) * scale

def jax_sin(x: Tensor, scale: Session = 2.0) -> Tensor:
    return jnp.sin(x) * scale
"""


def test_types_that_only_a_checker_imports_are_not_asked_for():
    """Python 3.14 evaluates annotations where they are read (PEP 649): `inspect.signature` ended in a NameError."""
    names = {"torch": torch, "jnp": jnp}
    later = sys.version_info >= (3, 14)
    exec(compile(TYPED, "typed.py", "exec", flags=0 if later else __future__.annotations.compiler_flag), names)
    report = parity.compare(names["torch_sin"], names["jax_sin"], (X,), quick=True)
    assert report.ok, str(report)


def test_an_intermediate_that_overflows_is_no_difference():
    """What leaves the range is found in the JAX program: with its types alone this was called different."""
    naive = lambda x: jnp.log(jnp.exp(x).sum(-1))  # noqa: E731
    report = parity.compare(
        lambda x: torch.logsumexp(x, -1), naive, (X,), transforms=["forward"], worlds=["jax-eager"], data=["large"]
    )
    assert report.ok, str(report)
    assert "edge" in str(report)


@jax.custom_jvp
def doubled(x):
    return 2 * x


doubled.defjvps(lambda tangent, y, x: 2 * tangent)


def program(arrays):
    """What JAX keeps in each of the ways that a program can hold another."""
    (x,) = arrays
    total, _ = jax.lax.scan(lambda total, row: (total + row, None), jnp.zeros_like(x[0]), jax.jit(jnp.exp)(x))
    return {"y": jax.checkpoint(doubled)(total)}


def test_a_program_is_read_and_run_equation_by_equation():
    large = X.copy()
    large[0, 0] = 100
    read = jax_programs.ranges(program, (X,))
    assert "exp" not in read((X,)).large
    assert "exp" in read((large,)).large
    want = np.asarray(program((X,))["y"])
    rounded = [jax_rounding.run(program, (X,), size, 0, {}, "")["y"] for size in (0.0, 1e-3)]
    np.testing.assert_allclose(rounded[0], want, rtol=1e-6)  # another order of sums, and no more
    moved = np.abs(np.asarray(rounded[1]) / want - 1).max()
    assert 1e-5 < moved < 0.1


def added_one_by_one(x):
    if x.dtype != jnp.bfloat16:
        return x.sum(-1)
    return jax.lax.fori_loop(0, x.shape[-1], lambda i, total: total + x[:, i], jnp.zeros(x.shape[0], x.dtype))


def test_a_loop_is_read_operator_by_operator():
    x = np.abs(np.random.default_rng(0).standard_normal((4, 600)))
    report = parity.compare(lambda x: x.sum(-1), added_one_by_one, (x,), transforms=["forward"], data=["random"])
    assert {cell.diagnosis.cause for cell in report.failed} == {"bfloat16 accumulation"}, str(report)


class Net(nn.Module):
    """A block of a language model."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(F.silu(self.up(self.norm(x))))


class FlaxNet(nnx.Module):
    """Its port."""

    def __init__(self, eps=1e-5):
        rngs = nnx.Rngs(0)
        self.norm = nnx.LayerNorm(8, epsilon=eps, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)

    def __call__(self, x):
        return x + self.down(jax.nn.silu(self.up(self.norm(x))))


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_a_model_is_judged(eps):
    model, port = Net(), FlaxNet(eps)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    report = parity.compare_models(model, port, (X,))
    assert report.ok == (eps == 1e-5), str(report)
    assert report.ok or "norm" in str(report)


def test_the_quick_grid_is_as_promised():
    command = [sys.executable, "-m", "parity", "grid", "--quick"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert "as promised" in ran.stdout
