"""Holding, kind by kind (H1 to H7): what state is kept, what is refused, what is noticed, in both twins."""

import copy

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrizations, prune

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as in_equinox
import maskedlinear_jax.nnx as in_nnx
import maskedlinear_torch as mt
from maskedlinear_core import columns
from maskedlinear_core.frozen import FrozenMoved

O, I = 4, 6
X = torch.randn(8, I, generator=torch.Generator().manual_seed(0))
MASK = columns([1])


def layer_of(**keywords):
    return mt.MaskedLinear(I, O, grad_mask=MASK, seed=0, **keywords)


def steps(layer, optimizer, count=3):
    for _ in range(count):
        optimizer.zero_grad()
        layer(X).square().mean().backward()
        optimizer.step()


# H1: state.


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_h1_an_average_of_a_frozen_weight_is_the_weight(decay):
    layer = layer_of()
    optimizer = torch.optim.ASGD(layer.parameters(), lr=0.05, t0=0, weight_decay=decay)
    mt.hold_frozen(optimizer, layer)
    steps(layer, optimizer)
    frozen = ~torch.from_numpy(MASK.to_array((O, I)))
    assert torch.equal(optimizer.state[layer.weight]["ax"][frozen], layer.weight[frozen])
    assert not torch.equal(optimizer.state[layer.weight]["ax"], layer.weight)


STARTS = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), {"momentum_buffer": 0.0}),
    "Adam": (lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1), {"exp_avg": 0.0, "exp_avg_sq": 0.0}),
    "Adagrad": (
        lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.25), {"sum": 0.25}
    ),
    "Rprop": (lambda p: torch.optim.Rprop(p, lr=0.01), {"step_size": 0.01, "prev": 0.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_h1_state_of_what_is_frozen_stays_what_the_optimizer_makes_it_as(name):
    make, wanted = STARTS[name]
    layer = layer_of()
    optimizer = make(layer.parameters())
    mt.hold_frozen(optimizer, layer)
    steps(layer, optimizer, 9)
    for key, value in wanted.items():
        found = optimizer.state[layer.weight][key].numpy()
        assert (found[:, 0] == np.float32(value)).all(), key
        assert (found[:, 1] != np.float32(value)).any(), key


def test_h1_what_was_trained_before_keeps_its_moments():
    """A mask that changes: the momentum of what it froze stays as it was, bit for bit, until it learns again."""
    layer = layer_of()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    mt.hold_frozen(optimizer, layer)
    steps(layer, optimizer)
    momentum = optimizer.state[layer.weight]["momentum_buffer"][:, 1].clone()
    layer.grad_mask = columns([2])
    steps(layer, optimizer, 9)
    assert torch.equal(optimizer.state[layer.weight]["momentum_buffer"][:, 1], momentum)
    assert not optimizer.state[layer.weight]["momentum_buffer"][:, 0].any()


class Own(torch.optim.Optimizer):
    """Keeps what no other does: a number of its own for each entry, and codes."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state.setdefault("noise", torch.arange(float(p.numel())).reshape(p.shape)).add_(1.0)
            state.setdefault("codes", torch.zeros(p.shape, dtype=torch.int8)).add_(1)
            p.mul_(0.9).sub_(p.grad)


def test_h1_state_of_others_is_theirs():
    layer = layer_of()
    optimizer = Own(layer.parameters())
    mt.hold_frozen(optimizer, layer)
    steps(layer, optimizer)
    state = optimizer.state[layer.weight]
    assert torch.equal(state["noise"], torch.arange(24.0).reshape(O, I) + 3)
    assert (state["codes"] == 3).all()


def test_h1_state_in_jax_is_kept_where_it_is_not_zero():
    layer = mj.MaskedLinear(I, O, bias=False, grad_mask=MASK, seed=0)
    params, rest = mj.partition(layer)
    inner = optax.chain(optax.add_decayed_weights(0.1), optax.adagrad(0.1, initial_accumulator_value=0.25))
    optimizer = mj.hold_frozen(inner, layer)
    state = optimizer.init(params)
    for _ in range(3):
        grads = jax.grad(lambda params: jnp.square(mj.combine(params, rest)(X.numpy())).mean())(params)
        updates, state = optimizer.update(grads, state, params)
        params = mj.apply_updates(params, updates)
    (sums,) = [leaf for leaf in jax.tree.leaves(state) if getattr(leaf, "shape", None) == (O, I)]
    assert (sums[:, 0] == 0.25).all()
    assert (sums[:, 1] > 0.25).all()


# H2: whoever steps.


def test_h2_a_forward_reads_held_bits_after_any_write():
    layer = layer_of(bias_mask=np.arange(O) < 2)
    mt.hold_frozen(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    want = copy.deepcopy(layer)
    with torch.no_grad():
        want.weight[:, 1] *= 2
        want.bias[:2] *= 2
    mt.hold_frozen(torch.optim.SGD(want.parameters(), lr=0.1), want).renew()
    plain = want.to_linear()
    for write in (lambda p: p.data.mul_(2), lambda p: p.detach().mul_(2), lambda p: setattr(p, "data", p.data * 2)):
        one = copy.deepcopy(layer)
        for parameter in one.parameters():
            write(parameter)
        for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
            with context:
                assert torch.equal(one(X), plain(X))
        seen = torch.compile(one, fullgraph=True, backend="eager")(X)
        assert torch.equal(seen, plain(X))
        assert mt.assert_frozen(layer, one) == O * (I - 1) + 2


def test_h2_gradients_of_a_held_layer_are_those_of_one_that_is_not():
    layer, held = layer_of(), layer_of()
    mt.hold_frozen(torch.optim.SGD(held.parameters(), lr=0.1), held)
    grads = []
    for one in (layer, held):
        x = X.clone().requires_grad_()
        one(x).pow(3).sum().backward()
        grads.append([x.grad, one.weight.grad, one.bias.grad])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    penalties = []
    for one in (layer, held):
        one.zero_grad()
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(one(torch.tanh(one(x) @ torch.ones(O, I))).pow(3).sum(), x, create_graph=True)
        first.square().sum().backward()
        penalties.append(one.weight.grad)
    # Two uses and two orders: the same terms, added in another order.
    torch.testing.assert_close(*penalties, rtol=0, atol=16 * 2**-24 * float(penalties[0].abs().max()))
    assert not penalties[1][:, 0].any()
    params = dict(held.named_parameters())
    seen = torch.func.jacrev(lambda params: torch.func.functional_call(held, params, (X,)).sum(0))(params)
    assert not seen["weight"][:, :, 0].any()
    assert seen["weight"][:, :, 1].any()


def test_h2_a_matrix_that_changes_between_forward_and_backward_is_noticed():
    layer = layer_of()
    mt.hold_frozen(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    y = layer(X.clone().requires_grad_())
    with torch.no_grad():
        layer.weight[:, 1] += 1
    layer(X)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_h2_what_is_written_on_purpose_is_held_from_then_on():
    layer = layer_of()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    hold = mt.hold_frozen(optimizer, layer)
    new = {name: torch.randn_like(value) for name, value in layer.state_dict().items()}
    layer.load_state_dict(new)
    steps(layer, optimizer)
    mt.assert_frozen(new, layer)
    with torch.no_grad():
        layer.weight.fill_(0.5)
    hold.renew()
    steps(layer, optimizer)
    assert (layer.weight[:, 0] == 0.5).all()
    layer.weight = nn.Parameter(torch.full((O, I), 0.25))
    steps(layer, torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1))
    assert (layer.weight[:, 0] == 0.25).all()
    layer.double()
    assert (layer(X.double()).shape, layer.weight.dtype) == ((8, O), torch.float64)
    hold.remove()
    steps(layer.float(), optimizer := torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1))
    assert (layer.weight[:, 0] != 0.25).all()


def test_h2_a_model_from_meta_holds_what_it_is_given():
    layer = mt.MaskedLinear(I, O, grad_mask=MASK, device="meta")
    mt.hold_frozen(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.fill_(0.0)
    steps(layer, torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1))
    assert (layer.weight[:, 0] == 0.5).all()
    assert (layer.weight[:, 1] != 0.5).all()


def test_h2_two_holds_of_one_layer_and_copies_are_let_go_one_by_one():
    layer = layer_of()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    first, second = mt.hold_frozen(optimizer, layer), mt.hold_frozen(optimizer, layer)
    before = copy.deepcopy(layer.state_dict())
    first.remove()
    steps(layer, optimizer)
    mt.assert_frozen(before, layer)
    copied, stepper = copy.deepcopy((layer, optimizer))
    mt.hold_frozen(stepper, copied).remove()
    steps(copied, stepper)
    with pytest.raises(FrozenMoved, match="frozen entries moved"):
        mt.assert_frozen(before, copied)
    second.remove()
    steps(layer, optimizer)
    with pytest.raises(FrozenMoved, match="frozen entries moved"):
        mt.assert_frozen(before, layer)


COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_h2_a_computed_weight_is_refused(name):
    model = nn.Sequential(nn.Identity(), layer_of())
    COMPUTED[name](model[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="expected 1 to have its weight as a parameter of its own"):
        mt.hold_frozen(optimizer, model)
    assert model[1]._held is None, "nothing half done"


def test_h2_a_weight_that_is_computed_later_is_refused_by_the_forward():
    layer = layer_of()
    mt.hold_frozen(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    with pytest.raises(
        ValueError, match="expected ParametrizedMaskedLinear to have its weight as a parameter of its own"
    ):
        parametrizations.weight_norm(layer)(X)


# H3: wrappers, masks and parts of trees.


def test_h3_what_wraps_no_optimizer_is_refused():
    class Stepper:
        def step(self):
            pass

    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, got Stepper"):
        mt.hold_frozen(Stepper(), layer_of())


def jax_params():
    return {"a": jnp.ones((O, I)), "b": {"c": jnp.ones(3)}}


@pytest.mark.parametrize(
    ("masks", "still"),
    [
        ({"a": MASK}, {"a": O * (I - 1), "b.c": 0}),
        ({"a": MASK, "b": None}, {"a": O * (I - 1), "b.c": 0}),
        ({"a": None, "b": False}, {"a": 0, "b.c": 3}),
        ({"a": False, "b": {"c": np.array([True, False, True])}}, {"a": O * I, "b.c": 1}),
        ({"a": True, "b": {"c": False}}, {"a": 0, "b.c": 3}),
    ],
    ids=str,
)
def test_h3_masks_of_a_part_of_the_tree_in_jax(masks, still):
    params = jax_params()
    optimizer = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.1), masks)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    unmoved = {"a": int((after["a"] == 1).sum()), "b.c": int((after["b"]["c"] == 1).sum())}
    assert unmoved == still


JAX_WRONG = [
    (lambda: mj.hold_frozen(optax.sgd(0.1), {"z": MASK}).init(jax_params()), ValueError,
     r"expected masks of the parameters \['a', 'b.c'\], got masks of \['z'\] only"),
    (lambda: mj.hold_frozen(optax.sgd(0.1), {"a": None}), ValueError, "expected a model with masked layers"),
    (lambda: step_once({"b": {"c": MASK}}), ValueError, "mask of b.c: expected a weight of shape"),
    (lambda: step_once({"b": {"c": np.ones(2, bool)}}), ValueError, r"mask of b.c: expected shape \(3,\)"),
    (lambda: step_once({"b": {"c": np.ones(3)}}), TypeError, "mask of b.c: expected a bool array"),
    (lambda: step_once({"a": columns([9])}), IndexError, "9"),
]  # fmt: skip


def step_once(masks):
    params = jax_params()
    optimizer = mj.hold_frozen(optax.sgd(0.1), masks)
    return optimizer.update(params, optimizer.init(params), params)


@pytest.mark.parametrize("number", range(len(JAX_WRONG)))
def test_h3_masks_that_do_not_fit_in_jax(number):
    call, error, says = JAX_WRONG[number]
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("twin", [mt, mj], ids=["torch", "JAX"])
def test_h3_none_means_the_same_in_both_twins(twin):
    """None: all of it trains; False or not there: all of it is frozen."""
    ones = torch.ones(2, 2) if twin is mt else jnp.ones((2, 2))
    before, after = {"a": ones, "b": ones}, {"a": ones + 1, "b": ones}
    assert twin.assert_frozen(before, after, {"a": None, "b": False}) == 4
    assert twin.assert_frozen(before, after, {"a": None}) == 4
    for masks in ({"b": None}, {"a": False, "b": None}):
        with pytest.raises(FrozenMoved, match="a: 4 of 4 frozen entries moved"):
            twin.assert_frozen(before, after, masks)


def test_h3_equinox_filters_with_none_leaves():
    model = in_equinox.mask_linears(eqx.nn.MLP(I, 2, 3, 1, key=jax.random.key(0)), {"layers.0": MASK})
    spec = jax.tree.map(eqx.is_inexact_array, model)
    spec = eqx.tree_at(lambda tree: tree.layers[1].bias, spec, False)
    params, rest = eqx.partition(model, spec)
    optimizer = mj.hold_frozen(optax.adamw(0.1, weight_decay=0.1), model)
    grads = eqx.filter_grad(lambda params: jnp.square(jax.vmap(eqx.combine(params, rest))(X.numpy())).mean())(params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = eqx.combine(eqx.apply_updates(params, updates), rest)
    assert mj.assert_frozen(model, after) == 3 * (I - 1)
    assert (after.layers[1].weight != model.layers[1].weight).all()


# H5: masks that change, parameters that are replaced.


def test_h5_an_optimizer_from_before_the_conversion_is_noticed():
    model = nn.Sequential(nn.Linear(I, O), nn.ReLU())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    mt.mask_linears(model, {"0": MASK}, packed=True)
    model(X).sum().backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"before mask_linears\(packed=True\) of '0'; make the optimizer after that"):
        optimizer.step()
    mt.assert_frozen(before, model, {})
    optimizer.add_param_group({"params": model[0].values})
    optimizer.step()


def test_h5_lbfgs_follows_a_repack_to_another_count():
    layer = mt.PackedLinear(I, O, grad_mask=columns([1]), seed=0)
    optimizer = torch.optim.LBFGS([layer.bias_values, layer.values], lr=0.5)

    def loss():
        optimizer.zero_grad()
        found = layer(X).square().mean()
        found.backward()
        return found

    optimizer.step(loss)
    layer.repack(columns([1, 2]), optimizer)
    before = layer.weight.detach().clone()
    optimizer.step(loss)
    assert (layer.weight != before).any(0).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), torch.optim.LBFGS], ids=["SGD", "LBFGS"])
def test_h5_a_repack_without_the_optimizer_is_noticed(make):
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=columns([1]), seed=0)
    optimizer = make([layer.values])
    layer.repack(columns([1, 2]))
    layer(X).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"before repack of PackedLinear\(in_features=6, .*hand it the layer's values"
    ):
        optimizer.step(lambda: layer(X).sum())


def test_h5_a_repack_with_the_optimizer_trains_on():
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=columns([1]), seed=0)
    optimizer = torch.optim.SGD([layer.values], lr=0.1, momentum=0.9)
    steps(layer, optimizer)
    layer.repack(columns([1, 2]), optimizer)
    before = layer.weight.detach().clone()
    steps(layer, optimizer)
    assert (layer.weight != before).any(0).tolist() == [False, True, True, False, False, False]


def test_h5_gradients_of_old_positions_are_not_applied_to_new_ones():
    layer = mt.PackedLinear(I, O, bias=False, grad_mask=columns([1, 2]), seed=0)
    layer(X).sum().backward()
    kept = layer.values.grad[:, 1].clone()
    layer.repack(columns([2, 4]))
    assert torch.equal(layer.values.grad[:, 0], kept)
    assert not layer.values.grad[:, 1].any()


# H6: the proof.


@pytest.mark.parametrize("twin", ["torch", "NumPy"])
def test_h6_bits_and_dtypes_are_compared(twin):
    array = torch.tensor if twin == "torch" else np.array
    kind = torch if twin == "torch" else np
    one = {"w": array([1.0], dtype=kind.float32)}
    for other in (
        array([1 + 1e-9], dtype=kind.float64),
        array([1.0], dtype=kind.float64),
        array([1], dtype=kind.int64),
    ):
        with pytest.raises(FrozenMoved, match=r"w: 1 frozen entries of dtype float32 are (float64|int64) now"):
            mt.assert_frozen(one, {"w": other}, {})
    assert mt.assert_frozen(one, dict(one), {}) == 1
    minus = {"w": array([-0.0], dtype=kind.float32)}
    with pytest.raises(FrozenMoved, match=r"first \[0\] from 0.0 to -0.0"):
        mt.assert_frozen({"w": array([0.0], dtype=kind.float32)}, minus, {})


def test_h6_complex_numbers_are_compared_in_both_parts():
    one = np.array([1 + 0j, 1 + 2j], np.complex64)
    with pytest.raises(FrozenMoved, match="w: 1 of 2 frozen entries moved"):
        mt.assert_frozen({"w": one}, {"w": one + np.array([0, 1j], np.complex64)}, {})


def test_h6_a_dtype_may_change_where_all_trains():
    one, other = np.ones(2, np.float32), np.ones(2, np.float64)
    assert mt.assert_frozen({"a": one, "w": one}, {"a": one, "w": other}, {"w": None}) == 2


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_h6_nnx_models_are_compared(packed):
    model = nnx.Sequential(nnx.Linear(I, O, rngs=nnx.Rngs(0)), nnx.Linear(O, 2, rngs=nnx.Rngs(1)))
    in_nnx.mask_linears(model, {"layers.0": MASK}, packed=packed)
    before = nnx.clone(model)
    tx = optax.adamw(0.1, weight_decay=0.1)
    optimizer = nnx.Optimizer(model, tx if packed else mj.hold_frozen(tx, model), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: jnp.square(model(X.numpy())).mean())(model))
    assert mj.assert_frozen(before, model) == O * (I - 1)
    moved = nnx.clone(model)
    variable = moved.layers[0].base if packed else moved.layers[0].kernel
    variable.set_value(variable.get_value() + 1)
    with pytest.raises(FrozenMoved, match=r"layers\.0\.kernel: 20 of 20 frozen entries moved"):
        mj.assert_frozen(before, moved)


def test_h6_equinox_models_are_compared():
    model = in_equinox.mask_linears(eqx.nn.MLP(I, 2, 3, 1, key=jax.random.key(0)), {"layers.0": MASK})
    moved = eqx.tree_at(lambda tree: tree.layers[0].weight, model, model.layers[0].weight + 1)
    assert mj.assert_frozen(model, model) == 3 * (I - 1)
    with pytest.raises(FrozenMoved, match=r"layers\.0\.weight: 15 of 15 frozen entries moved"):
        mj.assert_frozen(model, moved)


# H7: a penalty.


def test_h7_a_penalty_on_the_weight_reaches_frozen_entries_and_is_held():
    layer = layer_of()
    layer.weight.square().sum().backward()
    assert (layer.weight.grad == 2 * layer.weight).all(), "the penalty is no part of the layer's own product"
    assert "penalty" in mt.hold_frozen.__doc__
    assert "penalty" in mj.hold_frozen.__doc__
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, layer)
    before = copy.deepcopy(layer.state_dict())
    optimizer.step()
    assert mt.assert_frozen(before, layer) == O * (I - 1)
    held = mj.MaskedLinear(I, O, grad_mask=MASK, seed=0)
    params, rest = mj.partition(held)
    tx = mj.hold_frozen(optax.sgd(0.1), held)
    grads = jax.grad(lambda params: jnp.square(params.weight).sum() + mj.combine(params, rest)(X.numpy()).sum())(params)
    assert grads.weight[:, 0].all()
    updates, _ = tx.update(grads, tx.init(params), params)
    assert mj.assert_frozen(held, mj.combine(optax.apply_updates(params, updates), rest)) == O * (I - 1)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
@pytest.mark.parametrize("given", ["by position", "by name"])
def test_h7_lbfgs_with_a_penalty_takes_the_steps_of_a_packed_layer(search, given):
    ends = []
    for kind in (mt.MaskedLinear, mt.PackedLinear):
        layer = kind(I, O, bias=False, grad_mask=columns([1, 2]), seed=0, dtype=torch.float64)
        before = copy.deepcopy(layer.state_dict())
        learns = [one for one in layer.parameters() if one.requires_grad]
        optimizer = torch.optim.LBFGS(learns, lr=0.5, line_search_fn=search, max_iter=4)
        if kind is mt.MaskedLinear:
            mt.hold_frozen(optimizer, layer)

        def closure(layer=layer, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (layer(X.double()) - 1).square().mean() + 0.1 * layer.weight.square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure) if given == "by position" else optimizer.step(closure=closure)
        mt.assert_frozen(before, layer)
        ends.append(layer.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-9, atol=1e-12)  # sums of float64, in another order


def test_h2_layers_that_share_a_parameter_need_one_mask():
    model = nn.ModuleList([mt.MaskedLinear(I, O, bias=False, grad_mask=columns([n]), seed=0) for n in (1, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mt.hold_frozen(optimizer, model)
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"expected layers that share a parameter to have one mask, got MaskedLinear"):
        optimizer.step()
    model[1].grad_mask = model[0].grad_mask
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        (model[0](torch.ones(2, I)) + model[1](torch.ones(2, I))).square().mean().backward()
        optimizer.step()
    assert mt.assert_frozen({"weight": before}, {"weight": model[0].weight}, {"weight": columns([1])})
    assert not torch.equal(before, model[0].weight)


def test_h2_a_hold_from_within_inference_mode():
    layer = mt.MaskedLinear(I, O, grad_mask=columns([1]), seed=0)
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.5)
    with torch.inference_mode():
        mt.hold_frozen(optimizer, layer)
        layer(torch.ones(2, I))
    before = copy.deepcopy(layer)
    layer(torch.ones(2, I)).sum().backward()
    optimizer.step()
    assert mt.assert_frozen(before, layer)


@pytest.mark.parametrize("held", ["before the adapter", "after it"])
@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter", "safe_merge", "at once"])
def test_h3_an_adapter_over_a_held_layer_merges(merge, held):
    import peft

    torch.manual_seed(0)
    model = nn.Sequential(mt.MaskedLinear(I, O, grad_mask=columns([1]), seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    if held == "before the adapter":
        mt.hold_frozen(optimizer, model)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))
    if held == "after it":
        mt.hold_frozen(optimizer, wrapped)
    x, plain = torch.randn(5, I), torch.nn.functional.linear
    layer = wrapped.base_model.model[0]
    delta = layer.get_delta_weight("default").detach()
    want = plain(x, layer.base_layer.weight.detach() + delta, layer.base_layer.bias)
    if merge != "at once":
        torch.testing.assert_close(wrapped(x), want)
    if merge == "merge_adapter":
        wrapped.merge_adapter()
        torch.testing.assert_close(wrapped(x), want)
        wrapped.unmerge_adapter()
        merged = wrapped
    else:
        merged = wrapped.merge_and_unload(safe_merge=merge == "safe_merge")
    torch.testing.assert_close(merged(x), want)
    torch.testing.assert_close(copy.deepcopy(merged)(x), want)
    merged.requires_grad_(True)  # as it is merged, it is held again
    torch.testing.assert_close(merged(x), want)
