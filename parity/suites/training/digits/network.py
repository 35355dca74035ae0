"""The data and the network, as data: the same images, batches, initial bits and masks for everyone.

The images are scikit-learn's bundled set of handwritten digits (Alpaydin and Kaynak 1998, the test part
of the UCI set): 1797 real images of 8 x 8 pixels with 17 grey levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maskedlinear_core import initial, select
from maskedlinear_core.constructors import submatrix
from maskedlinear_core.masks import Mask

LEARNING_RATE = 0.5
BATCH = 128
TEST = 360


@dataclass(frozen=True)
class LayerSpec:
    """One masked layer: sizes, masks, and the seed of its initial values."""

    in_features: int
    out_features: int
    grad_mask: Mask
    bias_mask: np.ndarray | None
    seed: int

    @property
    def trains(self) -> tuple[np.ndarray, np.ndarray]:
        """Which of the weight and of the bias trains, as bool arrays."""
        weight = self.grad_mask.to_array((self.out_features, self.in_features))
        return weight, np.ones(self.out_features, bool) if self.bias_mask is None else self.bias_mask

    def initial(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the initial weight and bias, float32."""
        weight, bias = initial.parameters(
            self.out_features, self.in_features, True, bound=initial.linear_bound(self.in_features), seed=self.seed,
            dtype="float32",
        )  # fmt: skip
        assert bias is not None
        return weight, bias


@dataclass(frozen=True)
class Task:
    """Everything a trainer needs.

    Attributes:
        layers: The network: masked layers with tanh between. Not ReLU: at its kink two right runs part by a jump.
        images: Training images (n, 64), float32 in [0, 1], exact sixteenths.
        labels: Their digits (n,).
        test_images: As images, held back.
        test_labels: As labels.
        batches: Which images each step takes: (steps, BATCH).
        snapshots: After which steps the weights are recorded.
    """

    layers: tuple[LayerSpec, ...]
    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    batches: np.ndarray
    snapshots: tuple[int, ...]


@dataclass(frozen=True)
class History:
    """What a trainer saw.

    Attributes:
        name: Name of the trainer.
        losses: Before each step (steps,).
        weights: Weight and bias of each layer, at each snapshot.
        train_accuracy: On the training images, at the end.
        test_accuracy: On the images held back, at the end.
    """

    name: str
    losses: np.ndarray
    weights: tuple[tuple[np.ndarray, ...], ...]
    train_accuracy: float
    test_accuracy: float


def task(seed: int = 0, steps: int = 200) -> Task:
    """Make the task.

    Args:
        seed: Seed of the split, the batches, the masks and the initial values.
        steps: Length of the training.
    """
    from sklearn.datasets import load_digits  # here: it takes a second, and only this needs it

    digits = load_digits()
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(len(digits.data))
    images, labels = (digits.data / 16).astype(np.float32)[order], digits.target[order]
    train = images[TEST:]
    batches = np.stack([rng.permutation(len(train))[:BATCH] for _ in range(steps)])
    snapshots = tuple(sorted({0, *range(1, min(steps, 8)), *range(0, steps, max(1, steps // 16)), steps}))
    return Task(network(train, seed), train, labels[TEST:], images[:TEST], labels[:TEST], batches, snapshots)


def network(images: np.ndarray, seed: int) -> tuple[LayerSpec, ...]:
    """Return the layers: the pixels that vary most, half of the blocks, a corner, and the largest entries train."""
    varying = np.broadcast_to(images.var(axis=0), (64, 64))
    last = LayerSpec(48, 10, submatrix([], []), None, seed + 3)
    largest = select.top_k(np.abs(last.initial()[0]), 0.5)
    return (
        LayerSpec(64, 64, select.top_k(varying, 0.5, along="columns"), None, seed),
        LayerSpec(64, 64, select.random((64, 64), 0.5, along="blocks", block_shape=(8, 16), seed=seed), None, seed + 1),
        LayerSpec(64, 48, submatrix(slice(0, 24), slice(0, None, 2)), np.arange(48) < 24, seed + 2),
        LayerSpec(48, 10, largest, np.arange(10) != 0, seed + 3),
    )
