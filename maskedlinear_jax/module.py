"""The layer: a pytree module whose weight gradient is masked (contract S8)."""

from __future__ import annotations

import copy
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from maskedlinear_core import constructors, initial, masks
from maskedlinear_core.annotations import BiasMaskLike, HasWeightAndBias, MaskLike, PrecisionLike
from maskedlinear_core.arrays import dtype_name, is_framework_array, read, to_numpy
from maskedlinear_core.checks import call as call_checks
from maskedlinear_core.checks import convert as convert_checks
from maskedlinear_core.checks import module as module_checks
from maskedlinear_core.precision import Precision, as_precision, described
from maskedlinear_jax import _compat, flax_bytes
from maskedlinear_jax.functional import masked_linear

Tree = TypeVar("Tree")
"""A pytree of any type: what comes back has it too."""


class Layer:
    """What the layers have in common: they are pytrees whose leaves have names."""

    _leaves: tuple[str, ...] = ()

    grad_mask: masks.Mask
    bias_mask: Array | np.ndarray | None  # a bool vector, of JAX once it went through a transform
    precision: Precision

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some of its leaves or its precision replaced. The names are checked, the arrays are not.

        The leaves of a masked layer are weight, bias, grad_mask and bias_mask; those of a packed layer are values,
        bias_values, grad_mask, bias_mask, base_bits and bias_bits, of which its `weight` and `bias` are made.

        Raises:
            TypeError: The layer has no leaf of that name.

        Example:
            >>> from maskedlinear_jax import rows
            >>> layer = MaskedLinear(3, 2, grad_mask=rows([0]), seed=0)
            >>> layer.replace(weight=layer.weight + 1).grad_mask
            rows([0])
        """
        module_checks.replaced(type(self).__name__, changes, (*self._leaves, "precision"))
        changed = copy.copy(self)
        changed.__dict__.update(changes)
        return changed

    def __contains__(self, key: object) -> bool:
        """Return False: Flax's `TrainState` asks its parameters for a key of its own, and is refused a whole layer."""
        if jax.tree.leaves(self.grad_mask):
            module_checks.refuse_as_parameters(type(self).__name__)
        return False

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Return the leaves (for pytrees, where no names are asked for: at each call of a compiled function)."""
        raise NotImplementedError

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], Any]:
        """Return the leaves with their names (for pytrees)."""
        leaves, static = self.tree_flatten()
        named = zip(self._leaves, leaves, strict=True)
        return tuple((jax.tree_util.GetAttrKey(name), leaf) for name, leaf in named), static


@jax.tree_util.register_pytree_with_keys_class
class MaskedLinear(Layer):
    """A linear layer of which only the masked positions learn.

    The weight is a full leaf with a masked gradient. Weight decay and momentum are the optimizer's:
    they can still move a frozen entry, since a masked gradient is not a frozen weight.

    The layer is a pytree of weight, bias, grad_mask and bias_mask. `jax.grad` refuses integer leaves:
    `partition` a model into what can be differentiated and the rest, and `combine` them inside.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether the layer has a bias.
        grad_mask: As for `masked_linear`, with readable positions. True = the gradient flows.
        bias_mask: Bool vector (out_features,); None = all of the bias trains.
        seed: Draw the initial values with NumPy: the same bits as the torch twin.
        key: Draw them with `jax.random` instead. Exactly one of seed and key must be given.
        dtype: float32, float64, bfloat16 or float16; None = float32.
        precision: As for `masked_linear`; `layer.replace(precision=as_precision(...))` changes it.

    Raises:
        TypeError, ValueError, IndexError: A wrong argument (contract S10).

    Example:
        >>> from maskedlinear_jax import columns
        >>> layer = MaskedLinear(4, 2, grad_mask=columns([0, 3]), seed=0)
        >>> params, rest = partition(layer)
        >>> jax.grad(lambda params: combine(params, rest)(jnp.ones((1, 4))).sum())(params).weight
        Array([[1., 0., 0., 1.],
               [1., 0., 0., 1.]], dtype=float32)
    """

    _leaves = ("weight", "bias", "grad_mask", "bias_mask")

    weight: Array
    bias: Array | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        seed: int | None = None,
        key: Array | None = None,
        dtype: DTypeLike | None = None,
        precision: PrecisionLike = "native",
    ) -> None:
        self.precision = as_precision(precision)
        in_features = module_checks.features("in_features", in_features)
        out_features = module_checks.features("out_features", out_features)
        module_checks.float_dtype(_name_of_dtype(jnp.float32 if dtype is None else dtype))
        dtype = jnp.dtype(jnp.float32 if dtype is None else dtype)
        if dtype == np.float64 and not _compat.x64_enabled():
            call_checks.refuse_float64()
        if seed is not None:
            module_checks.seed(seed)
        mask = constructors.as_mask(grad_mask)
        mask.canonical((out_features, in_features))
        bias_values = _bias_mask(bias_mask, bias, out_features)
        module_checks.one_source(seed is not None, key is not None)
        self.grad_mask, self.bias_mask = mask, bias_values
        self._draw(out_features, in_features, bias, initial.linear_bound(in_features), seed, key, dtype)

    @classmethod
    def from_linear(
        cls,
        linear: HasWeightAndBias,
        *,
        grad_mask: MaskLike,
        bias_mask: BiasMaskLike | None = None,
        precision: PrecisionLike = "native",
    ) -> Self:
        """Return a masked layer around the very arrays of `linear` (shared, not copied).

        Args:
            linear: A layer with a `weight` (out_features, in_features) and a `bias` or None, such as
                `equinox.nn.Linear` or another `MaskedLinear`.
            grad_mask: As for the constructor.
            bias_mask: As for the constructor.
            precision: As for the constructor.

        Raises:
            TypeError: `linear` has no such arrays.

        Example:
            >>> from maskedlinear_jax import columns, rows
            >>> linear = MaskedLinear(3, 2, grad_mask=columns(slice(None)), seed=0)
            >>> MaskedLinear.from_linear(linear, grad_mask=rows([0])).weight is linear.weight
            True
        """
        if names := list(beside(linear)):
            convert_checks.refuse_beside(names, linear)
        weight: Any = getattr(linear, "weight", None)
        bias: Any = getattr(linear, "bias", None)
        if not is_framework_array(weight) or len(weight.shape) != 2:
            module_checks.refuse_layer("a layer with a weight (out_features, in_features)", linear)
        if bias is not None and tuple(getattr(bias, "shape", ())) != (weight.shape[0],):
            module_checks.refuse_layer("a layer with a bias (out_features,) or None", linear)
        mask = constructors.as_mask(grad_mask)
        mask.canonical(weight.shape)
        bias_values = _bias_mask(bias_mask, bias is not None, weight.shape[0])
        return cls.tree_unflatten(as_precision(precision), (weight, bias, mask, bias_values))

    def to_linear(self) -> MaskedLinear:
        """Return a layer around the very arrays of this one, all of which learns: a plain linear layer.

        Example:
            >>> from maskedlinear_jax import rows
            >>> MaskedLinear(3, 2, grad_mask=rows([0]), seed=0).to_linear().grad_mask
            columns(slice(None, None, None))
        """
        return MaskedLinear.from_linear(self, grad_mask=constructors.columns(slice(None)))

    @classmethod
    def from_location(
        cls,
        in_features: int,
        out_features: int,
        location: np.ndarray,
        bias: bool = True,
        *,
        seed: int | None = None,
        key: Array | None = None,
    ) -> Self:
        """Return a layer whose columns at `location` learn, with the arguments and initial values of `LinearCraft`.

        Args:
            in_features: I.
            out_features: O.
            location: NumPy array of input features.
            bias: Whether the layer has a bias.
            seed: As for the constructor. Values are drawn from uniform(-0.1, 0.1) either way.
            key: As for the constructor.

        Raises:
            TypeError: `location` is not a NumPy array of integers.

        Example:
            >>> MaskedLinear.from_location(20, 3, np.array([1, 5]), seed=0)
            MaskedLinear(in_features=20, out_features=3, bias=True, grad_mask=columns([1, 5]))
        """
        if not isinstance(location, np.ndarray):
            module_checks.refuse_location(location)
        layer = cls(in_features, out_features, bias, grad_mask=constructors.columns(location), seed=seed, key=key)
        layer._draw(out_features, in_features, bias, initial.LOCATION_BOUND, seed, key, layer.weight.dtype)
        return layer

    @property
    def in_features(self) -> int:
        """I, the number of input features."""
        return self.weight.shape[-1]

    @property
    def out_features(self) -> int:
        """O, the number of output features."""
        return self.weight.shape[-2]

    def __call__(self, input: Array, *, forward_mode: bool = False) -> Array:
        """Return y of shape (*batch, out_features) for x of shape (*batch, in_features)."""
        return masked_linear(
            input, self.weight, self.bias,
            grad_mask=self.grad_mask, bias_mask=self.bias_mask, forward_mode=forward_mode, precision=self.precision,
        )  # fmt: skip

    def __repr__(self) -> str:
        """Describe sizes and masks."""
        if not getattr(self.weight, "shape", ()):  # as of a dtype: `jax.tree.map` may have put anything there
            return f"MaskedLinear(weight={self.weight!r}, bias={self.bias!r})"
        trains = read(self.bias_mask) if is_framework_array(self.bias_mask) else None
        trained = "" if trains is None else f", bias_mask={int(trains.sum())} trained"
        return (
            f"MaskedLinear(in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, grad_mask={self.grad_mask!r}{trained}{described(self.precision)})"
        )

    def tree_flatten(self) -> tuple[tuple[Any, ...], Precision]:
        """Return the leaves (for pytrees)."""
        return (self.weight, self.bias, self.grad_mask, self.bias_mask), self.precision

    @classmethod
    def tree_unflatten(cls, static: Precision, leaves: Any) -> Self:
        """Return the module with these leaves, unchecked (for pytrees)."""
        flax_bytes.tell()
        layer = object.__new__(cls)
        layer.weight, layer.bias, layer.grad_mask, layer.bias_mask = leaves
        layer.precision = static
        return layer

    def _draw(
        self, out_features: int, in_features: int, bias: bool, bound: float, seed: int | None, key: Any, dtype: Any
    ) -> None:
        flax_bytes.tell()
        if seed is not None:
            weight, bias_values = initial.parameters(
                out_features, in_features, bias, bound=bound, seed=seed, dtype=dtype.name
            )
            self.weight = jnp.asarray(weight).astype(dtype)
            self.bias = None if bias_values is None else jnp.asarray(bias_values).astype(dtype)
        else:
            weight_key, bias_key = jax.random.split(key)
            self.weight = jax.random.uniform(weight_key, (out_features, in_features), dtype, -bound, bound)
            self.bias = jax.random.uniform(bias_key, (out_features,), dtype, -bound, bound) if bias else None


def partition(tree: Tree) -> tuple[Tree, Tree]:
    """Split a pytree into its float arrays, which `jax.grad` takes, and the rest; None stands for the other part.

    Args:
        tree: Any pytree, e.g. a model that holds masked layers.

    Returns:
        (differentiable, rest), two pytrees of the same structure.

    Example:
        >>> params, rest = partition({"w": jnp.ones(2), "positions": jnp.arange(2)})
        >>> params
        {'positions': None, 'w': Array([1., 1.], dtype=float32)}
    """
    params = jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, tree)
    rest = jax.tree.map(lambda leaf: None if _is_float(leaf) else leaf, tree)
    return params, rest


def combine(params: Tree, rest: Any) -> Tree:
    """Put together what `partition` split.

    Example:
        >>> combine(*partition({"a": jnp.ones(1), "b": 2}))
        {'a': Array([1.], dtype=float32), 'b': 2}
    """
    whole: Tree = jax.tree.map(lambda a, b: b if a is None else a, params, rest, is_leaf=lambda leaf: leaf is None)
    return whole


def beside(layer: Any) -> dict[str, Any]:
    """Return the leaves of floats that a layer of a user's class has beside what a layer has, by their paths in it.

    Example:
        >>> from maskedlinear_jax import columns
        >>> beside(MaskedLinear(3, 2, grad_mask=columns([0]), seed=0))
        {}
    """
    parts = getattr(layer, "__dict__", {})
    own = {id(leaf) for leaf in jax.tree.leaves([parts.get(name) for name in _OWN])}
    found = jax.tree_util.tree_leaves_with_path(layer)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in found
        if path and _is_float(leaf) and id(leaf) not in own
    }


_OWN = ("weight", "bias", "values", "bias_values", "grad_mask", "bias_mask")


def _name_of_dtype(dtype: Any) -> str:
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Array | np.ndarray) and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _bias_mask(bias_mask: Any, has_bias: bool, out_features: int) -> np.ndarray | None:
    if bias_mask is None:
        return None
    values = constructors.as_bias_mask(bias_mask)
    module_checks.module_bias_mask(has_bias, tuple(values.shape), dtype_name(values), out_features)
    return to_numpy(values).copy()
