"""The same command again sees what was changed in a table and beside it."""

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import open_dataset
from data_pipeline.packing import fetch
from data_pipeline.packing.pack import PackOptions, pack


class Site(BaseHTTPRequestHandler):
    """Serves one image under every name; the first requests for /late.png fail."""

    def do_GET(self):
        self.server.seen.append(self.path)
        found = not (self.path == "/late.png" and self.server.down)
        self.send_response(200 if found else 503)
        self.send_header("Content-Length", str(len(self.server.image)))
        self.end_headers()
        self.wfile.write(self.server.image)

    def log_message(self, *_):
        """No output."""


@pytest.fixture
def site(images, monkeypatch):
    monkeypatch.setattr(fetch, "_BACKOFF", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        server.seen, server.down = [], True
        server.image = (images / "0.png").read_bytes()
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def again(tmp_path):
    """Packs into one set, and returns its captions and the names of what was rejected."""

    def run(table, options=None):
        report = pack(str(table), str(tmp_path / "out"), options or PackOptions())
        captions = open_dataset(DataConfig(url=report.url)).captions()
        return captions, [one.name for one in report.rejected], report

    return run


def test_failed_downloads_are_tried_again_and_others_are_not(images, site, again):
    table = images / "t.csv"
    table.write_text(f"image,caption\n{site.url}/a.png,first\n{site.url}/late.png,second\n")
    captions, rejected, report = again(table)
    assert (captions, len(rejected)) == (("first",), 1)
    assert report.rejected[0].fault == "download failed"
    site.down = False
    site.seen.clear()
    captions, rejected, _ = again(table)
    assert (sorted(captions), rejected) == (["first", "second"], [])
    assert site.seen == ["/late.png"]
    site.seen.clear()
    again(table)
    assert site.seen == []


def test_a_corrected_row_is_seen_and_others_are_not_fetched_again(images, site, again):
    table = images / "t.csv"
    rows = f"{site.url}/a.png,a dog\n{site.url}/b.png,a cow\n"
    table.write_text(f"image,caption\n{rows}")
    assert again(table)[0] == ("a dog", "a cow")
    site.seen.clear()
    table.write_text(f"image,caption\n{rows.replace('a cow', 'a hen')}{site.url}/c.png,a cat\n")
    assert sorted(again(table)[0]) == ["a cat", "a dog", "a hen"]
    assert sorted(site.seen) == ["/b.png", "/c.png"]
    site.seen.clear()
    table.write_text(table.read_text().replace("caption\n", "caption\n\n"))  # all rows move
    assert sorted(again(table)[0]) == ["a cat", "a dog", "a hen"]
    assert site.seen == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_image_beside_a_table_that_was_replaced_or_comes_late_is_seen(images, again, suffix):
    table = images / f"t{suffix}"
    if suffix == ".csv":
        table.write_text("image,caption\n0.png,a dog\nlate.png,a cow\n")
    else:
        rows = {"image": ["0.png", "late.png"], "caption": ["a dog", "a cow"]}
        content = pytest.importorskip("pyarrow").table(rows)
        pytest.importorskip("pyarrow.parquet").write_table(content, table)
    assert again(table)[0] == ("a dog",)
    (images / "late.png").write_bytes((images / "1.png").read_bytes())
    (images / "0.png").write_bytes((images / "0.png").read_bytes() + b"trailing")
    captions, rejected, report = again(table)
    assert (sorted(captions), rejected) == (["a cow", "a dog"], [])
    stored = open_dataset(DataConfig(url=report.url)).member(captions.index("a dog"), "png")
    assert stored.endswith(b"trailing")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_corrected_file_with_images_is_seen(images, again, suffix):
    pa = pytest.importorskip("pyarrow")
    image = (images / "0.png").read_bytes()
    table = images / f"t{suffix}"
    for captions in (["a dog", "a cow"], ["a dog", "a hen"]):
        content = pa.table({"image": [image] * 2, "caption": captions})
        if suffix == ".parquet":
            pytest.importorskip("pyarrow.parquet").write_table(content, table)
        else:
            with pa.OSFile(str(table), "wb") as file, pa.ipc.new_file(file, content.schema) as out:
                out.write_table(content)
        os.utime(table, (0, 0))
        assert sorted(again(table)[0]) == sorted(captions)
