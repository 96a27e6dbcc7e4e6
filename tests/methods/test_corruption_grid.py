"""What damage costs, from arrays whose every figure can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from xvision.methods.corruption_grid import Envelope, Grid, Reference, envelope, mean_corruption_error, undefined
from xvision.methods.decision import Decision
from xvision.methods.intervals import Estimate

BINARY = Decision(1, 0.5, True)


def grid(cases: int = 60, kinds: int = 3, seed: int = 0) -> Grid:
    rng = np.random.default_rng(seed)
    labels = np.arange(cases) % 2
    clean = np.stack([np.zeros(cases), (2 * labels - 1) + rng.normal(0, 1, cases)], axis=1)
    logits = clean[:, None, None, :] + rng.normal(0, 1, (cases, kinds, 5, 2)) * np.arange(1, 6)[None, None, :, None] / 3
    return Grid(logits, clean, labels, np.array([f"p{place // 2}" for place in range(cases)]), BINARY)


def test_shares_are_counts_over_cases() -> None:
    found = grid()
    wanted = (found.logits[:, 1, 4, 1] > found.logits[:, 1, 4, 0]) == (found.labels == 1)
    assert found.accuracy(1, 4).value == pytest.approx(wanted.mean())
    assert found.sensitivity(1, 4, 1).value == pytest.approx(wanted[found.labels == 1].mean())
    assert found.specificity(1, 4, 1).value == pytest.approx(wanted[found.labels == 0].mean())
    clean = (found.clean[:, 1] > found.clean[:, 0]) == (found.labels == 1)
    flips = (found.logits[:, 1, 4, 1] > found.logits[:, 1, 4, 0]) != (found.clean[:, 1] > found.clean[:, 0])
    assert found.flip_rate(1, 4).value == pytest.approx(flips.mean())
    kept = found.retention(1, 4, resamples=50, rng=np.random.default_rng(0))
    assert kept.value == pytest.approx(wanted.mean() / clean.mean())
    scores = found.logits[:, 1, 4, 1] - found.logits[:, 1, 4, 0]
    assert found.auroc(1, 4, 1).value == pytest.approx(roc_auc_score(found.labels, scores))
    mean = found.mean_accuracy([0, 2], resamples=50, rng=np.random.default_rng(0))
    assert mean.value == pytest.approx(found.hits[:, [0, 2]].mean())


def test_no_damage_costs_nothing() -> None:
    clean = grid()
    same = Grid(
        np.repeat(np.repeat(clean.clean[:, None, None], 2, 1), 5, 2), clean.clean, clean.labels, clean.patients, BINARY
    )
    kept = same.retention(0, 0, resamples=100, rng=np.random.default_rng(0))
    assert (kept.value, kept.high) == (1.0, 1.0)
    assert kept.low == pytest.approx(30 / (30 + 1.96**2), abs=1e-4)  # Wilson for thirty patients of thirty
    assert not same.flips.any()


def test_a_model_beside_itself_has_an_error_of_a_hundred() -> None:
    found = grid()
    own = Reference(1 - found.hits.mean(axis=0), 1 - found.clean_hits.mean())
    for relative in (False, True):
        estimate = found.corruption_error(
            [0, 1, 2], own, relative=relative, resamples=100, rng=np.random.default_rng(0)
        )
        assert estimate.value == pytest.approx(100)
        assert estimate.low is not None
        assert estimate.low < 100
    halved = mean_corruption_error(own.errors / 2, own.clean, own, relative=False)
    assert halved == pytest.approx(50)
    above = own.clean + (own.errors - own.clean) / 2
    assert mean_corruption_error(above, own.clean, own, relative=True) == pytest.approx(50)


def test_kinds_are_averaged_as_ratios_not_pooled() -> None:
    reference = Reference(np.array([[0.1] * 5, [0.4] * 5]), 0.05)
    errors = np.array([[0.2] * 5, [0.4] * 5])
    assert mean_corruption_error(errors, 0.05, reference, relative=False) == pytest.approx(100 * (2 + 1) / 2)
    assert mean_corruption_error(errors, 0.05, reference, relative=True) == pytest.approx(100 * (3 + 1) / 2)


def test_a_ratio_to_nothing_is_not_estimated() -> None:
    reference = Reference(np.array([[0.0] * 5, [0.2] * 5]), 0.2)
    assert undefined(reference, relative=False) == (0,)
    assert undefined(reference, relative=True) == (0, 1)
    estimate = grid(kinds=2).corruption_error(
        [0, 1], reference, relative=True, resamples=10, rng=np.random.default_rng(0)
    )
    assert estimate.value is None
    assert "loses nothing" in str(estimate.reason)


def figure(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, 10, "a test")


def test_the_envelope_needs_the_whole_interval() -> None:
    figures = [figure(0.9, 1.0), figure(0.82, 0.9), figure(0.75, 0.85), figure(0.6, 0.79), figure(0.85, 0.95)]
    assert envelope(figures, 0.8) == Envelope(1, 3)  # a later recovery does not count
    assert envelope(figures, 0.95) == Envelope(-1, 1)
    assert envelope(figures, 0.5) == Envelope(4, None)
    nothing = Estimate(None, None, None, 0, "", "none")
    assert envelope([figure(0.9, 1.0), nothing, figure(0.9, 1.0)], 0.8) == Envelope(0, None)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_what_holds_ends_before_what_is_missed(bounds: list[tuple[float, float]], agreed: float) -> None:
    found = envelope([figure(min(pair), max(pair)) for pair in bounds], agreed)
    assert found.crossed is None or found.holds < found.crossed
