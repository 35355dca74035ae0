"""What users do to layers with tools of their framework: right, or refused in words that say what to do (S8, S10)."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
import torch
import torch.nn.functional as F
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

TOKENS = torch.tensor([1, 2, 7, 6])
NEW = rows([6, 7])


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(TOKENS), TOKENS).backward()
        optimizer.step()


def learning(model):
    return [one for one in model.parameters() if one.requires_grad]


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


# Optimizers of others.


class Decays(torch.optim.Optimizer):
    """Its decay reaches parameters without a gradient, too."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(0.9)
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


def test_h2_an_optimizer_that_moves_what_takes_no_gradient_is_refused():
    model = Language()
    mt.mask_linears(model, {"embed": NEW}, freeze_others=True)
    optimizer = Decays(model.parameters())
    mt.hold_frozen(optimizer, model)
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(
            RuntimeError, match=r"Decays.step: expected parameters that take no gradient to stay, got 1"
        ):
            train(model, optimizer, 1)
    mt.assert_frozen(before, model.state_dict(), mt.grad_masks(model))
    optimizer = Decays(learning(model))
    mt.hold_frozen(optimizer, model)
    train(model, optimizer)
    mt.assert_frozen(before, model.state_dict(), mt.grad_masks(model))


class Warm(Decays):
    """Its first step has a learning rate of zero, and decay goes with it."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"] * 0.1)
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


def packed_pair():
    torch.manual_seed(0)
    return nn.Sequential(*[mt.PackedLinear(4, 4, grad_mask=columns([1]), seed=seed) for seed in (0, 1)])


def test_h2_a_constant_is_looked_at_until_it_stayed_in_a_step_that_learns():
    model = packed_pair()
    optimizer = Warm(model[0].parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    before = model[0].base.clone()
    with pytest.raises(RuntimeError, match="expected parameters that take no gradient to stay, got 1"):
        optimizer.step()
    assert torch.equal(model[0].base, before)
    later = Warm([model[0].values])
    later.step()
    later.add_param_group({"params": [model[1].base]})
    with pytest.raises(RuntimeError, match="expected parameters that take no gradient to stay, got 1"):
        later.step()


class Fails(Decays):
    """Its first step fails."""

    failed = False

    def step(self, closure=None):
        if not self.failed:
            self.failed = True
            raise MemoryError("out of memory")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(p.grad, alpha=group["lr"])


def test_m1_weights_that_are_loaded_after_a_failed_step_stay():
    model = packed_pair()
    optimizer = Fails(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    with pytest.raises(MemoryError, match="out of memory"):
        optimizer.step()
    loaded = {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}
    model.load_state_dict(loaded)
    optimizer.step()
    assert torch.equal(model[0].base, torch.full((4, 4), 2.0))


class Teacher(nn.Module):
    """A layer, and a teacher that follows it in each forward."""

    def __init__(self):
        super().__init__()
        self.student = mt.PackedLinear(4, 3, grad_mask=columns([1]), seed=0)
        self.head, self.teacher = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.head.parameters(), strict=True):
                old.lerp_(new, 0.5)
        hidden = self.student(x)
        return (self.head(hidden) - self.teacher(hidden)).square().sum()


class Closes(torch.optim.Optimizer):
    """Takes the gradient of a closure, as SAM does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure):
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad, alpha=group["lr"])


def test_h2_a_teacher_that_a_closure_moves_is_left_alone():
    torch.manual_seed(0)
    model = Teacher()
    optimizer, before = Closes(model.parameters()), model.teacher.weight.clone()

    def closure():
        optimizer.zero_grad()
        model(torch.ones(2, 4)).backward()

    optimizer.step(closure)
    assert not torch.equal(model.teacher.weight, before)


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
    model, other = packed_pair(), packed_pair()
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


class Fills(Decays):
    """As a public Muon does: a gradient of zero where there is none, which it then decays with."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        super().step()


def test_h2_no_optimizer_moves_the_matrix_of_a_packed_layer_that_it_is_handed():
    model = Language()
    mt.mask_linears(model, {"embed": NEW}, packed=True, freeze_others=True)
    model = pickle.loads(pickle.dumps(model))
    before = copy.deepcopy(model.state_dict())
    optimizer = Fills(model.parameters())
    for _ in range(2):
        F.cross_entropy(model(TOKENS), TOKENS).backward()  # the gradients of zero stay
        with pytest.raises(RuntimeError, match=r"Fills.step: expected parameters that take no gradient to stay, got 2"):
            optimizer.step()
    mt.assert_frozen(before, model.state_dict(), mt.grad_masks(model))
    train(model, Fills(learning(model)))


class LowRank(torch.optim.Optimizer):
    """As GaLore: moments of a gradient that an object in the state projects."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["projector"] = torch.linalg.svd(p.grad, full_matrices=False)[0][:, :2]
                    state["exp_avg"] = torch.zeros(2, p.shape[1])
                state["exp_avg"].lerp_(state["projector"].T @ p.grad, 0.1)
                p.mul_(0.95).sub_(state["projector"] @ state["exp_avg"], alpha=group["lr"])


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_h1_low_rank_moments_are_held_and_start_anew_with_another_mask(packed):
    model = Language()
    mt.mask_linears(model, {"head": columns([0, 1, 2])}, packed=packed, freeze_others=True)
    optimizer = LowRank(learning(model))
    if not packed:
        mt.hold_frozen(optimizer, model)
    for trained in ([0, 1, 2], [1, 2, 3]):
        if packed:
            model.head.repack(columns(trained), optimizer)
        else:
            model.head.grad_mask = columns(trained)
        before = copy.deepcopy(model.state_dict())
        train(model, optimizer)
        assert mt.assert_frozen(before, model.state_dict(), mt.grad_masks(model)) == 40
        assert (model.head.weight != before["head.weight"]).any(0).nonzero().flatten().tolist() == trained


# What computes a packed layer's weight from other parameters.

COMPUTED = {
    "pruning": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    "structured pruning": lambda layer: torch.nn.utils.prune.random_structured(layer, "weight", 0.5, 0),
    "pruning of the bias": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "bias", 0.5),
    "pruning of the values": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "values", 0.5),
    "deletion": lambda layer: delattr(layer, "weight"),
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


@pytest.mark.parametrize("make", ["pytree", "nnx"])
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_orbax_stores_and_restores_a_model(packed, make, tmp_path):
    def model(seed):
        if make == "pytree":
            plain = {"in": mj.MaskedLinear(4, 3, grad_mask=columns([]), seed=seed).to_linear()}
            return mj.mask_linears(plain, {"in": columns([1])}, packed=packed)
        linear = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(seed)))
        return nnx.state(mn.mask_linears(linear, {"layers.0": columns([1])}, packed=packed))

    trained, other = model(0), model(1)
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", trained)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "model", other)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    for one, before in zip(jax.tree.leaves(found), jax.tree.leaves(trained), strict=True):
        assert one.dtype == before.dtype
        np.testing.assert_array_equal(one, before)
