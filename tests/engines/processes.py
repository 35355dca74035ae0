"""One of several processes that train together: run by tests/test_engines_torch.py as `processes.py RANK COUNT FOLDER`.

Writes FOLDER/RANK.json: what this process saw of every engine, kind of mask and form, held against one process.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import maskedlinear_torch as mt
from maskedlinear_core import blocks, columns, elements, rows, submatrix
from parity.verdict.bounds import error_bound

O, I, BATCH = 8, 12, 4
MASKS = {
    "columns": columns([0, 3]),
    "rows": rows([1, 6]),
    "submatrix": submatrix([1, 6], [0, 3]),
    "blocks": blocks(np.eye(4, dtype=bool), (2, 3)),
    "elements": elements(np.random.default_rng(0).random((O, I)) < 0.3),
}
PLACEMENTS = {"DTensor by rows": Shard(0), "DTensor by columns": Shard(1), "DTensor replicated": Replicate()}


def layer(mask, packed, exact):
    """A layer whose numbers are small integers, or random."""
    one = (mt.PackedLinear if packed else mt.MaskedLinear)(I, O, grad_mask=mask, seed=0)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.copy_((parameter * 9).round() if exact else parameter)
    return one


def data(exact):
    rng = np.random.default_rng(1)
    x = rng.integers(-2, 3, (BATCH, I)) if exact else rng.standard_normal((BATCH, I))
    return torch.from_numpy(x.astype(np.float32))


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def learns(one):
    return one.values if isinstance(one, mt.PackedLinear) else one.weight


class Data:
    """Each process has a part of the batch; gradients are averaged, so its loss counts as often as there are parts."""

    def __init__(self, name, rank, count, mesh):
        self.name, self.rank, self.count = name, rank, count
        self.numbers = 0

    def wrap(self, one):
        if self.name == "FSDP2":
            model = nn.Sequential(one)
            fully_shard(model[0])
            fully_shard(model)
            return model, model[0]
        model = DistributedDataParallel(one)
        model.register_comm_hook(None, self._reduce)
        return model, model.module

    def loss(self, model, x):
        return model(x.chunk(self.count)[self.rank]).square().sum() * self.count

    def _reduce(self, state, bucket):
        self.numbers += bucket.buffer().numel()
        future = dist.all_reduce(bucket.buffer() / self.count, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])


class Tensor:
    """The weight is cut among the processes, each of which sees all of the batch."""

    def __init__(self, name, rank, count, mesh):
        self.placement, self.mesh = PLACEMENTS[name], mesh
        self.numbers = None

    def wrap(self, one):
        for name, parameter in list(one.named_parameters()):
            large = name in ("weight", "base")
            placed = distribute_tensor(parameter.detach(), self.mesh, [self.placement if large else Replicate()])
            setattr(one, name, nn.Parameter(placed, requires_grad=parameter.requires_grad))
        return one, one

    def loss(self, model, x):
        return model(distribute_tensor(x, self.mesh, [Replicate()])).full_tensor().square().sum()


ENGINES = {"DDP": Data, "FSDP2": Data} | dict.fromkeys(PLACEMENTS, Tensor)


def gradient(engine, mask, packed, exact):
    model, one = engine.wrap(layer(mask, packed, exact))
    engine.loss(model, data(exact)).backward()
    return learns(one)


def alone(mask, packed, exact):
    one = layer(mask, packed, exact)
    one(data(exact)).square().sum().backward()
    return learns(one).grad


def error_over_bound(got, mask, packed):
    """The gradient of sum y^2 is 2 y^T x: against float64, with the bound of two sums, over I and over the batch."""
    one, x = layer(mask, packed, False), data(False).double()
    weight, bias = one.weight.detach().double(), one.bias.detach().double()
    exact, size = 2 * (x @ weight.t() + bias).t() @ x, 2 * (x.abs() @ weight.abs().t() + bias.abs()).t() @ x.abs()
    pick = (lambda w: mt.pack(w, grad_mask=mask)) if packed else (
        lambda w: torch.where(torch.from_numpy(mask.to_array((O, I))), w, 0))  # fmt: skip
    bound = error_bound(pick(size).numpy(), "float32", terms=I + 1 + BATCH, stages=6)
    return float(np.max(np.abs(whole(got).double().numpy() - pick(exact).numpy()) / bound, initial=0.0))


def train(engine, mask, packed):
    """Five AdamW steps with decay, held where the form needs it: how many frozen and trained entries move."""
    one = layer(mask, packed, False)
    before = one.weight.detach().clone()
    model, inner = engine.wrap(one)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1)
    if not packed:
        mt.hold_frozen(optimizer, model)
    for _ in range(5):
        optimizer.zero_grad()
        engine.loss(model, data(False)).backward()
        optimizer.step()
    if packed:
        values = whole(inner.values)
        after = mt.unpack(whole(inner.base), values, grad_mask=mask)
    else:
        after = whole(inner.weight)
    changed = (before.view(torch.int32) != after.view(torch.int32)).numpy()
    trains = mask.to_array((O, I))
    return int(changed[~trains].sum()), int(changed[trains].sum())


def cell(name, kind, packed, rank, count, mesh):
    mask = MASKS[kind]
    engine = ENGINES[name](name, rank, count, mesh)
    parameter = gradient(engine, mask, packed, exact=True)
    got, want = whole(parameter.grad), alone(mask, packed, exact=True)
    numbers = engine.numbers
    moved, trained = train(engine, mask, packed)
    return {
        "differing bits on exact inputs": int((got.view(torch.int32) != want.view(torch.int32)).sum()),
        "error over bound": error_over_bound(gradient(engine, mask, packed, exact=False).grad, mask, packed),
        "frozen bits moved in 5 held AdamW steps": moved,
        "trained entries moved": trained,
        "numbers reduced": numbers,
        "parameter placed": str(getattr(parameter, "placements", None)),
        "gradient placed": str(getattr(parameter.grad, "placements", None)),
    }


def main(rank, count, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    mesh = init_device_mesh("cpu", (count,))
    cells = {
        f"{name}/{kind}/{form}": cell(name, kind, form == "packed", rank, count, mesh)
        for name in ENGINES
        for kind in MASKS
        for form in ("masked", "packed")
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(cells))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive its process group and abort


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
