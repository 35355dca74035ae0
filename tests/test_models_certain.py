"""What is said of a model for certain is so: a batch's size, an index and a first step look like other causes."""

import functools
import json

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

import parity
from parity.cli.main import main
from parity.models import Inputs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 6)).astype(np.float32)
WORDS = RNG.standard_normal((2, 4, 6)).astype(np.float32)


class Net(nn.Module):
    def __init__(self, after=lambda y, *_: y):
        super().__init__()
        self.fc, self.after = nn.Linear(6, 5), after

    def forward(self, x, *more):
        return self.after(self.fc(x), *more)


class Port(nnx.Module):
    def __init__(self, after=lambda y, *_: y, **options):
        self.fc, self.after = nnx.Linear(6, 5, rngs=nnx.Rngs(0), **options), after

    def __call__(self, x, *more):
        return self.after(self.fc(x), *more)


def compared(model, port, inputs, **options):
    port = parity.map_weights(model, port).load_into_jax(model, port)
    return parity.compare_models(model, port, inputs, **options)


@pytest.mark.parametrize(
    ("torch_after", "jax_after", "text"),
    [
        (lambda y: y, lambda y: y * 4, "4 in JAX where torch has 1 (mul)"),
        (lambda y: y, lambda y: y / 4, "4 in JAX where torch has 1 (div)"),
        (lambda y: y / 4, lambda y: y / 3, "3 in JAX where torch has 4 (div)"),
        (lambda y: y * y, lambda y: y * y * 4 / 3, "4 in JAX where torch has 3 (mul)"),
    ],
    ids=["times the batch", "over the batch", "n and n - 1", "n over n - 1"],
)
def test_a_factor_of_the_size_of_the_batch_is_no_sum_and_no_ddof(torch_after, jax_after, text):
    found = compared(Net(torch_after), Port(jax_after), (X,)).first.diagnosis
    assert found.cause == "constant", found
    assert text in found.text


def test_a_sum_over_the_batch_is_one_still():
    found = compared(Net(lambda y: y.sum(0)), Port(lambda y: y.mean(0)), (X,)).first.diagnosis
    assert found.cause in ("default argument: reduction", "pooling")
    found = compared(Net(lambda y: y.var(0)), Port(lambda y: jnp.var(y, 0)), (X,)).first.diagnosis
    assert found.cause == "default argument: ddof"


def test_what_reorders_the_tools_arrays_is_no_mask():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            y = self.c(x)
            return y[-1:, -1:, -1:, -1:].expand_as(y) + 0.0

    class ConvolutionPort(nnx.Module):
        def __init__(self):
            self.c = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.c(x)

    image = RNG.standard_normal((2, 3, 5, 6)).astype(np.float32)
    inputs = Inputs(torch=(image,), jax=(image.transpose(0, 2, 3, 1),))
    found = compared(Convolution(), ConvolutionPort(), inputs).first.diagnosis
    assert "mask" not in found.cause, found


def test_how_jax_counts_indices_from_the_end_is_no_mask():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = nn.Embedding(7, 4)

        def forward(self, ids):
            return self.e(torch.full_like(ids, 6))

    class TablePort(nnx.Module):
        def __init__(self):
            self.e = nnx.Embed(7, 4, rngs=nnx.Rngs(0))

        def __call__(self, ids):
            return self.e.embedding[ids]

    found = compared(Table(), TablePort(), (np.array([[1, 2, 3], [4, 5, 0]]),)).first.diagnosis
    assert "mask" not in found.cause, found


@pytest.mark.parametrize("mask", [[[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 0], [1, 1, 1, 1]]], ids=["all", "padded"])
def test_the_last_word_for_the_first_is_no_sum_for_a_mean(mask):
    def last(y, mask):
        return y[torch.arange(len(mask)), mask.sum(-1) - 1]

    report = compared(Net(last), Port(lambda y, mask: y[:, 0]), (WORDS, np.array(mask)))
    assert report.first.diagnosis.cause == "pooling", report.first.diagnosis
    assert "the first" in report.first.diagnosis.text


SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)


@pytest.mark.parametrize(
    ("make", "other", "text"),
    [
        (SGD, optax.sgd(0.1, momentum=0.9, nesterov=True), "SGD with nesterov=True, and torch has False"),
        (functools.partial(SGD, nesterov=True), optax.sgd(0.1, momentum=0.9), "nesterov=False, and torch has True"),
        (SGD, optax.sgd(0.1), "SGD without momentum"),
        (SGD, optax.sgd(0.19, momentum=0.9), "1.9 times torch's: another learning rate"),
        (
            functools.partial(torch.optim.Adam, lr=0.1, weight_decay=0.1),
            optax.adamw(0.1, weight_decay=0.1),
            "those of torch.optim.AdamW: its weight decay is taken off the weight",  # optax #417
        ),
        (functools.partial(torch.optim.AdamW, lr=0.1), optax.adamw(0.1), "another weight decay, 0.0001 where torch"),
    ],
    ids=["nesterov", "no nesterov", "no momentum", "rate", "kind of decay", "decay"],
)
def test_optimizers_are_told_apart_by_their_steps(make, other, text):
    steps = 2 if "without" in text else 1
    report = compared(Net(torch.tanh), Port(jnp.tanh), (X,), optimizer=(make, other), steps=steps)
    assert not report.ok
    assert all(text in one.reason for one in report.training), [one.reason for one in report.training]


ADAM, PLAIN = functools.partial(torch.optim.Adam, lr=0.01), functools.partial(torch.optim.SGD, lr=0.1)
LATER = {
    "momentum": (SGD, optax.sgd(0.1), "SGD without momentum"),
    "another momentum": (SGD, optax.sgd(0.1, momentum=0.5), "another momentum: 0.5 in JAX, and torch has 0.9"),
    "dampening": (functools.partial(SGD, dampening=0.5), optax.sgd(0.1, momentum=0.9), "with dampening=0, and torch"),
    "beta1": (ADAM, optax.adam(0.01, b1=0.5), "another beta1: 0.5 in JAX, and torch has 0.9"),
    "beta2": (ADAM, optax.adam(0.01, b2=0.99), "another beta2: 0.99 in JAX, and torch has 0.999"),
    "schedule": (PLAIN, optax.sgd(optax.exponential_decay(0.1, 1, 0.5)), "JAX's is 1, 0.5, 0.25, 0.125 times torch's"),
}


@pytest.mark.parametrize("case", LATER)
def test_every_step_counts_and_not_the_first_alone(case):
    make, other, text = LATER[case]
    report = compared(Net(torch.tanh), Port(jnp.tanh), (X,), optimizer=(make, other), steps=4, perturb=False)
    assert not report.ok
    for one in report.training:
        assert one.verdict == "differs"
        assert one.reason.startswith("step 2 is the first that differs: "), one.reason
        assert text in one.reason
    one = compared(Net(torch.tanh), Port(jnp.tanh), (X,), optimizer=(make, other), steps=1, perturb=False)
    assert one.ok
    assert "one step: momentum, betas and schedules show from the second" in str(one)


def test_a_schedule_that_changes_late_is_found_where_it_does():
    late = optax.sgd(optax.piecewise_constant_schedule(0.1, {4: 0.5}))
    report = compared(Net(torch.tanh), Port(jnp.tanh), (X,), optimizer=(PLAIN, late), steps=6, perturb=False)
    assert not report.ok
    assert all("step 5 is the first that differs: another schedule" in one.reason for one in report.training)
    assert compared(Net(torch.tanh), Port(jnp.tanh), (X,), optimizer=(PLAIN, late), steps=4, perturb=False).ok


def test_betas_that_a_constant_gradient_hides_are_told():
    report = compared(Net(), Port(), (X,), optimizer=(ADAM, optax.adam(0.01, b1=0.5)), steps=4, perturb=False)
    assert not report.ok
    assert "of others, another beta1: 0.5 in JAX" in report.training[0].reason


def test_the_same_optimizers_agree_at_every_step_of_a_model_with_kinks():
    for make, other in ((SGD, optax.sgd(0.1, momentum=0.9)), (ADAM, optax.adam(0.01))):
        report = compared(Net(torch.relu), Port(jax.nn.relu), (X,), optimizer=(make, other), steps=20, perturb=False)
        assert report.ok, str(report)


def test_a_training_that_diverges_is_not_judged_beyond():
    options, square = ("sgd", {"lr": 50.0}), lambda out: (out * out * out * out).sum()
    report = compared(Net(), Port(), (X,), optimizer=options, steps=8, loss=square, perturb=False)
    assert all(one.verdict == "not judged" and "diverges" in one.reason for one in report.training)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)), "clips the norm of the gradients at 0.1"),
        (optax.chain(optax.clip(0.1), optax.sgd(0.1)), "clips the elements of the gradients at 0.1"),
        (optax.sgd(0.05), "0.5 times torch's: another learning rate"),
    ],
    ids=["norm", "elements", "rate"],
)
def test_a_rate_is_proved_on_gradients_of_several_sizes(other, text):
    report = compared(Net(), Port(), (X,), optimizer=(PLAIN, other), perturb=False)
    assert all(text in one.reason for one in report.training), [one.reason for one in report.training]


def test_an_optimizer_that_is_not_known_is_told_in_plain_words():
    decayed = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    report = compared(Net(), Port(), (X,), optimizer=(decayed, optax.adamw(0.01, weight_decay=0.0)), perturb=False)
    assert "another weight decay, 0 where torch has 0.1" in report.training[0].reason
    text = str(compared(Net(), Port(), (X,), optimizer=(PLAIN, optax.sign_sgd(0.1)), perturb=False))
    assert "fc.weight: differs, by " in text


@pytest.mark.parametrize("options", [{"lr": -1}, {"lr": 0.1, "momentum": -1}, {"lr": 0.1, "nesterov": True}])
def test_an_optimizer_that_torch_refuses_is_refused(options):
    with pytest.raises(ValueError, match=r"optimizer: torch's cannot be made: ValueError: .*(Invalid|Nesterov)"):
        compared(Net(), Port(), (X,), optimizer=("sgd", options))


def test_a_maker_that_torch_refuses_is_refused():
    pair = functools.partial(torch.optim.SGD, lr=-1), optax.sgd(0.1)
    with pytest.raises(ValueError, match="optimizer: torch's cannot be made"):
        compared(Net(), Port(), (X,), optimizer=pair)


def test_running_statistics_in_training_are_named():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bn = nn.Linear(6, 5), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn(self.fc(x))

    class NormedPort(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.BatchNorm(True, momentum=0.9, epsilon=1e-5, name="bn")(linen.Dense(5, name="fc")(x))

    port = NormedPort()
    report = compared(Normed(), (port, port.init(jax.random.key(0), X)), (X,), mode="train")
    assert report.first.path == "bn"
    assert report.first.diagnosis.cause == "default argument: training"


class Two(nn.Module):
    def __init__(self, both=False):
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 5), nn.Linear(5, 3), both

    def forward(self, x):
        first = self.a(x)
        second = self.b(torch.tanh(first))
        return (second, first) if self.both else second


class TwoPort(nnx.Module):
    def __init__(self, both=False, between=jnp.tanh, **options):
        self.a, self.b = (nnx.Linear(*size, rngs=nnx.Rngs(0), **options) for size in ((6, 5), (5, 3)))
        self.both, self.between = both, between

    def __call__(self, x):
        first = self.a(x)
        second = self.b(self.between(first))
        return (second, first) if self.both else second


@pytest.mark.parametrize("both", [True, False], ids=["torch", "JAX"])
def test_another_number_of_outputs_is_a_failure(both):
    report = compared(Two(both), TwoPort(not both), (X,))
    assert not report.ok
    assert report.first.path == ""
    assert report.first.diagnosis.cause == "number of outputs"
    assert f"only {'torch' if both else 'JAX'} gives [1]" in str(report)
    assert all(one.verdict in ("identical", "within bound") for one in report.gradients)


def test_a_module_that_is_not_called_is_named():
    class Beside(Two):
        def forward(self, x):
            first = self.a(x)
            return first, self.b(first)

    class BesidePort(TwoPort):
        def __call__(self, x):
            return self.a(x)

    found = compared(Beside(), BesidePort(), (X,)).first
    assert "JAX never calls b, whose weights are paired" in found.diagnosis.text


def test_gradients_are_not_said_to_be_all_where_outputs_differ():
    stopped = TwoPort(True, lambda x: jax.lax.stop_gradient(jnp.tanh(x)))
    report = compared(Two(), stopped, (X,))
    assert "the same outputs" not in str(report)
    assert report.first.diagnosis.cause == "number of outputs"
    assert "gradient stopped" in report.first.diagnosis.text


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_models_are_judged_whole_where_each_takes_inputs_of_its_own_kind(factor):
    class Pixels(TwoPort):
        def __call__(self, x):
            return super().__call__((x / 255).astype(self.a.kernel[...].dtype) * factor)

    pixels = RNG.integers(0, 255, (4, 6)).astype(np.uint8)
    inputs = Inputs(torch=((pixels / 255).astype(np.float32),), jax=(pixels,))
    report = compared(Two(), Pixels(), inputs)
    assert report.ok == (factor == 1), str(report)
    assert factor == 1 or report.first.diagnosis.cause == "constant"


def test_weights_that_are_kept_in_16_bits_are_named():
    found = compared(Two(), TwoPort(param_dtype=jnp.bfloat16), (X,)).first
    assert found.diagnosis.cause == "lower precision"
    assert "JAX keeps weight, bias in bfloat16" in found.diagnosis.text


def test_modules_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match=r"modules of the same sizes, got 'a' of torch and 'b' of JAX, which give"):
        compared(Two(), TwoPort(), (X,), modules={"a": "b"})


@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_a_bias_goes_with_its_weight_whatever_they_are_called(loaded, nested):
    model = Two()
    value = (lambda one: jnp.asarray(one.detach().numpy())) if loaded else (lambda one: jnp.zeros(one.shape))
    a, b = ((value(one.weight), value(one.bias)) for one in (model.a, model.b))
    params = {"M0": a[0], "c0": a[1], "M1": b[0], "c1": b[1]}
    want = {"a.bias": "c0", "b.bias": "c1"}
    if nested:
        params = {"zork": {"M": a[0], "off": a[1]}, "quux": {"M": b[0], "off": b[1]}}
        want = {"a.bias": "zork.off", "b.bias": "quux.off"}
    found = parity.map_weights(model, (lambda p, x: x, params))
    assert {one.torch[0]: one.jax[0] for one in found.pairs if "bias" in one.torch[0]} == want


def test_a_dump_in_the_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "there").write_text("x")
    for folder in ("there", "there/below"):
        with pytest.raises(FileExistsError, match="folder: expected a folder, or a name for one, got"):
            parity.dump_model(Two(), (X,), tmp_path / folder)


MODELS = """
import os

import numpy as np
import torch
from flax import nnx

import parity

torch.manual_seed(0)
torch_model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))


class Port(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.LayerNorm(4, epsilon=EPS, rngs=rngs)
        self.fc = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.fc(self.norm(self.first(x)))


def jax_model():
    port = Port()
    return parity.map_weights(torch_model, port).load_into_jax(torch_model, port)


inputs = (np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4) * TIMES,)
"""


def written(path, eps="1e-6", times="1"):
    path.write_text(MODELS.replace("EPS", eps).replace("TIMES", times))
    return str(path)


@pytest.fixture
def replayed(tmp_path, capsys):
    file, report = written(tmp_path / "models.py"), tmp_path / "r.json"
    assert main(["model", file, "--json", str(report)]) == 1
    assert f"again: python -m parity model {file} --replay '{report}#1'" in capsys.readouterr().out
    return file, report


def test_one_module_runs_again_on_the_inputs_that_a_report_kept(tmp_path, capsys, replayed):
    file, report = replayed
    assert main(["model", file, "--replay", f"{report}#1"]) == 1
    out = capsys.readouterr().out
    assert "1  <->  norm: differs" in out
    assert "default argument: eps" in out
    assert "then: differs; now: differs" in out
    # The module is mended, and what goes into the model is another thing now: the saved inputs are what counts.
    written(tmp_path / "models.py", "1e-5", "3")
    assert main(["model", file, "--replay", f"{report}#1"]) == 0
    assert "then: differs; now: within bound (it has changed)" in capsys.readouterr().out
    written(tmp_path / "models.py", "1e-6", "3")
    assert main(["model", file, "--replay", f"{report}#1"]) == 1
    kept = json.loads(report.read_text())["modules"]
    error = next(one["own_error"] for one in kept if one["path"] == "1")
    assert f"own error {error:.2g} of a typical output" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "is no report of"),
        (lambda text: "[]", "is no report of"),
        (lambda text: '{"replay": 3}', "is no report of"),
        (lambda text: text.replace('"seed": 0, ', "").replace('"seed": 0,\n', '"seed": "0",\n'), "is no report of"),
        (lambda text: text.replace('"inputs": "UEs', '"inputs": "XXX'), "--replay: saved inputs"),
        (lambda text: text.replace('"inputs_sha256": "', '"inputs_sha256": "0'), "it was changed"),
    ],
    ids=["cut", "list", "number", "kind", "inputs", "digest"],
)
def test_a_damaged_report_is_bad_usage(capsys, replayed, change, said):
    file, report = replayed
    report.write_text(change(report.read_text()))
    with pytest.raises(SystemExit, match="2"):
        main(["model", file, "--replay", f"{report}#1"])
    assert said in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_run_again_is_bad_usage(tmp_path, capsys, replayed):
    file, report = replayed
    for given, said in (
        ([f"{report}"], "expected REPORT.json#PATH"),
        ([f"{report}#0"], "keeps: expected one of 1, got '0'"),
        ([f"{tmp_path / 'none.json'}#1"], "cannot read"),
        ([f"{report}#1", "--only", "1"], "so --only has no effect"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["model", file, "--replay", *given])
        assert said in " ".join(capsys.readouterr().err.split())
    (tmp_path / "models.py").write_text(
        MODELS.replace("EPS", "1e-5").replace(".reshape(3, 4) * TIMES", ".reshape(1, 3, 4)")
    )
    with pytest.raises(SystemExit, match="2"):
        main(["model", file, "--replay", f"{report}#1"])
    assert "is called with float64[1, 3, 4] now, and float64[3, 4] was saved" in " ".join(
        capsys.readouterr().err.split()
    )
