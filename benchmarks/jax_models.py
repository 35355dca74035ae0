"""Whole models in JAX, each way to learn a part of them as its users write it. Twin of torch_models.py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import maskedlinear_jax as mj
from benchmarks.jax_rivals import DTYPES
from benchmarks.model_shapes import GENERATED, Shape, Way

RATE = 1e-4


class Parts(NamedTuple):
    """A linear layer: what learns of it, and what does not."""

    learned: Any
    rest: Any


Call = Callable[[Any, Any, Array], Array]


class Others(NamedTuple):
    """What is no linear layer of a block: norms, a table of tokens, a head."""

    norms: list[tuple[Array, Array]]
    table: Array | None
    head: Array | None


def network(shape: Shape, linears: Sequence[Callable[[Array], Array]], others: Others, x: Array, cache: Any) -> Any:
    """Run a transformer: BERT's (norms after, GELU), or Llama's (norms before, rotation, SwiGLU).

    Args:
        shape: Of the model.
        linears: The layers, in the order in which they are called.
        others: The rest.
        x: Vectors (batch, length, width), or tokens (batch, length).
        cache: None, or the place of the first token and the keys and values of all layers up to there.

    Returns:
        Vectors, or logits; and the cache, if there is one.
    """
    each, start, kept = iter(linears), 0 if cache is None else cache[0], []
    x = x if others.table is None else others.table[x]
    for layer in range(shape.layers):
        first, second = others.norms[2 * layer : 2 * layer + 2]
        y = _rms(x, first) if shape.tokens else x
        q, k, v = (_split(next(each)(y), shape.heads) for _ in "qkv")
        if shape.tokens:
            q, k = _rotate(q, start), _rotate(k, start)
        if cache is not None:
            k, v = (
                jax.lax.dynamic_update_slice(old, new, (0, 0, start, 0))
                for old, new in zip(cache[1][layer], (k, v), strict=True)
            )
            kept.append((k, v))
        scores = q @ k.swapaxes(2, 3) / q.shape[-1] ** 0.5
        if shape.tokens:
            before = jnp.arange(k.shape[2])[None] <= start + jnp.arange(q.shape[2])[:, None]
            scores = jnp.where(before, scores, -jnp.inf)
        mixed = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(*x.shape)
        x = x + next(each)(mixed)
        if shape.tokens:
            y = _rms(x, second)
            gate, up = next(each)(y), next(each)(y)
            x = x + next(each)(jax.nn.silu(gate) * up)
        else:
            x = _layer_norm(x, first)
            hidden = jax.nn.gelu(next(each)(x), approximate=False)
            x = _layer_norm(x + next(each)(hidden), second)
    x = x if others.head is None else x @ others.head.T
    return x if cache is None else (x, (start + q.shape[2], kept))


def _split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _rotate(x: Array, start: Any) -> Array:
    half = x.shape[-1] // 2
    angles = (start + jnp.arange(x.shape[-2]))[:, None] / 10000 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _rms(x: Array, norm: tuple[Array, Array]) -> Array:
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * norm[0]


def _layer_norm(x: Array, norm: tuple[Array, Array]) -> Array:
    return jax.nn.standardize(x, epsilon=1e-5) * norm[0] + norm[1]


class Program:
    """A model that learns in some way, ready to be stepped, run and weighed.

    Args:
        shape: Of the model.
        way: How it learns.
        how: "jit".
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16", of all weights and of vectors that go in.
    """

    def __init__(self, shape: Shape, way: Way, how: str, device: str = "cpu", dtype: str = "float32") -> None:
        self.shape, self.way, self.device, self.dtype = shape, way, device, DTYPES[dtype]
        plain, others = self._weights()
        begun = time.perf_counter()
        parts = [_parts(way, w, b) for w, b in plain]
        jax.block_until_ready([part for part in parts if isinstance(part, Array)])
        self.seconds = {"conversion": time.perf_counter() - begun}
        self.call = _CALLS[way.form]
        self.learned: Any = [part.learned for part in parts]
        self.rest: Any = [part.rest for part in parts], others
        if way.form == "full":
            self.learned, self.rest = (self.learned, others), ([None] * len(parts), None)
        self.optimizer: optax.GradientTransformation = optax.adamw(RATE)
        if way.form == "hook":
            self.optimizer = optax.chain(optax.stateless(_masked_updates(self.rest[0])), self.optimizer)
        if way.form == "masked":
            self.optimizer = mj.hold_frozen(self.optimizer, mj.grad_masks(_layers(self.learned, self.rest[0])))
        self.data = self._numbers(shape.batch)
        self.moments = self.optimizer.init(self.learned)
        self.learned = jax.tree.map(jnp.copy, self.learned)  # each step gives them away
        begun = time.perf_counter()
        lowered = jax.jit(self._step, donate_argnums=(0, 1)).lower(self.learned, self.moments, self.rest, self.data)
        self.compiled = lowered.compile()
        self.step()
        self.seconds["first step"] = time.perf_counter() - begun

    def step(self) -> None:
        """Do a step of AdamW."""
        self.learned, self.moments = self.compiled(self.learned, self.moments, self.rest, self.data)
        jax.block_until_ready(self.learned)

    def loss(self, learned: Any, rest: Any, x: Array) -> Array:
        """Return the mean square of the output, or the loss of predicting the next token."""
        y = self._run(learned, rest, x, None)
        if not self.shape.tokens:
            return (y * y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(y[:, :-1], x[:, 1:]).mean()

    def forward(self, batch: int) -> Callable[[], object]:
        """Return what runs the model without gradients; ours is merged for it."""
        x, (call, learned, rest) = self._numbers(batch), self._merged()
        run = jax.jit(lambda learned, rest, x: self._run(learned, rest, x, None, call))
        return lambda: run(learned, rest, x).block_until_ready()

    def generate(self) -> Callable[[], Array]:
        """Return what gives the tokens of a greedy generation with a cache."""
        shape, (call, learned, rest) = self.shape, self._merged()
        empty = jnp.zeros((1, shape.heads, GENERATED, shape.width // shape.heads), self.dtype)

        @jax.jit
        def run(learned: Any, rest: Any, token: Array) -> Array:
            def one(state: Any, _: None) -> Any:
                token, cache = state
                logits, cache = self._run(learned, rest, token, cache, call)
                token = logits[:, -1:].argmax(-1)
                return (token, cache), token[:, 0]

            return jax.lax.scan(one, (token, (0, [(empty, empty)] * shape.layers)), None, GENERATED)[1].T

        return lambda: run(learned, rest, self.data[:1, :1]).block_until_ready()

    def first_gradient(self) -> np.ndarray:
        """Return the gradient of the first layer's weight at the start, of the weight's shape, in float32."""
        fresh = Program.__new__(Program)
        fresh.shape, fresh.way, fresh.call, fresh.device, fresh.dtype = (
            self.shape, self.way, self.call, self.device, jnp.float32
        )  # fmt: skip
        plain, others = fresh._weights()
        parts = [_parts(self.way, w, b) for w, b in plain]
        learned: Any = [part.learned for part in parts]
        rest: Any = [part.rest for part in parts], others
        if self.way.form == "full":
            learned, rest = (learned, others), ([None] * len(parts), None)
        with jax.default_matmul_precision("highest"):  # not TF32
            gradient = jax.jit(jax.grad(fresh.loss))(learned, rest, fresh._numbers(self.shape.batch))
        if self.way.form == "hook":
            gradient = _masked_updates(rest[0])(gradient, None)
        first = (gradient[0] if self.way.form == "full" else gradient)[0]
        shape = next(self.shape.linears())[1]
        if self.way.form == "packed":
            return np.asarray(mj.unpack(jnp.zeros(shape), first.values, grad_mask=self.way.mask(shape)))
        if self.way.form == "delta":
            return np.asarray(jnp.zeros(shape).ravel().at[rest[0][0][2]].add(first).reshape(shape))
        return np.asarray(first.weight if self.way.form == "masked" else first[0])

    def weighed(self) -> dict[str, int]:
        """Return bytes: XLA's temporary memory of a step, the optimizer's state, a checkpoint."""
        plan = self.compiled.memory_analysis()
        assert plan is not None
        learned = sum(leaf.nbytes for leaf in jax.tree.leaves(self.learned))
        if self.way.form in ("masked", "packed"):
            learned = len(mj.packed_bytes(_layers(self.learned, self.rest[0])))
        return {
            "temporary": plan.temp_size_in_bytes,
            "optimizer state": sum(leaf.nbytes for leaf in jax.tree.leaves(self.moments) if leaf.ndim),
            "checkpoint": learned,
        }

    def trained(self) -> int:
        """Return how many numbers learn."""
        if self.way.form in ("masked", "one-liner", "hook"):
            return sum(round(self.way.mask(one).density(one) * one[0] * one[1]) for _, one in self.shape.linears())
        return sum(leaf.size for leaf in jax.tree.leaves(self.learned))

    def _weights(self) -> Any:
        return _placed(weights(self.shape), self.device, self.dtype)

    def _numbers(self, batch: int) -> Any:
        return _placed(jnp.asarray(numbers(self.shape, batch)), self.device, self.dtype)

    def _run(self, learned: Any, rest: Any, x: Array, cache: Any, call: Call | None = None) -> Any:
        parts, others = rest
        if others is None:
            learned, others = learned
        linears = [partial(call or self.call, *part) for part in zip(learned, parts, strict=True)]
        return network(self.shape, linears, others, x, cache)

    def _step(self, learned: Any, moments: Any, rest: Any, x: Array) -> Any:
        gradient = jax.grad(self.loss)(learned, rest, x)
        updates, moments = self.optimizer.update(gradient, moments, learned)
        return optax.apply_updates(learned, updates), moments

    def _merged(self) -> tuple[Call, Any, Any]:
        if self.way.form != "packed":
            return self.call, jax.tree.map(jnp.copy, self.learned), self.rest  # a step gives its own away
        layers = mj.merged(_layers(jax.tree.map(jnp.copy, self.learned), self.rest[0]))
        return _plain, [(one.weight, one.bias) for one in layers], ([None] * len(layers), self.rest[1])


def _placed(tree: Any, device: str, dtype: Any) -> Any:
    place = jax.devices("cpu" if device == "cpu" else "gpu")[0]
    floats = jax.tree.map(lambda one: one.astype(dtype) if jnp.issubdtype(one.dtype, jnp.floating) else one, tree)
    return jax.device_put(floats, place)


def _layers(learned: Any, rest: Any) -> list[Any]:
    return [mj.combine(*part) for part in zip(learned, rest, strict=True)]


def _parts(way: Way, w: Array, b: Array | None) -> Parts:
    if way.form == "full":
        return Parts((w, b), None)
    if way.form == "lora":
        rng = np.random.default_rng(0)
        down = jnp.asarray(rng.standard_normal((way.rank, w.shape[1]), np.float32) / w.shape[1] ** 0.5, w.dtype)
        return Parts((down, jnp.zeros((w.shape[0], way.rank), w.dtype)), (w, b))
    mask = way.mask((w.shape[0], w.shape[1]))
    if way.form in ("masked", "packed"):
        form = mj.MaskedLinear if way.form == "masked" else mj.PackedLinear
        plain = mj.MaskedLinear(w.shape[1], w.shape[0], b is not None, grad_mask=mask, seed=0)
        plain = plain.replace(weight=w, bias=b)
        nothing = None if b is None else np.zeros(b.shape, bool)
        return Parts(*mj.partition(form.from_linear(plain, grad_mask=mask, bias_mask=nothing)))
    array = mask.to_array((w.shape[0], w.shape[1]))
    if way.form == "delta":
        index = np.flatnonzero(array).astype(np.int32)
        return Parts(jnp.zeros(index.shape, w.dtype), (w, b, jnp.asarray(index)))
    return Parts((w,), (jnp.asarray(array), b))


def _plain(learned: Any, rest: Any, x: Array) -> Array:
    w, b = learned
    return x @ w.T if b is None else x @ w.T + b


def _ours(learned: Any, rest: Any, x: Array) -> Array:
    return mj.combine(learned, rest)(x)


def _one_liner(learned: Any, rest: Any, x: Array) -> Array:
    (w,), (mask, b) = learned, rest
    return _plain((jnp.where(mask, w, jax.lax.stop_gradient(w)), b), None, x)


def _hooked(learned: Any, rest: Any, x: Array) -> Array:
    return _plain((learned[0], rest[1]), None, x)


def _delta(learned: Any, rest: Any, x: Array) -> Array:
    w, b, index = rest
    return _plain((w.reshape(w.size).at[index].add(learned).reshape(w.shape), b), None, x)


def _lora(learned: Any, rest: Any, x: Array) -> Array:
    down, up = learned
    return _plain(rest, None, x) + (x @ down.T) @ up.T


_CALLS: dict[str, Call] = {
    "full": _plain, "masked": _ours, "packed": _ours, "one-liner": _one_liner, "hook": _hooked, "delta": _delta,
    "lora": _lora,
}  # fmt: skip


def _masked_updates(rest: Any) -> Callable[[Any, Any], Any]:
    return lambda updates, _: [(jnp.where(part[0], one[0], 0),) for one, part in zip(updates, rest, strict=True)]


def weights(shape: Shape) -> tuple[list[tuple[Array, Array | None]], Others]:
    """Return the weights and biases of the linear layers, and the rest, the same in every run."""
    rng = np.random.default_rng(1)

    def draw(*sizes: int) -> Array:
        return jnp.asarray(rng.uniform(-1, 1, sizes).astype(np.float32) / sizes[-1] ** 0.5)

    linears = [(draw(*one), None if shape.tokens else jnp.zeros(one[0])) for _, one in shape.linears()]
    norms = [(jnp.ones(shape.width), jnp.zeros(shape.width)) for _ in range(2 * shape.layers)]
    table = draw(shape.tokens, shape.width) if shape.tokens else None
    return linears, Others(norms, table, draw(shape.tokens, shape.width) if shape.tokens else None)


def numbers(shape: Shape, batch: int) -> np.ndarray:
    """Return what goes into a model."""
    rng = np.random.default_rng(0)
    if shape.tokens:
        return rng.integers(0, shape.tokens, (batch, shape.length)).astype(np.int32)
    return rng.standard_normal((batch, shape.length, shape.width), np.float32)


def threads() -> int:
    """Return how many threads a product uses at most."""
    return len(os.sched_getaffinity(0))
