"""Intervals of shares that are drawn: the plain ones where nothing is drawn, and what they cover where something is."""

from __future__ import annotations

import numpy as np
import pytest

from xvision.errors import DataError
from xvision.methods.groups.expected import Chances, expected_combination, expected_share
from xvision.methods.intervals import Sample, combination, proportion, wilson


def test_certain_hits_have_the_intervals_of_proportions() -> None:
    hits, patients = np.array([1.0, 0, 1, 1, 0, 1]), np.array([0, 0, 1, 2, 3, 3])
    assert expected_share(Chances(hits, patients)) == proportion(hits, patients)
    pair = Chances(hits, patients), Chances(1 - hits, patients)
    assert expected_combination(pair, (1, -1)) == combination([Sample(*each) for each in pair], (1, -1))


def test_the_same_chance_for_everybody_is_a_binomial() -> None:
    found = expected_share(Chances(np.full(50, 0.3), np.arange(50)))
    assert (found.low, found.high) == pytest.approx(wilson(15, 50))
    assert found.value == pytest.approx(0.3)


def test_two_patients_with_two_images_by_hand() -> None:
    found = expected_share(Chances(np.array([0.9, 0.7, 0.1, 0.3]), np.array(["a", "a", "b", "b"])))
    pulls, draws = 2 * (0.6 / 4) ** 2 * 2, (0.09 + 0.21 + 0.09 + 0.21) / 16
    worth = 0.25 / (pulls + draws)  # cases that the share is worth
    assert (found.low, found.high) == pytest.approx(wilson(0.5 * worth, worth))
    assert found.n == 2


def test_nobody_and_chances_that_are_none() -> None:
    assert expected_share(Chances(np.zeros(0), np.zeros(0))).reason == "no cases"
    with pytest.raises(DataError, match="give numbers from 0 to 1"):
        expected_share(Chances(np.array([0.5, 1.2]), np.arange(2)))


def test_images_copied_under_one_patient_and_drawn_together_would_be_one_so_copies_narrow_by_draws_alone() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([0.0, 0.999], 40)
    one = expected_share(Chances(values, np.arange(40)))
    five = expected_share(Chances(np.repeat(values, 5), np.repeat(np.arange(40), 5)))
    assert (five.high - five.low) == pytest.approx(one.high - one.low, rel=0.02)


def test_the_interval_of_a_paired_change_covers_a_new_draw_of_new_patients() -> None:
    """Deployed: a threshold. Preview: drawn with a chance that follows the same score. True change from many cases."""
    rng = np.random.default_rng(1)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        score = rng.normal(size=count)
        return 0.2 + 0.6 * (score > -0.5), (score > 0).astype(float)

    chance, deployed = drawn(400_000)
    truth, inside, width = chance.mean() - deployed.mean(), 0, 0.0
    for _ in range(400):
        chance, deployed = drawn(60)
        realised = (rng.random(60) < chance).mean() - deployed.mean()
        found = expected_combination((Chances(chance, np.arange(60)), Chances(deployed, np.arange(60))), (1, -1))
        half = (found.high - found.low) / 2
        inside += abs(realised - truth) <= half
        width += half
    assert 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400) <= inside / 400 <= 0.985
    assert width / 400 < 0.17
