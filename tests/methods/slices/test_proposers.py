"""Halves, coordinates, groups and columns."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact, norm
from statsmodels.stats.multitest import multipletests

from tests.methods.slices.planted import clustered
from xvision.errors import DataError
from xvision.methods.slices.cases import checked, dealt_anew, halves, score_strata
from xvision.methods.slices.columns import column_slices, describe
from xvision.methods.slices.proposers import answers, clusters, coordinates, direction, strengths


def test_halves_keep_patients_whole_and_are_alike() -> None:
    rng = np.random.default_rng(1)
    patients = rng.integers(0, 300, 900)
    labels, errors = rng.integers(0, 2, 300)[patients], rng.random(900) < 0.1
    first = halves(labels, errors, patients, rng)
    assert not set(patients[first]) & set(patients[~first])
    assert len(set(patients[first])) - len(set(patients[~first])) in (-1, 0, 1)
    for half in (first, ~first):
        own = np.unique(patients[half])
        assert np.mean([errors[patients == who].any() for who in own]) == pytest.approx(
            np.mean([errors[patients == who].any() for who in np.unique(patients)]), abs=0.02
        )


def test_answers_dealt_anew_stay_within_the_label_and_leave_the_embeddings() -> None:
    cases, _ = clustered(0, cases=300)
    dealt = dealt_anew(cases, np.random.default_rng(0))
    for label in (0, 1):
        own = cases.labels == label
        assert np.array_equal(np.sort(dealt.probabilities[own, 1]), np.sort(cases.probabilities[own, 1]))
    assert not np.array_equal(dealt.decisions, cases.decisions)
    assert np.array_equal(dealt.decisions, dealt.probabilities.argmax(axis=1))
    assert dealt.embeddings is cases.embeddings
    assert dealt.errors.sum() == cases.errors.sum()


def test_errors_of_a_patient_mostly_stay_together_when_dealt_anew() -> None:
    patients = np.repeat(np.arange(100), 4)
    wrong = np.repeat(np.arange(100) < 10, 4)
    both = np.where(wrong[:, None], [0.9, 0.1], [0.1, 0.9])
    cases = checked(np.zeros((400, 2)), np.ones(400, int), both, both.argmax(axis=1), patients)
    dealt = dealt_anew(cases, np.random.default_rng(0))
    assert len(np.unique(patients[dealt.errors])) == 10


def test_cases_of_one_score_stratum_are_decided_alike_and_as_surely() -> None:
    cases, _ = clustered(3, cases=1000)
    strata = score_strata(cases.probabilities, cases.decisions)
    assert len(np.unique(strata)) == 2 * 20 - (np.bincount(cases.decisions).min() < 500)
    for code in np.unique(strata):
        own = strata == code
        assert len(np.unique(cases.decisions[own])) == 1
        assert np.ptp(cases.probabilities[own, 1]) < 0.1


def test_coordinates_have_variance_one_on_average_and_are_none_where_all_are_alike() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(size=(900, 100)) * rng.uniform(0.1, 9, 100)
    given[:, 3] = 7.0
    found = coordinates(given, np.arange(800))
    assert found.shape == (900, 64)
    assert found[:800].var(axis=0).mean() == pytest.approx(1.0, rel=0.01)
    assert coordinates(given[:60], np.arange(60)).shape == (60, 6)
    assert coordinates(np.ones((50, 4)), np.arange(50)).shape == (50, 0)


@pytest.mark.parametrize("kind", ["mixture", "k-means"])
def test_without_a_weight_cases_belong_where_they_were_put(kind: str) -> None:
    cases, _ = clustered(1, cases=600)
    places = coordinates(cases.embeddings, np.arange(600))
    formed = clusters(places, answers(cases.labels, cases.probabilities, 0.0), np.arange(600), 10, 0)
    (groups,) = [each for each in formed if each.kind == kind]
    best, clear = strengths(groups.assign(places))
    assert np.array_equal(best, groups.form())
    assert clear.min() >= 0


def test_answers_of_many_classes_are_the_true_ones_probability() -> None:
    rng = np.random.default_rng(0)
    many, few = rng.dirichlet(np.ones(30), 50), rng.dirichlet(np.ones(3), 50)
    assert np.allclose(answers(np.arange(50) % 30, many, 2.0)[:, 0], 2 * many[np.arange(50), np.arange(50) % 30])
    assert answers(np.arange(50) % 3, few, 2.0).shape == (50, 6)


def test_a_direction_finds_the_end_at_which_errors_are() -> None:
    rng = np.random.default_rng(2)
    places = rng.normal(size=(2000, 8))
    surplus = (rng.random(2000) < norm.cdf(2 * (places[:, 3] - 1.5))) - 0.2
    groups = direction(places, surplus, np.arange(1000), 0.1)
    own = groups.form() == 1
    assert own[:1000].mean() == pytest.approx(0.1, abs=0.002)
    assert places[1000:][own[1000:], 3].mean() > 1.4


def test_columns_give_levels_and_only_pairs_that_stand_out_more() -> None:
    rng = np.random.default_rng(0)
    columns = {
        name: rng.choice(levels, 800) for name, levels in {"site": ["A", "B"], "sex": ["F", "M", "unknown"]}.items()
    }
    both = (columns["site"] == "B") & (columns["sex"] == "F")

    def standing(members: np.ndarray) -> float:
        return float((members & both).sum() / members.sum())

    found = column_slices(columns, lambda members: members.sum() >= 50, standing)
    assert {item.name for item in found} == {"site A", "site B", "sex F", "sex M", "site B, sex F"}
    assert np.array_equal(found[-1].members, both)
    assert column_slices(columns, lambda members: members.sum() >= 500, standing) == []


def test_a_slice_is_described_by_fishers_test_of_patients() -> None:
    rng = np.random.default_rng(1)
    members = rng.random(400) < 0.2
    columns = {
        "site": np.where(members, rng.choice(["A", "B"], 400, p=[0.3, 0.7]), rng.choice(["A", "B"], 400, p=[0.9, 0.1])),
        "sex": rng.choice(["F", "M"], 400),
    }
    (found,) = describe(members, columns, np.arange(400))
    assert (found.column, found.level) == ("site", "B")
    tests = []
    for column, level in (("site", "A"), ("site", "B"), ("sex", "F"), ("sex", "M")):
        there = columns[column] == level
        cells = [
            [(members & there).sum(), (members & ~there).sum()],
            [(~members & there).sum(), (~members & ~there).sum()],
        ]
        tests.append(fisher_exact(cells, alternative="greater").pvalue)
    assert found.p_value == pytest.approx(multipletests(tests, method="fdr_bh")[1][1])
    assert found.inside == pytest.approx((members & (columns["site"] == "B")).sum() / members.sum())
    copied = describe(
        np.repeat(members, 3),
        {name: np.repeat(values, 3) for name, values in columns.items()},
        np.repeat(np.arange(400), 3),
    )
    assert copied == [found]
    assert describe(members, {"sex": columns["sex"]}, np.arange(400)) == []
    without = {"site": np.where(members, "", columns["site"])}
    assert describe(members, without, np.arange(400)) == []


def test_inputs_that_cannot_be_searched_are_refused() -> None:
    both = np.full((4, 2), 0.5)
    with pytest.raises(DataError, match="4 embeddings came with 3 labels"):
        checked(np.zeros((4, 2)), np.zeros(3, int), both, np.zeros(4, int), np.arange(4))
    broken = np.zeros((4, 2))
    broken[1, 1] = np.nan
    with pytest.raises(DataError, match="1 of 4 embeddings hold values that are not finite"):
        checked(broken, np.zeros(4, int), both, np.zeros(4, int), np.arange(4))
