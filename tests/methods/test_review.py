"""The review queue: closed forms of uncertainty and order, the laws of a stratified queue, and planted group mixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from sklearn.metrics import recall_score

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.decision import Decision
from xvision.methods.review import errors_found, group_mix, review_order, uncertainty

quick = settings(deadline=None, max_examples=40)
ARGMAX = Decision()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_uncertainty_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 1e-300]]))
    assert uncertainty(logits, ARGMAX, "margin") == pytest.approx([1.0, 0.5, 0.0])
    assert uncertainty(logits, ARGMAX) == pytest.approx([1.0, 0.811278, 0.0], abs=1e-6)


@quick
@given(st.integers(2, 6), st.integers(0, 10_000))
def test_entropy_is_scipys_over_that_of_equal_shares(classes: int, seed: int) -> None:
    shares = rng(seed).dirichlet(np.ones(classes), size=20)
    assert uncertainty(np.log(shares), ARGMAX) == pytest.approx(entropy(shares, axis=1) / np.log(classes))


@quick
@given(st.floats(0.02, 0.98), st.integers(0, 1), st.sampled_from(["entropy", "margin"]))
def test_the_deployed_threshold_is_where_a_decision_is_least_certain(
    threshold: float, positive: int, measure: str
) -> None:
    shares = np.linspace(0.001, 0.999, 999)
    logits = np.zeros((999, 2))
    logits[:, positive] = np.log(shares / (1 - shares))
    values = uncertainty(logits, Decision(positive, threshold), measure)
    assert shares[values.argmax()] == pytest.approx(threshold, abs=0.0011)


def test_what_has_no_uncertainty_is_refused() -> None:
    with pytest.raises(ConfigError, match="uncertainty 'variance' is unknown: give entropy or margin"):
        uncertainty(np.zeros((1, 2)), ARGMAX, "variance")
    with pytest.raises(ModelError, match="logits of 1 of 1 cases are not finite"):
        uncertainty(np.array([[np.nan, 0.0]]), ARGMAX)


def test_the_order_by_hand() -> None:
    scores = np.array([0.2, 0.9, 0.9, 0.9, 0.5, 0.1])
    patients = np.array(["a", "b", "b", "b", "a", "c"])
    assert review_order(scores, patients, 10, per_patient=2).tolist() == [1, 2, 4, 0, 5]
    assert review_order(scores, patients, 2, per_patient=1).tolist() == [1, 4]


def test_a_stratified_queue_by_hand() -> None:
    """Two thirds of the cases are in x: every third place goes to y, whose cases are all less uncertain."""
    scores = np.array([9.0, 8.0, 7.0, 6.0, 2.0, 1.0])
    strata = np.array(["x", "x", "x", "x", "y", "y"])
    chosen = review_order(scores, np.arange(6), 6, strata=strata)
    assert chosen.tolist() == [0, 4, 1, 2, 5, 3]


@quick
@given(st.integers(1, 80), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 10_000))
def test_the_laws_of_a_queue(size: int, most: int, levels: int, stratified: bool, seed: int) -> None:
    draw = rng(seed)
    scores, patients = draw.integers(10, size=60).astype(float), draw.integers(25, size=60)
    strata = draw.integers(levels, size=60)
    chosen = review_order(scores, patients, size, strata=strata if stratified else None, per_patient=most)
    room = int(np.minimum(np.bincount(patients), most).sum())
    assert len(chosen) == len(set(chosen.tolist())) == min(size, room)
    assert np.bincount(patients[chosen]).max() <= most
    for level in range(levels if stratified else 1):
        part = chosen[strata[chosen] == level] if stratified else chosen
        assert (np.diff(scores[part]) <= 0).all()


@quick
@given(st.integers(2, 5), st.integers(0, 10_000))
def test_every_beginning_of_a_stratified_queue_has_the_mix_of_the_data(levels: int, seed: int) -> None:
    draw = rng(seed)
    strata = np.concatenate([np.arange(levels), draw.choice(levels, size=400, p=draw.dirichlet(np.ones(levels)))])
    scores = draw.normal(size=len(strata)) + 3 * strata  # one level is more uncertain than all the others
    chosen = review_order(scores, np.arange(len(strata)), 60, strata=strata, per_patient=1)
    shares = np.bincount(strata, minlength=levels) / len(strata)
    running = np.cumsum(strata[chosen][:, None] == np.arange(levels), axis=0)
    places = np.arange(1, len(chosen) + 1)[:, None]
    enough = (running < np.bincount(strata, minlength=levels)).all()
    if enough:
        assert np.abs(running - places * shares).max() < levels - 1 + 1e-9


def test_a_queue_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a queue of 0 cases with 2 per patient is none: give at least 1 of each"):
        review_order(np.zeros(3), np.arange(3), 0)
    with pytest.raises(DataError, match="one finite number per case, with one patient per case"):
        review_order(np.array([0.0, np.nan]), np.arange(2), 1)


def test_a_group_that_fills_the_queue_is_named() -> None:
    sex = np.array(["F"] * 300 + ["M"] * 700)
    age = np.tile(["<40", "40+"], 500)
    chosen = np.r_[0:60, 300:340]
    mix = {(share.column, share.level): share for share in group_mix({"sex": sex, "age": age}, chosen, np.arange(1000))}
    women = mix["sex", "F"]
    assert (women.queue.value, women.everyone.value) == (0.6, 0.3)
    assert women.difference.value == pytest.approx(0.6 - 240 / 900)
    assert women.difference.method == "Newcombe at 98.75 %"
    assert (women.side, mix["sex", "M"].side) == ("more", "fewer")
    assert mix["age", "<40"].side == mix["age", "40+"].side == "as the rest"
    assert women.queue.n == 100


def test_innocent_queues_are_seldom_accused() -> None:
    draw = rng(1)
    columns = {name: draw.choice(["a", "b", "c"], 600) for name in ("sex", "site", "age")}
    sided = [
        any(
            share.side in ("more", "fewer") for share in group_mix(columns, draw.choice(600, 80, False), np.arange(600))
        )
        for _ in range(200)
    ]
    assert np.mean(sided) <= 0.08


def test_a_queue_of_every_case_has_no_rest() -> None:
    (share,) = group_mix({"sex": np.array(["F", "F"])}, np.arange(2), np.arange(2))
    assert share.side == "not decided"
    assert share.difference.reason == "the queue holds every case"


@quick
@given(st.integers(1, 60), st.integers(0, 10_000))
def test_the_share_of_errors_found_is_a_recall(size: int, seed: int) -> None:
    draw = rng(seed)
    wrong, chosen = draw.random(60) < 0.3, draw.choice(60, size, False)
    found = errors_found(wrong, chosen, np.arange(60))
    if wrong.any():
        assert found.found.value == pytest.approx(recall_score(wrong, np.isin(np.arange(60), chosen)))
        assert found.found.n == wrong.sum()
    assert found.by_chance == size / 60
    assert (found.cases, found.pool, found.errors) == (size, 60, wrong.sum())


def test_errors_found_by_hand() -> None:
    wrong = np.zeros(100, bool)
    wrong[[0, 1, 2, 50]] = True
    found = errors_found(wrong, np.arange(10), np.arange(100))
    assert found.found.value == 0.75
    assert found.found.low == pytest.approx(0.3006, abs=1e-4)  # Wilson for 3 of 4
    assert (found.inside.value, found.outside.value) == (0.3, pytest.approx(1 / 90))
    assert errors_found(np.zeros(5, bool), np.arange(2), np.arange(5)).found.reason == "the model made no error"
