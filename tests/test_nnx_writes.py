"""Trial M2 in Flax NNX: what is written to the whole kernel or bias of a packed layer reaches it (S7)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import maskedlinear_jax.nnx as mn
from maskedlinear_core import columns, rows

MASKS = {"columns": columns([1]), "rows": rows([0, 2])}


def layer_of(name, mask):
    if name == "linear":
        plain = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
        return mn.PackedLinear.from_linear(plain, grad_mask=mask, bias_mask=[True, False] * 3), "kernel"
    if name == "general":
        plain = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))
        return mn.PackedLinearGeneral.from_linear(plain, grad_mask=mask), "kernel"
    return mn.PackedEmbed.from_linear(nnx.Embed(6, 4, rngs=nnx.Rngs(0)), grad_mask=mask), "embedding"


def outputs(layer, name):
    x = jnp.arange(6) if name == "embedding" else jnp.eye(4)
    whole = layer(x)
    return np.asarray(whole if name == "embedding" else whole - layer(jnp.zeros((1, 4)))[0])


WRITES = {
    "set_value": lambda variable, new: variable.set_value(new),
    "[...]": lambda variable, new: variable.__setitem__(..., new),
    "a part": lambda variable, new: [variable.__setitem__(i, new[i]) for i in range(1)],
}


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["linear", "general", "embedding"])
def test_m2_a_write_to_the_whole_reaches_a_packed_layer(name, mask, how):
    layer, own = layer_of(name, MASKS[mask])
    before = np.asarray(getattr(layer, own).get_value())
    new = np.round(np.random.default_rng(0).standard_normal(before.shape), 1).astype(np.float32)
    WRITES[how](getattr(layer, own), jnp.asarray(new))
    want = np.concatenate([new[:1], before[1:]]) if how == "a part" else new
    np.testing.assert_array_equal(getattr(layer, own).get_value(), want)
    np.testing.assert_allclose(outputs(layer, own).reshape(want.shape), want, atol=1e-6)


@pytest.mark.parametrize("how", WRITES)
@pytest.mark.parametrize("name", ["linear", "general", "embedding"])
def test_m2_a_write_to_what_was_read_before_training_is_refused(name, how):
    layer, own = layer_of(name, MASKS["rows"])
    before, whole = getattr(layer, own), np.asarray(getattr(layer, own).get_value())
    layer.values.set_value(layer.values.get_value() + 3)
    with pytest.raises(RuntimeError, match=f"expected a write to the layer's {own} as it is now, got one to a {own}"):
        WRITES[how](before, jnp.zeros_like(whole))
    now = np.asarray(getattr(layer, own).get_value())
    assert int((now != whole).sum()) == layer.values.get_value().size  # what was trained is there
    np.testing.assert_array_equal(before.get_value(), whole)
    WRITES[how](getattr(layer, own), jnp.zeros_like(whole))  # read again
    assert not np.asarray(getattr(layer, own).get_value())[0].any()


def test_m2_a_write_to_a_bias_that_was_read_before_its_mask_changed_is_refused():
    layer, _ = layer_of("linear", MASKS["rows"])
    before = layer.bias
    layer.bias_mask = [False, True] * 3
    with pytest.raises(RuntimeError, match="expected a write to the layer's bias as it is now"):
        before[0] = 1.0


def test_m2_a_write_in_compiled_code_reaches_a_packed_layer():
    layer, _ = layer_of("linear", MASKS["rows"])

    @nnx.jit
    def write(layer):
        kernel = layer.kernel
        kernel[0] = jnp.ones(6)
        kernel[1] = jnp.ones(6)

    write(layer)
    np.testing.assert_array_equal(layer.kernel.get_value()[:2], np.ones((2, 6)))


def test_m2_a_write_to_the_bias_reaches_a_packed_layer():
    layer, _ = layer_of("linear", MASKS["rows"])
    layer.bias.set_value(jnp.arange(6.0))
    np.testing.assert_array_equal(layer(jnp.zeros((1, 4)))[0], np.arange(6.0))
    whole = mn.PackedLinear.from_linear(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), grad_mask=rows([0]))
    whole.bias[...] = jnp.arange(6.0)
    np.testing.assert_array_equal(whole(jnp.zeros((1, 4)))[0], np.arange(6.0))


@pytest.mark.parametrize("name", ["linear", "general", "embedding"])
def test_m2_an_assignment_to_the_whole_of_a_packed_layer_says_what_to_do(name):
    layer, own = layer_of(name, MASKS["rows"])
    with pytest.raises(
        TypeError, match=rf"expected {own} to be written to, got an assignment of Param: .* layer.{own}"
    ):
        setattr(layer, own, nnx.Param(jnp.zeros(2)))


@pytest.mark.parametrize("packed", [False, True])
def test_m9_the_bias_mask_can_be_set(packed):
    kind = mn.PackedLinear if packed else mn.MaskedLinear
    layer = kind.from_linear(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), grad_mask=rows([0]))
    x = jnp.ones((1, 4))
    before = layer(x)
    for mask, count in ([True] + [False] * 5, 1), ([False, True] * 3, 3), (None, 6):
        layer.bias_mask = mask
        gradient = nnx.grad(lambda layer: layer(x).sum())(layer)
        moved = gradient["bias_values" if packed else "bias"].get_value()
        assert int((moved != 0).sum()) == count
        np.testing.assert_array_equal(layer(x), before)
    with pytest.raises(ValueError, match=r"bias_mask"):
        layer.bias_mask = [True]


def test_h3_a_model_without_a_mask_is_not_held():
    with pytest.raises(ValueError, match=r"hold_frozen: expected a model with masked layers"):
        mn.hold_frozen(optax.sgd(0.1), nnx.Linear(4, 6, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("norm", [nnx.WeightNorm, nnx.SpectralNorm])
def test_h2_a_kernel_that_a_norm_computes_is_refused_in_nnx(norm):
    """Each forward writes the kernel anew, its frozen entries too: nothing could hold them."""
    model = nnx.Dict(one=norm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match=r"one.layer_instance: expected a weight and bias that are parameters"):
        mn.mask_linears(model, {"one.layer_instance": columns([1])})
    masked = norm(mn.MaskedLinear(4, 3, grad_mask=columns([1]), rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"hold_frozen: expected layer_instance to have its kernel as a parameter of"):
        mn.hold_frozen(optax.adam(0.1), masked)


@pytest.mark.parametrize("kind", [mn.MaskedLinear, mn.PackedLinear, mn.MaskedEmbed, mn.PackedEmbed])
def test_a_layer_without_random_streams_is_refused_in_words(kind):
    """It was AttributeError: 'NoneType' object has no attribute 'params'."""
    with pytest.raises(TypeError, match=rf"{kind.__name__}: expected random streams .* pass rngs=nnx\.Rngs\(0\)"):
        kind(4, 2, grad_mask=rows([1]))


def test_a_sharding_of_the_output_is_refused():
    """It was dropped without a word, also where `nnx.MultiHeadAttention` hands it on."""
    plain = nnx.LinearGeneral(4, (2, 3), rngs=nnx.Rngs(0))
    layer = mn.MaskedLinearGeneral.from_linear(plain, grad_mask=rows([1]))
    with pytest.raises(NotImplementedError, match=r"expected out_sharding=None.* jax\.sharding\.reshard"):
        layer(jnp.ones((1, 4)), out_sharding=jax.sharding.PartitionSpec("data"))


def of_layers(seed, **keywords):
    layers = [
        nnx.Linear(4, 6, rngs=nnx.Rngs(seed)),
        nnx.Linear(6, 3, rngs=nnx.Rngs(seed + 1)),
        nnx.LinearGeneral(3, (2, 2), rngs=nnx.Rngs(seed + 2)),
        nnx.Embed(5, 4, rngs=nnx.Rngs(seed + 3)),
    ]
    holder = nnx.Module()
    holder.layers = nnx.List(layers)
    if keywords:
        mn.mask_linears(holder, {"layers.0": columns([1]), "layers.2": rows([0]), "layers.3": rows([1])}, **keywords)
    return holder


@pytest.mark.parametrize("bias_masks", [{}, {"layers.0": np.arange(6) < 3}], ids=["whole bias", "part of a bias"])
@pytest.mark.parametrize("packed", [False, True])
def test_m2_the_state_of_a_plain_model_reaches_a_masked_one(packed, bias_masks):
    """`nnx.update` writes to the kernel that a packed layer puts together: what it wrote was dropped."""
    plain, model = of_layers(7), of_layers(0, packed=packed, bias_masks=bias_masks)
    nnx.update(model, nnx.state(plain))
    for one, other in zip(model.layers, plain.layers, strict=True):
        x = jnp.arange(5) if isinstance(other, nnx.Embed) else jnp.eye(other.kernel.shape[0])
        np.testing.assert_array_equal(one(x), other(x))


@pytest.mark.parametrize("packed", [False, True])
def test_h4_an_average_of_a_whole_state_gets_its_constants_back(packed):
    model = of_layers(0, packed=packed, freeze_others=True)
    before, average = nnx.clone(model), nnx.state(model)
    rounded = optax.incremental_update(nnx.state(model), average, 0.01)
    for _ in range(5):
        rounded = optax.incremental_update(nnx.state(model), rounded, 0.01)
        average = mn.keep_frozen(optax.incremental_update(nnx.state(model), average, 0.01), nnx.state(model), model)
    ema = nnx.clone(model)
    nnx.update(ema, rounded)
    with pytest.raises(AssertionError, match="frozen entries moved"):
        mn.assert_frozen(before, ema)
    nnx.update(ema, average)
    assert mn.assert_frozen(before, ema) > 30
