"""LSTM and GRU: the gates, and the two biases that are one sum in JAX. The oracle is the cell itself."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity

KEY = jax.random.key(0)
I, H = 3, 4


def _nnx(cell: Any) -> tuple[Any, Any]:
    return cell, lambda model, carry, x: model(carry, x)[1]


def _linen(cell: Any, carry: Any) -> tuple[Any, Any]:
    return (cell, cell.init(KEY, carry, jnp.zeros(I))), lambda model, carry, x: model[0].apply(model[1], carry, x)[1]


CELLS = {
    "lstm equinox": (nn.LSTM, lambda: (eqx.nn.LSTMCell(I, H, key=KEY), lambda m, c, x: m(x, (c[1], c[0]))[0])),
    "lstm nnx": (nn.LSTM, lambda: _nnx(nnx.LSTMCell(I, H, rngs=nnx.Rngs(0)))),
    "lstm nnx fused": (nn.LSTMCell, lambda: _nnx(nnx.OptimizedLSTMCell(I, H, rngs=nnx.Rngs(0)))),
    "lstm linen": (nn.LSTMCell, lambda: _linen(linen.OptimizedLSTMCell(H), (jnp.zeros(H), jnp.zeros(H)))),
    "gru equinox": (nn.GRU, lambda: (eqx.nn.GRUCell(I, H, key=KEY), lambda m, c, x: m(x, c))),
    "gru linen": (nn.GRUCell, lambda: _linen(linen.GRUCell(H), jnp.zeros(H))),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_computes_the_same_with_loaded_weights(name):
    make, make_jax = CELLS[name]
    torch.manual_seed(0)
    model, (other, call) = make(I, H), make_jax()
    found = parity.map_weights(model, other)
    assert not found.unpaired, found.unpaired.lines()
    assert not found.ambiguous
    loaded = found.load_into_jax(model, other)
    assert found.check(model, loaded) == ()
    x, h, c = (np.random.default_rng(1).normal(size=(3, max(I, H))).astype(np.float32)[k] for k in range(3))
    x, lstm = x[:I], "lstm" in name
    state = [torch.from_numpy(value)[None] for value in ((h, c) if lstm else (h,))]
    if isinstance(model, nn.RNNBase):
        given = tuple(state) if lstm else state[0]
        expected = model(torch.from_numpy(x)[None], given)[0][0]
    else:
        out = model(torch.from_numpy(x)[None], tuple(state) if lstm else state[0])
        expected = (out[0] if lstm else out)[0]
    got = call(loaded, (jnp.asarray(c), jnp.asarray(h)) if lstm else jnp.asarray(h), jnp.asarray(x))
    assert np.allclose(np.asarray(got), expected.detach().numpy(), atol=1e-6)


def test_layers_and_directions_are_paired_in_order():
    class Port(nnx.Module):
        def __init__(self) -> None:
            sizes = (I, I, 2 * H, 2 * H)
            self.cells = nnx.List([nnx.OptimizedLSTMCell(size, H, rngs=nnx.Rngs(0)) for size in sizes])

    found = parity.map_weights(nn.LSTM(I, H, num_layers=2, bidirectional=True), Port())
    homes = {pair.torch[0]: (pair.jax[0], pair.evidence) for pair in found.pairs}
    assert homes["weight_ih_l1_reverse"] == ("cells.3.dense_i.kernel", "order of definition")
    assert not found.unpaired


def test_a_bias_that_nnx_cannot_express_is_named():
    found = parity.map_weights(nn.GRU(I, H), nnx.GRUCell(I, H, rngs=nnx.Rngs(0)))
    assert found.unpaired.lines() == [
        "only in torch: bias_hh_l0[8:12]: nnx.GRUCell has no bias of the new gate's hidden part: this one cannot be"
        " expressed in it (flax #5594)"
    ]


def test_a_map_of_a_cell_is_read_back(tmp_path):
    model, port = nn.LSTM(I, H), eqx.nn.LSTMCell(I, H, key=KEY)
    found = parity.map_weights(model, port)
    found.save(tmp_path / "map.toml")
    again = parity.WeightMap.load(tmp_path / "map.toml")
    assert again.check(model, found.load_into_jax(model, port)) == ()
