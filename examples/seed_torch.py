"""The example this project grew from, in torch: of 20 input features, only those at `location` are learned from."""

import numpy as np
import torch

from maskedlinear_torch import MaskedLinear

location = np.array([0, 3, 7, 12, 19])
layer = MaskedLinear.from_location(20, 4, location, seed=0)
x = torch.ones((2, 20))


def loss(layer):
    return (layer(x) ** 2).sum()


before = layer.weight.detach().numpy().copy()
loss(layer).backward()
gradient = layer.weight.grad.numpy()
after = before - 0.1 * gradient

print(layer)
print("gradient of the first output feature:", np.round(gradient[0], 4))
print("columns with a gradient:", np.flatnonzero(gradient.any(axis=0)))
print("weights that changed:", np.count_nonzero(before != after), "of", before.size)
