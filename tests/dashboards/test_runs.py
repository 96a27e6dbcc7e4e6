from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dashboards import runs
from tests.factories import write_run
from xvision.errors import RunError


def test_a_run_is_found_alone_and_below_a_folder(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b" / "c")
    assert runs.find_runs(first) == (first,)
    assert runs.find_runs(tmp_path) == (first, second)


def test_a_checkpoint_is_not_taken_for_a_run_but_a_damaged_run_is_shown(tmp_path: Path) -> None:
    audit = write_run(tmp_path / "run")
    for name, content in (("checkpoint", '{"plan": {}}'), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(content)
    assert runs.find_runs(tmp_path) == (tmp_path / "broken", audit)


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run in this folder .* Give the folder that `xvision audit` printed"):
        runs.find_runs(tmp_path)
    with pytest.raises(RunError, match="no such folder"):
        runs.find_runs(tmp_path / "missing")


def test_a_changed_file_changes_the_stamp_and_opens_the_run_again(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    before, first = runs.stamp(path), runs.open_run(path)
    assert runs.open_run(path) is first
    facts = json.loads((path / "run.json").read_text("utf-8"))
    (path / "run.json").write_text(json.dumps({**facts, "name": "other"}), "utf-8")
    assert runs.stamp(path) != before
    assert runs.open_run(path).info.name == "other"


def test_unfinished_work_and_temporary_files_do_not_change_the_stamp(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    before = runs.stamp(path)
    (path / "work").mkdir()
    (path / "work" / "part-0").write_bytes(b"x")
    (path / "results" / ".performance.json.1.tmp").write_bytes(b"x")
    assert runs.stamp(path) == before


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", path / "link.txt")
    os.symlink(tmp_path, path / "folder")
    found = runs.files(runs.open_run(path))
    assert "run.json" in found
    assert not {"link.txt", "folder/secret"} & set(found)


def test_problems_are_found_again_after_a_change(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    assert runs.problems(path) == ()
    (path / "log.jsonl").write_text("{}\n")
    assert runs.problems(path) == ("log.jsonl was changed.",)
