"""The layer: a drop-in for `torch.nn.Linear` whose weight gradient is masked (contract S8)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.types import Device as DeviceLike

from maskedlinear_core import constructors, initial, masks
from maskedlinear_core.annotations import BiasMaskLike, MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name, to_numpy
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.precision import Native, Precision, as_precision, described
from maskedlinear_torch import beside, lowering, plain_ties, rule, steps
from maskedlinear_torch.engine_choice import choose
from maskedlinear_torch.frozen_entries import Places, local_places
from maskedlinear_torch.functional import _autocast, _check, check_matrix
from maskedlinear_torch.held_module import HeldModule, call_in_graph
from maskedlinear_torch.kinds import Kind, Submatrix
from maskedlinear_torch.origin import Origin
from maskedlinear_torch.tensors import PositionsBuffer


class Layer(HeldModule):
    """What the layers have in common: their masks.

    Positions are tensors of the layer, but not buffers, so code that averages, casts or broadcasts buffers does not
    change them. `torch.func.vmap` over stacked models needs buffers, so each has an empty one that represents it there.
    """

    in_features: int
    out_features: int
    weight: Any
    bias: Any  # a parameter, or None: torch's own layers say `Parameter` for both
    _is_packed = False
    _joint = "."  # between the layer's name and its parameters' in a state_dict
    _is_turned = False  # whether the weight is (in_features, out_features)
    _kind: Kind
    _arrays: tuple[Tensor | None, ...]
    _bias_array: Tensor | None
    _stand_ins: tuple[PositionsBuffer | None, ...]
    _made_for: tuple[int, int]  # the shape of the matrix that the positions are in
    _mask: masks.Mask
    _bias_values: np.ndarray | None
    _precision: Precision = Native()
    _origin: Origin
    _plain_ties: tuple[Any, ...] = ()  # plain layers that have this one's weight
    _is_loading = False

    @property
    def bias_mask(self) -> np.ndarray | None:
        """The bias mask as a bool vector, or None if all of the bias trains. Another one can be set."""
        return None if self._bias_values is None else self._bias_values.copy()

    @bias_mask.setter
    def bias_mask(self, bias_mask: BiasMaskLike | None) -> None:
        self._set_masks(self._mask, _bias_mask(bias_mask, self.bias is not None, self.out_features))

    @property
    def precision(self) -> Precision:
        """How products are computed: native or reproducible (contract S9). Another can be set, by name too."""
        return self._precision

    @precision.setter
    def precision(self, precision: PrecisionLike) -> None:
        self._precision = as_precision(precision)

    @property
    def _home_is_turned(self) -> bool:
        return self._is_turned and not self._is_packed  # a packed layer has its matrix upright

    def _positions(self) -> Kind:
        home, buffers = self._home(), self._buffers
        device = home.device
        if home.shape != self._made_for and home.dim() == 2:
            self._take_shape()
        for array in self._arrays:
            if array is not None and array.device != device:
                # Parameters came from meta (load_state_dict(assign=True)), or were moved without the layer.
                self._set_masks(self._mask, self._bias_values)
                break
        for name, own in zip(_NAMES, self._stand_ins, strict=False):
            if buffers[name] is not own:
                named = zip(_NAMES, self._arrays, strict=False)
                return self._kind.with_arrays([_given(buffers[name], array) for name, array in named])
        return self._kind

    def _take_shape(self) -> None:
        # Somebody gave the parameter other sizes, as `resize_token_embeddings` of transformers does.
        turn = slice(None, None, -1) if self._home_is_turned else slice(None)
        old = tuple(self._made_for)[turn]
        height, width = self._home().shape[turn]
        bias = None if self._bias_values is None else len(self._bias_values)
        module_checks.resized(type(self).__name__, old, (height, width), bias)
        with module_checks.fitting(type(self).__name__, old, (height, width)):
            self._mask.canonical((height, width))
        self.out_features, self.in_features = height, width
        self._set_masks(self._mask, self._bias_values)
        self._origin = Origin(self, moved=True)

    @property
    def _bias_positions(self) -> Tensor | None:
        return None if self._bias_array is None else _given(self._buffers[_BIAS_NAME], self._bias_array)

    def _set_masks(self, mask: masks.Mask, bias_values: np.ndarray | None) -> None:
        if self._held is not None:
            self._held.restore(self)  # by the masks that it was held with
        known: Origin | None = self.__dict__.get("_origin")
        moved = known is not None and known.look(self, other_mask=mask is not self._mask and not self._is_packed)
        device = self._home().device
        shape = (self.out_features, self.in_features)
        self._made_for = shape[::-1] if self._home_is_turned else shape
        kind = lowering.resolve(mask, shape, device, packed=self._is_packed)
        arrays = kind.arrays
        self._mask, self._bias_values = mask, bias_values
        old = self.__dict__.get("_arrays", ())
        old = old if len(old) == len(arrays) else (None,) * len(arrays)
        self._arrays = tuple([_kept(*pair) for pair in zip(old, arrays, strict=True)])
        self._kind = kind.with_arrays(self._arrays)
        trained = None if bias_values is None else np.flatnonzero(bias_values) if self._is_packed else bias_values
        bias_array = None if trained is None else torch.from_numpy(trained).to(device)
        self._bias_array = _kept(self.__dict__.get("_bias_array"), bias_array)
        self._stand_ins = tuple([None if array is None else PositionsBuffer.of(array) for array in self._arrays])
        for name in _NAMES[len(arrays) :]:
            self._buffers.pop(name, None)
        for name, stand_in in zip(_NAMES, self._stand_ins, strict=False):
            self.register_buffer(name, stand_in, persistent=False)
        stand_in = None if self._bias_array is None else PositionsBuffer.of(self._bias_array)
        self.register_buffer(_BIAS_NAME, stand_in, persistent=False)
        self._origin = Origin(self, moved=moved, before=known)
        if self._held is not None:
            self._held.renew(self)
        if not self._is_packed:
            plain_ties.know(self)

    def to_linear(self) -> nn.Module:
        """Return a plain layer with the trained weight."""
        raise NotImplementedError

    def _home(self) -> Tensor:
        # The matrix, wherever it is: positions live with it.
        raise NotImplementedError

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Register a buffer; the one by which torch prunes a bias is refused."""
        if name == "bias_mask":
            module_checks.refuse_pruned_bias(type(self).__name__)
        super().register_buffer(name, tensor, persistent)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Register a parameter. Another matrix is the layer's first one from now on."""
        old = self._parameters.get(name)
        same = old is param  # `layer.weight *= 2` sets what is there
        was_made = old is not None and not old.is_meta  # a conversion fills a layer of the meta device
        super().register_parameter(name, param)
        if name in ("weight", "base") and "_origin" in self.__dict__ and param is not None and not same:
            self._origin = Origin(self)
            if was_made and not (self._is_packed or self._is_loading):
                plain_ties.take(self, param)

    def _load_from_state_dict(self, state_dict: Any, *args: Any, **keywords: Any) -> None:
        if self._held is not None:
            # Written into the layer's own memory already (torch.distributed.checkpoint): putting back would undo it.
            state_dict = {name: self._held.apart(value) for name, value in state_dict.items()}
            self._held.restore(self)
        known, is_first = self._origin, self._origin.is_first(self)
        dtype = self._home().dtype
        self._is_loading = True
        try:
            self._load_numbers(state_dict, *args, **keywords)
        finally:
            self._is_loading = False
        if is_first:  # before training, what is loaded is another first matrix
            self._origin = Origin(self)
        else:
            known.learned_elsewhere()
            self._origin = known if self._home().dtype == dtype else Origin(self, moved=True)

    def _load_numbers(self, *args: Any, **keywords: Any) -> None:
        super()._load_from_state_dict(*args, **keywords)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._origin.look(self)
        return super()._apply(fn, recurse)

    def _move_positions(self) -> None:
        self._set_masks(self._mask, self._bias_values)

    def _held_names(self) -> tuple[str, ...]:
        return "weight", "bias"

    def _read(self, name: str) -> Any:
        # The parameter as a forward sees it.
        if self._held is not None:
            return self._held.read(self, name)
        if self._plain_ties:
            plain_ties.warn(self)
        return getattr(self, name)

    def _places(self) -> dict[str, Places]:
        """Return where the parameters train of which a part is frozen (for `hold_frozen`)."""
        found: dict[str, Any] = {}
        kind = self._positions()
        weight = self.weight.t() if self._is_turned else self.weight
        if isinstance(kind, Submatrix):
            rows, columns = kind.arrays
            dim, index = (1, columns) if rows is None else (0, rows) if columns is None else (None, None)
            if index is not None or rows is not None:
                found["weight"] = kind.mask(weight), dim, index
        else:
            found["weight"] = kind.mask(weight), None, None
        if self._is_turned and found:
            trains, dim, index = found["weight"]
            found["weight"] = trains.t(), None if dim is None else 1 - dim, index
        if self.bias is not None and self._bias_positions is not None:
            found["bias"] = self._bias_positions, None, None
        return {
            name: local_places(self._parameters[name], trains, dim=dim, index=index)
            for name, (trains, dim, index) in found.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is made of: positions follow from the masks."""
        state = {name: value for name, value in self.__dict__.items() if name not in _DERIVED}
        state["_buffers"] = {name: buffer for name, buffer in self._buffers.items() if name not in _DERIVED}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the positions of a copy."""
        origin = state.pop("_origin")
        super().__setstate__(state)
        self._set_masks(self._mask, self._bias_values)
        self._origin = origin


_NAMES = ("_position_0", "_position_1", "_position_2")
_BIAS_NAME = "_bias_position"
_DERIVED = {*_NAMES, _BIAS_NAME, "_kind", "_arrays", "_bias_array", "_stand_ins"}


def _given(buffer: Tensor | None, array: Tensor | None) -> Tensor | None:
    # `functional_call` may have put another layer's positions, or those of several, in place of the layer's own.
    if buffer is None:
        return array
    if type(buffer) is PositionsBuffer:
        return array if torch.compiler.is_dynamo_compiling() else buffer.positions
    return buffer if buffer.numel() else array


def _kept(old: Tensor | None, values: Tensor | None) -> Tensor | None:
    # In place where they fit, so that compiled code sees them. Else a copy: the next mask's positions are written into
    # it, and must not be written into this one's.
    if values is None:
        return None
    with torch.inference_mode(False):  # a tensor made there could not be saved for a later backward
        if old is not None and (old.shape, old.dtype, old.device) == (values.shape, values.dtype, values.device):
            return old.copy_(values)
        return values.clone()


class MaskedLinear(Layer, nn.Linear):
    """A linear layer of which only the masked positions learn; all else is `torch.nn.Linear`.

    The weight is a full parameter with a masked gradient. Weight decay and momentum are the
    optimizer's: they can still move a frozen entry, since a masked gradient is not a frozen weight.
    The state_dict is that of `nn.Linear`; the positions are no part of it.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether the layer has a bias.
        grad_mask: As for `masked_linear`, with readable positions. True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        seed: Draw the initial values with NumPy: the same bits as the JAX twin. None: torch's default.
        device: Device of the parameters and positions.
        dtype: float32, float64, bfloat16 or float16; None = torch's default dtype.
        precision: As for `masked_linear`; `layer.precision` can be set later.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_torch import columns
        >>> layer = MaskedLinear(4, 2, grad_mask=columns([0, 3]), seed=0)
        >>> layer(torch.ones(1, 4)).sum().backward()
        >>> layer.weight.grad
        tensor([[1., 0., 0., 1.],
                [1., 0., 0., 1.]])
    """

    weight: Tensor
    bias: nn.Parameter  # or None: so torch's layers say

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
        precision: PrecisionLike = "native",
    ) -> None:
        chosen = as_precision(precision)
        in_features = module_checks.features("in_features", in_features)
        out_features = module_checks.features("out_features", out_features)
        name_of_dtype = str(torch.get_default_dtype() if dtype is None else dtype).removeprefix("torch.")
        module_checks.float_dtype(name_of_dtype)
        dtype = getattr(torch, name_of_dtype)
        if seed is not None:
            module_checks.seed(seed)
        mask = constructors.as_mask(grad_mask)
        mask.canonical((out_features, in_features))
        bias_values = _bias_mask(bias_mask, bias, out_features)
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self._precision = chosen
        self._set_masks(mask, bias_values)
        if seed is not None:
            self._draw(initial.linear_bound(in_features), seed)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a masked layer around the very parameters of `linear` (shared, not copied).

        Args:
            linear: The layer to convert.
            grad_mask: As for the constructor.
            bias_mask: As for the constructor.
            precision: As for the constructor.

        Raises:
            TypeError: `linear` is not a `torch.nn.Linear`.

        Example:
            >>> from maskedlinear_torch import rows
            >>> linear = nn.Linear(3, 2)
            >>> MaskedLinear.from_linear(linear, grad_mask=rows([0])).weight is linear.weight
            True
        """
        if not isinstance(linear, nn.Linear):
            module_checks.refuse_layer("a torch.nn.Linear", linear)
        check_matrix("from_linear", linear.weight, linear.bias)
        has_bias = linear.bias is not None
        layer = cls(
            linear.in_features, linear.out_features, has_bias, grad_mask=grad_mask, bias_mask=bias_mask,
            device="meta", dtype=linear.weight.dtype, precision=precision,
        )  # fmt: skip
        layer.weight = linear.weight
        if has_bias:
            layer.bias = linear.bias
        layer._set_masks(layer._mask, layer._bias_values)
        beside.take(layer, linear)
        return layer.train(linear.training)

    def to_linear(self) -> nn.Linear:
        """Return a plain layer around the very parameters of this one.

        Example:
            >>> from maskedlinear_torch import rows
            >>> type(MaskedLinear(3, 2, grad_mask=rows([0])).to_linear()).__name__
            'Linear'
        """
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device="meta", dtype=self.weight.dtype
        )
        linear.weight = self.weight
        if self.bias is not None:
            linear.bias = self.bias
        beside.take(linear, self)
        steps.unmasked.add(linear)
        return linear.train(self.training)

    @classmethod
    def from_location(
        cls, in_features: int, out_features: int, location: np.ndarray, bias: bool = True, *, seed: int | None = None
    ) -> Self:
        """Return a layer whose columns at `location` learn, with the arguments and initial values of `LinearCraft`.

        Args:
            in_features: I.
            out_features: O.
            location: NumPy array of input features.
            bias: Whether the layer has a bias.
            seed: As for the constructor. Values are drawn from uniform(-0.1, 0.1) either way.

        Raises:
            TypeError: `location` is not a NumPy array of integers.

        Example:
            >>> MaskedLinear.from_location(20, 3, np.array([1, 5]))
            MaskedLinear(in_features=20, out_features=3, bias=True, grad_mask=columns([1, 5]))
        """
        if not isinstance(location, np.ndarray):
            module_checks.refuse_location(location)
        layer = cls(in_features, out_features, bias, grad_mask=constructors.columns(location))
        if seed is not None:
            module_checks.seed(seed)
            layer._draw(initial.LOCATION_BOUND, seed)
        else:
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -initial.LOCATION_BOUND, initial.LOCATION_BOUND)
            layer._origin = Origin(layer)
        return layer

    @property
    def grad_mask(self) -> masks.Mask:
        """The mask. Setting another of the same kind and count changes positions in place: nothing recompiles."""
        return self._mask

    @grad_mask.setter
    def grad_mask(self, grad_mask: MaskLike) -> None:
        mask = constructors.as_mask(grad_mask)
        mask.canonical((self.out_features, self.in_features))
        self._set_masks(mask, self._bias_values)

    def forward(self, input: Tensor) -> Tensor:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        if not isinstance(input, Tensor):
            if isinstance(input, torch.fx.Proxy):
                return call_in_graph(self, input)
            call_checks.refuse_array("input", input)
        weight: Any = self.weight
        bias: Any = self.bias
        if self._held is not None or self._plain_ties:
            weight, bias = self._read("weight"), self._read("bias")
        input, weight, bias = _autocast(input, weight, bias)
        _check("masked_linear", input, weight, bias)
        products = choose(self._precision, "masked_linear", input, weight)
        return rule.masked(
            self._positions(), input, weight, bias, self._bias_positions, products=products
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Describe sizes and masks."""
        trained = "" if self._bias_values is None else f", bias_mask={int(self._bias_values.sum())} trained"
        return f"{super().extra_repr()}, grad_mask={self._mask!r}{trained}{described(self._precision)}"

    def _home(self) -> Tensor:
        return self.weight

    def _draw(self, bound: float, seed: int) -> None:
        weight, bias = initial.parameters(
            self.out_features, self.in_features, self.bias is not None, bound=bound, seed=seed,
            dtype=dtype_name(self.weight),
        )  # fmt: skip
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(weight))
            if bias is not None:
                self.bias.copy_(torch.from_numpy(bias))
        self._origin = Origin(self)


def _bias_mask(bias_mask: Any, has_bias: bool, out_features: int) -> np.ndarray | None:
    if bias_mask is None:
        return None
    values = constructors.as_bias_mask(bias_mask)
    module_checks.module_bias_mask(has_bias, tuple(values.shape), dtype_name(values), out_features)
    return to_numpy(values).copy()
