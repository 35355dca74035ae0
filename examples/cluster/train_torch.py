"""Data parallel training of a packed model with FSDP2, on one machine or many.

torchrun --nproc-per-node 2 examples/cluster/train_torch.py
torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 examples/cluster/train_torch.py
"""

import os
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from maskedlinear_torch import columns, mask_linears, rows

STEPS, BATCH = 20, 16


def main():
    """Train; every process has its own part of the data."""
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, local = dist.get_rank(), int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if on_gpu else torch.device("cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
    mask_linears(model, {"0": columns(range(4)), "2": rows([0])}, packed=True)
    model.to(device)
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    # The frozen matrices are cut among the processes like everything else; only packed values have gradients.
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    draw = torch.Generator().manual_seed(1 + rank)
    for step in range(STEPS):
        x = torch.randn(BATCH, 32, generator=draw).to(device)
        loss = (model(x) - x[:, :1]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dist.all_reduce(loss.detach_())
        if rank == 0 and step % 5 == 4:
            print(f"step {step + 1}: loss {loss.item() / dist.get_world_size():.3f}", flush=True)
    dist.barrier()
    dist.destroy_process_group()
    # A thread of Gloo that lets go of the barrier's tensors only once Python ends would abort the process.
    time.sleep(0.2)


if __name__ == "__main__":
    main()
