"""The sentence encoder example (examples/minilm), from beginning to end, with few small steps."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "minilm"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--steps", "3", "--pairs", "8", "--folder", str(folder)],
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent.parent), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "report.json").read_text("utf-8")), done.stdout, folder


def test_conversion_changes_no_bit(seen):
    assert seen[0]["bits changed by conversion"] == 0


def test_embeddings_and_every_layers_gradient_are_within_bound(seen):
    report = seen[0]
    assert report["embeddings"]["lowest cosine"] > 1 - 1e-6
    assert [row["verdict"] for row in report["gradients"]] == ["within bound"] * 36
    assert all(row["ratio"] is None or 0.1 < row["ratio"] < 10 for row in report["gradients"])


def test_costs_have_the_share(seen):
    rows = seen[0]["fine-tuning"]
    packed, shira, full = rows["packed"], rows["shira"], rows["full"]
    assert packed["trained numbers"] == shira["trained numbers"]
    assert packed["bytes of gradients"] == 4 * packed["trained numbers"]
    assert packed["bytes of optimizer state"] == 8 * packed["trained numbers"]
    assert packed["bytes of checkpoint"] < 7 * packed["trained numbers"] < shira["bytes of checkpoint"]
    assert packed["bytes kept for the backward"] < full["bytes kept for the backward"]
    assert packed["bytes kept for the backward"] < shira["bytes kept for the backward"]
    for row in (packed, shira, full):
        assert len(row["losses"]) == 3
        assert row["held back"][1] < row["held back"][0]


def test_both_frameworks_train_alike(seen):
    report = seen[0]
    for ours, theirs in zip(
        report["fine-tuning"]["packed"]["losses"], report["fine-tuning"]["packed in JAX"]["losses"], strict=True
    ):
        # A loss of order 1, of cosines that are some thousand roundings off.
        assert abs(ours - theirs) < 2**-24 * 4096
    rms = report["parting"]["rms"]
    assert rms["apart"] < rms["moved"] / 100


def test_transformers_loads_what_was_trained(seen):
    assert seen[0]["round trip"]["differing numbers after transformers loads it"] == 0


def test_the_figure_is_drawn(seen):
    assert (seen[2] / "figure.svg").read_text("utf-8").count("<path") > 20
    assert "torch and JAX after 3 steps" in seen[1]


def test_pairs_are_real_and_named():
    with (FOLDER / "pairs.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 300
    for row in rows:
        assert row["first"] != row["second"]
        assert row["first_source"].split()[0] in ("torch", "jax")
        assert row["second_source"].split()[0] in ("numpy", "scipy", "jax")
