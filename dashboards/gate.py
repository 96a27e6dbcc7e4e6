"""Who may talk to the dashboard: only the browser that was given the link, on this machine.

A pure ASGI middleware, so that it sees web sockets and media files as well as pages. The token of the link is exchanged once
for a cookie that no script can read and no other site can make the browser send.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import streamlit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

HOSTS = ("127.0.0.1", "localhost")
_LOCKED = b"This dashboard opens with the link that `xvision dashboard` printed. Use that link, or start it again."


class Gate:
    """Asks every request for the cookie and every answer to carry the security headers."""

    def __init__(self, app: Application, token: str, port: int) -> None:
        self.app, self.token = app, token
        self.cookie, self.session = f"xvision-{port}", secrets.token_urlsafe(32)
        self.hosts = {f"{host}:{port}" for host in HOSTS}
        self.policy = content_security_policy(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, self._hardened(scope["path"], send))
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if _header(scope, b"host") not in self.hosts:
            await _answer(send, 421, b"This dashboard answers on this machine only.")
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, b"This dashboard only shows.")
        elif "token" in given and _same(given["token"], self.token):
            await _answer(send, 303, b"", self._welcome(scope["path"], given))
        elif self._admitted(scope):
            await self.app(scope, receive, send)
        else:
            await _answer(send, 401, _LOCKED)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = _header(scope, b"host")
        origin = urlsplit(_header(scope, b"origin")).netloc
        if host in self.hosts and origin == host and self._admitted(scope):
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008})

    def _admitted(self, scope: Scope) -> bool:
        cookies = (part.strip().partition("=") for part in _header(scope, b"cookie").split(";"))
        return any(name == self.cookie and _same(value, self.session) for name, _, value in cookies)

    def _welcome(self, path: str, given: dict[str, str]) -> Headers:
        """To the same page without the token; one slash in front, so that no path can name another host."""
        rest = urlencode({name: value for name, value in given.items() if name != "token"})
        location = "/" + quote(path.lstrip("/\\")) + (f"?{rest}" if rest else "")
        cookie = f"{self.cookie}={self.session}; Path=/; HttpOnly; SameSite=Strict"
        return [(b"location", location.encode()), (b"set-cookie", cookie.encode())]

    def _hardened(self, path: str, send: Send) -> Send:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = self._headers(path, message.get("headers", []))
            await send(message)

        return hardened

    def _headers(self, path: str, found: Iterable[tuple[bytes, bytes]]) -> Headers:
        headers = list(found)
        page = any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in headers)
        added = {
            b"content-security-policy": self.policy.encode(),
            b"x-content-type-options": b"nosniff",
            b"x-frame-options": b"DENY",
            b"referrer-policy": b"no-referrer",
            b"cross-origin-opener-policy": b"same-origin",
            b"cross-origin-resource-policy": b"same-origin",
            b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
        }
        if page or path.startswith(("/media/", "/_stcore/")):  # patient images are not left in a browser's cache
            added[b"cache-control"] = b"no-store"
        return [item for item in headers if item[0].lower() not in added] + list(added.items())


def content_security_policy(port: int) -> str:
    """Only this server, and of inline scripts only those that the installed Streamlit ships in its page."""
    sockets = " ".join(f"ws://{host}:{port}" for host in HOSTS)
    return "; ".join(
        [
            "default-src 'self'",
            f"script-src 'self' blob: {' '.join(_inline_scripts())}".strip(),
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            f"connect-src 'self' {sockets}",
            "worker-src 'self' blob:",
            "frame-ancestors 'none'",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
        ]
    )


def _inline_scripts() -> list[str]:
    page = (Path(streamlit.__file__).parent / "static" / "index.html").read_text("utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]


def _header(scope: Scope, name: bytes) -> str:
    """The header's value; empty when it is missing or given twice."""
    found = [value for key, value in scope["headers"] if key.lower() == name]
    return found[0].decode("latin-1") if len(found) == 1 else ""


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


async def _answer(send: Send, status: int, words: bytes, headers: Headers | None = None) -> None:
    kind = (b"content-type", b"text/plain; charset=utf-8")
    size = (b"content-length", str(len(words)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [kind, size, *(headers or [])]})
    await send({"type": "http.response.body", "body": words})
