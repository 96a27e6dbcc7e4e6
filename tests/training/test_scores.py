from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.training.record import Arrays
from xvision.training.scores import auroc, majority_rate, pixel_baseline


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_pairs_in_order(cases: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([score / 10 for score, _ in cases]), np.array([int(label) for _, label in cases])
    found = auroc(np.stack((1 - scores, scores), axis=1), labels)
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    if pairs:
        assert found.value == pytest.approx(np.mean(pairs))
        assert found.reason is None
    else:
        assert found.value is None
        assert found.reason == f"no image of class {1 - labels[0]}"


def test_multiclass_auroc_is_the_mean_of_one_against_the_rest() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 60)
    probabilities = generator.dirichlet(np.ones(3), 60)
    each = []
    for index in range(3):
        own, rest = probabilities[labels == index, index], probabilities[labels != index, index]
        each.append(np.mean(own[:, None] > rest[None]))
    assert auroc(probabilities, labels).value == pytest.approx(np.mean(each))


def test_majority_rate_follows_the_training_labels() -> None:
    assert majority_rate(np.array([0, 0, 1]), np.array([0, 1, 1, 1]), 2) == 0.25


def noise(count: int, brightness: float, seed: int) -> Arrays:
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = generator.integers(0, 200, (count, 1, 64, 64)) + (brightness * labels)[:, None, None, None]
    return Arrays(pixels.astype(np.uint8), labels.astype(np.int64))


def test_pixel_baseline_finds_brightness_and_nothing_in_noise() -> None:
    bright = pixel_baseline(noise(100, 20, 0), noise(60, 20, 1), 2, seed=0)
    assert bright.value is not None
    assert bright.value > 0.99
    nothing = pixel_baseline(noise(100, 0, 0), noise(60, 0, 1), 2, seed=0)
    assert nothing.value is not None
    assert abs(nothing.value - 0.5) < 0.2  # 2.7 standard errors of a chance AUROC with 30 against 30 images


def test_pixel_baseline_takes_floats_alike() -> None:
    train, validation = noise(60, 3, 0), noise(40, 3, 1)
    floats = [Arrays((arrays.pixels / 255).astype(np.float32), arrays.labels) for arrays in (train, validation)]
    assert pixel_baseline(*floats, 2, seed=0).value == pytest.approx(pixel_baseline(train, validation, 2, seed=0).value)


def test_pixel_baseline_says_why_there_is_none() -> None:
    one = Arrays(np.zeros((4, 1, 64, 64), dtype=np.uint8), np.zeros(4, dtype=np.int64))
    assert pixel_baseline(one, one, 2, seed=0).reason == "the images drawn for the baseline lack a class"
    found = pixel_baseline(noise(20, 9, 0), one, 2, seed=0)
    assert (found.value, found.reason) == (None, "no image of class 1")
