"""A port that others published: timm's vision transformer and equimo's, in Equinox, with fused q, k and v.

Nothing is downloaded but the packages: the model is small, its weights random, equal on both sides. No name of a weight
is given by hand. With equimo's defaults two things differ, the eps of the norms and the GELU; `alike` sets both.

    pip install torchvision==0.28.0
    pip install --no-deps --target DIR timm==1.0.31 equimo==0.4.2 einops loguru lz4
    PYTHONPATH=DIR python examples/ports/vit.py [defaults|alike]
"""

import functools
import sys

import jax
import numpy as np
import torch
from equimo.models.vit import VisionTransformer as Port
from timm.models.vision_transformer import VisionTransformer

import parity
from parity.models import Inputs

SIZES = {"img_size": 32, "patch_size": 8, "num_heads": 3, "num_classes": 10, "global_pool": "token"}
ALIKE = {"eps": 1e-6, "act_layer": functools.partial(jax.nn.gelu, approximate=False)}


def main(kind="defaults"):
    """Compare the pair and print the report."""
    torch.manual_seed(0)
    model = VisionTransformer(**SIZES, embed_dim=24, depth=3).eval()
    own = ALIKE if kind == "alike" else {}
    port = Port(**SIZES, in_channels=3, dim=24, depths=[3], reg_tokens=0, key=jax.random.key(0), **own)
    port = parity.map_weights(model, port).load_into_jax(model, port)
    image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    inputs = Inputs(torch=(image,), jax={"x": image[0], "key": jax.random.key(1), "inference": True})
    print(parity.compare_models(model, port, inputs, name="ViT"))


if __name__ == "__main__":
    main(*sys.argv[1:])
