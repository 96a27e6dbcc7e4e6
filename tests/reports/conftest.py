import io
import re
from pathlib import Path
from typing import NamedTuple

import pypdf
import pytest

from reports.build import build_report
from tests.factories import HOSTILE, write_run
from xvision.store import Run


class Report(NamedTuple):
    """A run, its report, and the text of its pages with single spaces."""

    run: Run
    content: bytes
    pages: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.pages)

    @property
    def pdf(self) -> pypdf.PdfReader:
        return pypdf.PdfReader(io.BytesIO(self.content))


def report_of(folder: Path) -> Report:
    run = Run(folder)
    content = build_report(run)
    pages = pypdf.PdfReader(io.BytesIO(content)).pages
    return Report(run, content, tuple(re.sub(r"\s+", " ", page.extract_text()) for page in pages))


def squashed(text: str) -> str:
    """Without white space: a long label may break anywhere on the page."""
    return re.sub(r"\s", "", text)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(write_run(tmp_path_factory.mktemp("plain") / "run"))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return report_of(write_run(tmp_path_factory.mktemp("hostile") / "run", label=HOSTILE))
