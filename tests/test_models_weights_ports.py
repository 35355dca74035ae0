"""Ports in other projects' conventions: every weight finds its own by itself, and loading makes the two equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import parity
from parity.models.weights import TorchTree, jax_tree
from tests.ports_by_others import PORTS


@pytest.fixture(params=PORTS, ids=lambda maker: maker.__name__, scope="module")
def port(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, str]]:
    """Return a port whose torch weights are all different, so that no mistake is hidden."""
    model, jax_model, expected = request.param()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model, jax_model, expected


def test_every_weight_is_paired(port):
    model, jax_model, expected = port
    found = parity.map_weights(model, jax_model)
    assert not found.unpaired, found.unpaired.lines()
    assert not found.ambiguous, found.ambiguous
    for name, path in expected.items():
        assert path in [pair.jax[0] for pair in found.pairs if pair.torch[0] == name], f"{name}: {found}"


def test_numbers_of_layers_agree(port):
    """Where both sides number their layers plainly, layer i is paired with layer i."""
    model, jax_model, _ = port
    for pair in parity.map_weights(model, jax_model).pairs:
        ours = [int(part) for part in pair.torch[0].split(".") if part.isdecimal()]
        theirs = [int(part) for part in pair.jax[0].split(".") if part.isdecimal()]
        theirs += [] if pair.index is None else [pair.index]
        if len(ours) == len(theirs) == 1 and "layer" in pair.torch[0]:
            assert ours == theirs, pair


def test_loading_makes_them_equal_and_back(port):
    model, jax_model, _ = port
    found = parity.map_weights(model, jax_model)
    assert found.unequal
    before = jax_tree(jax_model).weights()
    loaded = found.load_into_jax(model, jax_model)
    assert all(np.array_equal(value, before[path]) for path, value in jax_tree(jax_model).weights().items())
    assert found.check(model, loaded) == ()
    assert parity.map_weights(model, loaded).ok
    values = TorchTree(model).weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found.load_into_torch(loaded, model)
    for name, value in TorchTree(model).weights().items():
        assert np.array_equal(value, values[name]), name


def test_a_map_is_read_back_as_it_was_written(port, tmp_path):
    model, jax_model, _ = port
    found = parity.map_weights(model, jax_model)
    found.save(tmp_path / "map.toml")
    again = parity.WeightMap.load(tmp_path / "map.toml")
    assert [repr(pair) for pair in again.pairs] == [repr(pair) for pair in found.pairs]
    assert again.check(model, again.load_into_jax(model, jax_model)) == ()
