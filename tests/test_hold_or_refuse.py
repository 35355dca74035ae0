"""What users do to layers with tools of their framework: right, or refused in words that say what to do (S8, S10)."""

import copy
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import torch
import torch.nn.utils.prune
from flax import nnx
from flax.training.train_state import TrainState
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import GPT2Config, GPT2LMHeadModel

import maskedlinear_jax as mj
import maskedlinear_jax.nnx as mn
import maskedlinear_torch as mt
from maskedlinear_core import columns, elements, rows
from maskedlinear_torch import moments
from tests.small_language import NEW, TOKENS, Language, learning, train

# Heads that are tied by hand, after the conversion.


@pytest.mark.parametrize("hold_first", [True, False], ids=["held, then tied", "tied, then held"])
@pytest.mark.parametrize("masked", ["embed", "head"])
def test_m7_a_plain_layer_that_is_tied_by_hand_is_held(masked, hold_first):
    model = Language()
    mt.mask_linears(model, {masked: NEW}, freeze_others=True)
    optimizer = torch.optim.AdamW(learning(model), lr=0.1, weight_decay=0.5)
    if hold_first:
        mt.hold_frozen(optimizer, model)
    plain = model.head if masked == "embed" else model.embed
    plain.weight = getattr(model, masked).weight
    if not hold_first:
        mt.hold_frozen(optimizer, model)
    before = plain.weight.detach().clone()
    train(model, optimizer)
    assert (plain.weight != before).any(1).tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("masked", ["embed", "head"])
def test_m7_a_plain_layer_that_is_tied_by_hand_is_warned_of(masked):
    model = Language()
    mt.mask_linears(model, {masked: NEW})
    plain = model.head if masked == "embed" else model.embed
    plain.weight = getattr(model, masked).weight
    with pytest.warns(UserWarning, match=rf"got it in a plain {type(plain).__name__} too .a head tied by hand."):
        model(TOKENS)
    model(TOKENS)  # once
    copy.deepcopy(model)(TOKENS)
    pickle.loads(pickle.dumps(model))(TOKENS)


TIED = r"got it in a plain Linear too .a head tied by hand."


def test_m7_a_masked_layer_that_takes_a_plain_layers_weight_is_warned_of():
    model = Language()
    mt.mask_linears(model, {"embed": NEW})
    model.embed.weight = model.head.weight
    with pytest.warns(UserWarning, match=TIED):
        model(TOKENS)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_m7_a_copy_of_tied_layers_is_warned_of(copied):
    model = Language()
    mt.mask_linears(model, {"embed": NEW})
    model.head.weight = model.embed.weight
    model = copied(model)
    with pytest.warns(UserWarning, match=TIED):
        model(TOKENS)
    model.head.weight = nn.Parameter(torch.zeros(8, 4))  # tied no more
    copied(model)(TOKENS)


def test_m7_a_compiled_model_of_tied_layers_is_warned_of_at_its_step():
    model = Language()
    mt.mask_linears(model, {"embed": NEW})
    model.head.weight = model.embed.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.compile(model, backend="eager", fullgraph=True)(TOKENS).sum().backward()
    with pytest.warns(UserWarning, match=TIED):
        optimizer.step()
    optimizer.step()  # once


def test_m7_no_warning_where_weights_are_loaded_or_the_plain_layer_is_gone():
    model, other = Language(), Language()
    mt.mask_linears(model, {"embed": NEW})
    model.load_state_dict(other.state_dict(keep_vars=True), assign=True)
    model.embed.weight = nn.Linear(4, 8, bias=False).weight
    model(TOKENS)


def test_m7_no_warning_where_no_plain_layer_trains_the_weight():
    model = Language()
    mt.mask_linears(model, {"embed": NEW, "head": NEW})
    model.head.weight = model.embed.weight  # both have the mask
    exported = model.head.to_linear()
    other = nn.Linear(4, 8, bias=False)
    other.weight = model.embed.weight
    other.weight = nn.Parameter(torch.zeros(8, 4))  # tied no more
    model(TOKENS)
    assert exported.weight is model.embed.weight


def test_m2_a_parameter_made_of_a_packed_weight_is_one_of_its_own():
    """It wrote through: an optimizer of a head that was made of the weight moved the embedding's frozen rows."""
    model = Language()
    mt.mask_linears(model, {"embed": NEW}, packed=True, freeze_others=True)
    before = model.embed.weight.detach().clone()
    model.head.weight = nn.Parameter(model.embed.weight)
    train(model, torch.optim.AdamW([model.head.weight], lr=0.1, weight_decay=0.5))
    assert torch.equal(model.embed.weight, before)
    assert not torch.equal(model.head.weight, before)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [name for name, _ in copied.named_parameters()] == [name for name, _ in model.named_parameters()]
        assert torch.equal(copied.head.weight, model.head.weight)
        assert isinstance(copied.head.weight, nn.Parameter)
        assert copied.head.weight.requires_grad


# What a packed layer and its arrays may be, and masks of other parameters.


def test_m5_a_packed_layer_may_have_parameters_of_its_own():
    layer = mt.PackedLinear(4, 3, grad_mask=columns([1]), seed=0)
    layer.weight_scale = nn.Parameter(torch.ones(1))
    layer.bias_scale = nn.Parameter(torch.ones(1))
    values = layer.values
    del layer.values  # as FullyShardedDataParallel takes parameters away, and gives views of its own back
    layer.values = values
    assert layer(torch.ones(1, 4)).shape == (1, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_m10_arrays_may_be_sent_in_16_bits(dtype):
    model, other = (nn.Sequential(mt.PackedLinear(4, 4, grad_mask=columns([1]), seed=0)) for _ in range(2))
    with torch.no_grad():
        model[0].values.fill_(0.5)
    mt.load_packed({name: array.astype(dtype) for name, array in mt.packed_arrays(model).items()}, other)
    assert torch.equal(other[0].values, model[0].values)


@pytest.mark.parametrize("mask", [
    np.arange(12).reshape(3, 4)[::-1] % 2 == 0, np.broadcast_to(np.array(True), (3, 4)),
], ids=["flipped", "read-only"])  # fmt: skip
def test_s13_masks_of_a_parameter_may_be_views(mask):
    weight = torch.ones(3, 4, requires_grad=True)
    mt.masked_parameter(weight, mask).sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy() != 0, mask)


# What computes a packed layer's weight from other parameters.


def old_weight_norm(layer, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has parametrizations instead by now
        return torch.nn.utils.weight_norm(layer, name)


COMPUTED = {
    "pruning": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    "structured pruning": lambda layer: torch.nn.utils.prune.random_structured(layer, "weight", 0.5, 0),
    "pruning of the bias": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "bias", 0.5),
    "pruning of the values": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "values", 0.5),
    "deletion": lambda layer: delattr(layer, "weight"),
    "weight norm": lambda layer: old_weight_norm(layer, "weight"),
    "weight norm of the bias": lambda layer: old_weight_norm(layer, "bias"),
    "weight norm of the values": lambda layer: old_weight_norm(layer, "values"),
    "spectral norm": lambda layer: torch.nn.utils.spectral_norm(layer, "weight"),
}


@pytest.mark.parametrize("bias_mask", [None, [True, False, True]], ids=["whole bias", "part of the bias"])
@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_m5_a_packed_layer_is_computed_from_nothing_else(compute, bias_mask):
    layer = mt.PackedLinear(4, 3, grad_mask=columns([1]), bias_mask=bias_mask, seed=0)
    before, names = copy.deepcopy(layer.state_dict()), [name for name, _ in layer.named_parameters()]
    with pytest.raises(
        TypeError, match=r"PackedLinear: expected (weight|bias|values) to be the layer's own.*to_linear"
    ):
        compute(layer)
    assert [name for name, _ in layer.named_parameters()] == names
    assert all(torch.equal(one, before[name]) for name, one in layer.state_dict().items())
    layer(torch.ones(2, 4)).sum().backward()


@pytest.mark.parametrize("compute", [old_weight_norm, torch.nn.utils.spectral_norm, torch.nn.utils.prune.identity])
def test_m5_a_head_and_attention_that_are_packed_are_computed_from_nothing_else(compute):
    model = Language()
    model.head.weight = model.embed.weight
    head = mt.train_new_tokens(model, first=6).head
    with pytest.raises(TypeError, match=r"TiedHead: expected weight to be the layer's own"):
        compute(head, "weight")
    attention = mt.mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": mt.rows([0])}, packed=True)
    names = [name for name, _ in attention.named_parameters()]
    with pytest.raises(TypeError, match=r"PackedMultiheadAttention: expected in_proj_weight to be the layer's own"):
        compute(attention, "in_proj_weight")
    assert [name for name, _ in attention.named_parameters()] == names
    model(TOKENS)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(attention)))
    with pytest.raises(TypeError, match=r"PackedMultiheadAttention: expected in_proj_bias to be the layer's own"):
        compute(copied, "in_proj_bias")


# A whole layer as the parameters of Flax's training state.


@pytest.mark.parametrize("kind", [mj.MaskedLinear, mj.PackedLinear])
def test_a_training_state_of_flax_takes_what_learns_and_refuses_positions(kind):
    layer = kind(4, 3, grad_mask=columns([1]), seed=0)
    params, rest = mj.partition(layer)
    transformation = optax.adamw(0.1, weight_decay=0.5)
    if kind is mj.MaskedLinear:
        transformation = mj.hold_frozen(transformation, layer)
    state = TrainState.create(apply_fn=lambda p, x: mj.combine(p, rest)(x), params=params, tx=transformation)
    gradient = jax.grad(lambda params: state.apply_fn(params, jnp.ones((2, 4))).sum())(state.params)
    state = state.apply_gradients(grads=gradient)
    assert mj.assert_frozen(layer, mj.combine(state.params, rest)) == 9
    with pytest.raises(TypeError, match=r"got the whole layer; split it first: params, rest = partition.layer."):
        TrainState.create(apply_fn=None, params=layer, tx=transformation)


# Masks of other parameters where positions cannot be read.

MASKS = {
    "rows": rows([1]),
    "columns": columns([0, 2]),
    "elements": elements(np.arange(12).reshape(3, 4) % 5 == 0),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 2)], ids=str)
def test_s13_a_mask_of_any_parameter_is_taken_by_compiled_code(mask, shape):
    """Masks of positions were read by NumPy, which Dynamo does not trace; in JAX a mask that came as an argument."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = np.broadcast_to(mask.to_array(shape[:2]).reshape(3, 4, *[1] * (len(shape) - 2)), shape)
    compiled = torch.compile(lambda weight: mt.masked_parameter(weight, mask) * 2, fullgraph=True, backend="aot_eager")
    found = compiled(weight)
    assert torch.equal(found, weight * 2)
    found.sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), np.where(expected, 2.0, 0.0))
    gradient = jax.jit(jax.grad(lambda weight, mask: mj.masked_parameter(weight, mask).sum()))
    np.testing.assert_array_equal(gradient(jnp.ones(shape), mask), np.where(expected, 1.0, 0.0))


# Where a parameter lies.


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_h5_another_mask_of_a_sharded_layer_is_refused(mesh):
    model = nn.Sequential(nn.Linear(6, 4))
    mt.mask_linears(model, {"0": columns([0, 1])}, packed=True, bias_masks={"0": [True, True, False, False]})
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(learning(model), lr=0.1)
    with pytest.raises(ValueError, match=r"expected a layer that is whole for repack, got one whose parameters are sh"):
        model[0].repack(columns([1, 2]), optimizer)
    with pytest.raises(ValueError, match=r"expected a layer that is whole for another bias_mask"):
        model[0].bias_mask = [False, True, True, False]
    model(torch.ones(2, 6)).sum().backward()


class Two(nn.Module):
    """A layer that becomes masked, one that is, one that is sharded, and attention that is."""

    def __init__(self):
        super().__init__()
        self.plain, self.whole, self.cut = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)


WANTED = {
    "a sharded layer": ({"cut": columns([1])}, {}),
    "a bias of it": ({"cut": columns([0])}, {"bias_masks": {"cut": [False, True, True, False]}}),
    "sharded attention": ({"attention.k_proj": mt.rows([1])}, {}),
    "the rest of sharded attention": ({}, {"freeze_others": True}),
    "no optimizer": ({}, {"optimizer": "AdamW"}),
    "no dtype of values": ({}, {"values_dtype": torch.float64}),
}


@pytest.mark.parametrize(("masks", "keywords"), WANTED.values(), ids=WANTED)
def test_h5_a_refused_model_is_left_as_it_was_with_all_of_its_layers(masks, keywords, mesh):
    """The layers before the one that is refused had new masks already, and optimizers were told of layers not there."""
    model = Two()
    made = {"whole": columns([0]), "cut": columns([0]), "attention.q_proj": mt.rows([0])}
    mt.mask_linears(model, made, packed=True, bias_masks={"cut": [True, True, False, False]})
    fully_shard(model.cut, mesh=mesh)
    fully_shard(model.attention.in_proj, mesh=mesh)
    before, learns = repr(model), [one.requires_grad for one in model.parameters()]
    everything = {"plain": columns([1]), "whole": columns([1]), **masks}
    with pytest.raises((TypeError, ValueError), match=r"expected (a layer that is whole|a torch.optim|values_dtype)"):
        mt.mask_linears(model, everything, packed=True, **keywords)
    assert repr(model) == before
    assert [one.requires_grad for one in model.parameters()] == learns
    model.plain(torch.ones(1, 4)).sum().backward()
    torch.optim.SGD(model.plain.parameters(), lr=0.1).step()  # not told of a layer that is not there


def test_h5_moments_move_without_float64_on_their_device():
    """Devices without float64 (MPS) count positions on the CPU: stood in for by the meta device."""
    layer = mt.PackedLinear(6, 4, grad_mask=columns([0, 1]), device="meta")
    found = moments.numbers(columns([0, 1]), columns([1, 2]), torch.zeros(4, 2), (4, 6))
    assert found.tolist() == [[2, 0], [4, 0], [6, 0], [8, 0]]
    assert moments.numbers(columns([0, 1]), columns([1, 2]), layer.values, (4, 6)).device.type == "meta"


# A head tied to the new tokens of a model of transformers, under an adapter.


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "masked"])
def test_m7_a_tied_head_is_tied_still_after_an_adapter_was_merged_beside_it(packed, tmp_path):
    """PEFT's merge compares addresses and said that the head was tied no more: what was saved then had no head."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=True, loss_type="ForCausalLM",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    mt.train_new_tokens(model, first=8, packed=packed)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    )
    plain = mt.unmask_linears(adapted.merge_and_unload())
    tokens = torch.tensor([[1, 9, 8]])
    plain.save_pretrained(tmp_path)
    again = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, plain(tokens).logits)
    assert again.lm_head.weight is again.transformer.wte.weight


# Parameter groups, and checkpoints of others.


def test_what_learns_comes_in_groups_of_which_weights_decay():
    """By its number of axes the values of single entries would be a bias."""
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 8))
    model[3].weight = model[0].weight
    some = {"0": NEW, "3": NEW, "1": elements(np.eye(4) > 0)}
    mt.mask_linears(model, some, packed=True, bias_masks={"1": [True, False, True, False]})
    model[2].weight.requires_grad_(False)
    weights, others = mt.parameter_groups(model, weight_decay=0.5, lr=0.1)
    assert [tuple(one.shape) for one in weights["params"]] == [(2, 4), (4,)]
    assert [tuple(one.shape) for one in others["params"]] == [(2,), (4,), (8,)]
    assert (weights["weight_decay"], others["weight_decay"], weights["lr"], others["lr"]) == (0.5, 0.0, 0.1, 0.1)
    train(model, torch.optim.AdamW([weights, others]))
    assert [len(group["params"]) for group in mt.parameter_groups(Language())] == [2]
    with pytest.raises(TypeError, match=r"parameter_groups: expected a torch.nn.Module, got list"):
        mt.parameter_groups(learning(model))


GROUPS = {
    "a name": ({"weight_decay": "x"}, TypeError, "expected weight_decay to be a number, got str"),
    "a flag": ({"weight_decay": True}, TypeError, "expected weight_decay to be a number, got bool"),
    "a negative one": ({"weight_decay": -0.1}, ValueError, "expected weight_decay to be 0 or more, got -0.1"),
    "not a number": ({"weight_decay": float("nan")}, ValueError, "expected weight_decay to be 0 or more, got nan"),
    "parameters": ({"params": []}, TypeError, "expected options of an optimizer, such as lr, got params"),
}


@pytest.mark.parametrize(("given", "kind", "text"), GROUPS.values(), ids=GROUPS)
def test_groups_of_what_is_no_decay_are_refused(given, kind, text):
    with pytest.raises(kind, match=f"parameter_groups: {text}"):
        mt.parameter_groups(nn.Linear(2, 2), **given)


@pytest.mark.parametrize("make", ["pytree", "nnx"])
@pytest.mark.parametrize("others", [False, True], ids=["all", "nothing else learns"])
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_orbax_stores_and_restores_a_model(packed, others, make, tmp_path):
    def model(seed):
        if make == "pytree":
            plain = {"in": mj.MaskedLinear(4, 3, grad_mask=columns([]), seed=seed).to_linear()}
            return mj.mask_linears(plain, {"in": columns([1])}, packed=packed, freeze_others=others)
        linear = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(seed)))
        return nnx.state(mn.mask_linears(linear, {"layers.0": columns([1])}, packed=packed, freeze_others=others))

    trained, other = model(0), model(1)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", trained)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "model", other)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    for one, before in zip(jax.tree.leaves(found), jax.tree.leaves(trained), strict=True):
        assert one.dtype == before.dtype
        np.testing.assert_array_equal(one, before)


@pytest.mark.parametrize("make", ["pytree", "nnx"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_state_from_before_a_conversion_is_refused_with_what_to_do(make, compiled):
    if make == "pytree":
        plain = {"in": mj.MaskedLinear(4, 3, grad_mask=columns([]), seed=0).to_linear()}
        state = optax.adamw(0.1).init(mj.partition(plain)[0])
        model = mj.mask_linears(
            {"in": plain["in"], "out": mj.MaskedLinear(3, 3, grad_mask=columns([0]), seed=0)}, {"in": columns([1])},
            packed=True,
        )  # fmt: skip
        params = mj.partition(model)[0]
    else:
        model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Linear(3, 3, rngs=nnx.Rngs(1)))
        state = optax.adamw(0.1).init(nnx.state(model, nnx.Param))
        mn.mask_linears(mn.mask_linears(model, {"layers.0": columns([1])}, packed=True), {"layers.1": columns([1])})
        params = nnx.state(model, nnx.Param)
    held = mj.hold_frozen(optax.adamw(0.1), model)
    update = jax.jit(held.update) if compiled else held.update
    with pytest.raises(ValueError, match=r"got a state that was made .*before mask_linears; move it along with"):
        update(params, state, params)


def conv_of_channels():
    model = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 4, 3), nn.Flatten())
    mt.mask_parameter(model[1], "weight", grad_mask=rows([1]))
    return model


@pytest.mark.parametrize(
    "other",
    [
        lambda: mt.mask_linears(nn.Sequential(nn.Linear(8, 4)), {"0": columns([1])}),
        lambda: copy.deepcopy(mt.mask_linears(nn.Sequential(nn.Linear(8, 4)), {"0": columns([1])})),
        lambda: mt.mask_linears(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0), {"*": columns([1])}),
        conv_of_channels,
    ],
    ids=["layer", "copy", "attention", "parametrization"],
)
def test_h2_a_group_that_is_added_with_layers_of_another_model_is_held(other):
    model, added = mt.mask_linears(nn.Sequential(nn.Linear(8, 4)), {"0": columns([1])}), other()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    hold = mt.hold_frozen(optimizer, model)
    optimizer.add_param_group({"params": list(added.parameters())})
    before = [{n: p.detach().clone() for n, p in one.named_parameters()} for one in (model, added)]
    x = torch.randn(5, 8)

    def step():
        optimizer.zero_grad()
        (model(x).square().mean() + added(x).square().mean()).backward()
        optimizer.step()

    step()
    step()
    for one, old in zip((model, added), before, strict=True):
        masks = {name: None for name in old} | mt.grad_masks(one)
        masks = {name: mask if name in old else None for name, mask in masks.items()}
        now = dict(one.named_parameters())
        assert mt.assert_frozen(old, now, {name: masks[name] for name in old}) > 0
        assert all(not torch.equal(old[name], now[name]) for name in old)
    hold.remove()
    before = copy.deepcopy(added.state_dict())
    step()
    with pytest.raises(AssertionError, match="frozen entries moved"):
        mt.assert_frozen(before, added)
