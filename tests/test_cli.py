"""The commands as a user meets them: what they print, what they refuse, what a kill leaves behind."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories import write_run
from xvision.cli import main
from xvision.store import open_run

ROOT = Path(__file__).parents[1]
Shell = Callable[..., subprocess.CompletedProcess[str]]
FAST = [
    part
    for setting in (
        "attribution.cases=8", "attribution.steps=4", "adversarial.cases=8", "adversarial.steps=5", "adversarial.queries=10",
        "adversarial.examined=4", "certified.cases=4", "certified.draws=50", "threat_models.cases=8", "repeatability.cases=8",
    )
    for part in ("--set", setting)
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that write to ``runs/`` by default do so in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with exit code 2 and one sentence on stderr, and returns the sentence."""

    def run(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("xvision: ")
        assert "Traceback" not in error
        assert error.strip().count("\n") == 0
        return error

    return run


@pytest.fixture
def broken(phantoms: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the phantoms whose manifest went through ``change``."""

    def make(change: Callable[[list[dict[str, str]]], None], rename: dict[str, str] | None = None) -> Path:
        folder = tmp_path / "data"
        shutil.copytree(phantoms, folder)
        with (folder / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        change(rows)
        rows = [{(rename or {}).get(key, key): value for key, value in row.items()} for row in rows]
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return folder

    return make


def test_a_missing_file_is_named(fails: Callable[..., str], checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    assert "nowhere.csv" in fails("audit", "--model", checkpoint, "--data", tmp_path / "nowhere.csv")
    assert "no such file" in fails("audit", tmp_path / "plan.toml")
    assert "run.json" in fails("metrics", tmp_path)
    assert "nothing" in fails("audit", "--model", tmp_path / "nothing", "--data", phantoms)
    assert "PLAN.toml" in fails("audit")


def test_an_unreadable_image_is_named(fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path) -> None:
    folder = broken(lambda rows: None)
    image = sorted((folder / "images").iterdir())[0]
    image.write_bytes(b"not an image")
    assert image.name in fails("audit", "--model", checkpoint, "--data", folder)


def test_an_unknown_label_names_row_and_class(
    fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path
) -> None:
    folder = broken(lambda rows: rows[4].update(label="lesoin"))
    sentence = fails("audit", "--model", checkpoint, "--data", folder)
    assert "lesoin" in sentence
    assert "'lesion'" in sentence


def test_an_empty_split_and_one_class_only(
    fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path
) -> None:
    def only_normal(rows: list[dict[str, str]]) -> None:
        rows[:] = [row for row in rows if row["label"] == "normal" or row["split"] != "test"]

    assert "Every audited case is 'normal'" in fails("audit", "--model", checkpoint, "--data", broken(only_normal))


def test_a_header_without_rows(fails: Callable[..., str], checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("image,label\n")
    assert "manifest.csv" in fails("audit", "--model", checkpoint, "--data", tmp_path / "manifest.csv")


def test_a_misspelt_column_names_the_nearest(
    fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path
) -> None:
    assert "'sex'" in fails("audit", "--model", checkpoint, "--data", broken(lambda rows: None), "--groups", "sexx")


def test_a_misspelt_label_column_names_the_nearest(
    fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path
) -> None:
    folder = broken(lambda rows: None, {"label": "lable"})
    assert "lable" in fails("audit", "--model", checkpoint, "--data", folder)


def test_a_patient_in_two_splits_is_refused_unless_allowed(
    fails: Callable[..., str], broken: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    def leak(rows: list[dict[str, str]]) -> None:
        owner = next(row["patient"] for row in rows if row["split"] == "train")
        next(row for row in rows if row["split"] == "test")["patient"] = owner

    folder = broken(leak)
    assert "in more than one split" in fails("audit", "--model", checkpoint, "--data", folder)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f'only = ["calibration"]\n[data]\npath = "{folder}"\nallow_leakage = true\n[model]\npath = "{checkpoint}"\n'
    )
    assert main(["audit", str(plan), "--out", str(tmp_path / "run")]) == 0
    assert any(check.status == "warning" for check in open_run(tmp_path / "run").info.checks)


def test_a_pickled_checkpoint_is_refused_and_not_run(
    fails: Callable[..., str], checkpoint: Path, phantoms: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"

    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {canary}",)

    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    sentence = fails("audit", "--model", folder, "--data", phantoms)
    assert "safetensors" in sentence
    assert not canary.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 1\n", "unknown key 'sed'. Did you mean 'seed'?"),
        ("[analysis.calibraton]\nbins = 3\n", "there is no analysis 'calibraton'. Did you mean 'calibration'?"),
        ("[analysis.calibration]\nbin = 3\n", "unknown option 'bin'. Did you mean 'bins'?"),
        ("[decision]\nthreshold = 2.0\n", "decision.threshold is 2.0"),
        ('[decision]\npositive = "lesoin"\n', "Did you mean 'lesion'?"),
        ("not toml", "not a readable TOML file"),
    ],
)
def test_a_plan_that_cannot_be_used_says_which_key(
    fails: Callable[..., str], checkpoint: Path, phantoms: Path, tmp_path: Path, text: str, message: str
) -> None:
    plan = tmp_path / "plan.toml"
    body = f'[data]\npath = "{phantoms}"\n[model]\npath = "{checkpoint}"\n'
    plan.write_text(text + body if text.startswith("sed") or text == "not toml" else body + text)
    assert message in fails("audit", plan, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_not_overwritten(
    fails: Callable[..., str], checkpoint: Path, phantoms: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert "not a run folder" in fails("audit", "--model", checkpoint, "--data", phantoms, "--out", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.fixture(scope="module")
def audited(phantoms: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audited") / "run"
    words = [
        "audit",
        "--model",
        str(checkpoint),
        "--data",
        str(phantoms),
        "--groups",
        "sex",
        "--acquisition",
        "site",
        "--out",
        str(out),
    ]
    assert main([*words, "--only", "performance", "calibration", "fairness", "attention"]) == 0
    return out


def test_an_audit_leaves_a_complete_run(audited: Path) -> None:
    run = open_run(audited)
    assert (run.info.status, run.problems()) == ("complete", ())
    assert {record.status for record in run.records} == {"ok"}
    assert len(run.predictions) == run.info.cases
    assert run.judgement.verdict == "not judged"
    assert not (audited / "work").exists()


def test_only_adds_an_analysis_and_keeps_the_others(audited: Path, phantoms: Path, checkpoint: Path) -> None:
    before = (audited / "results" / "performance.json").read_bytes()
    words = [
        "audit",
        "--model",
        str(checkpoint),
        "--data",
        str(phantoms),
        "--groups",
        "sex",
        "--acquisition",
        "site",
        "--out",
        str(audited),
    ]
    assert main([*words, "--only", "corruption", "--set", "corruption.cases=5"]) == 0
    assert (audited / "results" / "performance.json").read_bytes() == before
    assert open_run(audited).record("corruption").status == "ok"


def test_another_model_in_the_same_folder_is_refused(
    fails: Callable[..., str], audited: Path, phantoms: Path, tmp_path: Path
) -> None:
    from xvision.models.checkpoint import save_model
    from xvision.models.llm.classifier import preset

    save_model(preset("tiny-gpt2", seed=1), tmp_path / "other")
    words = ("audit", "--model", tmp_path / "other", "--data", phantoms, "--out", audited)
    assert "another model" in fails(*words)


def test_metrics_are_one_table(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", str(audited), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(open_run(audited).metrics)
    assert {"analysis", "name", "value", "low", "high", "n", "unit", "better", "where", "reason", "interval"} == set(
        rows[0]
    )


def test_a_reader_that_stops_early_is_no_error(audited: Path) -> None:
    command = [sys.executable, "-m", "xvision.cli", "metrics", str(audited), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "[\n"
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_judge_writes_findings_and_its_exit_code(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", judged=False)
    rule = '[[criterion]]\nid="a"\ntitle="t"\nanalysis="performance"\nmetric="auroc"\nseverity="major"\nwhy="w"\n'
    for limit, code in ((0.5, 0), (0.97, 1), (0.9, 3)):
        (tmp_path / "c.toml").write_text(f"{rule}at_least = {limit}\n")
        assert main(["judge", str(run), "--criteria", str(tmp_path / "c.toml")]) == code
        assert open_run(run).problems() == ()


def test_verify_tells_an_altered_run(audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(audited, copy)
    assert main(["verify", str(copy)]) == 0
    (copy / "tables" / "predictions.parquet").write_bytes(b"")
    assert main(["verify", str(copy)]) == 1
    assert "tables/predictions.parquet was changed." in capsys.readouterr().out


def test_analyses_lists_options_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyses", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"performance", "calibration", "attribution", "attention", "adversarial", "corruption", "fairness"} <= set(
        rows
    )
    assert rows["calibration"]["options"]["bins"] == 15
    assert all(row["question"].endswith("?") and row["passes"] for row in rows.values())


def test_a_killed_audit_resumes_with_the_same_command(phantoms: Path, checkpoint: Path, tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        words = ["audit", "--model", str(checkpoint), "--data", str(phantoms), "--only", "performance", "corruption"]
        return [sys.executable, "-m", "xvision.cli", *words, "--set", "corruption.resamples=50", "--out", str(out)]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (killed / "results" / "performance.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_run(killed).info.status == "running"
    before = (killed / "results" / "performance.json").read_bytes()
    assert subprocess.run(command(killed), cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert subprocess.run(command(whole), cwd=ROOT, check=False, capture_output=True).returncode == 0
    assert (killed / "results" / "performance.json").read_bytes() == before
    assert open_run(killed).info.status == "complete"
    assert open_run(killed).metrics.to_json() == open_run(whole).metrics.to_json()


def test_a_damaged_run_is_not_resumed(
    fails: Callable[..., str], phantoms: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "schema None" in fails("audit", "--model", checkpoint, "--data", phantoms, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == "{}"


def test_a_group_without_positives_is_not_estimable(
    broken: Callable[..., Path], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def healthy_men(rows: list[dict[str, str]]) -> None:
        rows[:] = [
            row for row in rows if not (row["split"] == "test" and row["sex"] == "M" and row["label"] == "lesion")
        ]

    words = [
        "audit",
        "--model",
        str(checkpoint),
        "--data",
        str(broken(healthy_men)),
        "--groups",
        "sex",
        "--only",
        "fairness",
    ]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    assert main(["metrics", str(tmp_path / "run")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()[1:2] == ["sensitivity"]]
    assert any("not estimable (no positive cases)" in line and line.endswith("sex M") for line in lines)
    assert any("not estimable" not in line and line.endswith("sex F") for line in lines)


def test_fine_tuning_without_a_split_names_it(
    fails: Callable[..., str], broken: Callable[..., Path], tmp_path: Path
) -> None:
    def no_validation(rows: list[dict[str, str]]) -> None:
        rows[:] = [row for row in rows if row["split"] != "validation"]

    plan = tmp_path / "plan.toml"
    plan.write_text(f'[data]\npath = "{broken(no_validation)}"\n[model]\npath = "trained"\n')
    assert "validation is missing (found: test, train)" in fails("finetune", plan)
    assert not (tmp_path / "trained").exists()
