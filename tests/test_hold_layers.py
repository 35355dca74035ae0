"""hold_frozen, grad_masks, assert_frozen and summary of every layer and parametrization that has a mask (S8, S13)."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

import maskedlinear_torch as mt
from maskedlinear_core.frozen import FrozenMoved

TOKENS = torch.tensor([[0, 3, 3], [1, 2, 4]])
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 2, 8, generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(2))


def seeded(make):
    torch.manual_seed(0)
    return make()


def tied():
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 6), "head": nn.Linear(6, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    return mt.mask_linears(model, {"embedding": mt.rows([3, 4]), "head": mt.rows([3, 4])})


LAYERS = {
    "linear": (lambda: mt.mask_linears(nn.Sequential(nn.Linear(6, 4)), {"0": mt.columns([1])}), lambda m: m(X), 20),
    "linear, bias": (
        lambda: mt.mask_linears(
            nn.Sequential(nn.Linear(6, 4)), {"0": mt.rows([1])}, bias_masks={"0": [True, False, True, True]}
        ),
        lambda m: m(X),
        19,
    ),
    "Conv1D": (lambda: mt.mask_linears(nn.Sequential(Conv1D(4, 6)), {"0": mt.columns([1])}), lambda m: m(X), 20),
    "embedding": (
        lambda: mt.mask_linears(nn.Sequential(nn.Embedding(5, 6)), {"0": mt.rows([3])}), lambda m: m(TOKENS), 24,
    ),
    "embedding with padding": (
        lambda: mt.mask_linears(nn.Sequential(nn.Embedding(5, 6, 3)), {"0": mt.rows([3, 4])}),
        lambda m: m(TOKENS),
        24,
    ),
    "tied head": (tied, lambda m: m["head"](m["embedding"](TOKENS)), 18),
    "attention": (
        lambda: mt.mask_linears(nn.MultiheadAttention(8, 2), {"q_proj": mt.rows([0]), "out_proj": mt.columns([1])}),
        lambda m: m(SEQUENCE, SEQUENCE, SEQUENCE)[0],
        112,
    ),
    "attention, own sizes": (
        lambda: mt.mask_linears(nn.MultiheadAttention(8, 2, kdim=8, vdim=8), {"k_proj": mt.rows([0])}),
        lambda m: m(SEQUENCE, SEQUENCE, SEQUENCE)[0],
        56,
    ),
    "convolution": (
        lambda: mt.mask_parameter(nn.Conv1d(2, 3, 3), "weight", grad_mask=mt.rows([1])), lambda m: m(IMAGES), 12,
    ),
    "norm": (
        lambda: mt.mask_parameter(nn.LayerNorm(6), "weight", grad_mask=mt.rows([1, 2])), lambda m: m(X), 4,
    ),
    "recurrent": (
        lambda: mt.mask_parameter(nn.GRUCell(6, 2), "weight_hh", grad_mask=mt.rows([0])), lambda m: m(X), 10,
    ),
}  # fmt: skip
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, momentum=0.9),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.1),
}


def train(model, call, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        (call(model) - 1).square().mean().backward()
        optimizer.step()


def bits_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", LAYERS)
def test_held(name, optimizer):
    make, call, frozen = LAYERS[name]
    model = seeded(make)
    before, start = bits_of(model), call(model).detach()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    hold = mt.hold_frozen(stepper, model)
    assert torch.equal(call(model), start)
    train(model, call, stepper)
    assert mt.assert_frozen(before, model) == frozen * (2 if name == "tied head" else 1)  # by two names
    assert not torch.equal(call(model), start), "nothing learned"
    for parameter in model.parameters():  # by nobody's step
        parameter.data.mul_(1.5)
    call(model)
    mt.assert_frozen(before, model)
    copied, stepper = copy.deepcopy((model, stepper))
    train(copied, call, stepper)
    mt.assert_frozen(before, copied)
    hold.remove()
    train(model, call, torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=0.1))
    with pytest.raises(FrozenMoved, match="frozen entries moved"):
        mt.assert_frozen(before, model)


@pytest.mark.parametrize("name", LAYERS)
def test_a_held_model_is_loaded_pickled_and_cast(name):
    make, call, _ = LAYERS[name]
    model, other = seeded(make), seeded(make)
    stepper = OPTIMIZERS["AdamW"](model.parameters())
    mt.hold_frozen(stepper, model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.25)
    model.load_state_dict(other.state_dict())
    if not any(isinstance(one, ParametrizationList) for one in model.modules()):  # torch refuses to pickle these
        file = io.BytesIO()
        torch.save((model, stepper), file)
        file.seek(0)
        model, stepper = torch.load(file, weights_only=False)
    train(model, call, stepper)
    mt.assert_frozen(bits_of(other), model)
    doubled = model.double()
    train(doubled, lambda m: call(m.float()), OPTIMIZERS["AdamW"](doubled.parameters()), 1)
    mt.assert_frozen(bits_of(other), doubled.float())


@pytest.mark.parametrize("name", LAYERS)
def test_counted(name):
    """The summary and grad_masks tell the same."""
    make, _, frozen = LAYERS[name]
    model = seeded(make)
    assert mt.summary(model).frozen == frozen
    told = mt.grad_masks(model)
    assert told.keys() == set(model.state_dict())
    counted = {}
    for key, mask in told.items():
        value = model.state_dict()[key]
        if isinstance(mask, mt.Mask):
            mask = mask.to_array(tuple(value.shape))
        trains = np.broadcast_to(True if mask is None else np.asarray(mask.tolist()), value.shape)
        counted[value.data_ptr()] = int((~trains).sum())
    assert sum(counted.values()) == frozen


@pytest.mark.parametrize("how", ["the model", "a deep copy"])
@pytest.mark.parametrize(
    ("pattern", "name"),
    [("*linear1", "linear1.weight"), ("*linear2", "linear2.weight"), ("*q_proj", "self_attn.in_proj_weight")],
)
def test_the_fast_path_of_a_transformer_reads_what_is_held(pattern, name, how):
    """In eval mode without gradients torch reads the weights of a transformer's layers past their forward."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = mt.mask_linears(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), {pattern: mt.rows([0])})
    hold = mt.hold_frozen(torch.optim.AdamW(model.parameters()), model)
    held = (copy.deepcopy(model) if how == "a deep copy" else model).eval()
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        before = held(x)
        held.get_parameter(f"layers.0.{name}")[1:4] += 1
        assert torch.equal(held(x), before)
    hold.remove()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", [mt.MaskedLinear, mt.PackedLinear])
def test_a_held_layer_may_become_plain_by_its_own_method_and_by_no_other(kind):
    model = nn.Sequential(kind(4, 3, grad_mask=mt.columns([0])), mt.MaskedLinear(3, 2, grad_mask=mt.rows([0])))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, model)
    x = torch.ones(1, 4)
    before = model(x)
    model[0] = model[0].to_linear()
    assert torch.equal(model(x), before)
    model[1] = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"hold_frozen: 1: expected the masked layer that is held, got a plain Linear"):
        model(x)
