"""Shares of outcomes that are drawn by lot, each with a chance of its own. Shapes: N cases, P patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import (
    Estimate,
    Sample,
    combination,
    mover,
    not_estimable,
    patient_codes,
    proportion,
    wilson,
)


class Chances(NamedTuple):
    """The chance (N,) that each case is a hit, 0 or 1 where nothing is drawn, and whose cases they are (N,)."""

    values: np.ndarray
    patients: np.ndarray


class _Share(NamedTuple):
    estimate: Estimate
    influence: np.ndarray
    variance: float


def expected_share(sample: Chances, *, level: float = 0.95) -> Estimate:
    """The share of hits to be expected, with an interval for new patients and a new draw: Wilson's, patient-clustered.

    Chances of 0 and 1 alone give :func:`~xvision.methods.intervals.proportion`.
    """
    if not len(sample.values):
        return not_estimable("no cases")
    if _certain(sample):
        return proportion(sample.values, sample.patients, level=level)
    return expected_combination((sample,), (1.0,), level=level)


def expected_combination(samples: Sequence[Chances], coefficients: Sequence[float], *, level: float = 0.95) -> Estimate:
    """A weighted sum of shares, such as the share with a rule minus the share without it in the same cases.

    As :func:`~xvision.methods.intervals.combination`, which it is for chances of 0 and 1 alone. The draws of one sample
    are taken as independent of those of another, given the chances.
    """
    if not all(len(sample.values) for sample in samples):
        return not_estimable("no cases in one of the groups")
    if all(_certain(sample) for sample in samples):
        return combination([Sample(*sample) for sample in samples], coefficients, level=level)
    ends = np.cumsum([len(sample.values) for sample in samples])
    codes, count = patient_codes(np.concatenate([sample.patients for sample in samples]), int(ends[-1]))
    parts = np.split(codes, ends[:-1])
    shares = [_share(sample.values, part, count, level) for sample, part in zip(samples, parts, strict=True)]
    pulls, spreads = np.stack([share.influence for share in shares]), np.array([share.variance for share in shares])
    scale = np.sqrt(np.where(spreads > 0, spreads, np.inf))
    correlation = np.clip((pulls @ pulls.T) / np.outer(scale, scale), -1.0, 1.0)
    np.fill_diagonal(correlation, 1.0)
    value, low, high = mover([share.estimate for share in shares], coefficients, correlation)
    return Estimate(value, low, high, count, "Wilson with draws" if len(samples) == 1 else "MOVER with draws")


def _certain(sample: Chances) -> bool:
    return bool(np.isin(sample.values, (0, 1)).all())


def _share(values: np.ndarray, codes: np.ndarray, count: int, level: float) -> _Share:
    """One share, each patient's pull on it (P,), and its variance over patients and draws."""
    if values.min() < 0 or values.max() > 1:
        raise DataError(f"chances go from {values.min()} to {values.max()}; give numbers from 0 to 1")
    cases, share = len(values), float(values.mean())
    sizes = np.bincount(codes, minlength=count)
    patients = int(np.count_nonzero(sizes))
    influence = np.bincount(codes, values - share, count) / cases * np.sqrt(patients / max(patients - 1, 1))
    variance = float(influence @ influence + (values * (1 - values)).sum() / cases**2)
    kish = cases**2 / float(sizes @ sizes)
    effective = min(cases, share * (1 - share) / variance) if variance > 0 and patients > 1 else kish
    low, high = wilson(share * effective, effective, level)
    return _Share(Estimate(share, min(low, share), max(high, share), patients, ""), influence, variance)
