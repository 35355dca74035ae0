"""JAX's engines on eight host devices: jit over NamedSharding, shard_map, data parallel, scan over layers, donation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import maskedlinear_jax as mj
from maskedlinear_core import blocks, columns, elements, rows, submatrix
from parity.verdict.bounds import error_bound

O, I, BATCH = 16, 24, 8
MASKS = {
    "columns": columns([0, 3, 9]),
    "rows": rows([1, 6]),
    "submatrix": submatrix([1, 6, 15], [0, 3]),
    "blocks": blocks(np.eye(8, dtype=bool), (2, 3)),
    "elements": elements(np.random.default_rng(0).random((O, I)) < 0.3),
}
CUTS = {"by rows": P("d", None), "by columns": P(None, "d"), "replicated": P()}
FORMS = ("masked", "packed")


@pytest.fixture(scope="module")
def mesh():
    assert len(jax.devices()) == 8, "the tests run on eight host devices (tests/conftest.py)"
    return Mesh(np.array(jax.devices()), ("d",))


def numbers(exact):
    """Input, weight and bias: small integers, of which every sum is exact, or random."""
    rng = np.random.default_rng(1)
    shapes = ((BATCH, I), (O, I), (O,))
    return [(rng.integers(-2, 3, s) if exact else rng.standard_normal(s)).astype(np.float32) for s in shapes]


def make(form, mask, weight, bias):
    plain = mj.MaskedLinear.tree_unflatten(None, (jnp.asarray(weight), jnp.asarray(bias), mask, None))
    return (mj.PackedLinear if form == "packed" else mj.MaskedLinear).from_linear(plain, grad_mask=mask)


def leaf(tree, form):
    return tree.values if form == "packed" else tree.weight


def loss(params, rest, x):
    return jnp.square(mj.combine(params, rest)(x)).sum()


def assert_right(form, mask, got, exact, x, w, b):
    """The gradient of sum y^2 is 2 y^T x: bit for bit on exact inputs, else within the bound of the two sums."""
    take = (lambda a: np.asarray(mj.pack(a.astype(np.float32), grad_mask=mask))) if form == "packed" else (
        lambda a: np.where(mask.to_array((O, I)), a, 0.0))  # fmt: skip
    with jax.enable_x64(True):
        double = [a.astype(np.float64) for a in (x, w, b)]
        if form == "packed":
            take = lambda a: np.asarray(mj.pack(a, grad_mask=mask))  # noqa: E731
        want = take(2 * (double[0] @ double[1].T + double[2]).T @ double[0])
        sizes = [np.abs(a) for a in double]
        size = take(2 * (sizes[0] @ sizes[1].T + sizes[2]).T @ sizes[0])
    got = np.asarray(got)
    if exact:
        np.testing.assert_array_equal(got, want)
    else:
        assert (np.abs(got - want) <= error_bound(size, "float32", terms=I + 1 + BATCH, stages=6)).all()


def sharded(layer, form, cut, mesh):
    """The layer with its matrix cut; all else on every device."""
    everywhere = NamedSharding(mesh, P())
    placed = jax.tree.map(lambda a: jax.device_put(a, everywhere), layer)
    name = "base_bits" if form == "packed" else "weight"
    return placed.replace(**{name: jax.device_put(getattr(placed, name), NamedSharding(mesh, CUTS[cut]))})


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("kind", MASKS)
def test_jit_over_named_sharding(mesh, kind, cut, form, exact):
    x, w, b = numbers(exact)
    params, rest = mj.partition(sharded(make(form, MASKS[kind], w, b), form, cut, mesh))
    grads = jax.jit(jax.grad(loss))(params, rest, jax.device_put(x, NamedSharding(mesh, P())))
    assert_right(form, MASKS[kind], leaf(grads, form), exact, x, w, b)
    if form == "masked" and cut != "replicated":
        # Asked to lie as its weight does, the gradient is computed in parts.
        where = jax.tree.map(lambda leaf: leaf.sharding, params)
        grads = jax.jit(jax.grad(loss), out_shardings=where)(params, rest, x)
        assert grads.weight.sharding.spec == params.weight.sharding.spec
        assert_right(form, MASKS[kind], grads.weight, exact, x, w, b)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
def test_data_parallel(mesh, kind, form, exact):
    x, w, b = numbers(exact)
    params, rest = jax.device_put(mj.partition(make(form, MASKS[kind], w, b)), NamedSharding(mesh, P()))
    step = jax.jit(jax.grad(loss))
    grads = step(params, rest, jax.device_put(x, NamedSharding(mesh, P("d"))))
    assert_right(form, MASKS[kind], leaf(grads, form), exact, x, w, b)


@pytest.mark.parametrize("kind", MASKS)
def test_all_reduce_carries_packed_values_only(mesh, kind):
    x, w, b = numbers(True)
    layer = make("packed", MASKS[kind], w, b)
    params, rest = jax.device_put(mj.partition(layer), NamedSharding(mesh, P()))
    program = jax.jit(jax.grad(loss)).lower(params, rest, jax.device_put(x, NamedSharding(mesh, P("d")))).compile()
    reduced = [line for line in program.as_text().splitlines() if "all-reduce(" in line and "=" in line]
    assert reduced
    largest = max(int(np.prod([int(n) for n in shape.split(",") if n] or [1])) for line in reduced
                  for shape in re.findall(r"f32\[([\d,]*)\]", line.split("all-reduce(")[0]))  # fmt: skip
    # Elements are reduced by chunks of rows, each of which is no more than half of the weight.
    limit = layer.values.size if kind != "elements" else O * I // 2
    assert largest <= max(limit, O)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
def test_shard_map(mesh, kind, form, exact):
    x, w, b = numbers(exact)
    params, rest = mj.partition(make(form, MASKS[kind], w, b))

    def part(params, rest, x):
        # Each device differentiates its own part of the batch, then gradients are added.
        params = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, "d", to="varying"), params)
        return jax.lax.psum(jax.grad(loss)(params, rest, x), "d")

    grads = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=P()))(params, rest, x)
    assert_right(form, MASKS[kind], leaf(grads, form), exact, x, w, b)


@pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward mode"])
@pytest.mark.parametrize("kind", MASKS)
def test_shard_map_sums_gradients_as_for_a_plain_layer(mesh, kind, forward_mode):
    """What is the same on all devices needs no word about it: JAX sums its gradient, and so do we."""
    x, w, b = numbers(True)
    mask = MASKS[kind].to_array((O, I))

    def gradients(layer):
        part = jax.shard_map(
            lambda w, b, x: jax.grad(lambda w, b: (layer(x, w, b) ** 2).sum(), (0, 1))(w, b),
            mesh=mesh, in_specs=(P(), P(), P("d")), out_specs=(P(), P()),
        )  # fmt: skip
        return jax.jit(part)(w, b, x)

    wanted = gradients(lambda x, w, b: x @ w.T + b)
    found = gradients(lambda x, w, b: mj.masked_linear(x, w, b, grad_mask=MASKS[kind], forward_mode=forward_mode))
    np.testing.assert_array_equal(np.asarray(found[0]), np.where(mask, np.asarray(wanted[0]), 0))
    np.testing.assert_array_equal(np.asarray(found[1]), np.asarray(wanted[1]))
    packed = gradients(
        lambda x, w, b: mj.packed_linear(
            x, jax.lax.stop_gradient(w), mj.pack(w, grad_mask=MASKS[kind]), b,
            grad_mask=MASKS[kind], forward_mode=forward_mode,
        )
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(packed[0]), np.where(mask, np.asarray(wanted[0]), 0))


def test_shard_map_over_what_does_not_learn(mesh):
    """A constant matrix, a bias mask or positions that differ from device to device: gradients are summed, too."""
    x, w, b = numbers(True)
    x = x[:1]
    many = np.arange(8 * O * I, dtype=np.float32).reshape(8 * O, I) % 5 - 2
    values = many[:O, [0, 3, 9]]
    bits, index = np.arange(8 * O) % 3 == 0, np.arange(8, dtype=np.int32)

    def summed(layer, learned, varying):
        part = lambda learned, one: jax.grad(lambda v: (layer(v, one) ** 2).sum())(learned)  # noqa: E731
        return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(P(), P("d")), out_specs=P()))(learned, varying)

    def looped(layer, learned, varying):
        return sum(jax.grad(lambda v, one=one: (layer(v, one) ** 2).sum())(learned) for one in np.split(varying, 8))

    for layer, learned, varying in (
        (lambda v, w: mj.packed_linear(x, w, v, grad_mask=MASKS["columns"]), values, many),
        (lambda b, m: mj.masked_linear(x, w, b, grad_mask=MASKS["columns"], bias_mask=m), b, bits),
        (lambda w, i: mj.masked_linear(x, w, grad_mask=columns(jnp.asarray(i))), w, index),
    ):
        found = summed(layer, jnp.asarray(learned), varying)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(looped(layer, jnp.asarray(learned), varying)))


def test_the_first_reproducible_call_within_a_mesh():
    from maskedlinear_jax import engine_choice

    engine_choice._known_answer.cache_clear()
    x, w, b = numbers(True)
    with jax.set_mesh(jax.make_mesh((8,), ("d",))):
        y = jax.jit(lambda x: mj.masked_linear(x, w, b, grad_mask=MASKS["rows"], precision="reproducible"))(x)
    np.testing.assert_array_equal(np.asarray(y), x @ w.T + b)


SPECS = {"by rows": P("m", None), "by columns": P(None, "m"), "replicated": P(None, None)}


@pytest.fixture
def explicit():
    """A mesh whose shardings are part of types, as `jax.make_mesh` makes it."""
    mesh = jax.make_mesh((2, 4), ("d", "m"))
    with jax.set_mesh(mesh):
        yield lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))


@pytest.mark.parametrize("forward_mode", [False, True], ids=["reverse", "forward mode"])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", MASKS)
def test_shardings_that_are_part_of_types(explicit, kind, spec, forward_mode):
    """Outputs, gradients and what is packed have the sharding that a plain layer gives them, and its values."""
    x, w, b = numbers(True)
    mask, spec = MASKS[kind], SPECS[spec]
    chosen = mask.to_array((O, I))
    x, w, b = explicit(x, P("d", None)), explicit(w, spec), explicit(b, P(spec[0]))

    def step(layer):
        return jax.jit(lambda w, x: (layer(w, x), jax.grad(lambda w: (layer(w, x) ** 2).sum())(w)))(w, x)

    wanted, found = (
        step(layer)
        for layer in (
            lambda w, x: jnp.einsum("bi,oi->bo", x, w) + b,
            lambda w, x: mj.masked_linear(x, w, b, grad_mask=mask, forward_mode=forward_mode),
        )
    )
    np.testing.assert_array_equal(np.asarray(found[0]), np.asarray(wanted[0]))
    np.testing.assert_array_equal(np.asarray(found[1]), np.where(chosen, np.asarray(wanted[1]), 0))
    assert [one.sharding for one in found] == [one.sharding for one in wanted]
    values = jax.jit(lambda w: mj.pack(w, grad_mask=mask))(w)
    packed = lambda v, x: mj.packed_linear(x, w, v, b, grad_mask=mask, forward_mode=forward_mode)  # noqa: E731
    gradient = jax.jit(jax.grad(lambda v: (packed(v, x) ** 2).sum()))(values)
    whole = jax.jit(lambda w, v: mj.unpack(w, v, grad_mask=mask))(w, gradient)
    np.testing.assert_array_equal(np.asarray(whole), np.where(chosen, np.asarray(found[1]), np.asarray(w)))
    assert whole.sharding == w.sharding


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
def test_scan_over_layers(kind, form):
    """Eight layers stacked along a new axis: the gradients of each are those of the loop."""
    mask = MASKS[kind]
    draw = np.random.default_rng(2).standard_normal
    square = [(draw((I, I)) / 8).astype(np.float32) for _ in range(8)]
    wide = np.zeros((I, I), bool)
    wide[:O] = mask.to_array((O, I))
    layers = [
        make(form, elements(wide) if kind == "elements" else mask_of(kind), w, draw(I).astype(np.float32))
        for w in square
    ]
    params = [mj.partition(layer)[0] for layer in layers]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    rests = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[mj.partition(layer)[1] for layer in layers])
    x = draw((BATCH, I)).astype(np.float32)

    def scanned(stacked, x):
        def body(h, layer):
            return jnp.tanh(mj.combine(*layer)(h)), None

        return jnp.square(jax.lax.scan(body, x, (stacked, rests))[0]).sum()

    def looped(params, x):
        for one, layer in zip(params, layers, strict=True):
            x = jnp.tanh(mj.combine(one, mj.partition(layer)[1])(x))
        return jnp.square(x).sum()

    seen, want = jax.jit(jax.grad(scanned))(stacked, x), jax.grad(looped)(params, x)
    for i, one in enumerate(want):
        got = np.asarray(leaf(seen, form)[i])
        size = np.abs(np.asarray(leaf(one, form))).max()
        # The same formula in two programs: sums of at most I terms in each of 8 layers, forward and backward.
        np.testing.assert_allclose(got, leaf(one, form), rtol=0, atol=2 * 8 * I * 2**-24 * max(size, 1.0))
        np.testing.assert_array_equal(got == 0, np.asarray(leaf(one, form)) == 0)


def mask_of(kind):
    return {
        "columns": columns([0, 3, 9]),
        "rows": rows([1, 6]),
        "submatrix": submatrix([1, 6, 15], [0, 3]),
        "blocks": blocks(np.eye(8, dtype=bool), (3, 3)),
    }[kind]


@pytest.mark.parametrize("form", FORMS)
def test_donation(form):
    """The step may write into its arguments: parameters and state are given up, the matrix is not."""
    x, w, b = numbers(False)
    layer = make(form, MASKS["columns"], w, b)
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    optimizer = mj.hold_frozen(optimizer, layer) if form == "masked" else optimizer
    params, rest = mj.partition(layer)
    before = jax.tree.map(jnp.copy, layer)
    state = optimizer.init(params)

    def step(params, state, rest, x):
        updates, state = optimizer.update(jax.grad(loss)(params, rest, x), state, params)
        return mj.apply_updates(params, updates), state

    donated = jax.jit(step, donate_argnums=(0, 1))
    given = params
    for _ in range(3):
        params, state = donated(params, state, rest, x)
    assert leaf(given, form).is_deleted()
    assert mj.assert_frozen(before, mj.combine(params, rest)) == O * I - 3 * O


@pytest.mark.parametrize("form", FORMS)
def test_rematerialisation_and_ahead_of_time_compilation(form):
    x, w, b = numbers(True)
    params, rest = mj.partition(make(form, MASKS["submatrix"], w, b))
    checkpointed = jax.grad(lambda params, rest, x: jnp.square(jax.checkpoint(mj.combine(params, rest))(x)).sum())
    compiled = jax.jit(checkpointed).lower(params, rest, x).compile()
    assert_right(form, MASKS["submatrix"], leaf(compiled(params, rest, x), form), True, x, w, b)


def test_example_on_eight_devices():
    """What the README says to type."""
    root = Path(__file__).parent.parent
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(root / "examples" / "cluster" / "train_jax.py")]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2
