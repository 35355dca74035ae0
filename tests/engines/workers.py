"""Data parallel training in the reproducible precision: run by `torchrun`-like processes, prints a hash (rank 0).

Usage: python workers.py RANK WORLD PORT KIND
"""

import hashlib
import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from maskedlinear_torch import MaskedLinear, PackedLinear, columns, elements, reproducible

BATCH, STEPS = 96, 50


def train(rank, world, form):
    """Train two layers on this worker's share of each batch; return the bits of all weights."""
    how = reproducible(group=dist.group.WORLD)
    rng = np.random.Generator(np.random.PCG64(3))
    chosen = elements(rng.random((10, 24)) < 0.5)
    make = {"masked": MaskedLinear, "packed": PackedLinear}[form]
    first = make(16, 24, grad_mask=columns(range(0, 16, 2)), seed=1, precision=how)
    last = make(24, 10, grad_mask=chosen, bias_mask=np.arange(10) % 3 > 0, seed=2, precision=how)
    learned = [p for layer in (first, last) for p in layer.parameters() if p.requires_grad]
    for _ in range(STEPS):
        x, t = (rng.standard_normal((BATCH, size)).astype(np.float32) for size in (16, 10))
        mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        output = last(torch.relu(first(torch.from_numpy(x[mine]))))
        residual = output.detach() - torch.from_numpy(t[mine])
        # The gradients are those of the whole batch, on every worker.
        gradients = torch.autograd.grad(output, learned, residual * 2.0**-7)
        with torch.no_grad():
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter.sub_(gradient * 0.25)
    return b"".join(part.detach().numpy().tobytes() for layer in (first, last) for part in (layer.weight, layer.bias))


def main():
    rank, world, port, form = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    print(hashlib.sha256(train(rank, world, form)).hexdigest(), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
