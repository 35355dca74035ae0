"""A pair of modules as causes are looked for in it: both calls, both modules, and how to run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from parity.models.capture.call import Call
from parity.models.matching import feed, pair_outputs


@dataclass
class ModulePair:
    """One call of a torch module, and of the JAX module that holds the same weights.

    Attributes:
        path: Of the torch module; "" for the model itself.
        jax_path: Of the JAX module.
        torch_module: The torch module, in the dtype that it was judged in.
        jax_module: The JAX module, as it was while it ran.
        torch_call: What was captured of it.
        jax_call: The same of the JAX module.
        weight_pairs: Of a `WeightMap`: those in the module.
        children: Paths of the paired modules in it, nearest first; all of them agree.
        report_context: `mode`, `inputs` (of the whole models), `double`, `dtype` of the bound, `own_error`.
    """

    path: str
    jax_path: str
    torch_module: Any
    jax_module: Any
    torch_call: Call
    jax_call: Call
    weight_pairs: Sequence[Any] = ()
    children: Sequence[str] = ()
    report_context: dict[str, Any] = field(default_factory=dict)

    @property
    def torch_arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that the torch module was called with."""
        return tuple(leaf.value for leaf in self.torch_call.inputs if leaf.is_array)

    @property
    def jax_arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that the JAX module is run on: torch's where there is one, else its own."""
        values = feed(self.torch_call, self.jax_call).values
        return tuple(value for leaf, value in zip(self.jax_call.inputs, values, strict=True) if leaf.is_array)

    def run_torch(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the torch module, with other arrays in place of `torch_arrays` where some are given."""
        return tuple(self.torch_call.run(_replaced(self.torch_call, arrays or self.torch_arrays)).values())

    def run_jax(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run the JAX module, with other arrays in place of `jax_arrays` where some are given."""
        return tuple(self.jax_call.run(_replaced(self.jax_call, arrays or self.jax_arrays)).values())

    def trace_jax(self, *arrays: Any) -> list[Any]:
        """Run the JAX module on arrays that may be traced: for `jax.make_jaxpr(pair.trace_jax)(*pair.jax_arrays)`."""
        assert self.jax_call.trace is not None
        return self.jax_call.trace(_replaced(self.jax_call, arrays))

    def outputs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return torch's outputs, in JAX's arrangement, each beside JAX's on the same inputs."""
        fed = feed(self.torch_call, self.jax_call)
        found, _, _ = pair_outputs(self.torch_call.outputs, self.jax_call.run(fed.values), moved=fed.moved)
        return [(one.torch, one.jax) for one in found]


def _replaced(call: Call, arrays: Sequence[Any]) -> list[Any]:
    given = iter(arrays)
    return [next(given) if leaf.is_array else leaf.value for leaf in call.inputs]
