"""Fine-tuning in torch: everything, a packed share, or PEFT's SHiRA. Twin of jax_training.py."""

import os
import tempfile
import time
from pathlib import Path

import torch
from masks import MASKS, RANK
from safetensors.torch import save_file
from torch_encoder import encode, load

import maskedlinear_torch as mt

RATES = {"full": 5e-5, "packed": 1e-3, "shira": 1e-3}
"""Steps of few entries may be longer."""
SCALE = 20.0


def loss(model, batch):
    """Return how badly each first sentence finds its second among all of the batch: cross entropy of cosines."""
    (first, first_mask), (second, second_mask) = batch
    cosines = encode(model, first, first_mask) @ encode(model, second, second_mask).t()
    return torch.nn.functional.cross_entropy(SCALE * cosines, torch.arange(len(cosines)))


def packed(model):
    """Let a share of each linear layer learn, and nothing else."""
    return mt.mask_linears(model, MASKS, packed=True, freeze_others=True)


def shira(model):
    """Return the model as PEFT's SHiRA trains it, with as many entries."""
    from peft import ShiraConfig, get_peft_model

    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    return get_peft_model(model, ShiraConfig(r=RANK, target_modules=targets, mask_type="random", random_seed=0))


METHODS = {"full": lambda model: model, "packed": packed, "shira": shira}


def gradients(model, batch):
    """Return the packed gradients by layer name."""
    model.zero_grad()
    loss(model, batch).backward()
    return {
        name: layer.values.grad.numpy().copy()
        for name, layer in model.named_modules()
        if isinstance(layer, mt.PackedLinear)
    }


def train(method, batches, held_back, progress=lambda text: None):
    """Fine-tune by one method.

    Returns:
        The model and what it took: the loss of each step, the loss on pairs held back before and after, and the
        bytes of gradients, optimizer state, tensors kept for the backward and checkpoint.
    """
    model = METHODS[method](load())
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=RATES[method], weight_decay=0.01)
    with torch.no_grad():
        before = loss(model, held_back).item()
    losses, kept, started = [], 0, time.perf_counter()
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        found = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t, found=found: _note(t, found), lambda t: t):
            value = loss(model, batch)
        kept = max(kept, sum(found.values()) - _bytes_of_parameters(model, found))
        value.backward()
        optimizer.step()
        losses.append(value.item())
        progress(f"torch {method}: step {step + 1}, loss {losses[-1]:.3f}")
    seconds = time.perf_counter() - started
    with torch.no_grad():
        after = loss(model, held_back).item()
    state = [t for one in optimizer.state.values() for t in one.values() if torch.is_tensor(t) and t.dim()]
    return model, {
        "losses": losses,
        "held back": [before, after],
        "seconds": seconds,
        "trained numbers": sum(one.numel() for one in learning),
        "bytes of gradients": sum(one.grad.nbytes for one in learning if one.grad is not None),
        "bytes of optimizer state": sum(t.nbytes for t in state),
        "bytes kept for the backward": kept,
        "bytes of checkpoint": checkpoint(method, model),
    }


def checkpoint(method, model):
    """Return the bytes of what has to be stored of a fine-tuned model, beside the model it started from."""
    with tempfile.TemporaryDirectory() as folder:
        if method == "packed":
            return mt.save_packed(Path(folder) / "packed.safetensors", model)
        if method == "shira":
            model.save_pretrained(folder)
            return os.path.getsize(Path(folder) / "adapter_model.safetensors")
        save_file(model.state_dict(), Path(folder) / "model.safetensors")
        return os.path.getsize(Path(folder) / "model.safetensors")


def _note(tensor, found):
    if tensor.is_sparse:
        found[id(tensor)] = tensor._nnz() * (tensor.sparse_dim() * 8 + tensor.element_size())
        return tensor
    storage = tensor.untyped_storage()
    found[storage.data_ptr()] = storage.nbytes()
    return tensor


def _bytes_of_parameters(model, found):
    # A parameter that is kept costs nothing: it is there anyway.
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    return sum(size for pointer, size in found.items() if pointer in own)
