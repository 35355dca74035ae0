"""The run by hand: the oracle's arithmetic for the products, NumPy float32 for the rest. Imports no framework."""

from __future__ import annotations

import numpy as np

from parity.suites.masked_linear.arithmetic import Reproducible
from parity.suites.training.course.recipe import BATCH, MOMENTUM, RATE, Course, Progress, loss, targets
from parity.suites.training.digits.network import Task


def train(task: Task, progress: Progress = lambda: None) -> Course:
    """Train by gradient descent with momentum; every derivative is written out (S3)."""
    how = Reproducible("float32")
    parameters = [part.copy() for spec in task.layers for part in spec.initial()]
    velocities = [np.zeros_like(part) for part in parameters]
    wanted, last = targets(task), len(task.layers) - 1

    def step(batch: np.ndarray) -> np.ndarray:
        inputs = [task.images[batch]]
        for number in range(len(task.layers)):
            weight, bias = parameters[2 * number : 2 * number + 2]
            y = _float32(how.linear(_wide(inputs[-1]), _wide(weight), _wide(bias)))
            inputs.append(y if number == last else np.maximum(y, np.float32(0)))
        residual = inputs.pop() - wanted[batch]
        g = residual * np.float32(1 / BATCH)
        gradients = [np.zeros_like(part) for part in parameters]
        for number in reversed(range(len(task.layers))):
            trains, bias_trains = task.layers[number].trains
            x, weight = inputs[number], parameters[2 * number]
            gradients[2 * number] = _float32(np.where(trains, how.dot(_wide(g).T, _wide(x).T), 0.0))
            gradients[2 * number + 1] = _float32(np.where(bias_trains, how.total(_wide(g)), 0.0))
            g = np.where(x > 0, _float32(how.dot(_wide(g), _wide(weight).T)), np.float32(0))
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            velocity[:] = velocity * np.float32(MOMENTUM) + gradient
            parameter -= velocity * np.float32(RATE)
        return residual

    losses, weights = [], []
    for number, batch in enumerate(task.batches):
        if number in task.snapshots:
            weights.append(tuple(part.copy() for part in parameters))
        losses.append(loss(step(batch)))
        progress()
    weights.append(tuple(part.copy() for part in parameters))
    return Course("numpy oracle", np.array(losses), tuple(weights))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32)
