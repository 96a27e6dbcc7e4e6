"""Reliance in closed form: nothing, everything and more than everything; performance as scikit-learn has it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, recall_score, roc_auc_score

from xvision.methods.image_reliance import reliance, weighted_auroc, weighted_balanced_accuracy, weighted_recall

RNG = np.random.default_rng(0)
LABELS = np.arange(120) % 3
PATIENTS = np.array([f"p{place}" for place in range(120)])


def test_performances_are_those_of_repeated_cases() -> None:
    weights = RNG.integers(0, 4, (5, 120))
    scores = RNG.integers(0, 9, 120) / 9.0
    decided = RNG.integers(0, 3, 120)
    for row, drawn in enumerate(weights):
        repeated = np.repeat(np.arange(120), drawn)
        labels = LABELS[repeated]
        assert weighted_auroc(scores, LABELS == 1)(weights)[row] == pytest.approx(
            roc_auc_score(labels == 1, scores[repeated])
        )
        assert weighted_balanced_accuracy(decided, LABELS)(weights)[row] == pytest.approx(
            balanced_accuracy_score(labels, decided[repeated])
        )
        assert weighted_recall(decided, LABELS, 2)(weights)[row] == pytest.approx(
            recall_score(labels, decided[repeated], labels=[2], average=None)[0]
        )


def test_reliance_is_the_share_lost_of_what_is_better_than_chance() -> None:
    right = LABELS
    half = np.where(np.arange(120) % 2 == 0, LABELS, (LABELS + 1) % 3)  # each class half right
    wrong = (LABELS + 1) % 3
    clean = weighted_balanced_accuracy(right, LABELS)
    for decided, wanted in ((right, 0.0), (half, 0.75), (wrong, 1.5)):
        without = weighted_balanced_accuracy(decided, LABELS)
        found = reliance(clean, without, 1 / 3, PATIENTS, resamples=200, rng=np.random.default_rng(0))
        assert found.value == pytest.approx(wanted)
        assert found.low is not None
        assert found.high is not None
        assert found.low - 1e-9 <= wanted <= found.high + 1e-9


def test_there_is_nothing_to_rely_on_at_chance() -> None:
    constant = weighted_auroc(np.zeros(120), LABELS == 1)
    found = reliance(constant, constant, 0.5, PATIENTS, resamples=100, rng=np.random.default_rng(0))
    assert found.value is None
    assert "nothing to rely on" in str(found.reason)
