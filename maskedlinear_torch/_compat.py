"""The private parts of torch that no public name replaces, in one place (tests/test_private_names.py watches them)."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch.autograd import forward_ad


def in_functorch_transform() -> bool:
    """Tell whether a torch.func transform is running, in eager mode or while Dynamo traces one."""
    return torch._C._are_functorch_transforms_active()


def in_dual_level() -> bool:
    """Tell whether forward-mode dual numbers may be about (`torch.autograd.forward_ad.dual_level`)."""
    return forward_ad._current_level >= 0


def in_transform() -> bool:
    """Tell whether anything but ordinary reverse mode may be differentiating or batching."""
    return in_functorch_transform() or in_dual_level()


def forward_mode_enabled() -> AbstractContextManager[None]:
    """Switch forward mode back on inside a `jvp` rule, which torch runs with it off.

    Without this the tangents of an outer level are dropped without an error (pytorch #197867).
    """
    return forward_ad._set_fwd_grad_enabled(True)
