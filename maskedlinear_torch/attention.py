"""`torch.nn.MultiheadAttention` of whose projections only masked positions learn (contract S13).

Attention reads its weights instead of calling layers: q, k and v share one matrix, and the output layer is never
called. So the weights are masked where they are read, by the reference program `where(M, W, W.detach())`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskedlinear_core import constructors, masks
from maskedlinear_torch import _compat, rule
from maskedlinear_torch.frozen_entries import Places, local_places
from maskedlinear_torch.held_module import HeldModule, call_in_graph
from maskedlinear_torch.module import MaskedLinear

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""The parts of the attention's input projection, as masks name them: each of shape (embed_dim, its input's)."""


class Attention(nn.MultiheadAttention):
    """What attention with masks is, masked or packed: the plain module's, but for how it reads its weights.

    Attributes:
        grad_masks: By projection; a projection without a mask trains as a whole.
        bias_masks: By projection: bool vectors (E,).
    """

    grad_masks: dict[str, masks.Mask]
    bias_masks: dict[str, np.ndarray]

    def set_masks(
        self,
        grad_masks: Mapping[str, masks.Mask],
        bias_masks: Mapping[str, np.ndarray | None],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Let other positions of some projections learn; projections that are not named keep theirs."""
        raise NotImplementedError

    def to_attention(self) -> nn.MultiheadAttention:
        """Return a plain attention with the trained weights."""
        raise NotImplementedError

    def _view(self, name: str) -> Any:
        """Return the parameter of a name as the product is to see it."""
        raise NotImplementedError

    def _without_gradients(self) -> nn.MultiheadAttention:
        """Return a plain attention of the same weights."""
        raise NotImplementedError

    def freeze_rest(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Let the projections without a mask learn no more, where another has one; biases likewise."""
        nothing, no_bias = constructors.rows([]), np.zeros(self.embed_dim, np.bool_)
        weights = {name: nothing for name in PROJECTIONS if self.grad_masks and name not in self.grad_masks}
        biases = {name: no_bias for name in PROJECTIONS if self.bias_masks and name not in self.bias_masks}
        if weights or biases:
            self.set_masks(weights, biases, optimizer)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention as `torch.nn.MultiheadAttention` does."""
        if isinstance(query, torch.fx.Proxy):
            options = {"key_padding_mask": key_padding_mask, "need_weights": need_weights, "attn_mask": attn_mask}
            options |= {"average_attn_weights": average_attn_weights, "is_causal": is_causal}
            return call_in_graph(self, query, key, value, **options)
        if not (_compat.in_transform() or torch.is_grad_enabled()):
            # Nothing learns here: the plain module is right, and may take its fast path.
            return nn.MultiheadAttention.forward(
                self._without_gradients(),
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        turned = self.batch_first and query.dim() == 3
        if turned:
            turn = _once(lambda tensor: tensor.transpose(1, 0))
            query, key, value = turn(query), turn(key), turn(value)
        separate = not _compat.has_joint_projection(self)
        out_weight, out_bias = _read(self.out_proj)
        output, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads,
            self._view("in_proj_weight"), self._view("in_proj_bias"),
            self.bias_k, self.bias_v, self.add_zero_attn, self.dropout, out_weight, out_bias,
            training=self.training, key_padding_mask=key_padding_mask, need_weights=need_weights,
            attn_mask=attn_mask, use_separate_proj_weight=separate,
            q_proj_weight=self._view("q_proj_weight"), k_proj_weight=self._view("k_proj_weight"),
            v_proj_weight=self._view("v_proj_weight"),
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return (output.transpose(1, 0) if turned else output), weights

    def extra_repr(self) -> str:
        """Describe the masks."""
        return ", ".join(f"{name}={mask!r}" for name, mask in self.grad_masks.items())


class MaskedMultiheadAttention(HeldModule, Attention):
    """A `torch.nn.MultiheadAttention` of whose projections only the masked positions learn.

    The parameters are those of the plain module: `in_proj_weight` (3 E, E), or `q_proj_weight` and so on where keys
    or values have a size of their own. Made by `mask_linears` with the names `q_proj`, `k_proj`, `v_proj` and
    `out_proj` inside of the attention's.

    Attributes:
        grad_masks: By projection; a projection without a mask trains as a whole.
        bias_masks: By projection: bool vectors (E,).

    Example:
        >>> from maskedlinear_torch import mask_linears, rows
        >>> model = mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0])})
        >>> x = torch.ones(3, 1, 4)
        >>> model(x, x, x)[0].sum().backward()
        >>> model.grad_masks, bool(model.in_proj_weight.grad[1:4].any())
        ({'q_proj': rows([0])}, False)
    """

    _trains: dict[str, Tensor]

    @classmethod
    def around(cls, plain: nn.MultiheadAttention) -> Self:
        """Return an attention around the very parameters, output layer and hooks of another, without masks."""
        attention = cls.__new__(cls)
        attention.__dict__.update(plain.__dict__)
        for name in ("_parameters", "_buffers", "_modules"):
            attention.__dict__[name] = dict(plain.__dict__[name])
        attention.grad_masks, attention.bias_masks, attention._trains = {}, {}, {}
        return attention

    def set_masks(
        self,
        grad_masks: Mapping[str, masks.Mask],
        bias_masks: Mapping[str, np.ndarray | None],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Let other positions of some projections learn; projections that are not named keep theirs.

        Args:
            grad_masks: By projection ("q_proj", "k_proj", "v_proj"), each over (embed_dim, its input's features).
            bias_masks: By projection: bool vectors (embed_dim,).
            optimizer: Ignored: the parameters stay the same.
        """
        self.grad_masks = {**self.grad_masks, **grad_masks}
        given = {name: mask for name, mask in bias_masks.items() if mask is not None}
        self.bias_masks = {**self.bias_masks, **given}
        self._place_masks()

    def trained_positions(self) -> dict[str, Tensor]:
        """Return a bool tensor of the shape of each parameter of which only a part learns, by the parameter's name."""
        return dict(self._trains)

    def to_attention(self) -> nn.MultiheadAttention:
        """Return a plain attention around the very parameters, output layer and hooks of this one."""
        plain = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
        plain.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _OWN})
        for name in ("_parameters", "_buffers", "_modules"):
            plain.__dict__[name] = dict(self.__dict__[name])
        return plain

    def _held_names(self) -> tuple[str, ...]:
        return tuple(self._trains)

    def _places(self) -> dict[str, Places]:
        """Return where the parameters train of which a part is frozen (for `hold_frozen`)."""
        return {name: local_places(self._parameters[name], trains) for name, trains in self._trains.items()}

    def _without_gradients(self) -> nn.MultiheadAttention:
        layers: tuple[Any, ...] = (self, self.out_proj)
        for layer in layers:
            if getattr(layer, "_held", None) is not None:
                layer._held.restore(layer)
        return self

    def _view(self, name: str) -> Any:
        parameter, trains = self._parameters[name], self._trains.get(name)
        if self._held is not None:
            parameter = self._held.read(self, name)
        if parameter is None or trains is None:
            return parameter
        return torch.where(trains, parameter, parameter.detach())

    def _move_positions(self) -> None:
        self._place_masks()

    def _place_masks(self) -> None:
        if self._held is not None:
            self._held.restore(self)
        self._find_positions()
        if self._held is not None:
            self._held.renew(self)

    def _find_positions(self) -> None:
        # As tensors beside the parameters; no buffers, as what averages or casts buffers must not reach them.
        shapes = projection_shapes(self)
        found = {name: mask.to_array(shapes[name]) for name, mask in self.grad_masks.items()}
        device = self.out_proj.weight.device
        if _compat.has_joint_projection(self) and found:
            parts = [found.get(name, np.ones(shapes[name], np.bool_)) for name in PROJECTIONS]
            self._trains["in_proj_weight"] = torch.tensor(np.concatenate(parts), device=device)
        elif found:
            for name, array in found.items():
                self._trains[f"{name}_weight"] = torch.tensor(array, device=device)
        if self.bias_masks:
            whole = np.ones(self.embed_dim, np.bool_)
            lines = [self.bias_masks.get(name, whole) for name in PROJECTIONS]
            self._trains["in_proj_bias"] = torch.tensor(np.concatenate(lines), device=device)


_OWN = ("grad_masks", "bias_masks", "_trains")


def projection_shapes(attention: nn.MultiheadAttention) -> dict[str, tuple[int, int]]:
    """Return the shape of the weight of each input projection.

    Example:
        >>> projection_shapes(nn.MultiheadAttention(4, 2, kdim=3))
        {'q_proj': (4, 4), 'k_proj': (4, 3), 'v_proj': (4, 4)}
    """
    sizes = attention.embed_dim, int(attention.kdim or 0), int(attention.vdim or 0)
    return {name: (attention.embed_dim, size) for name, size in zip(PROJECTIONS, sizes, strict=True)}


def _read(layer: Any) -> tuple[Tensor, Any]:
    # The output layer's weight and bias, as something that is read and not called must see them.
    if not isinstance(layer, MaskedLinear):
        return layer.weight, layer.bias  # a plain layer, or a packed one, whose weight guards itself
    weight = rule.weight_view(layer._positions(), layer._read("weight"))
    return weight, rule._bias_view(layer._read("bias"), layer._bias_positions)


def _once(turn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    # Attention asks whether query, key and value are one tensor.
    seen: list[tuple[Tensor, Tensor]] = []

    def apply(tensor: Tensor) -> Tensor:
        for old, new in seen:
            if old is tensor:
                return new
        seen.append((tensor, turn(tensor)))
        return seen[-1][1]

    return apply
