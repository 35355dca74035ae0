"""Operators of public reports, as they were ported: each difference is found, and named as its report names it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import linen

import parity

STEPS = 100


def drawn(*shapes):
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def clipped(g, h):
    leaves = [torch.linalg.vector_norm(one) for one in (g, h)]
    factor = torch.clamp(0.01 / (torch.linalg.vector_norm(torch.stack(leaves)) + 1e-6), max=1.0)
    return g * factor, h * factor


def clipped_by_optax(g, h):
    clip = optax.clip_by_global_norm(0.01)
    return clip.update((g, h), clip.init((g, h)))[0]


def cosine(step):
    progress = torch.clamp(step, max=STEPS - 1) / (STEPS - 1)
    return 1e-3 * (0.1 + 0.9 * 0.5 * (1 + torch.cos(math.pi * progress)))


def adam(p, g):
    parameter = torch.nn.Parameter(p.detach().clone())
    parameter.grad = g.clone()
    torch.optim.Adam([parameter], lr=1e-2, weight_decay=0.1).step()
    return parameter.detach()


def adamw(p, g):
    rule = optax.adamw(1e-2, weight_decay=0.1)
    return optax.apply_updates(p, rule.update(g, rule.init(p), p)[0])


def rotation(stack, w, x, y, z):
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return stack([stack(row, -1) for row in rows], -2)


def from_real_first(q):
    w, x, y, z = (q / q.norm(dim=-1, keepdim=True)).unbind(-1)
    return rotation(torch.stack, w, x, y, z)


def from_real_last(q):
    x, y, z, w = jnp.moveaxis(q / jnp.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    return rotation(jnp.stack, w, x, y, z)


def normed_by_flax(x, w, b):
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    variables = {"params": {"scale": w, "bias": b}, "batch_stats": stats}
    return linen.BatchNorm(use_running_average=False).apply(variables, x, mutable=["batch_stats"])[0]


def transposed_by_jax(x, w):
    numbers = ("NHWC", "HWIO", "NHWC")
    kernel = w.transpose(2, 3, 0, 1)
    return jax.lax.conv_transpose(x.transpose(0, 2, 3, 1), kernel, (2, 2), "VALID", dimension_numbers=numbers)


REPORTS = {
    "goodfire-ai/spd 643": (
        clipped, clipped_by_optax, drawn((3, 4), (5,)), "default argument: eps", "1e-06 in torch where JAX has none",
    ),
    "goodfire-ai/spd 642": (
        cosine, lambda step: 1e-3 * optax.cosine_decay_schedule(1.0, STEPS, alpha=0.1)(step),
        (np.linspace(0, STEPS - 1, 12, dtype=np.float32),), "constant", "100 in JAX where torch has 99",
    ),
    "google-deepmind/optax 417": (
        adam, adamw, drawn((3, 4), (3, 4)), "optimizer: weight decay", "goes into the moments (L2)",
    ),
    "ActiveVisionLab/direct-posenet 5": (
        from_real_first, from_real_last, drawn((5, 4)), "arrangement: shifted", "shifted by 1 along axis 1",
    ),
    "facebookresearch/pytorch3d 1859": (
        lambda r, p: torch.einsum("bij,bj->bi", r, p), lambda r, p: jnp.einsum("bji,bj->bi", r, p),
        drawn((5, 3, 3), (5, 3)), "transposed", "axes 1 and 2 exchanged",
    ),
    "google/flax 3137": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2).permute(0, 2, 3, 1), transposed_by_jax,
        drawn((1, 2, 4, 4), (2, 3, 3, 3)), "arrangement: kernel flip", "flipped along the last 2 axes",
    ),
    "scverse/scvi-tools 2309": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=1e-3), normed_by_flax,
        drawn((8, 5), (5,), (5,)), "default argument: eps", "1e-05 in JAX where torch has 0.001",
    ),
    "pytorch/pytorch 76800": (
        lambda x: x.median(-1).values, lambda x: jnp.median(x, -1), drawn((3, 8)),
        "default argument: median of an even count", "the lower of the two middle values in torch",
    ),
}  # fmt: skip
"""The torch function, the JAX function, the inputs, the cause, and a part of its text, by report."""


@pytest.mark.parametrize("report", REPORTS)
def test_what_a_report_found_out_is_named(report):
    torch_function, jax_function, inputs, cause, text = REPORTS[report]
    found = parity.compare(
        torch_function, jax_function, inputs, transforms=["forward"], worlds=["jax-eager"], dtypes=["float64"],
        data=["random"],
    )  # fmt: skip
    (record,) = found.failed
    assert record.diagnosis.cause == cause, record.diagnosis
    assert text in record.diagnosis.text


def test_the_order_of_quaternions_is_in_the_remedy():
    torch_function, jax_function, inputs, *_ = REPORTS["ActiveVisionLab/direct-posenet 5"]
    found = parity.compare(
        torch_function, jax_function, inputs, transforms=["forward"], worlds=["jax-eager"], dtypes=["float64"],
        data=["random"],
    )  # fmt: skip
    assert "(x, y, z, w)" in found.failed[0].diagnosis.fix


def test_a_norm_at_zero_is_a_point_where_one_framework_has_nan():
    """google/jax 21723: the square of a norm has the derivative NaN at zero in JAX, and 0 in torch."""
    found = parity.compare(
        lambda x: torch.linalg.vector_norm(x, dim=-1) ** 2, lambda x: jnp.linalg.norm(x, axis=-1) ** 2, drawn((4, 3)),
        transforms=["forward", "vjp"], worlds=["jax-eager"], dtypes=["float64"], data=["random", "zeros"],
    )  # fmt: skip
    (record,) = found.failed
    assert (record.transform, record.data, record.diagnosis.cause) == ("vjp", "zeros", "nan in one")


@pytest.mark.parametrize(
    ("mode", "jax_mode"),
    [("reflect", "symmetric"), ("reflect", "edge"), ("replicate", "wrap"), ("constant", "edge")],
)
def test_another_way_to_pad_is_named(mode, jax_mode):
    """pytorch/pytorch 46240 asks for symmetric padding: what SciPy calls reflect is not what torch does."""
    (x,) = drawn((1, 2, 5, 6))
    found = parity.compare(
        lambda x: torch.tanh(F.pad(x, (1, 1, 2, 2), mode=mode)),
        lambda x: jnp.tanh(jnp.pad(x, ((0, 0), (0, 0), (2, 2), (1, 1)), mode=jax_mode)), (x,),
        transforms=["forward"], worlds=["jax-eager"], dtypes=["float64"], data=["random", "signed zeros"],
    )  # fmt: skip
    assert {record.diagnosis.cause for record in found.failed} == {"padding"}
    assert jax_mode in found.failed[0].diagnosis.text


def test_an_eps_that_is_added_to_a_difference_is_not_said_to_be_added_to_a_root():
    found = parity.compare(
        lambda a, b: F.pairwise_distance(a, b), lambda a, b: jnp.linalg.norm(a - b, axis=-1), drawn((4, 5), (4, 5)),
        transforms=["forward"], worlds=["jax-eager"], dtypes=["float64"], data=["random"],
    )  # fmt: skip
    (record,) = found.failed
    assert "eps = 1e-06 added to a difference in torch where JAX has none" in record.diagnosis.text
