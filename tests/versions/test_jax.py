"""What the JAX twin must do in every version that pyproject.toml allows; imports no other framework."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem import GOLDEN, NAMES, I, O, digest, integers, masks, normal

import maskedlinear_jax
from maskedlinear_jax import MaskedLinear, columns, masked_linear, pack, packed_linear

MASKS = masks(maskedlinear_jax)
X, W, B = map(jnp.asarray, integers())
each_kind = pytest.mark.parametrize("name", NAMES)


def reference(x, w, b, mask):
    """The program that the layer must agree with, in all its derivatives."""
    return x @ jnp.where(mask.to_array((O, I)), w, jax.lax.stop_gradient(w)).T + b


def both(name, **keywords):
    """Return the layer and the reference program as functions of (x, w, b)."""
    mask = MASKS[name]
    return lambda *args: masked_linear(*args, grad_mask=mask, **keywords), lambda *args: reference(*args, mask)


def same(got, want):
    jax.tree_util.tree_map(np.testing.assert_array_equal, got, want)


@each_kind
@pytest.mark.parametrize("how", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_gradients(name, how):
    got, want = (how(jax.grad(lambda *args, f=f: (f(*args) ** 2).sum(), (0, 1, 2)))(X, W, B) for f in both(name))
    same(got, want)


@each_kind
def test_the_mask_is_an_argument_of_jit(name):
    gradient = jax.jit(jax.grad(lambda w, mask: (masked_linear(X, w, B, grad_mask=mask) ** 2).sum()))
    same(gradient(W, MASKS[name]), jax.grad(lambda w: (reference(X, w, B, MASKS[name]) ** 2).sum())(W))


@each_kind
def test_vmap(name):
    got, want = (
        jax.vmap(jax.grad(lambda w, x, f=f: (f(x, w, B) ** 2).sum()), (None, 0))(W, X) for f in both(name)
    )  # fmt: skip
    same(got, want)


@each_kind
@pytest.mark.parametrize("order", ["hessian", "reverse over reverse"])
def test_second_order(name, order):
    twice = jax.hessian if order == "hessian" else lambda f: jax.jacrev(jax.jacrev(f))
    got, want = (twice(lambda w, f=f: (f(X, w, B) ** 3).sum())(W) for f in both(name))
    same(got, want)


@each_kind
def test_forward_mode(name):
    ones = jnp.ones_like(W)
    got, want = (
        jax.jvp(lambda w, f=f: f(X, w, B), (W,), (ones,)) for f in both(name, forward_mode=True)
    )  # fmt: skip
    same(got, want)


@each_kind
def test_packed(name):
    mask = MASKS[name]
    values = pack(W, grad_mask=mask)
    same(packed_linear(X, W, values, B, grad_mask=mask), X @ W.T + B)
    got = jax.jit(jax.grad(lambda v: (packed_linear(X, W, v, B, grad_mask=mask) ** 2).sum()))(values)
    same(got, pack(jax.grad(lambda w: (reference(X, w, B, mask) ** 2).sum())(W), grad_mask=mask))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits(dtype):
    x, w = X.astype(dtype), W.astype(dtype)
    got = jax.grad(lambda w: masked_linear(x, w, grad_mask=MASKS["columns"]).sum())(w)
    assert got.dtype == dtype
    same(got.astype("float32"), jax.grad(lambda w: reference(X, w, 0, MASKS["columns"]).sum())(W))


def test_reproducible_answers_are_golden():
    x, w = map(jnp.asarray, normal())
    gradients = []
    for name in NAMES:
        layer, _ = both(name, precision="reproducible")
        assert digest([layer(x, w, B)]) == GOLDEN["forward"], name
        gradient = jax.grad(lambda w, layer=layer: (layer(x, w, B) ** 2).sum())
        gradients.append(np.asarray(gradient(w)))
        same(jax.jit(gradient)(w), gradients[-1])
    assert digest(gradients) == GOLDEN["gradient"]


@pytest.mark.parametrize("engine", ["float64", "float32", "int8"])
def test_reproducible_engines_agree(engine):
    chosen = maskedlinear_jax.reproducible(engine=engine)
    got = jax.jit(lambda x, w: masked_linear(x, w, grad_mask=columns([0]), precision=chosen))(X * 0.1, W * 0.3)
    same(got, masked_linear(X * 0.1, W * 0.3, grad_mask=columns([0]), precision="reproducible"))


def test_second_order_in_reproducible_precision():
    layer, _ = both("columns", precision="reproducible")
    inner = jax.grad(lambda w: (layer(X, w, B) ** 2).sum())
    got = jax.jit(jax.grad(lambda w: (inner(w) ** 2).sum()))(W)
    assert not np.asarray(got)[:, [1, 2, 4, 5]].any()
    assert np.asarray(got)[:, [0, 3]].any()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_model_is_converted_saved_and_loaded(packed, tmp_path):
    model = {"in": MaskedLinear(I, O, grad_mask=columns([]), seed=0).to_linear()}
    new = maskedlinear_jax.mask_linears(model, {"*": columns([1])}, packed=packed)
    same(new["in"](X), model["in"](X))
    if packed:
        file = tmp_path / "model.safetensors"
        maskedlinear_jax.save_packed(file, new)
        same(maskedlinear_jax.load_packed(file, new)["in"](X), new["in"](X))
    same(maskedlinear_jax.unmask_linears(new)["in"](X), model["in"](X))


def test_a_held_optimizer_moves_no_frozen_weight():
    import optax

    layer = MaskedLinear(I, O, grad_mask=columns([0]), seed=0)
    optimizer = maskedlinear_jax.hold_frozen(optax.adamw(0.1, weight_decay=0.5), layer)
    params, rest = maskedlinear_jax.partition(layer)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda params: (maskedlinear_jax.combine(params, rest)(X) ** 2).sum())(params)
        updates, state = optimizer.update(gradient, state, params)
        return maskedlinear_jax.apply_updates(params, updates), state

    for _ in range(3):
        params, state = step(params, state)
    assert maskedlinear_jax.assert_frozen(layer, maskedlinear_jax.combine(params, rest)) > 0
    assert (params.weight[:, 0] != layer.weight[:, 0]).all()


@pytest.mark.parametrize("where", ["rows", "columns"])
def test_a_weight_in_parts_on_several_devices(where):
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:2]), ("parts",))
    spec = PartitionSpec("parts") if where == "rows" else PartitionSpec(None, "parts")
    weight = jax.device_put(W, NamedSharding(mesh, spec))
    gradient = jax.jit(jax.grad(lambda w: masked_linear(X, w, grad_mask=columns([0])).sum()))
    same(gradient(weight), jax.grad(lambda w: reference(X, w, 0, columns([0])).sum())(W))


@pytest.mark.parametrize("precision", ["native", "reproducible over the workers"])
def test_a_batch_in_parts_inside_of_shard_map(precision):
    from jax.sharding import Mesh, PartitionSpec

    chosen = "native" if precision == "native" else maskedlinear_jax.reproducible(group="parts")

    def gradient(w, x):
        return jax.grad(lambda w: (masked_linear(x, w, grad_mask=columns([0]), precision=chosen) ** 2).sum())(w)

    mesh = Mesh(np.array(jax.devices()[:2]), ("parts",))
    specs = (PartitionSpec(), PartitionSpec("parts"))
    got = jax.jit(jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=PartitionSpec()))(W, X)
    same(got, jax.grad(lambda w: (reference(X, w, 0, columns([0])) ** 2).sum())(W))


def test_float64():
    with jax.enable_x64(True):
        x, w = jnp.asarray(np.asarray(X), "float64"), jnp.asarray(np.asarray(W), "float64")
        got = jax.grad(lambda w: (masked_linear(x, w, grad_mask=columns([0])) ** 2).sum())(w)
        assert got.dtype == "float64"
    same(got, jax.grad(lambda w: (reference(X, w, 0, columns([0])) ** 2).sum())(W))


@pytest.mark.parametrize("kind", ["MaskedEmbedding", "PackedEmbedding"])
def test_an_embedding_with_a_tied_head(kind):
    layer = getattr(maskedlinear_jax, kind)(6, 4, grad_mask=maskedlinear_jax.rows([4, 5]), seed=0)
    numbers = jnp.array([0, 4, 5, 5])
    params, rest = maskedlinear_jax.partition(layer)

    @jax.jit
    def gradient(params):
        def loss(params):
            layer = maskedlinear_jax.combine(params, rest)
            return (layer.attend(layer(numbers)) ** 2).sum()

        return jax.grad(loss)(params)

    learned = jax.tree.leaves(gradient(params))
    assert len(learned) == 1
    whole = np.asarray(learned[0])
    assert whole[-2:].all()
    assert not whole[:-2].any()


def test_any_other_parameter():
    mask = np.zeros((3, 2, 2, 2), bool)
    mask[1] = True

    def loss(weight):
        weight = maskedlinear_jax.masked_parameter(weight, mask)
        return jax.lax.conv(jnp.ones((1, 2, 4, 4)), weight, (1, 1), "VALID").sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(jnp.ones((3, 2, 2, 2))))
    assert gradient[1].all()
    assert not gradient[[0, 2]].any()
