"""The transforms, as data: a program both frameworks run, and what the oracle says it gives.

A program is written once, on the names that torch.func and JAX share; each world lends its own `ops`
(torch_side.py, jax_side.py). It gets `f(*theta)`, the layer under test as a function of input,
weight and bias, and the problem's arrays `a`, and returns arrays by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from parity.subjects.masked_linear import oracle
from parity.subjects.masked_linear.cases import COPIES, Problem
from parity.subjects.masked_linear.numbers import NON_FINITE
from parity.subjects.masked_linear.oracle import Point, Tree

Program = Callable[[Any, Callable[..., Any], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Transform:
    """One transform.

    Attributes:
        name: Its name.
        clause: The clause of the SPEC it holds the op to.
        order: Of derivative: what the exact tier must hold exactly.
        program: What a world runs.
        oracle: What it must give; of the problem of absolute values, the majorant.
        applies: Whether a problem has what the transform needs.
        forward_mode: Whether JAX needs forward_mode=True for it (outermost forward mode).
        dense: Whether it makes whole Jacobians: not for wide cases.
        finish: Turns outputs into what the oracle speaks of, in NumPy float64.
        values: Whether values are compared, or frozen entries only.
        rounds: Whether it rounds outside of the layer: such steps are the framework's, not reproducible.
    """

    name: str
    clause: str
    order: int
    program: Program
    oracle: Callable[[Problem], Tree]
    applies: Callable[[Problem], bool] = lambda problem: True
    forward_mode: bool = False
    dense: bool = False
    finish: Callable[[Problem, Tree], Tree] = lambda problem, outputs: outputs
    values: bool = True
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


def frozen(problem: Problem, output: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return which entries of an output must be +0.0 bit for bit: the derivatives *of* a frozen gradient (S3).

    Gradients and Jacobians are named by the argument, whose axes come last. Hessians are named "left/right":
    left is the gradient, right what it was differentiated by. A derivative *by* a frozen entry is zero too,
    and compared by value; its sign is that of 0 * x.
    """
    left, _, right = output.partition("/")
    lines = {"weight": ~problem.point.mask, "bias": ~problem.point.bias_mask}
    if left not in lines:
        return np.zeros(shape, bool)
    trailing = problem.point.theta[right].ndim if right else 0
    return np.broadcast_to(lines[left].reshape(lines[left].shape + (1,) * trailing), shape)


def _names(a: dict[str, Any]) -> tuple[str, ...]:
    return ("input", "weight", "bias")[: len(a["theta"])]


def _tree(a: dict[str, Any], parts: Any) -> dict[str, Any]:
    return dict(zip(_names(a), parts, strict=True))


def _all(a: dict[str, Any]) -> tuple[int, ...]:
    return tuple(range(len(a["theta"])))


def _loss(f: Callable[..., Any], a: dict[str, Any]) -> Callable[..., Any]:
    return lambda *theta: (a["cotangent"] * a["scale"] * f(*theta) ** 2).sum() * 0.5


def _inner(left: Any, right: Any) -> Any:
    return sum((x * y).sum() for x, y in zip(left, right, strict=True))


# First order.


def _forward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {"output": f(*a["theta"]), "native": ops.linear(*a["theta"])}


def _vjp(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.vjp(f, *a["theta"])[1](a["cotangent"]))


def _backward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.backward(f, a["theta"], (a["cotangent"],)))


def _accumulate(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.backward(f, a["theta"], (a["cotangent"], a["cotangent"])))


def _jvp(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {"output": ops.jvp(f, a["theta"], a["directions"][0])[1]}


def _adjoint(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return {"tangent": ops.jvp(f, a["theta"], a["directions"][0])[1], **_vjp(ops, f, a)}


def _adjoint_finish(problem: Problem, outputs: Tree) -> Tree:
    reverse = sum(np.sum(outputs[name] * problem.directions[0][name]) for name in problem.point.theta)
    return {"<Jv, g>": np.sum(outputs["tangent"] * problem.cotangent), "<v, J^T g>": np.asarray(reverse)}


def _adjoint_oracle(problem: Problem) -> Tree:
    product = np.sum(oracle.jvp(problem.point, problem.directions[0]) * problem.cotangent)
    return {"<Jv, g>": product, "<v, J^T g>": product}


def _non_finite(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["bad input"], *a["theta"][1:])
    return _tree(a, ops.vjp(f, *theta)[1](a["bad cotangent"]))


# Batched.


def _vmap(*batched: str) -> Program:
    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        names = (*_names(a), "cotangent")
        values = (*a["theta"], a["cotangent"])
        args = tuple(a["copies"][n] if n in batched else v for n, v in zip(names, values, strict=True))
        axes = tuple(0 if n in batched else None for n in names)
        leaves = a["mask copies"] if "mask" in batched else ()

        def one(*args: Any) -> tuple[Any, ...]:
            theta, cotangent, positions = args[: len(names) - 1], args[len(names) - 1], args[len(names) :]
            layer = (lambda *theta: f(*theta, positions=positions)) if positions else f
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
    return lambda x, *rest: ops.vmap(lambda x: f(x, *rest), (0,))(x)


def _gradient_of_vmap(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["copies"]["input"], *a["theta"][1:])
    return _tree(a, ops.vjp(_of_copies(ops, f), *theta)[1](a["copies"]["cotangent"]))


def _tangent_of_vmap(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    theta = (a["copies"]["input"], *a["theta"][1:])
    along = (a["copies"]["input"], *a["directions"][0][1:])
    return {"output": ops.jvp(_of_copies(ops, f), theta, along)[1]}


def _gradient_of_vmap_oracle(problem: Problem) -> Tree:
    copies = [oracle.vjp(*problem.with_copy(("input", "cotangent"), copy)) for copy in range(COPIES)]
    stacked = {name: np.stack([one[name] for one in copies]) for name in copies[0]}
    return {name: part if name == "input" else part.sum(0) for name, part in stacked.items()}


def _tangent_of_vmap_oracle(problem: Problem) -> Tree:
    points = [problem.with_copy(("input",), copy)[0] for copy in range(COPIES)]
    return {
        "output": np.stack([
            oracle.jvp(point, problem.directions[0] | {"input": point.theta["input"]}) for point in points
        ])
    }  # fmt: skip


def _per_sample(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def gradient(x: Any, u: Any, c: Any) -> Any:
        def loss(*rest: Any) -> Any:
            return (c * u * f(x, *rest) ** 2).sum() * 0.5

        return ops.grad(loss, tuple(range(len(a["theta"]) - 1)))(*a["theta"][1:])

    gradients = ops.vmap(gradient, (0, 0, 0))(a["theta"][0], a["scale"], a["cotangent"])
    return dict(zip(_names(a)[1:], gradients, strict=True))


def _per_sample_oracle(problem: Problem) -> Tree:
    point, samples = problem.point, []
    for x, u, c in zip(point.theta["input"], point.scale, problem.cotangent, strict=True):
        sample = Point({**point.theta, "input": x}, point.mask, point.bias_mask, u, point.arithmetic)
        samples.append(oracle.quadratic_gradient(sample, c, ()))
    return {name: np.stack([one[name] for one in samples]) for name in point.theta if name != "input"}


# Whole Jacobians.


def _jacrev(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.jacrev(f, _all(a))(*a["theta"]))


def _jacfwd(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.jacfwd(f, _all(a))(*a["theta"]))


def _hessian(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    rows = ops.hessian(_loss(f, a), _all(a))(*a["theta"])
    names = _names(a)
    return {f"{left}/{right}": rows[i][j] for i, left in enumerate(names) for j, right in enumerate(names)}


# Second order.


def _hvp_forward_over_reverse(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.jvp(ops.grad(_loss(f, a), _all(a)), a["theta"], a["directions"][0])[1])


def _hvp_reverse_over_reverse(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    gradient = ops.grad(_loss(f, a), _all(a))
    return _tree(a, ops.grad(lambda *theta: _inner(gradient(*theta), a["directions"][0]), _all(a))(*a["theta"]))


def _hvp_reverse_over_forward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def along(*theta: Any) -> Any:
        return ops.jvp(_loss(f, a), theta, a["directions"][0])[1]

    return _tree(a, ops.grad(along, _all(a))(*a["theta"]))


def _hvp_oracle(problem: Problem) -> Tree:
    return oracle.quadratic_gradient(problem.point, problem.cotangent, problem.directions[:1])


def _gradient_penalty(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    def penalty(*theta: Any) -> Any:
        gradient = ops.grad(lambda *theta: (a["cotangent"] * f(*theta)).sum(), 0)(*theta)
        return (gradient**2).sum() * 0.5

    return _tree(a, ops.grad(penalty, _all(a))(*a["theta"]))


def _double_backward(ops: Any, f: Any, a: Any) -> dict[str, Any]:
    return _tree(a, ops.gradient_penalty(f, a["theta"], a["cotangent"]))


def _penalty_oracle(problem: Problem) -> Tree:
    return oracle.gradient_penalty(problem.point, problem.cotangent)


# Every sequence of modes.


def _sequence(modes: str) -> Program:
    """Differentiate y^2 / 2 by these modes, the last letter innermost: f forward, r reverse.

    Without coefficients: Dynamo fails to multiply a tensor that carries no tangent in nested forward mode.
    """

    def program(ops: Any, f: Any, a: Any) -> dict[str, Any]:
        def value(*theta: Any) -> Any:
            return f(*theta) ** 2 * 0.5

        step: Callable[..., Any] = value
        for mode, direction in zip(reversed(modes), a["directions"], strict=False):
            step = _forward_step(ops, step, direction) if mode == "f" else _reverse_step(ops, step, direction, a)
        result = step(*a["theta"])
        return _tree(a, result) if "r" in modes else {"output": result}

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

        def tangent(*theta: Any) -> Any:
            return ops.jvp(f, theta, first)[1]

        def gradients(*theta: Any) -> Any:
            return ops.vjp(f, *theta)[1](a["cotangent"])

        if modes == "ff":
            return {"output": ops.jvp(tangent, a["theta"], second)[1]}
        if modes == "fr":
            return _tree(a, ops.jvp(gradients, a["theta"], first)[1])
        if modes == "rf":
            return _tree(a, ops.vjp(tangent, *a["theta"])[1](a["cotangent"]))
        return _tree(a, ops.vjp(gradients, *a["theta"])[1](first))

    return program


def _of_layer_oracle(modes: str) -> Callable[[Problem], Tree]:
    def tree(problem: Problem) -> Tree:
        if modes == "ff":
            return {"output": oracle.second_tangent(problem.point, problem.directions[:2])}
        return oracle.second_gradient(problem.point, problem.cotangent, problem.directions[0])

    return tree


def _sequence_oracle(modes: str) -> Callable[[Problem], Tree]:
    def tree(problem: Problem) -> Tree:
        point = replace(problem.point, scale=np.ones_like(problem.point.scale))
        used = list(problem.directions[: len(modes)])
        if "r" not in modes:
            return {"output": oracle.quadratic(point, used)}
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
    return {"output": oracle.jvp(problem.point, problem.directions[0])}


def _jacobian_oracle(problem: Problem) -> Tree:
    return oracle.jacobian(problem.point)


SEQUENCES = tuple("".join(modes) for order in (1, 2, 3) for modes in itertools.product("fr", repeat=order))
"""All 2 + 4 + 8 sequences of modes, outermost first (S4)."""

_EVERYTHING = ("input", "weight", "bias", "cotangent", "mask")

TRANSFORMS = (
    Transform("forward", "S2", 0, _forward, lambda p: {"output": oracle.forward(p.point)}),
    Transform("vjp", "S3", 1, _vjp, _vjp_oracle),
    Transform("vjp-forward-mode-rule", "S5", 1, _vjp, _vjp_oracle, forward_mode=True),
    Transform("backward", "S3", 1, _backward, _vjp_oracle),
    Transform("accumulate", "S5", 1, _accumulate, _twice),
    Transform("jvp", "S3", 1, _jvp, _jvp_oracle, forward_mode=True),
    Transform("jvp-default-rule", "S5", 1, _jvp, _jvp_oracle),
    Transform("adjoint", "S3", 1, _adjoint, _adjoint_oracle, forward_mode=True, finish=_adjoint_finish, rounds=True),
    Transform("non-finite", "S3", 1, _non_finite, _vjp_oracle, values=False),
    Transform("vmap-input", "S5", 1, _vmap("input"), _vmap_oracle("input")),
    Transform("vmap-weight", "S5", 1, _vmap("weight"), _vmap_oracle("weight")),
    Transform("vmap-bias", "S5", 1, _vmap("bias"), _vmap_oracle("bias"), _has_bias),
    Transform("vmap-cotangent", "S5", 1, _vmap("cotangent"), _vmap_oracle("cotangent")),
    Transform("vmap-mask", "S5", 1, _vmap("mask"), _vmap_oracle("mask"), _has_mask_copies),
    Transform("vmap-input-weight", "S5", 1, _vmap("input", "weight"), _vmap_oracle("input", "weight")),
    Transform("vmap-everything", "S5", 1, _vmap(*_EVERYTHING), _vmap_oracle(*_EVERYTHING), _has_mask_copies),
    # Of order 2 for the sake of exactness: their sums over the copies are longer than a gradient's.
    Transform("gradient-of-vmap", "S5", 2, _gradient_of_vmap, _gradient_of_vmap_oracle, rounds=True),
    Transform("tangent-of-vmap", "S5", 2, _tangent_of_vmap, _tangent_of_vmap_oracle, forward_mode=True),
    Transform("per-sample-gradients", "S5", 1, _per_sample, _per_sample_oracle, _has_samples, rounds=True),
    Transform("jacrev", "S5", 1, _jacrev, _jacobian_oracle, _not_empty, dense=True),
    Transform("jacfwd", "S5", 1, _jacfwd, lambda p: oracle.jacobian_forward(p.point), _not_empty, forward_mode=True,
              dense=True),
    Transform("hessian", "S4", 2, _hessian, lambda p: oracle.hessian(p.point, p.cotangent), _not_empty, dense=True,
              rounds=True),
    Transform("hvp-forward-over-reverse", "S4", 2, _hvp_forward_over_reverse, _hvp_oracle, rounds=True),
    Transform("hvp-reverse-over-reverse", "S4", 2, _hvp_reverse_over_reverse, _hvp_oracle, rounds=True),
    Transform("hvp-reverse-over-forward", "S4", 2, _hvp_reverse_over_forward, _hvp_oracle, forward_mode=True,
              rounds=True),
    Transform("gradient-penalty", "S4", 2, _gradient_penalty, _penalty_oracle),
    Transform("double-backward", "S4", 2, _double_backward, _penalty_oracle),
    *(
        Transform(f"modes-{modes}", "S4", len(modes), _sequence(modes), _sequence_oracle(modes),
                  forward_mode="f" in modes, rounds=True)
        for modes in SEQUENCES
    ),
    *(
        Transform(f"layer-{modes}", "S9", 2, _of_layer(modes), _of_layer_oracle(modes), _is_hard,
                  forward_mode=modes in ("ff", "rf"))
        for modes in ("ff", "fr", "rf", "rr")
    ),
)  # fmt: skip
"""The grid's transforms."""

BY_NAME = {transform.name: transform for transform in TRANSFORMS}
