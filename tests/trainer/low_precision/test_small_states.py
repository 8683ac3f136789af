"""How close training with 6 bytes a weight comes to training with fp32 weights and moments."""

import pytest
from states import train

UPDATES, LAST = 200, 50


def test_the_optimizer_inside_backward_ends_where_fp32_states_do():
    """As in docs/numerics.md, half as long; there nearest rounding stays far behind."""
    whole, small = train("fp32", UPDATES), train("in backward", UPDATES)
    ends = [sum(losses[-LAST:]) / LAST for losses in (whole, small)]
    assert ends[0] < 0.6 * whole[0]
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
