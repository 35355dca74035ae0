"""One call: hold a JAX model to the torch model that it is a port of, module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parity.models import inputs as _inputs
from parity.models.report import ModelReport
from parity.names import unknown

MODES = ("eval", "train")


def compare_models(
    torch_model: Any, jax_model: Any, inputs: Any, *, weights: Any = None, modules: Mapping[str, str] | None = None,
    mode: str = "eval", loss: Callable[..., Any] | None = None, perturb: bool = True, seed: int = 0,
    name: str | None = None, optimizer: Any = None, steps: int = 0, rules: Sequence[Any] = (), fail_fast: bool = False,
    only: str | None = None, strict: bool = False, progress: Callable[[str], object] | None = None,
) -> ModelReport:  # fmt: skip
    """Compare a torch model with its JAX port: which module is wrong, why, and the fix.

    Both models run on the same inputs, in float64 where both can. Modules that hold the same weights are paired, and
    each JAX module is run on what its torch module was given: an error that it makes itself is told from one that it
    inherits. Neither model is changed. SPEC S12.

    Args:
        torch_model: An `nn.Module`.
        jax_model: A Flax NNX module; an Equinox module, or `(module, state)`; a Flax Linen pair `(module, variables)`;
            or a function of a pytree with its weights, `(function, params)`, called as `function(params, *inputs)`.
        inputs: A tuple of arrays, a dict of keywords, `parity.Args`, or `parity.models.Inputs(torch=..., jax=...)`
            where the two take them differently. An Equinox module that takes one example is mapped over the first axis.
        weights: A `WeightMap`; None for `parity.map_weights`.
        modules: Paths of torch modules, and of the JAX modules that they are, where weights do not tell.
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
        TypeError: A model or the inputs are of no kind that is known.
        ValueError: A model does not run on the inputs, or the two give no output that corresponds.

    Example:
        >>> import jax.numpy as jnp, numpy as np, torch
        >>> layer = torch.nn.Linear(3, 2)
        >>> params = {"weight": jnp.asarray(layer.weight.detach()), "bias": jnp.asarray(layer.bias.detach())}
        >>> port = (lambda p, x: x @ p["weight"].T + p["bias"], params)
        >>> compare_models(layer, port, (np.ones((4, 3), np.float32),)).ok
        True
    """
    from parity.models import runs, sides

    if mode not in MODES:
        raise ValueError(unknown("mode", mode, MODES))
    both = _inputs.of_both(inputs)
    return runs.Comparison(
        sides.LiveTorch(torch_model), sides.LiveJax(jax_model), both, weights=weights, told=dict(modules or {}),
        mode=mode, perturb=perturb, seed=seed, name=name or type(torch_model).__name__, rules=rules,
        fail_fast=fail_fast, only=only, strict=strict, progress=progress, loss=loss, optimizer=optimizer, steps=steps,
    ).report()  # fmt: skip


def assert_same_model(torch_model: Any, jax_model: Any, inputs: Any, **options: Any) -> ModelReport:
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
