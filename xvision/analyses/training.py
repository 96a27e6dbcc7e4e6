"""What the party that trained the model recorded of it: gained, forgotten, and thanks to which part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xvision import text
from xvision.audit import Audit
from xvision.charts import Axis, Chart, Forest, HeatMap, Lines, Mark, Reference, Series, Table
from xvision.errors import ModelError
from xvision.methods.intervals import Estimate, proportion
from xvision.methods.scores import auroc
from xvision.models.evidence import (
    MARGIN,
    BeforeAfter,
    Control,
    ControlTable,
    Evaluation,
    Figure,
    LearningCurve,
    Measure,
    Point,
    SiteMatrix,
    TrainingEvidence,
    contribution,
    read_curve,
    read_evaluation,
    sees_images,
    verdict,
)
from xvision.models.finding import FindingView
from xvision.models.protocols import Classifier
from xvision.registry import analysis
from xvision.result import Better, Metric, NotApplicable, Result, Where

_NO_RECORD = "the checkpoint brings no record of its training"
_MOST_POINTS = 400
_NOTHING = Reference("no difference", 0.0, "x")
_RECORDED = (
    "Every figure of this analysis was recorded by the party that trained the model; none was measured by this audit. The record "
    "belongs to the audited weights (the fingerprints agree), but whether it is true cannot be seen from it."
)
_GONE = "What the model was before training cannot be measured again: those weights are not part of the checkpoint."


@analysis("Training", pillar="Performance", need="scores", passes="none beyond the clean predictions")
def training(audit: Audit, *, margin: float = MARGIN) -> Result:
    """What did training do, and does the language model contribute?

    These figures travel with the checkpoint and were recorded by whoever trained it; the audit checks that they are about the
    same weights and shows them, it does not measure them. ``gain_over_control`` is the model minus something simpler on the
    same patients: the commonest class, a logistic regression on pixels, the patch stem without a body, a body frozen at random
    or pretrained weights (Lu et al., 2021). ``training_change`` and ``site_change`` are after minus before. A difference whose whole
    interval lies within ± ``margin`` counts as none. ``accuracy_with_wrong_image`` gives each case another patient's image: what
    is left above chance does not come from the image. Controls were trained with the model's plan; with one of their own
    they may do better, so "adds" is weaker evidence than "no better than".
    """
    whole = audit.model.inner if isinstance(audit.model, FindingView) else audit.model
    folder, evidence = _evidence(whole, audit.fingerprints[0] if whole is audit.model else whole.fingerprint)
    curve, broken = _curve(folder)
    own = _own(audit) if whole is audit.model else None
    metrics = [
        *_split_metrics(evidence),
        *_control_metrics(evidence),
        *_site_metrics(evidence),
        *_blind_metrics(evidence),
    ]
    charts = [*_control_charts(evidence.controls, margin), *_before_after(evidence.splits, own, margin)]
    charts += [chart for matrix in evidence.sites for chart in _site_charts(matrix, margin)]
    charts += _curve_charts(curve)
    if not metrics:
        raise NotApplicable(f"{_NO_RECORD}: its record holds no figure")
    caveats = (_RECORDED, *_warnings(evidence, margin), *_disagreement(evidence, own), *broken, _GONE)
    return Result(_summary(evidence, margin), tuple(metrics), tuple(charts), caveats=caveats)


def _evidence(model: Classifier, fingerprint: str) -> tuple[Path, TrainingEvidence]:
    """The record beside the weights; NotApplicable without one, or with one that cannot be used."""
    source = model.description.get("source")
    folder = Path(str(source))
    if source is None or not folder.is_dir():
        raise NotApplicable(_NO_RECORD)
    try:
        found = read_evaluation(folder, fingerprint=fingerprint)
    except ModelError as problem:
        raise NotApplicable(f"the record of the training cannot be used: {problem}") from None
    if found is None:
        raise NotApplicable(_NO_RECORD)
    return folder, found


def _curve(folder: Path) -> tuple[LearningCurve | None, tuple[str, ...]]:
    """The learning curve, or why it is not shown."""
    try:
        return read_curve(folder), ()
    except ModelError as problem:
        return None, (f"No learning curve: {problem}",)


class Own(NamedTuple):
    """What this audit itself measures on its data, to hold beside the record."""

    measure: Measure
    estimate: Estimate


def _own(audit: Audit) -> Own:
    if audit.decision.positive is None:
        return Own("accuracy", proportion(audit.correct, audit.patients))
    return Own("auroc", auroc(audit.scores, audit.labels == audit.positive, audit.patients))


def _split_metrics(evidence: TrainingEvidence) -> Iterator[Metric]:
    for part in evidence.splits:
        for when, found in (("before", part.before), ("after", part.after)):
            if found is not None:
                yield from _evaluation_metrics(found, {"split": part.split, "when": when})
        if part.change is not None:
            where: Where = {"split": part.split, "measure": part.change.measure}
            yield _metric("training_change", part.change.figure, where)
        worst = part.after.worst_group
        if worst is not None:
            place: Where = {
                "split": part.split, "column": worst.column, "level": worst.level, "measure": worst.measure,
            }  # fmt: skip
            yield _metric("recorded_worst_group", worst.figure, place)


def _evaluation_metrics(found: Evaluation, where: Where) -> Iterator[Metric]:
    yield _metric("recorded_auroc", found.auroc, where)
    yield _metric("recorded_accuracy", found.accuracy, where)
    yield _metric("recorded_balanced_accuracy", found.balanced_accuracy, where)


def _control_metrics(evidence: TrainingEvidence) -> Iterator[Metric]:
    for row in evidence.controls.rows if evidence.controls else ():
        yield _metric("recorded_auroc", row.auroc, {"control": row.name})
        yield _metric("recorded_accuracy", row.accuracy, {"control": row.name})
        yield _metric("gain_over_control", row.gain.figure, {"control": row.name, "measure": row.gain.measure})


def _site_metrics(evidence: TrainingEvidence) -> Iterator[Metric]:
    for matrix in evidence.sites:
        for model, row in zip(matrix.models, matrix.cells, strict=True):
            for site, cell in zip(matrix.sites, row, strict=True):
                where: Where = {"column": matrix.column, "site": site, "model": model}
                yield _metric("recorded_auroc", cell.auroc, where)
                yield _metric("recorded_accuracy", cell.accuracy, where)
        for site, change in zip(matrix.sites, matrix.changes, strict=False):
            place: Where = {"column": matrix.column, "site": site, "measure": change.measure}
            yield _metric("site_change", change.figure, place)


def _blind_metrics(evidence: TrainingEvidence) -> Iterator[Metric]:
    if evidence.blind is not None:
        yield _metric("accuracy_with_wrong_image", evidence.blind.shuffled, {"split": "test"}, "lower")
        yield _metric("accuracy_lost_with_wrong_image", evidence.blind.drop, {"split": "test"})


def _metric(name: str, found: Figure, where: Where, better: Better = "higher") -> Metric:
    return Metric(
        name, found.value, found.low, found.high, found.n, "", better, where, found.reason, found.method
    )  # fmt: skip


def _control_charts(table: ControlTable | None, margin: float) -> Iterator[Chart]:
    if table is None:
        return
    measure: Measure = "accuracy" if table.auroc.value is None else "auroc"
    rows = [_mark("the model", getattr(table, measure))]
    rows += [_mark(row.name, getattr(row, measure)) for row in table.rows]
    yield Forest(
        title=f"The model and what is reached without parts of it: {text.label(measure)} as recorded",
        alt=f"{text.label(measure)} of the model and of each control, recorded on the trainer's test cases.",
        value=Axis(f"Recorded {text.label(measure)}", low=0, high=1),
        marks=tuple(rows),
    )
    gains = [_mark(row.name, row.gain.figure, contribution(row, margin)) for row in table.rows]
    yield Forest(
        title="What the model gains over each control",
        alt="Difference between the model and each control on the same patients; above 0 the model is better.",
        value=Axis("Model minus control, same patients"),
        marks=tuple(gains),
        references=(_NOTHING,),
    )
    yield Table(
        title="Controls",
        alt="Each control with its weights, its figures, and what the model's gain over it says.",
        columns=("Control", "Weights trained", "AUROC", "Accuracy", "Model minus control", "So", "Note"),
        rows=tuple(_control_row(row, margin) for row in table.rows),
    )


def _control_row(row: Control, margin: float) -> tuple[str | int, ...]:
    gain = f"{text.label(row.gain.measure)} {_said(row.gain.figure)}"
    return row.name, row.trained, _said(row.auroc), _said(row.accuracy), gain, contribution(row, margin), row.note


def _before_after(parts: Sequence[BeforeAfter], own: Own | None, margin: float) -> Iterator[Chart]:
    measure: Measure = "auroc" if own is None else own.measure
    marks = []
    for part in parts:
        if part.before is not None:
            marks.append(_mark(f"{part.split}, before training", getattr(part.before, measure)))
        said = "" if part.change is None else verdict(part.change.figure, margin)
        marks.append(_mark(f"{part.split}, after training", getattr(part.after, measure), said))
    if marks and own is not None:
        marks.append(_mark("audited data, measured here", own.estimate))
    if marks:
        yield Forest(
            title=f"Before and after training: {text.label(measure)}",
            alt="What was recorded before and after training on each split, and what this audit measured on its own data.",
            value=Axis(text.label(measure), low=0, high=1),
            marks=tuple(marks),
        )


def _site_charts(matrix: SiteMatrix, margin: float) -> Iterator[Chart]:
    known = any(cell.auroc.value is not None for row in matrix.cells for cell in row)
    measure: Measure = "auroc" if known else "accuracy"
    yield HeatMap(
        title=f"Models by {matrix.column}: {text.label(measure)} as recorded",
        alt=f"{text.label(measure)} of each model, oldest first, at each {matrix.column}.",
        columns=matrix.sites,
        rows=matrix.models,
        values=tuple(tuple(getattr(cell, measure).value for cell in row) for row in matrix.cells),
        x_label=text.label(matrix.column),
        y_label="Model",
        low=0.0,
        high=1.0,
        better="higher",
    )
    if matrix.changes:
        pairs = zip(matrix.sites, matrix.changes, strict=True)
        marks = [
            _mark(site, change.figure, f"{text.label(change.measure)}: {verdict(change.figure, margin)}")
            for site, change in pairs
        ]
        yield Forest(
            title=f"What the last training changed, by {matrix.column}",
            alt=f"Last model minus the one before it at each {matrix.column}; below 0 it forgot.",
            value=Axis("After minus before, same patients"),
            marks=tuple(marks),
            references=(_NOTHING,),
        )


def _curve_charts(curve: LearningCurve | None) -> Iterator[Chart]:
    named = (("Training loss", curve.loss), ("Validation AUROC", curve.auroc)) if curve else ()
    for name, points in named:
        if points:
            shown = _thinned(points)
            x, y = tuple(point.epoch for point in shown), tuple(point.value for point in shown)
            yield Lines(
                title=f"{name} as logged",
                alt=f"{name} from {text.number(y[0])} at epoch {x[0]:.1f} to {text.number(y[-1])} at epoch {x[-1]:.0f}.",
                x=Axis("Epoch"),
                y=Axis(name),
                series=(Series(name, x, y, marks=len(shown) <= 40),),
            )


def _thinned(points: Sequence[Point]) -> list[Point]:
    step = -(-len(points) // _MOST_POINTS)
    return [*points[:-1:step], points[-1]]


def _warnings(evidence: TrainingEvidence, margin: float) -> Iterator[str]:
    """What a reader must not overlook, drawn from the figures; then what the trainer warned of."""
    rows = evidence.controls.rows if evidence.controls else ()
    for row in rows:
        figure = row.gain.figure
        if figure.value is not None and verdict(figure, margin) != "better":
            yield f"The model is not shown to beat the control {row.name!r}: {contribution(row, margin)} ({_said(figure)})."
    for matrix in evidence.sites:
        worse = _worse(matrix, margin)
        if worse:
            yield f"Training made the model worse at {text.listing(worse)} ({matrix.column}): it forgot."
    if evidence.blind is not None:
        yield f"Given another patient's image: {sees_images(evidence.blind)}."
    if any(part.after.worst_group is not None for part in evidence.splits):
        yield "The worst group is the smallest of several figures, which is lower than the truth by chance alone."
    yield from (f"The trainer's own warning: {words}" for words in evidence.warnings)


def _worse(matrix: SiteMatrix, margin: float) -> list[str]:
    pairs = zip(matrix.sites, matrix.changes, strict=False)
    return [site for site, change in pairs if verdict(change.figure, margin) == "worse"]


def _disagreement(evidence: TrainingEvidence, own: Own | None) -> Iterator[str]:
    """The audit's own figure beside the recorded one, when their intervals do not meet."""
    part = evidence.split("test")
    if part is None or own is None:
        return
    measure, measured = own
    recorded = getattr(part.after, measure)
    if None in (recorded.low, measured.low):
        return
    if recorded.low > measured.high or measured.low > recorded.high:
        yield (
            f"The recorded test {text.label(measure)} {_said(recorded)} and this audit's own {_said(measured)} do not agree: "
            "the data differ, or the record is not reliable."
        )


def _summary(evidence: TrainingEvidence, margin: float) -> str:
    parts = []
    test = evidence.split("test") or next(iter(evidence.splits), None)
    if test is not None:
        measure: Measure = "accuracy" if test.after.auroc.value is None else "auroc"
        before = "" if test.before is None else f", before training {text.number(getattr(test.before, measure).value)}"
        parts.append(f"{test.split} {text.label(measure)} {_said(getattr(test.after, measure))}{before}")
    stem = evidence.controls.row("stem only") if evidence.controls else None
    if stem is not None:
        parts.append(f"over its patch stem alone: {contribution(stem, margin)}, {_said(stem.gain.figure)}")
    forgotten = [site for matrix in evidence.sites for site in _worse(matrix, margin)]
    if forgotten:
        parts.append(f"worse than before at {text.listing(forgotten)}")
    return f"As recorded by the trainer, not measured here: {'; '.join(parts) or 'figures below'}."


def _said(found: Figure | Estimate) -> str:
    return text.value(found.value, found.low, found.high, reason=found.reason)


def _mark(label: str, found: Figure | Estimate, note: str = "") -> Mark:
    """One row of a forest; without a value the note says why."""
    return Mark(
        label, found.value, found.low, found.high, note or f"n = {found.n}" if found.value is not None else _said(found)
    )
