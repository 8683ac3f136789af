"""Packing into a set that is there: the same command looks at its source again."""

import io
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

import data_pipeline.packing.folders
import data_pipeline.packing.tables.table_source
import data_pipeline.packing.update
from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.manifest import INDEX_SUFFIX
from data_pipeline.packing.fetch import fetch
from data_pipeline.packing.pack import PackOptions, pack
from data_pipeline.packing.source import InvalidSample
from data_pipeline.sets.contents import Split
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.sets.write import write_contents
from data_pipeline.verify import verify
from launch.data.pack import to_text
from mezzotint.common.errors import UserError


def png(color: str = "red") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(content, "PNG")
    return content.getvalue()


OPTIONS = PackOptions(shard_size=3, licence="CC0-1.0")


@pytest.fixture
def photos(tmp_path):
    """A folder with 0.png to 6.png, each of a colour and with a caption."""
    root = tmp_path / "photos"
    root.mkdir()
    for number in range(7):
        put(root, str(number), f"image {number}")
    return root


def put(root: Path, name: str, caption: str) -> None:
    (root / f"{name}.png").write_bytes(png(f"#{sum(map(ord, name)):06x}"))
    (root / f"{name}.txt").write_text(caption)


def state(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def captions(out: Path) -> dict[str, str]:
    """Captions by key."""
    dataset = open_dataset(DataConfig(url=str(out)))
    return dict(zip(dataset.keys(), dataset.captions(), strict=True))


def changes(report) -> dict[str, int]:
    return {what: one.count for what, one in report.changes.items()}


@pytest.fixture
def reads(monkeypatch):
    """The files of a folder that were read, counted."""
    counted: Counter[str] = Counter()

    def count(url):
        counted[Path(url).name] += 1
        return fetch(url)

    monkeypatch.setattr(data_pipeline.packing.folders, "fetch", count)
    return counted


def test_a_set_that_is_up_to_date_is_not_touched(photos, tmp_path, reads):
    (photos / "alone.txt").write_text("no image")
    first = pack(str(photos), str(tmp_path / "out"), OPTIONS)
    before = state(tmp_path / "out")
    reads.clear()
    again = pack(str(photos), str(tmp_path / "out"), OPTIONS)
    assert (again, state(tmp_path / "out")) == (first, before)
    assert (again.again, changes(again)) == (True, {})
    assert not reads


def test_a_caption_corrected_with_its_old_length_and_time_is_noticed(photos, tmp_path, reads):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    before, old = captions(out), read_manifest(str(out)).shards
    times = (photos / "4.txt").stat()
    (photos / "4.txt").write_text("imagE 4")
    os.utime(photos / "4.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    reads.clear()
    report = pack(str(photos), str(out), OPTIONS)
    assert changes(report) == {"changed": 1}
    assert captions(out) == {**before, "000000004": "imagE 4"}
    assert reads == {"4.png": 1, "4.txt": 1}
    new = read_manifest(str(out)).shards
    assert [one in old for one in new] == [True, False, True]
    assert verify(str(out)).problems == ()
    assert len(list(out.glob("*.tar"))) == 3


def test_late_images_and_captions_are_added_with_new_keys(photos, tmp_path):
    out = tmp_path / "out"
    (photos / "2.png").unlink()
    (photos / "5.txt").unlink()
    assert len(pack(str(photos), str(out), OPTIONS).rejected) == 2
    before = captions(out)
    for name in ("2", "5", "00"):
        put(photos, name, f"late {name}")
    report = pack(str(photos), str(out), OPTIONS)
    assert changes(report) == {"accepted, rejected before": 1, "added": 2}
    assert report.rejected == ()
    after = captions(out)
    assert before.items() < after.items()
    assert sorted(set(after.values()) - set(before.values())) == ["late 00", "late 2", "late 5"]
    assert (out / "rejected.jsonl").read_bytes() == b""
    assert verify(str(out)).problems == ()
    settled = state(out)
    assert changes(pack(str(photos), str(out), OPTIONS)) == {}
    assert state(out) == settled


def test_failed_downloads_are_tried_again_and_others_are_not(photos, tmp_path, monkeypatch):
    rows = "".join(f"http://host/{number}.png,image {number}\n" for number in range(5))
    (tmp_path / "t.csv").write_text("image,caption\n" + rows)
    broken = {"1.png", "3.png"}
    tried = []

    def download(url, downloader):
        name = url.rpartition("/")[2]
        tried.append(name)
        if name in broken:
            raise InvalidSample("download failed", f"{url}: 503")
        return (photos / name).read_bytes()

    monkeypatch.setattr(data_pipeline.packing.tables.table_source, "fetch", download)
    out = tmp_path / "out"
    report = pack(str(tmp_path / "t.csv"), str(out), OPTIONS)
    assert len(report.rejected) == 2
    broken.remove("3.png")
    tried.clear()
    report = pack(str(tmp_path / "t.csv"), str(out), OPTIONS)
    assert sorted(tried) == ["1.png", "3.png"]
    assert changes(report) == {"accepted, rejected before": 1}
    assert [one.name for one in report.rejected] == ["line 3: http://host/1.png"]
    assert captions(out)["000000003"] == "image 3"


def test_rows_that_move_and_local_images_that_change_are_known(photos, tmp_path, monkeypatch):
    rows = [f"{photos}/{number}.png,image {number}\n" for number in range(5)]
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(rows))
    out = tmp_path / "out"
    pack(str(tmp_path / "t.csv"), str(out), OPTIONS)
    (tmp_path / "t.csv").write_text("image,caption\n" + f"{photos}/6.png,six\n" + "".join(rows))
    (photos / "2.png").write_bytes(png("#123456"))
    tried = []
    real = data_pipeline.packing.tables.table_source.fetch
    monkeypatch.setattr(
        data_pipeline.packing.tables.table_source,
        "fetch",
        lambda url, downloader: tried.append(Path(url).name) or real(url, downloader),
    )
    report = pack(str(tmp_path / "t.csv"), str(out), OPTIONS)
    assert sorted(tried) == ["2.png", "6.png"]
    assert changes(report) == {"added": 2, "no longer in the source, kept": 1}


def test_what_the_source_no_longer_has_is_kept_until_told_otherwise(photos, tmp_path):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    before = state(out)
    (photos / "1.png").unlink()
    (photos / "1.txt").unlink()
    (photos / "4.png").write_bytes(b"cut")
    report = pack(str(photos), str(out), OPTIONS)
    assert changes(report) == {"no longer in the source, kept": 1, "rejected now, kept": 1}
    assert "goes with --update" in to_text(report)
    assert state(out) == before
    report = pack(str(photos), str(out), OPTIONS.model_copy(update={"update": True}))
    assert changes(report) == {"removed": 2}
    assert sorted(captions(out)) == [f"00000000{number}" for number in (0, 2, 3, 5, 6)]
    assert [one.name for one in report.rejected] == ["4.png"]
    assert verify(str(out)).problems == ()


def test_a_renamed_image_is_not_added_again(photos, tmp_path):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    before = captions(out)
    for suffix in (".png", ".txt"):
        (photos / f"1{suffix}").rename(photos / f"renamed{suffix}")
    assert changes(pack(str(photos), str(out), OPTIONS)) == {"renamed": 1}
    assert captions(out) == before
    assert changes(pack(str(photos), str(out), OPTIONS)) == {}


def test_what_only_the_set_knows_stays(photos, tmp_path):
    out = tmp_path / "out"
    options = OPTIONS.model_copy(update={"test_fraction": 0.5})
    pack(str(photos), str(out), options)
    manifest = read_contents(str(out))
    keys = [one.key for one in manifest.samples()]
    mine = Split(description="by hand", train=tuple(keys[:5]), test=tuple(keys[5:]))
    edited = manifest.model_copy(
        update={
            "licence": "edited",
            "name": "named",
            "encoder": "0" * 64,
            "provenance": {**manifest.provenance, "camera": "x"},
            "splits": {**manifest.splits, "mine": mine},
        }
    )
    write_contents(str(out), edited)
    (photos / "3.txt").write_text("corrected")
    put(photos, "new", "a new one")
    pack(str(photos), str(out), options)
    after = read_contents(str(out))
    assert (after.licence, after.name, after.encoder) == ("edited", "named", "0" * 64)
    assert after.provenance == edited.provenance
    assert after.splits["mine"] == mine
    for part in ("train", "test"):
        old, new = (set(getattr(one.splits["random"], part)) for one in (edited, after))
        assert old <= new
    assert len(list(after.samples())) == 8


def test_an_interrupted_update_leaves_the_old_set_and_is_continued(photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    old = captions(out)
    for name in ("0", "3", "6"):
        (photos / f"{name}.txt").write_text(f"corrected {name}")
    real = data_pipeline.packing.update.write_shard
    written = []

    def write_shard(samples, url, name, *, compress):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(name)
        return real(samples, url, name, compress=compress)

    monkeypatch.setattr(data_pipeline.packing.update, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        pack(str(photos), str(out), OPTIONS)
    assert captions(out) == old
    assert verify(str(out)).manifest.sample_count == 7
    monkeypatch.setattr(data_pipeline.packing.update, "write_shard", real)
    pack(str(photos), str(out), OPTIONS)
    corrected = {f"00000000{name}": f"corrected {name}" for name in ("0", "3", "6")}
    assert captions(out) == {**old, **corrected}
    names = sorted(path.name for path in out.iterdir())
    assert [name for name in names if not name.endswith(INDEX_SUFFIX)] == [
        "images-000000-r1.tar",
        "images-000001-r1.tar",
        "images-000002-r1.tar",
        "manifest.json",
        "packed.jsonl",
        "rejected.jsonl",
    ]


def test_a_shard_that_was_spoiled_is_not_made_valid_by_an_update(photos, tmp_path):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    path = out / "images-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"image 1", b"image X"))
    (photos / "0.txt").write_text("corrected")
    with pytest.raises(UserError, match=r"images-000000.tar: does not match its manifest"):
        pack(str(photos), str(out), OPTIONS)


def test_another_source_is_refused_and_a_moved_one_is_taken(photos, tmp_path):
    out = tmp_path / "out"
    pack(str(photos), str(out), OPTIONS)
    other = tmp_path / "other"
    other.mkdir()
    put(other, "0", "other")
    with pytest.raises(UserError, match="set of another source"):
        pack(str(other), str(out), OPTIONS)
    moved = tmp_path / "moved"
    shutil.move(photos, moved)
    assert changes(pack(str(moved), str(out), OPTIONS)) == {}


def test_a_source_of_rejected_pairs_leaves_a_list_and_nothing_to_delete(photos, tmp_path):
    out = tmp_path / "out"
    for path in photos.glob("*.txt"):
        path.rename(path.with_suffix(".text"))
    for _ in range(2):
        with pytest.raises(UserError, match=r"all 7 pairs were rejected.*rejected.jsonl"):
            pack(str(photos), str(out), OPTIONS)
        assert [path.name for path in out.iterdir()] == ["rejected.jsonl"]
    for path in photos.glob("*.text"):
        path.rename(path.with_suffix(".txt"))
    assert pack(str(photos), str(out), PackOptions()).manifest.sample_count == 7


def test_a_source_set_that_grew_keeps_keys_and_splits(photos, tmp_path):
    middle, out = str(tmp_path / "middle"), str(tmp_path / "out")
    options = OPTIONS.model_copy(update={"test_fraction": 0.5})
    pack(str(photos), middle, options)
    pack(middle, out, PackOptions())
    put(photos, "new", "a new one")
    (photos / "0.txt").write_text("corrected")
    pack(str(photos), middle, options)
    assert changes(pack(middle, out, PackOptions())) == {"added": 1, "changed": 1}
    assert captions(Path(out)) == captions(Path(middle))
    source, copy = read_contents(middle).splits["random"], read_contents(out).splits["random"]
    assert (set(copy.train), set(copy.test)) == (set(source.train), set(source.test))
