"""Grad mode off does not switch off forward mode: no frozen entry is reached there either (S4)."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp, vjp, vmap

from maskedlinear_core import columns
from maskedlinear_torch import masked_linear

O, I = 4, 6
MASK = columns([0, 3])
M = torch.from_numpy(MASK.to_array((O, I)))


def integers(*shape):
    """Small integers: every product and sum is exact, so the results must be equal bit for bit."""
    return torch.randint(-2, 3, shape).double()


def ours(x, w):
    return masked_linear(x, w, grad_mask=MASK)


def reference(x, w):
    return F.linear(x, torch.where(M, w, w.detach()))


def d_input(f, x, w):
    return vjp(lambda x: f(x, w).pow(3).sum(), x)[1](torch.ones((), dtype=torch.float64))[0]


SEQUENCES = {
    "w over vjp": lambda f, x, w, dx, dw: jvp(lambda w: d_input(f, x, w), (w,), (dw,))[1],
    "w over x over vjp": lambda f, x, w, dx, dw: jvp(
        lambda w: jvp(lambda x: d_input(f, x, w), (x,), (dx,))[1], (w,), (dw,)
    )[1],
    "x over w over vjp": lambda f, x, w, dx, dw: jvp(
        lambda x: jvp(lambda w: d_input(f, x, w), (w,), (dw,))[1], (x,), (dx,)
    )[1],
    "w over vmap over x over vjp": lambda f, x, w, dx, dw: jvp(
        lambda w: vmap(lambda t: jvp(lambda x: d_input(f, x, w), (x,), (t,))[1])(torch.stack([dx, 2 * dx])), (w,), (dw,)
    )[1],
}  # fmt: skip


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad], ids=["grad mode on", "grad mode off"])
@pytest.mark.parametrize("name", SEQUENCES)
def test_forward_over_vjp(name, mode):
    arguments = [integers(3, I), integers(O, I), integers(3, I), integers(O, I)]
    with mode():
        got, want = (SEQUENCES[name](f, *arguments) for f in (ours, reference))
    assert want.count_nonzero() > 0
    torch.testing.assert_close(got, want, rtol=0, atol=0)
