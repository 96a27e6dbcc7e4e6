"""Point estimates of rates by group, from fairlearn. Only this file and its neighbours called so import fairlearn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xvision.methods.groups.cases import Cases


def fairlearn_rates(cases: Cases) -> dict[str, dict[str, float]]:
    """Rate by group and name. A rate whose denominator is empty is 0.0 here: the caller must know better."""
    # Imported here because fairlearn takes seconds to load, which listing or reading must not wait for.
    from fairlearn.metrics import (
        MetricFrame,
        false_negative_rate,
        false_positive_rate,
        selection_rate,
        true_negative_rate,
        true_positive_rate,
    )
    from sklearn.metrics import accuracy_score, precision_score

    def ppv(truth: np.ndarray, decided: np.ndarray) -> float:
        return float(precision_score(truth, decided, zero_division=0.0))

    def npv(truth: np.ndarray, decided: np.ndarray) -> float:
        return float(precision_score(truth, decided, pos_label=0, zero_division=0.0))

    metrics: dict[str, Callable[..., float]] = {
        "sensitivity": true_positive_rate,
        "specificity": true_negative_rate,
        "fpr": false_positive_rate,
        "fnr": false_negative_rate,
        "ppv": ppv,
        "npv": npv,
        "selection_rate": selection_rate,
        "accuracy": accuracy_score,
    }
    if not len(cases.labels):
        return {}
    frame = MetricFrame(
        metrics=metrics,
        y_true=cases.labels.astype(int),
        y_pred=cases.decisions.astype(int),
        sensitive_features={"group": cases.groups},  # a bare array of one case is refused
    )
    return {
        str(group): {metric: float(value) for metric, value in row.items()} for group, row in frame.by_group.iterrows()
    }
