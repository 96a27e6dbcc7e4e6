"""Paths named inside a manifest: relative, inside the data folder, never followed out of it."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from xvision.errors import DataError

_LONGEST = 2048


def resolve_inside(root: Path, relative: str) -> Path:
    """The real path of ``relative`` under ``root``, which must be resolved; the file need not exist.

    Raises DataError when the name is absolute, climbs, is written with backslashes, is not in Unicode normal form C,
    holds control characters, or leads out of ``root`` through a symbolic link.
    """
    fault = _fault(relative)
    if fault:
        raise DataError(f"the path {relative[:100]!r} {fault}")
    try:
        real = (root / relative).resolve()
    except (OSError, RuntimeError):  # a loop of links
        raise DataError(f"the path {relative!r} cannot be followed: correct it") from None
    if not real.is_relative_to(root):
        raise DataError(f"the path {relative!r} leads outside the data folder {root}: copy the file into it")
    return real


def _fault(relative: str) -> str:
    """What is wrong with the spelling of a path and what to do, or "" when nothing is."""
    if len(relative.encode()) > _LONGEST or any(len(part.encode()) > 255 for part in relative.split("/")):
        return "is too long: shorten it"
    if any(unicodedata.category(character) == "Cc" for character in relative):
        return "holds control characters: remove them"
    windows = PureWindowsPath(relative)
    if PurePosixPath(relative).is_absolute() or windows.drive or windows.root:
        return "is absolute: give it relative to the manifest's folder"
    if "\\" in relative:
        return "holds backslashes: write it with forward slashes"
    if ".." in PurePosixPath(relative).parts:
        return "climbs with '..': keep the files under the manifest's folder"
    if not unicodedata.is_normalized("NFC", relative):
        return "is not in Unicode normal form C: rename the file and correct the manifest"
    return ""
