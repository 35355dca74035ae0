"""Which array of torch is which of JAX: by value, name and position; masks of another kind are left out."""

import numpy as np
import pytest

from parity.models.capture.call import Call, Leaf
from parity.models.matching import feed, pair_outputs, rearranged

RNG = np.random.default_rng(0)


def call(**inputs):
    leaves = [Leaf(name, value) for name, value in inputs.items()]
    return Call("m", 0, 0, None, leaves, {}, lambda values: {})


def test_equal_inputs_are_taken_once_each_and_in_order():
    q, k = RNG.standard_normal((2, 3, 4)), RNG.standard_normal((2, 3, 4))
    fed = feed(call(query=q, key=k), call(x=q + 1, y=k + 1))
    assert fed.arrays == {"x": "query", "y": "key"}


def test_a_name_goes_before_a_position():
    one, other = RNG.standard_normal((2, 3)), RNG.standard_normal((2, 3))
    assert feed(call(a=one, b=other), call(b=one + 5, a=other + 7)).arrays == {"b": "b", "a": "a"}


def test_a_mask_of_another_kind_is_not_handed_on():
    x = RNG.standard_normal((2, 4))
    added, kept = np.where(np.eye(2, 4) > 0, -1e9, 0.0), np.eye(2, 4) < 1
    fed = feed(call(x=x, mask=added), call(x=x + 1, mask=kept))
    assert fed.arrays == {"x": "x"}
    assert fed.own == ["mask"]


def test_positions_are_not_taken_for_a_mask():
    x, mask = RNG.standard_normal((2, 4)), np.ones((2, 4), np.int64)
    fed = feed(call(x=x, positions=np.tile(np.arange(4), (2, 1))), call(x=x, attention_mask=mask))
    assert fed.arrays == {"x": "x"}


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((2, 3, 8, 5), (2, 8, 5, 3)),
        ((2, 5, 12), (2, 5, 3, 4)),
        ((2, 5, 6), (10, 6)),
        ((1, 5), (2, 5)),
        ((4, 2, 3), (2, 4, 3)),
    ],
)
def test_arrangements_that_ports_have(shape, target):
    assert rearranged(np.zeros(shape), target)[0].shape == target


def test_two_axes_exchanged_by_mistake_stay_a_difference():
    out = RNG.standard_normal((3, 4, 4))
    (found,), _, _ = pair_outputs({"output": out}, {"output": out.swapaxes(1, 2)})
    assert not np.array_equal(found.torch, found.jax)


def test_outputs_pair_by_name_then_by_order():
    a, b = np.zeros((2, 3)), np.ones((2, 3))
    found, left, rest = pair_outputs({"mean": a, "scale": b, "more": np.zeros(9)}, {"scale": b, "mean": a})
    assert {one.name: float(one.jax[0, 0]) for one in found} == {"mean": 0.0, "scale": 1.0}
    assert (left, rest) == (["more"], [])


@pytest.mark.parametrize("last", [False, True], ids=["as torch", "channels last"])
@pytest.mark.parametrize("shape", [(2, 12, 2, 2), (2, 3, 3, 3)], ids=str)
def test_outputs_of_images_may_be_put_back(shape, last):
    """A port takes channels last, and gives what torch gives, or channels last: a square image exchanges no axes."""
    ours = np.random.default_rng(0).standard_normal(shape)
    theirs = ours.transpose(0, 2, 3, 1) if last else ours
    (found,), lone, other = pair_outputs({"out": ours}, {"out": theirs}, moved=True)
    assert not lone
    assert not other
    np.testing.assert_array_equal(found.torch, found.jax)
    exchanged = theirs.swapaxes(1, 2) if last else theirs.swapaxes(2, 3)
    (found,), _, _ = pair_outputs({"out": ours}, {"out": exchanged}, moved=True)
    assert not np.array_equal(found.torch, found.jax)
