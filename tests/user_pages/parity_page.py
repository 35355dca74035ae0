# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportMissingTypeStubs=false
# (JAX, Flax and Equinox leave types open, and optax ships none.)
"""A page of a user's code of parity, checked by `mypy --strict` and pyright, and run (tests/test_typing.py)."""

from pathlib import Path
from typing import assert_type

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jax import Array
from torch import Tensor

import parity
from parity.models import Dump, Inputs
from parity.models.weighing import Compared


def in_torch(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x, threshold=40)  # by default it is x beyond 20


def in_jax(x: Array) -> Array:
    return jnp.logaddexp(x, 0)


def main(folder: Path) -> float:
    x = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    report: parity.Report = parity.compare(in_torch, in_jax, (x,), quick=True)
    text: str = str(report)
    assert report.ok, text
    parity.assert_parity(torch.sin, jnp.sin, (x,), quick=True)
    pair: parity.Pair = parity.Pair(
        in_torch, in_jax, (x,), name="softplus", transforms=("forward",), worlds=("torch-eager", "jax-eager")
    )
    also: parity.Report = parity.compare_pair(pair, quick=True)

    first, second = torch.nn.Linear(3, 2), nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    weights: parity.WeightMap = parity.map_weights(first, second)
    whole: parity.ModelReport = parity.compare_models(first, second, (x,))
    wrong = whole.first
    assert_type(whole.weights, parity.WeightMap | None)
    said: str = "" if wrong is None or wrong.diagnosis is None else wrong.diagnosis.text
    assert whole.ok == (wrong is None), said
    whole.save(folder / "report.html")
    weights.save(folder / "weights.toml")
    loaded: nnx.Linear = parity.WeightMap.load(folder / "weights.toml").load_into_jax(first, second)
    parity.assert_same_model(first, loaded, Inputs(torch=(x,), jax=(x,)))
    parity.dump_model(first, (x,), folder / "of_torch")
    assert parity.compare_models(Dump.read(folder / "of_torch"), loaded, mode="eval", perturb=False, seed=1).ok
    rounded = parity.Tolerance("the port stores its tables in bfloat16", rtol=2**-8)
    looser: parity.Report = parity.compare(in_torch, in_jax, (x,), tolerance=rounded, quick=True)
    rows = [assert_type(one, Compared) for one in (*whole.gradients, *whole.training)]
    assert all(one.verdict in ("identical", "within bound", "not judged") for one in rows)
    stepped = parity.compare_models(first, loaded, (x,), optimizer=("sgd", {"lr": 0.1}), steps=2).steps
    assert stepped is not None
    assert_type(stepped.distances, list[float])
    told = (one for one in report.failed if one.diagnosis is not None)
    assert not [f"{assert_type(one, parity.Record).verdict}: {one.cell.world}" for one in told]
    print(weights, whole, looser)
    return float(jax.device_count() * bool(also.ok))
