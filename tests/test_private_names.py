"""The private or moving names in each _compat.py mean what the library needs; and the upstream faults are still there.

When one of the last tests fails, a work-around can go: its message says which.
"""

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from jax._src import compiler as jax_compiler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.flop_counter import FlopCounterMode

import maskedlinear_torch
from maskedlinear_jax import _compat as jax_compat
from maskedlinear_torch import _compat as torch_compat
from parity.execution import _compat as parity_compat
from parity.explanation import _compat as explanation_compat

W = torch.ones(2, 3)


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
    held = torch.ones(3, 3)
    assert torch_compat.is_held_once(held)
    for other in (held.detach(), held.data, held[0], held.numpy(), held.untyped_storage()):
        assert not torch_compat.is_held_once(held)
        del other
    assert torch_compat.is_held_once(held)
    y = torch.ones(2, 3, requires_grad=True) @ held  # a graph keeps it
    assert not torch_compat.is_held_once(held)
    del y
    assert torch_compat.is_held_once(held)


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
    """Why int8_product pads on a CPU as well."""
    a, b = (torch.arange(1, size + 1, dtype=torch.int8)[:, None] for size in (5, 4))
    assert not torch.equal(torch._int_mm(a, b.T), a.int() @ b.T.int()), "torch._int_mm reads it now: pad on CUDA only"


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


def test_x64_is_seen_as_a_context():
    assert not jax_compat.x64_enabled()
    with jax.enable_x64(True):
        assert jax_compat.x64_enabled()


def test_matmul_precision_is_seen_as_a_context():
    with jax.default_matmul_precision("bfloat16"):
        assert jax_compat.matmul_precision() == "bfloat16"
    assert jax_compat.matmul_precision() != "bfloat16"


def test_tracers_and_devices_are_seen():
    seen = []
    jax.jit(lambda x: seen.append((jax_compat.is_tracer(x), jax_compat.device_of(x))) or x)(jnp.ones(2))
    assert seen == [(True, None)]
    assert not jax_compat.is_tracer(jnp.ones(2))
    assert jax_compat.device_of(jnp.ones(2)) is None  # not committed: JAX may move it
    assert jax_compat.device_of(jax.device_put(jnp.ones(2), jax.devices()[1])) == jax.devices()[1]


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


def test_axes_along_which_an_array_varies():
    seen = []
    mesh = jax.sharding.Mesh(jax.devices(), ("d",))
    part = lambda w, x: seen.append([jax_compat.varying_axes(one) for one in (w, x)]) or x  # noqa: E731
    spec = jax.sharding.PartitionSpec
    jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec(), spec("d")), out_specs=spec("d")))(jnp.ones(3), jnp.ones(8))
    assert seen[0] == [frozenset(), {"d"}]
    assert jax_compat.varying_axes(jnp.ones(3)) == frozenset()


def test_shardings_that_are_part_of_types_are_seen():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    found = jax_compat.explicit_sharding(jax.device_put(jnp.ones(8), sharding))
    assert found.spec == sharding.spec
    assert jax_compat.explicit_sharding(jnp.ones(8)) is None
    hidden = jax.sharding.NamedSharding(jax.sharding.Mesh(jax.devices(), ("d",)), jax.sharding.PartitionSpec("d"))
    assert jax_compat.explicit_sharding(jax.device_put(jnp.ones(8), hidden)) is None


def test_fused_operators_are_taken_apart():
    parts = parity_compat.decomposition_of(torch.ops.aten.gelu.default)
    assert torch.allclose(parts(W), F.gelu(W))
    assert parity_compat.decomposition_of(torch.ops.aten.mm.default) is None


def test_the_code_that_made_an_equation_is_told():
    (equation,) = jax.make_jaxpr(lambda x: x + 1)(1.0).jaxpr.eqns
    assert __file__ in parity_compat.file_names(equation)


def test_options_of_xla_reach_eager_operators_and_end_with_the_context():
    operand, usual = jnp.ones((3, 17)), jax_compiler.get_compile_options
    with parity_compat.xla_options({"xla_no_such_option": 1}), pytest.raises(Exception, match="xla_no_such_option"):
        jnp.cos(operand)
    assert jax_compiler.get_compile_options is usual
    with parity_compat.xla_options(parity_compat.known_xla_options(parity_compat.QUICKLY)):
        assert jnp.cos(operand).shape == (3, 17)


def test_options_that_xla_lacks_are_left_out():
    options = {"xla_backend_optimization_level": 0, "xla_no_such_option": True}
    assert parity_compat.known_xla_options(options) == {"xla_backend_optimization_level": 0}


def test_programs_of_torch_are_seen_operator_by_operator():
    seen = []

    class Mode(explanation_compat.torch_dispatch_mode()):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(explanation_compat.torch_schema(func).name)
            return func(*args, **(kwargs or {}))

    with Mode():
        F.layer_norm(W, (3,))
    assert seen == ["aten::native_layer_norm"]


def test_primitives_run_with_the_parameters_of_a_jaxpr():
    (equation,) = jax.make_jaxpr(lambda x: x.sum(1))(jnp.ones((2, 3))).eqns
    found = explanation_compat.jax_bind(equation.primitive, [jnp.ones((2, 3))], equation.params)
    assert found.tolist() == [3, 3]


def test_a_version_that_answers_wrongly_is_refused_at_the_call(monkeypatch):
    layer = maskedlinear_torch.MaskedLinear(4, 3, grad_mask=maskedlinear_torch.columns([0]), precision="reproducible")
    x = torch.ones(2, 4)
    expected = layer(x)
    monkeypatch.setattr(torch_compat, "VERSION", (2, 12, 0))
    assert torch.equal(layer(x), expected)  # eager answers are right there
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match=r"expected torch 2\.12\.1 or later for this call"):
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


def test_operands_of_a_scan_are_counted():
    def f(x, fixed):
        return jax.lax.scan(lambda carry, row: ((carry[0] + row, carry[1] * fixed), row), (x[0], x[1]), x)

    (scan,) = [one for one in jax.make_jaxpr(f)(jnp.ones((3, 2)), 2.0).eqns if one.primitive.name == "scan"]
    assert explanation_compat.scan_counts(scan.params) == (1, 2)
