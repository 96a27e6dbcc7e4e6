"""The demonstration from end to end: both planted flaws are found, and nothing is found where none is planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from xvision.console import Console
from xvision.demo import run_demo
from xvision.store import open_run

PLANTED = {"group-gap", "shortcut-decision", "shortcut-available", "marker"}


@pytest.mark.benchmark
@pytest.mark.parametrize("clean", [False, True], ids=["flawed", "clean"])
def test_planted_flaws_are_found_and_only_they(tmp_path: Path, clean: bool) -> None:
    run = open_run(run_demo(tmp_path, clean=clean, seed=0, console=Console()).run)
    assert {record.status for record in run.records} == {"ok"}
    failed = {finding.id for finding in run.findings if finding.verdict == "fail"}
    assert failed & PLANTED == (set() if clean else PLANTED)
