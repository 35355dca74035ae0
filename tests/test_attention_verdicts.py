"""Attention: a right port is not blamed for what torch's fused kernel does at NaN and the end of the range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import parity

RNG = np.random.default_rng(3)
QKV = tuple(RNG.standard_normal((1, 2, 4, 2)) for _ in range(3))
QUICK = {"worlds": ["torch-eager", "jax-jit"], "dtypes": ["float32"]}


def theirs(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def swapped(array):
    return array.swapaxes(1, 2)


def right(q, k, v):
    return swapped(jax.nn.dot_product_attention(swapped(q), swapped(k), swapped(v), is_causal=True))


def by_hand(q, k, v, *, diagonal=0, scale=2**-0.5, hidden=-jnp.inf):
    scores = q @ k.mT * scale
    return jax.nn.softmax(jnp.where(jnp.tril(jnp.ones(scores.shape, bool), diagonal), scores, hidden)) @ v


@pytest.mark.parametrize("transform", ["forward", "vjp"])
@pytest.mark.parametrize("mine", [right, by_hand])
def test_a_right_port_is_right_on_numbers_of_every_kind(mine, transform):
    report = parity.compare(
        theirs, mine, QKV, transforms=[transform], data=["random", "nan", "infinite", "sweep"], **QUICK
    )
    assert report.ok, str(report)
    seen = {(cell.cell.data, cell.verdict) for cell in report.cells}
    assert {verdict for kind, verdict in seen if kind == "random"} == {"within bound"}, str(report)


def rows_of_nan_are_zeros():
    """Whether torch's kernel of float64 gives zeros for a query of NaN: it depends on the processor."""
    q, k, v = map(torch.from_numpy, QKV)
    return not bool(theirs(torch.full_like(q, torch.nan), k, v).isnan().any())


def test_rows_of_nan_are_told_apart_and_fail_where_all_must_be_the_same():
    if not rows_of_nan_are_zeros():  # nothing to tell apart
        report = parity.compare(theirs, right, QKV, transforms=["forward"], data=["nan"], strict=True, **QUICK)
        assert {cell.verdict for cell in report.cells if cell.cell.world == "jax-jit"} == {"within bound"}, str(report)
        return
    for strict in (False, True):
        report = parity.compare(
            theirs, right, QKV, transforms=["forward"], data=["nan"], strict=strict, **QUICK | {"worlds": ["jax-jit"]}
        )  # fmt: skip
        (cell,) = report.cells
        assert (cell.verdict, cell.failed) == ("edge", strict), str(report)
        assert "torch's fused kernel" in cell.reason


@pytest.mark.parametrize("transform", ["forward", "vjp"])
@pytest.mark.parametrize("padding", [False, True], ids=["causal", "padded"])
def test_a_large_number_that_stands_for_minus_infinity_beside_true_ones_is_no_failure(padding, transform):
    mask = np.ones((1, 1, 4, 4), bool)
    mask[..., 3:] = False
    given = {"attn_mask": torch.from_numpy(mask)} if padding else {"is_causal": True}
    told = {"mask": mask} if padding else {"is_causal": True}
    report = parity.compare(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **given),
        lambda q, k, v: swapped(jax.nn.dot_product_attention(swapped(q), swapped(k), swapped(v), **told)),
        tuple(np.random.default_rng(0).standard_normal((2, 3, 4, 4)) for _ in range(3)),
        transforms=[transform], data=["infinite"], **QUICK | {"worlds": ["jax-eager"], "dtypes": ["float64"]},
    )  # fmt: skip
    assert [cell.verdict for cell in report.cells] == ["edge"], str(report)
    if padding and transform == "forward":
        assert "-2.38197632506e+38 stands for infinity in JAX" in report.cells[0].reason, report.cells[0].reason


def cleaned(q, k, v):
    return by_hand(q, jnp.nan_to_num(k), v)


def spread(q, k, v):
    return by_hand(q, k, v) + 0 * q.sum()


WRONG = {
    "the mask is off by one diagonal": (lambda q, k, v: by_hand(q, k, v, diagonal=1), "random"),
    "the scale is wrong": (lambda q, k, v: by_hand(q, k, v, scale=0.5), "random"),
    "a masked key leaks": (lambda q, k, v: by_hand(q, k, v, hidden=-10.0), "random"),
    "a masked key leaks in a sweep": (lambda q, k, v: by_hand(q, k, v, hidden=-80.0), "sweep"),
    "NaN is taken away": (cleaned, "nan"),
    "NaN spreads to all rows": (spread, "nan"),
    "infinity is taken away": (cleaned, "infinite"),
}


@pytest.mark.parametrize(("mine", "kind"), WRONG.values(), ids=WRONG)
def test_a_wrong_port_is_called_wrong(mine, kind):
    report = parity.compare(
        theirs, mine, QKV, transforms=["forward"], data=[kind], **QUICK | {"worlds": ["jax-jit"]}
    )  # fmt: skip
    assert [cell.verdict for cell in report.cells] == ["differs"], str(report)


def test_a_label_that_is_ignored_stays_where_labels_are_drawn_anew():
    labels, logits = np.array([1, 3, -100, 0, 6, 2]), RNG.standard_normal((6, 7))

    def mine(logits, labels, ignored=-100):
        seen = labels != ignored
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(seen, labels, 0)[:, None], -1)[:, 0]
        smooth = 0.9 * chosen + 0.1 * jax.nn.log_softmax(logits).mean(-1)
        return -jnp.where(seen, smooth, 0.0).sum() / seen.sum()

    loss = lambda logits, labels: F.cross_entropy(logits, labels, label_smoothing=0.1)  # noqa: E731
    chosen = {"transforms": ["forward", "vjp"], "data": ["random", "indices"], **QUICK}
    report = parity.compare(loss, mine, (logits, labels), **chosen)
    assert report.ok, str(report)
    wrong = parity.compare(loss, lambda x, y: mine(x, y, -1), (logits, labels), **chosen)
    assert not wrong.ok


def test_a_derivative_by_a_masked_key_is_zero_or_nan_where_something_else_is_nan():
    mask = np.ones((1, 1, 4, 4), bool)
    mask[..., 3:] = False
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal((2, 3, 4, 8)) for _ in range(3)]
    report = parity.compare(
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        lambda q, k, v, m: swapped(jax.nn.dot_product_attention(swapped(q), swapped(k), swapped(v), mask=m)),
        (*wide, mask), transforms=["vjp"], data=["nan"], **QUICK | {"worlds": ["jax-jit"]},
    )  # fmt: skip
    assert [cell.verdict for cell in report.cells] == ["edge"], str(report)
