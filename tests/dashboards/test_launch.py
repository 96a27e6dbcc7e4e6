"""Who gets in: a real server, asked with plain sockets."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from dashboards import launch
from dashboards.gate import Gate, Message, Receive, Scope, Send, content_security_policy
from tests.dashboards.serving import Served, serving
from xvision.errors import ConfigError


@pytest.fixture(scope="module")
def served(runs: dict[str, Path]) -> Iterator[Served]:
    with serving(runs["complete"]) as found:
        yield found


def ask(served: Served, path: str, method: str = "GET", **headers: str) -> HTTPResponse:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def cookie(served: Served) -> str:
    return (ask(served, f"/?token={served.token}").getheader("set-cookie") or "").partition(";")[0]


def shake(served: Served, *, cookie: str = "", origin: str = "", host: str = "") -> str:
    """The status line that a web-socket handshake gets."""
    host = host or f"127.0.0.1:{served.port}"
    lines = [
        "GET /_stcore/stream HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Protocol: streamlit",
        *([f"Origin: {origin}"] if origin else []), *([f"Cookie: {cookie}"] if cookie else []),
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as wire:
        wire.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return wire.recv(4096).split(b"\r\n")[0].decode()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/performance",
        "/?token=wrong",
        "/media/x.png",
        "/_stcore/health",
        "/_stcore/host-config",
        "/static/js/x.js",
    ],
)
def test_nothing_is_given_without_the_link(served: Served, path: str) -> None:
    answer = ask(served, path)
    assert answer.status == 401
    assert answer.getheader("set-cookie") is None


def test_the_link_is_exchanged_for_a_cookie_and_a_clean_address(served: Served) -> None:
    answer = ask(served, f"/cases?case=case-1&token={served.token}")
    assert answer.status == 303
    assert answer.getheader("location") == "/cases?case=case-1"
    given = answer.getheader("set-cookie") or ""
    assert f"xvision-{served.port}=" in given
    assert "HttpOnly" in given
    assert "SameSite=Strict" in given
    assert served.token not in given
    assert ask(served, "/", Cookie=cookie(served)).status == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "///evil.example/%2f.."])
def test_the_redirect_never_leaves_this_server(served: Served, path: str) -> None:
    location = ask(served, f"{path}?token={served.token}").getheader("location") or ""
    assert location.startswith("/")
    assert not location.startswith(("//", "/\\"))


def test_every_answer_carries_the_security_headers(served: Served) -> None:
    page = ask(served, "/", Cookie=cookie(served))
    assert page.getheader("content-security-policy") == content_security_policy(served.port)
    assert page.getheader("x-content-type-options") == "nosniff"
    assert page.getheader("x-frame-options") == "DENY"
    assert page.getheader("referrer-policy") == "no-referrer"
    assert page.getheader("cache-control") == "no-store"
    assert ask(served, "/").getheader("x-frame-options") == "DENY"


def test_the_policy_allows_no_other_server_and_no_evaluated_script() -> None:
    policy = content_security_policy(8501)
    assert "unsafe-eval" not in policy
    assert "script-src 'self' blob: 'sha256-" in policy
    assert not [
        word for word in policy.split() if "://" in word and "127.0.0.1" not in word and "localhost" not in word
    ]


def test_scripts_of_the_page_may_be_cached(served: Served) -> None:
    assert ask(served, "/favicon.png", Cookie=cookie(served)).getheader("cache-control") != "no-store"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_sent(served: Served, method: str) -> None:
    assert ask(served, "/_stcore/upload_file/a/b", method, Cookie=cookie(served)).status == 405


def test_another_host_name_is_refused(served: Served) -> None:
    """A page that rebinds its own name to this address must not read the run."""
    assert ask(served, "/", Host="evil.example", Cookie=cookie(served)).status == 421


def test_the_web_socket_needs_the_cookie_this_host_and_this_origin(served: Served) -> None:
    known, here = cookie(served), served.base
    assert shake(served, cookie=known, origin=here) == "HTTP/1.1 101 Switching Protocols"
    assert " 403 " in shake(served, origin=here)
    assert " 403 " in shake(served, cookie=f"xvision-{served.port}=wrong", origin=here)
    assert " 403 " in shake(served, cookie=known)
    assert " 403 " in shake(served, cookie=known, origin="http://evil.example")
    assert " 403 " in shake(served, cookie=known, origin="http://127.0.0.1:1")
    assert " 403 " in shake(served, cookie=known, origin="http://evil.example", host="evil.example")


@pytest.mark.parametrize(
    ("host", "accepted"), [("127.0.0.1:8501", True), ("evil.example", False), ("127.0.0.1:80", False)]
)
def test_the_gate_itself_refuses_another_host_whatever_is_behind_it(host: str, accepted: bool) -> None:
    sent: list[str] = []

    async def anything(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message["type"])

    gate = Gate(anything, "token", 8501)
    headers = {"host": host, "origin": f"http://{host}", "cookie": f"a=b; {gate.cookie}={gate.session}"}
    scope = {"type": "websocket", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(gate(scope, receive, send))
    assert sent == ["websocket.accept" if accepted else "websocket.close"]


def test_it_listens_on_this_machine_only(served: Served) -> None:
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not tables[0].exists():
        pytest.skip("the list of listening sockets is read from /proc, which this system does not have")
    rows = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    listening = {
        row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == served.port
    }
    assert listening == {"0100007F"}


def test_a_wrong_path_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "dashboards", str(path)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"xvision: {path}: no ")
        assert done.stderr.count("\n") == 1


def test_a_taken_port_gives_way_to_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        assert port < launch.free_port(port) <= port + 50


def test_a_port_out_of_range_is_named() -> None:
    with pytest.raises(ConfigError, match="--port 70000: give a number from 1 to 65535"):
        launch.free_port(70_000)


def test_nothing_is_reported_uploaded_or_watched() -> None:
    options = launch.settings(8501)
    assert options["server.address"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] is False
    assert options["server.enableAgentApi"] is False
    assert options["client.showErrorDetails"] == "none"
    assert options["client.disableDataExport"] is True
