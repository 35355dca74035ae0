"""The recipes (examples/*.py): each runs on its real data, does what its page says, and draws its figure."""

import importlib.util
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def one_thread():
    """As the scripts have it: their products are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    assert min(row[0] for row in result["everything"]) < result["masked"][-1][0]
    assert min(result["frozen"]) > 0
    assert is_drawn(module, result, tmp_path)


def test_pruned_weights_stay_zero_and_training_brings_accuracy_back(tmp_path):
    module = recipe("pruning")
    result = module.run(steps=60)
    assert [row["weights"] for row in result["pruned"].values()] == [64 * 64 * n // 4 for n in (3, 2, 1)]
    assert result["pruned"][1]["trained"] > result["pruned"][1]["after the cut"]
    assert result["pruned"][2]["trained"] > result["dense"] - 0.05
    assert is_drawn(module, result, tmp_path)


def test_a_digit_is_unlearned_by_few_weights(tmp_path):
    module = recipe("unlearning")
    result = module.run(steps=100)
    assert result["before"]["forgotten"] > 0.8
    assert result["after"]["forgotten"] < 0.1
    assert result["after"]["others"] > result["before"]["others"] - 0.05
    weights = 64 * 64 + 64 * 64 + 64 * 10
    biases = 64 + 64 + 10
    assert result["frozen"] == weights + biases - round(weights * module.DENSITY)
    assert is_drawn(module, result, tmp_path)


def test_the_trainer_holds_saves_and_resumes(tmp_path):
    result = recipe("trainer").run(tmp_path)
    assert result["frozen"] == 64 * 32 - 16 * 32 + 32 * 10 - 5 * 32 + 32 + 10
    assert result["resumed differs by"] == 0
    assert result["loaded is the same"]
    assert result["bytes"] < result["bytes of the Trainer's"]


def test_clients_of_both_frameworks_learn_together(tmp_path):
    module = recipe("federated")
    result = module.run(rounds=12)
    assert result["accuracy"][-1] > max(result["alone"]) + 0.1
    # Logits of order 10 from sums of 64 terms, in float32.
    assert max(result["apart"]) < 10 * 64 * 2**-24
    marks = 2 * 8  # of two layers, that tell their positions apart
    assert result["sent"] == round(0.2 * 64 * 64) + 64 + 64 * 10 + 10 + marks
    assert is_drawn(module, result, tmp_path)


def test_only_the_rows_of_new_tokens_learn(tmp_path):
    module = recipe("new_tokens")
    result = module.run(steps=60)
    assert result["numbers"] == module.WORDS * 64
    assert result["numbers in the optimizer"] == 2 * result["numbers"]
    assert result["tied"]
    # The old rows, counted once for the embedding and once for the head, and the two blocks.
    assert result["frozen"] > 2 * module.BYTES * 64 + 2 * 12 * 64 * 64
    assert sum(result["losses"][-10:]) < sum(result["losses"][:10])
    assert result["after"] < result["before"]
    assert is_drawn(module, result, tmp_path)
