import json

import pytest

from mezzotint.common import files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"text": "é"})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "new")
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é"}
    assert [each.name for each in tmp_path.iterdir()] == ["file.json"]


def test_a_written_file_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        files.write_text(tmp_path / "file", text)
        assert (tmp_path / "file").read_bytes() == text.encode()
    files.sync(tmp_path / "file")
    files.sync(tmp_path)


def test_only_complete_lines_are_read(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert files.read_lines(path) == []
    for number in range(3):
        files.append_json(path, {"number": number})
    with path.open("ab") as file:
        file.write(b'{"numb')
    lines = files.read_lines(path)
    assert [json.loads(line)["number"] for line in lines] == [0, 1, 2]
    assert files.read_lines(path, offset=len(lines[0])) == lines[1:]
