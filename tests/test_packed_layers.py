"""Packed layers behave as layers (S7, S8): their weight is written through, their matrix is a constant."""

import copy
import enum
import io
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from maskedlinear_core import blocks, columns, elements, rows, submatrix
from maskedlinear_torch import PackedLinear, mask_linears, pack, packed_linear, unmask_linears

O, I = 4, 6
LEARNS = [0, 3]


def made(**keywords):
    return PackedLinear(I, O, grad_mask=columns(LEARNS), seed=0, **keywords)


def has_weight(layer, weight):
    x = torch.randn(3, layer.in_features)
    return (
        torch.equal(layer.weight, weight)
        and torch.equal(layer.values, weight[:, LEARNS])
        and torch.equal(layer(x), linear(x, weight, layer.bias))
    )


def _data_item(layer, new):
    layer.weight.data = new


def _data_in_place(layer, new):
    layer.weight.data += new - layer.weight  # PEFT adds what requires a gradient


def _in_place(layer, new):
    with torch.no_grad():
        layer.weight *= 0
        layer.weight += new


def _by_views(layer, new):
    with torch.no_grad():
        for row, values in zip(layer.weight, new, strict=True):
            row.copy_(values)


def _out(layer, new):
    torch.add(new, 0, out=layer.weight.detach())


WRITES = {
    "copy_": lambda layer, new: layer.weight.data.copy_(new),
    "data": _data_item,
    "data +=": _data_in_place,
    "in place": _in_place,
    "views": _by_views,
    "transposed": lambda layer, new: layer.weight.detach().t().view(I, O).copy_(new.t()),
    "item": lambda layer, new: layer.weight.detach().__setitem__(slice(None), new),
    "out=": _out,
    "foreach": lambda layer, new: torch._foreach_copy_([layer.weight.detach()], [new]),
    "state_dict": lambda layer, new: layer.state_dict()["weight"].copy_(new),
    "load_state_dict": lambda layer, new: layer.load_state_dict({"weight": new, "bias": layer.bias.detach()}),
}


@pytest.mark.parametrize("name", WRITES)
def test_m2_what_is_written_to_the_weight_reaches_the_layer(name):
    layer, new = made(), torch.randn(O, I)
    WRITES[name](layer, new)
    if name in ("data +=",):
        new = layer.weight.detach().clone()
    assert has_weight(layer, new)


def test_m2_a_write_is_rounded_only_where_it_changes():
    layer = made(dtype=torch.bfloat16, values_dtype=torch.float32)
    with torch.no_grad():
        layer.values += 2.0**-20
        before = layer.values.clone()
        layer.weight[1] = 3.0
    assert torch.equal(layer.values[[0, 2, 3]], before[[0, 2, 3]])
    assert (layer.weight[1] == 3).all()


@pytest.mark.parametrize("init", [nn.init.zeros_, nn.init.kaiming_uniform_, nn.init.orthogonal_])
def test_m2_init_functions_reach_the_layer(init):
    layer, plain = made(), nn.Linear(I, O)
    for one in (layer, plain):
        torch.manual_seed(3)
        init(one.weight)
    assert has_weight(layer, plain.weight)


def test_m2_the_bias_is_written_too():
    layer = made(bias_mask=[True, False, True, False])
    nn.init.ones_(layer.bias)
    assert (layer.bias == 1).all()
    assert (layer.bias_values == 1).all()


@pytest.mark.parametrize("bias_mask", [None, [True, False, True, False]], ids=["all", "part"])
def test_m2_augmented_assignment_writes(bias_mask):
    layer = made(bias_mask=bias_mask)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with torch.no_grad():
        layer.weight *= 2
        layer.bias *= 2
    assert torch.equal(layer.weight, 2 * weight)
    assert torch.equal(layer.bias, 2 * bias)


def test_m2_what_cannot_be_written_says_so():
    layer = made()
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"expected weight, which learns, to be written to inside of torch.no_grad"):
        layer.weight.mul_(2)
    for value in (nn.Parameter(before), before):
        with pytest.raises(TypeError, match=r"expected weight to be written to, got an assignment of"):
            layer.weight = value
    with pytest.raises(ValueError, match="read-only"):
        layer.weight.detach().numpy()[:] = 0
    with pytest.raises(ValueError, match=r"expected weight of shape \(4, 6\), got shape \(2, 2\)"):
        layer.weight.data = torch.ones(2, 2)
    assert torch.equal(layer.weight, before)
    weight = layer.weight.detach()
    with torch.no_grad():
        layer.values += 1
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="a weight that was read before the layer changed"):
        weight[0].zero_()
    assert torch.equal(layer.weight, before)
    weight.zero_()  # all of it, which does not go by what was read
    assert torch.equal(layer.weight, torch.zeros(O, I))


@pytest.mark.parametrize("bias_masks", [None, {"q_proj": [True, False, True, False]}], ids=["all", "part"])
def test_m2_what_is_written_to_the_projections_of_attention_reaches_them_and_nothing_replaces_them(bias_masks):
    attention = mask_linears(nn.MultiheadAttention(4, 2), {"q_proj": rows([0])}, packed=True, bias_masks=bias_masks)
    for name in ("in_proj_weight", "in_proj_bias"):
        with torch.no_grad():
            getattr(attention, name).copy_(torch.ones_like(getattr(attention, name)))
            if name == "in_proj_weight":
                attention.in_proj_weight *= 2
            else:
                attention.in_proj_bias *= 2
        assert (getattr(attention, name) == 2).all()
        for value in (nn.Parameter(torch.zeros(12, 4)), torch.zeros(12, 4), None):
            with pytest.raises(
                TypeError, match=rf"^PackedMultiheadAttention: expected {name} to be written to, .*to_attention"
            ):
                setattr(attention, name, value)
        assert (getattr(attention, name) == 2).all()
    x = torch.randn(3, 1, 4)
    plain = attention.to_attention()
    assert (plain.in_proj_weight == 2).all()
    assert torch.equal(attention(x, x, x)[0], plain(x, x, x)[0])


def test_m2_copies_of_the_weight_are_plain():
    layer = made()
    for one in (layer.weight.clone(), layer.weight * 1, copy.deepcopy(layer.weight)):
        assert type(one) is torch.Tensor
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    assert type(torch.load(file, weights_only=True)["weight"]) is torch.Tensor


def test_reset_parameters_draws_what_a_plain_layer_draws():
    layer = made(bias_mask=[True, False, True, False])
    torch.manual_seed(3)
    layer.reset_parameters()
    torch.manual_seed(3)
    plain = nn.Linear(I, O)
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)


def test_requires_grad_of_the_weight_is_that_of_the_values():
    layer = made()
    layer.weight.requires_grad_(False)
    assert not layer.values.requires_grad
    layer.weight.requires_grad = True
    assert layer.values.requires_grad


def test_m6_the_matrix_never_requires_a_gradient():
    model = mask_linears(nn.Sequential(nn.Linear(I, O)), {"0": columns(LEARNS)}, packed=True)
    for one in (model, copy.deepcopy(model), model.to(torch.float64), model.to("meta").to_empty(device="cpu")):
        one.requires_grad_(True)
        for parameter in one.parameters():
            parameter.requires_grad = True
        assert [name for name, p in one.named_parameters() if p.requires_grad] == ["0.values", "0.bias_values"]


def test_a_matrix_that_is_registered_anew_does_not_learn():
    """Torchtitan #3885: who puts each parameter there once more, as a plain one, makes them all learn."""
    layer = PackedLinear(I, O, grad_mask=columns(LEARNS), bias_mask=np.arange(O) < 2)
    before = layer.weight.detach().clone()
    for name, parameter in list(layer._parameters.items()):
        layer.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    assert [name for name, p in layer.named_parameters() if p.requires_grad] == ["values", "bias_values"]
    assert torch.equal(layer.weight, before)
    layer.base = nn.Parameter(layer.base.detach() + 1)
    assert not layer.base.requires_grad
    assert torch.equal(layer.weight[:, 2], before[:, 2] + (0 if 2 in LEARNS else 1))


LAYOUTS = {
    "column-major": torch.randn(64, 96).t(),
    "every other column": torch.randn(96, 128)[:, ::2],
    "some columns": torch.randn(96, 100)[:, 3:67],
    "from an odd address": torch.randn(96 * 64 + 3)[3:].view(96, 64),
    "every other row": torch.randn(192, 64)[::2],
    "some of a column-major one": torch.randn(64, 200)[:, :96].t(),
    "both apart": torch.randn(128, 192)[::2, ::2].t(),
    "one column many times": torch.randn(96, 1).expand(96, 64),
}
KINDS = {
    "columns": columns([1, 5]),
    "rows": rows([3]),
    "submatrix": submatrix([1], [2, 3]),
    "blocks": blocks([[True, False]], (96, 32)),
    "elements": elements(np.random.default_rng(0).random((96, 64)) < 0.1),
    "none": columns([]),
    "all": rows(slice(None)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_m5_the_forward_has_the_bits_of_the_plain_layer_in_every_memory_layout(layout):
    for dtype in (torch.float32, torch.bfloat16):
        plain = nn.Linear(64, 96, dtype=dtype)
        plain.weight = nn.Parameter(LAYOUTS[layout].to(dtype))
        for batch in (1, 5, 64):
            x = torch.randn(batch, 64, dtype=dtype)
            want = plain(x)
            for name, mask in KINDS.items():
                layer = PackedLinear.from_linear(plain, grad_mask=mask)
                values = pack(plain.weight, grad_mask=mask)
                seen = layer(x), packed_linear(x, plain.weight, values, plain.bias, grad_mask=mask)
                assert all(torch.equal(one, want) for one in seen), (name, dtype, batch)


# The matrix with the values in their places is kept between calls.


def copies(layer, run):
    """How often a run made the matrix anew."""
    before = layer._kept
    run()
    return int(layer._kept is not before)


def test_the_matrix_is_made_once_while_its_values_are_the_same():
    layer, x = made(), torch.randn(3, I)
    layer(x)

    def accumulate():
        for _ in range(3):
            layer(x).sum().backward()

    assert copies(layer, accumulate) == 0
    with torch.no_grad():
        assert copies(layer, lambda: layer(x)) == 0


def _sgd(layer):
    torch.optim.SGD([layer.values], lr=0.1).step()


def _inference(layer):
    with torch.inference_mode():
        layer.values.mul_(2)


def _swap(layer):
    torch.utils.swap_tensors(layer.values, nn.Parameter(torch.randn_like(layer.values)))


def _in_thread(layer):
    thread = threading.Thread(target=lambda: layer.values.data.mul_(2))
    thread.start()
    thread.join()


@torch.no_grad()
def _set(layer):
    layer.values.set_(torch.randn_like(layer.values))


@torch.no_grad()
def _from_vector(layer):
    nn.utils.vector_to_parameters(torch.randn(layer.values.numel()), [layer.values])


def _shared_memory(layer):
    layer.values.share_memory_()
    layer.values.data.mul_(2)


@torch.no_grad()
def _positions_of_others(layer):
    layer.grad_mask = columns([2, 4])
    layer.values.add_(1)


CHANGES = {
    "step": _sgd,
    "no_grad": torch.no_grad()(lambda layer: layer.values.mul_(2)),
    "inference mode": _inference,
    "swap_tensors": _swap,
    "another thread": _in_thread,
    "set_": _set,
    "vector_to_parameters": _from_vector,
    "shared memory": _shared_memory,
    "dlpack": lambda layer: torch.from_dlpack(layer.values.detach()).mul_(2),
    "storage": lambda layer: layer.values.untyped_storage().copy_(torch.randn(O * len(LEARNS)).untyped_storage()),
    "another mask": _positions_of_others,
    "half": lambda layer: layer.half().float(),
    "bfloat16": lambda layer: layer.bfloat16().float(),
    "fused": lambda layer: torch.optim.Adam([layer.values], lr=0.1, fused=True).step(),
    "foreach": lambda layer: torch.optim.Adam([layer.values], lr=0.1, foreach=True).step(),
    "data": lambda layer: layer.values.data.add_(1),
    "numpy": lambda layer: layer.values.detach().numpy().__iadd__(1),
    "minus zero": lambda layer: layer.values.data.zero_().neg_(),
    "data =": lambda layer: setattr(layer.values, "data", layer.values.data + 1),
    "base": lambda layer: layer.base.detach().add_(1),
    "base.data": lambda layer: layer.base.data.add_(1),
    "base.data =": lambda layer: setattr(layer.base, "data", torch.randn(O, I)),
    "base.numpy": lambda layer: layer.base.numpy().__iadd__(1),
    "repack": lambda layer: layer.repack(columns([1, 2])),
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Linear(I, O).state_dict()),
    "assign": lambda layer: layer.load_state_dict(nn.Linear(I, O).state_dict(), assign=True),
    "dtype": lambda layer: layer.double().float(),
    "weight": lambda layer: layer.weight.data.mul_(2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_matrix_is_never_an_old_one(name):
    layer, x = made(), torch.randn(3, I)
    layer(x).sum().backward()
    CHANGES[name](layer)
    for _ in range(2):
        weight = layer.base.detach().clone()
        weight[:, layer.grad_mask.to_array((O, I))[0]] = layer.values.detach()
        assert torch.equal(layer(x), linear(x, weight, layer.bias))
    CHANGES[name](layer)
    other = copy.deepcopy(layer)
    assert torch.equal(layer(x), linear(x, layer.weight.detach(), layer.bias))
    with torch.no_grad():
        other.values += 1
    assert torch.equal(layer(x), linear(x, layer.weight.detach(), layer.bias))
    assert torch.equal(other(x), linear(x, other.weight.detach(), other.bias))


class Written(TorchDispatchMode):
    """Operations that make or write a tensor of the weight's size."""

    def __init__(self, size):
        super().__init__()
        self.size, self.names = size, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns)
        if not is_view and any(isinstance(one, torch.Tensor) and one.numel() == self.size for one in tree_leaves(out)):
            self.names.append(str(func))
        return out


MASKS = {
    "columns": columns([0, 3, 11]),
    "rows": rows([1, 8]),
    "submatrix": submatrix([1, 5, 8], [0, 7]),
    "blocks": blocks(np.eye(4, dtype=bool), (3, 4)),
    "elements": elements(np.indices((12, 16)).sum(0) % 5 == 0),
    "few elements": elements(np.indices((12, 16)).sum(0) == 9),
}
WRITTEN = {"submatrix": "aten.index_put_.default", "blocks": "aten.index_put_.default"}
"""What writes changed values into the matrix, where it is not `index_copy_`."""


@pytest.mark.parametrize("name", MASKS)
def test_a_step_writes_its_values_and_copies_nothing(name):
    """Two forwards, a backward and one without gradients write nothing; after a step the values alone are written."""
    torch.manual_seed(0)
    layer, plain, x = PackedLinear(16, 12, grad_mask=MASKS[name]), nn.Linear(16, 12), torch.randn(5, 16)
    optimizer = torch.optim.SGD([layer.values], lr=0.1)

    def run():
        layer(x).sum().backward()
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)

    run()
    for _ in range(3):
        memory = layer._kept.matrix.data_ptr()
        optimizer.step()
        with Written(12 * 16) as written:
            run()
        assert layer._kept.matrix.data_ptr() == memory
        assert written.names == [WRITTEN.get(name, "aten.index_copy_.default")]
        with torch.no_grad():
            plain.weight.copy_(layer.weight.detach())
            plain.bias.copy_(layer.bias)
        assert torch.equal(layer(x), plain(x))


def test_a_copy_is_seen():
    layer, x = PackedLinear(16, 12, grad_mask=columns([1])), torch.randn(5, 16)
    layer(x)
    layer._kept = None
    with Written(12 * 16) as written:
        layer(x)
    assert "aten.index_copy.default" in written.names


def test_a_graph_that_waits_keeps_its_own_matrix():
    """Two graphs, written to behind autograd's back: each gradient is that of its own forward."""
    layer, x = made(), torch.randn(3, I, requires_grad=True)
    weights, outputs = [], []
    for _ in range(3):
        weights.append(layer.weight.detach().clone())
        outputs.append(layer(x))
        layer.values.data.mul_(2)
    for weight, y in reversed([*zip(weights, outputs, strict=True)]):
        assert torch.equal(torch.autograd.grad(y.sum(), x, retain_graph=True)[0], torch.ones(3, O) @ weight)
    layer.requires_grad_(False)  # now the plain product holds the matrix
    outputs, weights = [], []
    for _ in range(2):
        weights.append(layer.weight.detach().clone())
        outputs.append(layer(x))
        layer.values.data.mul_(2)
    for weight, y in zip(weights, outputs, strict=True):
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(3, O) @ weight)


def test_what_is_kept_takes_one_matrix_and_the_values():
    layer, x = PackedLinear(16, 12, grad_mask=columns([1, 5])), torch.randn(5, 16)
    layer(x)
    own = {layer.base.untyped_storage().data_ptr(), layer.values.untyped_storage().data_ptr()}
    kept = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in layer._kept[:3:2]}
    kept[layer._kept.bits.untyped_storage().data_ptr()] = layer._kept.bits.untyped_storage().nbytes()
    assert sum(size for pointer, size in kept.items() if pointer not in own) == (12 * 16 + 12 * 2) * 4


def test_one_layer_called_twice_and_checkpointed_copies_nothing():
    layer, x = PackedLinear(8, 8, grad_mask=columns([1, 5])), torch.randn(5, 8)
    layer(x)
    with Written(64) as written:
        checkpoint(lambda x: layer(layer(x).relu()), x, use_reentrant=False).sum().backward()
    assert written.names == []


def test_fake_tensors_see_no_matrix_of_before():
    layer, x = made(), torch.randn(3, I)
    layer(x)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(layer(torch.randn(3, I))) is FakeTensor
    assert torch.equal(layer(x), linear(x, layer.weight.detach(), layer.bias))


def test_other_values_by_functional_call_are_used():
    layer, x = made(), torch.randn(3, I)
    layer(x)
    other = {"values": torch.randn_like(layer.values), "base": torch.randn(O, I)}
    want = other["base"].index_copy(1, torch.tensor(LEARNS), other["values"])
    assert torch.equal(torch.func.functional_call(layer, other, (x,)), linear(x, want, layer.bias))
    assert torch.equal(layer(x), linear(x, layer.weight.detach(), layer.bias))


def test_a_gradient_of_the_input_is_that_of_the_values_at_the_forward():
    layer, x = made(), torch.randn(3, I, requires_grad=True)
    weight = layer.weight.detach().clone()
    y = layer(x)
    layer(x.detach())
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.ones(3, O) @ weight)


def test_inference_mode_leaves_nothing_that_training_cannot_use():
    layer, x = made(), torch.randn(3, I)
    with torch.inference_mode():
        layer(x)
    layer.requires_grad_(False)
    y = layer(x.requires_grad_())
    y.sum().backward()
    assert x.grad is not None


def test_threads_see_their_own_values():
    layer, x = made(), torch.randn(3, I)
    wrong = []

    def run(one):
        for _ in range(50):
            if not torch.equal(one(x), linear(x, one.weight.detach(), one.bias)):
                wrong.append(one)
            with torch.no_grad():
                one.values.add_(1)

    copied = copy.copy(layer)
    copied._parameters = dict(layer._parameters, values=nn.Parameter(layer.values.detach().clone()))
    threads = [threading.Thread(target=run, args=(one,)) for one in (layer, copied)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("mask", [columns([3, 5]), columns([3, 4, 5])], ids=["same count", "another count"])
def test_h5_a_gradient_moves_with_its_positions(mask):
    layer = made()
    layer(torch.randn(3, I)).sum().backward()
    before = layer.values.grad.clone()
    layer.repack(mask)
    assert torch.equal(layer.values.grad[:, 0], before[:, 1])
    assert not layer.values.grad[:, 1:].any()


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's word on layers that it does not know
def test_peft_over_and_under_a_packed_layer():
    import peft

    torch.manual_seed(0)
    model = mask_linears(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), {"0": columns([0, 1])}, packed=True
    )
    config = peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    config._register_custom_module({PackedLinear: peft.tuners.lora.Linear})
    wrapped = peft.get_peft_model(model, config)
    x = torch.randn(3, 8)
    want, before = wrapped(x).detach(), wrapped.base_model.model[0].base_layer.weight.detach().clone()
    wrapped.merge_adapter()
    assert not torch.equal(wrapped.base_model.model[0].base_layer.weight, before)
    torch.testing.assert_close(wrapped(x), want, rtol=1e-5, atol=1e-6)  # a sum in another order
    wrapped.unmerge_adapter()
    torch.testing.assert_close(wrapped.base_model.model[0].base_layer.weight.detach(), before, rtol=1e-5, atol=1e-6)
    merged = unmask_linears(wrapped.merge_and_unload())
    assert type(merged[0]) is nn.Linear
    torch.testing.assert_close(merged(x), want, rtol=1e-5, atol=1e-6)


def test_peft_registers_no_method_of_another_package():
    # docs/how-to/trainer.md gives this as the reason why there is no adapter type of PEFT's for masks.
    import peft

    with pytest.raises(ValueError, match=r"Unknown PEFT type MASKED"):
        peft.utils.register_peft_method(name="masked", config_cls=peft.PeftConfig, model_cls=None)
    with pytest.raises(TypeError, match=r"extend|members"):
        enum.Enum("More", ["MASKED"], type=peft.PeftType)


class Noise(TorchDispatchMode):
    """A user's mode that changes what operations return."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 1.01 if isinstance(out, torch.Tensor) and out.is_floating_point() else out


@pytest.mark.parametrize("name", MASKS)
def test_what_was_made_under_a_mode_is_not_read_without_it(name):
    layer = PackedLinear(16, 12, grad_mask=MASKS[name], seed=0)
    x = torch.randn(3, 16)
    want = nn.functional.linear(x, layer.weight, layer.bias)
    with Noise():
        layer(x)
    assert torch.equal(layer(x), want)
    with torch.no_grad():
        layer.values.add_(1)
    with Noise():
        layer(x)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_a_layer_made_in_inference_mode_runs():
    with torch.inference_mode():
        layer = PackedLinear(4, 3, grad_mask=columns([1]), seed=0)
        x = torch.ones(2, 4)
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
