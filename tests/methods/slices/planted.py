"""Embeddings in which a slice that fails is planted, or none."""

from __future__ import annotations

import numpy as np

from xvision.methods.slices.cases import SliceCases, checked


def clustered(
    seed: int, *, share_wrong: float = 0.5, cases: int = 4000, copies: int = 1
) -> tuple[SliceCases, np.ndarray]:
    """20 clusters in 64 dimensions; in the first, 4 % of the cases, ``share_wrong`` are wrong, elsewhere 8 %.

    Also (N,) whether a case is of the first. copies: rows of each patient, all alike.
    """
    rng = np.random.default_rng(seed)
    centres = 0.7 * rng.normal(size=(20, 64))
    cluster = rng.choice(20, cases, p=np.r_[0.04, np.full(19, 0.96 / 19)])
    embeddings = centres[cluster] + rng.normal(size=(cases, 64))
    labels = rng.integers(0, 2, cases)
    wrong = rng.random(cases) < np.where(cluster == 0, share_wrong, 0.08)
    decisions = np.where(wrong, 1 - labels, labels)
    sure = rng.uniform(0.9, 0.99, cases)
    positive = np.where(decisions == 1, sure, 1 - sure)
    rows = np.repeat(np.arange(cases), copies)
    both = np.column_stack([1 - positive, positive])
    return checked(embeddings[rows], labels[rows], both[rows], decisions[rows], rows), (cluster == 0)[rows]


def knowing(seed: int, cases: int = 1600) -> tuple[SliceCases, np.ndarray]:
    """One cluster of five is hard, and the model's probability says so: 0.6 there and 0.95 elsewhere, both true."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, 5, cases)
    embeddings = 3 * rng.normal(size=(5, 8))[cluster] + rng.normal(size=(cases, 8))
    labels = rng.integers(0, 2, cases)
    sure = np.where(cluster == 0, 0.6, 0.95)
    decisions = np.where(rng.random(cases) < sure, labels, 1 - labels)
    positive = np.where(decisions == 1, sure, 1 - sure)
    return checked(
        embeddings, labels, np.column_stack([1 - positive, positive]), decisions, np.arange(cases)
    ), cluster == 0
