"""One of several processes that train other layers than the linear one: run by tests/test_engines_layers.py.

Usage: python layers.py RANK COUNT FOLDER. Writes FOLDER/RANK.json: what this process saw of every engine and layer,
held against one process, or the text of the error.
"""

import copy
import json
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from processes import Data, Tensor, whole
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

import maskedlinear_torch as mt

TOKENS, WIDTH, BATCH = 8, 6, 4
IDS = torch.tensor([[0, 3, 3], [1, 2, 4], [7, 7, 3], [5, 6, 0]])


class Embedded(nn.Module):
    """Tokens, and the head tied to them or none."""

    def __init__(self, tied):
        super().__init__()
        self.tokens = nn.Embedding(TOKENS, WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False) if tied else nn.Identity()
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids):
        return self.head(self.tokens(ids))


class Attending(nn.Module):
    """Attention to itself."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def converted(model, masks, packed=False):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-2, 3, parameter.shape).float())
    return mt.mask_linears(model, masks, packed=packed, freeze_others=False)


def dense(shape):
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(3)).float()


NEW = mt.rows([3, 7])
LAYERS = {
    "embedding, masked": (lambda: converted(Embedded(False), {"tokens": NEW}), IDS),
    "embedding, packed": (lambda: converted(Embedded(False), {"tokens": NEW}, True), IDS),
    "tied head, masked": (lambda: converted(Embedded(True), {"tokens": NEW, "head": NEW}), IDS),
    "tied head, packed": (lambda: converted(Embedded(True), {"tokens": NEW, "head": NEW}, True), IDS),
    "Conv1D, masked": (lambda: converted(nn.Sequential(Conv1D(8, 6)), {"0": mt.columns([1, 4])}), dense((BATCH, 6))),
    "Conv1D, packed": (
        lambda: converted(nn.Sequential(Conv1D(8, 6)), {"0": mt.columns([1, 4])}, True), dense((BATCH, 6)),
    ),
    "attention, masked": (
        lambda: converted(Attending(), {"attention.q_proj": mt.rows([0, 1]), "attention.out_proj": mt.columns([1])}),
        dense((BATCH, 3, WIDTH)),
    ),
}  # fmt: skip


class ByData(Data):
    """Whole models instead of one layer."""

    def wrap(self, model):
        if self.name == "FSDP2":
            fully_shard(model)
            return model
        return DistributedDataParallel(model)

    def loss(self, model, x):
        return super().loss(model, x)


class ByWeight(Tensor):
    """The matrices are cut; the input is on every device."""

    def wrap(self, model):
        placed = {}
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                where = self.placement if name in ("weight", "base") else Replicate()
                if id(parameter) not in placed:
                    cut = distribute_tensor(parameter.detach(), self.mesh, [where])
                    placed[id(parameter)] = nn.Parameter(cut, requires_grad=parameter.requires_grad)
                setattr(module, name, placed[id(parameter)])
        return model


ENGINES = {"DDP": ByData, "FSDP2": ByData, "DTensor by rows": ByWeight, "DTensor by columns": ByWeight}
BEYOND = {
    ("DTensor by rows", "attention, masked"): "torch's attention views its heads as DTensor refuses to, masked or not",
    ("DTensor by columns", "attention, masked"): "the same",
    (
        "FSDP2",
        "Conv1D, packed",
    ): "its matrix is a transposed view, and FSDP takes contiguous parameters only: it says so",
}


def gradients(model):
    return [whole(p.grad) for p in model.parameters() if p.requires_grad and p.grad is not None]


def cell(name, layer, rank, count, mesh):
    make, x = LAYERS[layer]
    engine = ENGINES[name](name, rank, count, mesh)
    alone, model = make(), engine.wrap(make())
    alone(x).square().sum().backward()
    engine.loss(model, x).backward()
    pairs = list(zip(gradients(alone), gradients(model), strict=True))
    exact = "attention" not in layer  # a softmax rounds
    differing = sum(
        int((a != b).sum()) if exact else int(((a - b).abs() > 1e-4 * a.abs().max()).sum()) for a, b in pairs
    )
    zeros = sum(int(((a == 0) != (b == 0)).sum()) for a, b in pairs)
    inner = model.module if name == "DDP" else model
    before = {key: whole(value).clone() for key, value in inner.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    if "masked" in layer:
        mt.hold_frozen(optimizer, model)
    for _ in range(3):
        optimizer.zero_grad()
        engine.loss(model, x).backward()
        optimizer.step()
    saved = inner.state_dict()
    after = {key: whole(value).clone() for key, value in saved.items()}
    y = whole(model(x) if name in ("DDP", "FSDP2") else model(distribute_tensor(x, mesh, [Replicate()])))
    plain = make()
    plain.load_state_dict(after)
    moved = sum(int((before[key] != after[key]).sum()) for key in before)
    mt.assert_frozen(before, after, mt.grad_masks(copy.deepcopy(alone)))
    far = float((plain(x) - y).abs().max() / y.abs().max())
    return {"differing": differing, "other zeros": zeros, "moved": moved, "loaded elsewhere, off by": far}


def main(rank, count, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    cells = {}
    for name in ENGINES:
        for layer in LAYERS:
            if (name, layer) not in BEYOND:
                try:
                    cells[f"{name}/{layer}"] = cell(name, layer, rank, count, mesh)
                except Exception:  # told in the report, by cell
                    cells[f"{name}/{layer}"] = {"error": traceback.format_exc()[-1500:]}
    Path(folder, f"{rank}.json").write_text(json.dumps(cells))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # as in processes.py


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
