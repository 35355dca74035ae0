"""Optimizers that torch does not have: held, or refused where they move what takes no gradient (contract S8)."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskedlinear_torch as mt
from maskedlinear_core import columns
from tests.small_language import NEW, TOKENS, Language, learning, train


class OfOthers(torch.optim.Optimizer):
    """Moves parameter after parameter by its gradient, as gradient descent does."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        if closure is not None:
            closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    self.move(p, group["lr"])

    def move(self, p, lr):
        if p.grad is not None:
            p.data.sub_(p.grad, alpha=lr)


class Decays(OfOthers):
    """Its decay reaches parameters without a gradient, too."""

    def move(self, p, lr):
        p.mul_(0.9)
        super().move(p, lr)


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


class Warms(OfOthers):
    """Its decay is a part of the learning rate, of which the first may be zero."""

    def move(self, p, lr):
        p.data.mul_(1 - 0.1 * lr)
        super().move(p, lr)


def packed_pair():
    torch.manual_seed(0)
    return nn.Sequential(*[mt.PackedLinear(4, 4, grad_mask=columns([1]), seed=seed) for seed in (0, 1)])


def test_h2_a_constant_is_looked_at_until_it_stayed_in_a_step_that_learns():
    model = packed_pair()
    optimizer = Warms(model[0].parameters())
    optimizer.param_groups[0]["lr"] = 0.0
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    before = model[0].base.clone()
    with pytest.raises(RuntimeError, match="expected parameters that take no gradient to stay, got 1"):
        optimizer.step()
    assert torch.equal(model[0].base, before)
    later = Warms([model[0].values])
    later.step()
    later.add_param_group({"params": [model[1].base]})
    with pytest.raises(RuntimeError, match="expected parameters that take no gradient to stay, got 1"):
        later.step()


class Fails(OfOthers):
    """Its first step fails."""

    failed = False

    def move(self, p, lr):
        if not self.failed:
            self.failed = True
            raise MemoryError("out of memory")
        super().move(p, lr)


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


def test_h2_a_teacher_that_a_closure_moves_is_left_alone():
    torch.manual_seed(0)
    model = Teacher()
    optimizer, before = OfOthers(model.parameters()), model.teacher.weight.clone()

    def closure():
        optimizer.zero_grad()
        model(torch.ones(2, 4)).backward()

    optimizer.step(closure)
    assert not torch.equal(model.teacher.weight, before)


class Fills(Decays):
    """As a public Muon does: a gradient of zero where there is none, which it then decays with."""

    def move(self, p, lr):
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        super().move(p, lr)


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


class LowRank(OfOthers):
    """As GaLore: moments of a gradient that an object in the state projects."""

    def move(self, p, lr):
        if p.grad is None:
            return
        state = self.state[p]
        if not state:
            state["projector"] = torch.linalg.svd(p.grad, full_matrices=False)[0][:, :2]
            state["exp_avg"] = torch.zeros(2, p.shape[1])
        state["exp_avg"].lerp_(state["projector"].T @ p.grad, 0.1)
        p.mul_(0.95).sub_(state["projector"] @ state["exp_avg"], alpha=lr)


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
