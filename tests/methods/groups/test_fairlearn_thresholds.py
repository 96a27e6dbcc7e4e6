"""What is read off fairlearn's randomised thresholds, held against its own draws and against the ROC curves."""

from __future__ import annotations

import numpy as np
import pytest
from fairlearn.postprocessing import ThresholdOptimizer
from sklearn.linear_model import LogisticRegression

from xvision.errors import DataError
from xvision.methods.groups.fairlearn_thresholds import Constraint, Mixture, fairlearn_mixtures


def cases(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups, labels = rng.choice(["a", "b", "c"], count, p=[0.5, 0.3, 0.2]), rng.random(count) < 0.4
    distance = np.select([groups == "a", groups == "b"], [2.5, 1.5], 0.8)
    return rng.normal(size=count) + labels * distance, labels, groups


def chances(mixtures: dict[str, Mixture], scores: np.ndarray, groups: np.ndarray) -> np.ndarray:
    found = np.zeros(len(scores))
    for name, mixture in mixtures.items():
        found[groups == name] = mixture.chance(scores[groups == name])
    return found


@pytest.mark.parametrize("constraint", ["equalized_odds", "true_positive_rate_parity", "false_positive_rate_parity"])
def test_chances_are_the_mean_of_what_fairlearn_draws(constraint: Constraint) -> None:
    scores, labels, groups = cases(600, 0)
    model = LogisticRegression().fit(scores[:, None], labels)
    # The same order of scores, so the same thresholds on them, through fairlearn's public face.
    own = ThresholdOptimizer(
        estimator=model, constraints=constraint, objective="balanced_accuracy_score", prefit=True, predict_method="decision_function"
    ).fit(scores[:, None], labels.astype(int), sensitive_features=groups)  # fmt: skip
    draws = [own.predict(scores[:, None], sensitive_features=groups, random_state=seed) for seed in range(30)]
    drawn, found = (
        np.mean(draws, axis=0),
        chances(fairlearn_mixtures(scores, labels, groups, constraint), scores, groups),
    )
    assert len(np.unique(found)) > 2
    for chance in np.unique(found):
        alike = found == chance
        assert abs(drawn[alike].mean() - chance) <= 5 * np.sqrt(chance * (1 - chance) / (30 * alike.sum()))


def test_the_groups_are_equal_in_what_is_asked() -> None:
    scores, labels, groups = cases(3000, 1)
    for constraint, sides in (
        ("equalized_odds", (0, 1)),
        ("true_positive_rate_parity", (1,)),
        ("false_positive_rate_parity", (0,)),
    ):
        found = chances(fairlearn_mixtures(scores, labels, groups, constraint), scores, groups)
        for side in sides:
            rates = [found[(groups == name) & (labels == side)].mean() for name in "abc"]
            assert np.ptp(rates) < 1e-9


def test_the_order_of_cases_changes_nothing() -> None:
    scores, labels, groups = cases(300, 2)
    order = np.random.default_rng(3).permutation(300)
    first = fairlearn_mixtures(scores, labels, groups, "equalized_odds")
    assert fairlearn_mixtures(scores[order], labels[order], groups[order], "equalized_odds") == first


def test_a_mixture_by_hand() -> None:
    mixture = Mixture((1.0, 2.0), second=0.25, ignored=0.4, constant=0.5)
    assert mixture.chance(np.array([0.0, 1.0, 1.5, 3.0])) == pytest.approx([0.2, 0.2, 0.2 + 0.6 * 0.75, 0.8])


def test_a_group_of_one_label_is_refused() -> None:
    with pytest.raises(DataError, match="group 'b' has cases of one label only"):
        fairlearn_mixtures(np.arange(4.0), np.array([0, 1, 1, 1]), np.array(["a", "a", "b", "b"]), "equalized_odds")


def test_perfect_scores_and_equal_scores_give_chances() -> None:
    groups, labels = np.tile(["a", "b"], 20), np.repeat([0, 1], 20)
    for scores in (labels * 5.0, np.zeros(40)):
        found = chances(fairlearn_mixtures(scores, labels, groups, "equalized_odds"), scores, groups)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert (found <= 1).all()
