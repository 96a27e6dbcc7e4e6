"""Files that go into the report beside its text."""

from __future__ import annotations

import hashlib


class Shelf:
    """Files by name; equal content is kept once, and a name depends on the content only."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def keep(self, content: bytes, suffix: str) -> str:
        """Keeps the content and gives its name."""
        name = f"{hashlib.sha256(content).hexdigest()[:24]}.{suffix}"
        self.files[name] = content
        return name
