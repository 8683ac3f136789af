import pytest

from mezzotint.common.disk_space import check_space
from mezzotint.common.errors import UserError


def test_a_full_disk_is_reported_before_anything_is_written(tmp_path):
    message = r"no disk space for a checkpoint: .* MB are needed and .* MB are free"
    with pytest.raises(UserError, match=message):
        check_space(tmp_path, 10**18, purpose="a checkpoint")
