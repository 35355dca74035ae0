"""Parts of JAX and optax whose names move between versions, in one place (tests/test_private_names_jax.py watches)."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad, batching, mlir

Primitive = type(jax.lax.add_p)  # jax.extend.core has it by name, and takes as long to import as all that is here


def is_tracer(value: Any) -> bool:
    """Tell whether a value is traced: its shape is known, its numbers are not."""
    return isinstance(value, jax.core.Tracer)


def x64_enabled() -> bool:
    """Tell whether float64 stays float64 (`jax_enable_x64`, also as a context manager)."""
    return bool(getattr(jax.config, "jax_enable_x64"))  # noqa: B009  (made at run time, unknown to type checkers)


def matmul_precision() -> Any:
    """Return the precision that products are asked for (`jax_default_matmul_precision`, also as a context manager)."""
    return getattr(jax.config, "jax_default_matmul_precision")  # noqa: B009  (as above)


def is_symbolic_zero(tangent: Any) -> bool:
    """Tell whether a tangent or cotangent is a zero that was never computed."""
    return isinstance(tangent, SymbolicZero) or getattr(tangent, "dtype", None) == jax.dtypes.float0


def device_of(value: Any) -> Any:
    """Return the one device an array was put on, or None where JAX is free to choose or several hold it."""
    if not isinstance(value, jax.Array) or is_tracer(value) or not value.committed:
        return None
    devices = value.sharding.device_set
    return next(iter(devices)) if len(devices) == 1 else None


def varying_axes(array: Any) -> frozenset[str]:
    """Return the axes of a mesh along which a part of an array differs from device to device (inside of shard_map)."""
    kind: Any = jax.typeof(array)
    # (`vma` before jax 0.10.)
    return kind.mat.varying if hasattr(kind, "mat") else kind.vma


def explicit_sharding(array: Any) -> Any:
    """Return an array's sharding where that is part of its type (`jax.sharding.AxisType.Explicit`), else None."""
    sharding = jax.typeof(array).sharding
    return sharding if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types else None


def laid_out_as(array: Any, like: Any) -> Any:
    """Return an array with the sharding of another one, where that is part of its type."""
    sharding = explicit_sharding(like)
    return array if sharding is None else jax.sharding.reshard(array, sharding)


def auto_axes(function: Callable[..., Any], sharding: Any) -> Callable[..., Any]:
    """Let the compiler shard what a function does, and give what it returns a sharding; None = leave it alone."""
    return function if sharding is None else jax.sharding.auto_axes(function, out_sharding=sharding)


def primitive(
    name: str,
    implementation: Callable[..., Any],
    lowering: Callable[..., Any],
    output_type: Callable[..., Any],
    batch: Any,
    tangent: Any,
    transpose: Any,
) -> Any:
    """Return a primitive, with a rule for each transformation.

    `lowering` is the function that is lowered. Beside the operands and the parameters it is given `platforms`, the
    names of what the program is lowered for: several where it is exported for several.

    A custom_vjp has no forward mode and a custom_jvp no transpose of its own, so neither can hold a product
    that is linear by meaning and not by its operations, such as one that rounds.
    """
    made = Primitive(name)
    made.def_impl(implementation)
    made.def_abstract_eval(output_type)
    batching.primitive_batchers[made] = batch
    ad.primitive_jvps[made] = tangent
    ad.primitive_transposes[made] = transpose

    def rule(context: Any, *operands: Any, **parameters: Any) -> Any:
        platforms = tuple(context.platforms or context.module_context.platforms)
        lowered = mlir.lower_fun(functools.partial(lowering, platforms=platforms), multiple_results=False)
        return lowered(context, *operands, **parameters)

    mlir.register_lowering(made, rule)
    return made


def output_type(function: Callable[..., Any], operands: Sequence[Any]) -> Any:
    """Return what a primitive is told of the output of a function: shape, dtype, and how it varies over a mesh."""
    (found,) = jax.make_jaxpr(function)(*operands).out_avals
    return found


def as_pure(state: Any) -> Any:
    """Return a Flax NNX state as a nest of arrays: `nnx.as_pure`, which was `nnx.pure` before Flax 0.12.8."""
    from flax import nnx  # not on import: only `maskedlinear_jax.nnx` needs Flax

    return (getattr(nnx, "as_pure", None) or nnx.pure)(state)


def is_linear(operand: Any) -> bool:
    """Tell whether an operand of a transpose rule is the one to transpose by."""
    return ad.is_undefined_primal(operand)


def is_zero(tangent: Any) -> bool:
    """Tell whether a tangent or cotangent of a primitive's rule is a zero that was never computed."""
    return isinstance(tangent, ad.Zero)


def evaluate(step: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Return the results of one step of a traced program, as a list."""
    found = step.primitive.get_bind_params(step.params)
    functions, parameters = found if isinstance(found, tuple) else ((), found)  # (a pair before jax 0.9.2.)
    with step.ctx.manager:
        results = step.primitive.bind(*functions, *operands, **parameters)
    return results if step.primitive.multiple_results else [results]


_MOVES = ("add_decayed_weights", "add_noise", "keep_params_nonnegative", "centralize", "scale_by_muon")
"""What makes of an update of zero another one."""

_STEPS = {"chain.<locals>.update_fn": ("update_fns", "fn"), "named_chain.<locals>.update_fn": ("transforms", "tx")}
"""Functions of optax that call one transformation after the other, and what they call these and the present one."""

_AROUND = {"schedule_free.<locals>.update_fn": "schedule_free around it"}
"""Functions of optax that compute the parameters themselves from the updates of another, and what makes them."""


def found_behind(update: CodeType) -> str | None:
    """Return in words what of optax may move an update of zero, behind a held transformation in a chain or around it.

    A transformation does not know what it stands in: the calls around it do, by names of optax's own functions.

    Args:
        update: The code that holds. Inside of another call of it nothing is looked for, since that holds too.
    """
    found = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code is update:
            return None
        if found is None and frame.f_code.co_qualname in _STEPS:
            steps, now = (frame.f_locals.get(name, ()) for name in _STEPS[frame.f_code.co_qualname])
            here = [any(part is now for part in (step if isinstance(step, tuple) else [step])) for step in steps]
            behind = steps[here.index(True) + 1 :] if any(here) else ()
            found = next(
                (f"{name} later in the chain" for step in behind if (name := _mover(step, is_update=True))), None
            )
        found = found or _AROUND.get(frame.f_code.co_qualname)
        frame = frame.f_back
    return found


def _mover(node: Any, deep: int = 12, *, is_update: bool = False) -> str | None:
    # Looks into what functions of optax are made of. Of a function of others nobody knows what it makes of zero.
    node = getattr(node, "__wrapped__", node)  # jitted
    parts: Any = ()
    if isinstance(node, functools.partial):
        parts = node.func, *node.args
    elif isinstance(node, tuple) and hasattr(node, "update"):
        return _mover(node.update, deep - 1, is_update=True) if deep else None
    elif isinstance(node, tuple | list):
        is_update, parts = False, [one for one in node if not isinstance(one, str)]
    elif isinstance(node, dict):
        is_update, parts = False, node.values()
    elif isinstance(node, MethodType) and _is_of(node.__self__, "optax"):
        is_update, parts = False, vars(node.__self__).values()
    elif isinstance(node, FunctionType) and _is_of(node, "optax"):
        cells = zip(node.__code__.co_freevars, node.__closure__ or (), strict=True)
        inside = {name: cell.cell_contents for name, cell in cells}
        name, decay = node.__qualname__.partition(".")[0], inside.get("weight_decay")
        if name in _MOVES and not (isinstance(decay, int | float) and decay == 0):
            return name
        if name == "inject_hyperparams" and "inner_factory" in inside:
            used = _names_in(inside.pop("inner_factory"))
            if any(name in used for name in _MOVES):
                return next(name for name in _MOVES if name in used)
        if name.startswith("stateless") and (mover := _mover(inside.pop("f", None), deep - 1, is_update=True)):
            return mover
        is_update, parts = False, inside.values()
    elif is_update and callable(node) and not _is_of(node, "maskedlinear_jax"):
        return f"{getattr(node, '__qualname__', type(node).__name__)} (of which it cannot be told what it moves)"
    found = (_mover(one, deep - 1, is_update=is_update) for one in parts if deep)
    return next((name for name in found if name), None)


def _is_of(node: Any, package: str) -> bool:
    return str(getattr(node, "__module__", "")).partition(".")[0] == package


def _names_in(factory: Any, deep: int = 2) -> set[str]:
    # The names that a function which makes a transformation uses, and those that functions of optax use in turn.
    import optax  # it is there: its frame was found

    names = set(getattr(getattr(factory, "__code__", None), "co_names", ())) | {getattr(factory, "__name__", "")}
    inner = [getattr(optax, name, None) for name in names if deep]
    return names.union(*(_names_in(one, deep - 1) for one in inner if isinstance(one, FunctionType)))
