"""The recipes (examples/*.py): each runs on its real data, does what its page says, and draws its figure."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"


def recipe(name):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_drawn(module, result, tmp_path):
    file = tmp_path / "figure.svg"
    module.draw(result, file)
    return file.read_text("utf-8").count("<path") > 10


def test_continual_learning_forgets_nothing(tmp_path):
    module = recipe("continual_learning")
    result = module.run(steps=60)
    assert result["changed logits"] == 0
    assert all(row[0] == result["masked"][0][0] for row in result["masked"])
    assert min(result["masked"][-1]) > 0.9
    assert result["everything"][-1][0] < result["masked"][-1][0]
    assert min(result["frozen"]) > 0
    assert is_drawn(module, result, tmp_path)


def test_pruned_weights_stay_zero_and_training_brings_accuracy_back(tmp_path):
    module = recipe("pruning")
    result = module.run(steps=60)
    assert [row["weights"] for row in result["pruned"].values()] == [64 * 64 * n // 4 for n in (3, 2, 1)]
    assert result["pruned"][1]["trained"] > result["pruned"][1]["after the cut"]
    assert result["pruned"][2]["trained"] > result["dense"] - 0.05
    assert is_drawn(module, result, tmp_path)
