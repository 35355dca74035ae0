"""The private or moving names of both frameworks in the `_compat.py` of parity mean what it needs."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax._src import compiler as jax_compiler
from jax._src.interpreters import mlir as jax_mlir

from parity.execution import _compat as parity_compat
from parity.execution.jax_programs import INLINED, ONCE, SPECIAL, library_of
from parity.explanation import _compat as explanation_compat
from parity.models import _compat as models_compat

W = torch.ones(2, 3)

ATEN = (
    "_fused_rms_norm", "_linalg_det", "_linalg_slogdet", "_linalg_solve_ex", "_log_softmax",
    "_native_batch_norm_legit", "_safe_softmax", "_softmax",
    "_scaled_dot_product_attention_math", "_to_copy", "_unsafe_view", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa", "_upsample_nearest_exact2d",
)  # fmt: skip
"""Private operators of torch that `parity` knows by name (tests/test_private_names.py looks for others)."""


def test_fused_operators_are_taken_apart():
    parts = parity_compat.decomposition_of(torch.ops.aten.gelu.default)
    assert torch.allclose(parts(W), F.gelu(W))
    assert parity_compat.decomposition_of(torch.ops.aten.mm.default) is None


def test_the_code_that_made_an_equation_is_told():
    (equation,) = jax.make_jaxpr(lambda x: x + 1)(1.0).jaxpr.eqns
    assert __file__ in parity_compat.file_names(equation)
    special = jax.make_jaxpr(lambda x: jax.scipy.special.multigammaln(x, 2))(2.0).jaxpr.eqns[0]
    assert "multigammaln" in parity_compat.function_names(special, SPECIAL)
    assert not parity_compat.function_names(equation, SPECIAL)


def test_options_of_xla_reach_eager_operators_and_end_with_the_context():
    operand, usual = jnp.ones((3, 17)), jax_compiler.get_compile_options
    with parity_compat.xla_options({"xla_no_such_option": 1}), pytest.raises(Exception, match="xla_no_such_option"):
        jnp.cos(operand)
    assert jax_compiler.get_compile_options is usual
    with parity_compat.xla_options(parity_compat.known_xla_options(parity_compat.QUICKLY)):
        assert jnp.cos(operand).shape == (3, 17)


def test_operators_are_lowered_in_one_context_in_the_thread_that_asks():
    usual, made = jax_mlir.make_ir_context, []
    with parity_compat.one_ir_context():
        made += [jax_mlir.make_ir_context() for _ in range(2)]
        with ThreadPoolExecutor(1) as pool:
            made.append(pool.submit(jax_mlir.make_ir_context).result())
        with parity_compat.one_ir_context():
            made.append(jax_mlir.make_ir_context())
        made.append(jax_mlir.make_ir_context())
        # Programs of several operators, with types and constants of their own, compile in it.
        assert float(jax.vmap(jnp.sin)(jnp.ones((5, 19))).sum()) == pytest.approx(95 * np.sin(1.0), rel=1e-5)
        assert jnp.sort(jnp.arange(23)[::-1]).tolist() == list(range(23))
    # The nested one may be the first: JAX 0.12 uses a thread's context up to ten times itself.
    first, second, elsewhere, _, after = made
    assert first is second is after
    assert elsewhere is not first
    assert jax_mlir.make_ir_context is usual


def test_options_that_xla_lacks_are_left_out():
    options = {"xla_backend_optimization_level": 0, "xla_no_such_option": True}
    assert parity_compat.known_xla_options(options) == {"xla_backend_optimization_level": 0}


def test_programs_of_torch_are_seen_operator_by_operator():
    seen = []

    class Mode(parity_compat.torch_dispatch_mode()):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(explanation_compat.torch_schema(func).name)
            return func(*args, **(kwargs or {}))

    with Mode():
        F.layer_norm(W, (3,))
    assert seen == ["aten::native_layer_norm"]


def test_primitives_run_with_the_parameters_of_a_jaxpr():
    (equation,) = jax.make_jaxpr(lambda x: x.sum(1))(jnp.ones((2, 3))).eqns
    (found,) = parity_compat.bind(equation, [jnp.ones((2, 3))], equation.params)
    assert found.tolist() == [3, 3]
    (equation,) = jax.make_jaxpr(lambda x: jnp.split(x, 2))(jnp.ones(4)).eqns
    halves = parity_compat.bind(equation, [jnp.arange(4)], equation.params)
    assert [half.tolist() for half in halves] == [[0, 1], [2, 3]]


@jax.custom_vjp
def with_a_backward(x):
    return 2 * x


with_a_backward.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


@jax.custom_jvp
def with_a_tangent(x):
    return 2 * x


with_a_tangent.defjvps(lambda t, y, x: 2 * t)


@pytest.mark.parametrize(
    "function",
    [jax.jit(lambda x: 2 * x), with_a_backward, with_a_tangent, jax.checkpoint(lambda x: 2 * x)],
    ids=["jit", "custom_vjp", "custom_jvp", "checkpoint"],
)
def test_what_is_called_once_is_read_as_a_part_of_its_caller(function):
    (equation,) = jax.make_jaxpr(function)(1.0).eqns
    assert equation.primitive.name in ONCE
    assert len([name for name in INLINED if name in equation.params]) == 1


def test_operands_of_a_scan_are_counted():
    def f(x, fixed):
        return jax.lax.scan(lambda carry, row: ((carry[0] + row, carry[1] * fixed), row), (x[0], x[1]), x)

    (scan,) = [one for one in jax.make_jaxpr(f)(jnp.ones((3, 2)), 2.0).eqns if one.primitive.name == "scan"]
    assert explanation_compat.scan_counts(scan.params) == (1, 2)


def test_numbers_that_are_written_in_a_jaxpr_are_told():
    (equation,) = jax.make_jaxpr(lambda x: x * 2.0)(1.0).eqns
    assert [explanation_compat.is_jax_literal(atom) for atom in equation.invars] == [False, True]


def test_an_operator_sees_numbers_under_every_transformation():
    seen = []

    def batch(operands, axes, **keywords):
        return operator.bind(*operands, **keywords), list(axes)

    operator = models_compat.identity_operator(
        "seeing", lambda *values, **_: seen.append(values) or list(values), batch
    )
    f = lambda x: operator.bind(x, at=1)[0] ** 2  # noqa: E731
    with jax.disable_jit():
        assert jax.grad(f)(3.0) == 6
        assert (jax.vmap(f)(jnp.arange(3.0)) == jnp.arange(3.0) ** 2).all()
    assert [one.shape for (one,) in map(lambda values: map(jnp.asarray, values), seen)] == [(), (3,)]
    assert jax.jit(f)(3.0) == 9  # compiled, it is nothing


def test_notes_of_flax_are_told_from_what_a_user_put_there():
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(1))
            self._hidden = 3

    assert set(models_compat.nnx_attributes(Model())) == {"scale", "_hidden"}


@pytest.mark.parametrize("name", ATEN)
def test_private_operators_of_torch_have_these_names(name):
    assert hasattr(torch.ops.aten, name)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda key: jax.random.bernoulli(key), "_bernoulli"),
        (lambda key: jnp.where(jax.random.uniform(key) > 0, 1.0, 2.0), "_where"),
    ],
    ids=["_bernoulli", "_where"],
)
def test_private_functions_of_jax_have_these_names_in_a_jaxpr(function, name):
    equations = jax.make_jaxpr(function)(jax.random.key(0)).jaxpr.eqns
    assert name in {equation.params.get("name") for equation in equations}


def test_what_jax_nn_made_is_told_from_a_user_s_code():
    (equation, *_) = jax.make_jaxpr(lambda x: jax.nn.gelu(x))(1.0).jaxpr.eqns
    inner = equation.params["jaxpr"].eqns[0] if "jaxpr" in equation.params else equation
    assert library_of(parity_compat.file_names(inner)) == "jax.nn"
    (equation,) = jax.make_jaxpr(lambda x: x + 1)(1.0).jaxpr.eqns
    assert library_of(parity_compat.file_names(equation)) == ""
