"""The training run in torch. Twin of jax_training.py, line by line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from maskedlinear_torch import MaskedLinear
from parity.suites.training.digits.network import LEARNING_RATE, History, Task


def train(task: Task, device: str = "cpu", progress: Callable[[], None] = lambda: None) -> History:
    """Train the task's network by plain gradient descent and record what happens."""
    layers = [
        MaskedLinear(
            spec.in_features, spec.out_features, grad_mask=spec.grad_mask, bias_mask=spec.bias_mask, seed=spec.seed
        ).to(device)
        for spec in task.layers
    ]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    images, labels = torch.from_numpy(task.images).to(device), torch.from_numpy(task.labels).to(device)

    def logits(x: torch.Tensor) -> torch.Tensor:
        for layer in layers[:-1]:
            x = torch.tanh(layer(x))
        return layers[-1](x)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        log_probabilities = torch.log_softmax(logits(x), dim=-1)
        return -log_probabilities.gather(1, y[:, None]).mean()

    def step(batch: torch.Tensor) -> torch.Tensor:
        value = loss(images[batch], labels[batch])
        gradients = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= LEARNING_RATE * gradient
        return value.detach()

    def accuracy(x: np.ndarray, y: np.ndarray) -> float:
        guesses = logits(torch.from_numpy(x).to(device)).argmax(-1).cpu().numpy()
        return float(np.mean(guesses == y))

    losses, weights = [], []
    for number, batch in enumerate(task.batches):
        if number in task.snapshots:
            weights.append(tuple(parameter.detach().cpu().numpy().copy() for parameter in parameters))
        losses.append(step(torch.from_numpy(batch).to(device)).item())
        progress()
    weights.append(tuple(parameter.detach().cpu().numpy().copy() for parameter in parameters))
    test_accuracy = accuracy(task.test_images, task.test_labels)
    return History("torch", np.array(losses), tuple(weights), accuracy(task.images, task.labels), test_accuracy)
