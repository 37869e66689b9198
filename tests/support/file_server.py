"""A web server on this machine, as fixtures that ``tests/conftest.py`` gives to all tests."""

import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


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
