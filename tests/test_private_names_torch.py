"""The private or moving names of torch in `_compat.py` mean what the library needs; upstream faults are still there.

When a test with "still" in its name fails, a work-around can go: its message says which.
"""

import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

import maskedlinear_torch
from maskedlinear_torch import _compat as torch_compat

W = torch.ones(2, 3)


def test_the_parameters_that_a_wrapper_averages_are_told():
    """In one process: `DistributedDataParallel` says in its forward who it is, and what it found when it was made."""
    seen = []

    class Model(torch.nn.Linear):
        def forward(self, x):
            seen.append(torch_compat.active_ddp())
            return super().forward(x)

    model = Model(2, 3)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        wrapped(torch.ones(1, 2))
        model(torch.ones(1, 2))
        assert seen[0] is wrapped
        assert seen[1] is None
        assert [id(one) for one in torch_compat.parameters_of_ddp(wrapped)] == [id(one) for one in model.parameters()]
    finally:
        torch.distributed.destroy_process_group()


def test_functorch_transforms_are_seen():
    seen = []

    def f(w):
        seen.append(torch_compat.in_functorch_transform())
        return w.sum()

    f(W)
    torch.func.grad(f)(W)
    torch.func.vmap(f)(W)
    torch.func.jvp(f, (W,), (W,))
    assert seen == [False, True, True, True]


def test_functorch_transforms_are_seen_by_the_compiler():
    def f(w):
        return w.sum() * (2 if torch_compat.in_functorch_transform() else 3)

    assert torch.compile(f, fullgraph=True, backend="eager")(W) == 18
    assert (torch.compile(lambda w: torch.func.grad(f)(w), fullgraph=True, backend="eager")(W) == 2).all()


def test_dispatch_modes_are_seen():
    assert not torch_compat.in_dispatch_mode()
    with FlopCounterMode(display=False):
        assert torch_compat.in_dispatch_mode()
    with FakeTensorMode():
        assert torch_compat.in_dispatch_mode()
    assert not torch_compat.in_dispatch_mode()


def test_a_mode_that_makes_other_tensors_is_told_from_one_that_looks_on():
    with FlopCounterMode(display=False):
        assert torch_compat.in_dispatch_mode()
        assert not torch_compat.in_tracing_mode()
        with FakeTensorMode():
            assert torch_compat.in_tracing_mode()
    assert not torch_compat.in_tracing_mode()


def test_who_holds_a_tensor_is_counted():
    """From Python 3.14 on a local name may hold without being counted: there nothing is taken for held once."""
    counts = sys.version_info < (3, 14)
    held = torch.ones(3, 3)
    assert torch_compat.is_held_once(held) == counts
    for other in (held.detach(), held.data, held[0], held.numpy(), held.untyped_storage()):
        assert not torch_compat.is_held_once(held)
        del other
    assert torch_compat.is_held_once(held) == counts
    y = torch.ones(2, 3, requires_grad=True) @ held  # a graph keeps it
    assert not torch_compat.is_held_once(held)
    del y
    assert torch_compat.is_held_once(held) == counts


def test_memory_is_compared():
    a = torch.tensor([0.0, float("nan"), 1.0])
    b = a.clone()
    assert torch_compat.MEMCMP is not None
    assert torch_compat.MEMCMP(a.data_ptr(), b.data_ptr(), a.nbytes) == 0
    b[0] = -0.0
    assert torch_compat.MEMCMP(a.data_ptr(), b.data_ptr(), a.nbytes) != 0


def test_step_hooks_of_others_are_seen():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    assert not torch_compat.has_step_hooks(optimizer)
    add = (optimizer.register_step_pre_hook, optimizer.register_step_post_hook,
           register_optimizer_step_pre_hook, register_optimizer_step_post_hook)  # fmt: skip
    for one in add:
        handle = one(lambda *_: None)
        assert torch_compat.has_step_hooks(optimizer)
        handle.remove()
        assert not torch_compat.has_step_hooks(optimizer)


def test_lbfgs_begins_anew_with_other_parameters():
    old, new = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.LBFGS([old], lr=0.1)
    optimizer.step(lambda: (old * old).sum())
    optimizer.param_groups[0]["params"] = [new]
    torch_compat.restart_lbfgs(optimizer)

    def loss():
        optimizer.zero_grad()
        found = new.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    assert (new != 1).all()


def test_autocast_is_seen():
    assert not torch_compat.in_autocast()
    for device in ("cpu", "cuda"):
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cpu"):
            assert torch_compat.in_autocast() == (device == "cpu")
    assert not torch_compat.in_autocast()


def test_a_write_can_be_counted_without_one():
    w = W.clone()
    first = torch_compat.version(w)
    torch_compat.count_write(w)
    assert torch_compat.version(w) == first + 1


def test_writes_in_place_are_counted_but_for_those_to_data():
    w = W.clone()
    first = torch_compat.version(w)
    w.mul_(2)
    w.detach().mul_(2)
    assert torch_compat.version(w) == first + 2
    w.data.mul_(2)
    w.data = W.clone()
    assert torch_compat.version(w) == first + 2, "if these count, FrozenEntries.read may leave unseen writes out"


def test_batched_cotangents_are_seen():
    seen = []
    w = W.clone().requires_grad_()
    y = w * 2
    y.register_hook(lambda g: seen.append((torch_compat.is_batched_by_autograd(g), torch_compat.in_transform())))
    torch.autograd.grad(y, w, torch.ones(4, 2, 3), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(y, w, torch.ones(2, 3))
    assert seen == [(True, False), (False, False)], "if a transform is seen, is_batched_by_autograd can go"


def test_functions_of_a_subclass_can_be_passed_by():
    class Refusing(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            raise AssertionError

    one = W.as_subclass(Refusing)
    with torch_compat.no_torch_function():
        assert type(one + 1) is torch.Tensor
        assert type(one.add_(0)) is Refusing


def test_dual_levels_are_seen():
    assert not torch_compat.in_dual_level()
    with forward_ad.dual_level():
        assert torch_compat.in_dual_level()
    assert not torch_compat.in_dual_level()


def test_dual_levels_are_seen_by_the_compiler_again_and_again():
    f = torch.compile(lambda w: w * (2 if torch_compat.in_dual_level() else 3), fullgraph=True, backend="eager")
    assert (f(W) == 3).all()
    with forward_ad.dual_level():
        assert (f(W) == 2).all()
    assert (f(W) == 3).all()


def test_a_function_can_be_constant_to_the_compiler():
    ran = []

    def probe():
        ran.append(torch.compiler.is_compiling())
        return 2

    probe = torch_compat.constant_to_compiler(probe)
    assert (torch.compile(lambda w: w * probe(), fullgraph=True, backend="eager")(W) == 2).all()
    assert ran
    assert vars(torch.compiler.assume_constant_result(lambda: 2)) == vars(probe)


@pytest.mark.parametrize("shape", [(5, 17, 3), (1, 1, 1), (3, 0, 2), (0, 4, 3), (30, 1, 4)])
def test_int8_product(shape):
    m, k, n = shape
    a, b = (torch.randint(-128, 128, size, dtype=torch.int8) for size in ((2, m, k), (2, n, k)))
    product = torch_compat.int8_product(a, b.transpose(1, 2))
    assert torch.equal(product, (a.long() @ b.transpose(1, 2).long()).int())
    assert torch.equal(torch_compat.int8_product(a[0], b[0].T), product[0])


def test_int8_product_still_misreads_one_column():
    """Why int8_product pads on a CPU as well. A CPU without AVX512 has another kernel, which reads it."""
    a, b = (torch.arange(1, size + 1, dtype=torch.int8)[:, None] for size in (5, 4))
    is_right = torch.equal(torch._int_mm(a, b.T), a.int() @ b.T.int())
    has_kernel = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert not (is_right and has_kernel), "torch._int_mm reads it now: pad on CUDA only"


def test_hardshrink_writes_in_place():
    tensor = torch.tensor([2.0, -0.0, 1e-3, float("nan")], dtype=torch.float64)
    assert torch_compat.hardshrink_(tensor, 0.5) is tensor
    assert str(tensor.tolist()) == "[2.0, 0.0, 0.0, nan]"
    batched = torch.func.vmap(lambda row: torch_compat.hardshrink_(row * 1, 0.5))(tensor[None, :3])
    assert batched.tolist() == [[2, 0, 0]]


def test_hooks_are_where_they_are_taken_from():
    """All of a fresh module's attributes that tell of hooks, but those of its state_dict."""
    names = {name for name in vars(torch.nn.Linear(1, 1)) if "hook" in name and "state_dict" not in name}
    assert names == set(torch_compat._HOOKS)


class _Plain(torch.autograd.Function):
    """sin by a rule of its own, without any work-around."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)
        ctx.save_for_backward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return x.cos() * tangent

    @staticmethod
    def backward(ctx, g):
        return 0 * g


def test_nested_forward_mode_is_still_wrong_upstream():
    second = torch.func.jacfwd(torch.func.jacfwd(_Plain.apply))(torch.tensor(1.0))
    assert second == 0, "pytorch #197867 is mended: _compat.forward_mode_enabled can go from maskedlinear_torch/rule.py"


def test_dynamo_still_drops_the_backward_under_torch_func():
    class Zero(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return 2 * x

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            return 0 * g

    def gradient(x):
        return torch.func.grad(lambda x: Zero.apply(x))(x)

    x = torch.tensor(1.0)
    assert gradient(x) == 0
    compiled = torch.compile(gradient, fullgraph=True, backend="eager")(x)
    assert compiled == 2, "Dynamo keeps an autograd.Function's backward now: rule.reference may be dropped"


def test_the_compiler_still_adds_inside_of_a_product():
    """Why engines.py rounds integers that are integers already: the sum of two products may become one product's."""
    draw = torch.Generator().manual_seed(0)
    x, high, low = (torch.randint(-(2**bits), 2**bits, (16, 4096), generator=draw).double() for bits in (27, 13, 13))

    def total(x, high, low):
        return (x @ high.T) * 2.0**14 + x @ low.T

    compiled = torch.compile(total)(x, high, low)
    assert (compiled != total(x, high, low)).any(), "inductor keeps two products apart now: round() may go"


def test_linear_under_vmap_is_what_the_rule_relies_on():
    x = torch.randn(4, 3)
    torch.testing.assert_close(torch.func.vmap(lambda x: F.linear(x, W))(x), F.linear(x, W))


def test_a_version_that_answers_wrongly_is_refused_at_the_call(monkeypatch):
    layer = maskedlinear_torch.MaskedLinear(4, 3, grad_mask=maskedlinear_torch.columns([0]), precision="reproducible")
    x = torch.ones(2, 4)
    expected = layer(x)
    monkeypatch.setattr(torch_compat, "VERSION", (2, 12, 0))
    assert torch.equal(layer(x), expected)  # eager answers are right there
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"\w+: expected torch 2\.12\.1 or later for this call"):
        torch.compile(layer, backend="eager", fullgraph=True)(x)


def test_the_dispatch_modes_that_are_on():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    assert torch_compat.dispatch_modes() == ()
    with Mode() as outer, Mode() as inner:
        assert torch_compat.dispatch_modes() == (outer, inner)


def test_a_pre_hook_is_removed_by_what_it_calls():
    linear, calls = torch.nn.Linear(1, 1), []
    linear.register_forward_pre_hook(calls.append)
    linear.register_forward_pre_hook(print)
    torch_compat.remove_pre_hook(linear, print)
    assert len(linear._forward_pre_hooks) == 1


def test_the_version_has_three_numbers():
    assert tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:3]) == torch_compat.VERSION


def test_views_are_told_with_what_they_are_of():
    w = W.clone()
    assert torch_compat.viewed(w) is None
    assert torch_compat.viewed(w[0]) is w
    assert torch_compat.viewed(w.T[1:]) is w
    assert torch_compat.viewed(w.detach()) is None  # for autograd it is no view
    with torch.no_grad():
        assert torch_compat.viewed(w[0]) is w


def test_tensors_of_inference_mode_have_no_count():
    with torch.inference_mode():
        w = W.clone()
    assert torch_compat.version(w) == 0
    with pytest.raises(RuntimeError, match="version counter"):
        torch_compat.writes(w)


def test_recording_of_torch_jit_is_seen():
    seen = []

    def f(w):
        seen.append(torch_compat.is_traced_by_jit())
        return w + 1

    f(W)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.trace(f, (W,), check_trace=False)
    assert seen == [False, True]


def test_what_watches_a_call_is_seen():
    seen = []

    def f(w):
        seen.append(torch_compat.is_watched())
        return w + 1

    f(W)
    torch.func.vmap(f)(W)
    with forward_ad.dual_level():
        f(W)
    with FlopCounterMode(display=False):
        f(W)
    with torch.autocast("cpu", torch.bfloat16):
        f(W)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        torch.jit.trace(f, (W,), check_trace=False)
    f(W)
    assert seen == [False, True, True, True, True, True, False]


def test_what_a_transform_left_behind_is_what_it_stands_for():
    left = []
    torch.func.grad(lambda w: left.append(w) or w.sum())(W)
    assert torch_compat.unwrapped(left[0]) is not left[0]
    assert torch.equal(torch_compat.unwrapped(left[0]), W)
    assert torch_compat.unwrapped(W) is W


def test_buffers_of_a_state_dict():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Module())
    model[1].register_buffer("kept", torch.ones(1))
    model[1].register_buffer("left_out", torch.ones(1), persistent=False)
    names = set(model.state_dict()) - {name for name, _ in model.named_parameters()}
    assert set(torch_compat.persistent_buffers(model)) == names
    assert torch_compat.persistent_buffers(model)["1.kept"] is model[1].kept


def test_no_mode_sees_what_is_called_without_dispatch():
    with FlopCounterMode(display=False) as counter:
        with torch_compat.no_dispatch():
            W @ W.T
        assert counter.get_total_flops() == 0
        W @ W.T
    assert counter.get_total_flops() == 24


@pytest.mark.parametrize("mapped", [False, True], ids=["alone", "inside of vmap"])
def test_a_tangent_is_left_out(mapped):
    def f(w):
        return torch_compat.primal(w) * w

    w = torch.full((2, 3), 3.0)
    value, tangent = torch.func.jvp(torch.func.vmap(f) if mapped else f, (w,), (W,))
    assert (value == 9).all()
    assert (tangent == 3).all()


def test_weights_of_attention_are_told():
    assert torch_compat.has_joint_projection(torch.nn.MultiheadAttention(4, 2))
    assert not torch_compat.has_joint_projection(torch.nn.MultiheadAttention(4, 2, kdim=3))


def test_lbfgs_alone_keeps_a_list_of_its_parameters():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert torch_compat.stepped_with(torch.optim.SGD([parameter], lr=0.1)) is None
    (kept,) = torch_compat.stepped_with(torch.optim.LBFGS([parameter]))
    assert kept is parameter


def test_bits_are_read_under_vmap():
    bits = torch_compat.view_bits(W, torch.int32)
    assert torch.equal(bits, W.view(torch.int32))
    assert torch.equal(torch.func.vmap(lambda row: torch_compat.view_bits(row, torch.int32))(W), bits)


def test_hooks_are_handed_on_and_removed_by_their_handles():
    old, new, seen = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1), []
    handles = [
        old.register_forward_pre_hook(lambda *_: seen.append("before")),
        old.register_forward_hook(lambda *_, **__: seen.append("after"), with_kwargs=True),
        old.register_full_backward_hook(lambda *_: seen.append("backward")),
    ]
    torch_compat.take_hooks(new, old)
    new(W.clone().requires_grad_()).sum().backward()
    assert seen == ["before", "after", "backward"]
    for handle in handles:
        handle.remove()
    new(W)
    assert len(seen) == 3


def test_what_others_note_on_a_module_is_handed_on_and_back():
    old, new, plain = (torch.nn.Linear(1, 1) for _ in range(3))
    old.noted = "here"
    torch_compat.take_attributes(new, old)
    assert (new.noted, new._noted) == ("here", ("noted",))
    torch_compat.give_attributes_back(plain, new)
    assert plain.noted == "here"
    assert set(vars(plain)) == set(vars(old))


@pytest.fixture
def mesh():
    """One process that is all of a mesh."""
    group = torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    assert group is None
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_tensors_of_a_mesh_are_told(mesh):
    assert torch_compat.is_group(mesh.get_group())
    assert not torch_compat.is_group("data")
    cut = distribute_tensor(W, mesh, [Shard(0)])
    assert torch_compat.is_distributed(cut)
    assert not torch_compat.is_distributed(W)
    again = torch_compat.cut_like(W, cut)
    assert again.placements == cut.placements
    whole = torch_compat.replicate_like(cut)(W)
    assert whole.placements == (Replicate(),)
    assert torch_compat.replicate_like(cut)(None) is None
    assert torch_compat.placed_like(whole, cut).placements == (Shard(0),)


def test_parts_of_a_mesh_are_indexed_where_they_are_whole(mesh):
    index = torch_compat.replicate_like(distribute_tensor(W, mesh, [Shard(0)]))(torch.tensor([2, 0]))
    pick = lambda part, index: part[:, index]  # noqa: E731
    for placed, after in ((Shard(0), Shard(0)), (Shard(1), Replicate())):
        numbers = torch.arange(6.0).reshape(2, 3)
        found = torch_compat.on_each_device(pick, distribute_tensor(numbers, mesh, [placed]), index, -1)
        assert found.placements == (after,)
        assert torch.equal(found.full_tensor(), numbers[:, [2, 0]])


def test_terms_of_a_sum_are_added_up_in_both_directions(mesh):
    terms = DTensor.from_local(W.clone(), mesh, [Partial()]).requires_grad_()
    whole = torch_compat.summed(terms * 1)
    assert whole.placements == (Replicate(),)
    whole.sum().backward()
    assert torch.equal(terms.grad.full_tensor(), W)


def test_forward_mode_is_off_in_a_rule_and_can_be_switched_on():
    seen = []

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 1

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def jvp(ctx, tangent):
            seen.append(torch._C._is_fwd_grad_enabled())
            with torch_compat.forward_mode_enabled():
                seen.append(torch._C._is_fwd_grad_enabled())
            return tangent * 1

    torch.func.jvp(Rule.apply, (W,), (W,))
    assert seen == [False, True]


def test_a_module_keeps_what_it_has_in_three_dicts():
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    assert set(module._modules) == {"0"}
    assert set(module[0]._parameters) == {"weight", "bias"}
    assert set(module[0]._buffers) == {"running_mean", "running_var", "num_batches_tracked"}


def test_what_a_module_overrides_is_called_for_moves_and_files():
    seen = []

    class Noting(torch.nn.Linear):
        def _apply(self, *args, **keywords):
            seen.append("apply")
            return super()._apply(*args, **keywords)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            seen.append(("save", prefix))
            super()._save_to_state_dict(destination, prefix, keep_vars)

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
            seen.append(("load", prefix))
            super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    model = torch.nn.Sequential(Noting(2, 2))
    model.double()
    model.load_state_dict(model.state_dict())
    assert seen == ["apply", ("save", "0."), ("load", "0.")]
