"""One module run again, on the inputs that a report kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from parity.isolation.inputs import pack, unpack
from parity.models.capture.call import Leaf
from parity.names import unknown
from parity.records import Diagnosis

if TYPE_CHECKING:
    from parity.models.capture.call import Call
    from parity.models.judging import Judged
    from parity.models.runs import Comparison

WHOLE = "(model)"
"""What the model itself is called in a command, whose path is empty."""

MOST_MODULES, MOST_BYTES = 5, 2**26
"""Of how many modules inputs are kept, those that a text shows, and of how many bytes in all."""


@dataclass(frozen=True)
class Saved:
    """What a torch module was called with, where it and its JAX module differ.

    Attributes:
        path: Of the torch module.
        call: Which of its calls.
        perturbed: Whether the weights were perturbed.
        arrays: In the order in which the module takes them; what is no array is not kept.
        verdict: What the module was judged to be.
        mode: "eval" or "train".
        seed: Of the perturbed weights.
    """

    path: str
    call: int
    perturbed: bool
    arrays: tuple[np.ndarray, ...]
    verdict: str
    mode: str
    seed: int

    def content(self) -> dict[str, Any]:
        """Return plain data, as it is written to a report."""
        return {
            "call": self.call, "perturbed": self.perturbed, "verdict": self.verdict, "mode": self.mode,
            "seed": self.seed, "inputs_sha256": _digest(self.arrays), "inputs": pack(self.arrays),
        }  # fmt: skip


KINDS = {"call": int, "perturbed": bool, "verdict": str, "mode": str, "seed": int, "inputs_sha256": str, "inputs": str}


class NotReplayed(ValueError):
    """A report does not say what is to be run again; the message says why."""


def read(text: str) -> Saved:
    """Return what a report kept of a module.

    Args:
        text: REPORT.json#PATH. The report is not trusted: nothing in it is run, and it names no file.

    Raises:
        NotReplayed: There is no such report, it is damaged, or it keeps no inputs of that module.
    """
    file, mark, path = text.rpartition("#")
    if not mark or not path:
        raise NotReplayed(f"--replay: expected REPORT.json#PATH, a module's path after the file, got {text!r}")
    try:
        whole = json.loads(Path(file).read_text("utf-8"))
        if isinstance(whole, dict) and "replay" not in whole:
            raise TypeError("it keeps no inputs, under 'replay'")
        kept = whole["replay"]
        if not isinstance(kept, dict):
            raise TypeError(f"replay: expected an object, got {kept!r}")
        one: Any = kept.get("" if path == WHOLE else path)
        for name, kind in KINDS.items() if one is not None else ():
            if type(one[name]) is not kind:
                raise TypeError(f"{name}: expected {kind.__name__}, got {one[name]!r}")
    except OSError as error:
        raise NotReplayed(f"--replay: cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotReplayed(f"--replay: {file} is no report of `python -m parity model --json`: {error!r}") from error
    if not kept:
        raise NotReplayed(f"--replay: {file} keeps the inputs of no module: none of its modules differs")
    if one is None:
        raise NotReplayed(unknown(f"--replay: a module whose inputs {file} keeps", path, [at or WHOLE for at in kept]))
    from parity.models.compare import MODES
    from parity.models.runs import ORDER

    for name in ("call", "seed"):
        if one[name] < 0:
            raise NotReplayed(f"--replay: {name} of {path} in {file}: expected a number from 0 on, got {one[name]}")
    for name, known in (("mode", MODES), ("verdict", ORDER)):
        if one[name] not in known:
            raise NotReplayed(unknown(f"--replay: {name} of {path} in {file}", one[name], known))
    try:
        arrays = tuple(unpack(one["inputs"]))
    except ValueError as error:
        raise NotReplayed(f"--replay: {error}") from error
    if _digest(arrays) != one["inputs_sha256"]:
        raise NotReplayed(f"--replay: the inputs of {path} in {file} are not those that were saved: it was changed")
    return Saved("" if path == WHOLE else path, one["call"], one["perturbed"], arrays, *(
        one[name] for name in ("verdict", "mode", "seed")))  # fmt: skip


def kept(asked: Comparison, path: str, call: Call, number: int, perturbed: bool, verdict: str) -> Saved | None:
    """Return what a module was called with, or None where it is not here any more, or ran elsewhere."""
    if call.stored is not None:
        return None
    arrays = tuple(np.array(leaf.value) for leaf in call.inputs if leaf.is_array)
    return Saved(path, number, perturbed, arrays, verdict, asked.mode, asked.seed)


def few(found: Sequence[Saved | None]) -> list[Saved]:
    """Return the first of them, as many as a report holds."""
    made: list[Saved] = []
    for one in found:
        size = sum(array.nbytes for other in (*made, one) if other is not None for array in other.arrays)
        if one is not None and len(made) < MOST_MODULES and size <= MOST_BYTES:
            made.append(one)
    return made


@dataclass
class Replayed:
    """What came of it.

    Attributes:
        found: The verdict.
        jax_path: Of the JAX module.
        diagnosis: Why it differs, where that is known.
    """

    found: Judged
    jax_path: str
    diagnosis: Diagnosis | None


def again(asked: Comparison, saved: Saved) -> Replayed:
    """Run both models once, and one module of them on saved inputs.

    Raises:
        NotReplayed: There is no such module, or it takes other inputs now.
    """
    import jax

    from parity.models.causes import diagnose
    from parity.models.judging import AGREES, judge

    asked.begin()
    pairs = [pair for pair in asked.map.pairs if pair.kind != "buffer"]
    asked.changed = asked.perturbed(pairs) if saved.perturbed and pairs else None
    one = asked.run_once(asked.changed)
    pair = next((judgement.pair for judgement in one.judgements if judgement.pair.path == saved.path), None)
    if pair is None:
        paths = [judgement.pair.path or WHOLE for judgement in one.judgements]
        raise NotReplayed(unknown("--replay: a module of the models", saved.path or WHOLE, paths))
    if not 0 <= saved.call < min(len(pair.torch_calls), len(pair.jax_calls)):
        raise NotReplayed(f"--replay: {saved.path or WHOLE} is not called {saved.call + 1} times now")
    call = pair.torch_calls[saved.call]
    places = [at for at, leaf in enumerate(call.inputs) if leaf.is_array]
    now = [call.inputs[at].value for at in places]
    if _kinds(now) != _kinds(saved.arrays):
        raise NotReplayed(
            f"--replay: {saved.path or WHOLE} is called with {_kinds(now)} now, and {_kinds(saved.arrays)} was saved"
        )
    for at, array in zip(places, saved.arrays, strict=True):
        call.inputs[at] = Leaf(call.inputs[at].name, array)
    with jax.enable_x64(one.double):
        call.outputs = call.run(call.values)
        _check_numbers(saved, call.outputs)
        found = judge(
            call, pair.jax_calls[saved.call], tables=asked.tables()(pair), double=one.double, native=asked.native
        )
        if text := _beside(call.outputs):
            found.reason = f"{found.reason}; {text}" if found.reason else text
        why = diagnose(pair, saved.call) if found.verdict not in AGREES else None
    return Replayed(found, pair.jax.path, why)


def _check_numbers(saved: Saved, outputs: Mapping[str, np.ndarray]) -> None:
    """Refuse inputs of which nothing but NaN or infinities is made: all that differs would be hidden by them."""
    floats = [value for value in outputs.values() if value.dtype.kind == "f" and value.size]
    if floats and not any(np.isfinite(value).any() for value in floats):
        bad = sum(int(np.sum(~np.isfinite(array))) for array in saved.arrays if array.dtype.kind == "f")
        raise NotReplayed(
            f"--replay: {saved.path or WHOLE} gives no finite number on the saved inputs, of which {bad} are NaN or"
            " infinite: nothing can be told from that"
        )


def _beside(outputs: Mapping[str, np.ndarray]) -> str:
    """Say how many numbers of an output are NaN or infinite, if some are: there both may be so for other reasons."""
    floats = [value for value in outputs.values() if value.dtype.kind == "f"]
    bad, total = sum(int(np.sum(~np.isfinite(one))) for one in floats), sum(one.size for one in floats)
    return f"{bad} of {total} elements of torch's output are NaN or infinite, and say nothing" if bad else ""


def _kinds(arrays: Sequence[np.ndarray]) -> str:
    return ", ".join(f"{array.dtype}{list(array.shape)}" for array in arrays) or "no array"


def _digest(arrays: Sequence[np.ndarray]) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
