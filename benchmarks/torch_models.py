"""Whole models in torch, each way to learn a part of them as its users write it. Twin of jax_models.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskedlinear_torch as mt
from benchmarks.model_shapes import GENERATED, Shape, Way
from benchmarks.torch_rivals import DTYPES, Densified, OneLiner

RATE = 1e-4
HOWS = {"eager": None, "compiled": "default", "graphs": "reduce-overhead"}
"""What `torch.compile` is told."""
Cache = list[tuple[Tensor, Tensor] | None]
"""Of each layer the keys and values up to now; None = there are none yet."""


class Block(nn.Module):
    """A layer of a transformer: BERT's (norms after, GELU), or Llama's (norms before, rotation, SwiGLU)."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.is_decoder = shape.heads, shape.tokens > 0
        w, h = shape.width, shape.hidden
        has_bias = not self.is_decoder
        for name in "qkvo":
            setattr(self, name, nn.Linear(w, w, has_bias))
        if self.is_decoder:
            self.gate = nn.Linear(w, h, False)
        self.up, self.down = nn.Linear(w, h, has_bias), nn.Linear(h, w, has_bias)
        norm = nn.RMSNorm if self.is_decoder else nn.LayerNorm
        self.first, self.second = norm(w), norm(w)

    def forward(self, x: Tensor, start: int = 0, seen: tuple[Tensor, Tensor] | None = None) -> Any:
        """Return the same shape, and the keys and values."""
        if not self.is_decoder:
            mixed, kept = self._attend(x, 0, None)
            x = self.first(x + mixed)
            return self.second(x + self.down(F.gelu(self.up(x)))), kept
        mixed, kept = self._attend(self.first(x), start, seen)
        x = x + mixed
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), kept

    def _attend(self, x: Tensor, start: int, seen: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, width = x.shape
        q, k, v = (
            project(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if self.is_decoder:
            q, k = _rotate(q, start), _rotate(k, start)
        if seen is not None:
            k, v = torch.cat([seen[0], k], 2), torch.cat([seen[1], v], 2)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_decoder and length > 1)
        return self.o(mixed.transpose(1, 2).reshape(batch, length, width)), (k, v)


def _rotate(x: Tensor, start: int) -> Tensor:
    half = x.shape[-1] // 2
    places = torch.arange(start, start + x.shape[-2], device=x.device)
    angles = places[:, None] / 10000 ** (torch.arange(half, device=x.device) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Model(nn.Module):
    """A transformer: vectors to vectors, or tokens to the logits of the next ones."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.tokens, shape.width) if shape.tokens else None
        self.blocks = nn.ModuleList([Block(shape) for _ in range(shape.layers)])
        self.head = nn.Linear(shape.width, shape.tokens, False) if shape.tokens else None

    def forward(self, x: Tensor, start: int = 0, cache: Cache | None = None) -> Any:
        """Return the output, and the cache of a decoder that was given one."""
        x = x if self.embedding is None else self.embedding(x)
        kept = []
        for number, block in enumerate(self.blocks):
            x, seen = block(x, start, None if cache is None else cache[number])
            kept.append(seen)
        x = x if self.head is None else self.head(x)
        return x if cache is None else (x, kept)


class Program:
    """A model that learns in some way, ready to be stepped, run and weighed.

    Args:
        shape: Of the model.
        way: How it learns.
        how: Of `HOWS`.
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16", of all weights and of vectors that go in.
    """

    def __init__(self, shape: Shape, way: Way, how: str, device: str = "cpu", dtype: str = "float32") -> None:
        self.shape, self.way, self.device, self.dtype = shape, way, device, DTYPES[dtype]
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        model = self._plain()
        self.data = self._numbers(shape.batch)
        self._gradient: Callable[[], Tensor]
        begun = time.perf_counter()
        self.model = self._converted(model)
        self.seconds = {"conversion": time.perf_counter() - begun}
        self.learned = [one for one in self.model.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=RATE)
        if way.form == "masked":
            mt.hold_frozen(self.optimizer, self.model)
        mode = HOWS[how]
        self.run: Any = self.model if mode is None else torch.compile(self.model, mode=mode)
        begun = time.perf_counter()
        self.step()
        self.seconds["first step"] = time.perf_counter() - begun

    def step(self) -> None:
        """Do a step of AdamW."""
        self.backward(self.run)
        self.optimizer.step()
        self.wait()

    def backward(self, run: Any) -> None:
        """Fill the gradients."""
        torch.compiler.cudagraph_mark_step_begin()
        for one in self.learned:
            one.grad = None
        self.loss(run).backward()

    def loss(self, run: Any) -> Tensor:
        """Return the mean square of the output, or the loss of predicting the next token."""
        y = run(self.data)
        if not self.shape.tokens:
            return y.square().mean()
        return F.cross_entropy(y[:, :-1].flatten(0, 1), self.data[:, 1:].flatten())

    def forward(self, batch: int) -> Callable[[], object]:
        """Return what runs the model without gradients."""
        x = self._numbers(batch)

        @torch.no_grad()
        def run() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            y: Tensor = self.run(x)
            self.wait()
            return y

        return run

    def generate(self) -> Tensor:
        """Return the tokens of a greedy generation with a cache."""
        with torch.no_grad():
            token, found = self.data[:1, :1], []
            cache: Cache = [None] * self.shape.layers
            for start in range(GENERATED):
                logits, cache = self.model(token, start, cache)
                token = logits[:, -1:].argmax(-1)
                found.append(token)
            tokens = torch.cat(found, 1)
            self.wait()
            return tokens

    def first_gradient(self) -> np.ndarray:
        """Return the gradient of the first layer's weight at the start, of the weight's shape, in float32."""
        fresh = Program.__new__(Program)
        fresh.shape, fresh.way, fresh.device, fresh.dtype = self.shape, self.way, self.device, torch.float32
        fresh.data = fresh._numbers(self.shape.batch)
        fresh.model = fresh._converted(fresh._plain())
        fresh.learned = [one for one in fresh.model.parameters() if one.requires_grad]
        fresh.backward(fresh.model)
        return fresh._gradient().cpu().numpy()

    def weighed(self) -> dict[str, int]:
        """Return bytes: kept for the backward beside parameters and positions, the optimizer's state, a checkpoint."""
        own = {one.untyped_storage().data_ptr() for one in (*self.model.parameters(), *self.model.buffers())}
        own |= {
            one.data_ptr() for layer in self.model.modules() for one in getattr(layer, "_arrays", ()) if one is not None
        }
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            for part in (tensor.detach().coalesce().values(),) if tensor.is_sparse else (tensor,):
                storage = part.untyped_storage()
                if storage.data_ptr() not in own:
                    kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss(self.model)
        del loss
        states = [t for one in self.optimizer.state.values() for t in one.values() if torch.is_tensor(t) and t.dim()]
        is_ours = self.way.form in ("masked", "packed")
        learned = sum(one.nbytes for one in self.learned)
        return {
            "kept for the backward": sum(kept.values()),
            "optimizer state": sum(one.nbytes for one in states),
            "checkpoint": len(mt.packed_bytes(self.model)) if is_ours else learned,
        }

    def trained(self) -> int:
        """Return how many numbers learn."""
        if self.way.form in ("masked", "one-liner", "hook"):
            return sum(round(self.way.mask(one).density(one) * one[0] * one[1]) for _, one in self.shape.linears())
        return sum(one.numel() for one in self.learned)

    def _plain(self) -> Model:
        torch.manual_seed(0)
        return Model(self.shape).to(self.device, self.dtype)

    def _numbers(self, batch: int) -> Tensor:
        drawn = torch.from_numpy(numbers(self.shape, batch)).to(self.device)
        return drawn.to(self.dtype) if drawn.is_floating_point() else drawn

    def _converted(self, model: Model) -> nn.Module:
        way, first = self.way, next(self.shape.linears())[0]
        if way.form == "full":
            plain: Any = model.get_submodule(first)
            self._gradient = lambda: plain.weight.grad
            return model
        if way.form == "lora":
            import peft

            names = sorted({name.rpartition(".")[2] for name, _ in self.shape.linears()})
            config = peft.LoraConfig(r=way.rank, lora_alpha=way.rank, target_modules=names)
            for one in model.parameters():
                one.requires_grad_(False)
            return peft.inject_adapter_in_model(config, model)
        masks = {name: way.mask(shape) for name, shape in self.shape.linears()}
        if way.form in ("masked", "packed"):
            mt.mask_linears(model, masks, packed=way.form == "packed", freeze_others=True)
            layer: Any = model.get_submodule(first)
            if way.form == "masked":
                self._gradient = lambda: layer.weight.grad
            else:
                zeros = torch.zeros_like(layer.base.detach())
                self._gradient = lambda: mt.unpack(zeros, layer.values.grad, grad_mask=masks[first])
            return model
        for one in model.parameters():
            one.requires_grad_(False)
        for name, mask in masks.items():
            self._replace(model, name, mask)
        return model

    def _replace(self, model: Model, name: str, wanted: Any) -> None:
        # Puts a rival into the place of a linear layer.
        linear: Any = model.get_submodule(name)
        mask = torch.from_numpy(wanted.to_array(tuple(linear.weight.shape))).to(self.device)
        parent, _, own = name.rpartition(".")
        layer: Any = linear
        if self.way.form == "delta":
            layer = Densified(linear, mask)
        else:
            linear.weight.requires_grad_(True)
            if self.way.form == "hook":
                linear.weight.register_hook(lambda gradient: gradient * mask)
            else:
                layer = OneLiner(linear, mask)
        setattr(model.get_submodule(parent), own, layer)
        if name == next(self.shape.linears())[0]:
            zeros = torch.zeros(mask.shape, device=self.device)
            if self.way.form == "delta":
                self._gradient = lambda: zeros.masked_scatter(mask, layer.values.grad)
            else:
                self._gradient = lambda: layer.weight.grad


def numbers(shape: Shape, batch: int) -> np.ndarray:
    """Return what goes into a model."""
    rng = np.random.default_rng(0)
    if shape.tokens:
        return rng.integers(0, shape.tokens, (batch, shape.length))
    return rng.standard_normal((batch, shape.length, shape.width), np.float32)


def threads() -> int:
    """Return how many threads a product uses."""
    return torch.get_num_threads()
