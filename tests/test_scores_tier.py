"""An audit of predictions without a model and without one image file, and of one finding among several."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

import xvision
from tests.models.builders import LABELS, PROCESSOR, save_folder, seeded, vit
from xvision import cli
from xvision.errors import ConfigError, DataError
from xvision.models.open import load_model
from xvision.store import Run

CLASSES = ("normal", "lesion")


def table(count: int = 120, seed: int = 0) -> pd.DataFrame:
    """Cases with a known association of score and label; two images a patient."""
    rng = np.random.default_rng(seed)
    sick = rng.random(count) < 0.4
    odds = rng.normal(np.where(sick, 1.0, -1.0))
    return pd.DataFrame(
        {
            "image": [f"nowhere/{place}.png" for place in range(count)],
            "label": np.where(sick, "lesion", "normal"),
            "patient": [f"p{place // 2}" for place in range(count)],
            "sex": np.repeat(rng.choice(["F", "M"], count), 2)[:count],
            "p": np.round(1 / (1 + np.exp(-odds)), 4),
        }
    )


def written(folder: Path, cases: pd.DataFrame, *, keys: tuple[str, ...] = ("image",)) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    cases.drop(columns="p").to_csv(folder / "manifest.csv", index=False)
    scores = cases[list(keys)].assign(**{"prob:normal": (1 - cases["p"]).round(4), "prob:lesion": cases["p"]})
    scores.sample(frac=1.0, random_state=1).to_csv(folder / "predictions.csv", index=False)
    return folder / "manifest.csv", folder / "predictions.csv"


def audit(manifest: Path, predictions: Path, out: Path, **options: object) -> Run:
    model = xvision.load_model(predictions, device="cpu")
    data = xvision.load_data(manifest, groups=["sex"], images_required=False)
    return xvision.run_audit(model, data, out=out, positive="lesion", threshold=0.5, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole command, on files of which none is an image."""
    folder = tmp_path_factory.mktemp("scores")
    manifest, predictions = written(folder, table())
    words = [
        "audit",
        "--model",
        str(predictions),
        "--data",
        str(manifest),
        "--groups",
        "sex",
        "--out",
        str(folder / "run"),
    ]
    assert cli.main(words) == 0
    return xvision.open_run(folder / "run")


def test_the_numbers_are_those_of_the_predictions(run: Run) -> None:
    cases = table()
    table_of = run.metrics
    metrics = table_of[table_of["where"].map(len) == 0].set_index(["analysis", "name"])["value"]
    found = metrics["performance", "auroc"]
    assert found == pytest.approx(roc_auc_score(cases["label"] == "lesion", cases["p"]))
    right = ((cases["p"] >= 0.5) == (cases["label"] == "lesion")).mean()
    assert metrics["performance", "accuracy"] == pytest.approx(right)
    brier = ((cases["p"] - (cases["label"] == "lesion")) ** 2).mean()
    assert metrics["calibration", "brier"] == pytest.approx(brier)
    kept = run.predictions.set_index("id").loc[cases["image"], "prob:lesion"]
    assert kept.to_numpy() == pytest.approx(cases["p"].to_numpy(), abs=1e-9)


def test_what_needs_a_model_is_skipped_with_the_reason(run: Run) -> None:
    status = {record.analysis: (record.status, record.reason) for record in run.records}
    for name in ("performance", "calibration", "fairness"):
        assert status[name] == ("ok", "")
    for name in ("attribution", "attention", "adversarial", "corruption"):
        assert status[name] == ("skipped", "only predictions were given, no model")
    assert "failed" not in {state for state, _ in status.values()}


def test_the_run_says_that_there_was_no_model(run: Run) -> None:
    info = run.info
    assert (info.model["access"], info.showcase, info.forward, info.backward) == ("scores", (), 0, 0)
    assert "input" not in info.model
    assert {check.name for check in info.checks if check.status != "ok"} == set()
    assert not (run.path / "cases").exists()
    assert run.problems() == ()


def test_the_report_is_built(run: Run, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reports", str(run.path), "-o", str(tmp_path / "x.pdf")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_an_id_column_is_matched_by_id(tmp_path: Path) -> None:
    cases = table(40).assign(id=[f"case {place}" for place in range(40)])
    manifest, predictions = written(tmp_path / "data", cases.drop(columns="image"), keys=("id",))
    assert audit(manifest, predictions, tmp_path / "run", only=["performance"]).info.cases == 40
    manifest, predictions = written(tmp_path / "both", cases, keys=("image",))
    assert audit(manifest, predictions, tmp_path / "other", only=["performance"]).info.cases == 40


def test_only_the_audited_split_needs_predictions(tmp_path: Path) -> None:
    cases = table(60).assign(split=["train"] * 20 + ["test"] * 40)
    manifest, predictions = written(tmp_path, cases)
    scores = pd.read_csv(predictions)
    scores[scores["image"].isin(cases["image"][20:])].to_csv(predictions, index=False)
    assert audit(manifest, predictions, tmp_path / "run", only=["performance"]).info.cases == 40


def test_images_that_are_there_are_not_looked_at(tmp_path: Path) -> None:
    cases = table(20)
    manifest, predictions = written(tmp_path, cases)
    (tmp_path / "nowhere").mkdir()
    for name in cases["image"]:
        (tmp_path / name).write_bytes(b"no image")
    data = xvision.load_data(manifest)
    for name in cases["image"]:
        (tmp_path / name).unlink()
    run = xvision.run_audit(xvision.load_model(predictions), data, out=tmp_path / "run", only=["performance"])
    without = audit(manifest, predictions, tmp_path / "other", only=["performance"])
    assert run.info.fingerprints["model"] == without.info.fingerprints["model"]


def test_cases_and_predictions_must_match(tmp_path: Path) -> None:
    manifest, predictions = written(tmp_path, table(30))
    scores = pd.read_csv(predictions)
    scores.iloc[1:].to_csv(predictions, index=False)
    with pytest.raises(
        DataError, match=r"1 of 30 audited cases have no prediction, such as 'nowhere/\d+\.png'.*column image"
    ):
        audit(manifest, predictions, tmp_path / "run")
    extra = pd.concat([scores, scores.iloc[:1].assign(image="other.png")])
    extra.to_csv(predictions, index=False)
    with pytest.raises(
        DataError, match=r"1 of 31 predictions belong to no case of the data, such as 'other\.png': remove them"
    ):
        audit(manifest, predictions, tmp_path / "run")
    scores.rename(columns={"prob:lesion": "prob:nodule"}).to_csv(predictions, index=False)
    data = xvision.load_data(manifest, images_required=False)
    with pytest.raises(DataError, match="label 'lesion', which is no class of the model"):
        xvision.run_audit(xvision.load_model(predictions), data, out=tmp_path / "run")


def test_wrong_predictions_end_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, predictions = written(tmp_path, table(10))
    predictions.write_text("image,prob:normal,prob:lesion\na.png,0.5,2\n")
    assert (
        cli.main(["audit", "--model", str(predictions), "--data", str(manifest), "--out", str(tmp_path / "run")]) == 2
    )
    assert (
        capsys.readouterr().err
        == f"xvision: {predictions} row 2, prob:lesion: '2' is no probability; give a number from 0 to 1.\n"
    )


def test_a_run_resumes_and_another_file_is_refused(tmp_path: Path) -> None:
    manifest, predictions = written(tmp_path, table(30))
    audit(manifest, predictions, tmp_path / "run", only=["performance"])
    assert audit(manifest, predictions, tmp_path / "run", only=["calibration"]).info.cases == 30
    changed = table(30)
    changed.loc[0, "p"] = 0.123
    written(tmp_path, changed)
    with pytest.raises(xvision.errors.RunError, match="holds an audit of another model"):
        audit(manifest, predictions, tmp_path / "run", only=["performance"])


# --- several findings, one at a time ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Cases with none, one or both of two findings, and independent probabilities of each."""
    folder, rng = tmp_path_factory.mktemp("findings"), np.random.default_rng(0)
    present = rng.random((80, 2)) < 0.4
    chances = np.round(1 / (1 + np.exp(-rng.normal(2.0 * present - 1.0))), 4)
    cells = [
        "|".join(name for name, there in zip(("effusion", "nodule"), row, strict=True) if there) for row in present
    ]
    with (
        (folder / "manifest.csv").open("w", newline="") as manifest,
        (folder / "p.csv").open("w", newline="") as scores,
    ):
        cases, answers = csv.writer(manifest), csv.writer(scores)
        cases.writerow(["id", "label"])
        answers.writerow(["id", "finding:effusion", "finding:nodule"])
        for place, (cell, row) in enumerate(zip(cells, chances, strict=True)):
            cases.writerow([place, cell])
            answers.writerow([place, *row])
    return folder / "manifest.csv", folder / "p.csv"


def test_one_finding_is_audited_at_a_time(findings: tuple[Path, Path], tmp_path: Path) -> None:
    data = xvision.load_data(findings[0], images_required=False, multilabel=True)
    model = xvision.load_model(findings[1])
    chances, truth = pd.read_csv(findings[1]), data.label_matrix(model.classes)
    for place, name in enumerate(model.classes):
        run = xvision.run_audit(model, data, out=tmp_path / name, positive=name, only=["performance"])
        expected = roc_auc_score(truth[:, place], chances[f"finding:{name}"])
        found = run.metrics.set_index("name").loc["auroc", "value"]
        assert found == pytest.approx(expected)
        assert run.info.classes == (f"no {name}", name)


def test_a_finding_must_be_named_and_known(findings: tuple[Path, Path], tmp_path: Path) -> None:
    data = xvision.load_data(findings[0], images_required=False, multilabel=True)
    model = xvision.load_model(findings[1])
    with pytest.raises(ConfigError, match=r"one at a time: name one as decision\.positive, of effusion, nodule"):
        xvision.run_audit(model, data, out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"'nodul', not a finding of the model .*Did you mean 'nodule'"):
        xvision.run_audit(model, data, out=tmp_path / "run", positive="nodul")


def test_a_multilabel_network_is_audited_with_its_pictures(phantoms: Path, tmp_path: Path) -> None:
    """A whole plan: the white box stays one, and the finding's own logit decides."""
    labels = {
        "id2label": {0: "nodule", 1: "lesion", 2: "effusion"},
        "label2id": {"nodule": 0, "lesion": 1, "effusion": 2},
    }
    module = seeded(lambda: vit(**{**LABELS, **labels}, problem_type="multi_label_classification", num_channels=1))
    processor = {**PROCESSOR, "image_mean": [0.5], "image_std": [0.3]}
    folder = save_folder(tmp_path / "model", module, processor)
    manifest = pd.read_csv(phantoms / "manifest.csv")
    manifest["label"] = manifest["label"].replace({"normal": ""})
    manifest.to_csv(phantoms / "findings.csv", index=False)
    plan = tmp_path / "plan.toml"
    plan.write_text(
        f"only = ['performance', 'attention']\n[model]\npath = '{folder}'\ndevice = 'cpu'\n[decision]\npositive = 'lesion'\n"
        f"[data]\npath = '{phantoms / 'findings.csv'}'\nmultilabel = true\n"
    )
    assert cli.main(["audit", str(plan), "--out", str(tmp_path / "run")]) == 0
    run = xvision.open_run(tmp_path / "run")
    assert {record.status for record in run.records} == {"ok"}
    assert (run.info.model["access"], run.info.model["finding"]) == ("white-box", "lesion")
    data = xvision.load_data(phantoms / "findings.csv", multilabel=True)
    model = load_model(folder, device="cpu")
    ids = list(run.predictions["id"])
    with torch.no_grad():
        logits = model.logits(torch.from_numpy(data.pixels(ids, model.input)))[:, 1]
    assert run.predictions["prob:lesion"].to_numpy() == pytest.approx(torch.sigmoid(logits).numpy(), abs=1e-6)


def test_a_model_of_one_answer_needs_data_of_one_answer(phantoms: Path, tmp_path: Path, checkpoint: Path) -> None:
    manifest = pd.read_csv(phantoms / "manifest.csv")
    manifest["label"] = manifest["label"].replace({"normal": ""})
    manifest.to_csv(phantoms / "several.csv", index=False)
    data = xvision.load_data(phantoms / "several.csv", multilabel=True)
    with pytest.raises(DataError, match="name several findings at once, so they are no classes: choose one finding"):
        xvision.run_audit(load_model(checkpoint, device="cpu"), data, out=tmp_path / "run", positive="lesion")
