"""What only torch has: autocast, checkpointing, hooks, no_grad, export, batched gradients (S5)."""

import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_torch import MaskedLinear, masked_linear, pack, packed_linear

O, I = 4, 6
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1, 2]),
    "submatrix": submatrix([1], [0, 2]),
    "blocks": blocks(np.eye(2, dtype=bool), (2, 3)),
    "elements": elements(np.arange(O * I).reshape(O, I) % 3 == 0),
}


def leaves(dtype=torch.float32):
    return tuple(torch.randn(s, dtype=dtype, requires_grad=True) for s in ((3, I), (O, I), (O,)))


def frozen(mask):
    return ~torch.from_numpy(mask.to_array((O, I)))


def reference(x, w, b, mask):
    return F.linear(x, torch.where(~frozen(mask), w, w.detach()), b)


@pytest.mark.parametrize("name", MASKS)
def test_autocast_is_that_of_linear(name):
    x, w, b = leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = masked_linear(x, w, b, grad_mask=MASKS[name]), reference(x, w, b, MASKS[name])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    for mine, theirs in zip(*(torch.autograd.grad(y.float().sum(), (x, w, b)) for y in (got, want)), strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_autocast_leaves_float64_alone():
    x, w, b = leaves(torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked_linear(x, w, b, grad_mask=columns([0])).dtype == torch.float64


def test_autocast_of_mixed_dtypes():
    x, w, b = leaves()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked_linear(x.bfloat16(), w, b, grad_mask=columns([0])).dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("name", MASKS)
def test_checkpointing(name, reentrant):
    x, w, b = leaves()
    y = checkpoint(lambda x, w, b: masked_linear(x, w, b, grad_mask=MASKS[name]), x, w, b, use_reentrant=reentrant)
    y.square().sum().backward()
    want = torch.autograd.grad(reference(x, w, b, MASKS[name]).square().sum(), (x, w, b))
    for leaf, gradient in zip((x, w, b), want, strict=True):
        torch.testing.assert_close(leaf.grad, gradient)
    assert not leaf_leaks(w.grad, MASKS[name])


def leaf_leaks(gradient, mask):
    """Count frozen entries that are not +0.0 bit for bit."""
    return int((gradient[frozen(mask)].view(torch.int32) != 0).sum())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_without_gradients_it_is_linear(mode):
    x, w, b = leaves()
    with mode():
        y = masked_linear(x, w, b, grad_mask=columns([0]))
        torch.testing.assert_close(y, F.linear(x, w, b), rtol=0, atol=0)
    assert not y.requires_grad


@pytest.mark.parametrize(
    "wanted", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradients_go_where_they_are_wanted(wanted):
    x, w, b = (leaf.detach().requires_grad_(bool(want)) for leaf, want in zip(leaves(), wanted, strict=True))
    masked_linear(x, w, b, grad_mask=columns([0])).sum().backward()
    assert tuple(leaf.grad is not None for leaf in (x, w, b)) == wanted


@pytest.mark.parametrize("name", MASKS)
def test_gradcheck_of_what_is_not_masked(name):
    """Finite differences hold for input and bias, batched and in both modes (not for W: it is masked on purpose)."""
    x, w, b = leaves(torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, b: masked_linear(x, w.detach(), b, grad_mask=MASKS[name]), (x, b),
        check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(lambda x, b: masked_linear(x, w.detach(), b, grad_mask=MASKS[name]), (x, b))


@pytest.mark.parametrize("name", MASKS)
def test_batched_gradients_of_autograd(name):
    x, w, b = leaves(torch.float64)
    y = masked_linear(x, w, b, grad_mask=MASKS[name])
    rows_of_jacobian = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *y.shape)
    batched = torch.autograd.grad(y, w, rows_of_jacobian, is_grads_batched=True, retain_graph=True)[0]
    looped = torch.stack([torch.autograd.grad(y, w, row, retain_graph=True)[0] for row in rows_of_jacobian])
    torch.testing.assert_close(batched, looped, rtol=0, atol=0)


@pytest.mark.parametrize("name", MASKS)
def test_batched_gradients_of_autograd_are_refused_in_reproducible_precision(name):
    x, w, b = leaves(torch.float32)
    y = masked_linear(x, w, b, grad_mask=MASKS[name], precision="reproducible")
    with pytest.raises(NotImplementedError, match=r"got a batch \(is_grads_batched=True\); use torch.func.vmap over"):
        torch.autograd.grad(y, w, torch.ones(2, *y.shape), is_grads_batched=True)


@pytest.mark.parametrize("name", MASKS)
def test_tensors_that_are_not_contiguous(name):
    x = torch.randn(I, 3).t().requires_grad_()
    w = torch.randn(I, O).t().requires_grad_()
    got, want = (
        torch.autograd.grad(f.square().sum(), (x, w))
        for f in (masked_linear(x, w, grad_mask=MASKS[name]), reference(x, w, None, MASKS[name]))
    )
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("batch", [(0,), (2, 0)])
@pytest.mark.parametrize("packed", [False, True])
def test_the_jacobian_of_an_empty_batch_is_empty(batch, packed):
    """Of few blocks too, where a batch of no cotangents leaves no size to infer."""
    few = blocks(np.eye(8, dtype=bool), (4, 4))
    x, weight = torch.ones(*batch, 32), torch.ones(32, 32)
    if packed:
        learned = pack(weight, grad_mask=few)
        jacobian = torch.func.jacrev(lambda values: packed_linear(x, weight, values, grad_mask=few))(learned)
    else:
        learned = weight
        jacobian = torch.func.jacrev(lambda weight: masked_linear(x, weight, grad_mask=few))(learned)
    assert jacobian.shape == (*batch, 32, *learned.shape)


def test_export():
    layer = MaskedLinear(I, O, grad_mask=columns([0]), seed=0)
    x = torch.randn(3, I)
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", MASKS)
def test_vmap_warns_of_no_slow_path(name):
    """Torch warns where vmap falls back to a loop; warnings are errors here."""
    w, g = torch.randn(O, I), torch.randn(5, 3, O)
    x = torch.randn(5, 3, I)

    def gradient(x, g):
        return torch.func.vjp(lambda w: masked_linear(x, w, grad_mask=MASKS[name]), w)[1](g)[0]

    assert torch.func.vmap(gradient)(x, g).shape == (5, O, I)


def test_saved_tensors_are_read_where_hooks_keep_them():
    """What hooks keep, such as copies of what is changed in place later, is what the backward reads."""
    x, w, b = leaves()
    bias_mask, base = torch.tensor([True, False, True, False]), torch.randn(O, I)
    values = base[:, [0, 3]].clone().requires_grad_()
    want = base.sum(0).expand(3, I)
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        masked = masked_linear(x.detach(), w, b, grad_mask=MASKS["columns"], bias_mask=bias_mask)
        packed = packed_linear(x, base, values, grad_mask=MASKS["columns"])
        bias_mask.logical_not_()
        base.zero_()
        masked.sum().backward()
        packed.sum().backward()
    assert b.grad.tolist() == [3, 0, 3, 0]
    torch.testing.assert_close(x.grad, want)


def test_a_constant_matrix_is_not_kept():
    """Checkpointing frees the copy that autocast makes of it, and a backward what the forward saved."""
    w = torch.randn(O, I)
    x, values = torch.randn(3, I, requires_grad=True), w[:, [0, 3]].clone().requires_grad_()
    made = []

    def layer(x):
        constant = w * 2  # as a cast, or what a quantised matrix stands for
        made.append(weakref.ref(constant))
        return packed_linear(x, constant, values, grad_mask=MASKS["columns"])

    y = checkpoint(layer, x, use_reentrant=False)
    assert made[0]() is None
    y = layer(x)
    y.sum().backward()
    assert made[1]() is None


def test_positions_made_in_a_fake_mode_are_not_kept():
    """A mask that was used in one, as an export does, is used with real tensors afterwards."""
    mask = columns([0, 3])
    with FakeTensorMode():
        masked_linear(*leaves(), grad_mask=mask)
    x, w, b = leaves()
    masked_linear(x, w, b, grad_mask=mask).sum().backward()
    assert w.grad[:, [1, 2, 4, 5]].count_nonzero() == 0
    torch.testing.assert_close(w.grad[:, [0, 3]], x.detach().sum(0)[[0, 3]].expand(O, 2))
