"""An exception that a worker raises arrives in the process that waits for it, with what it carries.

Where it cannot be unpickled, a pool of processes breaks and says nothing of the fault (as in webknossos-libs #1517,
cpython #103061).
"""

import copy
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import maskedlinear_torch
import parity
from maskedlinear_core.checks.storage import StorageError
from maskedlinear_core.frozen import FrozenMoved

X = (np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3),)


def two_functions():
    parity.assert_parity(torch.sin, jnp.cos, X, quick=True)


def two_models():
    jax_model = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.gelu)
    parity.assert_same_model(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.GELU()), jax_model, X)


def frozen():
    before, after = ({"weight": one} for one in (torch.zeros(2, 2), torch.ones(2, 2)))
    maskedlinear_torch.assert_frozen(before, after, {"weight": maskedlinear_torch.rows([0])})


def file():
    maskedlinear_torch.load_packed(b"nothing")


WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda error: pickle.loads(pickle.dumps(error))}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("call", "says"), [
    (two_functions, "different"), (two_models, "different"), (frozen, "2 frozen entries"), (file, "no checksum"),
])  # fmt: skip
def test_an_exception_of_ours_is_copied_whole(call, says, way):
    with pytest.raises((AssertionError, StorageError), match=says) as caught:
        call()
    error = caught.value
    again = WAYS[way](error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    if hasattr(error, "report"):
        assert str(again.report) == str(error.report)
        assert not again.report.ok
    if isinstance(error, FrozenMoved):
        assert again.moved == {"weight": 2}


def test_a_pool_of_processes_tells_what_moved():
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(FrozenMoved, match="2 frozen entries") as it,
    ):
        pool.submit(frozen).result(timeout=300)
    assert it.value.moved == {"weight": 2}


def test_a_map_of_weights_is_sent_with_all_its_transforms():
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.ConvTranspose2d(3, 2, 3), torch.nn.Linear(4, 2))
    other = nnx.List(
        [
            nnx.Conv(2, 3, (3, 3), rngs=(rngs := nnx.Rngs(0))),
            nnx.ConvTranspose(3, 2, (3, 3), rngs=rngs),
            nnx.Linear(4, 2, rngs=rngs),
        ]
    )
    found = parity.map_weights(model, other)
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found)
    weights = {name: one.detach().numpy() for name, one in model.state_dict().items()}
    for mine, theirs in zip(again.pairs, found.pairs, strict=True):
        for name, one in theirs.to_jax(weights).items():
            np.testing.assert_array_equal(mine.to_jax(weights)[name], one)
