"""Held steps that reach only what trains give the bits of whole ones, in the weights, the state and the gradients."""

import copy

import pytest
import torch

import maskedlinear_torch as mt
from benchmarks import held_steps
from maskedlinear_torch import small_steps, steps

O, I = 12, 20
X = torch.randn(8, I, generator=torch.Generator().manual_seed(0))
MASKS = {
    "columns": mt.columns([1, 4, 17]),
    "rows": mt.rows([0, 7]),
    "elements": mt.elements(torch.rand(O, I, generator=torch.Generator().manual_seed(1)) < 0.2),
    "blocks": mt.blocks(torch.tensor([[True, False], [False, False]]), (6, 10)),
    "nothing": mt.rows([]),
}
DECAY = {"lr": 0.05, "weight_decay": 0.1}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, **DECAY),
    "SGD, momentum": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, **DECAY),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, amsgrad=True, **DECAY),
    "AdamW": lambda p: torch.optim.AdamW(p, **DECAY),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True, **DECAY),
    "AdamW, tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), weight_decay=0.1, foreach=False),
    "NAdam": lambda p: torch.optim.NAdam(p, **DECAY),
    "RAdam": lambda p: torch.optim.RAdam(p, **DECAY),
    "Adamax": lambda p: torch.optim.Adamax(p, **DECAY),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr_decay=0.1, **DECAY),
    "Adadelta": lambda p: torch.optim.Adadelta(p, **DECAY),
    "RMSprop": lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9, **DECAY),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "ASGD": lambda p: torch.optim.ASGD(p, t0=0, **DECAY),
    "SGD, fused": lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, fused=True, **DECAY),
    "Adam, amsgrad, fused": lambda p: torch.optim.Adam(p, amsgrad=True, fused=True, **DECAY),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, **DECAY),
    "Adagrad, fused": lambda p: torch.optim.Adagrad(p, fused=True, **DECAY),
}
STEPS = 5


def layer_of(mask, dtype=torch.float32):
    return mt.MaskedLinear(I, O, grad_mask=mask, seed=0, dtype=dtype)


def train(layer, optimizer, count=STEPS):
    for number in range(count):
        optimizer.zero_grad()
        (layer(X.to(layer.weight.dtype)) - number).square().mean().backward()
        optimizer.step()


def trained(name, mask, dtype=torch.float32, whole=False):
    """A held layer, its optimizer, and how many steps were small ones."""
    layer = layer_of(mask, dtype)
    optimizer = OPTIMIZERS[name](layer.parameters())
    mt.hold_frozen(optimizer, layer)
    if whole:
        optimizer.register_step_post_hook(lambda *_: None)  # who looks at steps sees whole ones
    train(layer, optimizer)
    return layer, optimizer


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_small_steps_have_the_bits_of_whole_ones(name, kind):
    trains = torch.tensor(MASKS[kind].to_array((O, I)))
    (small, few), (whole, all_) = trained(name, MASKS[kind]), trained(name, MASKS[kind], whole=True)
    assert torch.equal(small.weight, whole.weight)
    assert torch.equal(small.bias, whole.bias)
    assert torch.equal(small.weight.grad, whole.weight.grad), "gradients are given back"
    assert mt.assert_frozen(layer_of(MASKS[kind]), small) == int((~trains).sum())
    for mine, other in zip(few.state_dict()["state"].values(), all_.state_dict()["state"].values(), strict=True):
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert torch.equal(value, other[key]), key


def is_small(monkeypatch, optimizer, layer, step=None):
    """Whether a step reached only what trains."""
    seen = []
    true = small_steps.SmallStep._step
    monkeypatch.setattr(small_steps.SmallStep, "_step", lambda *given: (seen.append(given), true(*given)))
    layer(X.to(layer.weight.dtype)).square().mean().backward()
    (step or optimizer.step)()
    return bool(seen)


class OwnAdamW(torch.optim.AdamW):
    """Somebody's own, which may do anything."""


WHOLE = {
    "another class": lambda layer: OwnAdamW(layer.parameters()),
    "Adafactor": lambda layer: torch.optim.Adafactor(layer.parameters()),
    "Muon": lambda layer: torch.optim.Muon([layer.weight]),
    "fused, columns far apart": lambda layer: torch.optim.AdamW(layer.parameters(), fused=True),
    "16 bits": lambda layer: torch.optim.AdamW(layer.bfloat16().parameters(), eps=1e-4),
    "differentiable": lambda layer: torch.optim.SGD(layer.parameters(), lr=0.1, differentiable=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_other_optimizers_step_as_ever(monkeypatch, name):
    layer = layer_of(MASKS["columns"])
    optimizer = WHOLE[name](layer)
    mt.hold_frozen(optimizer, layer)
    if name != "differentiable":
        train(layer, optimizer, 2)
        assert not is_small(monkeypatch, optimizer, layer)


FUSED = [name for name in OPTIMIZERS if name.endswith("fused")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("sizes", [(48, 33), (512, 200), (7, 9)], ids=str)
def test_fused_steps_of_rows_have_the_bits_of_whole_ones(monkeypatch, name, sizes, dtype):
    """The kernels round the numbers after the last whole cache line otherwise: (7, 9) has such, and steps whole."""
    out, into = sizes
    weights = []
    for whole in (False, True):
        layer = mt.MaskedLinear(into, out, grad_mask=mt.rows([0, 3, 5]), seed=0, dtype=dtype)
        optimizer = OPTIMIZERS[name](layer.parameters())
        mt.hold_frozen(optimizer, layer)
        if whole:
            optimizer.register_step_post_hook(lambda *_: None)
        small = []
        true = small_steps.SmallStep._step
        with monkeypatch.context() as patch:
            patch.setattr(small_steps.SmallStep, "_step", lambda *given: (small.append(1), true(*given)))  # noqa: B023
            for number in range(4):
                optimizer.zero_grad()
                x = torch.randn(8, into, generator=torch.Generator().manual_seed(number), dtype=dtype)
                (layer(x) - number).square().mean().backward()
                optimizer.step()
        assert bool(small) == (not whole and out * into * layer.weight.itemsize % 64 == 0)
        state = optimizer.state[layer.weight]
        weights.append([layer.weight, *(state[key] for key in sorted(state))])
    for mine, other in zip(*weights, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", MASKS)
def test_autograd_notices_a_small_step_between_a_forward_and_its_backward(kind):
    """The matrix is written by the next forward, and counts as written from the step on."""
    layer = layer_of(MASKS[kind])
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, layer)
    loss = layer(X.clone().requires_grad_()).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(("kind", "run"), [("blocks", 2), ("elements", 1)])
def test_entries_are_reached_by_the_runs_that_they_lie_in(kind, run):
    places = layer_of(MASKS[kind])._places()["weight"]
    assert places.run == run
    source, target = torch.randn(O, I), torch.zeros(O, I)
    places.put(places.take(source), target)
    assert torch.equal(target, torch.where(torch.tensor(MASKS[kind].to_array((O, I))), source, 0))
    assert places.take(source).shape == places.shape_of(source)


def test_hooks_that_hold_see_a_small_step_once(monkeypatch):
    layer = layer_of(MASKS["rows"])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, layer)
    train(layer, optimizer, 2)
    seen = []
    monkeypatch.setattr(steps, "_refuse_replaced", lambda optimizer, known: seen.append(optimizer))
    assert is_small(monkeypatch, optimizer, layer)
    assert seen == [optimizer]


def test_when_a_step_is_small(monkeypatch):
    layer = layer_of(MASKS["rows"])
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, layer)
    assert not is_small(monkeypatch, optimizer, layer), "the first makes the state"
    assert is_small(monkeypatch, optimizer, layer)
    assert is_small(monkeypatch, optimizer, layer, lambda: optimizer.step(None))
    assert not is_small(monkeypatch, optimizer, layer, lambda: optimizer.step(lambda: layer(X).sum()))
    handle = optimizer.register_step_pre_hook(lambda *_: None)
    assert not is_small(monkeypatch, optimizer, layer), "a hook may read or write all of it"
    handle.remove()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert is_small(monkeypatch, optimizer, layer)
    scheduler.step()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("write", ["in place", "through .data", "another tensor as .data"])
def test_frozen_entries_that_were_written_are_put_back_by_a_small_step(write):
    layer = layer_of(MASKS["rows"])
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, layer)
    train(layer, optimizer, 2)
    layer(X).sum().backward()
    with torch.no_grad():
        if write == "in place":
            layer.weight.mul_(2)
        elif write == "through .data":
            layer.weight.data.mul_(2)
        else:
            layer.weight.data = layer.weight.data * 2
    optimizer.step()
    frozen = ~torch.tensor(MASKS["rows"].to_array((O, I)))
    assert torch.equal(layer.weight[frozen], before["weight"][frozen])


def test_a_step_that_fails_leaves_the_optimizer_as_it_was(monkeypatch):
    layer, other = layer_of(MASKS["rows"]), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*layer.parameters(), *other.parameters()], lr=0.1)
    mt.hold_frozen(optimizer, layer)
    train(layer, optimizer, 2)
    other.weight.grad = torch.zeros(2, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    other.weight.grad = None
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [
        id(p) for p in [*layer.parameters(), *other.parameters()]
    ]
    train(layer, optimizer, 2)
    mt.assert_frozen(layer_of(MASKS["rows"]), layer)
    assert len(optimizer.state_dict()["state"]) == 2


@pytest.mark.parametrize("fault", ["a sparse gradient", "a state of another shape", "a state that lacks a name"])
def test_a_step_that_the_rest_fails_keeps_the_gradients(fault):
    layer, other = layer_of(MASKS["rows"]), torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([*layer.parameters(), *other.parameters()], lr=0.1)
    mt.hold_frozen(optimizer, layer)
    for _ in range(2):
        other(X[:, :2]).sum().backward()
        train(layer, optimizer, 1)
    layer(X).sum().backward()
    other.weight.grad = torch.zeros(2, 2)
    if fault == "a sparse gradient":
        other.weight.grad = other.weight.grad.to_sparse()
    elif fault == "a state that lacks a name":
        optimizer.state[other.weight] = {"step": torch.tensor(1.0), "exp_avg_sq": torch.zeros(2, 2)}
    else:
        optimizer.state[other.weight] = {"step": torch.tensor(1.0)} | dict.fromkeys(
            ("exp_avg", "exp_avg_sq"), torch.ones(3, 3)
        )
    before, grad = layer.weight.detach().clone(), layer.weight.grad.clone()
    with pytest.raises((RuntimeError, KeyError), match=r"sparse|size of tensor|exp_avg"):
        optimizer.step()
    assert torch.equal(layer.weight.grad, grad)
    if fault == "a state that lacks a name":
        assert torch.equal(layer.weight, before)
        optimizer.state[other.weight]["exp_avg"] = torch.zeros(2, 2)
        optimizer.step()
        assert not torch.equal(layer.weight, before)
        assert other.weight.grad is not None
    mt.assert_frozen(layer_of(MASKS["rows"]), layer)


def test_two_layers_of_one_parameter_step_as_a_whole():
    first = layer_of(MASKS["rows"])
    second = mt.MaskedLinear.from_linear(first.to_linear(), grad_mask=mt.rows([0, 7]))
    model = torch.nn.ModuleList([first, second])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        (first(X) + second(X)).square().mean().backward()
        optimizer.step()
    mt.assert_frozen({"w": layer_of(MASKS["rows"]).weight}, {"w": first.weight}, {"w": MASKS["rows"]})


def test_the_measurement_runs(capsys):
    sizes = ["--width", "32", "--depth", "1", "--batch", "4", "--rounds", "3"]
    optimizers = ["--optimizer", "SGD, momentum", "--optimizer", "Muon", "--optimizer", "optax.adamw"]
    held_steps.main([*sizes, *optimizers])
    text = capsys.readouterr().out
    assert text.count("ratio") == 3 * len(held_steps.KINDS) + 1
    assert "Muon, elements: 0.0 M numbers, held" in text
    assert "optax.adamw, few elements: 0.0 M numbers, held" in text
