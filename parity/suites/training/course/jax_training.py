"""The run in JAX. Twin of torch_training.py, line by line."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_core.annotations import PrecisionLike
from maskedlinear_jax import MaskedLinear, combine, partition
from parity.suites.training.course.recipe import BATCH, MOMENTUM, RATE, Course, Progress, loss, targets
from parity.suites.training.digits.network import Task


def train(
    task: Task, *, precision: PrecisionLike, compiled: bool, device: str = "cpu", progress: Progress = lambda: None
) -> Course:
    """Train by gradient descent with momentum, eager or with the step compiled."""
    layers = [
        MaskedLinear(
            spec.in_features, spec.out_features, grad_mask=spec.grad_mask, bias_mask=spec.bias_mask, seed=spec.seed,
            precision=precision,
        )
        for spec in task.layers
    ]  # fmt: skip
    parameters, rest = jax.device_put(partition(layers), jax.devices("cpu" if device == "cpu" else "gpu")[0])
    velocities = jax.tree.map(jnp.zeros_like, parameters)
    images, wanted = jnp.asarray(task.images), jnp.asarray(targets(task))

    def network(parameters: Any, x: jax.Array) -> jax.Array:
        *hidden, last = combine(parameters, rest)
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x)

    def step(parameters: Any, velocities: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
        output, pull = jax.vjp(lambda parameters: network(parameters, images[batch]), parameters)
        residual = output - wanted[batch]
        (gradients,) = pull(residual * (1 / BATCH))
        velocities = jax.tree.map(lambda v, d: v * MOMENTUM + d, velocities, gradients)
        parameters = jax.tree.map(lambda w, v: w - v * RATE, parameters, velocities)
        return parameters, velocities, residual

    run = jax.jit(step) if compiled else step
    losses, weights = [], []
    with jax.default_matmul_precision("highest"):
        for number, batch in enumerate(task.batches):
            if number in task.snapshots:
                weights.append(_values(parameters))
            parameters, velocities, residual = run(parameters, velocities, jnp.asarray(batch))
            losses.append(loss(np.asarray(residual)))
            progress()
    weights.append(_values(parameters))
    return Course(f"jax {'jit' if compiled else 'eager'}", np.array(losses), tuple(weights))


def _values(parameters: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.array(leaf) for leaf in jax.tree.leaves(parameters))
