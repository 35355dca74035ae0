"""Torch's engines on one machine: compile, export, autocast, checkpointing; two processes of DDP, FSDP2 and DTensor."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, rows, submatrix

O, I = 8, 12
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1, 6]),
    "submatrix": submatrix([1, 6], [0, 3]),
    "blocks": blocks(np.eye(4, dtype=bool), (2, 3)),
    "elements": elements(np.random.default_rng(0).random((O, I)) < 0.3),
}
PROCESSES = 2


def model(packed, mask=None):
    """A model with one layer of each kind, or of one mask, converted."""
    torch.manual_seed(0)
    if mask is not None:
        return mt.mask_linears(nn.Sequential(nn.Linear(I, O)), {"0": mask}, packed=packed)
    widths = [I, O, I, O, I, O]
    found = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    shapes = {str(i): (found[i].out_features, found[i].in_features) for i in range(5)}
    masks = {
        "0": columns([0, 3]),
        "1": rows([1, 6]),
        "2": submatrix([1, 6], [0, 3]),
        "3": blocks(np.eye(4, dtype=bool), (3, 2)),
        "4": elements(np.random.default_rng(0).random(shapes["4"]) < 0.3),
    }
    return mt.mask_linears(found, masks, packed=packed)


def learned(module):
    """Gradients by name."""
    return {name: one.grad for name, one in module.named_parameters() if one.grad is not None}


def gradients(module, call, x):
    module.zero_grad()
    call(x).square().sum().backward()
    return {name: grad.clone() for name, grad in learned(module).items()}


FORMS = {"masked": False, "packed": True}


@pytest.mark.parametrize("form", FORMS)
def test_compile(form):
    module, x = model(FORMS[form]), torch.randn(16, I)
    want = gradients(module, module, x)
    compiled = torch.compile(module, fullgraph=True)
    assert torch.equal(compiled(x), module(x)) or torch.allclose(compiled(x), module(x), rtol=0, atol=1e-6)
    seen = gradients(module, compiled, x)
    assert seen.keys() == want.keys()
    for name, grad in want.items():
        # Inductor may add in another order: five layers of sums of at most 16 terms each.
        torch.testing.assert_close(seen[name], grad, rtol=0, atol=float(5 * 16 * 2**-24 * grad.abs().max()) + 1e-6)
        assert torch.equal(seen[name] == 0, grad == 0)


@pytest.mark.parametrize("form", FORMS)
def test_export(form):
    module, x = model(FORMS[form]), torch.randn(16, I)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()
    for count in (16, 5):
        assert torch.equal(exported(x[:count]), module(x[:count]))
    assert not any("autograd" in str(node.target) for node in exported.graph.nodes)


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form):
    module, x = model(FORMS[form]), torch.randn(16, I)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        want = mt.unmask_linears(copy.deepcopy(module))(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, want)
    y.float().square().sum().backward()
    assert all(grad.dtype == torch.float32 for grad in learned(module).values())
    layer = module[0]
    if form == "masked":
        assert not layer.weight.grad.numpy()[~layer.grad_mask.to_array((O, I))].any()


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("form", FORMS)
def test_activation_checkpointing(form, reentrant):
    module, x = model(FORMS[form]), torch.randn(16, I, requires_grad=True)
    want = gradients(module, module, x)
    seen = gradients(module, lambda x: checkpoint(module, x, use_reentrant=reentrant), x)
    assert all(torch.equal(seen[name], grad) for name, grad in want.items())


@pytest.mark.parametrize("form", FORMS)
def test_gradient_accumulation(form):
    module = model(FORMS[form])
    x = torch.from_numpy(np.random.default_rng(0).integers(-2, 3, (4, I)).astype(np.float32))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_((parameter * 9).round())
    whole = gradients(module, lambda x: module[0](x), x)
    module.zero_grad()
    for part in x.chunk(2):
        module[0](part).square().sum().backward()
    assert all(torch.equal(learned(module)[name], grad) for name, grad in whole.items())


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What two processes saw (tests/engines/processes.py), by cell."""
    folder = tmp_path_factory.mktemp("processes")
    script = Path(__file__).parent / "engines" / "processes.py"
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "TORCH_DISTRIBUTED_DEBUG": "OFF"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(PROCESSES), str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(PROCESSES)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)[-4000:]
    cells = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]
    assert cells[0].keys() == cells[1].keys()
    return cells


def test_example_under_torchrun():
    """What the README says to type on a cluster."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
               "--rdzv-endpoint", "localhost:0", str(root / "examples" / "cluster" / "train_torch.py")]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("step")]
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 2


ENGINES = ("DDP", "FSDP2", "DTensor by rows", "DTensor by columns", "DTensor replicated")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_are_one(seen, engine, kind, form):
    for rank, cells in enumerate(seen):
        cell = cells[f"{engine}/{kind}/{form}"]
        assert cell["differing bits on exact inputs"] == 0, f"rank {rank}"
        assert cell["error over bound"] <= 1, f"rank {rank}"
        assert cell["frozen bits moved in 5 held AdamW steps"] == 0, f"rank {rank}"
        assert cell["trained entries moved"] > 0, f"rank {rank}"


@pytest.mark.parametrize("kind", MASKS)
def test_all_reduce_carries_packed_values_only(seen, kind):
    packed = int(MASKS[kind].to_array((O, I)).sum())
    for cells in seen:
        assert cells[f"DDP/{kind}/packed"]["numbers reduced"] == packed + O
        assert cells[f"DDP/{kind}/masked"]["numbers reduced"] == O * I + O


@pytest.mark.parametrize("engine", [e for e in ENGINES if e.startswith("DTensor")])
@pytest.mark.parametrize("kind", MASKS)
def test_gradients_lie_where_their_parameters_do(seen, engine, kind):
    for cells in seen:
        cell = cells[f"{engine}/{kind}/masked"]
        assert cell["gradient placed"] == cell["parameter placed"]
