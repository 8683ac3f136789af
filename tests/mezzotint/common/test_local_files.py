import os

import pytest

from mezzotint.common import storage
from mezzotint.common.local_files import list_files


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a").write_text("a")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "b").write_text("bb")
    return root


def test_linked_directories_and_files_are_listed(tree, tmp_path):
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tree / "file").symlink_to(tmp_path / "elsewhere" / "deep" / "b")
    files = list_files(tree).files
    assert {name: status.size for name, status in files.items()} == {
        "file": 2,
        "linked/deep/b": 2,
        "sub/a": 1,
    }
    assert list(files) == sorted(files)
    assert list_files(tree).linked == ["file", "linked/deep/b"]


def test_a_directory_is_listed_once_under_its_own_path(tree, tmp_path):
    (tree / "above").symlink_to(tree)
    (tree / "sub" / "around").symlink_to(tmp_path)
    (tree / "again").symlink_to(tree / "sub")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere" / "deep")
    listing = list_files(tree)
    assert list(listing.files) == ["sub/a", "sub/around/elsewhere/deep/b"]
    assert listing.repeated == ["above", "again", "sub/around/elsewhere/back", "sub/around/root"]


def test_a_link_without_a_target_and_a_loop_of_links_are_files_that_cannot_be_read(tree):
    (tree / "gone").symlink_to("nowhere")
    (tree / "loop").symlink_to("loop")
    os.mkfifo(tree / "pipe")
    listing = list_files(tree)
    assert {name: status.size for name, status in listing.files.items()} == {
        "gone": 0,
        "loop": 0,
        "sub/a": 1,
    }
    assert listing.special == ["pipe"]


def test_a_file_written_again_with_its_old_size_and_time_has_another_stamp(tree):
    path = tree / "sub" / "a"
    before = list_files(tree).files["sub/a"]
    times = path.stat()
    path.write_text("b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = list_files(tree).files["sub/a"]
    assert after.size == before.size
    assert after.stamp != before.stamp
    assert storage.status(str(path)) == after


def test_an_object_written_again_has_another_stamp():
    url = "memory://stamps/a"
    storage.write_bytes(url, b"a")
    before = storage.walk("memory://stamps").files["a"]
    storage.write_bytes(url, b"b")
    after = storage.walk("memory://stamps").files["a"]
    assert (after.size, storage.status(url)) == (before.size, after)
    assert after.stamp != before.stamp


def test_the_sizes_of_linked_files_are_those_of_their_targets(tree):
    (tree / "x.tar").symlink_to(tree / "sub" / "a")
    (tree / "gone.tar").symlink_to("nowhere")
    assert storage.sizes(str(tree)) == {"x.tar": 1}
