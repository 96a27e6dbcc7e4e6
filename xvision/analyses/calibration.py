"""Whether predicted probabilities can be taken at their word."""

from __future__ import annotations

import numpy as np

from xvision import text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Bars, Lines, Series
from xvision.methods.calibration import Bin, Chance, brier, ece, ece_null, reliability
from xvision.methods.recalibration import calibration_slope_intercept
from xvision.registry import analysis
from xvision.result import Metric, Result, spoken

_SIGNIFICANT = 0.05


@analysis("Calibration", pillar="Calibration", need="scores", passes="none beyond the clean predictions")
def calibration(audit: Audit, *, bins: int = 15, resamples: int = 1000) -> Result:
    """When the model says p, does it come true p of the time?

    ECE is the mean gap between predicted probability and observed frequency over equal-width bins. It is biased upwards in small
    samples: ``ece_if_calibrated`` says what a perfectly calibrated model with the same predictions would show, and only an ECE
    above that range is evidence of miscalibration. Slope 1 and intercept 0 (logistic recalibration, Cox 1958) are ideal; a slope
    below 1 means predictions are too extreme. With more than two classes the confidence of the decided class is judged. Good
    calibration here says nothing about another prevalence or scanner.
    """
    probabilities, outcomes, subject = _subject(audit)
    patients = audit.patients
    found = ece(probabilities, outcomes, patients, bins=bins, resamples=resamples, rng=audit.rng("ece"))
    chance = ece_null(probabilities, outcomes, patients, bins=bins, rng=audit.rng("chance"))
    logistic = calibration_slope_intercept(probabilities, outcomes, patients)
    metrics = (
        metric("ece", found, better="lower"),
        _by_chance(chance, found.n),
        metric(
            "brier",
            brier(probabilities, outcomes, patients, resamples=resamples, rng=audit.rng("brier")),
            better="lower",
        ),
        metric("calibration_slope", logistic.slope),
        metric("calibration_intercept", logistic.intercept),
    )
    rows = reliability(probabilities, outcomes, patients, bins=bins)
    summary = f"ECE {spoken(metrics[0])}, {_verdict(chance)}; calibration slope {spoken(metrics[3])}."
    return Result(summary, metrics, (_diagram(rows, subject), _counts(rows, subject)))


def _by_chance(chance: Chance | None, patients: int) -> Metric:
    if chance is None:
        return Metric("ece_if_calibrated", None, reason="no cases")
    return Metric(
        "ece_if_calibrated", chance.mean, chance.low, chance.high, patients, interval="mean and central 95 % of draws"
    )


def _verdict(chance: Chance | None) -> str:
    if chance is None:
        return "not comparable with chance"
    usual = f"a calibrated model would show {text.interval(chance.low, chance.high)} by chance"
    return f"{'more than calibration allows' if chance.p_value < _SIGNIFICANT else 'within what calibration allows'} ({usual})"


def _subject(audit: Audit) -> tuple[np.ndarray, np.ndarray, str]:
    """Probabilities, whether they came true, and of what."""
    if audit.decision.positive is not None:
        return audit.scores, audit.labels == audit.positive, f"probability of {audit.classes[audit.positive]}"
    return audit.predictions.probabilities.max(axis=1), audit.correct, "confidence of the decided class"


def _diagram(rows: tuple[Bin, ...], subject: str) -> Lines:
    return Lines(
        title="Reliability diagram",
        alt="Observed frequency against mean predicted probability per bin; points below the diagonal are over-confident.",
        x=Axis(f"Mean predicted {subject}", low=0, high=1),
        y=Axis("Observed frequency", low=0, high=1),
        series=(
            Series(
                "model, 95 % interval",
                tuple(float(row.predicted) for row in rows),
                tuple(row.observed.value for row in rows),
                tuple(row.observed.low for row in rows),
                tuple(row.observed.high for row in rows),
            ),
        ),
        diagonal="perfect calibration",
    )


def _counts(rows: tuple[Bin, ...], subject: str) -> Bars:
    return Bars(
        title="Images per bin",
        alt="How many images each point of the reliability diagram rests on.",
        categories=tuple(f"{row.lower:.2f}" for row in rows),
        y=Axis("Images"),
        series={"images": tuple(float(row.cases) for row in rows)},
        x=Axis(f"Predicted {subject} (lower bin edge)"),
    )
