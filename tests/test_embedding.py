"""Embeddings, tied heads and parameters of any shape (S13): exactly the reference program, in every transform."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from flax import nnx
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, rows, submatrix

TOKENS, SIZE = 6, 4
WEIGHT = np.random.default_rng(0).integers(-3, 4, (TOKENS, SIZE)).astype(np.float32)  # sums and products are exact
TANGENT = np.random.default_rng(1).integers(-3, 4, (TOKENS, SIZE)).astype(np.float32)
IDS = np.array([[1, 3, 3], [5, 0, 3]])
MASKS = {
    "rows": rows([3, 5]),
    "columns": columns([1]),
    "submatrix": submatrix([3, 0], [0, 2]),
    "blocks": blocks(np.eye(3, 2) > 0, (2, 2)),
    "elements": elements(np.eye(TOKENS, SIZE) > 0),
    "nothing": rows([]),
    "all": columns(slice(None)),
}


# torch


def torch_layer(form, mask):
    plain = nn.Embedding(TOKENS, SIZE)
    plain.weight = nn.Parameter(torch.from_numpy(WEIGHT.copy()))
    return (mt.PackedEmbedding if form == "packed" else mt.MaskedEmbedding).from_embedding(plain, grad_mask=mask)


def torch_loss(layer, name):
    def loss(parameter):
        looked_up, logits = torch.func.functional_call(
            _Both(layer), {f"layer.{name}": parameter}, (torch.from_numpy(IDS),)
        )
        return (looked_up.square().sum() + logits.square().sum()) / 2

    return loss


class _Both(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, ids):
        looked_up = self.layer(ids)
        return looked_up, self.layer.attend(looked_up)


def torch_reference(mask):
    trains = torch.from_numpy(mask.to_array((TOKENS, SIZE)))

    def loss(weight):
        view = torch.where(trains, weight, weight.detach())
        looked_up = F.embedding(torch.from_numpy(IDS), view)
        return (looked_up.square().sum() + F.linear(looked_up, view).square().sum()) / 2

    return loss


TORCH_TRANSFORMS = {
    "value": lambda f, w, v: f(w),
    "grad": lambda f, w, v: torch.func.grad(f)(w),
    "jvp": lambda f, w, v: torch.func.jvp(f, (w,), (v,))[1],
    "reverse over reverse": lambda f, w, v: torch.func.grad(lambda w: (torch.func.grad(f)(w) * v).sum())(w),
    "forward over reverse": lambda f, w, v: torch.func.jvp(torch.func.grad(f), (w,), (v,))[1],
    "reverse over forward": lambda f, w, v: torch.func.grad(lambda w: torch.func.jvp(f, (w,), (v,))[1])(w),
    "vmap": lambda f, w, v: torch.func.vmap(torch.func.grad(f))(torch.stack([w, w + v])),
}


@pytest.mark.parametrize("transform", TORCH_TRANSFORMS)
@pytest.mark.parametrize("name", ["rows", "submatrix", "elements"])
def test_torch_equals_the_reference_program(name, transform):
    mask, run = MASKS[name], TORCH_TRANSFORMS[transform]
    weight, tangent = torch.from_numpy(WEIGHT), torch.from_numpy(TANGENT)
    want = run(torch_reference(mask), weight, tangent)
    layer = torch_layer("masked", mask)
    seen = run(torch_loss(layer, "weight"), weight, tangent)
    assert torch.equal(seen, want)
    packed = torch_layer("packed", mask)
    pack = lambda one: mt.pack(one, grad_mask=packed.grad_mask)  # noqa: E731
    seen = run(torch_loss(packed, "values"), pack(weight), pack(tangent))
    if seen.dim() == 0:
        assert torch.equal(seen, want)
    elif transform != "vmap":
        assert torch.equal(seen, pack(want))
    else:
        one = torch_reference(mask)
        still = torch.where(torch.from_numpy(mask.to_array((TOKENS, SIZE))), weight + tangent, weight)
        assert torch.equal(seen[0], pack(torch.func.grad(one)(weight)))
        assert torch.equal(seen[1], pack(torch.func.grad(one)(still)))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_torch_eager_and_compiled(name, form):
    mask = MASKS[name]
    weight = torch.from_numpy(WEIGHT.copy()).requires_grad_()
    (want,) = torch.autograd.grad(torch_reference(mask)(weight), weight)
    frozen = ~torch.from_numpy(mask.to_array((TOKENS, SIZE)))
    assert not want[frozen].view(torch.int32).any()
    for compiled in (False, True) if name in ("rows", "submatrix") else (False,):
        both = _Both(torch_layer(form, mask))
        run = torch.compile(both, backend="aot_eager", fullgraph=True) if compiled else both
        looked_up, logits = run(torch.from_numpy(IDS))
        assert torch.equal(looked_up, F.embedding(torch.from_numpy(IDS), weight))
        assert torch.equal(logits, F.linear(looked_up, weight))
        ((looked_up.square().sum() + logits.square().sum()) / 2).backward()
        if form == "masked":
            assert torch.equal(both.layer.weight.grad, want)
            assert not both.layer.weight.grad[frozen].view(torch.int32).any(), "frozen entries are +0.0"
        elif both.layer.values.numel():
            assert both.layer.values.grad.shape == both.layer.values.shape
            assert torch.equal(both.layer.values.grad, mt.pack(want, grad_mask=both.layer.grad_mask))


def test_inf_and_nan_reach_no_frozen_row():
    layer = torch_layer("masked", rows([3]))
    output = layer(torch.from_numpy(IDS))
    output.backward(torch.full_like(output, torch.nan))
    assert layer.weight.grad[3].isnan().all()
    assert not layer.weight.grad[[0, 1, 2, 4, 5]].view(torch.int32).any()


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_padding_never_learns(form):
    plain = nn.Embedding(TOKENS, SIZE, padding_idx=3)
    layer = mt.mask_linears(nn.Sequential(plain), {"0": rows([3, 5])}, packed=form == "packed")[0]
    assert layer.grad_mask == rows([5])
    assert layer.padding_idx == layer.to_embedding().padding_idx == 3
    layer(torch.from_numpy(IDS)).sum().backward()
    own = mj.MaskedEmbedding(TOKENS, SIZE, padding_idx=3, grad_mask=rows([3, 5]), seed=0)
    assert own.grad_mask == rows([5])


REFUSED = {
    "max_norm": ({"max_norm": 1.0}, False, "expected an embedding without max_norm"),
    "sparse": ({"sparse": True}, False, "expected an embedding with dense gradients, got sparse=True"),
    "scaled": ({"scale_grad_by_freq": True}, True, "expected scale_grad_by_freq=False for a packed embedding"),
}


def test_a_tied_head_has_no_weight_but_its_embeddings():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    mt.train_new_tokens(model, first=4)
    model[1].weight = model[0].weight  # as libraries tie anew
    for other in (torch.zeros(6, 4), nn.Parameter(torch.zeros(6, 4))):
        with pytest.raises(
            ValueError, match=r"weight of a tied head: expected the embedding's own weight, got another"
        ):
            model[1].weight = other


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_are_refused(name):
    options, packed, says = REFUSED[name]
    model = nn.Sequential(nn.Embedding(TOKENS, SIZE, **options))
    with pytest.raises(TypeError, match=f"mask_linears: 0: {says}"):
        mt.mask_linears(model, {"0": rows([3])}, packed=packed)
    assert type(model[0]) is nn.Embedding


def test_gradients_scaled_by_frequency():
    plain = nn.Embedding(TOKENS, SIZE, scale_grad_by_freq=True)
    masked = mt.mask_linears(nn.Sequential(copy.deepcopy(plain)), {"0": rows([3, 5])})[0]
    for layer in (plain, masked):
        layer(torch.from_numpy(IDS)).sum().backward()
    assert torch.equal(masked.weight.grad[[3, 5]], plain.weight.grad[[3, 5]])


def test_a_star_is_for_linear_layers():
    model = mt.mask_linears(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)), {"*": columns([0])})
    assert [type(layer) for layer in model] == [nn.Embedding, mt.MaskedLinear]


class Tied(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.body, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=bias)
        self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.tokens(ids))))


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_tied_head_is_one_leaf_with_one_mask(form, bias):
    model, ids = Tied(bias), torch.tensor([[0, 3, 10, 11]])
    want, state = model(ids).detach(), copy.deepcopy(model.state_dict())
    mt.mask_linears(model, {"tokens": rows([10, 11]), "head": rows([10, 11])}, packed=form == "packed")
    assert torch.equal(model(ids), want)
    assert list(model.state_dict()) == list(state)
    learns = [name for name, one in model.named_parameters() if one.requires_grad and "body" not in name]
    assert learns == (["tokens.values"] if form == "packed" else ["tokens.weight"]) + ["head.bias"] * bias
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        learned = again.tokens.values if form == "packed" else again.tokens.weight
        with torch.no_grad():
            learned.zero_()
        assert not again.head.weight[[10, 11]].any()
        assert torch.equal(model(ids), want)
    model.load_state_dict(state)
    assert torch.equal(mt.unmask_linears(model)(ids), want)
    assert model.head.weight is model.tokens.weight
    assert [type(layer) for layer in (model.tokens, model.head)] == [nn.Embedding, nn.Linear]


@pytest.mark.parametrize("packed", [False, True])
def test_a_tied_head_with_another_mask_is_refused(packed):
    for masks in ({"tokens": rows([1])}, {"head": rows([1])}, {"tokens": rows([1]), "head": rows([2])}):
        model = Tied()
        with pytest.raises(ValueError, match="expected a weight of its own, got one tied to"):
            mt.mask_linears(model, masks, packed=packed)
        assert model.head.weight is model.tokens.weight


# New tokens: 200 steps of AdamW with decay


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "masked and held"])
def test_M7_new_tokens_of_a_tied_gpt2(packed):
    import transformers

    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ))  # fmt: skip
    model.resize_token_embeddings(24, mean_resizing=False)
    ids = torch.tensor([[1, 2, 20, 21, 22, 23]])
    before = copy.deepcopy(model.state_dict())
    mt.train_new_tokens(model, first=20, packed=packed)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.01, weight_decay=0.1)
    if not packed:
        mt.hold_frozen(optimizer, model)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        logits = model(ids).logits
        loss = F.cross_entropy(logits[0, :-1], ids[0, 1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    plain = mt.unmask_linears(model)
    assert plain.lm_head.weight is plain.transformer.wte.weight
    for name, now in plain.state_dict().items():
        old = before[name]
        still = slice(0, 20) if name in ("transformer.wte.weight", "lm_head.weight") else slice(None)
        assert torch.equal(old[still].view(torch.int32), now[still].view(torch.int32)), name
    assert (before["transformer.wte.weight"][20:] != plain.transformer.wte.weight[20:]).all()
    if packed:
        kept = [one.numel() for state in optimizer.state.values() for one in state.values() if one.dim()]
        assert kept == [4 * 16, 4 * 16]


class NnxModel(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.tokens, self.body = nnx.Embed(12, 8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, ids):
        return self.tokens.attend(nnx.tanh(self.body(self.tokens(ids))))


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "masked and held"])
def test_M7_new_tokens_in_nnx(packed):
    ids, model = jnp.array([0, 10, 11, 3, 10]), NnxModel()
    before, want = np.asarray(model.tokens.embedding[...]), np.asarray(model(ids))
    in_nnx.train_new_tokens(model, first=10, packed=packed)
    np.testing.assert_array_equal(model(ids), want)
    transformation = optax.adamw(0.01, weight_decay=0.1)
    if not packed:
        transformation = mj.hold_frozen(transformation, in_nnx.grad_masks(model))
    optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    shapes = [leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert shapes == ([(2, 8)] if packed else [(12, 8)])

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(ids[:-1]), ids[1:]).mean()

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(200)]
    assert losses[-1] < losses[0] / 2
    plain = in_nnx.unmask_linears(model)
    after = np.asarray(plain.tokens.embedding[...])
    np.testing.assert_array_equal(before[:10].view(np.uint32), after[:10].view(np.uint32))
    assert (before[10:] != after[10:]).all()
    assert type(plain.body.kernel) is nnx.Param


# JAX


def jax_loss(layer, name):
    def loss(parameter, forward_mode=False):
        one = layer.replace(**{name: parameter})
        looked_up = one(IDS)
        logits = one.attend(looked_up, forward_mode=forward_mode)
        return (jnp.square(looked_up).sum() + jnp.square(logits).sum()) / 2

    return loss


def jax_reference(mask):
    trains = mask.to_array((TOKENS, SIZE))

    def loss(weight, forward_mode=False):
        view = jnp.where(trains, weight, jax.lax.stop_gradient(weight))
        looked_up = view[IDS]
        return (jnp.square(looked_up).sum() + jnp.square(looked_up @ view.T).sum()) / 2

    return loss


def forward(f):
    return lambda w: f(w, forward_mode=True)


JAX_TRANSFORMS = {
    "value": lambda f, w, v: f(w),
    "grad": lambda f, w, v: jax.grad(f)(w),
    "jit": lambda f, w, v: jax.jit(jax.grad(f))(w),
    "jvp": lambda f, w, v: jax.jvp(forward(f), (w,), (v,))[1],
    "reverse over reverse": lambda f, w, v: jax.grad(lambda w: (jax.grad(f)(w) * v).sum())(w),
    "forward over reverse": lambda f, w, v: jax.jvp(jax.grad(f), (w,), (v,))[1],
    "reverse over forward": lambda f, w, v: jax.grad(lambda w: jax.jvp(forward(f), (w,), (v,))[1])(w),
}


@pytest.mark.parametrize(
    ("name", "transform"),
    [(name, "grad") for name in MASKS if name != "rows"] + [("rows", one) for one in JAX_TRANSFORMS],
)
def test_jax_equals_the_reference_program(name, transform):
    mask, run = MASKS[name], JAX_TRANSFORMS[transform]
    plain = mj.MaskedEmbedding(TOKENS, SIZE, grad_mask=columns(slice(None)), seed=0).replace(weight=jnp.asarray(WEIGHT))
    want = np.asarray(run(jax_reference(mask), jnp.asarray(WEIGHT), jnp.asarray(TANGENT)))
    masked = mj.MaskedEmbedding.from_embedding(plain, grad_mask=mask)
    seen = np.asarray(run(jax_loss(masked, "weight"), jnp.asarray(WEIGHT), jnp.asarray(TANGENT)))
    np.testing.assert_array_equal(seen, want)
    if seen.ndim:
        assert not seen[~mask.to_array((TOKENS, SIZE))].view(np.uint32).any(), "frozen entries are +0.0"
    packed = mj.PackedEmbedding.from_embedding(plain, grad_mask=mask)
    pack = lambda one: mj.pack(jnp.asarray(one), grad_mask=packed.grad_mask)  # noqa: E731
    seen = run(jax_loss(packed, "values"), pack(WEIGHT), pack(TANGENT))
    np.testing.assert_array_equal(seen, pack(want) if want.ndim else want)


def test_jax_packed_computes_nothing_of_the_vocabulary_s_size():
    layer = mj.PackedEmbedding(1000, 8, grad_mask=rows([998, 999]), seed=0)
    gradient = jax.make_jaxpr(jax.grad(lambda values: layer.replace(values=values)(jnp.array([3, 999])).sum()))
    large = [str(one.primitive) for one in gradient(layer.values).eqns for out in one.outvars if out.aval.size >= 8000]
    assert large in ([], ["bitcast_convert_type"])  # the constant matrix itself, as floats


LOOK_UPS = {
    "nnx": lambda: (nnx.Embed(TOKENS, SIZE, rngs=nnx.Rngs(0)), in_nnx.MaskedEmbed, in_nnx.PackedEmbed, lambda f: f),
    "one token": lambda: (nnx.Embed(1, SIZE, rngs=nnx.Rngs(0)), in_nnx.MaskedEmbed, in_nnx.PackedEmbed, lambda f: f),
    "equinox": lambda: (
        eqx.nn.Embedding(TOKENS, SIZE, key=jax.random.key(0)),
        in_equinox.MaskedEmbedding,
        in_equinox.PackedEmbedding,
        lambda f: jax.vmap(f),
    ),
}


@pytest.mark.parametrize("library", LOOK_UPS)
def test_tokens_beyond_the_table_are_what_they_were(library):
    plain, masked, packed, run = LOOK_UPS[library]()
    ids = jnp.array([0, 5, 6, 9, -1, -7])
    for form in (masked, packed):
        layer = form.from_embedding(plain, grad_mask=rows([-1]))
        np.testing.assert_array_equal(run(layer)(ids), run(plain)(ids))


class Shared(eqx.Module):
    shared: eqx.nn.Shared

    def __init__(self):
        tokens = eqx.nn.Embedding(TOKENS, SIZE, key=jax.random.key(0))
        head = eqx.nn.Linear(SIZE, TOKENS, use_bias=False, key=jax.random.key(1))
        self.shared = eqx.nn.Shared((tokens, head), lambda pair: pair[1].weight, lambda pair: pair[0].weight)

    def __call__(self, ids):
        tokens, head = self.shared()
        return jax.vmap(head)(jax.vmap(tokens)(ids))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_M7_equinox_shared(packed):
    plain, ids = Shared(), jnp.array([1, 5, 3])
    both = {"shared.pytree.0": rows([3, 5]), "shared.pytree.1": rows([3, 5])}
    model = in_equinox.mask_linears(plain, both, packed=packed)
    np.testing.assert_array_equal(model(ids), plain(ids))
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    (seen,) = jax.tree.leaves(jax.grad(lambda params: jnp.square(eqx.combine(params, rest)(ids)).sum())(params))

    def reference(weight):
        view = jnp.where(rows([3, 5]).to_array((TOKENS, SIZE)), weight, jax.lax.stop_gradient(weight))
        return jnp.square(view[ids] @ view.T).sum()

    want = jax.grad(reference)(plain.shared.pytree[0].weight)
    np.testing.assert_allclose(seen, want[jnp.array([3, 5])] if packed else want, rtol=1e-5)  # orders of sums
    assert jax.tree.structure(in_equinox.unmask_linears(model)) == jax.tree.structure(plain)
    again = in_equinox.train_new_tokens(plain, first=4, packed=packed)
    np.testing.assert_array_equal(again(ids), plain(ids))
    for masks in ({"shared.pytree.0": rows([3])}, {"*.1": rows([3])}):
        with pytest.raises(ValueError, match="expected a weight of its own, got one tied to shared"):
            in_equinox.mask_linears(plain, masks, packed=packed)


# nnx.LinearGeneral and nnx.MultiHeadAttention


@pytest.mark.filterwarnings("ignore:.*entries that could learn are frozen from now on")
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_M7_nnx_attention_and_linear_general(packed):
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.general = nnx.LinearGeneral((3, 8), (2, 5), axis=(-2, -1), rngs=rngs)

        def __call__(self, x):
            return self.general(self.attention(x))

    x, model = jax.random.normal(jax.random.key(0), (4, 3, 8)), Model()
    want, plain = np.asarray(model(x)), nnx.grad(lambda model: jnp.square(model(x)).sum())(model)
    masks = {"*.query": rows([5]), "*.out": columns([6]), "general": columns([1]), "*": rows([0])}
    in_nnx.mask_linears(model, masks, packed=packed)
    np.testing.assert_array_equal(model(x), want)
    grads = nnx.grad(lambda model: jnp.square(model(x)).sum())(model)
    kernel = np.asarray(plain["attention"]["query"]["kernel"][...]).reshape(8, 8)
    if packed:
        seen = np.asarray(grads["attention"]["query"]["values"][...])
        np.testing.assert_allclose(seen, kernel[:, 5:6].T, rtol=1e-4)  # orders of sums
    else:
        seen = np.asarray(grads["attention"]["query"]["kernel"][...]).reshape(8, 8)
        np.testing.assert_allclose(seen[:, 5], kernel[:, 5], rtol=1e-4)
        assert not np.delete(seen, 5, 1).view(np.uint32).any()
        out = np.asarray(grads["attention"]["out"]["kernel"][...])
        assert out.reshape(8, 8).any(1).tolist() == [i == 6 for i in range(8)]
        general = np.asarray(grads["general"]["kernel"][...])
        assert general.reshape(24, 10).any(1).tolist() == [i == 1 for i in range(24)]
    in_nnx.mask_linears(model, {"*.query": rows([1, 2])})
    np.testing.assert_array_equal(model(x), want)
    in_nnx.unmask_linears(model)
    assert type(model.attention.query) is nnx.LinearGeneral
    np.testing.assert_array_equal(model(x), want)


# masked_parameter


SHAPES = {
    "scalar": ((), np.array(True)),
    "scale of a norm": ((5,), rows([1, 4])),
    "matrix": ((3, 4), elements(np.eye(3, 4) > 0)),
    "convolution": ((3, 2, 2, 2), rows([1])),
    "kernels": ((3, 2, 2, 2), columns([1])),
    "bools": ((2, 3, 2), np.arange(12).reshape(2, 3, 2) % 2 == 0),
}


@pytest.mark.parametrize("name", SHAPES)
def test_masked_parameter_of_any_shape(name):
    shape, mask = SHAPES[name]
    weight = np.arange(1.0, 1 + int(np.prod(shape)), dtype=np.float32).reshape(shape)
    in_torch = torch.from_numpy(weight.copy()).requires_grad_()
    seen = mt.masked_parameter(in_torch, mask)
    assert torch.equal(seen, in_torch)
    (grad,) = torch.autograd.grad(seen.pow(3).sum(), in_torch, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), in_torch)
    trains = (grad != 0).detach().numpy()
    np.testing.assert_array_equal(grad.detach(), np.where(trains, 3 * weight**2, 0))
    np.testing.assert_array_equal(second, np.where(trains, 6 * weight, 0))
    cube = lambda w: (mj.masked_parameter(w, mask) ** 3).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(cube)(jnp.asarray(weight)), grad.detach())
    np.testing.assert_array_equal(jax.jvp(cube, (jnp.asarray(weight),), (jnp.ones(shape),))[1], grad.sum().detach())
    assert 0 < trains.sum() <= trains.size


def test_masked_parameter_refuses():
    for twin, weight in ((mt, torch.ones(2, 3)), (mj, jnp.ones((2, 3)))):
        with pytest.raises(ValueError, match=r"expected a grad_mask of the weight's shape \(2, 3\), got shape \(3,\)"):
            twin.masked_parameter(weight, np.ones(3, bool))
        with pytest.raises(TypeError, match="expected a bool grad_mask"):
            twin.masked_parameter(weight, np.ones((2, 3)))
        with pytest.raises(IndexError, match="rows: expected positions from -2 to 1"):
            twin.masked_parameter(weight, rows([2]))
        with pytest.raises(ValueError, match=r"expected a weight with the axes \(out, in\)"):
            twin.masked_parameter(weight[0], columns([0]))
        with pytest.raises(TypeError, match="grad_mask: expected columns"):
            twin.masked_parameter(weight, "rows")
        with pytest.raises(TypeError, match="expected weight"):
            twin.masked_parameter([1.0], rows([0]))


def test_a_parametrization_for_recurrent_weights():
    torch.manual_seed(0)
    cell, x = nn.GRUCell(4, 3), torch.randn(2, 4)
    want, weight = cell(x).detach(), cell.weight_hh
    assert mt.mask_parameter(cell, "weight_hh", grad_mask=rows([1])) is cell
    assert torch.equal(cell(x), want)
    assert cell.parametrizations.weight_hh.original is weight
    cell(x, torch.ones(2, 3)).sum().backward()
    assert weight.grad.any(1).tolist() == [i == 1 for i in range(9)]
    torch.nn.utils.parametrize.remove_parametrizations(copy.deepcopy(cell), "weight_hh")
    with pytest.raises(ValueError, match=r"expected the name of a parameter, one of \[.*\], got 'kernel'"):
        mt.mask_parameter(cell, "kernel", grad_mask=rows([1]))


def test_a_file_of_new_tokens_loads_in_the_other_framework(tmp_path):
    """Trained in one, loaded in the other over its own plain model: the same bits, the head still tied."""
    weight = np.random.default_rng(0).standard_normal((12, 8)).astype(np.float32)

    def in_torch():
        model = Tied()
        with torch.no_grad():
            model.tokens.weight.copy_(torch.from_numpy(weight))
        return model

    def in_flax():
        model = NnxModel()
        model.tokens.embedding.set_value(jnp.asarray(weight))
        return model

    trained = nn.ModuleDict({"tokens": mt.train_new_tokens(in_torch(), first=10).tokens})
    with torch.no_grad():
        trained["tokens"].values.add_(1.0)
    mt.save_packed(tmp_path / "torch", trained)
    loaded = in_nnx.load_packed(tmp_path / "torch", in_flax())
    np.testing.assert_array_equal(loaded.tokens.table, trained["tokens"].weight.detach().numpy())
    again = in_nnx.train_new_tokens(in_flax(), first=10)
    again.tokens.values.set_value(again.tokens.values.get_value() * 2)
    in_nnx.save_packed(tmp_path / "nnx", again)
    model = mt.load_packed(tmp_path / "nnx", in_torch())
    np.testing.assert_array_equal(model.tokens.weight.detach().numpy(), again.tokens.table)
    np.testing.assert_array_equal(model.head.weight.detach().numpy(), again.tokens.table)
