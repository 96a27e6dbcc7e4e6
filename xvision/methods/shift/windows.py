"""Is a new batch more unlike the reference than batches of the reference itself are? One answer for many channels together.

Every channel, a number per case, has a distance of distributions; windows of the reference, drawn by patient, say how large each
distance gets by chance, and the largest of all standardised distances how large any of them gets, so that the chance of a
false alarm holds for all channels together (Westfall and Young 1993). Shapes: N reference and M current cases, D channels, B windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import patient_codes


class Cases(NamedTuple):
    """values: (N, D) one number per channel. decisions: (N,) class indices. patients: (N,)."""

    values: np.ndarray
    decisions: np.ndarray
    patients: np.ndarray


class Unlike(NamedTuple):
    """distances, usual, adjusted: (D + 1,), the last for the decisions: how unlike, what windows of the reference show on
    average, and the chance that any channel of a window is as unlike (standardised). p: the smallest of these. window: cases of
    a window, at most M.
    """

    distances: np.ndarray
    usual: np.ndarray
    adjusted: np.ndarray
    p: float
    window: int


def unlike(reference: Cases, current: Cases, classes: int, *, windows: int, rng: np.random.Generator) -> Unlike:
    """Kolmogorov-Smirnov distances of every channel and the total variation of the decisions, beside those of windows.

    A window is compared with the rest of the reference, and is no larger than half of it: for a larger batch, whose distances
    vary less by chance, alarms are then rarer than said. Nor has it more patients than the batch: where these have more images
    each than those of the reference, they count as if their images were copies, and alarms are rarer, too. Raises
    DataError for fewer than 4 reference cases or 2 patients, no current case or other channels.
    """
    if len(reference.values) < 4 or not len(current.values) or reference.values.shape[1:] != current.values.shape[1:]:
        raise DataError(
            f"found values of shape {reference.values.shape} and {current.values.shape}: give 4 reference cases or more and"
            " the same channels for both"
        )
    ladder = [np.sort(column) for column in reference.values.T]
    shares = np.bincount(reference.decisions, minlength=classes) / len(reference.decisions)
    size = min(len(current.values), len(reference.values) // 2)
    codes, patients = patient_codes(reference.patients, len(reference.values))
    if patients < 2:
        raise DataError("the reference cases are of one patient, so nothing says how much patients differ; give more")
    most = _patients_of_a_window(codes, patient_codes(current.patients, len(current.values))[0])
    members = [_window(codes, patients, size, most, rng) for _ in range(windows)]
    drawn = np.stack([_null(reference, ladder, shares, member) for member in members])
    mean, spread = drawn.mean(axis=0), np.maximum(drawn.std(axis=0), 1e-12)
    distances = _distances(ladder, shares, current.values, current.decisions)
    largest = np.sort(((drawn - mean) / spread).max(axis=1))
    beyond = windows - np.searchsorted(largest, (distances - mean) / spread - 1e-9, side="left")
    adjusted = (1 + beyond) / (1 + windows)
    window = min(size, round(float(np.mean([member.sum() for member in members]))))
    return Unlike(distances, mean, adjusted, float(adjusted.min()), window)


def _patients_of_a_window(codes: np.ndarray, current: np.ndarray) -> int:
    """The most patients that a window may have, from the patients (N,) and (M,) of both sides: half of the reference's, and no
    more than are worth as many independent cases as the batch is (Kish).
    """
    sizes, others = np.bincount(codes), np.bincount(current)
    even = sizes.sum() ** 2 / (sizes @ sizes) / len(sizes)
    worth = others.sum() ** 2 / (others @ others) / even
    return max(1, min(len(sizes) // 2, len(others), round(float(worth))))


def _window(codes: np.ndarray, patients: int, size: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, whole patients, the first that make up ``size`` cases, but at most so many."""
    order = rng.permutation(patients)
    counts = np.cumsum(np.bincount(codes, minlength=patients)[order])
    rank = np.empty(patients, dtype=int)
    rank[order] = np.arange(patients)
    return np.asarray(rank[codes] <= min(np.searchsorted(counts, size), most - 1))


def _null(reference: Cases, ladder: list[np.ndarray], shares: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Distances of a window from the rest: those from the whole, which holds it, times N / (N − n)."""
    whole, part = len(member), int(member.sum())
    found = _distances(ladder, shares, reference.values[member], reference.decisions[member])
    return found * whole / max(whole - part, 1)


def _distances(ladder: list[np.ndarray], shares: np.ndarray, values: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    found = [_kolmogorov_smirnov(column, own) for column, own in zip(ladder, values.T, strict=True)]
    mix = np.bincount(decisions, minlength=len(shares)) / len(decisions)
    return np.array([*found, 0.5 * np.abs(mix - shares).sum()])


def _kolmogorov_smirnov(ladder: np.ndarray, values: np.ndarray) -> float:
    """The largest distance of two distribution functions; of the first the sorted values are given."""
    own = np.sort(values)
    gaps = [
        np.abs(np.searchsorted(ladder, own, side) / len(ladder) - np.searchsorted(own, own, side) / len(own))
        for side in ("left", "right")
    ]
    return float(np.max(gaps))
