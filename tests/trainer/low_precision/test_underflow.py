"""What scales per block are for: a stack in fp16 that one scale cannot train."""

import pytest
from underflow import BLOCKS, RULE, Course, train

UPDATES = 70


@pytest.fixture(scope="module")
def one() -> Course:
    return train("one scale", UPDATES)


@pytest.fixture(scope="module")
def many() -> Course:
    return train("per block", UPDATES)


def test_one_scale_rounds_gradients_to_zero_and_the_last_block_never_moves(one):
    assert one.zeros[:3] == [0, 0, 0]
    assert 0 < one.zeros[-2] < 1
    assert one.zeros[-1] == 1
    assert one.moved[-1] == 0
    assert min(one.moved[:-1]) > 0.03


def test_with_a_scale_per_branch_no_gradient_is_zero_and_all_blocks_move(many):
    assert many.zeros == [0] * BLOCKS
    assert min(many.moved) > 0.03


def test_the_loss_falls_with_a_scale_per_branch_and_not_with_one(one, many):
    first = many.losses[0]
    assert one.losses[0] == pytest.approx(first, rel=1e-3)
    end = [sum(course.losses[-10:]) / 10 for course in (one, many)]
    assert end[0] > 0.85 * first
    assert end[1] < 0.65 * first


def test_the_scales_have_come_apart_within_the_papers_bounds(many):
    assert many.scales[0] < 10
    assert many.scales[-1] == RULE.highest == 24
    assert many.skipped < UPDATES / 2
