"""A port that others published: torchvision's ResNet and that of flaxmodels, in Linen.

Nothing is downloaded but the packages: the weights are random, equal on both sides. No name of a weight is given by
hand. In training the running statistics differ: flaxmodels passes torch's momentum, 0.1, where Flax means 0.9.

    pip install torchvision==0.28.0
    pip install --no-deps --target DIR flaxmodels==0.1.3 h5py
    PYTHONPATH=DIR python examples/ports/resnet.py [eval|train] [resnet18|resnet34|resnet50]
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import jax
import numpy as np
import torch
import torchvision

import parity
from parity.models import Inputs


def linen():
    """Return flaxmodels' ResNets alone: the package's own face imports all of its models, and what these need."""
    found = importlib.util.find_spec("flaxmodels")
    package = types.ModuleType("flaxmodels")
    package.__path__ = [str(Path(found.origin).parent)]
    sys.modules["flaxmodels"] = package
    return importlib.import_module("flaxmodels.resnet.resnet")


def main(mode="eval", name="resnet18"):
    """Compare the pair and print the report."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10).train(mode == "train")
    make = getattr(linen(), name.replace("resnet", "ResNet"))
    port = make(output="logits", pretrained=None, normalize=False, num_classes=10)
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    turned = images.transpose(0, 2, 3, 1)
    variables = port.init(jax.random.key(0), turned, train=False)
    port = parity.map_weights(model, (port, variables)).load_into_jax(model, (port, variables))
    inputs = Inputs(torch=(images,), jax={"x": turned, "train": mode == "train"})
    print(parity.compare_models(model, port, inputs, mode=mode, name=name))


if __name__ == "__main__":
    main(*sys.argv[1:])
