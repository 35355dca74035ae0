"""Ports that are functions of a tree of weights, and ports to Flax Linen and Equinox."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn as tnn

from parity.models import Inputs
from tests.model_ports.fault import Fault, Port
from tests.model_ports.strangers.loading import floats, loaded, words


class TorchGpt(tnn.Module):
    """GPT-2's names, one layer a block, a tied head."""

    class Block(tnn.Module):
        """Norms first."""

        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = tnn.LayerNorm(16), tnn.LayerNorm(16)
            self.c_attn, self.c_proj = tnn.Linear(16, 48), tnn.Linear(16, 16)
            self.c_fc, self.mlp_proj = tnn.Linear(16, 64), tnn.Linear(64, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).split(16, -1))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x + self.c_proj(a)
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = tnn.Embedding(31, 16), tnn.Embedding(12, 16)
        self.h, self.ln_f = tnn.ModuleList(self.Block() for _ in range(2)), tnn.LayerNorm(16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def _norm(x: Any, g: Any, b: Any, eps: float = 1e-5) -> Any:
    mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return g * (x - mean) / jnp.sqrt(var + eps) + b


def _gpt(params: Any, ids: Any, *, eps: float = 1e-5, offset: int = 0, approximate: bool = True, strict: bool = False,
         scale: float = 8**-0.5, residual: bool = True) -> Any:  # fmt: skip
    """A few lines, as in picoGPT: `params` is a dict of dicts, named as in the checkpoint."""
    linear = lambda x, w: x @ w["w"] + w["b"]  # noqa: E731
    n = ids.shape[1]
    x = params["wte"][ids] + params["wpe"][jnp.arange(n) + offset]
    for block in params["blocks"]:
        h = _norm(x, **block["ln_1"], eps=eps)
        q, k, v = jnp.split(linear(h, block["attn"]["c_attn"]), 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:2], 2, 8).transpose(0, 2, 1, 3) for t in (q, k, v))
        mask = (1 - jnp.tril(jnp.ones((n, n)), k=-1 if strict else 0)) * -1e10
        a = jax.nn.softmax(q @ k.swapaxes(-1, -2) * scale + mask) @ v
        a = linear(a.transpose(0, 2, 1, 3).reshape(x.shape), block["attn"]["c_proj"])
        x = x + a if residual else a
        h = linear(_norm(x, **block["ln_2"], eps=eps), block["mlp"]["c_fc"])
        x = x + linear(jax.nn.gelu(h, approximate=approximate), block["mlp"]["c_proj"])
    return _norm(x, **params["ln_f"], eps=1e-5) @ params["wte"].T


def gpt(model: Any, **options: Any) -> Any:
    """Turn a state dict into a tree by hand."""
    w = {name: jnp.asarray(value.numpy()) for name, value in model.state_dict().items()}

    def linear(name: str) -> dict[str, Any]:
        return {"w": w[name + ".weight"].T, "b": w[name + ".bias"]}

    def norm(name: str) -> dict[str, Any]:
        return {"g": w[name + ".weight"], "b": w[name + ".bias"]}

    blocks = [
        {
            "ln_1": norm(f"h.{i}.ln_1"), "ln_2": norm(f"h.{i}.ln_2"),
            "attn": {"c_attn": linear(f"h.{i}.c_attn"), "c_proj": linear(f"h.{i}.c_proj")},
            "mlp": {"c_fc": linear(f"h.{i}.c_fc"), "c_proj": linear(f"h.{i}.mlp_proj")},
        } for i in range(2)
    ]  # fmt: skip
    params = {"wte": w["wte.weight"], "wpe": w["wpe.weight"], "blocks": blocks, "ln_f": norm("ln_f")}
    return functools.partial(_gpt, **options), params


class TorchLlama(tnn.Module):
    """Meta's own way: rotation by complex numbers, interleaved; wq, wk, wv, wo."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv, self.wo = (tnn.Linear(16, 16, bias=False) for _ in range(4))
        self.w1, self.w3, self.w2 = (tnn.Linear(*s, bias=False) for s in ((16, 40), (16, 40), (40, 16)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        real = x.dtype
        freqs = 1.0 / (10000.0 ** (torch.arange(0, 8, 2, dtype=real) / 8))
        turn = torch.outer(torch.arange(n, dtype=real), freqs)
        cis = torch.polar(torch.ones_like(turn), turn)[None, :, None]

        def rotate(t: torch.Tensor) -> torch.Tensor:
            z = torch.view_as_complex(t.reshape(b, n, 2, 4, 2).contiguous())
            return torch.view_as_real(z * cis).flatten(3)

        q, k, v = (f(x).view(b, n, 2, 8) for f in (self.wq, self.wk, self.wv))
        q, k, v = (t.transpose(1, 2) for t in (rotate(q), rotate(k), v))
        a = torch.softmax(q @ k.mT / 8**0.5 + torch.full((n, n), float("-inf")).triu(1).to(real), -1) @ v
        x = x + self.wo(a.transpose(1, 2).reshape(b, n, 16))
        return x + self.w2(F.silu(self.w1(x)) * self.w3(x))


class Llama(NamedTuple):
    """The port's weights."""

    wq: Any
    wk: Any
    wv: Any
    wo: Any
    w1: Any
    w2: Any
    w3: Any


def _llama(params: Llama, x: Any, *, base: float = 10000.0, halves: bool = False, swapped: bool = False,
           scale: float = 8**-0.5, start: int = 0) -> Any:  # fmt: skip
    n = x.shape[1]
    turn = jnp.outer(jnp.arange(start, n + start), base ** (-jnp.arange(0, 8, 2) / 8))
    c, s = jnp.cos(turn)[None, :, None], jnp.sin(turn)[None, :, None]

    def rotate(t: Any) -> Any:
        if halves:
            r, i = jnp.split(t, 2, -1)
            return jnp.concatenate([r * c - i * s, r * s + i * c], -1)
        r, i = t[..., ::2], t[..., 1::2]
        return jnp.stack([r * c - i * s, r * s + i * c], -1).reshape(t.shape)

    q, k, v = (jnp.einsum("bnd,dhk->bnhk", x, w) for w in (params.wq, params.wk, params.wv))
    logits = jnp.einsum("bqhk,bshk->bhqs", rotate(q), rotate(k)) * scale
    logits = jnp.where(jnp.tril(jnp.ones((n, n), bool)), logits, -jnp.inf)
    a = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(logits, -1), v)
    x = x + jnp.einsum("bqhk,hkd->bqd", a, params.wo)
    up, gate = x @ params.w3, x @ params.w1
    return x + ((jax.nn.silu(up) * gate if swapped else jax.nn.silu(gate) * up) @ params.w2)


def llama(model: Any, **options: Any) -> Any:
    """Weights with the axes of heads apart."""
    w = {name.partition(".")[0]: value.numpy().T for name, value in model.state_dict().items()}
    shapes = dict.fromkeys(("wq", "wk", "wv"), (16, 2, 8)) | {"wo": (2, 8, 16)}
    return functools.partial(_llama, **options), Llama(
        **{k: jnp.asarray(v.reshape(shapes.get(k, v.shape))) for k, v in w.items()}
    )


class TorchT5(tnn.Module):
    """Relative position bias in buckets, no scale, RMS norms, a cross attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (tnn.Linear(16, 16, bias=False) for _ in range(4))
        self.relative_attention_bias, self.layer_norm = tnn.Embedding(9, 2), tnn.RMSNorm(16, eps=1e-6)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        h = self.layer_norm(x)
        q, k, v = (
            f(t).unflatten(-1, (2, 8)).transpose(1, 2) for f, t in ((self.q, h), (self.k, memory), (self.v, memory))
        )
        at = torch.arange(memory.shape[1])[None] - torch.arange(x.shape[1])[:, None]
        bias = self.relative_attention_bias(at.clamp(-4, 4) + 4).permute(2, 0, 1)
        a = torch.softmax(q @ k.mT + bias, -1) @ v
        return x + self.o(a.transpose(1, 2).flatten(2))


class LinenT5(nn.Module):
    """The port, compact, with DenseGeneral."""

    scaled: bool = False
    eps: float = 1e-6
    turned: bool = False
    clip: int = 4
    before: bool = True

    @nn.compact
    def __call__(self, x: Any, memory: Any) -> Any:
        h = nn.RMSNorm(epsilon=self.eps, name="layer_norm")(x)
        heads = functools.partial(nn.DenseGeneral, features=(2, 8), use_bias=False)
        q, k, v = heads(name="query")(h), heads(name="key")(memory), heads(name="value")(memory)
        at = jnp.arange(memory.shape[1])[None] - jnp.arange(x.shape[1])[:, None]
        at = jnp.clip(-at if self.turned else at, -self.clip, self.clip) + 4
        bias = nn.Embed(9, 2, name="relpos_bias")(at)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (8**-0.5 if self.scaled else 1)
        p = jax.nn.softmax(logits + bias.transpose(2, 0, 1)[None])
        a = jnp.einsum("bhqk,bkhd->bqhd", p, v)
        return (x if self.before else h) + nn.DenseGeneral(16, axis=(-2, -1), use_bias=False, name="out")(a)


def _linen(make: Any, *inputs: Any) -> Any:
    def made(**options: Any) -> Any:
        module = make(**options)
        return module, module.init(jax.random.key(0), *inputs)

    return loaded(made)


class TorchMobile(tnn.Module):
    """Depthwise convolutions, batch norms, squeeze and excite, ReLU6 and hard swish."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = tnn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), tnn.BatchNorm2d(8)
        self.conv_dw, self.bn2 = tnn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), tnn.BatchNorm2d(8)
        self.conv_reduce, self.conv_expand = tnn.Conv2d(8, 4, 1), tnn.Conv2d(4, 8, 1)
        self.classifier = tnn.Linear(8, 6)
        for one in (self.bn1, self.bn2):
            one.running_mean.normal_()
            one.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.bn1(self.conv_stem(x)))
        x = F.hardswish(self.bn2(self.conv_dw(x)))
        s = x.mean((2, 3), keepdim=True)
        x = x * F.hardsigmoid(self.conv_expand(F.relu(self.conv_reduce(s))))
        return self.classifier(F.max_pool2d(x, 3, 2, 1).mean((2, 3)))


class LinenMobile(nn.Module):
    """The port; names are Flax's own, by order of definition."""

    relu6: Any = jax.nn.relu6
    act: Any = jax.nn.hard_swish
    gate: Any = jax.nn.hard_sigmoid
    pool_padding: Any = ((1, 1), (1, 1))
    stem_padding: Any = ((1, 1), (1, 1))
    eps: float = 1e-5
    frozen: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        norm = functools.partial(nn.BatchNorm, use_running_average=self.frozen, momentum=0.9, epsilon=self.eps)
        x = nn.Conv(8, (3, 3), (2, 2), padding=self.stem_padding, use_bias=False)(x)
        x = self.relu6(norm()(x))
        x = nn.Conv(8, (5, 5), feature_group_count=8, use_bias=False)(x)
        x = self.act(norm()(x))
        s = x.mean((1, 2), keepdims=True)
        x = x * self.gate(nn.Conv(8, (1, 1))(nn.relu(nn.Conv(4, (1, 1))(s))))
        return nn.Dense(6)(nn.max_pool(x, (3, 3), (2, 2), self.pool_padding).mean((1, 2)))


class TorchMamba(tnn.Module):
    """A selective state space layer, by a loop over time."""

    def __init__(self, width: int = 8, states: int = 4) -> None:
        super().__init__()
        self.in_proj, self.out_proj = tnn.Linear(width, 2 * width, bias=False), tnn.Linear(width, width, bias=False)
        self.conv1d = tnn.Conv1d(width, width, 4, groups=width, padding=3)
        self.x_proj, self.dt_proj = tnn.Linear(width, 2 + 2 * states, bias=False), tnn.Linear(2, width)
        self.A_log = tnn.Parameter(torch.log(torch.arange(1, states + 1).float()).repeat(width, 1))
        self.D = tnn.Parameter(torch.ones(width))

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        x, z = self.in_proj(u).chunk(2, -1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., : u.shape[1]].transpose(1, 2))
        dt, b, c = self.x_proj(x).split([2, 4, 4], -1)
        dt = F.softplus(self.dt_proj(dt))
        a = torch.exp(dt[..., None] * -torch.exp(self.A_log))
        bx = dt[..., None] * b[:, :, None] * x[..., None]
        h, out = torch.zeros_like(a[:, 0]), []
        for t in range(u.shape[1]):
            h = a[:, t] * h + bx[:, t]
            out.append((h * c[:, t, None]).sum(-1))
        return self.out_proj((torch.stack(out, 1) + x * self.D) * F.silu(z))


class EqxMamba(eqx.Module):
    """The port, of one example, by an associative scan."""

    in_proj: eqx.nn.Linear
    conv1d: eqx.nn.Conv1d
    x_proj: eqx.nn.Linear
    dt_proj: eqx.nn.Linear
    A_log: Any
    D: Any
    out_proj: eqx.nn.Linear
    swapped: bool = eqx.field(static=True)
    direct: bool = eqx.field(static=True)
    act: Any = eqx.field(static=True)
    before: int = eqx.field(static=True)

    def __init__(self, key: Any, *, swapped=False, direct=True, act=jax.nn.softplus, before=3) -> None:
        k = jax.random.split(key, 5)
        self.in_proj = eqx.nn.Linear(8, 16, use_bias=False, key=k[0])
        self.conv1d = eqx.nn.Conv1d(8, 8, 4, groups=8, key=k[1])
        self.x_proj = eqx.nn.Linear(8, 10, use_bias=False, key=k[2])
        self.dt_proj = eqx.nn.Linear(2, 8, key=k[3])
        self.A_log, self.D = jnp.zeros((8, 4)), jnp.zeros(8)
        self.out_proj = eqx.nn.Linear(8, 8, use_bias=False, key=k[4])
        self.swapped, self.direct, self.act, self.before = swapped, direct, act, before

    def __call__(self, u: Any) -> Any:
        x, z = jnp.split(jax.vmap(self.in_proj)(u), 2, -1)
        x = jax.nn.silu(self.conv1d(jnp.pad(x.T, ((0, 0), (self.before, 3 - self.before)))).T)
        dt, b, c = jnp.split(jax.vmap(self.x_proj)(x), [2, 6], -1)
        b, c = (c, b) if self.swapped else (b, c)
        dt = self.act(jax.vmap(self.dt_proj)(dt))
        a = jnp.exp(dt[..., None] * -jnp.exp(self.A_log))
        bx = dt[..., None] * b[:, None] * x[..., None]
        _, h = jax.lax.associative_scan(lambda p, q: (q[0] * p[0], q[0] * p[1] + q[1]), (a, bx))
        y = jnp.einsum("tds,ts->td", h, c)
        y = y + x * self.D if self.direct else y
        return jax.vmap(self.out_proj)(y * jax.nn.silu(z))


class TorchSiamese(tnn.Module):
    """One tower called twice, a GRU, a bilinear head."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = tnn.Sequential(tnn.Linear(6, 10), tnn.ELU(), tnn.Linear(10, 10))
        self.temperature = tnn.Parameter(torch.tensor(2.0))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = F.normalize(self.tower(a), dim=-1), F.normalize(self.tower(b), dim=-1)
        return self.temperature.exp() * a @ b.T


class EqxSiamese(eqx.Module):
    """The port, as `eqx.nn.MLP`."""

    tower: eqx.nn.MLP
    temperature: Any
    normed: bool = eqx.field(static=True)
    exp: bool = eqx.field(static=True)

    def __init__(self, key: Any, *, act=jax.nn.elu, normed=True, exp=True) -> None:
        self.tower = eqx.nn.MLP(6, 10, 10, 1, activation=act, key=key)
        self.temperature, self.normed, self.exp = jnp.array(0.0), normed, exp

    def __call__(self, a: Any, b: Any) -> Any:
        a, b = jax.vmap(self.tower)(a), jax.vmap(self.tower)(b)
        if self.normed:
            a, b = (t / jnp.linalg.norm(t, axis=-1, keepdims=True) for t in (a, b))
        return (jnp.exp(self.temperature) if self.exp else self.temperature) * a @ b.T


class TorchDiffusion(tnn.Module):
    """A residual block with a sinusoidal time embedding and pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.time1, self.time2 = tnn.Linear(8, 16), tnn.Linear(16, 8)
        self.conv1, self.conv2 = tnn.Conv2d(4, 8, 3, padding=1), tnn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        f = torch.exp(-np.log(10000) * torch.arange(4, dtype=x.dtype) / 4)
        e = t[:, None].to(x.dtype) * f
        e = self.time2(F.silu(self.time1(torch.cat([e.cos(), e.sin()], -1))))
        return F.pixel_shuffle(self.conv2(F.mish(self.conv1(x)) + e[:, :, None, None]), 2)


def _diffusion(params: Any, x: Any, t: Any, *, sin_first=False, by=4, act=None, shuffle="torch") -> Any:
    conv = lambda x, p: jax.lax.conv_general_dilated(  # noqa: E731
        x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + p["bias"]  # fmt: skip
    dense = lambda x, p: x @ p["kernel"] + p["bias"]  # noqa: E731
    e = t[:, None] * jnp.exp(-np.log(10000) * jnp.arange(4) / by)
    e = jnp.concatenate([jnp.sin(e), jnp.cos(e)] if sin_first else [jnp.cos(e), jnp.sin(e)], -1)
    e = dense(jax.nn.silu(dense(e, params["time1"])), params["time2"])
    h = conv(x, params["conv1"])
    h = (act or (lambda v: v * jnp.tanh(jax.nn.softplus(v))))(h) + e[:, None, None]
    h = conv(h, params["conv2"])
    b, r, c, _ = h.shape
    if shuffle == "torch":
        return h.reshape(b, r, c, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(b, 2 * r, 2 * c, 3)
    return h.reshape(b, r, c, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * r, 2 * c, 3)


def diffusion(model: Any, **options: Any) -> Any:
    """A tree of dicts, with Flax's names."""
    params: dict[str, dict[str, Any]] = {}
    for name, value in model.state_dict().items():
        layer, _, what = name.partition(".")
        array = value.numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        params.setdefault(layer, {})["kernel" if what == "weight" else "bias"] = jnp.asarray(array)
    return functools.partial(_diffusion, **options), params


def _image(size: int, channels: int = 3, time: bool = False) -> Any:
    def made(seed: int) -> Inputs:
        (x,) = floats(2, channels, size, size)(seed)
        more = (np.array([3, 40], np.int32),) if time else ()
        return Inputs(torch=(x, *more), jax=(x.transpose(0, 2, 3, 1), *more))

    return made


def _two(a: Any, b: Any) -> Any:
    return lambda seed: (*floats(*a)(seed), *floats(*b)(seed + 1))


PORTS = (
    Port("gpt function", lambda seed: TorchGpt(), gpt, words(2, 7, 31), (
        Fault("eps", {"eps": 1e-6}, r".*", "eps"),
        Fault("positions", {"offset": 1}, r".*", "position"),
        Fault("gelu exact", {"approximate": False}, r".*", "approximate"),
        Fault("strict mask", {"strict": True}, r".*", "mask"),
        Fault("scale", {"scale": 16**-0.5}, r".*", "scale"),
        Fault("residual", {"residual": False}, r".*", "residual"),
    )),
    Port("llama function", lambda seed: TorchLlama(), llama, floats(2, 6, 16), (
        Fault("base", {"base": 500000.0}, "", "rope"),
        Fault("halves", {"halves": True}, "", "pairing|interleaved"),
        Fault("gate", {"swapped": True}, "", "gate|exchanged"),
        Fault("scale", {"scale": 1.0}, "", "scale"),
    )),
    Port("t5 linen", lambda seed: TorchT5(), _linen(LinenT5, np.zeros((1, 5, 16)), np.zeros((1, 7, 16))),
         _two((2, 5, 16), (2, 7, 16)), (
        Fault("scaled", {"scaled": True}, "", "scale|constant|term"),
        Fault("eps", {"eps": 1e-5}, "layer_norm", "eps"),
        Fault("relative positions turned", {"turned": True}, "", "order|sign|constant|arrangement|transposed|position"),
        Fault("clip", {"clip": 3}, "", "constant|clip|clamp|min|max"),
        Fault("residual after the norm", {"before": False}, "", "residual|norm order"),
    )),
    Port("mobile linen", lambda seed: TorchMobile(), _linen(LinenMobile, np.zeros((1, 16, 16, 3))), _image(16), (
        Fault("relu for relu6", {"relu6": jax.nn.relu}, "", "activation|constant|max"),
        Fault("swish for hard swish", {"act": jax.nn.silu}, "", "activation"),
        Fault("sigmoid for hard sigmoid", {"gate": jax.nn.sigmoid}, "", "activation"),
        Fault("pool SAME", {"pool_padding": "SAME"}, "", "padding"),
        Fault("stem SAME", {"stem_padding": "SAME"}, "conv_stem", "padding"),
        Fault("eps", {"eps": 1e-3}, "bn1", "eps"),
        Fault("batch statistics", {"frozen": False}, "bn1", "training"),
    )),
    Port("mamba equinox", lambda seed: TorchMamba(), loaded(lambda **o: EqxMamba(jax.random.key(0), **o)),
         floats(2, 6, 8), (
        Fault("b and c exchanged", {"swapped": True}, "", "exchanged|order"),
        Fault("no direct term", {"direct": False}, "", "term|residual"),
        Fault("exp for softplus", {"act": jnp.exp}, "", "activation|formula"),
        Fault("convolution not causal", {"before": 1}, "|conv1d", "padding|shift"),
    )),
    Port("siamese equinox", lambda seed: TorchSiamese(), loaded(lambda **o: EqxSiamese(jax.random.key(0), **o)),
         _two((3, 6), (4, 6)), (
        Fault("relu", {"act": jax.nn.relu}, "tower", "activation"),
        Fault("not normed", {"normed": False}, "", "norm|term|formula"),
        Fault("no exp", {"exp": False}, "", "exp|formula|term"),
    )),
    Port("diffusion function", lambda seed: TorchDiffusion(), diffusion, _image(8, 4, time=True), (
        Fault("sine first", {"sin_first": True}, "", "order|exchanged|parts|concat"),
        Fault("half minus one", {"by": 3}, "", "constant|angles|rope"),
        Fault("silu for mish", {"act": jax.nn.silu}, "", "activation"),
        Fault("pixel shuffle", {"shuffle": "tf"}, "", "arrangement|order"),
    )),
)  # fmt: skip
