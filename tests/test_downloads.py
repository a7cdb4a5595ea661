"""Published weights, from a server on this machine."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from everymask.downloads import Published, cache_folder, fetched
from everymask.errors import InputError

CONTENT = np.random.default_rng(0).bytes(3_000_000)


class _Server(ThreadingHTTPServer):
    ranges = True
    breaks_after: int | None = None
    asked: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self):
        header = self.headers.get("Range", "")
        self.server.asked.append(header)
        if self.path != "/weights.bin":
            self.send_error(404)
            return
        start = int(header.removeprefix("bytes=").removesuffix("-")) if header and self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        stop = self.server.breaks_after
        self.wfile.write(CONTENT[start : None if stop is None else start + stop])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("EVERYMASK_CACHE", str(tmp_path / "cache"))
    made = _Server(("127.0.0.1", 0), _Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def _weights(server, **changes):
    made = Published(
        url=f"http://127.0.0.1:{server.server_address[1]}/weights.bin",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size=len(CONTENT),
        licence="Apache-2.0",
        title="made up",
        method="yolo",
        categories="coco",
        source="https://example.org",
    )
    return replace(made, **changes)


def test_a_file_is_fetched_once_and_checked(server):
    told = []
    path = fetched("toy", _weights(server), lambda done, size: told.append((done, size)))
    assert path.read_bytes() == CONTENT
    assert path.parent == cache_folder()
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetched("toy", _weights(server)) == path
    assert len(server.asked) == 1
    assert [each.name for each in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server, ranges):
    server.breaks_after = 1_200_000
    with pytest.raises(InputError, match="goes on where it ended"):
        fetched("toy", _weights(server))
    server.breaks_after, server.ranges = None, ranges
    assert fetched("toy", _weights(server)).read_bytes() == CONTENT
    assert server.asked[-1].startswith("bytes=")
    assert int(server.asked[-1].removeprefix("bytes=").removesuffix("-")) > 0


def test_a_file_with_another_checksum_is_deleted(server):
    with pytest.raises(InputError, match="checksum differs"):
        fetched("toy", _weights(server, sha256="0" * 64))
    assert not list(cache_folder().iterdir())
    with pytest.raises(InputError, match="checksum differs"):
        fetched("toy", _weights(server, size=1000))


def test_what_cannot_be_fetched_is_told_in_one_line(server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no entry for the licence"):
        fetched("toy", _weights(server, licence=""))
    assert not server.asked
    with pytest.raises(InputError, match="answers 404"):
        fetched("toy", _weights(server, url=f"http://127.0.0.1:{server.server_address[1]}/other.bin"))
    with pytest.raises(InputError, match="check the connection"):
        fetched("toy", _weights(server, url="http://127.0.0.1:9/weights.bin"))
    with pytest.raises(InputError, match="http or https"):
        fetched("toy", _weights(server, url="file:///etc/hostname"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVERYMASK_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="EVERYMASK_CACHE"):
        fetched("toy", _weights(server))
