"""Data parallel training in the reproducible precision, by groups of the first 1, 2, ... of several processes.

Usage: python workers.py RANK WORLD PORT
Prints as JSON the hash that this process ended with, by the size of the group and the forms of the two layers.
"""

import hashlib
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

from maskedlinear_torch import MaskedLinear, PackedLinear, columns, elements, reproducible

BATCH, STEPS = 96, 50


FORMS = {"masked": MaskedLinear, "packed": PackedLinear}


def train(rank, world, group, forms):
    """Train two layers on this worker's share of each batch; return the bits of all weights."""
    # Whatever the engine.
    engine = "auto" if forms[0] == "masked" else ("float32", "int8")[world % 2]
    how = reproducible(group=group, engine=engine)
    rng = np.random.Generator(np.random.PCG64(3))
    chosen = elements(rng.random((10, 24)) < 0.5)
    first_form, last_form = (FORMS[form] for form in forms)
    first = first_form(16, 24, grad_mask=columns(range(0, 16, 2)), seed=1, precision=how)
    last = last_form(24, 10, grad_mask=chosen, bias_mask=np.arange(10) % 3 > 0, seed=2, precision=how)
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
    rank, world, port = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = {}
    for count in range(1, world + 1):
        group = dist.new_group(range(count))  # by all processes, also those that are not in it
        for forms in (("masked", "packed"), ("packed", "masked")):
            if rank < count:
                found[f"{count} {forms}"] = hashlib.sha256(train(rank, count, group, forms)).hexdigest()
    print(json.dumps(found), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    time.sleep(0.2)  # as in examples/cluster/train_torch.py


if __name__ == "__main__":
    main()
