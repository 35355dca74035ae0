"""Every way of moving weights that is known, held: what docs/how-to/hold-table.md says (S8).

`python tests/test_hold_table.py` writes that page.
"""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))

import hold_cases as cases  # noqa: E402

import maskedlinear_jax as mj  # noqa: E402
import maskedlinear_torch as mt  # noqa: E402

PAGE = ROOT / "docs" / "how-to" / "hold-table.md"
FROZEN = ~cases.MASK.to_array((cases.O, cases.I))


def seen_by_a_forward(layer):
    """The matrix that the layer multiplies by: its answers to unit vectors, exactly."""
    eye = np.eye(cases.I, dtype=np.float32)
    if isinstance(layer, mt.MaskedLinear):
        return layer(cases.torch.from_numpy(eye)).detach().numpy().T
    return np.asarray(layer(eye)).T


def moved(case, hold):
    """How many entries move, as a forward sees them: frozen ones and trained ones."""
    before = cases.layer_of().weight.detach().numpy()
    changed = seen_by_a_forward(case(hold)).view(np.int32) != before.view(np.int32)
    return int(changed[FROZEN].sum()), int(changed[~FROZEN].sum())


ALL = {("torch", name): case for name, case in cases.TORCH.items()} | {
    ("JAX", name): case for name, case in cases.JAX.items()
}
HOLD = {"torch": mt.hold_frozen, "JAX": mj.hold_frozen}
BARE = {"torch": lambda optimizer, *models: None, "JAX": cases.unheld}


@pytest.mark.parametrize(("framework", "name"), ALL, ids=[f"{framework}-{name}" for framework, name in ALL])
def test_held(framework, name):
    frozen, trained = moved(ALL[framework, name], HOLD[framework])
    assert frozen == 0
    assert trained == cases.O, "nothing learned: the case is void"


@pytest.mark.parametrize("name", [name for name in cases.TORCH if name not in cases.STILL])
def test_without_a_hold_it_moves(name):
    """What the cases are worth: each moves frozen entries where nothing holds them."""
    assert moved(cases.TORCH[name], BARE["torch"])[0] > 0


@pytest.mark.parametrize("name", cases.UNSEEN)
def test_what_a_hold_in_jax_does_not_see_is_found_and_put_back(name):
    """The page says so, and what to do."""
    start = cases.layer_in_jax()
    after = cases.UNSEEN[name](mj.hold_frozen)
    with pytest.raises(AssertionError, match="frozen entries moved"):
        mj.assert_frozen(start, after)
    assert mj.assert_frozen(start, mj.keep_frozen(after, start, start)) == FROZEN.sum()


def page():
    lines = [
        "# What `hold_frozen` holds",
        "",
        "Each line is a case of `tests/hold_cases.py`: a layer of which one column trains, moved in that way. A",
        "frozen entry counts as moved if a forward reads other bits than before. `tests/test_hold_table.py` runs",
        "the cases and writes this page.",
        "",
        "`tests/test_hold_layers.py` does the same for other layers: embeddings with padding and with a tied head,",
        "Conv1D, attention's projections, and parametrizations by `mask_parameter` (convolutions, norms, recurrent",
        "weights), each with three optimizers, writes through `.data`, copies, casts and loaded weights.",
        "",
    ]
    for framework in ("torch", "JAX"):
        lines += [f"## {framework}", "", "| moved by | frozen entries moved, held |", "|---|---|"]
        for (of, name), case in ALL.items():
            if of == framework:
                frozen, _ = moved(case, HOLD[framework])
                lines.append(f"| {name} | {frozen} of {FROZEN.sum()} |")
        lines.append("")
    lines += [
        "A hold in JAX is a part of the program that updates, and does not see the rest of it. These move frozen",
        "entries:",
        "",
        *[f"- {name};" for name in cases.UNSEEN],
        "",
        "Put `hold_frozen` around all of it, or the frozen entries back with `keep_frozen`. `assert_frozen` finds what",
        "moved.",
        "",
        "`python -m benchmarks.held_steps` measures what a held step costs; [the figures](../explanation/cost.md).",
        "",
    ]
    return "\n".join(lines)


def test_the_page_has_every_case():
    """And no other; that each holds is what `test_held` shows."""
    rows = [line.split(" | ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    told = [row[0].removeprefix("| ") for row in rows if row[0] != "| moved by"]
    assert told == [name for _, name in ALL]
    assert {row[1].removesuffix(" |") for row in rows if row[0] != "| moved by"} == {f"0 of {FROZEN.sum()}"}
    assert [line[2:-1] for line in PAGE.read_text("utf-8").splitlines() if line.startswith("- ")] == [*cases.UNSEEN]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
