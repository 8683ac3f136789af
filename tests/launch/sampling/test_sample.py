"""`mezzotint sample`: what is drawn does not depend on how many processes draw it."""

import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from launch.sampling.parallel import Request, draw_candidates
from PIL import Image

from data_pipeline.text.tokenizer import Tokenizer
from launch.sampling import parallel
from mezzotint.common.errors import UserError
from mezzotint.inference.config import CascadeSystem, DalleSystem
from mezzotint.inference.images import to_bytes
from models import store
from models.autoencoders.dvae import DVAEConfig
from models.autoregressive.decoding import Sampling
from models.autoregressive.prior import PriorConfig
from models.clip import ClipConfig

PRIOR = PriorConfig(
    text_vocab=60, text_length=6, image_vocab=8, grid=(4, 4), width=16, layers=2, heads=1,
    head_width=16,
)  # fmt: skip
DVAE = DVAEConfig(image_size=16, vocab=8, width=8, groups=2, patch=2, first=8)
CLIP = ClipConfig(
    image_size=16, patch=8, vision_width=16, vision_layers=1, text_vocab=60, text_length=6,
    text_width=16, text_layers=1, head_width=8, embed=8,
)  # fmt: skip
CAPTIONS = ("woman pilot", "man cook")


@pytest.fixture(scope="module")
def dalle(tmp_path_factory):
    """A system of three untrained networks in model directories."""
    root = tmp_path_factory.mktemp("models")
    words = [f"{who} {what}" for who in ("woman", "man", "person") for what in ("pilot", "cook")]
    tokenizer = Tokenizer.train(words, 40)
    for name, config in (("prior", PRIOR), ("dvae", DVAE), ("clip", CLIP)):
        torch.manual_seed(0)
        network = config.build()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
        reads = {} if name == "dvae" else {"tokenizer": tokenizer, "text_length": 6}
        store.save(str(root / name), config, network.state_dict(), card="tiny", **reads)
    return DalleSystem(
        prior=str(root / "prior"),
        dvae=str(root / "dvae"),
        ranker=str(root / "clip"),
        candidates=3,
        sampling=Sampling(guidance=1.5),
    )


@pytest.fixture
def request_of(dalle):
    return Request(dalle, CAPTIONS, candidates=20, seed=4)


def silent(done, total):
    pass


@pytest.mark.processes
def test_two_processes_draw_what_one_draws_and_tell_of_it(request_of):
    seen = {1: [], 2: []}
    one, two = (
        draw_candidates(
            request_of, count, lambda done, total, count=count: seen[count].append(done)
        )
        for count in (1, 2)
    )
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.ranking, two.ranking)
    assert len(one.codes.flatten(0, 1).flatten(1).unique(dim=0)) > 30
    for told in seen.values():
        assert told == sorted(told)
        assert told[-1] == 40
        assert len(told) > 10


@pytest.mark.processes
def test_two_ranks_draw_what_one_process_draws(request_of, tmp_path):
    code = (
        "import sys, torch\n"
        "from launch.sampling.parallel import Request, draw_candidates\n"
        "from mezzotint.inference.config import DalleSystem\n"
        "system = DalleSystem.model_validate_json(sys.argv[1])\n"
        "request = Request(system, tuple(sys.argv[3:]), candidates=20, seed=4)\n"
        "samples = draw_candidates(request, 1, lambda done, total: None)\n"
        "torch.save([samples.codes, samples.images, samples.scores], sys.argv[2])\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, request_of.system.model_dump_json(),
             tmp_path / f"{rank}.pt", *CAPTIONS],
            env=os.environ | meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    alone = draw_candidates(request_of, 1, silent)
    for rank in range(2):
        codes, images, scores = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(codes, alone.codes)
        assert torch.equal(to_bytes(images), to_bytes(alone.images))
        assert torch.equal(scores, alone.scores.float())


@pytest.fixture
def trained(monkeypatch, dalle):
    """Every run's system is the tiny one, or a cascade."""
    cascade = CascadeSystem(base="base", upsampler="upsampler")
    systems = {"dalle": dalle, "plain": dalle.model_copy(update={"ranker": None, "candidates": 1})}
    monkeypatch.setattr(
        "launch.sampling.sample.system_of", lambda run, name: systems.get(name, cascade)
    )
    monkeypatch.setattr("launch.sampling.sample.is_pipeline", lambda where: True)
    monkeypatch.setattr("launch.sampling.sample.default_system", lambda run: "cascade")


def test_sample_shows_the_best_of_the_candidates(mezzotint, trained, tmp_path, monkeypatch):
    asked = []

    def draw(request, processes, progress):
        asked.append((request.candidates, processes, request.seed))
        return draw_candidates(request, 1, progress)

    monkeypatch.setattr("launch.sampling.sampler.draw_candidates", draw)
    out = tmp_path / "sheets" / "sample.png"
    words = ("sample", "runs/x", *CAPTIONS, "--system", "dalle", "--out", out, "--number", "2")
    outcome = mezzotint(*words, "--candidates", "9", "--processes", "2", "--seed", "5")
    assert outcome.code == 0, outcome.err
    assert f"{out}: 2 pictures of each of 2 captions" in outcome.out
    assert "draw 18/18" in outcome.out
    with Image.open(out) as picture:
        assert picture.width > 2 * 2 * 96
    first = out.read_bytes()
    assert mezzotint(*words, "--candidates", "9", "--seed", "5").code == 0
    assert out.read_bytes() == first
    assert mezzotint(*words, "--seed", "5").code == 0
    assert out.read_bytes() != first
    assert asked == [(9, 2, 5), (9, 1, 5), (3, 1, 5)]


def test_a_system_without_ranker_draws_as_many_as_are_shown(refused, mezzotint, trained, tmp_path):
    words = ("sample", "runs/x", "man cook", "--system", "plain", "--out", tmp_path / "a.png")
    assert "draw 4/4" in mezzotint(*words).out
    assert (tmp_path / "a.png").is_file()
    message = refused(*words, "--candidates", "9")
    assert message.startswith("--candidates 9: plain has no ranker to choose among them")


def test_a_cascade_draws_no_candidates(refused, trained, tmp_path):
    words = ("sample", "runs/x", "man cook", "--out", tmp_path / "a.png")
    for option in ("candidates", "processes"):
        message = refused(*words, f"--{option}", "2")
        assert message.startswith(f"{option} 2: cascade is a cascade")


def test_processes_besides_ranks_are_refused(request_of, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UserError, match="--processes 3: 2 ranks draw already"):
        draw_candidates(request_of, 3, silent)


class End:
    """The end of a connection on which this was said, and nothing more."""

    def __init__(self, *said):
        self.said = list(said)

    def recv(self):
        if not self.said:
            raise EOFError
        return self.said.pop(0)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (-signal.SIGKILL, UserError, "ended by signal 9; .* a smaller --processes"),
        (1, RuntimeError, "failed with exit code 1"),
    ],
)
def test_a_process_that_ends_without_a_word_is_noticed(monkeypatch, code, kind, words):
    monkeypatch.setattr(parallel, "wait", list)
    process = SimpleNamespace(join=lambda: None, exitcode=code)
    with pytest.raises(kind, match=words):
        parallel.gathered([parallel.WorkerProcess(process, End(0.5), 3)], silent)


def test_what_a_process_refuses_is_said_by_the_one_that_started_it(
    request_of, tmp_path, monkeypatch
):
    system = request_of.system.model_copy(update={"prior": str(tmp_path / "none")})
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    said = []
    lost = Request(system, CAPTIONS, candidates=2, seed=0)
    parallel.help_out(lost, 0, 2, SimpleNamespace(send=said.append))
    monkeypatch.setattr(parallel, "wait", list)
    with pytest.raises(UserError, match="none"):
        parallel.gathered([parallel.WorkerProcess(SimpleNamespace(), End(*said), 2)], silent)
