"""No code from a set runs, and nothing is written where its names point to."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.config import DataConfig, ImageConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.index import index
from data_pipeline.inspect import inspect
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError


class Marker:
    """Unpickled, it makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def add(archive, name, content, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def hostile(tmp_path, make_raw):
    """A folder `tars` whose one tar has members that some readers run, follow or write."""
    image = make_raw("a", "a").members["png"]
    payload = pickle.dumps(Marker(tmp_path / "marker"))
    array = io.BytesIO()
    np.save(array, np.array([Marker(tmp_path / "marker")], dtype=object), allow_pickle=True)
    (tmp_path / "secret.txt").write_text("a secret")
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "x-000000.tar", "w") as archive:
        for key in ("good", "../up", "../../up", f"{tmp_path}/absolute", "pipe:touch marker"):
            add(archive, f"{key}.png", image)
            add(archive, f"{key}.txt", b"a square")
        for extension in ("pyd", "pickle", "pkl", "pth", "pt", "py", "sh", "cbor", "ten"):
            add(archive, f"good.{extension}", payload)
        add(archive, "array.npy", array.getvalue())
        add(archive, "array.txt", b"an array")
        add(archive, "link.png", image)
        add(archive, "link.txt", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.txt"))
        add(archive, "folder", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path))
        add(archive, "folder/through.png", image)
        add(archive, "folder/through.txt", b"through a link")
        add(archive, "hard.txt", b"", type=tarfile.LNKTYPE, linkname="../secret.txt")
        add(archive, "device.txt", b"", type=tarfile.CHRTYPE)
    return str(tmp_path / "tars")


def everything(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_members_are_read_as_bytes_and_leave_no_trace(hostile, tmp_path):
    index(hostile)
    dataset = open_dataset(DataConfig(url=hostile, image=ImageConfig(size=8)))
    for number, _ in enumerate(dataset.keys()):
        dataset.sample(number)
        for name in dataset.members(number):
            dataset.member(number, name)
    assert {"good", "../up", "../../up", "pipe:touch marker"} < set(dataset.keys())
    assert "a secret" not in dataset.captions()
    assert verify(hostile, images=True).problems == ()
    inspect(hostile)
    pack(hostile, str(tmp_path / "out" / "set"), PackOptions())
    found = everything(tmp_path)
    assert not (tmp_path / "marker").exists()
    assert {name.partition("/")[0] for name in found} == {"cache", "out", "secret.txt", "tars"}
    outside = [name for name in found if name.startswith(("tars/", "out/"))]
    assert {Path(name).suffix for name in outside} <= {"", ".tar", ".npz", ".json", ".jsonl"}
    assert not any("absolute" in name or "up" in name for name in outside)


@pytest.mark.parametrize("scheme", ["pipe:", "pipe://", "file:pipe:"])
def test_urls_that_are_commands_are_not_run(scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    url = f"{scheme}mkdir marker"
    for command in (index, verify, lambda one: open_dataset(DataConfig(url=one))):
        with pytest.raises(UserError):
            command(url)
    with pytest.raises(UserError):
        pack(url, "out", PackOptions())
    assert not list(tmp_path.rglob("marker"))


def test_a_shard_that_is_a_command_is_refused(squares, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path(squares, "manifest.json")
    tree = json.loads(path.read_text())
    tree["shard_columns"]["name"][0] = "pipe:mkdir marker"
    path.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"manifest\.json: shard_columns"):
        open_dataset(DataConfig(url=squares))
    assert not (tmp_path / "marker").exists()


def test_a_shard_that_is_a_link_to_another_file_is_compared_with_the_manifest(squares, tmp_path):
    shard = Path(squares, "squares-000001.tar")
    (tmp_path / "other").write_bytes(bytes(shard.stat().st_size))
    shard.unlink()
    shard.symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match=r"squares-000001\.tar: does not match its manifest"):
        open_dataset(DataConfig(url=squares)).caption(5)
