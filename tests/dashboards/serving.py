"""A real dashboard server for the tests, on a free port, ended with the test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """port: where it listens; link: what it printed, token included."""

    port: int
    link: str

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return self.link.rpartition("token=")[2]


@contextmanager
def serving(path: Path) -> Iterator[Served]:
    command = [sys.executable, "-m", "dashboards", str(path), "--port", "0", "--no-browser"]
    home = {**os.environ, "HOME": str(path.parent), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=home) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=\S+", line)
            assert found, f"the dashboard printed {line!r}"
            yield Served(int(found[1]), found[0])
        finally:
            process.terminate()
