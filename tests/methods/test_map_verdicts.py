"""Verdicts on maps: every word at its border, the sentence in full, and the p-value against a random control."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from xvision.errors import ConfigError, DataError
from xvision.methods.faithfulness import as_probability, curves_of, srg
from xvision.methods.intervals import Estimate, not_estimable
from xvision.methods.map_verdicts import advantage, decide_map
from xvision.methods.paired import p_value

SHUFFLED_LOW = Estimate(0.1, 0.05, 0.2, 60, "patient bootstrap")
SHUFFLED_HIGH = Estimate(0.9, 0.85, 0.95, 60, "patient bootstrap")
BETTER = Estimate(0.12, 0.08, 0.16, 60, "patient bootstrap")
EQUAL = Estimate(0.001, -0.01, 0.012, 60, "patient bootstrap")
WORSE = Estimate(-0.2, -0.3, -0.1, 60, "patient bootstrap")
UNSURE = Estimate(0.05, -0.1, 0.2, 60, "patient bootstrap")
NONE = not_estimable("fewer than 10 patients", 4)


def word(*advantages: Estimate, similarity: Estimate = SHUFFLED_LOW, margin: float = 0.02) -> str:
    named = {f"control {place}": {"": each} for place, each in enumerate(advantages)}
    return decide_map(named, similarity, margin=margin, limit=0.5).word


def test_a_method_clearly_ahead_of_every_control_describes_the_model() -> None:
    assert word(BETTER) == word(BETTER, BETTER._replace(value=0.3, high=0.4)) == "describes the model"


@pytest.mark.parametrize("other", [EQUAL, WORSE])
def test_one_control_that_is_as_good_is_enough(other: Estimate) -> None:
    assert word(other) == word(BETTER, other) == word(other, UNSURE) == "no better than a control"


def test_an_interval_on_both_sides_of_the_margin_is_no_evidence_of_equality() -> None:
    assert word(UNSURE) == word(BETTER, UNSURE) == "not decided"
    assert word(EQUAL, margin=0.005) == "not decided"


def test_maps_that_survive_the_weights_fail_whatever_their_advantage() -> None:
    for advantages in ((BETTER,), (WORSE,), (UNSURE,), (NONE,), ()):
        assert word(*advantages, similarity=SHUFFLED_HIGH) == "fails randomisation"


def test_a_similarity_around_the_limit_decides_nothing() -> None:
    around = Estimate(0.5, 0.4, 0.6, 60, "patient bootstrap")
    assert word(BETTER, similarity=around) == "not decided"
    assert word(EQUAL, similarity=around) == "no better than a control"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.02, 0.1, "not decided"),
        (0.0201, 0.1, "describes the model"),
        (-0.1, 0.02, "not decided"),
        (-0.1, 0.0199, "no better than a control"),
    ],
)
def test_a_limit_of_the_interval_on_the_margin_is_not_beyond_it(low: float, high: float, expected: str) -> None:
    assert word(Estimate((low + high) / 2, low, high, 60, "")) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.3, 0.5, "not decided"),
        (0.3, 0.4999, "describes the model"),
        (0.5, 0.9, "not decided"),
        (0.5001, 0.9, "fails randomisation"),
    ],
)
def test_a_similarity_on_the_limit_is_not_beyond_it(low: float, high: float, expected: str) -> None:
    assert word(BETTER, similarity=Estimate((low + high) / 2, low, high, 60, "")) == expected


def test_what_is_missing_keeps_from_the_good_verdict_only() -> None:
    assert word(BETTER, NONE) == word(BETTER, similarity=NONE) == word(UNSURE, NONE) == word() == "not decided"
    assert word(WORSE, NONE) == word(WORSE, similarity=NONE) == "no better than a control"
    assert word(NONE, similarity=SHUFFLED_HIGH) == "fails randomisation"
    assert word(BETTER._replace(low=None, high=None)) == "not decided"


def test_the_sentence_quotes_the_hardest_control_and_the_similarity() -> None:
    found = decide_map(
        {"random maps": {"": BETTER._replace(value=0.3, low=0.25)}, "the centre prior": {"": BETTER}},
        SHUFFLED_LOW,
        margin=0.02,
        limit=0.5,
    )
    assert found.sentence == (
        "Advantage over the centre prior, of 2 comparisons the hardest, 0.120 (0.080 to 0.160), more than 0.020 is"
        " needed; similarity with maps of shuffled weights 0.100 (0.050 to 0.200), less than 0.500 is needed."
    )
    beaten = decide_map({"edges": {"": EQUAL}}, NONE, margin=0.02, limit=0.5)
    assert beaten.sentence == (
        "Advantage over edges 0.001 (−0.010 to 0.012), more than 0.020 is needed; similarity with maps of shuffled"
        " weights not estimable (fewer than 10 patients)."
    )
    failed = decide_map({"edges": {"": NONE}}, SHUFFLED_HIGH, margin=0.02, limit=0.5)
    assert failed.sentence == (
        "Similarity with maps of shuffled weights 0.900 (0.850 to 0.950), less than 0.500 is needed."
    )
    failed = decide_map({"edges": {"": BETTER}}, SHUFFLED_HIGH, margin=0.02, limit=0.5)
    assert failed.sentence.endswith(
        "is needed; advantage over edges 0.120 (0.080 to 0.160), more than 0.020 is needed."
    )


def test_the_control_that_condemns_is_the_one_quoted() -> None:
    """Not the one with the lowest lower limit, which alone would leave it open."""
    found = decide_map({"noise": {"": UNSURE}, "edges": {"": EQUAL}}, SHUFFLED_LOW, margin=0.02, limit=0.5)
    assert found.sentence.startswith("Advantage over edges")


def test_a_method_must_win_under_every_removal() -> None:
    """Losing under one is enough, whoever wins under the other."""
    mixed = decide_map({"edges": {"blur": BETTER, "road": WORSE}}, SHUFFLED_LOW, margin=0.02, limit=0.5)
    assert mixed.word == "no better than a control"
    assert mixed.sentence.startswith("Advantage over edges (road removal), of 2 comparisons the hardest, −0.200")
    open_still = decide_map({"edges": {"blur": BETTER, "road": UNSURE}}, SHUFFLED_LOW, margin=0.02, limit=0.5)
    assert open_still.word == "not decided"


def test_the_sentence_says_what_is_missing_and_why() -> None:
    found = decide_map(
        {"edges": {"": NONE}, "noise": {"": BETTER._replace(low=None, high=None)}}, NONE, margin=0.02, limit=0.5
    )
    assert found.sentence == (
        "Not estimable: the advantage over edges (fewer than 10 patients); the advantage over noise (no interval);"
        " the similarity with maps of shuffled weights (fewer than 10 patients)."
    )
    alone = decide_map({}, SHUFFLED_LOW, margin=0.02, limit=0.5)
    assert alone.sentence == "Not estimable: the advantage over a control (compared with none)."


@pytest.mark.parametrize(("margin", "limit"), [(-0.1, 0.5), (np.nan, 0.5), (np.inf, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_margins_and_limits_out_of_range_are_refused(margin: float, limit: float) -> None:
    with pytest.raises(ConfigError, match=rf"found margin = {margin} and limit = {limit}: at least 0"):
        decide_map({"edges": {"": BETTER}}, SHUFFLED_LOW, margin=margin, limit=limit)


def test_cases_that_rank_nothing_are_left_out_of_both_sides() -> None:
    rng = np.random.default_rng(0)
    gains, controls, patients = rng.normal(0.3, 0.1, 40), rng.normal(0.0, 0.1, 40), np.arange(40)
    gains[3], controls[7] = np.nan, np.nan
    found = advantage(gains, controls, patients, rng=np.random.default_rng(1))
    kept = np.delete(np.arange(40), [3, 7])
    again = advantage(gains[kept], controls[kept], patients[kept], rng=np.random.default_rng(1))
    assert found == again
    assert found.difference.n == 38
    assert found.difference.value == pytest.approx((gains - controls)[kept].mean(), abs=1e-12)


def test_nothing_to_compare_has_a_reason() -> None:
    nothing = advantage(np.full(20, np.nan), np.ones(20), np.arange(20), rng=np.random.default_rng(0))
    assert nothing.difference.reason == "no case in which both maps rank anything"
    few = advantage(np.ones(9), np.zeros(9), np.arange(9), rng=np.random.default_rng(0))
    assert few.difference.reason == "fewer than 10 patients"
    none = advantage(np.ones(0), np.ones(0), np.ones(0), rng=np.random.default_rng(0))
    assert none.difference.reason == "no cases"
    with pytest.raises(DataError, match=r"found figures of shape \(3,\) and \(3,\) of patients \(2,\)"):
        advantage(np.ones(3), np.ones(3), np.arange(2), rng=np.random.default_rng(0))


def planted(seed: int, cases: int = 50, units: int = 12) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Patients and gains of the true contributions to a model and of two random maps, on the probability scale."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(cases, units))

    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        return np.where(removed, 0.0, parts[rows]).sum(axis=1)

    maps = {"true": parts, "random": rng.random((cases, units)), "control": rng.random((cases, units))}
    found = curves_of(evaluate, maps, steps=6)
    return np.arange(cases), {name: srg(as_probability(each)) for name, each in found.items()}


def test_the_p_value_of_random_maps_against_a_random_control_is_uniform() -> None:
    found = []
    for seed in range(200):
        patients, gains = planted(seed, cases=100)
        rng = np.random.default_rng([seed, 1])
        found.append(advantage(gains["random"], gains["control"], patients, rng=rng, resamples=1000).p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_the_true_map_describes_a_planted_model_and_random_maps_do_not() -> None:
    patients, gains = planted(0, cases=400)
    verdicts = {}
    for name in ("true", "random"):
        change = advantage(gains[name], gains["control"], patients, rng=np.random.default_rng(2))
        assert change.p == p_value(change.difference)
        found = decide_map({"random maps": {"": change.difference}}, SHUFFLED_LOW, margin=0.1, limit=0.5)
        verdicts[name] = found.word
    assert verdicts == {"true": "describes the model", "random": "no better than a control"}
