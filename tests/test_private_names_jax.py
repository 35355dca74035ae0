"""The private or moving names of JAX and Flax in `_compat.py` mean what the library needs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maskedlinear_jax import _compat as jax_compat


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


def test_an_array_is_laid_out_as_another_where_that_is_part_of_types():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    like, array = jax.device_put(jnp.ones(8), sharding), jnp.arange(8)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda array, like: jax_compat.laid_out_as(array, like))(array, like)
    assert found.sharding.spec == sharding.spec
    assert (found == array).all()
    assert jax_compat.laid_out_as(array, jnp.ones(8)) is array


def test_zeros_that_were_never_computed_are_told():
    seen = []

    @jax.custom_jvp
    def f(x, y):
        return x * y

    def rule(primals, tangents):
        seen.append([jax_compat.is_symbolic_zero(one) for one in tangents])
        return f(*primals), tangents[0] * primals[1]

    f.defjvp(rule, symbolic_zeros=True)
    jax.jvp(lambda x: f(x, 3.0), (2.0,), (1.0,))
    assert seen == [[False, True]]
    assert jax_compat.is_symbolic_zero(np.zeros(2, jax.dtypes.float0))
    assert not jax_compat.is_symbolic_zero(jnp.zeros(2))


def test_what_a_function_does_is_left_to_the_compiler_to_shard():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    x = jax.device_put(jnp.arange(8.0), sharding)
    pick = lambda x: x[jnp.arange(7, -1, -1)]  # noqa: E731
    found = jax.jit(jax_compat.auto_axes(pick, sharding))(x)
    assert found.sharding.spec == sharding.spec
    assert (found == jnp.arange(7.0, -1, -1)).all()
    assert jax_compat.auto_axes(pick, None) is pick


def twice():
    """A primitive that doubles, and the rules that it was asked for."""
    asked = []

    def tangent(primals, tangents):
        asked.append(("tangent", [jax_compat.is_zero(one) for one in tangents]))
        return made.bind(*primals), made.bind(*tangents)

    def transpose(cotangent, operand):
        asked.append(("transpose", jax_compat.is_linear(operand)))
        return [made.bind(cotangent)]

    def lowered(x, platforms):
        asked.append(("lowered", platforms))
        return 2 * x

    made = jax_compat.primitive(
        "twice", lambda x: 2 * x, lowered, lambda x: x,
        lambda operands, axes: (made.bind(*operands), axes[0]), tangent, transpose,
    )  # fmt: skip
    return made, asked


def test_a_primitive_has_a_rule_for_each_transformation():
    made, asked = twice()
    assert isinstance(made, jax_compat.Primitive)
    x = jnp.arange(3.0)
    for f in (made.bind, jax.jit(made.bind), jax.vmap(made.bind)):
        assert (f(x) == 2 * x).all()
    assert jax.grad(made.bind)(3.0) == 2
    assert asked == [("lowered", ("cpu",)), ("tangent", [False]), ("transpose", True)]
    jax.export.export(jax.jit(made.bind), platforms=("tpu", "cuda"))(x)
    assert asked[-1] == ("lowered", ("tpu", "cuda"))


def test_operands_of_a_rule_are_told():
    assert not jax_compat.is_linear(jnp.ones(2))
    seen = []
    both = jax_compat.primitive(
        "both", lambda x, y: x, lambda x, y, platforms: x, lambda x, y: x, None,
        lambda primals, tangents: seen.append([*map(jax_compat.is_zero, tangents)]) or (primals[0], tangents[0]), None,
    )  # fmt: skip
    jax.jvp(lambda x: both.bind(x, 3.0), (2.0,), (1.0,))
    assert seen == [[False, True]]


def test_the_type_of_what_a_function_returns():
    found = jax_compat.output_type(lambda x: x.sum(0).astype(jnp.bfloat16), [jax.typeof(jnp.ones((2, 3)))])
    assert (found.shape, found.dtype) == ((3,), jnp.bfloat16)


def test_a_state_of_nnx_becomes_arrays():
    from flax import nnx

    found = jax_compat.as_pure(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param))
    assert {name: type(leaf).__name__ for name, leaf in found.items()} == {"kernel": "ArrayImpl", "bias": "ArrayImpl"}


UNKNOWN = "own (of which it cannot be told what it moves)"


@pytest.mark.parametrize(("after", "found"), [
    (lambda: optax.add_decayed_weights(0.1), "add_decayed_weights"),
    (lambda: optax.adamw(0.1, weight_decay=0.1), "add_decayed_weights"),
    (lambda: optax.centralize(), "centralize"),
    (lambda: optax.inject_hyperparams(optax.adamw)(0.1), "add_decayed_weights"),
    (lambda: optax.inject_hyperparams(lambda rate: optax.lamb(rate))(rate=0.1), "add_decayed_weights"),
    (lambda: optax.stateless(own), UNKNOWN),
    (lambda: optax.GradientTransformation(optax.identity().init, own), UNKNOWN),
    (lambda: optax.GradientTransformation(optax.identity().init, jax.jit(own)), UNKNOWN),
    (lambda: optax.inject_hyperparams(lambda rate: optax.sgd(rate))(rate=0.1), None),
    (lambda: optax.scale_by_schedule(lambda step: 0.5), None),
    (lambda: optax.scale(2.0), None),
    (lambda: optax.add_decayed_weights(0.0), None),
])  # fmt: skip
def test_what_comes_behind_a_transformation_in_a_chain_is_seen(after, found):
    seen = []

    def update(updates, state, params=None):
        seen.append(jax_compat.found_behind(update.__code__))
        return updates, state

    held = optax.GradientTransformation(lambda params: (), update)
    for chained in (
        optax.chain(held, after()), optax.named_chain(("held", held), ("after", after())),
        optax.masked(optax.named_chain(("held", held), ("after", after())), True), optax.chain(after(), held),
    ):  # fmt: skip
        params = jnp.ones(2)
        chained.update(params, chained.init(params), params)
    found = found and f"{found} later in the chain"
    assert seen == [found, found, found, None]


def test_what_computes_the_parameters_themselves_around_a_transformation_is_seen():
    seen = []

    def update(updates, state, params=None):
        seen.append(jax_compat.found_behind(update.__code__))
        return updates, state

    held = optax.GradientTransformation(lambda params: (), update)
    for around in (optax.contrib.schedule_free(held, 0.1), optax.lookahead(held, 2, 0.5)):
        params = optax.LookaheadParams.init_synced(jnp.ones(2)) if seen else jnp.ones(2)
        around.update(jnp.ones(2), around.init(params), params)
    assert seen == ["schedule_free around it", None]


def own(updates, state, params=None):
    """A transformation of a user, or what it does."""
    return updates if params is None else (updates, state)


def test_the_steps_of_a_traced_program_can_be_evaluated_one_by_one():
    @jax.custom_jvp
    def doubled(x):
        return 2 * x

    doubled.defjvp(lambda primals, tangents: (2 * primals[0], 2 * tangents[0]))

    def program(x):
        turns = jax.lax.while_loop(lambda pair: pair[1] < 3, lambda pair: (pair[0] + 1, pair[1] + 1), (x, 0))[0]
        low, high = jax.lax.cond(x[0] > 0, lambda x: (x, 2 * x), lambda x: (2 * x, x), x)
        summed = jax.lax.scan(lambda total, one: (total + one, total), jnp.float32(0), x)
        return doubled(turns), jnp.where(x > 1, low, high), summed, jax.jit(jnp.sort)(-x)

    x = jnp.array([1.0, 2.0, 3.0])
    traced = jax.make_jaxpr(program)(x)
    values = dict(zip([*traced.jaxpr.constvars, *traced.jaxpr.invars], [*traced.consts, x], strict=True))
    read = lambda atom: atom.val if hasattr(atom, "val") else values[atom]  # noqa: E731
    for step in traced.jaxpr.eqns:
        results = jax_compat.evaluate(step, [read(atom) for atom in step.invars])
        values |= zip(step.outvars, results, strict=True)
    wanted = jax.tree.leaves(program(x))
    for atom, one in zip(traced.jaxpr.outvars, wanted, strict=True):
        np.testing.assert_array_equal(read(atom), one)
