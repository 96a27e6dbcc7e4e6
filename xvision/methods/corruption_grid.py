"""Decisions under every kind of damage and severity beside the clean ones, and what the damage costs.

Shapes: N cases, D kinds, S severities, K classes; R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.calibration import ece
from xvision.methods.decision import Decision, decide, probabilities
from xvision.methods.intervals import Estimate, bootstrap, not_estimable, proportion, with_width
from xvision.methods.scores import auroc

_BINS = 15
_FLOOR = 1e-9


@dataclass(frozen=True, eq=False)
class Grid:
    """logits: (N, D, S, K) under damage. clean: (N, K). labels: (N,) class indices. patients: (N,)."""

    logits: np.ndarray
    clean: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    decision: Decision

    def __post_init__(self) -> None:
        if self.logits.ndim != 4 or self.logits.shape[::3] != self.clean.shape:
            raise DataError(f"found logits of shape {self.logits.shape} beside clean ones of {self.clean.shape}")

    @cached_property
    def decisions(self) -> np.ndarray:
        """(N, D, S) class indices."""
        cases, kinds, severities, classes = self.logits.shape
        return decide(self.logits.reshape(-1, classes), self.decision).reshape(cases, kinds, severities)

    @cached_property
    def decided(self) -> np.ndarray:
        """(N,) clean class indices."""
        return decide(self.clean, self.decision)

    @cached_property
    def hits(self) -> np.ndarray:
        """(N, D, S) bool, right under damage."""
        return np.asarray(self.decisions == self.labels[:, None, None])

    @cached_property
    def flips(self) -> np.ndarray:
        """(N, D, S) bool, decided otherwise than on the clean image, right or wrong."""
        return np.asarray(self.decisions != self.decided[:, None, None])

    @property
    def clean_hits(self) -> np.ndarray:
        return np.asarray(self.decided == self.labels)

    def accuracy(self, kind: int, severity: int, chosen: np.ndarray | None = None) -> Estimate:
        """kind, severity: places in the grid. chosen: (N,) bool, of these cases only."""
        return self._share(self.hits[:, kind, severity], chosen)

    def clean_accuracy(self) -> Estimate:
        return self._share(self.clean_hits, None)

    def clean_sensitivity(self, positive: int) -> Estimate:
        return self._share(self.clean_hits, self.labels == positive)

    def flip_rate(self, kind: int, severity: int, chosen: np.ndarray | None = None) -> Estimate:
        return self._share(self.flips[:, kind, severity], chosen)

    def sensitivity(self, kind: int, severity: int, positive: int) -> Estimate:
        return self._share(self.hits[:, kind, severity], self.labels == positive)

    def specificity(self, kind: int, severity: int, positive: int) -> Estimate:
        return self._share(self.hits[:, kind, severity], self.labels != positive)

    def auroc(self, kind: int, severity: int, positive: int) -> Estimate:
        scores = probabilities(self.logits[:, kind, severity])[:, positive]
        return auroc(scores, self.labels == positive, self.patients)

    def ece(self, kind: int, severity: int, *, resamples: int, rng: np.random.Generator) -> Estimate:
        """Of the positive class where the decision has one, else of the decided class."""
        found = probabilities(self.logits[:, kind, severity])
        if self.decision.positive is not None:
            scores, outcomes = found[:, self.decision.positive], self.labels == self.decision.positive
        else:
            scores, outcomes = found.max(axis=1), self.hits[:, kind, severity]
        return ece(scores, outcomes, self.patients, bins=_BINS, resamples=resamples, rng=rng)

    def retention(self, kind: int, severity: int, *, resamples: int, rng: np.random.Generator) -> Estimate:
        """Accuracy over clean accuracy on the same images; above 1 where damage helps."""
        if not self.clean_hits.any():
            return not_estimable("no clean image is decided rightly")
        statistic = partial(
            _ratio, above=self.hits[:, kind, severity].astype(float), below=self.clean_hits.astype(float)
        )
        found = bootstrap(statistic, self.patients, resamples=resamples, rng=rng)
        return found if (found.value or 0.0) > 1 else with_width(found, found.n, 0.95)

    def mean_accuracy(self, kinds: Sequence[int], *, resamples: int, rng: np.random.Generator) -> Estimate:
        """Mean over kinds and severities, each counting alike."""
        shares = self.hits[:, list(kinds)].mean(axis=(1, 2))
        found = bootstrap(
            lambda weights: weights @ shares / weights.sum(axis=1), self.patients, resamples=resamples, rng=rng
        )
        return with_width(found, found.n, 0.95)

    def corruption_error(
        self, kinds: Sequence[int], reference: Reference, *, relative: bool, resamples: int, rng: np.random.Generator
    ) -> Estimate:
        """Mean corruption error (Hendrycks and Dietterich 2019) in percent of the reference's; 100 for the reference itself.

        relative: of the rise over the clean error. The reference's errors are taken as given: its own uncertainty is not in the
        interval. Not estimable where the reference makes no error, or none more than on clean images, under some kind.
        """
        hits = self.hits[:, list(kinds)].astype(float)
        bad = undefined(reference, relative=relative)
        if bad:
            return not_estimable(
                f"the reference {'loses nothing' if relative else 'makes no error'} under {len(bad)} of {len(kinds)} kinds,"
                " so that a ratio to it is undefined"
            )

        def statistic(weights: np.ndarray) -> np.ndarray:
            total = weights.sum(axis=1)
            errors = 1 - (weights @ hits.reshape(len(hits), -1) / total[:, None]).reshape(len(weights), *hits.shape[1:])
            clean = 1 - weights @ self.clean_hits / total
            return np.asarray(
                [
                    mean_corruption_error(each, own, reference, relative=relative)
                    for each, own in zip(errors, clean, strict=True)
                ]
            )

        return bootstrap(statistic, self.patients, resamples=resamples, rng=rng)

    def _share(self, outcomes: np.ndarray, chosen: np.ndarray | None) -> Estimate:
        chosen = np.ones(len(outcomes), dtype=bool) if chosen is None else chosen
        if not chosen.any():
            return not_estimable("no case of this kind")
        return proportion(outcomes[chosen], self.patients[chosen])


class Reference(NamedTuple):
    """What another model does under the same damage. errors: (D, S). clean: its error on the clean images."""

    errors: np.ndarray
    clean: float


def undefined(reference: Reference, *, relative: bool) -> tuple[int, ...]:
    """The kinds under which a ratio to the reference means nothing: it makes no error, or (relative) loses nothing."""
    base = reference.clean if relative else 0.0
    return tuple(int(place) for place in np.flatnonzero((reference.errors - base).sum(axis=1) <= _FLOOR))


def mean_corruption_error(errors: np.ndarray, clean: float, reference: Reference, *, relative: bool) -> float:
    """100 × the mean over kinds of summed errors (D, S) over the reference's, less the clean errors where relative."""
    own, other = (clean, reference.clean) if relative else (0.0, 0.0)
    return float(100 * ((errors - own).sum(axis=1) / (reference.errors - other).sum(axis=1)).mean())


class Envelope(NamedTuple):
    """holds: the largest severity up to which the figure is shown to keep what was agreed, -1 where not even clean images do.
    crossed: the first severity at which it is shown not to; None where at none.
    """

    holds: int
    crossed: int | None


def envelope(figures: Sequence[Estimate], agreed: float) -> Envelope:
    """figures: at severity 0 (clean), 1, … A figure keeps the agreed value where its whole interval does, and misses it where
    its whole interval misses it; between, it is not decided. A severity without a figure ends what holds.
    """
    holds = -1
    for severity, figure in enumerate(figures):
        if figure.low is None or figure.low < agreed:
            break
        holds = severity
    crossed = [severity for severity, figure in enumerate(figures) if figure.high is not None and figure.high < agreed]
    return Envelope(holds, crossed[0] if crossed else None)


def _ratio(weights: np.ndarray, *, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """(R,) weighted ratio, NaN where nothing was right before."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: np.ndarray = np.where(weights @ below > 0, (weights @ above) / (weights @ below), np.nan)
    return ratio
