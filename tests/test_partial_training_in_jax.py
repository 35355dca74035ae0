"""Partial training as people write it in JAX: what is held, counted and stored, and what a mistake is told."""

import functools
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx, serialization

import maskedlinear_jax as mj
from maskedlinear_jax import equinox as in_eqx
from maskedlinear_jax import nnx as in_nnx

I, O = 6, 5
MASK = mj.columns([1, 4])
TRAINS = np.isin(np.arange(I), [1, 4]) & np.ones((O, 1), bool)
X = np.random.default_rng(0).normal(size=(8, I)).astype(np.float32)


def masked(mask=MASK, kind=mj.MaskedLinear):
    return kind(I, O, grad_mask=mask, seed=0)


def decayed():
    return optax.adamw(0.1, weight_decay=0.5)


def stepped(optimizer, model, loss=lambda model: jnp.square(model(X)).mean()):
    """A model after two steps."""
    params, rest = mj.partition(model)
    state = optimizer.init(params)
    for _ in range(2):
        grads = jax.grad(lambda params: loss(mj.combine(params, rest)))(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return mj.combine(params, rest)


@pytest.mark.parametrize("first", ["packed", "all learns"])
def test_h3_a_masked_layer_is_held_whatever_comes_before_it(first):
    """Only a masked layer that came first told that there is something to hold; after another one JAX's words came."""
    before = masked(kind=mj.PackedLinear) if first == "packed" else masked().to_linear()
    model = {"a": before, "b": masked()}
    after = stepped(
        mj.hold_frozen(decayed(), model), model, lambda model: jnp.square(model["a"](X) + model["b"](X)).mean()
    )
    assert mj.assert_frozen(model, after) == (~TRAINS).sum() * (2 if first == "packed" else 1)
    assert (after["b"].weight != model["b"].weight)[:, [1, 4]].all()


@pytest.mark.parametrize("model", [masked(kind=mj.PackedLinear), masked().to_linear()], ids=["packed", "all learns"])
def test_h3_nothing_to_hold_is_told_in_words(model):
    with pytest.raises(
        ValueError, match="expected a model with masked layers whose parameters the optimizer has, got none"
    ):
        mj.hold_frozen(decayed(), model)


def test_h3_parameters_without_their_positions_are_no_model():
    params, _ = mj.partition(masked())
    with pytest.raises(TypeError, match=r"hold_frozen: .* got parameters alone \(a MaskedLinear without positions"):
        mj.hold_frozen(decayed(), params)
    with pytest.raises(TypeError, match="assert_frozen: expected a model with its masks, got parameters alone"):
        mj.assert_frozen(params, params)


def test_h3_positions_among_the_parameters_are_refused():
    """`equinox.is_array` takes positions along: the update then failed in pytrees, with no word of them."""
    model = in_eqx.mask_linears(eqx.nn.MLP(I, O, 8, 1, key=jax.random.key(0)), {"layers.0": MASK})
    held = in_eqx.hold_frozen(decayed(), model)
    with pytest.raises(TypeError, match=r"got the positions of a mask among them \(layers.0.grad_mask\)"):
        held.init(eqx.filter(model, eqx.is_array))
    grads = eqx.filter_grad(lambda model: jax.vmap(model)(X).sum())(model)
    state = held.init(eqx.filter(model, eqx.is_inexact_array))
    updates, _ = held.update(grads, state, model)  # the whole model as the parameters, as Equinox's examples have it
    assert in_eqx.assert_frozen(model, eqx.apply_updates(model, updates)) == 8 * 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("mask", [mj.columns([0, 2]), mj.elements(TRAINS)], ids=["columns", "elements"])
def test_m5_a_cast_of_all_floats_reaches_the_constant_matrix_of_a_packed_layer(mask, dtype):
    """Mixed precision casts the leaves of floats in each step: the bits of the matrix are none, and stayed."""

    def cast(tree):
        floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if floats(leaf) else leaf, tree)

    learns = np.arange(O) < 2
    masked = mj.MaskedLinear(I, O, grad_mask=mask, bias_mask=learns, seed=0)
    packed = mj.PackedLinear.from_linear(masked, grad_mask=mask, bias_mask=learns)
    x = X.astype(dtype)

    def gradient(layer):
        params, rest = mj.partition(layer)
        loss = lambda params: (cast(mj.combine(params, rest))(x) ** 2).sum().astype(jnp.float32)  # noqa: E731
        return jax.grad(loss)(params)

    one, other = gradient(masked), gradient(packed)
    assert other.values.dtype == jnp.float32
    assert (other.values == mj.pack(one.weight, grad_mask=packed.grad_mask)).all()
    assert (other.bias_values == one.bias[learns]).all()
    one, other = cast(masked), cast(packed)
    assert (other(x) == one(x)).all()
    assert other.weight.dtype == other.bias.dtype == dtype
    again = other.repack(mj.columns([1]))
    for found in (other, again, mj.unmask_linears({"a": other})["a"], mj.load_packed(
        mj.packed_bytes({"a": other}, with_base=True), {"a": mj.unmask_linears({"a": one})["a"]})["a"],
    ):  # fmt: skip
        assert (found.weight == one.weight).all()
        assert (found.bias == one.bias).all()
        assert (found(x) == one(x)).all()


def own(tree, params):
    return jax.tree.map(jnp.add, tree, params)


def behind(kind):
    return {
        "add_decayed_weights": lambda: optax.add_decayed_weights(-0.1),
        "add_decayed_weights of a schedule": lambda: optax.add_decayed_weights(lambda step: -0.1),
        "add_decayed_weights in adamw": decayed,
        "add_decayed_weights in MultiSteps": lambda: optax.MultiSteps(decayed(), 2).gradient_transformation(),
        "add_noise": lambda: optax.add_noise(0.1, 0.5, 0),
        "keep_params_nonnegative": optax.keep_params_nonnegative,
        "centralize": optax.centralize,
        "scale_by_muon": lambda: optax.contrib.muon(0.1, weight_decay=0.0),
        "add_decayed_weights in inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(0.1),
        "own of a user": lambda: optax.stateless(own),
    }[kind]()  # fmt: skip


BEHIND = [
    "add_decayed_weights", "add_decayed_weights of a schedule", "add_decayed_weights in adamw",
    "add_decayed_weights in MultiSteps", "add_decayed_weights in inject_hyperparams",
    "add_noise", "keep_params_nonnegative", "centralize", "scale_by_muon",
    "own of a user",
]  # fmt: skip


@pytest.mark.parametrize("kind", BEHIND)
def test_h3_what_moves_frozen_entries_behind_a_hold_is_refused(kind):
    """A decay after `hold_frozen` in a chain moved every frozen entry, without a word."""
    model = masked()
    held = mj.hold_frozen(optax.adam(0.1), model)
    for chained in (optax.chain(held, behind(kind)), optax.named_chain(("held", held), ("behind", behind(kind)))):
        with pytest.raises(ValueError, match=f"got {kind.split()[0]}.* later in the chain; put hold_frozen"):
            stepped(chained, model)
    around = mj.hold_frozen(optax.chain(mj.hold_frozen(optax.adam(0.1), model), behind(kind)), model)
    assert mj.assert_frozen(model, stepped(around, model)) == (~TRAINS).sum()


@pytest.mark.parametrize(
    "after",
    [
        lambda: optax.clip(1.0), lambda: optax.adam(0.1), lambda: optax.ema(0.9),
        lambda: optax.add_decayed_weights(0.0),
        lambda: optax.masked(optax.scale(2.0), lambda tree: jax.tree.map(lambda leaf: True, tree)),
    ],
    ids=["clip", "adam", "ema", "no decay", "masked"],
)  # fmt: skip
def test_h3_what_leaves_zeros_alone_may_follow_a_hold(after):
    model = masked()
    chained = optax.chain(optax.add_decayed_weights(0.1), mj.hold_frozen(optax.sgd(0.1), model), after())
    after = stepped(chained, model)
    assert mj.assert_frozen(model, after) == (~TRAINS).sum()
    assert (after.weight != model.weight)[:, [1, 4]].all()


def test_h3_a_hold_works_where_shardings_are_part_of_types():
    """Under `jax.set_mesh` of explicit axes a held step ended in a ShardingTypeError."""
    mesh = jax.make_mesh((1, 1), ("d", "m"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        model = mj.MaskedLinear(8, 4, grad_mask=MASK, bias_mask=np.arange(4) < 2, seed=0)
        model = model.replace(weight=jax.device_put(model.weight, jax.P("m", None)))
        x = jax.device_put(np.ones((8, 8), np.float32), jax.P("d", None))
        held = mj.hold_frozen(optax.contrib.schedule_free_adamw(0.1, weight_decay=0.5), model)
        step = functools.partial(stepped, held, loss=lambda model: jnp.square(model(x)).mean())
        after = jax.jit(step)(model)
        assert mj.assert_frozen(model, after) == 4 * 6 + 2
        assert (after.weight != model.weight)[:, [1, 4]].all()
        assert after.weight.sharding.spec[0] == "m"


class Tied(eqx.Module):
    """A head that has the embedding's weight, and a bias of its own."""

    both: eqx.nn.Shared

    def __init__(self, tokens=12):
        embedding = eqx.nn.Embedding(tokens, 8, key=jax.random.key(0))
        head = eqx.nn.Linear(8, tokens, key=jax.random.key(1))
        self.both = eqx.nn.Shared((embedding, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, tokens):
        embedding, head = self.both()
        return jax.vmap(head)(jax.vmap(embedding)(tokens))


TOKENS = jnp.arange(12)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True], ids=["frozen bias", "bias learns"])
def test_m7_new_tokens_of_a_shared_weight_are_held_counted_saved_and_loaded(packed, bias):
    """A masked head of `equinox.nn.Shared` has no weight of its own: what looked for it raised an AttributeError."""
    plain = Tied()
    model = in_eqx.train_new_tokens(plain, first=10, packed=packed, freeze_others=not bias)
    optimizer = decayed() if packed else in_eqx.hold_frozen(decayed(), model)
    after = stepped(optimizer, model, lambda model: -jax.nn.log_softmax(model(TOKENS))[TOKENS, TOKENS - 1].mean())
    # The head's frozen bias is compared in both forms: as a Constant where the layers are packed.
    assert in_eqx.assert_frozen(model, after) == 10 * 8 + (0 if bias else 12)
    assert in_eqx.summary(after).learns == 2 * 8 + (12 if bias else 0 if packed else 12)
    again = in_eqx.load_packed(in_eqx.packed_bytes(after), plain)
    np.testing.assert_array_equal(again(TOKENS), after(TOKENS))
    taken = in_eqx.load_packed(in_eqx.packed_arrays(after), model)
    np.testing.assert_array_equal(taken(TOKENS), after(TOKENS))
    np.testing.assert_array_equal(in_eqx.unmask_linears(after)(TOKENS), after(TOKENS))
    # The head's part of the gradient has the mask that was loaded, too.
    grads = eqx.filter_grad(lambda model: jnp.square(model(TOKENS)).sum())(
        in_eqx.load_packed(in_eqx.packed_bytes(after), plain)
    )
    given = grads.both.pytree[0].values if packed else grads.both.pytree[0].weight[10:]
    wanted = (
        eqx.filter_grad(lambda model: jnp.square(model(TOKENS)).sum())(in_eqx.unmask_linears(after))
        .both.pytree[0]
        .weight
    )
    np.testing.assert_allclose(given, wanted[10:], rtol=1e-5)


def test_m7_a_head_of_a_packed_embedding_gets_no_mask_of_its_own():
    """The head alone was masked, and the embedding's rows learned of the look-up alone."""
    model = in_eqx.train_new_tokens(Tied(), first=10)
    with pytest.raises(ValueError, match=r"both.pytree.1: expected a weight of its own, got one tied to both.pytree.0"):
        in_eqx.mask_linears(model, {"*": mj.rows([3])})


EMBEDDINGS = {
    "pytree": lambda kind: getattr(mj, f"{kind}Embedding")(7, 3, grad_mask=mj.rows([1]), seed=0),
    "equinox": lambda kind: getattr(in_eqx, f"{kind}Embedding")(7, 3, grad_mask=mj.rows([1]), seed=0),
    "nnx": lambda kind: getattr(in_nnx, f"{kind}Embed")(7, 3, grad_mask=mj.rows([1]), rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("kind", ["Masked", "Packed"])
@pytest.mark.parametrize("library", EMBEDDINGS)
@pytest.mark.parametrize(
    ("tokens", "error", "words"),
    [
        ([1, 2], TypeError, "embedding: expected tokens to be an array, got list"),
        (None, TypeError, "embedding: expected tokens to be an array, got NoneType"),  # in Equinox: the whole table
        ("a", TypeError, "embedding: expected tokens to be an array, got str"),
        (1.5, TypeError, "embedding: expected tokens to be an array, got float"),
        (True, ValueError, "embedding: expected tokens as integers, got dtype bool"),
        (np.array([True, False]), ValueError, "got dtype bool"),
        (np.array([1.0]), ValueError, "got dtype float64"),
        (np.array([1, None]), ValueError, "got dtype object"),
    ],
)
def test_s10_what_is_no_token_is_refused(kind, library, tokens, error, words):
    layer = EMBEDDINGS[library](kind)
    with pytest.raises(error, match=words):
        layer(tokens)
    assert layer(np.array([1, 2], np.uint8)).shape == (2, 3)
    assert layer(np.int64(1)).shape == (3,)


@pytest.mark.parametrize("kind", [in_nnx.MaskedLinearGeneral, in_nnx.PackedLinearGeneral])
@pytest.mark.parametrize(
    ("inputs", "error", "words"),
    [
        (np.ones((2, 5), np.float32), ValueError, r"\[2, 3\] features along its axes \[-2, -1\], got shape \(2, 5\)"),
        (np.ones((3, 2), np.float32), ValueError, r"got shape \(3, 2\)"),  # as many numbers, and silent before
        (np.ones((), np.float32), ValueError, r"got shape \(\)"),
        ([[1.0, 2.0, 3.0]] * 2, TypeError, "expected inputs to be an array, got list"),
    ],
)  # fmt: skip
def test_s10_an_input_of_other_axes_is_refused(kind, inputs, error, words):
    layer = kind.from_linear(nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=nnx.Rngs(0)), grad_mask=mj.rows([1]))
    with pytest.raises(error, match=words):
        layer(inputs)


def stack(kind):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return nnx.Dict(layer=kind(rngs))

    return make(nnx.Rngs(0))


STACKS = {
    "masked": (lambda rngs: in_nnx.MaskedLinear(I, O, grad_mask=MASK, bias_mask=np.arange(O) < 2, rngs=rngs), 12, 35),
    "packed": (lambda rngs: in_nnx.PackedLinear(I, O, grad_mask=MASK, bias_mask=np.arange(O) < 2, rngs=rngs), 12, 35),
    "packed embedding": (lambda rngs: in_nnx.PackedEmbed(I, O, grad_mask=mj.rows([1]), rngs=rngs), 5, 30),
    "general": (
        lambda rngs: in_nnx.MaskedLinearGeneral.from_linear(
            nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=rngs), grad_mask=mj.rows([1])
        ),
        6 + 4,
        24 + 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STACKS)
def test_m8_a_stack_of_nnx_layers_is_counted(name):
    """`summary` refused a stack, in the name of `save_packed`."""
    kind, learns, total = STACKS[name]
    found = in_nnx.summary(stack(kind))
    assert [(part.name, part.learns, part.total) for part in found.parts] == [
        (f"layer[{i}]", learns, total) for i in range(3)
    ]


def test_m9_another_mask_for_a_stack_of_layers_is_refused():
    """One mask took the place of a stack of them, of which a scan would have taken one position for each layer."""
    layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[masked() for _ in range(3)])
    packed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[masked(kind=mj.PackedLinear) for _ in range(3)])
    for model in ({"a": layers}, {"a": packed}):
        with pytest.raises(ValueError, match="mask_linears: a: expected one layer, got a stack of them"):
            mj.mask_linears(model, {"a": mj.rows([0, 1, 2])})
        with pytest.raises(ValueError, match="unmask_linears: a: expected one layer, got a stack of them along 1 axes"):
            mj.unmask_linears(model)
        plain = jax.vmap(mj.unmask_linears)(model)  # as the words say
        assert plain["a"].weight.shape == (3, O, I)
    with pytest.raises(ValueError, match="merged: a: expected one layer, got a stack"):
        mj.merged({"a": packed})
    for name in ("masked", "packed"):
        model = stack(STACKS[name][0])
        with pytest.raises(ValueError, match="mask_linears: layer: expected one layer, got a stack of them"):
            in_nnx.mask_linears(model, {"layer": mj.rows([0, 1, 2])})
    with pytest.raises(ValueError, match="unmask_linears: layer: expected one layer, got a stack"):
        in_nnx.unmask_linears(model)
    with pytest.raises(ValueError, match="merged: layer: expected one layer, got a stack"):
        in_nnx.merged(model)


@pytest.mark.parametrize("function", ["save_packed", "load_packed", "unmask_linears", "train_new_tokens"])
def test_m12_a_model_of_flax_is_told_its_adapter(function, tmp_path):
    """The root's functions called a masked model of Flax one without masked layers, or returned it as it was."""
    model = in_nnx.mask_linears(nnx.Sequential(nnx.Linear(I, O, rngs=nnx.Rngs(0))), {"*": MASK})
    data = mj.packed_bytes({"layers": [masked()]}, with_base=True)
    call = {
        "save_packed": lambda: mj.save_packed(tmp_path / "x.safetensors", model),
        "load_packed": lambda: mj.load_packed(data, model),
        "unmask_linears": lambda: mj.unmask_linears(model),
        "train_new_tokens": lambda: mj.train_new_tokens(model, first=1),
    }[function]
    with pytest.raises(TypeError, match=f"{function}: .*, got Sequential; use maskedlinear_jax.nnx.{function}"):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [nnx.Linear, nnx.LinearGeneral])
def test_orbax_stores_a_packed_layer_of_whose_bias_nothing_learns(kind, tmp_path):
    """NNX kept the entries that learn as an array of none, which Orbax refuses."""

    def model(seed, learns):
        found = nnx.Sequential(kind(I, O, rngs=nnx.Rngs(seed)))
        return in_nnx.mask_linears(found, {"layers.0": MASK}, packed=True, bias_masks={"layers.0": learns})

    none, some = np.zeros(O, bool), np.eye(O, dtype=bool)[1]
    trained, other = model(0, none), model(1, none)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", nnx.state(trained))
        checkpointer.wait_until_finished()
        nnx.update(other, checkpointer.restore(tmp_path / "model", nnx.state(other)))
    np.testing.assert_array_equal(other(X), trained(X))
    assert not other.layers[0].bias_mask.any()
    assert [leaf.shape for leaf in jax.tree.leaves(nnx.state(other, nnx.Param))] == [(O, 2)]
    # The bias can learn later, and what a file says learns does.
    other.layers[0].bias_mask = some
    assert other.layers[0].bias_values.shape == (1,)
    np.testing.assert_array_equal(other(X), trained(X))
    other.layers[0].bias_values[...] = 7.0
    in_nnx.save_packed(tmp_path / "file", other)
    again = in_nnx.load_packed(tmp_path / "file", model(0, none))
    np.testing.assert_array_equal(again.layers[0].bias_mask, some)
    np.testing.assert_array_equal(again(X), other(X))
    other.layers[0].bias_mask = none
    assert other.layers[0].bias[...][1] == 7
    assert in_nnx.unmask_linears(other).layers[0].bias[...][1] == 7


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_flax_serialization_stores_layers(packed):
    """`to_bytes` ended in "can not serialize 'MaskedLinear' object"."""

    def model(seed, mask=MASK):
        layer = mj.MaskedLinear(I, O, grad_mask=mj.columns([]), seed=seed).to_linear()
        return mj.mask_linears({"a": layer, "b": jnp.full(2, float(seed))}, {"a": mask}, packed=packed,
                               bias_masks={"a": np.zeros(O, bool)}, freeze_others=packed)  # fmt: skip

    trained = model(3)
    state = decayed().init(mj.partition(trained)[0])
    data = serialization.to_bytes((trained, state))
    found, moments = serialization.from_bytes((model(4), decayed().init(mj.partition(model(4))[0])), data)
    assert jax.tree.structure((found, moments)) == jax.tree.structure((trained, state))
    for one, before in zip(*(jax.tree.leaves(side) for side in ((found, moments), (trained, state))), strict=True):
        assert one.dtype == before.dtype
        np.testing.assert_array_equal(one, before)
    assert [*map(type, jax.tree.leaves(found["a"]))] == [*map(type, jax.tree.leaves(trained["a"]))]
    np.testing.assert_array_equal(found["a"](X), trained["a"](X))
    data = serialization.to_bytes(trained)
    with pytest.raises(ValueError, match=r"from_state_dict: .*Linear: expected .* a layer with the same mask"):
        serialization.from_bytes(model(4, mj.columns([1, 2, 4])), data)
    with pytest.raises(ValueError, match=r"from_state_dict: .*Linear: expected masks Rows, got Columns"):
        serialization.from_bytes(model(4, mj.rows([1, 4])), data)


def test_a_model_of_shapes_alone_is_not_packed():
    """It ended in "float() argument must be a string" and "'ShapeDtypeStruct' object has no attribute 'T'"."""
    masks, words = (
        {"a": MASK},
        r"Packed\w*: expected a weight with numbers, got a ShapeDtypeStruct.*within one jax.eval",
    )
    own = jax.eval_shape(lambda model: model, {"a": masked().to_linear()})
    of_eqx = eqx.filter_eval_shape(lambda: {"a": eqx.nn.Linear(I, O, key=jax.random.key(0))})
    for convert, model in ((mj.mask_linears, own), (in_eqx.mask_linears, of_eqx)):
        with pytest.raises(TypeError, match=words):
            convert(model, masks, packed=True)

    def made(kind=nnx.Linear):
        return nnx.Dict(a=kind(I, O, rngs=nnx.Rngs(0)))

    for kind in (nnx.Linear, nnx.LinearGeneral, nnx.Embed):
        mask = mj.rows([1]) if kind is nnx.Embed else MASK
        with pytest.raises(TypeError, match=words):
            in_nnx.mask_linears(nnx.eval_shape(lambda kind=kind: made(kind)), {"a": mask}, packed=True)
    abstract = nnx.eval_shape(lambda: in_nnx.mask_linears(made(), masks, packed=True))
    assert nnx.state(abstract)["a"]["values"].get_value().shape == (O, 2)
    abstract = jax.eval_shape(lambda: mj.mask_linears({"a": masked().to_linear()}, masks, packed=True))
    assert abstract["a"].values.shape == (O, 2)


@pytest.mark.parametrize("order", ["flax, maskedlinear_jax", "maskedlinear_jax, flax"])
def test_flax_serialization_needs_no_adapter(order):
    """It ended in "can not serialize 'MaskedLinear' object" until `maskedlinear_jax.nnx` was imported."""
    code = f"""
import {order}, flax.serialization, sys
import maskedlinear_jax as mj
assert "maskedlinear_jax.nnx" not in sys.modules
layer = mj.MaskedLinear(3, 2, grad_mask=mj.columns([1]), seed=0)
again = flax.serialization.from_bytes(layer, flax.serialization.to_bytes(layer))
assert (again.weight == layer.weight).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [mj.MaskedLinear, mj.PackedLinear])
@pytest.mark.parametrize("what", [lambda leaf: leaf.dtype, lambda leaf: leaf.shape, lambda leaf: None, str, np.asarray])
def test_m9_a_tree_of_anything_is_printed(kind, what):
    layer = kind(4, 2, grad_mask=mj.columns([1]), bias_mask=[True, False], seed=0)
    assert type(layer).__name__ in repr(jax.tree.map(what, layer))
