"""Starts the dashboard: on this machine only, behind a link that is printed once, without telemetry."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dashboards.runs import find_runs
from xvision.errors import ConfigError, XVisionError

_TRIES = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    try:
        find_runs(parsed.run)
        serve(parsed.run.resolve(), free_port(parsed.port), browser=not parsed.no_browser)
    except XVisionError as problem:
        print(f"xvision: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass  # the usual way to end it
    return 0


def serve(folder: Path, port: int, *, browser: bool) -> None:
    """Prints the link and answers until interrupted."""
    import streamlit as st
    import uvicorn.config
    from starlette.middleware import Middleware

    from dashboards.app import PATH_VARIABLE
    from dashboards.gate import HOSTS, Gate

    token = secrets.token_urlsafe(32)
    link = f"http://{HOSTS[0]}:{port}/?token={token}"

    @asynccontextmanager
    async def announced(_: st.App) -> AsyncIterator[dict[str, Any]]:
        print(f"Dashboard: {link}  (this machine only; Ctrl+C ends it)", flush=True)
        if browser:
            threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()
        yield {}

    os.environ[PATH_VARIABLE] = str(folder)
    uvicorn.config.LOGGING_CONFIG["loggers"]["uvicorn"]["level"] = "WARNING"
    uvicorn.config.LOGGING_CONFIG["loggers"]["uvicorn.error"]["level"] = "WARNING"
    script = Path(__file__).with_name("app.py")
    gate = Middleware(Gate, token=token, port=port)
    st.App(script, middleware=[gate], lifespan=announced).run(config=settings(port))


def settings(port: int) -> dict[str, Any]:
    """Every Streamlit option that decides who may see what, whatever the user's own configuration says."""
    from dashboards.gate import HOSTS
    from dashboards.theme import STREAMLIT_THEME

    return {
        "server.address": HOSTS[0],
        "server.port": port,
        "server.baseUrlPath": "",
        "server.allowedHosts": list(HOSTS),
        "server.corsAllowedOrigins": [],
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.enableAgentApi": False,
        "server.enableStaticServing": False,
        "server.fileWatcherType": "none",
        "server.headless": True,
        "server.maxUploadSize": 1,
        "server.showEmailPrompt": False,
        "browser.gatherUsageStats": False,
        "client.allowedOrigins": [],
        "client.disableDataExport": True,
        "client.showErrorDetails": "none",
        "client.showErrorLinks": False,
        "client.toolbarMode": "minimal",
        "logger.hideWelcomeMessage": True,
        "logger.level": "error",
        "runner.magicEnabled": False,
        **STREAMLIT_THEME,
    }


def free_port(wanted: int) -> int:
    """The wanted port, or the next free one. Raises ConfigError when none of them can be used."""
    if not 0 <= wanted <= 65535:
        raise ConfigError(f"--port {wanted}: give a number from 1 to 65535.")
    last = min(wanted + _TRIES, 65535)
    for port in range(wanted, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise ConfigError(f"--port {wanted}: no port from {wanted} to {last} is free. Give another one.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xvision dashboard", description="Show a run, or a folder of runs, in the browser."
    )
    parser.add_argument("run", type=Path, metavar="RUN_OR_FOLDER")
    parser.add_argument("--port", type=int, default=8501, help="first port to try (8501)")
    parser.add_argument("--no-browser", action="store_true", help="print the link without opening it")
    return parser
