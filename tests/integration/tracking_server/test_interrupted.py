"""One run in MLflow, though training was interrupted, on two nodes, or the server frozen."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tracked import TRAIN, ended, found, mezzotint, runs_named, steps, until

from launch.tracking.sync import sync_run
from launch.train.local import free_port, wait_for_ranks
from trainer.recipe import load as load_recipe
from trainer.run import RunDirectory
from trainer.tracking.run_log import read_metrics

# SQLAlchemy, alembic and requests warn about how MLflow uses them.
pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]

# Several seconds at 18 ms a step: the tracker sends every two seconds.
STEPS = 400
LONGER = [f"steps={STEPS}", "checkpoint.every=100", f"log.previews={STEPS // 2}"]


def longest_step(run, first):
    """Seconds between two records of metrics, from the `first` on."""
    times = [line["time"] for line in read_metrics(run / "metrics.jsonl")][first:]
    return max(late - early for early, late in itertools.pairwise(times))


def test_an_interrupted_run_is_one_run_though_the_server_froze_and_died_meanwhile(
    server, client, tmp_path
):
    """One story, since each start of training costs seconds: see the comments for its chapters."""
    run = tmp_path / "emoji_dvae"
    words = [*TRAIN, *LONGER, "--runs", tmp_path]
    chapter = {"MEZZOTINT_EXPERIMENT": "interrupted"}

    # the first attempt is told to leave in mid-run
    first = mezzotint(*words, **chapter)
    until(lambda: len(read_metrics(run / "metrics.jsonl")) > 3 or first.poll())
    first.send_signal(signal.SIGTERM)
    code, output = ended(first)
    assert code == 75, output
    before = found(client, run)
    assert before.info.status == "KILLED"
    reached = read_metrics(run / "metrics.jsonl")[-1]["step"]
    assert 0 < reached < STEPS
    assert steps(client, run) == list(range(1, reached + 1))

    # during the second one the same run is running again, until the server freezes
    second = mezzotint(*words, **chapter)
    until(lambda: found(client, run).info.status == "RUNNING" or second.poll() is not None)
    assert not (run / "summary.json").is_file(), "training ended before the server froze"
    server.freeze()
    until(lambda: (run / "summary.json").is_file())
    finished = time.monotonic()
    code, output = ended(second)
    frozen_seconds = time.monotonic() - finished
    assert code == 0, output
    assert "does not respond in time" in output
    assert "mezzotint tracking sync" in output
    assert frozen_seconds < 30
    assert longest_step(run, reached) < 4.0  # as long as each request waits for the frozen server

    # the server dies; what it missed cannot be sent yet, and is sent when it is back
    server.thaw()
    server.stop()
    code, output = ended(mezzotint("tracking", "sync", run))
    assert code == 2
    assert output.startswith("error: nothing listens where the MLflow server at")
    assert len(output.splitlines()) == 1
    server.start()
    code, output = ended(mezzotint("tracking", "sync", run, "--json"))
    assert code == 0, output
    (report,) = json.loads(output)["runs"]
    assert report["run_id"] == before.info.run_id
    assert report["artifacts"] > 0
    assert report["steps"] > 0
    assert steps(client, run) == list(range(1, STEPS + 1))
    after = found(client, run)
    assert after.info.status == "FINISHED"
    assert after.data.params == before.data.params
    assert [each.data.tags["mezzotint.restarts"] for each in (before, after)] == ["0", "1"]
    assert len(runs_named(client, "interrupted")) == 1
    pictures = client.list_artifacts(after.info.run_id, "images")
    assert len([entry for entry in pictures if entry.path.endswith(".png")]) == 2 * 2
    assert "up to date" in sync_run(run).to_text()
    assert steps(client, run) == list(range(1, STEPS + 1))


def test_every_node_s_load_is_under_the_one_run_that_the_first_process_made(
    server, client, tmp_path
):
    run = RunDirectory(tmp_path / "nodes")
    run.claim(load_recipe(TRAIN[1], [*TRAIN[2:], "steps=6", "log.previews=null"]))
    shared = {
        **os.environ,
        "MEZZOTINT_EXPERIMENT": "two nodes",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "launch.train.worker", str(run.path)],
            env={**shared, "RANK": str(rank), "SLURMD_NODENAME": f"node{rank}"},
        )
        for rank in range(2)
    ]
    assert wait_for_ranks(ranks) == 0
    (only,) = runs_named(client, "two nodes")
    assert only.info.status == "FINISHED"
    assert only.data.tags["mezzotint.processes"] == "2"
    sync_run(run.path)  # the last samples of the other node may have come before the run had an id
    names = {"cpu_utilization_percentage", "network_receive_megabytes", "disk_usage_percentage"}
    kept = client.get_run(only.info.run_id).data.metrics
    for host in ("node0", "node1"):
        assert {f"system/{host}/{name}" for name in names} <= set(kept)
        seconds = steps(client, run.path, f"system/{host}/system_memory_usage_percentage")
        assert seconds == sorted(set(seconds))
