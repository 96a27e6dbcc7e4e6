"""Whether predicted probabilities can be taken at their word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from xvision import text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Bars, Chart, Forest, Lines, Mark, Reference, Series, Table
from xvision.methods.calibration import (
    Bin,
    ByChance,
    Chance,
    Strategy,
    calibrated_by_chance,
    ece,
    mce,
    reliability,
    root_of_squared,
    squared_calibration_error,
)
from xvision.methods.intervals import Estimate, bootstrap, not_estimable
from xvision.methods.proper_scores import brier, brier_part_estimates, log_losses, mean_loss
from xvision.methods.recalibration import Recalibration, calibration_slope_intercept, platt, temperature
from xvision.methods.recalibration_preview import FIGURES, Judged, Preview, judged, platt_logits, preview
from xvision.registry import analysis
from xvision.result import Better, Metric, Result, Where, spoken
from xvision.targets import declared_columns, frequent_classes
from xvision.tuning import tuning_cases

_SIGNIFICANT = 0.025
"""A figure of a calibrated model is above the central 95 % of its draws so often."""
_STREAMS: tuple[tuple[Strategy, str], ...] = (("width", "chance"), ("mass", "adaptive chance"))
_MOST_CLASSES = 20
_MOST_MARKS = 20
_MOST_ROWS = 40
_TWO_CLASSES = "Platt scaling is for two classes; the temperature covers several"


@analysis("Calibration", pillar="Calibration", need="scores", passes="1 forward on the validation split")
def calibration(audit: Audit, *, bins: int = 15, resamples: int = 1000, minimum: int = 10) -> Result:
    """When the model says p, does it come true p of the time?

    ECE is the mean gap between predicted probability and observed frequency over equal-width bins, ``adaptive_ece`` over bins of
    equally many images, MCE the gap of the worst bin. All three are biased upwards in small samples: their ``_if_calibrated``
    says what a perfectly calibrated model with the same predictions would show, and only a figure above that range is evidence of
    miscalibration. ``debiased_calibration_error`` (root mean square, Kumar 2019) has that bias removed, so groups of different
    size can be compared by it. Slope 1 and intercept 0 (Cox 1958; the intercept is calibration in the large) are ideal; a slope
    below 1 means predictions are too extreme. Brier = reliability − resolution + uncertainty + within bins, exactly. With more
    than two classes the confidence of the decided class is judged, except by the NLL, which is that of the true class, and by
    ``class``, each against the rest. Groups with fewer than ``minimum`` patients on either side are not estimated.

    ``recalibration`` previews what a temperature or Platt's line, fitted on the split "validation", would make of these figures
    here, taken as fitted. It is never applied to the model. Good calibration here says nothing about another prevalence or scanner.
    """
    subject = judged(audit.predictions.logits, audit.labels, audit.decision)
    probabilities, outcomes, patients = subject.probabilities, subject.outcomes, audit.patients
    chance = {
        kind: calibrated_by_chance(probabilities, outcomes, patients, bins=bins, strategy=kind, rng=audit.rng(stream))
        for kind, stream in _STREAMS
    }
    overall = _overall(audit, subject, chance, bins, resamples)
    parts = [*_groups(audit, subject, bins, resamples, minimum), *_classes(audit, bins, resamples, minimum)]
    fitted = _recalibrations(audit, bins, resamples)
    rows = reliability(probabilities, outcomes, patients, bins=bins)
    by = {item.name: item for item in overall}
    verdict = _verdict(chance["width"].ece if chance["width"] else None)
    summary = f"ECE {spoken(by['ece'])}, {verdict}; calibration slope {spoken(by['calibration_slope'])}."
    words = _words(audit)
    charts: list[Chart] = [_diagram(rows, chance["width"], words), _previews(audit, by, fitted), *_forests(parts, by)]
    charts += [_counts(rows, words), *_listed(parts)]
    metrics = (*overall, *parts, *(item for each in fitted.values() for item in each.metrics))
    summary = f"{summary} {_promise(fitted['temperature'])}"
    return Result(summary, metrics, tuple(charts), caveats=tuple(_caveats(audit, parts)))


def _words(audit: Audit) -> str:
    """What is judged."""
    if audit.decision.positive is not None:
        return f"probability of {audit.classes[audit.positive]}"
    return "confidence of the decided class"


def _overall(
    audit: Audit, subject: Judged, chance: Mapping[Strategy, ByChance | None], bins: int, resamples: int
) -> list[Metric]:
    cases = (subject.probabilities, subject.outcomes, audit.patients)
    wide, even = chance["width"], chance["mass"]
    patients = len(set(audit.patients))
    parts = brier_part_estimates(*cases, bins=bins, resamples=resamples, rng=audit.rng("brier parts"))
    logistic = calibration_slope_intercept(*cases)
    losses = log_losses(audit.predictions.logits, audit.labels)
    adaptive = ece(*cases, bins=bins, strategy="mass", resamples=resamples, rng=audit.rng("adaptive ece"))
    return [
        metric("ece", ece(*cases, bins=bins, resamples=resamples, rng=audit.rng("ece")), better="lower"),
        _by_chance("ece_if_calibrated", wide.ece if wide else None, patients),
        metric("calibration_slope", logistic.slope),
        metric("calibration_intercept", logistic.intercept),
        metric("observed_expected_ratio", _ratio(audit, subject, resamples)),
        metric("debiased_calibration_error", _debiased(audit, cases, bins, resamples, "all"), better="lower"),
        metric("adaptive_ece", adaptive, better="lower"),
        _by_chance("adaptive_ece_if_calibrated", even.ece if even else None, patients),
        metric("mce", mce(*cases, bins=bins, resamples=resamples, rng=audit.rng("mce")), better="lower"),
        _by_chance("mce_if_calibrated", wide.mce if wide else None, patients),
        metric("nll", mean_loss(losses, audit.patients, resamples=resamples, rng=audit.rng("nll")), better="lower"),
        metric("brier", brier(*cases, resamples=resamples, rng=audit.rng("brier")), better="lower"),
        metric("scaled_brier", parts.scaled, better="higher"),
        metric("brier_reliability", parts.reliability, better="lower"),
        metric("brier_resolution", parts.resolution, better="higher"),
        metric("brier_uncertainty", parts.uncertainty),
        metric("brier_within_bins", parts.within_bins),
    ]


def _by_chance(name: str, chance: Chance | None, patients: int) -> Metric:
    if chance is None:
        return Metric(name, None, reason="no cases")
    how = f"mean and central 95 % of draws; p = {text.number(chance.p_value)}"
    return Metric(name, chance.mean, chance.low, chance.high, patients, interval=how)


def _ratio(audit: Audit, subject: Judged, resamples: int) -> Estimate:
    """Observed events over the sum of probabilities."""
    hits, chances = subject.outcomes.astype(float), subject.probabilities
    return bootstrap(
        lambda weights: (weights @ hits) / np.maximum(weights @ chances, 1e-12),
        audit.patients,
        rng=audit.rng("observed over expected"),
        resamples=resamples,
    )


def _debiased(
    audit: Audit, cases: tuple[np.ndarray, np.ndarray, np.ndarray], bins: int, resamples: int, who: str
) -> Estimate:
    rng = audit.rng(f"debiased {who}")
    return root_of_squared(squared_calibration_error(*cases, bins=bins, strategy="mass", resamples=resamples, rng=rng))


def _groups(audit: Audit, subject: Judged, bins: int, resamples: int, minimum: int) -> Iterator[Metric]:
    """Each level of each column."""
    for column in declared_columns(audit):
        levels = audit.column(column)
        for level in np.unique(levels):
            member = levels == level
            cases = (subject.probabilities[member], subject.outcomes[member], audit.patients[member])
            yield from _part(audit, cases, {column: str(level)}, bins, resamples, minimum)


def _classes(audit: Audit, bins: int, resamples: int, minimum: int) -> Iterator[Metric]:
    """Each class against the rest, the most frequent ones; nothing for two classes, which mirror each other."""
    if audit.decision.positive is None:
        for code in sorted(frequent_classes(audit, _MOST_CLASSES)):
            cases = (audit.predictions.probabilities[:, code], audit.labels == code, audit.patients)
            yield from _part(audit, cases, {"class": audit.classes[code]}, bins, resamples, minimum)


def _part(
    audit: Audit,
    cases: tuple[np.ndarray, np.ndarray, np.ndarray],
    where: Where,
    bins: int,
    resamples: int,
    minimum: int,
) -> Iterator[Metric]:
    _, outcomes, patients = cases
    few = min(len(np.unique(patients[outcomes == side])) for side in (True, False))
    if few < minimum:
        reason = f"insufficient evidence: {text.plural(few, 'patient')} on the rarer side, {minimum} are needed"
        missing = not_estimable(reason, len(np.unique(patients)))
        slope = intercept = error = missing
    else:
        slope, intercept = calibration_slope_intercept(*cases)
        error = _debiased(audit, cases, bins, resamples, str(dict(where)))
    yield metric("calibration_slope", slope, where=where)
    yield metric("calibration_intercept", intercept, where=where)
    yield metric("debiased_calibration_error", error, better="lower", where=where)


class _Fitted(NamedTuple):
    """A recalibration fitted on the tuning split: its metrics and preview, or why there is none."""

    metrics: tuple[Metric, ...]
    preview: Preview | None
    why: str


def _recalibrations(audit: Audit, bins: int, resamples: int) -> dict[str, _Fitted]:
    """Temperature and Platt's line, by name."""
    tuning = tuning_cases(audit)
    usable, why = (None, tuning) if isinstance(tuning, str) else (tuning, "")
    logits, place = audit.predictions.logits, {"split": "validation"}
    size = temperature(usable.predictions.logits, usable.labels, usable.patients) if usable else not_estimable(why)
    line = _platt(audit, usable, why)
    cooled = logits / size.value if size.value is not None else None
    moved = None if line.slope.value is None else platt_logits(audit.scores, line, audit.positive)
    found = {}
    for name, after, fits in (
        ("temperature", cooled, {"temperature": size}),
        ("platt", moved, {"platt_slope": line.slope, "platt_intercept": line.intercept}),
    ):
        seen = None
        if after is not None:
            cases = (audit.labels, audit.patients, audit.decision)
            seen = preview(logits, after, *cases, rng=audit.rng(name), bins=bins, resamples=resamples)
        reason = next((fit.reason for fit in fits.values() if fit.reason), None) or ""
        fitted = tuple(metric(key, fit, where=place) for key, fit in fits.items())
        found[name] = _Fitted((*fitted, *_previewed(name, seen, reason)), seen, reason)
    return found


def _platt(audit: Audit, tuning: Audit | None, why: str) -> Recalibration:
    if audit.decision.positive is None:
        return Recalibration(not_estimable(_TWO_CLASSES), not_estimable(_TWO_CLASSES))
    if tuning is None:
        return Recalibration(not_estimable(why), not_estimable(why))
    return platt(tuning.scores, tuning.labels == tuning.positive, tuning.patients)


def _previewed(method: str, seen: Preview | None, reason: str) -> Iterator[Metric]:
    where = {"recalibration": method}
    for name in FIGURES:
        better: Better = "neither" if name == "calibration_slope" else "lower"
        after, change = seen.effects[name] if seen else (not_estimable(reason), not_estimable(reason))
        yield metric(name, after, better=better, where=where)
        yield metric(f"{name}_change", change, better=better, where=where)
    yield metric("decisions_changed", seen.changed if seen else not_estimable(reason), where=where)


def _previews(audit: Audit, overall: Mapping[str, Metric], fitted: Mapping[str, _Fitted]) -> Table:
    rows: list[tuple[str | int | None, ...]] = []
    for name in FIGURES:
        cells = [
            spoken(item) for each in fitted.values() for item in each.metrics if item.name in (name, f"{name}_change")
        ]
        rows.append((text.label(name), spoken(overall[name]), *cells))
    rows.append(
        ("Decisions at the deployed threshold", "", *(cell for each in fitted.values() for cell in _moves(audit, each)))
    )
    return Table(
        "What recalibration would change (a preview: nothing was applied to the model)",
        "Each figure as deployed, and under a temperature and Platt's line fitted on the split validation.",
        ("Figure", "As deployed", "Temperature", "Change by temperature", "Platt", "Change by Platt"),
        tuple(rows),
    )


def _moves(audit: Audit, fitted: _Fitted) -> tuple[str, str]:
    if fitted.preview is None:
        return "", f"not estimable ({fitted.why})"
    gained, lost = fitted.preview.gained, fitted.preview.lost
    if audit.decision.positive is None:
        return "", f"{gained + lost} change"
    return "", f"{gained} change to {audit.classes[audit.positive]}, {lost} from it"


def _promise(fitted: _Fitted) -> str:
    if fitted.preview is None:
        return f"No temperature could be previewed: {fitted.why}."
    change = metric("ece_change", fitted.preview.effects["ece"].change)
    count = text.plural(fitted.preview.gained + fitted.preview.lost, "decision")
    return (
        f"A temperature of {text.number(fitted.metrics[0].value)} fitted on the validation split would change the ECE by "
        f"{spoken(change)} and {count}; it was not applied."
    )


def _verdict(chance: Chance | None) -> str:
    if chance is None:
        return "not comparable with chance"
    usual = f"a calibrated model would show {text.interval(chance.low, chance.high)} by chance"
    return f"{'more than calibration allows' if chance.p_value <= _SIGNIFICANT else 'within what calibration allows'} ({usual})"


def _diagram(rows: tuple[Bin, ...], chance: ByChance | None, words: str) -> Lines:
    predicted = tuple(float(row.predicted) for row in rows)
    model = Series(
        "model, 95 % interval",
        predicted,
        tuple(row.observed.value for row in rows),
        tuple(row.observed.low for row in rows),
        tuple(row.observed.high for row in rows),
    )
    band: tuple[Series, ...] = ()
    if chance is not None:
        low, high = zip(*chance.bands, strict=True)
        band = (Series("a calibrated model, central 95 % in each bin", predicted, predicted, low, high, marks=False),)
    return Lines(
        title="Reliability diagram",
        alt="Observed frequency against mean predicted probability per bin; points below the diagonal are over-confident.",
        x=Axis(f"Mean predicted {words}", low=0, high=1),
        y=Axis("Observed frequency", low=0, high=1),
        series=(model, *band),
        diagonal="perfect calibration",
    )


def _counts(rows: tuple[Bin, ...], words: str) -> Bars:
    return Bars(
        title="Images per bin",
        alt="How many images each point of the reliability diagram rests on.",
        categories=tuple(f"{row.lower:.2f}" for row in rows),
        y=Axis("Images"),
        series={"images": tuple(float(row.cases) for row in rows)},
        x=Axis(f"Predicted {words} (lower bin edge)"),
    )


def _forests(parts: list[Metric], overall: Mapping[str, Metric]) -> Iterator[Forest]:
    """Slopes and intercepts of groups and classes that could be estimated, the largest ones."""
    for name, ideal in (("calibration_slope", 1.0), ("calibration_intercept", 0.0)):
        known = [item for item in parts if item.name == name and item.value is not None]
        largest = sorted(known, key=lambda item: -(item.n or 0))[:_MOST_MARKS]
        if not largest:
            continue
        far = max(largest, key=lambda item: abs((item.value or 0.0) - ideal))
        marks = [Mark("all", overall[name].value, overall[name].low, overall[name].high)]
        marks += [
            Mark(text.condition(item.where), item.value, item.low, item.high, f"n = {text.number(item.n, 'count')}")
            for item in known
            if item in largest
        ]
        yield Forest(
            f"{text.label(name)} by group, {ideal:g} is ideal",
            f"Furthest from {ideal:g}: {text.condition(far.where)}, {spoken(far)}. {len(largest)} of {len(known)} are shown.",
            Axis(text.label(name)),
            tuple(marks),
            (Reference("ideal", ideal, "x"),),
        )


def _listed(parts: list[Metric]) -> Iterator[Table]:
    if parts:
        places = list(dict.fromkeys(text.condition(item.where) for item in parts))
        cells = {(text.condition(item.where), item.name): item for item in parts}
        names = ("calibration_slope", "calibration_intercept", "debiased_calibration_error")
        rows = tuple(
            (place, cells[place, names[0]].n, *(spoken(cells[place, name]) for name in names))
            for place in places[:_MOST_ROWS]
        )
        yield Table(
            "Calibration of each group",
            f"{min(len(places), _MOST_ROWS)} of {text.plural(len(places), 'group')}: patients, slope, intercept, debiased error.",
            ("Group", "Patients", *(text.label(name) for name in names)),
            rows,
        )


def _caveats(audit: Audit, parts: list[Metric]) -> Iterator[str]:
    yield "Good calibration here says nothing about another prevalence or scanner."
    tuning = tuning_cases(audit)
    shared = 0 if isinstance(tuning, str) else len(set(tuning.patients) & set(audit.patients))
    if shared:
        words = f"{text.plural(shared, 'patient')} of the validation split {'is' if shared == 1 else 'are'}"
        yield f"{words} also audited: the preview is too favourable."
    if audit.operating.tuned:
        yield (
            "The threshold was chosen on the probabilities as they are. A recalibrated model needs one chosen anew, with which no"
            " decision would change; the preview keeps the number."
        )
    slopes = [item for item in parts if item.name == "calibration_slope"]
    if len(slopes) > 1:
        yield f"Of {len(slopes)} groups, one in 20 intervals misses the truth by chance alone."
    if audit.decision.positive is None and len(audit.classes) > _MOST_CLASSES:
        yield f"Only the {_MOST_CLASSES} most frequent of {len(audit.classes)} classes are shown one by one."
