"""Ranks exit with the code of their command."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.processes


def test_ranks_exit_with_0_after_cleanup_and_before_the_interpreter_ends(start_ranks, tmp_path):
    # where the interpreter ends, a thread of gloo may abort a rank that has succeeded
    start_ranks(tmp_path / "last", 2, Path(__file__).with_name("last_collective.py"))
    for rank in range(2):
        assert (tmp_path / f"last.rank{rank}.log").read_text() == "cleanup was done\n"
