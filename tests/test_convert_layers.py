"""Which layers of a model can be masked, what is listed or refused instead, and in which words (S8, S13, S14)."""

import contextlib
import copy
import itertools
import pickle
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements, rows
from maskedlinear_core.patterns import LeftOut

EYE = elements(np.eye(8) > 0)


def encoder_layer(**keywords):
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, **keywords)


def by_reference(attention, masks, x):
    """The gradients of the attention whose weights are where(M, W, W.detach())."""
    parameters = dict(attention.named_parameters())
    seen = {
        name: torch.where(masks[name], one, one.detach()) if name in masks else one for name, one in parameters.items()
    }
    output = torch.func.functional_call(attention, seen, (x, x, x))[0]
    return torch.autograd.grad(output.square().sum(), list(parameters.values())), output


# M7: torch's attention, HF's Conv1D


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("keywords", [{}, {"kdim": 8, "vdim": 8}, {"bias": False}], ids=["one", "sizes", "no bias"])
def test_M7_attention_learns_as_the_reference_program_does(batch_first, keywords):
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=batch_first, **keywords).double()
    masked = mt.mask_linears(
        copy.deepcopy(plain), {"q_proj": rows([1]), "v_proj": columns([2, 3]), "out_proj": EYE}
    )  # fmt: skip
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    arrays = [rows([1]).to_array((8, 8)), np.ones((8, 8), bool), columns([2, 3]).to_array((8, 8))]
    whole = {"in_proj_weight": np.concatenate(arrays), "out_proj.weight": EYE.to_array((8, 8))}
    wanted, output = by_reference(plain, {name: torch.tensor(array) for name, array in whole.items()}, x)
    seen = masked(x, x, x)[0]
    assert torch.equal(seen, output)
    names = [name for name, _ in plain.named_parameters()]
    assert names == [name for name, _ in masked.named_parameters()]
    found = torch.autograd.grad(seen.square().sum(), list(masked.parameters()))
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)  # the products' order, in float64
        if name in whole:
            still = one[~torch.tensor(whole[name])]
            assert not still.view(torch.int64).any(), f"{name}: frozen entries are +0.0"


def test_M7_a_star_over_a_transformer_encoder():
    model = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False)
    x = torch.randn(2, 5, 8)
    model.eval()
    want = model(x).detach()
    state = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mt.mask_linears(model, {"*": lambda name, linear: columns([0])}) is model
    assert torch.equal(model(x), want)
    model.load_state_dict(state)
    assert list(model.state_dict()) == list(state)
    model.train()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert not parameter.grad[:, 1:].any(), name
            assert parameter.grad[:, 0].any(), name
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        assert torch.equal(again.eval()(x), model.eval()(x))
    plain = mt.unmask_linears(model)
    assert {type(module).__name__ for module in plain.modules()} == {
        type(module).__name__ for module in nn.TransformerEncoder(encoder_layer(), 2).modules()
    }
    assert torch.equal(plain(x), want)


def test_M7_attention_under_func_grad_and_compile():
    attention = mt.mask_linears(nn.MultiheadAttention(8, 2), {"*": columns([0])})
    x = torch.randn(3, 2, 8)
    parameters = {name: one.detach() for name, one in attention.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(attention, parameters, (x, x, x))[0].square().sum()

    found = torch.func.grad(loss)(parameters)
    assert not found["in_proj_weight"][:, 1:].any()
    assert not found["out_proj.weight"][:, 1:].any()
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    compiled(x, x, x)[0].square().sum().backward()
    torch.testing.assert_close(attention.in_proj_weight.grad, found["in_proj_weight"], rtol=1e-4, atol=1e-5)
    assert not attention.in_proj_weight.grad[:, 1:].any()


PACKED = {"q_proj": rows([0]), "[kv]_proj": columns([1, 2]), "out_proj": columns([3])}


@pytest.mark.parametrize("keywords", [{}, {"bias": False}, {"batch_first": True}, {"add_bias_kv": True}], ids=str)
def test_M7_packed_attention_is_the_plain_one_and_learns_as_the_masked_one(keywords):
    torch.manual_seed(0)
    plain, x = nn.MultiheadAttention(8, 2, **keywords), torch.randn(3, 2, 8)
    packed = mt.mask_linears(copy.deepcopy(plain), PACKED, packed=True)
    masked = mt.mask_linears(copy.deepcopy(plain), PACKED)
    for train, weights, no_grad in itertools.product((True, False), (True, False), (True, False)):
        packed.train(train), plain.train(train)
        with torch.no_grad() if no_grad else contextlib.nullcontext():
            assert torch.equal(packed(x, x, x, need_weights=weights)[0], plain(x, x, x, need_weights=weights)[0])
    for attention in (masked, packed):
        attention(x, x, x)[0].square().sum().backward()
    mask = torch.from_numpy(packed.in_proj.grad_mask.to_array((24, 8)))
    values = packed.in_proj._positions().to_dense(packed.in_proj.values.grad, (24, 8))
    assert int(mask.sum()) == packed.in_proj.values.numel() == 40
    torch.testing.assert_close(values[mask], masked.in_proj_weight.grad[mask], rtol=1e-4, atol=1e-5)
    state = {name: value + 1 for name, value in plain.state_dict().items()}
    packed.load_state_dict(state)
    assert {name: value.tolist() for name, value in packed.state_dict().items()} == {
        name: value.tolist() for name, value in state.items()
    }


def test_M7_packed_attention_trains_and_comes_back(tmp_path):
    def fresh():
        torch.manual_seed(0)
        return nn.Sequential(encoder_layer()).eval()

    model, x = mt.mask_linears(fresh(), {"*.q_proj": rows([0])}, packed=True, freeze_others=True), torch.randn(2, 5, 8)
    learn = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert {name: tuple(one.shape) for name, one in learn.items()} == {"0.self_attn.in_proj.values": (1, 8)}
    optimizer = torch.optim.AdamW(learn.values(), lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    total = sum(value.numel() for value in before.values())
    assert mt.assert_frozen(before, model) == total - 8
    assert torch.equal(mt.load_packed(mt.packed_bytes(model), fresh())(x), model(x))
    assert torch.equal(pickle.loads(pickle.dumps(copy.deepcopy(model)))(x), model(x))
    mt.mask_linears(model, {"*.k_proj": rows([1])}, packed=True, optimizer=optimizer)
    assert optimizer.state[model[0].self_attn.in_proj.values]["exp_avg"].shape == (2, 8)
    nn.init.ones_(model[0].self_attn.in_proj_weight)
    assert torch.equal(model[0].self_attn.in_proj.values, torch.ones(2, 8))
    plain = mt.unmask_linears(model)
    assert type(plain[0].self_attn) is nn.MultiheadAttention
    assert torch.equal(plain(x), model(x))


def test_M7_attention_with_keys_of_another_size_is_not_packed():
    with pytest.raises(TypeError, match=r"q_proj: expected packed=False for attention whose keys or values"):
        mt.mask_linears(nn.MultiheadAttention(8, 2, kdim=4), {"q_proj": rows([0])}, packed=True)


def test_M7_freeze_others_reaches_into_attention():
    model = mt.mask_linears(nn.Sequential(encoder_layer()), {"*.q_proj": rows([0])}, freeze_others=True)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["0.self_attn.in_proj_weight"]
    model(torch.randn(2, 5, 8)).square().sum().backward()
    assert model[0].self_attn.in_proj_weight.grad.any(1).tolist() == [True] + [False] * 23


Q_BIAS = [True, False, False, False]


def _learning(attention):
    # Positions of the weight and of the bias that get a gradient.
    for parameter in attention.parameters():
        parameter.grad = None
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    attention(x, x * x, x + 1)[0].square().sum().backward()
    if not hasattr(attention, "in_proj"):
        weight, bias = attention.in_proj_weight.grad, attention.in_proj_bias.grad
        return (None if bias is None else bias.ne(0).tolist()), weight.ne(0).any(1).tolist()
    own = attention.in_proj
    mask = torch.from_numpy(own.grad_mask.to_array((12, 4)))
    learns = own.bias_values.requires_grad and own.bias_values.grad.ne(0).any()
    return (own.bias_mask.tolist() if learns else None), mask.any(1).tolist()


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_M7_freeze_others_with_the_bias_of_one_projection(packed):
    torch.manual_seed(0)
    attention = mt.mask_linears(
        nn.MultiheadAttention(4, 2), {"q_proj": rows([0])},
        packed=packed, freeze_others=True, bias_masks={"q_proj": Q_BIAS},
    )  # fmt: skip
    first = [True] + [False] * 11
    assert _learning(attention) == (first, first)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_M7_freeze_others_without_a_bias(packed):
    attention = mt.mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0])}, packed=packed, freeze_others=True)
    assert _learning(attention) == (None, [True] + [False] * 11)


def test_M7_freeze_others_takes_the_optimizer_along():
    attention = mt.mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0])}, packed=True)
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.1)
    attention.in_proj.values.grad = torch.ones_like(attention.in_proj.values)
    optimizer.step()
    mt.mask_linears(attention, {"q_proj": rows([0, 1])}, packed=True, freeze_others=True, optimizer=optimizer)
    values = attention.in_proj.values
    assert any(one is values for one in optimizer.param_groups[0]["params"])
    assert optimizer.state[values]["exp_avg"].shape == values.shape == (2, 4)


@pytest.mark.parametrize("is_packed_already", [False, True], ids=["plain", "packed with another mask"])
def test_M7_a_file_tells_which_projections_have_masks(is_packed_already):
    def fresh(row):
        torch.manual_seed(0)
        plain = nn.MultiheadAttention(4, 2)
        masks = {"q_proj": rows([row])}
        return mt.mask_linears(plain, masks, packed=True, bias_masks={"q_proj": Q_BIAS}) if row else plain

    loaded = mt.load_packed(mt.packed_bytes(fresh(1)), fresh(2 if is_packed_already else 0))
    assert loaded.grad_masks == {"q_proj": rows([1])}
    assert {name: mask.tolist() for name, mask in loaded.bias_masks.items()} == {"q_proj": Q_BIAS}
    mt.mask_linears(loaded, {"q_proj": rows([3])}, packed=True, freeze_others=True)
    assert loaded.in_proj.grad_mask == rows([3])


def gpt2():
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


IDS = torch.tensor([[1, 2, 3, 19, 18, 0]])


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_M7_conv1d(packed):
    model = gpt2()
    want, state = model(IDS).logits.detach(), copy.deepcopy(model.state_dict())
    before = dict(model.named_parameters())
    mask = columns([0, 3])
    mt.mask_linears(model, {"*.c_attn": mask, "*.c_fc": rows([5])}, packed=packed)
    assert torch.equal(model(IDS).logits, want)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())
    layer = model.transformer.h[0].attn.c_attn
    model(IDS).logits.square().mean().backward()
    if packed:
        assert layer.values.shape == (48, 2)
    else:
        assert layer.weight is before["transformer.h.0.attn.c_attn.weight"]
        trains = torch.tensor(mask.to_array((48, 16)).T)
        assert not layer.weight.grad[~trains].view(torch.int32).any()
        assert layer.weight.grad[trains].all()
        assert type(pickle.loads(pickle.dumps(layer))) is type(layer)
    model.load_state_dict(state)
    assert torch.equal(mt.unmask_linears(model)(IDS).logits, want)
    assert type(model.transformer.h[0].attn.c_attn).__name__ == "Conv1D"


# M7: a wildcard lists what it leaves, a name and strict refuse


class Subclass(nn.Linear):
    pass


def mixed():
    return nn.Sequential(nn.Linear(8, 8), Subclass(8, 8), nn.LayerNorm(8))


def test_M7_a_wildcard_lists_what_it_left_and_why():
    with pytest.warns(LeftOut, match="left 1 of the layers.*1: expected a plain linear layer, got Subclass") as seen:
        model = mt.mask_linears(mixed(), {"*": columns([0])})
    assert list(seen[0].message.left) == ["1"]
    assert [type(layer) for layer in model] == [mt.MaskedLinear, Subclass, nn.LayerNorm]


@pytest.mark.parametrize(
    ("masks", "keywords"),
    [({"*": columns([0])}, {"strict": True}), ({"1": columns([0])}, {}), ({"[1]": columns([0])}, {})],
    ids=["strict", "by name", "nothing else"],
)
def test_M7_strict_and_names_refuse(masks, keywords):
    model = mixed()
    with pytest.raises(TypeError, match="1: expected a plain linear layer, got Subclass"):
        mt.mask_linears(model, masks, **keywords)
    assert type(model[0]) is nn.Linear


def test_M7_a_warning_made_an_error_leaves_the_model():
    model = mixed()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LeftOut, match="left 1 of the layers"):
            mt.mask_linears(model, {"*": columns([0])})
    assert type(model[0]) is nn.Linear


# M8, M9: options of every variant, and masks of masked models

X = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
BIAS = np.arange(8) < 2


class NnxNet(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one, self.norm, self.two = nnx.Linear(6, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs), nnx.Linear(
            8, 8, rngs=rngs
        )  # fmt: skip

    def __call__(self, x):
        return self.two(self.norm(nnx.tanh(self.one(x))))


class EqxNet(eqx.Module):
    one: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    conv: eqx.nn.Conv1d
    two: eqx.nn.Linear
    scale: jax.Array

    def __init__(self):
        one, two, three = jax.random.split(jax.random.key(0), 3)
        self.one, self.norm, self.two = in_eighths(6, one), eqx.nn.LayerNorm(8), in_eighths(8, two)
        self.conv, self.scale = eqx.nn.Conv1d(1, 1, 1, key=three), jnp.ones(8)

    def __call__(self, x):
        inner = self.norm(jax.nn.tanh(self.one(x)))
        return self.two(self.conv(inner[None])[0] * self.scale)


def in_eighths(width, key):
    """A layer whose products and sums are exact, in any order: Equinox multiplies W x in one of its own."""
    return jax.tree.map(lambda leaf: jnp.round(leaf * 8) / 8, eqx.nn.Linear(width, 8, key=key))


def torch_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 8))


def own_net():
    one, two = (mj.MaskedLinear(n, 8, grad_mask=columns([]), seed=n).to_linear() for n in (6, 8))
    return {"one": one, "scale": jnp.ones(8), "two": two}


def learns(model):
    """The shapes of all that an optimizer is handed."""
    if isinstance(model, nn.Module):
        return sorted(tuple(one.shape) for one in model.parameters() if one.requires_grad)
    if isinstance(model, nnx.Module):
        return sorted(leaf.shape for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    return sorted(leaf.shape for leaf in jax.tree.leaves(mj.partition(model)[0]) if leaf.size)


VARIANTS = {
    "torch": (torch_net, mt, "0", lambda model: model(torch.from_numpy(X)).detach().numpy()),
    "pytree": (own_net, mj, "one", lambda model: np.asarray(model["two"](jnp.tanh(model["one"](X)) * model["scale"]))),
    "equinox": (EqxNet, in_equinox, "one", lambda model: np.asarray(jax.vmap(model)(np.round(X * 8) / 8))),
    "nnx": (NnxNet, in_nnx, "one", lambda model: np.asarray(model(X))),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_M8_freeze_others_and_bias_masks(variant):
    make, library, name, run = VARIANTS[variant]
    want = run(make())

    def is_same(model):
        # The second layer of Equinox's is packed as well, and its numbers are no eighths.
        np.testing.assert_allclose(run(model), want, rtol=1e-5 if variant == "equinox" else 0)

    model = library.mask_linears(make(), {name: columns([1])}, packed=True, freeze_others=True)
    assert learns(model) == [(8, 1)]
    is_same(model)
    is_same(library.unmask_linears(model))
    model = library.mask_linears(
        make(), {name: columns([1])}, packed=True, freeze_others=True, bias_masks={name: BIAS}
    )  # fmt: skip
    assert learns(model) == [(2,), (8, 1)]
    is_same(model)
    model = library.mask_linears(make(), {name: columns([1])}, freeze_others=True, bias_masks={"*": BIAS})
    assert (8, 6) in learns(model) or (6, 8) in learns(model)
    is_same(model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_M8_bias_masks_that_do_not_fit(variant):
    make, library, name, _ = VARIANTS[variant]
    with pytest.raises(ValueError, match=rf"mask_linears: {name}: .*bias_mask of shape \(8,\)"):
        library.mask_linears(make(), {name: columns([1])}, bias_masks={name: BIAS[:3]})
    with pytest.raises(ValueError, match="expected every pattern to match a layer, got 'x'"):
        library.mask_linears(make(), {name: columns([1])}, bias_masks={"x": BIAS})
    with pytest.raises(TypeError, match="expected bias_masks as a dict"):
        library.mask_linears(make(), {name: columns([1])}, bias_masks=[BIAS])


def layer_of(model, name):
    return model[int(name)] if isinstance(model, nn.Module) else model[name] if isinstance(model, dict) else model.one


@pytest.mark.filterwarnings("ignore:.*entries that could learn are frozen from now on")
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_M9_a_second_mask_linears_changes_the_masks(variant, packed):
    make, library, name, run = VARIANTS[variant]
    want = run(make())
    model = library.mask_linears(make(), {name: columns([1])}, packed=packed)
    kind = type(layer_of(model, name))
    model = library.mask_linears(model, {name: rows([2, 3])}, bias_masks={name: BIAS})
    layer = layer_of(model, name)
    assert type(layer) is kind
    assert layer.grad_mask == rows([2, 3])
    np.testing.assert_array_equal(layer.bias_mask, BIAS)
    np.testing.assert_array_equal(run(model), want)
    if packed:
        assert tuple(layer.values.shape) == (2, 6)
    model = library.mask_linears(model, {name: columns([0])}, packed=True)
    assert "Packed" in type(layer_of(model, name)).__name__
    np.testing.assert_array_equal(run(model), want)


def test_M9_moments_move_along_in_torch():
    model = mt.mask_linears(torch_net(), {"0": columns([0, 1])}, packed=True)
    optimizer = torch.optim.Adam([model[0].values], lr=0.1)
    model(torch.from_numpy(X)).square().sum().backward()
    optimizer.step()
    old = optimizer.state[model[0].values]["exp_avg"].clone()
    mt.mask_linears(model, {"0": columns([1, 4, 5])}, optimizer=optimizer)
    new = optimizer.state[model[0].values]["exp_avg"]
    assert torch.equal(new, torch.cat([old[:, 1:], torch.zeros(8, 2)], 1))


@pytest.mark.parametrize("variant", ["pytree", "equinox"])
def test_M9_moments_move_along_in_pytrees(variant):
    make, library, name, _ = VARIANTS[variant]
    before = library.mask_linears(make(), {name: columns([0, 1])}, packed=True)
    optimizer = optax.chain(optax.clip(1.0), optax.adam(0.1), optax.add_decayed_weights(0.1))
    params = mj.partition(before)[0]
    _, state = optimizer.update(params, optimizer.init(params), params)
    after = library.mask_linears(before, {name: columns([1, 4, 5])})
    moved = mj.repack_state(optimizer, state, before, after)
    assert jax.tree.structure(moved) == jax.tree.structure(optimizer.init(mj.partition(after)[0]))
    find = lambda state: layer_of(state[1][0].mu, name).values  # noqa: E731
    np.testing.assert_array_equal(find(moved), np.concatenate([find(state)[:, 1:], np.zeros((8, 2))], 1))
    assert int(moved[1][0].count) == 1
    optimizer.update(mj.partition(after)[0], moved, mj.partition(after)[0])


def test_M9_moments_move_along_in_nnx():
    model = in_nnx.mask_linears(NnxNet(), {"one": columns([0, 1])}, packed=True)
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda model: jnp.square(model(X)).sum())
    optimizer.update(model, gradient(model))
    old = np.asarray(optimizer.opt_state[0].mu["one"]["values"].get_value())
    before = np.asarray(model.one.kernel)
    in_nnx.mask_linears(model, {"one": columns([1, 4, 5])}, optimizer=optimizer)
    new = optimizer.opt_state[0].mu["one"]["values"].get_value()
    np.testing.assert_array_equal(new, np.concatenate([old[:, 1:], np.zeros((8, 2))], 1))
    np.testing.assert_array_equal(model.one.kernel, before)
    optimizer.update(model, gradient(model))
    changed = (np.asarray(model.one.kernel) != before).any(1)
    assert changed.tolist() == [False, True, False, False, True, True]
    model.one.repack(columns([2]), optimizer, model=model)
    assert optimizer.opt_state[0].nu["one"]["values"].shape == (8, 1)
    with pytest.raises(ValueError, match="expected the model of the optimizer"):
        model.one.repack(columns([2]), optimizer, model=NnxNet())
    before = repr(model)
    with pytest.raises(TypeError, match=r"mask_linears: expected an nnx.Optimizer, got GradientTransformation"):
        in_nnx.mask_linears(model, {"one": columns([3])}, optimizer=optax.adam(0.1))
    with pytest.raises(TypeError, match=r"repack: expected an nnx.Optimizer, got GradientTransformation"):
        model.one.repack(columns([3]), optax.adam(0.1), model=model)
    assert repr(model) == before


@pytest.mark.filterwarnings("ignore:.*entries that could learn are frozen from now on")
@pytest.mark.parametrize("cls", [in_nnx.MaskedLinear, in_nnx.PackedLinear])
def test_M9_nnx_print_and_set(cls):
    layer = cls(6, 4, grad_mask=elements(np.eye(4, 6) > 0), rngs=nnx.Rngs(0))
    assert "elements" in str(layer)
    before = np.asarray(layer.kernel[...])
    layer.grad_mask = columns([1])
    assert layer.grad_mask == columns([1])
    np.testing.assert_array_equal(layer.kernel[...], before)


def test_M9_nnx_positions_cannot_corrupt_a_packed_kernel():
    layer = in_nnx.PackedLinear(6, 4, grad_mask=columns([1]), rngs=nnx.Rngs(0))
    before = np.asarray(layer.kernel)
    for change in (
        lambda: layer.positions.set_value(columns([2])),
        lambda: layer.positions.set_value(columns([2]), index=...),
        lambda: layer.positions.__setitem__(..., columns([2])),
    ):
        with pytest.raises(TypeError, match="expected them to change together with the values"):
            change()
    layer.positions.set_value(columns([1]))
    np.testing.assert_array_equal(layer.kernel, before)
    graph, state = nnx.split(layer)  # what NNX itself does still works
    np.testing.assert_array_equal(nnx.merge(graph, state).kernel, before)
    nnx.update(layer, state)
    np.testing.assert_array_equal(nnx.clone(layer).kernel, before)


# M12: each mistake in its own words


def nested():
    return nn.ModuleDict({"encoder": nn.ModuleDict({"query": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})})


M12 = {
    "typo": (nested, {"encoder.qery": None}, r"got 'encoder.qery'; .* did you mean 'encoder.query'\?"),
    "case": (nested, {"Encoder.Query": None}, r"did you mean 'encoder.query'\?"),
    "without its beginning": (nested, {"query": None}, r"'encoder.query' ends so: did you mean '\*.query'\?"),
    "with more before it": (nested, {"module.encoder.query": None}, "did you mean 'encoder.query', without what is"),
    "overtaken": (nested, {"*": None, "encoder.query": None}, r"got 'encoder.query' after '\*', which matches encoder"),
    "a container": (nested, {"encoder": None}, r"got the ModuleDict that holds encoder.query; write 'encoder.\*'"),
    "another layer": (nested, {"*.norm": None}, "got 'encoder.norm', a LayerNorm; .* there is masked_parameter"),
    "a parameter": (nested, {"encoder.query.weight": None}, "got that of its parameter, .*; write 'encoder.query'"),
    "no layers": (lambda: nn.Sequential(nn.ReLU()), {"*": None}, "expected a model with layers .* got none among its"),
}


@pytest.mark.parametrize("mistake", M12)
def test_M12_each_mistake_has_its_own_sentence(mistake):
    make, masks, says = M12[mistake]
    with pytest.raises(ValueError, match=says):
        mt.mask_linears(make(), masks)


@pytest.mark.parametrize("mistake", ["typo", "without its beginning", "overtaken", "a container", "a parameter"])
def test_M12_in_jax_too(mistake):
    _, masks, says = M12[mistake]
    query = mj.MaskedLinear(4, 4, grad_mask=columns([]), seed=0).to_linear()
    with pytest.raises(ValueError, match=says.replace("ModuleDict", "dict")):
        mj.mask_linears({"encoder": {"query": query, "norm": jnp.ones(4)}}, masks)


@pytest.mark.parametrize(
    ("model", "function"),
    [
        (EqxNet, r"maskedlinear_jax\.equinox\.mask_linears"),
        (lambda: {"a": [eqx.nn.Linear(2, 2, key=jax.random.key(0))]}, r"maskedlinear_jax\.equinox\.mask_linears"),
        (NnxNet, r"maskedlinear_jax\.nnx\.mask_linears"),
        (torch_net, r"maskedlinear_torch\.mask_linears"),
    ],
    ids=["equinox", "equinox inside", "nnx", "torch"],
)
def test_M12_the_root_function_names_the_adapter(model, function):
    with pytest.raises(TypeError, match=rf"expected a pytree of this package's layers, got \w+; use {function}"):
        mj.mask_linears(model(), {"*": columns([0])})


def test_M12_each_adapter_names_the_other():
    with pytest.raises(TypeError, match=r"got EqxNet; use maskedlinear_jax\.equinox\.mask_linears"):
        in_nnx.mask_linears(EqxNet(), {"*": columns([0])})
    with pytest.raises(TypeError, match=r"got NnxNet; use maskedlinear_jax\.nnx\.mask_linears"):
        in_equinox.mask_linears(NnxNet(), {"*": columns([0])})
