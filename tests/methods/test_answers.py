"""Answers for any number of classes: against scikit-learn, closed forms, and resamples made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from xvision.errors import DataError
from xvision.methods.answers import Measure, accuracy, answers, balanced_accuracy, macro_auroc, paired_difference
from xvision.methods.intervals import proportion
from xvision.methods.paired import tango
from xvision.methods.scores import auroc, auroc_difference_paired


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noisy(labels: np.ndarray, strength: float, seed: int, classes: int) -> np.ndarray:
    """Logits (N, K) that know the label as well as ``strength`` says."""
    values = np.random.default_rng(seed).normal(size=(len(labels), classes))
    values[np.arange(len(labels)), labels] += strength
    return values


LABELS = np.arange(300) % 3
PATIENTS = np.arange(300) // 2


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), min_size=12, max_size=40))
def test_the_difference_of_two_classes_is_scikit_learns(cases: list[tuple[int, int, bool]]) -> None:
    """Ties count half."""
    labels = np.array([int(label) for *_, label in cases])
    first, second = (np.array([[0.0, case[model]] for case in cases]) for model in (0, 1))
    patients = np.arange(len(labels))
    one, other = answers(first, labels), answers(second, labels)
    found = paired_difference(one, other, patients, measure="auroc", rng=rng())
    if labels.min() == labels.max():
        assert found.reason == "no class has cases both in it and outside it"
    elif found.value is not None:
        expected = roc_auc_score(labels, first[:, 1]) - roc_auc_score(labels, second[:, 1])
        assert found.value == pytest.approx(expected)


def test_several_classes_are_scored_as_scikit_learn_does() -> None:
    logits = noisy(LABELS, 1.0, 0, 3)
    found = answers(logits, LABELS)
    expected = roc_auc_score(LABELS, found.scores, multi_class="ovr", average="macro")
    area = macro_auroc(found, PATIENTS, rng=rng())
    assert area.value == pytest.approx(expected)
    assert area.method.endswith("mean of 3 of 3 classes")
    assert area.n == 150
    assert accuracy(found, PATIENTS).value == pytest.approx(accuracy_score(LABELS, logits.argmax(1)))
    balanced = balanced_accuracy(found, PATIENTS, rng=rng())
    assert balanced.value == pytest.approx(balanced_accuracy_score(LABELS, logits.argmax(1)))


def test_two_classes_have_delongs_and_wilsons_intervals() -> None:
    labels = LABELS % 2
    logits = noisy(labels, 1.0, 0, 2)
    found = answers(logits, labels)
    assert macro_auroc(found, PATIENTS, rng=rng()) == auroc(logits[:, 1] - logits[:, 0], labels == 1, PATIENTS)
    assert accuracy(found, PATIENTS) == proportion(logits.argmax(1) == labels, PATIENTS)
    balanced = balanced_accuracy(found, PATIENTS, rng=rng())
    assert balanced.value == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))


def test_findings_are_averaged_over_those_that_can_be_judged() -> None:
    truth = np.zeros((60, 3), dtype=np.float32)
    truth[::2, 0], truth[::3, 1] = 1, 1
    logits = np.random.default_rng(1).normal(size=truth.shape) + truth
    found = answers(logits, truth)
    area = macro_auroc(found, np.arange(60), rng=rng())
    assert area.value == pytest.approx(
        np.mean([roc_auc_score(truth[:, column], logits[:, column]) for column in (0, 1)])
    )
    assert area.method.endswith("mean of 2 of 3 classes")
    assert accuracy(found, np.arange(60)).value == pytest.approx(np.mean((logits > 0) == (truth > 0)))
    assert accuracy(found, np.arange(60)).n == 60


def test_no_class_to_tell_apart_is_a_reason() -> None:
    found = answers(np.zeros((12, 3)), np.zeros(12, dtype=int))
    assert macro_auroc(found, np.arange(12), rng=rng()).reason == "no class has cases both in it and outside it"


def test_the_bootstrap_of_a_difference_is_near_delongs() -> None:
    labels = np.arange(600) % 2
    patients = np.arange(600)
    first, second = noisy(labels, 1.5, 0, 2), noisy(labels, 1.0, 1, 2)
    one, other = answers(first, labels), answers(second, labels)
    found = paired_difference(one, other, patients, measure="auroc", rng=rng())
    exact = auroc_difference_paired(one.scores[:, 0], other.scores[:, 0], labels == 1, patients, scale="linear")
    assert found.value == pytest.approx(exact.value)
    assert found.low == pytest.approx(exact.low, abs=0.01)
    assert found.high == pytest.approx(exact.high, abs=0.01)


def test_copies_of_a_patients_images_add_no_evidence() -> None:
    labels = np.arange(80) % 2
    first, second = noisy(labels, 1.5, 0, 2), noisy(labels, 1.0, 1, 2)
    once = paired_difference(answers(first, labels), answers(second, labels), np.arange(80), measure="auroc", rng=rng())
    twice = [np.repeat(values, 2, axis=0) for values in (first, second, labels, np.arange(80))]
    again = paired_difference(
        answers(twice[0], twice[2]), answers(twice[1], twice[2]), twice[3], measure="auroc", rng=rng()
    )
    assert again[:3] == pytest.approx(once[:3])
    assert again.n == once.n


@pytest.mark.parametrize(("measure", "units"), [("accuracy", 100), ("auroc", 50)])
def test_the_same_model_twice_differs_by_nothing_but_not_with_certainty(measure: Measure, units: int) -> None:
    """Tango's interval of no change: ± z² / (n + z²)."""
    labels = np.arange(100) % 2
    found = answers(noisy(labels, 1.0, 0, 2), labels)
    same = paired_difference(found, found, np.arange(100), measure=measure, rng=rng())
    bound = tango(0, 0, units)[1]
    assert bound == pytest.approx(1.959964**2 / (units + 1.959964**2), rel=1e-5)
    assert (same.low, same.value, same.high) == pytest.approx((-bound, 0.0, bound))


def test_two_perfect_models_are_not_called_equal_on_few_patients() -> None:
    labels = np.arange(40) % 2
    perfect = answers(np.eye(2)[labels] * 9, labels)
    other = answers(np.eye(2)[labels] * np.linspace(5, 9, 40)[:, None], labels)
    found = paired_difference(perfect, other, np.arange(40), measure="auroc", rng=rng())
    assert found.value == 0.0
    assert found.high is not None
    assert found.high > 0.05


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"logits of shape \(3, 2\) came with labels of shape \(3,\)"):
        answers(np.zeros((3, 2)), np.array([0, 1, 2]))
    with pytest.raises(DataError, match=r"logits of shape \(3, 2\) came with labels of shape \(2,\)"):
        answers(np.zeros((3, 2)), np.array([0, 1]))


def test_other_cases_are_refused() -> None:
    one, other = answers(np.zeros((4, 2)), np.array([0, 1, 0, 1])), answers(np.zeros((4, 2)), np.array([1, 1, 0, 1]))
    with pytest.raises(DataError, match="not asked the same questions"):
        paired_difference(one, other, np.arange(4), measure="auroc", rng=rng())


def test_few_patients_are_not_resampled() -> None:
    """Three of eight cases gained, none lost: Tango's interval, not a bootstrap of eight."""
    labels = np.array([0, 1] * 4)
    right, wrong = np.eye(2)[labels], np.eye(2)[1 - labels]
    first, second = right, np.where(np.arange(8)[:, None] < 3, wrong, right)
    found = paired_difference(
        answers(first, labels), answers(second, labels), np.arange(8), measure="accuracy", rng=rng()
    )
    assert (found.low, found.value, found.high) == pytest.approx((tango(3, 0, 8)[0], 3 / 8, tango(3, 0, 8)[1]))
