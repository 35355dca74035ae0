"""Every program of the layer is lowered for platforms that are not here: no decision is taken from the host's devices.

But for one, and that where a program is lowered, not where it is traced: how reproducible gradients compute integers,
with `engine="auto"`. A host with a GPU of fast float64 lowers float64 products for CUDA. The bits are the same.

A program that is exported for four platforms at once, written and read, runs on this one with the bits of the program
that was never exported. What a GPU answers is not shown here.
"""

import functools
import itertools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maskedlinear_jax import (
    MaskedEmbedding,
    MaskedLinear,
    PackedEmbedding,
    apply_updates,
    blocks,
    columns,
    combine,
    elements,
    grad_masks,
    hold_frozen,
    masked_linear,
    masked_parameter,
    pack,
    packed_linear,
    partition,
    reproducible,
    rows,
    submatrix,
)
from maskedlinear_jax.equinox import train_new_tokens as train_new_tokens_of_equinox
from maskedlinear_jax.kinds import Kind
from maskedlinear_jax.lowering import resolve
from maskedlinear_jax.nnx import mask_linears as mask_linears_of_nnx

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
O, I = 8, 12

rng = np.random.default_rng(0)
MASKS = {
    "columns": columns([1, 4, 5]),
    "rows": rows([0, 3]),
    "submatrix": submatrix([1, 2], [0, 7, 9]),
    "blocks": blocks(np.array([[1, 0, 0], [0, 0, 1]], bool), (4, 4)),
    "many blocks": blocks(np.array([[1, 0, 1], [1, 0, 1]], bool), (4, 4)),
    "elements": elements(rng.random((O, I)) < 0.4),
    "few elements": elements(np.eye(O, I, dtype=bool)),
    "all": columns(slice(None)),
    "nothing": rows([]),
}
PRECISIONS = {
    "native": "native",
    "reproducible": "reproducible",
    "reproducible float64": reproducible(engine="float64"),
    "reproducible float32": reproducible(engine="float32"),
    "reproducible int8": reproducible(engine="int8"),
}
X, W, B = (jnp.asarray(rng.integers(-4, 5, shape), jnp.float32) for shape in ((5, I), (O, I), (O,)))


def loss_of(layer, **keywords):
    return lambda *args: (layer(*args, **keywords) ** 2).sum()


def norm_of_gradients(layer):
    gradients = jax.grad(loss_of(layer), (0, 1, 2))
    return lambda *args: sum((one**2).sum() for one in gradients(*args))


TRANSFORMS = {
    "forward": lambda layer, args: layer(*args),
    "grad": lambda layer, args: jax.grad(loss_of(layer), (0, 1, 2))(*args),
    "vjp": lambda layer, args: jax.vjp(layer, *args)[1](jnp.ones((len(X), O))),
    "jvp": lambda layer, args: jax.jvp(functools.partial(layer, forward_mode=True), args, args),
    "jacfwd": lambda layer, args: jax.jacfwd(functools.partial(layer, forward_mode=True), 2)(*args),
    "jacrev": lambda layer, args: jax.jacrev(layer, 1)(X[:1], *args[1:]),
    "hessian": lambda layer, args: jax.hessian(loss_of(layer, forward_mode=True), 1)(*args),
    "vmap": lambda layer, args: jax.vmap(jax.grad(loss_of(layer), (0, 1, 2)), (0, None, None))(X[:, None], *args[1:]),
    "scan": lambda layer, args: jax.lax.scan(
        lambda total, row: (total + loss_of(layer)(row[None], *args[1:]), None), 0.0, args[0]
    )[0],
    "checkpoint": lambda layer, args: jax.grad(jax.checkpoint(loss_of(layer)), 1)(*args),
    "grad of grad": lambda layer, args: jax.grad(norm_of_gradients(layer), (0, 1, 2))(*args),
}
FORMS = ("masked", "packed")
masked_and_packed = pytest.mark.parametrize("packed", [False, True], ids=FORMS)


def program(mask, precision):
    """Return what every transform makes of both forms of a layer, as one function, and what to call it with.

    JAX lowers once what they share.
    """
    learned = {"masked": W, "packed": pack(W, grad_mask=mask)}

    def layer(form, x, learned, b, **keywords):
        if form == "packed":
            return packed_linear(x, W, learned, b, grad_mask=mask, precision=precision, **keywords)
        return masked_linear(x, learned, b, grad_mask=mask, precision=precision, **keywords)

    def every(x, learned, b):
        return {
            form: {
                name: transform(functools.partial(layer, form), (x, learned[form], b))
                for name, transform in TRANSFORMS.items()
            }
            for form in FORMS
        }

    return jax.jit(every), (X, learned, B)


def same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(np.asarray(other), np.asarray(leaf), str(path))


def exported_for_all(function, args):
    """Return a program as one that was written to a file for all platforms, and read again."""
    exported = jax.export.deserialize(jax.export.export(function, platforms=PLATFORMS)(*args).serialize())
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "callback" not in text
    return exported, text


KINDS = {name: mask for name, mask in MASKS.items() if name not in ("many blocks", "all", "nothing")}
EXPORTED = [(name, how) for name in MASKS for how in PRECISIONS if name in KINDS or how == "native"]
RUN = [
    *itertools.product(MASKS, ("native",)),
    *itertools.product(("submatrix",), ("reproducible", "reproducible float64")),
]
"""Other reproducible programs compile for many seconds; `tests/test_exact_engines.py` holds their bits."""


def test_the_list_of_programs_is_complete():
    found = {type(resolve(mask, (O, I), packed=form == "packed")) for mask in KINDS.values() for form in FORMS}
    assert found == {kind for kind in Kind.by_name.values() if "test" not in kind.__module__}
    assert len(EXPORTED) * len(FORMS) * len(TRANSFORMS) == 726
    assert set(RUN) <= set(EXPORTED)


@pytest.mark.parametrize(("name", "precision"), EXPORTED)
def test_every_program_is_exported_for_all_platforms(name, precision):
    """With float64 for a CPU and digits of float32 for the others, or the engine that is asked for."""
    every, args = program(MASKS[name], PRECISIONS[precision])
    exported, text = exported_for_all(every, args)
    assert ("f64" in text) == (precision in ("reproducible", "reproducible float64"))
    assert ("xi8>" in text) == (precision == "reproducible int8")
    made = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert {form: set(found) for form, found in made.items()} == {form: set(TRANSFORMS) for form in FORMS}
    if (name, precision) in RUN:
        same_bits(exported.call(*args), every(*args))


@masked_and_packed
def test_a_program_for_every_batch_size(packed):
    """Of a batch whose size is a symbol: what learns can be trained further in what was read."""
    mask, (size,) = MASKS["columns"], jax.export.symbolic_shape("b")
    learned, x = (pack(W, grad_mask=mask) if packed else W), jax.ShapeDtypeStruct((size, I), jnp.float32)

    def layer(x, learned, precision="native"):
        if packed:
            return packed_linear(x, W, learned, grad_mask=mask, precision=precision)
        return masked_linear(x, learned, grad_mask=mask, precision=precision)

    exported = jax.export.export(jax.jit(layer), platforms=PLATFORMS)(x, learned)
    exported = jax.export.deserialize(exported.serialize(vjp_order=1))
    for size in (1, 5):
        gradients = [jax.grad(loss_of(one), 1)(X[:size], learned) for one in (jax.jit(layer), exported.call)]
        same_bits(gradients[1], gradients[0])
    with pytest.raises(
        ValueError, match="expected lengths that are numbers for precision='reproducible', got the symb"
    ):
        jax.export.export(jax.jit(functools.partial(layer, precision="reproducible")))(x, learned)


@pytest.mark.parametrize("precision", ["native", "reproducible"])
def test_a_layer_in_a_branch_for_fewer_platforms(precision):
    """As in jax #21799: a rule of lowering is asked for the platforms of the branch, not for those of the program."""
    layer = lambda x, w: masked_linear(x, w, grad_mask=MASKS["columns"], precision=PRECISIONS[precision])  # noqa: E731
    plain = lambda x, w: x @ w.T  # noqa: E731
    for branches in ({"cpu": layer, "default": plain}, {"tpu": plain, "default": layer}):
        loss = lambda w, x, branches=branches: (jax.lax.platform_dependent(x, w, **branches) ** 2).sum()  # noqa: E731
        program = jax.jit(jax.value_and_grad(loss))
        exported = jax.export.export(program, platforms=PLATFORMS)(W, X)
        same_bits(exported.call(W, X), program(W, X))


def gradient(precision):
    def loss(x, w):
        return (masked_linear(x, w, grad_mask=MASKS["columns"], precision=precision) ** 2).sum()

    return jax.jit(jax.grad(loss, (0, 1)))


@functools.cache
def traced(name):
    return gradient(PRECISIONS[name]).trace(X, W)


ENGINE_OF = {"cpu": "float64", "cuda": "float32", "rocm": "float32", "tpu": "float32"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_adds_up_is_decided_by_what_a_program_is_lowered_for(platform):
    """A TPU has no float64: what is exported for one on a CPU must not use it. Products of digits keep all bits."""
    text = traced("reproducible").lower(lowering_platforms=(platform,)).as_text()
    asked = traced(f"reproducible {ENGINE_OF[platform]}").lower(lowering_platforms=(platform,)).as_text()
    assert text == asked
    assert ("f64" in text) == (platform == "cpu")
    if platform != "cpu":
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(("capability", "is_float64"), [("9.0", True), ("8.9", False)])
def test_a_gpu_that_is_here_is_asked_where_a_program_is_lowered_for_it(capability, is_float64, monkeypatch):
    """As on an H100 and an L4. A program of workers has both, of which a constant chooses one."""
    gpu = types.SimpleNamespace(compute_capability=capability, process_index=jax.process_index() + 1)
    program, workers = gradient("reproducible").trace(X, W), summed_over_workers().trace(jnp.ones((8, I)), W)
    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda name=None: [gpu] if name == "cuda" else devices(name))
    assert ("f64" in program.lower(lowering_platforms=("cuda",)).as_text()) == is_float64
    text = workers.lower(lowering_platforms=("cuda",)).as_text()
    assert f"dense<{str(is_float64).lower()}> : tensor<i1>" in text
    assert "f64" not in program.lower(lowering_platforms=("tpu",)).as_text()


def test_an_engine_that_was_asked_for_is_used_on_every_platform():
    assert "f64" in traced("reproducible float64").lower(lowering_platforms=("tpu",)).as_text()


def summed_over_workers():
    mesh = jax.sharding.Mesh(jax.devices(), ("d",))

    def part(x, w):
        loss = lambda w: masked_linear(x, w, grad_mask=MASKS["columns"], precision=reproducible(group="d")).sum()  # noqa: E731
        return jax.grad(loss)(w)

    spec = jax.sharding.PartitionSpec
    return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec("d"), spec()), out_specs=spec()))


def test_sums_over_workers_are_decided_by_what_a_program_is_lowered_for():
    traced = summed_over_workers().trace(jnp.ones((8, I)), W)
    for platform in ("cpu", "tpu"):
        assert ("f64" in traced.lower(lowering_platforms=(platform,)).as_text()) == (platform == "cpu")


def transformed(loss):
    """Return what transforms make of a loss of (params, x), as one function of them."""

    def every(params, x):
        gradient = jax.grad(loss)
        norm = lambda params: sum((one**2).sum() for one in jax.tree.leaves(gradient(params, x)))  # noqa: E731
        return {
            "gradients": gradient(params, x),
            "gradients by example": jax.vmap(gradient, (None, 0))(params, x[:, None]),
            "gradients of gradients": jax.grad(norm)(params),
            "rematerialised": jax.grad(jax.checkpoint(loss))(params, x),
            "scanned": jax.lax.scan(lambda total, one: (total + loss(params, one[None]), None), 0.0, x)[0],
        }

    return every


def embedded(kind, precision):
    layer = kind.from_embedding(kind(O, I, grad_mask=rows([5, 6]), seed=0), grad_mask=rows([5, 6]), precision=precision)
    params, rest = partition(layer)

    def loss(params, numbers):
        layer = combine(params, rest)
        return (layer.attend(layer(numbers)) ** 2).sum()

    return transformed(loss), (params, jnp.array([1, 5, 6]))


def convolved():
    mask = np.arange(24).reshape(3, 2, 2, 2) < 6

    def loss(weight, x):
        return (jax.lax.conv(x, masked_parameter(weight, mask), (1, 1), "VALID") ** 2).sum()

    return transformed(loss), (jnp.ones((3, 2, 2, 2)), jnp.ones((2, 2, 4, 4)))


def in_nnx(make, shape, masks, packed, precision="native"):
    """A layer or model of Flax NNX, by what its parameters and the rest of it are."""
    model = make(nnx.Rngs(0))
    nnx.update(model, jax.tree.map(jnp.sign, nnx.state(model, nnx.Param)))  # sums of whole numbers are exact
    model = mask_linears_of_nnx(model, masks, packed=packed, precision=precision)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, x):
        model = nnx.merge(graph, params, rest)
        return (model(x) ** 2).sum()

    return transformed(loss), (params, jnp.asarray(rng.integers(-2, 3, shape), jnp.float32))


class Attends(nnx.Module):
    def __init__(self, rngs):
        self.attend = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.attend(x)


FIRST = {"layers.0": columns([1, 4])}


def linear(rngs):
    return nnx.Sequential(nnx.Linear(I, O, rngs=rngs))


def general(rngs):
    return nnx.Sequential(nnx.LinearGeneral((2, 3), (4, 2), axis=(-2, -1), rngs=rngs))


def in_equinox(packed):
    """A model whose head `equinox.nn.Shared` ties to its embedding."""

    class Tied(eqx.Module):
        shared: eqx.nn.Shared

        def __init__(self):
            tokens = eqx.nn.Embedding(O, I, key=jax.random.key(0))
            head = eqx.nn.Linear(I, O, use_bias=False, key=jax.random.key(1))
            self.shared = eqx.nn.Shared((tokens, head), lambda both: both[1].weight, lambda both: both[0].weight)

        def __call__(self, number):
            tokens, head = self.shared()
            return head(tokens(number))

    model = train_new_tokens_of_equinox(Tied(), first=6, packed=packed)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    loss = lambda params, numbers: (jax.vmap(eqx.combine(params, rest))(numbers) ** 2).sum()  # noqa: E731
    return transformed(loss), (params, jnp.array([1, 5, 6]))


OTHERS = {
    "masked linear, nnx": lambda: in_nnx(linear, (3, I), FIRST, False),
    "packed linear, nnx": lambda: in_nnx(linear, (3, I), FIRST, True),
    "masked linear general": lambda: in_nnx(general, (3, 2, 3), FIRST, False),
    "packed linear general": lambda: in_nnx(general, (3, 2, 3), FIRST, True),
    "masked tied head, equinox": lambda: in_equinox(False),
    "packed tied head, equinox": lambda: in_equinox(True),
    "masked embedding": lambda: embedded(MaskedEmbedding, "native"),
    "packed embedding": lambda: embedded(PackedEmbedding, "native"),
    "masked parameter": convolved,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_exported_for_all_platforms_and_run_here(name):
    every, args = OTHERS[name]()
    exported = jax.export.export(jax.jit(every), platforms=PLATFORMS)(*args)
    assert "callback" not in exported.mlir_module()
    same_bits(exported.call(*args), jax.jit(every)(*args))  # eager, a processor may add up in another order


@masked_and_packed
def test_attention_is_exported_for_all_platforms_and_runs_here(packed):
    """Its exponentials are rounded, by each compilation in its own way: the bits are those of its layers, above."""
    every, args = in_nnx(Attends, (2, 3, 4), {"attend.query": rows([1]), "attend.out": columns([0, 2])}, packed)
    exported = jax.export.export(jax.jit(every), platforms=PLATFORMS)(*args)
    assert "callback" not in exported.mlir_module()
    made = jax.tree.leaves(exported.call(*args))
    assert [one.shape for one in made] == [one.shape for one in jax.tree.leaves(jax.eval_shape(every, *args))]
    assert all(np.isfinite(one).all() for one in made)


@masked_and_packed
def test_reproducible_layers_of_more_axes_are_exported_for_all_platforms(packed):
    every, args = in_nnx(general, (3, 2, 3), FIRST, packed, "reproducible")
    text = jax.export.export(jax.jit(every), platforms=PLATFORMS)(*args).mlir_module()
    assert "callback" not in text
    assert "f64" in text


@pytest.mark.parametrize("kind", [MaskedEmbedding, PackedEmbedding], ids=["masked", "packed"])
def test_reproducible_embeddings_are_exported_for_all_platforms(kind):
    every, args = embedded(kind, "reproducible")
    assert "callback" not in jax.export.export(jax.jit(every), platforms=PLATFORMS)(*args).mlir_module()


def test_a_held_step_with_its_masks_lowers_for_every_platform():
    layer = MaskedLinear(I, O, grad_mask=MASKS["columns"], seed=0)
    optimizer = hold_frozen(optax.adamw(0.1), layer)
    params, rest = partition(layer)

    def step(params, rest, state, masks):
        gradients = jax.grad(lambda params: (combine(params, rest)(X) ** 2).sum())(params)
        updates, state = optimizer.update(gradients, state, params, masks=masks)
        return apply_updates(params, updates), state

    traced = jax.jit(step).trace(params, rest, optimizer.init(params), grad_masks(layer))
    assert "callback" not in traced.lower(lowering_platforms=PLATFORMS).as_text()


def test_only_a_cpu_writes_large_operands_and_sums_in_pieces():
    """What is for a CPU is decided where the program is lowered, whatever the host has."""
    g, kept = jnp.ones((600, 512)), jnp.ones((600, 512))

    def lowered(mask):
        def gradient(g, kept):
            return jax.vjp(lambda w: masked_linear(kept, w, grad_mask=mask), jnp.ones((512, 512)))[1](g)[0]

        traced = jax.jit(gradient).trace(g, kept)
        return [traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda")]

    on_cpu, on_cuda = lowered(blocks(np.eye(8, dtype=bool), (64, 64)))
    assert "stablehlo.while" in on_cpu
    assert "stablehlo.while" not in on_cuda
    on_cpu, on_cuda = lowered(columns(range(0, 512, 2)))
    assert "optimization_barrier" in on_cpu
    assert "optimization_barrier" not in on_cuda


ASKS = ("default_backend", "devices", "local_devices", "device_count", "local_device_count", "process_index")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_nothing_asks_for_the_host_s_devices_while_tracing(precision, monkeypatch):
    workers, args = summed_over_workers(), (jnp.ones((8, I)), W)
    every, (x, learned, b) = program(MASKS["columns"], PRECISIONS[precision])

    def ask(*_, **__):
        raise AssertionError("asked for devices while tracing")

    for name in ASKS:
        monkeypatch.setattr(jax, name, ask)
    jax.clear_caches()
    every.trace(x, learned, b)
    workers.trace(*args)
