"""What a newcomer gets wrong in a call: each is refused with one sentence, before or soon after the models run."""

import flax.linen as linen
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import parity

X = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)


class Port(nnx.Module):
    """One product."""

    def __init__(self, width=3):
        self.a = nnx.Linear(6, width, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.a(x)


class Net(nn.Module):
    """The same in torch."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x)


MODEL = Net()
GOOD = parity.map_weights(MODEL, Port()).load_into_jax(MODEL, Port())

WRONG = {
    "models exchanged": ((GOOD, MODEL, X), {}, TypeError, "torch's model comes first"),
    "class of torch": ((Net, GOOD, X), {}, TypeError, "got the class Net: pass an instance"),
    "class of JAX": ((MODEL, Port, X), {}, TypeError, "got the class Port: pass an instance"),
    "state dict": ((MODEL.state_dict(), GOOD, X), {}, TypeError, "looks like a state dict"),
    "Linen alone": ((MODEL, linen.Dense(3), X), {}, TypeError, r"pass \(module, variables\)"),
    "NaN": ((MODEL, GOOD, X * np.nan), {}, ValueError, "got NaN in the array"),
    "no example": ((MODEL, GOOD, X[:0]), {}, ValueError, "at least one element"),
    "mode": ((MODEL, GOOD, X), {"mode": "test"}, ValueError, "mode: expected one of eval, train"),
    "only": ((MODEL, GOOD, X), {"only": "b"}, ValueError, "only: expected one of a"),
    "only of another kind": ((MODEL, GOOD, X), {"only": 3}, TypeError, "only: expected text, got 3"),
    "options": (
        (MODEL, GOOD, X),
        {"optimizer": ("adam", None)},
        TypeError,
        "a dict of options beside 'adam', got None",
    ),
    "option": (
        (MODEL, GOOD, X),
        {"optimizer": ("sgd", {"lr": "1"})},
        TypeError,
        "lr of sgd: expected a value as 0.001",
    ),
    "one rule": ((MODEL, GOOD, X), {"rules": parity.Rule("a.weight", "a.kernel")}, TypeError, "a list of parity.Rule"),
    "loss of no tensor": ((MODEL, GOOD, X), {"loss": lambda out: 3.0}, ValueError, "expected a tensor, got float"),
    "optimizer": ((MODEL, GOOD, X), {"optimizer": "adamm"}, ValueError, "did you mean 'adam'"),
    "steps": ((MODEL, GOOD, X), {"steps": 3}, ValueError, "expected optimizer= with steps=3"),
    "fewer than no steps": ((MODEL, GOOD, X), {"steps": -1}, ValueError, "steps: expected a whole number"),
    "seed": ((MODEL, GOOD, X), {"seed": "a"}, TypeError, "seed: expected a whole number"),
    "weights": ((MODEL, GOOD, X), {"weights": {"a": "a"}}, TypeError, "weights: expected a WeightMap"),
    "loss": ((MODEL, GOOD, X), {"loss": "mse"}, TypeError, "loss: expected a function"),
    "loss of many numbers": ((MODEL, GOOD, X), {"loss": lambda out: out}, ValueError, "expected one number"),
    "modules": ((MODEL, GOOD, X), {"modules": ["a"]}, TypeError, "modules: expected a dict of paths"),
    "name": ((MODEL, GOOD, X), {"name": 5}, TypeError, "name: expected text, got 5"),
    "switch": ((MODEL, GOOD, X), {"perturb": "no"}, TypeError, "perturb: expected True or False, got 'no'"),
    "meta": ((Net().to("meta"), GOOD, X), {}, ValueError, "one on the meta device: make the model on a device"),
    "shapes": ((MODEL, nnx.eval_shape(Port), X), {}, ValueError, "got a shape alone in a.bias|in a.kernel"),
    "progress": ((MODEL, GOOD, X), {"progress": 3}, TypeError, "progress: expected a function"),
}


@pytest.mark.parametrize(("given", "options", "error", "text"), WRONG.values(), ids=WRONG)
def test_a_wrong_call_is_refused_in_a_sentence(given, options, error, text):
    with pytest.raises(error, match=text) as caught:
        parity.compare_models(*given, **options)
    assert "\n" not in str(caught.value)


def test_a_model_that_gives_no_number_is_refused():
    class Broken(nn.Module):
        def forward(self, x):
            return x * torch.inf - torch.inf * x

    with pytest.raises(ValueError, match="no finite number"):
        parity.compare_models(Broken(), lambda x: jnp.asarray(x) * jnp.nan, (X,))


def test_sizes_that_do_not_fit_are_the_cause():
    class Wide(nnx.Module):
        def __init__(self):
            self.a, self.b = nnx.Linear(6, 7, rngs=nnx.Rngs(0)), nnx.Linear(7, 3, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.b(self.a(x))

    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.b(self.a(x))

    found = parity.compare_models(Narrow(), Wide(), (X,)).first.diagnosis
    assert found.cause == "weights not paired"
    assert "a.weight [5, 6]" in found.text


class Deeper(nn.Module):
    """One layer more than the models that the map is of."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(3, 3)


class DeeperPort(nnx.Module):
    """The same in NNX."""

    def __init__(self):
        self.a, self.b = (nnx.Linear(width, 3, rngs=nnx.Rngs(0)) for width in (6, 3))


@pytest.mark.parametrize("source", ["made", "from a file"])
def test_a_weight_that_the_map_does_not_name_is_not_left_out_in_silence(source, tmp_path):
    found = parity.map_weights(MODEL, GOOD)
    if source == "from a file":
        found.save(tmp_path / "map.toml")
        found = parity.WeightMap.load(tmp_path / "map.toml")
    found.load_into_jax(MODEL, Port())
    model, port = Deeper(), DeeperPort()
    before = model.b.weight.clone()
    with pytest.raises(ValueError, match=r"only in torch: b\.weight: the map does not name it"):
        found.load_into_jax(model, port)
    with pytest.raises(ValueError, match=r"only in JAX: b\.kernel: the map does not name it"):
        found.load_into_torch(port, model)
    loaded = found.load_into_jax(model, port, partial=True)
    assert np.array_equal(loaded.a.kernel[...], model.a.weight.detach().numpy().T)
    assert torch.equal(model.b.weight, before)
