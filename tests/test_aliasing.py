"""A mask is a value: nothing that is done to a layer, or to the caller's arrays, changes it (S1, S10)."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_torch import MaskedLinear, masked_linear

O, I = 4, 6
PAIRS = {
    "columns": lambda: (columns([0, 1]), columns([4, 5])),
    "rows": lambda: (rows([0, 1]), rows([2, 3])),
    "submatrix": lambda: (submatrix([0], [1, 2]), submatrix([3], [4, 5])),
    "blocks": lambda: (blocks(np.eye(2) == 1, (2, 3)), blocks(np.eye(2) == 0, (2, 3))),
    "elements": lambda: (elements(np.eye(O, I) == 1), elements(np.eye(O, I, 2) == 1)),
    "union": lambda: (columns([0]) | rows([0]), columns([5]) | rows([3])),
}


def trained(layer):
    layer.zero_grad()
    layer(torch.ones(1, I)).sum().backward()
    return layer.weight.grad.numpy() != 0


@pytest.mark.parametrize("name", PAIRS)
def test_another_mask_of_one_layer_is_not_that_of_the_other_layer(name):
    """The positions are written in place so that compiled code sees them: not into the memory of the old mask."""
    first, second = PAIRS[name]()
    want = first.to_array((O, I))
    one, other = (MaskedLinear(I, O, grad_mask=first) for _ in range(2))
    one.grad_mask = second
    np.testing.assert_array_equal(trained(other), want)
    np.testing.assert_array_equal(first.to_array((O, I)), want)


@pytest.mark.parametrize("name", PAIRS)
def test_a_layer_can_go_back_to_its_first_mask(name):
    first, second = PAIRS[name]()
    want = first.to_array((O, I))
    layer = MaskedLinear(I, O, grad_mask=first)
    layer.grad_mask = second
    layer.grad_mask = first
    np.testing.assert_array_equal(trained(layer), want)


def test_later_changes_of_the_callers_bias_mask_do_not_reach_the_gradient():
    """A tensor changed in place is torch's own affair: it raises. A NumPy array has no version to tell."""
    keep = np.array([True, False, True, False])
    x, w, b = torch.ones(3, I), torch.ones(O, I, requires_grad=True), torch.ones(O, requires_grad=True)
    y = masked_linear(x, w, b, grad_mask=columns([0]), bias_mask=keep)
    keep[:] = True
    y.sum().backward()
    np.testing.assert_array_equal(b.grad.numpy(), [3, 0, 3, 0])


def read_only():
    keep = np.array([True, False, True, False])
    keep.flags.writeable = False
    return keep


@pytest.mark.parametrize("make", [read_only, lambda: jnp.asarray(read_only())], ids=["numpy", "jax"])
def test_read_only_bias_mask_is_taken_without_a_warning(make):
    x, w, b = torch.ones(3, I), torch.ones(O, I), torch.ones(O, requires_grad=True)
    masked_linear(x, w, b, grad_mask=columns([0]), bias_mask=make()).sum().backward()
    np.testing.assert_array_equal(b.grad.numpy(), [3, 0, 3, 0])


def test_no_one_writes_into_a_mask():
    """What is worked out from its positions is kept, so they stay."""
    array = np.eye(O, I) == 1
    mask = elements(array)
    with pytest.raises(ValueError, match="read-only"):
        mask.array[0, 1] = True
    again = pickle.loads(pickle.dumps(mask, protocol=5))
    with pytest.raises(ValueError, match="read-only"):
        again.array[0, 1] = True
    with pytest.raises(ValueError, match="read-only"):
        columns([0]).index.values[0] = 1
    array[0, 1] = True
    mask.to_array((O, I))[0, 2] = True
    np.testing.assert_array_equal(mask.to_array((O, I)), np.eye(O, I) == 1)
