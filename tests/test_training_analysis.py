"""What the audit shows of a record of training, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import xvision
from tests.evidence import CURVE, MISSING, evaluation, evidence, figure
from xvision import codec
from xvision.audit import Audit
from xvision.charts import Forest, HeatMap, Lines, Table
from xvision.data.dataset import AuditDataset
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.models.checkpoint import save_model
from xvision.models.evidence import (
    EVIDENCE,
    BeforeAfter,
    Blind,
    TrainingEvidence,
    read_evaluation,
    write_evaluation,
)
from xvision.models.finding import finding_view
from xvision.models.llm.classifier import preset
from xvision.models.protocols import Classifier
from xvision.registry import analyses
from xvision.result import NotApplicable, Result
from xvision.store import open_run


@pytest.fixture(scope="module")
def data(phantoms: Path) -> AuditDataset:
    return xvision.load_data(phantoms, groups=["sex", "site"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(preset("tiny-qwen3", seed=0), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def model(folder: Path) -> Classifier:
    return xvision.load_model(folder, device="cpu")


def run(model: Classifier, data: AuditDataset, **options: object) -> Result:
    found = analyses()["training"]
    return found(Audit(model, data, Decision(1, 0.5, True), 7, Engine()), found.bind(options))


def shown(
    model: Classifier,
    folder: Path,
    data: AuditDataset,
    change: Callable[[TrainingEvidence], TrainingEvidence] = lambda record: record,
    **options: object,
) -> Result:
    write_evaluation(folder, change(evidence(model.fingerprint)))
    return run(model, data, **options)


def test_every_figure_is_shown_as_recorded_and_not_measured(
    model: Classifier, folder: Path, data: AuditDataset
) -> None:
    (folder / "metrics.jsonl").write_text(CURVE)
    found = shown(model, folder, data)
    assert found.summary.startswith("As recorded by the trainer, not measured here: test AUROC 0.950 (0.920 to 0.980)")
    assert "before training 0.500" in found.summary
    assert "over its patch stem alone: the body adds, 0.250 (0.220 to 0.280)" in found.summary
    assert "worse than before at A" in found.summary
    assert "none was measured by this audit" in found.caveats[0]
    assert "cannot be measured again" in found.caveats[-1]
    values = {(item.name, *item.where.values()): item.value for item in found.metrics}
    assert values[("recorded_auroc", "test", "after")] == 0.95
    assert values[("gain_over_control", "stem only", "auroc")] == 0.25
    assert values[("gain_over_control", "majority class", "accuracy")] == 0.35
    assert values[("site_change", "site", "A", "auroc")] == -0.15
    assert values[("recorded_worst_group", "test", "sex", "F", "auroc")] == 0.88
    assert values[("accuracy_with_wrong_image", "test")] == 0.52
    assert all(item.where for item in found.metrics), "a figure without condition would be among the key figures"
    assert all(
        item.name.startswith(("recorded_", "gain_", "training_", "site_", "accuracy_")) for item in found.metrics
    )


def test_the_charts_carry_the_verdicts(model: Classifier, folder: Path, data: AuditDataset) -> None:
    (folder / "metrics.jsonl").write_text(CURVE)
    found = shown(model, folder, data)
    forests = {chart.title: chart for chart in found.charts if isinstance(chart, Forest)}
    gains = {mark.label: mark.note for mark in forests["What the model gains over each control"].marks}
    assert gains["stem only"] == "the body adds"
    assert gains["frozen random body"] == "no better than frozen random body"
    sites = {mark.label: mark.note for mark in forests["What the last training changed, by site"].marks}
    assert sites == {"A": "AUROC: worse", "B": "AUROC: better"}
    splits = [mark.label for mark in forests["Before and after training: AUROC"].marks]
    assert splits[-1] == "audited data, measured here"
    (matrix,) = (chart for chart in found.charts if isinstance(chart, HeatMap))
    assert matrix.values == ((0.95, 0.7), (0.8, 0.9))
    (controls,) = (chart for chart in found.charts if isinstance(chart, Table))
    assert [row[1] for row in controls.rows] == [0, 1025, 2050, 2434]
    curves = {chart.title: chart.series[0] for chart in found.charts if isinstance(chart, Lines)}
    assert curves["Training loss as logged"].x == (0.5, 1.0, 2.0)
    assert curves["Validation AUROC as logged"].y == (0.7,)


def test_what_must_not_be_overlooked_is_a_caveat(model: Classifier, folder: Path, data: AuditDataset) -> None:
    caveats = " ".join(shown(model, folder, data).caveats)
    assert "not shown to beat the control 'frozen random body': no better than frozen random body" in caveats
    assert "'stem only'" not in caveats
    assert "worse at A (site): it forgot" in caveats
    assert "it falls to chance with the wrong image" in caveats
    assert "The trainer's own warning: the loss rose in the last epoch" in caveats
    assert "smallest of several figures" in caveats


def test_the_margin_decides_what_counts(model: Classifier, folder: Path, data: AuditDataset) -> None:
    caveats = " ".join(shown(model, folder, data, margin=0.5).caveats)
    assert "'stem only': no better than stem only" in caveats
    assert "it forgot" not in caveats


def test_a_record_that_contradicts_the_audit_is_said_so(model: Classifier, folder: Path, data: AuditDataset) -> None:
    """The model is untrained: whoever recorded 0.95 measured something else."""
    words = "do not agree: the data differ, or the record is not reliable"
    assert words in " ".join(shown(model, folder, data).caveats)

    def humble(record: TrainingEvidence) -> TrainingEvidence:
        return replace(record, splits=(BeforeAfter("test", replace(evaluation(0.5), auroc=figure(0.5, 0.4))),))

    assert words not in " ".join(shown(model, folder, data, humble).caveats)


def test_parts_that_were_not_recorded_are_left_out(model: Classifier, folder: Path, data: AuditDataset) -> None:
    def bare(record: TrainingEvidence) -> TrainingEvidence:
        none = replace(evaluation(0.9), auroc=MISSING)
        return replace(record, splits=(BeforeAfter("test", none),), controls=None, sites=(), blind=None, warnings=())

    found = shown(model, folder, data, bare)
    assert found.summary == "As recorded by the trainer, not measured here: test Accuracy 0.850 (0.820 to 0.880)."
    assert len(found.caveats) == 2

    def nothing(record: TrainingEvidence) -> TrainingEvidence:
        return replace(bare(record), splits=())

    with pytest.raises(NotApplicable, match="its record holds no figure"):
        shown(model, folder, data, nothing)

    def unseen(record: TrainingEvidence) -> TrainingEvidence:
        return replace(bare(record), blind=Blind(figure(0.9), MISSING, 0.5, MISSING))

    assert "not decided (one class only)" in " ".join(shown(model, folder, data, unseen).caveats)


def test_no_record_is_a_reason_to_skip(model: Classifier, data: AuditDataset, folder: Path) -> None:
    with pytest.raises(NotApplicable, match="the checkpoint brings no record of its training"):
        run(model, data)


def test_a_record_of_other_weights_says_nothing(model: Classifier, folder: Path, data: AuditDataset) -> None:
    write_evaluation(folder, evidence("0" * 64))
    with pytest.raises(NotApplicable, match=r"cannot be used: .*about other weights"):
        run(model, data)


@pytest.mark.parametrize("content", [b"{", b"null", b"[" * 100_000, b'{"schema": 1}', b'{"test_auroc": {"value": 1}}'])
def test_a_hostile_record_is_skipped_with_the_reason(
    content: bytes, model: Classifier, folder: Path, data: AuditDataset
) -> None:
    (folder / EVIDENCE).write_bytes(content)
    with pytest.raises(NotApplicable, match=r"the record of the training cannot be used: .*evaluation\.json"):
        run(model, data)


def test_a_hostile_log_costs_only_the_curve(model: Classifier, folder: Path, data: AuditDataset) -> None:
    (folder / "metrics.jsonl").write_bytes(b"\xff\n")
    found = shown(model, folder, data)
    assert not any(isinstance(chart, Lines) for chart in found.charts)
    assert any(
        words.startswith("No learning curve: ") and "line 1 is no JSON object" in words for words in found.caveats
    )


def test_a_long_log_is_drawn_in_few_points(model: Classifier, folder: Path, data: AuditDataset) -> None:
    lines = [json.dumps({"event": "steps", "epoch": 1, "step": step, "loss": 1 / step}) for step in range(1, 3000)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    found = shown(model, folder, data)
    (curve,) = (chart for chart in found.charts if isinstance(chart, Lines))
    assert len(curve.series[0].x) <= 401
    assert curve.series[0].y[-1] == 1 / 2999


def test_one_finding_of_several_is_not_held_beside_the_mean(folder: Path, data: AuditDataset) -> None:
    """The record is of the whole model; the audit sees one finding of it."""
    module = preset("tiny-qwen3", seed=0)
    module.config.problem_type = "multi_label_classification"
    save_model(module, folder)
    whole = xvision.load_model(folder, device="cpu")
    write_evaluation(folder, evidence(whole.fingerprint))
    view = finding_view(whole, "lesion")
    assert view.fingerprint != whole.fingerprint
    named = replace(data, table=data.table.assign(label=data.table["label"].replace({"normal": "no lesion"})))
    found = run(view, named)
    assert not any("do not agree" in words for words in found.caveats)
    forests = {chart.title: chart for chart in found.charts if isinstance(chart, Forest)}
    labels = [mark.label for mark in forests["Before and after training: AUROC"].marks]
    assert "audited data, measured here" not in labels


def test_a_whole_audit_keeps_the_page(model: Classifier, folder: Path, data: AuditDataset, tmp_path: Path) -> None:
    write_evaluation(folder, evidence(model.fingerprint))
    xvision.run_audit(model, data, out=tmp_path / "run", only=["training"])
    record = open_run(tmp_path / "run").record("training")
    assert record.status == "ok"
    (folder / EVIDENCE).write_text("{")  # the same run again: a page about another record is not kept
    xvision.run_audit(model, data, out=tmp_path / "run", only=["training"])
    broken = open_run(tmp_path / "run").record("training")
    assert broken.status == "skipped"
    assert "cannot be used" in broken.reason
    write_evaluation(folder, evidence(model.fingerprint))
    assert codec.plain(read_evaluation(folder))["fingerprint"] == model.fingerprint
