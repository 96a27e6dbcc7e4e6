"""Whether two sets of cases could come from one source: tests by patient, each with the size of the difference.

Shapes: N reference cases, M current cases, D numbers per case, P patients, B permutations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import ndtr
from scipy.stats import chi2_contingency, kstwo
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from xvision.errors import ModelError
from xvision.methods.intervals import Estimate, mover, not_estimable, patient_codes, quantile_of
from xvision.methods.scores import auroc

_TOO_FEW = 4
"""Patients below which a place cannot be halved into folds with two each."""
_STRENGTH = 0.1
"""Inverse weight of the penalty of the classifier that tells places apart."""


class Sets(NamedTuple):
    """Numbers of each case (N, D) and (M, D), and whose cases they are (N,) and (M,)."""

    reference: np.ndarray
    current: np.ndarray
    reference_patients: np.ndarray
    current_patients: np.ndarray


class Comparison(NamedTuple):
    """How large a difference is, and how rarely chance alone would make it as large; None where it cannot be tested."""

    effect: Estimate
    p_value: float | None


class Told(NamedTuple):
    """What a classifier says of where cases come from: its AUROC, and a score of each current case (M,), higher: more unlike."""

    effect: Estimate
    p_value: float | None
    unlike: np.ndarray


class _Joined(NamedTuple):
    """Both sets as one: values (N + M, D), current (N + M,), codes of patients; those of the reference come first."""

    values: np.ndarray
    current: np.ndarray
    codes: np.ndarray
    patients: tuple[int, int]


def _joined(sets: Sets) -> _Joined:
    """A patient of both sets counts as one patient of each."""
    first, second = (np.asarray(part, float) for part in sets[:2])
    first, second = (part[:, None] if part.ndim == 1 else part for part in (first, second))
    values = np.concatenate([first, second])
    wrong = int((~np.isfinite(values)).any(axis=1).sum())
    if wrong:
        raise ModelError(f"the numbers of {wrong} of {len(values)} cases are not finite; find the images that cause it")
    codes, count = patient_codes(sets.reference_patients, len(first))
    others, fresh = patient_codes(sets.current_patients, len(second))
    side = np.arange(len(values)) >= len(first)
    return _Joined(values, side, np.concatenate([codes, count + others]), (count, fresh))


def median_distance(values: np.ndarray) -> float:
    """Median Euclidean distance between different rows (N, D): the bandwidth of a kernel (Gretton et al. 2012)."""
    distances = np.sqrt(_squares(values, values)[np.triu_indices(len(values), 1)])
    return float(np.median(distances)) if len(distances) else 0.0


def _squares(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    lengths = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1)
    return np.asarray(np.maximum(lengths - 2 * first @ second.T, 0.0))


def mmd(
    sets: Sets,
    *,
    rng: np.random.Generator,
    permutations: int = 500,
    resamples: int = 500,
    bandwidth: float | None = None,
    level: float = 0.95,
) -> Comparison:
    """Squared maximum mean discrepancy with a Gaussian kernel exp(−d² / 2 bandwidth²), unbiased (Gretton et al. 2012).

    0 where the sets come from one source, at most 2; below 0 by chance. bandwidth: the median distance of the reference
    cases unless given. Only pairs of different patients count, so images of one patient do not make a set look tight. The
    p-value is (1 + number of permutations as large) / (permutations + 1), permuting patients between the sets with all
    their images. The interval is over resamples of patients within each set.
    """
    joined = _joined(sets)
    count = sum(joined.patients)
    if min(joined.patients) < 2:
        return Comparison(not_estimable("fewer than 2 patients in one of the sets", count), None)
    centred = joined.values - joined.values.mean(axis=0)
    width = median_distance(centred[~joined.current]) if bandwidth is None else bandwidth
    if not width > 0:
        return Comparison(not_estimable("most reference cases have the same numbers", count), None)
    kernel = np.exp(-_squares(centred, centred) / (2 * width**2))
    between, sizes = _by_patient(kernel, joined.codes)
    second = np.repeat([False, True], joined.patients)
    found = float(_discrepancy((~second)[None].astype(float), second[None].astype(float), between, sizes)[0])
    order = np.stack([rng.permutation(second) for _ in range(permutations)]).astype(float)
    by_chance = _discrepancy(1 - order, order, between, sizes)
    p_value = float((1 + (by_chance >= found - 1e-12).sum()) / (permutations + 1))
    drawn = _drawn(joined.patients, resamples, rng)
    spread = _discrepancy(drawn * ~second, drawn * second, between, sizes)
    low, high = np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2])
    effect = Estimate(found, min(float(low), found), max(float(high), found), count, "patient bootstrap")
    return Comparison(effect, p_value)


def _by_patient(kernel: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The kernel summed over the images of each pair of different patients (P, P), and images of each patient (P,)."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    between = np.add.reduceat(np.add.reduceat(kernel[order][:, order], starts, axis=0), starts, axis=1)
    np.fill_diagonal(between, 0.0)
    return between, sizes.astype(float)


def _discrepancy(first: np.ndarray, second: np.ndarray, between: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(R,) from how often each patient is in either set (R, P) and the kernel summed over pairs of patients (P, P)."""
    within = []
    for chosen in (first, second):
        counts = chosen * sizes
        pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            within.append(((chosen @ between) * chosen).sum(axis=1) / pairs)
    across = ((first @ between) * second).sum(axis=1) / ((first @ sizes) * (second @ sizes))
    return np.asarray(within[0] + within[1] - 2 * across)


def _drawn(patients: tuple[int, int], resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each patient is drawn (R, P), within each set."""
    parts = [rng.multinomial(count, np.full(count, 1 / count), size=resamples) for count in patients]
    return np.concatenate(parts, axis=1).astype(float)


def classifier_test(sets: Sets, *, rng: np.random.Generator, level: float = 0.95) -> Told:
    """AUROC of a logistic regression that tells current from reference cases (Lopez-Paz and Oquab 2017); 0.5 is none.

    Fitted on half of the patients of each set and judged on the others, both ways round, and averaged. The two halves
    agree by chance, so their intervals (DeLong, by patient) are averaged as if they were one: this is never too narrow.
    The p-value is one-sided and from the same interval. A low AUROC does not show that the sets are alike: only that no
    straight line through these numbers parts them.
    """
    joined = _joined(sets)
    count, unlike = sum(joined.patients), np.full(int(joined.current.sum()), np.nan)
    if min(joined.patients) < _TOO_FEW:
        reason = f"fewer than {_TOO_FEW} patients in one of the sets"
        return Told(not_estimable(reason, count), None, unlike)
    halves = np.concatenate([rng.permutation(number) % 2 for number in joined.patients])[joined.codes]
    scores, found = np.zeros(len(halves)), []
    for half in (0, 1):
        train, test = halves != half, halves == half
        scale = StandardScaler().fit(joined.values[train])
        model = LogisticRegression(C=_STRENGTH, max_iter=1000, class_weight="balanced")
        model.fit(scale.transform(joined.values[train]), joined.current[train])
        scores[test] = model.decision_function(scale.transform(joined.values[test]))
        found.append(auroc(scores[test], joined.current[test], joined.codes[test], level=level))
    value, low, high = mover(found, (0.5, 0.5), np.ones((2, 2)))
    low, high = max(low, 0.0), min(high, 1.0)
    error = (value - low) / quantile_of(level)
    p_value = float(ndtr(-(value - 0.5) / error)) if error > 0 else 1.0
    effect = Estimate(value, low, high, count, "DeLong, mean of two halves by patient")
    return Told(effect, p_value, scores[joined.current])


def superiority(sets: Sets, *, level: float = 0.95) -> Estimate:
    """AUROC of one number per case (N,), (M,): the chance that a current case's is above a reference case's; 0.5 is none."""
    joined = _joined(sets)
    return auroc(joined.values[:, 0], joined.current, joined.codes, level=level)


def standardised_difference(sets: Sets, *, level: float = 0.95) -> Estimate:
    """Mean of the current cases less that of the reference, in standard deviations, for one number per case (N,), (M,).

    The standard deviation is the root of the mean of both variances (Austin 2009): 0.2 is small, 0.8 large. The interval
    is normal, with the variance of the linear approximation summed by patient.
    """
    joined = _joined(sets)
    values, count = joined.values[:, 0], sum(joined.patients)
    if min(joined.patients) < 2:
        return not_estimable("fewer than 2 patients in one of the sets", count)
    parts = [values[joined.current == side] for side in (False, True)]
    means, variances, sizes = zip(*((part.mean(), part.var(ddof=1), len(part)) for part in parts), strict=True)
    spread = float(np.sqrt(np.mean(variances)))
    if spread <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return not_estimable("the same number for every case", count)
    value = float(means[1] - means[0]) / spread
    pull = np.zeros(len(values))
    for side, sign in ((0, -1), (1, 1)):
        chosen, away = joined.current == bool(side), parts[side] - means[side]
        wider = value / (4 * spread**2) * (away**2 - variances[side])
        pull[chosen] = (sign * away / spread - wider) / sizes[side]
    sums = np.bincount(joined.codes, pull)
    error = np.sqrt(
        sum(
            number / (number - 1) * float(part @ part)
            for number, part in zip(joined.patients, np.split(sums, [joined.patients[0]]), strict=True)
        )
    )
    half = quantile_of(level) * float(error)
    return Estimate(value, value - half, value + half, count, "normal, by patient")


def ks_test(sets: Sets) -> tuple[float, float | None]:
    """Largest distance of the two distribution functions, for one number per case, and Smirnov's p-value (1939).

    With several images a patient, each set counts as Kish's number of independent cases, as if the images of one patient
    were copies: this is never too few. p is None for a set without cases.
    """
    joined = _joined(sets)
    if not min(joined.patients):
        return 0.0, None
    values, current = joined.values[:, 0], joined.current
    levels = np.unique(values)
    steps = [np.searchsorted(np.sort(values[part]), levels, side="right") / part.sum() for part in (~current, current)]
    distance = float(np.abs(steps[0] - steps[1]).max())
    first, second = (_independent(joined.codes[part]) for part in (~current, current))
    return distance, float(np.clip(kstwo.sf(distance, max(1, round(first * second / (first + second)))), 0.0, 1.0))


def _independent(codes: np.ndarray) -> float:
    """Kish's number of independent cases."""
    sizes = np.unique(codes, return_counts=True)[1]
    return float(sizes.sum() ** 2 / (sizes @ sizes))


def decisions_test(sets: Sets, classes: int) -> float | None:
    """p-value of Pearson's chi-square for class indices (N,), (M,): the same shares of decisions in both sets?

    Counts are cut to Kish's number of independent cases. None where there are no cases, or all decisions are one class.
    """
    joined = _joined(sets)
    if not min(joined.patients):
        return None
    counts = []
    for part in (~joined.current, joined.current):
        chosen = np.bincount(joined.values[part, 0].astype(int), minlength=classes)
        counts.append(chosen * _independent(joined.codes[part]) / part.sum())
    table = np.stack(counts)
    table = table[:, table.sum(axis=0) > 0]
    return None if table.shape[1] < 2 else float(chi2_contingency(table, correction=False).pvalue)
