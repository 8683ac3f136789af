import json
import os
import subprocess
import sys

import pytest

from mezzotint.common.errors import UserError
from mezzotint.common.locks import file_lock, lock_owner, run_lock


def test_a_directory_held_by_a_live_process_is_refused(tmp_path):
    refusal = pytest.raises(UserError, match=r"held by another live process .*pid")
    with run_lock(tmp_path), refusal, run_lock(tmp_path):
        pass
    with run_lock(tmp_path):
        pass


def test_the_owner_of_a_run_directory_is_known_while_it_lives(tmp_path):
    assert lock_owner(tmp_path) is None
    with run_lock(tmp_path):
        assert lock_owner(tmp_path).pid == os.getpid()
        (tmp_path / "lock").write_text("")  # before the owner has written of itself
        assert lock_owner(tmp_path).pid is None
    assert lock_owner(tmp_path) is None


def test_a_lock_is_waited_for_and_ends_with_its_holder(tmp_path):
    path = tmp_path / "x.lock"
    holding = (
        "import sys, pathlib; from mezzotint.common.locks import file_lock\n"
        "with file_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holding, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    timeout = pytest.raises(TimeoutError, match=r"x\.lock: another process holds this lock")
    with timeout, file_lock(path, wait=0.1):
        pass
    process.kill()
    process.communicate()
    with file_lock(path, wait=10):
        pass


def test_a_lock_file_keeps_its_content(tmp_path):
    with run_lock(tmp_path):
        pass
    with file_lock(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
