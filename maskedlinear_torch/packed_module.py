"""The layer in packed form: a drop-in for `torch.nn.Linear` that pays only for what learns (contract S7, S8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.types import Device as DeviceLike

from maskedlinear_core import constructors, masks
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.checks import packed as packed_checks
from maskedlinear_core.precision import Native, described
from maskedlinear_torch import _compat, beside, moments, packed_parts, packing, rule, steps
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.functional import _autocast, _check, check_matrix
from maskedlinear_torch.held_module import call_in_graph
from maskedlinear_torch.kept_matrix import KeptMatrix, renewed
from maskedlinear_torch.module import Layer, MaskedLinear, _bias_mask
from maskedlinear_torch.own_parameters import OwnParameters
from maskedlinear_torch.packed_parts import PARTS, Bias, Weight, seen
from maskedlinear_torch.products import NATIVE, as_learned
from maskedlinear_torch.tensors import Constant, Merged, plain


class PackedLinear(Layer):
    """A linear layer whose trainable entries are a parameter of their own, over a matrix that is a constant.

    Gradients, optimizer state and all-reduce traffic have the size of `values`. No optimizer can move a
    frozen entry: it is not handed one.

    Parameters: `values` (what `pack` gives) and `bias_values` (the trainable entries of the bias); and `base`
    (out_features, in_features) and, if part of the bias is frozen, `bias_base` (out_features,), which never
    require a gradient. `weight` and `bias` are made of these, and a write in place to them goes to these. The
    state_dict is that of `nn.Linear`, with the whole weight and bias; `save_packed` stores the trainable share.

    On a CPU a layer keeps its matrix with the values in their places, and writes them into it when they changed.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether the layer has a bias.
        grad_mask: As for `masked_linear`, with readable positions. True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        seed: Draw the initial values with NumPy: the same bits as the JAX twin. None: torch's default.
        device: Device of the parameters and positions.
        dtype: float32, float64, bfloat16 or float16; None = torch's default dtype.
        values_dtype: Dtype of the values: the same (None), or float32 over a 16-bit matrix.
        precision: As for `masked_linear`; `layer.precision` can be set later.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_torch import columns
        >>> layer = PackedLinear(4, 2, grad_mask=columns([0, 3]), seed=0)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> layer.values.grad
        tensor([[1., 1.],
                [1., 1.]])
        >>> {name: tuple(value.shape) for name, value in layer.state_dict().items()}
        {'weight': (2, 4), 'bias': (2,)}
    """

    _is_packed = True
    values: nn.Parameter
    base: Constant
    bias_values: nn.Parameter | None
    bias_base: Constant | None
    _kept: KeptMatrix | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        seed: int | None = None,
        device: DeviceLike | None = None,
        dtype: torch.dtype | None = None,
        values_dtype: torch.dtype | None = None,
        precision: PrecisionLike = "native",
    ) -> None:
        masked = MaskedLinear(
            in_features, out_features, bias,
            grad_mask=grad_mask, bias_mask=bias_mask, seed=seed, device=device, dtype=dtype, precision=precision,
        )  # fmt: skip
        super().__init__()
        self.precision = masked.precision
        self._take_over(masked, masked.grad_mask, masked.bias_mask, values_dtype)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        values_dtype: torch.dtype | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a packed layer over the memory of `linear`: its bias shared, its weight the constant matrix.

        Args:
            linear: The layer to convert, or a `MaskedLinear`. It is not to be trained any more.
            grad_mask: As for the constructor.
            bias_mask: As for the constructor.
            values_dtype: As for the constructor.
            precision: As for the constructor.

        Raises:
            TypeError: `linear` is not a `torch.nn.Linear`.

        Example:
            >>> from maskedlinear_torch import rows
            >>> linear = nn.Linear(3, 2)
            >>> packed = PackedLinear.from_linear(linear, grad_mask=rows([0]))
            >>> torch.equal(packed.weight, linear.weight), tuple(packed.values.shape)
            (True, (1, 3))
        """
        if not isinstance(linear, nn.Linear):
            module_checks.refuse_layer("a torch.nn.Linear", linear)
        check_matrix("from_linear", linear.weight, linear.bias)
        mask = constructors.as_mask(grad_mask)
        mask.canonical((linear.out_features, linear.in_features))
        bias_values = _bias_mask(bias_mask, linear.bias is not None, linear.out_features)
        module_checks.float_dtype(dtype_name(linear.weight))
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.precision = precision
        layer._take_over(linear, mask, bias_values, values_dtype)
        beside.take(layer, linear)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return a plain layer with the trained weight and bias (the very bias of this one, if all of it trains).

        Example:
            >>> from maskedlinear_torch import rows
            >>> type(PackedLinear(3, 2, grad_mask=rows([0])).to_linear()).__name__
            'Linear'
        """
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.base.dtype
        )
        linear.weight = nn.Parameter(self._whole_weight().detach())
        if self.bias_values is not None:
            linear.bias = self.bias_values if self.bias_base is None else nn.Parameter(self._whole_bias().detach())
        beside.take(linear, self)
        steps.unmasked.add(linear)
        return linear.train(self.training)

    @classmethod
    def from_location(
        cls, in_features: int, out_features: int, location: np.ndarray, bias: bool = True, *, seed: int | None = None
    ) -> Self:
        """Return a packed layer whose columns at `location` learn: see `MaskedLinear.from_location`.

        Example:
            >>> PackedLinear.from_location(20, 3, np.array([1, 5])).values.shape
            torch.Size([3, 2])
        """
        masked = MaskedLinear.from_location(in_features, out_features, location, bias, seed=seed)
        return cls.from_linear(masked, grad_mask=masked.grad_mask)

    @property
    def weight(self) -> Tensor:
        """The whole weight (out_features, in_features): a copy of `base` with the values in their places.

        Differentiable: what reads the weight instead of calling the layer trains the values as well. In eager code
        what is written to it in place, under `torch.no_grad()` or through `.data`, is written to the values and the
        matrix.

        Example:
            >>> from maskedlinear_torch import columns
            >>> layer = PackedLinear(3, 2, grad_mask=columns([0]))
            >>> nn.init.ones_(layer.weight)
            tensor([[1., 1., 1.],
                    [1., 1., 1.]], grad_fn=<AliasBackward0>)
            >>> layer.values.tolist()
            [[1.0], [1.0]]
        """
        return seen(self._whole_weight, Weight(self), "weight")

    @property
    def bias(self) -> Tensor | None:
        """The whole bias (out_features,), or None: the parameter itself if all of it trains. Written to as `weight`."""
        if self.bias_base is None:
            return self.bias_values
        return seen(self._whole_bias, Bias(self), "bias")

    @property
    def bias_mask(self) -> np.ndarray | None:
        """The bias mask as a bool vector, or None if all of the bias trains. Another one can be set.

        An optimizer that has the bias then needs the new `bias_values`; `mask_linears(optimizer=)` hands them over.
        """
        return None if self._bias_values is None else self._bias_values.copy()

    @bias_mask.setter
    def bias_mask(self, bias_mask: BiasMaskLike | None) -> None:
        self._change_bias_mask(bias_mask, None)

    def _change_bias_mask(self, bias_mask: BiasMaskLike | None, optimizer: Any) -> None:
        self._refuse_sharded("another bias_mask")
        before, parameter = self._bias_values, self.bias_values
        values = _bias_mask(bias_mask, self.bias is not None, self.out_features)
        with torch.no_grad():
            whole = None if self.bias_values is None else self._whole_bias().detach().clone()
            self._set_masks(self._mask, values)
            self._take_bias_over(whole)
        if parameter is None or self.bias_values is None:
            return
        old, new = [np.ones(self.out_features, np.bool_) if one is None else one for one in (before, values)]
        came_from = torch.as_tensor(np.where(old, np.cumsum(old), 0)[new], device=parameter.device)
        if parameter.grad is not None:
            self.bias_values.grad = torch.cat([parameter.grad.new_zeros(1), parameter.grad])[came_from]
        if optimizer is not None:
            moments.move(optimizer, parameter, self.bias_values, came_from)
        elif not np.array_equal(old, new):
            steps.moved(self.bias_values, f"another bias_mask of {self}")

    @property
    def grad_mask(self) -> masks.Mask:
        """The mask. Setting another is `repack` without an optimizer."""
        return self._mask

    @grad_mask.setter
    def grad_mask(self, grad_mask: MaskLike) -> None:
        self.repack(grad_mask)

    def repack(self, grad_mask: MaskLike, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Let other positions learn from now on. The weight does not change: trained values stay in it.

        For another mask of the same kind and count everything changes in place, and nothing recompiles.
        Otherwise `values` becomes another parameter. A gradient moves along: that of new positions is zero.

        Args:
            grad_mask: The new mask.
            optimizer: Its moments of the values move along: what stays trainable keeps its history, what is
                new gets what the optimizer makes at first. State that is not kept value by value (Adafactor's
                sums of rows and columns) starts anew. Without it, hand a new parameter to the optimizer yourself;
                if its moments belong to other positions, its next step warns.

        Raises:
            TypeError, ValueError, IndexError: A wrong mask (contract S10); nothing is changed then.
            ValueError: The layer is sharded (FSDP, DTensor).

        Example:
            >>> from maskedlinear_torch import columns
            >>> layer = PackedLinear(4, 2, grad_mask=columns([0, 1]), seed=0)
            >>> before = layer.weight
            >>> layer.repack(columns([1, 3]))
            >>> torch.equal(layer.weight, before)
            True
        """
        self._refuse_sharded("repack")
        moments.check("repack", optimizer)
        old, new = self._mask, constructors.as_mask(grad_mask).packed((self.out_features, self.in_features))
        self._origin.look(self, other_mask=True)
        with torch.no_grad():
            whole = self._whole_weight()
            # From the values where they stay trainable: float32 over a 16-bit matrix is not rounded.
            values = packing.repack(self.values.detach(), old, new, weight=whole)
            parameter, gradient = self.values, self.values.grad
            if values.shape != parameter.shape:
                self.values = nn.Parameter(values, requires_grad=parameter.requires_grad)
                steps.replaced(parameter, self, "values", f"repack of {self}")
            else:
                parameter.copy_(values)
            if gradient is not None:
                shape = self.out_features, self.in_features
                self.values.grad = packing.repack(gradient, old, new, shape=shape).contiguous()
            self.base.copy_(whole)
        self._set_masks(new, self._bias_values)
        if optimizer is not None:
            came_from = moments.numbers(old, new, parameter, (self.out_features, self.in_features))
            moments.move(optimizer, parameter, self.values, came_from)
        elif old != new:
            steps.moved(self.values, f"repack of {self}")

    def forward(self, input: Tensor) -> Tensor:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        if not torch.compiler.is_dynamo_compiling():
            if _compat.active_ddp() is not None:
                steps.check_ddp(self)
            output = self._as_before(input)
            if output is not None:
                return output
        if not isinstance(input, Tensor):
            if isinstance(input, torch.fx.Proxy):
                return call_in_graph(self, input)
            call_checks.refuse_array("input", input, function="packed_linear")
        kind = self._positions()
        input, base, bias = _autocast(input, plain(self.base), self._whole_bias())
        _check("packed_linear", input, base, bias)
        products = choose(self._precision, "packed_linear", input, base)
        # (functional_call may have put other positions in place of the layer's own.)
        own = base is self.base and kind is self._kind
        written = self._matrix() if own else None
        if written is not None and not (torch.is_grad_enabled() and self.values.requires_grad):
            if self.values.requires_grad and input.dim() > 2:
                written = as_learned(written, input)
            return products.linear(input, written, bias)  # as the rule does, which would ask it all again
        return rule.masked(kind, input, base, bias, None, self.values, products, written)

    def _as_before(self, input: Tensor) -> Tensor | None:
        # The output of an ordinary call whose matrix is that of the last one; None if there is more to ask.
        kept = self._kept
        if (
            kept is None
            or type(self._precision) is not Native
            or not isinstance(input, Tensor)
            or not kept.serves(self, input)
        ):
            return None
        values: Any = self._parameters["values"]
        bias = self._parameters["bias_values"]
        if values.requires_grad and torch.is_grad_enabled():
            return rule.learning((NATIVE, self._kind, None, kept.memory, kept.matrix), input, values, bias)
        if values.requires_grad and input.dim() > 2:
            return F.linear(input, as_learned(kept.matrix, input), bias)
        return F.linear(input, kept.matrix, bias)

    def reset_parameters(self) -> None:
        """Draw all of the weight and the bias anew, as `torch.nn.Linear.reset_parameters` does."""
        plain = nn.Linear(
            self.in_features, self.out_features, self.bias_values is not None,
            device=self.base.device, dtype=self.base.dtype,
        )  # fmt: skip
        Weight(self).write(plain.weight.detach())
        if plain.bias is not None:
            Bias(self).write(plain.bias.detach())

    def extra_repr(self) -> str:
        """Describe sizes and masks."""
        trained = "" if self._bias_values is None else f", bias_mask={int(self._bias_values.sum())} trained"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"grad_mask={self._mask!r}{trained}{described(self._precision)}"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; `weight` and `bias` are written to, not set."""
        if name == "parametrizations":
            self._refuse_parametrization()
        if name in ("weight", "bias"):
            # `layer.weight *= 2` has written before it sets.
            if name == "bias" and value is not None and value is self.bias_values:
                return  # all of it learns
            if not (isinstance(value, Merged) and value.link.part.is_of(self)):
                packed_checks.refuse_assigned(
                    name, value, f"copy the numbers with torch.no_grad(): layer.{name}.copy_(...)"
                )
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; the weight and the bias are computed from others, and stay."""
        if name in ("weight", "bias") or (name in PARTS and "parametrizations" in self._modules):
            packed_checks.refuse_computed(type(self).__name__, name)
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter; one from which the weight or bias would be computed is refused (pruning)."""
        if isinstance(self._parameters, OwnParameters):
            self._parameters.check(name)
        if name in ("base", "bias_base") and param is not None and param.requires_grad:
            param = Constant(param.detach())  # whoever put a plain parameter there asked for no other layer
        super().register_parameter(name, param)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of."""
        return {name: value for name, value in super().__getstate__().items() if name != "_kept"}

    def _set_masks(self, mask: masks.Mask, bias_values: np.ndarray | None) -> None:
        self._kept = None
        steps.see()
        super()._set_masks(mask, bias_values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name in ("base", "bias_base"):  # from the meta device a parameter comes as another
            parameter = self._parameters.get(name)
            if type(parameter) is nn.Parameter and not parameter.requires_grad:
                self._parameters[name] = Constant(parameter.detach())
        return self

    def _home(self) -> Tensor:
        return self.base

    def _refuse_parametrization(self) -> None:
        # torch has taken the parameter out and given the layer another class: both are undone.
        own: Any = self._parameters
        taken = own.taken(PARTS) if isinstance(own, OwnParameters) else None
        if taken is not None:
            self.__class__ = type(self).__mro__[1]
            own.put_back(taken)
            packed_checks.refuse_computed(type(self).__name__, taken)

    def _refuse_sharded(self, change: str) -> None:
        if any(one is not None and _compat.is_distributed(one) for one in self._parameters.values()):
            packed_checks.refuse_sharded(type(self).__name__, change)

    def _whole_weight(self) -> Tensor:
        steps.check_ddp(self)
        base = plain(self.base).detach()
        return rule.weight_view(rule.placed(self._positions(), base), self.values, base)

    def _whole_bias(self) -> Any:
        if self.bias_base is None:
            return self.bias_values
        assert self.bias_values is not None
        base, index = plain(self.bias_base).detach(), self._bias_index()
        if _compat.is_distributed(base):
            index = _compat.replicate_like(base)(index)
        return base.index_copy(0, index, self.bias_values)

    def _matrix(self) -> Tensor | None:
        # The matrix with the values in their places, where it can be kept and told from another.
        base, values, kept = self.base, self.values, self._kept
        if not KeptMatrix.can_be_kept(base, values):
            return None
        if _compat.is_traced_by_jit():
            call_checks.refuse_jit_trace()
        if kept is None or not kept.is_of(base, values):
            del kept  # who holds the old one is counted
            kept = renewed(self, self._kind, base, values)
        return None if kept is None else kept.matrix

    def _take_over(
        self, linear: nn.Linear, mask: masks.Mask, bias_values: np.ndarray | None, values_dtype: torch.dtype | None
    ) -> None:
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.__dict__["_parameters"] = OwnParameters(type(self).__name__, ("weight", "bias"), self._parameters)
        self.base = Constant(linear.weight.detach())
        dtype = linear.weight.dtype if values_dtype is None else values_dtype
        module_checks.values_dtype(str(dtype).removeprefix("torch."), dtype_name(linear.weight))
        self._set_masks(mask.packed((self.out_features, self.in_features)), bias_values)
        values = self._positions().pack(self.base.detach())
        self.values = nn.Parameter(values.to(dtype, copy=True).contiguous())
        self.register_parameter("bias_values", None)
        self._take_bias_over(linear.bias)

    def _take_bias_over(self, bias: Tensor | None) -> None:
        # Where nothing is frozen the bias is the parameter itself.
        old = self.bias_values
        if bias is None or self._bias_values is None:
            base, values = None, bias
        else:
            base, values = bias.detach(), bias.detach().index_select(0, self._bias_index())
        self.bias_base = None if base is None else Constant(base)
        if old is not None and values is not None and old.shape == values.shape:
            old.copy_(values)
        elif values is not None:
            self.bias_values = values if isinstance(values, nn.Parameter) else nn.Parameter(values)
            if old is not None:
                steps.replaced(old, self, "bias_values", f"another bias_mask of {self}")

    def _bias_index(self) -> Tensor:
        assert self._bias_positions is not None, "asked for only where part of the bias is frozen"
        return self._bias_positions

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        # As a plain layer's, what is written to them is written to the layer: averages of state_dicts do.
        for name, value in (("weight", self.weight), ("bias", self.bias)):
            if value is not None:
                destination[prefix + name] = value if keep_vars else value.detach()
        others: dict[str, Any] = {}
        super()._save_to_state_dict(others, prefix, keep_vars)
        own = {prefix + name for name in PARTS}
        destination.update({name: value for name, value in others.items() if name not in own})

    def _load_numbers(self, *args: Any, **keywords: Any) -> None:
        packed_parts.load(self, *args, **keywords)
