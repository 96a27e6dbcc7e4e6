"""Scores of unlikeness of every set, and how well each tells it from the audited images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd

from xvision import text
from xvision.analyses.ood.sets import Fitted, ImageSet, audited_and_made, from_elsewhere, to_fit_on
from xvision.audit import Audit, metric
from xvision.errors import DataError
from xvision.methods import ood_scores as scoring
from xvision.methods.decision import decide
from xvision.methods.intervals import Estimate, bootstrap, not_estimable, proportion
from xvision.methods.scores import auprc, auroc
from xvision.result import Better, Metric

SURE = 0.9
"""A probability from which a decision counts as confident."""
TITLES = {
    "msp": "largest probability (MSP)",
    "max_logit": "largest logit",
    "energy": "energy",
    "feature_norm": "length of the embedding",
    "mahalanobis": "Mahalanobis distance",
    "relative_mahalanobis": "relative Mahalanobis distance",
    "knn": "nearest neighbours",
    "vim": "virtual logit (ViM)",
}
_BY_CLASS = ("mahalanobis", "relative_mahalanobis")
_FITTED = (*_BY_CLASS, "knn", "vim")
_BETTER: dict[str, Better] = {"auroc": "higher", "aupr_out": "higher", "aupr_in": "higher", "fpr_at_95_tpr": "lower"}
_FEWEST = 10
"""Cases that scores are fitted on, at least."""
_NOTHING = "the model gives no finite number for these images"
_ONE_OUTPUT = "the model has one output and the logit of the other class is 0 by definition, so this score would only say what was decided"

Score = Callable[[ImageSet], np.ndarray]


class Judged:
    """All sets with their scores; ``missing`` says why a score is not there."""

    def __init__(self, audit: Audit, cases: int, reference_cases: int, neighbours: int, resamples: int) -> None:
        self.audit, self.neighbours, self.resamples = audit, neighbours, resamples
        self.missing: dict[str, str] = {}
        no_embeddings = audit.can("embeddings")
        embeds = no_embeddings is None
        self.clean, *made = audited_and_made(audit, cases, embeds)
        outside = [(kind, sets) for kind, sets in (("near", audit.near), ("far", audit.far)) if sets]
        named = [each for kind, sets in outside for each in from_elsewhere(kind, sets, cases, embeds)]
        self.sets: tuple[ImageSet, ...] = (*named, *made)
        self.fitted = to_fit_on(audit, reference_cases) if embeds else None
        self._note(("feature_norm", *_FITTED), no_embeddings or "")
        scores = self._scores()
        self.scores = {
            name: {each.key: scores[name](each) for each in (self.clean, *self.sets) if len(each.ids)}
            for name in scores
        }

    def _note(self, names: tuple[str, ...], reason: str) -> None:
        for name in names if reason else ():
            self.missing.setdefault(name, reason)

    def _scores(self) -> dict[str, Score]:
        found: dict[str, Score] = {
            "msp": lambda each: scoring.msp(each.logits),
            "max_logit": lambda each: scoring.max_logit(each.logits),
            "energy": lambda each: scoring.energy(each.logits),
            "feature_norm": lambda each: scoring.feature_norm(each.embedded),
        }
        if (self.clean.logits == 0).all(axis=0).any():
            self._note(("max_logit", "energy", "vim"), _ONE_OUTPUT)
        if self.fitted is None:
            self._note(
                _FITTED,
                'it is fitted on cases that are not audited: give the data a split "train" or "validation" beside "test"',
            )
        else:
            least = max(_FEWEST, self.neighbours)
            if len(self.fitted.logits) < least:
                few = f"insufficient evidence: {len(self.fitted.logits)} cases to fit on; would be settled by at least {least}"
                self._note(_FITTED, few)
            found |= self._of_embeddings(self.fitted)
        return {name: score for name, score in found.items() if name not in self.missing}

    def _of_embeddings(self, fitted: Fitted) -> dict[str, Score]:
        found: dict[str, Score] = {
            "knn": lambda each: scoring.knn(each.embedded, fitted.embeddings, neighbours=self.neighbours)
        }
        if "vim" not in self.missing:
            try:
                virtual = scoring.vim(fitted.embeddings, fitted.logits)
                found["vim"] = lambda each: virtual.scores(each.embedded, each.logits)
            except DataError as problem:
                self._note(("vim",), str(problem))
        if "mahalanobis" not in self.missing:
            found |= self._by_class(fitted)
        return found

    def _by_class(self, fitted: Fitted) -> dict[str, Score]:
        if fitted.labels is None:
            self._note(_BY_CLASS, f"{fitted.called} has no labels, and this score is fitted by class")
            return {}
        if len(np.unique(fitted.labels)) < 2:
            self._note(
                ("relative_mahalanobis",), "the cases to fit on are of one class, so both distances are the same"
            )
        try:
            within, whole = (scoring.gaussian(fitted.embeddings, labels) for labels in (fitted.labels, None))
        except DataError as problem:
            self._note(_BY_CLASS, str(problem))
            return {}
        return {
            "mahalanobis": lambda each: within.distances(each.embedded),
            "relative_mahalanobis": lambda each: within.distances(each.embedded) - whole.distances(each.embedded),
        }

    def metrics(self) -> Iterator[Metric]:
        """Confidence on every set, then how well each score tells it from the audited images."""
        for each in (self.clean, *self.sets):
            yield from self._confidence(each)
        for each in self.sets:
            for name in TITLES:
                yield from self._told_apart(each, name)

    def _confidence(self, each: ImageSet) -> Iterator[Metric]:
        outside = each is not self.clean
        better: Better = "lower" if outside else "neither"
        if not len(each.ids):
            for name in ("mean_confidence", "confident_share", "confidence_change"):
                yield Metric(name, None, better=better, where=each.where, reason=_NOTHING)
            return
        sure = each.sureness
        yield metric("mean_confidence", self._mean(each), better=better, where=each.where)
        yield metric("confident_share", _share(each, sure >= SURE), better=better, where=each.where)
        if outside:
            yield metric("confidence_change", self._change(each), better=better, where=each.where)
        decided = decide(each.logits, self.audit.decision)
        for code, name in enumerate(self.audit.classes):
            yield metric("decision_share", _share(each, decided == code), where={**each.where, "class": name})

    def _mean(self, each: ImageSet) -> Estimate:
        values = each.sureness
        if each.fixed:
            return _exact(float(values[0]))
        return bootstrap(
            lambda weights: (weights @ values) / weights.sum(axis=1), each.patients,
            rng=self.audit.rng(f"mean {each.key}"), resamples=self.resamples,
        )  # fmt: skip

    def _change(self, each: ImageSet) -> Estimate:
        """Difference of means; a patient in both sets is drawn for both."""
        outside = np.arange(len(self.clean.ids) + len(each.ids)) >= len(self.clean.ids)
        values = np.concatenate((self.clean.sureness, each.sureness))
        patients = np.concatenate((self.clean.patients, each.patients))
        statistic = partial(_mean_difference, values=values, outside=outside)
        return bootstrap(statistic, patients, rng=self.audit.rng(f"change {each.key}"), resamples=self.resamples)

    def _told_apart(self, each: ImageSet, score: str) -> Iterator[Metric]:
        where = {**each.where, "score": score}
        reason = self.missing.get(score) or ("" if len(each.ids) else _NOTHING)
        estimates = dict.fromkeys(_BETTER, not_estimable(reason)) if reason else self._estimates(each, score)
        for name, estimate in estimates.items():
            yield metric(name, estimate, better=_BETTER[name], where=where)

    def _estimates(self, each: ImageSet, score: str) -> dict[str, Estimate]:
        values = np.concatenate((self.scores[score][self.clean.key], self.scores[score][each.key]))
        outside = np.arange(len(values)) >= len(self.clean.ids)
        patients = np.concatenate((self.clean.patients, each.patients))

        def rng(purpose: str) -> np.random.Generator:
            return self.audit.rng(f"{purpose} {score} {each.key}")

        return {
            "auroc": auroc(values, outside, patients),
            "aupr_out": auprc(values, outside, patients, rng=rng("out"), resamples=self.resamples),
            "aupr_in": auprc(-values, ~outside, patients, rng=rng("in"), resamples=self.resamples),
            "fpr_at_95_tpr": scoring.fpr_at_tpr(values, outside, patients, rng=rng("fpr"), resamples=self.resamples),
        }

    @property
    def table(self) -> pd.DataFrame:
        """One row per case and set."""
        frames = []
        for each in (self.clean, *self.sets):
            if len(each.ids):
                columns = {"id": each.ids, "set": each.name, "kind": each.kind, "confidence": each.sureness}
                frames.append(pd.DataFrame(columns | {name: values[each.key] for name, values in self.scores.items()}))
        return pd.concat(frames, ignore_index=True)

    @property
    def fitted_on(self) -> str:
        """What the scores of embeddings rest on, in words."""
        return f"{text.plural(len(self.fitted.logits), 'case')} of {self.fitted.called}" if self.fitted else ""


def _share(each: ImageSet, hits: np.ndarray) -> Estimate:
    return _exact(float(hits[0])) if each.fixed else proportion(hits, each.patients)


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value, 1, "exact: one picture, one answer")


def _mean_difference(weights: np.ndarray, *, values: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """(R,) weighted mean of the outside values minus that of the others, NaN where a side is empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        sides = [(weights @ (values * side)) / (weights @ side) for side in (outside, ~outside)]
    return np.asarray(sides[0] - sides[1])
