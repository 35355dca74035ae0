"""A second derivative that an operator of torch gives wrongly is not the port's fault; one that a user gives is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity

X = np.random.default_rng(0).standard_normal((4, 4)) + 4 * np.eye(4)
OPTIONS = {
    "transforms": ["hvp-reverse-over-forward"], "data": ["random"], "dtypes": ["float64"], "worlds": ["jax-jit"],
}  # fmt: skip


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5)


OF_TORCH = {
    "native_layer_norm": (lambda x: F.layer_norm(x, (4,)), layer_norm),
    "native_batch_norm": (
        lambda x: F.batch_norm(x, None, None, training=True).mean(1), lambda x: layer_norm(x.T).T.mean(1),
    ),
    "_linalg_det": (lambda x: torch.linalg.det(x) / 100, lambda x: jnp.linalg.det(x) / 100),
}  # fmt: skip


@pytest.mark.parametrize("operator", OF_TORCH)
def test_an_operator_of_torch_is_at_fault(operator):
    report = parity.compare(*OF_TORCH[operator], (X,), **OPTIONS)
    assert report.ok, str(report)
    assert "the same function at ordinary numbers" in str(report)
    (record,) = report.cells
    if record.verdict == "differs":  # a torch that has mended it gives no difference
        assert record.known
        assert operator in record.diagnosis.text
        assert record.diagnosis.cause == "torch's own derivative"


@pytest.mark.parametrize("transform", ["jvp", "second-tangent"])
def test_an_operator_is_at_fault_in_forward_mode(transform):
    def solved(x):
        return jnp.linalg.inv(x @ x.T)

    report = parity.compare(
        lambda x: torch.cholesky_inverse(torch.linalg.cholesky(x @ x.T)), solved, (X[:3, :3],),
        **OPTIONS | {"transforms": [transform]},
    )  # fmt: skip
    assert report.ok, str(report)


def test_it_is_a_failure_where_all_is_asked():
    report = parity.compare(*OF_TORCH["native_layer_norm"], (X,), strict=True, **OPTIONS)
    assert report.ok == (report.cells[0].verdict != "differs")
    assert report.ok or "torch's own operators" in str(report)


class Cube(torch.autograd.Function):
    """A cube whose tangent hides a factor from what is differentiated next."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * ctx.saved_tensors[0].detach() ** 2 * tangent


class Tilted(Cube):
    """A cube whose tangent is not its derivative."""

    @staticmethod
    def jvp(ctx, tangent):
        return 2 * ctx.saved_tensors[0] ** 2 * tangent


def test_a_tangent_that_its_author_got_wrong_is_a_failure():
    report = parity.compare(Tilted.apply, lambda x: x**3, (X,), **OPTIONS | {"transforms": ["jvp"]})
    assert not report.ok
    assert report.failed[0].diagnosis.cause == "gradient rule"


def eps_apart(x):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-3)


@jax.custom_jvp
def wrongly(x):
    return jnp.sin(x)


wrongly.defjvp(lambda x, t: (wrongly(*x), jnp.cos(jax.lax.stop_gradient(x[0])) * t[0]))


def hooked(x):
    """Return a cube whose gradient a hook detaches."""
    h = x * 1
    if h.requires_grad:
        h.register_hook(lambda g: g.detach())
    return h**3


@pytest.mark.parametrize("transform", ["hvp-reverse-over-reverse", "hvp-forward-over-reverse", "hessian"])
def test_a_hook_is_no_operator_of_torch(transform):
    report = parity.compare(hooked, lambda x: x**3, (X[0],), **OPTIONS | {"transforms": [transform]})
    assert not report.ok
    assert all(record.diagnosis.cause != "torch's own derivative" for record in report.cells if record.diagnosis)


OF_THE_PORT = {
    "a rule of torch's author": (Cube.apply, lambda x: x**3),
    "a rule of JAX's author": (torch.sin, wrongly),
    "another eps in a layer norm": (lambda x: F.layer_norm(x, (4,)), eps_apart),
    "a detached statistic": (
        lambda x: F.layer_norm(x, (4,)), lambda x: layer_norm(x) + 0 * x if x.ndim < 2 else
        (x - jax.lax.stop_gradient(x.mean(-1, keepdims=True)))
        / jnp.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True) + 1e-5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_THE_PORT)
def test_the_port_is_at_fault(name):
    report = parity.compare(*OF_THE_PORT[name], (X,), **OPTIONS)
    assert not report.ok
    assert all(record.diagnosis.cause != "torch's own derivative" for record in report.cells)
