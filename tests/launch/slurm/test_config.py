"""The cluster file: the resources of jobs, and values that are refused."""

import pytest

from launch.slurm.config import Cluster, load_cluster, memory_bytes
from mezzotint.common.errors import UserError

LAB = "name: lab\nshared: /shared\nscratch: /scratch\n"


@pytest.fixture
def refusal(tmp_path):
    """The message with which a cluster file is refused."""

    def read(text: str) -> str:
        path = tmp_path / "cluster.yaml"
        path.write_text(text)
        with pytest.raises(UserError) as refused:
            load_cluster(path)
        return str(refused.value).removeprefix(f"{path}: ")

    return read


def test_an_unknown_key_is_named(refusal):
    assert refusal(LAB + "node: 3\n") == "node: unknown key; remove it or check its spelling"


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("nodes: 0", "nodes"),
        ("partition: a b", "partition"),
        ("partition: -x", "partition"),
        ("account: $(id)", "account"),
        ("memory: 1.5G", "memory"),
        ("time: tomorrow", "time"),
        ('setup: ["one\\ntwo"]', "setup.0"),
        ("export: [AWS_SECRET=1]", "export.0"),
        ('options: ["constraint=a100"]', "options.0"),
        ('options: ["--comment=a\\n--uid=0"]', "options.0"),
        ("shared: runs", "shared"),
        ('name: "lab\\nrm -rf /"', "name"),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(refusal, line, key):
    key_of = line.partition(":")[0]
    text = "".join(each + "\n" for each in LAB.splitlines() if each.partition(":")[0] != key_of)
    assert refusal(f"{text}{line}\n").startswith(f"{key}: ")


def test_a_time_that_yaml_parses_as_a_number_must_be_quoted(refusal):
    assert "put it into quotes" in refusal(LAB + "time: 1:00:00\n")
    assert Cluster(name="lab", shared="/a", scratch="/b", time="1-12:00:00").time == "1-12:00:00"


def test_training_runs_one_process_per_gpu(refusal):
    assert "one process per GPU" in refusal(LAB + "gpus_per_node: 8\ntasks_per_node: 4\n")


def test_a_stage_may_name_its_nodes_and_other_jobs_take_one_process():
    cluster = load_cluster("recipes/clusters/gpu.yaml")
    assert cluster.training_resources().tasks == 32
    assert cluster.training_resources(2).tasks == 16
    serial = cluster.serial_resources()
    assert (serial.tasks, serial.gpus_per_node) == (1, 0)
    assert (serial.partition, serial.memory) == ("cpu", "64G")
    lab = load_cluster("recipes/clusters/lab.yaml").serial_resources()
    assert (lab.partition, lab.memory) == ("batch", "3000M")


@pytest.mark.parametrize(
    ("text", "amount"),
    [("3000", 3000 << 20), ("3000M", 3000 << 20), ("64G", 64 << 30), ("1T", 1 << 40)],
)
def test_amounts_of_memory_are_slurms(text, amount):
    assert memory_bytes(text) == amount
