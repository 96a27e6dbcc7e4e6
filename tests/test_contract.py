"""What every registered analysis must keep, whatever it computes. New analyses are found and held to it by themselves."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

import xvision
from tests.evidence import CURVE, evidence
from tests.models.test_llm_bound import adapted
from tests.models.test_llm_text import TEXTS, reader
from xvision import charts, codec
from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.checkpoint import save_model
from xvision.models.evidence import write_evaluation
from xvision.models.finding import finding_view
from xvision.models.llm.classifier import preset
from xvision.models.protocols import Classifier
from xvision.registry import Analysis, analyses
from xvision.result import NotApplicable, Record, Result
from xvision.store import Writer, open_run

Results = Callable[[str], Result]
SMALL_OPTIONS = {
    "cases": 10, "steps": 3, "resamples": 50, "permutations": 49, "bank": 20, "copies": 1, "shuffles": 1, "path_steps": 3, "samples": 3,
    "queries": 10, "decision_queries": 40, "examined": 6, "draws": 40, "selection": 20,
    "combinations": 6, "fewest": 4, "embeddings": 10, "reference_cases": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(phantoms: Path) -> AuditDataset:
    return xvision.load_data(phantoms, groups=["sex", "site"])


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """The shared classifier, with a record of its training beside it."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("model") / "checkpoint")
    found = xvision.load_model(folder, device="cpu")
    write_evaluation(folder, evidence(found.fingerprint))
    (folder / "metrics.jsonl").write_text(CURVE)
    return found


def audit(model: Classifier, data: AuditDataset, *, part: int = 64) -> Audit:
    options = {name: small(found) for name, found in analyses().items()}
    return Audit(model, data, Decision(1, 0.5, True), 7, Engine(part=part), ("sex",), ("site",), options=options)


def small(analysis: Analysis) -> dict[str, object]:
    """Its options, those that cost time at their smallest."""
    return analysis.bind(
        {each.name: SMALL_OPTIONS[each.name] for each in analysis.options if each.name in SMALL_OPTIONS}
    )


def run(analysis: Analysis, subject: Audit) -> Result:
    if analysis.need == "words":
        subject = reading(subject)
    if analysis.name == "findings":
        subject = several(subject)
    if analysis.name == "intersections":
        subject = replace(subject, groups=("sex", "site"), acquisition=())
    subject.task = analysis.name
    return analysis(subject, small(analysis))


def reading(subject: Audit) -> Audit:
    """The same audit of a model that reads a text beside each image."""
    table = subject.everything.table
    texts = [TEXTS[place % len(TEXTS)] for place in range(len(table))]
    return replace(
        subject, model=adapted(reader()), everything=replace(subject.everything, table=table.assign(text=texts))
    )


def several(subject: Audit) -> Audit:
    """The same audit of one finding of a model of two; every third case has the other one."""
    table = subject.everything.table
    cells = table["label"].replace({"normal": ""})
    cells[::3] = [f"{cell}|nodule".strip("|") for cell in cells[::3]]
    data = replace(subject.everything, table=table.assign(label=cells), multilabel=True).finding("lesion")
    model = adapted(preset("tiny-bert", classes=("lesion", "nodule"), multilabel=True, seed=1))
    return replace(subject, model=finding_view(model, "lesion"), everything=data, decision=Decision(1, 0.5, True))


def gives_metrics_or(analysis: Analysis, subject: Audit, reason: str) -> bool:
    """Whether there are metrics, or the analysis has to skip for this reason."""
    try:
        return bool(run(analysis, subject).metrics)
    except NotApplicable as skipped:
        return reason in str(skipped)


def as_data(result: Result) -> object:
    return [codec.plain(item) for item in (*result.metrics, *result.charts)]


@pytest.fixture(scope="module")
def results(model: Classifier, data: AuditDataset) -> Results:
    """Each analysis run once, when it is first asked for."""
    return cache(lambda name: run(analyses()[name], audit(model, data)))


names = pytest.mark.parametrize("name", list(analyses()))


@names
def test_numbers_are_finite_with_n_and_interval_or_a_reason(name: str, results: Results) -> None:
    result = results(name)
    assert result.metrics
    assert result.summary.endswith(".")
    for metric in result.metrics:
        if metric.value is None:
            assert metric.reason
            continue
        assert math.isfinite(metric.value)
        assert metric.unit == "count" or (metric.n or 0) > 0
        exact = metric.unit == "count" or metric.name.endswith("_p")
        assert exact or (metric.low is not None and metric.low <= metric.value <= (metric.high or math.inf))
        assert metric.interval


@names
def test_metrics_are_named_once(name: str, results: Results) -> None:
    keys = [
        (item.name, tuple(sorted((key, str(value)) for key, value in item.where.items())))
        for item in results(name).metrics
    ]
    assert len(keys) == len(set(keys))


@names
def test_the_same_seed_gives_the_same_result(
    name: str, results: Results, model: Classifier, data: AuditDataset
) -> None:
    again = run(analyses()[name], audit(model, data))
    assert as_data(again) == as_data(results(name))


@names
def test_the_size_of_parts_changes_nothing_that_is_printed(
    name: str, results: Results, model: Classifier, data: AuditDataset
) -> None:
    parts = run(analyses()[name], audit(model, data, part=7))
    for one, other in zip(parts.metrics, results(name).metrics, strict=True):
        assert (one.name, one.where) == (other.name, other.where)
        assert (one.value is None) == (other.value is None)
        if one.value is not None:
            assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-4)


@names
def test_what_is_stored_reads_back_equal(name: str, results: Results, tmp_path: Path) -> None:
    found = analyses()[name]
    record = Record(name, found.title, found.pillar, found.question, "ok", "key", {}, 1.0)
    writer = Writer(tmp_path)
    stored = writer.result(record, results(name))
    (tmp_path / "run.json").write_text("{}")
    assert open_run(tmp_path).record(name) == stored


@names
def test_every_chart_is_drawn_by_both_outlets(name: str, results: Results) -> None:
    for missing in ("plotly", "matplotlib"):
        if importlib.util.find_spec(missing) is None:
            pytest.skip(f"{missing} is not installed")
    from dashboards.charts import figure
    from reports.charts import svg

    for chart in results(name).charts:
        assert chart.alt
        if isinstance(chart, charts.Images | charts.Table):
            continue
        assert figure(chart).data
        assert all(b"<svg" in drawn for drawn in svg(chart))


@names
def test_pictures_are_of_stored_cases(name: str, results: Results) -> None:
    cases = {case.id: case for case in results(name).cases}
    for chart in results(name).charts:
        if isinstance(chart, charts.Images):
            assert all(set(chart.pictures) <= set(cases[case].pictures) for case in chart.cases)


@names
def test_a_model_that_cannot_gives_a_reason(name: str, model: Classifier, data: AuditDataset) -> None:
    class Opaque:
        """The same model as a black box: neither gradients, attention nor embeddings."""

        access = "black-box"
        classes, task, bounds, input = model.classes, model.task, model.bounds, model.input
        device, fingerprint, description = model.device, model.fingerprint, {"architecture": "Opaque"}
        logits = staticmethod(model.logits)

    found = analyses()[name]
    subject = replace(audit(model, data), model=Opaque())
    if found.need in {"gradients", "attention", "embeddings", "words"}:
        assert "Opaque" in (subject.can(found.need) or "")
    else:
        assert subject.can(found.need) is None
        assert gives_metrics_or(found, subject, "the checkpoint brings no")


@names
def test_a_model_with_three_classes_is_audited(name: str, data: AuditDataset, tmp_path: Path) -> None:
    save_model(preset("tiny-bert", classes=("a", "lesion", "normal"), seed=1), tmp_path / "three")
    three = xvision.load_model(tmp_path / "three", device="cpu")
    write_evaluation(tmp_path / "three", evidence(three.fingerprint))
    subject = replace(audit(three, data), decision=Decision())
    if analyses()[name].need == "words":
        assert "reads no words" in (subject.can("words") or "")
        return
    assert gives_metrics_or(analyses()[name], subject, "the model has 3 classes")


def test_options_are_checked_by_name_and_type() -> None:
    found = analyses()["calibration"]
    with pytest.raises(ConfigError, match=r"unknown option 'bin'. Did you mean 'bins'"):
        found.bind({"bin": 3})
    with pytest.raises(ConfigError, match=r"analysis.calibration.bins.*valid integer"):
        found.bind({"bins": "many"})
