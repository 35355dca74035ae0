"""A torch model as a function of its weights by name, which is what gradients and training steps are taken of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from parity.models.capture.torch_modules import prepared
from parity.models.weights.torch_side import TorchTree
from parity.models.weights.tree import PARAMETER, STATISTIC

Arrays = dict[str, np.ndarray]


class TorchFunction:
    """A copy of a torch model, in a mode and a dtype, with its dropout off: the user's own is not touched.

    Args:
        model: The user's.
        mode: "eval" or "train".
        double: Whether floats become float64.
        exact: Other values of some weights, by name, or None.
    """

    def __init__(
        self, model: nn.Module, mode: str, *, double: bool, exact: Mapping[str, np.ndarray] | None = None
    ) -> None:
        self.model, self.dtype = prepared(model, mode, double=double)
        self.tree = TorchTree(self.model)
        self.tree.write(exact or {})

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        """The parameters that require a gradient, by name."""
        tensors = {name: self.tree.tensor(name) for name, leaf in self.tree.leaves.items() if leaf.kind == PARAMETER}
        return {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}

    def statistics(self) -> Arrays:
        """Return the running statistics as they are now."""
        return {n: np.array(v) for n, v in self.tree.weights().items() if self.tree.leaves[n].kind == STATISTIC}

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Let the model run, and give its running statistics back as they were."""
        before = self.statistics()
        try:
            yield
        finally:
            self.tree.write(before)

    def tensors(self, tree: Any, *, grad: bool = False) -> Any:
        """Return arguments with tensors in place of arrays; floats require a gradient where `grad`."""
        if isinstance(tree, np.ndarray):
            if tree.dtype.kind != "f":
                return torch.from_numpy(np.array(tree))
            # Cast by NumPy where it can be: what the model computes in is read from torch's operators.
            exact = np.array(tree, np.float64) if self.dtype == torch.float64 else np.array(tree)
            return torch.from_numpy(exact).to(self.dtype).requires_grad_(grad)
        if isinstance(tree, list | tuple):
            return type(tree)(self.tensors(part, grad=grad) for part in tree)
        if isinstance(tree, Mapping):
            return {name: self.tensors(part, grad=grad) for name, part in tree.items()}
        return tree

    def __call__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return self.model(*args, **kwargs)
