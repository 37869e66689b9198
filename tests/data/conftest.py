"""A small made-up replay store in the PushT layout, and a web server on this machine."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import zarr

StoreMaker = Callable[..., dict[str, np.ndarray]]


def _arrays(lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = sum(lengths)
    return {
        "action": rng.uniform(10, 500, (n, 2)).astype(np.float32),
        "state": rng.uniform(10, 500, (n, 5)).astype(np.float32),
        "keypoint": rng.uniform(10, 500, (n, 9, 2)).astype(np.float32),
        "img": rng.integers(0, 256, (n, 96, 96, 3)).astype(np.float32),
        "episode_ends": np.cumsum(lengths).astype(np.int64),
    }


@pytest.fixture
def make_store() -> StoreMaker:
    """make_store(path, lengths=..., zarr_format=..., **replacements) writes a store, returns its arrays.

    A replacement replaces the array of that name; None leaves it out.
    """

    def make(
        path: Path, lengths: tuple[int, ...] = (12, 9, 20), zarr_format: int = 2, **replacements: object
    ) -> dict[str, np.ndarray]:
        arrays = {**_arrays(lengths), **replacements}
        kept = {name: np.asarray(values) for name, values in arrays.items() if values is not None}
        root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
        data, meta = root.create_group("data"), root.create_group("meta")
        for name, values in kept.items():
            group = meta if name == "episode_ends" else data
            chunks = (16, *values.shape[1:])
            group.create_array(name, data=values, chunks=chunks, config={"write_empty_chunks": True})
        return kept

    return make


class FileServer(BaseHTTPRequestHandler):
    """Serves `server.content` at /file with ranges; what it was asked for is kept in `server.ranges`."""

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if self.path != "/file" or server.failures > 0:
            server.failures -= 1
            self.send_error(404 if self.path != "/file" else 503)
            return
        total = len(server.content)
        begin = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and server.supports_ranges else 0
        if begin >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin + server.shift}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - begin))
        self.end_headers()
        end = total
        if server.cuts:
            end = begin + server.cuts.pop(0)
        self.wfile.write(server.content[begin:end])
        self.close_connection = True

    def log_message(self, *arguments):
        """Keeps the test's output clean."""


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Serves its `content` at `url`; tests set its failings."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), FileServer)
    server.content, server.ranges, server.cuts = b"", [], []
    server.failures, server.shift, server.supports_ranges = 0, 0, True
    server.url = f"http://127.0.0.1:{server.server_port}/file"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def closed_url(monkeypatch: pytest.MonkeyPatch) -> str:
    """An address on this machine where nobody listens."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}/pusht.zip"
