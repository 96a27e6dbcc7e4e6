"""Two runs on the same cases, through real run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar

from tests import factories
from xvision import codec
from xvision.compare import Cell, Comparison, compare
from xvision.errors import ConfigError, RunError
from xvision.result import Metric, Record
from xvision.store import Run, Writer, open_run

CLASSES = ("normal", "lesion")
EXTRA = (
    Metric("ece", 0.05, 0.03, 0.08, n=300, better="lower", interval="patient bootstrap"),
    Metric("accuracy", 0.9, 0.85, 0.95, n=300, better="higher", interval="Wilson"),
    Metric("cases", 300, n=300, unit="count"),
    Metric("mass_lift", None, better="higher", where={"method": "ig"}, reason="no mask"),
)


def scores(cases: int = 300, *, noise: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds (N,) of the positive class, and labels (N,)."""
    draw = np.random.default_rng(seed)
    labels = draw.random(cases) < 0.4
    return 2.5 * labels - 1.25 + noise * draw.normal(size=cases), labels


def frame(log_odds: np.ndarray, labels: np.ndarray, *, images: int = 1, threshold: float = 0.5) -> pd.DataFrame:
    probability = 1 / (1 + np.exp(-log_odds))
    cases = len(labels)
    names = np.array(CLASSES)
    return pd.DataFrame(
        {
            "id": [f"case-{place:04d}" for place in range(cases)],
            "patient": [f"p{place // images}" for place in range(cases)],
            "split": "test",
            "label": names[labels.astype(int)],
            "decision": names[(probability >= threshold).astype(int)],
            "prob:normal": 1 - probability,
            "prob:lesion": probability,
            "logit:normal": np.zeros(cases),
            "logit:lesion": log_odds,
            "sex": np.where(np.arange(cases) // images % 3 == 0, "M", "F"),
            "site": "A",
        }
    )


def write(folder: Path, rows: pd.DataFrame, *, metrics: tuple[Metric, ...] = EXTRA, **info: object) -> Run:
    writer = Writer(folder)
    facts = {"classes": CLASSES, "fingerprints": {"model": folder.name, "data": "d" * 64}, **info}
    with writer.locked():
        writer.info(replace(factories.run_info(), **facts))
        writer.table("predictions", rows)
        record = Record("calibration", "Calibration", "Calibration", "Q?", "ok", "k", {}, 0.0, metrics=metrics)
        writer.record(record)
    return open_run(folder)


def cell(found: Comparison, name: str, where: Mapping[str, str] | None = None, *, shared: bool = False) -> Cell:
    cells = found.shared if shared else found.paired
    (one,) = [item for item in cells if item.name == name and dict(item.where) == dict(where or {})]
    return one


def test_the_same_model_twice_is_equivalent_everywhere(tmp_path: Path) -> None:
    rows = frame(*scores(40))
    found = compare(write(tmp_path / "a", rows), write(tmp_path / "b", rows.sample(frac=1, random_state=0)))
    assert found.cases == found.patients == 40
    assert set(found.verdicts()) == {"equivalent"}
    assert all((item.difference, item.low, item.high) == (0, 0, 0) for item in found.paired)
    assert found.largest_logit_change == 0
    assert [item.value for item in found.decisions] == [0, 0, 0]
    assert all(item.high is not None and item.high > 0 for item in found.decisions)


def test_noise_of_arithmetic_is_no_other_model(tmp_path: Path) -> None:
    log_odds, labels = scores(40)
    noise = 4e-6 * np.random.default_rng(1).normal(size=40).clip(-2, 2)
    runs = write(tmp_path / "a", frame(log_odds, labels)), write(tmp_path / "b", frame(log_odds + noise, labels))
    found = compare(*runs)
    for name in ("accuracy", "sensitivity", "specificity", "auroc", "brier"):
        assert cell(found, name).verdict == "equivalent"
    assert (cell(found, "accuracy").low, cell(found, "accuracy").high) == (0, 0)
    assert found.largest_logit_change == pytest.approx(abs(noise).max())
    decided = frame(log_odds, labels)["decision"].to_numpy().copy()
    decided[0] = "lesion" if decided[0] == "normal" else "normal"
    other = write(tmp_path / "c", frame(log_odds + noise, labels).assign(decision=decided))
    assert cell(compare(runs[0], other), "accuracy").verdict == "not decided"


def test_other_scores_with_the_same_decisions_are_not_equivalent_on_few_cases(tmp_path: Path) -> None:
    log_odds, labels = scores(40)
    found = compare(
        write(tmp_path / "a", frame(log_odds, labels)), write(tmp_path / "b", frame(1.01 * log_odds, labels))
    )
    accuracy = cell(found, "accuracy")
    assert (accuracy.difference, accuracy.verdict) == (0, "not decided")
    assert accuracy.high == pytest.approx(1.96**2 / (40 + 1.96**2), rel=1e-3)


def test_a_planted_effect_is_found_where_it_is_and_nowhere_else(tmp_path: Path) -> None:
    log_odds, labels = scores(900, noise=0.4)
    before = frame(log_odds, labels)
    men = (before["sex"] == "M").to_numpy()
    spoilt = np.where(men & labels & (np.arange(900) % 2 == 0), -log_odds, log_odds)
    found = compare(write(tmp_path / "a", before), write(tmp_path / "b", frame(spoilt, labels)))
    for name in ("sensitivity", "accuracy", "auroc", "brier", "log_loss"):
        assert cell(found, name, {"sex": "M"}).verdict == "worse"
        assert cell(found, name, {"sex": "F"}).verdict == "equivalent"
    assert cell(found, "specificity", {"sex": "M"}).difference == 0
    newly_wrong, newly_right = found.decisions[1:]
    assert newly_wrong.value == pytest.approx(int((men & labels)[::2].sum()) / 900, abs=0.01)
    assert newly_right.value == pytest.approx(0, abs=0.005)
    turned = compare(open_run(tmp_path / "b"), open_run(tmp_path / "a"))
    assert cell(turned, "sensitivity", {"sex": "M"}).verdict == "better"
    assert cell(turned, "brier", {"sex": "M"}).verdict == "better"


def test_cells_hold_the_numbers_of_other_libraries(tmp_path: Path) -> None:
    first, labels = scores()
    second = first + np.random.default_rng(1).normal(size=len(first))
    found = compare(write(tmp_path / "a", frame(first, labels)), write(tmp_path / "b", frame(second, labels)))
    for side, log_odds in (("a", first), ("b", second)):
        probability = 1 / (1 + np.exp(-log_odds))
        decided = probability >= 0.5
        expected = {
            "auroc": roc_auc_score(labels, log_odds),
            "brier": brier_score_loss(labels, probability),
            "log_loss": log_loss(labels, probability),
            "accuracy": (decided == labels).mean(),
            "sensitivity": decided[labels].mean(),
            "specificity": (~decided[~labels]).mean(),
        }
        for name, value in expected.items():
            assert getattr(cell(found, name), side) == pytest.approx(value)
    right = [(values >= 0) == labels for values in (first, second)]
    table = [[(one & other).sum() for other in (right[1], ~right[1])] for one in (right[0], ~right[0])]
    assert cell(found, "accuracy").p == pytest.approx(mcnemar(table, exact=False, correction=False).pvalue)


def test_images_of_one_patient_are_no_independent_evidence(tmp_path: Path) -> None:
    first, labels = scores()
    second = first + np.random.default_rng(1).normal(size=len(first))
    once = compare(write(tmp_path / "a", frame(first, labels)), write(tmp_path / "b", frame(second, labels)))
    copied = [frame(np.repeat(side, 4), np.repeat(labels, 4), images=4) for side in (first, second)]
    often = compare(write(tmp_path / "c", copied[0]), write(tmp_path / "d", copied[1]))
    assert (often.cases, often.patients) == (1200, 300)
    for name in ("accuracy", "auroc", "log_loss"):
        one, other = cell(once, name), cell(often, name)
        assert other.difference == pytest.approx(one.difference)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=0.005)


def test_other_metrics_are_compared_from_their_intervals_and_say_so(tmp_path: Path) -> None:
    log_odds, labels = scores()
    after = (replace(EXTRA[0], value=0.3, low=0.25, high=0.35), *EXTRA[1:])
    found = compare(
        write(tmp_path / "a", frame(log_odds, labels)),
        write(tmp_path / "b", frame(log_odds, labels), metrics=after),
    )
    assert {item.name for item in found.shared} == {"ece", "mass_lift"}
    ece = cell(found, "ece", shared=True)
    assert (ece.analysis, ece.verdict) == ("calibration", "worse")
    assert ece.low == pytest.approx(0.25 - np.hypot(0.3 - 0.25, 0.08 - 0.05))
    assert ece.interval == "Newcombe, unpaired, conservative"
    lift = cell(found, "mass_lift", {"method": "ig"}, shared=True)
    assert (lift.verdict, lift.reason) == ("not decided", "no mask")


def test_what_has_a_unit_is_never_called_equivalent(tmp_path: Path) -> None:
    log_odds, labels = scores()
    metric = (Metric("psnr", 30.0, 29.999, 30.001, n=300, unit="dB", interval="bootstrap"),)
    runs = [write(tmp_path / name, frame(log_odds, labels), metrics=metric) for name in "ab"]
    assert cell(compare(*runs), "psnr", shared=True).verdict == "not decided"


def test_holm_is_applied_and_printed(tmp_path: Path) -> None:
    first, labels = scores()
    second = first + 0.7 * np.random.default_rng(5).normal(size=len(first))
    found = compare(write(tmp_path / "a", frame(first, labels)), write(tmp_path / "b", frame(second, labels)))
    tested = [item for item in found.paired if item.p is not None]
    smallest = min(tested, key=lambda item: item.p or 0.0)
    assert smallest.p_adjusted == pytest.approx(min(1.0, len(tested) * (smallest.p or 0.0)))
    assert all((item.p_adjusted or 0) >= (item.p or 0) for item in tested)
    assert "Holm" in found.lines()[-1]


def test_more_than_two_classes_by_class(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=300)
    names = np.array(["a", "b", "c"])

    def rows(logits: np.ndarray) -> pd.DataFrame:
        exp = np.exp(logits)
        table = {f"prob:{name}": exp[:, k] / exp.sum(1) for k, name in enumerate(names)}
        facts = {"id": [str(k) for k in range(300)], "patient": [str(k) for k in range(300)], "label": names[labels]}
        return pd.DataFrame({**facts, "decision": names[logits.argmax(1)], **table})

    logits = draw.normal(size=(300, 3)) + 2 * np.eye(3)[labels]
    worse = np.where((labels == 1)[:, None], draw.normal(size=(300, 3)), logits)
    decision = {"kind": "argmax", "positive": "", "threshold": None, "declared": True}
    runs = [
        write(tmp_path / name, rows(values), classes=("a", "b", "c"), decision=decision)
        for name, values in (("before", logits), ("after", worse))
    ]
    found = compare(*runs)
    assert {item.name for item in found.paired} == {"accuracy", "sensitivity", "auroc", "log_loss"}
    assert cell(found, "sensitivity", {"class": "b"}).verdict == "worse"
    assert cell(found, "sensitivity", {"class": "a"}).difference == 0
    assert found.largest_logit_change is None
    assert any("Largest change of a logit: not known" in line for line in found.lines())


def test_order_of_classes_does_not_matter(tmp_path: Path) -> None:
    rows = frame(*scores(60))
    columns = [*rows.columns[:5], "prob:lesion", "prob:normal", "logit:lesion", "logit:normal", "sex", "site"]
    found = compare(write(tmp_path / "a", rows), write(tmp_path / "b", rows[columns], classes=("lesion", "normal")))
    assert set(found.verdicts()) == {"equivalent"}


def test_plain_data_there_and_back(tmp_path: Path) -> None:
    log_odds, labels = scores(60)
    found = compare(write(tmp_path / "a", frame(log_odds, labels)), write(tmp_path / "b", frame(-log_odds, labels)))
    assert codec.read(Comparison, json.loads(found.to_json()), "x", RunError) == found
    text = "\n".join(found.lines())
    assert "60 cases of 60 patients" in text
    assert "Accuracy (sex F)" in text
    assert "Decision changed: 1.000" in text


def test_a_level_without_cases_of_a_class_says_so(tmp_path: Path) -> None:
    log_odds, labels = scores(90)
    rows = frame(log_odds, labels)
    rows.loc[rows["sex"] == "M", "label"] = "normal"
    other = rows.assign(**{"prob:lesion": rows["prob:lesion"] * 0.99})
    found = compare(write(tmp_path / "a", rows), write(tmp_path / "b", other))
    assert cell(found, "sensitivity", {"sex": "M"}).reason == "no positive cases"
    assert cell(found, "auroc", {"sex": "M"}).reason == "no positive cases"
    assert cell(found, "sensitivity", {"sex": "M"}).verdict == "not decided"


def test_notes_say_what_else_differs(tmp_path: Path) -> None:
    log_odds, labels = scores(60)
    decision = {**factories.run_info().decision, "threshold": 0.3}
    other = write(
        tmp_path / "b",
        frame(log_odds, labels, threshold=0.3),
        decision=decision,
        fingerprints={"model": "b", "data": "e" * 64},
        status="running",
    )
    found = compare(write(tmp_path / "a", frame(log_odds, labels), patients_declared=False), other)
    assert [note.split(":")[0].split(";")[0] for note in found.notes] == [
        "the same cases, but other images or columns",
        "the runs decide at different thresholds",
        "no patient column was given",
        "a run is not finished",
    ]
    assert cell(found, "sensitivity").b > cell(found, "sensitivity").a


def refused(a: Run, b: Run, words: str) -> None:
    with pytest.raises(RunError, match=words):
        compare(a, b)


def test_other_cases_labels_patients_and_classes_are_refused(tmp_path: Path) -> None:
    rows = frame(*scores(30))
    a = write(tmp_path / "a", rows)
    refused(a, write(tmp_path / "b", rows.iloc[:20]), "has 30 cases, .* 20, and 20 are in both: audit")
    moved = rows.assign(id=[f"other-{k}" for k in range(25)] + list(rows["id"][25:]))
    refused(a, write(tmp_path / "c", moved), "30, and 5 are in both")
    relabelled = rows.assign(label=["lesion" if k == 3 else name for k, name in enumerate(rows["label"])])
    wrong = rows["label"][3]
    if wrong == "lesion":
        relabelled.loc[3, "label"] = "normal"
    refused(a, write(tmp_path / "d", relabelled), r"case 'case-0003' has the label .* \(1 such case\)")
    refused(a, write(tmp_path / "e", rows.assign(patient="p0")), "case 'case-0001' has the patient 'p1' .* and 'p0'")
    renamed = rows.rename(columns={"prob:lesion": "prob:tumour"})
    refused(a, write(tmp_path / "f", renamed), "has the classes normal, lesion, .* normal, tumour: only runs")
    decision = {**factories.run_info().decision, "positive": "normal"}
    refused(a, write(tmp_path / "g", rows, decision=decision), "calls 'lesion' positive, .* 'normal'")


def test_damaged_predictions_are_refused(tmp_path: Path) -> None:
    rows = frame(*scores(30))
    a = write(tmp_path / "a", rows)
    refused(
        a, write(tmp_path / "b", rows.drop(columns="decision")), "column 'decision' is missing. Run `xvision verify"
    )
    bare = rows.drop(columns=["prob:normal", "prob:lesion"])
    refused(a, write(tmp_path / "c", bare), "column 'prob:<class>' is missing")
    refused(a, write(tmp_path / "d", pd.concat([rows, rows])), "the case 'case-0000' is in it twice")
    odd = rows.assign(label="what")
    refused(write(tmp_path / "e", odd), write(tmp_path / "f", odd), r"the label 'what' is no class of the predictions")


def test_margin_and_resamples_are_checked(tmp_path: Path) -> None:
    a = write(tmp_path / "a", frame(*scores(30)))
    with pytest.raises(ConfigError, match="margin is 0 and resamples 2000: give a margin above 0"):
        compare(a, a, margin=0)
    with pytest.raises(ConfigError, match="resamples 5"):
        compare(a, a, resamples=5)


def test_same_seed_same_numbers(tmp_path: Path) -> None:
    first, labels = scores(60)
    runs = write(tmp_path / "a", frame(first, labels)), write(tmp_path / "b", frame(first * 0.5 + 0.1, labels))
    assert compare(*runs, seed=3) == compare(*runs, seed=3)
    assert compare(*runs, seed=3) != compare(*runs, seed=4)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000))
def test_turned_around_every_difference_changes_sign(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("turned")
    first, labels = scores(80, seed=seed)
    second = first + np.random.default_rng(seed).normal(size=80)
    runs = write(folder / "a", frame(first, labels)), write(folder / "b", frame(second, labels))
    there, back = compare(*runs, resamples=200), compare(*runs[::-1], resamples=200)
    for one, other in zip(there.paired, back.paired, strict=True):
        if one.difference is not None and other.difference is not None:
            assert other.difference == pytest.approx(-one.difference, abs=1e-12)
            assert (other.low, other.high) == pytest.approx((-(one.high or 0), -(one.low or 0)), abs=1e-6)
