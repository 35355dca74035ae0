"""Fine-tuning in JAX: the packed share. Twin of torch_training.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_encoder import encode
from masks import MASKS

import maskedlinear_jax as mj

RATE, SCALE = 1e-3, 20.0


def loss(model, batch):
    """Return how badly each first sentence finds its second among all of the batch: cross entropy of cosines."""
    (first, first_mask), (second, second_mask) = batch
    cosines = encode(model, first, first_mask) @ encode(model, second, second_mask).T
    labels = jnp.arange(len(cosines))
    return optax.softmax_cross_entropy_with_integer_labels(SCALE * cosines, labels).mean()


def packed(model):
    """Return the model of which a share of each linear layer learns."""
    return mj.mask_linears(model, MASKS, packed=True)


def values_of(model):
    """Return what learns, by layer name."""
    layers = jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_packed)
    return {_name(path): layer.values for path, layer in layers if _is_packed(layer)}


def with_values(model, values):
    """Return the model with other values."""
    return jax.tree_util.tree_map_with_path(
        lambda path, node: node.replace(values=values[_name(path)]) if _is_packed(node) else node,
        model,
        is_leaf=_is_packed,
    )


@jax.jit
def _gradients(values, model, batch):
    return jax.value_and_grad(lambda values: loss(with_values(model, values), batch))(values)


def gradients(model, batch):
    """Return the packed gradients by layer name."""
    return {name: np.asarray(one) for name, one in _gradients(values_of(model), model, batch)[1].items()}


def train(model, batches, progress=lambda text: None):
    """Fine-tune a packed model; returns the trained one and the loss of each step."""
    optimizer = optax.adamw(RATE, eps=1e-8, weight_decay=0.01)
    values = values_of(model)
    state = optimizer.init(values)
    apply = jax.jit(lambda values, state, grads: _step(optimizer, values, state, grads))
    losses = []
    for step, batch in enumerate(batches):
        value, grads = _gradients(values, model, batch)
        values, state = apply(values, state, grads)
        losses.append(float(value))
        progress(f"jax packed: step {step + 1}, loss {losses[-1]:.3f}")
    return with_values(model, values), losses


def _step(optimizer, values, state, grads):
    updates, state = optimizer.update(grads, state, values)
    return optax.apply_updates(values, updates), state


def _is_packed(node):
    return isinstance(node, mj.PackedLinear)


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator=".")
