"""How large an image file may be, so that a small hostile file cannot exhaust memory."""

from __future__ import annotations

import stat
from pathlib import Path

from xvision.errors import DataError

MAX_PIXELS = 50_000_000
MAX_BYTES = 512 * 2**20


def refuse_large_file(path: Path) -> None:
    """Raise DataError when ``path`` is no regular file, cannot be looked at, or has more than ``MAX_BYTES``."""
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be opened ({type(error).__name__}): correct the path or restore the file."
        ) from None
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is no regular file: give the path of an image file.")
    if facts.st_size > MAX_BYTES:
        raise DataError(
            f"{path} has {facts.st_size // 2**20} MiB, more than the {MAX_BYTES // 2**20} MiB allowed: reduce it."
        )
