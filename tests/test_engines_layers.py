"""Embeddings, tied heads, Conv1D and attention on two processes: DDP, FSDP2, DTensor by rows and by columns (S13).

Row freezing that a sharded gradient breaks is what users meet elsewhere: here the gradients of integers are those of
one process to the last bit, a held AdamW with decay moves no frozen bit, and what was saved loads into one process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENGINES = Path(__file__).parent / "engines"
sys.path.insert(0, str(ENGINES))

import layers  # noqa: E402

CELLS = [
    f"{engine}/{layer}" for engine in layers.ENGINES for layer in layers.LAYERS if (engine, layer) not in layers.BEYOND
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    environment = os.environ | {"PYTHONPATH": str(ENGINES.parent.parent), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(ENGINES / "layers.py"), str(rank), "2", str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [worker.communicate(timeout=300)[0] for worker in workers]
    assert all(worker.returncode == 0 for worker in workers), "\n".join(outputs)[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_every_cell_was_run(seen):
    assert all(list(cells) == CELLS for cells in seen)


@pytest.mark.parametrize("cell", CELLS)
def test_two_processes_are_one(seen, cell):
    for rank, cells in enumerate(seen):
        found = cells[cell]
        assert "error" not in found, f"rank {rank}: {found}"
        assert (found["differing"], found["other zeros"]) == (0, 0), f"rank {rank}"
        assert found["moved"] > 0, f"rank {rank}: nothing learned"
        # Sums of at most 24 terms, added in parts: 24 roundings of float32 each, of the largest answer.
        assert found["loaded elsewhere, off by"] <= 24 * 2.0**-24, f"rank {rank}"
