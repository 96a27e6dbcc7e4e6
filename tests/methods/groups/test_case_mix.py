"""Gaps at equal case mixes: closed forms, other implementations, laws, coverage, and what cannot be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, precision_score, recall_score
from statsmodels.stats.contingency_tables import StratifiedTable

from tests.methods.groups.test_table import from_counts
from xvision.errors import ConfigError, DataError
from xvision.methods.groups.case_mix import Compared, Step, case_mix
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.groups.mixes import RATES, patient_draws
from xvision.methods.groups.weighted import weighted_sums
from xvision.methods.intervals import Sample, combination, wilson

Columns = dict[str, np.ndarray]
NOTHING = Step(None)


def run(data: Columns, *steps: Step, resamples: int = 200, **options: Any) -> tuple[Compared, ...]:
    draws = patient_draws(data["patients"], rng=np.random.default_rng(0), resamples=resamples)
    return case_mix(
        data["labels"], data["decisions"], data["groups"], data["patients"], (NOTHING, *steps), draws=draws, **options
    )


def positives(shares: dict[str, list[float]], rates: list[float], count: int = 1000) -> Columns:
    """Exact counts of positive cases: per group the share of each stratum, and each stratum's sensitivity."""
    sizes = {name: [round(count * share) for share in own] for name, own in shares.items()}
    groups = np.concatenate([np.repeat(name, sum(own)) for name, own in sizes.items()])
    strata = np.concatenate([np.repeat(np.arange(len(own)), own) for own in sizes.values()]).astype(str)
    parts = [part for own in sizes.values() for part in zip(own, rates, strict=True)]
    decisions = np.concatenate([np.arange(size) < round(size * rate) for size, rate in parts]).astype(int)
    return {
        "labels": np.ones(len(groups), int), "decisions": decisions, "groups": groups, "strata": strata,
        "patients": np.arange(len(groups)),
    }  # fmt: skip


def mixed(seed: int = 0, cases: int = 1500, visits: int = 1) -> Columns:
    """Three groups and missing ones; mix, prevalence and errors differ by group and stratum."""
    rng = np.random.default_rng(seed)
    group = rng.choice(4, cases, p=[0.4, 0.3, 0.2, 0.1])
    site = (rng.random((cases, 1)) > np.array([[0.2, 0.6], [0.4, 0.8], [0.6, 0.9], [0.3, 0.5]])[group]).sum(axis=1)
    group, site = np.repeat(group, visits), np.repeat(site, visits)
    labels = (rng.random(len(group)) < 0.2 + 0.15 * group + 0.1 * site).astype(int)
    decisions = (rng.random(len(group)) < np.where(labels, 0.9 - 0.2 * site, 0.1 + 0.1 * group)).astype(int)
    names = np.array(["A", "B", "C", "unknown"])[group]
    patients = np.repeat(np.arange(cases), visits)
    return {"labels": labels, "decisions": decisions, "groups": names, "strata": site.astype(str), "patients": patients}


def weights_by_hand(data: Columns, side: np.ndarray, known: np.ndarray) -> np.ndarray:
    """p_target / p_group, of label and of stratum within label, one case at a time."""
    found = np.zeros(len(side))
    for label in (0, 1):
        own, aim = (each & (data["labels"] == label) for each in (side, known))
        for level in np.unique(data["strata"]):
            here = data["strata"] == level
            if (own & here).any():
                within = (aim & here).sum() / aim.sum() / ((own & here).sum() / own.sum())
                found[own & here] = within * (aim.sum() / known.sum()) / (own.sum() / side.sum())
    return found


def test_a_gap_that_is_all_severity_is_gone_at_the_same_severity() -> None:
    data = positives({"A": [0.2, 0.8], "B": [0.8, 0.2]}, [0.6, 0.9])
    (found,) = run(data, Step(data["strata"]))
    raw, same = (step.figures["sensitivity"] for step in found.steps)
    assert (found.group, found.reference, raw.group.value, raw.reference.value) == ("A", "B", 0.84, 0.66)
    assert raw.gap.value == pytest.approx(0.18)
    assert (same.group.value, same.reference.value) == (pytest.approx(0.75), pytest.approx(0.75))
    assert same.gap.value == pytest.approx(0.0, abs=1e-12)
    assert same.change.value == pytest.approx(-0.18)
    assert same.change.high is not None
    assert same.change.high < -0.14
    assert same.effective == pytest.approx((640.0, 640.0))
    assert same.odds_ratio.value == pytest.approx(1.0)
    assert found.steps[1].covered[1].value == 1.0


def test_the_mix_can_be_that_of_the_reference() -> None:
    data = positives({"A": [0.2, 0.8], "B": [0.8, 0.2]}, [0.6, 0.9])
    (found,) = run(data, Step(data["strata"]), target="reference")
    same = found.steps[1].figures["sensitivity"]
    assert (same.group.value, same.reference.value) == (pytest.approx(0.66), pytest.approx(0.66))
    assert same.effective == pytest.approx((1 / (0.8**2 / 200 + 0.2**2 / 800), 1000.0))


def test_a_gap_in_ppv_that_is_all_prevalence_is_gone_at_the_same_prevalence() -> None:
    labels, decisions, groups = from_counts(A=(400, 50, 100, 450), B=(80, 90, 20, 810))
    data = {"labels": labels, "decisions": decisions, "groups": groups, "patients": np.arange(len(labels))}
    (found,) = run(data, Step(np.full(len(labels), "all")))
    raw, same = (step.figures for step in found.steps)
    assert raw["ppv"].group.value == pytest.approx(0.888889, abs=1e-6)
    assert raw["ppv"].reference.value == pytest.approx(0.470588, abs=1e-6)
    for rate in RATES:
        assert same[rate].gap.value == pytest.approx(0.0, abs=1e-12)
    assert same["ppv"].change.value == pytest.approx(0.470588 - 0.888889, abs=1e-6)
    assert same["sensitivity"].change.reason is not None


def test_as_found_the_gaps_are_those_without_adjustment() -> None:
    data = mixed(visits=2)
    arguments = (data["labels"], data["decisions"], data["decisions"], data["groups"], data["patients"])
    compared = run(data, Step(data["strata"]))
    assert [(found.reference, found.ranked) for found in compared] == [("rest", True)] * 3 + [("known", False)]
    for rate in RATES:
        plain = {gap.group: gap for gap in group_gaps(*arguments, metric=rate)}
        for found in compared:
            gap = plain[found.group]
            assert found.reference == gap.reference
            assert found.levels[rate] == pytest.approx(gap.level)
            assert found.steps[0].figures[rate].gap == pytest.approx(gap.difference)


def test_figures_are_those_of_scikit_learn_with_weights_made_by_hand() -> None:
    data = mixed()
    known = data["groups"] != "unknown"
    labels, decisions = data["labels"], data["decisions"]
    for found in run(data, Step(data["strata"])):
        first = data["groups"] == found.group
        second = known if found.reference == "known" else known & ~first
        for side, name in ((first, "group"), (second, "reference")):
            weights = weights_by_hand(data, side, known)
            given = (labels, decisions, weights)
            expected = {
                "sensitivity": recall_score(labels, decisions, sample_weight=weights),
                "specificity": recall_score(labels, decisions, sample_weight=weights, pos_label=0),
                "ppv": precision_score(labels, decisions, sample_weight=weights),
                "npv": precision_score(labels, decisions, sample_weight=weights, pos_label=0),
                "accuracy": accuracy_score(*given[:2], sample_weight=weights),
                "selection_rate": np.average(decisions, weights=weights),
            }
            for rate in RATES:
                estimate = getattr(found.steps[1].figures[rate], name)
                assert estimate.value == pytest.approx(expected[rate], abs=1e-12)


def test_weights_are_what_drawing_again_gives_on_average() -> None:
    data = mixed(seed=1, cases=4000)
    data = {name: column[data["groups"] != "unknown"] for name, column in data.items()}
    known = np.ones(len(data["labels"]), bool)
    rng, draws, size = np.random.default_rng(2), 2000, 20_000
    cells = np.unique(np.stack([data["labels"], data["decisions"]]), axis=1, return_inverse=True)[1]
    prevalences = []
    for found in run(data, Step(data["strata"])):
        side = data["groups"] == found.group
        chances = np.bincount(cells, weights_by_hand(data, side, known))
        tn, fp, fn, tp = rng.multinomial(size, chances / chances.sum(), size=draws).T
        figures = {
            "sensitivity": tp / (tp + fn), "specificity": tn / (tn + fp), "ppv": tp / (tp + fp), "npv": tn / (tn + fn),
            "selection_rate": (tp + fp) / size, "accuracy": (tp + tn) / size,
        }  # fmt: skip
        for rate in RATES:
            drawn, value = figures[rate], found.steps[1].figures[rate].group.value
            assert value == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(draws))
        prevalences.append((tp + fn).mean() / size)
    assert prevalences == pytest.approx([data["labels"].mean()] * 3, abs=4 * 0.5 / np.sqrt(draws * size))


def test_steps_change_the_gap_one_after_the_other() -> None:
    data = mixed()
    second = np.where(np.arange(1500) % 3 == 0, "x", "y")
    both = np.char.add(data["strata"], second)
    found = run(data, Step(data["strata"]), Step(both, after=1), Step(both))[0].steps
    gaps = [step.figures["sensitivity"].gap.value or 0.0 for step in found]
    changes = [step.figures["sensitivity"].change.value for step in found]
    assert changes[1:] == pytest.approx([gaps[1] - gaps[0], gaps[2] - gaps[1], gaps[3] - gaps[0]])
    assert [step.strata for step in found] == [1, 3, 6, 6]
    widths = [(each.high or 0) - (each.low or 0) for step in found[1:] for each in [step.figures["sensitivity"].change]]
    assert widths[1] < widths[0] / 2


def test_many_weighted_cells_give_the_limits_of_the_pairwise_formula() -> None:
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 6, 300)
    hits, patients = rng.random(300) < np.array([0.1, 0.5, 0.9, 0.7, 1.0, 0.3])[cells], rng.integers(0, 90, 300)
    hits[cells == 4] = True
    patients[cells == 5] = 91
    coefficients = np.array([[0.5, 0.3, 0.2, -0.4, -0.4, -0.2], [1.0, 0.0, 0.0, 0.0, -1.0, 0.0]])
    found = weighted_sums(hits, cells, np.unique(patients, return_inverse=True)[1], coefficients, level=0.9)
    samples = [Sample(hits[cells == code], patients[cells == code]) for code in range(6)]
    for row, sums in zip(coefficients, found, strict=True):
        expected = combination(samples, row.tolist(), level=0.9)
        limits = (sums.value, sums.value - sums.below, sums.value + sums.above)
        assert limits == pytest.approx(expected[:3], abs=1e-12)


def test_limits_are_those_of_resampling_one_by_one() -> None:
    """A plain loop over resamples of patients, weights made by hand in each."""
    data = mixed(seed=4, cases=1600, visits=2)
    data = {name: column[np.isin(data["groups"], ("A", "B"))] for name, column in data.items()}
    (found,) = run(data, Step(data["strata"]), resamples=1000)
    levels, patients = np.unique(data["strata"]), np.unique(data["patients"])
    positive = data["labels"] == 1
    rows = [np.flatnonzero(data["patients"] == patient) for patient in patients]
    rng, gaps, changes = np.random.default_rng(5), [], []
    for _ in range(300):
        drawn = np.concatenate([rows[place] for place in rng.integers(len(rows), size=len(rows))])
        drawn = drawn[positive[drawn]]
        names, strata, hits = (data[name][drawn] for name in ("groups", "strata", "decisions"))
        shares = [(strata == level).mean() for level in levels]
        sides = [
            sum(
                share * hits[(names == side) & (strata == level)].mean()
                for share, level in zip(shares, levels, strict=True)
            )
            for side in (found.group, found.reference)
        ]
        gaps.append(sides[0] - sides[1])
        changes.append(gaps[-1] - (hits[names == found.group].mean() - hits[names == found.reference].mean()))
    figure = found.steps[1].figures["sensitivity"]
    for estimate, values in ((figure.gap, gaps), (figure.change, changes)):
        assert (estimate.high or 0) - (estimate.low or 0) == pytest.approx(2 * 1.96 * np.std(values), rel=0.15)
    ppv = found.steps[1].figures["ppv"]
    assert (ppv.gap.low or 0) < (ppv.gap.value or 0) < (ppv.gap.high or 0)


def test_the_pooled_odds_ratio_is_that_of_statsmodels() -> None:
    data = mixed(seed=6)
    data = {name: column[np.isin(data["groups"], ("A", "B"))] for name, column in data.items()}
    (found,) = run(data, Step(data["strata"]), resamples=2000)
    for rate, label in (("sensitivity", 1), ("specificity", 0)):
        among = {name: column[data["labels"] == label] for name, column in data.items()}
        right = among["decisions"] == label
        tables = [
            [np.bincount(right[here & (among["groups"] == name)], minlength=2)[::-1] for name in (found.group, found.reference)]
            for here in (among["strata"] == level for level in np.unique(data["strata"]))
        ]  # fmt: skip
        expected = StratifiedTable(np.transpose(tables, (1, 2, 0)).astype(float))
        ours = found.steps[1].figures[rate].odds_ratio
        assert ours.value == pytest.approx(expected.oddsratio_pooled)
        low, high = np.log(expected.oddsratio_pooled_confint())
        assert np.log(ours.high / ours.low) == pytest.approx(high - low, rel=0.1)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), names=st.permutations(["0", "1", "2"]))
def test_names_of_strata_and_order_of_rows_change_nothing(seed: int, names: list[str]) -> None:
    data = mixed(seed, 150)
    order = np.random.default_rng(seed).permutation(150)
    renamed = {name: column[order] for name, column in data.items()}
    renamed["strata"] = np.array(names)[renamed["strata"].astype(int)]
    one, other = (run(each, Step(each["strata"]), resamples=50) for each in (data, renamed))
    for found, again in zip(one, other, strict=True):
        for rate in RATES:
            for part in ("gap", "change", "odds_ratio"):
                was, now = (getattr(each.steps[1].figures[rate], part) for each in (found, again))
                assert was.reason == now.reason
                assert (was[:3] == (None,) * 3) or now[:3] == pytest.approx(was[:3], abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 30), min_size=2, max_size=4),
    times=st.integers(1, 3),
    hits=st.lists(st.floats(0.05, 0.95), min_size=8, max_size=8),
)
def test_with_equal_mixes_nothing_is_adjusted(sizes: list[int], times: int, hits: list[float]) -> None:
    columns: dict[str, list[Any]] = {"groups": [], "strata": [], "decisions": []}
    for side, (name, factor) in enumerate((("A", 1), ("B", times))):
        for stratum, size in enumerate(sizes):
            number = size * factor
            columns["groups"] += [name] * number
            columns["strata"] += [f"s{stratum}"] * number
            columns["decisions"] += [int(place < hits[4 * side + stratum] * number) for place in range(number)]
    data = {name: np.array(values) for name, values in columns.items()}
    cases = len(data["groups"])
    data |= {"labels": np.ones(cases, int), "patients": np.arange(cases)}
    (found,) = run(data, Step(data["strata"]), minimum=1, resamples=20)
    raw, same = (step.figures["sensitivity"] for step in found.steps)
    assert same.gap.value == pytest.approx(raw.gap.value, abs=1e-12)
    assert same.effective == pytest.approx(raw.effective)


def test_copies_of_images_under_the_same_patient_change_no_limit() -> None:
    data = mixed(cases=200)
    copied = {name: np.tile(column, 3) for name, column in data.items()}
    for found, again in zip(run(data, Step(data["strata"])), run(copied, Step(copied["strata"])), strict=True):
        for rate in RATES:
            for part in ("gap", "change", "odds_ratio"):
                was, now = (getattr(each.steps[1].figures[rate], part) for each in (found, again))
                assert was.reason == now.reason
                assert was.value is None or now[:4] == pytest.approx(was[:4], rel=1e-6, abs=1e-9)


def test_intervals_hold_the_truth_in_small_groups() -> None:
    """Where plain percentiles of the resamples hold it in 85 % of data sets: few cases, few errors, thin strata."""
    rng, rates = np.random.default_rng(7), np.array([0.95, 0.9, 0.8])
    shares = (np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.4, 0.4]))
    held: list[tuple[bool, bool]] = []
    for _ in range(100):
        strata = np.concatenate([rng.choice(3, size, p=own) for size, own in zip((30, 60), shares, strict=True)])
        data = {
            "labels": np.ones(90, int), "decisions": (rng.random(90) < rates[strata]).astype(int),
            "groups": np.repeat(["A", "B"], (30, 60)), "patients": np.arange(90),
        }  # fmt: skip
        figure = run(data, Step(strata.astype(str)), resamples=100)[0].steps[1].figures["sensitivity"]
        if figure.gap.low is not None and figure.gap.high is not None:
            truth = -float(rates @ (shares[0] - shares[1]))
            inside = figure.change.low is None or figure.change.low <= truth <= (figure.change.high or 0)
            held.append((figure.gap.low <= 0 <= figure.gap.high, inside))
    assert len(held) > 80
    assert np.mean(held, axis=0).min() >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / len(held))


def test_strata_of_one_side_are_left_out_and_counted() -> None:
    data = positives({"A": [0.5, 0.5, 0.0], "B": [0.2, 0.2, 0.6]}, [0.6, 0.9, 0.1])
    (found,) = run(data, Step(data["strata"]))
    same = found.steps[1].figures["sensitivity"]
    assert found.steps[1].covered[1].value == pytest.approx(0.7)
    assert (same.group.value, same.reference.value) == (pytest.approx(0.75), pytest.approx(0.75))
    (refused,) = run(data, Step(data["strata"]), floor=0.71)
    estimate = refused.steps[1].figures["sensitivity"]
    assert estimate.gap.value is None
    assert estimate.gap.reason == "both sides have only 70 % of the mix of positive cases; 71 % are needed"
    assert refused.steps[0].figures["sensitivity"].gap.value is not None


def test_what_is_left_out_of_one_label_leaves_prevalence_as_it_is() -> None:
    data = positives({"A": [0.5, 0.5, 0.0], "B": [0.2, 0.2, 0.6]}, [0.6, 0.9, 0.1])
    negatives = {
        **data,
        "labels": np.zeros(2000, int),
        "strata": np.full(2000, "0"),
        "patients": 2000 + data["patients"],
    }
    both = {name: np.concatenate([column, negatives[name]]) for name, column in data.items()}
    (found,) = run(both, Step(both["strata"]))
    figures = found.steps[1].figures
    share = np.mean(data["decisions"][data["groups"] == "A"])
    assert figures["sensitivity"].group.value == pytest.approx(0.75)
    assert figures["selection_rate"].group.value == pytest.approx((0.75 + share) / 2)
    assert figures["accuracy"].group.value == pytest.approx((0.75 + 1 - share) / 2)


def test_a_figure_that_rests_on_few_uncertain_cases_is_as_wide_as_they_are() -> None:
    """Half of the mix is 40 cases of which half are hit, the other half always is: p (1 - p) / variance = 120 cases."""
    data = positives({"A": [0.1, 0.9], "B": [0.9, 0.1]}, [0.5, 1.0], count=400)
    (found,) = run(data, Step(data["strata"]), resamples=1000)
    assert found.steps[1].figures["selection_rate"].gap.value is None
    labels = data["labels"].copy()
    labels[::2] = 0
    (found,) = run({**data, "labels": labels}, Step(data["strata"]), resamples=1000)
    figure = found.steps[1].figures["selection_rate"]
    assert figure.group.value == pytest.approx(0.75, abs=0.01)
    assert figure.effective[0] == pytest.approx(144, rel=0.02)
    low, high = wilson(0.75 * 120, 120)
    assert (figure.group.high or 0) - (figure.group.low or 0) == pytest.approx(high - low, rel=0.06)


def test_a_side_that_is_worth_too_few_patients_gives_no_estimate() -> None:
    data = positives({"A": [0.98, 0.02], "B": [0.1, 0.9]}, [0.5, 0.5], count=100)
    (found,) = run(data, Step(data["strata"]))
    figure = found.steps[1].figures["sensitivity"]
    assert figure.gap.value is None
    assert "one side is worth 9.2 patients, fewer than 10" in (figure.gap.reason or "")
    assert figure.change.reason == figure.gap.reason
    assert figure.effective[0] == pytest.approx(1 / (0.54**2 / 98 + 0.46**2 / 2))


def test_groups_without_positives_and_without_company() -> None:
    data = mixed()
    data["labels"] = np.where(data["groups"] == "A", 0, data["labels"])
    found = {each.group: each for each in run(data, Step(data["strata"]))}
    assert found["A"].steps[1].figures["sensitivity"].gap.reason == "fewer than 10 positive patients"
    assert found["A"].steps[1].figures["specificity"].gap.value is not None
    assert [each.group for each in run({**data, "groups": np.full(1500, "A")})] == []
    assert run({**data, "groups": np.full(1500, "unknown")}) == ()
    one_class = run({**data, "labels": np.ones(1500, int)}, Step(data["strata"]))
    assert one_class[0].steps[1].figures["specificity"].gap.reason == "fewer than 10 negative patients"


def test_of_a_thousand_levels_the_largest_are_compared_with_all_others() -> None:
    data = mixed(cases=3000)
    names = np.array([f"level {place % 1000}" for place in range(3000)])
    names[:600] = np.repeat(["big", "bigger"], (200, 400))
    found = run({**data, "groups": names}, Step(data["strata"]), most=2)
    assert [(each.group, each.reference) for each in found] == [("big", "rest"), ("bigger", "rest")]
    rest = found[0].steps[0].figures["sensitivity"].reference
    assert rest.value == pytest.approx(data["decisions"][(names != "big") & (data["labels"] == 1)].mean())


def test_unusable_input_says_what_to_do() -> None:
    data = mixed(cases=60)
    with pytest.raises(DataError, match="60 cases came with strata of shape"):
        run(data, Step(np.array(["a"])))
    arguments = (data["labels"], data["decisions"], data["groups"], data["patients"])
    with pytest.raises(DataError, match="make them with patient_draws"):
        case_mix(*arguments, [NOTHING], draws=np.ones((5, 3), int))
    with pytest.raises(ConfigError, match="the first step"):
        case_mix(*arguments, [Step(data["strata"])], draws=np.ones((5, 60), int))
