"""Download with resume, retries and checksums, from local files and a web server on this machine."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from immiscible_policy import download as module
from immiscible_policy.download import DownloadError, HostError, download

CONTENT = np.random.default_rng(0).bytes(700_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(file_server):
    file_server.content = CONTENT
    return file_server


def quiet(url, destination, **options):
    return download(url, destination, **{"retry_delay": 0, "progress": False, **options})


def test_from_a_file(tmp_path):
    (tmp_path / "source").write_bytes(CONTENT)
    target = tmp_path / "new folder" / "target"
    assert quiet((tmp_path / "source").as_uri(), target, sha256=SHA256.upper()) == target
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_from_a_server_with_progress(tmp_path, server, capsys):
    download(server.url, tmp_path / "archive.zip", SHA256, retry_delay=0)
    assert (tmp_path / "archive.zip").read_bytes() == CONTENT
    assert server.ranges == [None]
    assert "archive.zip: 100%" in capsys.readouterr().err


def test_a_half_download_is_continued(tmp_path, server):
    (tmp_path / "target.part").write_bytes(CONTENT[:300_000])
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert server.ranges == ["bytes=300000-"]
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert not (tmp_path / "target.part").exists()


def test_a_connection_that_breaks_is_continued(tmp_path, server):
    server.cuts = [100_000, 250_000]
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert server.ranges == [None, "bytes=100000-", "bytes=350000-"]


def test_what_came_is_kept_when_the_attempts_run_out(tmp_path, server):
    server.cuts = [100_000, 50_000]
    with pytest.raises(HostError, match=r"closed after 150,000 of 700,000 bytes \(attempts: 2\)"):
        quiet(server.url, tmp_path / "target", retries=1)
    assert (tmp_path / "target.part").read_bytes() == CONTENT[:150_000]
    assert not (tmp_path / "target").exists()


def test_a_server_without_ranges_starts_over(tmp_path, server):
    server.supports_ranges = False
    (tmp_path / "target.part").write_bytes(b"x" * 1000)
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_a_part_that_is_already_whole(tmp_path, server):
    (tmp_path / "target.part").write_bytes(CONTENT)
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert server.ranges == ["bytes=700000-"]
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_discarded(tmp_path, server):
    (tmp_path / "target.part").write_bytes(CONTENT + b"more")
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert server.ranges == ["bytes=700004-", None]


def test_a_server_that_answers_another_range_is_not_believed(tmp_path, server):
    server.shift = 7
    (tmp_path / "target.part").write_bytes(CONTENT[:1000])
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert server.ranges == ["bytes=1000-", None]


def test_a_busy_server_is_asked_again_a_missing_page_is_not(tmp_path, server):
    server.failures = 2
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    assert len(server.ranges) == 3
    with pytest.raises(HostError, match="HTTP status 404"):
        quiet(server.url + "s", tmp_path / "other")
    assert len(server.ranges) == 4


def test_a_bad_checksum_discards_the_download(tmp_path, server):
    with pytest.raises(DownloadError, match=f"has SHA-256 {SHA256}, expected {'0' * 64}; .*discarded"):
        quiet(server.url, tmp_path / "target", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path, server):
    (tmp_path / "target").write_bytes(CONTENT)
    quiet(server.url, tmp_path / "target", sha256=SHA256)
    with pytest.raises(DownloadError, match="nothing was changed"):
        quiet(server.url, tmp_path / "target", sha256="0" * 64)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert server.ranges == []


def test_who_wants_a_file_that_is_being_fetched_waits_for_it(tmp_path, server, monkeypatch, capsys):
    began, goes_on = threading.Event(), threading.Event()
    fetch = module._fetch

    def slow(*arguments):
        began.set()
        assert goes_on.wait(30)
        fetch(*arguments)

    monkeypatch.setattr(module, "_fetch", slow)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(quiet, server.url, tmp_path / "target", sha256=SHA256)
        assert began.wait(30)
        second = threads.submit(quiet, server.url, tmp_path / "target", sha256=SHA256)
        while f"waiting for another process that downloads at {tmp_path / 'target'}" not in capsys.readouterr().err:
            assert not second.done()
            time.sleep(0.01)
        goes_on.set()
        assert first.result() == second.result() == tmp_path / "target"
    assert server.ranges == [None]
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_nobody_listens(tmp_path, closed_url):
    with pytest.raises(HostError, match=r"refused.*\(attempts: 3\)"):
        quiet(closed_url, tmp_path / "target", retries=2)


def test_retries_wait_longer_each_time(tmp_path, closed_url, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    with pytest.raises(HostError):
        quiet(closed_url, tmp_path / "target", retries=3, retry_delay=2.0)
    assert waits == [2.0, 4.0, 8.0]


def test_a_local_file_that_is_not_there_is_not_waited_for(tmp_path):
    with pytest.raises(HostError, match=r"\(attempts: 1\)"):
        quiet((tmp_path / "absent").as_uri(), tmp_path / "target", retry_delay=1000)


def test_a_folder_that_cannot_be_written(tmp_path, server):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot write"):
        quiet(server.url, tmp_path / "file" / "target")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://host/x", {}, "url must begin with"),
        ("pusht.zip", {}, "url must begin with"),
        ("http://host/x", {"sha256": "abc"}, "sha256 must be 64 hexadecimal digits, got 'abc'"),
        ("http://host/x", {"retries": -1}, "retries must be at least 0, got -1"),
        ("http://host/x", {"retry_delay": -1}, "retry_delay must be at least 0 seconds, got -1"),
    ],
)
def test_arguments_out_of_range(tmp_path, url, options, message):
    with pytest.raises(ValueError, match=message):
        quiet(url, tmp_path / "target", **options)


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "source").write_text("a")
    assert download(f"file://{tmp_path}/source", "~/kept", progress=False) == tmp_path / "kept"
    assert (tmp_path / "kept").read_text() == "a"
