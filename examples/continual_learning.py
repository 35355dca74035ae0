"""Continual learning: three tasks one after the other, and no answer to an earlier task changes by a bit.

Real digits, three tasks (0 to 3, 4 to 6, 7 to 9). Each task trains hidden units of its own. Its classes may also read
the units of the tasks before. Units and classes of earlier tasks are frozen, so what was learned stays. Training
everything forgets.

    python examples/continual_learning.py [--figure FILE]
"""

import argparse
import copy

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from maskedlinear_torch import PackedLinear, assert_frozen, rows, submatrix

TASKS = (range(0, 4), range(4, 7), range(7, 10))
UNITS = 32  # for each task
HELD_BACK = 500
BATCH = 64


def data(task):
    """Return training images and labels of a task, and those held back."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images / 16, dtype=torch.float32)
    y = torch.tensor(labels)
    parts = (slice(HELD_BACK, None), slice(0, HELD_BACK))
    return [(x[part][mine], y[part][mine]) for part in parts for mine in [torch.isin(y[part], torch.tensor(task))]]


def units(number):
    """Return the hidden units that a task trains."""
    return range(number * UNITS, (number + 1) * UNITS)


def only(wanted, size):
    """Return a bool vector that is True at the wanted positions."""
    vector = np.zeros(size, bool)
    vector[list(wanted)] = True
    return vector


def network():
    """Return a hidden layer, and a head that is zero: a unit that no task has trained has no say."""
    torch.manual_seed(0)
    hidden, head = nn.Linear(64, len(TASKS) * UNITS), nn.Linear(len(TASKS) * UNITS, 10)
    nn.init.zeros_(head.weight)
    return nn.Sequential(hidden, nn.ReLU(), head)


def train(model, number, steps):
    """Train what learns on one task."""
    (x, y), _ = data(TASKS[number])
    y = y - TASKS[number][0]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01, weight_decay=0.01)
    draw_batch = torch.Generator().manual_seed(number)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=draw_batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch])[:, TASKS[number]], y[batch]).backward()
        optimizer.step()


def accuracy(model, number):
    """Return the share of a task's held back images that are told apart."""
    _, (x, y) = data(TASKS[number])
    with torch.no_grad():
        found = model(x)[:, TASKS[number]].argmax(-1) + TASKS[number][0]
    return (found == y).float().mean().item()


def run(steps=150):
    """Train the tasks in turn, with masks and with everything.

    Returns:
        By method, the accuracy on each task after each task; and how many logits of earlier tasks changed.
    """
    everything = network()
    model = copy.deepcopy(everything)
    model[0] = PackedLinear.from_linear(model[0], grad_mask=rows([]))
    model[2] = PackedLinear.from_linear(model[2], grad_mask=rows([]))
    result = {"masked": [], "everything": [], "changed logits": 0, "frozen": []}
    for number, task in enumerate(TASKS):
        seen = [(earlier, data(earlier)[1][0]) for earlier in TASKS[:number]]
        logits = [model(x)[:, earlier].detach() for earlier, x in seen]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        hidden, head = model[0], model[2]
        hidden.repack(rows(units(number)))
        hidden.bias_mask = only(units(number), len(TASKS) * UNITS)
        head.repack(submatrix(task, range((number + 1) * UNITS)))
        head.bias_mask = only(task, 10)
        train(model, number, steps)
        train(everything, number, steps)
        result["frozen"].append(assert_frozen(before, model))
        for (earlier, x), old in zip(seen, logits, strict=True):
            result["changed logits"] += int((model(x)[:, earlier] != old).sum())
        for name, one in (("masked", model), ("everything", everything)):
            result[name].append([accuracy(one, earlier) for earlier in range(number + 1)])
    return result


def draw(result, file):
    """Draw the accuracy on the first task, after each task."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for name in ("masked", "everything"):
        axes.plot([1, 2, 3], [row[0] for row in result[name]], marker="o")
    axes.set(xlabel="tasks learned", ylabel="accuracy on the first task", xticks=[1, 2, 3], ylim=(0, 1.02))
    axes.legend(["each task trains its own part", "everything trains"])
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments=None):
    """Run, print a table, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the products are too small for more
    result = run()
    for name in ("masked", "everything"):
        print(name)
        for number, row in enumerate(result[name]):
            print(f"  after task {number + 1}:", *(f"{one:.1%}" for one in row))
    print("logits of earlier tasks that changed a bit:", result["changed logits"])
    if asked.figure:
        draw(result, asked.figure)


if __name__ == "__main__":
    main()
