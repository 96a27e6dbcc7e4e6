"""With what, on what and when: the facts that let somebody else repeat a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import torch

from xvision import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "captum",
    "foolbox",
    "fairlearn",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
)


def versions() -> dict[str, str]:
    """Python and the packages that the numbers depend on."""
    return {"python": platform.python_version(), "xvision": __version__, **{name: _version(name) for name in _PACKAGES}}


def hardware(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type,
        "name": name,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git() -> dict[str, Any]:
    """Commit and dirty flag of the folder the command was started in; empty outside a repository."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)  # noqa: S603, S607  # fixed words, the user's own git
        return done.stdout.strip() if done.returncode == 0 else ""

    if shutil.which("git") is None or not ask("rev-parse", "HEAD"):
        return {}
    return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
