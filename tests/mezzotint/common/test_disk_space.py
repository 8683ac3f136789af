import shutil

import pytest

from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path):
    message = r"no disk space for a checkpoint: .* MB are needed and .* MB are free"
    with pytest.raises(UserError, match=message):
        check_space(tmp_path, 10**18, purpose="a checkpoint")


def test_the_megabytes_of_the_message_are_not_equal_where_the_bytes_are_not(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=66_900_000))
    with pytest.raises(UserError, match="67 MB are needed and 66 MB are free"):
        check_space(tmp_path, 50_200_000, purpose="a checkpoint")
