"""`python -m tests.layer_changes`: small faults in the layers beside the linear one, and the test that rejects each.

Each fault is written into a copy of the checkout, and one test runs there. It must fail; unchanged, it passes. The
command prints the table of docs/evidence/layer-faults.md; its exit status is 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Fault(NamedTuple):
    """One fault: what it is, in which file, what is written there once, what in its place, and the test."""

    what: str
    file: str
    old: str
    new: str
    test: str


_CONVERT, _EMBEDDING, _HOLD, _LOST, _SENT = (
    f"tests/test_{name}.py::test_"
    for name in ("convert_layers", "embedding", "hold_or_refuse", "nothing_is_lost", "sent_arrays")
)
_GRID = "tests/test_grid_layers.py::test_attention_and_turned_layers_have_the_bits_of_the_answer"
_TORCH, _JAX = "maskedlinear_torch", "maskedlinear_jax"

FAULTS = (
    Fault("attention reads its weights unmasked", f"{_TORCH}/attention.py",
          "return torch.where(trains, parameter, parameter.detach())", "return parameter",
          f"{_CONVERT}M7_attention_learns_as_the_reference_program_does"),
    Fault("a projection without a mask learns nothing", f"{_TORCH}/attention.py",
          "found.get(name, np.ones(shapes[name], np.bool_))", "found.get(name, np.zeros(shapes[name], np.bool_))",
          f"{_CONVERT}M7_attention_learns_as_the_reference_program_does"),
    Fault("attention reads its output layer unmasked", f"{_TORCH}/attention.py",
          'weight = rule.weight_view(layer._positions(), layer._read("weight"))', 'weight = layer._read("weight")',
          f"{_GRID}[attention-output-rows]"),
    Fault("packed projections in another order", f"{_TORCH}/packed_attention.py",
          "return simplify(np.concatenate(parts))", "return simplify(np.concatenate(parts[::-1]))",
          f"{_CONVERT}M7_packed_attention_is_the_plain_one_and_learns_as_the_masked_one"),
    Fault("moments of packed projections are left behind", f"{_TORCH}/packed_attention.py",
          "self.in_proj.repack(self._mask(), optimizer)", "self.in_proj.repack(self._mask())",
          f"{_CONVERT}M7_freeze_others_takes_the_optimizer_along"),
    Fault("a file does not tell which projections have masks", f"{_TORCH}/packed_attention.py",
          "if not mask.all()\n        }\n        whole", "if mask.all()\n        }\n        whole",
          f"{_CONVERT}M7_a_file_tells_which_projections_have_masks"),
    Fault("a packed Conv1D is saved the other way", f"{_TORCH}/conv1d.py",
          'destination[prefix + "weight"] = destination[prefix + "weight"].t()', "pass", f"{_CONVERT}M7_conv1d"),
    Fault("a Conv1D computes its mask's gradient at once for all", f"{_TORCH}/conv1d.py",
          "layer._set_masks(grad_mask, _bias_mask(bias_mask, True, conv.nf))",
          "layer._set_masks(~grad_mask, _bias_mask(bias_mask, True, conv.nf))", f"{_GRID}[turned-rows]"),
    Fault("the padding token learns", f"{_TORCH}/embedding.py",
          "return (mask & ~constructors.rows([plain.padding_idx])).packed(shape)", "return mask.packed(shape)",
          f"{_EMBEDDING}padding_never_learns"),
    Fault("a packed embedding looks one row too far", f"{_TORCH}/embedding.py",
          "torch.where((slots < count)[..., None], learned, looked_up)",
          "torch.where((slots <= count)[..., None], learned, looked_up)",
          f"{_EMBEDDING}torch_equals_the_reference_program"),
    Fault("a tied head takes any other weight", f"{_TORCH}/embedding.py",
          "if not torch.equal(weight, self.weight):", "if False:",
          f"{_EMBEDDING}a_tied_head_has_no_weight_but_its_embeddings"),
    Fault("masked_parameter the wrong way round", f"{_TORCH}/parameter.py",
          "    return torch.where(trains, weight, weight.detach())",
          "    return torch.where(trains, weight.detach(), weight)",
          f"{_HOLD}s13_masks_of_a_parameter_may_be_views"),
    Fault("masked_parameter the wrong way round, in JAX", f"{_JAX}/parameter.py",
          "jnp.where(_trains(weight, grad_mask), weight, jax.lax.stop_gradient(weight))",
          "jnp.where(_trains(weight, grad_mask), jax.lax.stop_gradient(weight), weight)",
          f"{_EMBEDDING}masked_parameter_of_any_shape"),
    Fault("a sharded layer's positions change", f"{_TORCH}/packed_module.py",
          "packed_checks.refuse_sharded(type(self).__name__, change)", "pass",
          f"{_HOLD}h5_another_mask_of_a_sharded_layer_is_refused"),
    Fault("layers before a refused one are changed already", f"{_TORCH}/convert.py",
          'if isinstance(module, PackedLinear):\n                module._refuse_sharded("repack")',
          "if False:\n                pass",
          f"{_HOLD}h5_a_refused_model_is_left_as_it_was_with_all_of_its_layers"),
    Fault("what a refused norm took out is lost", f"{_TORCH}/own_parameters.py",
          "self.put_back(stem)", "pass", f"{_HOLD}m5_a_packed_layer_is_computed_from_nothing_else"),
    Fault("a tie is forgotten by copies", f"{_TORCH}/plain_ties.py",
          "return Tie, (self.plain(),)", "return Tie, (None,)", f"{_HOLD}m7_a_copy_of_tied_layers_is_warned_of"),
    Fault("a plain layer's weight given to a masked one is not noticed", f"{_TORCH}/plain_ties.py",
          'if one.__dict__.get("_parameters", {}).get("weight") is weight:', "if False:",
          f"{_HOLD}m7_a_masked_layer_that_takes_a_plain_layers_weight_is_warned_of"),
    Fault("a hold undoes what a checkpoint wrote", f"{_TORCH}/frozen_entries.py",
          "return value.detach().clone() if lies_here else value", "return value",
          "tests/test_saved_by_others.py::test_m1_a_checkpoint_of_another_model_comes_back_and_trains_on"),
    Fault("a write to a weight that was read before goes through", f"{_TORCH}/tensors.py",
          "if part.versions() != versions[0] and not is_all:", "if False:",
          "tests/test_packed_layers.py::test_m2_what_cannot_be_written_says_so"),
    Fault("a parameter called positions is not sent", f"{_TORCH}/storage.py",
          'mark = free_name(f"{dot}positions", learned)', 'mark = f"{dot}positions"',
          f"{_SENT}m10_a_parameter_that_is_called_positions_is_sent"),
    Fault("a parameter called positions is not sent, in JAX", f"{_JAX}/storage.py",
          'mark = free_name(f"{dot}positions", learned)', 'mark = f"{dot}positions"',
          f"{_SENT}m10_a_parameter_that_is_called_positions_is_sent"),
    Fault("a kernel that NNX shares is cut", f"{_JAX}/nnx.py",
          "_check_ties(model, {name: places[name].node for name in contents.layers})", "pass",
          f"{_LOST}m3_load_packed_refuses_what_mask_linears_refuses_in_jax"),
    Fault("a LinearGeneral reads its kernel turned", f"{_JAX}/nnx_general.py",
          "return kernel.reshape(self.in_features, self.out_features).T",
          "return kernel.reshape(self.out_features, self.in_features)",
          f"{_EMBEDDING}M7_nnx_attention_and_linear_general"),
    Fault("an embedding's tokens the wrong way round, in JAX", f"{_JAX}/embedding.py",
          "return jnp.where(trains, looked_up, jax.lax.stop_gradient(looked_up))",
          "return jnp.where(trains, jax.lax.stop_gradient(looked_up), looked_up)",
          f"{_EMBEDDING}jax_equals_the_reference_program"),
    Fault("a packed embedding looks one row too far, in JAX", f"{_JAX}/embedding.py",
          "jnp.where((slots < count)[..., None], learned, looked_up)",
          "jnp.where((slots <= count)[..., None], learned, looked_up)",
          f"{_EMBEDDING}jax_equals_the_reference_program"),
)  # fmt: skip
"""The faults."""


def source(fault: Fault) -> str:
    """Return a file with its fault.

    Raises:
        ValueError: What is to be changed is not there, or more than once.
    """
    text = (ROOT / fault.file).read_text("utf-8")
    if text.count(fault.old) != 1:
        raise ValueError(
            f"{fault.what}: expected {fault.old!r} once in {fault.file}, got it {text.count(fault.old)} times"
        )
    return text.replace(fault.old, fault.new)


def is_rejected(fault: Fault) -> bool:
    """Tell whether the test of a fault fails with it."""
    with tempfile.TemporaryDirectory(prefix="layer-") as folder:
        copy = Path(folder)
        package, name = fault.file.split("/")
        for entry in ROOT.iterdir():
            if entry.name not in (package, ".git"):
                (copy / entry.name).symlink_to(entry)
        (copy / package).mkdir()
        for entry in (ROOT / package).iterdir():
            if entry.name != name:
                (copy / package / entry.name).symlink_to(entry)
        (copy / package / name).write_text(source(fault), "utf-8")
        own = {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--rootdir", folder, fault.test],
            cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode not in (0, 1) or "no tests ran" in done.stdout:
        raise RuntimeError(f"{fault.what}: {fault.test} did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.returncode == 1


def main(arguments: Sequence[str]) -> int:
    """Try the faults and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.layer_changes", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="faults with this in their words or file")
    asked = parser.parse_args(arguments)
    survived = 0
    print("| fault | file | rejected by |\n|---|---|---|")
    for fault in FAULTS:
        if asked.only in f"{fault.what} {fault.file}":
            rejected = is_rejected(fault)
            survived += not rejected
            print(
                f"| {fault.what} | `{fault.file}` | {f'`{fault.test}`' if rejected else '**it survived**'} |",
                flush=True,
            )
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
