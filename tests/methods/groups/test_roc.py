"""Thinned ROC curves stay where the curve is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, roc_curve

from xvision.methods.groups.roc import thinned_roc


@pytest.mark.parametrize("cases", [12, 200, 5000])
def test_no_vertex_that_is_left_out_lies_off_the_curve(cases: int) -> None:
    rng = np.random.default_rng(cases)
    labels = np.arange(cases) % 2
    scores = labels + rng.normal(size=cases)
    false, true, _ = roc_curve(labels, scores)
    few, drawn = thinned_roc(scores, labels)
    assert len(few) <= min(60, len(false))
    assert (few[0], drawn[0], few[-1], drawn[-1]) == (0, 0, 1, 1)
    assert auc(few, drawn) == pytest.approx(auc(false, true), abs=0.003)
    off = np.abs((true - false) - np.interp(false + true, few + drawn, drawn - few))
    assert off.max() < 0.02


def test_a_straight_curve_needs_two_vertices() -> None:
    few, drawn = thinned_roc(np.full(10, 0.5), np.arange(10) % 2)
    assert (few.tolist(), drawn.tolist()) == ([0, 1], [0, 1])
