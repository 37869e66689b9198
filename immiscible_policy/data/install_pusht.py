"""Fetching the human PushT demonstrations: checked content, atomic installation.

Nothing appears under its final name before it is complete and verified, so an interrupted run never leaves
half a data set behind.
"""

from __future__ import annotations

import hashlib
import shlex
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np

from immiscible_policy.data.replacing import staged, undo_replacing
from immiscible_policy.data.replay import STORE_MARKERS, DataError, ReplayData, load_replay
from immiscible_policy.download import DownloadError, HostError, download
from immiscible_policy.files import alone, replace_folder

PUSHT_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
PUSHT_STORE = "pusht_cchi_v7_replay.zarr"
# `content_digest` of the 206 human demonstrations as this project uses them. No SHA-256 of the archive is
# known to us; this digest holds for every copy of the data however it is chunked, compressed or zipped.
PUSHT_DIGEST = "93c194648df0cf9357149f4276f9b188274a8db04825e8b4e7a82e300b501f02"


def fetch_pusht(
    directory: str | Path,
    url: str = PUSHT_URL,
    sha256: str | None = None,
    archive: str | Path | None = None,
    force: bool = False,
    any_content: bool = False,
    retries: int = 4,
    retry_delay: float = 2.0,
    progress: bool = True,
) -> Path:
    """Install the demonstrations as `directory/pusht_cchi_v7_replay.zarr`; verified ones that are there stay.

    Args:
        directory: made if missing.
        url: http(s):// or file:// address of the archive.
        sha256: of the archive, if you know it.
        archive: a zip that is already here; nothing is downloaded then, and it is kept.
        force: replace an installed store (only once the new one is verified).
        any_content: accept other recordings in the same layout, i.e. do not compare with `PUSHT_DIGEST`.

    Returns:
        The path of the store.

    Raises:
        DownloadError: with the steps to take by hand, where the network is the problem.
    """
    directory = Path(directory).expanduser()
    store = directory / PUSHT_STORE
    undo_replacing(store)
    if store.exists() and not force:
        try:
            verify_pusht(store, any_content)
        except DataError as error:
            raise DownloadError(
                f"{store} exists already; nothing was changed (--force replaces it): {error}"
            ) from error
        return store
    zip_path = Path(archive).expanduser() if archive is not None else directory / "pusht.zip"
    if archive is not None and not zip_path.is_file():
        raise DownloadError(f"there is no archive at {zip_path}")
    # A zip that a person put there is theirs to keep; one that this call fetches is not needed afterwards.
    fetched = not zip_path.exists()
    try:
        download(url, zip_path, sha256, retries, retry_delay, progress=progress)
    except HostError as error:
        raise HostError(f"{error}. {by_hand(url, zip_path)}") from error

    def check(found: Path) -> None:
        verify_pusht(found, any_content)

    try:
        install_store(zip_path, store, force=force, check=check)
    finally:
        # Also on failure: a damaged download would be found, and refused, by every later run.
        if fetched:
            zip_path.unlink(missing_ok=True)
    return store


def by_hand(url: str, zip_path: Path) -> str:
    """What a person can do when the host does not answer."""
    archive, directory = shlex.quote(str(zip_path)), shlex.quote(str(zip_path.parent))
    return (
        f"By hand: fetch {url} on any machine, save it as {zip_path}, then run"
        f" `python scripts/download_pusht.py --archive {archive} --directory {directory}`"
    )


def install_store(archive: Path, store: Path, force: bool = False, check: Callable[[Path], None] | None = None) -> None:
    """Unpack the zarr store of a zip (at its root or in any folder) as `store`, all of it or nothing.

    Extraction verifies every member's CRC; `check` is called with the unpacked store before it is renamed
    to its final name and refuses it by raising.

    Raises:
        DownloadError: a damaged or unsafe archive, no store in it, `check` refused with DataError, or
            `store` exists and `force` is not set.
    """
    with alone(store):
        undo_replacing(store)
        if store.exists() and not force:
            raise DownloadError(f"{store} exists already; nothing was changed (--force replaces it)")
        with staged(store) as unpacked:
            _extract(archive, unpacked)
            found = _find_store(unpacked, archive)
            if check is not None:
                try:
                    check(found)
                except DataError as error:
                    raise DownloadError(f"{archive} does not hold what was expected: {error}") from error
            replace_folder(found, store)


def _extract(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                _refuse_unsafe(member, archive)
            opened.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DownloadError(f"{archive} is not a complete zip archive ({error})") from error


def _refuse_unsafe(member: zipfile.ZipInfo, archive: Path) -> None:
    """Refuse names that leave the folder: zipfile would rewrite them silently instead."""
    name = PurePosixPath(member.filename.replace("\\", "/"))
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if name.is_absolute() or ".." in name.parts or ":" in member.filename or is_link:
        raise DownloadError(f"{archive} holds the unsafe entry {member.filename!r}; nothing was installed")


def _find_store(folder: Path, archive: Path) -> Path:
    roots = {path.parent for marker in STORE_MARKERS for path in folder.rglob(marker)}
    roots = {root for root in roots if "__MACOSX" not in root.parts}
    if not roots:
        raise DownloadError(f"{archive} holds no zarr store (no {' or '.join(STORE_MARKERS)} in it)")
    return min(roots, key=lambda root: (len(root.parts), str(root)))


def verify_pusht(store: Path, any_content: bool = False) -> None:
    """Check that a store is complete and, unless `any_content`, that it is the 206 human demonstrations.

    Raises:
        DataError: what is wrong with it.
    """
    replay = load_replay(store, arrays=("action", "state", "keypoint"))
    digest = content_digest(replay)
    if not any_content and digest != PUSHT_DIGEST:
        raise DataError(
            f"the recordings are not the 206 PushT demonstrations: content digest {digest},"
            f" expected {PUSHT_DIGEST} (--any-content accepts other recordings in the same layout)"
        )


def content_digest(replay: ReplayData) -> str:
    """SHA-256 over the values of `action`, `state` and `episode_ends`, each with its name and shape.

    It depends on what was recorded, not on chunking, compression or archive.
    """
    digest = hashlib.sha256()
    parts = {
        "action": replay.arrays["action"].astype("<f4"),
        "state": replay.arrays["state"].astype("<f4"),
        "episode_ends": replay.episode_ends.astype("<i8"),
    }
    for name, values in parts.items():
        digest.update(f"{name}{values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()
