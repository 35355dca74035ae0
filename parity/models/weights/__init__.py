"""Weights of a torch model and its JAX port: which belong together, whether they are equal, and how to load them."""

from parity.models.weights.jax_side import JaxTree as JaxTree
from parity.models.weights.jax_side import jax_tree as jax_tree
from parity.models.weights.mapping import map_trees as map_trees
from parity.models.weights.mapping import map_weights as map_weights
from parity.models.weights.pairs import WeightPair as WeightPair
from parity.models.weights.rules import Rule as Rule
from parity.models.weights.torch_side import TorchTree as TorchTree
from parity.models.weights.torch_side import torch_weights as torch_weights
from parity.models.weights.weight_map import WeightMap as WeightMap
