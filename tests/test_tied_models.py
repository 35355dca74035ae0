"""New tokens in models whose head is tied beside other ties: a head's bias, an encoder and a decoder (M7)."""

import copy
import re

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import maskedlinear_torch as mt

OLD, NEW = 20, 22
IDS = torch.tensor([[1, 20, 21, 3]])


def bert():
    config = transformers.BertConfig(
        vocab_size=OLD, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    return transformers.BertForMaskedLM(config).eval()


def t5():
    config = transformers.T5Config(
        vocab_size=OLD, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def grown(make):
    torch.manual_seed(0)
    model = make()
    model.resize_token_embeddings(NEW, mean_resizing=False)
    return model


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [bert, t5])
def test_m7_new_tokens_of_a_model_with_more_than_one_tie(make, packed):
    model = grown(make)
    before = copy.deepcopy(model.state_dict())
    mt.train_new_tokens(model, first=OLD, packed=packed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    if not packed:
        mt.hold_frozen(optimizer, model)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    mt.unmask_linears(model)
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    assert type(head) is nn.Linear
    model.tie_weights()
    assert head.weight is model.get_input_embeddings().weight
    assert not torch.equal(table[OLD:], before["shared.weight" if make is t5 else TABLE][OLD:])
    for name, now in model.state_dict().items():
        whole = not now.dim() or len(now) != NEW  # else a row or number a token: the table, or the bias
        assert torch.equal(now, before[name]) if whole else torch.equal(now[:OLD], before[name][:OLD]), name
    if make is bert:
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


TABLE = "bert.embeddings.word_embeddings.weight"


def test_m12_arrays_for_a_plain_model_name_the_function_that_was_called():
    arrays = mt.packed_arrays(mt.PackedLinear(4, 3, grad_mask=mt.columns([1])))
    assert all(isinstance(one, np.ndarray) for one in arrays.values())
    text = "load_packed: expected a model with masked or packed layers, got none; convert it first"
    with pytest.raises(ValueError, match=re.escape(text)):
        mt.load_packed(arrays, nn.Sequential(nn.Linear(4, 3)))
