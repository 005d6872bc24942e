"""Published weights by name: whole or not at all, and one line where there is no network."""

import hashlib
import http.server
import socket
import threading

import conftest
import offline
import pytest

from diptych.base.errors import CheckpointError, OutputError, RecipeError
from diptych.runs import download as file
from diptych.runs.download import PUBLISHED, Published, download, list_published

WEIGHTS = bytes(range(256)) * 20


class Server(http.server.BaseHTTPRequestHandler):
    """/whole, /short (promises more than it sends), /large (promises 3 GB), /unsaid (no length), anything else: 404."""

    def do_GET(self):
        lengths = {"/whole": len(WEIGHTS), "/short": 2 * len(WEIGHTS), "/large": 3 * 10**9, "/unsaid": None}
        self.send_response(200 if self.path in lengths else 404)
        if lengths.get(self.path):
            self.send_header("Content-Length", str(lengths[self.path]))
        self.end_headers()
        if self.path in lengths:
            self.wfile.write(WEIGHTS)

    def log_message(self, *words):
        pass


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """`serve(path)` makes the name "test" lead to a path of a server on this machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        def lead(path):
            address = f"http://127.0.0.1:{server.server_port}{path}"
            monkeypatch.setitem(PUBLISHED, "test", Published(address, "CC0", "bytes"))

        yield lead
        server.shutdown()


@pytest.mark.parametrize("path", ["/whole", "/unsaid"])
def test_a_file_arrives_whole(serve, tmp_path, path):
    serve(path)
    told = []
    got = download("test", progress=lambda done, total: told.append((done, total)))
    assert got.file.read_bytes() == WEIGHTS and got.file.name == "test.pth"
    assert got.sha256 == hashlib.sha256(WEIGHTS).hexdigest() and got.bytes == len(WEIGHTS)
    assert told[-1] == (len(WEIGHTS), len(WEIGHTS) if path == "/whole" else 0)
    with pytest.raises(OutputError, match="exists already"):
        download("test")
    with pytest.raises(OutputError, match="cannot write"):
        download("test", tmp_path / "nowhere" / "x.pth")


@pytest.mark.parametrize(("path", "message"), [("/short", "ended after 5,120 of 10,240"), ("/gone", "Not Found"),
                                               ("/large", "more than 2,000,000,000")])  # fmt: skip
def test_half_a_file_is_no_file(serve, tmp_path, path, message):
    serve(path)
    with pytest.raises(CheckpointError, match=message):
        download("test")
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_stop_is_left(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_DOWNLOAD_BYTES", 1000)
    serve("/unsaid")
    with pytest.raises(CheckpointError, match="more than 1,000"):
        download("test")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_proxy(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_no_network_is_one_line(no_proxy, monkeypatch, tmp_path):
    def no_network(*arguments, **options):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(CheckpointError, match="cannot fetch https.*Name or service.*copy the file") as caught:
        download("barlow-twins-resnet50")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_it_asks_for_its_own_host_alone(no_proxy, tmp_path):
    """The tests' network is closed: what is asked for is written down, and nothing is left behind."""
    with pytest.raises(offline.Online):
        download("barlow-twins-resnet50")
    assert conftest.attempts == ["dl.fbaipublicfiles.com"]
    conftest.attempts.clear()
    assert not list(tmp_path.iterdir())


def test_names_and_licences():
    with pytest.raises(RecipeError, match="'vgg'; available: barlow-twins-resnet50"):
        download("vgg")
    for name, one in PUBLISHED.items():
        assert one.address.startswith("https://") and one.licence and name in list_published()
