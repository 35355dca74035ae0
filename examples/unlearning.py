"""Unlearning by saliency: a network forgets the digit 3, and 95 of 100 weights keep every bit.

A small network knows all ten digits. The 5 % of its weights that matter most for the threes (by the gradient of their
loss, over the whole model at once) learn to answer threes with random labels, and everything else with the right ones
(SalUn, Fan et al. 2024).

    python examples/unlearning.py [--figure FILE]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn

from maskedlinear_torch import assert_frozen, hold_frozen, mask_linears, select

FORGET = 3
DENSITY = 0.05
HELD_BACK = 500
BATCH = 64


def data():
    """Return training images and labels, and those held back."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return (x[HELD_BACK:], y[HELD_BACK:]), (x[:HELD_BACK], y[:HELD_BACK])


def train(model, optimizer, x, y, steps, relabel=None):
    """Train on batches; `relabel` gives other labels for some images, anew in each step."""
    draw_batch = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=draw_batch)
        wanted = y[batch] if relabel is None else relabel(y[batch], draw_batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[batch]), wanted).backward()
        optimizer.step()


def accuracy(model):
    """Return the share of the held back threes that are recognised, and of all other digits."""
    _, (x, y) = data()
    with torch.no_grad():
        right = (model(x).argmax(-1) == y).float()
    return {"forgotten": right[y == FORGET].mean().item(), "others": right[y != FORGET].mean().item()}


def saliency(model):
    """Return the magnitude of the gradient of the threes' loss, for the weight of each linear layer."""
    (x, y), _ = data()
    model.zero_grad()
    nn.functional.cross_entropy(model(x[y == FORGET]), y[y == FORGET]).backward()
    return {name: layer.weight.grad.abs() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}


def random_labels(labels, generator):
    """Return the labels, with random ones among the other digits for what is to be forgotten."""
    others = torch.randint(1, 10, labels.shape, generator=generator)
    return torch.where(labels == FORGET, (labels + others) % 10, labels)


def run(steps=200):
    """Train, then forget.

    Returns:
        Accuracies before and after, the share of each layer that learned, and how many weights were proved frozen.
    """
    torch.manual_seed(0)
    (x, y), _ = data()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    train(model, torch.optim.Adam(model.parameters(), lr=0.005), x, y, 2 * steps)
    result = {"before": accuracy(model)}
    masks = select.model_top_k(saliency(model), DENSITY)
    result["shares"] = {name: masks[name].density(model.get_submodule(name).weight.shape) for name in masks}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mask_linears(model, masks, freeze_others=True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=0.005)
    hold_frozen(optimizer, model)
    train(model, optimizer, x, y, steps, random_labels)
    result["after"] = accuracy(model)
    result["frozen"] = assert_frozen(before, model)
    return result


def draw(result, file):
    """Draw accuracies before and after."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3), layout="constrained")
    for place, when in ((-0.2, "before"), (0.2, "after")):
        heights = [result[when][group] for group in ("forgotten", "others")]
        axes.bar([0 + place, 1 + place], heights, 0.4, label=f"{when} unlearning")
    axes.set(xticks=[0, 1], xticklabels=["threes", "all other digits"], ylabel="accuracy, held back", ylim=(0, 1.02))
    axes.legend(loc="lower right")
    figure.savefig(file)
    pyplot.close(figure)


def main(arguments=None):
    """Run, print a table, and draw if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", metavar="FILE")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the products are too small for more
    result = run()
    for when in ("before", "after"):
        print(f"{when}: threes {result[when]['forgotten']:.1%}, other digits {result[when]['others']:.1%}")
    print("share that learns:", ", ".join(f"{name} {share:.1%}" for name, share in result["shares"].items()))
    print("weights and biases that kept every bit:", result["frozen"])
    if asked.figure:
        draw(result, asked.figure)


if __name__ == "__main__":
    main()
