"""A dry run: exact counts, bytes per process, DeepSpeed's config and the job script."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.dry_run.text import format_bytes
from trainer.memory_estimate import Sizes, States, checkpoint_bytes, estimate_memory

CLUSTER = """
name: eight GPUs a node
shared: {shared}
scratch: /tmp/scratch
partition: gpu
nodes: 2
tasks_per_node: 8
gpus_per_node: 8
cpus_per_task: 4
gpu_memory: 80G
"""


@pytest.fixture
def cluster(tmp_path):
    """Writes a cluster file; further lines may replace or add keys."""

    def write(text: str = CLUSTER) -> Path:
        path = tmp_path / "cluster.yaml"
        path.write_text(text.format(shared=tmp_path))
        return path

    return write


@pytest.fixture
def checked(mezzotint, tmp_path):
    """The report of a recipe, as JSON; nothing may have been written."""

    def check(recipe: str, *words: object) -> dict:
        runs = tmp_path / "runs"
        outcome = mezzotint("check", f"recipes/{recipe}.yaml", *words, "--json", "--runs", runs)
        assert outcome.code == 0, outcome.err
        assert not runs.exists()
        return json.loads(outcome.out)

    return check


def test_the_dvae_has_the_published_encoder_and_decoder(checked):
    report = checked("dalle_dvae")
    assert report["parameters"]["model"] == {"encoder": 53_786_240, "decoder": 43_829_766}


def test_the_prior_has_the_papers_matrices_and_its_tokens(checked):
    report = checked("dalle_prior_12b")
    assert report["block_matrices"] == {"model": 12_092_178_432}
    assert 12.09e9 < report["total"] < 12.30e9
    assert report["per_step"]["text tokens"] == 1024 * 256
    assert report["per_step"]["image tokens"] == 1024 * 1024


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        ("unclip_decoder_64", 3_564_911_110),
        ("unclip_upsampler_256", 736_263_363),
        ("unclip_upsampler_1024", 284_423_043),
    ],
)
def test_the_cascade_has_the_published_sizes(checked, recipe, count):
    assert checked(recipe)["total"] == count


def test_a_cluster_sets_the_split_of_the_batch_and_the_precision(checked, cluster):
    report = checked("dalle_prior_12b", "--cluster", cluster(), "--nodes", 4)
    assert report["machines"] == {
        "nodes": 4,
        "processes": 32,
        "processes_per_node": 8,
        "device": "gpu",
        "precision": "bf16",
        "memory": 80 * 2**30,
    }
    assert report["per_step"]["forwards per process"] == 32
    settings = report["deepspeed"]["model"]
    assert settings["train_batch_size"] == 1024
    assert settings["train_micro_batch_size_per_gpu"] == 1
    assert settings["gradient_accumulation_steps"] == 32
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["bf16"] == {"enabled": True}
    script = report["job_script"]
    assert "#SBATCH --nodes=4\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_directory_that_nodes_do_not_share_is_noted(checked, cluster):
    assert checked("dalle_dvae", "--cluster", cluster())["notes"] == []
    (note,) = checked("dalle_dvae", "--cluster", "recipes/clusters/gpu.yaml")["notes"]
    assert "is not inside /lustre/project, which all nodes share" in note


def test_without_gpus_processes_share_the_memory_of_a_node(checked, cluster):
    text = "name: lab\nshared: /tmp\nscratch: /tmp\nnodes: 2\ntasks_per_node: 2\nmemory: 6G\n"
    machines = checked("emoji_base", "--cluster", cluster(text))["machines"]
    assert (machines["device"], machines["processes"]) == ("cpu", 4)
    assert machines["memory"] == 3 * 2**30


def test_12_billion_parameters_fit_sharded_only(checked, cluster):
    sharded = checked("dalle_prior_12b", "--cluster", cluster())["memory"]
    assert sharded["fits"] is True
    parts = sharded["parts"]["model"]
    # a sixteenth of 2 + 4 + 8 + 4 + 4 bytes of each weight: gradients are sums in fp32
    assert sum(
        parts[line] for line in ("weights", "master", "moments", "averages", "gradients")
    ) == (pytest.approx(12_292_836_992 * 22 / 16, rel=1e-6))
    whole = checked("dalle_prior_12b", "engine.zero=1", "--cluster", cluster())["memory"]
    assert whole["fits"] is False
    assert whole["parts"]["model"]["weights"] == 24_585_673_984  # the paper's "about 24 GB"


def test_the_report_as_text(mezzotint, cluster, tmp_path):
    words = ["recipes/dalle_prior_12b.yaml", "engine.zero=1", "--cluster", cluster()]
    text = mezzotint("check", *words, "--runs", tmp_path / "runs").out
    for line in (
        "  (in the weight matrices of model's blocks: 12,092,178,432)",
        "machines: 16 processes on 2 nodes, one per GPU, computing in bf16",
        "  model at ZeRO 1:",
        "    weights 22.9 GiB",
        "  DOES NOT FIT into 80.0 GiB per GPU",
        "checkpoint: 206.1 GiB on disk",
        "would submit:",
        "#SBATCH --nodes=2",
    ):
        assert line in text.splitlines(), line


def test_checking_12_billion_parameters_takes_seconds_and_no_memory(tmp_path):
    code = (
        "import resource, sys\n"
        "from launch.cli.main import app\n"
        f"app(['check', 'recipes/dalle_prior_12b.yaml', '--json', '--runs', {str(tmp_path)!r}],"
        " standalone_mode=False)\n"
        "heavy = {'deepspeed', 'mlflow', 'open_clip', 'torchvision'} & set(sys.modules)\n"
        "kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sys.exit(f'{kilobytes} {heavy}' if kilobytes > 2_000_000 or heavy else 0)"
    )
    began = time.process_time()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 430_000
    assert time.process_time() - began < 15
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipes/none.yaml"], "recipes/none.yaml: cannot be read"),
        (["recipes/dalle_dvae.yaml", "model.widht=3"], "model.widht: unknown key"),
        (["recipes/dalle_dvae.yaml", "--processes", "7"], "512 samples cannot be shared by 7"),
        (["recipes/dalle_dvae.yaml", "--nodes", "3"], "--nodes: needs --cluster"),
        (
            ["recipes/dalle_dvae.yaml", "--cluster", "FILE", "--processes", "3"],
            "--processes: the cluster file sets them",
        ),
        (
            ["recipes/dalle_dvae.yaml", "--cluster", "FILE", "--nodes", "3"],
            "512 samples cannot be shared by 24 processes",
        ),
        (["recipes/dalle_dvae.yaml", "--cluster", "none.yaml"], "none.yaml: cannot be read"),
        (
            ["recipes/unclip_decoder_64.yaml", "task.condition={kind: low_resolution}"],
            "task.condition: gives low_resolution, but this model is conditioned on clip_image "
            "and text",
        ),
    ],
)
def test_impossible_options_are_refused_with_one_message(
    refused, cluster, tmp_path, words, message
):
    path = str(cluster())
    words = [path if word == "FILE" else word for word in words]
    assert message in refused("check", *words, "--runs", tmp_path / "runs")


def test_an_unknown_key_of_the_cluster_file_is_named(refused, cluster):
    path = cluster(CLUSTER + "gpu_memroy: 80G\n")
    message = refused("check", "recipes/dalle_dvae.yaml", "--cluster", path)
    assert f"{path}: gpu_memroy: unknown key" in message


PART = Sizes((1001, 500_001), largest_layer=500_001, matrices=())


def test_the_parts_of_a_footprint_follow_the_stage():
    """Bytes per weight as in the ZeRO paper: 2 + 2 + 12, of which 12, 14 or all are shared."""

    def held(zero: int, world: int) -> tuple[float, float, float]:
        one = estimate_memory(PART, States(zero, "bf16", averages=0), world)
        return (one.weights / PART.total, one.gradients / PART.total,
                (one.master + one.moments) / PART.total)  # fmt: skip

    assert held(0, 8) == (2, 2, 12)
    assert held(1, 8) == pytest.approx((2, 2 / 8, 12 / 8), rel=1e-4)
    assert held(2, 8) == held(1, 8)
    assert held(3, 8) == pytest.approx((2 / 8, 2 / 8, 12 / 8), rel=1e-4)
    assert estimate_memory(PART, States(0, "fp32", averages=0), 8).master == 0


def test_a_checkpoint_holds_everything_once():
    def each(zero: int, precision: str, *, averages: int) -> float:
        return checkpoint_bytes(PART, States(zero, precision, averages), 8) / PART.total

    assert each(0, "fp32", averages=0) == 4 + 8
    assert each(0, "bf16", averages=0) == 2 + 4 + 8
    assert each(2, "bf16", averages=1) == 2 + 4 + 8 + 4
    assert each(3, "bf16", averages=1) == 4 + 8 + 4


def test_bytes_have_a_fitting_unit():
    assert [format_bytes(n) for n in (0, 1023, 1536, 2**31, 2**50)] == [
        *("0 B", "1023 B", "1.5 KiB", "2.0 GiB", "1,024.0 TiB")
    ]


def test_parts_with_their_own_zero_stage_are_counted_by_it(checked):
    words = ["engine.zero=0", "engine.zero_per_part={model: 2}", "engine.precision=fp32"]
    report = checked("emoji_vqgan", *words, "--processes", 2)
    held = report["memory"]["parts"]
    for part, settings in report["deepspeed"].items():
        count = sum(report["parameters"][part].values())
        shared = settings["zero_optimization"]["stage"] == 2
        assert shared == (part == "model")
        assert held[part]["moments"] == pytest.approx(count * (4 if shared else 8), abs=32)


def test_the_frozen_base_of_a_control_is_counted_in_every_process(checked, cluster):
    two = CLUSTER.replace("tasks_per_node: 8", "tasks_per_node: 2")
    on = ("--cluster", cluster(two.replace("gpus_per_node: 8", "gpus_per_node: 2")), "--nodes", 2)
    memory = checked("sd1_control", *on)["memory"]
    assert memory["base"] == 859_520_964 * 2
    parts = sum(sum(each.values()) for each in memory["parts"].values())
    assert memory["total"] == parts + memory["base"]
    assert memory["start"] >= 859_520_964 * 4
    assert checked("sd1", *on)["memory"]["base"] == 0
