"""No path and no URL of a client is opened unless the operator allowed it by name.

Run: pytest tests/serving/test_sources.py
"""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sa2va_hf.serving.limits import Limits, Refused
from sa2va_hf.serving.sources import Sources

LIMITS = Limits(max_bytes=1000)


def status_of(sources: Sources, url: str) -> int:
    with pytest.raises(Refused) as caught:
        sources.read(url, LIMITS)
    return caught.value.status


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "etc/passwd",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest/meta-data/",
        "https://localhost/x.png",
        "http://[::1]/x.png",
        "ftp://example.org/x.png",
        "gopher://127.0.0.1/",
        "C:\\images\\x.png",
        "\\\\host\\share\\x.png",
        "/dev/zero",
        "//127.0.0.1/x",
        "concat:/etc/passwd|/etc/hosts",
        "javascript:alert(1)",
    ],
)
def test_nothing_is_opened_by_default(url, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("pathlib.Path.open", forbidden)
    monkeypatch.setattr("urllib.request.OpenerDirector.open", forbidden)
    assert status_of(Sources(), url) == 403


def test_data_urls_are_read_within_the_limit():
    data = bytes(range(200))
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    assert Sources().read(url, LIMITS) == data
    assert status_of(Sources(), "data:image/png;base64," + "A" * 2000) == 413
    for damaged in ("data:image/png;base64,A", "data:image/png;base64,*?", "data:image/png,AAAA", "data:"):
        assert status_of(Sources(), damaged) == 400


def test_files_of_a_named_folder_and_no_others(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "out"
    for place in (folder, outside):
        place.mkdir()
        (place / "a b.png").write_bytes(b"png")
    (folder / "link.png").symlink_to(outside / "a b.png")
    (folder / "large.png").write_bytes(bytes(1001))
    sources = Sources(folders=(folder,))
    assert sources.read(str(folder / "a b.png"), LIMITS) == b"png"
    assert sources.read(f"file://{folder}/a%20b.png", LIMITS) == b"png"
    refused = {"link.png": 403, "../out/a b.png": 403, "none.png": 404, "large.png": 413, "": 404, "a\0": 403}
    assert {name: status_of(sources, f"{folder}/{name}") for name in refused} == refused


@pytest.fixture
def host():
    """/x is a file, /large is too large, /away leads to another host."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302 if self.path == "/away" else 200)
            self.send_header("Location", "http://127.0.0.1:1/secret")
            self.end_headers()
            self.wfile.write(b"x" * (2000 if self.path == "/large" else 5))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_named_host_and_no_redirects(host):
    sources = Sources(hosts=(host,))
    assert sources.read(f"http://{host}/x", LIMITS) == b"xxxxx"
    assert status_of(sources, f"http://{host}/large") == 413
    assert status_of(sources, f"http://{host}/away") == 502
    assert status_of(sources, "http://127.0.0.1:1/x") == 403, "another port is another host"
    assert status_of(sources, f"http://{host}@example.org/x") == 403
    assert status_of(Sources(hosts=("127.0.0.1:1",)), "http://127.0.0.1:1/x") == 502
