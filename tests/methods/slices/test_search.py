"""Planted slices are found, data without any gives none, and what does not hold is called by its name."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import make_blobs

from tests.methods.slices.planted import clustered, knowing
from xvision.errors import ConfigError
from xvision.methods.slices.cases import SliceCases, checked
from xvision.methods.slices.proposers import answers, clusters, coordinates
from xvision.methods.slices.search import Search, detectable, find_slices


def search(cases: SliceCases, seed: int = 0, columns: dict[str, np.ndarray] | None = None, **options: float) -> Search:
    return find_slices(cases, columns or {}, rng=np.random.default_rng(seed), permutations=19, **options)


def test_a_planted_slice_is_found_on_patients_who_had_no_part_in_it() -> None:
    cases, planted = clustered(0, cases=2500)
    found = search(cases)
    best = found.confirmed[0]
    own = np.flatnonzero(~found.discover & best.candidate.members)
    clearest = own[np.argsort(-best.candidate.typical[own], kind="stable")][:25]
    assert planted[clearest].mean() >= 0.8
    assert best.checked.difference.low is not None
    assert best.checked.difference.low > 0.1
    assert max(best.adjusted, best.p_value, best.score_p) < 0.01
    assert (best.null_p, best.stability) == (0.05, 1.0)


def test_without_a_slice_none_is_confirmed_even_where_the_finding_half_shows_one() -> None:
    for seed in range(3):
        cases, _ = clustered(seed, share_wrong=0.08)
        assert not search(cases, seed).confirmed
    told = answers(cases.labels, cases.probabilities, 10.0)
    half = np.arange(2000)
    formed = clusters(coordinates(cases.embeddings, half), told, half, 25, 0)[0].form()[half]
    sizes = np.bincount(formed, minlength=25)
    errors = np.bincount(formed, cases.errors[half], 25) / np.maximum(sizes, 1)
    assert errors[sizes >= 10].max() - cases.errors.mean() > 0.5
    assert not search(cases, weight=10.0).confirmed


def test_copies_of_the_same_patients_are_no_evidence() -> None:
    cases, _ = clustered(5, share_wrong=0.08, cases=500, copies=5)
    assert not search(cases).confirmed


def test_the_slice_of_dominos_own_blobs_is_found() -> None:
    """Five blobs; the model says 1 for blobs 1 and 2, and only blob 1 is: blob 2 is the slice."""
    places, blob = make_blobs(1000, centers=5, n_features=5, random_state=0)
    decisions, labels = np.isin(blob, [1, 2]).astype(int), (blob == 1).astype(int)
    sure = np.eye(2)[decisions] * 0.8 + 0.1
    found = search(checked(places, labels, sure, decisions, np.arange(1000)), most=5)
    (best,) = found.confirmed
    assert np.array_equal(best.candidate.members, blob == 2)
    assert best.checked.error.value == 1.0
    assert best.checked.rest == 0.0


def test_a_slice_that_columns_describe_comes_by_its_name() -> None:
    rng = np.random.default_rng(0)
    cases, _ = clustered(0, share_wrong=0.08, cases=900)
    columns = {
        "site": rng.choice(["A", "B"], 900),
        "sex": rng.choice(["F", "M"], 900),
        "code": np.arange(900).astype(str),
    }
    hard = (columns["site"] == "B") & (columns["sex"] == "F") & (rng.random(900) < 0.4)
    decisions = np.where(hard, 1 - cases.labels, cases.decisions)
    both = np.where(hard[:, None], cases.probabilities[:, ::-1], cases.probabilities)
    found = search(cases._replace(decisions=decisions, probabilities=both), columns=columns)
    assert [item.candidate.name for item in found.confirmed] == ["site B, sex F"]
    assert found.confirmed[0].stability is None


def test_a_hard_slice_that_the_score_tells_is_told_apart() -> None:
    cases, planted = knowing(0)
    found = search(cases, most=5)
    assert not found.confirmed
    told = [item for item in found.slices if item.verdict == "told by the score"]
    assert any((item.candidate.members == planted).mean() > 0.95 for item in told)


def test_a_slice_of_the_harder_label_alone_is_no_slice() -> None:
    """Positives err in 30 % everywhere, negatives never; one cluster of five has positives only, and the score says nothing."""
    cases, only = knowing(1)
    rng = np.random.default_rng(1)
    labels = np.where(only, 1, rng.integers(0, 2, len(only)))
    decisions = np.where((labels == 1) & (rng.random(len(only)) < 0.3), 0, labels)
    found = search(cases._replace(labels=labels, decisions=decisions, probabilities=np.eye(2)[decisions]), most=5)
    alike = [item for item in found.slices if (item.candidate.members == only).mean() > 0.95]
    assert all(item.verdict == "not confirmed" for item in alike)
    assert not found.confirmed


def test_what_a_search_of_dealt_answers_finds_as_often_is_not_confirmed() -> None:
    cases, _ = clustered(13, cases=400)
    (doubted,) = [item for item in search(cases, 13).slices if item.verdict == "as much by chance"]
    assert doubted.null_p is not None
    assert doubted.null_p > 0.05
    assert doubted.adjusted <= 0.05


def test_what_cannot_be_searched_has_a_reason() -> None:
    few, _ = clustered(0, cases=29)
    assert search(few).reason == "29 patients are too few to search: at least 30 are needed"
    right, _ = clustered(0, cases=60)
    right = right._replace(decisions=right.labels)
    assert "errs in 0 patients: at least 5" in str(search(right).reason)
    alike, _ = clustered(0, cases=400)
    found = search(alike._replace(embeddings=np.ones_like(alike.embeddings)))
    assert (found.reason, found.groups, found.slices) == (None, 0, ())


def test_thirty_patients_of_one_class_and_a_thousand_levels_are_searched() -> None:
    cases, _ = clustered(1, share_wrong=0.5, cases=40)
    cases = cases._replace(labels=np.ones(40, int), decisions=np.arange(40) % 3 // 2)
    found = search(cases, columns={"code": np.arange(40).astype(str)}, minimum=3)
    assert found.reason is None
    assert all(item.candidate.kind != "columns" for item in found.slices)


def test_options_out_of_range_are_refused() -> None:
    cases, _ = clustered(0, cases=40)
    for options in ({"most": 1}, {"minimum": 0}, {"weight": -1.0}, {"weight": np.nan}):
        with pytest.raises(ConfigError, match="give at least 2 groups"):
            search(cases, **options)


def test_the_least_error_that_would_be_found_falls_with_patients() -> None:
    few, many = (detectable(patients, 0.1, 10, share=0.1) for patients in (300, 3000))
    assert few is not None
    assert many is not None
    assert 0.1 < many < few
    assert detectable(30, 0.3, 10, share=0.05) is None
    assert detectable(5, 0.1, 10, share=0.1) is None
