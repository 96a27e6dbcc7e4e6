"""What accuracy the probabilities promise without labels, beside the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xvision import text
from xvision.analyses.domain_shift.part import Part, worded
from xvision.audit import Audit, metric
from xvision.charts import Axis, Forest, Mark, Reference, Table
from xvision.methods.shift.label_free import FAILS, Answered, Expected, expected_accuracy, recalibrated
from xvision.result import Metric

_HEADLINE = "CM-ATC"


def without_labels(audit: Audit, reference: Audit, fewest: int, resamples: int) -> Part:
    """Each method's estimate, how far it is off, and the note that it may fail."""
    part = Part(caveats=[FAILS])
    why = _unfit(audit, reference, fewest)
    if why:
        part.metrics.append(Metric("estimated_accuracy", None, reason=why))
        return replace(part, caveats=[f"Accuracy without labels was not estimated: {why}."])
    sides = [_answered(side, reference) for side in (reference, audit)]
    found = expected_accuracy(
        sides[0], sides[1], positive=audit.decision.positive, rng=audit.rng("label free"), resamples=resamples
    )
    for each in found:
        where = {"method": each.method}
        part.metrics.append(metric(f"estimated_{each.figure}", each.estimate, better="higher", where=where))
        if each.error is not None:
            part.metrics.append(metric(f"estimated_{each.figure}_error", each.error, where=where))
    truth = _truth(audit)
    part.charts += [_forest(figure, found, truth) for figure in truth]
    part.charts.append(_table(found, truth))
    part.sentences.append(_said(found, truth))
    if reference.called == "the split 'train'":
        part.caveats.append(
            "The reference is what the model was trained on: estimates without labels are then too high."
        )
    return part


def _unfit(audit: Audit, reference: Audit, fewest: int) -> str:
    if not reference.labelled:
        return f"not applicable: {reference.called} has cases without a label that is a class of the model"
    counts = [len(np.unique(side.patients)) for side in (reference, audit)]
    if min(counts) < fewest:
        return (
            f"insufficient evidence: {counts[0]} reference and {counts[1]} audited patients, fewer than {fewest} on one side;"
            " would be settled by more patients"
        )
    if len(np.unique(reference.labels)) < 2:
        return f"not applicable: {reference.called} has labels of one class only"
    return ""


def _answered(side: Audit, reference: Audit) -> Answered:
    probabilities = recalibrated(reference.predictions.logits, reference.labels, side.predictions.logits)
    labels = side.labels if side.labelled else None
    return Answered(probabilities, side.predictions.decisions, labels, side.patients)


def _truth(audit: Audit) -> dict[str, float | None]:
    correct, found = audit.correct, {"accuracy": float(audit.correct.mean())}
    if audit.decision.positive is None:
        return {**found}
    ill = audit.labels == audit.positive
    sides = {"sensitivity": ill, "specificity": ~ill}
    return {**found, **{name: float(correct[part].mean()) if part.any() else None for name, part in sides.items()}}


def _forest(figure: str, found: tuple[Expected, ...], truth: dict[str, float | None]) -> Forest:
    marks = []
    for each in found:
        if each.figure == figure:
            estimate = each.estimate
            note = "" if estimate.value is not None else f"not estimable ({estimate.reason})"
            marks.append(Mark(each.method, estimate.value, estimate.low, estimate.high, note))
    known = truth[figure]
    return Forest(
        f"{text.label(figure)} expected without labels, and the truth",
        f"The truth is {text.number(known)}.",
        Axis(f"{text.label(figure)}", low=0, high=1),
        tuple(marks),
        () if known is None else (Reference("truth", known, "x"),),
    )


def _table(found: tuple[Expected, ...], truth: dict[str, float | None]) -> Table:
    return Table(
        "Expected without labels, beside the truth",
        f"One row per figure and method. {FAILS}",
        ("Figure", "Method", "Expected", "Truth", "Expected less truth"),
        tuple(
            (
                text.label(each.figure), each.method, worded(each.estimate), truth[each.figure],
                None if each.error is None else worded(each.error),
            )
            for each in found
        ),
    )  # fmt: skip


def _said(found: tuple[Expected, ...], truth: dict[str, float | None]) -> str:
    each = next(item for item in found if item.figure == "accuracy" and item.method == _HEADLINE)
    return f"Without labels, {_HEADLINE} expects an accuracy of {worded(each.estimate)}; it is {text.number(truth['accuracy'])}."
