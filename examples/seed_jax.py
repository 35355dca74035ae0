"""The example this project grew from, in JAX: of 20 input features, only those at `location` are learned from."""

import jax
import jax.numpy as jnp
import numpy as np

from maskedlinear_jax import MaskedLinear, combine, partition

location = np.array([0, 3, 7, 12, 19])
layer = MaskedLinear.from_location(20, 4, location, seed=0)
x = jnp.ones((2, 20))
params, rest = partition(layer)


def loss(params):
    return (combine(params, rest)(x) ** 2).sum()


before = np.asarray(layer.weight)
gradients = jax.grad(loss)(params)
gradient = np.asarray(gradients.weight)
after = before - 0.1 * gradient

print(layer)
print("gradient of the first output feature:", np.round(gradient[0], 4))
print("columns with a gradient:", np.flatnonzero(gradient.any(axis=0)))
print("weights that changed:", np.count_nonzero(before != after), "of", before.size)
