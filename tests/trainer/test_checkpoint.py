"""Commit protocol of checkpoints, with a small stand-in for DeepSpeed and no training."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mezzotint.common.errors import UserError
from trainer.checkpoint import MANIFEST, Checkpoints, verify
from trainer.distributed import World


@dataclass
class FakeEngine:
    """Keeps one tensor where DeepSpeed keeps its files."""

    part: str = "model"
    value: float = 0.0
    zero: int = 0

    def save(self, directory: str) -> None:
        folder = Path(directory) / self.part
        folder.mkdir()
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            (folder / name).write_bytes(json.dumps(self.value).encode() * 50)

    def restore(self, directory: str) -> None:
        text = (Path(directory) / self.part / "mp_rank_00_model_states.pt").read_text()
        self.value = float(text[: len(text) // 50])


@dataclass
class FakeEma:
    updates: int = 0
    values: dict[str, Tensor] = field(default_factory=lambda: {"weight": torch.zeros(3)})

    def restore(self, values, updates) -> None:
        self.values, self.updates = dict(values), updates


def world(size: int = 1) -> World:
    return World(rank=0, size=size, local_rank=0, local_size=size, device=torch.device("cpu"))


def write(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        ema = FakeEma(step, {"weight": torch.full((3,), float(step))})
        engines, emas = {"model": FakeEngine(value=step / 10)}, {"model": ema}
        checkpoints.save(step, engines, emas, {"stream": {"consumed": step}})


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """Checkpoints of steps 10 and 20."""
    made = Checkpoints(tmp_path / "checkpoints", world(), keep=2)
    write(made, 10, 20)
    return made


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.root.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(checkpoints):
    engine, ema = FakeEngine(), FakeEma()
    state = checkpoints.restore(checkpoints.newest(), {"model": engine}, {"model": ema})
    assert (engine.value, ema.updates, ema.values["weight"].tolist()) == (2.0, 20, [20.0] * 3)
    assert (state["step"], state["stream"]) == (20, {"consumed": 20})


@pytest.mark.parametrize(
    ("zero", "own"), [(0, []), (2, []), (3, ["ema-model-rank_1_.safetensors"])]
)
def test_only_sharded_averages_are_written_by_every_process(tmp_path, zero, own):
    second = World(rank=1, size=2, local_rank=1, local_size=2, device=torch.device("cpu"))
    (tmp_path / ".step-00000010.tmp").mkdir()  # the first process makes it
    engines, emas = {"model": FakeEngine(zero=zero)}, {"model": FakeEma()}
    Checkpoints(tmp_path, second, keep=1).save(10, engines, emas, {})
    assert [path.name for path in tmp_path.glob(".step-00000010.tmp/ema-*")] == own


def test_whole_averages_are_read_by_every_process(tmp_path):
    engines = {"model": FakeEngine()}
    path = Checkpoints(tmp_path, world(2), keep=1).save(
        10, engines, {"model": FakeEma(3, {"weight": torch.ones(3)})}, {}
    )
    second = World(rank=1, size=2, local_rank=1, local_size=2, device=torch.device("cpu"))
    ema = FakeEma()
    Checkpoints(tmp_path, second, keep=1).restore(path, engines, {"model": ema})
    assert (ema.updates, ema.values["weight"].tolist()) == (3, [1.0] * 3)


def test_no_checkpoint_is_none_and_not_an_error(tmp_path):
    assert Checkpoints(tmp_path / "none", world(), keep=1).newest() is None
    assert not (tmp_path / "none").exists()


def test_the_newest_are_kept_and_nothing_temporary_stays(checkpoints):
    write(checkpoints, 30, 40)
    assert names(checkpoints) == ["latest", "step-00000030", "step-00000040"]
    assert (checkpoints.root / "latest").read_text() == "step-00000040"


def test_the_manifest_lists_every_file_with_size_and_digest(checkpoints):
    path = checkpoints.newest()
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["world"] == 1
    assert sorted(manifest["files"]) == [
        "ema-model-rank_0_.safetensors",
        "model/mp_rank_00_model_states.pt",
        "model/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "state.json",
    ]
    assert verify(path) is None


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


WEIGHTS = "model/mp_rank_00_model_states.pt"
DAMAGE = {
    "flipped bit": (lambda at: flip(at / WEIGHTS), "has changed since it was written"),
    "truncated": (
        lambda at: (at / WEIGHTS).write_bytes((at / WEIGHTS).read_bytes()[:-1]),
        "bytes instead of",
    ),
    "missing file": (lambda at: (at / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "unlisted file": (
        lambda at: (at / "model" / "zero_pp_rank_9_mp_rank_00_optim_states.pt").write_bytes(b"x"),
        "is not listed in its manifest",
    ),
    "no manifest": (lambda at: (at / MANIFEST).unlink(), "cannot be read"),
    "torn manifest": (
        lambda at: (at / MANIFEST).write_text((at / MANIFEST).read_text()[:-9]),
        "cannot be read",
    ),
    "manifest of something else": (lambda at: (at / MANIFEST).write_text("[1, 2]"), MANIFEST),
    "manifest without digests": (
        lambda at: (at / MANIFEST).write_text('{"world": 1, "files": {"state.json": {}}}'),
        MANIFEST,
    ),
    "flipped bit of the position": (lambda at: flip(at / "state.json"), "state.json has changed"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(checkpoints, caplog, kind):
    damage, fault = DAMAGE[kind]
    damage(checkpoints.root / "step-00000020")
    assert checkpoints.newest() == checkpoints.root / "step-00000010"
    (message,) = caplog.messages
    assert f"{checkpoints.root / 'step-00000020'} is not used: " in message
    assert fault in message


def test_damage_everywhere_is_refused_with_the_directory_and_the_next_step(checkpoints):
    for path in checkpoints.root.glob("step-*"):
        flip(path / WEIGHTS)
    with pytest.raises(UserError) as caught:
        checkpoints.newest()
    assert str(caught.value).startswith(f"{checkpoints.root}: no checkpoint can be used; ")
    assert "start from step 0" in str(caught.value)


@pytest.mark.parametrize("moment", ["engine", "manifest", "rename"])
def test_a_crash_before_the_rename_leaves_the_newest_as_it_was(checkpoints, monkeypatch, moment):
    class Crash(Exception):
        pass

    def crash(*_: object) -> None:
        raise Crash

    match moment:
        case "engine":
            monkeypatch.setattr(FakeEngine, "save", crash)
        case "manifest":
            monkeypatch.setattr("mezzotint.common.files.write_text", crash)
        case "rename":
            monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(Crash):
        write(checkpoints, 30)
    monkeypatch.undo()
    assert checkpoints.newest() == checkpoints.root / "step-00000020"
    write(checkpoints, 25)
    assert checkpoints.newest() == checkpoints.root / "step-00000025"
    assert names(checkpoints) == ["latest", "step-00000020", "step-00000025"]


def test_a_step_that_did_not_verify_is_replaced_when_it_is_reached_again(checkpoints):
    flip(checkpoints.root / "step-00000020" / WEIGHTS)
    write(checkpoints, 20)
    assert checkpoints.newest() == checkpoints.root / "step-00000020"


def test_damaged_later_steps_never_push_a_sound_one_out(checkpoints):
    flip(checkpoints.root / "step-00000020" / WEIGHTS)
    one = Checkpoints(checkpoints.root, world(), keep=1)
    write(one, 15)  # told to leave between the usual steps
    assert one.newest() == one.root / "step-00000015"
    assert names(one) == ["latest", "step-00000015"]


def test_a_checkpoint_of_another_number_of_processes_is_refused(checkpoints):
    path = checkpoints.newest()
    other = Checkpoints(checkpoints.root, world(2), keep=2)
    with pytest.raises(UserError, match=r"written by 1 processes and this run has 2; start it"):
        other.restore(path, {"model": FakeEngine()}, {"model": FakeEma()})


def test_a_full_disk_is_refused_and_the_checkpoints_stay(checkpoints, monkeypatch):
    before = names(checkpoints)
    usage = shutil.disk_usage(checkpoints.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UserError, match=rf"{checkpoints.root}: .* needed and 0 MB are free"):
        write(checkpoints, 30)
    monkeypatch.undo()
    assert names(checkpoints) == before
    assert checkpoints.newest() == checkpoints.root / "step-00000020"
