"""The deployed decision, on NumPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError, ModelError
from xvision.methods.decision import Decision, decide, probabilities, shifted_logits


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([0, 1]), st.floats(0.01, 0.99))
def test_the_argmax_of_shifted_logits_is_the_thresholded_probability(
    seed: int, positive: int, threshold: float
) -> None:
    logits = 3 * np.random.default_rng(seed).normal(size=(50, 2))
    decision = Decision(positive, threshold)
    chosen = decide(logits, decision)
    expected = np.where(probabilities(logits)[:, positive] >= threshold, positive, 1 - positive)
    assert (chosen == expected).all()
    assert (shifted_logits(logits, decision).argmax(axis=1) == chosen).all()


@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_probability_at_the_threshold_is_positive(positive: int, threshold: float, kind: type) -> None:
    chances = np.array([[1 - threshold, threshold], [1 - threshold + 1e-4, threshold - 1e-4]])
    logits = np.log(chances if positive else chances[:, ::-1]).astype(kind)
    assert decide(logits, Decision(positive, threshold)).tolist() == [positive, 1 - positive]
    tensor = shifted_logits(torch.from_numpy(logits.copy()), Decision(positive, threshold))
    assert tensor.argmax(dim=1).tolist() == [positive, 1 - positive]


def test_torch_and_numpy_agree_and_gradients_of_differences_are_kept() -> None:
    values = np.random.default_rng(0).normal(size=(6, 2))
    logits = torch.tensor(values, requires_grad=True)
    shifted = shifted_logits(logits, Decision(1, 0.2))
    assert shifted.detach().numpy() == pytest.approx(shifted_logits(values, Decision(1, 0.2)), abs=1e-12)
    (shifted[:, 1] - shifted[:, 0]).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-1.0, 1.0]] * 6
    moved = (shifted[:, 1] - shifted[:, 0]).detach().numpy() - (values[:, 1] - values[:, 0])
    assert moved == pytest.approx(np.full(6, np.log(4)), abs=2e-6)


def test_the_logits_handed_in_are_not_changed() -> None:
    logits = np.zeros((2, 2))
    shifted_logits(logits, Decision(1, 0.9))
    assert (logits == 0).all()


def test_without_a_threshold_the_most_probable_class_is_decided() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]])
    assert decide(logits, Decision()).tolist() == [1, 0]
    assert shifted_logits(logits, Decision()) is logits


def test_probabilities_are_stable_and_sum_to_one() -> None:
    found = probabilities(np.array([[1000.0, 0.0], [-1000.0, -1001.0]], np.float32))
    assert found.dtype == np.float64
    assert found[0].tolist() == [1.0, 0.0]
    assert found[1] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.e)], abs=1e-15)
    assert found.sum(axis=1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.2, 50, float("nan")])
def test_a_threshold_is_strictly_between_zero_and_one(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"is not strictly between 0 and 1; 0\.5 is the most probable class"):
        Decision(1, threshold)


def test_half_given_or_impossible_decisions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positive class 1 and threshold None; give both or neither"):
        Decision(positive=1)
    with pytest.raises(ConfigError, match=r"positive class None and threshold 0\.5; give both or neither"):
        Decision(threshold=0.5)
    with pytest.raises(ConfigError, match="positive class 2 is not one of the two classes"):
        Decision(2, 0.5)
    with pytest.raises(ConfigError, match="class without disease 2 is not one of the two classes"):
        Decision(1, 0.5, no_disease=2)


@pytest.mark.parametrize(
    ("decision", "healthy"),
    [
        (Decision(1, 0.5), 0),
        (Decision(0, 0.5), 1),
        (Decision(1, 0.5, no_disease=1), 1),  # looks for "No Finding"
        (Decision(0, 0.5, no_disease=1), 1),
        (Decision(), None),
        (Decision(no_disease=0), 0),
    ],
)
def test_the_class_without_disease_is_the_one_stated(decision: Decision, healthy: int | None) -> None:
    assert decision.healthy == healthy


def test_logits_that_cannot_be_judged_are_refused() -> None:
    with pytest.raises(ModelError, match=r"decides between two classes, but the logits have shape \(4, 3\)"):
        decide(np.zeros((4, 3)), Decision(1, 0.5))
    with pytest.raises(ModelError, match="logits of 1 of 2 cases are not finite; find the images that cause it"):
        probabilities(np.array([[0.0, 1.0], [np.inf, 0.0]]))
    with pytest.raises(ModelError, match=r"logits have shape \(3,\); give one row per case"):
        decide(np.zeros(3), Decision())
