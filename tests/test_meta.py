"""Every path of the layer runs on torch's `meta` device, where a tensor made on another device would be refused.

What this shows: whatever the layer makes, it makes on the device of its operands. What a GPU answers is not shown here.
"""

import numpy as np
import pytest
import torch

from maskedlinear_torch import (
    MaskedEmbedding,
    MaskedLinear,
    PackedEmbedding,
    PackedLinear,
    blocks,
    columns,
    elements,
    masked_linear,
    masked_parameter,
    pack,
    packed_linear,
    repack,
    rows,
    submatrix,
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


def test_reproducible():
    layer = MaskedLinear(I, O, grad_mask=columns([0]), device="meta", precision="reproducible")
    layer(meta(5, I)).sum().backward()
    same_places([layer.weight.grad], [layer.weight])
