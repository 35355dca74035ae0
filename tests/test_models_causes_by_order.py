"""Faults of a port's code between its layers, named; the right port beside them is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity

IDS = np.random.default_rng(0).integers(0, 30, (2, 7))
KEPT = np.arange(7)[None] < np.array([[5], [7]])
SIZE, HEADS, WORDS = 16, 4, 30


class Block(nn.Module):
    """Attention with a causal mask, and an MLP; norms first."""

    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.qkv, self.out = nn.Linear(SIZE, 3 * SIZE), nn.Linear(SIZE, SIZE)
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = (one.view(b, t, HEADS, -1).transpose(1, 2) for one in self.qkv(self.ln_1(x)).chunk(3, -1))
        mask = torch.tril(torch.ones(t, t, dtype=torch.bool))
        scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask, float("-inf"))
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, SIZE))
        return x + self.down(torch.relu(self.up(self.ln_2(x))))


class Decoder(nn.Module):
    """Two blocks."""

    def __init__(self):
        super().__init__()
        self.word, self.h = nn.Embedding(WORDS, SIZE), nn.ModuleList(Block() for _ in range(2))
        self.ln_f, self.head = nn.LayerNorm(SIZE), nn.Linear(SIZE, WORDS, bias=False)

    def forward(self, ids):
        x = self.word(ids)
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class BlockPort(nnx.Module):
    """The port of a block."""

    def __init__(self, fault, rngs):
        self.fault = fault
        self.ln_1, self.ln_2 = (nnx.LayerNorm(SIZE, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.qkv, self.out = nnx.Linear(SIZE, 3 * SIZE, rngs=rngs), nnx.Linear(SIZE, SIZE, rngs=rngs)
        self.up, self.down = nnx.Linear(SIZE, 2 * SIZE, rngs=rngs), nnx.Linear(2 * SIZE, SIZE, rngs=rngs)

    def attend(self, x):
        b, t, _ = x.shape
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        if self.fault == "keys first":
            q, k = k, q
        q, k, v = (one.reshape(b, t, HEADS, -1).transpose(0, 2, 1, 3) for one in (q, k, v))
        fill = {"a finite fill": -2.0, "no fill": 0.0}.get(self.fault, -jnp.inf)
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), q @ k.swapaxes(-1, -2) / 2, fill)
        y = jax.nn.softmax(scores, -2 if self.fault == "another axis" else -1) @ v
        y = y if self.fault == "heads put together" else y.transpose(0, 2, 1, 3)
        return self.out(y.reshape(b, t, SIZE))

    def __call__(self, x):
        if self.fault == "parallel":
            return x + self.attend(self.ln_1(x)) + self.down(nnx.relu(self.up(self.ln_2(x))))
        y = self.ln_1(x)
        x = (y if self.fault == "residual of the norm" else x) + self.attend(y)
        return x + self.down(nnx.relu(self.up((self.ln_1 if self.fault == "one norm" else self.ln_2)(x))))


class DecoderPort(nnx.Module):
    """The port; a fault is in the second block alone, or in the model."""

    def __init__(self, fault=""):
        rngs, self.fault = nnx.Rngs(0), fault
        self.word = nnx.Embed(WORDS, SIZE, rngs=rngs)
        self.h = nnx.List([BlockPort("", rngs), BlockPort(fault, rngs)])
        self.ln_f = nnx.LayerNorm(SIZE, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(SIZE, WORDS, use_bias=False, rngs=rngs)

    def __call__(self, ids):
        x, blocks = self.word(ids), list(self.h)
        if self.fault == "a block less":
            blocks = blocks[:1]
        if self.fault == "a block twice":
            blocks = [*blocks, blocks[1]]
        for block in blocks:
            x = block(x)
        if self.fault == "no last norm":
            return self.head(x)
        return self.head(blocks[-1].ln_2(x) if self.fault == "the norm of a block" else self.ln_f(x))


def loaded(model, port):
    return model, parity.map_weights(model, port).load_into_jax(model, port)


# fault: the module that is named, the cause, a part of the text
DECODER = {
    "keys first": ("h.1", "split order", "in the order 2, 1, 3"),
    "a finite fill": ("h.1", "mask fill", "-2"),
    "no fill": ("h.1", "mask fill", "0 in JAX where torch has -inf"),
    "another axis": ("h.1", "default argument: dim", "axis 3 in torch where JAX has axis 2"),
    "heads put together": ("h.1", "arrangement: reshaped", "a reshape alone"),
    "parallel": ("h.1", "another operand", "native_layer_norm"),
    "residual of the norm": ("h.1", "another operand", "what native_layer_norm returns"),
    "one norm": ("h.1", "modules shared", "ln_1 in the place of ln_2"),
    "a block less": ("", "module left out", "JAX does not run h.1"),
    "a block twice": ("", "module run twice", "JAX runs h.1 twice"),
    "no last norm": ("", "module left out", "JAX does not run ln_f"),
    "the norm of a block": ("", "modules shared", "h.1.ln_2 in the place of ln_f"),
}


@pytest.mark.parametrize(("fault", "path", "cause", "text"), [(k, *v) for k, v in DECODER.items()], ids=DECODER)
def test_the_fault_of_a_decoder_is_named(fault, path, cause, text):
    torch.manual_seed(0)
    first = parity.compare_models(*loaded(Decoder(), DecoderPort(fault)), (IDS,)).first
    assert (first.path, first.diagnosis.cause) == (path, cause), first.diagnosis
    assert text in first.diagnosis.text, first.diagnosis


class Encoder(nn.Module):
    """Attention over what is no pad, and two ways of pooling."""

    def __init__(self):
        super().__init__()
        self.word, self.norm, self.head = nn.Embedding(WORDS, SIZE), nn.LayerNorm(SIZE), nn.Linear(2 * SIZE, 4)
        self.q, self.k, self.v, self.o = (nn.Linear(SIZE, SIZE) for _ in range(4))

    def forward(self, ids, mask):
        x = self.word(ids)
        scores = (self.q(x) @ self.k(x).mT / 4.0).masked_fill(~mask[:, None], -1e9)
        x = self.norm(x + self.o(scores.softmax(-1) @ self.v(x)))
        m = mask[..., None].to(x.dtype)
        largest = x.masked_fill(~mask[..., None], -1e9).amax(1)
        return self.head(torch.cat([(x * m).sum(1) / m.sum(1), largest], -1))


class EncoderPort(nnx.Module):
    """The port."""

    def __init__(self, fault=""):
        rngs, self.fault = nnx.Rngs(0), fault
        self.word, self.norm = nnx.Embed(WORDS, SIZE, rngs=rngs), nnx.LayerNorm(SIZE, epsilon=1e-5, rngs=rngs)
        self.q, self.k, self.v, self.o = (nnx.Linear(SIZE, SIZE, rngs=rngs) for _ in range(4))
        self.head = nnx.Linear(2 * SIZE, 4, rngs=rngs)

    def __call__(self, ids, mask):
        x, fault = self.word(ids), self.fault
        scores = jnp.where(mask[:, None], self.q(x) @ self.k(x).mT / 4.0, -2.0 if fault == "a finite fill" else -1e9)
        x = self.norm(x + self.o(jax.nn.softmax(scores, -1) @ self.v(x)))
        m = mask[..., None].astype(x.dtype)
        mean = {"a mean of all": x.mean(1), "pads in the count": (x * m).sum(1) / x.shape[1]}.get(
            fault, (x * m).sum(1) / m.sum(1)
        )
        largest = {"zeros in the maximum": (x * m).max(1)}.get(fault, jnp.where(mask[..., None], x, -1e9).max(1))
        return self.head(jnp.concatenate([largest, mean] if fault == "other parts first" else [mean, largest], -1))


ENCODER = {
    "a finite fill": ("mask fill", "-2"),
    "a mean of all": ("mask: left out", "ones alone"),
    "pads in the count": ("mask: left out", "a count of all"),
    "zeros in the maximum": ("mask fill", "where JAX has 0"),
    "other parts first": ("concat order", "in the order 2, 1"),
}


@pytest.mark.parametrize(("fault", "cause", "text"), [(k, *v) for k, v in ENCODER.items()], ids=ENCODER)
def test_the_fault_of_an_encoder_with_pads_is_named(fault, cause, text):
    torch.manual_seed(0)
    first = parity.compare_models(*loaded(Encoder(), EncoderPort(fault)), (IDS, KEPT)).first
    assert (first.path, first.diagnosis.cause) == ("", cause), first.diagnosis
    assert text in first.diagnosis.text, first.diagnosis


def test_the_right_ports_are_left_alone():
    torch.manual_seed(0)
    assert parity.compare_models(*loaded(Decoder(), DecoderPort()), (IDS,)).ok
    assert parity.compare_models(*loaded(Encoder(), EncoderPort()), (IDS, KEPT)).ok


class Scaled(nn.Module):
    """Embeddings times the root of their width, then a norm."""

    def __init__(self):
        super().__init__()
        self.word, self.norm, self.head = nn.Embedding(WORDS, SIZE), nn.LayerNorm(SIZE), nn.Linear(SIZE, WORDS)

    def forward(self, ids):
        return self.head(self.norm(self.word(ids) * SIZE**0.5))


class ScaledPort(nnx.Module):
    """The port, whose embeddings are taken `times` a number; `bend` is a second fault, which has no name."""

    def __init__(self, times, bend, shift=0.0):
        rngs = nnx.Rngs(0)
        self.times, self.bend, self.shift = times, bend, shift
        self.word, self.head = nnx.Embed(WORDS, SIZE, rngs=rngs), nnx.Linear(SIZE, WORDS, rngs=rngs)
        self.norm = nnx.LayerNorm(SIZE, epsilon=1e-5, rngs=rngs)

    def __call__(self, ids):
        x = self.norm(self.word(ids) * self.times + self.shift)
        return self.head(jnp.sort(x + jnp.sin(x), axis=-1) if self.bend else x)


def scaled(*given):
    model, port = Scaled(), ScaledPort(*given)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return parity.compare_models(model, port, (IDS,))


def test_a_scale_of_embeddings_is_named():
    assert scaled(4.0, False).ok
    assert "1 in JAX where torch has 4 (mul)" in scaled(1.0, False).first.diagnosis.text


@pytest.mark.parametrize(("times", "said"), [(1.0, "0.25"), (0.5, "0.125"), (16.0, "4")])
def test_a_scale_beside_another_fault_is_named_as_a_factor_of_what_comes_next(times, said):
    text = scaled(times, True).first.diagnosis.text
    assert "of norm differs" in text
    assert f"it is {said} times torch's everywhere" in text


def test_what_is_no_factor_is_not_called_one():
    text = scaled(1.0, True, 0.5).first.diagnosis.text
    assert "of norm differs" in text
    assert "times torch's" not in text
