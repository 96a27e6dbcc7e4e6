"""One run per state that the dashboard must survive, written once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.factories import HOSTILE, write_run

STATES = ("complete", "running", "not judged", "hostile", "tampered")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    found = {
        "complete": write_run(root / "complete"),
        "running": write_run(root / "running", status="running", judged=False),
        "not judged": write_run(root / "not-judged", judged=False),
        "hostile": write_run(root / "hostile", label=HOSTILE),
        "tampered": write_run(root / "tampered"),
    }
    (found["running"] / "checksums.txt").unlink()
    for name in ("performance", "attribution", "attention", "corruption", "fairness"):
        edit(found["hostile"], name, title=f"{name} {HOSTILE}", question=HOSTILE, reference=HOSTILE, pillar=HOSTILE)
    edit(found["tampered"], "performance", summary="AUROC 0.990.")
    next((found["tampered"] / "cases").rglob("*.png")).write_bytes(b"<svg onload='alert(1)'/>")
    (found["tampered"] / "tables" / "predictions.parquet").write_bytes(b"not parquet")
    return found


def edit(run: Path, analysis: str, **changes: object) -> None:
    """Overwrites fields of a stored result, as somebody with an editor would."""
    path = run / "results" / f"{analysis}.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
