"""The recorded run on a GPU: its page has the figures of its record. Layers of the grid go where their input is."""

import json
from pathlib import Path

import pytest
import torch

from parity.suites.masked_linear import torch_layers
from parity.suites.masked_linear.cases import CASES

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE = (FOLDER / "gpu.md").read_text("utf-8")
RECORDED = json.loads((FOLDER / "gpu.json").read_text("utf-8"))
WORLDS = {
    "torch-eager": "torch eager",
    "jax-eager": "JAX eager",
    "jax-jit": "JAX jit",
    "torch-compiled": "torch compiled",
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_cells_of_a_world_are_those_of_the_record(world):
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| grid, {WORLDS[world]} ")]
    counts = RECORDED["grid"]["by world"][world]
    for verdict in ("identical", "within bound", "unsupported"):
        assert f"{counts.get(verdict, 0)} {verdict}" in line or not counts.get(verdict)
    assert f"{sum(counts.values())} of " in line
    assert not {"differs", "crashed", "timed out", "no device"} & set(counts)


def test_what_failed_and_what_did_not_run_is_said():
    failed = sum(map(len, RECORDED["grid"]["failed"].values()))
    assert f"{failed} unsupported by this torch" in PAGE
    (left,) = RECORDED["grid"]["did not run"].values()
    assert f"{left} cells did not run: compiled reproducible gradients" in PAGE
    assert RECORDED["grid"]["planned"] == RECORDED["grid"]["ran"] + left


@pytest.mark.parametrize("kind", ["columns", "rows", "submatrix", "blocks", "elements"])
def test_the_times_of_a_large_layer_are_those_of_the_record(kind):
    found = {row["id"].rpartition("/")[2]: row for row in RECORDED["rows"] if f"/{kind}/" in row["id"]}
    (line,) = [
        line for line in PAGE.split("\n## A large layer in JAX")[0].splitlines() if line.startswith(f"| {kind} |")
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:5]
    wanted = [found[form]["ratios"][over][0] for form in ("masked", "packed") for over in ("dense", "limit")]
    assert cells == [f"{value:.2f}" for value in wanted]
    peaks = {form: found["masked"]["bytes"][form]["peak"] for form in ("masked", "dense")}
    assert f"| {peaks['masked'] / peaks['dense']:.2f}" in line


@pytest.mark.parametrize(
    ("heading", "runs", "works"),
    [
        ("## Whole models", ("torch eager, float32", "torch eager, bfloat16"), ("step", "forward, batch 1")),
        ("With CUDA graphs", ("torch graphs, float32",), ("step", "forward, batch 1", "forward, batch 32")),
        ("In JAX (at", ("JAX jit, float32, no autotuning",), ("step", "forward, batch 1", "forward, batch 32")),
    ],
)
def test_the_times_of_whole_models_are_those_of_the_record(heading, runs, works):
    lines = [line for line in PAGE[PAGE.index(heading) :].split("\n## ")[0].splitlines() if line.startswith("| ")]
    records = [{one["id"].rpartition("/")[2]: one for one in RECORDED["whole models"]["runs"][run]} for run in runs]
    for name in list(records[0])[1:]:
        ratios = [record[name]["ratios"][work] for record in records for work in works]
        cells = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*ratio) for ratio in ratios)
        assert f"| {name} | {cells} |" in lines


def test_the_holds_are_those_of_the_record():
    found = RECORDED["holds"]
    assert f"torch {found['torch'][0]} of {found['torch'][1]}, with CUDA graphs" in PAGE
    assert f"JAX {found['jax'][0]} of {found['jax'][1]}." in PAGE
    assert f"at {found['commit']} by" in PAGE.replace("\n", " ")


@pytest.mark.parametrize("kind", ["columns", "rows", "submatrix", "blocks", "elements"])
def test_the_times_of_a_large_layer_in_jax_are_those_of_the_record(kind):
    found = {row["id"].rpartition("/")[2]: row for row in RECORDED["rows of jax"] if f"/{kind}/" in row["id"]}
    values = [found[form]["ratios"][over][0] for form in ("masked", "packed") for over in ("dense", "limit")]
    page = PAGE[PAGE.index("## A large layer in JAX") :]
    assert f"| {kind} | " + " | ".join(f"{value:.2f}" for value in values) + " |" in page


@pytest.mark.parametrize("case", [case for case in CASES if case.by], ids=lambda case: case.id)
def test_layers_of_the_grid_go_where_their_input_is(case, monkeypatch):
    """On `meta` an operator of two devices is refused, as on a GPU."""
    monkeypatch.setattr(torch_layers, "devices", lambda: ("cpu", "meta"))
    function = torch_layers.LAYERS[case.by, case.packed](case.build(case.shape), case.shape)
    sizes = (3, case.shape[1]), case.shape, case.shape[:1]
    x, weight, bias = (torch.ones(*size, device="meta", requires_grad=True) for size in sizes)
    y = function(x, weight, bias)
    y.sum().backward()
    assert y.device.type == weight.grad.device.type == "meta"
