"""Are the two one? Embeddings, every layer's masked gradient, and the fine-tuned weights, held by the harness.

Each framework's float32 run is held against its own float64 run. *Meaning*: the two float64 runs differ by no more
than float64 can make of it, which is the float32 error of the same program scaled by the ratio of the units, 2^-29
(times 16 for luck of the draw). *Precision*: the float32 errors of the two frameworks are within the harness' ratio.
"""

import jax
import jax.numpy as jnp
import jax_encoder
import jax_training
import numpy as np
import torch
import torch_encoder
import torch_training

import maskedlinear_torch as mt
from parity.verdict import compare as harness

UNITS = 2.0**-53 / 2.0**-24
LUCK = 16.0


def hold(name, torch_single, jax_single, torch_double, jax_double):
    """Return a row of the report for one array; raise Mismatch if the frameworks differ beyond rounding."""
    size = float(np.sqrt(np.mean(torch_double**2)))
    errors = {
        "torch": float(np.sqrt(np.mean((torch_single - torch_double) ** 2))) / (size * 2.0**-24),
        "jax": float(np.sqrt(np.mean((jax_single - jax_double) ** 2))) / (size * 2.0**-24),
    }
    bound = LUCK * UNITS * max(np.abs(torch_single - torch_double).max(), np.abs(jax_single - jax_double).max())
    harness.assert_within(name, jax_double, torch_double, np.full(torch_double.shape, bound))
    ratio = harness.assert_error_ratio(errors, torch_double.size)
    return {"name": name, "errors in units": errors, "ratio": ratio, "verdict": "within bound"}


def embeddings(batch):
    """Hold the embeddings of the first sentences; return the row, with the lowest cosine of any sentence."""
    (ids, mask), _ = batch
    singles, doubles = [], []
    for dtype, found in ((torch.float32, singles), (torch.float64, doubles)):
        with torch.no_grad():
            found.append(torch_encoder.encode(torch_encoder.load(dtype=dtype), ids, mask).numpy())
    singles.append(np.asarray(jax.jit(jax_encoder.encode)(jax_encoder.load(), ids, mask)))
    with jax.enable_x64(True):
        doubles.append(np.asarray(jax.jit(jax_encoder.encode)(jax_encoder.load(dtype=jnp.float64), ids, mask)))
    row = hold("embeddings", *singles, *doubles)
    return row | {"lowest cosine": float((singles[0] * singles[1]).sum(1).min())}


def masked_gradients(batch):
    """Hold the packed gradient of every converted layer; return a row for each."""
    found = [
        torch_training.gradients(torch_training.packed(torch_encoder.load()), batch),
        jax_training.gradients(jax_training.packed(jax_encoder.load()), batch),
        torch_training.gradients(torch_training.packed(torch_encoder.load(dtype=torch.float64)), batch),
    ]
    with jax.enable_x64(True):
        found.append(jax_training.gradients(jax_training.packed(jax_encoder.load(dtype=jnp.float64)), batch))
    assert all(one.keys() == found[0].keys() for one in found)
    return [hold(name, *(one[name] for one in found)) for name in found[0]]


def conversion(batch):
    """Return how many bits of the embeddings conversion changes in torch."""
    (ids, mask), _ = batch
    model = torch_encoder.load()
    with torch.no_grad():
        before = torch_encoder.encode(model, ids, mask)
        after = torch_encoder.encode(torch_training.packed(model), ids, mask)
    return int((before.view(torch.int32) != after.view(torch.int32)).sum())


def parting(torch_model, jax_model):
    """Return how far two models, fine-tuned from one start, have parted: over all values, and over what they moved."""
    start = jax_training.values_of(jax_training.packed(jax_encoder.load()))
    ours = {
        name: m.values.detach().numpy() for name, m in torch_model.named_modules() if isinstance(m, mt.PackedLinear)
    }
    theirs = {name: np.asarray(one) for name, one in jax_training.values_of(jax_model).items()}
    apart = max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)
    moved = max(float(np.abs(ours[name] - np.asarray(start[name])).max()) for name in ours)
    rms = {
        "apart": _rms([ours[name] - theirs[name] for name in ours]),
        "moved": _rms([ours[name] - np.asarray(start[name]) for name in ours]),
    }
    return {"largest": {"apart": apart, "moved": moved}, "rms": rms}


def _rms(arrays):
    return float(np.sqrt(np.mean(np.concatenate([one.ravel() for one in arrays]) ** 2)))
