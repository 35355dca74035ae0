"""The sentence encoder in both frameworks: converted, compared, fine-tuned.

python examples/minilm/run.py               a few minutes on two cores; writes report.json and figure.svg beside itself
python examples/minilm/run.py --steps 3 --pairs 8     quick
"""

import argparse
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import compare
import jax_encoder
import jax_training
import torch
import torch_encoder
import torch_training
from data import batches, held_back, tokenize

import maskedlinear_jax as mj
import maskedlinear_torch as mt
from parity.report import environment


def main():
    """Run everything; nothing is written unless all of it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="of fine-tuning (60)")
    parser.add_argument("--pairs", type=int, default=32, help="of a step, and of the comparison before it (32)")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the report goes")
    options = parser.parse_args()
    progress = lambda text: print(f"\r{text:<60}", end="", flush=True)  # noqa: E731
    first = next(batches(1, options.pairs))
    report = {"environment": environment.environment(), "steps": options.steps}

    report["bits changed by conversion"] = compare.conversion(first)
    assert report["bits changed by conversion"] == 0
    report["embeddings"] = compare.embeddings(first)
    report["gradients"] = compare.masked_gradients(first)
    ratios = [row["ratio"] for row in report["gradients"] if row["ratio"]]
    print(f"conversion changes 0 bits; embeddings {report['embeddings']['verdict']}, "
          f"lowest cosine {report['embeddings']['lowest cosine']:.7f}")  # fmt: skip
    print(f"masked gradients of {len(report['gradients'])} layers within bound, "
          f"error of JAX over that of torch {min(ratios):.2f} to {max(ratios):.2f}")  # fmt: skip

    methods = ["full", "packed", *(["shira"] if importlib.util.find_spec("peft") else [])]
    report["fine-tuning"] = {}
    models = {}
    for method in methods:
        training = batches(options.steps, options.pairs)
        models[method], report["fine-tuning"][method] = torch_training.train(method, training, held_back(), progress)
    model, losses = jax_training.train(
        jax_training.packed(jax_encoder.load()), batches(options.steps, options.pairs), progress
    )
    report["fine-tuning"]["packed in JAX"] = {"losses": losses}
    report["parting"] = compare.parting(models["packed"], model)
    print("\r" + " " * 60 + "\r", end="")

    report["round trip"] = round_trip(models["packed"], model)
    view(report)
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if importlib.util.find_spec("matplotlib"):
        from figure import draw

        draw(report, options.folder / "figure.svg")


def round_trip(torch_model, jax_model):
    """Store what JAX trained, load it in torch, take the masks off, and load that with transformers."""
    sentences = tokenize(["a sentence", "and another one"])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        size = mj.save_packed(Path(folder) / "packed.safetensors", jax_model)
        loaded = mt.load_packed(Path(folder) / "packed.safetensors", torch_encoder.load())
        want = torch_encoder.encode(loaded, *sentences)
        mt.unmask_linears(loaded).save_pretrained(folder)
        plain = torch_encoder.load(Path(folder))
        differing = int((torch_encoder.encode(plain, *sentences) != want).sum())
    assert differing == 0
    assert not any(isinstance(module, mt.PackedLinear) for module in plain.modules())
    return {"bytes": size, "differing numbers after transformers loads it": differing}


def view(report):
    """Print what fine-tuning took."""
    rows = report["fine-tuning"]
    names = ("trained numbers", "bytes of gradients", "bytes of optimizer state", "bytes kept for the backward",
             "bytes of checkpoint")  # fmt: skip
    measured = [method for method in rows if "seconds" in rows[method]]
    print(f"{'':<30}" + "".join(f"{method:>14}" for method in measured))
    for name in names:
        print(f"{name:<30}" + "".join(f"{rows[method][name]:>14,}" for method in measured))
    for i, name in enumerate(("held-back loss before", "held-back loss after")):
        print(f"{name:<30}" + "".join(f"{rows[method]['held back'][i]:>14.4f}" for method in measured))
    rms = report["parting"]["rms"]
    print(
        f"torch and JAX after {report['steps']} steps: {rms['apart']:.2g} apart (RMS), having moved {rms['moved']:.2g}"
    )


if __name__ == "__main__":
    main()
