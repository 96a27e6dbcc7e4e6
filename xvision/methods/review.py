"""Which cases a person should look at next, who they are, and what a look at them finds.

Shapes: N cases, K classes. A queue of uncertain cases is a biased sample on purpose: nothing measured on it speaks of
the data it came from, and its mix of patients is shown beside theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import log_softmax

from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision, probabilities, shifted_logits
from xvision.methods.intervals import Estimate, Sample, difference, not_estimable, proportion

Measure = Literal["entropy", "margin"]
Side = Literal["more", "fewer", "as the rest", "not decided"]
_ERROR_RATE = 0.05


def uncertainty(logits: np.ndarray, decision: Decision, measure: Measure = "entropy") -> np.ndarray:
    """Uncertainty (N,) in [0, 1] of the deployed decision for logits (N, K); 1 is greatest.

    entropy: of the softmax, over that of a coin with K sides. margin: 1 less the difference of the two largest
    probabilities. With a threshold the logits are first moved so that the threshold lies at one half, because what is
    uncertain is the decision that is made. It is the model's own view: a model may be sure and wrong.
    """
    moved = shifted_logits(np.asarray(logits, float), decision)
    shares = probabilities(moved)
    if measure == "margin":
        top = np.sort(shares, axis=1)
        return np.asarray(1.0 - (top[:, -1] - top[:, -2]))
    if measure != "entropy":
        raise ConfigError(f"uncertainty {measure!r} is unknown: give entropy or margin.")
    return np.asarray(-(shares * log_softmax(moved, axis=1)).sum(axis=1) / np.log(shares.shape[1]))


def review_order(
    scores: np.ndarray,
    patients: np.ndarray,
    size: int,
    *,
    strata: np.ndarray | None = None,
    per_patient: int = 2,
) -> np.ndarray:
    """Positions (at most ``size``,) of the cases to look at, in the order to look at them.

    scores: (N,), highest first, equal ones in the order given. patients: (N,); at most ``per_patient`` cases of each.
    strata: (N,) levels that the queue, and each beginning of it, holds in the shares that all cases have: every place
    goes to the level that is furthest behind its share. A level that runs out leaves its places to the others. Raises
    ConfigError for a size or cap below 1, DataError for scores that are no numbers.
    """
    values, owners = np.asarray(scores, float), np.asarray(patients)
    if size < 1 or per_patient < 1:
        raise ConfigError(f"a queue of {size} cases with {per_patient} per patient is none: give at least 1 of each.")
    if not np.isfinite(values).all() or values.ndim != 1 or owners.shape != values.shape:
        raise DataError("scores of the review queue must be one finite number per case, with one patient per case")
    order = _capped(np.argsort(-values, kind="stable"), owners, per_patient)
    if strata is None:
        return order[:size]
    levels, member = np.unique(np.asarray(strata), return_inverse=True)
    shares = np.bincount(member, minlength=len(levels)) / max(len(values), 1)
    return _apportioned(order, member, shares, size)


def _capped(order: np.ndarray, owners: np.ndarray, most: int) -> np.ndarray:
    """The order without a patient's cases after the first ``most``."""
    _, codes = np.unique(owners[order], return_inverse=True)
    by_patient = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[by_patient], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    kept = np.empty(len(order), bool)
    kept[by_patient] = place < most
    return np.asarray(order[kept])


def _apportioned(order: np.ndarray, member: np.ndarray, shares: np.ndarray, size: int) -> np.ndarray:
    waiting = [list(order[member[order] == level][::-1]) for level in range(len(shares))]
    taken = np.zeros(len(shares))
    chosen: list[int] = []
    while len(chosen) < min(size, len(order)):
        behind = shares * (len(chosen) + 1) - taken
        behind[[not cases for cases in waiting]] = -np.inf
        level = int(behind.argmax())
        chosen.append(int(waiting[level].pop()))
        taken[level] += 1
    return np.array(chosen, dtype=int)


class Share(NamedTuple):
    """How often a level of a column occurs in the queue and in all cases, and the queue's share less that of the rest."""

    column: str
    level: str
    queue: Estimate
    everyone: Estimate
    difference: Estimate
    side: Side


def group_mix(columns: dict[str, np.ndarray], chosen: np.ndarray, patients: np.ndarray) -> tuple[Share, ...]:
    """The queue's mix of groups beside that of all cases.

    columns: name → (N,) levels. chosen: positions of the queue. patients: (N,). A level has a side when the interval of
    the difference between the queue and the cases outside it leaves 0; with all levels together, an innocent queue gets
    any side in at most 5 % of draws (Bonferroni), which the difference's method names.
    """
    queued = np.zeros(len(patients), bool)
    queued[chosen] = True
    pairs = [(name, str(level)) for name, levels in columns.items() for level in np.unique(levels)]
    level = 1 - _ERROR_RATE / max(len(pairs), 1)
    return tuple(_share(name, which, columns[name] == which, queued, patients, level) for name, which in pairs)


def _share(
    column: str, level: str, member: np.ndarray, queued: np.ndarray, patients: np.ndarray, confidence: float
) -> Share:
    inside = proportion(member[queued], patients[queued])
    gap = not_estimable("the queue holds every case", len(np.unique(patients)))
    if queued.any() and not queued.all():
        samples = (Sample(member[part], patients[part]) for part in (queued, ~queued))
        gap = difference(*samples, level=confidence)
        gap = gap._replace(method=f"{gap.method} at {100 * confidence:.4g} %")
    return Share(column, level, inside, proportion(member, patients), gap, _side(gap))


def _side(gap: Estimate) -> Side:
    if gap.low is None or gap.high is None:
        return "not decided"
    if gap.low > 0:
        return "more"
    return "fewer" if gap.high < 0 else "as the rest"


@dataclass(frozen=True)
class Yield:
    """What looking at the first ``cases`` of ``pool`` cases finds. found: share of all errors. inside, outside: error rates."""

    cases: int
    pool: int
    errors: int
    found: Estimate
    inside: Estimate
    outside: Estimate

    @property
    def by_chance(self) -> float:
        """Share of the errors that as many cases drawn at random would hold."""
        return self.cases / self.pool


def errors_found(wrong: np.ndarray, chosen: np.ndarray, patients: np.ndarray) -> Yield:
    """Share of all errors that are among the chosen cases, by patient.

    wrong: (N,) bool, the decision is not the given label, which may itself be wrong. chosen: positions. patients: (N,).
    """
    mistaken, owners = np.asarray(wrong, bool), np.asarray(patients)
    queued = np.zeros(len(mistaken), bool)
    queued[chosen] = True
    count = int(mistaken.sum())
    found = proportion(queued[mistaken], owners[mistaken]) if count else not_estimable("the model made no error", 0)
    return Yield(
        int(queued.sum()),
        len(mistaken),
        count,
        found,
        proportion(mistaken[queued], owners[queued]),
        proportion(mistaken[~queued], owners[~queued]),
    )
