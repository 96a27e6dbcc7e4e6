"""Other words for one question: listings and letter case by hand, shares by brute force."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import DataError
from xvision.methods.prompt_variants import (
    SOURCES,
    accuracy_range,
    consistency,
    listings,
    recased,
    spread,
    variance_of,
    variance_share,
)


def test_listings_are_the_reverse_and_the_rotations_each_once() -> None:
    assert listings(1) == {}
    assert listings(2) == {"reversed": (1, 0)}
    assert listings(3) == {"reversed": (2, 1, 0), "rotated by 1": (1, 2, 0), "rotated by 2": (2, 0, 1)}
    for count in range(1, 6):
        found = list(listings(count).values())
        assert len(set(found)) == len(found)
        assert set(found) <= set(permutations(range(count))) - {tuple(range(count))}


def test_letter_case_that_changes_nothing_is_left_out() -> None:
    assert recased(("Yes", "no")) == {
        "small letters": ("yes", "no"),
        "first letter large": ("Yes", "No"),
        "large letters": ("YES", "NO"),
    }
    assert recased(("yes", "no")).keys() == {"first letter large", "large letters"}
    assert recased(("a", "b")) == {"first letter large": ("A", "B")}
    assert recased(("无", "1")) == {}


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), variants=st.integers(1, 6), classes=st.integers(1, 4))
def test_consistency_by_counting(seed: int, variants: int, classes: int) -> None:
    decisions = np.random.default_rng(seed).integers(classes, size=(variants, 20)) * 3
    found = consistency(decisions)
    for place in range(20):
        votes = Counter(decisions[:, place].tolist())
        most = max(votes.values())
        assert found.unanimous[place] == (len(votes) == 1)
        assert found.agreement[place] == most / variants
        assert found.deployed[place] == (votes[int(decisions[0, place])] == most)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), variants=st.integers(1, 5), states=st.integers(1, 3))
def test_the_parts_of_the_variance_add_up(seed: int, variants: int, states: int) -> None:
    values = np.random.default_rng(seed).normal(size=(variants, states, 7))
    parts, once = spread(values), np.ones((1, 7), dtype=int)
    sizes = {source: variance_of(parts, source)(once)[0] for source in SOURCES}
    assert sum(sizes.values()) == pytest.approx(values.var())
    assert variance_of(parts, "all")(once)[0] == pytest.approx(values.var())
    words = np.mean([np.var([values[v, :, n].mean() for v in range(variants)]) for n in range(7)])
    corruption = np.mean([np.var([values[:, m, n].mean() for m in range(states)]) for n in range(7)])
    cases = np.var([values[:, :, n].mean() for n in range(7)])
    assert [sizes[name] for name in SOURCES[:3]] == pytest.approx([cases, words, corruption])


def test_weights_are_repeated_cases() -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 4))
    drawn = np.array([0, 0, 3, 2, 2, 2])
    weights = np.bincount(drawn, minlength=4)[None]
    for source in (*SOURCES, "all"):
        again = variance_of(spread(values[:, :, drawn]), source)(np.ones((1, 6)))
        assert variance_of(spread(values), source)(weights) == pytest.approx(again)


def test_planted_sources_are_told_apart() -> None:
    words = np.array([0.0, 1.0, 2.0])[:, None, None]
    noise = np.array([-3.0, 3.0])[None, :, None]
    cases = np.linspace(-1, 1, 40)[None, None, :]
    patients = np.arange(40).astype(str)

    def share(values: np.ndarray, source: str) -> float | None:
        rng = np.random.default_rng(1)
        return variance_share(spread(values), source, patients, rng=rng, resamples=50).value

    shape = (3, 2, 40)
    assert share(np.broadcast_to(words, shape), "words") == pytest.approx(1.0)
    assert share(np.broadcast_to(noise, shape), "corruption") == pytest.approx(1.0)
    assert share(np.broadcast_to(cases, shape), "cases") == pytest.approx(1.0)
    assert share(np.broadcast_to(words * noise, shape) - noise, "words and corruption") == pytest.approx(1.0)
    sizes = np.array([cases.var(), words.var(), noise.var()])
    mixed = words + noise + cases
    assert [share(mixed, source) for source in SOURCES[:3]] == pytest.approx(sizes / sizes.sum())
    nothing = variance_share(spread(np.ones(shape)), "words", patients, rng=np.random.default_rng(1), resamples=50)
    assert nothing.value is None
    assert nothing.reason == "all values are equal"
    with pytest.raises(DataError, match="variants × states × cases"):
        spread(np.ones((2, 2)))


def test_the_best_and_the_worst_are_compared_on_the_same_cases() -> None:
    right = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=bool).repeat(10, axis=1)
    patients = np.arange(40).astype(str)
    found = accuracy_range(right, patients, rng=np.random.default_rng(0))
    assert (found.best, found.worst) == (1, 2)
    assert found.seen.value == pytest.approx(0.5)
    assert found.fresh.value == pytest.approx(0.5)  # far enough apart to be chosen in both halves
    assert found.fresh.low is not None
    assert found.fresh.low > 0.25
    alone = accuracy_range(right, np.full(40, "p"), rng=np.random.default_rng(0))
    assert alone.fresh.value is None


def test_choosing_on_other_patients_does_not_find_a_difference_that_is_not_there() -> None:
    rng = np.random.default_rng(5)
    patients = np.repeat(np.arange(30), 2).astype(str)
    seen, fresh, covered = [], [], 0
    for _ in range(150):
        found = accuracy_range(rng.random((12, 60)) < 0.7, patients, rng=rng)
        assert found.seen.value is not None
        assert found.fresh.value is not None
        assert found.fresh.low is not None
        assert found.fresh.high is not None
        seen.append(found.seen.value)
        fresh.append(found.fresh.value)
        covered += found.fresh.low <= 0 <= found.fresh.high
    assert np.mean(seen) > 0.15
    assert abs(np.mean(fresh)) < 0.02
    assert covered >= 0.9 * 150
