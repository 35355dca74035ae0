"""Masked forms of `transformers.pytorch_utils.Conv1D`, the linear layer of GPT-2, whose weight is (in, out).

Masks are written for the weight (out_features, in_features) here as everywhere: columns are input features. The
classes subclass that of transformers, so that PEFT and others take them for what they replace; they are made when
they are first asked for, as transformers takes seconds to import.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from maskedlinear_core import masks
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.precision import as_precision, described
from maskedlinear_torch import rule
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.functional import _autocast, _check
from maskedlinear_torch.held_module import call_in_graph
from maskedlinear_torch.module import Layer, _bias_mask
from maskedlinear_torch.packed_module import PackedLinear


def is_conv1d(module: nn.Module) -> bool:
    """Tell whether a module is the very Conv1D of transformers, without importing that.

    Example:
        >>> is_conv1d(nn.Linear(2, 2))
        False
    """
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def masked_conv1d(
    conv: Any, *, grad_mask: masks.Mask, bias_mask: BiasMaskLike | None = None, precision: PrecisionLike = "native"
) -> Any:
    """Return a masked layer around the very parameters of a Conv1D.

    Args:
        conv: The layer, weight (in_features, out_features).
        grad_mask: Over the weight as (out_features, in_features). True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        precision: As for `masked_linear`.
    """
    layer = _masked_class()(conv.nf, 0)
    layer.nx, layer.in_features, layer.out_features = conv.weight.shape[0], conv.weight.shape[0], conv.nf
    layer.weight, layer.bias = conv.weight, conv.bias
    layer.precision = as_precision(precision)
    layer._set_masks(grad_mask, _bias_mask(bias_mask, True, conv.nf))
    return layer.train(conv.training)


def packed_conv1d(
    conv: Any,
    *,
    grad_mask: masks.Mask,
    bias_mask: BiasMaskLike | None = None,
    values_dtype: Any = None,
    precision: PrecisionLike = "native",
) -> PackedLinear:
    """Return a packed layer over the memory of a Conv1D: see `masked_conv1d` and `PackedLinear.from_linear`."""
    return PackedConv1D.from_linear(
        as_linear(conv), grad_mask=grad_mask, bias_mask=bias_mask, values_dtype=values_dtype, precision=precision
    )


def as_linear(conv: Any) -> nn.Linear:
    """Return a `torch.nn.Linear` over the memory of a Conv1D: its weight a transposed view, its bias shared."""
    linear = nn.Linear(conv.weight.shape[0], conv.nf, device="meta", dtype=conv.weight.dtype)
    linear.weight = nn.Parameter(conv.weight.detach().t(), requires_grad=conv.weight.requires_grad)
    linear.bias = conv.bias
    return linear.train(conv.training)


def to_conv1d(weight: Tensor, bias: Any) -> nn.Module:
    """Return a plain Conv1D with a weight (in_features, out_features) and a bias."""
    from transformers.pytorch_utils import Conv1D  # not on import: it takes seconds

    conv: Any = Conv1D(weight.shape[1], 0)
    conv.nx = weight.shape[0]
    conv.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
    conv.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
    return conv


class PackedConv1D(PackedLinear):
    """A packed layer in the place of a Conv1D: its state_dict holds the weight as (in_features, out_features)."""

    _is_turned = True

    def to_linear(self) -> Any:
        """Return a plain Conv1D with the trained weight and bias."""
        plain = super().to_linear()
        return to_conv1d(plain.weight.detach().t().contiguous(), plain.bias).train(self.training)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = destination[prefix + "weight"].t()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        turned = dict(state_dict)
        if isinstance(turned.get(prefix + "weight"), Tensor) and turned[prefix + "weight"].dim() == 2:
            turned[prefix + "weight"] = turned[prefix + "weight"].t()
        super()._load_from_state_dict(turned, prefix, *rest)


@functools.cache
def _masked_class() -> Any:
    from transformers.pytorch_utils import Conv1D  # as above

    class MaskedConv1D(Layer, Conv1D):
        """A Conv1D of which only the masked positions learn: what `MaskedLinear` is to `torch.nn.Linear`."""

        weight: nn.Parameter
        _is_turned = True

        @property
        def grad_mask(self) -> masks.Mask:
            """The mask over the weight as (out_features, in_features). Another one can be set."""
            return self._mask

        @grad_mask.setter
        def grad_mask(self, grad_mask: MaskLike) -> None:
            from maskedlinear_core.constructors import as_mask

            mask = as_mask(grad_mask)
            mask.canonical((self.out_features, self.in_features))
            self._set_masks(mask, self._bias_values)

        def forward(self, x: Tensor) -> Tensor:
            """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
            if not isinstance(x, Tensor):
                if isinstance(x, torch.fx.Proxy):
                    return call_in_graph(self, x)
                call_checks.refuse_array("input", x)
            x, weight, bias = _autocast(x, self._read("weight").t(), self._read("bias"))
            _check("masked_linear", x, weight, bias)
            products = choose(self._precision, "masked_linear", x, weight)
            return rule.masked(self._positions(), x, weight, bias, self._bias_positions, products=products)

        def to_linear(self) -> nn.Module:
            """Return a plain Conv1D around the very parameters of this one."""
            return to_conv1d(self.weight, self.bias).train(self.training)

        def __repr__(self) -> str:
            trained = "" if self._bias_values is None else f", bias_mask={int(self._bias_values.sum())} trained"
            return (
                f"MaskedConv1D(nf={self.out_features}, nx={self.in_features}, grad_mask={self._mask!r}{trained}"
                f"{described(self._precision)})"
            )

        def _home(self) -> Tensor:
            return self.weight

    MaskedConv1D.__module__, MaskedConv1D.__qualname__ = __name__, "MaskedConv1D"
    return MaskedConv1D


def __getattr__(name: str) -> Any:
    # For pickle, which asks the file for the class.
    if name == "MaskedConv1D":
        return _masked_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
