"""What learns, saved by the names of `named_parameters` and loaded with `load_state_dict`: nothing is lost."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.pytorch_utils import Conv1D

import maskedlinear_torch as mt
from maskedlinear_core import columns, elements, rows


def linears():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), {"*": columns([1, 2])}, torch.randn(5, 8)


def partial_bias():
    return linears()


def embedding():
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3)), {"0": rows([1, 2]), "1": rows([0])}, torch.arange(10)


def attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return layer, {"*": columns([1, 2])}, torch.randn(2, 5, 8)


def conv1d():
    return nn.Sequential(Conv1D(6, 8)), {"*": columns([1, 2])}, torch.randn(5, 8)


def model_of(kind, freeze_others):
    torch.manual_seed(0)
    model, masks, x = kind()
    kept = {"bias_masks": {"0": np.arange(6) < 2}} if kind is partial_bias else {}
    return mt.mask_linears(model, masks, packed=True, freeze_others=freeze_others, **kept), x


def trained(kind, freeze_others):
    model, x = model_of(kind, freeze_others)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model, x


@pytest.mark.parametrize("kind", [linears, partial_bias, embedding, attention, conv1d])
@pytest.mark.parametrize("freeze_others", [False, True])
@pytest.mark.parametrize("assign", [False, True])
class TestByName:
    def test_what_learns_comes_back(self, kind, freeze_others, assign):
        model, x = trained(kind, freeze_others)
        learned = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        fresh, _ = model_of(kind, freeze_others)
        assert not torch.equal(fresh(x), model(x))
        known = fresh.load_state_dict(learned, strict=False, assign=assign)
        assert known.unexpected_keys == []
        assert torch.equal(fresh(x), model(x))
        assert {name for name, p in fresh.named_parameters() if p.requires_grad} == set(learned)

    def test_all_parameters_by_name_are_a_whole_state(self, kind, freeze_others, assign):
        model, x = trained(kind, freeze_others)
        state = {name: p.detach().clone() for name, p in model.named_parameters()}
        fresh, _ = model_of(kind, freeze_others)
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.fill_(7)
        fresh.load_state_dict(state, assign=assign)  # strict: nothing is missing
        assert torch.equal(fresh(x), model(x))


def test_a_file_knows_what_was_loaded_by_name(tmp_path):
    model, x = trained(linears, True)
    fresh, _ = model_of(linears, True)
    first = copy.deepcopy(fresh)
    learned = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    fresh.load_state_dict(learned, strict=False)
    mt.save_packed(tmp_path / "file", fresh)
    mt.load_packed(tmp_path / "file", mt.unmask_linears(first))
    assert torch.equal(first(x), model(x))


@pytest.mark.parametrize("kind", [linears, attention])
def test_other_shapes_and_names_are_told(kind):
    model, _ = model_of(kind, True)
    name = next(name for name, _ in model.named_parameters() if name.endswith("values"))
    with pytest.raises(RuntimeError, match=f"size mismatch for {name}"):
        model.load_state_dict({name: torch.zeros(3, 1)}, strict=False)
    wrong = {f"{name}_": torch.zeros(3), name.replace("values", "bias_base"): torch.zeros(3)}
    assert sorted(model.load_state_dict(wrong, strict=False).unexpected_keys) == sorted(wrong)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: model.get_parameter(name).detach()})


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_one_of_weight_and_bias_is_assigned_alone(name):
    model, x = model_of(linears, True)
    expected = mt.unmask_linears(copy.deepcopy(model))
    new = {f"0.{name}": torch.ones_like(expected.state_dict()[f"0.{name}"])}
    expected.load_state_dict(new, strict=False, assign=True)
    model.load_state_dict(new, strict=False, assign=True)
    assert torch.equal(model(x), expected(x))
    assert not model[0].bias.requires_grad


@pytest.fixture
def mesh():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("mask", [columns([1, 2]), rows([0, 5]), elements(np.eye(6, 8, dtype=bool))], ids=str)
@pytest.mark.parametrize("by", ["name", "state_dict"])
def test_a_sharded_layer_loads_the_state_of_one(mesh, by, mask):
    def sharded(seed):
        torch.manual_seed(seed)
        layer = mt.PackedLinear(8, 6, grad_mask=mask, bias_mask=np.arange(6) % 2 == 0)
        fully_shard(layer, mesh=mesh)
        return layer

    one, other = sharded(0), sharded(1 if by == "state_dict" else 0)
    with torch.no_grad():
        for parameter in (one.values, one.bias_values):
            parameter.add_(1)
    learned = {name: p.detach() for name, p in one.named_parameters() if p.requires_grad}
    known = other.load_state_dict(learned if by == "name" else one.state_dict(), strict=by != "name")
    assert known.unexpected_keys == []
    assert torch.equal(other(torch.ones(2, 8)), one(torch.ones(2, 8)))


@pytest.mark.filterwarnings("ignore:.*(torch.distributed|_get_pg_default_device|Multiple backends).*")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", [linears, partial_bias, embedding])
def test_a_sharded_model_takes_the_whole_state_of_one(mesh, kind, device):
    """`full_state_dict=True` hands a packed layer the whole weight and its own parts, as they are, together."""
    model, x = trained(kind, False)
    fresh = model_of(kind, False)[0].to(device)
    fully_shard(fresh, mesh=mesh)
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(fresh, model.state_dict(), options=options)
    assert torch.equal(fresh(x), model(x))
    got = get_model_state_dict(fresh, options=options)
    assert all(torch.equal(got[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad == fresh.get_parameter(name).requires_grad for name, p in model.named_parameters())


def test_a_weight_that_came_to_some_processes_alone_is_refused(mesh, monkeypatch):
    """Without strict=True `broadcast_from_rank0` brings the weight to the first process, and to others nothing."""
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda said, group: said[1].add_(1))  # another says no
    layer = mt.PackedLinear(8, 6, grad_mask=columns([1, 2]))
    weight = layer.weight.detach().clone()
    fully_shard(layer, mesh=mesh)
    own = {name: p for name, p in layer.named_parameters()}
    with pytest.raises(RuntimeError, match="expected its weight in every process, got it in some alone"):
        layer.load_state_dict(own | {"weight": weight, "bias": own["bias_values"]}, strict=False)
