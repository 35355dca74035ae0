"""Convolutions, pools and resizes: what lies in a window, at the edges, and between the numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from parity.explanation.claims import Claim, change_all, grouped
from parity.explanation.programs.program import Operation, Step
from parity.explanation.substitution import Change


def resizes(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield resizes by another method, with antialiasing or without."""
    import torch

    kinds = {
        "bilinear": ("upsample_bilinear2d", "_upsample_bilinear2d_aa"),
        "bicubic": ("upsample_bicubic2d", "_upsample_bicubic2d_aa"),
    }
    names = {
        "upsample_bilinear2d": "bilinear",
        "_upsample_bilinear2d_aa": "bilinear with antialiasing",
        "upsample_bicubic2d": "bicubic",
        "_upsample_bicubic2d_aa": "bicubic with antialiasing",
        "upsample_nearest2d": "nearest",
        "_upsample_nearest_exact2d": "nearest-exact",
    }
    pairs = [pair for plain in kinds.values() for pair in (plain, plain[::-1])]
    nearest = ("upsample_nearest2d", "_upsample_nearest_exact2d")
    for mine, theirs in (
        *pairs,
        nearest,
        nearest[::-1],
        ("upsample_bilinear2d", "upsample_bicubic2d"),
        ("upsample_bicubic2d", "upsample_bilinear2d"),
        ("upsample_bilinear2d", "_upsample_bicubic2d_aa"),
        *(("upsample_bilinear2d", one) for one in nearest),
        ("upsample_nearest2d", "upsample_bilinear2d"),
    ):
        for group in grouped(steps, partial(_is, name=mine)):

            def resized(operation: Operation, theirs: str = theirs, centres: bool = False) -> Any:
                o = operation.operands
                size = o.get("output_size")
                if size is None:
                    size = [int(n * s) for n, s in zip(o["input"].shape[2:], o["scale_factors"], strict=True)]
                call = getattr(torch.ops.aten, theirs).default
                x = o.get("self", o.get("input"))
                return (
                    call(x, size)
                    if "nearest" in theirs
                    else call(x, size, bool(o.get("align_corners")) and not centres)
                )

            aa = ("_aa" in mine) != ("_aa" in theirs)
            cause = "default argument: antialias" if aa else "default argument: mode"
            step = group[0]
            source = step.operands.get("self", step.operands.get("input"))
            if (
                aa
                and "cubic" in mine
                and step.result is not None
                and all(new >= old for new, old in zip(step.result.shape, source.shape, strict=True))
            ):
                # Where nothing shrinks there is no antialiasing: torch has another kernel for it.
                kernels = ("the cubic kernel of a = -0.75", "that of a = -0.5")
                has, needs = kernels if "_aa" in theirs else kernels[::-1]
                if step.operands.get("align_corners"):
                    change = change_all("torch", group, partial(resized, centres=True))
                    yield Claim(
                        change, "default argument: align_corners", f"align_corners=True, and {has},",
                        f"align_corners=False, and {needs}", "jax.image.resize has the centre of pixels, as "
                        "align_corners=False, and a = -0.5, as antialias=True: pass these, or use scale_and_translate.",
                    )  # fmt: skip
                yield Claim(
                    change_all("torch", group, resized), "another formula: cubic kernel", has, needs,
                    "torch's bicubic has a = -0.75, with antialias=True a = -0.5, as jax.image.resize: pass that.",
                )  # fmt: skip
                continue
            fix = (
                "Pass antialias= to both: torch.nn.functional.interpolate has False, jax.image.resize True."
                if aa
                else "Use the same method: torch's nearest is no method of jax.image.resize, its nearest-exact is."
            )
            yield Claim(change_all("torch", group, resized), cause, names[mine], names[theirs], fix)


def _is(step: Step, name: str) -> bool:
    return step.name == name


def paddings(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield other paddings of convolutions and pools with a result of the same shape: SAME pads the end more."""
    import torch
    import torch.nn.functional as F

    fix = (
        "SAME pads by what the stride leaves over, the end more than the beginning: pass the padding of torch as "
        "pairs to JAX, or F.pad first in torch."
    )
    for group in grouped(steps, lambda step: "padding" in step.operands and "stride" in step.operands):
        o = group[0].operands
        source = "input" if "input" in o else "self"
        if o.get("transposed") or not isinstance(o["padding"], list):
            continue
        spatial = np.ndim(o[source]) - 2
        padding = list(o["padding"]) * (spatial // max(len(o["padding"]), 1))
        pool = "weight" not in o
        sides = [
            [
                (low, high)
                for low in range(2 * p + 1)
                for high in (2 * p - low - 1, 2 * p - low, 2 * p - low + 1)  # what no window reaches last
                if high >= 0 and (low, high) != (p, p)
            ]
            if p
            else [(0, 0)] * any(padding) + [(0, 1), (1, 0), (1, 1)]  # of a pool along one axis the other has none
            for p in padding
        ]
        alike = [pairs for pairs in zip(*sides, strict=False)] if len({tuple(s) for s in sides}) == 1 else []
        for pairs in alike or itertools.islice(itertools.product(*sides), 40):

            def padded(operation: Operation, pairs: Any = pairs, source: str = source, pool: bool = pool) -> Any:
                o = operation.operands
                flat = [n for low, high in reversed(pairs) for n in (low, high)]
                fill = -math.inf if pool and "max" in operation.name else 0.0
                wider = torch.nn.functional.pad(o[source], flat, value=fill)
                return operation.compute({**o, source: wider, "padding": [0] * len(o["padding"])})

            yield Claim(
                change_all("torch", group, padded),
                "padding",
                f"padding {tuple(padding)} on either side ({group[0].name})",
                f"{tuple(pairs)} before and after",
                fix,
            )
        for mode in ("reflect", "replicate", "circular"):
            if not any(padding):
                continue

            def wrapped(operation: Operation, mode: str = mode, source: str = source, padding: Any = padding) -> Any:
                o = operation.operands
                flat = [n for p in reversed(padding) for n in (p, p)]
                return operation.compute(
                    {**o, source: F.pad(o[source], flat, mode=mode), "padding": [0] * len(o["padding"])}
                )

            yield Claim(
                change_all("torch", group, wrapped), "padding", "padding with zeros", f"{mode} padding", "Pad alike."
            )


MODES = {
    "reflect": "reflection, the edge itself left out (reflect)",
    "symmetric": "reflection, the edge itself included (symmetric)",
    "edge": "copies of the edge (replicate, edge)",
    "wrap": "numbers from the other end (circular, wrap)",
    "constant": "zeros",
}
"""Ways to pad, by NumPy's name."""

OF_OPERATOR = {"reflection_pad": "reflect", "replication_pad": "edge", "constant_pad_nd": "constant"}
"""The way of an operator of torch, by how its name begins."""


def pads(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield other ways to pad an array."""
    now = {step.key: way for step in steps for name, way in OF_OPERATOR.items() if step.name.startswith(name)}
    for group in grouped(steps, lambda step: step.key in now):
        widths = [width for step in group for width in step.operands.get("pad", step.operands.get("padding", ()))]
        mine = now[group[0].key]
        for mode in MODES if widths and min(widths) >= 0 and not group[0].operands.get("value") else ():
            if mode != mine:
                yield Claim(
                    change_all("torch", group, partial(_padded, mode=mode)),
                    "padding",
                    f"padding with {MODES[mine]}",
                    MODES[mode],
                    "Pad alike: reflect of torch is that of jnp.pad; what SciPy calls reflect is symmetric there.",
                )


def _padded(operation: Operation, mode: Any) -> Any:
    o = operation.operands
    values, flat = operation.numpy(o["self"]), list(o.get("pad", o.get("padding", ())))
    pairs = [(flat[i], flat[i + 1]) for i in range(0, len(flat), 2)][::-1]
    return operation.like(np.pad(values, [(0, 0)] * (values.ndim - len(pairs)) + pairs, mode=mode), o["self"])


CENTRED = (
    "torch.stft puts a window that is shorter than n_fft in the middle, as librosa does: pad it by (n_fft - "
    "win_length) // 2 on either side. tf.signal.stft and rfft(frames, n) leave it at the start."
)
SIDES = "Put the zeros on the same side: a causal convolution has them before, a padded batch mostly after."


def sides(steps: Sequence[Step], of_window: bool) -> Iterator[Claim]:
    """Yield zeros beside an array, or beside the window of a spectrum, on another side."""
    filled = {step.sources.get("self") for step in steps if step.name in ("copy_", "fill_")}
    transforms = any("fft" in step.name for step in steps)
    for step in steps:
        o = step.operands
        if (
            step.name == "slice"
            and step.result is not None
            and step.key in filled
            and o["step"] == 1
            and transforms
            and np.ndim(o["self"]) == 1
        ):
            before, size, whole = o["start"] or 0, len(step.result), len(o["self"])
            window, edit = True, _sliced
        elif step.name == "constant_pad_nd" and not o.get("value") and sum(map(any, _pairs(o["pad"]))) == 1:
            ((before, after),) = filter(any, _pairs(o["pad"]))
            size, whole = 0, before + after
            window, edit = transforms and np.ndim(o["self"]) == 1, _padded_beside
            if min(before, after) < 0:
                continue
        else:
            continue
        rest = whole - size
        if window != of_window:
            continue
        for first in dict.fromkeys((0, rest, rest // 2, rest - rest // 2)):
            if first != before:
                what = "zeros beside the window" if window else "zeros"
                yield Claim(
                    Change("torch", {step.key: partial(edit, first=first, rest=rest)}),
                    "padding: window" if window else "padding",
                    f"{what}, {before} before and {rest - before} after,",
                    f"{first} before and {rest - first} after",
                    CENTRED if window else SIDES,
                )


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _sliced(operation: Operation, first: int, rest: int) -> Any:
    o = operation.operands
    return operation.compute({**o, "start": first, "end": len(o["self"]) - rest + first})


def _padded_beside(operation: Operation, first: int, rest: int) -> Any:
    o = operation.operands
    flat = [n for pair in _pairs(o["pad"]) for n in ((first, rest - first) if any(pair) else pair)]
    return operation.compute({**o, "pad": flat})


WINDOW = (
    "A periodic window (torch.hann_window's default) divides by n, a symmetric one (np.hanning, jnp.hanning, SciPy's "
    "sym=True) by n - 1: pass periodic=False in torch, or write 2 pi k / n out in JAX."
)


def tapers(step: Step) -> Iterator[Claim]:
    """Yield the symmetric window in the place of the periodic one, and the other way around."""
    import torch

    o = step.operands
    now = bool(o.get("periodic", True))
    more = {name: o[name] for name in ("alpha", "beta") if name in o}

    def other(operation: Operation) -> Any:
        made = getattr(torch, step.name)(o["window_length"], not now, **more, dtype=torch.float64)
        return operation.like(operation.numpy(made), operation.compute(operation.operands))

    words = {True: "periodic", False: "symmetric"}
    yield Claim(
        Change("torch", {step.key: other}), "another formula: window", f"a {words[now]} window ({step.name})",
        f"a {words[not now]} one", WINDOW,
    )  # fmt: skip


def dilations(steps: Sequence[Step]) -> Iterator[Claim]:
    """Yield convolutions without holes, and with holes of 1, where the padding goes with them."""
    for wanted, needs in ((lambda d: d > 1, 1), (lambda d: d == 1, 2)):
        for group in grouped(steps, lambda step, f=wanted: any(map(f, _holes(step)))):  # type: ignore[misc]
            for kept in ("end", "start", "middle"):
                yield Claim(
                    change_all("torch", group, partial(_with_holes, needs=needs, kept=kept)),
                    "default argument: dilation",
                    f"dilation {' and '.join(dict.fromkeys(str(tuple(_holes(step))) for step in group))} "
                    f"({group[0].name})",
                    f"dilation {needs}",
                    "Pass dilation= in torch and kernel_dilation= in Flax alike, each with the padding that it needs.",
                )


def _holes(step: Step) -> list[int]:
    found = step.operands.get("dilation") if step.name == "convolution" else None
    return found if isinstance(found, list) and step.operands.get("transposed") is False else []


def _with_holes(operation: Operation, needs: int, kept: str) -> Any:
    """Return what a convolution gives with another dilation, cut or padded to the same shape."""
    import torch.nn.functional as F

    usual = operation.compute(operation.operands).shape
    found = operation.compute({**operation.operands, "dilation": [needs] * len(operation.operands["dilation"])})
    sides: list[int] = []
    for n, m in zip(reversed(usual[2:]), reversed(found.shape[2:]), strict=True):
        before = {"end": n - m, "start": 0, "middle": (n - m) // 2}[kept]
        sides += [before, n - m - before]
    return F.pad(found, sides)  # a negative padding cuts
