"""Installing the demonstrations: verification, all-or-nothing replacement, and the command."""

import hashlib
import importlib.util
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from immiscible_policy import download
from immiscible_policy.data import install_pusht as module
from immiscible_policy.data.install_pusht import (
    PUSHT_DIGEST,
    PUSHT_STORE,
    by_hand,
    content_digest,
    fetch_pusht,
    install_store,
)
from immiscible_policy.data.replay import load_replay
from immiscible_policy.download import DownloadError
from immiscible_policy.files import set_aside

OFFICIAL_PREFIX = f"pusht/{PUSHT_STORE}/"
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "download_pusht.py"


@pytest.fixture
def archive(tmp_path, make_store, zip_folder):
    """A zip laid out like the official one, with made-up recordings."""
    make_store(tmp_path / "made-up.zarr", img=None)
    return zip_folder(tmp_path / "made-up.zarr", tmp_path / "source.zip", OFFICIAL_PREFIX)


@pytest.fixture
def known(archive, monkeypatch):
    """As `archive`, its recordings being the ones that are expected."""
    monkeypatch.setattr(module, "PUSHT_DIGEST", content_digest(load_replay(archive)))
    return archive


def test_fetch_installs_the_store_and_leaves_nothing_else(tmp_path, known):
    store = fetch_pusht(tmp_path / "data" / "pusht", url=known.as_uri(), progress=False)
    assert store == tmp_path / "data" / "pusht" / PUSHT_STORE
    assert [path.name for path in store.parent.iterdir()] == [PUSHT_STORE]
    assert load_replay(store).n_episodes == 3


def test_fetch_over_http(tmp_path, known, file_server):
    file_server.content = known.read_bytes()
    file_server.cuts = [1000]
    sha256 = hashlib.sha256(file_server.content).hexdigest()
    fetch_pusht(tmp_path / "out", url=file_server.url, sha256=sha256, retry_delay=0, progress=False)
    assert load_replay(tmp_path / "out" / PUSHT_STORE).n_steps == 41


def test_an_archive_of_your_own_is_kept(tmp_path, known):
    fetch_pusht(tmp_path / "out", archive=known)
    assert known.exists()
    with pytest.raises(DownloadError, match="there is no archive at"):
        fetch_pusht(tmp_path / "other", archive=tmp_path / "absent.zip")
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch_pusht(tmp_path / "other", archive=known, sha256="0" * 64)
    assert not (tmp_path / "other").exists()


def test_an_archive_saved_by_hand_is_used_and_kept(tmp_path, known, closed_url):
    (tmp_path / "out").mkdir()
    saved = tmp_path / "out" / "pusht.zip"
    saved.write_bytes(known.read_bytes())
    fetch_pusht(tmp_path / "out", url=closed_url, progress=False)
    assert saved.exists()
    assert load_replay(tmp_path / "out" / PUSHT_STORE).n_steps == 41


def test_verified_data_that_are_there_are_not_fetched_again(tmp_path, known, closed_url):
    store = fetch_pusht(tmp_path / "out", archive=known)
    (store / "note").write_text("mine")
    assert fetch_pusht(tmp_path / "out", url=closed_url, retries=0) == store
    assert (store / "note").read_text() == "mine"


def test_existing_data_are_replaced_only_when_forced(tmp_path, known):
    store = tmp_path / "out" / PUSHT_STORE
    store.mkdir(parents=True)
    (store / "mine").write_text("precious")
    with pytest.raises(DownloadError, match="exists already; nothing was changed"):
        fetch_pusht(tmp_path / "out", archive=known)
    with pytest.raises(DownloadError, match="exists already"):
        install_store(known, store)
    assert (store / "mine").read_text() == "precious"
    fetch_pusht(tmp_path / "out", archive=known, force=True)
    assert not (store / "mine").exists()
    assert load_replay(store).n_steps == 41


def test_forced_replacement_by_bad_data_keeps_the_old(tmp_path, archive):
    store = tmp_path / "out" / PUSHT_STORE
    store.mkdir(parents=True)
    (store / "mine").write_text("precious")
    with pytest.raises(DownloadError, match="not the 206 PushT demonstrations"):
        fetch_pusht(tmp_path / "out", url=archive.as_uri(), force=True, progress=False)
    assert (store / "mine").read_text() == "precious"
    assert [path.name for path in store.parent.iterdir()] == [PUSHT_STORE]


def test_a_failed_renaming_puts_the_old_data_back(tmp_path, known, monkeypatch):
    store = tmp_path / "out" / PUSHT_STORE
    store.mkdir(parents=True)
    (store / "mine").write_text("precious")
    replace = os.replace

    def failing(source, target):
        if target == store and source.name == PUSHT_STORE:
            raise OSError("disk trouble")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk trouble"):
        install_store(known, store, force=True)
    assert (store / "mine").read_text() == "precious"
    assert [path.name for path in store.parent.iterdir()] == [PUSHT_STORE]


def test_interrupted_anywhere_keeps_one_of_the_two(tmp_path, known, interrupted_replacing):
    store = tmp_path / "out" / PUSHT_STORE

    def setup():
        shutil.rmtree(store.parent, ignore_errors=True)
        store.mkdir(parents=True)
        (store / "mine").write_text("precious")

    for killed in interrupted_replacing(setup, lambda: install_store(known, store, force=True)):
        if killed:
            fetch_pusht(store.parent, archive=known, force=True)
        assert (store / "mine").exists() or load_replay(store).n_steps == 41
        assert [path.name for path in store.parent.iterdir()] == [PUSHT_STORE]


def test_what_was_set_aside_is_there_again_for_whoever_asks(tmp_path, known, closed_url):
    store = fetch_pusht(tmp_path / "out", archive=known)
    os.rename(store, set_aside(store))
    assert fetch_pusht(tmp_path / "out", url=closed_url, retries=0) == store
    os.rename(store, set_aside(store))
    with pytest.raises(DownloadError, match="exists already"):
        install_store(known, store)
    assert [path.name for path in store.parent.iterdir()] == [PUSHT_STORE]


def test_other_recordings_are_refused_unless_allowed(tmp_path, archive):
    digest = content_digest(load_replay(archive))
    with pytest.raises(DownloadError, match=f"content digest {digest}, expected {PUSHT_DIGEST}"):
        fetch_pusht(tmp_path / "out", archive=archive)
    assert list((tmp_path / "out").iterdir()) == []
    assert fetch_pusht(tmp_path / "out", archive=archive, any_content=True).is_dir()


def test_truncated_recordings_are_refused_even_if_any_content_goes(tmp_path, make_store, zip_folder):
    make_store(tmp_path / "made-up.zarr", img=None)
    (tmp_path / "made-up.zarr" / "data" / "state" / "1.0").unlink()
    archive = zip_folder(tmp_path / "made-up.zarr", tmp_path / "source.zip", OFFICIAL_PREFIX)
    with pytest.raises(DownloadError, match="data/state is truncated"):
        fetch_pusht(tmp_path / "out", archive=archive, any_content=True)


def test_damaged_archives(tmp_path, archive):
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-500])
    with pytest.raises(DownloadError, match="not a complete zip archive"):
        install_store(archive, tmp_path / "out")
    position = whole.index((tmp_path / "made-up.zarr" / "data" / "action" / "0.0").read_bytes())
    archive.write_bytes(whole[:position] + b"\xff\xff" + whole[position + 2 :])
    with pytest.raises(DownloadError, match="CRC"):
        install_store(archive, tmp_path / "out")
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("readme.txt", "hello")
    with pytest.raises(DownloadError, match="holds no zarr store"):
        install_store(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../escaped.txt", "/escaped.txt", "a/../../escaped.txt", "..\\escaped.txt"])
def test_entries_that_leave_the_folder_are_refused(tmp_path, archive, name):
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, "outside")
    with pytest.raises(DownloadError, match=r"unsafe entry .*escaped.*nothing was installed"):
        install_store(archive, tmp_path / "deep" / "out")
    assert list(tmp_path.rglob("*escaped*")) == []


def test_links_in_an_archive_are_refused(tmp_path, archive):
    link = zipfile.ZipInfo("pusht/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="unsafe entry 'pusht/link'"):
        install_store(archive, tmp_path / "out")


def test_the_digest_sees_values_not_storage(tmp_path, make_store):
    make_store(tmp_path / "a.zarr", zarr_format=2)
    arrays = make_store(tmp_path / "b.zarr", zarr_format=3)
    first = load_replay(tmp_path / "a.zarr")
    assert content_digest(first) == content_digest(load_replay(tmp_path / "b.zarr"))
    arrays["state"][5, 1] = np.nextafter(arrays["state"][5, 1], np.float32(1e9))
    make_store(tmp_path / "c.zarr", state=arrays["state"])
    assert content_digest(load_replay(tmp_path / "c.zarr")) != content_digest(first)
    make_store(tmp_path / "d.zarr", lengths=(12, 10, 19))
    assert content_digest(load_replay(tmp_path / "d.zarr")) != content_digest(first)


def test_the_digest_of_the_human_demonstrations(pusht_demonstrations):
    assert content_digest(load_replay(pusht_demonstrations)) == PUSHT_DIGEST


@pytest.fixture
def main():
    spec = importlib.util.spec_from_file_location("download_pusht", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main


def test_command_installs_and_says_where(tmp_path, known, main, capsys):
    assert main(["--directory", str(tmp_path / "out"), "--url", known.as_uri()]) == 0
    assert capsys.readouterr().out.strip() == f"demonstrations are in {tmp_path / 'out' / PUSHT_STORE}"
    assert main(["--directory", str(tmp_path / "out"), "--url", known.as_uri()]) == 0
    (tmp_path / "out" / PUSHT_STORE / "data" / "action" / ".zarray").unlink()
    assert main(["--directory", str(tmp_path / "out"), "--url", known.as_uri()]) == 1
    message = capsys.readouterr().err
    assert "--force replaces it" in message
    assert "data/action" in message


def test_command_says_in_one_line_what_to_do_by_hand(tmp_path, closed_url, main, capsys):
    arguments = ["--directory", str(tmp_path / "out"), "--url", closed_url, "--retries", "1"]
    assert main([*arguments, "--retry-delay", "0"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message.startswith(f"error: cannot download {closed_url}: ")
    archive = tmp_path / "out" / "pusht.zip"
    assert f"save it as {archive}, then run" in message
    assert f"scripts/download_pusht.py --archive {archive} --directory {tmp_path / 'out'}" in message


def test_the_command_to_go_on_by_hand_can_be_typed():
    command = "--archive '/my data/pusht.zip' --directory '/my data'`"
    assert by_hand("https://x", Path("/my data/pusht.zip")).endswith(f"`python scripts/download_pusht.py {command}")


def test_command_refuses_a_bad_argument_in_one_line(tmp_path, main, capsys):
    assert main(["--directory", str(tmp_path / "out"), "--sha256", "abc"]) == 1
    assert capsys.readouterr().err == "error: sha256 must be 64 hexadecimal digits, got 'abc'\n"


def test_interruption_says_how_to_continue(tmp_path, main, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "urlopen", interrupt)
    assert main(["--directory", str(tmp_path / "out"), "--url", "http://127.0.0.1/x"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_help_teaches(main, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("--archive", "--sha256", "--force", "examples:", "dataset.path="):
        assert word in text
