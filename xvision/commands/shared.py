"""What several commands print or start."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from xvision.errors import MissingExtra


def outlet(package: str, extra: str, purpose: str, words: list[str]) -> int:
    """Runs an outlet as its own process: the library never imports it."""
    for needed in {"reports": ("typst", "matplotlib"), "dashboards": ("streamlit", "plotly")}[package]:
        if importlib.util.find_spec(needed) is None:
            raise MissingExtra(needed, extra, purpose)
    try:
        return subprocess.call([sys.executable, "-m", package, *words])  # noqa: S603  # our own module, no shell
    except KeyboardInterrupt:  # the usual way to end the dashboard, which ends itself
        return 0


def print_findings(path: Path) -> None:
    """The verdict of a run and one line for each finding."""
    from xvision import console
    from xvision.store import open_run

    console.print_findings(open_run(path).judgement)
