"""The folder of a dump: `model.json` and files of safetensors, which any program can read.

| file | holds |
|---|---|
| `model.json` | what ran and how; weights by name; the calls of all modules, with the names of their arrays |
| `weights.safetensors` | every parameter and buffer, by the name or path that the framework has for it |
| `perturbed.safetensors` | the weights of the second run, which are of order one |
| `inputs.safetensors` | the arrays of the model's inputs |
| `calls.safetensors`, `calls_perturbed.safetensors` | inputs and outputs of modules in each run; equal arrays once |
| `gradients.safetensors` | gradients of a random projection of the outputs: `gradient/NAME`, and what rounding does |

Types that NumPy lacks are kept as float32. Nothing in a dump is code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from parity.models.capture.call import Call, Leaf, Outputs, Stored
from parity.models.inputs import Call as Arguments
from parity.models.weights import tree

FORMAT, VERSION = "parity-model", 1

OPAQUE = "not kept"
"""What stands in a dump for an input that is neither array nor number nor text."""

Arrays = dict[str, np.ndarray]


@dataclass
class Dump:
    """A model that ran elsewhere.

    Attributes:
        meta: What `model.json` holds.
        weights: By name.
        perturbed: The weights of the second run; empty where there was none.
        inputs: What the model was called with.
        calls: Of all modules, in each run.
        gradients: Of a random projection of the outputs.
    """

    meta: dict[str, Any]
    weights: Arrays
    perturbed: Arrays
    inputs: Arguments
    calls: list[list[Call]]
    gradients: Arrays = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Dump:
        """Read the dump in a folder.

        Raises:
            FileNotFoundError: There is none.
            ValueError: It is damaged, or of another version.
        """
        folder = Path(folder)
        file = folder / "model.json"
        if not file.is_file():
            raise FileNotFoundError(f"{folder}: expected a folder that parity.dump_model wrote, found no model.json")
        try:
            meta = json.loads(file.read_text())
            if (meta["format"], meta["version"]) != (FORMAT, VERSION):
                raise ValueError(f"expected {FORMAT} of version {VERSION}, got {meta['format']} of {meta['version']}")
            arrays = {
                name: _read(folder / f"{name}.safetensors") for name in ("weights", "perturbed", "inputs", "gradients")
            }
            args, kwargs = (_built(meta["inputs"][at], arrays["inputs"]) for at in ("args", "kwargs"))
            calls = []
            for one in meta["passes"]:
                held = _read(folder / f"{one['file']}.safetensors")
                calls.append([_call(call, held) for call in one["calls"]])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{folder}: this dump cannot be read: {type(error).__name__}: {error}") from error
        return cls(meta, arrays["weights"], arrays["perturbed"], (tuple(args), kwargs), calls, arrays["gradients"])

    @property
    def side(self) -> str:
        """Whether it is of "torch" or of "jax"."""
        return str(self.meta["side"])

    def leaves(self) -> dict[str, tree.Leaf]:
        """Return what is known of each weight, by name."""
        made = {}
        for one in self.meta["weights"]:
            given = {**one, "parts": tuple(one["parts"]), "shape": tuple(one["shape"])}
            given |= {"aliases": tuple(map(tuple, one["aliases"])), "alias_names": tuple(one["alias_names"])}
            made[one["name"]] = tree.Leaf(**given)
        return made


def write(
    folder: str | Path, meta: Mapping[str, Any], leaves: Iterable[tree.Leaf], arrays: Mapping[str, Arrays],
    inputs: Arguments, runs: Mapping[str, list[tuple[Call, Stored]]],
) -> None:  # fmt: skip
    """Write a dump.

    Args:
        folder: Is made where it is not there; a dump in it is replaced.
        meta: What is known of the run.
        leaves: Of the model's weights.
        arrays: "weights", "perturbed" and "gradients", each by name.
        inputs: What the model was called with.
        runs: By the name of the file, the calls of a run, and what is measured of each.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").unlink(missing_ok=True)  # a dump that is half written is none
    held: Arrays = {}
    tree_of_inputs = {name: _plain(part, name, held) for name, part in zip(("args", "kwargs"), inputs, strict=True)}
    for name, found in {**arrays, "inputs": held}.items():
        _write(folder / f"{name}.safetensors", found)
    passes = []
    for name, calls in runs.items():
        store = _Once()
        passes.append(
            {"file": name, "calls": [_described(call, more, at, store) for at, (call, more) in enumerate(calls)]}
        )
        _write(folder / f"{name}.safetensors", store.arrays)
    whole = {
        "format": FORMAT, "version": VERSION, **meta, "weights": [asdict(leaf) for leaf in leaves],
        "inputs": tree_of_inputs, "passes": passes,
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(whole, indent=1, default=str) + "\n")


class _Once:
    """Arrays by name; one that is there already is kept once."""

    def __init__(self) -> None:
        self.arrays: Arrays = {}
        self._seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def put(self, name: str, value: np.ndarray) -> str:
        """Keep an array and return the name that it is kept by."""
        value = np.ascontiguousarray(value)
        key = value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).digest()
        if key not in self._seen:
            self._seen[key], self.arrays[name] = name, value
        return self._seen[key]


def _described(call: Call, more: Stored, at: int, store: _Once) -> dict[str, Any]:
    inputs = [
        {"name": leaf.name, "array": store.put(f"{at}/in/{number}", leaf.value)} if leaf.is_array
        else {"name": leaf.name, "value": leaf.value if isinstance(leaf.value, bool | int | float | str) else OPAQUE}
        for number, leaf in enumerate(call.inputs)
    ]  # fmt: skip
    return {
        "path": call.path, "index": call.index, "order": call.order, "parent": call.parent, "ended": call.ended,
        "method": call.method, "owner": more.owner, "low": {name: list(used) for name, used in more.low.items()},
        "inputs": inputs,
        "outputs": {name: store.put(f"{at}/out/{name}", value) for name, value in call.outputs.items()},
        "moved": {name: store.put(f"{at}/moved/{name}", value) for name, value in more.moved.items()},
    }  # fmt: skip


def _call(one: Mapping[str, Any], held: Arrays) -> Call:
    inputs = [Leaf(leaf["name"], held[leaf["array"]] if "array" in leaf else leaf["value"]) for leaf in one["inputs"]]
    outputs, moved = ({name: held[key] for name, key in one[what].items()} for what in ("outputs", "moved"))
    path = one["path"]

    def run(values: Any) -> Outputs:
        raise RuntimeError(f"{path}: the model ran elsewhere")

    return Call(
        path, one["index"], one["order"], one["parent"], inputs, outputs, run, one["ended"], None, one["method"],
        stored=Stored(one["owner"], one["low"], moved),
    )  # fmt: skip


def _plain(value: Any, name: str, held: Arrays) -> Any:
    if isinstance(value, np.ndarray):
        held[name] = np.ascontiguousarray(value)
        return {"array": name}
    if isinstance(value, Mapping):
        return {"dict": {key: _plain(part, f"{name}.{key}", held) for key, part in value.items()}}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(part, f"{name}[{at}]", held) for at, part in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise TypeError(
        f"inputs: expected arrays, numbers, texts and containers of them, got {type(value).__name__} ({name})"
    )


def _built(one: Mapping[str, Any], held: Arrays) -> Any:
    (kind, value), *_ = one.items()
    if kind == "array":
        return held[value]
    if kind == "dict":
        return {key: _built(part, held) for key, part in value.items()}
    if kind in ("list", "tuple"):
        parts = [_built(part, held) for part in value]
        return parts if kind == "list" else tuple(parts)
    return value


def _write(path: Path, arrays: Arrays) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, path)


def _read(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: Arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged or not whole ({error}); dump the model again") from error
    return found
