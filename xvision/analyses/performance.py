"""Discrimination and the deployed decision."""

from __future__ import annotations

from functools import partial

import numpy as np
from sklearn.metrics import confusion_matrix, roc_curve

from xvision import text
from xvision.audit import Audit, count, metric
from xvision.charts import Axis, Bars, Chart, HeatMap, Lines, Series
from xvision.methods.intervals import Estimate, bootstrap, proportion
from xvision.methods.scores import auprc, auroc
from xvision.registry import analysis
from xvision.result import Metric, Result, spoken

_HISTOGRAM_BINS = 20


@analysis("Performance", pillar="Performance", need="scores", passes="none beyond the clean predictions")
def performance(audit: Audit, *, resamples: int = 1000) -> Result:
    """How well does the model separate the classes, and how sure can we be?

    AUROC is the chance that a random positive case scores above a random negative one (interval: DeLong 1988, in
    Obuchowski's 1997 form when patients have several images). Sensitivity, specificity, accuracy and predictive values judge the
    deployed decision (interval: Wilson, on the effective sample size when patients repeat). Predictive values hold for this
    data's prevalence only. None of these says anything about other hospitals, groups or damaged images.
    """
    metrics = [count("cases", len(audit.ids)), count("patients", len(set(audit.patients)))]
    charts: list[Chart] = []
    if audit.decision.positive is None:
        metrics += _multiclass(audit, resamples)
    else:
        metrics += _binary(audit, resamples)
        charts += [_roc(audit), _histogram(audit)]
    charts.append(_confusion(audit))
    by_name = {(item.name, tuple(item.where)): item for item in metrics}
    leading = by_name[("auroc" if audit.decision.positive is not None else "accuracy", ())]
    summary = (
        f"{text.label(leading.name)} {spoken(leading)} on {text.plural(len(audit.ids), 'image')} of "
        f"{text.plural(len(set(audit.patients)), 'patient')}; {int((~audit.correct).sum())} decisions are wrong."
    )
    return Result(summary, tuple(metrics), tuple(charts), caveats=_caveats(audit))


def _binary(audit: Audit, resamples: int) -> list[Metric]:
    positive = audit.labels == audit.positive
    decided = audit.predictions.decisions == audit.positive
    hits, patients, everyone = audit.correct, audit.patients, np.ones(len(audit.ids), dtype=bool)
    rates = {
        "sensitivity": (positive, hits), "specificity": (~positive, hits), "ppv": (decided, hits), "npv": (~decided, hits),
        "accuracy": (everyone, hits), "selection_rate": (everyone, decided), "prevalence": (everyone, positive),
    }  # fmt: skip
    reasons = {
        "sensitivity": "no positive cases",
        "specificity": "no negative cases",
        "ppv": "nothing called positive",
        "npv": "nothing called negative",
    }
    found = [
        metric("auroc", auroc(audit.scores, positive, patients), better="higher"),
        metric(
            "auprc",
            auprc(audit.scores, positive, patients, resamples=resamples, rng=audit.rng("auprc")),
            better="higher",
        ),
    ]
    for name, (among, outcome) in rates.items():
        estimate = proportion(outcome[among], patients[among])
        if estimate.value is None:
            estimate = estimate._replace(reason=reasons.get(name, estimate.reason))
        found.append(metric(name, estimate, better="neither" if name in {"selection_rate", "prevalence"} else "higher"))
    found.append(metric("balanced_accuracy", _balanced_accuracy(audit, resamples), better="higher"))
    return found


def _multiclass(audit: Audit, resamples: int) -> list[Metric]:
    found = [
        metric("accuracy", proportion(audit.correct, audit.patients), better="higher"),
        metric("balanced_accuracy", _balanced_accuracy(audit, resamples), better="higher"),
    ]
    for code, name in enumerate(audit.classes):
        members = audit.labels == code
        sensitivity = proportion(audit.correct[members], audit.patients[members])
        if sensitivity.value is None:
            sensitivity = sensitivity._replace(reason=f"no cases of {name}")
        found += [
            metric(
                "auroc",
                auroc(audit.predictions.probabilities[:, code], members, audit.patients),
                better="higher",
                where={"class": name},
            ),
            metric("sensitivity", sensitivity, better="higher", where={"class": name}),
        ]
    return found


def _balanced_accuracy(audit: Audit, resamples: int) -> Estimate:
    members = np.stack([audit.labels == code for code in range(len(audit.classes))], axis=1).astype(float)
    return bootstrap(
        partial(_mean_recall, hits=audit.correct.astype(float), members=members),
        audit.patients,
        resamples=resamples,
        rng=audit.rng("balanced accuracy"),
    )


def _mean_recall(weights: np.ndarray, *, hits: np.ndarray, members: np.ndarray) -> np.ndarray:
    """(R,) mean over classes of the weighted recall; weights (R, N)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        recalls = (weights @ (members * hits[:, None])) / (weights @ members)
    result: np.ndarray = recalls.mean(axis=1)
    return result


def _roc(audit: Audit) -> Lines:
    positive = audit.labels == audit.positive
    false_rate, true_rate, _ = (
        roc_curve(positive, audit.scores) if 0 < positive.sum() < len(positive) else ([0.0, 1.0], [0.0, 1.0], [])
    )
    decided = audit.predictions.decisions == audit.positive
    point = (
        float(decided[~positive].mean()) if (~positive).any() else 0.0,
        float(decided[positive].mean()) if positive.any() else 0.0,
    )
    return Lines(
        title="ROC curve",
        alt=f"Sensitivity against false positive rate; the deployed decision lies at {point[1]:.3f} and {point[0]:.3f}.",
        x=Axis("False positive rate", low=0, high=1),
        y=Axis("Sensitivity", low=0, high=1),
        series=(
            Series("model", tuple(map(float, false_rate)), tuple(map(float, true_rate)), marks=False),
            Series(f"deployed decision (probability ≥ {audit.decision.threshold:g})", (point[0],), (point[1],)),
        ),
        diagonal="chance",
    )


def _histogram(audit: Audit) -> Bars:
    edges = np.linspace(0.0, 1.0, _HISTOGRAM_BINS + 1)
    counts = {
        name: tuple(map(float, np.histogram(audit.scores[audit.labels == code], edges)[0]))
        for code, name in enumerate(audit.classes)
    }
    name = audit.classes[audit.positive]
    return Bars(
        title="Predicted probabilities by true class",
        alt=f"Number of images of each true class by predicted probability of {name}.",
        categories=tuple(f"{low:.2f}" for low in edges[:-1]),
        y=Axis("Images"),
        series=counts,
        x=Axis(f"Predicted probability of {name} (lower bin edge)"),
    )


def _confusion(audit: Audit) -> HeatMap:
    table = confusion_matrix(audit.labels, audit.predictions.decisions, labels=range(len(audit.classes)))
    return HeatMap(
        title="Confusion matrix",
        alt=f"{int(np.trace(table))} of {len(audit.ids)} images lie on the diagonal, where the decision equals the label.",
        columns=audit.classes,
        rows=audit.classes,
        values=tuple(tuple(map(float, row)) for row in table),
        x_label="Decision",
        y_label="Label",
        unit="count",
        low=0.0,
    )


def _caveats(audit: Audit) -> tuple[str, ...]:
    found = []
    if audit.decision.positive is not None and not audit.decision.declared:
        positive = audit.classes[audit.positive]
        found.append(
            f"The operating point was not declared: {positive!r} is called at probability {audit.decision.threshold:g} by convention."
        )
    if not audit.data.patients_declared:
        found.append(
            "No patient column was given: each image counts as a patient, and intervals are too narrow if patients repeat."
        )
    return tuple(found)
