"""Reading a framework's array as NumPy, without importing a framework.

Each twin registers one reader for its own array type when it is imported. A reader returns
`None` for an array whose values cannot be read now (a tracer, a vmapped or fake tensor). Such an
array is called *traced* here, and the twin does everything that depends on its values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Reader = Callable[[Any], "np.ndarray | None"]

_READERS: list[tuple[type, Reader]] = []
_COMPILERS: list[tuple[Callable[[], bool], Callable[[Any], Any]]] = []
_VIEWERS: dict[str, Callable[[np.ndarray], Any]] = {}


def register_reader(array_type: type, reader: Reader) -> None:
    """Teach the core to read `array_type`; the twins call this on import.

    Args:
        array_type: The framework's array class.
        reader: Returns the values as a NumPy array, or None where they cannot be read now.
    """
    _READERS.append((array_type, reader))


def register_viewer(framework: str, viewer: Callable[[np.ndarray], Any]) -> None:
    """Let every mask also hold its positions as a framework's array, without a copy.

    This is for frameworks whose compiler traces only its own arrays. Masks that were made before do not get the view.

    Args:
        framework: The name under which `views` holds it.
        viewer: Makes the framework's array, sharing memory with the NumPy array.
    """
    _VIEWERS[framework] = viewer


def register_compiler(is_tracing: Callable[[], bool], as_array: Callable[[Any], Any]) -> None:
    """Let masks be made inside of compiled code, where a framework's compiler cannot follow NumPy.

    Args:
        is_tracing: Tells whether the compiler is tracing now.
        as_array: Turns a sequence or a NumPy array into the framework's array, and returns anything else unchanged.
    """
    _COMPILERS.append((is_tracing, as_array))


def visible(value: Any) -> Any:
    """Return positions as an array that the tracing compiler can follow, or unchanged if no compiler is tracing."""
    for is_tracing, as_array in _COMPILERS:
        if is_tracing():
            return as_array(value)
    return value


def views(array: np.ndarray) -> dict[str, Any]:
    """Return the array as each framework sees it that registered a viewer, and make the array read-only.

    A mask never changes, so what was computed from its positions can be kept.
    """
    seen = {framework: viewer(array) for framework, viewer in _VIEWERS.items()}
    array.flags.writeable = False
    return seen


def read(array: Any) -> np.ndarray | None:
    """Return the values of `array` as NumPy, or None if it is traced.

    Args:
        array: A sequence, a NumPy array, or an array of a framework whose twin is imported.

    Example:
        >>> read([2, 0])
        array([2, 0])
    """
    for array_type, reader in _READERS:
        if isinstance(array, array_type):
            return reader(array)
    values = np.asarray(array)
    # What has a shape and a dtype and no numbers stands for an array, as where a library prints a pytree.
    return None if values.dtype == object and is_framework_array(array) else values


def to_numpy(array: Any) -> np.ndarray:
    """Return the values of `array` as NumPy.

    Args:
        array: A sequence, a NumPy array, or an array of a framework whose twin is imported.
            bfloat16 comes back as float32, which holds every bfloat16 exactly.

    Raises:
        TypeError: The array is traced: it has no values yet.

    Example:
        >>> to_numpy([[1.0, 2.0]])
        array([[1., 2.]])
    """
    values = read(array)
    if values is None:
        raise TypeError(
            f"expected an array whose values can be read, got a traced {type(array).__name__}; "
            "call this outside of jit, vmap and compile"
        )
    return values


def is_framework_array(array: Any) -> bool:
    """Tell whether `array` is a NumPy array or has what one needs: a shape and a dtype."""
    return hasattr(array, "shape") and hasattr(array, "dtype")


def dtype_name(array: Any) -> str:
    """Return the dtype of a NumPy or framework array by its NumPy name, e.g. "bfloat16".

    Example:
        >>> dtype_name(np.zeros(2, np.float32))
        'float32'
    """
    return str(array.dtype).removeprefix("torch.")
