"""Maps of a linear model do not move, except where the image does."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.stats import spearmanr
from statsmodels.stats.proportion import proportion_confint

from tests.analyses.subjects import SIDE, subject
from xvision.analyses.explanation_stability import explanation_stability
from xvision.result import Metric, Result

WEIGHTS = np.random.default_rng(2).normal(size=(SIDE, SIDE)).astype(np.float32)
HARMLESS = ("exposure + 2 %", "contrast − 2 %", "mild JPEG", "another seed")


def pictures(count: int = 12) -> np.ndarray:
    return np.random.default_rng(1).random((count, SIDE, SIDE)).astype(np.float32)


@cache
def stability() -> Result:
    return explanation_stability(subject(WEIGHTS, pictures()), methods=("saliency", "smooth_grad", "input_x_gradient"))


def found(name: str, **where: str) -> Metric:
    return next(item for item in stability().metrics if item.name == name and dict(item.where) == where)


@pytest.mark.parametrize("change", HARMLESS)
@pytest.mark.parametrize("method", ["saliency", "smooth_grad"])
def test_a_constant_gradient_gives_the_same_map(method: str, change: str) -> None:
    assert found("map_similarity", method=method, change=change).value == pytest.approx(1.0, abs=1e-6)


def test_16_bit_arithmetic_barely_changes_the_ranks() -> None:
    value = found("map_similarity", method="saliency", change="16-bit arithmetic").value
    assert value == pytest.approx(1.0, abs=1e-3)
    assert value < 1.0  # rounding ties some weights


def test_another_seed_draws_anew() -> None:
    result = explanation_stability(subject(WEIGHTS, pictures()), methods=("rise",), masks=40)
    drawn = {item.where["change"]: item.value for item in result.metrics if item.name == "map_similarity"}
    assert drawn["contrast − 2 %"] > 0.95
    assert drawn["another seed"] < 0.7


def test_a_shifted_map_is_shifted_back() -> None:
    """A map of the model's fixed weights does not follow the image, so shifting it back moves it."""
    moved = np.roll(WEIGHTS, (-1, -1), (0, 1))
    expected = spearmanr(np.abs(WEIGHTS).ravel(), np.abs(moved).ravel()).statistic
    assert found("map_similarity", method="saliency", change="shift by 1 pixel").value == pytest.approx(expected)


def test_decisions_are_those_of_the_changed_image() -> None:
    clean = np.einsum("nij,ij->n", pictures(), WEIGHTS) > 0
    shifted = np.einsum("nij,ij->n", np.roll(pictures(), (1, 1), (1, 2)), WEIGHTS) > 0
    assert found("decision_kept", change="shift by 1 pixel").value == pytest.approx((clean == shifted).mean())


def test_decisions_that_are_all_kept_have_an_interval_of_some_width() -> None:
    item = found("decision_kept", change="another seed")
    low, high = proportion_confint(12, 12, method="wilson")
    assert (item.value, item.high) == (1.0, 1.0)
    assert item.low == pytest.approx(low)
    assert high == pytest.approx(1.0)


def test_cases_decided_otherwise_are_left_out() -> None:
    clean = np.einsum("nij,ij->n", pictures(), WEIGHTS) > 0
    shifted = np.einsum("nij,ij->n", np.roll(pictures(), (1, 1), (1, 2)), WEIGHTS) > 0
    assert found("map_similarity", method="saliency", change="shift by 1 pixel").n == (clean == shifted).sum()


def test_what_tells_another_story_is_a_caveat() -> None:
    assert any(
        caveat.startswith("Saliency tells another story after shift by 1 pixel") for caveat in stability().caveats
    )
    assert not any("exposure" in caveat for caveat in stability().caveats)
    assert "under shift by 1 pixel" in stability().summary
