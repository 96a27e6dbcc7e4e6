"""Every error xvision raises on purpose.

    XVisionError            caught by the command line: one sentence, exit code 2
    ├── ConfigError         a plan, a criteria file or an option cannot be used
    ├── DataError           a manifest, an image, a label or a split cannot be used
    ├── ModelError          a checkpoint or a model's output cannot be used
    ├── RunError            a run folder cannot be read, written or resumed
    └── MissingExtra        an optional package is not installed

A message says what was found, where (file, row, key) and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class XVisionError(Exception):
    """Base of all errors that a user can act on."""


class ConfigError(XVisionError):
    """A plan, a criteria file or an option cannot be used."""


class DataError(XVisionError):
    """A manifest, an image, a label or a split cannot be used."""


class ModelError(XVisionError):
    """A checkpoint or a model's output cannot be used."""


class RunError(XVisionError):
    """A run folder cannot be read, written or resumed."""


class MissingExtra(XVisionError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'xvision[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'sex'?"`` when a known name is close to ``name``, else what is known."""
    choices = sorted(known)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(choices)}." if choices else "None is known here."
