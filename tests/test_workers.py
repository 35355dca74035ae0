"""The same bits for any number of workers: torch processes and JAX devices that share a batch (contract S9)."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import maskedlinear_jax as mj

ROOT = Path(__file__).parent.parent
BATCH, STEPS = 96, 50


FORMS = [("masked", "packed"), ("packed", "masked")]
"""Of the two layers: each form once over columns and once over elements."""


def in_torch(world):
    """Train in that many processes, by groups of 1, 2, ... of them; return the hashes of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = str(ROOT / "tests" / "engines" / "workers.py")
    running = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(world), port],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in range(world)
    ]  # fmt: skip
    seen = [process.communicate(timeout=300) for process in running]
    for process, (_, errors) in zip(running, seen, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [json.loads(printed) for printed, _ in seen]


def in_jax(forms, how, wrap):
    """Train the same two layers; `wrap(step)` spreads a step over devices."""
    rng = np.random.Generator(np.random.PCG64(3))
    chosen = mj.elements(rng.random((10, 24)) < 0.5)
    first_form, last_form = ({"masked": mj.MaskedLinear, "packed": mj.PackedLinear}[form] for form in forms)
    first = first_form(16, 24, grad_mask=mj.columns(range(0, 16, 2)), seed=1, precision=how)
    last = last_form(24, 10, grad_mask=chosen, bias_mask=np.arange(10) % 3 > 0, seed=2, precision=how)
    params, rest = mj.partition((first, last))

    def step(params, rest, x, t):
        def network(params):
            first, last = mj.combine(params, rest)
            return last(jax.nn.relu(first(x)))

        output, pull = jax.vjp(network, params)
        (gradients,) = pull((output - t) * 2.0**-7)
        return jax.tree.map(lambda w, d: w - d * 0.25, params, gradients)

    run = wrap(step)
    for _ in range(STEPS):
        x, t = (rng.standard_normal((BATCH, size)).astype(np.float32) for size in (16, 10))
        # One step at a time: steps in flight share the CPU's few threads, and a collective that waits holds one.
        params = jax.block_until_ready(run(params, rest, x, t))
    layers = mj.combine(params, rest)
    bits = b"".join(np.asarray(part).tobytes() for layer in layers for part in (layer.weight, layer.bias))
    return hashlib.sha256(bits).hexdigest()


def alone():
    return in_jax(("masked", "masked"), "reproducible", jax.jit)


def mesh_of(count):
    return Mesh(np.array(jax.devices()[:count]), ("d",))


@pytest.fixture(scope="module")
def want():
    return alone()


def test_torch_processes(want):
    """Groups of 1, 2 and 3, the smaller ones of the first of the three."""
    for rank, found in enumerate(in_torch(3)):
        assert found == {f"{count} {forms}": want for count in range(rank + 1, 4) for forms in FORMS}


@pytest.mark.parametrize(("count", "forms"), [(1, FORMS[0]), (2, FORMS[1]), (4, FORMS[0]), (8, FORMS[1])])
def test_jax_devices_under_shard_map(want, count, forms):
    def wrap(step):
        specs = {"mesh": mesh_of(count), "in_specs": (P(), P(), P("d"), P("d")), "out_specs": P()}
        return jax.jit(jax.shard_map(step, **specs))

    assert in_jax(forms, mj.reproducible(group="d"), wrap) == want


@pytest.mark.parametrize(("count", "forms"), [(1, FORMS[1]), (2, FORMS[0]), (4, FORMS[1]), (8, FORMS[0])])
def test_jax_devices_under_jit(want, count, forms):
    """Sharded by jit: the arrays are whole to the program, so there is nothing to say."""

    def wrap(step):
        mesh = mesh_of(count)
        everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("d"))
        return jax.jit(step, in_shardings=(everywhere, everywhere, spread, spread), out_shardings=everywhere)

    assert in_jax(forms, "reproducible", wrap) == want


def test_native_sums_do_depend_on_the_workers():
    """What this is for: the plain psum of the parts' gradients."""

    def wrap(count):
        def spread(step):
            mesh = mesh_of(count)
            everywhere, parts = NamedSharding(mesh, P()), NamedSharding(mesh, P("d"))
            return jax.jit(step, in_shardings=(everywhere, everywhere, parts, parts), out_shardings=everywhere)

        return spread

    assert len({in_jax(("masked", "masked"), "native", wrap(count)) for count in (1, 8)}) > 1


def test_no_second_derivative_over_workers():
    layer = mj.MaskedLinear(4, 3, grad_mask=mj.columns([1]), seed=0, precision=mj.reproducible(group="d"))
    params, rest = mj.partition(layer)

    def penalty(params, x):
        gradient = jax.grad(lambda params: (mj.combine(params, rest)(x) ** 2).sum())(params)
        return (gradient.weight**2).sum()

    spread = jax.shard_map(jax.grad(penalty), mesh=mesh_of(2), in_specs=(P(), P("d")), out_specs=P())
    with pytest.raises(NotImplementedError, match=r"expected first derivatives only with reproducible\(group="):
        jax.jit(spread)(params, jnp.ones((4, 4)))
