"""Label issues: closed forms, cleanlab's own numbers on the same probabilities, planted flips, and what is refused."""

from __future__ import annotations

import sys
from typing import NamedTuple

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import DataError, MissingExtra
from xvision.methods.label_issues import (
    confident_joint,
    noise_share,
    out_of_fold,
    patient_folds,
    rank_label_issues,
    second_opinion,
)

TWO = ("normal", "lesion")
quick = settings(deadline=None, max_examples=40)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class Planted(NamedTuple):
    embeddings: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    flipped: np.ndarray


def planted(n: int = 2000, flips: int = 110, classes: int = 2, seed: int = 0, apart: float = 2.2) -> Planted:
    """Two images of each patient, embeddings around one centre per class, and labels flipped at random places."""
    draw = rng(seed)
    patients = np.repeat(np.arange(n // 2), 2)
    truth = draw.integers(classes, size=n // 2)[patients]
    centres = draw.normal(size=(classes, 16))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    flipped = np.zeros(n, bool)
    flipped[draw.choice(n, flips, replace=False)] = True
    labels = np.where(flipped, (truth + draw.integers(1, classes, n)) % classes, truth)
    return Planted(centres[truth] + draw.normal(size=(n, 16)) * 0.7, labels, patients, flipped)


def probabilities(labels: np.ndarray, classes: int, draw: np.random.Generator) -> np.ndarray:
    """Random probabilities that lean towards the label."""
    raw = draw.gamma(0.5, size=(len(labels), classes))
    raw[np.arange(len(labels)), labels] += draw.gamma(1.0, size=len(labels))
    return raw / raw.sum(axis=1, keepdims=True)


def test_the_least_believed_label_comes_first_and_equal_ones_keep_their_order() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.6, 0.4], [0.9, 0.1]])
    labels = np.array([0, 0, 1, 1, 1])
    found = rank_label_issues(scores, labels, np.arange(5), rng=rng())
    assert found.order.tolist() == [4, 1, 3, 2, 0]
    assert found.self_confidence.tolist() == [0.9, 0.2, 0.6, 0.4, 0.1]
    assert found.suggested.tolist() == [0, 1, 1, 0, 0]


def test_the_confident_joint_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.3, 0.7], [0.45, 0.55], [0.85, 0.15]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    joint = confident_joint(scores, labels)  # thresholds: mean of .9 .8 .1 = .6, mean of .7 .55 .15 = .467
    assert joint.guess.tolist() == [0, 0, 1, 1, 1, 0]
    assert joint.counts.tolist() == [[2, 1], [1, 2]]
    unsure = confident_joint(np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]), np.array([0, 0, 1]))
    assert unsure.guess.tolist() == [0, -1, 1]


def test_nobody_is_confidently_of_a_class_that_no_label_names() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.3, 0.5, 0.2], [0.0, 0.1, 0.9]])
    assert confident_joint(scores, np.array([0, 0, 2])).guess.tolist() == [0, -1, 2]


def test_the_estimated_share_by_hand() -> None:
    """Label 0: 1 of 4 confident cases belongs to 1, out of 6; label 1: 2 of 4, out of 4. (6/4 + 4·2/4) / 10."""
    labels = np.array([0] * 6 + [1] * 4)
    guess = np.array([0, 0, 0, 1, -1, -1, 1, 1, 0, 0])
    share = noise_share(guess, labels, np.arange(10), rng=rng())
    assert share.value == pytest.approx((6 / 4 + 4 * 2 / 4) / 10)
    assert share.low is not None
    assert share.high is not None
    assert share.low <= share.value <= share.high
    assert share.n == 10
    assert share.method.startswith("calibrated confident joint, patient bootstrap")


def test_a_label_without_a_confident_case_leaves_the_share_open() -> None:
    share = noise_share(np.array([0, 0, -1, -1]), np.array([0, 0, 1, 1]), np.arange(4), rng=rng())
    assert share.value is None
    assert share.reason == "no case with label 1 is confidently of any class"
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]])
    assert rank_label_issues(scores, np.array([0, 0, 1, 1]), np.arange(4), rng=rng()).count is not None


@quick
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_the_ranking_is_that_of_cleanlab(classes: int, seed: int) -> None:
    draw = rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(classes, size=60)])
    scores = probabilities(labels, classes, draw)
    found = rank_label_issues(scores, labels, np.arange(len(labels)), rng=draw, resamples=10)
    theirs = get_label_quality_scores(labels, scores, method="self_confidence")
    assert np.array_equal(found.self_confidence, theirs)
    assert np.array_equal(found.order, np.argsort(theirs, kind="stable"))


@quick
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_the_confident_joint_is_that_of_cleanlab(classes: int, seed: int) -> None:
    draw = rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(classes, size=60)])
    scores = probabilities(labels, classes, draw)
    ours = confident_joint(scores, labels)
    theirs, places = compute_confident_joint(labels, scores, calibrate=False, return_indices_of_off_diagonals=True)
    np.fill_diagonal(theirs, theirs.diagonal() * (ours.counts.diagonal() > 0))  # it never leaves a diagonal cell empty
    assert np.array_equal(ours.counts, theirs)
    assert np.array_equal(np.flatnonzero((ours.guess >= 0) & (ours.guess != labels)), np.sort(places))
    if (ours.counts.diagonal() > 0).all():
        calibrated = compute_confident_joint(labels, scores, calibrate=True)
        share = noise_share(ours.guess, labels, np.arange(len(labels)), rng=draw, resamples=10)
        assert share.value is not None
        # cleanlab rounds every cell of the matrix to whole cases
        assert share.value * len(labels) == pytest.approx(calibrated.sum() - calibrated.trace(), abs=classes)


def test_planted_flips_come_first() -> None:
    """2,000 images of which 110 have a wrong label; the notes' model had 0.84 and 0.96."""
    case = planted()
    held = out_of_fold(case.embeddings, case.labels, case.patients, classes=TWO)
    found = rank_label_issues(held.probabilities, case.labels, case.patients, rng=rng())
    assert case.flipped[found.order[:100]].mean() >= 0.84
    assert case.flipped[found.order[:200]].sum() / 110 >= 0.95
    assert found.share.low is not None
    assert found.share.high is not None
    assert found.share.low < 0.055 < found.share.high
    assert found.count == pytest.approx(110, abs=25)
    assert case.flipped[found.suspect].mean() >= 0.75
    assert case.flipped[found.suspect].sum() / 110 >= 0.7


def test_planted_flips_between_four_classes_come_first_with_the_right_suggestion() -> None:
    case = planted(n=1200, flips=60, classes=4, seed=1, apart=3.0)
    held = out_of_fold(case.embeddings, case.labels, case.patients, classes=tuple("abcd"))
    found = rank_label_issues(held.probabilities, case.labels, case.patients, rng=rng())
    first = found.order[:60]
    assert case.flipped[first].mean() >= 0.8
    other_image = case.labels[np.arange(1200) ^ 1]  # of the same patient, so of the same true class
    right = found.suggested[first] == other_image[first]
    assert right[case.flipped[first]].mean() >= 0.9


def test_without_flips_few_labels_are_suspect() -> None:
    case = planted(flips=0, apart=4.0)
    held = out_of_fold(case.embeddings, case.labels, case.patients, classes=TWO)
    found = rank_label_issues(held.probabilities, case.labels, case.patients, rng=rng())
    assert found.count is not None
    assert found.count <= 10


def test_no_case_is_judged_by_a_model_that_saw_its_patient() -> None:
    """Every patient is a point of its own with a random label: only who saw the patient can know it."""
    draw = rng(3)
    patients = np.repeat(np.arange(150), 3)
    embeddings = np.repeat(draw.normal(size=(150, 200)), 3, axis=0)
    labels = draw.integers(2, size=150)[patients]
    held = out_of_fold(embeddings, labels, patients, classes=TWO, strength=100.0)
    assert (held.probabilities.argmax(axis=1) == labels).mean() == pytest.approx(0.5, abs=0.12)
    for patient in range(150):
        assert len(set(held.folds[patients == patient])) == 1


@quick
@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 10_000))
def test_folds_hold_whole_patients_and_spread_every_class(classes: int, folds: int, seed: int) -> None:
    draw = rng(seed)
    owned = np.concatenate([np.repeat(np.arange(classes), folds), draw.integers(classes, size=40)])
    patients = np.repeat(np.arange(len(owned)), draw.integers(1, 4, len(owned)))
    labels = owned[patients]
    dealt = patient_folds(labels, patients, folds=folds, seed=seed)
    assert len({(patient, fold) for patient, fold in zip(patients, dealt, strict=True)}) == len(owned)
    for code in range(classes):
        counts = [len(set(patients[(labels == code) & (dealt == fold)])) for fold in range(folds)]
        assert max(counts) - min(counts) <= 1


def test_folds_depend_on_the_seed_alone() -> None:
    case = planted(n=200)
    first, again, other = (patient_folds(case.labels, case.patients, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_rare_class_makes_fewer_folds() -> None:
    labels = np.array([0] * 20 + [1] * 3)
    assert patient_folds(labels, np.arange(23)).max() == 2


def test_a_class_without_cases_gets_probability_zero() -> None:
    case = planted(n=200)
    held = out_of_fold(case.embeddings, case.labels * 2, case.patients, classes=tuple("abcd"))
    assert not held.probabilities[:, [1, 3]].any()
    assert held.probabilities.sum(axis=1) == pytest.approx(1.0)
    found = rank_label_issues(held.probabilities, case.labels * 2, case.patients, rng=rng())
    assert set(found.suggested) == {0, 2}


def test_the_second_opinion_is_cleanlabs() -> None:
    case = planted(n=600, flips=30)
    held = out_of_fold(case.embeddings, case.labels, case.patients, classes=TWO)
    flagged = second_opinion(held.probabilities, case.labels)
    assert np.array_equal(flagged, find_label_issues(case.labels, held.probabilities, n_jobs=1))
    assert case.flipped[flagged].mean() >= 0.6
    wider = np.insert(held.probabilities, 1, 0.0, axis=1)  # a class in between that nobody has
    assert np.array_equal(second_opinion(wider, case.labels * 2), flagged)


def test_without_cleanlab_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingExtra, match=r"a second opinion .* needs the package 'cleanlab'.*xvision\[labels\]"):
        second_opinion(np.array([[0.5, 0.5]]), np.array([0]))


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(DataError, match="all 4 cases have the same label: there is nothing to compare it with"):
        patient_folds(np.ones(4, int), np.arange(4))
    with pytest.raises(DataError, match="the label '7' has 1 patients, too few to leave some out: label more of them"):
        patient_folds(np.array([0, 0, 0, 7, 7]), np.array([0, 1, 2, 3, 3]))


def test_what_does_not_fit_is_refused() -> None:
    labels, patients = np.array([0, 1, 0, 1]), np.arange(4)
    with pytest.raises(DataError, match=r"4 labels came with embeddings of shape \(3, 2\): give one row per case"):
        out_of_fold(np.zeros((3, 2)), labels, patients, classes=TWO)
    with pytest.raises(DataError, match="embeddings of 1 of 4 cases are not finite"):
        out_of_fold(np.array([[0.0], [1.0], [np.nan], [2.0]]), labels, patients, classes=TWO)
    with pytest.raises(DataError, match=r"probabilities of shape \(2, 2\) came with labels of shape \(4,\)"):
        confident_joint(np.full((2, 2), 0.5), labels)
    with pytest.raises(DataError, match="between 0 and 1: give probabilities, not logits"):
        confident_joint(np.array([[-1.0, 2.0]]), np.array([0]))
    with pytest.raises(DataError, match="labels reach from 0 to 2 but there are 2 classes"):
        confident_joint(np.full((2, 2), 0.5), np.array([0, 2]))
