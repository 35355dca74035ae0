"""ResNets of Linen whose shortcut is made first or last: which norm is which, the order of the calls says."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import pytest
import torch
from torch import nn

import parity
from parity.models import Inputs
from tests.test_models_published import IMAGES, Block

INPUTS = Inputs(torch=(IMAGES,), jax=(IMAGES.transpose(0, 2, 3, 1),))


class PortBlock(linen.Module):
    features: int
    stride: int
    first: bool

    @linen.compact
    def __call__(self, x):
        def layer(x, size, stride):
            x = linen.Conv(self.features, (size, size), strides=stride, padding=size // 2, use_bias=False)(x)
            return linen.BatchNorm(use_running_average=True, epsilon=1e-5)(x)

        projected = self.stride > 1 or x.shape[-1] != self.features
        kept = layer(x, 1, self.stride) if projected and self.first else x
        y = layer(linen.relu(layer(x, 3, self.stride)), 3, 1)
        return linen.relu(y + (layer(x, 1, self.stride) if projected and not self.first else kept))


class Port(linen.Module):
    first: bool

    @linen.compact
    def __call__(self, x):
        for stride in (1, 2):
            x = PortBlock(6, stride, self.first)(x)
        return linen.Dense(4)(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


@pytest.mark.parametrize("mapped", [False, True], ids=["as made", "sorted"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_norms_go_with_the_convolution_that_they_are_made_after(first, mapped):
    torch.manual_seed(0)
    model = nn.Sequential(Block(3, 6, 1), Block(6, 6, 2), nn.Flatten(), nn.Linear(96, 4)).eval()
    port = Port(first)
    variables = port.init(jax.random.key(0), INPUTS.jax[0])
    variables = jax.tree.map(jnp.asarray, variables) if mapped else variables
    found = parity.map_weights(model, (port, variables), inputs=INPUTS)
    assert not found.ambiguous, found
    pairs = {pair.torch[0]: pair.jax[0] for pair in found.pairs}
    assert pairs["1.downsample.1.weight"] == f"params.PortBlock_1.BatchNorm_{0 if first else 2}.scale"
    assert pairs["1.bn2.weight"] == f"params.PortBlock_1.BatchNorm_{2 if first else 1}.scale"
    report = parity.compare_models(model, found.load_into_jax(model, (port, variables)), INPUTS, perturb=False)
    assert report.ok, str(report)


def test_blocks_that_are_made_the_other_way_round_keep_their_norms():
    """Of `second(first(x))` Linen makes the second block first."""

    class Nested(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = PortBlock(6, 2, True)(PortBlock(6, 1, True)(x))
            return linen.Dense(4)(x.transpose(0, 3, 1, 2).reshape(len(x), -1))

    model, port = nn.Sequential(Block(3, 6, 1), Block(6, 6, 2), nn.Flatten(), nn.Linear(96, 4)).eval(), Nested()
    found = parity.map_weights(model, (port, port.init(jax.random.key(0), INPUTS.jax[0])))
    pairs = {pair.torch[0]: pair.jax[0] for pair in found.pairs}
    assert pairs["0.downsample.1.weight"] == "params.PortBlock_1.BatchNorm_0.scale"
    assert pairs["1.bn1.weight"] == "params.PortBlock_0.BatchNorm_1.scale"


def test_without_a_run_a_sorted_dict_says_nothing():
    model = nn.Sequential(Block(3, 6, 1), Block(6, 6, 2), nn.Flatten(), nn.Linear(96, 4)).eval()
    port = Port(True)
    variables = jax.tree.map(jnp.asarray, port.init(jax.random.key(0), INPUTS.jax[0]))
    found = parity.map_weights(model, (port, variables))
    assert found.ambiguous
    assert "map_weights(..., inputs=...) sees in which order" in str(found)
