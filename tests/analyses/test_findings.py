"""Several findings side by side: counted by hand, a planted gap in one of them, what is not labelled, a whole run, pictures."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import false_discovery_control

import xvision
from tests.analyses.reading import found, table
from tests.models.test_llm_bound import adapted
from xvision.analyses.findings import findings
from xvision.audit import Audit
from xvision.charts import HeatMap
from xvision.config import FairnessPlan
from xvision.data.dataset import AuditDataset
from xvision.data.scores import without_images
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.intervals import wilson
from xvision.models.finding import finding_view
from xvision.models.llm.classifier import preset
from xvision.models.predictions import PredictionsClassifier
from xvision.result import NotApplicable, Result

NAMES = ("effusion", "nodule", "oedema")


def audited(
    chances: np.ndarray,
    labels: np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    finding: str = "effusion",
    names: tuple[str, ...] = NAMES,
    threshold: float = 0.5,
    margin: float | None = None,
) -> Audit:
    """chances, labels: (N, L) of the findings of a predictions file, audited for one of them."""
    ids = [f"case-{place:05d}" for place in range(len(labels))]
    cells = ["|".join(name for name, there in zip(names, row, strict=True) if there) for row in labels]
    index = pd.Index(ids, name="id")
    table = pd.DataFrame({"label": cells, "patient": ids, "split": "test", **columns}, index=index).astype("str")
    source = ArraySource([], np.zeros((0, 1, 8, 8), np.float32))
    whole = without_images(AuditDataset(table, tuple(columns), source, multilabel=True))
    model = PredictionsClassifier("p.csv", "id", tuple(ids), names, chances, multilabel=True)
    return Audit(
        model.finding(finding), whole.finding(finding), Decision(1, threshold, True), 3, groups=tuple(columns),
        task="findings", fairness=FairnessPlan(margin=margin),
    )  # fmt: skip


def world(size: int = 1200, drop: float = 0.0, **options: object) -> Audit:
    """Sensitivity and specificity 0.85; nodules of women are missed more often by ``drop``."""
    rng = np.random.default_rng(0)
    columns = {"sex": rng.choice(["F", "M"], size), "age": rng.choice(["a", "b", "c", "unknown"], size)}
    labels = rng.random((size, 3)) < (0.5, 0.4, 0.3)
    right = rng.random((size, 3)) < 0.85 - drop * (labels & (columns["sex"] == "F")[:, None]) * (0, 1, 0)
    return audited(np.where(labels == right, 0.8, 0.2), labels, columns, **options)


def heat_map(result: Result, beginning: str) -> HeatMap:
    (chart,) = [one for one in result.charts if isinstance(one, HeatMap) and one.title.startswith(beginning)]
    return chart


def by_hand(folder: Path) -> tuple[Path, Path]:
    """40 cases; of women 8 of 10 effusions and 3 of 10 nodules are found, of men 6 of 10 and 9 of 10; no false alarm."""
    hits = {("F", "effusion"): 8, ("F", "nodule"): 3, ("M", "effusion"): 6, ("M", "nodule"): 9}
    with (folder / "m.csv").open("w", newline="") as manifest, (folder / "p.csv").open("w", newline="") as scores:
        cases, answers = csv.writer(manifest), csv.writer(scores)
        cases.writerow(["id", "label", "sex"])
        answers.writerow(["id", "finding:effusion", "finding:nodule", "finding:mass"])
        for place, (sex, name, at) in enumerate((s, n, at) for s, n in hits for at in range(10)):
            chance = 0.6 if at < hits[sex, name] else 0.4
            cases.writerow([place, f"{name}|device" if at == 0 else name, sex])
            answers.writerow([place, chance if name == "effusion" else 0.1, chance if name == "nodule" else 0.1, 0.9])
    return folder / "m.csv", folder / "p.csv"


def test_a_whole_run_counts_what_was_counted_by_hand(tmp_path: Path) -> None:
    manifest, predictions = by_hand(tmp_path)
    data = xvision.load_data(manifest, groups=["sex"], images_required=False, multilabel=True)
    options = {"findings": {"minimum": 5, "resamples": 100}}
    run = xvision.run_audit(
        xvision.load_model(predictions), data, out=tmp_path / "run", positive="nodule", threshold=0.5,
        only=["findings"], options=options,
    )  # fmt: skip
    record = run.record("findings")
    assert (record.status, record.pillar, record.question) == (
        "ok", "Fairness", "Which finding is missed more often in which group?",
    )  # fmt: skip
    result = Result(record.summary, record.metrics, record.charts, caveats=record.caveats)
    for (sex, name), hits in {
        ("F", "effusion"): 8, ("F", "nodule"): 3, ("M", "effusion"): 6, ("M", "nodule"): 9,
    }.items():  # fmt: skip
        rate = found(result, "sensitivity", finding=name, sex=sex)
        assert (rate.value, rate.n) == (hits / 10, 10)
        assert (rate.low, rate.high) == pytest.approx(wilson(hits, 10))
        assert found(result, "specificity", finding=name, sex=sex).value == 1.0
        assert found(result, "positives", finding=name, sex=sex).value == 10
    assert found(result, "sensitivity_difference", finding="nodule", sex="F", against="rest").value == pytest.approx(
        -0.6
    )
    assert found(result, "mean_sensitivity", sex="F").value == pytest.approx(0.55)
    assert found(result, "mean_sensitivity", sex="M").value == pytest.approx(0.75)
    assert found(result, "labels_missing", finding="mass").value == 40
    assert found(result, "labels_missing", finding="nodule").value == 0
    assert found(result, "sensitivity", finding="mass", sex="F").reason == "no cases"
    sizes, rates = heat_map(result, "Images with each finding"), heat_map(result, "Sensitivity of each")
    assert sizes.rows == ("All images", "All patients", "effusion", "nodule")
    assert sizes.columns == ("sex F", "sex M")
    assert sizes.values == ((20, 20), (20, 20), (10, 10), (10, 10))
    assert rates.values == ((0.8, 0.6), (0.3, 0.9))
    assert rates.alt == "Lowest for nodule in sex F: 0.300 (0.108 to 0.603)."
    row = table(result, "Mean over findings").rows[0]
    assert (row[:3], str(row[3])[:5], row[4:]) == (("Sex", "F", 20), "0.550", ("all", "1.000 (0.722 to 1.000)", "all"))
    assert any("No case of the data has mass" in caveat for caveat in result.caveats)
    assert any("The data also names device, on which" in caveat for caveat in result.caveats)
    assert any("Only nodule is decided as deployed. The other findings" in caveat for caveat in result.caveats)


def test_p_values_are_corrected_over_all_findings_and_groups_of_a_column() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random((900, 3)) < 0.5
    columns = {"age": rng.choice(["a", "b", "c"], 900)}
    decided = rng.random((900, 3)) < np.where(labels, 0.8, 0.1) - 0.3 * (labels & (columns["age"] == "b")[:, None])
    result = findings(audited(np.where(decided, 0.9, 0.1), labels, columns), resamples=50)
    raw, adjusted = [], []
    for at, name in enumerate(NAMES):
        for group in ("a", "b", "c"):
            inside = columns["age"] == group
            ill = labels[:, at]
            hits, others = decided[ill & inside, at], decided[ill & ~inside, at]
            pooled = decided[ill, at].mean()
            error = np.sqrt(pooled * (1 - pooled) * (1 / len(hits) + 1 / len(others)))
            z = torch.tensor(abs(hits.mean() - others.mean()) / error)
            raw.append(2 * float(torch.special.ndtr(-z)))
            adjusted.append(found(result, "sensitivity_difference_bh_p", finding=name, age=group, against="rest").value)
    assert adjusted == pytest.approx(false_discovery_control(raw, method="bh"))


def test_a_planted_gap_in_one_finding_and_group_is_found_and_fair_findings_are_not() -> None:
    result = findings(world(drop=0.35), resamples=50)
    assert result.summary.startswith("Gap shown. Sensitivity for nodule is 0.2")
    assert result.summary.endswith("lower for sex F than for the rest.")
    rows = table(result, "What may be said").rows
    assert rows[0][:3] == ("nodule", "sex F", "Sensitivity")
    assert [row[6] for row in rows].count("gap shown") == 1
    assert rows[0][5] == "< 0.001"
    assert len(rows) == 20
    gap = found(result, "sensitivity_difference", finding="nodule", sex="F", against="rest")
    assert gap.value == pytest.approx(-0.35, abs=0.1)
    assert (gap.high or 0) < 0
    fair = findings(world(), resamples=50)
    assert "No finding is shown to be missed more often in any patient group. Of 12 comparisons: 12 not" in fair.summary
    assert "unknown" not in {row[1] for row in table(fair, "What may be said").rows}
    assert "age unknown" in heat_map(fair, "Sensitivity").columns


def test_a_margin_decides_what_is_equivalent_and_what_is_small_enough() -> None:
    result = findings(world(20_000, drop=0.05, margin=0.12), resamples=20)
    words = {row[:3]: row[6] for row in table(result, "What may be said").rows}
    assert words.pop(("nodule", "sex F", "Sensitivity")) == "below the agreed margin"
    assert set(words.values()) == {"equivalent"}
    assert result.summary.startswith("No finding is shown to be missed more often")
    assert not any("No margin was agreed" in caveat for caveat in result.caveats)


def test_the_audited_finding_is_decided_as_deployed_and_others_by_convention_or_as_given() -> None:
    """All chances are 0.8 or 0.2: at 0.9 nothing is found."""
    deployed = findings(world(threshold=0.9), resamples=20)
    assert found(deployed, "sensitivity", finding="effusion", sex="F").value == 0.0
    assert (found(deployed, "sensitivity", finding="nodule", sex="F").value or 0) > 0.8
    given = findings(world(), thresholds={"nodule": 0.9, "oedema": 0.1}, resamples=20)
    assert (found(given, "sensitivity", finding="effusion", sex="F").value or 0) > 0.8
    assert found(given, "sensitivity", finding="nodule", sex="F").value == 0.0
    assert found(given, "sensitivity", finding="oedema", sex="F").value == 1.0
    said = "Effusion is decided as deployed, the others as given: nodule at 0.9 and oedema at 0.1."
    assert said in given.caveats
    for thresholds, message in (
        ({"effusion": 0.4}, "names 'effusion', the audited finding, which is decided as deployed"),
        ({"nodul": 0.4}, r"names 'nodul', not a finding of the model\. Did you mean 'nodule'"),
        ({"nodule": 1.0}, r"thresholds\.nodule is 1\.0: give a probability above 0 and below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            findings(world(60), thresholds=thresholds)


def test_nothing_to_set_side_by_side_is_said() -> None:
    audit = world(60)
    with pytest.raises(NotApplicable, match="no group columns were declared"):
        findings(replace(audit, groups=()))
    alone = replace(audit.model, inner=None)
    with pytest.raises(NotApplicable, match="the model decides on one finding or class"):
        findings(replace(audit, model=alone))
    with pytest.raises(NotApplicable, match="the data names one class for each image"):
        findings(replace(audit, everything=replace(audit.everything, cells=None)))


def test_groups_that_are_few_or_many() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random((3000, 3)) < 0.3
    columns = {"one": np.repeat("x", 3000), "many": (np.arange(3000) % 1000).astype(str)}
    columns["few"] = np.where(np.arange(3000) < 12, "few", "most")
    start = time.process_time()
    result = findings(audited(rng.random((3000, 3)), labels, columns), resamples=100)
    assert time.process_time() - start < 3
    assert any("The 970 smaller levels of Many are one group here." in caveat for caveat in result.caveats)
    assert found(result, "sensitivity", finding="nodule", many="970 other levels").value is not None
    assert all(len(chart.columns) <= 12 for chart in result.charts if isinstance(chart, HeatMap))
    small = found(result, "sensitivity_difference", finding="nodule", few="few", against="rest")
    assert small.reason == "fewer than 10 patients in the denominator"
    assert "nodule in few few" in heat_map(result, "Sensitivity").alt
    one = findings(audited(rng.random((300, 3)), labels[:300], {"one": columns["one"][:300]}), resamples=20)
    assert one.summary.startswith("No finding could be compared between patient groups")


def test_a_network_is_asked_for_all_findings_in_one_pass(phantoms: Path) -> None:
    shown = xvision.load_data(phantoms, groups=["sex"])
    cells = shown.table["label"].replace({"normal": ""})
    cells[::3] = [f"{cell}|nodule".strip("|") for cell in cells[::3]]
    data = replace(shown, table=shown.table.assign(label=cells), multilabel=True)
    model = adapted(preset("tiny-bert", classes=("lesion", "nodule"), multilabel=True, seed=1))
    audit = Audit(
        finding_view(model, "lesion"), data.finding("lesion"), Decision(1, 0.5, True), 7, Engine(part=16), ("sex",),
        task="findings",
    )  # fmt: skip
    before = audit.engine.meter.forward
    result = findings(audit, resamples=20)
    assert audit.engine.meter.forward - before == 2 * len(audit.ids)  # the clean predictions of the audit are one
    with torch.no_grad():
        odds = model.logits(torch.from_numpy(data.audited.pixels(list(audit.ids), model.input))).numpy()
    truth = data.audited.label_matrix(model.classes)
    for place, name in enumerate(model.classes):
        for sex in ("F", "M"):
            ill = (truth[:, place] == 1) & (audit.column("sex") == sex)
            expected = (odds[ill, place] >= 0).mean()
            assert found(result, "sensitivity", finding=name, sex=sex).value == pytest.approx(expected)


def test_what_is_known_of_the_other_findings_belongs_to_model_and_data() -> None:
    """A resumed run must notice when they change."""
    labels, chances = np.zeros((4, 3), dtype=bool), np.full((4, 3), 0.5)
    labels[0], labels[1, 0] = True, True
    columns = {"sex": np.array(["F", "M", "F", "M"])}
    first = audited(chances.copy(), labels, columns)
    assert first.everything.subset(["case-00001", "case-00000"]).whole.table["label"].tolist() == [
        "effusion", "effusion|nodule|oedema",
    ]  # fmt: skip
    labels[2, 1], chances[2, 1] = True, 0.6
    other = audited(chances, labels, columns)
    assert (first.labels == other.labels).all()
    assert (first.scores == other.scores).all()
    assert first.fingerprints[0] != other.fingerprints[0]
    assert first.fingerprints[1] != other.fingerprints[1]
