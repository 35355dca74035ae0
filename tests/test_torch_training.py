"""What a torch training loop does with gradients: accumulation, hooks, double backward, empty batches (S5)."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_torch import MaskedLinear, masked_linear

O, I = 4, 6
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1, 2]),
    "submatrix": submatrix([1], [0, 2]),
    "blocks": blocks(np.eye(2) == 1, (2, 3)),
    "elements": elements(np.eye(O, I) == 1),
}


def integers(*shape):
    """Small integers: sums and products are exact, so gradients must be equal bit for bit."""
    return torch.randint(-2, 3, shape).float()


def trainable(name):
    return torch.from_numpy(MASKS[name].to_array((O, I)))


@pytest.mark.parametrize("name", MASKS)
def test_gradients_accumulate(name):
    layer = MaskedLinear(I, O, grad_mask=MASKS[name])
    batches = [integers(5, I), integers(2, 3, I)]
    for x in batches:
        layer(x).sum().backward()
    total = sum(x.reshape(-1, I).sum(0) for x in batches).expand(O, I)
    torch.testing.assert_close(layer.weight.grad, torch.where(trainable(name), total, 0), rtol=0, atol=0)


@pytest.mark.parametrize("name", MASKS)
def test_hooks_see_the_masked_gradient(name):
    layer, seen = MaskedLinear(I, O, grad_mask=MASKS[name]), []
    layer.weight.register_hook(seen.append)
    layer.weight.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad))
    layer(torch.ones(2, I)).sum().backward()
    for gradient in seen:
        torch.testing.assert_close(gradient, torch.where(trainable(name), torch.tensor(2.0), 0), rtol=0, atol=0)
    assert len(seen) == 2


@pytest.mark.parametrize("name", MASKS)
def test_gradient_penalty_reaches_no_frozen_entry(name):
    x, w = integers(3, I).requires_grad_(), integers(O, I).requires_grad_()
    m = trainable(name)
    got, want = (
        torch.autograd.grad(torch.autograd.grad(y.pow(2).sum(), x, create_graph=True)[0].pow(2).sum(), w)[0]
        for y in (masked_linear(x, w, grad_mask=MASKS[name]), F.linear(x, torch.where(m, w, w.detach())))
    )
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert (got[~m].view(torch.int32) == 0).all()


@pytest.mark.parametrize("shape", [(0, I), (2, 0, I), (I,)], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_empty_batch_and_no_batch(name, shape):
    layer = MaskedLinear(I, O, grad_mask=MASKS[name])
    y = layer(torch.ones(shape))
    y.sum().backward()
    assert y.shape == (*shape[:-1], O)
    rows_seen = float(np.prod(shape[:-1]))
    torch.testing.assert_close(layer.weight.grad, trainable(name) * rows_seen, rtol=0, atol=0)


def test_mask_set_in_inference_mode_can_be_trained_with():
    """A plain layer made there cannot be trained either; but a mask set there must not spoil a trainable layer."""
    layer = MaskedLinear(I, O, grad_mask=columns([0, 1]))
    with torch.inference_mode():
        layer.grad_mask = columns([2, 3, 4])
    layer(torch.ones(1, I)).sum().backward()
    np.testing.assert_array_equal(layer.weight.grad.numpy() != 0, columns([2, 3, 4]).to_array((O, I)))


WRONG = {
    "out of range": (columns([9]), IndexError, "got 9"),
    "other shape": (np.ones((2, 2), bool), ValueError, "weight of shape"),
    "floats": (np.ones((O, I)), TypeError, "got dtype float64"),
    "list": ([0, 1], TypeError, "got list"),
    "None": (None, TypeError, "got NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_mask_leaves_the_old_one(name):
    mask, kind, says = WRONG[name]
    layer = MaskedLinear(I, O, grad_mask=columns([0, 1]))
    with pytest.raises(kind, match=says):
        layer.grad_mask = mask
    layer(torch.ones(1, I)).sum().backward()
    assert layer.grad_mask == columns([0, 1])
    np.testing.assert_array_equal(layer.weight.grad.numpy() != 0, columns([0, 1]).to_array((O, I)))


@pytest.fixture
def workers():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def _converted(wrapped, net):
    mt.mask_linears(net, {"0": columns([0, 2])}, packed=True)


def _wrapper_converted(wrapped, net):
    mt.mask_linears(wrapped, {"module.0": columns([0, 2])}, packed=True)


def _used_outside_first(wrapped, net):
    _converted(wrapped, net)
    net(torch.ones(2, 6)).sum().backward()


def _repacked(wrapped, net):
    net[0].repack(columns([1]))


def _loaded(wrapped, net):
    other = mt.mask_linears(copy.deepcopy(net), {"0": columns([1])}, packed=True, freeze_others=True)
    mt.load_packed(mt.packed_bytes(other), net)


CHANGES = {
    "mask_linears": (_converted, False), "mask_linears of the wrapper": (_wrapper_converted, False),
    "a forward outside of it": (_used_outside_first, False), "repack": (_repacked, True),
    "load_packed": (_loaded, False),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:find_unused_parameters")
@pytest.mark.parametrize("name", CHANGES)
def test_h5_a_wrapper_of_workers_that_knows_other_parameters_is_refused(name, workers):
    """Pytorch #12603: it averages what it found when it was made; each worker then trained a model of its own."""
    change, packed_before = CHANGES[name]
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    if packed_before:
        mt.mask_linears(net, {"0": columns([0, 2])}, packed=True)
    wrapped = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
    if packed_before:
        wrapped(torch.ones(2, 6)).sum().backward()
    change(wrapped, net)
    with pytest.raises(RuntimeError, match=r"got one from before .*, which would not average the gradients of values"):
        wrapped(torch.ones(2, 6))
    net(torch.ones(2, 6))
    again = nn.parallel.DistributedDataParallel(net)
    again(torch.ones(2, 6)).sum().backward()
    assert net[0].values.grad.abs().sum() > 0
