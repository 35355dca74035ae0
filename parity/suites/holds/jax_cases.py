"""Masked layers of JAX, held, in compiled steps of optax's optimizers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import maskedlinear_jax as mj
from maskedlinear_core.masks import Mask
from parity.suites.holds.cases import DECAY, IN, OUT, STEPS, Case, Hold, data, judge, masks


def cases(device: str, hold: Hold = mj.hold_frozen) -> Iterator[tuple[str, Case]]:
    """Yield the cases by name: compiled steps of optax's optimizers, of both types of weights.

    Args:
        device: "cpu" or "cuda".
        hold: Takes an optimizer and masks.
    """
    optimizers = {
        "adamw": optax.adamw(1e-2, weight_decay=DECAY),
        "sgd": optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(1e-2, momentum=0.9)),
        "lion": optax.lion(1e-2, weight_decay=DECAY),
        "adafactor": optax.adafactor(1e-2, weight_decay_rate=DECAY),
    }
    place = jax.devices("cpu" if device == "cpu" else "gpu")[0]

    def trained(mask: Mask, optimizer: Any, dtype: str) -> None:
        with jax.default_device(place):
            layer = mj.MaskedLinear(IN, OUT, False, grad_mask=mask, seed=0)
            layer = layer.replace(weight=layer.weight.astype(dtype))
            before = np.asarray(layer.weight.astype("float32"))
            learned, rest = mj.partition(layer)
            held = hold(optimizer, mj.grad_masks(layer))
            moments = held.init(learned)
            x, y = (jnp.asarray(one) for one in data())

            def loss(learned: Any) -> Any:
                return ((mj.combine(learned, rest)(x.astype(dtype)).astype("float32") - y) ** 2).mean()

            @jax.jit
            def step(learned: Any, moments: Any) -> Any:
                updates, moments = held.update(jax.grad(loss)(learned), moments, learned)
                return optax.apply_updates(learned, updates), moments

            for _ in range(STEPS):
                learned, moments = step(learned, moments)
            judge(before, np.asarray(mj.combine(learned, rest).weight.astype("float32")), mask)

    for (kind, mask), (name, optimizer), dtype in itertools.product(
        masks().items(), optimizers.items(), ("float32", "bfloat16")
    ):
        yield f"optax.{name}, {dtype}, {kind}", lambda a=(mask, optimizer, dtype): trained(*a)  # type: ignore[misc]
