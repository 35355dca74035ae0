"""Steps of optax as ports of torch's optimizers: their scalars are rounded to float32, and torch's are not (S11)."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import parity

DRAW = np.random.default_rng(0)
INPUTS = tuple(DRAW.standard_normal((4, 8)).astype(np.float32) for _ in range(3))
ALL_BUT_COMPILED = {"transforms": ["forward"], "worlds": ["torch-eager", "jax-eager", "jax-jit"], "data": ["random"]}

RIGHT = {
    "Adam": (lambda of: torch.optim.Adam(of, lr=1e-2), optax.adam(1e-2)),
    "AdamW": (lambda of: torch.optim.AdamW(of, lr=1e-2, weight_decay=0.1), optax.adamw(1e-2, weight_decay=0.1)),
    "Adamax": (lambda of: torch.optim.Adamax(of, lr=1e-2), optax.adamax(1e-2)),
}


def torch_steps(made):
    def steps(p, *gradients):
        parameter = torch.nn.Parameter(p.clone())
        optimizer = made([parameter])
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        return parameter.detach()

    return steps


def optax_steps(rule):
    def steps(p, *gradients):
        state = rule.init(p)
        for gradient in gradients:
            updates, state = rule.update(gradient, state, p)
            p = optax.apply_updates(p, updates)
        return p

    return steps


@pytest.mark.parametrize("name", RIGHT)
def test_two_steps_of_optax_are_those_of_torch(name):
    made, rule = RIGHT[name]
    report = parity.compare(torch_steps(made), optax_steps(rule), INPUTS, **ALL_BUT_COMPILED)
    assert report.ok, str(report)


def test_the_side_that_rounds_its_scalars_is_named():
    report = parity.compare(torch_steps(RIGHT["Adam"][0]), optax_steps(RIGHT["Adam"][1]), INPUTS, **ALL_BUT_COMPILED)
    said = {cell["reason"] for cell in report.content()["cells"] if cell["dtype"] == "float32"}
    assert any(reason.startswith("JAX rounds scalars that depend on no input") for reason in said), said


def test_another_constant_is_no_rounding():
    report = parity.compare(
        torch_steps(RIGHT["Adam"][0]), optax_steps(optax.adam(1e-2, b2=0.9991)), INPUTS, **ALL_BUT_COMPILED
    )
    assert not report.ok


@pytest.mark.parametrize("where", ["of the numbers", "of a scalar in bfloat16"])
def test_what_a_port_loses_else_is_still_found(where):
    def theirs(x):
        return torch.log1p(x) / (1 - 0.999**2)

    def mine(x):
        if where == "of the numbers":
            return jnp.log(1 + x) / (1 - 0.999**2)
        return jnp.log1p(x) / (1 - jnp.asarray(0.999, jnp.bfloat16) ** 2).astype(x.dtype)

    report = parity.compare(theirs, mine, (np.abs(INPUTS[0]) * 1e-3,), **ALL_BUT_COMPILED)
    assert not report.ok
