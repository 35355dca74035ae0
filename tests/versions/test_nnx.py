"""What the Flax NNX adapter must do in every version that pyproject.toml allows."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from problem import integers

import maskedlinear_jax.nnx as adapter
from maskedlinear_jax import columns, hold_frozen, rows

X = integers()[0]


class MLP(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(jax.nn.relu(self.first(x)))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_model_is_converted_trained_saved_and_loaded(packed, tmp_path):
    model = MLP(nnx.Rngs(0))
    before, want = np.asarray(model.first.kernel[...]), np.asarray(model(X))
    adapter.mask_linears(model, {"first": columns([1])}, packed=packed)
    np.testing.assert_array_equal(model(X), want)
    rule = optax.adamw(0.1, weight_decay=0.5)
    rule = rule if packed else hold_frozen(rule, adapter.grad_masks(model))
    optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(X) ** 2).sum())(model))

    step(model, optimizer)
    assert (np.asarray(model(X)) != want).any()
    if packed:
        adapter.save_packed(tmp_path / "model.safetensors", model)
        other = MLP(nnx.Rngs(0))
        adapter.load_packed(tmp_path / "model.safetensors", other)
        adapter.unmask_linears(other)
    adapter.unmask_linears(model)
    after = np.asarray(model.first.kernel[...])
    np.testing.assert_array_equal(np.delete(after, 1, 0), np.delete(before, 1, 0))
    assert (after[1] != before[1]).all()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_attention_and_an_embedding(packed):
    class Model(nnx.Module):
        def __init__(self):
            self.tokens = nnx.Embed(6, 4, rngs=nnx.Rngs(0))
            self.attend = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(1))

        def __call__(self, numbers):
            return self.tokens.attend(self.attend(self.tokens(numbers)))

    model, numbers = Model(), np.array([[0, 4, 5]])
    want = np.asarray(model(numbers))
    masks = {"tokens": rows([4, 5]), "attend.query": columns([1])}
    adapter.mask_linears(model, masks, packed=packed, freeze_others=True)
    np.testing.assert_array_equal(model(numbers), want)
    gradient = nnx.jit(nnx.grad(lambda model: (model(numbers) ** 2).sum()))(model)
    sizes = [leaf.size for leaf in jax.tree.leaves(gradient)]
    assert len(sizes) == 2
    assert not packed or sorted(sizes) == [4, 8]
