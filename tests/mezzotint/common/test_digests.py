import hashlib

from mezzotint.common.digests import sha256, sha256_file


def test_text_bytes_and_files_of_the_same_content_have_one_digest(tmp_path):
    content = "é\n".encode() * 1_000_000
    (tmp_path / "file").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert sha256_file(tmp_path / "file") == expected
    assert sha256(content) == expected
    assert sha256(content.decode()) == expected
