"""The rules of the checks for gradient masking at their limits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attacks.gathered import ALL, NONE, N, evidence, first, last, of
from xvision.attacks import check_rules as rules
from xvision.attacks.check_table import Check, State
from xvision.errors import DataError

COMPARED = [
    ("M1", "single_step", "pgd"),
    ("M2", "black_box", "white_box"),
    ("M3", "transfer", "white_box"),
    ("M19", "noise", "pgd"),
]


def tail(found: int, of: int, share: float) -> float:
    """P(at least ``found`` of ``of``), by summing the binomial distribution."""
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(found, of + 1))


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_test_is_the_sum_of_binomial_coefficients(found: int, against: int) -> None:
    expected = tail(found, found + against, 0.5) if found else 1.0
    assert rules.sign_test(found, against) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 120), st.data(), st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_a_share_is_exceeded_when_the_exact_tail_is_below_one_percent(
    of: int, data: st.DataObject, share: float
) -> None:
    found = data.draw(st.integers(0, of))
    assert rules.exceeds(found, of, share) == (tail(found, of, share) < 0.01)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.5])
def test_few_cases_do_not_cry_wolf(share: float) -> None:
    """At the very limit the chance of an alarm is below one percent, whatever the number of cases; all cases at once raise it."""
    for cases in (7, 20, 30, 50, 200):
        fewest = next(found for found in range(cases + 1) if rules.exceeds(found, cases, share))
        assert tail(fewest, cases, share) < 0.01 <= tail(fewest - 1, cases, share)
        assert rules.exceeds(cases, cases, share)
    assert not rules.exceeds(0, 0, share)


def test_one_of_thirty_is_no_sign_though_it_is_more_than_one_percent() -> None:
    half = first(15, 30)
    for id_, states in (("M11", ["clear", "clear", "flagged"]), ("M12", ["clear", "clear", "flagged"])):
        found = [rules.more_helps(id_, first(15 + more, 30), half).state for more in (1, 2, 3)]
        assert found == states


@pytest.mark.parametrize(("id_", "more"), [("M11", "longer"), ("M12", "restarted")])
def test_more_effort_counts_where_no_attack_succeeded_without(id_: str, more: str) -> None:
    assert of(id_, evidence(**{more: ALL})).found == 20
    for other in ("single_step", "cross_entropy", "margin"):
        assert of(id_, evidence(**{more: ALL, other: last(N // 2)})).found == 0
        assert of(id_, evidence(**{more: ALL, other: None})).found == 20
    assert of(id_, evidence(**{more: ALL, "white_box": ALL})).state == "flagged"


@pytest.mark.parametrize(("id_", "weaker", "stronger"), COMPARED)
@pytest.mark.parametrize(
    ("wins", "losses", "state"),
    [(7, 0, "flagged"), (6, 0, "clear"), (10, 1, "flagged"), (9, 1, "clear"), (0, 30, "clear"), (20, 20, "clear"), (0, 0, "clear")],
)  # fmt: skip
def test_a_weaker_attack_must_win_by_the_sign_test(
    id_: str, weaker: str, stronger: str, wins: int, losses: int, state: State
) -> None:
    found = of(id_, evidence(**{weaker: first(wins), stronger: last(losses)}))
    assert (found.state, found.found, found.of) == (state, wins, N)
    assert str(wins) in found.sentence
    assert str(losses) in found.sentence


@pytest.mark.parametrize(("cases", "wins", "state"), [(499, 2, "clear"), (500, 1, "clear"), (500, 2, "flagged")])
def test_with_many_cases_a_black_box_attack_may_add_a_fifth_of_a_percent(cases: int, wins: int, state: State) -> None:
    nothing, hits = np.zeros(cases, dtype=bool), first(wins, cases)
    assert rules.weaker_wins("M2", hits, nothing).state == state
    assert all(rules.weaker_wins(id_, hits, nothing).state == "clear" for id_ in ("M1", "M3", "M19"))


@pytest.mark.parametrize(
    ("survivors", "known", "state"),
    [(0, N, "clear"), (9, N, "clear"), (10, N, "flagged"), (27, N, "flagged"), (28, N, "broken"), (N, N, "broken"), (N, 0, "clear"),
     (20, 10, "broken"),
     (7, 7, "broken"), (4, 6, "flagged")],
)  # fmt: skip
def test_survivors_of_everything_are_counted_where_an_image_is_known_that_breaks_them(
    survivors: int, known: int, state: State
) -> None:
    unbounded = ~first(survivors)
    found = rules.unbounded_survivors(unbounded, first(known), None, None)
    assert (found.state, found.found, found.of) == (state, min(survivors, known), known)
    assert ("constant" in found.sentence) == (known == 0)


def test_mid_grey_is_a_proof_of_its_own_within_half_the_range() -> None:
    survives = rules.unbounded_survivors(ALL, NONE, first(10), ALL)
    assert (survives.state, survives.found, survives.of) == ("broken", 30, N)
    assert rules.unbounded_survivors(ALL, NONE, first(10), first(10)).state == "clear"
    assert rules.unbounded_survivors(ALL, NONE, NONE, None).of == 0


@pytest.mark.parametrize(
    ("falls", "state"), [(8, "clear"), (9, "flagged")]
)  # 3 pairs of budgets, so that p is multiplied by 3: 2^-9 is below 0.01 / 3 and 2^-8 is not
def test_the_curve_must_not_fall(falls: int, state: State) -> None:
    low, high = first(20), first(20) & ~first(falls)
    found = rules.monotone(np.stack([low, low, high], axis=1))
    assert (found.state, found.found) == (state, falls)


def test_a_fall_is_seen_between_any_two_budgets_and_weighed_against_the_rise() -> None:
    assert (
        rules.monotone(np.stack([first(12), first(12), last(2) | NONE], axis=1)).state == "clear"
    )  # 12 lost, 2 gained, p x 3 = 0.019
    assert rules.monotone(np.stack([first(20), NONE, first(21)], axis=1)).state == "flagged"
    assert rules.monotone(np.stack([first(3), first(20) & ~first(3), last(20)], axis=1)).state == "clear"
    assert rules.monotone(first(5)[:, None]).state == "not run"


def test_zero_gradients_are_doubt_at_the_first_case_and_proof_when_they_are_all() -> None:
    assert rules.zero_gradients(NONE, NONE, NONE).state == "clear"
    assert rules.zero_gradients(first(1), first(1), NONE).state == "flagged"
    assert rules.zero_gradients(NONE, first(1), NONE).state == "flagged"
    assert rules.zero_gradients(first(N - 1), ALL, NONE).state == "flagged"
    assert rules.zero_gradients(ALL, ALL, NONE).state == "broken"
    assert (
        rules.zero_gradients(ALL, ALL, ALL).state == "flagged"
    )  # a constant model has no slope, and nothing else to show
    assert rules.zero_gradients(ALL, ALL, first(N - 1)).state == "broken"


@pytest.mark.parametrize(
    ("gain", "vanished", "zero", "ways", "state"),
    [
        (0, 0, 0, 1, "clear"), (2, 0, 0, 1, "clear"), (3, 0, 0, 1, "flagged"), (6, 0, 0, 3, "clear"), (7, 0, 0, 3, "flagged"),
        (0, 2, 0, 3, "clear"), (0, 3, 0, 3, "flagged"), (0, 20, 20, 3, "clear"), (0, 20, 17, 3, "flagged"), (-9, 0, 0, 1, "clear"),
    ],
)  # fmt: skip
def test_cross_entropy_may_not_lag_behind_the_margin(
    gain: int, vanished: int, zero: int, ways: int, state: State
) -> None:
    found = rules.losses_disagree(first(10), first(10 + gain), first(vanished), first(zero), ways)
    assert found.state == state


@pytest.mark.parametrize(("bad", "state"), [(11, "clear"), (12, "flagged")])
def test_a_twentieth_of_a_hundred_cases(bad: int, state: State) -> None:
    none, hits = first(0, 100), first(bad, 100)
    assert rules.losses_disagree(none, hits, none, none, 3).state == state
    assert rules.surface(np.where(hits, 0.5, 0.6), np.full(100, 0.5)).state == state


def test_what_is_not_finite_is_doubt_and_a_cut_gradient_is_proof() -> None:
    assert rules.nonfinite_or_cut(NONE, NONE).state == "clear"
    assert rules.nonfinite_or_cut(first(1), NONE).state == "flagged"
    assert rules.nonfinite_or_cut(ALL, NONE).state == "broken"
    assert rules.nonfinite_or_cut(NONE, first(1)).state == "broken"
    assert of("M8", evidence(met_nonfinite=first(2))).found == 2
    assert of("M8", evidence(met_nonfinite=None)).state == "clear"


@pytest.mark.parametrize(("found", "state"), [(0, "clear"), (9, "clear"), (10, "flagged"), (N, "flagged")])
@pytest.mark.parametrize(
    "rule",
    [
        lambda bad: rules.unstable_loss(np.full(N, 0.9), np.where(bad, 0.11, 0.1)),
        lambda bad: rules.finite_differences(np.where(bad, 0.89, 0.9), ALL),
        lambda bad: rules.not_converged(paths(np.where(bad, 0.06, 0.04)), NONE),
    ],
)
def test_more_than_a_tenth_of_the_cases_must_show_it(
    rule: Callable[[np.ndarray], Check], found: int, state: State
) -> None:
    check = rule(first(found))
    assert (check.state, check.found, check.of) == (state, found, N)


def paths(late: np.ndarray, steps: int = 40) -> np.ndarray:
    """Losses that have made all of their rise but ``late`` (n,) before the last 10 steps, with dips that the best does not have."""
    values = np.ones((len(late), steps)) * (1 - late)[:, None]
    values[:, 0] = 0.0
    values[:, [-11, -1]] = 0.5
    values[:, -2] = 1.0
    return 7.0 * values - 3.0


def test_only_survivors_must_have_converged() -> None:
    rising = np.linspace(0, 1, 40)[None, :].repeat(N, axis=0)
    assert rules.not_converged(rising, NONE).state == "flagged"
    assert rules.not_converged(rising, ALL).state == "clear"
    assert rules.not_converged(rising, ALL).of == 0
    assert rules.not_converged(rising, ~first(2)).state == "clear"
    assert rules.not_converged(rising, ~first(3)).state == "flagged"


def test_flat_short_and_odd_paths() -> None:
    assert rules.not_converged(np.zeros((N, 40)), NONE).value == 0.0
    assert rules.not_converged(np.zeros((N, 19)), NONE).state == "not run"
    assert rules.not_converged(np.zeros((N, 20)), NONE).state == "clear"
    odd = paths(np.full(N, 0.04))
    odd[:, 25], odd[0] = np.nan, np.nan
    assert rules.not_converged(odd, NONE).found == 0
    late = np.full((N, 40), np.nan)
    late[:, -2:] = [0.0, 1.0]
    assert rules.not_converged(late, NONE).found == N
    with pytest.raises(DataError, match="one row of steps per case"):
        rules.not_converged(odd[1:], NONE)


def test_an_unreported_break_is_a_wrong_figure() -> None:
    assert rules.silent_success(NONE).state == "clear"
    assert rules.silent_success(first(1)).state == "broken"


@pytest.mark.parametrize(
    ("lost", "state"), [(0, "clear"), (2, "clear"), (3, "flagged"), (16, "flagged"), (17, "broken")]
)
def test_breaks_must_hold_when_shown_alone(lost: int, state: State) -> None:
    found = rules.not_transferred(first(22), first(22) & ~first(lost))
    assert (found.state, found.found, found.of) == (state, lost, 22)
    assert rules.not_transferred(NONE, NONE).state == "clear"
    assert rules.not_transferred(NONE, ALL).found == 0


def test_one_case_is_enough_for_what_an_honest_model_never_shows() -> None:
    assert rules.random_model(np.full(N, 1e-4), NONE).state == "clear"
    assert rules.random_model(np.where(first(1), 1.1e-4, 0), NONE).state == "flagged"
    assert rules.random_model(np.zeros(N), first(1)).state == "flagged"
    assert rules.random_model(np.where(first(2), np.inf, 0), first(1)).found == 2
    assert rules.dynamic_defence(NONE).state == "clear"
    assert rules.dynamic_defence(first(1)).state == "flagged"
    assert rules.batch_dependence(np.full(N, 1e-4), NONE).state == "clear"
    assert rules.batch_dependence(np.where(first(1), 1.1e-4, 0), NONE).state == "flagged"


def test_training_mode_is_told_and_not_judged() -> None:
    check = rules.batch_dependence(np.zeros(N), ALL)
    assert check.state == "clear"
    assert "training mode" in check.sentence
    assert "training mode" not in rules.batch_dependence(np.zeros(N), NONE).sentence


def test_probabilities_are_known_by_their_sum_and_by_every_case() -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(3), N)
    assert rules.probabilities_given(shares).state == "flagged"
    assert rules.probabilities_given(shares * (1 + 9e-6)).state == "flagged"
    narrow = 0.3 + 0.1 * shares
    assert rules.probabilities_given(narrow).state == "flagged"
    assert rules.probabilities_given(narrow * 0.9999).state == "clear"
    assert rules.probabilities_given(shares + np.array([0.5, -0.25, -0.25])).state == "clear"
    assert rules.probabilities_given(np.vstack([shares[1:], [[2.0, -0.5, -0.5]]])).state == "clear"
    assert rules.probabilities_given(shares[:, :1]).state == "flagged"
    assert rules.probabilities_given(-shares[:, :1]).state == "clear"


def test_probabilities_of_several_findings_need_not_sum_to_one() -> None:
    findings = np.random.default_rng(0).random((N, 4))
    assert rules.probabilities_given(findings).state == "flagged"
    assert rules.probabilities_given(0.4 + 0.2 * findings).state == "clear"  # logits near zero lie in [0, 1] as well
    assert rules.probabilities_given(findings - 0.01).state == "clear"


@pytest.mark.parametrize(("bad", "state"), [(6, "clear"), (7, "flagged")])
def test_the_slope_must_beat_chance_in_nineteen_of_twenty_cases(bad: int, state: State) -> None:
    assert rules.surface(np.where(first(bad), 0.5, 0.6), np.full(N, 0.5)).state == state
    assert rules.surface(np.where(first(bad), np.nan, 0.6), np.full(N, 0.5)).state == state


def test_slopes_that_cannot_be_measured_do_not_count() -> None:
    cosine = np.where(first(N - 7), np.nan, 0.5)
    assert rules.finite_differences(cosine, ALL).of == 7
    assert rules.finite_differences(cosine, ALL).state == "flagged"
    assert rules.finite_differences(np.where(first(N - 6), np.nan, 0.5), ALL).state == "not run"
    assert "float64" in rules.finite_differences(np.ones(N), ALL).sentence
    assert "float32" in rules.finite_differences(np.ones(N), first(N - 1)).sentence


def test_an_attack_that_misses_the_closed_form_is_the_tool_s_fault() -> None:
    exact = first(15, 30)
    assert rules.twin(exact, exact).state == "clear"
    assert rules.twin(exact, first(14, 30)).state == "broken"
    assert rules.twin(exact, first(16, 30)).state == "broken"


def test_arrays_of_other_cases_are_refused() -> None:
    with pytest.raises(DataError, match="one value per case"):
        rules.weaker_wins("M1", first(1, 30), NONE)
    with pytest.raises(DataError, match="one value per case"):
        rules.silent_success(NONE[:, None])
    with pytest.raises(DataError, match="one value per case"):
        rules.unbounded_survivors(ALL, ALL, first(3, 30), first(3, 30))
    with pytest.raises(DataError, match="one value per case"):
        rules.random_model(np.zeros(30), NONE)
