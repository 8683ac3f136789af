"""`mezzotint sample` of a pipeline's systems: the same images by any number of processes."""

import os
import signal
import socket
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tiny_run import CAPTIONS, write_run

from launch import processes
from launch.processes import default_processes, devices, run_in_processes, worker_error
from launch.sampling.plan import SampleOptions, plan_sampling
from launch.sampling.sample import generate_cells
from mezzotint.common.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pipeline's run of untrained networks."""
    return write_run(tmp_path_factory.mktemp("run"))


def options(system="dalle", **settings):
    return SampleOptions(
        captions=CAPTIONS, system=system, number=20, seed=4, batch=6, device="cpu", **settings
    )


def generate(run, count, chosen):
    results, *_ = run_in_processes(
        partial(generate_cells, plan_sampling(str(run), chosen)),
        device="cpu",
        processes=count,
        blocks=0,
        images=0,
    )
    return results[0]


def equal(one, two):
    assert torch.equal(one.images, two.images)
    for name in ("scores", "codes"):
        first, second = getattr(one, name), getattr(two, name)
        assert (first is None) == (second is None)
        assert first is None or torch.equal(first, second)
    assert one.nfe == two.nfe


@pytest.mark.processes
@pytest.mark.parametrize("system", ["dalle", "cascade", "hierarchy"])
def test_any_number_of_processes_generates_the_same_images_and_reports_progress(
    run, system, capsys
):
    chosen = options(system)
    one = generate(run, 1, chosen)
    assert "generate 40/40" in capsys.readouterr().out
    equal(one, generate(run, 2, chosen))
    assert "generate 40/40" in capsys.readouterr().out
    assert len(one.images.flatten(0, 1).flatten(1).unique(dim=0)) > 30


RANK = """
import sys, torch
from functools import partial
from launch.errors import run_command
from launch.processes import run_in_processes
from launch.sampling.plan import SampleOptions, plan_sampling
from launch.sampling.sample import generate_cells
def main():
    chosen = SampleOptions(captions=tuple(sys.argv[3:]), system="dalle", number=20, seed=4,
        batch=6, device="cpu")
    function = partial(generate_cells, plan_sampling(sys.argv[1], chosen))
    cells = run_in_processes(function, device="cpu", processes=None, blocks=0, images=0)
    if cells:
        torch.save([cells[0][0].codes, cells[0][0].images, cells[0][0].scores], sys.argv[2])
run_command(main)  # a thread of gloo may abort where the interpreter ends
"""


@pytest.mark.processes
def test_two_ranks_generate_what_one_process_generates(run, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, run, tmp_path / f"{rank}.pt", *CAPTIONS],
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    alone = generate(run, 1, options())
    assert not (tmp_path / "1.pt").exists()  # one rank writes
    codes, images, scores = torch.load(tmp_path / "0.pt", weights_only=True)
    assert torch.equal(codes, alone.codes)
    assert torch.equal(images, alone.images)
    assert torch.equal(scores, alone.scores)


def test_sample_shows_the_best_of_the_candidates(mezzotint, run, tmp_path):
    out = tmp_path / "grids" / "sample.png"
    words = ("sample", run, *CAPTIONS, "--system", "dalle", "--out", out, "--number", "2")
    outcome = mezzotint(*words, "--candidates", "9", "--processes", "1", "--seed", "5")
    assert outcome.code == 0, outcome.err
    assert f"{out}: 2 images of each of 2 captions" in outcome.out
    assert "generate 18/18" in outcome.out
    with Image.open(out) as image:
        assert image.width > 2 * 2 * 96
    first = out.read_bytes()
    assert mezzotint(*words, "--candidates", "9", "--seed", "5").code == 0
    assert out.read_bytes() == first
    assert "generate 6/6" in mezzotint(*words, "--seed", "5").out
    assert out.read_bytes() != first


def test_a_system_without_ranker_generates_as_many_as_are_shown(refused, mezzotint, run, tmp_path):
    words = ("sample", run, "man cook", "--system", "plain", "--out", tmp_path / "a.png")
    assert "generate 4/4" in mezzotint(*words).out
    assert (tmp_path / "a.png").is_file()
    message = refused(*words, "--candidates", "9")
    assert message.startswith("--candidates 9: plain has no ranker to choose among them")


def test_the_cascade_is_the_default_and_ranks_no_candidates(refused, mezzotint, run, tmp_path):
    words = ("sample", run, "man cook", "--out", tmp_path / "a.png")
    message = refused(*words, "--candidates", "2")
    assert message.startswith("--candidates 2: cascade is a cascade")
    assert "network evaluations per image: 8" in mezzotint(*words).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--device", "tpu0"), "--device tpu0: give cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "--device cuda:99: this machine has"),
        (("--system", "none"), "has dalle, plain, cascade, hierarchy"),
        (("--trajectory", "a.gif"), "--trajectory: a cascade is several models"),
        (("--class", "1"), "--class: conditions a single model"),
        (("--classifier", "x"), "--classifier: guides a single diffusion model"),
    ],
)
def test_what_a_pipelines_system_does_not_take_is_refused(refused, run, words, message, tmp_path):
    assert message in refused("sample", run, "man", *words, "--out", tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_a_system_needs_captions(refused, run, tmp_path):
    message = refused("sample", run, "--out", tmp_path / "no.png")
    assert message.startswith("captions: a cascade generates from captions")


def test_processes_besides_ranks_are_refused(run, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="--processes 3: 2 ranks share the work already"):
        generate(run, 3, options())


def test_there_is_a_process_for_each_gpu_and_on_a_cpu_where_the_work_pays(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    assert default_processes("cpu", blocks=100, images=10_000) == 4
    assert default_processes("cpu", blocks=2, images=10_000) == 2
    assert default_processes("cpu", blocks=100, images=100) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert default_processes(None, blocks=100, images=100) == 8
    assert default_processes(None, blocks=3, images=100) == 3
    assert default_processes("cuda:5", blocks=100, images=100) == 1
    assert [device.index for device in devices("cuda", 10)] == [*range(8), 0, 1]
    assert devices("cuda:5", 2) == [torch.device("cuda:5")] * 2
    assert devices("cpu", 2) == [torch.device("cpu")] * 2


class End:
    """The end of a connection on which this was sent, and nothing more."""

    def __init__(self, *sent):
        self.sent = list(sent)

    def recv(self):
        if not self.sent:
            raise EOFError
        return self.sent.pop(0)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGKILL, UserError, "ended by signal 9; .* a smaller --processes"),
        (1, RuntimeError, "failed with exit code 1"),
    ],
)
def test_a_process_that_ends_without_a_message_is_noticed(code, kind, words):
    process = SimpleNamespace(join=lambda timeout: None, exitcode=code)
    alive = SimpleNamespace(join=lambda timeout: None, exitcode=None)
    with pytest.raises(kind, match=words):
        raise worker_error([(alive, End()), (process, End())])
    assert worker_error([(alive, End())]) is None


def test_the_error_of_a_process_is_reported_by_the_one_that_started_it(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(processes, "_join", lambda store, rank, size: None)
    sent = []

    def fails(device, group):
        raise UserError("no model there")

    connection = SimpleNamespace(send=sent.append)
    processes.worker_main(fails, torch.device("cpu"), 1, 2, "store", connection)
    process = SimpleNamespace(join=lambda timeout: None, exitcode=0)
    with pytest.raises(UserError, match="no model there"):
        raise worker_error([(process, End(*sent))])
