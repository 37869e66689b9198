"""Fetching files: a download that was interrupted goes on, and nothing unchecked gets its final name.

What was downloaded so far stays in a `.part` file and is continued.
"""

from __future__ import annotations

import hashlib
import re
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from immiscible_policy.files import alone

_CHUNK = 1 << 18
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}


class DownloadError(RuntimeError):
    """A file could not be fetched, verified or installed; the message says what to do."""


class HostError(DownloadError):
    """The host did not give the file: away, unknown, or refusing."""


def download(
    url: str,
    destination: str | Path,
    sha256: str | None = None,
    retries: int = 4,
    retry_delay: float = 2.0,
    timeout: float = 30.0,
    progress: bool = True,
) -> Path:
    """Fetch a file, continuing `<destination>.part` of an earlier run where the server supports ranges.

    Of several processes that want the same file one fetches it, and the others wait.

    Args:
        url: http://, https:// or file://.
        destination: final path; its folder is made. A file that is there is kept and returned (after its
            checksum has been compared, if one is given).
        sha256: expected digest, 64 hexadecimal digits; without it only the length is checked.
        retries: further attempts after the first, >= 0; they continue where the last one broke off.
        retry_delay: seconds before the first retry, doubled for each next one.
        timeout: seconds without any data after which an attempt is given up.

    Returns:
        destination.

    Raises:
        HostError: the host refuses or stays away. DownloadError: the checksum differs, or a disk error.
        ValueError: an argument out of range.
    """
    _check_download_arguments(url, sha256, retries, retry_delay)
    destination = Path(destination).expanduser()
    if not destination.exists():
        partial = destination.with_name(destination.name + ".part")
        try:
            with alone(destination, "another process that downloads"):
                if not destination.exists():  # the process that was waited for has not fetched it
                    _fetch_with_retries(url, partial, retries, retry_delay, timeout, progress)
                    if sha256 is not None:
                        _check_sha256(partial, sha256, remove=True)
                    partial.replace(destination)
                    return destination
        except OSError as error:
            raise DownloadError(f"cannot write {destination} ({error})") from error
    if sha256 is not None:
        _check_sha256(destination, sha256)
    return destination


def _fetch_with_retries(
    url: str, partial: Path, retries: int, retry_delay: float, timeout: float, progress: bool
) -> None:
    attempts = 1 if urlsplit(url).scheme == "file" else retries + 1
    for attempt in range(attempts):
        try:
            return _fetch(url, partial, timeout, progress)
        except HTTPError as error:
            reason = f"HTTP status {error.code} {error.reason}"
            if error.code not in _TRANSIENT_STATUS:
                raise HostError(f"cannot download {url}: {reason}") from error
            failure: Exception = error
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason, failure = str(getattr(error, "reason", error)), error
        if attempt + 1 < attempts:
            time.sleep(retry_delay * 2**attempt)
    raise HostError(f"cannot download {url}: {reason} (attempts: {attempts})") from failure


def _fetch(url: str, partial: Path, timeout: float, progress: bool) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"User-Agent": "immiscible-policy", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        if error.code != 416:
            raise
        # Range not satisfiable: either everything is here, or the part belongs to some other file.
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return
        partial.unlink()
        raise ConnectionError("the server refused to continue the partial file, which was discarded") from error
    with response:
        resumed = response.status == 206  # 200 (or None, for file://) sends the whole file again
        content_range = response.headers.get("Content-Range", "")
        if resumed and not content_range.startswith(f"bytes {have}-"):
            partial.unlink()
            raise ConnectionError(f"asked for bytes from {have} on, the server sent {content_range!r}")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, disable=not progress)
        with partial.open("ab" if resumed else "wb") as file, bar:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
    size = partial.stat().st_size
    if total is not None and size != total:
        raise ConnectionError(f"the connection closed after {size:,} of {total:,} bytes")


def _read(response: Any) -> bytes:
    """The next bytes; a broken connection must not look like a disk that cannot be written."""
    try:
        return response.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def _check_sha256(path: Path, expected: str, remove: bool = False) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    found = digest.hexdigest()
    if found == expected.lower():
        return
    if remove:
        path.unlink()
    action = "the download was discarded" if remove else "nothing was changed"
    raise DownloadError(f"{path} has SHA-256 {found}, expected {expected.lower()}; {action}")


def _check_download_arguments(url: str, sha256: str | None, retries: int, retry_delay: float) -> None:
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise ValueError(f"url must begin with https://, http:// or file://, got {url!r}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if retries < 0:
        raise ValueError(f"retries must be at least 0, got {retries}")
    if retry_delay < 0:
        raise ValueError(f"retry_delay must be at least 0 seconds, got {retry_delay}")
