"""Every path of the layer runs on torch's `meta` device, and every tensor is made on a device that is named.

Many operators refuse a tensor of the CPU beside one of `meta`, and not all do: so the makers of tensors are listed too.
What a GPU answers is not shown here.
"""

import ast
import inspect
import re
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
from transformers.pytorch_utils import Conv1D

import maskedlinear_torch
from maskedlinear_core.checks.storage import StorageError
from maskedlinear_torch import (
    MaskedEmbedding,
    MaskedLinear,
    PackedEmbedding,
    PackedLinear,
    assert_frozen,
    blocks,
    columns,
    elements,
    hold_frozen,
    load_packed,
    mask_linears,
    mask_parameter,
    masked_linear,
    masked_parameter,
    pack,
    packed_arrays,
    packed_bytes,
    packed_linear,
    repack,
    reproducible,
    rows,
    select,
    submatrix,
    train_new_tokens,
    unmask_linears,
    unpack,
)  # fmt: skip

O, I = 8, 12
rng = np.random.default_rng(0)
MASKS = {
    "columns": columns([1, 4, 5]),
    "slice": columns(slice(2, 9)),
    "rows": rows([0, 3]),
    "submatrix": submatrix([1, 2], [0, 7, 9]),
    "blocks": blocks(np.array([[1, 0, 0], [0, 0, 1]], bool), (4, 4)),
    "many blocks": blocks(np.array([[1, 0, 1], [1, 0, 1]], bool), (4, 4)),
    "elements": elements(rng.random((O, I)) < 0.4),
    "few elements": elements(np.eye(O, I, dtype=bool)),
    "nothing": rows([]),
}
TRAINS = np.arange(O) % 2 == 0
each_kind = pytest.mark.parametrize("name", MASKS)


def meta(*shape, **keywords):
    return torch.zeros(shape, device="meta", **keywords)


def same_places(got, want):
    assert [one.device.type for one in got] == ["meta"] * len(got)
    assert [one.shape for one in got] == [one.shape for one in want]


@each_kind
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_function(name, packed, dtype):
    mask, x, w, b = MASKS[name], *(meta(*shape, dtype=dtype) for shape in ((5, I), (O, I), (O,)))
    learned = pack(w, grad_mask=mask) if packed else w

    def layer(x, learned, b, **keywords):
        if packed:
            return packed_linear(x, w, learned, b, grad_mask=mask, bias_mask=TRAINS, **keywords)
        return masked_linear(x, learned, b, grad_mask=mask, bias_mask=TRAINS, **keywords)

    def loss(*args):
        return layer(*args).square().sum()

    args = (x, learned, b)
    same_places([layer(*args)], [meta(5, O)])
    gradient = torch.func.grad(loss, (0, 1, 2))
    same_places(gradient(*args), args)
    by_example = torch.func.vmap(gradient, (0, None, None))(x[:, None], learned, b)
    same_places(by_example, [meta(5, *one.shape) for one in (x[:1], learned, b)])
    tangent = torch.func.jvp(lambda *args: layer(*args, forward_mode=True), args, args)
    same_places(tangent, [meta(5, O)] * 2)
    leaves = [one.clone().requires_grad_() for one in args]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves, allow_unused=True)
    same_places(
        [one for one in second if one is not None], [a for a, b in zip(args, second, strict=True) if b is not None]
    )


@each_kind
def test_unpack_and_repack(name):
    mask, w = MASKS[name], meta(O, I)
    values = pack(w, grad_mask=mask)
    same_places([unpack(w, values, grad_mask=mask)], [w])
    same_places([repack(values, mask, columns([0]), weight=w)], [pack(w, grad_mask=columns([0]))])
    same_places([masked_parameter(w, mask)], [w])


@each_kind
@pytest.mark.parametrize("layer", [MaskedLinear, PackedLinear])
def test_module(name, layer):
    module = layer(I, O, grad_mask=MASKS[name], device="meta")
    module(meta(5, I)).sum().backward()
    tensors = [*module.parameters(), *(one.grad for one in module.parameters() if one.requires_grad)]
    same_places(tensors, tensors)
    moved = layer(I, O, grad_mask=MASKS[name], seed=0).to("meta")
    same_places([moved(meta(5, I))], [meta(5, O)])


@pytest.mark.parametrize("layer", [MaskedEmbedding, PackedEmbedding])
def test_embedding(layer):
    module = layer(O, I, grad_mask=rows([5, 6]), device="meta")
    module(torch.zeros((3, 2), dtype=torch.long, device="meta")).sum().backward()
    gradients = [one.grad for one in module.parameters() if one.requires_grad]
    same_places(gradients, gradients)


@each_kind
@pytest.mark.parametrize("engine", ["auto", "float64", "float32", "int8"])
@pytest.mark.parametrize("layer", [MaskedLinear, PackedLinear])
def test_reproducible(name, engine, layer):
    module = layer(I, O, grad_mask=MASKS[name], device="meta", precision=reproducible(engine=engine))
    module(meta(5, I)).sum().backward()
    tensors = [*module.parameters(), *(one.grad for one in module.parameters() if one.requires_grad)]
    same_places(tensors, tensors)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_new_tokens_of_a_tied_head(packed):
    model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(O, I), "head": torch.nn.Linear(I, O, bias=False)}).to(
        "meta"
    )
    model["head"].weight = model["tokens"].weight
    train_new_tokens(model, first=6, packed=packed)
    numbers = torch.zeros((3, 2), dtype=torch.long, device="meta")
    out = model["head"](model["tokens"](numbers))
    out.sum().backward()
    same_places([out, *(one.grad for one in model.parameters() if one.requires_grad)],
                [meta(3, 2, O), *(one for one in model.parameters() if one.requires_grad)])  # fmt: skip


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_attention(packed):
    attend = torch.nn.MultiheadAttention(4, 2, batch_first=True, device="meta")
    masks = {"attend.q_proj": rows([1]), "attend.out_proj": columns([0, 2])}
    model = mask_linears(torch.nn.ModuleDict({"attend": attend}), masks, packed=packed)
    allowed = meta(3, 3, dtype=torch.bool)
    for keywords in ({}, {"attn_mask": allowed}, {"key_padding_mask": meta(2, 3, dtype=torch.bool)}):
        out = model["attend"](meta(2, 3, 4), meta(2, 3, 4), meta(2, 3, 4), need_weights=False, **keywords)[0]
        out.sum().backward()
        same_places([out], [meta(2, 3, 4)])
    with torch.no_grad():
        same_places([model["attend"](*[meta(2, 3, 4)] * 3)[0]], [meta(2, 3, 4)])


def test_a_parametrization():
    convolution = torch.nn.Conv2d(2, 3, 2, device="meta")
    mask_parameter(convolution, "weight", grad_mask=np.arange(24).reshape(3, 2, 2, 2) < 6)
    out = convolution(meta(1, 2, 4, 4))
    out.sum().backward()
    same_places([out, convolution.parametrizations.weight.original.grad], [meta(1, 3, 3, 3), meta(3, 2, 2, 2)])


@each_kind
def test_a_packed_layer_that_was_called_before(name):
    """Its later calls ask less, and without gradients read a matrix that was kept."""
    layer = PackedLinear(I, O, grad_mask=MASKS[name], device="meta")
    x = meta(5, I, requires_grad=True)
    for _ in range(3):
        layer(x).sum().backward()
        with torch.no_grad():
            same_places([layer(x)], [meta(5, O)])
        with torch.inference_mode():
            same_places([layer(x)], [meta(5, O)])
        with torch.no_grad():
            layer.values.add_(1)
    same_places([x.grad, layer.values.grad], [x, layer.values])
    same_places([layer.weight, layer.to_linear().weight], [meta(O, I)] * 2)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_conv1d(packed):
    convolution = Conv1D(O, I).to("meta")
    model = mask_linears(torch.nn.Sequential(convolution), {"0": MASKS["columns"]}, packed=packed)
    for _ in range(2):
        model(meta(5, I)).sum().backward()
    same_places([model(meta(5, I))], [meta(5, O)])
    plain = unmask_linears(model)[0]
    assert type(plain) is Conv1D
    same_places([plain.weight, plain.bias], [meta(I, O), meta(O)])


@pytest.mark.parametrize("layer", [MaskedEmbedding, PackedEmbedding])
def test_a_reproducible_embedding_and_its_head(layer):
    plain = torch.nn.Embedding(O, I, device="meta")
    module = layer.from_embedding(plain, grad_mask=rows([5, 6]), precision="reproducible")
    numbers = torch.zeros((3, 2), dtype=torch.long, device="meta")
    for _ in range(2):
        out = module.attend(module(numbers))
        out.sum().backward()
    same_places([out], [meta(3, 2, O)])
    gradients = [one.grad for one in module.parameters() if one.requires_grad]
    same_places(gradients, gradients)


@pytest.mark.parametrize("form", [{"foreach": True}, {"foreach": False}])
@pytest.mark.parametrize("name", ["rows", "submatrix", "elements", "slice"])
def test_a_held_step_of_what_trains_alone(name, form):
    """What an optimizer steps by entries is stepped in a copy of those that train."""
    model = torch.nn.Sequential(
        MaskedLinear(I, O, grad_mask=MASKS[name], device="meta"), torch.nn.Linear(O, 2).to("meta")
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, **form)
    hold_frozen(optimizer, model)
    for _ in range(2):
        optimizer.zero_grad()
        model(meta(5, I)).square().sum().backward()
        optimizer.step()
    same_places([model[0].weight, optimizer.state[model[0].weight]["exp_avg"]], [meta(O, I)] * 2)


OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop")
"""Of torch's, those that step there at all: ASGD and LBFGS read numbers of their own."""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["columns", "few elements", "blocks"])
def test_a_held_step(name, optimizer):
    """As it is made to see what memory a training takes: state is made, and there are no values to put back."""
    model = torch.nn.Sequential(MaskedLinear(I, O, grad_mask=MASKS[name], bias_mask=TRAINS, device="meta"))
    stepper = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
    hold_frozen(stepper, model)
    for _ in range(2):
        stepper.zero_grad()
        model(meta(5, I)).square().sum().backward()
        stepper.step()
    state = [one for state in stepper.state.values() for one in state.values() if one.dim()]
    assert len(state) >= (2 if optimizer != "SGD" else 0)
    same_places(state, state)


def test_a_held_layer_that_leaves_the_meta_device_holds_what_it_is_given():
    model = torch.nn.Sequential(MaskedLinear(I, O, grad_mask=MASKS["columns"], device="meta"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    hold_frozen(optimizer, model)
    model.to_empty(device="cpu")
    given = MaskedLinear(I, O, grad_mask=MASKS["columns"], seed=1)
    model[0].load_state_dict(given.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    hold_frozen(optimizer, model)
    model(torch.ones(2, I)).sum().backward()
    optimizer.step()
    assert assert_frozen(given, model[0]) > 0


def test_a_model_that_accelerate_makes_without_numbers_has_its_masks():
    """As `from_pretrained` makes it: parameters on the meta device, and masks where they were."""
    with accelerate.init_empty_weights():
        model = torch.nn.Sequential(
            MaskedLinear(8, 6, grad_mask=columns([1, 3]), bias_mask=np.arange(6) < 2),
            PackedLinear(6, 4, grad_mask=rows([2])),
        )
    assert {one.device.type for one in model.parameters()} == {"meta"}
    model.to_empty(device="cpu")
    for name, one in model.named_parameters():
        torch.nn.init.constant_(one, 1.0 if "weight" in name or "base" in name or "values" in name else 0.0)
    model(torch.ones(2, 8)).sum().backward()
    assert model[0].weight.grad.nonzero()[:, 1].unique().tolist() == [1, 3]
    assert model[0].bias.grad.nonzero().flatten().tolist() == [0, 1]
    assert model[1].values.grad.shape == (1, 6)


@pytest.mark.parametrize("layer", [MaskedLinear, PackedLinear])
def test_what_has_no_numbers_is_neither_stored_nor_loaded_into(layer):
    """A copy into a tensor of the meta device does nothing, without a word."""
    trained = layer(I, O, grad_mask=MASKS["columns"], seed=0)
    empty = layer(I, O, grad_mask=MASKS["columns"], device="meta")
    for call in (
        lambda: packed_bytes(empty),
        lambda: packed_arrays(empty),
        lambda: load_packed(packed_bytes(trained), empty),
        lambda: load_packed(packed_arrays(trained), empty),
        lambda: load_packed(packed_bytes(trained), torch.nn.Linear(I, O, device="meta")),
    ):
        with pytest.raises(StorageError, match=r"expected a tensor with numbers, got one on the meta device"):
            call()


def test_numbers_are_asked_for_where_they_are_read():
    for call in (
        lambda: select.top_k(meta(4, 4), 0.5),
        lambda: assert_frozen({"w": meta(1, 2)}, {"w": meta(1, 2)}, {"w": columns([1])}),
    ):
        with pytest.raises(TypeError, match="expected an array whose values can be read"):
            call()


MADE = {
    "conv1d.py: to_conv1d": "of no rows; its weight and its bias are then replaced by the given ones",
    "embedding.py: _drawn": "drawn by NumPy and copied into the parameter",
    "engine_choice.py: _tested.answer": "a known problem of NumPy's, put on the device that is tested",
    "lowering.py: as_tensor": "positions of the user's, which are checked as NumPy and put on the device by `resolve`",
    "module.py: Layer._set_masks": "NumPy's mask of the bias, put on the device",
    "module.py: MaskedLinear._draw": "drawn by NumPy and copied into the parameter",
    "moments.py: numbers": "in float64, which not all devices have, and then put on the device",
    "origin.py: _spread": "in float64, which not all devices have, and then put on the device",
    "packed_parts.py: _cut": "a bool mask, which is put on the device",
    "storage.py: _learned": "a bool mask, which indexes on any device",
    "storage.py: _load_arrays": "NumPy's, put on the device or a bool mask",
    "storage.py: _tensor": "the numbers of a file, copied into the layer",
}
"""Where torch's functions make tensors on the CPU: each with the reason."""


def takes_a_device(function):
    """Tell of a function or class of torch; those that are not of Python say so in their first lines."""
    try:
        return "device" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return bool(re.match(r"[^\n]*\bdevice=", str(getattr(function, "__doc__", None)).strip()))


OTHERS = {
    "torch.as_tensor", "torch.asarray", "torch.from_numpy", "torch.frombuffer", "torch.scalar_tensor", "torch.Tensor",
    "Conv1D",
}  # fmt: skip
"""Makers that do not show as such: they take no device, or nothing says so; and a layer of transformers."""
MAKERS = OTHERS | {
    f"{where}.{name}"
    for where, module in (("torch", torch), ("nn", torch.nn))
    for name in dir(module)
    if name[0] != "_" and not name.endswith("_like") and takes_a_device(getattr(module, name))
}


def test_the_makers_of_torch_are_found():
    known = (
        "tensor as_tensor asarray arange full zeros ones empty empty_strided eye linspace logspace rand randn randint"
    )
    known += " randperm tril_indices triu_indices sparse_coo_tensor"
    assert {f"torch.{name}" for name in known.split()} <= MAKERS
    assert {"nn.Linear", "nn.Embedding", "nn.MultiheadAttention", "nn.Conv2d", "nn.LayerNorm"} <= MAKERS
    assert not {"torch.cat", "torch.where", "torch.add", "nn.ReLU", "nn.Module"} & MAKERS


def made_on_the_cpu(tree, within=""):
    """Yield the functions that call one of torch's makers without a device."""
    for node in ast.iter_child_nodes(tree):
        inner = within
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = f"{within}.{node.name}" if within else node.name
        is_maker = isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS
        if is_maker and "device" not in {one.arg for one in node.keywords}:
            yield inner
        yield from made_on_the_cpu(node, inner)


def test_every_tensor_is_made_on_a_device_that_is_named_or_for_a_reason():
    found = {
        f"{path.name}: {function}"
        for path in Path(maskedlinear_torch.__file__).parent.rglob("*.py")
        for function in made_on_the_cpu(ast.parse(path.read_text("utf-8")))
    }
    assert found == set(MADE)
