"""Packages that a part of parity needs, and the extra that installs each, for the error when one is missing."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator

EXTRAS = {
    "torch": "parity", "jax": "parity", "rich": "parity", "sklearn": "parity", "flax": "nnx", "equinox": "equinox",
    "optax": "optax", "safetensors": "storage",
}  # fmt: skip
"""The extra that brings a package, by the name it is imported by."""


def require(what: str, *packages: str) -> None:
    """Raise unless these packages are installed; none is imported.

    Raises:
        ModuleNotFoundError: One is not.

    Example:
        >>> require("this example", "numpy")
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(text(what, package), name=package)


@contextlib.contextmanager
def named(what: str) -> Iterator[None]:
    """Say of a package that turns out to be missing inside how to install it.

    Raises:
        ModuleNotFoundError: One is missing; with this text where an extra brings it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        # A part of a package that is there is another matter: the versions do not go together.
        if package not in EXTRAS or "pip install" in str(error) or importlib.util.find_spec(package) is not None:
            raise
        raise ModuleNotFoundError(text(what, package), name=package) from error


def text(what: str, package: str) -> str:
    """Return what is missing and how to install it.

    Example:
        >>> text("parity check", "rich")
        "parity check needs rich: pip install 'maskedlinear[parity]'"
    """
    return f"{what} needs {package}: pip install 'maskedlinear[{EXTRAS[package]}]'"
