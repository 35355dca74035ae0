"""Masked layers in the hands of other tools: graphs, transformers, modes, proofs of whole models."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_torch import (
    MaskedLinear,
    PackedLinear,
    assert_frozen,
    columns,
    elements,
    hold_frozen,
    load_packed,
    mask_linears,
    packed_bytes,
    rows,
    train_new_tokens,
    unmask_linears,
)

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(6).reshape(2, 3)
FORMS = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])


class Tokens(nn.Module):
    """An embedding, attention, a Conv1D and a head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.e, self.c = nn.Embedding(10, 6), transformers.pytorch_utils.Conv1D(6, 6)
        self.a, self.l = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 10, bias=False)
        self.l.weight = self.e.weight

    def forward(self, tokens):
        x = self.e(tokens)
        return self.l(self.c(self.a(x, x, x)[0]))


def linears(packed, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    halves = {"0": np.arange(8) % 2 == 0}
    return mask_linears(model, {"0": columns([1, 4])}, packed=packed, bias_masks=halves, **options)


def tokens(packed):
    masks = {"e": rows([1]), "l": rows([1]), "c": columns([0]), "a.q_proj": rows([0]), "a.out_proj": rows([1])}
    return mask_linears(Tokens(), masks, packed=packed)


@FORMS
def test_fx_takes_a_layer_as_one_step(packed):
    for model, x in ((linears(packed), X), (tokens(packed), IDS)):
        graph = torch.fx.symbolic_trace(model)
        assert torch.equal(graph(x), model(x))
        layers = {name: module for name, module in model.named_modules() if hasattr(module, "grad_mask")}
        for name, layer in layers.items():
            assert graph.get_submodule(name) is layer or "." in name  # attention is one step with its parts


@FORMS
def test_make_fx_records_a_layer(packed):
    model = linears(packed)
    for how in ("real", "fake"):
        graph = make_fx(lambda x: model(x), tracing_mode=how, _allow_non_fake_inputs=True)(X)
        assert torch.equal(graph(X), model(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", ["masked", "packed", "held"])
def test_torchscript_is_refused_with_what_to_do(name):
    model = linears(name == "packed")
    if name == "held":
        hold_frozen(torch.optim.SGD(model.parameters()), model)
    with pytest.raises(RuntimeError, match=r"torch.jit.trace: expected plain layers.*unmask_linears"):
        torch.jit.trace(model, X)
    with pytest.raises(TypeError, match=r"torch.jit.script: expected .*unmask_linears"):
        torch.jit.script(model)
    traced = torch.jit.trace(unmask_linears(copy.deepcopy(model)), X)
    assert torch.equal(traced(X), model(X))


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, lambda: FlopCounterMode(display=False)], ids=["inference", "a mode"]
)
def test_m2_what_is_written_under_a_mode_reaches_a_packed_layer(mode):
    layer = PackedLinear(6, 4, grad_mask=columns([1]), bias_mask=np.array([True, False] * 2), seed=0)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with mode(), torch.no_grad():
        layer.weight.mul_(2.0)
        layer.bias.data.mul_(3.0)
        assert torch.equal(layer(X), F.linear(X, weight * 2, bias * 3))
    assert torch.equal(layer(X), F.linear(X, weight * 2, bias * 3))
    layer(X).sum().backward()


def gpt(packed):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.resize_token_embeddings(14, mean_resizing=False)
    return train_new_tokens(model, first=12, packed=packed)


@FORMS
def test_m7_transformers_tie_and_initialise_nothing_anew(packed, tmp_path):
    model = gpt(packed)
    before = model(IDS).logits.detach()
    for change in ("tie_weights", "init_weights", "tie_weights"):
        getattr(model, change)()
        assert torch.equal(model(IDS).logits, before), change
    model.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(IDS).logits, before)
    assert again.lm_head.weight is again.transformer.wte.weight


@FORMS
def test_m7_what_is_unmasked_ties_as_it_did(packed):
    model = unmask_linears(copy.deepcopy(gpt(packed)))
    model.lm_head.weight = nn.Parameter(torch.zeros(14, 8))
    model.tie_weights()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.all_tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}


@FORMS
def test_what_others_note_on_a_layer_stays(packed):
    model = nn.Sequential(nn.Linear(6, 4))
    model[0]._is_hf_initialized, model[0].scale_init = True, 0.5
    mask_linears(model, {"0": columns([1])}, packed=packed)
    assert (model[0]._is_hf_initialized, model[0].scale_init) == (True, 0.5)
    plain = unmask_linears(copy.deepcopy(model))[0]
    assert (plain._is_hf_initialized, plain.scale_init) == (True, 0.5)
    assert vars(plain).keys() <= vars(nn.Linear(6, 4)).keys() | {"_is_hf_initialized", "scale_init"}


def test_h6_one_tensor_is_compared_in_both_twins_and_what_is_none_is_refused():
    """Tensors ended in "dictionary update sequence", a mask alone in "'Columns' object is not iterable"."""
    before, after, mask = torch.ones(2, 3), torch.tensor([[1.0, 1.0, 2.0]] * 2), columns([2])
    assert assert_frozen(before, after, mask) == mj.assert_frozen(before.numpy(), after.numpy(), mask) == 4
    assert assert_frozen(before, after, mask.to_array((2, 3))) == 4
    for moved in (
        lambda: assert_frozen(before, after, ~mask),
        lambda: mj.assert_frozen(before.numpy(), after.numpy(), ~mask),
    ):
        with pytest.raises(AssertionError, match=r"2 of 2 frozen entries moved, first \[0, 2\] from 1.0 to 2.0"):
            moved()
    layer = torch.nn.Linear(3, 2)
    assert assert_frozen(layer.named_parameters(), layer.named_parameters(), {"bias": None}) == 6
    optimizer = torch.optim.SGD([before])
    for wrong, got in ((None, "NoneType"), (optimizer, "SGD"), ([before], "list"), (layer.parameters(), "generator")):
        with pytest.raises(TypeError, match=f"expected a module, a state_dict or a tensor before .* got {got}; e.g."):
            assert_frozen(wrong, layer, {})
    with pytest.raises(TypeError, match=r"got list; e\.g\."):
        assert_frozen(before, after, [mask])
    with pytest.raises(ValueError, match=r"expected masks of the arrays \['w'\], got masks of \[''\] too"):
        assert_frozen({"w": before}, {"w": after}, mask)
    with pytest.raises(TypeError, match="expected arrays by name, got dict by the name 'model'; pass the state_dict"):
        assert_frozen({"model": {"w": before}}, {"model": {"w": after}}, {"model": None})


def test_h6_running_statistics_are_no_frozen_entries_and_a_scalar_that_moved_is_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    mask_linears(model, {"0": columns([1])}, freeze_others=True)
    before = copy.deepcopy(model.state_dict())
    model(X)
    assert assert_frozen(before, model) == 40 + 8 + 16  # a weight, a bias, and the norm's own
    with pytest.raises(
        AssertionError, match=r"1.num_batches_tracked: 1 of 1 frozen entries moved, first \[\] from 0 to 1"
    ):
        assert_frozen(before, model.state_dict(), {"1.running_mean": None, "1.running_var": None})


def resized(tied):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=12,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=8,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    plain = copy.deepcopy(model)
    train_new_tokens(model, first=10, packed=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    hold_frozen(optimizer, model)
    steps(model, optimizer)
    model.resize_token_embeddings(14, mean_resizing=False)
    return model, plain


def steps(model, optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
    optimizer.zero_grad()


def test_m7_a_vocabulary_that_grows_once_more_keeps_its_mask_and_is_saved_whole():
    model, plain = resized(tied=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    hold_frozen(optimizer, model)
    steps(model, optimizer)
    assert assert_frozen(before, model)
    assert model.transformer.wte.grad_mask == rows([10, 11])
    plain.resize_token_embeddings(14, mean_resizing=False)  # its new rows are others
    loaded = load_packed(packed_bytes(model), plain)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)


def test_m7_a_vocabulary_that_shrinks_below_its_mask_is_refused():
    model, _ = resized(tied=True)
    with pytest.raises(
        IndexError, match=r"expected a weight of shape .*, got one of shape \(11, 8\).*set layer.grad_mask"
    ):
        model.resize_token_embeddings(11)(IDS)


def test_h2_a_plain_layer_in_the_place_of_a_held_one_is_refused():
    model, _ = resized(tied=False)  # transformers makes another head
    with pytest.raises(ValueError, match=r"hold_frozen: lm_head: expected the masked layer.*mask it again"):
        model(IDS)
    mask_linears(model, {"lm_head": rows([10, 11])})
    model(IDS)
    unmask_linears(model)(IDS)  # on purpose


@pytest.mark.parametrize("mask", [columns([1]), rows([0]), elements(np.eye(4, 6, dtype=bool))], ids=str)
@pytest.mark.parametrize("is_held", [False, True], ids=["not held", "held"])
def test_m7_a_weight_of_other_sizes_is_taken_or_refused(mask, is_held):
    layer = MaskedLinear(6, 4, bias=False, grad_mask=mask, seed=0)
    if is_held:
        hold_frozen(torch.optim.SGD(layer.parameters()), layer)
    layer.weight.data = torch.ones(3, 6)
    if mask.shape is not None:
        with pytest.raises(
            ValueError, match=r"MaskedLinear: expected a weight of shape \(4, 6\), .*got one of shape \(3, 6\)"
        ):
            layer(X)
        return
    layer(X).sum().backward()
    assert layer.out_features == 3
    assert torch.equal(layer.weight.grad != 0, torch.from_numpy(mask.to_array((3, 6))))


def test_an_adapter_takes_a_masked_embedding_for_an_embedding():
    """PEFT took it for a linear layer, of other sizes, for it was both: its forward ended in an IndexError."""
    import peft

    torch.manual_seed(0)
    layer = mt.MaskedEmbedding(9, 4, grad_mask=mt.rows([7, 8]), seed=0)
    assert not isinstance(layer, torch.nn.Linear)
    model = torch.nn.Sequential(layer, torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    config = peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    wrapped, tokens = peft.get_peft_model(model, config).eval(), torch.tensor([[0, 8, 3]])
    over = wrapped.base_model.model[0]
    table = layer.weight.detach() + over.get_delta_weight("default").detach()
    output = wrapped(tokens)
    torch.testing.assert_close(output, model[2](model[1](torch.nn.functional.embedding(tokens, table))))
    merged = wrapped.merge_and_unload()
    assert merged[0] is layer
    torch.testing.assert_close(merged(tokens), output)
