"""What the model says of all its findings, and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from xvision.audit import Audit
from xvision.data.scores import names_of
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, nearest
from xvision.methods.decision import Decision, decide
from xvision.models.finding import whole_model
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import Classifier
from xvision.result import NotApplicable

CONVENTION = 0.5
"""The threshold of findings for which none is given."""
_MOST_FINDINGS = 30


@dataclass(frozen=True, eq=False)
class Answers:
    """names: of L findings, the most frequent first. labels: (N, L), NaN where not known. decisions: (N, L) bool.

    audited: the finding of this audit. given: thresholds of others. extra: findings of the data alone. left_out: how many
    of the model's findings are not looked at.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    decisions: np.ndarray
    audited: str
    given: Mapping[str, float]
    extra: tuple[str, ...]
    left_out: int

    @property
    def labelled(self) -> tuple[str, ...]:
        known = ~np.isnan(self.labels).all(axis=0)
        return tuple(name for name, there in zip(self.names, known, strict=True) if there)


def answered(audit: Audit, thresholds: Mapping[str, float]) -> Answers:
    """Labels and decisions of all findings; raises NotApplicable for one finding alone, ConfigError for unfit thresholds."""
    model, data, everything = whole_model(audit.model), audit.data.whole, audit.everything.whole
    if model is None:
        raise NotApplicable("the model decides on one finding or class: there are no others to set beside it")
    if data is None or everything is None:
        raise NotApplicable(
            "the data names one class for each image, so nothing is known of the other findings; set multilabel = true under [data]"
        )
    if not audit.groups:
        raise NotApplicable("no group columns were declared; name them in the plan or with --groups")
    classes, audited = model.classes, audit.classes[1]
    _check_thresholds(thresholds, classes, audited)
    named = set(everything.findings)
    extra = tuple(sorted(named - set(classes)))
    labels = data.label_matrix((*classes, *extra))[:, : len(classes)].astype(float)
    labels[:, [name not in named for name in classes]] = np.nan
    logits = _logits(audit, model)
    decisions = np.column_stack(
        [
            audit.predictions.decisions == 1
            if name == audited
            else _decided(logits[:, place], thresholds.get(name, CONVENTION))
            for place, name in enumerate(classes)
        ]
    )
    frequent = np.argsort(-np.nan_to_num(labels, nan=-1.0).sum(axis=0), kind="stable").tolist()
    kept = [at for rank, at in enumerate(frequent) if rank < _MOST_FINDINGS or classes[at] == audited]
    names = tuple(classes[at] for at in kept)
    return Answers(names, labels[:, kept], decisions[:, kept], audited, thresholds, extra, len(classes) - len(names))


def _check_thresholds(thresholds: Mapping[str, float], classes: tuple[str, ...], audited: str) -> None:
    for name, value in thresholds.items():
        where = f"analysis.findings.thresholds names {name!r}"
        if name == audited:
            raise ConfigError(f"{where}, the audited finding, which is decided as deployed: give decision.threshold.")
        if name not in classes:
            raise ConfigError(f"{where}, not a finding of the model. {nearest(name, classes)}")
        if not 0 < value < 1:
            raise ConfigError(
                f"analysis.findings.thresholds.{name} is {value}: give a probability above 0 and below 1."
            )


def _logits(audit: Audit, model: Classifier) -> np.ndarray:
    """Log-odds (N, L) of all findings."""
    if isinstance(model, PredictionsClassifier):
        return model.predicted(names_of(model, audit.data))
    return np.asarray(audit.map(_of_all, task="findings")["logits"], float)


def _of_all(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"logits": batch.model.logits_of_all(batch.pixels).cpu().numpy()}


def _decided(odds: np.ndarray, threshold: float) -> np.ndarray:
    return np.asarray(decide(np.column_stack([np.zeros_like(odds), odds]), Decision(1, threshold)) == 1)
