"""Tensors that are no dense arrays: an input of any layout is what it is to the plain layer, a weight is refused.

Torch only: JAX has no such arrays.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskedlinear_torch as mt

O, I = 6, 4
MASKS = {
    "columns": mt.columns([0, 3]),
    "rows": mt.rows([1, 4]),
    "submatrix": mt.submatrix([1, 5], [0, 2]),
    "blocks": mt.blocks(np.eye(3, 2, dtype=bool), (2, 2)),
    "elements": mt.elements(np.arange(O * I).reshape(O, I) % 5 == 0),
    "all": mt.rows(slice(None)),
    "none": mt.rows([]),
}
NUMBERS = torch.arange(5 * I).reshape(5, I) % 7 - 3.0


def nested(layout):
    return torch.nested.nested_tensor([NUMBERS[:2], NUMBERS[2:]], layout=layout)


INPUTS = {
    "sparse": lambda: NUMBERS.to_sparse(),
    "rows of a sparse one": lambda: NUMBERS.to_sparse_csr(),
    "columns of a sparse one": lambda: NUMBERS.to_sparse_csc(),
    "jagged": lambda: nested(torch.jagged),
    "nested": lambda: nested(torch.strided),
    "of another library": lambda: NUMBERS.to_mkldnn(),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support is in beta state", "ignore:Sparse CSC tensor support is in beta state",
    "ignore:The PyTorch API of nested tensors is in prototype stage",
)  # fmt: skip


def dense(tensor):
    if tensor.is_nested:
        return torch.cat([one.reshape(-1) for one in tensor.unbind()])
    return tensor.to_dense() if tensor.layout is not torch.strided else tensor


def plain_layer():
    plain = nn.Linear(I, O)
    with torch.no_grad():
        plain.weight.copy_(torch.arange(O * I).reshape(O, I) % 5 - 2)
        plain.bias.copy_(torch.arange(O))
    return plain


def learned(layer):
    """The gradient of the weight and of the bias, as a plain layer has them."""
    if isinstance(layer, mt.PackedLinear):
        zeros = torch.zeros(O, I)
        weight = zeros if layer.values.grad is None else mt.unpack(zeros, layer.values.grad, grad_mask=layer.grad_mask)
        return weight, layer.bias.grad
    return layer.weight.grad, layer.bias.grad


@pytest.mark.parametrize("form", ["masked", "packed", "held"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", INPUTS)
def test_an_input_of_any_layout_is_what_it_is_to_the_plain_layer(name, mask, form):
    """Small integers: products are exact, so gradients are compared by bits."""
    plain, x = plain_layer(), INPUTS[name]()
    kind = mt.PackedLinear if form == "packed" else mt.MaskedLinear
    layer = kind.from_linear(copy.deepcopy(plain), grad_mask=MASKS[mask])
    if form == "held":
        mt.hold_frozen(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    layer(NUMBERS)  # the packed layer then has its matrix, and asks little of a call
    want, found = plain(x), layer(x)
    assert (found.layout, found.is_nested) == (want.layout, want.is_nested)
    assert torch.equal(dense(found), dense(want))
    for output in (want, found):
        (dense(output) * (torch.arange(dense(output).numel()).reshape(dense(output).shape) % 3)).sum().backward()
    weight, bias = learned(layer)
    trains = torch.from_numpy(MASKS[mask].to_array((O, I)))
    wanted = torch.where(trains, plain.weight.grad, 0.0)
    assert torch.equal(weight, wanted) if weight is not None else not trains.any()
    assert weight is None or not torch.signbit(weight[~trains]).any()
    assert torch.equal(bias, plain.bias.grad)
    with torch.no_grad():
        assert torch.equal(dense(layer(x)), dense(want))


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "nested"])
def test_reproducible_precision_refuses_what_is_not_dense(name):
    layer = mt.MaskedLinear(I, O, grad_mask=MASKS["rows"], precision="reproducible")
    with pytest.raises(TypeError, match="masked_linear: expected input to be dense, got input of layout "):
        layer(INPUTS[name]())


def test_a_jagged_input_of_other_features_is_told():
    layer = mt.MaskedLinear(I + 1, O, grad_mask=MASKS["rows"])
    for layout in (torch.jagged, torch.strided):
        with pytest.raises(ValueError, match="masked_linear: expected an input with 5 features"):
            layer(nested(layout))


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_a_transformer_that_nests_its_padding_is_the_plain_one(packed):
    """`TransformerEncoder` hands its layers nested tensors in eval mode, if there is padding and nothing to derive."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
    plain = nn.TransformerEncoder(layer, 2).eval()
    masked = mt.mask_linears(copy.deepcopy(plain), {"*.linear?": mt.rows([0, 3])}, packed=packed)
    x, padding = torch.randn(3, 5, 16), torch.arange(5) >= torch.tensor([[5], [3], [4]])
    with torch.no_grad():
        want, found = (one(x, src_key_padding_mask=padding) for one in (plain, masked))
    # Each of the two is torch's own program, one of them fused: four float32 roundings of sums of 32.
    torch.testing.assert_close(found[~padding], want[~padding], rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
@pytest.mark.parametrize("mask", [name for name in MASKS if name != "blocks"])
def test_jagged_tokens_are_looked_up(mask, packed):
    plain = nn.Embedding(O, I)
    tokens = torch.nested.nested_tensor([torch.tensor([1, 5]), torch.tensor([0, 1, 4])], layout=torch.jagged)
    kind = mt.PackedEmbedding if packed else mt.MaskedEmbedding
    layer = kind.from_embedding(copy.deepcopy(plain), grad_mask=MASKS[mask])
    want, found = plain(tokens), layer(tokens)
    assert found.layout is torch.jagged
    assert torch.equal(found.values(), want.values())
    (want.values() * torch.arange(I)).sum().backward()
    trains = torch.from_numpy(MASKS[mask].to_array((O, I)))
    if trains.any():
        (found.values() * torch.arange(I)).sum().backward()
        wanted = torch.where(trains, plain.weight.grad, 0.0)
        grad = (
            mt.unpack(torch.zeros(O, I), layer.values.grad, grad_mask=layer.grad_mask) if packed else layer.weight.grad
        )
        assert torch.equal(grad, wanted)


WEIGHTS = {
    "sparse": (lambda w: w.to_sparse(), TypeError, "expected weight to be dense, got weight of layout sparse_coo"),
    "rows of a sparse one": (lambda w: w.to_sparse_csr(), TypeError, "got weight of layout sparse_csr; make it dense"),
    "blocks of a sparse one": (lambda w: w.to_sparse_bsr((2, 2)), TypeError, "got weight of layout sparse_bsr"),
    "of another library": (lambda w: w.to_mkldnn(), TypeError, "got weight of layout _mkldnn; make it dense"),
    "nested": (lambda w: nested(torch.strided), TypeError, "got weight of layout nested"),
    "jagged": (lambda w: nested(torch.jagged), TypeError, "got weight of layout nested"),
    "of three axes": (lambda w: w[None], ValueError, r"expected a weight of shape \(out_features, in_features\), got"),
}  # fmt: skip


def plain_of(weight, kind=nn.Linear):
    plain = kind(I, O, device="meta") if kind is nn.Linear else kind(O, I, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain


USES = {
    "masked_linear": lambda w: mt.masked_linear(NUMBERS, w, grad_mask=MASKS["rows"]),
    "packed_linear": lambda w: mt.packed_linear(NUMBERS, w, torch.zeros(2, I), grad_mask=MASKS["rows"]),
    "pack": lambda w: mt.pack(w, grad_mask=MASKS["elements"]),
    "unpack": lambda w: mt.unpack(w, torch.zeros(2, I), grad_mask=MASKS["rows"]),
    "MaskedLinear": lambda w: mt.MaskedLinear.from_linear(plain_of(w), grad_mask=MASKS["rows"]),
    "PackedLinear": lambda w: mt.PackedLinear.from_linear(plain_of(w), grad_mask=MASKS["rows"]),
    "MaskedEmbedding": lambda w: mt.MaskedEmbedding.from_embedding(plain_of(w, nn.Embedding), grad_mask=MASKS["rows"]),
    "PackedEmbedding": lambda w: mt.PackedEmbedding.from_embedding(plain_of(w, nn.Embedding), grad_mask=MASKS["rows"]),
    "mask_linears": lambda w: mt.mask_linears(nn.Sequential(plain_of(w)), {"0": MASKS["rows"]}),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_no_dense_matrix_is_refused(name, use):
    make, error, text = WEIGHTS[name]
    with pytest.raises(error, match=text):
        USES[use](make(torch.ones(O, I)))


def test_values_and_biases_that_are_not_dense_are_refused():
    values, bias, mask = torch.ones(2, I), torch.ones(O), MASKS["rows"]
    with pytest.raises(TypeError, match="unpack: expected values to be dense, got values of layout sparse_coo"):
        mt.unpack(torch.ones(O, I), values.to_sparse(), grad_mask=mask)
    with pytest.raises(TypeError, match="masked_linear: expected bias to be dense, got bias of layout sparse_coo"):
        mt.masked_linear(NUMBERS, torch.ones(O, I), bias.to_sparse(), grad_mask=mask, bias_mask=torch.ones(O) > 0)
    with pytest.raises(
        TypeError, match="masked_parameter: expected weight to be dense, got weight of layout sparse_coo"
    ):
        mt.masked_parameter(torch.ones(O, I).to_sparse(), mask)
    plain = nn.Linear(I, O)
    plain.weight = None
    with pytest.raises(TypeError, match="from_linear: expected weight to be an array, got NoneType"):
        mt.MaskedLinear.from_linear(plain, grad_mask=mask)


def test_a_compiled_layer_takes_a_jagged_input():
    layer = mt.MaskedLinear.from_linear(plain_layer(), grad_mask=MASKS["columns"])
    found = torch.compile(layer, backend="aot_eager", fullgraph=True)(nested(torch.jagged))
    assert torch.equal(found.values(), F.linear(NUMBERS, layer.weight, layer.bias))
    found.values().sum().backward()
    assert torch.equal(layer.weight.grad != 0, torch.from_numpy(MASKS["columns"].to_array((O, I))))
