"""Federated averaging: four clients, two in torch and two in JAX, send what learned, and nothing else.

All clients have one random network, of which a fifth of the hidden layer and the whole head learn. Each has its own
part of real digits, sorted so that no client sees all of them. In each round a client gets the values of the server,
trains some steps, and sends its values back as NumPy arrays. The server averages them. The base weights and the data
stay where they are.

    python examples/federated.py [--figure FILE]
"""

import argparse

import jax
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt

MASKS = {"hidden": mt.select.random((64, 64), 0.2, seed=0), "head": mt.columns(slice(None))}
SIZES = {"hidden": (64, 64), "head": (64, 10)}
FRAMEWORKS = ("torch", "jax", "torch", "jax")
HELD_BACK = 500
RATE = 0.3  # of SGD


def data():
    """Return the images and labels of each client, and those held back."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    order = np.argsort(labels[HELD_BACK:], kind="stable")
    parts = np.array_split(order, len(FRAMEWORKS))
    return [(x[HELD_BACK:][part], labels[HELD_BACK:][part]) for part in parts], (x[:HELD_BACK], labels[:HELD_BACK])


class TorchClient:
    """The network in torch."""

    def __init__(self):
        numbered = enumerate(MASKS.items())
        layers = {name: mt.PackedLinear(*SIZES[name], grad_mask=mask, seed=seed) for seed, (name, mask) in numbered}
        self.model = nn.ModuleDict(layers)

    def send(self):
        """Return all that learns, by name."""
        return mt.packed_arrays(self.model)

    def receive(self, arrays):
        """Go on from these values."""
        mt.load_packed(arrays, self.model)

    def logits(self, x):
        """Return the logits of a batch of NumPy images."""
        return self.model["head"](self.model["hidden"](torch.from_numpy(x)).relu())

    def train(self, x, y, steps):
        """Train some steps of SGD on all images of the client."""
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=RATE)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.logits(x), torch.from_numpy(y)).backward()
            optimizer.step()


class JaxClient:
    """The same network in JAX: the same masks, names and, by `seed=`, the same bits."""

    def __init__(self):
        numbered = enumerate(MASKS.items())
        self.model = {name: mj.PackedLinear(*SIZES[name], grad_mask=mask, seed=seed) for seed, (name, mask) in numbered}

        def loss(params, rest, x, y):
            found = _logits(mj.combine(params, rest), x)
            return optax.softmax_cross_entropy_with_integer_labels(found, y).mean()

        self.gradient = jax.jit(jax.grad(loss))

    def send(self):
        """Return all that learns, by name."""
        return mj.packed_arrays(self.model)

    def receive(self, arrays):
        """Go on from these values."""
        self.model = mj.load_packed(arrays, self.model)

    def logits(self, x):
        """Return the logits of a batch of NumPy images."""
        return _logits(self.model, x)

    def train(self, x, y, steps):
        """Train some steps of SGD on all images of the client."""
        params, rest = mj.partition(self.model)
        for _ in range(steps):
            gradients = self.gradient(params, rest, x, y)
            params = jax.tree.map(lambda one, gradient: one - RATE * gradient, params, gradients)
        self.model = mj.combine(params, rest)


def _logits(model, x):
    return model["head"](jax.nn.relu(model["hidden"](x)))


CLIENTS = {"torch": TorchClient, "jax": JaxClient}


def accuracy(client, x, y):
    """Return the share of images that are told apart."""
    return float((np.asarray(client.logits(x).tolist()).argmax(-1) == y).mean())


def run(rounds=30, steps=10):
    """Train in rounds.

    Returns:
        The server's accuracy after each round, and how far torch and JAX are apart on its logits; what each client
        reaches alone; and how many numbers a client sends, of how many the network has.
    """
    parts, held_back = data()
    clients = [CLIENTS[name]() for name in FRAMEWORKS]
    server = clients[0].send()
    result = {"accuracy": [], "apart": []}
    for _ in range(rounds):
        sent = []
        for client, (x, y) in zip(clients, parts, strict=True):
            client.receive(server)
            client.train(x, y, steps)
            sent.append(client.send())
        server = {name: np.mean([one[name] for one in sent], axis=0) for name in server}
        for client in clients[:2]:
            client.receive(server)
        in_torch, in_jax = (np.asarray(client.logits(held_back[0]).tolist()) for client in clients[:2])
        result["apart"].append(float(np.abs(in_torch - in_jax).max()))
        result["accuracy"].append(accuracy(clients[0], *held_back))
    result["alone"] = []
    for name, (x, y) in zip(FRAMEWORKS, parts, strict=True):
        client = CLIENTS[name]()
        client.train(x, y, rounds * steps)
        result["alone"].append(accuracy(client, *held_back))
    result["sent"] = sum(values.size for values in server.values())
    result["all"] = sum(inputs * outputs + outputs for inputs, outputs in SIZES.values())
    return result


def draw(result, file):
    """Draw the server's accuracy over the rounds, beside what clients reach alone."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    rounds = range(1, len(result["accuracy"]) + 1)
    axes.plot(rounds, result["accuracy"], marker=".", label="averaged, torch and JAX")
    for number, alone in enumerate(result["alone"]):
        axes.axhline(alone, linestyle=":", color="gray", label=None if number else "a client alone")
    axes.set(xlabel="rounds", ylabel="accuracy, held back", ylim=(0, 1.02))
    axes.legend(loc="center right")
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments=None):
    """Run, print what came of it, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the products are too small for more
    result = run()
    first, *_, last = result["accuracy"]
    print(f"averaged: {first:.1%} after one round, {last:.1%} after {len(result['accuracy'])}")
    print("clients alone:", *(f"{one:.1%}" for one in result["alone"]))
    print(f"a client sends {result['sent']} of {result['all']} numbers")
    print(f"torch and JAX are {max(result['apart']):.1e} apart on the server's logits")
    if asked.figure:
        draw(result, asked.figure)


if __name__ == "__main__":
    main()
