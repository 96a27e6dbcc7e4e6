"""One new file is a new analysis: in the list, in the run, on the dashboard, in the PDF and in the contract tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

EIGHTH = '''"""Mean brightness of what the model gets wrong."""

from __future__ import annotations

from xvision.audit import Audit, mean_metric
from xvision.charts import Axis, Forest, Mark
from xvision.engine import Batch, Rows
from xvision.registry import analysis
from xvision.result import Result, spoken


@analysis("Brightness of images", pillar="Other", need="pixels", passes="none")
def brightness(audit: Audit, *, scale: float = 1.0) -> Result:
    """How bright are the images the model was asked about?

    Mean pixel value; it says nothing about the model.
    """

    def measure(batch: Batch) -> Rows:
        return {"mean": batch.pixels.mean((1, 2, 3)).cpu().numpy() * scale}

    rows = audit.map(measure, options={"scale": scale})
    found = mean_metric(audit, "brightness", rows["mean"], audit.sample(len(audit.ids)))
    forest = Forest("Brightness", "One value.", Axis("Mean pixel value"), (Mark("all", found.value, found.low, found.high),))
    return Result(f"Mean brightness {spoken(found)}.", (found,), (forest,))
'''


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project with one file more."""
    for name in ("xvision", "dashboards", "reports", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "xvision" / "analyses" / "brightness.py").write_text(EIGHTH)
    return tmp_path


def test_one_file_is_enough(copy: Path, phantoms: Path, checkpoint: Path) -> None:
    pytest.importorskip("typst", reason="the extra report is not installed")
    pytest.importorskip("streamlit", reason="the extra dashboard is not installed")
    from pypdf import PdfReader

    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "How bright are the images" in " ".join(python("-m", "xvision.cli", "analyses", "--json").split())
    run = str(copy / "run")
    audit = ["-m", "xvision.cli", "audit", "--model", str(checkpoint), "--data", str(phantoms), "--out", run]
    python(*audit, "--only", "performance", "brightness")
    assert "brightness" in python("-m", "xvision.cli", "metrics", run)
    python("-m", "reports", run, "-o", str(copy / "report.pdf"))
    assert "Brightness of images" in "".join(page.extract_text() for page in PdfReader(copy / "report.pdf").pages)
    (copy / "look.py").write_text(DASHBOARD)
    assert "Brightness of images" in python("look.py", run)
    chosen = python("-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", "brightness")
    assert "9 passed" in chosen


DASHBOARD = """
import sys
from streamlit.testing.v1 import AppTest

def draw(path):
    from pathlib import Path
    import streamlit as st
    from dashboards import navigation
    from xvision.store import open_run
    found = navigation.entries(open_run(Path(path)))
    links = navigation.pages(found)
    st.navigation(list(links.values()), position="hidden")
    next(entry for entry in found if entry.key == "analysis/brightness").draw(links)

driver = AppTest.from_function(draw, default_timeout=60, args=(sys.argv[1],)).run()
assert not driver.exception
print("".join(str(piece.value) for piece in driver.html))
"""
