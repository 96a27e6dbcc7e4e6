"""The demonstration from end to end: what is planted is found, and nothing is found where nothing is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from xvision.console import Console
from xvision.demo import Demo, run_demo
from xvision.models.evidence import read_evaluation
from xvision.store import open_run

SHORTCUT = {"shortcut-decision"}


def failed(run: Path) -> set[str]:
    found = open_run(run)
    assert {record.analysis: record.status for record in found.records if record.status != "ok"} == {
        "prompt_sensitivity": "skipped"  # a classification head reads no question
    }
    return {finding.id for finding in found.findings if finding.verdict == "fail"}


def demo(folder: Path, *, clean: bool = False, gap: bool = False) -> Demo:
    return run_demo(folder, clean=clean, gap=gap, seed=0, console=Console())


@pytest.mark.benchmark
def test_the_story_holds(tmp_path: Path) -> None:
    """Re-tuned as the images come, validation accuracy rises and the audit fails; in balance, it passes."""
    found = demo(tmp_path)
    assert failed(found.run) == SHORTCUT
    assert failed(found.balanced) == set()
    assert open_run(found.balanced).judgement.verdict in {"pass", "warn"}
    evidence = read_evaluation(tmp_path / "retuned")
    assert evidence is not None
    validation = evidence.split("validation")
    assert validation is not None
    assert validation.before is not None
    assert (validation.after.accuracy.low or 0.0) > (validation.before.accuracy.value or 1.0)
    better = {cell.name for cell in found.comparison.paired if cell.verdict == "better" and not cell.where}
    assert "accuracy" in better


@pytest.mark.benchmark
def test_a_planted_gap_is_found_in_both_models(tmp_path: Path) -> None:
    found = demo(tmp_path, gap=True)
    assert "group-gap" in failed(found.run) & failed(found.balanced)


@pytest.mark.benchmark
def test_nothing_is_found_where_nothing_is_planted(tmp_path: Path) -> None:
    found = demo(tmp_path, clean=True)
    assert failed(found.run) | failed(found.balanced) == set()
