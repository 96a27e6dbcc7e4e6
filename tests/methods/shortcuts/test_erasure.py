"""What embeddings tell and what a head reads of it, on normals whose answer is a formula."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import ndtr
from sklearn.linear_model import LogisticRegression

from xvision.errors import DataError
from xvision.methods.shortcuts.erasure import (
    Head,
    concept_directions,
    read_head,
    removed_by_others,
    whitened,
)
from xvision.methods.shortcuts.followed import conditional_shift
from xvision.methods.shortcuts.probe import Probed, probe

DIMENSIONS = 32


class Planted(NamedTuple):
    embeddings: np.ndarray
    labels: np.ndarray
    group: np.ndarray
    patients: np.ndarray


def planted(count: int = 4000, seed: int = 0) -> Planted:
    """The disease moves axis 0 by 1.5, the group axis 1 by 3; all else is noise."""
    rng = np.random.default_rng(seed)
    labels, group = rng.integers(0, 2, count), rng.integers(0, 2, count)
    embeddings = rng.normal(size=(count, DIMENSIONS))
    embeddings[:, 0] += 1.5 * labels
    embeddings[:, 1] += 3.0 * group
    return Planted(embeddings, labels, np.where(group == 1, "B", "A"), np.arange(count))


def head(second: float) -> Head:
    """Reads axis 0, and axis 1 with this weight; the threshold lies in the middle of the scores."""
    weight = np.zeros((DIMENSIONS, 2))
    weight[:2, 1] = 1.0, second
    return Head(weight, np.array([0.0, -0.75 - 1.5 * second]), 1.0)


def probed(data: Planted) -> Probed:
    return probe(
        data.embeddings, data.group, data.labels, data.patients, minimum=10, seed=0, rng=np.random.default_rng(0),
        resamples=100,
    )  # fmt: skip


def decided(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits[:, 1] > logits[:, 0])


def test_the_probe_reads_what_the_formula_says() -> None:
    found = probed(planted())
    assert list(found.overall) == ["A"] or list(found.overall) == ["B"]
    (overall,), (within,) = found.overall.values(), found.within_label.values()
    assert overall.value == pytest.approx(ndtr(3 / np.sqrt(2)), abs=0.005)
    assert within.value == pytest.approx(ndtr(3 / np.sqrt(2)), abs=0.005)


def test_a_level_that_only_goes_with_the_label_is_told_overall_and_not_within_a_label() -> None:
    data = planted(3000)
    rng = np.random.default_rng(1)
    site = np.where(rng.random(3000) < np.where(data.labels == 1, 0.9, 0.1), "B", "A")
    found = probed(data._replace(group=site))
    (overall,), (within,) = found.overall.values(), found.within_label.values()
    assert overall.low is not None
    assert overall.low > 0.65
    assert within.value == pytest.approx(0.5, abs=0.04)


def test_an_encoded_group_that_the_head_does_not_read_changes_nothing() -> None:
    data = planted()
    folds = np.arange(len(data.labels)) % 5
    rng = np.random.default_rng(2)
    without, controls = removed_by_others(data.embeddings, data.group, data.labels, folds, rng=rng, controls=4)
    unused, used = head(0.0), head(0.5)
    flips = {
        name: float((decided(each(without)) != decided(each(data.embeddings))).mean())
        for name, each in (("unused", unused), ("used", used))
    }
    chance = np.mean([(decided(used(each)) != decided(used(data.embeddings))).mean() for each in controls])
    assert flips["unused"] < 0.01
    level = data.embeddings.copy()
    level[:, 1] = data.embeddings[:, 1].mean()
    by_hand = float((decided(used(level)) != decided(used(data.embeddings))).mean())
    assert flips["used"] == pytest.approx(by_hand, abs=0.01)
    assert by_hand == pytest.approx(0.216, abs=0.03)
    assert flips["used"] > 3 * chance
    group = data.group == "B"
    for each, before in ((unused, 0.0), (used, 1.114)):
        for values, expected in ((data.embeddings, before), (without, 0.0)):
            scores = np.diff(each(values))[:, 0]
            shift = conditional_shift(scores, data.labels, group, ~group, data.patients)
            assert shift.value == pytest.approx(expected, abs=0.06)


def test_nothing_linear_is_left_of_what_was_erased_and_the_label_stays() -> None:
    data = planted(1500, seed=3)
    rng = np.random.default_rng(4)
    mixed = data.embeddings @ rng.normal(size=(DIMENSIONS, DIMENSIONS))
    levels = np.where(rng.random(1500) < 0.3, "C", data.group)
    space = whitened(mixed, data.labels)
    directions = concept_directions(space, mixed, levels, data.labels)
    assert directions.shape == (DIMENSIONS, 2)
    without = space.eraser(directions)(mixed)
    centred = without - np.stack([without[data.labels == label].mean(axis=0) for label in (0, 1)])[data.labels]
    for level in ("A", "B", "C"):
        one = (levels == level).astype(float)
        one -= np.array([one[data.labels == label].mean() for label in (0, 1)])[data.labels]
        assert np.abs(centred.T @ one / 1500).max() < 1e-9
    assert space.eraser(directions)(without) == pytest.approx(without, abs=1e-8)
    model = LogisticRegression(max_iter=2000)
    before, after = (model.fit(each, data.labels).score(each, data.labels) for each in (mixed, without))
    assert after == pytest.approx(before, abs=0.01)


def test_removing_a_level_that_goes_with_the_label_leaves_the_disease() -> None:
    data = planted(2000, seed=5)
    site = np.where(np.random.default_rng(0).random(2000) < np.where(data.labels == 1, 0.95, 0.05), "B", "A")
    space = whitened(data.embeddings, data.labels)
    without = space.eraser(concept_directions(space, data.embeddings, site, data.labels))(data.embeddings)
    assert without[data.labels == 1, 0].mean() - without[data.labels == 0, 0].mean() > 1.3


def test_a_linear_head_is_read_off_and_another_is_refused() -> None:
    data = planted(600)
    own = head(0.5)
    logits = own(data.embeddings) + 7.0  # a constant of each case says nothing
    found = read_head(data.embeddings, logits, data.patients)
    assert isinstance(found, Head)
    assert np.diff(found(data.embeddings))[:, 0] == pytest.approx(np.diff(logits)[:, 0], abs=1e-8)
    bent = np.stack([np.zeros(600), data.embeddings[:, 0] ** 2], axis=1)
    assert "cannot be read off" in str(read_head(data.embeddings, bent, data.patients))
    few = slice(0, 40)
    assert "too few" in str(read_head(data.embeddings[few], logits[few], data.patients[few]))
    assert "the same in every case" in str(read_head(data.embeddings, np.zeros((600, 2)), data.patients))
    with pytest.raises(DataError, match="one row per case"):
        read_head(data.embeddings[:10], logits, data.patients)


def test_a_probe_needs_two_levels_with_patients() -> None:
    data = planted(100)
    found = probed(data._replace(group=np.arange(100).astype(str)))
    assert found.reason == "fewer than two levels with 10 patients"
    many = np.repeat([f"l{place}" for place in range(10)], 30)
    found = probed(planted(300)._replace(group=many))
    assert len(found.levels) == 8
    assert found.kept.sum() == 240
    assert (found.folds[~found.kept] == -1).all()
