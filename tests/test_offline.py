"""The rule "no network" holds in the tests and in the processes that they start."""

import socket
import subprocess
import sys

import conftest
import offline
import pytest


def test_ways_out_are_closed():
    for outside in ("192.0.2.1", "2001:db8::1"):
        family = socket.AF_INET6 if ":" in outside else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            with pytest.raises(offline.Online):
                way.connect((outside, 9))
            with pytest.raises(offline.Online):
                way.sendto(b"hello", (outside, 9))
    with pytest.raises(offline.Online):
        socket.getaddrinfo("example.invalid", 443)
    assert conftest.attempts == ["192.0.2.1", "192.0.2.1", "2001:db8::1", "2001:db8::1", "example.invalid"]
    conftest.attempts.clear()


def test_this_machine_stays_reachable(tmp_path):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            accepted.sendall(b"here")
            assert client.recv(4) == b"here"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))


def test_processes_started_by_tests_keep_the_rule():
    program = "import socket; socket.create_connection(('example.invalid', 443))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "Online: the tests use no network" in ended.stderr
