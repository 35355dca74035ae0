"""One call: compare a torch model with its JAX port, module by module."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parity import needs
from parity.counts import whole
from parity.garbage import what_was_there_set_aside
from parity.models import inputs as _inputs
from parity.models.dump.files import Dump
from parity.models.quickly import compiled_quickly
from parity.models.report import ModelReport
from parity.names import unknown

if TYPE_CHECKING:
    from parity.models.replay import Replayed, Saved

MODES = ("eval", "train")


@needs.named("compare_models")
@what_was_there_set_aside()
@compiled_quickly()
def compare_models(
    torch_model: Any, jax_model: Any, inputs: Any = None, *, weights: Any = None,
    modules: Mapping[str, str] | None = None, mode: str = "eval", loss: Callable[..., Any] | None = None,
    perturb: bool = True, seed: int = 0,
    name: str | None = None, optimizer: Any = None, steps: int = 0, rules: Sequence[Any] = (), fail_fast: bool = False,
    only: str | None = None, strict: bool = False, progress: Callable[[str], object] | None = None,
) -> ModelReport:  # fmt: skip
    """Compare a torch model with its JAX port: which module is wrong, why, and the fix.

    Both models run on the same inputs, in float64 where both can. Modules that hold the same weights are paired, and
    each JAX module runs on the inputs of its torch module. So an error of its own is told from one that it inherits.
    Neither model is changed. See the contract, S12.

    Args:
        torch_model: An `nn.Module`; or a `parity.models.Dump` of one that ran where JAX is not installed.
        jax_model: A Flax NNX module; an Equinox module, or `(module, state)`; a Flax Linen pair `(module, variables)`;
            or a function with its pytree of weights, `(function, params)`, called as `function(params, *inputs)`; or a
            function that holds its own weights, which are then neither paired nor perturbed; or a
            `parity.models.Dump` of one that ran where torch is not installed.
        inputs: A tuple of arrays, a dict of keywords, `parity.Args`, or `parity.models.Inputs(torch=..., jax=...)`
            where the two take them differently; None for those of a dump. An Equinox module that takes one example is
            mapped over the first axis.
        weights: A `WeightMap`; None for `parity.map_weights`.
        modules: The path of a JAX module by the path of its torch module, where weights do not decide.
        mode: "eval" or "train": what both models are put into.
        loss: Of the torch model's output, for the gradients; None for a random projection of all outputs.
        perturb: Whether the models are compared a second time with weights of order one, the same on both sides:
            initial values hide faults.
        seed: Of all random numbers.
        name: Of the report; None for the torch model's class.
        optimizer: Whose step is compared: "sgd", "adam", "adamw" or "rmsprop", such a name with torch's options,
            `("adamw", {"lr": 1e-3})`, or a pair of what makes a torch optimizer of a list of parameters and an optax
            transformation; None for no step.
        steps: How many steps are compared.
        rules: `parity.Rule`s for `map_weights`.
        fail_fast: Whether to stop at the first module that makes an error of its own.
        only: Path of a torch module: only it and what is in it is judged.
        strict: Whether a weight without a partner is a failure.
        progress: Called with the path of each module before it is judged.

    Raises:
        TypeError: A model or the inputs are of an unknown kind.
        ValueError: A model does not run on the inputs, the two have no corresponding output or no number in it, or an
            option has no effect.

    Example:
        >>> import jax.numpy as jnp, numpy as np, torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> params = {"weight": jnp.asarray(layer.weight.detach()), "bias": jnp.asarray(layer.bias.detach())}
        >>> port = (lambda p, x: x @ p["weight"].T + p["bias"], params)
        >>> compare_models(layer, port, (np.ones((4, 3), np.float32),)).ok
        True
    """
    from parity.models import runs

    seed, steps = whole("seed", seed), whole("steps", steps)
    _check(mode, weights, loss, optimizer, steps, progress)
    _check_kinds(modules, {"name": name, "only": only}, {"perturb": perturb, "fail_fast": fail_fast, "strict": strict})
    ours, theirs, both = _sides(torch_model, jax_model, inputs)
    return runs.Comparison(
        ours, theirs, both, weights=weights, told=dict(modules or {}),
        mode=mode, perturb=perturb, seed=seed, name=name or _name(torch_model), rules=rules,
        fail_fast=fail_fast, only=only, strict=strict, progress=progress, loss=loss, optimizer=optimizer, steps=steps,
    ).report()  # fmt: skip


def replayed(
    torch_model: Any, jax_model: Any, inputs: Any, saved: Saved, *, weights: Any = None,
    modules: Mapping[str, str] | None = None, mode: str = "eval", rules: Sequence[Any] = (),
) -> Replayed:  # fmt: skip
    """Run one module of both models again, on the inputs that a report kept.

    Args:
        torch_model: As of `compare_models`, and so are the others.
        jax_model: It runs here, as torch's does.
        inputs: Of the models: they run once, for their modules to be known.
        saved: What `parity.models.replay.read` returns.
        weights: A `WeightMap`, or None.
        modules: Paths of JAX's modules by torch's.
        mode: "eval" or "train".
        rules: For `map_weights`.

    Raises:
        ValueError: A model does not run, or the module is not there or takes other inputs now.
    """
    from parity.models import replay, runs

    _check(mode, weights, None, None, 0, None)
    ours, theirs, both = _sides(torch_model, jax_model, inputs)
    return replay.again(
        runs.Comparison(
            ours, theirs, both, weights=weights, told=dict(modules or {}), mode=mode, perturb=saved.perturbed,
            seed=saved.seed, name=_name(torch_model), rules=rules, fail_fast=False, only=None, strict=False,
            progress=None, loss=None, optimizer=None, steps=0,
        ),
        saved,
    )  # fmt: skip


def _check(mode: str, weights: Any, loss: Any, optimizer: Any, steps: int, progress: Any) -> None:
    """Refuse options that are of no use, before anything runs."""
    from parity.models.weights.weight_map import WeightMap

    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    if weights is not None and not isinstance(weights, WeightMap):
        raise TypeError(f"weights: expected a WeightMap of parity.map_weights, got {type(weights).__name__}")
    for one in loss if isinstance(loss, tuple) else (loss,):
        if one is not None and not callable(one):
            raise TypeError(
                f"loss: expected a function of a model's output, or a pair (torch, JAX) of such, got {loss!r}"
            )
    if progress is not None and not callable(progress):
        raise TypeError(f"progress: expected a function of a path, got {type(progress).__name__}")
    if steps and optimizer is None:
        raise ValueError(f"steps: expected optimizer= with steps={steps}, for example 'adamw', got none")
    if optimizer is not None:
        from parity.models.optimizers import both, made

        make, _ = both(optimizer)
        named = isinstance(optimizer if isinstance(optimizer, str) else optimizer[0], str)
        if named and importlib.util.find_spec("torch") is not None:
            import torch

            made(make, [torch.nn.Parameter(torch.zeros(1))])  # before anything runs; of a maker it is not known what of


def _check_kinds(modules: Any, texts: dict[str, Any], switches: dict[str, Any]) -> None:
    """Refuse options of another kind: text is true, whatever it says."""
    if modules is not None and not isinstance(modules, Mapping):
        raise TypeError(f"modules: expected a dict of paths, torch's to JAX's, got {type(modules).__name__}")
    for option, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{option}: expected text, got {value!r}")
    for option, value in switches.items():
        if not isinstance(value, bool):
            raise TypeError(f"{option}: expected True or False, got {value!r}")


def _sides(torch_model: Any, jax_model: Any, inputs: Any) -> tuple[Any, Any, tuple[_inputs.Call, _inputs.Call]]:
    """Return both sides and their inputs; a dump brings its own."""
    from parity.models import sides
    from parity.models.dump.stored import StoredSide

    dumps = {"torch": torch_model, "jax": jax_model}
    dumps = {side: one for side, one in dumps.items() if isinstance(one, Dump)}
    for side, one in dumps.items():
        if one.side != side:
            raise TypeError(f"{side}_model: expected a model of {side} or a dump of one, got a dump of {one.side}")
    if len(dumps) == 2:
        raise TypeError("expected one model that runs here: with two dumps no module can be run alone")
    ours: Any = StoredSide(torch_model) if "torch" in dumps else sides.LiveTorch(torch_model)
    theirs: Any = StoredSide(jax_model) if "jax" in dumps else sides.LiveJax(jax_model)
    if inputs is None:
        if not dumps:
            raise TypeError("inputs: expected a tuple of arrays, got None, which is for a dump: that brings its own")
        ((_, only),) = dumps.items()
        both = only.inputs, only.inputs
    else:
        first, second = _inputs.of_both(inputs)
        both = (
            torch_model.inputs if "torch" in dumps else first,
            jax_model.inputs if "jax" in dumps else second,
        )
    return ours, theirs, both


def _name(model: Any) -> str:
    return str(model.meta["name"]) if isinstance(model, Dump) else type(model).__name__


def assert_same_model(torch_model: Any, jax_model: Any, inputs: Any = None, **options: Any) -> ModelReport:
    """Compare two models, and raise AssertionError with the report as its text unless they are the same function.

    Takes what `compare_models` takes, and returns its report.

    Example:
        >>> import jax.numpy as jnp, numpy as np, torch
        >>> layer = torch.nn.Linear(3, 2, bias=False)
        >>> port = (lambda p, x: x @ p["weight"].T, {"weight": jnp.asarray(layer.weight.detach())})
        >>> report = assert_same_model(layer, port, (np.ones((4, 3), np.float32),))
    """
    report = compare_models(torch_model, jax_model, inputs, **options)
    report.raise_if_failed()
    return report
