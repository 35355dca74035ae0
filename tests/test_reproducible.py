"""The reproducible precision: one answer, whatever the setting, the order or the cut (contract S9)."""

import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from maskedlinear_core import accuracy_bound, columns, elements, guard
from maskedlinear_jax import integer_products as jax_engines
from maskedlinear_torch import integer_products as torch_engines
from parity.suites.masked_linear import numbers
from tests.dots import ENGINES, MASK, bits, draw, gradients, jax_dot, oracle, same, torch_dot


@pytest.fixture(scope="module")
def problem():
    return (
        draw("exponents 6", (40, 96)),
        draw("exponents 6", (24, 96), 1),
        draw("normal", 24, 2),
        draw("normal", (40, 24), 3),
    )


@pytest.fixture(scope="module")
def want(problem):
    return gradients("torch", *problem, MASK)


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_one_answer_in_both_twins_and_from_every_kind(twin, problem, want):
    """`columns` gives the very bits that `elements` of the same positions gives."""
    assert same(gradients(twin, *problem, MASK), want)
    assert same(gradients(twin, *problem, elements(MASK.to_array((24, 96)))), want)
    for engine in ENGINES:
        assert same(gradients(twin, *problem, MASK, mt.reproducible(engine=engine)), want)


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_order_of_the_terms(twin, problem, want):
    x, w, b, g = problem
    order, rows = np.random.default_rng(0).permutation(96), np.random.default_rng(1).permutation(40)
    y, d_x, d_w, d_b = gradients(
        twin, x[rows][:, order], w[:, order], b, g[rows], elements(MASK.to_array((24, 96))[:, order])
    )
    back, turn = np.argsort(order), np.argsort(rows)
    assert same([y[turn], d_x[turn][:, back], d_w[:, back], d_b], want)


@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_batch_in_pieces_and_rows_alone(twin, problem, want):
    """What does not sum over the batch does not know it."""
    x, w, b, g = problem
    for piece in (slice(0, 1), slice(1, 14), slice(14, 40)):
        y, d_x, _, _ = gradients(twin, x[piece], w, b, g[piece], MASK)
        assert same([y, d_x], [part[piece] for part in want[:2]])
    some = [3, 0, 17]
    y, _, d_w, d_b = gradients(twin, x, w[some], b[some], g[:, some], MASK)
    assert same([y, d_w, d_b], [want[0][:, some], want[2][some], want[3][some]])


def test_batch_shapes_and_vmap(problem, want):
    x, w, b, _ = problem
    layer = lambda x: mt.masked_linear(x, torch.tensor(w), torch.tensor(b), grad_mask=MASK, precision="reproducible")  # noqa: E731
    assert same([bits(layer(torch.tensor(x).reshape(2, 5, 4, 96)).reshape(40, 24))], want[:1])
    assert same([bits(torch.func.vmap(layer)(torch.tensor(x)))], want[:1])
    assert same([bits(torch.stack([layer(row) for row in torch.tensor(x)]))], want[:1])
    inside = lambda x: mj.masked_linear(x, jnp.asarray(w), jnp.asarray(b), grad_mask=MASK, precision="reproducible")  # noqa: E731
    assert same([bits(jax.vmap(inside)(jnp.asarray(x)))], want[:1])


def test_threads(problem, want):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert same(gradients("torch", *problem, MASK), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("setting", ["medium", "high", "highest"])
def test_matmul_precision(setting, problem, want):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        for engine in ENGINES:
            assert same(gradients("torch", *problem, MASK, mt.reproducible(engine=engine)), want)
    finally:
        torch.set_float32_matmul_precision(before)
    with jax.default_matmul_precision({"medium": "bfloat16", "high": "tensorfloat32", "highest": "float32"}[setting]):
        assert same(gradients("jax", *problem, MASK), want)


@pytest.mark.parametrize("x64", [False, True])
def test_x64(x64, problem, want):
    with jax.enable_x64(x64):
        found = gradients("jax", *problem, MASK)
    assert same(found, want)


def test_flushing_of_subnormals():
    x, w, b, g = draw("subnormal", (8, 12)), draw("tiny", (5, 12), 1), draw("tiny", 5, 2), draw("tiny", (8, 5), 3)
    want = gradients("torch", x, w, b, g, columns([1]))
    if torch.set_flush_denormal(True):
        try:
            assert same(gradients("torch", x, w, b, g, columns([1])), want)
        finally:
            torch.set_flush_denormal(False)
    assert same(gradients("jax", x, w, b, g, columns([1])), want)


CHILD = """
import json
from parity.suites.masked_linear import cases, golden
print(json.dumps([golden.answers(cases.BY_ID["large-columns"], "float32", name, "cpu") for name in ("torch", "jax")]))
"""
SETTINGS = {
    "as it is": {},
    "SSE4.2 in torch": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
                        "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
             "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "SSE4.2 in XLA": {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"},
    "one thread": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"},
    "without jit": {"JAX_DISABLE_JIT": "1"},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_instruction_sets(name):
    """The golden hashes of a large product, in a process of its own with other settings."""
    from parity.suites.masked_linear import golden

    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"} | SETTINGS[name]
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
    seen = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment, check=False)
    assert seen.returncode == 0, seen.stderr[-2000:]
    assert json.loads(seen.stdout) == [golden.load()["large-columns/float32"]] * 2


# Guards.


def test_known_answer_is_that_of_exact_arithmetic():
    x, w, y = guard.problem()
    assert (bits(y) == oracle(x, w)).all()
    for found in (torch_dot(x, w), jax_dot(x, w)):
        assert guard.difference(found) == ""


def test_a_wrong_answer_is_told():
    y = guard.problem().y.copy()
    y[0, 1] = np.nextafter(y[0, 1], np.float32(0))
    assert guard.difference(y).startswith("1 of 40 differ, e.g. ")
    y = guard.problem().y.copy()
    y[y == 0] = -0.0
    assert guard.difference(y)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("twin", ["torch", "jax"])
def test_a_device_that_is_not_exact_is_refused(twin, engine, monkeypatch):
    """As with TF32 or fast-math: the products lose bits."""
    module, engines = {"torch": (mt, torch_engines), "jax": (mj, jax_engines)}[twin]
    from maskedlinear_jax import engine_choice as jax_choice
    from maskedlinear_torch import engine_choice as torch_choice

    for cache in (torch_choice._tested, jax_choice._known_answer):
        cache.cache_clear()
    name, error = ("_power", 2.0**-40) if engine == "float64" else ("_small_power", 2.0**-20)
    real = getattr(engines, name)
    monkeypatch.setattr(engines, name, lambda *args: real(*args) * (1 + error))
    array = {"torch": torch.ones, "jax": jnp.ones}[twin]
    jax.clear_caches()
    try:
        with pytest.raises(RuntimeError, match=rf"expected exact {engine} sums on .*known-answer test"):
            module.masked_linear(
                array((2, 3)), array((4, 3)), grad_mask=columns([0]), precision=module.reproducible(engine=engine)
            )
    finally:
        monkeypatch.undo()
        jax.clear_caches()
        for cache in (torch_choice._tested, jax_choice._known_answer):
            cache.cache_clear()


FAST = """
import jax, jax.numpy as jnp, maskedlinear_jax as mj
mj.masked_linear(jnp.ones((2, 3)), jnp.ones((4, 3)), grad_mask=mj.columns([0]), precision="reproducible")
"""


def test_fast_math_is_refused_or_right():
    """XLA's fast-math loses NaN: the known-answer test sees it."""
    flags = "--xla_cpu_enable_fast_math=true --xla_cpu_fast_math_honor_nans=false --xla_cpu_fast_math_honor_infs=false"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parent.parent)}
    seen = subprocess.run([sys.executable, "-c", FAST], capture_output=True, text=True, env=environment, check=False)
    assert seen.returncode != 0
    assert "expected exact float64 sums" in seen.stderr


WRONG = {
    "another word": ({"precision": "exact"}, ValueError, "expected precision to be 'native', 'reproducible'"),
    "no word": ({"precision": 3}, TypeError, "expected precision to be 'native', 'reproducible'"),
    "too many bits": (
        {"precision": mt.reproducible(bits=48)},
        ValueError,
        "expected at most bits=47 for sums of 4 terms",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_precision(twin, name):
    keywords, error, match = WRONG[name]
    x, w = twin.array(np.ones((2, 3))), twin.array(np.ones((4, 3)))
    with pytest.raises(error, match=match):
        twin.masked_linear(x, w, grad_mask=columns([0]), **keywords)


@pytest.mark.parametrize(("bits_", "engine", "error", "match"), [
    (0, "auto", ValueError, "expected bits to be at least 1, got 0"),
    (1.5, "auto", TypeError, "expected bits to be an integer or None, got 1.5"),
    (None, "int4", ValueError, "expected engine to be one of auto, float64, float32, int8, got 'int4'"),
])  # fmt: skip
def test_wrong_settings(bits_, engine, error, match):
    with pytest.raises(error, match=match):
        mt.reproducible(bits=bits_, engine=engine)


def test_float64_is_refused(twin):
    with jax.enable_x64(True):
        x, w = twin.array(np.ones((2, 3)), "float64"), twin.array(np.ones((4, 3)), "float64")
        with pytest.raises(
            TypeError, match="expected float32, bfloat16 or float16 for precision='reproducible', got float64"
        ):
            twin.masked_linear(x, w, grad_mask=columns([0]), precision="reproducible")


def test_one_canonical_nan(twin):
    """Whatever the payload and the sign that go in."""
    for payload in (0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF, 0x7F800000):
        x = np.array([[payload, 0]], np.uint32).view(np.float32)
        x[0, 1] = 1
        y = twin.masked_linear(
            twin.array(x),
            twin.array(np.ones((2, 2))),
            twin.array(-x[0]),
            grad_mask=columns([0]),
            precision="reproducible",
        )
        assert (bits(y.detach() if twin.name == "torch" else y) == 0x7FC00000).all()


# Accuracy.


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(numbers.KINDS)), st.integers(0, 80), st.integers(0, 2**31), st.sampled_from([None, 40]))
def test_accuracy_bound_holds(kind, length, seed, p):
    x, w = draw(kind, (3, length), seed), draw(kind, (2, length), seed + 1)
    bound, y = accuracy_bound(x, w, bits=p), torch_dot(x, w, bits=p)
    for i in range(3):
        for j in range(2):
            if np.isfinite(x[i]).all() and np.isfinite(w[j]).all() and np.isfinite(bound[i, j]):
                exact = sum(
                    (Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x[i], w[j], strict=True)), Fraction()
                )
                assert abs(Fraction(float(y[i, j])) - exact) <= Fraction(float(bound[i, j]))


def test_accuracy_bound_says_something():
    """It is no larger than some hundred times what is lost, on ordinary data."""
    x, w = draw("normal", (8, 256)), draw("normal", (8, 256), 1)
    exact = np.array([[math.fsum(a.astype(np.float64) * b) for b in w] for a in x])
    lost = np.abs(torch_dot(x, w) - exact)
    bound = accuracy_bound(x, w)
    assert (lost <= bound).all()
    assert np.median(bound) < 300 * np.median(lost)


def test_the_weak_spot_and_its_repair():
    """An outlier of x that meets w = 0 costs the small numbers their bits; the bound says so, and bits= repairs it."""
    x, w = draw("normal", (64, 1024)), draw("normal", (64, 1024), 1)
    x[:, 0] = 2.0**14
    w[:, 0] = 0.0
    exact = np.array([[math.fsum(a.astype(np.float64) * b) for b in w] for a in x])
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)

    def mean_error(y):
        return float(np.mean(np.abs(y - exact) / ulp))

    native = mean_error((torch.tensor(x) @ torch.tensor(w).T).numpy())
    plain, repaired = mean_error(torch_dot(x, w)), mean_error(torch_dot(x, w, bits=43))
    assert repaired < 0.35 < native < plain / 5, (native, plain, repaired)
    assert np.median(accuracy_bound(x, w)) > 500 * np.median(accuracy_bound(x, w, bits=43))


def test_accuracy_bound_of_a_layer(twin):
    """Of a weight that learns, and of 16 bits."""
    layer = twin.twin.MaskedLinear(3, 2, grad_mask=columns([0]), seed=0)
    x = np.ones((1, 3), np.float32)
    want = accuracy_bound(x, twin.numpy(layer.weight))
    assert np.array_equal(accuracy_bound(twin.array(x), layer.weight), want)
    assert np.array_equal(accuracy_bound(twin.array(x, "bfloat16"), layer.weight), want)


def test_wrong_group(twin):
    x, w = twin.array(np.ones((2, 3))), twin.array(np.ones((4, 3)))
    expected = {"torch": "a torch.distributed.ProcessGroup", "jax": "the name of a mesh axis"}[twin.name]
    with pytest.raises(TypeError, match=f"reproducible: expected group to be {expected}, got 3; leave it out"):
        twin.masked_linear(x, w, grad_mask=columns([0]), precision=mt.reproducible(group=3))


@pytest.mark.parametrize("shapes", [((2, 3), (4, 5)), ((3,), (3,)), ((), (2, 2))])
def test_accuracy_bound_of_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match="accuracy_bound: expected input"):
        accuracy_bound(*map(np.ones, shapes))


# Layers and engines around them.


def layers():
    masked = mt.MaskedLinear(6, 4, grad_mask=columns([1, 4]), seed=0, precision="reproducible")
    packed = mt.PackedLinear(6, 4, grad_mask=columns([1, 4]), seed=0, precision="reproducible")
    in_jax = mj.MaskedLinear(6, 4, grad_mask=columns([1, 4]), seed=0, precision="reproducible")
    packed_in_jax = mj.PackedLinear(6, 4, grad_mask=columns([1, 4]), seed=0, precision="reproducible")
    return masked, packed, in_jax, packed_in_jax


def test_layers():
    x = draw("exponents 6", (5, 6))
    masked, packed, in_jax, packed_in_jax = layers()
    answers = [bits(layer(torch.tensor(x)).detach()) for layer in (masked, packed)]
    answers += [bits(layer(jnp.asarray(x))) for layer in (in_jax, packed_in_jax, jax.tree.map(jnp.asarray, in_jax))]
    assert all((answer == answers[0]).all() for answer in answers)
    for layer in (masked, packed, in_jax, packed_in_jax):
        assert "precision=reproducible()" in repr(layer)
    masked.precision = "native"
    assert "precision" not in repr(masked)
    with pytest.raises(ValueError, match="expected precision to be"):
        masked.precision = "exact"


def test_whole_models():
    x = draw("exponents 6", (5, 6))
    plain = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    model = mt.mask_linears(plain, {"*": columns([0])}, packed=True, precision="reproducible")
    assert all(module.precision == mt.reproducible() for module in (model[0], model[2]))
    halves = torch.cat([model(torch.tensor(x)[:2]), model(torch.tensor(x)[2:])])
    assert torch.equal(model(torch.tensor(x)), halves)


def test_adapters_of_jax():
    import equinox as eqx
    from flax import nnx

    from maskedlinear_jax import equinox as for_equinox
    from maskedlinear_jax import nnx as for_nnx

    linear = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    x = jnp.asarray(draw("exponents 6", (5, 6)))
    want = mj.masked_linear(
        x, linear.kernel.get_value().T, linear.bias.get_value(), grad_mask=columns([1]), precision="reproducible"
    )
    model = for_nnx.mask_linears(nnx.Sequential(linear), {"*": columns([1])}, precision="reproducible")
    assert (bits(model(x)) == bits(want)).all()
    assert for_nnx.PackedLinear(6, 4, grad_mask=columns([1]), rngs=nnx.Rngs(0), precision="reproducible").arithmetic
    tree = for_equinox.mask_linears(
        eqx.nn.MLP(6, 4, 8, 1, key=jax.random.key(0)), {"*": columns([1])}, precision="reproducible"
    )
    assert tree.layers[0].precision == mj.reproducible()


def test_autocast_checkpoint_and_export():
    x = torch.tensor(draw("exponents 6", (5, 6)))
    layer = layers()[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = layer(x)
    by_hand = mt.masked_linear(
        x.bfloat16(),
        layer.weight.bfloat16(),
        layer.bias.bfloat16(),
        grad_mask=columns([1, 4]),
        precision="reproducible",
    )
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast, by_hand)
    exported = torch.export.export(layer, (x,)).module()
    assert torch.equal(exported(x), layer(x))
    again = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    again.sum().backward()
    d_weight = layer.weight.grad.clone()
    layer.weight.grad = None
    layer(x).sum().backward()
    assert torch.equal(d_weight, layer.weight.grad)


def test_remat_scan_and_export_in_jax():
    x = jnp.asarray(draw("exponents 6", (5, 6)))
    layer = layers()[2]
    params, rest = mj.partition(layer)

    def loss(params, x):
        return mj.combine(params, rest)(x).sum()

    want = jax.grad(loss)(params, x).weight
    assert (bits(jax.grad(jax.checkpoint(loss))(params, x).weight) == bits(want)).all()
    rows = jax.lax.scan(lambda _, row: (None, layer(row)), None, x)[1]
    assert (bits(rows) == bits(layer(x))).all()
    exported = jax.export.export(jax.jit(lambda x: layer(x)))(jax.ShapeDtypeStruct((5, 6), jnp.float32))
    assert (bits(exported.call(x)) == bits(layer(x))).all()


def test_a_narrow_mask_pays_its_share():
    """The two products for dW cost the share p, and of the input only the share is kept, with a number for each row."""
    from torch.utils.flop_counter import FlopCounterMode

    x, w = torch.randn(32, 64), torch.randn(16, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = mt.masked_linear(x, w, grad_mask=columns(range(0, 64, 8)), precision="reproducible")
    with FlopCounterMode(display=False) as counter:
        y.backward(torch.ones_like(y))
    units = 2 * 16 * 8  # the scale of each entry
    assert counter.get_total_flops() == 2 * (2 * 32 * 16 * 64) / 8 + units
    mine = sum(t.numel() for t in kept if t.data_ptr() != w.data_ptr() and t.is_floating_point())
    assert mine == 32 * 64 / 8 + 32


def test_dtensors_are_refused(monkeypatch):
    from maskedlinear_torch import _compat

    monkeypatch.setattr(_compat, "is_distributed", lambda tensor: True)
    with pytest.raises(TypeError, match="expected a plain tensor for precision='reproducible', got a DTensor"):
        mt.masked_linear(torch.ones(2, 3), torch.ones(4, 3), grad_mask=columns([0]), precision="reproducible")


def test_compiled_transforms_are_refused():
    layer = lambda w: mt.masked_linear(torch.ones(2, 3), w, grad_mask=columns([0]), precision="reproducible").sum()  # noqa: E731
    compiled = torch.compile(lambda w: torch.func.grad(layer)(w), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"expected no torch.func transform inside torch.compile"):
        compiled(torch.ones(4, 3))


def test_golden_hashes():
    from rich.console import Console

    from parity.suites.masked_linear import golden

    stored = golden.load()
    few = {name: stored[name] for name in ("hard-columns/float32", "hard-cancelling/float32", "hard-elements/bfloat16")}
    seen = [found for found in golden.check("cpu", ("torch", "jax"), few) if found.case in few]
    assert [found.verdict for found in seen] == ["identical"] * 6
    wrong = json.loads(json.dumps(few))
    wrong["hard-columns/float32"]["d weight"] = "0" * 64
    wrong["hard-cancelling/float32"]["inputs"] = "0" * 64
    seen = {found.case: found for found in golden.check("cpu", ("torch",), wrong)}
    assert (seen["hard-columns/float32"].verdict, seen["hard-columns/float32"].wrong) == ("differs", ("d weight",))
    assert seen["hard-cancelling/float32"].verdict == "other inputs"
    assert seen["hard-normal/float32"].verdict == "no hash"
    assert golden.show(list(seen.values()), "cpu", Console(quiet=True))


@pytest.mark.parametrize("twin", [mt, mj], ids=["torch", "jax"])
def test_bits_of_numpy_are_python_s(twin):
    """A layer's repr is code: `np.int64(40)` in it was none without NumPy (as in photutils #1734)."""
    layer = twin.MaskedLinear(6, 4, grad_mask=columns([1]), seed=0, precision=twin.reproducible(bits=np.int64(40)))
    assert repr(layer).endswith(", precision=reproducible(bits=40))")
