"""What the torch twin must do in every version that pyproject.toml allows; imports no other framework."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problem import GOLDEN, NAMES, I, O, digest, integers, masks, normal
from torch import nn
from torch.autograd import forward_ad

import maskedlinear_torch
from maskedlinear_torch import (
    MaskedLinear,
    PackedLinear,
    columns,
    masked_linear,
    masked_parameter,
    pack,
    packed_linear,
    rows,
)

MASKS = masks(maskedlinear_torch)
X, W, B = map(torch.from_numpy, integers())
each_kind = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def reference(x, w, b, mask):
    """The program that the layer must agree with, in all its derivatives."""
    return F.linear(x, torch.where(torch.from_numpy(mask.to_array((O, I))), w, w.detach()), b)


def both(name, **keywords):
    """Return the layer and the reference program as functions of (x, w, b)."""
    mask = MASKS[name]
    return lambda *args: masked_linear(*args, grad_mask=mask, **keywords), lambda *args: reference(*args, mask)


def leaves():
    return tuple(tensor.clone().requires_grad_() for tensor in (X, W, B))


def same(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def gradients(f):
    args = leaves()
    return torch.autograd.grad(f(*args).square().sum(), args)


@each_kind
def test_gradients(name):
    layer, want = both(name)
    same(gradients(layer), gradients(want))


@each_kind
def test_double_backward(name):
    found = []
    for f in both(name):
        args = leaves()
        first = torch.autograd.grad((f(*args) ** 3).sum(), args, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), args))
    same(*found)


@each_kind
def test_vmap(name):
    got, want = (
        torch.func.vmap(torch.func.grad(lambda w, x, f=f: f(x, w, B).square().sum()), (None, 0))(W, X)
        for f in both(name)
    )
    same(got, want)


@each_kind
@pytest.mark.parametrize("modes", ["jacfwd jacrev", "jacrev jacrev", "jacfwd jacfwd", "jacrev jacfwd"])
def test_second_order(name, modes):
    outer, inner = (getattr(torch.func, mode) for mode in modes.split())
    layer, want = both(name)
    same(
        outer(inner(lambda w: (layer(X, w, B) ** 3).sum()))(W),
        torch.func.jacrev(torch.func.jacrev(lambda w: (want(X, w, B) ** 3).sum()))(W),
    )


@each_kind
def test_forward_mode(name):
    ones = torch.ones_like(W)
    layer, want = both(name)
    got = torch.func.jvp(lambda w: layer(X, w, B), (W,), (ones,))
    same(got, torch.func.jvp(lambda w: want(X, w, B), (W,), (ones,)))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(X, forward_ad.make_dual(W, ones), B)).tangent
    same(tangent, got[1])


@each_kind
def test_a_batch_of_cotangents(name):
    cotangents = torch.arange(3 * 8 * O).reshape(3, 8, O).float() % 5 - 2
    found = []
    for f in both(name):
        x, w, b = leaves()
        found.append(torch.autograd.grad(f(x, w, b), w, cotangents, is_grads_batched=True)[0])
    same(*found)


@each_kind
def test_compiled(name):
    layer, want = both(name)
    same(gradients(torch.compile(layer, fullgraph=True, backend="aot_eager")), gradients(want))


def test_compiled_by_inductor():
    layer = nn.Sequential(
        MaskedLinear(I, O, grad_mask=columns([0, 3]), seed=0),
        nn.ReLU(),
        PackedLinear(O, 3, grad_mask=rows([1]), seed=0),
    )
    layer(X).sum().backward()
    learned = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    want = [parameter.grad.clone() for parameter in learned]
    layer.zero_grad()
    torch.compile(layer, fullgraph=True)(X).sum().backward()
    torch.testing.assert_close([parameter.grad for parameter in learned], want)
    assert not layer[0].weight.grad[:, [1, 2, 4, 5]].any()


@each_kind
def test_compiled_transform(name):
    layer, want = both(name)
    gradient = torch.compile(
        lambda w: torch.func.grad(lambda w: layer(X, w, B).square().sum())(w), fullgraph=True, backend="aot_eager"
    )
    same(gradient(W), torch.func.grad(lambda w: want(X, w, B).square().sum())(W))


def test_export():
    layer = MaskedLinear(I, O, grad_mask=columns([0, 3]), seed=0)
    same(torch.export.export(layer, (X,)).module()(X), layer(X))


@each_kind
def test_packed(name):
    mask = MASKS[name]
    values = pack(W, grad_mask=mask).requires_grad_()
    y = packed_linear(X, W, values, B, grad_mask=mask)
    same(y.detach(), F.linear(X, W, B))
    (got,) = torch.autograd.grad(y.square().sum(), values)
    same(got, pack(gradients(lambda *args: reference(*args, mask))[1], grad_mask=mask))


def test_packed_values_pass_finite_differences():
    values = torch.randn(O, 1, dtype=torch.float64, requires_grad=True)
    layer = lambda values: packed_linear(X.double(), W.double(), values, grad_mask=columns([0]))  # noqa: E731
    assert torch.autograd.gradcheck(layer, (values,), check_forward_ad=True)


def test_reproducible_answers_are_golden():
    x, w = map(torch.from_numpy, normal())
    w.requires_grad_()
    found = []
    for name in NAMES:
        layer, _ = both(name, precision="reproducible")
        assert digest([layer(x, w, B).detach()]) == GOLDEN["forward"], name
        found.append(torch.autograd.grad(layer(x, w, B).square().sum(), w)[0].numpy())
    assert digest(found) == GOLDEN["gradient"]


def test_reproducible_answers_are_golden_compiled():
    x, w = map(torch.from_numpy, normal())
    w.requires_grad_()
    found = []
    for name in NAMES:
        torch._dynamo.reset()
        layer, _ = both(name, precision="reproducible")
        compiled = torch.compile(lambda w, layer=layer: layer(x, w, B).square().sum(), fullgraph=True)
        found.append(torch.autograd.grad(compiled(w), w)[0].numpy())
    assert digest(found) == GOLDEN["gradient"]


@each_kind
def test_reproducible_under_transforms(name):
    layer, want = both(name, precision="reproducible")[0], both(name)[1]
    loss = lambda f: lambda w: f(X, w, B).square().sum()  # noqa: E731
    same(torch.func.grad(loss(layer))(W), torch.func.grad(loss(want))(W))
    same(torch.func.jvp(loss(layer), (W,), (W,)), torch.func.jvp(loss(want), (W,), (W,)))
    same(torch.func.hessian(loss(layer))(W), torch.func.hessian(loss(want))(W))
    got, expected = (
        torch.func.vmap(torch.func.grad(lambda w, x, f=f: f(x, w, B).square().sum()), (None, 0))(W, X)
        for f in (layer, want)
    )
    same(got, expected)


@pytest.mark.parametrize("engine", ["float64", "float32", "int8"])
def test_reproducible_engines_agree(engine):
    x, w = X * 0.1, W * 0.3
    got = masked_linear(x, w, grad_mask=columns([0]), precision=maskedlinear_torch.reproducible(engine=engine))
    same(got, masked_linear(x, w, grad_mask=columns([0]), precision="reproducible"))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_model_is_converted_saved_and_loaded(packed, tmp_path):
    make = lambda: nn.Sequential(nn.Linear(I, 8), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
    plain = make()
    model = maskedlinear_torch.mask_linears(copy.deepcopy(plain), {"*": columns([1])}, packed=packed)
    same(model(X), plain(X))
    if packed:
        maskedlinear_torch.save_packed(tmp_path / "model.safetensors", model)
        same(maskedlinear_torch.load_packed(tmp_path / "model.safetensors", copy.deepcopy(plain))(X), plain(X))
    same(maskedlinear_torch.unmask_linears(model)(X), plain(X))


@pytest.mark.parametrize("make", [MaskedLinear, PackedLinear], ids=["masked", "packed"])
def test_a_layer_is_copied(make, tmp_path):
    layer = make(I, O, grad_mask=columns([0]), seed=0)
    torch.save(layer, tmp_path / "layer.pt")
    copies = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for other in (*copies, torch.load(tmp_path / "layer.pt", weights_only=False)):
        same(other(X), layer(X))
        other.load_state_dict(layer.state_dict())


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("AdamW", {"lr": 0.1, "weight_decay": 0.5}),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("AdamW", {"lr": 0.1, "fused": True}),
        ("Adagrad", {"lr": 0.1}),
        ("Rprop", {}),
    ],
)
def test_a_held_optimizer_moves_no_frozen_weight(rule, options):
    layer = MaskedLinear(I, O, grad_mask=columns([0]), seed=0)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    optimizer = getattr(torch.optim, rule)(layer.parameters(), **options)
    maskedlinear_torch.hold_frozen(optimizer, layer)
    for _ in range(3):
        optimizer.zero_grad()
        layer(X).square().sum().backward()
        optimizer.step()
    assert maskedlinear_torch.assert_frozen(before, layer) > 0
    assert (layer.weight[:, 0] != before["weight"][:, 0]).all()


def test_an_optimizer_follows_other_positions():
    layer = PackedLinear(I, O, grad_mask=columns([0]), seed=0)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(X).sum().backward()
    optimizer.step()
    layer.repack(columns([1]), optimizer)
    assert any(layer.values is one for group in optimizer.param_groups for one in group["params"])


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked_linear(*leaves(), grad_mask=columns([0])).dtype == torch.bfloat16


def test_tensors_without_numbers():
    y = masked_linear(torch.ones(2, I, device="meta"), torch.ones(O, I, device="meta"), grad_mask=columns([0]))
    assert y.shape == (2, O)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    args = leaves()
    layer, want = both("columns")
    checkpoint(layer, *args, use_reentrant=reentrant).square().sum().backward()
    same([arg.grad for arg in args], list(gradients(want)))


class Tied(nn.Module):
    """An embedding and a head that is its matrix."""

    def __init__(self):
        super().__init__()
        self.tokens, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, numbers):
        return self.head(self.tokens(numbers))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_new_tokens_of_a_tied_head(compiled):
    model, numbers = Tied(), torch.tensor([0, 4, 5, 5])
    before, want = model.tokens.weight.detach().clone(), model(numbers)
    maskedlinear_torch.train_new_tokens(model, first=4)
    same(model(numbers), want)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.1, weight_decay=0.5)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    run(numbers).square().sum().backward()
    optimizer.step()
    after = model.tokens.weight.detach()
    same(after[:4], before[:4])
    assert (after[4:] != before[4:]).all()
    same(model.head.weight.detach(), after)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_attention(packed):
    plain = nn.MultiheadAttention(4, 2, batch_first=True)
    model = maskedlinear_torch.mask_linears(
        nn.ModuleDict({"attend": copy.deepcopy(plain)}), {"attend.q_proj": rows([1])}, packed=packed
    )
    x = torch.ones(2, 3, 4, requires_grad=True)
    want = plain(x, x, x, need_weights=False)[0]
    got = model["attend"](x, x, x, need_weights=False)[0]
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    learned = {name: one.grad for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    assert learned


def test_any_other_parameter():
    weight, mask = torch.ones(3, 2, 2, 2, requires_grad=True), np.zeros((3, 2, 2, 2), bool)
    mask[1] = True
    x = torch.ones(1, 2, 4, 4)
    F.conv2d(x, masked_parameter(weight, mask)).sum().backward()
    assert (weight.grad[1] != 0).all()
    assert not weight.grad[[0, 2]].any()
