"""Faults of optimizers' steps and of losses, named as what they are; the same steps ported rightly are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import parity
from tests.test_steps_of_optimizers import optax_steps, torch_steps

RNG = np.random.default_rng(0)
STEP = tuple(RNG.standard_normal((4, 8)) for _ in range(3))
LABELS = (RNG.standard_normal((6, 7)), RNG.integers(0, 7, 6))
FORWARD = {"transforms": ["forward"], "worlds": ["jax-jit"], "data": ["random"], "dtypes": ["float64"]}
DECAY, SMOOTHING = "optimizer: weight decay", "another formula: label smoothing"


def torch_made(name, **options):
    return torch_steps(lambda of: getattr(torch.optim, name)(of, **options))


def l2_written_out(p, *gradients):
    m, v = jnp.zeros_like(p), jnp.zeros_like(p)
    for t, gradient in enumerate(gradients, 1):
        gradient = gradient + 0.1 * p
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient * gradient
        p = p - 0.01 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return p


def torch_smoothed(x, y):
    return F.cross_entropy(x, y, label_smoothing=0.1)


def smoothed_over_others(x, y):
    targets = jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype)
    targets = 0.9 * targets + 0.1 / (x.shape[-1] - 1) * (1 - targets)
    return optax.softmax_cross_entropy(x, targets).mean()


def focal(x, y, weight):
    p = jax.nn.sigmoid(x)
    return (
        (weight * y + (1 - weight) * (1 - y))
        * optax.sigmoid_binary_cross_entropy(x, y)
        * (1 - p * y - (1 - p) * (1 - y)) ** 2
    ).mean()


def torch_focal(x, y):
    p = torch.sigmoid(x)
    loss = F.binary_cross_entropy_with_logits(x, y, reduction="none")
    return ((0.25 * y + 0.75 * (1 - y)) * loss * (1 - p * y - (1 - p) * (1 - y)) ** 2).mean()


NESTEROV = torch_made("SGD", lr=0.1, momentum=0.9, nesterov=True)
OPTAX_NESTEROV = optax_steps(optax.sgd(0.1, 0.9, nesterov=True))


def torch_batch_norm(x):
    mean, var = torch.zeros(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    return F.batch_norm(x, mean, var, training=True, momentum=0.1), mean, var


def batch_norm(x, ddof=0):
    mean, var, n = x.mean((0, 2, 3)), x.var((0, 2, 3)), x.size / 3
    wide = x - mean[:, None, None]
    return (
        wide / jnp.sqrt(var + 1e-5)[:, None, None], 0.1 * mean, 0.9 * jnp.ones_like(var) + 0.1 * var * (n / (n - ddof))
    )  # fmt: skip


IMAGE = (RNG.standard_normal((1, 3, 6, 6)), RNG.standard_normal((4, 3, 3, 3)))
COUPLED = optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-2))

# name: torch function, JAX function, inputs, the cause, a part of its text
NAMED = {
    "decay of Adam for that of AdamW": (torch_made("AdamW", lr=1e-2, weight_decay=0.1), optax_steps(COUPLED), STEP,
                                        DECAY, "JAX adds the decay of the weights to the gradient"),
    "the same, written out": (torch_made("AdamW", lr=1e-2, weight_decay=0.1), l2_written_out, STEP, DECAY,
                              "JAX adds the decay of the weights to the gradient"),
    "decay of AdamW for that of Adam": (torch_made("Adam", lr=1e-2, weight_decay=0.1),
                                        optax_steps(optax.adamw(1e-2, weight_decay=0.1)), STEP, DECAY,
                                        "torch adds the decay of the weights to the gradient"),
    "Nesterov in torch": (NESTEROV, optax_steps(optax.sgd(0.1, 0.9)), STEP,
                          "optimizer: Nesterov", "Nesterov's momentum of 0.9 in torch where JAX has plain momentum"),
    "Nesterov in JAX": (torch_made("SGD", lr=0.1, momentum=0.9), OPTAX_NESTEROV, STEP,
                        "optimizer: Nesterov", "Nesterov's momentum of 0.9 in JAX where torch has plain momentum"),
    "Adam's b2": (torch_made("Adam", lr=1e-2), optax_steps(optax.adam(1e-2, b2=0.99)), STEP, "constant",
                  "0.999 (and what is made of it"),
    "RMSprop's decay": (torch_made("RMSprop", lr=1e-2, alpha=0.9),
                        optax_steps(optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False)), STEP, "constant",
                        "0.99 (and what is made of it"),
    "Adam's learning rate": (torch_made("Adam", lr=1e-2), optax_steps(optax.adam(1e-3)), STEP, "constant factor",
                             "is in JAX 0.1 times torch's"),
    "Adam's eps under the root": (torch_made("Adam", lr=1e-2, eps=1e-3),
                                  optax_steps(optax.adam(1e-2, eps=0, eps_root=1e-3)), STEP, "default argument: eps",
                                  "under the root"),
    "smoothing over the other classes": (torch_smoothed, smoothed_over_others, LABELS, SMOOTHING,
                                         "over all 7 classes in torch where JAX has one over the 6 others"),
    "two weights exchanged": (torch_focal, lambda x, y: focal(x, y, 0.75),
                              (2 * STEP[0], RNG.integers(0, 2, (4, 8)).astype(float)), "constant", "0.25 and 0.75"),
    "a temperature, which is no scale of attention": (lambda x: F.log_softmax(x @ x.T / 2, -1),
                                                      lambda x: jax.nn.log_softmax(x @ x.T / 4), STEP[:1], "constant",
                                                      "4 in JAX where torch has 2 (div)"),
    "a running variance over n": (torch_batch_norm, batch_norm, IMAGE[:1], "default argument: ddof",
                                  "a running variance that divides by n - 1 in torch"),
    "an exponential left out": (lambda a, s: s.exp() * a.tanh(), lambda a, s: s * jnp.tanh(a), (STEP[0], np.array(1.3)),
                                "another formula: activation", "identity"),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs", "cause", "text"), NAMED.values(), ids=NAMED)
def test_a_fault_is_named(theirs, mine, inputs, cause, text):
    (cell,) = parity.compare(theirs, mine, inputs, **FORWARD).cells
    assert cell.verdict == "differs"
    assert cell.diagnosis.cause == cause, cell.diagnosis
    assert text in cell.diagnosis.text, cell.diagnosis


def optax_smoothed(x, y):
    targets = optax.smooth_labels(jax.nn.one_hot(y, x.shape[-1], dtype=x.dtype), 0.1)
    return optax.softmax_cross_entropy(x, targets).mean()


RIGHT = {
    "L2": (torch_made("Adam", lr=1e-2, weight_decay=0.1), optax_steps(COUPLED), STEP),
    "Nesterov": (NESTEROV, OPTAX_NESTEROV, STEP),
    "RMSprop": (torch_made("RMSprop", lr=1e-2), optax_steps(optax.rmsprop(1e-2, decay=0.99, eps_in_sqrt=False)), STEP),
    "running variance": (torch_batch_norm, lambda x: batch_norm(x, ddof=1), IMAGE[:1]),
    "smoothing": (torch_smoothed, optax_smoothed, LABELS),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "mine", "inputs"), RIGHT.values(), ids=RIGHT)
def test_the_right_step_is_left_alone(theirs, mine, inputs):
    assert parity.compare(theirs, mine, inputs, **FORWARD).ok


def test_a_rule_that_rounds_to_float32_is_told_from_another_formula():
    report = parity.compare(
        lambda x: F.celu(x, 1.3), lambda x: jax.nn.celu(x, 1.3), (2 * STEP[0],), **{**FORWARD, "transforms": ["vjp"]}
    )
    (cell,) = report.cells
    assert cell.diagnosis.cause == "gradient rule", cell.diagnosis
    assert "torch's derivative is wrong" in cell.diagnosis.text
    assert "JAX's is right" in cell.diagnosis.text


def test_what_only_a_world_refuses_makes_no_other_function():
    report = parity.compare(
        torch_made("SGD", lr=0.1), optax_steps(optax.sgd(0.1)), STEP,
        **{**FORWARD, "worlds": ["torch-eager", "torch-compiled", "jax-jit"], "dtypes": ["float32"]},
    )  # fmt: skip
    assert [cell.world for cell in report.failed] == ["torch-compiled"]
    first = str(report).splitlines()[0]
    assert first.endswith(": the same function at ordinary numbers; unsupported in torch-compiled"), first
