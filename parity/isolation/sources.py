"""Where pairs come from: a file of the user's, or a module that is installed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from parity.operator.pair import Pair

MODULE = "module:"
"""How a source begins that is a module with `PAIRS`; any other source is a file."""

HOW = (
    "define torch_NAME, jax_NAME and inputs_NAME (a tuple of NumPy arrays, or a function of a seed that makes one), "
    "or a parity.Pair"
)


class NotUnderstood(ValueError):
    """A source gives no pairs; the text says why and what to do."""


def load(source: str) -> list[Pair]:
    """Return the pairs of a source.

    Args:
        source: The path of a Python file, or `MODULE` and the name of a module.

    Raises:
        NotUnderstood: There is no such file, it fails to import, has no pair, half a pair, or a name twice.
    """
    if source.startswith(MODULE):
        return list(importlib.import_module(source.removeprefix(MODULE)).PAIRS)
    names = import_file(Path(source))
    found = pairs_in(names)
    if not found:
        raise NotUnderstood(f"{source} defines no pair: {HOW}")
    twice = sorted({pair.name for pair in found if sum(other.name == pair.name for other in found) > 1})
    if twice:
        raise NotUnderstood(f"{source}: expected every pair to have a name of its own, got {', '.join(twice)} twice")
    return found


def pairs_in(names: Mapping[str, Any]) -> list[Pair]:
    """Return the pairs among the names of a module, in the order of their definition.

    Args:
        names: What the module defines.

    Raises:
        NotUnderstood: One half of a pair is not there.

    Example:
        >>> import numpy as np
        >>> def torch_f(x): return x
        >>> def jax_f(x): return x
        >>> [pair.name for pair in pairs_in({"torch_f": torch_f, "jax_f": jax_f, "inputs": lambda seed: (np.ones(2),)})]
        ['f']
    """
    found: list[Pair] = []
    for name, value in names.items():
        if name.startswith("_"):
            continue
        if isinstance(value, Pair):
            if not any(value is other for other in found):
                found.append(dataclasses.replace(value, name=name) if value.name == "<lambda>" else value)
        elif isinstance(value, list | tuple) and value and all(isinstance(part, Pair) for part in value):
            found += [part for part in value if not any(part is other for other in found)]
        elif name.startswith("torch_") and callable(value):
            found.append(_by_name(names, name.removeprefix("torch_")))
        elif name.startswith("jax_") and callable(value) and f"torch_{name.removeprefix('jax_')}" not in names:
            short = name.removeprefix("jax_")
            raise NotUnderstood(f"half a pair: {name} has no torch_{short}; {_or_hide(name)}")
    return found


def _by_name(names: Mapping[str, Any], name: str) -> Pair:
    if not callable(names.get(f"jax_{name}")):
        raise NotUnderstood(f"half a pair: torch_{name} has no function jax_{name}; {_or_hide(f'torch_{name}')}")
    inputs = names.get(f"inputs_{name}", names.get("inputs"))
    if inputs is None:
        raise NotUnderstood(f"half a pair: torch_{name} and jax_{name} have no inputs_{name}: {HOW}")
    try:
        return Pair(torch=names[f"torch_{name}"], jax=names[f"jax_{name}"], inputs=inputs, name=name)
    except (TypeError, ValueError) as error:
        raise NotUnderstood(f"torch_{name} and jax_{name}: {error}") from error


def _or_hide(name: str) -> str:
    return f"define it, or write _{name} if it is no operator to compare"


def import_file(path: Path) -> dict[str, Any]:
    """Return what a Python file defines.

    Raises:
        NotUnderstood: There is no such file, or it fails to import: the text says at which line.
    """
    if not path.is_file():
        raise NotUnderstood(f"no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise NotUnderstood(f"expected a Python file, got {path}")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    # As Python does for a script: what lies beside the file can be imported.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    sys.modules.setdefault(path.stem, module)
    try:
        if isinstance(spec.loader, SourceFileLoader):
            # Compiled anew: the bytecode that Python keeps is stale if a file changes twice within a second.
            source = spec.loader.get_data(str(path))
            exec(spec.loader.source_to_code(source, str(path)), vars(module))
        else:
            spec.loader.exec_module(module)
    except BaseException as error:
        raise NotUnderstood(f"{path} fails to import: {_place(error, path)}{type(error).__name__}: {error}") from error
    return vars(module)


def _place(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"line {error.lineno}: "
    step, line = error.__traceback__, None
    while step is not None:
        if Path(step.tb_frame.f_code.co_filename) == path or step.tb_frame.f_code.co_filename == str(path):
            line = step.tb_lineno
        step = step.tb_next
    return "" if line is None else f"line {line}: "
