"""Marks: found where they were planted, exchanged exactly, and judged by an exact test."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binom

from xvision.errors import ConfigError
from xvision.methods.scores import auroc
from xvision.methods.shift.image_statistics import image_statistics
from xvision.methods.shortcuts.cues import Box, checked_box, differences, donors, edited, find_cue, mcnemar
from xvision.methods.shortcuts.ladder import shown
from xvision.methods.shortcuts.places import coarse, edge_places, edge_statistics, ring


def test_mcnemar_is_the_exact_binomial_and_counts_a_patient_once() -> None:
    first, second = (
        np.repeat([True, False, True, False], [10, 2, 30, 8]),
        np.repeat([False, True, True, False], [10, 2, 30, 8]),
    )
    p, gained, lost = mcnemar(first, second, np.arange(50))
    assert (gained, lost) == (10, 2)
    assert p == pytest.approx(2 * 79 / 4096)
    assert p == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    rows = np.repeat(np.arange(50), 3)
    assert mcnemar(first[rows], second[rows], rows) == (p, gained, lost)
    assert mcnemar(first, first, np.arange(50))[0] == 1.0
    assert mcnemar(first[:0], second[:0], first[:0])[0] is None


def test_coarse_fields_are_the_means_of_adaptive_pooling() -> None:
    pixels = np.random.default_rng(0).random((3, 2, 30, 50)).astype(np.float32)
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(pixels).double().mean(dim=1), 8).numpy()
    assert coarse(pixels, 8) == pytest.approx(pooled, abs=1e-6)


def test_dark_images_are_told_by_grey_and_not_by_sharpness() -> None:
    rng = np.random.default_rng(1)
    label = np.arange(20) % 2
    pixels = np.clip(rng.normal(0.5, 0.05, (20, 1, 16, 16)) - 0.3 * label[:, None, None, None], 0, 1)
    whole = image_statistics(pixels)
    figures = {name: whole[name] for name in ("mean", "sharpness", "noise")} | edge_statistics(pixels, 0.15)
    judged = [auroc(values, label, np.arange(20)) for values in figures.values()]
    told = dict(zip(figures, shown(judged, null=0.5), strict=True))
    assert told["mean"]
    assert told["border, mean grey"]
    assert not told["sharpness"]
    assert not told["noise"]
    assert not told["border, ink"]


def test_the_border_and_the_corners_lie_where_their_names_say() -> None:
    places = edge_places(20, 40, 0.1)
    assert places["border"].sum() == 20 * 40 - 16 * 36
    assert places["upper right corner"][:4, 32:].all()
    assert places["upper right corner"].sum() == 4 * 8
    assert places["lower left corner"][16:, :8].all()
    assert ring(4, 0.25).sum() == 12
    with pytest.raises(ConfigError, match=r"border of 0.7"):
        edge_statistics(np.zeros((1, 1, 8, 8)), 0.7)


def fields(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise, carriers who go with the label, and labels that show in the middle."""
    labels = rng.integers(0, 2, count)
    carriers = rng.random(count) < np.where(labels == 1, 0.8, 0.2)
    found = rng.normal(size=(count, 16, 16))
    found[labels == 1, 6:10, 6:10] += 3
    return found, carriers, labels


def test_a_planted_mark_is_found_where_it_is() -> None:
    rng = np.random.default_rng(2)
    noise, carriers, labels = fields(200, rng)
    noise[carriers, 1:3, 12:14] += 2
    found = find_cue(noise, carriers, labels, np.arange(200), ring(16, 0.25), rng=rng)
    assert found is not None
    assert found.brighter
    assert found.p == pytest.approx(1 / 500)
    assert found.box == Box(11 / 16, 0.0, 15 / 16, 4 / 16)
    other = find_cue(-noise, carriers, labels, np.arange(200), ring(16, 0.25), rng=rng)
    assert other is not None
    assert not other.brighter


def test_what_goes_with_the_label_is_no_mark() -> None:
    """The spot in the middle differs between carriers and others only because the labels do."""
    rng = np.random.default_rng(3)
    everywhere, alarms = np.ones((16, 16), bool), 0
    for _ in range(40):
        noise, carriers, labels = fields(80, rng)
        found = find_cue(noise, carriers, labels, np.arange(80), everywhere, rng=rng, permutations=99)
        alarms += found is not None and found.p <= 0.05
    assert alarms <= 6  # binomial, 0.05: 6 or fewer in 98.6 %


def test_differences_are_correlations_within_the_label() -> None:
    rng = np.random.default_rng(4)
    noise, carriers, labels = fields(60, rng)
    own = noise[:, 2, 5] - np.array([noise[labels == label, 2, 5].mean() for label in (0, 1)])[labels]
    member = carriers - np.array([carriers[labels == label].mean() for label in (0, 1)])[labels]
    expected = np.sqrt(60) * np.corrcoef(own, member)[0, 1]
    assert differences(noise, carriers[None], labels)[0, 2, 5] == pytest.approx(expected)


def test_what_differs_everywhere_is_narrowed_and_too_few_carriers_give_nothing() -> None:
    rng = np.random.default_rng(5)
    noise, carriers, labels = fields(100, rng)
    noise[carriers] += 4
    found = find_cue(noise, carriers, labels, np.arange(100), ring(16, 0.25), rng=rng)
    assert found is not None
    assert (found.box.right - found.box.left) * (found.box.bottom - found.box.top) <= 9 / 256
    assert find_cue(noise, np.arange(100) < 4, labels, np.arange(100), ring(16, 0.25), rng=rng) is None


def test_a_donor_is_of_the_other_side_of_another_patient_and_of_the_same_label_where_there_is_one() -> None:
    rng = np.random.default_rng(6)
    keys = np.array([f"k{place}" for place in range(80)])
    patients, labels, carriers = np.arange(80) // 2, rng.integers(0, 2, 80), rng.integers(0, 2, 80).astype(bool)
    known = np.arange(80) != 7
    found = donors(keys, patients, labels, carriers, known, seed=1)
    assert found[7] == -1
    took = np.flatnonzero(known)
    assert (found[took] >= 0).all()
    assert 7 not in found[took]
    assert (carriers[found[took]] != carriers[took]).all()
    assert (patients[found[took]] != patients[took]).all()
    assert (labels[found[took]] == labels[took]).all()
    turned = rng.permutation(80)
    again = donors(keys[turned], patients[turned], labels[turned], carriers[turned], known[turned], seed=1)
    assert {keys[turned][place]: keys[turned][other] for place, other in enumerate(again) if other >= 0} == {
        keys[place]: keys[other] for place, other in enumerate(found) if other >= 0
    }
    only = donors(keys, patients, carriers.astype(int), carriers, known, seed=1)
    assert (carriers[only[took]] != carriers[took]).all()
    assert (donors(keys, patients, labels, np.ones(80, bool), known, seed=1) == -1).all()


def test_only_the_box_is_exchanged_and_the_placebo_lies_elsewhere() -> None:
    rng = np.random.default_rng(7)
    own, given = (torch.from_numpy(rng.random((6, 3, 20, 30)).astype(np.float32)) for _ in range(2))
    box = checked_box([0.1, 0.2, 0.3, 0.5])
    left, top, right, bottom = box.pixels(20, 30)
    assert (left, top, right, bottom) == (3, 4, 9, 10)
    keys = tuple("abcdef")
    made = edited(own, given, keys, box, seed=2)
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[top:bottom, left:right] = True
    assert torch.equal(made.cue[..., inside], given[..., inside])
    assert torch.equal(made.cue[..., ~inside], own[..., ~inside])
    assert torch.equal(made.placebo[..., inside], own[..., inside])
    changed = (made.placebo != own).any(dim=1)
    assert (changed.sum(dim=(1, 2)) == 36).all()
    sizes = [((each - own).double() ** 2).sum(dim=(1, 2, 3)).numpy() for each in (made.placebo, made.cue)]
    assert made.energy == pytest.approx(sizes[0] / sizes[1], rel=1e-6)
    alone = edited(own[2:3], given[2:3], keys[2:3], box, seed=2)
    assert torch.equal(alone.placebo[0], made.placebo[2])
    whole = edited(own, given, keys, checked_box([0, 0, 0.9, 0.9]), seed=2)
    assert (whole.placebo != own).any()


def test_the_placebo_changes_as_much_as_the_mark_where_it_can() -> None:
    """The change is 100 times larger on the left, where the box is."""
    own, given = torch.zeros(20, 1, 16, 32), torch.full((20, 1, 16, 32), 0.1)
    given[..., :16] = 1.0
    made = edited(own, given, tuple(map(str, range(20))), checked_box([0, 0, 0.125, 0.25]), seed=3)
    assert np.median(made.energy) == pytest.approx(1.0)
    assert (np.abs(np.log(made.energy)) < 1).mean() > 0.9


@pytest.mark.parametrize(
    "edges", [[0.1, 0.2, 0.3], [0.4, 0, 0.3, 1], [0, 0.5, 1, 0.5], [0, 0, 1.2, 1], [-0.1, 0, 1, 1]]
)
def test_a_box_that_is_none_is_refused(edges: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"left, top, right, bottom"):
        checked_box(edges)
