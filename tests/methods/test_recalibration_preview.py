"""Previews of a recalibration against the figures computed by hand before and after."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, log_loss

from xvision.methods.decision import Decision
from xvision.methods.intervals import Estimate
from xvision.methods.recalibration import Recalibration
from xvision.methods.recalibration_preview import judged, platt_logits, preview


def test_what_is_judged_of_two_and_of_more_classes() -> None:
    logits, labels = np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([1, 1])
    two = judged(logits, labels, Decision(0, 0.5, True))
    assert two.probabilities == pytest.approx(softmax(logits, axis=1)[:, 0])
    assert two.outcomes.tolist() == [False, False]
    more = judged(logits, labels, Decision())
    assert more.probabilities == pytest.approx(softmax(logits, axis=1).max(axis=1))
    assert more.outcomes.tolist() == [False, True]


@pytest.mark.parametrize("positive", [0, 1])
def test_platt_moves_the_log_odds_of_the_positive_class(positive: int) -> None:
    line = Recalibration(Estimate(0.5, 0, 1, 9, ""), Estimate(-1.0, -2, 0, 9, ""))
    logits = platt_logits(expit(np.array([-2.0, 0.0, 4.0])), line, positive)
    assert softmax(logits, axis=1)[:, positive] == pytest.approx(expit([-2.0, -1.0, 1.0]))


def test_figures_are_those_of_before_and_after_and_decisions_are_counted() -> None:
    rng = np.random.default_rng(0)
    odds = rng.normal(size=400)
    labels = (rng.random(400) < expit(odds)).astype(int)
    deployed = np.column_stack([np.zeros(400), 2 * odds + 1])
    after = np.column_stack([np.zeros(400), odds])
    decision = Decision(1, 0.7, True)
    seen = preview(deployed, after, labels, np.arange(400), decision, rng=rng, resamples=200)
    said = [expit(each[:, 1]) for each in (deployed, after)]
    for name, peer in (("brier", brier_score_loss), ("nll", log_loss)):
        effect = seen.effects[name]
        assert effect.after.value == pytest.approx(peer(labels, said[1]))
        assert effect.change.value == pytest.approx(peer(labels, said[1]) - peer(labels, said[0]))
        assert (effect.change.high or 0) < 0
    decided = [each >= 0.7 for each in said]
    assert (seen.gained, seen.lost) == (int((decided[1] & ~decided[0]).sum()), int((decided[0] & ~decided[1]).sum()))
    assert seen.lost > 0
    assert seen.changed.value == pytest.approx((decided[0] != decided[1]).mean())


def test_changing_nothing_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 3)), rng.integers(0, 3, 60)
    seen = preview(logits, logits.copy(), labels, np.arange(60), Decision(), rng=rng, resamples=50)
    for effect in seen.effects.values():
        assert effect.change[:3] == (0.0, 0.0, 0.0)
    assert (seen.changed.value, seen.gained, seen.lost) == (0.0, 0, 0)
