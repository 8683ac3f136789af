import csv
import io
import json
import tarfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_pipeline.packing.fetch
import data_pipeline.packing.new_shards
import data_pipeline.packing.update
from data_pipeline.config import DataConfig, ImageConfig, Selection
from data_pipeline.dataset import open_dataset
from data_pipeline.index import index
from data_pipeline.inspect import contact_sheet, inspect
from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack, pack_part
from data_pipeline.packing.records import Records
from data_pipeline.sets.stored_set import read_contents, read_manifest
from data_pipeline.verify import verify
from mezzotint.common.errors import UserError


def image(color, format_: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6, 6), color).save(content, format_)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for number in range(7):
        directory = root / "deep" if number % 2 else root
        (directory / f"{number}.png").write_bytes(image((30 * number, 0, 0)))
        (directory / f"{number}.txt").write_text(f"  image {number}\n")
    return root


def test_a_folder_becomes_a_set(folder, tmp_path):
    seen = []
    report = pack(
        str(folder),
        str(tmp_path / "out"),
        PackOptions(name="photos", shard_size=3),
        lambda done, total: seen.append((done, total)),
    )
    assert (report.manifest.sample_count, report.rejected) == (7, ())
    assert len(report.manifest.shards) == 3
    assert seen[-1] == (7, 7)
    dataset = open_dataset(DataConfig(url=report.url, image=ImageConfig(size=4)))
    assert sorted(dataset.captions()) == [f"image {number}" for number in range(7)]
    assert dataset.batch([0]).images.shape == (1, 3, 4, 4)
    assert {path.name for path in Path(report.url).iterdir()} == {
        "manifest.json",
        "packed.jsonl",
        "photos-000000.tar",
        "photos-000001.tar",
        "photos-000002.tar",
        "rejected.jsonl",
        *(shard.index_name for shard in report.manifest.shards),
    }


def test_every_rejected_pair_is_named(folder, tmp_path):
    (folder / "0.txt").unlink()
    (folder / "2.txt").write_text("  \n")
    (folder / "4.png").write_bytes(image("red")[:-30])
    (folder / "orphan.txt").write_text("nobody")
    (folder / "gif.png").write_bytes(image("red", "GIF"))
    (folder / "gif.txt").write_text("not a png")
    (folder / "6.txt").write_bytes(b"\xff\xff")
    report = pack(str(folder), str(tmp_path / "out"), PackOptions())
    assert report.manifest.sample_count == 3
    found = {one.name: one.fault for one in report.rejected}
    assert found == {
        "0.png": "caption missing",
        "2.png": "caption missing",
        "4.png": "image unreadable",
        "6.png": "caption unusable",
        "gif.png": "image unreadable",
        "orphan.txt": "image missing",
    }
    assert Counter(one.fault for one in report.rejected)["caption missing"] == 2
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert {json.loads(line)["name"] for line in lines} == set(found)


def test_a_set_without_a_valid_pair_is_refused_with_the_first_error(folder, tmp_path):
    for path in folder.rglob("*.txt"):
        path.unlink()
    with pytest.raises(
        UserError, match=r"all 7 pairs were rejected; the first: 0.png: its caption"
    ):
        pack(str(folder), str(tmp_path / "out"), PackOptions())
    assert not (tmp_path / "out" / "manifest.json").exists()


def table(path: Path, rows: list[dict[str, object]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        content = pytest.importorskip("pyarrow").Table.from_pylist(rows)
        pytest.importorskip("pyarrow.parquet").write_table(content, path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_becomes_a_set(folder, tmp_path, suffix):
    rows = [
        {"file": "0.png", "text": "zero", "kind": "even"},
        {"file": f"file://{folder}/deep/1.png", "text": "one", "kind": "odd"},
        {"file": str(folder / "2.png"), "text": "two", "kind": "even"},
        {"file": "nowhere.png", "text": "three", "kind": "odd"},
        {"file": "pipe://cat /etc/passwd", "text": "four", "kind": "even"},
        {"file": "", "text": "five", "kind": "odd"},
    ]
    table(folder / f"t{suffix}", rows)
    options = PackOptions(
        image_column="file", caption_column="text", attribute_columns=("kind",), workers=2
    )
    report = pack(str(folder / f"t{suffix}"), str(tmp_path / "out"), options)
    dataset = open_dataset(DataConfig(url=report.url))
    assert dataset.captions() == ("zero", "one", "two")
    assert dataset.entry(1).attributes == {"kind": "odd"}
    assert [one.name for one in report.rejected] == {
        ".csv": ["line 5: nowhere.png", "line 6: pipe://cat /etc/passwd", "line 7"],
        ".jsonl": ["line 4: nowhere.png", "line 5: pipe://cat /etc/passwd", "line 6: "],
        ".parquet": ["row 4", "row 5", "row 6"],
    }[suffix]
    assert "nowhere.png" in report.rejected[0].detail


class Web(BaseHTTPRequestHandler):
    """Serves one image, and errors."""

    def do_GET(self):
        content = image("red")
        self.send_response({"/red.png": 200, "/cut.png": 200, "/gone.png": 404}.get(self.path, 500))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path != "/gone.png":
            self.wfile.write(content[:20] if self.path == "/cut.png" else content)

    def log_message(self, *_):
        """No output."""


def test_images_are_fetched_over_http_and_errors_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(data_pipeline.packing.fetch, "_BACKOFF", 0.01)
    names = ("red.png", "gone.png", "cut.png", "broken.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        rows = [{"image": f"{site}/{name}", "caption": name} for name in names]
        table(tmp_path / "t.csv", rows)
        report = pack(str(tmp_path / "t.csv"), str(tmp_path / "out"), PackOptions())
        server.shutdown()
    assert open_dataset(DataConfig(url=report.url)).captions() == ("red.png",)
    assert [one.name.rsplit("/", 1)[1] for one in report.rejected] == list(names[1:])
    assert {one.fault for one in report.rejected} == {"download failed"}


def test_a_missing_column_is_named(folder):
    table(folder / "t.csv", [{"path": "0.png", "caption": "zero"}])
    with pytest.raises(UserError, match=r"t.csv: no column 'image'; it has path, caption"):
        pack(str(folder / "t.csv"), str(folder / "out"), PackOptions())


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet"])
def test_a_broken_table_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"image": ')
    with pytest.raises(UserError, match=f"{name}: not a readable table"):
        pack(str(tmp_path / name), str(tmp_path / "out"), PackOptions())


def test_a_tar_set_with_repeated_keys_keeps_images_and_captions_together(tmp_path):
    (tmp_path / "tars").mkdir()
    for number, color in enumerate(("red", "blue")):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as archive:
            for name, content in (
                ("../../x.png", image(color)),
                ("../../x.txt", color.encode()),
                ("../../x.json", json.dumps({"color": color, "tags": [1]}).encode()),
                ("lonely.txt", b"no image"),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    report = pack(str(tmp_path / "tars"), str(tmp_path / "out"), PackOptions())
    assert [one.name for one in report.rejected] == ["0.tar: lonely", "1.tar: lonely"]
    dataset = open_dataset(DataConfig(url=report.url, image=ImageConfig(size=2)))
    for number, (color, channel) in enumerate((("red", 0), ("blue", 2))):
        sample = dataset.sample(number)
        assert sample.caption == color
        assert int(np.argmax(sample.image[0, 0])) == channel
        assert dataset.entry(number).attributes == {"color": color}


def test_an_interrupted_pack_continues_where_it_stopped(folder, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    options = PackOptions(shard_size=2)
    real = data_pipeline.packing.new_shards.write_shard
    written = []

    def write_shard(samples, url, name, *, compress):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        return real(samples, url, name, compress=compress)

    monkeypatch.setattr(data_pipeline.packing.new_shards, "write_shard", write_shard)
    with pytest.raises(KeyboardInterrupt):
        pack(str(folder), out, options)
    with pytest.raises(UserError, match="no such file"):
        open_dataset(DataConfig(url=out))
    with pytest.raises(UserError, match="unfinished set of another source or other options"):
        pack(str(folder), out, PackOptions(shard_size=3))

    resumed = []
    monkeypatch.setattr(
        data_pipeline.packing.new_shards,
        "write_shard",
        lambda samples, url, name, *, compress: (
            resumed.append(name) or real(samples, url, name, compress=compress)
        ),
    )
    assert pack(str(folder), out, options).manifest.sample_count == 7
    assert resumed == ["images-000002.tar", "images-000003.tar"]
    whole = pack(str(folder), str(tmp_path / "whole"), options)
    assert read_manifest(out).shards == read_manifest(whole.url).shards


def test_packing_again_does_nothing_and_other_options_are_refused(folder, tmp_path, monkeypatch):
    out = str(tmp_path / "out")
    first = pack(str(folder), out, PackOptions())
    monkeypatch.setattr(data_pipeline.packing.new_shards, "write_shard", None)
    monkeypatch.setattr(data_pipeline.packing.update, "write_shard", None)
    assert pack(str(folder), out, PackOptions()) == first
    with pytest.raises(UserError, match="finished set of another source or other options"):
        pack(str(folder), out, PackOptions(name="other"))


def test_a_fraction_of_the_captions_is_held_out(folder, tmp_path):
    for number in range(3):  # equal captions must stay together
        (folder / f"twin{number}.png").write_bytes(image("blue"))
        (folder / f"twin{number}.txt").write_text("twins")
    report = pack(str(folder), str(tmp_path / "out"), PackOptions(test_fraction=0.5, shard_size=2))
    parts = {
        part: open_dataset(
            DataConfig(url=report.url, select=(Selection(split="random", part=part),))
        ).captions()
        for part in ("train", "test")
    }
    assert len(parts["train"]) + len(parts["test"]) == 10
    assert not set(parts["train"]) & set(parts["test"])


def split_sizes(report):
    return {
        name: (sum(split.train), sum(split.test)) for name, split in report.manifest.splits.items()
    }


def test_a_set_keeps_its_keys_attributes_splits_and_licence(make_set, tmp_path):
    for compress in (False, True):
        source = make_set(f"source{compress}", compress=compress)
        out = str(tmp_path / f"out{compress}")
        report = pack(source, out, PackOptions(shard_size=4, workers=2))
        old, new = read_contents(source), read_contents(out)
        assert [one.key for one in new.samples()] == [one.key for one in old.samples()]
        assert [one.attributes for one in new.samples()] == [
            one.attributes for one in old.samples()
        ]
        assert (new.name, new.licence, new.splits) == (old.name, old.licence, old.splits)
        assert split_sizes(report) == {"halves": (12, 11), "all": (23, 0)}
        before, after = (open_dataset(DataConfig(url=url)) for url in (source, out))
        for name in ("png", "txt", "json"):
            assert after.member(7, name) == before.member(7, name)


def test_a_part_of_a_set_is_selected_by_its_splits(squares, tmp_path):
    chosen = (Selection(split="halves", part="test"),)
    report = pack(squares, str(tmp_path / "out"), PackOptions(select=chosen))
    assert split_sizes(report) == {"halves": (0, 11), "all": (11, 0)}
    other = PackOptions(select=(Selection(split="thirds", part="test"),))
    with pytest.raises(UserError, match="has no split 'thirds'; it has 'all', 'halves'"):
        pack(squares, str(tmp_path / "other"), other)


def test_a_smaller_limit_gives_a_subset_from_all_of_the_source(squares, folder, tmp_path):
    keys = []
    for limit in (6, 12, 100):
        report = pack(squares, str(tmp_path / str(limit)), PackOptions(limit=limit))
        keys.append([one.key for one in read_contents(report.url).samples()])
        assert keys[-1] == sorted(keys[-1])
    assert [len(one) for one in keys] == [6, 12, 23]
    assert set(keys[0]) < set(keys[1]) < set(keys[2])
    assert min(keys[0]) < "0008" < "0016" < max(keys[0])
    few = pack(str(folder), str(tmp_path / "folder"), PackOptions(limit=3))
    assert few.manifest.sample_count == 3


@pytest.mark.parametrize("manifest", [True, False])
def test_shards_that_are_links_are_a_set_and_tars(squares, tmp_path, manifest):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(Path(squares).iterdir())):
        if manifest or path.suffix == ".tar":
            blob = tmp_path / "blobs" / str(number)
            blob.write_bytes(path.read_bytes())
            (folder / path.name).symlink_to(Path("..") / "blobs" / str(number))
    if not manifest:
        assert index(str(folder)).manifest.sample_count == 23
        (folder / "manifest.json").unlink()
    else:
        assert len(open_dataset(DataConfig(url=str(folder)))) == 23
        assert verify(str(folder)).problems == ()
    assert pack(str(folder), str(tmp_path / "out"), PackOptions()).manifest.sample_count == 23


def test_only_a_set_has_splits_to_select_from(folder, tmp_path):
    options = PackOptions(select=(Selection(split="halves", part="test"),))
    with pytest.raises(UserError, match="is no shard set, so it has no splits"):
        pack(str(folder), str(tmp_path / "out"), options)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_an_empty_source_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"{name}: no such folder, or an empty one"):
        pack(str(tmp_path / name), str(tmp_path / "out"), PackOptions())


def test_an_inspection_describes_a_set(squares):
    found = inspect(squares, examples=3)
    assert (found.manifest.sample_count, len(found.manifest.shards)) == (23, 5)
    halves = found.manifest.splits["halves"]
    assert (sum(halves.train), sum(halves.test)) == (12, 11)
    assert found.captions.distinct == 23
    assert found.captions.words_max == 3
    assert found.captions.common["square"] == 23
    assert found.attributes["shade"] == {"red": 6, "green": 6, "blue": 6, "dark": 5}
    assert [one.key for one in found.examples] == ["0000", "0011", "0022"]


def test_a_contact_sheet_shows_images_with_captions(squares):
    sheet = contact_sheet(open_dataset(DataConfig(url=squares)), 10, columns=4, side=32)
    assert sheet.size == (2 * 16 + 4 * 32 + 3 * 16, 2 * 16 + 3 * (32 + 34) + 2 * 16)
    colors = {sheet.getpixel((x, y)) for x in range(sheet.width) for y in range(80)}
    assert (0, 7, 9) in colors


def files(url):
    return {path.name: path.read_bytes() for path in Path(url).iterdir() if path.is_file()}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_pack_that_is_killed_twice_gives_the_same_bytes(folder, tmp_path, monkeypatch, processes):
    for number in range(7, 17):
        (folder / f"{number}.png").write_bytes(image(f"#{number:06x}"))
        (folder / f"{number}.txt").write_text(f"image {number}")
    (folder / "9.png").write_bytes(b"no image")
    options = PackOptions(shard_size=2, test_fraction=0.3)
    whole = pack(str(folder), str(tmp_path / "whole"), options)
    again = options.model_copy(update={"processes": processes})
    real, out = Records.write, str(tmp_path / "out")
    for stop in (3, 1):
        written = []

        def write(records, chunk, written=written, stop=stop):
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(chunk.number)
            real(records, chunk)

        with monkeypatch.context() as patch:
            patch.setattr(Records, "write", write)
            with pytest.raises(KeyboardInterrupt):
                pack(str(folder), out, again)
    pack(str(folder), out, again)
    assert files(out) == files(whole.url)


def test_parts_give_the_same_set(folder, tmp_path):
    options = PackOptions(shard_size=2)
    whole = pack(str(folder), str(tmp_path / "whole"), options)
    out = str(tmp_path / "out")
    for part in ((2, 3), (1, 3)):
        report = pack_part(str(folder), out, options.model_copy(update={"part": part}))
        assert report.shards + report.missing == 4
        assert len(list(Path(out).glob("*.tar"))) == report.shards
        assert not Path(out, "manifest.json").exists()
    assert pack(str(folder), out, options).manifest.sample_count == 7
    assert files(out) == files(whole.url)
    with pytest.raises(UserError, match="only new sets are packed in parts; leave out --part"):
        pack_part(str(folder), out, options.model_copy(update={"part": (1, 2)}))
