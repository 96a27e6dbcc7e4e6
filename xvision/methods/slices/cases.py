"""Cases for a search of slices, and their two halves. Shapes: N cases, D values of an embedding, K classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.intervals import patient_codes

_FINEST_BINS = 20
_BIN_CASES = 25


class SliceCases(NamedTuple):
    """embeddings: (N, D). labels, decisions: (N,) class codes. probabilities: (N, K). patients: (N,) integers from 0."""

    embeddings: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    patients: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """(N,) bool."""
        wrong: np.ndarray = self.labels != self.decisions
        return wrong


def checked(
    embeddings: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, decisions: np.ndarray, patients: np.ndarray
) -> SliceCases:
    """Cases ready for a search. Raises DataError where shapes disagree or an embedding is not finite."""
    vectors, given = np.asarray(embeddings, dtype=np.float32), np.asarray(probabilities, dtype=float)
    truth, decided = np.asarray(labels), np.asarray(decisions)
    if vectors.ndim != 2 or given.ndim != 2 or not len(vectors) == len(given) == len(truth) == len(decided):
        raise DataError(
            f"{len(vectors)} embeddings came with {len(truth)} labels, {len(given)} rows of probabilities and {len(decided)}"
            " decisions; give one per case"
        )
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        raise DataError(
            f"{int(broken.sum())} of {len(vectors)} embeddings hold values that are not finite; leave these cases out"
        )
    return SliceCases(vectors, truth, given, decided, patient_codes(patients, len(truth))[0])


def halves(labels: np.ndarray, errors: np.ndarray, patients: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool: who is in the discover half. Whole patients, alike in their highest label and in whether they have an error."""
    count = int(patients.max(initial=-1)) + 1
    highest, wrong = np.zeros(count, dtype=int), np.zeros(count, dtype=bool)
    np.maximum.at(highest, patients, labels)
    np.logical_or.at(wrong, patients, errors)
    order = rng.permutation(count)
    order = order[np.argsort(2 * highest[order] + wrong[order], kind="stable")]
    first = np.zeros(count, dtype=bool)
    first[order[::2]] = True
    return np.asarray(first[patients])


def score_strata(probabilities: np.ndarray, decisions: np.ndarray) -> np.ndarray:
    """(N,) codes of cases that the model decides alike and with about the same probability."""
    sure = probabilities[np.arange(len(decisions)), decisions]
    strata = np.zeros(len(decisions), dtype=int)
    for code in np.unique(decisions):
        own = np.flatnonzero(decisions == code)
        bins = int(np.clip(len(own) // _BIN_CASES, 1, _FINEST_BINS))
        edges = np.unique(np.quantile(sure[own], np.arange(1, bins) / bins))
        strata[own] = code * (_FINEST_BINS + 1) + np.searchsorted(edges, sure[own], side="right")
    return np.unique(strata, return_inverse=True)[1]


def dealt_anew(cases: SliceCases, rng: np.random.Generator) -> SliceCases:
    """The cases with their answers dealt out anew among cases of the same label, so that no slice is left.

    Whole runs of answers change hands in the order of patients, so that the errors of one patient mostly stay together.
    """
    giver, taker = np.empty(len(cases.labels), dtype=int), np.empty(len(cases.labels), dtype=int)
    orders = [rng.permutation(int(cases.patients.max(initial=0)) + 1)[cases.patients] for _ in range(2)]
    start = 0
    for code in np.unique(cases.labels):
        own = np.flatnonzero(cases.labels == code)
        for target, order in zip((giver, taker), orders, strict=True):
            target[start : start + len(own)] = own[np.argsort(order[own], kind="stable")]
        start += len(own)
    source = np.empty_like(giver)
    source[taker] = giver
    return cases._replace(probabilities=cases.probabilities[source], decisions=cases.decisions[source])
