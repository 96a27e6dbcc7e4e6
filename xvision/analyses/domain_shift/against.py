"""The audited images against those that the model comes from: is there a shift, where, and how large?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import images, text
from xvision.analyses.domain_shift.part import SIGNIFICANT, Part, shares_of_classes, spoken_p, worded
from xvision.audit import Audit, metric
from xvision.charts import Axis, Forest, Images, Mark, Reference, Table
from xvision.engine import Batch, Rows
from xvision.methods.intervals import Estimate, Sample, difference, not_estimable
from xvision.methods.shift.comparison import Compared, compared, over_places
from xvision.methods.shift.image_statistics import STATISTICS, image_statistics
from xvision.methods.shift.prevalence import Decided, LabelShift, label_shift
from xvision.methods.shift.two_sample import Comparison, Sets, Told, classifier_test, decisions_test, mmd
from xvision.result import Case, Metric, Where

_PICTURED = 6
_LARGEST_ODDS = 30.0
"""Log-odds are cut here: a predictions file may hold a probability of 0."""
_HOW = {
    "images": "Holm over the image statistics",
    "embeddings": "Holm over MMD and classifier",
    "outputs": "Bonferroni over scores and decisions",
    "prevalence": "one test",
}


class _Row(NamedTuple):
    """One thing compared: in which place, how large, by which test; ``effect`` is in ``unit``."""

    place: str
    what: str
    where: Where
    difference: Estimate | None
    auroc: Estimate | None
    test: str
    p_value: float | None
    reason: str


def against(audit: Audit, reference: Audit, fewest: int, permutations: int, resamples: int, most: int) -> Part:
    """Images, embeddings, outputs and labels of both sides, under one control of false alarms."""
    part = Part()
    counts = [len(np.unique(side.patients)) for side in (reference, audit)]
    if min(counts) < fewest:
        why = (
            f"insufficient evidence: {counts[0]} reference and {counts[1]} audited patients, fewer than {fewest} on one side;"
            " would be settled by more patients"
        )
        part.metrics.append(Metric("shift_p", None, reason=why))
        part.sentences.append(f"Against {reference.called}: {why}.")
        return part
    shown = _Samples(audit.sample(most), reference.sample(most))
    pictured, statistics = _image_rows(audit, reference, shown)
    embedded, told = _embedding_rows(audit, reference, shown, permutations, resamples)
    rows = [*pictured, *embedded, *_output_rows(audit, reference), *_label_rows(audit, reference)]
    adjusted = _controlled(rows)
    for row, p_value in zip(rows, adjusted, strict=True):
        part.metrics += _metrics(row, p_value, sum(counts), _places(rows))
    part.metrics += _shares_moved(audit, reference)
    found = _prevalence(audit, reference, resamples)
    if found is not None:
        part.metrics += _prevalence_metrics(audit, found)
    part.charts += [_forest(rows, reference), _table(rows, adjusted, reference)]
    part.sentences.append(_said(rows, adjusted, reference, counts))
    part.caveats += _caveats(audit, reference, rows, shown)
    _show(audit, part, shown.audited, statistics, told)
    return part


class _Samples(NamedTuple):
    """Positions of the cases whose images and embeddings are compared."""

    audited: np.ndarray
    reference: np.ndarray


def _statistics(batch: Batch) -> Rows:
    return image_statistics(batch.pixels.cpu().numpy())


def _image_rows(audit: Audit, reference: Audit, shown: _Samples) -> tuple[list[_Row], dict[str, np.ndarray]]:
    why = audit.can("pixels")
    if why is not None:
        return [_missing("images", "image statistics", {"statistic": "any"}, why)], {}
    later = audit.map(_statistics, positions=shown.audited, task="image statistics")
    before = reference.map(_statistics, positions=shown.reference, task="image statistics")
    before = {name: before[name] for name in STATISTICS}
    rows = compared(before, later, reference.patients[shown.reference], audit.patients[shown.audited])
    return [_row("images", STATISTICS[each.name], {"statistic": each.name}, each) for each in rows], later


def _row(place: str, what: str, where: Where, each: Compared) -> _Row:
    return _Row(place, what, where, each.difference, each.auroc, "Kolmogorov-Smirnov", each.p_value, "")


def _missing(place: str, what: str, where: Where, why: str) -> _Row:
    return _Row(place, what, where, not_estimable(why), not_estimable(why), "", None, why)


def _embedding_rows(
    audit: Audit, reference: Audit, shown: _Samples, permutations: int, resamples: int
) -> tuple[list[_Row], Told | None]:
    why = audit.can("embeddings")
    if why is not None:
        return [_missing("embeddings", "embeddings", {"test": name}, why) for name in ("mmd", "classifier")], None
    sets = Sets(
        reference.embeddings[shown.reference],
        audit.embeddings[shown.audited],
        reference.patients[shown.reference],
        audit.patients[shown.audited],
    )
    found: Comparison = mmd(sets, rng=audit.rng("mmd"), permutations=permutations, resamples=resamples)
    told = classifier_test(sets, rng=audit.rng("classifier"))
    why = found.effect.reason or ""
    kernel = f"maximum mean discrepancy, {permutations} permutations of patients"
    rows = [
        _Row("embeddings", "MMD², Gaussian kernel", {"test": "mmd"}, found.effect, None, kernel, found.p_value, why),
        _Row(
            "embeddings", "Classifier of the two sides", {"test": "classifier"}, None, told.effect,
            "logistic regression, two halves by patient", told.p_value, told.effect.reason or "",
        ),
    ]  # fmt: skip
    return rows, told


def _output_rows(audit: Audit, reference: Audit) -> list[_Row]:
    """The model's own outputs, the best reduction of an image where labels may shift (Rabanser et al. 2019)."""
    logits = [side.predictions.logits for side in (reference, audit)]
    if audit.decision.positive is not None:
        name = audit.classes[audit.positive]
        signed = [
            {name: np.clip(each[:, audit.positive] - each[:, 1 - audit.positive], -_LARGEST_ODDS, _LARGEST_ODDS)}
            for each in logits
        ]
        what = "Log-odds of"
    else:
        signed = [
            {name: side.predictions.probabilities[:, code] for code, name in enumerate(audit.classes)}
            for side in (reference, audit)
        ]
        what = "Probability of"
    found = compared(signed[0], signed[1], reference.patients, audit.patients)
    rows = [_row("outputs", f"{what} {each.name}", {"output": each.name}, each) for each in found]
    sets = Sets(reference.predictions.decisions, audit.predictions.decisions, reference.patients, audit.patients)
    p_value = decisions_test(sets, len(audit.classes))
    why = "" if p_value is not None else "every decision is the same"
    return [*rows, _Row("outputs", "Decisions", {"test": "decisions"}, None, None, "chi-square", p_value, why)]


def _label_rows(audit: Audit, reference: Audit) -> list[_Row]:
    if not (audit.labelled and reference.labelled):
        why = f"{reference.called} has cases without a label that is a class of the model"
        return [_missing("prevalence", "Labels", {"test": "labels"}, why)]
    p_value = decisions_test(
        Sets(reference.labels, audit.labels, reference.patients, audit.patients), len(audit.classes)
    )
    why = "" if p_value is not None else "every label is the same"
    return [_Row("prevalence", "Labels", {"test": "labels"}, None, None, "chi-square", p_value, why)]


def _places(rows: list[_Row]) -> list[str]:
    """The places in which something could be tested."""
    return list(dict.fromkeys(row.place for row in rows if row.p_value is not None))


def _controlled(rows: list[_Row]) -> list[float | None]:
    """p-values (one per row) under one control for all of them."""
    names = list(dict.fromkeys(row.place for row in rows))
    families = {name: ([row.p_value for row in rows if row.place == name], name == "outputs") for name in names}
    return [value for values in over_places(families).values() for value in values]


def _metrics(row: _Row, p_value: float | None, patients: int, places: list[str]) -> list[Metric]:
    found = []
    if row.difference is not None:
        name = "mmd_squared" if row.where.get("test") == "mmd" else "standardised_difference"
        found.append(metric(name, row.difference, where=row.where))
    if row.auroc is not None:
        found.append(metric("shift_auroc", row.auroc, where=row.where))
    if p_value is None:
        return [*found, Metric("shift_p", None, where=row.where, reason=row.reason)]
    how = f"{row.test}; {_HOW[row.place]}, times {text.plural(len(places), 'place')}"
    return [*found, Metric("shift_p", p_value, n=patients, where=row.where, interval=how)]


def _shares_moved(audit: Audit, reference: Audit) -> list[Metric]:
    """How far the shares of decisions and of labels have moved, of each class or of the positive one."""
    kinds = {"selection_rate_difference": [(side.predictions.decisions, side.patients) for side in (audit, reference)]}
    if audit.labelled and reference.labelled:
        kinds["prevalence_difference"] = [(side.labels, side.patients) for side in (audit, reference)]
    return [
        metric(name, difference(*(Sample(values == code, patients) for values, patients in sides)), where=where)
        for name, sides in kinds.items()
        for code, where in _classes(audit)
    ]


def _classes(audit: Audit) -> list[tuple[int, Where]]:
    if audit.decision.positive is not None:
        return [(audit.positive, {})]
    return [(code, {"class": name}) for code, name in enumerate(audit.classes)]


def _prevalence(audit: Audit, reference: Audit, resamples: int) -> LabelShift | None:
    if not reference.labelled:
        return None
    sides = [Decided(side.predictions.decisions, side.patients) for side in (reference, audit)]
    rng = audit.rng("label shift")
    return label_shift(sides[0], reference.labels, sides[1], len(audit.classes), rng=rng, resamples=resamples)


def _prevalence_metrics(audit: Audit, found: LabelShift) -> list[Metric]:
    names = (("estimated_prevalence", found.prevalence), ("label_shift_weight", found.weights))
    return [metric(name, values[code], where=where) for name, values in names for code, where in _classes(audit)]


def _forest(rows: list[_Row], reference: Audit) -> Forest:
    marks = []
    for row in rows:
        if row.auroc is None:
            continue
        found = row.auroc
        note = row.place if found.value is not None else f"not estimable ({found.reason})"
        marks.append(Mark(text.opening(row.what), found.value, found.low, found.high, note))
    known = [mark for mark in marks if mark.value is not None]
    most = max(known, key=lambda mark: abs((mark.value or 0.5) - 0.5), default=None)
    alt = (
        "Nothing could be compared."
        if most is None
        else f"Farthest apart: {most.label}, AUROC {text.number(most.value)}."
    )
    return Forest(
        f"How well one number tells these images from {reference.called}",
        alt,
        Axis("AUROC of current against reference", low=0, high=1),
        tuple(marks),
        (Reference("cannot be told apart", 0.5, "x"),),
    )


def _table(rows: list[_Row], adjusted: list[float | None], reference: Audit) -> Table:
    return Table(
        f"What has shifted against {reference.called}: size first, then p",
        "One row per number compared: its difference, its AUROC, the test and p under control of all tests together.",
        ("Place", "What", "Difference", "AUROC", "Test", "p, controlled", "p, alone"),
        tuple(
            (
                row.place, row.what, None if row.difference is None else worded(row.difference),
                None if row.auroc is None else worded(row.auroc), row.test or row.reason, p_value, row.p_value,
            )
            for row, p_value in zip(rows, adjusted, strict=True)
        ),
    )  # fmt: skip


def _said(rows: list[_Row], adjusted: list[float | None], reference: Audit, counts: list[int]) -> str:
    """Where a shift is seen, where none is, and where nothing could be looked at."""
    seen, unseen = [], []
    for place in _places(rows):
        pairs = [(row, p) for row, p in zip(rows, adjusted, strict=True) if row.place == place and p is not None]
        row, p_value = min(pairs, key=lambda pair: pair[1])
        if p_value > SIGNIFICANT:
            unseen.append(place)
            continue
        size = (
            f", AUROC {text.number(row.auroc.value)}" if row.auroc is not None and row.auroc.value is not None else ""
        )
        seen.append(f"{place} ({row.what}{size}, p {spoken_p(p_value)})")
    head = f"Against {reference.called} ({text.plural(counts[0], 'patient')}), "
    said = f"a shift is seen in {text.listing(seen)}" if seen else "no shift is seen"
    rest = f", none in {text.listing(unseen)}" if seen and unseen else f" in {text.listing(unseen)}" if unseen else ""
    missing = [place for place in dict.fromkeys(row.place for row in rows) if place not in _places(rows)]
    return head + said + rest + (f"; {text.listing(missing)} could not be compared." if missing else ".")


def _caveats(audit: Audit, reference: Audit, rows: list[_Row], shown: _Samples) -> list[str]:
    found = ["That no shift is seen does not show that there is none: small sets hide large ones."]
    for where, sample, whole in (("audited", shown.audited, audit), ("reference", shown.reference, reference)):
        if len(sample) < len(whole.ids):
            found.append(f"Images and embeddings were compared on {len(sample)} of {len(whole.ids)} {where} images.")
    found += [
        f"{text.opening(row.what)} were not compared: {row.reason}." for row in rows if row.reason and not row.test
    ]
    if (
        audit.labelled
        and reference.labelled
        and np.abs(shares_of_classes(audit) - shares_of_classes(reference)).max() > 0.1
    ):
        found.append(
            "Shares of classes differ by more than 0.1: a shift of images or outputs may be that of the mixture."
        )
    return list(dict.fromkeys(found))


def _show(
    audit: Audit, part: Part, positions: np.ndarray, statistics: dict[str, np.ndarray], told: Told | None
) -> None:
    """The audited cases least like the reference, and the numbers of every case compared."""
    columns = dict(statistics)
    unlike = np.full(len(positions), np.nan) if told is None else told.unlike
    judged = bool(np.isfinite(unlike).all())
    if judged:
        columns["unlike_reference"] = unlike
    if columns:
        part.tables["domain_shift"] = pd.DataFrame({"id": audit.ids[positions], **columns})
    if not judged or audit.can("pixels") is not None:
        return
    chosen = np.argsort(-unlike, kind="stable")[:_PICTURED]
    stored = []
    for place, pixels in zip(chosen, audit.pixels(positions[chosen]), strict=True):
        facts = {**audit.facts(int(positions[place])), "unlike the reference, log-odds": float(unlike[place])}
        picture = {"image": images.enlarged(images.photograph(pixels))}
        stored.append(Case(str(audit.ids[positions[place]]), facts, picture))
    part.cases = tuple(stored)
    alt = "One row per case: the image. The classifier is surest of these that they are no reference images."
    part.charts.append(Images("Images least like the reference", alt, tuple(case.id for case in stored), ("image",)))
