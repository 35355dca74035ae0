"""The layers beside the linear one in the grid: they are the same function of their weight, and wrong ones differ."""

import pytest
import torch
import torch.nn.functional as F

from parity.records import WORLDS
from parity.suites.masked_linear import cases, grid

OTHERS = [case.id for case in cases.CASES if case.by]


def test_each_kind_of_layer_is_in_the_grid_in_every_world():
    cells = grid.plan(cases=OTHERS)
    by = {(cases.BY_ID[cell.pair].by, cases.BY_ID[cell.pair].packed, cell.world) for cell in cells}
    kinds = {("masked_parameter", False)}
    for name in ("embedding", "turned", "attention", "attention's output"):
        kinds |= {(name, False), (name, True)}
    assert by == {(*kind, world) for kind in kinds for world in WORLDS}


@pytest.mark.parametrize("case", OTHERS)
def test_a_layer_whose_frozen_entries_get_a_gradient_differs(case):
    def unmasked(input, weight, bias=None, **keywords):
        return F.linear(input, weight, bias)

    cells = grid.plan(cases=[case], worlds=["torch-eager"], transforms=["forward", "vjp"])
    found = {record.cell.transform: record.verdict for record in grid.run(cells, subjects={"torch": unmasked})}
    assert found == {"forward": "identical", "vjp": "differs"}


ATTENTION = [case.id for case in cases.CASES if case.by in ("turned", "attention", "attention's output")]


@pytest.mark.parametrize("case", ATTENTION)
def test_attention_and_turned_layers_have_the_bits_of_the_answer(case):
    """The whole grid has every transform; here those of training, in the world that compiles nothing."""
    names = ["forward", "backward", "double-backward", "non-finite", "vmap-weight"]
    cells = grid.plan(cases=[case], worlds=["torch-eager"], transforms=names)
    assert {record.cell.transform: record.verdict for record in grid.run(cells)} == dict.fromkeys(names, "identical")


@pytest.mark.parametrize("case", ["embedding-rows", "packed-embedding-rows"])
def test_a_look_up_of_wrong_rows_differs(case):
    def turned(input, weight, bias=None, *, grad_mask, **keywords):
        trains = torch.from_numpy(grad_mask.to_array(tuple(weight.shape)))
        return F.linear(input, torch.where(trains, weight, weight.detach()).flip(0), bias)

    cells = grid.plan(cases=[case], worlds=["torch-eager"], transforms=["forward"])
    assert [record.verdict for record in grid.run(cells, subjects={"torch": turned})] == ["differs"]
