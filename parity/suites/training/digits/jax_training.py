"""The training run in JAX. Twin of torch_training.py, line by line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_jax import MaskedLinear, combine, partition
from parity.suites.training.digits.network import LEARNING_RATE, History, Task


def train(task: Task, device: str = "cpu", progress: Callable[[], None] = lambda: None) -> History:
    """Train the task's network by plain gradient descent and record what happens."""
    layers = [
        MaskedLinear(
            spec.in_features, spec.out_features, grad_mask=spec.grad_mask, bias_mask=spec.bias_mask, seed=spec.seed
        )
        for spec in task.layers
    ]
    parameters, rest = jax.device_put(partition(layers), jax.devices("cpu" if device == "cpu" else "gpu")[0])
    images, labels = jnp.asarray(task.images), jnp.asarray(task.labels)

    def logits(parameters: Any, x: jax.Array) -> jax.Array:
        *hidden, last = combine(parameters, rest)
        for layer in hidden:
            x = jnp.tanh(layer(x))
        return last(x)

    def loss(parameters: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        log_probabilities = jax.nn.log_softmax(logits(parameters, x), axis=-1)
        return -jnp.take_along_axis(log_probabilities, y[:, None], 1).mean()

    @jax.jit
    def step(parameters: Any, batch: jax.Array) -> tuple[Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(parameters, images[batch], labels[batch])
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, parameters, gradients), value

    def accuracy(x: np.ndarray, y: np.ndarray) -> float:
        guesses = np.asarray(logits(parameters, jnp.asarray(x)).argmax(-1))
        return float(np.mean(guesses == y))

    losses, weights = [], []
    with jax.default_matmul_precision("highest"):
        for number, batch in enumerate(task.batches):
            if number in task.snapshots:
                weights.append(tuple(np.array(leaf) for leaf in jax.tree.leaves(parameters)))
            parameters, value = step(parameters, jnp.asarray(batch))
            losses.append(float(value))
            progress()
        weights.append(tuple(np.array(leaf) for leaf in jax.tree.leaves(parameters)))
        test_accuracy = accuracy(task.test_images, task.test_labels)
        return History("jax", np.array(losses), tuple(weights), accuracy(task.images, task.labels), test_accuracy)
