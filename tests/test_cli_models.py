"""The commands around a model: re-tuned, compared, made smaller, asked for a review queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xvision.cli import main
from xvision.store import open_run

PLAN = """
name = "small"
only = ["performance", "fairness"]
[data]
path = "{data}"
groups = ["sex"]
acquisition = ["site"]
[decision]
positive = "lesion"
threshold = 0.5
[model]
path = "{model}"
device = "cpu"
[backbone]
image_size = 32
[training]
epochs = 1
controls = false
{more}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(tmp_path: Path, phantoms: Path) -> Path:
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.format(data=phantoms, model=tmp_path / "model", more=""))
    assert main(["finetune", str(path)]) == 0
    return path


def test_retuning_audits_both_models_and_says_what_differs(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["finetune", str(plan), "--from", str(tmp_path / "model"), "--out", str(tmp_path / "second")]) == 0
    shown = capsys.readouterr().out
    assert "Test AUROC, after minus before" in shown
    folder = tmp_path / "second.audit"
    assert {path.name for path in folder.iterdir()} == {"before", "after", "comparison.json"}
    assert (
        open_run(folder / "before").info.fingerprints["model"] != open_run(folder / "after").info.fingerprints["model"]
    )
    assert main(["compare", str(folder / "before"), str(folder / "after"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "comparison.json").read_text())
    assert main(["finetune", str(plan), "--from", str(tmp_path / "model")]) == 2
    assert "would overwrite the checkpoint it starts from" in capsys.readouterr().err


def test_an_interrupted_training_asks_for_resume(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "model.resume"
    state.mkdir()
    (state / "state.safetensors").write_bytes(b"unfinished")
    assert main(["finetune", str(plan)]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert main(["finetune", str(plan), "--resume"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_model_is_made_smaller_and_audited_before_and_after(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compress", str(plan), "--how", "bfloat16", "--out", str(tmp_path / "small")]) == 0
    shown = capsys.readouterr().out
    assert "Weights on disk" in shown
    assert {path.name for path in (tmp_path / "small").iterdir()} == {
        "compressed",
        "before",
        "after",
        "comparison.json",
    }


def test_a_review_queue_is_written(plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["review-queue", str(plan), "--size", "5", "--stratify", "sex", "--out", str(tmp_path / "queue")]) == 0
    assert capsys.readouterr().out
    assert len((tmp_path / "queue" / "queue.csv").read_text().splitlines()) == 6
    assert main(["review-queue", str(plan), "--stratify", "sx", "--out", str(tmp_path / "other")]) == 2
    assert "sx" in capsys.readouterr().err


def test_splits_are_made_where_the_plan_asks(
    tmp_path: Path, phantoms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        PLAN.format(
            data=phantoms, model=tmp_path / "model", more="[data.split]\ntrain = 0.5\nvalidation = 0.25\ntest = 0.25"
        )
    )
    assert main(["finetune", str(path)]) == 2
    assert "split" in capsys.readouterr().err


def test_finetuning_and_auditing_agree_on_the_test_auroc(
    plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same number has one value wherever it is shown."""
    capsys.readouterr()
    assert main(["audit", str(plan), "--out", str(tmp_path / "run"), "--only", "performance"]) == 0
    recorded = json.loads((tmp_path / "model" / "evaluation.json").read_text())
    part = next(part for part in recorded["splits"] if part["split"] == "test")
    metrics = open_run(tmp_path / "run").metrics
    (audited,) = metrics[(metrics.name == "auroc") & (metrics["where"] == {})].to_dict("records")
    assert audited["value"] == pytest.approx(part["after"]["auroc"]["value"], abs=1e-9)
    assert audited["low"] == pytest.approx(part["after"]["auroc"]["low"], abs=1e-9)
