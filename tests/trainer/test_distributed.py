"""Rank and size of a process, from torchrun, from SLURM, or without either."""

import pytest

from mezzotint.common.errors import UserError
from trainer.distributed import join, world_from_environment

SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "10",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "3",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1(x2)",
}


@pytest.fixture
def told(monkeypatch):
    """Sets what a process is told, and nothing else."""

    def tell(**variables: str) -> None:
        for name in (*SLURM, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return tell


def where() -> tuple[int, int, int, int]:
    world = world_from_environment()
    return world.rank, world.size, world.local_rank, world.local_size


def test_a_process_that_is_told_nothing_is_alone(told):
    told()
    assert where() == (0, 1, 0, 1)


def test_torchruns_word_counts_before_slurms(told):
    told(**SLURM, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    assert where() == (1, 2, 1, 2)


@pytest.mark.parametrize(
    ("node", "listed", "here"),
    [("0", "4(x2),1(x2)", 4), ("1", "4(x2),1(x2)", 4), ("3", "4(x2),1(x2)", 1), ("0", "3", 3)],
)
def test_a_nodes_processes_are_counted_in_slurms_list(told, node, listed, here):
    told(**{**SLURM, "SLURM_NODEID": node, "SLURM_STEP_TASKS_PER_NODE": listed})
    assert where() == (9, 10, 0, here)


def test_a_batch_script_of_several_tasks_is_no_rank(told):
    told(SLURM_PROCID="0", SLURM_NTASKS="8", SLURM_LOCALID="0", SLURM_NODEID="0")
    assert where() == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SLURM_LOCALID": "x"}, "SLURM_LOCALID='x' is not a number"),
        ({"SLURM_NODEID": "4"}, "has no entry for node 4"),
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
    ],
)
def test_a_broken_word_is_named(told, change, message):
    told(**{**SLURM, **change})
    with pytest.raises(UserError, match=message):
        world_from_environment()


def test_processes_that_do_not_know_where_to_meet_say_so(told):
    told(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0")
    with pytest.raises(UserError, match="MASTER_ADDR is not set"):
        join(world_from_environment())
