"""Trials M1, M3, M10: everything that trained is in the file, and comes back to the last bit (S8)."""

import copy
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_jax.equinox as me
import maskedlinear_jax.nnx as mn
import maskedlinear_torch as mt
from maskedlinear_core import columns, rows
from maskedlinear_core.arrays import to_numpy
from maskedlinear_core.storage import StorageError

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
BIAS = [True, False] * 8


def fresh():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def trained(packed=True, freeze_others=False, bias_mask=False):
    bias_masks = {"0": BIAS} if bias_mask else None
    model = mt.mask_linears(
        fresh(), {"0": columns([1, 2])}, packed=packed, freeze_others=freeze_others, bias_masks=bias_masks
    )
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("bias_mask", [False, True], ids=["all of the bias", "part of the bias"])
@pytest.mark.parametrize("freeze_others", [False, True], ids=["all learns", "others frozen"])
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m1_the_recipe_comes_back_to_the_last_bit(tmp_path, packed, freeze_others, bias_mask):
    model = trained(packed, freeze_others, bias_mask)
    assert not torch.equal(model(X), fresh().eval()(X))
    mt.save_packed(tmp_path / "file", model)
    loaded = mt.load_packed(tmp_path / "file", fresh()).eval()
    assert torch.equal(loaded(X), model(X))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_m1_what_is_frozen_is_not_stored():
    everything, some = (len(mt.packed_bytes(trained(freeze_others=frozen))) for frozen in (False, True))
    assert some < everything
    assert "3.weight" not in mt.packed_arrays(trained(freeze_others=True))


def test_m1_a_dtype_without_a_form_is_refused(tmp_path):
    model = trained()
    model.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(ValueError, match=r"expected one of the dtypes .* got complex64"):
        mt.save_packed(tmp_path / "file", model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["file", "bytes", "arrays"])
def test_m10_files_bytes_and_arrays(how):
    model = trained(bias_mask=True)
    if how == "arrays":
        target = mt.mask_linears(fresh(), {"0": columns([1, 2])}, packed=True, bias_masks={"0": BIAS})
        loaded = mt.load_packed(mt.packed_arrays(model), target)
    elif how == "bytes":
        loaded = mt.load_packed(mt.packed_bytes(model), fresh())
    else:
        file = io.BytesIO()
        assert mt.save_packed(file, model) == len(file.getvalue())
        file.seek(0)
        loaded = mt.load_packed(file, fresh())
    assert torch.equal(loaded.eval()(X), model(X))


def layers(packed=True, seed=0):
    kinds = [
        (twin.PackedLinear if packed else twin.MaskedLinear)(
            8, 4, grad_mask=columns([1, 2]), bias_mask=BIAS[:4], seed=seed
        )
        for twin in (mt, mj)
    ]
    return kinds[0], kinds[1]


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m10_a_round_of_federated_averaging_over_both_frameworks(packed):
    in_torch, in_jax = layers(packed)
    with torch.no_grad():
        (in_torch.values if packed else in_torch.weight[:, 1:3]).add_(1)
    sent = mt.packed_arrays(in_torch), mj.packed_arrays(in_jax)
    assert sent[0].keys() == sent[1].keys() == {"values", "bias", "positions"}
    mean = {name: (sent[0][name] + sent[1][name]) / 2 for name in sent[0]}
    mt.load_packed(mean, in_torch)
    in_jax = mj.load_packed(mean, in_jax)
    np.testing.assert_array_equal(in_torch.weight.detach().numpy(), np.asarray(in_jax.weight))
    np.testing.assert_allclose(
        np.asarray(in_jax.weight)[:, 1], np.asarray(layers(packed)[1].weight)[:, 1] + 0.5, rtol=1e-6
    )


def test_m10_wrong_arrays_are_refused_and_change_nothing():
    for twin, layer in zip((mt, mj), layers(), strict=True):
        arrays = twin.packed_arrays(layer)
        with pytest.raises(StorageError, match=r"expected an array of shape .4, 2., got one of shape .2, 4."):
            twin.load_packed(arrays | {"values": arrays["values"].T}, layer)
        with pytest.raises(StorageError, match=r"got none for bias, positions and other beside them"):
            twin.load_packed({"values": arrays["values"], "other": arrays["bias"]}, layer)


OTHER_MASKS = {"columns": {"grad_mask": columns([0, 3])}, "bias": {"bias_mask": [True, False, True, True]}}


@pytest.mark.parametrize("form", ["PackedLinear", "MaskedLinear"])
@pytest.mark.parametrize("other", OTHER_MASKS.values(), ids=OTHER_MASKS)
def test_m10_arrays_of_other_positions_of_the_same_count_are_refused(other, form):
    own = {"grad_mask": columns([1, 2]), "bias_mask": [True, True, True, False], "seed": 0}
    ours, theirs = ([getattr(twin, form)(6, 4, **(own | given)) for twin in (mt, mj)] for given in ({}, other))
    for sender in (mt.packed_arrays(ours[0]), mj.packed_arrays(ours[1])):
        for twin, layer, foreign in zip((mt, mj), ours, theirs, strict=True):
            twin.load_packed(sender, layer)
            # As several servers compute it, in float32 too.
            third = {name: array * np.float32(0.1) + array * np.float32(0.9) for name, array in sender.items()}
            twin.load_packed(third, layer)
            before = to_numpy(foreign.weight.detach() if twin is mt else foreign.weight).copy()
            with pytest.raises(StorageError, match=r"positions: expected arrays of the positions that learn"):
                twin.load_packed(sender, foreign)
            np.testing.assert_array_equal(to_numpy(foreign.weight.detach() if twin is mt else foreign.weight), before)


def test_m10_other_names():
    model = trained()
    wrapped = nn.ModuleDict({"encoder": fresh()})
    mt.load_packed(mt.packed_bytes(model), wrapped, rename={"": "encoder"})
    assert torch.equal(wrapped["encoder"].eval()(X), model(X))
    back = mt.load_packed(mt.packed_bytes(wrapped), fresh(), rename=lambda name: name.removeprefix("encoder."))
    assert torch.equal(back.eval()(X), model(X))
    with pytest.raises(ValueError, match=r"expected rename= to map names that are stored, got 'decoder'"):
        mt.load_packed(mt.packed_bytes(model), fresh(), rename={"decoder": "encoder"})
    with pytest.raises(TypeError, match=r"expected rename= to be a mapping of .* got int; nothing was loaded"):
        mt.load_packed(mt.packed_bytes(model), fresh(), rename=3)
    with pytest.raises(ValueError, match=r"expected rename= to give each part a name of its own"):
        mt.load_packed(mt.packed_bytes(model), fresh(), rename=lambda name: "one")


def _decayed(model):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model


def _other_mask(model):
    return _decayed(mt.mask_linears(_decayed(model), {"0": rows([3])}))


def _rounded(model):
    average = torch.optim.swa_utils.AveragedModel(model)
    with torch.no_grad():
        average.module[0].weight.copy_(average.module[0].weight * 0.3 + average.module[0].weight * 0.7)
    return average.module


def _loaded(model):
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return model


def _loaded_from(other):
    def load(model):
        _stepped(model).load_state_dict(other().state_dict())
        return model

    return load


def _stepped(model):
    with torch.no_grad():
        for parameter in model[0].parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 if parameter.dim() == 1 or type(model[0]) is mt.PackedLinear else BY_COLUMN)
    return model


BY_COLUMN = torch.tensor([0.0, 0.5, 0.5, 0, 0, 0, 0, 0])


def _over_another_file(model):
    return mt.load_packed(mt.packed_bytes(_other_mask(model)), fresh())


FROZEN_ENTRIES_MOVE = {
    "decay without a hold": _decayed,
    "another mask": _other_mask,
    "another mask, copied": lambda model: copy.deepcopy(_other_mask(model)),
    "another mask, cast and back": lambda model: _other_mask(model).double().float(),
    "decay, then its own state_dict": lambda model: _loaded(_decayed(model)),
    "another mask, then its own state_dict": lambda model: _loaded(_other_mask(model)),
    "its own state_dict, then another mask": lambda model: mt.mask_linears(_loaded(_stepped(model)), {"0": rows([3])}),
    "another state_dict after training": _loaded_from(lambda: _decayed(fresh())),
    "an average": _rounded,
    "written": lambda model: nn.init.ones_(model[0].weight) is not None and model,
    "a file with other frozen entries": _over_another_file,
}


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
@pytest.mark.parametrize("name", FROZEN_ENTRIES_MOVE)
def test_m1_a_matrix_whose_frozen_entries_moved_is_stored(name, packed):
    model = mt.mask_linears(fresh(), {"0": columns([1, 2])}, packed=packed)
    model = FROZEN_ENTRIES_MOVE[name](model).eval()
    assert torch.equal(mt.load_packed(mt.packed_bytes(model), fresh()).eval()(X), model(X))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m1_a_loaded_matrix_whose_frozen_entries_did_not_move_is_not_stored(packed):
    model = mt.mask_linears(_decayed(fresh()), {"0": columns([1, 2])}, packed=packed)
    first = copy.deepcopy(fresh().state_dict())
    model.load_state_dict(first)  # before training: another first matrix
    _loaded(_stepped(model))
    assert torch.equal(mt.load_packed(mt.packed_bytes(model), fresh()).eval()(X), model.eval()(X))
    with pytest.raises(StorageError, match=r"expected a file with its matrix"):
        mt.load_packed(mt.packed_bytes(model))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m1_a_matrix_whose_frozen_entries_did_not_move_is_not_stored(packed):
    for mask in (rows([3]), mt.elements(np.random.default_rng(0).random((16, 8)) < 0.2)):
        model = mt.mask_linears(fresh(), {"0": columns([1, 2])}, packed=packed)
        mt.mask_linears(model, {"0": mask})
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.5)
        if not packed:
            mt.hold_frozen(optimizer, model)
        model(X).square().mean().backward()
        optimizer.step()
        with pytest.raises(StorageError, match=r"expected a file with its matrix"):
            mt.load_packed(mt.packed_bytes(model))


def _all_but(*entries):
    array = np.ones((3000, 3000), np.bool_)
    array[entries] = False
    return mt.elements(array)


FEW_FROZEN = {
    "the last rows": lambda: rows(slice(0, 2720)),
    "the last row": lambda: rows(slice(0, 2999)),
    "the last column": lambda: columns(slice(0, 2999)),
    "one entry": lambda: _all_but(2999, 2998),
    "what is in no row and no column": lambda: _all_but(slice(2990, None), slice(0, 10)),
}


@pytest.mark.parametrize("name", FEW_FROZEN)
def test_m1_a_large_matrix_of_which_few_entries_are_frozen(name):
    layer = mt.MaskedLinear(3000, 3000, False, grad_mask=FEW_FROZEN[name](), seed=0)
    trains = layer.grad_mask.to_array((3000, 3000))
    with torch.no_grad():
        layer.weight[torch.from_numpy(trains)] *= 0.9
        assert not layer._origin.look(layer)
        layer.weight *= 0.9
    assert layer._origin.look(layer)


@pytest.mark.parametrize("name", ["attention", "parameter"])
def test_m1_a_model_of_which_only_other_masked_parts_learn_is_stored(name):
    def model():
        torch.manual_seed(0)
        if name == "attention":
            return mt.mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0])})
        return mt.mask_parameter(nn.Conv1d(1, 2, 3), "weight", grad_mask=rows([1]))

    trained = model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1.0)
    loaded = mt.load_packed(mt.packed_bytes(trained), model())
    for one, other in zip(trained.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_m10_a_file_alone_makes_the_layer_in_the_other_framework(packed):
    in_torch, in_jax = layers(packed)
    there = mj.load_packed(mt.packed_bytes(in_torch, with_base=True))[""]
    back = mt.load_packed(mj.packed_bytes(in_jax, with_base=True))[""]
    assert type(there) is type(in_jax)
    assert type(back) is type(in_torch)
    np.testing.assert_array_equal(np.asarray(there.weight), in_torch.weight.detach().numpy())
    np.testing.assert_array_equal(np.asarray(back.bias.detach()), np.asarray(in_jax.bias))
    np.testing.assert_array_equal(there.bias_mask, back.bias_mask)
    assert there.grad_mask == back.grad_mask == columns([1, 2])
    for twin, layer in ((mt, in_torch), (mj, in_jax)):
        with pytest.raises(StorageError, match=r"expected a file with its matrix to make a layer of"):
            twin.load_packed(twin.packed_bytes(layer))


def test_m10_a_base_goes_into_a_model_with_other_weights():
    in_torch, in_jax = layers()
    other = nn.Linear(8, 4)
    assert torch.equal(mt.load_packed(mt.packed_bytes(in_torch, with_base=True), other).weight, in_torch.weight)
    other = mj.PackedLinear(8, 4, grad_mask=rows([0]), seed=5)
    loaded = mj.load_packed(mj.packed_bytes(in_jax, with_base=True), other)
    np.testing.assert_array_equal(loaded.weight, in_jax.weight)


# Pytrees, Equinox, NNX


def moved(tree):
    return jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf, tree)


def parts(model):
    return model["a"].weight, model["a"].bias, model["scale"], model["count"]


def test_m1_pytrees():
    model = {"a": layers()[1], "scale": jnp.ones(3), "count": jnp.arange(2)}
    after = moved(model)
    loaded = mj.load_packed(mj.packed_bytes(after), model)
    assert all(map(np.array_equal, parts(loaded), parts(after)))
    loaded = mj.load_packed(mj.packed_arrays(after), model)
    assert all(map(np.array_equal, parts(loaded), parts(after)))


def test_m1_equinox():
    plain = eqx.nn.MLP(4, 2, 8, depth=1, key=jax.random.key(0))
    model = me.mask_linears(plain, {"layers.0": columns([1])}, packed=True)
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    after = eqx.combine(moved(params), rest)
    x = jnp.ones(4)
    np.testing.assert_array_equal(me.load_packed(me.packed_bytes(after), plain)(x), after(x))
    np.testing.assert_array_equal(me.load_packed(me.packed_arrays(after), model)(x), after(x))


def nnx_model():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Linear(4, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs)
    )


def test_m1_nnx():
    model = mn.mask_linears(nnx_model(), {"layers.0": columns([1])}, packed=True)
    for kind in (nnx.Param, nnx.BatchStat):
        nnx.update(model, jax.tree.map(lambda leaf: leaf + 1, nnx.state(model, kind)))
    model.eval()
    x = jnp.ones((3, 4))
    loaded = mn.load_packed(mn.packed_bytes(model), nnx_model())
    loaded.eval()
    np.testing.assert_array_equal(loaded(x), model(x))
    again = mn.load_packed(
        mn.packed_arrays(model), mn.mask_linears(nnx_model(), {"layers.0": columns([1])}, packed=True)
    )
    again.eval()
    np.testing.assert_array_equal(again(x), model(x))


# What mask_linears refuses and keeps, load_packed does.


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def plain_layer(cls=nn.Linear):
    torch.manual_seed(1)
    return nn.Sequential(cls(8, 4))


@pytest.fixture
def stored():
    model = mt.mask_linears(plain_layer(), {"0": columns([1])}, packed=True)
    return mt.packed_bytes(model)


def test_m3_a_subclass_is_refused(stored):
    model = plain_layer(Doubled)
    with pytest.raises(TypeError, match=r"0: expected a plain linear layer, got Doubled"):
        mt.load_packed(stored, model)
    assert type(model[0]) is Doubled


def test_m3_a_tied_weight_is_refused(stored):
    model = plain_layer()
    model.append(nn.Linear(8, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"expected a weight of its own, got one tied to 1.weight"):
        mt.load_packed(stored, model)
    assert model[1].weight is model[0].weight
    assert type(model[0]) is nn.Linear


class NnxDoubled(nnx.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class EqxDoubled(eqx.nn.Linear):
    def __call__(self, x, *, key=None):
        return 2 * super().__call__(x)


class NnxTwo(nnx.Module):
    def __init__(self, kind=nnx.Linear, tied=False):
        self.one, self.two = kind(8, 4, rngs=nnx.Rngs(0)), nnx.Linear(8, 4, rngs=nnx.Rngs(0))
        if tied:
            self.two.kernel = self.one.kernel


def eqx_two(kind=eqx.nn.Linear, tied=False):
    one = kind(8, 4, key=jax.random.key(0))
    return {"one": one, "two": one if tied else eqx.nn.Linear(8, 4, key=jax.random.key(1))}


IN_JAX = {"Equinox": (me, eqx_two, EqxDoubled), "NNX": (mn, NnxTwo, NnxDoubled)}


@pytest.mark.parametrize(("library", "make", "doubled"), IN_JAX.values(), ids=IN_JAX)
def test_m3_load_packed_refuses_what_mask_linears_refuses_in_jax(library, make, doubled):
    """NNX cut a shared kernel: one of its layers went on without what was loaded."""
    sent = library.packed_bytes(library.mask_linears(make(), {"one": columns([1])}, packed=True, freeze_others=True))
    library.load_packed(sent, make())
    for model, text in ((make(doubled), "got .*Doubled, whose forward"), (make(tied=True), "a weight of its own, got")):
        before = repr(model)
        with pytest.raises((TypeError, ValueError), match=text):
            library.load_packed(sent, model)
        assert repr(model) == before


def test_m3_a_computed_weight_is_refused(stored):
    model = plain_layer()
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises((TypeError, StorageError), match=r"0: expected"):
        mt.load_packed(stored, model)


def test_m3_hooks_are_kept(stored):
    model, seen = plain_layer(), []
    handle = model[0].register_forward_hook(lambda *parts: seen.append(1))
    mt.load_packed(stored, model)(X)
    assert seen == [1]
    handle.remove()
    model(X)
    assert seen == [1]


def test_m3_a_refused_file_leaves_the_model_as_it_was(stored):
    model = nn.Sequential(nn.Linear(8, 4))  # of other numbers
    with pytest.raises(StorageError, match=r"expected the frozen entries that the values were trained over"):
        mt.load_packed(stored, model)
    assert type(model[0]) is nn.Linear


def test_embeddings_with_their_heads_come_back():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.tokens, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x):
            return self.head(self.tokens(x))

    model = mt.train_new_tokens(Small(), first=8)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    x = torch.tensor([1, 9])
    loaded = mt.load_packed(mt.packed_bytes(model), Small())
    assert torch.equal(loaded(x), model(x))


def test_m12_what_is_no_model_or_no_file_is_refused_by_the_name_of_the_function(tmp_path):
    model = trained()
    for function, call in {
        "save_packed": lambda: mt.save_packed(tmp_path / "file", None),
        "load_packed": lambda: mt.load_packed(mt.packed_bytes(model), {}),
        "summary": lambda: mt.summary(3),
        "unmask_linears": lambda: mt.unmask_linears([]),
        "train_new_tokens": lambda: mt.train_new_tokens([], first=1),
    }.items():
        with pytest.raises(TypeError, match=rf"^{function}: expected a torch.nn.Module, got "):
            call()
    for twin, layer in zip((mt, mj), layers(), strict=True):
        with pytest.raises(
            TypeError, match=r"^expected a path, bytes, or a file that is open for reading, got NoneType"
        ):
            twin.load_packed(None, layer)
        with pytest.raises(TypeError, match=r"^expected a path or a file that is open for writing bytes, got int"):
            twin.save_packed(3, layer)


def repacked(form):
    """A model whose columns learned and were frozen by another mask then; fresh ones; its forward; its library."""
    x = jnp.ones((2, 6))
    if form == "pytree":
        fresh = lambda: {"0": mj.PackedLinear(6, 4, grad_mask=columns([1, 2]), seed=0)}  # noqa: E731
        model = {"0": fresh()["0"].replace(values=fresh()["0"].values + 1)}
        model = {"0": model["0"].repack(columns([3, 4]))}
        model = jax.jit(lambda model: {"0": model["0"].replace(values=model["0"].values - 1)})(model)
        return model, fresh, lambda model: model["0"](x), mj
    fresh = lambda: mn.mask_linears(nnx.Linear(6, 4, rngs=nnx.Rngs(0)), {"": columns([1, 2])}, packed=True)  # noqa: E731
    model = fresh()
    for step, mask in ((1, columns([3, 4])), (-1, columns([3, 4]))):
        model.values[...] = model.values[...] + step
        model.repack(mask)
    return model, fresh, lambda model: model(x), mn


@pytest.mark.parametrize("form", ["pytree", "nnx"])
def test_m1_what_another_mask_froze_is_stored_in_jax(form):
    model, fresh, forward, adapter = repacked(form)
    data = adapter.packed_bytes(model)
    loaded = adapter.load_packed(data, fresh())
    np.testing.assert_array_equal(forward(loaded), forward(model))
    again = adapter.load_packed(adapter.packed_bytes(loaded), fresh())  # resumed: the next file holds it too
    np.testing.assert_array_equal(forward(again), forward(model))
    unmoved = fresh() if form == "nnx" else fresh()["0"]
    unmoved = unmoved.repack(columns([5])) or unmoved
    assert len(adapter.packed_bytes(unmoved)) < len(data) - 4 * 6 * 4  # nothing had learned


@pytest.mark.parametrize("twin", [mt, mj], ids=["torch", "JAX"])
@pytest.mark.parametrize("given", ["another model", "no model"])
def test_m1_what_came_with_its_matrix_is_saved_with_it(twin, given):
    def made(seed):
        return twin.PackedLinear(6, 4, grad_mask=columns([1]), seed=seed)

    def loaded(data):
        return twin.load_packed(data, made(1)) if given == "another model" else twin.load_packed(data)[""]

    model = made(0)
    first = loaded(twin.packed_bytes(model, with_base=True))
    second = loaded(twin.packed_bytes(first))
    assert (np.asarray(second.weight.tolist()) == np.asarray(model.weight.tolist())).all()
    here = twin.load_packed(twin.packed_bytes(model, with_base=True), made(0))
    assert len(twin.packed_bytes(here)) < len(twin.packed_bytes(second)) or given == "no model"
