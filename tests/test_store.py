"""The run folder: what is written reads back, what is damaged is found, what is hostile stays inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import HOSTILE, write_run
from xvision.errors import RunError
from xvision.registry import analyses
from xvision.result import UNTESTED, MapVerdict, MapWord, Metric, StoredCase
from xvision.store import METRIC_COLUMNS, Run, Writer, write_atomic


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(write_run(tmp_path / "run"))


@pytest.mark.parametrize("label", ["lesion", HOSTILE])
def test_a_written_run_reads_back_and_verifies(tmp_path: Path, label: str) -> None:
    run = Run(write_run(tmp_path / "run", label=label))
    assert run.problems() == ()
    assert {record.analysis: record.status for record in run.records} == {
        "performance": "ok", "attention": "skipped", "attribution": "ok", "corruption": "failed", "fairness": "ok",
    }  # fmt: skip
    assert run.info.classes == ("normal", label)
    assert tuple(run.metrics.columns) == METRIC_COLUMNS
    assert run.metrics["value"].isna().sum() == 1
    assert run.predictions["label"].tolist() == ["normal", label]
    assert run.picture(run.cases["case-1"]["attribution"], "map")[:4] == b"\x89PNG"


def test_the_same_content_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / name) for name in ("a", "b"))
    assert (first / "checksums.txt").read_bytes() == (second / "checksums.txt").read_bytes()


def test_every_changed_missing_or_added_file_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in {"checksums.txt", ".lock"}]
    assert len(files) > 10
    for path in files:
        original = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        assert Run(folder).problems()[0] == f"{name} was changed."
        path.write_bytes(original)
    (folder / "extra.txt").write_text("x")
    (folder / "log.jsonl").unlink()
    assert Run(folder).problems() == ("log.jsonl is missing.", "extra.txt was added.")


def test_reviews_are_a_chain(run: Run) -> None:
    writer = Writer(run.path)
    for note in ("first", "second", "third"):
        writer.review({"author": "A. Auditor", "note": note})
    assert [entry["note"] for entry in run.reviews()] == ["first", "second", "third"]
    assert run.problems() == ()
    path = run.path / "review.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2])
    writer.checksums()  # whoever removes a note can also hash again; the chain still tells
    assert run.problems() == ("review.jsonl line 2 does not follow from the line before it.",)


@pytest.mark.parametrize("line", ["{", "[1]", '"text"'])
def test_a_review_that_is_no_note_is_named(run: Run, line: str) -> None:
    (run.path / "review.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match="line 1 is not a note"):
        run.reviews()
    assert "review.jsonl line 1 does not follow" in run.problems()[-1]


def test_two_writers_are_refused(run: Run) -> None:
    first, second = Writer(run.path).locked(), Writer(run.path).locked()
    with first, pytest.raises(RunError, match="another process is writing"), second:
        pass


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomic(target, b"old")
    script = (
        "import os, pathlib; from xvision import store; os.replace = lambda *names: os._exit(9); "
        f"store.write_atomic(pathlib.Path({str(target)!r}), b'new')"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ})
    assert done.returncode == 9
    assert target.read_bytes() == b"old"


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f".file.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
        write_atomic(folder / "file", b"x" * 100)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"schema": 99}', "schema 99, but this version"),
        ("[]", "schema None"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_damaged_run_is_one_sentence(run: Run, content: str, message: str) -> None:
    (run.path / "run.json").write_text(content)
    with pytest.raises(RunError, match=message):
        _ = Run(run.path).info


def test_a_folder_without_run_json_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"not a run folder \(it has no run.json\)"):
        Run(tmp_path)


def test_a_picture_cannot_lead_out_of_the_run(run: Run) -> None:
    (run.path.parent / "secret.png").write_bytes(b"secret")
    with pytest.raises(RunError, match="leads out of the run folder"):
        run.picture(StoredCase("x", {}, {"image": "../secret.png"}), "image")
    (run.path / "link.png").symlink_to(run.path.parent / "secret.png")
    with pytest.raises(RunError, match="leads out of the run folder"):
        run.picture(StoredCase("x", {}, {"image": "link.png"}), "image")


@pytest.mark.parametrize(
    "given",
    [
        {"value": float("nan"), "n": 1},
        {"value": float("inf"), "n": 1},
        {"value": None},
        {"value": 0.5},
        {"value": 0.5, "n": 1, "low": 0.4},
        {"value": 0.5, "n": 1, "low": 0.6, "high": 0.4},
        {"value": None, "reason": "none", "low": 0.1, "high": 0.2},
    ],
)
def test_a_number_that_says_nothing_true_cannot_be_made(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="metric 'm'"):
        Metric("m", **given)


def _judged(run: Run, **verdicts: tuple[str, MapVerdict]) -> Run:
    """The run with a verdict on one method's maps in each of the named results."""
    for analysis, (method, verdict) in verdicts.items():
        Writer(run.path).record(replace(run.record(analysis), map_verdicts={method: verdict}))
    return Run(run.path)


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        ("describes the model", "fails randomisation", "fails randomisation"),
        ("no better than a control", "describes the model", "no better than a control"),
        ("not decided", "describes the model", "describes the model"),
        ("not decided", "no better than a control", "no better than a control"),
    ],
)
def test_where_analyses_disagree_on_a_method_the_warning_counts(
    run: Run, first: MapWord, second: MapWord, counts: MapWord
) -> None:
    judged = _judged(run, performance=("m", MapVerdict(first, "One.")), fairness=("m", MapVerdict(second, "Other.")))
    assert judged.map_verdict("m").word == counts


def test_a_method_that_nothing_tested_is_said_to_be_untested(run: Run) -> None:
    assert run.map_verdict("no such method") == UNTESTED
    assert run.map_verdict("no such method").said == "not tested"
    assert MapVerdict("not decided", "The interval holds both.").said == "not decided"


def test_the_analysis_that_a_pillar_is_named_after_comes_first(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    other = json.loads((folder / "results" / "fairness.json").read_text()) | {"analysis": "case_mix"}
    (folder / "results" / "case_mix.json").write_text(json.dumps(other))
    assert [record.analysis for record in Run(folder).records][-2:] == ["fairness", "case_mix"]
    registered = [found.name for found in analyses().values() if found.pillar == "Fairness"]
    assert registered[0] == "fairness"
    assert registered[1:] == sorted(registered[1:])
