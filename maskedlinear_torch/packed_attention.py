"""`torch.nn.MultiheadAttention` whose input projection is packed: what learns of it is a parameter (contract S13)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from maskedlinear_core import masks
from maskedlinear_core.annotations import PrecisionLike
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.simplify import simplify
from maskedlinear_torch.attention import PROJECTIONS, Attention, projection_shapes
from maskedlinear_torch.own_parameters import OwnParameters
from maskedlinear_torch.packed_module import PackedLinear
from maskedlinear_torch.tensors import Merged


class InProjection(PackedLinear):
    """The projections of q, k and v, which attention keeps in one matrix (3 E, E).

    In the state_dict they are the attention's `in_proj_weight` and `in_proj_bias`.
    """

    _joint = "_"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix.removesuffix(".") + self._joint, keep_vars)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load the parts under names of their own; weight and bias the attention loads by `load`, before."""
        if not any(name.startswith(prefix) for name in state_dict):
            return
        local_metadata, strict, missing_keys, *others = rest
        missing: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, *others)
        joint = prefix.removesuffix(".") + self._joint
        still = {joint + name.removeprefix(prefix) for name in missing}
        complete = {joint + name for name in ("weight", "bias")} - still
        missing_keys[:] = [name for name in missing_keys if name not in complete]

    def load(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Load the weight and bias under the names that start with a prefix."""
        super()._load_from_state_dict(state_dict, prefix, *rest)


class PackedMultiheadAttention(Attention):
    """A `torch.nn.MultiheadAttention` of whose input projections only the masked positions are parameters.

    `in_proj` is a packed layer of all three projections: `in_proj.values` learns, over a constant matrix.
    `in_proj_weight` and `in_proj_bias` are put together of these, and what is written to them in place goes to these.
    The state_dict is the plain module's. Made by `mask_linears(..., packed=True)` with the names `q_proj`, `k_proj` and
    `v_proj` inside of the attention's; the output layer is a layer of its own.

    Attributes:
        grad_masks: By projection; a projection without a mask trains as a whole.
        bias_masks: By projection: bool vectors (E,).

    Example:
        >>> from maskedlinear_torch import mask_linears, rows
        >>> model = mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0]), "[kv]_proj": rows([])}, packed=True)
        >>> model.in_proj
        InProjection(in_features=4, out_features=12, bias=True, grad_mask=rows([0]))
        >>> tuple(model.in_proj.values.shape), list(model.state_dict())[:2]
        ((1, 4), ['in_proj_weight', 'in_proj_bias'])
    """

    in_proj: InProjection

    @classmethod
    def around(
        cls,
        plain: nn.MultiheadAttention,
        grad_masks: Mapping[str, masks.Mask],
        bias_masks: Mapping[str, np.ndarray | None],
        *,
        values_dtype: torch.dtype | None,
        precision: PrecisionLike,
    ) -> Self:
        """Return an attention over the memory of another, with its output layer and hooks.

        Args:
            plain: The attention; q, k and v of one size.
            grad_masks: By projection, each over (embed_dim, embed_dim).
            bias_masks: By projection: bool vectors (embed_dim,).
            values_dtype: Dtype of the values: the weight's (None), or float32 over a 16-bit matrix.
            precision: Precision of the projections.
        """
        attention = cls.__new__(cls)
        attention.__dict__.update(plain.__dict__)
        own = dict(plain._parameters)
        weight, bias = own.pop("in_proj_weight"), own.pop("in_proj_bias")
        assert weight is not None
        attention.grad_masks = dict(grad_masks)
        attention.bias_masks = {name: mask for name, mask in bias_masks.items() if mask is not None}
        in_proj = InProjection.from_linear(
            _linear(weight, bias), grad_mask=attention._mask(), bias_mask=attention._bias_mask(),
            values_dtype=values_dtype, precision=precision,
        )  # fmt: skip
        attention.__dict__["_parameters"] = OwnParameters("PackedMultiheadAttention", _WHOLE, own)
        attention.__dict__["_buffers"] = dict(plain._buffers)
        attention.__dict__["_modules"] = {"in_proj": in_proj.train(plain.training), **plain._modules}
        return attention

    def set_masks(
        self,
        grad_masks: Mapping[str, masks.Mask],
        bias_masks: Mapping[str, np.ndarray | None],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Let other positions of some projections learn; projections that are not named keep theirs.

        Args:
            grad_masks: By projection ("q_proj", "k_proj", "v_proj"), each over (embed_dim, embed_dim).
            bias_masks: By projection: bool vectors (embed_dim,).
            optimizer: Its moments move along (see `PackedLinear.repack`).
        """
        self.grad_masks = {**self.grad_masks, **grad_masks}
        given = {name: mask for name, mask in bias_masks.items() if mask is not None}
        self.bias_masks = {**self.bias_masks, **given}
        self.in_proj.repack(self._mask(), optimizer)
        if given:
            self.in_proj._change_bias_mask(self._bias_mask(), optimizer)

    def read_masks(self) -> None:
        """Take the masks of the projections from `in_proj`, into which a file was loaded."""
        weights = np.split(self.in_proj.grad_mask.to_array((3 * self.embed_dim, self.embed_dim)), len(PROJECTIONS))
        self.grad_masks = {
            name: simplify(mask) for name, mask in zip(PROJECTIONS, weights, strict=True) if not mask.all()
        }
        whole = self.in_proj.bias_mask
        biases = [] if whole is None else np.split(whole, len(PROJECTIONS))
        self.bias_masks = {name: mask for name, mask in zip(PROJECTIONS, biases, strict=False) if not mask.all()}

    def to_attention(self) -> nn.MultiheadAttention:
        """Return a plain attention with the trained weight, around the output layer and hooks of this one."""
        linear = self.in_proj.to_linear()
        return self._plain(nn.Parameter(linear.weight.detach()), linear.bias)

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """The whole weight (3 E, E): a copy of the matrix with the values in their places."""
        return self.in_proj.weight

    @property
    def in_proj_bias(self) -> Any:  # type: ignore[override]
        """The whole bias (3 E,), or None."""
        return self.in_proj.bias

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `in_proj_weight` and `in_proj_bias` are written to, not set."""
        if name in _WHOLE:
            # `attention.in_proj_weight *= 2` has written before it sets.
            if name == "in_proj_bias" and value is not None and value is self.in_proj.bias_values:
                return  # all of it learns
            if not (isinstance(value, Merged) and value.link.part.is_of(self.in_proj)):
                packed_checks.refuse_assigned(
                    name, value, f"copy the numbers with torch.no_grad(): attention.{name}.copy_(...)",
                    layer="PackedMultiheadAttention", plain="attention.to_attention()",
                )  # fmt: skip
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; one from which the projections would be computed is refused."""
        if isinstance(self._parameters, OwnParameters):
            self._parameters.check(name)
        super().register_parameter(name, param)

    def _view(self, name: str) -> Any:
        if name == "in_proj_weight":
            return self.in_proj._whole_weight()
        return self.in_proj._whole_bias() if name == "in_proj_bias" else self._parameters[name]

    def _without_gradients(self) -> nn.MultiheadAttention:
        plain, out = self._plain(_as_learned(self.in_proj), self.in_proj._whole_bias()), self.out_proj
        if isinstance(out, PackedLinear):  # what guards itself from writes would keep it from its fast path
            plain.__dict__["_modules"]["out_proj"] = SimpleNamespace(weight=_as_learned(out), bias=out._whole_bias())
        return plain

    def _plain(self, weight: Any, bias: Any) -> nn.MultiheadAttention:
        plain = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _OWN})
        own = {"in_proj_weight": weight, **self._parameters, "in_proj_bias": bias}
        plain.__dict__["_parameters"], plain.__dict__["_buffers"] = own, dict(self._buffers)
        plain.__dict__["_modules"] = {name: one for name, one in self._modules.items() if name != "in_proj"}
        return plain

    def _mask(self) -> masks.Mask:
        shapes = projection_shapes(self)
        everything = np.ones(shapes["q_proj"], np.bool_)
        parts = [
            self.grad_masks[name].to_array(shapes[name]) if name in self.grad_masks else everything
            for name in PROJECTIONS
        ]
        return simplify(np.concatenate(parts))

    def _bias_mask(self) -> np.ndarray | None:
        whole = np.ones(self.embed_dim, np.bool_)
        lines = [self.bias_masks.get(name, whole) for name in PROJECTIONS]
        return np.concatenate(lines) if self.bias_masks else None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        names = (f"{prefix}in_proj_weight", f"{prefix}in_proj_bias")
        others = {name: value for name, value in state_dict.items() if name not in names}
        super()._load_from_state_dict(others, prefix, *rest)
        self.in_proj.load({name: state_dict[name] for name in names if name in state_dict}, f"{prefix}in_proj_", *rest)


_OWN = ("grad_masks", "bias_masks")
_WHOLE = ("in_proj_weight", "in_proj_bias")


def in_projections(model: nn.Module) -> dict[str, nn.Linear]:
    """Return what `InProjection` is made of in the plain attention of a model, by the name that it will have."""
    found: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if type(module) is nn.MultiheadAttention and module._parameters.get("in_proj_weight") is not None:
            found[f"{name}.in_proj" if name else "in_proj"] = _linear(module.in_proj_weight, module.in_proj_bias)
    return found


def projection_masks(name: str, mask: masks.Mask, shape: tuple[int, int]) -> dict[str, masks.Mask]:
    """Return the masks of the three projections of an `InProjection`, by the names that `mask_linears` has for them."""
    prefix = name.removesuffix("in_proj")
    parts = np.split(mask.to_array(shape), len(PROJECTIONS))
    return {f"{prefix}{own}": simplify(part) for own, part in zip(PROJECTIONS, parts, strict=True)}


def _as_learned(layer: PackedLinear) -> Tensor:
    weight = layer._whole_weight()
    if not layer.values.requires_grad or weight.requires_grad or torch.compiler.is_compiling():
        return weight
    with torch.inference_mode(False), torch.no_grad():  # of an inference tensor torch does not ask
        return weight.clone().requires_grad_() if weight.is_inference() else weight.detach().requires_grad_()


def _linear(weight: Tensor, bias: Any) -> nn.Linear:
    # A linear layer around these very parameters.
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta", dtype=weight.dtype)
    linear.weight = weight
    if bias is not None:
        linear.bias = bias
    return linear
