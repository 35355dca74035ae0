"""Steps of a JAX program, to be timed and weighed: forward, backward, AdamW. Twin of torch_steps.py."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Literal

from benchmarks import jax_rivals
from benchmarks.jax_rivals import DTYPES, Program
from benchmarks.operands import Operands, check
from benchmarks.rows import Row, mask_of

RATE = 1e-3
VIEWS = ("transpose", "reshape", "squeeze", "copy", "bitcast_convert_type", "stop_gradient")


class Step:
    """A program on its operands.

    Args:
        row: What is measured.
        program: The layer.
        operands: Input and cotangent.
        device: "cpu" or "cuda".
    """

    def __init__(self, row: Row, program: Program, operands: Operands, device: str) -> None:
        self.row, self.program = row, program
        place = jax.devices("cpu" if device == "cpu" else "gpu")[0]
        self.x, self.g = (jax.device_put(jnp.asarray(a, DTYPES[row.dtype]), place) for a in (operands.x, operands.g))
        self.optimizer = optax.adamw(RATE, weight_decay=0.0)
        work = {"forward": self._forward, "forward+backward": self._backward, "adamw step": self._adamw}[row.work]
        compiled = jax.jit(work, donate_argnums=(0, 1) if row.work == "adamw step" else ())
        self.work = compiled if row.how == "jit" else work
        # What a step gives back and takes again, donated: copies, as programs share their arrays.
        self.learned, self.moments = jax.tree.map(jnp.copy, program.learned), self._init(program.learned)

    def __call__(self) -> None:
        """Do the row's work once."""
        done = self.work(self.learned, self.moments, self.program.rest, self.x, self.g)
        jax.block_until_ready(done)
        if self.row.work == "adamw step":
            self.learned, self.moments = done[:2]

    def check(self, name: str, mask: np.ndarray, operands: Operands) -> None:
        """Refuse a program that computes something else."""
        _, d_learned, d_input = jax.jit(self._backward)(
            self.program.learned, None, self.program.rest, self.x, self.g
        )  # fmt: skip
        d_weight = np.asarray(self.program.gradient(d_learned)).astype(np.float32)
        check(
            name, self.row, operands, mask, d_weight, np.asarray([] if d_input is None else d_input).astype(np.float32)
        )

    def kept(self) -> int:
        """Return the bytes that the forward keeps for the backward as traced, beside parameters and constants."""

        def residuals(x: Any, own: Any) -> Any:
            learned, rest = own
            return jax.tree.leaves(self._pull(learned, rest, x)[1])

        own = self.program.learned, self.program.rest
        jaxpr = jax.make_jaxpr(residuals)(self.x, own).jaxpr
        made_by = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
        found = {}
        for variable in jaxpr.outvars:
            # A transposed array, say, is no array of its own: XLA reads the one it came from.
            while variable in made_by and (source := _viewed(made_by[variable], variable)) is not None:
                variable = source
            if not isinstance(variable, Literal) and variable not in jaxpr.invars[1:]:
                found[variable] = variable.aval.size * variable.aval.dtype.itemsize
        return sum(found.values())

    def peak(self) -> int:
        """Return the most bytes that a step holds at once beyond what was there before it, as XLA plans it."""
        arguments = self.learned, self.moments, self.program.rest, self.x, self.g
        plan = jax.jit(self.work).lower(*arguments).compile().memory_analysis()
        assert plan is not None
        return plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes

    def state(self) -> int:
        """Return the bytes of the optimizer's state."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._init(self.program.learned)) if leaf.ndim)

    def compile(self) -> None:
        """Trace and compile the step from nothing."""
        jax.clear_caches()
        arguments = self.learned, self.moments, self.program.rest, self.x, self.g
        jax.jit(self._backward).lower(*arguments).compile()

    def _init(self, learned: Any) -> Any:
        return self.program.transformation(self.optimizer, self.program.rest).init(learned)

    def _forward(self, learned: Any, moments: Any, rest: Any, x: Any, g: Any) -> Any:
        return self.program.layer(learned, rest, x)

    def _pull(self, learned: Any, rest: Any, x: Any) -> Any:
        if self.row.place == "inner":
            return jax.vjp(lambda learned, x: self.program.layer(learned, rest, x), learned, x)
        return jax.vjp(lambda learned: self.program.layer(learned, rest, x), learned)

    def _gradients(self, learned: Any, rest: Any, x: Any, g: Any) -> Any:
        output, pull = self._pull(learned, rest, x)
        gradients = pull(g)
        return output, gradients[0], gradients[1] if self.row.place == "inner" else None

    def _backward(self, learned: Any, moments: Any, rest: Any, x: Any, g: Any) -> Any:
        output, d_learned, d_input = self._gradients(learned, rest, x, g)
        if self.program.mask_gradients is not None:
            d_learned = self.program.mask_gradients(d_learned, rest)
        return output, d_learned, d_input

    def _adamw(self, learned: Any, moments: Any, rest: Any, x: Any, g: Any) -> Any:
        output, d_learned, d_input = self._gradients(learned, rest, x, g)
        optimizer = self.program.transformation(self.optimizer, rest)
        updates, moments = optimizer.update(d_learned, moments, learned)
        return optax.apply_updates(learned, updates), moments, output, d_input


def steps(row: Row, operands: Operands, device: str) -> dict[str, Step]:
    """Return the steps of a row's programs, by name."""
    return {
        name: Step(row, program, operands, device)
        for name, program in jax_rivals.programs(row, operands, device).items()
    }


def curve_steps(row: Row, operands: Operands, device: str) -> dict[str, Step]:
    """Return the dense layer, the frozen one and ours, to be timed as a point of a curve."""
    mask, linear = mask_of(row), jax_rivals.linear(row, operands, device)
    programs = {
        "dense": jax_rivals.dense(*linear),
        "frozen": jax_rivals.frozen(*linear),
        "masked": jax_rivals.masked(*linear, mask),
        "packed": jax_rivals.packed(*linear, mask),
    }
    return {name: Step(row, program, operands, device) for name, program in programs.items()}


def _viewed(equation: Any, variable: Any) -> Any:
    # What a variable is a view of, or is handed on from by a function; None if it is made.
    if equation.primitive.name in VIEWS:
        return equation.invars[0]
    called = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    if called is None:
        return None
    inner = called.jaxpr.outvars[equation.outvars.index(variable)]
    return equation.invars[called.jaxpr.invars.index(inner)] if inner in called.jaxpr.invars else None
