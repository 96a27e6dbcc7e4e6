"""Randomised thresholds by group, from fairlearn (Hardt et al. 2016), as chances of a positive decision. Shapes: N cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from xvision.errors import DataError

Constraint = Literal["true_positive_rate_parity", "false_positive_rate_parity", "equalized_odds"]


class Mixture(NamedTuple):
    """How the cases of one group are decided.

    With chance ``ignored`` by a coin that shows positive with chance ``constant``, whatever the image; else by one of two
    thresholds, the second with chance ``second``. A score above the threshold is positive.
    """

    thresholds: tuple[float, float]
    second: float = 0.0
    ignored: float = 0.0
    constant: float = 0.0

    def chance(self, scores: np.ndarray) -> np.ndarray:
        """Probability of a positive decision (N,) for scores (N,)."""
        first, second = (scores > threshold for threshold in self.thresholds)
        by_score = (1 - self.second) * first + self.second * second
        return np.round(self.ignored * self.constant + (1 - self.ignored) * by_score, 12)


def fairlearn_mixtures(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray, constraint: Constraint
) -> dict[str, Mixture]:
    """The mixture of each group that makes the groups equal in what the constraint names, at the best balanced accuracy.

    scores, labels, groups: (N,) of the cases to fit on. Nothing is drawn: what fairlearn draws with a seed is read off as
    chances. Raises DataError when a group has cases of one label only.
    """
    for name in np.unique(groups):
        if len(np.unique(labels[groups == name])) < 2:
            raise DataError(f"the group {str(name)!r} has cases of one label only; leave it out")
    # Imported here because fairlearn takes seconds to load, which listing or reading must not wait for.
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.linear_model import LinearRegression

    given = LinearRegression()  # hands back the scores it is asked about
    given.coef_, given.intercept_ = np.ones(1), 0.0
    optimiser = ThresholdOptimizer(
        estimator=given,
        constraints=constraint,
        objective="balanced_accuracy_score",
        prefit=True,
        predict_method="predict",
    )
    optimiser.fit(np.asarray(scores, float)[:, None], labels.astype(int), sensitive_features=groups)
    found = optimiser.interpolated_thresholder_.interpolation_dict
    return {str(name): _mixture(each) for name, each in found.items()}


def _mixture(found: Mapping[str, Any]) -> Mixture:
    """fairlearn's own record of a group, without its rounding errors beyond 0 and 1."""
    second, ignored = (min(max(float(found.get(name, 0.0)), 0.0), 1.0) for name in ("p1", "p_ignore"))
    first, other = (float(found[name].threshold) for name in ("operation0", "operation1"))
    return Mixture((first, other), second, ignored, float(found.get("prediction_constant", 0.0)))
