"""Pruning-aware training in JAX: 3 of 4, then 2 of 4, then 1 of 4 weights stay, and the zeros stay zeros.

A small network learns real digits. Then its hidden layer is cut to n of every 4 consecutive weights of a row, by
magnitude, and trained again. The weights that were cut are frozen at zero, under AdamW with weight decay too.

    python examples/pruning.py [--figure FILE]
"""

import argparse
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from maskedlinear_jax import MaskedLinear, PackedLinear, columns, combine, partition, select

GROUP = 4
KEPT = (3, 2, 1)  # of each group, in this order
HELD_BACK = 500


def data():
    """Return training images and labels, and those held back."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    return (x[HELD_BACK:], y[HELD_BACK:]), (x[:HELD_BACK], y[:HELD_BACK])


def logits(model, x):
    """Return the logits of a batch."""
    return model["head"](jax.nn.relu(model["hidden"](x)))


def train(model, steps):
    """Return the model after some steps of AdamW on all that learns."""
    (x, y), _ = data()
    params, rest = partition(model)
    optimizer = optax.adamw(0.01, weight_decay=0.01)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(combine(params, rest), x), y).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return combine(params, rest)


def accuracy(model):
    """Return the share of the held back images that are told apart."""
    _, (x, y) = data()
    return float((logits(model, x).argmax(-1) == y).mean())


def pruned(layer, n):
    """Return a packed layer with n of each 4 weights, the others frozen at zero."""
    weight = np.asarray(layer.weight)
    mask = select.n_of_m(np.abs(weight), n, GROUP)
    cut = SimpleNamespace(weight=jnp.asarray(np.where(mask.to_array(weight.shape), weight, 0)), bias=layer.bias)
    plain = MaskedLinear.from_linear(cut, grad_mask=columns(slice(None)))
    return PackedLinear.from_linear(plain, grad_mask=mask)


def run(steps=150):
    """Train, then cut and train again for each n.

    Returns:
        The accuracy of the dense network, and for each n: right after the cut, after training, and the weights left.
    """
    everything = columns(slice(None))
    model = {
        "hidden": MaskedLinear(64, 64, grad_mask=everything, seed=0),
        "head": MaskedLinear(64, 10, grad_mask=everything, seed=1),
    }
    model = train(model, steps)
    result = {"dense": accuracy(model), "pruned": {}}
    for n in KEPT:
        model = model | {"hidden": pruned(model["hidden"], n)}
        cut = accuracy(model)
        before, model = model, train(model, steps)
        left = np.asarray(model["hidden"].weight)
        zeros = np.asarray(before["hidden"].weight) == 0
        assert not left[zeros].any(), "a weight that was cut came back"
        result["pruned"][n] = {"after the cut": cut, "trained": accuracy(model), "weights": np.count_nonzero(left)}
    return result


def draw(result, file):
    """Draw accuracy against the weights that are left."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    names = [f"{n} of {GROUP}" for n in result["pruned"]]
    for when in ("after the cut", "trained"):
        axes.plot(names, [row[when] for row in result["pruned"].values()], marker="o", label=when)
    axes.axhline(result["dense"], linestyle=":", color="gray", label="all weights")
    axes.set(xlabel="weights that stay", ylabel="accuracy, held back")
    axes.legend()
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments=None):
    """Run, print a table, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE")
    asked = parser.parse_args(arguments)
    result = run()
    print(f"all weights: {result['dense']:.1%}")
    for n, row in result["pruned"].items():
        accuracies = f"{row['after the cut']:.1%} after the cut, {row['trained']:.1%} trained"
        print(f"{n} of {GROUP}: {accuracies}, {row['weights']} weights")
    if asked.figure:
        draw(result, asked.figure)


if __name__ == "__main__":
    main()
