"""Porting errors inside of composites are named for what they are, and right ports are not accused."""

import random

import pytest

from tests.planted_errors import PLANTED, diagnosed, named

SAMPLE = random.Random(5).sample(PLANTED, 8)
"""All are in docs/evidence/planted-errors.md, made by `python -m tests.planted_errors`."""


@pytest.mark.parametrize("planted", SAMPLE, ids=[planted.name for planted in SAMPLE])
def test_planted_error_is_named(planted):
    record = diagnosed(planted)
    assert record.failed
    assert named(planted, record) == "right", record.diagnosis


@pytest.mark.parametrize("planted", SAMPLE[:4], ids=[planted.name for planted in SAMPLE[:4]])
def test_right_port_is_not_accused(planted):
    record = diagnosed(planted, wrong=False)
    assert not record.failed, record.reason


def test_there_are_sixty():
    assert len(PLANTED) >= 60
    assert len({planted.name for planted in PLANTED}) == len(PLANTED)
