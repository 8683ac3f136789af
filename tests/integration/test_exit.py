"""Ranks exit with the code of their command."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def test_ranks_that_end_with_a_collective_exit_with_0(start_ranks, tmp_path):
    # without `launch.errors._exit_after_cleanup` a rank aborts in two of three runs
    start_ranks(tmp_path / "last", 4, Path(__file__).with_name("last_collective.py"))
