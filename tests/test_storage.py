"""Storage (S7): what one framework saved, the other loads; a damaged file is refused and changes nothing."""

import hashlib
import json
import re
import struct
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from torch import nn

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, rows, storage, submatrix
from maskedlinear_core.storage import StorageError
from tests import damaged_files

O, I = 16, 24
DRAW = np.random.default_rng(0).random
MASKS = {
    "columns": columns([0, 3, 23]),
    "rows": rows(slice(1, 9, 2)),
    "submatrix": submatrix([3, 1], [5, 2, 9]),
    "blocks": blocks(DRAW((4, 4)) < 0.4, (4, 6)),
    "elements": elements(DRAW((O, I)) < 0.05),
    "dense elements": elements(DRAW((O, I)) < 0.5),
    "union": columns([1]) | rows([2]),
    "all": columns(slice(None)),
    "none": columns([]),
}
DTYPES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")]


def torch_layer(mask, dtype="float32", values_dtype=None, cls=mt.PackedLinear, **keywords):
    if values_dtype:
        keywords["values_dtype"] = getattr(torch, values_dtype)
    return cls(I, O, grad_mask=mask, seed=0, dtype=getattr(torch, dtype), **keywords)


def jax_layer(mask, dtype="float32", values_dtype=None, cls=mj.PackedLinear, **keywords):
    if values_dtype:
        keywords["values_dtype"] = values_dtype
    return cls(I, O, grad_mask=mask, seed=0, dtype=dtype, **keywords)


def trained(layer):
    """The layer with values that training might have given."""
    with torch.no_grad():
        (layer.values if isinstance(layer, mt.PackedLinear) else layer.weight).add_(0.37)
        layer.bias.sub_(0.11)
    return layer


def bits(array):
    if isinstance(array, torch.Tensor):
        return array.detach().float().numpy().view(np.uint32)
    return np.asarray(array.astype(jnp.float32)).view(np.uint32)


@pytest.mark.parametrize(("dtype", "values_dtype"), DTYPES, ids=lambda dtype: dtype)
@pytest.mark.parametrize("name", MASKS)
def test_from_torch_to_jax_and_back(tmp_path, name, dtype, values_dtype):
    layer = trained(torch_layer(MASKS[name], dtype, values_dtype, bias_mask=np.arange(O) % 3 == 0))
    mt.save_packed(tmp_path / "one", layer)
    in_jax = mj.load_packed(tmp_path / "one", jax_layer(columns([7]), dtype))
    mj.save_packed(tmp_path / "two", in_jax)
    again = mt.load_packed(tmp_path / "two", torch_layer(rows([0]), dtype))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    for other in (in_jax, again):
        np.testing.assert_array_equal(bits(other.values), bits(layer.values))
        np.testing.assert_array_equal(bits(other.weight), bits(layer.weight))
        np.testing.assert_array_equal(bits(other.bias), bits(layer.bias))
        assert other.grad_mask.packed((O, I)) == layer.grad_mask.packed((O, I))
        np.testing.assert_array_equal(np.asarray(other.bias_mask), layer.bias_mask)
    x = torch.ones(2, I, dtype=getattr(torch, dtype))
    assert torch.equal(again(x), layer(x))


def test_masked_layers_too(tmp_path):
    layer = torch_layer(columns([1, 2]), cls=mt.MaskedLinear)
    with torch.no_grad():
        layer.weight[:, 1:3] += 1.0
    mt.save_packed(tmp_path / "file", layer)
    there = mj.load_packed(tmp_path / "file", jax_layer(rows([0]), cls=mj.MaskedLinear))
    assert type(there) is mj.MaskedLinear
    np.testing.assert_array_equal(bits(there.weight), bits(layer.weight))
    again = mt.load_packed(tmp_path / "file", torch_layer(columns([3]), cls=mt.MaskedLinear))
    assert torch.equal(again.weight, layer.weight)
    assert again.grad_mask == columns([1, 2])


@pytest.mark.parametrize("stored", ["masked", "packed"])
@pytest.mark.parametrize("target", ["masked", "packed"])
def test_an_embedding_stays_one_in_the_stored_form(stored, target):
    mask, tokens = rows([4, 5]), np.array([0, 4, 5])
    kinds = {"masked": mj.MaskedEmbedding, "packed": mj.PackedEmbedding}
    in_torch = {"masked": mt.MaskedEmbedding, "packed": mt.PackedEmbedding}
    layer = in_torch[stored](6, 4, grad_mask=mask, seed=0)
    file = mt.packed_bytes(layer, with_base=True)
    loaded = mj.load_packed(file, kinds[target](6, 4, grad_mask=mask, seed=1))
    assert type(loaded) is kinds[stored]
    np.testing.assert_array_equal(loaded(tokens), layer(torch.from_numpy(tokens)).detach())


def test_a_model_and_its_plain_form(tmp_path):
    plain = nn.Sequential(nn.Linear(I, O), nn.ReLU(), nn.Linear(O, 4))
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    model = mt.mask_linears(plain, {"0": columns([1]), "2": elements(DRAW((4, O)) < 0.2)}, packed=True)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.values.add_(1.0)
    mt.save_packed(tmp_path / "file", model)
    fresh = nn.Sequential(nn.Linear(I, O), nn.ReLU(), nn.Linear(O, 4))
    fresh.load_state_dict(state)
    loaded = mt.load_packed(tmp_path / "file", fresh)
    assert isinstance(loaded[0], mt.PackedLinear)
    x = torch.randn(3, I)
    assert torch.equal(loaded(x), model(x))


def test_a_file_costs_the_trainable_share(tmp_path):
    # PEFT's SHiRA stores two int64... positions and a float32 per value: 12 bytes.
    side = 1024
    array = np.random.default_rng(1).random((side, side)) < 0.01
    layer = mt.PackedLinear(side, side, False, grad_mask=elements(array), seed=0)
    size = mt.save_packed(tmp_path / "file", layer)
    per_value = size / layer.values.numel()
    print(f"{per_value:.2f} bytes a value, {size / (4 * side * side):.4f} of the dense checkpoint at p = 0.01")
    assert per_value < 5.3
    dense = mt.PackedLinear(side, side, False, grad_mask=elements(~array), seed=0)
    assert mt.save_packed(tmp_path / "file", dense) / dense.values.numel() < 4.2
    lines = mt.PackedLinear(side, side, False, grad_mask=columns(range(0, side, 100)), seed=0)
    assert mt.save_packed(tmp_path / "file", lines) / lines.values.numel() < 4.1


REFUSED = {
    "shape": (lambda: mt.PackedLinear(I + 1, O, grad_mask=columns([0]), seed=0), "expected a weight of shape"),
    "dtype": (lambda: torch_layer(columns([0]), "bfloat16"), "expected a weight of float32, got bfloat16"),
    "bias": (lambda: torch_layer(columns([0]), bias=False), "expected a bias, got none"),
    "fingerprint": (lambda: mt.PackedLinear(I, O, grad_mask=columns([0]), seed=1), "expected the frozen entries"),
    "kind": (lambda: nn.Conv1d(I, O, 1), "expected a linear layer of that name, got Conv1d"),
    "name": (lambda: nn.Sequential(nn.Linear(I, O)), "expected a linear layer of that name, got Sequential"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_is_refused_and_unchanged(tmp_path, name):
    make, says = REFUSED[name]
    mt.save_packed(tmp_path / "file", trained(torch_layer(columns([1, 2]))))
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(StorageError, match=says):
        mt.load_packed(tmp_path / "file", model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_jax_refuses_alike(tmp_path):
    mt.save_packed(tmp_path / "file", trained(torch_layer(columns([1, 2]))))
    with pytest.raises(StorageError, match="expected the frozen entries"):
        mj.load_packed(tmp_path / "file", mj.PackedLinear(I, O, grad_mask=columns([0]), seed=1))
    with pytest.raises(StorageError, match="expected a linear layer of that name, got no such layer"):
        mj.load_packed(tmp_path / "file", [jax_layer(columns([0]))])


def test_an_optimizer_goes_on_with_what_is_loaded(tmp_path):
    layer = torch_layer(columns([1, 2]))
    mt.save_packed(tmp_path / "file", trained(torch_layer(columns([3, 4]))))
    values, bias = layer.values, layer.bias
    mt.load_packed(tmp_path / "file", layer)
    assert layer.values is values
    assert layer.bias is bias


def test_nothing_to_save(tmp_path):
    for save_packed, model in ((mt.save_packed, nn.Linear(2, 2)), (mj.save_packed, {"w": jnp.ones(2)})):
        with pytest.raises(ValueError, match="expected a model with masked or packed layers, got none"):
            save_packed(tmp_path / "file", model)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "file"
    model = nn.ModuleDict({
        "a": torch_layer(MASKS["elements"], bias_mask=np.arange(O) % 2 == 0),
        "b": torch_layer(MASKS["submatrix"]),
        "c": torch_layer(MASKS["blocks"], bias=False),
    })  # fmt: skip
    mt.save_packed(path, model)
    return path.read_bytes()


FAST = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)


@settings(FAST, max_examples=10_000)
@given(data=st.data())
def test_no_damaged_file_is_accepted(whole, data):
    kind = data.draw(st.sampled_from(("flip", "cut", "insert", "drop", "swap", "garbage")))
    where = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        damaged = whole[:where] + bytes([whole[where] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[where + 1 :]
    elif kind == "cut":
        damaged = whole[:where]
    elif kind == "insert":
        damaged = whole[:where] + data.draw(st.binary(min_size=1, max_size=9)) + whole[where:]
    elif kind == "drop":
        damaged = whole[:where] + whole[where + data.draw(st.integers(1, 99)) :]
    elif kind == "swap":
        damaged = whole[where:] + whole[:where]
    else:
        damaged = data.draw(st.binary(max_size=99))
    if damaged == whole:
        return
    with pytest.raises(StorageError, match="expected a file that save_packed wrote, but"):
        storage.from_bytes(damaged)


def signed(whole, change):
    """The file with its contents changed and a right checksum: not damage, but another writer."""
    length = struct.unpack("<Q", whole[:8])[0]
    about = json.loads(json.loads(whole[8 : 8 + length])["__metadata__"]["maskedlinear"])
    tensors = load(whole)
    about["checksum"] = "0" * 64
    change(about, about["layers"], tensors)
    blank = save(tensors, {"maskedlinear": json.dumps(about, separators=(",", ":"))})
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


JUNK = st.one_of(
    st.none(), st.integers(-(2**40), 2**40), st.text(max_size=5), st.lists(st.integers(-9, 99), max_size=3),
    st.floats(), st.sampled_from(["submatrix", "blocks", "entries", "packed", "bfloat16", [16, 24], [4, 4]]),
)  # fmt: skip


@settings(FAST, max_examples=1500)
@given(data=st.data())
def test_no_contradiction_crashes(whole, data):
    def change(about, layers, tensors):
        kind = data.draw(st.sampled_from(("field", "tensor", "drop", "about")))
        name = data.draw(st.sampled_from(sorted(layers)))
        if kind == "field":
            field = data.draw(st.sampled_from([key for key in layers[name] if key != "fingerprint"]))
            layers[name][field] = data.draw(JUNK)
        elif kind == "tensor":
            which = data.draw(st.sampled_from(sorted(tensors)))
            dtype = data.draw(st.sampled_from(["uint8", "int8", "uint16", "float32", "float64", "int64", "bool"]))
            tensors[which] = np.resize(np.arange(200), data.draw(st.integers(0, 40))).astype(dtype)
        elif kind == "drop":
            del tensors[data.draw(st.sampled_from(sorted(tensors)))]
        else:
            about[data.draw(st.sampled_from(["layers", "version"]))] = data.draw(JUNK)

    other = signed(whole, change)
    try:
        layers = storage.from_bytes(other).layers
    except StorageError:
        return
    # Some changes are no contradiction; then what is read agrees with itself.
    for layer in layers.values():
        assert layer.mask.to_array(layer.shape).sum() == layer.values.bits.size


def test_signing_alone_changes_nothing(whole):
    same = signed(whole, lambda *parts: None)
    assert storage.from_bytes(same).layers.keys() == storage.from_bytes(whole).layers.keys()


def test_a_later_version_says_so(whole):
    later = signed(whole, lambda about, *_: about.update(version=3))
    with pytest.raises(StorageError, match="expected version 2, got 3; update maskedlinear"):
        storage.from_bytes(later)


def test_a_foreign_file(tmp_path):
    (tmp_path / "file").write_bytes(save({"weight": np.ones(3, np.float32)}))
    with pytest.raises(StorageError, match="it has no checksum of this format"):
        mt.load_packed(tmp_path / "file", nn.Linear(2, 2))


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mt.save_packed(tmp_path / "file", torch_layer(columns([0])))
    assert not list(tmp_path.iterdir())


def test_pytree_of_layers(tmp_path):
    model = {"net": [jax_layer(columns([1])), jax_layer(elements(DRAW((O, I)) < 0.1))], "scale": jnp.ones(())}
    moved = jax.tree.map(lambda leaf: leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, model)
    mj.save_packed(tmp_path / "file", moved)
    loaded = mj.load_packed(tmp_path / "file", model)
    for left, right in zip(loaded["net"], moved["net"], strict=True):
        np.testing.assert_array_equal(bits(left.weight), bits(right.weight))
    assert float(loaded["scale"]) == 2.0, "what else learned is stored too"


# Trial M4: what a header says is checked before anything is made of it.

HOSTILE = {
    "many rows": lambda layers, tensors: layers["b"].update(shape=[1_000_000_000, 6]),
    "all rows, no columns": lambda layers, tensors: (
        layers["b"].update(shape=[2**31 - 1, I]),
        tensors.pop("b.rows"),
        tensors.update({"b.values": np.zeros((0, 3), np.float32)}),
    ),
    "many elements": lambda layers, tensors: layers["a"].update(shape=[2**31 - 1, 2**31 - 1]),
    "a fine grid": lambda layers, tensors: layers["c"].update(
        shape=[2**30, 2**30], grid_shape=[2**30, 2**30], block_shape=[1, 1]
    ),
    "no size": lambda layers, tensors: layers["c"].update(shape=[2**64, -1]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_m4_a_hostile_header_costs_little(whole, name):
    data = signed(whole, lambda about, layers, tensors: HOSTILE[name](layers, tensors))
    assert len(data) < 10_000
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(StorageError, match="expected a file that save_packed wrote"):
        storage.from_bytes(data)
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_m4_a_header_that_is_longer_than_its_file(whole):
    whole = bytearray(whole)
    whole[:8] = struct.pack("<Q", 2**40)
    blank = re.sub(rb'(checksum\\":\\")[0-9a-f]{64}', rb"\g<1>" + b"0" * 64, bytes(whole))
    data = blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)
    with pytest.raises(StorageError, match="it says that its header has 1099511627776 bytes"):
        storage.from_bytes(data)


def test_m4_a_slice_of_the_damaged_files():
    """All 10,000: `python tests/damaged_files.py`."""
    outcomes = damaged_files.run(200, seed=1)
    assert outcomes["refused"] > 100
    assert outcomes["refused"] + outcomes["agrees"] == 200


def test_a_file_of_the_first_version_is_read(whole):

    def first(about, layers, tensors):
        about["version"] = 1
        del about["others"]

    assert storage.from_bytes(signed(whole, first)).layers.keys() == {"a", "b", "c"}
