"""The run in torch. Twin of jax_training.py, line by line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from maskedlinear_core.annotations import PrecisionLike
from maskedlinear_torch import MaskedLinear
from parity.suites.training.course.recipe import BATCH, MOMENTUM, RATE, Course, Progress, loss, targets
from parity.suites.training.digits.network import Task


def train(
    task: Task, *, precision: PrecisionLike, compiled: bool, device: str = "cpu", progress: Progress = lambda: None
) -> Course:
    """Train by gradient descent with momentum, eager or with the model compiled."""
    layers = [
        MaskedLinear(
            spec.in_features, spec.out_features, grad_mask=spec.grad_mask, bias_mask=spec.bias_mask, seed=spec.seed,
            device=device, precision=precision,
        )
        for spec in task.layers
    ]  # fmt: skip
    parts = [part for layer in layers for part in (layer, nn.ReLU())][:-1]
    model = nn.Sequential(*parts)
    network = torch.compile(model, fullgraph=True) if compiled else model
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    images, wanted = torch.from_numpy(task.images).to(device), torch.from_numpy(targets(task)).to(device)

    def step(batch: torch.Tensor) -> torch.Tensor:
        output = network(images[batch])
        residual = output.detach() - wanted[batch]
        gradients = torch.autograd.grad(output, parameters, residual * (1 / BATCH))
        with torch.no_grad():
            for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                velocity.mul_(MOMENTUM).add_(gradient)
                parameter.sub_(velocity * RATE)
        return residual

    losses, weights = [], []
    for number, batch in enumerate(task.batches):
        if number in task.snapshots:
            weights.append(_values(parameters))
        losses.append(loss(step(torch.from_numpy(batch).to(device)).cpu().numpy()))
        progress()
    weights.append(_values(parameters))
    return Course(f"torch {'compiled' if compiled else 'eager'}", np.array(losses), tuple(weights))


def _values(parameters: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(parameter.detach().cpu().numpy().copy() for parameter in parameters)
