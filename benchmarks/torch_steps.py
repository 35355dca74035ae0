"""Steps of a torch program, to be timed and weighed: forward, backward, AdamW. Twin of jax_steps.py."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_rivals
from benchmarks.operands import Operands, check
from benchmarks.rows import Row, mask_of
from benchmarks.torch_rivals import DTYPES, Program

RATE = 1e-3


class Step:
    """A program on its operands.

    Args:
        row: What is measured.
        program: The layer.
        operands: Input and cotangent.
        device: "cpu" or "cuda".
    """

    def __init__(self, row: Row, program: Program, operands: Operands, device: str) -> None:
        self.row, self.program = row, program
        self.x, self.g = (torch.from_numpy(a).to(device, DTYPES[row.dtype]) for a in (operands.x, operands.g))
        self.x.requires_grad_(row.place == "inner")
        self.learned = [one for one in program.layer.parameters() if one.requires_grad]
        self.optimizer = torch.optim.AdamW(self.learned, lr=RATE, weight_decay=0.0)
        # Not fullgraph: what makes a sparse tensor, as SHiRA does, breaks the graph.
        self.layer = torch.compile(program.layer) if row.how == "compiled" else program.layer
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self) -> None:
        """Do the row's work once."""
        if self.row.work == "forward":
            self.layer(self.x)
        else:
            self.backward()
        if self.row.work == "adamw step":
            self.optimizer.step()
        self.wait()

    def backward(self) -> None:
        """Fill the gradients."""
        self.x.grad = None
        for one in self.learned:
            one.grad = None
        self.layer(self.x).backward(self.g)

    def check(self, name: str, mask: np.ndarray, operands: Operands) -> None:
        """Refuse a program that computes something else."""
        self.backward()
        d_weight = self.program.gradient().float().cpu().numpy()
        d_input = np.zeros(0) if self.x.grad is None else self.x.grad.float().cpu().numpy()
        check(name, self.row, operands, mask, d_weight, d_input)

    def kept(self) -> int:
        """Return the bytes that the forward keeps for the backward, beside parameters and buffers."""
        own = {one.untyped_storage().data_ptr() for one in (*self.program.layer.parameters(), *self._buffers())}
        found: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            parts: tuple[Tensor, ...] = (tensor,)
            if tensor.is_sparse:
                sparse = tensor.detach().coalesce()
                parts = sparse.indices(), sparse.values()
            for storage in (part.untyped_storage() for part in parts):
                if storage.data_ptr() not in own:
                    found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = self.program.layer(self.x)
        del output
        return sum(found.values())

    def peak(self) -> int:
        """Return the most bytes that a step holds at once beyond what was there before it: activations, gradients."""
        self()
        self.x.grad = None
        self.optimizer.zero_grad()
        if self.x.device.type == "cuda":
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self()
            return torch.cuda.max_memory_allocated() - before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            self()
        return _highest(profile.export_chrome_trace)

    def state(self) -> int:
        """Return the bytes of the optimizer's state."""
        if not self.optimizer.state:
            self.backward()
            self.optimizer.step()
        tensors = [t for one in self.optimizer.state.values() for t in one.values() if torch.is_tensor(t) and t.dim()]
        return sum(t.numel() * t.element_size() for t in tensors)

    def _buffers(self) -> list[Tensor]:
        # With a masked layer's positions: its buffers only stand for them.
        layer = self.program.layer
        positions = [one for one in getattr(layer, "_arrays", ()) if one is not None]
        return [*(one for one in layer.buffers() if one.numel()), *positions]


def steps(row: Row, operands: Operands, device: str) -> dict[str, Step]:
    """Return the steps of a row's programs, by name."""
    return {
        name: Step(row, program, operands, device)
        for name, program in torch_rivals.programs(row, operands, device).items()
    }


def curve_steps(row: Row, operands: Operands, device: str) -> dict[str, Step]:
    """Return the dense layer, the frozen one and ours, to be timed as a point of a curve."""
    mask, linear = mask_of(row), torch_rivals.linear(row, operands, device)
    programs = {
        "dense": torch_rivals.dense(copy.deepcopy(linear)),
        "frozen": torch_rivals.frozen(copy.deepcopy(linear)),
        "masked": torch_rivals.masked(copy.deepcopy(linear), mask),
        "packed": torch_rivals.packed(linear, mask),
    }
    return {name: Step(row, program, operands, device) for name, program in programs.items()}


def _highest(export: Callable[[str], object]) -> int:
    # The profiler's trace has every allocation with the total that it leads to.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        export(str(file))
        events = json.loads(file.read_text("utf-8"))["traceEvents"]
    memory = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    totals = [event["args"]["Total Allocated"] for event in memory]
    return max(totals) - totals[0] + memory[0]["args"]["Bytes"] if totals else 0
