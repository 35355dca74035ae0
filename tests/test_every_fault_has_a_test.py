"""Every kind of fault that real work met in the layers has a test named for it, in each twin where it can happen.

H: holds, and masks in training. M: whole models and files. A kind that one framework cannot have has the reason.
"""

import ast
from pathlib import Path

import pytest

from tests import layer_changes

ROOT = Path(__file__).parent.parent
HOLD, OTHERS, CHANGE = "test_hold_kinds", "test_optimizers_of_others", "test_jax_masks_change"
LOST, CONVERT, PACKED, USERS = "test_nothing_is_lost", "test_convert_layers", "test_packed_layers", "test_hold_by_users"

FAULTS = {
    "H1 state that a step creates is taken to be zero": (
        (HOLD, "test_h1_state_of_what_is_frozen_stays_what_the_optimizer_makes_it_as"),
        (HOLD, "test_h1_state_in_jax_is_kept_where_it_is_not_zero"),
    ),
    "H2 protection hangs on one optimizer's step": (
        (HOLD, "test_h2_a_forward_reads_held_bits_after_any_write"), (USERS, "test_held_in_jax")),
    "H3 wrappers, parts of trees, None": (
        ("test_saved_by_others", "test_h3_loops_of_others_move_nothing_that_is_frozen"),
        (HOLD, "test_h3_masks_of_a_part_of_the_tree_in_jax"),
    ),
    "H4 positions are averaged": (
        ("test_positions_are_no_floats", "test_h4_positions_stay"),
        ("test_positions_are_no_floats", "test_h4_an_average_of_all_leaves_keeps_the_positions_in_jax"),
    ),
    "H5 another mask beside an optimizer": (
        (HOLD, "test_h5_a_repack_without_the_optimizer_is_noticed"),
        (CHANGE, "test_h5_another_mask_under_a_held_optimizer_is_noticed_in_jax"),
    ),
    "H6 assert_frozen casts": (
        (HOLD, "test_h6_bits_and_dtypes_are_compared"), (HOLD, "test_h6_nnx_models_are_compared")),
    "H7 a penalty on the weight": (
        (HOLD, "test_h7_a_penalty_on_the_weight_reaches_frozen_entries_and_is_held"),
        (CHANGE, "test_h5_a_penalty_is_held_and_one_on_some_places_needs_the_masks"),
    ),
    "M1 a recipe that loses the training": (
        (LOST, "test_m1_the_recipe_comes_back_to_the_last_bit"), (LOST, "test_m1_pytrees")),
    "M2 writes to a packed weight are dropped": (
        (PACKED, "test_m2_what_is_written_to_the_weight_reaches_the_layer"),
        ("test_nnx_writes", "test_m2_a_write_to_the_whole_reaches_a_packed_layer"),
    ),
    "M3 load_packed does what mask_linears refuses": (
        (LOST, "test_m3_a_tied_weight_is_refused"),
        (LOST, "test_m3_load_packed_refuses_what_mask_linears_refuses_in_jax"),
    ),
    "M4 a hostile file": (
        ("test_storage", "test_m4_a_hostile_header_costs_little"), "both twins read files by maskedlinear_core"),
    "M5 bits of a weight in another memory layout": (
        (PACKED, "test_m5_the_forward_has_the_bits_of_the_plain_layer_in_every_memory_layout"),
        "an array of JAX has no strides",
    ),
    "M6 requires_grad_ reaches constants": (
        (PACKED, "test_m6_the_matrix_never_requires_a_gradient"), "a leaf of JAX has no such flag"),
    "M7 layers that cannot be converted": (
        (CONVERT, "test_M7_attention_learns_as_the_reference_program_does"),
        ("test_embedding", "test_M7_nnx_attention_and_linear_general"),
    ),
    "M8 masks of whole models": (
        ("test_model_selection", "test_M8_every_framework_and_every_tree_chooses_the_same"),
        ("test_model_selection", "test_M8_nnx_kernels_are_told_apart_where_square"),
    ),
    "M9 masks that change": (
        (CONVERT, "test_M9_moments_move_along_in_torch"), (CONVERT, "test_M9_moments_move_along_in_nnx")),
    "M10 arrays for others": (
        (LOST, "test_m10_a_round_of_federated_averaging_over_both_frameworks"),
        (LOST, "test_m10_arrays_of_other_positions_of_the_same_count_are_refused"),
    ),
    "M11 empty batches, transposes, layers for weights": (
        ("test_torch_only", "test_the_jacobian_of_an_empty_batch_is_empty"),
        ("test_jax_only", "test_linear_transpose_needs_the_switch"),
    ),
    "M12 messages": (
        (CONVERT, "test_M12_each_mistake_has_its_own_sentence"), (CONVERT, "test_M12_in_jax_too")),
}  # fmt: skip
"""The kinds, and a test in torch and one in JAX, or the reason why there is none."""


def names_in(file):
    return {node.name for node in ast.parse((ROOT / "tests" / f"{file}.py").read_text("utf-8")).body
            if isinstance(node, ast.FunctionDef)}  # fmt: skip


def test_all_kinds_are_listed():
    assert [kind.split()[0] for kind in FAULTS] == [f"H{n}" for n in range(1, 8)] + [f"M{n}" for n in range(1, 13)]


@pytest.mark.parametrize("kind", FAULTS)
def test_a_kind_of_fault_has_its_tests(kind):
    for named in FAULTS[kind]:
        assert isinstance(named, str) or named[1] in names_in(named[0])


@pytest.mark.parametrize("fault", layer_changes.FAULTS, ids=lambda fault: fault.what)
def test_a_fault_that_is_tried_by_hand_can_be_made_and_its_test_is_there(fault):
    compile(layer_changes.source(fault), fault.file, "exec")
    file, _, name = fault.test.partition("::")
    assert not name or name.partition("[")[0] in names_in(Path(file).stem)


def test_the_page_lists_the_faults():
    page = (ROOT / "docs" / "evidence" / "layer-faults.md").read_text("utf-8").splitlines()
    rows = [f"| {one.what} | `{one.file}` | `{one.test}` |" for one in layer_changes.FAULTS]
    assert [line for line in page if line.startswith("| ")][1:] == rows


def test_a_fault_is_told_from_a_change_that_is_none():
    """A change of nothing is not rejected, and a fault is."""
    fault = next(one for one in layer_changes.FAULTS if one.what == "attention reads its output layer unmasked")
    assert layer_changes.is_rejected(fault)
    assert not layer_changes.is_rejected(fault._replace(new=fault.old + "  # the same"))
