"""How a weight is laid out on the two sides: transforms by name, and the table of which layer uses which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from parity.models.weights.names import read
from parity.models.weights.tree import Leaf

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A transform between the layouts of one weight, both ways.

    Attributes:
        name: Its name in the table and in a saved map.
        text: The JAX side in terms of the torch side, for a reader: `{jax} = {torch}.T`.
        to_jax: From torch's array(s) and JAX's shape to JAX's array.
        to_torch: From JAX's array and torch's shape(s) to torch's array(s).
        shape: From torch's shape to the shape that JAX's array has before axes are regrouped, or None where the
            transform does not apply.
    """

    name: str
    text: str
    to_jax: Callable[[np.ndarray, Shape], np.ndarray]
    to_torch: Callable[[np.ndarray, Shape], np.ndarray]
    shape: Callable[[Shape, Shape], Shape | None]

    def __reduce__(self) -> tuple[Callable[[str], Layout], tuple[str]]:
        """Be sent to another process by name: functions inside of functions cannot be."""
        return by_name, (self.name,)

    def fits(self, torch: Shape, jax: Shape) -> bool:
        """Return whether the transform takes torch's shape to JAX's, regrouped into more or fewer axes or not."""
        made = self.shape(torch, jax)
        return made is not None and regroups(made, jax)


def regroups(one: Shape, other: Shape) -> bool:
    """Return whether two shapes differ by splitting or joining neighbouring axes alone, or by axes of length 1.

    Example:
        >>> regroups((6, 8), (6, 2, 4)), regroups((6, 8), (8, 6)), regroups((4,), (4, 1, 1)), regroups((6, 4), (4, 6))
        (True, False, True, False)
    """
    if int(np.prod(one, dtype=np.int64)) != int(np.prod(other, dtype=np.int64)):
        return False
    few, many = sorted(([n for n in shape if n != 1] for shape in (one, other)), key=len)
    bounds = set(np.cumprod([1, *many]).tolist())
    return all(bound in bounds for bound in np.cumprod([1, *few]).tolist())


def _permutation(
    name: str, text: str, order: Callable[[int], Sequence[int]], ndims: range, *, flip: bool = False
) -> Layout:
    """Return a layout that permutes the axes of arrays of some ranks, and turns the spatial ones round where `flip`."""

    def turned(array: np.ndarray) -> np.ndarray:
        return np.flip(array, tuple(range(2, array.ndim))) if flip else array

    def to_jax(array: np.ndarray, shape: Shape) -> np.ndarray:
        return turned(array).transpose(order(array.ndim)).reshape(shape)

    def to_torch(array: np.ndarray, shape: Shape) -> np.ndarray:
        axes = order(len(shape))
        grouped = array.reshape([shape[axis] for axis in axes])
        return turned(grouped.transpose(np.argsort(axes)))

    def made(torch: Shape, jax: Shape) -> Shape | None:
        return tuple(torch[axis] for axis in order(len(torch))) if len(torch) in ndims else None

    return Layout(name, text, to_jax, to_torch, made)


def _kernel_last(ndim: int) -> list[int]:
    return [*range(2, ndim), 1, 0]


def _kernel_last_kept(ndim: int) -> list[int]:
    return [*range(2, ndim), 0, 1]


def _groups(torch: Shape, jax: Shape) -> int | None:
    """Return the groups of a transposed convolution, from (I, O/g, k..) and (O, I/g, k..)."""
    if len(torch) < 3 or len(torch) != len(jax) or torch[1] == 0 or jax[0] % torch[1]:
        return None
    return jax[0] // torch[1]


def _exchange(array: np.ndarray, groups: int) -> np.ndarray:
    """Exchange the two channel axes in each group and turn the spatial axes round: its own inverse."""
    first, second, *rest = array.shape
    grouped = array.reshape(groups, first // groups, second, *rest).swapaxes(1, 2)
    return np.flip(grouped.reshape(groups * second, first // groups, *rest), tuple(range(2, array.ndim)))


def _exchanged_shape(torch: Shape, jax: Shape) -> Shape | None:
    groups = _groups(torch, jax)
    if not groups or torch[0] % groups:
        return None
    return (torch[1] * groups, torch[0] // groups, *torch[2:])


CONVOLUTIONS = range(3, 6)
LAYOUTS = {
    layout.name: layout
    for layout in (
        _permutation("same", "{torch}", lambda ndim: range(ndim), range(10)),
        _permutation("transpose", "{torch}.T", lambda ndim: [1, 0], range(2, 3)),
        _permutation("channels last", "{torch}.transpose({axes})", _kernel_last, CONVOLUTIONS),
        _permutation(  # flax.nnx.ConvTranspose(transpose_kernel=False)
            "turned, channels last", "flip({torch}).transpose({axes})", _kernel_last_kept, CONVOLUTIONS, flip=True
        ),
        Layout(  # equinox.nn.ConvTranspose
            "turned, channels exchanged",
            "flip({torch}) with its two channel axes exchanged in each group",
            lambda array, shape: _exchange(array, _groups(array.shape, shape) or 1),
            lambda array, shape: _exchange(array, _groups(shape, array.shape) or 1),
            _exchanged_shape,
        ),
    )
}
"""Every transform by name. `same` and the others also regroup neighbouring axes: (out,) as (heads, size)."""


def by_name(name: str) -> Layout:
    """Return the transform of that name."""
    return LAYOUTS[name]


@dataclass(frozen=True)
class Line:
    """One rule of the table: a torch layer, the JAX weight's own name (and layer), and the transform.

    `certain` lines are what a framework's own layer does. The others are what is possible; the shape decides, then
    what the model's other weights of the same name do.
    """

    layer: str
    leaf: str
    layout: str
    jax_layer: str = "*"
    flag: str = ""
    certain: bool = True


TABLE = (
    # torch layer | name of the JAX weight | transform | JAX layer | flag of the JAX layer
    Line("Linear", "kernel", "transpose"),
    Line("Linear", "weight", "same", "Linear"),
    Line("Linear", "weight", "same", "Conv?*"),
    Line("Linear", "w", "transpose", certain=False),
    Line("Linear", "*", "transpose", certain=False),
    Line("Linear", "*", "same", certain=False),
    Line("MultiheadAttention", "kernel", "transpose"),
    Line("MultiheadAttention", "weight", "same", "Linear"),
    Line("MultiheadAttention", "*", "transpose", certain=False),
    Line("MultiheadAttention", "*", "same", certain=False),
    # Flax's twins of it keep the kernel either way: transformers' own as (out, in).
    Line("Conv1D (transformers)", "kernel", "same", certain=False),
    Line("Conv1D (transformers)", "kernel", "transpose", certain=False),
    Line("Conv1D (transformers)", "weight", "transpose", "Linear"),
    Line("Conv1D (transformers)", "w", "same", certain=False),
    Line("Conv1D (transformers)", "*", "same", certain=False),
    Line("Conv1D (transformers)", "*", "transpose", certain=False),
    Line("Conv[123]d", "kernel", "channels last"),
    Line("Conv[123]d", "weight", "same", "Conv*"),
    Line("Conv[123]d", "w", "channels last", certain=False),
    Line("Conv[123]d", "*", "channels last", certain=False),
    Line("Conv[123]d", "*", "same", certain=False),
    Line("ConvTranspose[123]d", "kernel", "channels last", "ConvTranspose", "transpose_kernel"),
    Line("ConvTranspose[123]d", "kernel", "turned, channels last", "ConvTranspose", "not transpose_kernel"),
    Line("ConvTranspose[123]d", "weight", "turned, channels exchanged", "ConvTranspose*"),
    Line("ConvTranspose[123]d", "*", "turned, channels last", certain=False),
    Line("ConvTranspose[123]d", "*", "channels last", certain=False),
    Line("Embedding*", "*", "same"),
    Line("*Norm*", "*", "same"),
    Line("PReLU", "*", "same"),
    Line("", "kernel", "transpose", certain=False),
    Line("*", "*", "same", certain=False),
    Line("*", "*", "transpose", certain=False),
    Line("*", "*", "channels last", certain=False),
)
"""The layouts, one rule a line. The first lines that fit the shapes win; see `layouts_of`."""


@dataclass(frozen=True)
class Fit:
    """A layout that fits two weights' shapes, and whether it is what the layer does or one that is possible."""

    layout: Layout
    certain: bool


def layouts_of(torch: Leaf, jax: Leaf, *, role: str) -> list[Fit]:
    """Return the layouts that fit the shapes, the likeliest first: several are an ambiguity."""
    if torch.dtype.startswith("complex") != jax.dtype.startswith("complex"):
        return []
    if role != "weight" or min(len(torch.shape), len(jax.shape)) < 1 or np.prod(torch.shape) in torch.shape:
        # One axis or none: biases, scales, statistics.
        return [Fit(LAYOUTS["same"], True)] if regroups(torch.shape, jax.shape) else []
    if not torch.layer and torch.shape[0] == 1 and regroups(torch.shape, jax.shape):  # a table for every example
        return [Fit(LAYOUTS["same"], True)]
    name = read(jax.parts)[2]
    found: list[Fit] = []
    for line in TABLE:
        if not (fnmatchcase(torch.layer, line.layer) and fnmatchcase(name, line.leaf)):
            continue
        if not fnmatchcase(jax.layer, line.jax_layer) or not _flag_holds(jax, line.flag):
            continue
        layout = LAYOUTS[line.layout]
        if layout.fits(torch.shape, jax.shape) and layout not in [fit.layout for fit in found]:
            if line.certain:
                return [Fit(layout, True)]
            found.append(Fit(layout, False))
    return found


def _flag_holds(jax: Leaf, flag: str) -> bool:
    if not flag:
        return True
    name = flag.removeprefix("not ")
    return bool(jax.flags.get(name)) != flag.startswith("not ")


def described(layout: Layout, torch_name: str, jax_name: str, torch: Shape, jax: Shape) -> str:
    """Return a rule as an equation: "kernel = weight.T".

    Example:
        >>> described(LAYOUTS["transpose"], "weight", "kernel", (8, 6), (6, 2, 4))
        'kernel = weight.T.reshape(6, 2, 4)'
    """
    made = layout.shape(torch, jax)
    axes = ""
    if made is not None and "{axes}" in layout.text:
        order = _kernel_last_kept if "turned" in layout.name else _kernel_last
        axes = ", ".join(map(str, order(len(torch))))
    text = layout.text.format(torch=torch_name, axes=axes)
    if made is not None and made != jax:
        text += f".reshape({', '.join(map(str, jax))}{',' if len(jax) == 1 else ''})"
    return f"{jax_name} = {text}"
