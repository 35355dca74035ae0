"""The transforms, as data: a program both frameworks run, and what the oracle says it gives.

A program is written once, on the names that torch.func and JAX share; each world lends its own `ops`
(`torch_backend.py` and `jax_backend.py` of `parity/execution`). It gets `f(*theta)`, the layer under test as a
function of input, weight and bias that returns a tuple of its output, and the problem's arrays `a`. It returns arrays
by name. Transforms that parity has for any function are taken from there.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.execution.calls import Numbers
from parity.operator import transforms as shared
from parity.suites.masked_linear import oracle
from parity.suites.masked_linear.cases import COPIES, Problem
from parity.suites.masked_linear.numbers import NON_FINITE
from parity.suites.masked_linear.oracle import Point, Tree

Program = shared.Program


@dataclass(frozen=True)
class Transform(shared.Transform):
    """One transform of parity, with what the layer must give under it.

    Attributes:
        oracle: What it must give; of the problem of absolute values, the majorant.
        applies: Whether a problem has what the transform needs.
        rounds: Whether it rounds outside of the layer: such steps are the framework's, not reproducible.
    """

    oracle: Callable[[Problem], Tree] = lambda problem: {}
    applies: Callable[[Problem], bool] = lambda problem: True
    rounds: bool = False


def majorant(problem: Problem) -> Problem:
    """Return the problem of absolute values."""

    def absolute(tree: Tree) -> Tree:
        return {name: np.abs(part) for name, part in tree.items()}

    return replace(
        problem,
        point=problem.point.majorant(),
        cotangent=np.abs(problem.cotangent),
        directions=tuple(absolute(direction) for direction in problem.directions),
        copies=absolute(problem.copies),
    )


def frozen(problem: Problem, transform: str, output: str) -> np.ndarray | None:
    """Return which entries of an output must be +0.0 bit for bit: the derivatives *of* a frozen gradient (S3).

    Gradients are named "by weight", Jacobians "output by weight", of which the argument's axes come last. Hessians are
    "by weight by input": the first is the gradient, the second what it was differentiated by. A derivative *by* a
    frozen entry is zero too, and compared by value; its sign is that of 0 * x.
    """
    _, *names = output.split("by ")
    left, right = (name.strip() for name in (*names, "", "")[:2])
    if "mask" in transform or "everything" in transform:
        return ~np.stack([problem.mask_array(copy) for copy in range(COPIES)]) if left == "weight" else None
    lines = {"weight": ~problem.point.mask, "bias": ~problem.point.bias_mask}
    if left not in lines:
        return None
    trailing = problem.point.theta[right].ndim if right else 0
    return lines[left].reshape(lines[left].shape + (1,) * trailing)


def named(tree: Tree) -> Tree:
    """Return a tree of gradients, or a Hessian, by the names that parity gives to outputs.

    Example:
        >>> [*named({"input": np.ones(1), "weight/bias": np.ones(1), "tangent": np.ones(1)})]
        ['by input', 'by weight by bias', 'tangent']
    """
    return {_name(name): part for name, part in tree.items()}


def _name(name: str) -> str:
    first, _, second = name.partition("/")
    if first not in _ARGUMENTS:
        return name
    return f"by {first} by {second}" if second else f"by {first}"


_ARGUMENTS = ("input", "weight", "bias")


def _tree(a: dict[str, Any], parts: Any) -> dict[str, Any]:
    return {f"by {name}": part for name, part in zip(a["names"], parts, strict=True)}


def _all(a: dict[str, Any]) -> tuple[int, ...]:
    return tuple(range(len(a["theta"])))


def _only(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer as a function whose result is its output."""
    return lambda *theta, **keywords: f(*theta, **keywords)[0]


def _inner(left: Any, right: Any) -> Any:
    return sum((x * y).sum() for x, y in zip(left, right, strict=True))


def _of_any(name: str) -> Program:
    return shared.BY_NAME[name].program


# First order.


def _forward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {"output": f(*a["theta"])[0], "native": ops.linear(*a["theta"])}


def _forward_alone(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {"output": f(*a["theta"])[0]}


def _accumulate(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.backward(f, a["theta"], (a["cotangents"], a["cotangents"])))


def _adjoint(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {**_of_any("jvp")(ops, f, a), **_of_any("vjp")(ops, f, a)}


def _adjoint_finish(numbers: Numbers, outputs: Tree) -> Tree:
    along = dict(zip(numbers.names, numbers.directions[0], strict=True))
    reverse = sum(np.sum(outputs[f"by {name}"] * direction) for name, direction in along.items())
    return {"<Jv, g>": np.sum(outputs["tangent"] * numbers.cotangents[0]), "<v, J^T g>": np.asarray(reverse)}


def _adjoint_oracle(problem: Problem) -> Tree:
    product = np.sum(oracle.jvp(problem.point, problem.directions[0]) * problem.cotangent)
    return {"<Jv, g>": product, "<v, J^T g>": product}


def _non_finite(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["bad input"], *a["theta"][1:])
    return _tree(a, ops.vjp(f, *theta)[1]((a["bad cotangent"],)))


# Batched.


def _vmap(*batched: str) -> Program:
    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        names = (*a["names"], "cotangent")
        values, copies = (*a["theta"], *a["cotangents"]), (*a["copies"], a["cotangent copies"])
        args = tuple(c if n in batched else v for n, v, c in zip(names, values, copies, strict=True))
        axes = tuple(0 if n in batched else None for n in names)
        leaves = a["mask copies"] if "mask" in batched else ()

        def one(*args: Any) -> tuple[Any, ...]:
            theta, cotangent, positions = args[: len(names) - 1], args[len(names) - 1], args[len(names) :]
            layer = (lambda *theta: _only(f)(*theta, positions=positions)) if positions else _only(f)
            output, pull = ops.vjp(layer, *theta)
            return (output, *pull(cotangent))

        output, *gradients = ops.vmap(one, (*axes, *(0 for _ in leaves)))(*args, *leaves)
        return {"output": output, **_tree(a, gradients)}

    return program


def _vmap_oracle(*batched: str) -> Callable[[Problem], Tree]:
    def tree(problem: Problem) -> Tree:
        copies = []
        for copy in range(COPIES):
            point, cotangent = problem.with_copy(batched, copy)
            copies.append({"output": oracle.forward(point), **oracle.vjp(point, cotangent)})
        return {name: np.stack([one[name] for one in copies]) for name in copies[0]}

    return tree


def _of_copies(ops: Any, f: Any) -> Callable[..., Any]:
    """Return the layer over copies of the input, with one weight and bias for all."""
    return lambda x, *rest: ops.vmap(lambda x: f(x, *rest)[0], (0,))(x)


def _gradient_of_vmap(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["copies"][0], *a["theta"][1:])
    return _tree(a, ops.vjp(_of_copies(ops, f), *theta)[1](a["cotangent copies"]))


def _tangent_of_vmap(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["copies"][0], *a["theta"][1:])
    along = (a["copies"][0], *a["directions"][0][1:])
    return {"tangent": ops.jvp(_of_copies(ops, f), theta, along)[1]}


def _gradient_of_vmap_oracle(problem: Problem) -> Tree:
    copies = [oracle.vjp(*problem.with_copy(("input", "cotangent"), copy)) for copy in range(COPIES)]
    stacked = {name: np.stack([one[name] for one in copies]) for name in copies[0]}
    return {name: part if name == "input" else part.sum(0) for name, part in stacked.items()}


def _tangent_of_vmap_oracle(problem: Problem) -> Tree:
    points = [problem.with_copy(("input",), copy)[0] for copy in range(COPIES)]
    return {
        "tangent": np.stack([
            oracle.jvp(point, problem.directions[0] | {"input": point.theta["input"]}) for point in points
        ])
    }  # fmt: skip


def _per_sample(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def gradient(x: Any, u: Any, c: Any) -> Any:
        def loss(*rest: Any) -> Any:
            return (c * u * f(x, *rest)[0] ** 2).sum() * 0.5

        return ops.grad(loss, tuple(range(len(a["theta"]) - 1)))(*a["theta"][1:])

    gradients = ops.vmap(gradient, (0, 0, 0))(a["theta"][0], a["scales"][0], a["cotangents"][0])
    return {f"by {name}": part for name, part in zip(a["names"][1:], gradients, strict=True)}


def _per_sample_oracle(problem: Problem) -> Tree:
    point, samples = problem.point, []
    for x, u, c in zip(point.theta["input"], point.scale, problem.cotangent, strict=True):
        sample = Point({**point.theta, "input": x}, point.mask, point.bias_mask, u, point.arithmetic)
        samples.append(oracle.quadratic_gradient(sample, c, ()))
    return {name: np.stack([one[name] for one in samples]) for name in point.theta if name != "input"}


# Second order.


def _hvp_oracle(problem: Problem) -> Tree:
    return oracle.quadratic_gradient(problem.point, problem.cotangent, problem.directions[:1])


def _gradient_penalty(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def penalty(*theta: Any) -> Any:
        gradient = ops.grad(lambda *theta: (a["cotangents"][0] * f(*theta)[0]).sum(), 0)(*theta)
        return (gradient**2).sum() * 0.5

    return _tree(a, ops.grad(penalty, _all(a))(*a["theta"]))


def _side(ops: Any) -> Any:
    """Return the layer's side in the framework of some names."""
    return importlib.import_module(f"parity.suites.masked_linear.{ops.framework}_side")


def _double_backward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, _side(ops).gradient_penalty(_only(f), a["theta"], a["cotangents"][0]))


def _has_squares(problem: Problem) -> bool:
    """Return whether the squares of gradients stay in the range: those of the largest data do not."""
    return problem.case.data not in (*NON_FINITE, "overflowing")


def _double_backward_of_weight(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, _side(ops).weight_penalty(_only(f), a["theta"], a["cotangents"][0]))


def _penalty_oracle(problem: Problem) -> Tree:
    return oracle.gradient_penalty(problem.point, problem.cotangent)


# Every sequence of modes.


def _sequence(modes: str) -> Program:
    """Differentiate y^2 / 2 by these modes, the last letter innermost: f forward, r reverse.

    Without coefficients: Dynamo fails to multiply a tensor that carries no tangent in nested forward mode.
    """

    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        def value(*theta: Any) -> Any:
            return f(*theta)[0] ** 2 * 0.5

        step: Callable[..., Any] = value
        for mode, direction in zip(reversed(modes), a["directions"], strict=False):
            step = _forward_step(ops, step, direction) if mode == "f" else _reverse_step(ops, step, direction, a)
        result = step(*a["theta"])
        return _tree(a, result) if "r" in modes else {"tangent": result}

    return program


def _forward_step(ops: Any, step: Callable[..., Any], direction: Any) -> Callable[..., Any]:
    return lambda *theta: ops.jvp(step, theta, direction)[1]


def _reverse_step(ops: Any, step: Callable[..., Any], direction: Any, a: dict[str, Any]) -> Callable[..., Any]:
    def scalar(*theta: Any) -> Any:
        value = step(*theta)
        # The first reverse step meets the function's value, a later one a gradient.
        return _inner(value, direction) if isinstance(value, tuple) else value.sum()

    return lambda *theta: tuple(ops.grad(scalar, _all(a))(*theta))


def _of_layer(modes: str) -> Program:
    """Differentiate the layer itself twice, with a constant cotangent: nothing is rounded outside of it."""

    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        first, second = a["directions"][:2]
        layer = _only(f)

        def tangent(*theta: Any) -> Any:
            return ops.jvp(layer, theta, first)[1]

        def gradients(*theta: Any) -> Any:
            return ops.vjp(layer, *theta)[1](a["cotangents"][0])

        if modes == "ff":
            return {"tangent": ops.jvp(tangent, a["theta"], second)[1]}
        if modes == "fr":
            return _tree(a, ops.jvp(gradients, a["theta"], first)[1])
        if modes == "rf":
            return _tree(a, ops.vjp(tangent, *a["theta"])[1](a["cotangents"][0]))
        return _tree(a, ops.vjp(gradients, *a["theta"])[1](first))

    return program


def _of_layer_oracle(modes: str) -> Callable[[Problem], Tree]:
    def tree(problem: Problem) -> Tree:
        if modes == "ff":
            return {"tangent": oracle.second_tangent(problem.point, problem.directions[:2])}
        return oracle.second_gradient(problem.point, problem.cotangent, problem.directions[0])

    return tree


def _sequence_oracle(modes: str) -> Callable[[Problem], Tree]:
    def tree(problem: Problem) -> Tree:
        point = replace(problem.point, scale=np.ones_like(problem.point.scale))
        used = list(problem.directions[: len(modes)])
        if "r" not in modes:
            return {"tangent": oracle.quadratic(point, used)}
        del used[modes[::-1].index("r")]  # the first reverse step sums over the outputs instead
        return oracle.quadratic_gradient(point, np.ones(()), used)

    return tree


def _has_bias(problem: Problem) -> bool:
    return problem.case.bias


def _has_mask_copies(problem: Problem) -> bool:
    return problem.mask_copies is not None


def _has_samples(problem: Problem) -> bool:
    return bool(problem.case.batch) and problem.case.batch[0] > 0 and not problem.case.wide


def _not_empty(problem: Problem) -> bool:
    return problem.point.scale.size > 0 and problem.point.theta["weight"].size > 0


def _is_hard(problem: Problem) -> bool:
    return problem.case.hard and problem.case.data not in NON_FINITE


def _vjp_oracle(problem: Problem) -> Tree:
    return oracle.vjp(problem.point, problem.cotangent)


def _twice(problem: Problem) -> Tree:
    return {name: problem.point.arithmetic.add(part, part) for name, part in _vjp_oracle(problem).items()}


def _jvp_oracle(problem: Problem) -> Tree:
    return {"tangent": oracle.jvp(problem.point, problem.directions[0])}


def _jacobian(of: Callable[[Point], Tree]) -> Callable[[Problem], Tree]:
    return lambda problem: {f"output by {name}": part for name, part in of(problem.point).items()}


SEQUENCES = tuple("".join(modes) for order in (1, 2, 3) for modes in itertools.product("fr", repeat=order))
"""All 2 + 4 + 8 sequences of modes, outermost first (S4)."""

_EVERYTHING = ("input", "weight", "bias", "cotangent", "mask")


def _row(
    name: str, clause: str, order: int, program: Program, oracle: Callable[[Problem], Tree],
    applies: Callable[[Problem], bool] = lambda problem: True, *, forward_mode: bool = False, **more: Any,
) -> Transform:  # fmt: skip
    # JAX needs forward_mode=True for outermost forward mode.
    return Transform(
        name, order, program, clause=clause, keywords={"forward_mode": forward_mode}, applies=applies,
        oracle=lambda problem: named(oracle(problem)), **more,
    )  # fmt: skip


TRANSFORMS = (
    _row("forward", "S2", 0, _forward, lambda p: {"output": oracle.forward(p.point)},
         same={"output": ("native", "the framework's own linear layer is the forward")}),
    _row("vjp", "S3", 1, _of_any("vjp"), _vjp_oracle),
    _row("vjp-forward-mode-rule", "S5", 1, _of_any("vjp"), _vjp_oracle, forward_mode=True),
    _row("backward", "S3", 1, _of_any("backward"), _vjp_oracle, outside=True),
    _row("accumulate", "S5", 1, _accumulate, _twice, outside=True),
    _row("jvp", "S3", 1, _of_any("jvp"), _jvp_oracle, forward_mode=True),
    _row("jvp-default-rule", "S5", 1, _of_any("jvp"), _jvp_oracle),
    _row("adjoint", "S3", 1, _adjoint, _adjoint_oracle, forward_mode=True, finish=_adjoint_finish, rounds=True),
    _row("non-finite", "S3", 1, _non_finite, _vjp_oracle, values=False),
    _row("vmap-input", "S5", 1, _vmap("input"), _vmap_oracle("input")),
    _row("vmap-weight", "S5", 1, _vmap("weight"), _vmap_oracle("weight")),
    _row("vmap-bias", "S5", 1, _vmap("bias"), _vmap_oracle("bias"), _has_bias),
    _row("vmap-cotangent", "S5", 1, _vmap("cotangent"), _vmap_oracle("cotangent")),
    _row("vmap-mask", "S5", 1, _vmap("mask"), _vmap_oracle("mask"), _has_mask_copies),
    _row("vmap-input-weight", "S5", 1, _vmap("input", "weight"), _vmap_oracle("input", "weight")),
    _row("vmap-everything", "S5", 1, _vmap(*_EVERYTHING), _vmap_oracle(*_EVERYTHING), _has_mask_copies),
    # Of order 2 for the sake of exactness: their sums over the copies are longer than a gradient's.
    _row("gradient-of-vmap", "S5", 2, _gradient_of_vmap, _gradient_of_vmap_oracle, rounds=True),
    _row("tangent-of-vmap", "S5", 2, _tangent_of_vmap, _tangent_of_vmap_oracle, forward_mode=True),
    _row("per-sample-gradients", "S5", 1, _per_sample, _per_sample_oracle, _has_samples, rounds=True),
    _row("jacrev", "S5", 1, _of_any("jacrev"), _jacobian(oracle.jacobian), _not_empty, dense=1),
    _row("jacfwd", "S5", 1, _of_any("jacfwd"), _jacobian(oracle.jacobian_forward), _not_empty, forward_mode=True,
         dense=1),
    _row("hessian", "S4", 2, _of_any("hessian"), lambda p: oracle.hessian(p.point, p.cotangent), _not_empty, dense=2,
         rounds=True),
    _row("hvp-forward-over-reverse", "S4", 2, _of_any("hvp-forward-over-reverse"), _hvp_oracle, rounds=True),
    _row("hvp-reverse-over-reverse", "S4", 2, _of_any("hvp-reverse-over-reverse"), _hvp_oracle, rounds=True),
    _row("hvp-reverse-over-forward", "S4", 2, _of_any("hvp-reverse-over-forward"), _hvp_oracle, forward_mode=True,
              rounds=True),
    _row("gradient-penalty", "S4", 2, _gradient_penalty, _penalty_oracle),
    _row("double-backward", "S4", 2, _double_backward, _penalty_oracle, outside=True),
    _row("double-backward-of-weight", "S4", 2, _double_backward_of_weight,
         lambda p: oracle.weight_penalty(p.point, p.cotangent), _has_squares, outside=True),
    *(
        _row(f"modes-{modes}", "S4", len(modes), _sequence(modes), _sequence_oracle(modes),
                  forward_mode="f" in modes, rounds=True)
        for modes in SEQUENCES
    ),
    *(
        _row(f"layer-{modes}", "S9", 2, _of_layer(modes), _of_layer_oracle(modes), _is_hard,
                  forward_mode=modes in ("ff", "rf"))
        for modes in ("ff", "fr", "rf", "rr")
    ),
)  # fmt: skip
"""The grid's transforms."""

BY_NAME = {transform.name: transform for transform in TRANSFORMS}


def reproducible(transform: Transform) -> Transform:
    """Return the transform for a layer in reproducible precision, which the framework's own layer is no measure of."""
    return replace(transform, program=_forward_alone, same={}) if transform.same else transform
