"""Whether predicted probabilities mean what they say, with intervals by patient. Shapes: N cases, K classes.

For a binary model the probability is that of the positive class and the outcome the label; for several classes it is
the confidence in the predicted class and whether that was right (:func:`top_label`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.intervals import (
    Estimate,
    binary,
    bootstrap,
    not_estimable,
    patient_codes,
    proportion,
)

Strategy = Literal["width", "mass"]


class Bin(NamedTuple):
    """Cases whose probability lies in [lower, upper), the last bin closed: mean probability and share of hits."""

    lower: float
    upper: float
    predicted: float
    observed: Estimate
    cases: int


class Chance(NamedTuple):
    """A calibration error as it would be if every probability were right: mean and central 95 %, widened to the mean.

    p_value: share of draws at or above the error found, counting the found one.
    """

    mean: float
    low: float
    high: float
    p_value: float


class ByChance(NamedTuple):
    """What a calibrated model would show: its ECE, its MCE, and per bin that has cases the central 95 % of the rate."""

    ece: Chance
    mce: Chance
    bands: tuple[tuple[float, float], ...]


def top_label(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence (N,) in the most probable class and whether it is the label (N,), from probabilities (N, K)."""
    predicted = probabilities.argmax(axis=1)
    return probabilities.max(axis=1), predicted == labels


def checked(probabilities: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N,) as floats and outcomes (N,) as booleans. Raises ModelError outside [0, 1], DataError else."""
    predicted, happened = np.asarray(probabilities, float), binary(outcomes, "outcomes")
    if predicted.shape != happened.shape:
        raise DataError(
            f"{len(happened)} outcomes came with probabilities of shape {predicted.shape}; give one per case"
        )
    outside = predicted[~((predicted >= 0) & (predicted <= 1))]
    if outside.size:
        raise ModelError(
            f"{outside.size} probabilities lie outside [0, 1], such as {outside[0]}; apply softmax to logits"
        )
    return predicted, happened


def _edges(probabilities: np.ndarray, bins: int, strategy: Strategy) -> np.ndarray:
    if bins < 1:
        raise ConfigError(f"{bins} calibration bins is too few; use at least 1, 15 is usual")
    if strategy == "width":
        return np.linspace(0, 1, bins + 1)
    if strategy == "mass":
        values, cases = np.unique(probabilities, return_counts=True)
        below = np.cumsum(cases)[:-1]
        wanted = np.arange(1, bins) * len(probabilities) / bins
        cuts = np.unique(np.abs(below - wanted[:, None]).argmin(axis=1)) if len(below) else np.zeros(0, int)
        return np.concatenate([[0.0], values[1:][cuts], [1.0]])
    raise ConfigError(f"calibration bins {strategy!r} are not known; use 'width' or 'mass'")


def _membership(probabilities: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Index (N,) of the bin of each case; inner edges belong to the bin above them."""
    return np.searchsorted(edges[1:-1], probabilities, side="right")


def bins_of(probabilities: np.ndarray, bins: int, strategy: Strategy) -> np.ndarray:
    """Bin (N,) of each case, counted from 0 over the bins that have cases."""
    member = _membership(probabilities, _edges(probabilities, bins, strategy))
    return np.asarray(np.unique(member, return_inverse=True)[1])


def reliability(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    bins: int = 15,
    strategy: Strategy = "width",
    level: float = 0.95,
) -> tuple[Bin, ...]:
    """The reliability diagram: bins of equal width or of equal numbers of cases; empty bins are left out.

    probabilities, outcomes, patients: (N,). Equal probabilities are never split over two bins.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    if not count:
        return ()
    edges = _edges(predicted, bins, strategy)
    member = _membership(predicted, edges)
    return tuple(
        Bin(
            float(edges[index]),
            float(edges[index + 1]),
            float(predicted[member == index].mean()),
            proportion(happened[member == index], codes[member == index], level=level),
            int((member == index).sum()),
        )
        for index in np.unique(member)
    )


def _residuals(predicted: np.ndarray, happened: np.ndarray, bins: int, strategy: Strategy) -> np.ndarray:
    """Predicted minus observed (N, bins) in the column of the case's bin, 0 elsewhere."""
    edges = _edges(predicted, bins, strategy)
    columns = np.zeros((len(predicted), len(edges) - 1))
    columns[np.arange(len(predicted)), _membership(predicted, edges)] = predicted - happened
    return columns


def ece(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Expected calibration error: distance of mean probability and observed rate per bin, averaged over cases.

    probabilities, outcomes, patients: (N,). Guo et al. (2017), last bin closed. The plug-in value is too high in small
    samples, also for a perfect model: read it beside :func:`ece_null`, and do not compare groups of different size by
    it. The interval, from patient resamples shifted to the value, is the sampling error of this biased figure.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    residuals = _residuals(predicted, happened, bins, strategy)
    estimate = bootstrap(
        lambda weights: np.abs(weights @ residuals).sum(axis=1) / weights.sum(axis=1),
        codes,
        rng=rng,
        resamples=resamples,
        level=level,
        centred=True,
    )
    return estimate._replace(low=max(estimate.low or 0.0, 0.0), high=min(estimate.high or 0.0, 1.0))


def ece_change(
    before: np.ndarray,
    after: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """ECE of the probabilities ``after`` minus that of ``before``, of the same cases and the same patient resamples.

    before, after, outcomes, patients: (N,). Each side has its own bins. Resamples are shifted to the value, as for
    :func:`ece`.
    """
    first, happened = checked(before, outcomes)
    second, _ = checked(after, outcomes)
    codes, count = patient_codes(patients, len(first))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    sides = [_residuals(each, happened, bins, strategy) for each in (first, second)]

    def statistic(weights: np.ndarray) -> np.ndarray:
        one, other = (np.abs(weights @ side).sum(axis=1) for side in sides)
        return np.asarray((other - one) / weights.sum(axis=1))

    return bootstrap(statistic, codes, rng=rng, resamples=resamples, level=level, centred=True)


def mce(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Maximum calibration error: the largest distance of mean probability and observed rate over the bins (Guo 2017).

    probabilities, outcomes, patients: (N,). It is made by the emptiest bins and is far from 0 for a perfect model: it
    means nothing without :func:`calibrated_by_chance`. The interval is as for :func:`ece`.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    residuals = _residuals(predicted, happened, bins, strategy)
    cases = np.zeros_like(residuals)
    cases[np.arange(len(predicted)), _membership(predicted, _edges(predicted, bins, strategy))] = 1.0
    estimate = bootstrap(
        lambda weights: (np.abs(weights @ residuals) / np.maximum(weights @ cases, 1)).max(axis=1),
        codes,
        rng=rng,
        resamples=resamples,
        level=level,
        centred=True,
    )
    return estimate._replace(low=max(estimate.low or 0.0, 0.0), high=min(estimate.high or 0.0, 1.0))


def ece_null(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    draws: int = 1000,
) -> Chance | None:
    """The ECE of :func:`calibrated_by_chance`; None without cases."""
    found = calibrated_by_chance(probabilities, outcomes, patients, rng=rng, bins=bins, strategy=strategy, draws=draws)
    return found.ece if found else None


def calibrated_by_chance(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    draws: int = 1000,
) -> ByChance | None:
    """What the same predictions would show if they were perfectly calibrated; None without cases.

    Outcomes are drawn from the probabilities (Bröcker and Smith 2007). The cases of one patient share one uniform
    number, the strongest dependence they can have, so repeated images do not pass for independent evidence.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    if not count:
        return None
    edges = _edges(predicted, bins, strategy)
    order = np.argsort(_membership(predicted, edges), kind="stable")
    starts = np.flatnonzero(np.diff(_membership(predicted, edges)[order], prepend=-1))
    predicted, happened, codes = predicted[order], happened[order], codes[order]

    cases = np.diff(starts, append=len(predicted))

    def gaps(outcome: np.ndarray) -> np.ndarray:
        return np.asarray(np.add.reduceat(outcome - predicted, starts, axis=1)) / cases

    rows = max(1, 2_000_000 // len(predicted))
    sizes = [min(rows, draws - start) for start in range(0, draws, rows)]
    drawn = np.concatenate([gaps(rng.random((size, count))[:, codes] < predicted) for size in sizes])
    found = gaps(happened[None])
    expected = np.add.reduceat(predicted, starts) / cases
    low, high = np.clip(expected + np.quantile(drawn, [0.025, 0.975], axis=0), 0.0, 1.0)
    return ByChance(
        _chance(np.abs(drawn) @ cases / len(predicted), float((np.abs(found) @ cases)[0] / len(predicted))),
        _chance(np.abs(drawn).max(axis=1), float(np.abs(found).max())),
        tuple(zip(low.tolist(), high.tolist(), strict=True)),
    )


def _chance(errors: np.ndarray, found: float) -> Chance:
    mean, (low, high) = float(errors.mean()), np.quantile(errors, [0.025, 0.975])
    exceeded = int((errors >= found - 1e-12).sum())
    return Chance(mean, min(float(low), mean), max(float(high), mean), (1 + exceeded) / (1 + len(errors)))


def squared_calibration_error(
    probabilities: np.ndarray,
    outcomes: np.ndarray,
    patients: np.ndarray,
    *,
    rng: np.random.Generator,
    bins: int = 15,
    strategy: Strategy = "width",
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """Squared distance of probability and observed rate per bin, averaged over cases, less what sampling noise adds.

    probabilities, outcomes, patients: (N,). Debiased after Kumar, Liang and Ma (2019): from each bin the
    patient-clustered variance of its mean residual is subtracted, so a calibrated model has mean 0 at every size and
    single values may be negative. Its root, floored at 0, is on the scale of a probability. Bins with one patient have
    no visible noise and are left out.
    """
    predicted, happened = checked(probabilities, outcomes)
    codes, count = patient_codes(patients, len(predicted))
    if count < 2:
        return not_estimable("fewer than 2 patients" if count else "no cases", count)
    # (P, bins): what each patient adds to each bin
    residuals = np.zeros((count, len(_edges(predicted, bins, strategy)) - 1))
    cases = np.zeros_like(residuals)
    member = _membership(predicted, _edges(predicted, bins, strategy))
    np.add.at(residuals, (codes, member), predicted - happened)
    np.add.at(cases, (codes, member), 1.0)
    present = cases > 0
    if (present.sum(axis=0) < 2).all():
        return not_estimable("fewer than 2 patients in every bin", count)

    sums = np.stack([cases, residuals, present, residuals**2, residuals * cases, cases**2], axis=1)

    def statistic(weights: np.ndarray) -> np.ndarray:
        drawn = weights.astype(float) @ sums.reshape(count, -1)
        size, total, seen, squared, mixed, doubled = np.moveaxis(drawn.reshape(len(drawn), *sums.shape[1:]), 1, 0)
        mean = total / np.maximum(size, 1)
        squares = squared - 2 * mean * mixed + mean**2 * doubled
        noise = squares / np.maximum(size, 1) ** 2 * seen / np.maximum(seen - 1, 1)
        used = np.where(seen > 1, size, 0)
        return np.asarray((used * (mean**2 - noise)).sum(axis=1) / used.sum(axis=1))

    return bootstrap(statistic, np.arange(count), rng=rng, resamples=resamples, level=level, centred=True)


def root_of_squared(squared: Estimate) -> Estimate:
    """The debiased error on the scale of a probability: roots, floored at 0.

    A squared error below 0 is what chance leaves of a calibrated model: its interval is moved up to start from 0, so that
    it keeps its width.
    """
    if squared.value is None or squared.high is None or squared.low is None:
        return squared
    shift = max(-squared.value, 0.0)
    value, low, high = (float(np.sqrt(max(each + shift, 0.0))) for each in (squared.value, squared.low, squared.high))
    return squared._replace(value=value, low=low, high=high, method=f"{squared.method}, debiased, root floored at 0")
