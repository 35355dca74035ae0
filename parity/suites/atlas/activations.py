"""Activations: torch.nn.functional against jax.nn."""

import jax
import torch
import torch.nn.functional as F

from parity.suites.atlas.entry import entry, group, matrix

PAIRS = group(
    "activations",
    [
        entry("relu", lambda x: F.relu(x), lambda x: jax.nn.relu(x), matrix),
        entry("relu6", lambda x: F.relu6(x), lambda x: jax.nn.relu6(x), matrix),
        entry(
            "leaky_relu",
            lambda x: F.leaky_relu(x),
            lambda x: jax.nn.leaky_relu(x),
            matrix,
            why=("At 0 torch takes the slope of the negative side (0.01), JAX that of the positive side (1)."),
            where=[("vjp", "zeros"), ("vjp", "kinks")],
            docs=("torch.nn.functional.leaky_relu", "jax.nn.leaky_relu"),
        ),
        entry("elu", lambda x: F.elu(x), lambda x: jax.nn.elu(x), matrix),
        entry("selu", lambda x: F.selu(x), lambda x: jax.nn.selu(x), matrix),
        entry("celu", lambda x: F.celu(x), lambda x: jax.nn.celu(x), matrix),
        entry(
            "gelu",
            lambda x: F.gelu(x),
            lambda x: jax.nn.gelu(x),
            matrix,
            why=(
                "torch computes the exact function by erf (approximate='none'), JAX its approximation by "
                "tanh (approximate=True); say approximate on either side."
            ),
            where=[("*", "random"), ("*", "ties"), ("*", "kinks")],
            docs=("torch.nn.functional.gelu", "jax.nn.gelu"),
        ),
        entry(
            "gelu, approximate alike",
            lambda x: F.gelu(x, approximate="tanh"),
            lambda x: jax.nn.gelu(x, approximate=True),
            matrix,
        ),
        entry("gelu, exact alike", lambda x: F.gelu(x), lambda x: jax.nn.gelu(x, approximate=False), matrix),
        entry("silu", lambda x: F.silu(x), lambda x: jax.nn.silu(x), matrix),
        entry("mish", lambda x: F.mish(x), lambda x: jax.nn.mish(x), matrix),
        entry("softplus", lambda x: F.softplus(x), lambda x: jax.nn.softplus(x), matrix),
        entry("sigmoid", lambda x: torch.sigmoid(x), lambda x: jax.nn.sigmoid(x), matrix),
        entry("log_sigmoid", lambda x: F.logsigmoid(x), lambda x: jax.nn.log_sigmoid(x), matrix),
        entry("tanh", lambda x: torch.tanh(x), lambda x: jax.nn.tanh(x), matrix),
        entry(
            "hard_tanh",
            lambda x: F.hardtanh(x),
            lambda x: jax.nn.hard_tanh(x),
            matrix,
            why=("At -1 and 1, where the function bends, torch has the gradient 0 and JAX 1."),
            where=[("vjp", "ties"), ("vjp", "kinks")],
            docs=("torch.nn.functional.hardtanh", "jax.nn.hard_tanh"),
        ),
        entry(
            "hard_sigmoid",
            lambda x: F.hardsigmoid(x),
            lambda x: jax.nn.hard_sigmoid(x),
            matrix,
            why=(
                "torch multiplies the gradient by 1/6 rounded to float32, in float64 as well: it is off "
                "by 5e-9 there. In float32 the two agree."
            ),
            where=[("vjp", "*"), ("jvp", "*"), ("gradient-per-copy", "*")],
            docs=("torch.nn.functional.hardsigmoid", "jax.nn.hard_sigmoid"),
        ),
        entry("hard_swish", lambda x: F.hardswish(x), lambda x: jax.nn.hard_swish(x), matrix),
        entry("soft_sign", lambda x: F.softsign(x), lambda x: jax.nn.soft_sign(x), matrix),
        entry("softmax", lambda x: F.softmax(x, -1), lambda x: jax.nn.softmax(x), matrix),
        entry("log_softmax", lambda x: F.log_softmax(x, -1), lambda x: jax.nn.log_softmax(x), matrix),
        entry("glu", lambda x: F.glu(x), lambda x: jax.nn.glu(x), matrix),
    ],
)
