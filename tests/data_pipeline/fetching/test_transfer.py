import hashlib
import threading

import fsspec
import numpy as np
import pytest

from data_pipeline.fetching import transfer as transfers
from data_pipeline.fetching.pool import BackgroundPool
from data_pipeline.fetching.retries import ATTEMPTS, time_limit, waits
from data_pipeline.fetching.transfer import transfer
from mezzotint.common.digests import GrowingDigest
from mezzotint.common.errors import UserError
from mezzotint.common.storage_errors import NotFoundError, TransientError

CONTENT = np.random.default_rng(0).bytes(100_000)
SIZE = len(CONTENT)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url():
    system = fsspec.filesystem("memory")
    system.pipe_file("/bucket/x.tar", CONTENT)
    yield "memory://bucket/x.tar"
    system.rm("/bucket", recursive=True)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(transfers, "RANGED_BYTES", 1000)
    monkeypatch.setattr(transfers, "PART_BYTES", 7000)
    monkeypatch.setattr("mezzotint.common.downloads._PIECE", 3000)


def copied(url, tmp_path, *, ranged, size=SIZE, total=60.0):
    target = tmp_path / "x"
    digest = transfer(url, size, target, timeout=60, total=total, ranged=ranged)
    assert hashlib.sha256(target.read_bytes()).hexdigest() == digest
    return digest


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.usefixtures("small_parts")
def test_a_shard_is_copied_with_its_digest(url, tmp_path, ranged):
    assert copied(url, tmp_path, ranged=ranged) == DIGEST


@pytest.mark.usefixtures("small_parts")
def test_only_a_few_parts_are_read_at_once(url, tmp_path, monkeypatch):
    store, lock, running, most = type(fsspec.filesystem("memory")), threading.Lock(), [0], [0]
    real, together = store.cat_file, threading.Barrier(transfers.PARALLEL_PARTS)

    def cat_file(self, path, start=None, end=None, **options):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        if start % 7000 == 0 and start < 7000 * transfers.PARALLEL_PARTS:
            together.wait(20)
        content = real(self, path, start=start, end=end, **options)
        with lock:
            running[0] -= 1
        return content

    monkeypatch.setattr(store, "cat_file", cat_file)
    assert copied(url, tmp_path, ranged=True) == DIGEST
    assert most[0] == transfers.PARALLEL_PARTS


@pytest.mark.usefixtures("small_parts")
def test_a_shard_that_is_shorter_or_gone_is_an_error(url, tmp_path):
    with pytest.raises(TransientError, match=r"x\.tar: cannot be read \(.* bytes came instead of"):
        copied(url, tmp_path, ranged=True, size=SIZE + 9000)
    with pytest.raises(NotFoundError, match=r"gone\.tar: no such file"):
        copied("memory://bucket/gone.tar", tmp_path, ranged=True)


@pytest.mark.parametrize("ranged", [False, True])
@pytest.mark.usefixtures("small_parts")
def test_a_transfer_ends_with_its_time(url, tmp_path, monkeypatch, ranged):
    release, store = threading.Event(), type(fsspec.filesystem("memory"))
    for name in ("cat_file", "get_file"):
        monkeypatch.setattr(store, name, lambda *_, **__: release.wait(20))
    with pytest.raises(TransientError, match=r"x\.tar: cannot be read \(not complete after 0 s\)"):
        copied(url, tmp_path, ranged=ranged, total=0.05)
    release.set()


def test_a_digest_follows_a_file_that_grows_and_begins_again(tmp_path):
    path = tmp_path / "x"
    digest = GrowingDigest(path)
    digest.advance()
    path.write_bytes(b"another beginning")
    digest.advance()
    path.write_bytes(CONTENT[:5])
    digest.advance()
    assert digest.position == 5
    with path.open("ab") as file:
        file.write(CONTENT[5:])
    digest.advance(500)
    assert digest.position == 500
    assert digest.hexdigest() == DIGEST


def test_jobs_begin_in_order_on_a_few_threads_and_errors_are_logged(caplog):
    pool, begun, together, done = BackgroundPool(2), [], threading.Barrier(2), threading.Event()

    def job(number):
        begun.append((number, threading.get_ident()))
        together.wait(20)
        if number == 3:
            raise UserError("not there")

    for number in range(6):
        pool.add(lambda number=number: job(number))
    pool.add(done.set)
    assert done.wait(20)
    order = [number for number, _ in begun]
    assert [set(order[at : at + 2]) for at in (0, 2, 4)] == [{0, 1}, {2, 3}, {4, 5}]
    assert len({thread for _, thread in begun}) == 2
    assert [record.message for record in caplog.records] == ["prefetch: not there"]


def test_waits_double_vary_and_end():
    many = [list(waits(1.0)) for _ in range(200)]
    assert all(len(one) == ATTEMPTS - 1 for one in many)
    for number, expected in enumerate((1, 2, 4)):
        each = [one[number] for one in many]
        assert expected / 2 <= min(each) < max(each) <= expected * 1.5
        assert len(set(each)) > 100
    assert max(waits(1e6)) <= 45
    assert time_limit(10**9) > 2000
