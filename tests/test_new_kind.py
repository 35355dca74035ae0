"""The recipe of CONTRIBUTING, "Add a mask kind": a kind with products of its own is made, run by the grid, and removed.

The kind: diagonals of the weight that wrap around. Diagonal d is the entries (r, (r + d) % I) of all rows r, so packed
values are of shape (diagonals, O).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import maskedlinear_jax
import maskedlinear_torch
from maskedlinear_core import masks
from maskedlinear_core.indices import as_index
from maskedlinear_core.masks import base
from maskedlinear_core.positions import Positions, Unread, all_or_nothing
from maskedlinear_jax import kinds as jax_kinds
from maskedlinear_jax.kinds.sums import sum_dtype as jax_sum_dtype
from maskedlinear_jax.kinds.sums import widened as jax_widened
from maskedlinear_torch import kinds as torch_kinds
from maskedlinear_torch.kinds.sums import flat, sum_dtype, widened
from parity.suites.masked_linear import cases, grid, selection

NAME = "wrapped diagonals"


class Diagonals(masks.Mask):
    """Step 1: the mask."""

    def __init__(self, index):
        self.index = as_index("diagonals", index)

    leaves = property(lambda self: self.index.leaves)
    static = property(lambda self: self.index.static)
    is_traced = property(lambda self: self.index.is_traced)

    def with_leaves(self, leaves):
        made = object.__new__(Diagonals)
        made.index = self.index.with_leaves(leaves)
        return made

    def _canonical(self, shape):
        numbers = self.index.positions("diagonals", shape[1])
        return Positions(NAME, (numbers,)) if numbers.size else all_or_nothing(False)

    def traced(self, shape):
        return None if self.index.is_traced_bool else Positions(NAME, (Unread("diagonals", self.index, shape[1]),))

    def to_array(self, shape):
        numbers = self.index.positions("diagonals", shape[1])
        return np.isin((np.arange(shape[1]) - np.arange(shape[0])[:, None]) % max(shape[1], 1), numbers)

    def packed(self, shape):
        return self

    def _same(self, other):
        return self.index.says_the_same(other.index)

    def __repr__(self):
        return f"diagonals({self.index!r})"


def diagonals(index):
    """Step 2: the constructor."""
    return Diagonals(index)


def torch_kind():
    """Step 3, torch."""

    @dataclass(frozen=True, eq=False)
    class TorchDiagonals(torch_kinds.Kind, name=NAME):
        numbers: torch.Tensor
        shape: tuple[int, int]

        @classmethod
        def from_positions(cls, found, arrays, shape, *, is_canonical):
            return cls(arrays[0], shape)

        @property
        def arrays(self):
            return (self.numbers,)

        def with_arrays(self, arrays):
            return type(self)(*arrays, self.shape)

        def weight_grad(self, g, kept):
            terms = widened(flat(g))[:, None, :] * widened(flat(kept))[:, self._columns()]
            return self.mask_values(terms.sum(0).to(sum_dtype(g)))

        def input_grad(self, g, values, in_features):
            terms = widened(flat(g))[:, None, :] * widened(self.mask_values(values))
            zeros = terms.new_zeros(terms.shape[0], in_features)
            sums = zeros.index_add(1, self._columns().reshape(-1), terms.reshape(terms.shape[0], -1))
            return sums.to(sum_dtype(g)).reshape(*g.shape[:-1], in_features)

        def apply(self, kept, values, out_features):
            terms = widened(flat(kept))[:, self._columns()] * widened(self.mask_values(values))
            return terms.sum(1).to(sum_dtype(kept)).reshape(*kept.shape[:-1], out_features)

        def to_dense(self, values, shape):
            placed = torch.where(self._at()[..., None] == torch.arange(shape[1]), values[..., None], 0)
            return placed.sum(0, dtype=values.dtype)

        def pack(self, weight):
            return self.mask_values(weight[torch.arange(self.shape[0]), self._columns()])

        def merge_into(self, weight, values):
            return torch.where(self.mask(weight), self.to_dense(values, self.shape), weight)

        def mask_values(self, values):
            return torch.where(self.numbers[:, None] < self.shape[1], values, 0)

        def values_shape(self, shape):
            return self.numbers.shape[0], shape[0]

        def mask(self, weight):
            return (self._at()[..., None] == torch.arange(self.shape[1])).any(0)

        def _columns(self):
            return (self.numbers[:, None] + torch.arange(self.shape[0])) % self.shape[1]

        def _at(self):
            # A number beyond the axis is nowhere.
            return torch.where(self.numbers[:, None] < self.shape[1], self._columns(), -1)


def jax_kind():
    """Step 3, JAX."""

    @partial(jax.tree_util.register_dataclass, data_fields=["numbers"], meta_fields=["shape"])
    @dataclass(frozen=True, eq=False)
    class JaxDiagonals(jax_kinds.Kind, name=NAME):
        numbers: jax.Array
        shape: tuple[int, int]

        @classmethod
        def from_positions(cls, found, arrays, shape, *, is_canonical):
            return cls(arrays[0], shape)

        def weight_grad(self, g, kept):
            g, kept = (array.reshape(-1, array.shape[-1]) for array in (g, kept))
            terms = jax_widened(g)[:, None, :] * jax_widened(kept)[:, self._columns()]
            return self.mask_values(terms.sum(0).astype(jax_sum_dtype(g)))

        def input_grad(self, g, values, in_features):
            line = g.reshape(-1, g.shape[-1])
            terms = jax_widened(line)[:, None, :] * jax_widened(self.mask_values(values))
            sums = jnp.zeros((line.shape[0], in_features), terms.dtype).at[:, self._columns()].add(terms)
            return sums.astype(jax_sum_dtype(g)).reshape(*g.shape[:-1], in_features)

        def apply(self, kept, values, out_features):
            line = kept.reshape(-1, kept.shape[-1])
            terms = jax_widened(line)[:, self._columns()] * jax_widened(self.mask_values(values))
            return terms.sum(1).astype(jax_sum_dtype(kept)).reshape(*kept.shape[:-1], out_features)

        def to_dense(self, values, shape):
            placed = jnp.where(
                self._at()[..., None] == jnp.arange(shape[1]), values[..., None], jnp.zeros_like(values[..., None])
            )
            return placed.sum(0, dtype=values.dtype)

        def pack(self, weight):
            return self.mask_values(weight[jnp.arange(self.shape[0]), self._columns()])

        def merge_into(self, weight, values):
            return jnp.where(self.mask(weight), self.to_dense(values, self.shape), weight)

        def mask_values(self, values):
            return jnp.where(jnp.asarray(self.numbers)[:, None] < self.shape[1], values, jnp.zeros_like(values))

        def values_shape(self, shape):
            return self.numbers.shape[0], shape[0]

        def mask(self, weight):
            return (self._at()[..., None] == jnp.arange(self.shape[1])).any(0)

        def _columns(self):
            return (jnp.asarray(self.numbers)[:, None] + jnp.arange(self.shape[0])) % self.shape[1]

        def _at(self):
            return jnp.where(jnp.asarray(self.numbers)[:, None] < self.shape[1], self._columns(), -1)


CASES = (
    cases.Case("diagonals", "diagonals", lambda s: diagonals([0, 2]), "a new kind", bias_mask="some", core=True),
    cases.Case("packed-diagonals", "diagonals", lambda s: diagonals([1, -1]), "a new kind, packed", packed=True),
)
"""Step 4."""


@pytest.fixture(scope="module")
def made():
    """The kind, in both twins and in the grid; afterwards nothing of it is left."""
    before = cases.CASES, list(base.KINDS)
    masks.register(Diagonals)
    torch_kind()
    jax_kind()
    cases.CASES += CASES
    cases.BY_ID.update({case.id: case for case in CASES})
    selection._combinations.cache_clear()
    yield
    cases.CASES, base.KINDS[:] = before
    for case in CASES:
        del cases.BY_ID[case.id]
    selection._combinations.cache_clear()
    for package in (torch_kinds, jax_kinds):
        del package.Kind.by_name[NAME]
        assert set(package.Kind.by_name) == {"submatrix", "blocks", "elements", "entries"}
    assert not [cell for cell in grid.plan() if "diagonals" in cell.pair]


WORLDS = {
    "torch-eager": ("vjp", "jvp", "modes-rr", "modes-fr", "vmap-mask"),
    "jax-jit": ("vjp", "jvp", "modes-rr", "vmap-mask"),
    "torch-compiled": ("backward",),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", [case.id for case in CASES])
def test_the_grid_runs_a_new_kind(made, case, world):
    cells = grid.plan(
        cases=[case], dtypes=["float32"], worlds=[world], transforms=WORLDS[world], precisions=["native"]
    )  # fmt: skip
    if not cells:
        assert (case, world) == ("packed-diagonals", "torch-compiled"), "this alone is no cell of the grid"
        return
    records = list(grid.run(cells))
    assert [(record.id, record.verdict, record.reason) for record in records if record.verdict != "identical"] == []
    assert len(records) == len(cells)


def test_positions_out_of_range_are_dropped_where_they_are_traced(made):
    x, w = np.ones((2, 6), np.float32), np.ones((4, 6), np.float32)
    want = diagonals([2]).to_array((4, 6)) * 2.0

    def loss(w, index):
        return maskedlinear_jax.masked_linear(jnp.asarray(x), w, grad_mask=diagonals(index)).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(jnp.asarray(w), jnp.array([2, 2, 7])), want)

    def torch_loss(w, index):
        return maskedlinear_torch.masked_linear(torch.from_numpy(x), w, grad_mask=diagonals(index)).sum()

    gradient = torch.func.vmap(torch.func.grad(torch_loss), (None, 0))
    np.testing.assert_array_equal(gradient(torch.from_numpy(w), torch.tensor([[2, 2, 7]]))[0], want)
