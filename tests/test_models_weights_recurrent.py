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


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(I, H, num_layers=2, bidirectional=True), nn.LSTM(I, H)


def _cell(cell: str) -> dict[str, Any]:
    """Return the weights of a fused cell of Flax, whose sizes tell the layers apart."""
    size = 2 * H if "1" in cell else I
    normal = np.random.default_rng(len(cell)).standard_normal
    shapes = {"dense_i": {"kernel": (size, 4 * H)}, "dense_h": {"kernel": (H, 4 * H), "bias": (4 * H,)}}
    return {one: {own: normal(shape) for own, shape in arrays.items()} for one, arrays in shapes.items()}


def test_cells_of_a_sorted_dict_are_paired_by_their_names():
    """The backward cell and the decoder come first in a dict that JAX has sorted, and were taken for torch's first."""
    cells = ("encoder_bw_0", "encoder_bw_1", "encoder_fw_0", "encoder_fw_1")
    port = jax.tree.map(np.asarray, {name: _cell(name) for name in ("decoder", *cells)})
    found = parity.map_weights(TwoWays(), (lambda params, x: x, port))
    homes = {pair.torch[0]: pair.jax[0].split(".")[0] for pair in found.pairs if "weight_ih" in pair.torch[0]}
    told = {
        f"encoder_{way}_{k}": f"encoder.weight_ih_l{k}{end}"
        for way, end in (("fw", ""), ("bw", "_reverse"))
        for k in (0, 1)
    }
    assert {name: cell for cell, name in homes.items()} == told | {"decoder": "decoder.weight_ih_l0"}
    assert not found.unpaired


def test_cells_whose_names_say_nothing_are_left_open():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.upper, self.lower = nn.LSTM(I, H), nn.LSTM(I, H)

    port = jax.tree.map(np.asarray, {name: _cell(name) for name in ("apple", "pear")})
    found = parity.map_weights(Model(), (lambda params, x: x, port))
    assert not found.pairs
    assert "which cell of the other side" in str(found)


@pytest.mark.parametrize("turned", [False, True], ids=["as torch", "transposed"])
@pytest.mark.parametrize("biases", [("b",), ("b_ih", "b_hh")], ids=["one bias", "two"])
def test_a_cell_that_was_written_by_hand_is_paired(turned, biases):
    shapes = {"w_ih": (4 * H, I), "w_hh": (4 * H, H)}
    port = {name: np.zeros(shape[::-1] if turned else shape, np.float32) for name, shape in shapes.items()}
    port |= {name: np.zeros(4 * H, np.float32) for name in biases}
    model = nn.LSTM(I, H)
    made = parity.map_weights(model, (lambda params, x: x, {"cell": port}))
    assert not made.unpaired
    _, loaded = made.load_into_jax(model, (lambda params, x: x, {"cell": port}))
    want = {"w_ih": model.weight_ih_l0, "w_hh": model.weight_hh_l0}
    for name, weight in want.items():
        weight = weight.detach().numpy()
        assert np.array_equal(loaded["cell"][name], weight.T if turned else weight)
    assert np.allclose(sum(loaded["cell"][name] for name in biases), (model.bias_ih_l0 + model.bias_hh_l0).detach())
