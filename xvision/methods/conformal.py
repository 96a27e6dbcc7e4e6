"""Split conformal prediction: sets of classes that hold the true one in a promised share of cases.

The promise is for cases drawn like the calibration cases, on average over all of them: not for each group, not after a
shift. Every score here is a strangeness: the larger, the less a class fits a case. Shapes: N cases, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from scipy.stats import beta, betabinom

from xvision.errors import ConfigError, DataError, nearest
from xvision.methods.randomness import case_seed, require_keys

ScoreName = Literal["lac", "aps", "raps"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)
_ROUNDING = 1e-9


class Quantile(NamedTuple):
    """The ``rank``-th smallest of ``cases`` scores; infinite, so that every class is in every set, where rank > cases."""

    threshold: float
    rank: int
    cases: int


class Chance(NamedTuple):
    """Coverage expected of exchangeable cases: its mean and a central range over draws of the calibration cases."""

    mean: float
    low: float
    high: float


def uniforms(keys: Sequence[str], *, seed: int) -> np.ndarray:
    """(N,) draws from [0, 1), one for each case, the same in whatever order the cases come."""
    return np.array([(case_seed(seed, "conformal", key) >> 10) / 2**53 for key in keys])


def strangeness(
    probabilities: np.ndarray,
    name: ScoreName,
    keys: Sequence[str],
    *,
    seed: int,
    penalty: float = 0.1,
    free_ranks: int = 1,
) -> np.ndarray:
    """Scores (N, K) of every class for every case.

    probabilities: (N, K). lac: 1 - p (Sadinle, Lei and Wasserman 2019), the smallest sets on average. aps: the probability of
    all likelier classes plus a random part, drawn once per case from its key, of the class's own (Romano, Sesia and Candès
    2020), more even over easy and hard cases. raps: aps plus ``penalty`` for each rank beyond ``free_ranks`` (Angelopoulos et
    al. 2021). Of equally probable classes the first ranks first. Raises ConfigError for an unknown name.
    """
    if name not in SCORE_NAMES:
        raise ConfigError(f"there is no conformal score {name!r}. {nearest(name, SCORE_NAMES)}")
    values = np.asarray(probabilities, float)
    require_keys(keys, len(values))
    if name == "lac":
        return np.asarray(1.0 - values)
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    drawn = uniforms(keys, seed=seed)[:, None]
    scores = np.cumsum(ranked, axis=1) - ranked + drawn * ranked
    if name == "raps":
        scores = scores + penalty * np.maximum(np.arange(1, values.shape[1] + 1) - free_ranks, 0)
    restored = np.empty_like(scores)
    np.put_along_axis(restored, order, scores, axis=1)
    return np.asarray(restored)


def rank_of(cases: int, alpha: float) -> int:
    """ceil((n + 1)(1 - alpha)). Raises ConfigError unless 0 < alpha < 1."""
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}: give the share of cases that may be missed, between 0 and 1, such as 0.1")
    return math.ceil((cases + 1) * (1 - alpha) - _ROUNDING)


def quantile(scores: np.ndarray, alpha: float) -> Quantile:
    """The conformal threshold of calibration scores (n,) of the true classes: their ceil((n + 1)(1 - alpha))-th smallest."""
    values, rank = np.sort(np.asarray(scores, float)), rank_of(len(scores), alpha)
    return Quantile(float(values[rank - 1]) if rank <= len(values) else math.inf, rank, len(values))


def fitted(scores: np.ndarray, labels: np.ndarray, alpha: float, *, by_class: bool = False) -> tuple[Quantile, ...]:
    """A threshold for each of the K classes, from scores (n, K) and labels (n,): the same for all, or by_class its own.

    by_class is the Mondrian form (Vovk 2012), whose promise holds within each class; a class without calibration cases is then
    in every set.
    """
    values, truth = np.asarray(scores, float), np.asarray(labels)
    if values.ndim != 2 or truth.shape != (len(values),):
        raise DataError(f"scores of shape {values.shape} came with labels of shape {truth.shape}; give (n, K) and (n,)")
    own = values[np.arange(len(values)), truth]
    if not by_class:
        return tuple([quantile(own, alpha)] * values.shape[1])
    return tuple(quantile(own[truth == code], alpha) for code in range(values.shape[1]))


def sets(scores: np.ndarray, thresholds: Sequence[Quantile]) -> np.ndarray:
    """(N, K) booleans: the classes whose score (N, K) is at most their threshold."""
    return np.asarray(scores <= np.array([each.threshold for each in thresholds]))


def coverage_by_chance(cases: int, alpha: float, *, units: int | None = None, level: float = 0.95) -> Chance:
    """Coverage over draws of ``cases`` calibration cases: Beta(k, n + 1 - k) for continuous scores (Vovk 2012).

    1 throughout where k > n. Ties only add coverage. A finite number of audited cases spreads it further. units: how many
    independent cases they are worth, such as their patients; the law of the same mean for so many is then given.
    """
    rank, tail = rank_of(cases, alpha), (1 - level) / 2
    if rank > cases:
        return Chance(1.0, 1.0, 1.0)
    drawn = beta(*_shape(rank, cases, units))
    return Chance(rank / (cases + 1), float(drawn.ppf(tail)), float(drawn.ppf(1 - tail)))


def _shape(rank: int, cases: int, units: int | None) -> tuple[float, float]:
    """Parameters of the Beta law of the coverage."""
    worth = 1.0 if units is None else (units + 1) / (cases + 1)
    return rank * worth, (cases + 1 - rank) * worth


def too_low_p(covered: float, audited: int, calibrated: int, alpha: float, *, units: int | None = None) -> float:
    """The chance that a share of at most ``covered`` of ``audited`` exchangeable cases is covered: beta-binomial.

    Small means that these cases are not like the calibration cases, beyond what either sample's size explains. units: as
    for :func:`coverage_by_chance`.
    """
    rank = rank_of(calibrated, alpha)
    hits = math.floor(covered * audited + _ROUNDING)
    if rank > calibrated:
        return 1.0 if hits >= audited else 0.0
    return float(betabinom.cdf(hits, audited, *_shape(rank, calibrated, units)))
