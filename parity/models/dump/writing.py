"""Run one model and keep what the other framework's side needs to be held to it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from parity import needs
from parity.counts import whole
from parity.garbage import what_was_there_set_aside
from parity.models import bounds, perturb, sides, taken, weighing
from parity.models import inputs as _inputs
from parity.models.capture.call import Call, Stored
from parity.models.dump import files
from parity.models.quickly import compiled_quickly
from parity.models.weights.tree import BUFFER, PARAMETER
from parity.names import unknown
from parity.verdict.bounds import UNIT

MODES = ("eval", "train")
PACKAGES = ("torch", "jax", "flax", "equinox", "numpy")


@needs.named("dump_model")
@what_was_there_set_aside()
@compiled_quickly()
def dump_model(
    model: Any, inputs: Any, folder: str | Path, *, mode: str = "eval", seed: int = 0, name: str | None = None,
    perturb: bool = True, double: bool = True,
) -> None:  # fmt: skip
    """Run a torch or JAX model and write what a comparison needs, for a machine that has the other framework only.

    There, `parity.compare_models(parity.models.Dump.read(folder), jax_model)` takes the dump in the place of the torch
    model, or `compare_models(torch_model, parity.models.Dump.read(folder))` in the place of the JAX model.

    Args:
        model: What `compare_models` takes as `torch_model` or as `jax_model`.
        inputs: Its inputs: a tuple of arrays, a dict of keywords, or `parity.Args`.
        folder: Is made where it is not there. `parity.models.dump.files` says what is in it.
        mode: "eval" or "train".
        seed: Of the perturbed weights.
        name: Of the report; None for the model's class.
        perturb: Whether it runs a second time, with weights of order one.
        double: Whether it runs in float64, where it can.

    Raises:
        TypeError: The model or the inputs are of no kind that is known.
        ValueError: The model does not run.
        FileExistsError: The folder, or one that it is to lie in, is a file.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> import tempfile, jax.numpy as jnp, numpy as np, torch, parity
        >>> layer, x = torch.nn.Linear(3, 2), np.ones((4, 3), np.float32)
        >>> params = {name: jnp.asarray(value.detach()) for name, value in layer.named_parameters()}
        >>> port = (lambda p, x: x @ p["weight"].T + p["bias"], params)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dump_model(layer, (x,), folder)
        ...     parity.compare_models(parity.models.Dump.read(folder), port).ok
        True
    """
    import safetensors  # noqa: F401 # before the model runs

    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    seed = whole("seed", seed)
    there = next(one for one in (Path(folder).absolute(), *Path(folder).absolute().parents) if one.exists())
    if not there.is_dir():
        raise FileExistsError(f"folder: expected a folder, or a name for one, got {str(folder)!r}: {there} is a file")
    given = _inputs.of_both(inputs)[0]
    side: Any = sides.LiveTorch(model) if _is_torch(model) else sides.LiveJax(model)
    of_torch = isinstance(side, sides.LiveTorch)
    changed = _perturbed(side, seed) if perturb else {}
    native = side.native() if of_torch else _native(side)
    runs, ran = _runs(side, given, sides.Setting(mode, double, native), changed)
    gradients, learns = _gradients(model, side, given, ran, runs["calls"], seed)
    meta = {
        "side": "torch" if of_torch else "jax",
        "framework": "torch" if of_torch else side.tree.framework,
        "name": name or type(model[0] if isinstance(model, tuple) else model).__name__,
        "mode": mode, "seed": seed, "double": ran.double, "why_single": ran.why,
        "native": side.native() if of_torch else native,
        "mapped": not of_torch and side.mapped,
        "ordered": of_torch or side.tree.ordered,
        "dropout": side.dropout() if of_torch and mode == "train" else [],
        "gradients": learns,
        "versions": _versions(),
    }  # fmt: skip
    arrays = {"weights": side.tree.weights(), "perturbed": changed, "gradients": gradients}
    files.write(folder, meta, side.tree.leaves.values(), arrays, given, runs)


def _is_torch(model: Any) -> bool:
    return any(base.__module__.startswith("torch.nn.modules.") for base in type(model).__mro__)


def _perturbed(side: Any, seed: int) -> dict[str, np.ndarray]:
    """Return weights of order one, of all that learn and of statistics: which are paired is not known here."""
    leaves, values = side.tree.leaves, side.tree.weights()
    if isinstance(side, sides.LiveJax):
        names = [name for name, leaf in leaves.items() if leaf.kind != BUFFER]
        return perturb.perturbed_jax(values, names, seed)
    learns = {name for name, leaf in leaves.items() if leaf.kind != PARAMETER or side.tree.tensor(name).requires_grad}
    layers = {name: leaf.layer for name, leaf in leaves.items()}
    names = [name for name, leaf in leaves.items() if leaf.kind != BUFFER and name in learns]
    return perturb.of_names(values, layers, names, seed)


def _runs(
    side: Any, inputs: Any, setting: sides.Setting, changed: Mapping[str, np.ndarray]
) -> tuple[dict[str, list[tuple[Call, Stored]]], sides.Setting]:
    """Run the model, and again with other weights; in float32 where float64 is not asked for or does not go."""
    try:
        with _precision(side, double=setting.double):
            runs = {"calls": _kept(side, inputs, setting, None)}
            if changed:
                runs["calls_perturbed"] = _kept(side, inputs, setting, changed)
            return runs, setting
    except sides.NotInFloat64 as error:
        return _runs(side, inputs, sides.Setting(setting.mode, False, setting.native, str(error)), changed)


def _gradients(
    model: Any, side: Any, inputs: Any, setting: sides.Setting, calls: list[tuple[Call, Stored]], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the gradients of a random projection of the outputs, and what is known of them; or why there are none."""
    outputs = sides.root([call for call, _ in calls]).outputs
    factors = {n: taken.factor(seed, n, one.shape) for n, one in outputs.items() if one.dtype.kind == "f"}
    if not factors:
        return {}, {"why": "the model that was dumped gives no float"}
    of = _of_torch if isinstance(side, sides.LiveTorch) else _of_jax
    try:
        with _precision(side, double=setting.double):
            found, moved, about = of(model, side, inputs, setting, factors)
    except Exception as error:
        return {}, {"why": f"the model that was dumped has none: {sides.said(error)}"}
    arrays = {f"gradient/{name}": value for name, value in found.flat()}
    arrays |= {f"moved/{name}": value for name, value in moved.items()}
    about["none"] = [name for name, value in found.weights.items() if value is None]
    return arrays, {**about, "loss": found.loss, "inputs": list(found.inputs), "seed": seed}


def _of_torch(model: Any, side: Any, inputs: Any, setting: sides.Setting, factors: Any) -> Any:
    from parity.models.torch_function import TorchFunction

    function, loss = TorchFunction(model, setting.mode, double=setting.double), taken.projection_in_torch(factors)
    made = taken.of_torch(function, inputs, loss)
    unit = UNIT["float32"]
    moved = weighing.measured(lambda: dict(taken.of_torch(function, inputs, loss).flat()), unit, double=setting.double)
    low = taken.low_in_torch(function, inputs, loss) if setting.double else ()
    about = {"trained": list(function.trained), "low": list(low)}
    return made, {name: (value / unit).astype(np.float32) for name, value in moved.items()}, about


def _of_jax(model: Any, side: Any, inputs: Any, setting: sides.Setting, factors: Any) -> Any:
    from parity.models.jax_function import JaxFunction, device_arrays

    function = JaxFunction(model, setting.mode, double=setting.double, mapped=side.mapped, native=setting.native)
    loss, arguments = taken.projection_in_jax(factors), device_arrays(inputs, double=setting.double)
    made = taken.of_jax(function, arguments, loss)
    low = taken.low_in_jax(function, arguments, loss) if setting.double else ()
    return made, {}, {"trained": [], "low": list(low)}


def _precision(side: Any, *, double: bool) -> contextlib.AbstractContextManager[Any]:
    return sides.float64(side, on=double) if isinstance(side, sides.LiveJax) else contextlib.nullcontext()


def _kept(
    side: Any, inputs: Any, setting: sides.Setting, changed: Mapping[str, np.ndarray] | None
) -> list[tuple[Call, Stored]]:
    if isinstance(side, sides.LiveTorch):
        return [(call, _measured(call, setting.double)) for call in side.calls(inputs, setting, changed)]
    calls = side.calls(inputs, setting, changed, None)
    return [
        (call, Stored(call.owner, bounds.low_types(call, torch=False) if setting.double else {}, {})) for call in calls
    ]


def _measured(call: Call, double: bool) -> Stored:
    """Return what else the other side needs of a torch call: the types in it, and what rounding does to its outputs."""
    measured = bounds.Sensitivity(call)
    moved = {
        name: (measured.of(name, "float32") / UNIT["float32"]).astype(np.float32)
        for name, value in call.outputs.items()
        if value.dtype.kind == "f"
    }
    return Stored(call.owner, bounds.low_types(call, torch=True) if double else {}, moved)


def _native(side: Any) -> str:
    floats = [one.dtype for one in side.tree.leaves.values() if one.kind == PARAMETER and one.dtype in UNIT]
    return max(floats, key=lambda name: UNIT[name], default="float32")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
