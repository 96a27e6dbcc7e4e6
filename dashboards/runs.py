"""Runs on disk: found, opened and checked, each opened run kept until one of its files changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import streamlit as st

from xvision.errors import RunError
from xvision.store import Run, is_run

_UNFINISHED = "work"


def find_runs(folder: Path) -> tuple[Path, ...]:
    """The run itself, or the runs at most two folders below. Raises RunError when there is none."""
    if is_run(folder):
        return (folder,)
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no such folder. Give the run folder that `xvision audit` printed, or one that holds runs."
        )
    candidates = {path.parent for pattern in ("*/run.json", "*/*/run.json") for path in folder.glob(pattern)}
    found = sorted(path for path in candidates if _is_audit(path))
    if not found:
        raise RunError(
            f"{folder}: no run in this folder (nothing here has a run.json). Give the folder that `xvision audit` printed."
        )
    return tuple(found)


def _is_audit(path: Path) -> bool:
    """Whether ``run.json`` is an audit's, also a damaged one; a checkpoint folder has a ``run.json`` of another kind."""
    try:
        facts = json.loads((path / "run.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(facts, dict) and "schema" in facts


def open_run(path: Path) -> Run:
    """The run as it is on disk now; raises RunError when ``run.json`` cannot be used."""
    return _opened(str(path), stamp(path))


def problems(path: Path) -> tuple[str, ...]:
    """What `xvision verify` would report, checked again whenever a file changes its size or time."""
    return _problems(str(path), stamp(path))


def stamp(path: Path) -> str:
    """Changes when any file of the run comes, goes or is written."""
    return hashlib.sha256("\n".join(sorted(_facts(str(path)))).encode("utf-8", "surrogateescape")).hexdigest()


def files(run: Run) -> dict[str, int]:
    """Every file of the run with its size in bytes; links are not followed."""
    root = str(run.path)
    return {os.path.relpath(entry.path, root): entry.stat().st_size for entry in _files(root)}


def _facts(folder: str) -> Iterator[str]:
    for entry in _files(folder):
        with suppress(FileNotFoundError):  # a run in progress replaces its files
            fact = entry.stat()
            yield f"{entry.path} {fact.st_mtime_ns} {fact.st_size}"


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != _UNFINISHED:
                    yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False) and not entry.name.endswith(".tmp"):
                yield entry


@st.cache_resource(max_entries=8, show_spinner=False)
def _opened(path: str, stamp: str) -> Run:
    run = Run(Path(path))
    run.info  # noqa: B018  # read now, so that a damaged run.json is reported here
    return run


@st.cache_resource(max_entries=32, show_spinner="Checking the files against their hashes")
def _problems(path: str, stamp: str) -> tuple[str, ...]:
    return Run(Path(path)).problems()
