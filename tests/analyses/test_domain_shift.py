"""Planted shifts are found and named, clean twins raise no alarm, and what cannot be said has a reason."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from tests.analyses.shifted import Plant, phantom_audit
from xvision.analyses.domain_shift import domain_shift
from xvision.audit import Audit, Outside
from xvision.data.dataset import AuditDataset
from xvision.data.scores import without_images
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError, ModelError
from xvision.methods.decision import Decision
from xvision.models.predictions import PredictionsClassifier
from xvision.registry import analyses
from xvision.result import Metric, NotApplicable, Result
from xvision.text import value as worded

FAST = {"permutations": 199, "resamples": 60}


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another detector: less contrast, more noise."""
    return 0.75 * pixels + 0.1 + rng.normal(0, 0.12, pixels.shape)


def upside_down(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Every statistic of an image stays as it was."""
    return pixels[:, :, ::-1].copy()


@cache
def found(seed: int, plant: Plant | None = None) -> tuple[Audit, Result]:
    audit = phantom_audit(seed, plant)
    return audit, domain_shift(audit, **FAST)


def one(result: Result, name: str, **where: str) -> Metric:
    (item,) = [item for item in result.metrics if item.name == name and dict(item.where) == where]
    return item


def p_values(result: Result) -> list[float]:
    return [item.value for item in result.metrics if item.name == "shift_p" and item.value is not None]


@pytest.mark.parametrize("seed", range(5))
def test_another_detector_is_found_in_the_images_and_its_clean_twin_is_not(seed: int) -> None:
    clean, shifted = found(seed)[1], found(seed, noisy)[1]
    assert min(p_values(clean)) > 0.05
    assert "no shift is seen in images, embeddings, outputs and prevalence." in clean.summary
    assert one(shifted, "shift_p", statistic="noise").value < 0.001
    assert one(shifted, "shift_auroc", statistic="noise").low > 0.6
    assert one(shifted, "standardised_difference", statistic="noise").low > 0.3
    assert one(shifted, "shift_p", test="classifier").value < 0.05
    assert "a shift is seen in images (" in shifted.summary
    assert one(shifted, "shift_p", test="labels").value == one(clean, "shift_p", test="labels").value


def test_turned_images_harm_one_site_and_are_seen_by_the_model_only() -> None:
    audit, result = found(0, upside_down)
    for name in ("mean", "noise", "sharpness", "entropy"):
        assert one(result, "shift_p", statistic=name).value == 1.0
    assert one(result, "shift_p", test="mmd").value == pytest.approx(4 / 200)  # the smallest there is, times 4 places
    assert one(result, "mmd_squared", test="mmd").low > 0
    member = audit.column("site") == "B"
    truth = roc_auc_score(audit.labels[member], audit.scores[member])
    assert one(result, "auroc", site="B").value == pytest.approx(truth)
    worst = one(result, "worst_auroc", column="site")
    assert worst.value == pytest.approx(truth)
    assert worst.interval.endswith("level B")
    assert one(result, "heterogeneity_p", column="site", of="auroc").value < 0.001
    assert "lowest B" in result.summary
    assert "levels differ by more than chance" in result.summary
    assert "levels do not differ by more than chance" in found(0)[1].summary
    assert any("two levels" in caveat for caveat in result.caveats)


def test_the_cases_least_like_the_reference_are_those_of_the_new_detector() -> None:
    audit, result = found(1, noisy)
    sites = dict(zip(audit.ids, audit.column("site"), strict=True))
    assert [sites[case.id] for case in result.cases] == ["B"] * 6
    table = result.tables["domain_shift"]
    assert len(table) == len(audit.ids)
    top = table.sort_values("unlike_reference", ascending=False)["id"][:6]
    assert [case.id for case in result.cases] == top.tolist()


def test_estimates_without_labels_stand_beside_the_truth() -> None:
    audit, result = found(2, noisy)
    for method in ("ATC", "ATC, entropy", "DoC", "CM-ATC", "CM-DoC", "CBPE"):
        expected = one(result, "estimated_accuracy", method=method)
        error = one(result, "estimated_accuracy_error", method=method)
        assert expected.value - audit.correct.mean() == pytest.approx(error.value)
    assert any("Flühmann" in caveat for caveat in result.caveats)
    chart = next(chart for chart in result.charts if chart.title == "Expected without labels, beside the truth")
    assert {row[3] for row in chart.rows if row[0] == "Accuracy"} == {audit.correct.mean()}
    assert f"it is {worded(audit.correct.mean(), None, None)}." in result.summary


def test_nothing_is_fitted_on_the_audited_labels() -> None:
    audit = scored(400, site=["A", "B"] * 200)
    table = audit.everything.table.copy()
    audited = table["split"] == "test"
    table.loc[audited, "label"] = table.loc[audited, "label"].map({"normal": "lesion", "lesion": "normal"})
    other = replace(audit, everything=replace(audit.everything, table=table), shared={})
    names = ("estimated_accuracy", "estimated_sensitivity", "estimated_specificity", "estimated_prevalence")
    one_way, other_way = (
        [item for item in domain_shift(each, **FAST).metrics if item.name in names] for each in (audit, other)
    )
    assert one_way == other_way
    assert len(one_way) == 13


def test_another_mixture_is_called_a_shift_of_prevalence_and_is_recovered() -> None:
    """Seven of eight healthy reference cases are left out."""
    audit = phantom_audit(3, images=2400)
    reference = audit.everything.split("validation")
    healthy = reference.table["label"] == "normal"
    kept = ~healthy | (np.arange(len(healthy)) % 8 == 0)
    ill = replace(audit, outside=Outside(reference=replace(reference, table=reference.table[kept])), shared={})
    result = domain_shift(ill, **FAST)
    assert one(result, "shift_p", test="labels").value < 0.001
    assert one(result, "prevalence_difference").high < -0.2
    assert one(result, "selection_rate_difference").high < -0.1
    truth = float((audit.labels == 1).mean())
    estimate = one(result, "estimated_prevalence")
    assert estimate.low < truth < estimate.high
    assert estimate.value == pytest.approx(truth, abs=0.08)
    assert one(result, "label_shift_weight").value < 0.8
    assert "prevalence (Labels" in result.summary
    assert any("mixture" in caveat for caveat in result.caveats)
    assert "the reference data" in result.summary
    standard = one(result, "standardised_accuracy", site="A").value
    recalls = [one(result, name, site="A").value for name in ("specificity", "sensitivity")]
    share = float((ill.reference.labels == 1).mean())
    assert standard == pytest.approx((1 - share) * recalls[0] + share * recalls[1])


def test_a_reference_whose_labels_the_model_does_not_know_is_not_called_unlabelled() -> None:
    audit = phantom_audit(3, images=400)
    reference = audit.everything.split("validation")
    strange = reference.table.assign(label=["effusion", *reference.table["label"][1:]])
    other = replace(audit, outside=Outside(reference=replace(reference, table=strange)), shared={})
    result = domain_shift(other, **FAST)
    for metric in (one(result, "shift_p", test="labels"), one(result, "estimated_accuracy")):
        assert metric.value is None
        assert "has cases without a label that is a class of the model" in (metric.reason or "")


def scored(count: int, *, labels: np.ndarray | None = None, known: slice = slice(None), **columns: object) -> Audit:
    """Predictions only; the first half is the split "validation", the other "test"; two images a patient."""
    rng = np.random.default_rng(0)
    truth = (rng.random(count) < 0.5).astype(int) if labels is None else labels
    p = expit(rng.normal(2.0 * truth - 1, 1)).round(4)
    ids = [f"c{place:04d}" for place in range(count)]
    table = pd.DataFrame(
        {
            "label": np.where(truth == 1, "lesion", "normal"),
            "patient": [f"p{place // 2}" for place in range(count)],
            "split": np.where(np.arange(count) < count // 2, "validation", "test"),
            **columns,
        },
        index=pd.Index(ids, name="id"),
    )
    data = without_images(AuditDataset(table, tuple(columns), ArraySource(ids, np.zeros((count, 1, 4, 4), np.float32))))
    both = np.stack([1 - p, p], axis=1)[known]
    model = PredictionsClassifier("predictions.csv", "id", tuple(ids[known]), ("normal", "lesion"), both)
    return Audit(model, data, Decision(1, 0.5, True), 1, Engine(), (), tuple(columns), task="domain_shift")


def test_predictions_alone_are_compared_as_outputs() -> None:
    result = domain_shift(scored(400, site=["A", "B", "C", "D"] * 100), **FAST)
    for where in ({"statistic": "any"}, {"test": "mmd"}, {"test": "classifier"}):
        assert one(result, "shift_p", **where).reason == "only predictions were given, no model"
    assert one(result, "shift_p", output="lesion").value == 1.0
    assert one(result, "new_level_auroc", column="site").low < one(result, "pooled_auroc", column="site").low
    assert "images and embeddings could not be compared." in result.summary
    assert result.cases == ()
    assert result.tables == {}


def test_predictions_of_the_audited_split_alone_have_no_reference() -> None:
    result = domain_shift(scored(400, known=slice(200, None), site=["A", "B"] * 200), **FAST)
    for name in ("shift_p", "estimated_accuracy"):
        assert "not applicable: the split 'validation' has no predictions of its own" in one(result, name).reason
    assert one(result, "auroc", site="A").value is not None


def test_without_reference_and_columns_there_is_no_question() -> None:
    audit = scored(60)
    whole = replace(audit, everything=replace(audit.everything, table=audit.everything.table.assign(split="test")))
    with pytest.raises(
        NotApplicable, match="no acquisition or time column was declared, and there is nothing to compare"
    ):
        domain_shift(whole)
    sited = scored(60, site=["A", "B"] * 30)
    whole = replace(sited, everything=replace(sited.everything, table=sited.everything.table.assign(split="test")))
    result = domain_shift(whole, fewest=5)
    assert "name reference data in the plan" in one(result, "shift_p").reason
    assert result.summary.startswith("AUROC by site: lowest ")
    with pytest.raises(ConfigError, match=r"the data have no column 'sites'.*Did you mean 'site'"):
        domain_shift(sited, columns=("sites",))
    with pytest.raises(ConfigError, match="the data have no column 'date'"):
        domain_shift(sited, time="date")


def test_periods_of_time_are_levels_in_order_without_a_prediction() -> None:
    rng = np.random.default_rng(1)
    days = [
        f"2024-{month:02d}-1{day}" for month, day in zip(rng.integers(1, 5, 800), rng.integers(0, 9, 800), strict=True)
    ]
    result = domain_shift(scored(800, date=days), time="date", **FAST)
    named = [item.where["date"] for item in result.metrics if item.name == "auroc" and "date" in item.where]
    assert named == ["2024-01", "2024-02", "2024-03", "2024-04"]
    assert one(result, "worst_auroc", column="date").value is not None
    assert not [item for item in result.metrics if item.name.startswith("new_level")]


def test_ten_images_one_site_and_one_label_have_defined_outcomes() -> None:
    ten = domain_shift(scored(20, site=["A"] * 20))
    assert one(ten, "auroc", site="A").reason == "fewer than 20 patients"
    assert "AUROC by site: insufficient evidence: there is one level of site" in ten.summary
    assert "insufficient evidence: 5 reference and 5 audited patients" in one(ten, "shift_p").reason
    assert "would be settled by more patients" in one(ten, "estimated_accuracy").reason
    assert "nothing is known there" in " ".join(ten.caveats)
    same = domain_shift(scored(200, labels=np.ones(200, int), site=["A"] * 200), **FAST)
    assert one(same, "auroc", site="A").reason == "no negative cases"
    assert "there is one level of site; would be settled by" in one(same, "pooled_auroc", column="site").reason
    assert one(same, "shift_p", test="labels").reason == "every label is the same"
    assert "labels of one class only" in one(same, "estimated_accuracy").reason
    assert one(same, "estimated_prevalence").reason == "a class has no reference case"
    for result in (ten, same):
        assert result.summary.endswith(".")


def test_logits_that_are_no_numbers_are_refused() -> None:
    audit = scored(100, site=["A", "B"] * 50)
    audit.model.probabilities[70] = np.nan
    with pytest.raises(ModelError, match="not finite"):
        domain_shift(audit)


def test_three_classes() -> None:
    rng = np.random.default_rng(2)
    audit = scored(400, site=["A", "B"] * 200)
    p = rng.dirichlet(np.ones(3), 400)
    names = np.array(["a", "b", "c"])
    labels = names[(rng.random(400)[:, None] > p.cumsum(axis=1)).sum(axis=1)]
    model = replace(audit.model, classes=tuple(names), probabilities=p)
    data = replace(audit.everything, table=audit.everything.table.assign(label=labels))
    result = domain_shift(replace(audit, model=model, everything=data, decision=Decision()), **FAST)
    assert one(result, "auroc", site="A", **{"class": "b"}).value > 0.6
    assert one(result, "prevalence_difference", **{"class": "c"}).value is not None
    assert one(result, "shift_p", output="a").value is not None
    assert one(result, "estimated_prevalence", **{"class": "a"}).low < 0.34
    assert one(result, "pooled_balanced_accuracy", column="site").value is not None


def test_order_and_parts_change_nothing() -> None:
    audit, result = found(4, noisy)
    parts = replace(audit, engine=Engine(part=17), shared={})
    again = domain_shift(parts, **FAST)
    for item, other in zip(result.metrics, again.metrics, strict=True):
        assert (item.name, item.where) == (other.name, other.where)
        assert (item.value is None) == (other.value is None)
        if item.value is not None:
            assert item.value == pytest.approx(other.value, abs=1e-5)


def test_large_sets_are_compared_on_a_sample_that_is_told() -> None:
    audit = phantom_audit(0)
    result = domain_shift(audit, most=100, **FAST)
    assert any(f"on 100 of {len(audit.ids)} audited images" in caveat for caveat in result.caveats)
    assert len(result.tables["domain_shift"]) == 100


def test_it_is_registered_and_needs_scores_only() -> None:
    assert analyses()["domain_shift"].need == "scores"
