"""The training run by hand, in NumPy: the third party. Imports no framework; every derivative is written out.

In float64 it is what both frameworks should follow; in float32 it is the yardstick of how far a run in
that precision strays from it by rounding alone.
"""

from __future__ import annotations

import numpy as np

from parity.suites.training.digits.network import LEARNING_RATE, History, Task


def train(task: Task, dtype: type[np.floating]) -> History:
    """Train the task's network by plain gradient descent and record what happens."""
    parameters = [part.astype(dtype) for spec in task.layers for part in spec.initial()]
    images = task.images.astype(dtype)
    rate = dtype(LEARNING_RATE)

    def forward(x: np.ndarray) -> list[np.ndarray]:
        inputs = [x]
        for number in range(len(task.layers)):
            weight, bias = parameters[2 * number : 2 * number + 2]
            x = inputs[-1] @ weight.T + bias
            inputs.append(np.tanh(x) if number < len(task.layers) - 1 else x)
        return inputs

    def step(batch: np.ndarray) -> float:
        *inputs, logits = forward(images[batch])
        rows = np.arange(len(batch))
        shifted = logits - logits.max(-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        loss = -log_probabilities[rows, task.labels[batch]].mean()
        g = np.exp(log_probabilities)
        g[rows, task.labels[batch]] -= 1
        g /= dtype(len(batch))
        for number in reversed(range(len(task.layers))):
            weight, bias = parameters[2 * number : 2 * number + 2]
            trains, bias_trains = task.layers[number].trains
            x = inputs[number]
            d_weight, d_bias = np.where(trains, g.T @ x, 0), np.where(bias_trains, g.sum(0), 0)
            g = (g @ weight) * (1 - x * x) if number else g
            weight -= rate * d_weight.astype(dtype)
            bias -= rate * d_bias.astype(dtype)
        return float(loss)

    def accuracy(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(forward(x.astype(dtype))[-1].argmax(-1) == y))

    losses, weights = [], []
    for number, batch in enumerate(task.batches):
        if number in task.snapshots:
            weights.append(tuple(part.copy() for part in parameters))
        losses.append(step(batch))
    weights.append(tuple(part.copy() for part in parameters))
    test_accuracy = accuracy(task.test_images, task.test_labels)
    name = f"numpy {np.dtype(dtype).name}"
    return History(name, np.array(losses), tuple(weights), accuracy(task.images, task.labels), test_accuracy)
