"""A residual net with batch norm in torch (channels first), and its port to Flax Linen (channels last)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

WIDTH, WIDER, LABELS, EPS = 8, 12, 5, 1e-5


class Block(nn.Module):
    """Two convolutions with a way around."""

    def __init__(self, into: int, out: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False, groups=groups)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(into, out, 1, stride) if stride > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.leaky_relu(self.bn1(self.conv1(x)), 0.1)))
        return F.leaky_relu(y + (x if self.shortcut is None else self.shortcut(x)), 0.1)


class ConvNet(nn.Module):
    """The model: images (batch, 3, 16, 16) to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH)
        self.block1 = Block(WIDTH, WIDTH, 1, groups=2)
        self.block2 = Block(WIDTH, WIDER, 2)
        self.mix = nn.Conv2d(WIDER, WIDER, 1)
        self.hidden = nn.Linear(WIDER * 4, 16)
        self.fc = nn.Linear(16, LABELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.leaky_relu(self.bn(self.stem(x)), 0.1), 3, 2, 1)
        x = self.mix(self.block2(self.block1(x)))
        x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        return self.fc(torch.relu(self.hidden(x.flatten(1))))


def torch_model(seed: int) -> ConvNet:
    """Return the model of a seed, with statistics as after some training."""
    torch.manual_seed(seed)
    model = ConvNet()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def inputs(seed: int) -> tuple[np.ndarray, ...]:
    """Return images, channels first."""
    return (np.random.default_rng(seed).standard_normal((2, 3, 16, 16)).astype(np.float32),)


@dataclass(frozen=True)
class Options:
    """What the port is built with; the defaults are right."""

    eps: float = EPS
    momentum: float = 0.9
    same: bool = False  # SAME where a stride is 2
    stem_bias: bool = True
    slope: float = 0.1
    activation: Any = None
    pool: str = "max"
    pool_padding: Any = ((1, 1), (1, 1))
    counted: bool = False  # padding counts in the mean
    training: bool = False  # the batch's own statistics
    residual: bool = True
    early: bool = False  # activation before the sum
    strided_first: bool = True
    flat: str = "channels first"
    dropout: float = 0.0
    dtype: Any = None  # of the 1x1 convolution
    transposed: bool = False  # the square 1x1 kernel
    turned: bool = False  # height and width of kernels exchanged
    flipped: bool = False
    stale_mean: bool = False
    deviation: bool = False  # the root of the variance in its place
    unscaled: bool = False  # scale left at one
    groups: bool = False  # halves of a grouped kernel exchanged


class PortBlock(linen.Module):
    """A block of the port."""

    out: int
    stride: int
    groups: int
    options: Options

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        pads = "SAME" if o.same else ((1, 1), (1, 1))
        act = o.activation or (lambda a: jax.nn.leaky_relu(a, o.slope))
        strides = (self.stride, 1) if o.strided_first else (1, self.stride)
        more = {"epsilon": o.eps, "momentum": o.momentum, "use_running_average": not o.training}
        conv1 = linen.Conv(self.out, (3, 3), strides[0], pads, use_bias=False, name="conv1")
        y = act(linen.BatchNorm(**more, name="bn1")(conv1(x)))
        y = linen.Conv(
            self.out, (3, 3), strides[1], pads, use_bias=False, feature_group_count=self.groups, name="conv2"
        )(y)
        y = linen.BatchNorm(**more, name="bn2")(y)
        around = linen.Conv(self.out, (1, 1), self.stride, name="shortcut")(x) if self.stride > 1 else x
        if o.early:
            return act(y) + around
        return act(y + around if o.residual else y)


class PortNet(linen.Module):
    """The port: images with channels last."""

    options: Options

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        act = o.activation or (lambda a: jax.nn.leaky_relu(a, o.slope))
        x = linen.Conv(WIDTH, (3, 3), 1, ((1, 1), (1, 1)), use_bias=o.stem_bias, name="stem")(x)
        norm = linen.BatchNorm(not o.training, momentum=o.momentum, epsilon=o.eps, name="bn")
        x = act(norm(x))
        pool = {"max": linen.max_pool, "avg": linen.avg_pool}[o.pool]
        x = pool(x, (3, 3), (2, 2), o.pool_padding)
        x = PortBlock(WIDTH, 1, 2, o, name="block1")(x)
        x = PortBlock(WIDER, 2, 1, o, name="block2")(x)
        x = linen.Conv(WIDER, (1, 1), dtype=o.dtype, name="mix")(x)
        x = linen.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)), count_include_pad=o.counted)
        flat = jnp.transpose(x, (0, 3, 1, 2)) if o.flat == "channels first" else x
        x = jax.nn.relu(linen.Dense(16, name="hidden")(flat.reshape(len(x), -1)))
        x = linen.Dropout(o.dropout, deterministic=not o.dropout)(x)
        return linen.Dense(LABELS, name="fc")(x)


def jax_model(model: ConvNet, **wrong: Any) -> tuple[PortNet, Any]:
    """Return the port and its variables with the weights of a model, and what is wrong in them."""
    options = replace(Options(), **wrong)
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}

    def put(kind: str, name: str, value: np.ndarray) -> None:
        *owners, last = name.split(".")
        tree = variables[kind]
        for owner in owners:
            tree = tree.setdefault(owner, {})
        tree[last] = jnp.asarray(value)

    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    for name, value in state.items():
        owner, last = name.rsplit(".", 1)
        if last == "running_mean":
            put("batch_stats", f"{owner}.mean", value * (not options.stale_mean))
        elif last == "running_var":
            put("batch_stats", f"{owner}.var", np.sqrt(value) if options.deviation else value)
        elif last == "weight" and value.ndim == 4:
            put("params", f"{owner}.kernel", _kernel(name, value, options))
        elif last == "weight" and value.ndim == 2:
            put("params", f"{owner}.kernel", value.T)
        elif last == "weight":
            put("params", f"{owner}.scale", np.ones_like(value) if options.unscaled else value)
        elif last == "bias" and (owner != "stem" or options.stem_bias):
            put("params", f"{owner}.bias", value)
    return PortNet(options), variables


def _kernel(name: str, value: np.ndarray, options: Options) -> np.ndarray:
    if options.groups and name == "block1.conv2.weight":
        value = np.concatenate(np.split(value, 2)[::-1])
    if options.transposed and name == "mix.weight":
        value = value.swapaxes(0, 1)
    if options.turned:
        value = value.swapaxes(2, 3)
    if options.flipped:
        value = value[:, :, ::-1, ::-1]
    return value.transpose(2, 3, 1, 0)
