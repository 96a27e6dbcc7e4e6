"""Ranking across groups: closed form, a count of all pairs, resampled patients, and data without a difference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from xvision.errors import DataError
from xvision.methods.groups.cross_auc import Cross, cross_auroc, cross_auroc_difference, cross_gaps
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.intervals import bootstrap
from xvision.methods.scores import Scored

Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def normals(count: int, shift: float, rng: np.random.Generator) -> Columns:
    """Scores N(0, 1) and N(1, 1) in A, moved by ``shift`` in B; labels, groups, patients."""
    labels, groups = np.tile([0, 1], 2 * count), np.repeat(["A", "B"], 2 * count)
    scores = rng.normal(size=4 * count) + labels + shift * (groups == "B")
    return scores, labels, groups, np.arange(4 * count)


def parts(columns: Columns) -> tuple[Scored, Scored]:
    scores, labels, groups, patients = columns
    first, second = (Scored(scores[groups == name], labels[groups == name], patients[groups == name]) for name in "AB")
    return first, second


def crossed(columns: Columns, minimum: int = 10) -> tuple[Cross, ...]:
    scores, labels, groups, patients = columns
    gaps = group_gaps(labels, scores > 0, scores, groups, patients, metric="auroc", minimum=minimum)
    return cross_gaps(scores, labels, groups, patients, gaps)


def test_shifted_normals_have_equal_aurocs_and_the_cross_auroc_of_the_closed_form() -> None:
    grid = norm.ppf((np.arange(2000) + 0.5) / 2000)
    first = Scored(np.concatenate([grid, grid + 1]), np.repeat([0, 1], 2000), np.arange(4000))
    second = Scored(np.concatenate([grid + 0.5, grid + 1.5]), np.repeat([0, 1], 2000), np.arange(4000, 8000))
    assert [roc_auc_score(part.labels, part.scores) for part in (first, second)] == pytest.approx(
        [0.7602] * 2, abs=5e-4
    )
    assert cross_auroc(first, second).value == pytest.approx(0.6382, abs=5e-4)
    assert cross_auroc(second, first).value == pytest.approx(0.8556, abs=5e-4)
    assert cross_auroc(first, second).value == pytest.approx(norm.cdf(0.5 / np.sqrt(2)), abs=5e-4)
    difference = cross_auroc_difference(first, second)
    assert difference.value == pytest.approx(-0.2174, abs=5e-4)
    assert (difference.high or 0.0) < 0


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=4, max_size=30))
@settings(max_examples=40, deadline=None)
def test_it_is_the_share_of_pairs_that_are_ranked_right(cases: list[tuple[int, bool, bool]]) -> None:
    scores, labels, group = (np.array(column) for column in zip(*cases, strict=True))
    mine, theirs = scores[labels & group], scores[~labels & ~group]
    first, second = (Scored(scores[side], labels[side], np.arange(len(scores))[side]) for side in (group, ~group))
    found = cross_auroc(first, second)
    if not len(mine) or not len(theirs):
        assert found.value is None
        assert found.reason
        return
    wins = (mine[:, None] > theirs).mean() + (mine[:, None] == theirs).mean() / 2
    assert found.value == pytest.approx(wins, abs=1e-12)


def test_it_is_antisymmetric_and_unmoved_by_a_monotone_change_of_all_scores() -> None:
    columns = normals(60, 0.5, np.random.default_rng(1))
    first, second = parts(columns)
    there, back = cross_auroc_difference(first, second), cross_auroc_difference(second, first)
    assert [there.value, there.low, there.high] == pytest.approx(
        [-(back.value or 0), -(back.high or 0), -(back.low or 0)]
    )
    bent = cross_auroc_difference(*parts((np.exp(columns[0]), *columns[1:])))
    assert bent == there


def test_copies_of_all_images_under_the_same_patients_change_nothing() -> None:
    columns = normals(40, 0.5, np.random.default_rng(2))
    once, thrice = (cross_auroc_difference(*parts(each)) for each in (columns, tuple(np.tile(c, 3) for c in columns)))
    assert thrice[:4] == pytest.approx(once[:4], abs=1e-9)


def test_the_interval_is_that_of_resampled_patients_who_are_in_both_groups() -> None:
    rng = np.random.default_rng(3)
    people, pulls = np.repeat(np.arange(150), 4), np.repeat(rng.normal(size=150), 4)
    labels, groups = rng.integers(0, 2, 600), np.where(rng.random(600) < 0.5, "A", "B")
    scores = pulls + labels + rng.normal(size=600)
    closed = cross_auroc_difference(*parts((scores, labels, groups, people)))

    def statistic(weights: np.ndarray) -> np.ndarray:
        def share(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            wins = (scores[mine][:, None] > scores[theirs]).astype(float)
            pairs = weights[:, mine].sum(axis=1) * weights[:, theirs].sum(axis=1)
            return np.asarray(((weights[:, mine] @ wins) * weights[:, theirs]).sum(axis=1) / pairs)

        in_a, hit = groups == "A", labels == 1
        return share(in_a & hit, ~in_a & ~hit) - share(~in_a & hit, in_a & ~hit)

    resampled = bootstrap(statistic, people, rng=rng, resamples=1000)
    assert closed.value == pytest.approx(resampled.value, abs=1e-12)
    widths = [(each.high or 0.0) - (each.low or 0.0) for each in (closed, resampled)]
    assert widths[0] == pytest.approx(widths[1], rel=0.12)


def test_groups_scored_alike_rarely_show_a_difference_and_a_shift_is_found() -> None:
    seeds = [np.random.default_rng(seed) for seed in range(100)]
    alike = [crossed(normals(40, 0.0, rng))[0].difference for rng in seeds]
    assert np.mean([not (each.low or 0.0) <= 0 <= (each.high or 0.0) for each in alike]) <= 0.05 + 3 * 0.0218
    moved = [crossed(normals(80, 1.0, rng))[0].difference for rng in seeds[:20]]
    assert all((each.high or 0.0) < 0 for each in moved)


def test_the_comparisons_are_those_of_the_aurocs() -> None:
    rng = np.random.default_rng(5)
    groups = np.repeat(["A", "B", "C", "tiny", "unknown"], [80, 80, 80, 6, 60])
    labels, scores = rng.integers(0, 2, 306), rng.normal(size=306)
    found = crossed((scores, labels, groups, np.arange(306)))
    assert [(each.group, each.reference, each.ranked) for each in found] == [
        ("A", "rest", True), ("B", "rest", True), ("C", "rest", True), ("tiny", "rest", True), ("unknown", "known", False),
    ]  # fmt: skip
    assert {each.family for each in found} == {3}
    assert [each.difference.reason for each in found][3] == "fewer than 10 positive patients"
    inside, rest = groups == "A", ~np.isin(groups, ["A", "unknown"])
    sides = [Scored(scores[side], labels[side], np.flatnonzero(side)) for side in (inside, rest)]
    assert found[0].of_positives == cross_auroc(*sides)
    assert found[0].of_negatives == cross_auroc(*sides[::-1])
    assert found[0].difference == cross_auroc_difference(*sides, level=1 - 0.05 / 3)
    known = groups != "unknown"
    sides = [Scored(scores[side], labels[side], np.flatnonzero(side)) for side in (~known, known)]
    assert found[4].of_positives == cross_auroc(*sides)


def test_a_group_too_many_or_too_few_is_refused() -> None:
    scores, labels, groups, patients = normals(20, 0.0, np.random.default_rng(0))
    gaps = group_gaps(labels, scores > 0, scores, groups, patients, metric="auroc")
    with pytest.raises(DataError, match="80 labels came with groups of shape"):
        cross_gaps(scores, labels, groups[1:], patients, gaps)
