"""Who it is worse for: hand-made tables with known verdicts, missing and degenerate groups, a tuned threshold, a planted gap."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.analyses.reading import found, table
from tests.analyses.scored import scored
from tests.analyses.shifted import pooled_model
from xvision.analyses.fairness import fairness
from xvision.audit import Audit
from xvision.charts import Forest
from xvision.config import FairnessPlan
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.methods.groups.power import detectable_difference
from xvision.methods.operating_point import Judged, OperatingPoint, Rule, tuned_differences
from xvision.result import NotApplicable, Result

Counts = dict[str, tuple[int, int, int, int]]
"""Group → true positives, false positives, false negatives, true negatives."""


def tabled(counts: Counts, column: str = "sex", **more: np.ndarray) -> Audit:
    cells = [
        (name, *cell) for name, four in counts.items() for cell in zip(four, (1, 0, 1, 0), (1, 1, 0, 0), strict=True)
    ]
    group = np.repeat([cell[0] for cell in cells], [cell[1] for cell in cells])
    labels, decisions = (np.repeat([cell[at] for cell in cells], [cell[1] for cell in cells]) for at in (2, 3))
    return scored(np.where(decisions == 1, 0.9, 0.1), labels, columns={column: group, **more})


def run(audit: Audit, **options: int) -> Result:
    return fairness(audit, **{"permutations": 99, "resamples": 200, **options})


def verdicts(result: Result) -> dict[tuple[str, str], str]:
    rows = table(result, "What may be said of each difference").rows
    return {(str(row[0]).split(",")[0].split()[-1], str(row[1])): str(row[3]) for row in rows}


def test_a_group_without_disease_is_not_perfect() -> None:
    audit = tabled({"a": (30, 10, 10, 30), "b": (0, 0, 0, 4)})
    result = run(audit)
    for name in ("sensitivity", "fnr"):
        assert found(result, name, sex="b").value is None
        assert found(result, name, sex="b").reason == "no positive cases"
    fpr = found(result, "fpr", sex="b")
    assert (fpr.value, fpr.low) == (0.0, 0.0)
    assert fpr.high == pytest.approx(0.4899, abs=5e-5)
    assert found(result, "sensitivity_difference", sex="b", against="a").reason == "fewer than 10 positive patients"
    assert verdicts(result)["b", "Sensitivity"] == "not enough data"
    assert "No gap between patient groups is shown" in result.summary
    assert any("nothing is known there" in caveat for caveat in result.caveats)


def test_equal_error_rates_at_other_prevalences_are_no_gap_and_ppv_is_explained() -> None:
    result = run(tabled({"A": (400, 50, 100, 450), "B": (80, 90, 20, 810)}))
    for name in ("sensitivity", "specificity"):
        assert found(result, f"{name}_difference", sex="A", against="B").value == pytest.approx(0.0) or found(
            result, f"{name}_difference", sex="B", against="A"
        ).value == pytest.approx(0.0)
    rows = {row[1]: row for row in table(result, "What may be said of each difference").rows}
    assert rows["PPV"][3] == "gap shown"
    assert str(rows["PPV"][4]).endswith("explained by prevalence")
    assert "not explained" not in str(rows["PPV"][4])
    assert "No gap between patient groups is shown" in result.summary
    assert result.summary.endswith("gaps in PPV or NPV in the table.")


@pytest.mark.parametrize(
    ("margin", "second", "word"),
    [
        (None, (700, 100, 300, 900), "gap shown"),
        (0.05, (700, 100, 300, 900), "gap shown"),
        (0.15, (700, 100, 300, 900), "below the agreed margin"),
        (0.05, (800, 100, 200, 900), "equivalent"),
        (None, (800, 100, 200, 900), "not enough data"),
        (0.01, (800, 100, 200, 900), "not enough data"),
    ],
)
def test_the_four_verdicts(margin: float | None, second: tuple[int, int, int, int], word: str) -> None:
    audit = tabled({"a": (800, 100, 200, 900), "b": second})
    result = run(replace(audit, fairness=FairnessPlan(margin=margin)))
    (said,) = {verdict for (_, rate), verdict in verdicts(result).items() if rate == "Sensitivity"}
    assert said == word
    assert ("Gap shown." in result.summary) == (word == "gap shown")
    assert any("No margin was agreed" in caveat for caveat in result.caveats) == (margin is None)


def test_underdiagnosis_turns_with_the_class_that_means_healthy() -> None:
    audit = tabled({"a": (50, 20, 10, 80), "b": (50, 20, 10, 80)})
    result = run(audit)
    assert "decision.no_disease" in str(found(result, "underdiagnosis").reason)
    finding = run(replace(audit, decision=replace(audit.decision, no_disease=0)))
    assert found(finding, "underdiagnosis", sex="a").value == pytest.approx(10 / 60)
    no_finding = run(replace(audit, decision=replace(audit.decision, no_disease=1)))
    assert found(no_finding, "underdiagnosis", sex="a").value == pytest.approx(20 / 100)
    assert found(no_finding, "overdiagnosis").value == pytest.approx(10 / 60)


def test_missing_groups_are_a_row_of_their_own_with_bounds() -> None:
    result = run(tabled({"a": (80, 10, 20, 90), "b": (60, 10, 40, 90), "unknown": (10, 5, 10, 15)}))
    assert found(result, "sensitivity", sex="unknown").value == pytest.approx(0.5)
    assert found(result, "unknown_share", column="sex").value == pytest.approx(40 / 440)
    gap = found(result, "sensitivity_difference", sex="a", against="b")
    low, high = (
        found(result, "sensitivity_difference", sex="a", bound=f"{side} that missing values allow")
        for side in ("lowest", "highest")
    )
    assert low.value is not None
    assert gap.value is not None
    assert high.value is not None
    assert low.value < gap.value < high.value
    assert low.value == pytest.approx((80 + 0) / (100 + 10) - (60 + 10) / (100 + 10))
    assert table(result, "What the missing values could hide").rows[0][6] == 20
    assert found(result, "missingness_p", column="sex", outcome="error").value is not None
    assert "unknown for 9 %" in " ".join(result.caveats)


def test_a_group_of_one_case_is_shown_and_not_compared() -> None:
    result = run(tabled({"a": (40, 10, 10, 40), "b": (40, 10, 10, 40), "c": (1, 0, 0, 0)}))
    assert found(result, "sensitivity", sex="c").n == 1
    assert verdicts(result)["c", "Sensitivity"] == "not enough data"
    assert ("", "") in [row[6:] for row in table(result, "Who is in the data").rows]
    assert ("c", 1, 1, 1, 0) in [row[1:6] for row in table(result, "Who is in the data").rows]
    forest = next(one for one in result.charts if isinstance(one, Forest))
    assert "sex c" not in forest.alt
    assert "sex c" in [mark.label for mark in forest.marks]


def test_a_thousand_levels_are_counted_and_the_largest_shown() -> None:
    names = np.repeat([f"ward{place:04d}" for place in range(1000)], 2)
    result = run(scored(np.tile([0.9, 0.2], 1000), np.tile([1, 0], 1000), columns={"ward": names}))
    sizes = table(result, "Who is in the data")
    assert len(sizes.rows) == 30
    assert sizes.alt.startswith("1 000 groups in 1 column. The 30 largest of each column are shown, 970 are not.")
    assert (
        found(result, "sensitivity_any_gap_p", column="ward").reason == "fewer than 2 groups with 10 positive patients"
    )
    assert found(result, "sensitivity_any_gap_holm_p", column="ward").reason


def test_one_level_or_no_column_compares_nothing() -> None:
    assert run(tabled({"a": (40, 10, 10, 40)})).summary == (
        "No patient groups could be compared: there are fewer than two known levels."
    )
    with pytest.raises(NotApplicable, match="--groups"):
        run(scored(np.array([0.1, 0.9]), np.array([0, 1])))


def test_more_classes_are_taken_one_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 100)
    result = run(scored(np.eye(3)[labels] * 0.8 + 0.1, labels, columns={"sex": rng.choice(["F", "M"], 300)}))
    assert found(result, "sensitivity", **{"class": "class2", "sex": "F"}).value == 1.0
    assert found(result, "sensitivity_any_gap_p", **{"class": "class0", "column": "sex"}).value == 1.0


def test_classes_are_confused_by_group_and_averaged_over_those_present() -> None:
    labels = np.repeat([0, 1, 2, 0, 1], 20)
    called = np.where(np.arange(100) % 4 == 0, (labels + 1) % 3, labels)
    sex = np.repeat(["F", "M"], [60, 40])
    result = run(scored(np.eye(3)[called] * 0.8 + 0.1, labels, columns={"sex": sex}))
    for name, present in (("F", "class0, class1, class2"), ("M", "class0, class1")):
        item = found(result, "macro_sensitivity", sex=name)
        assert item.value == pytest.approx(0.75)
        assert item.interval.endswith(f"over {present}")
    rows = table(result, "What the cases of each class are called, by group").rows
    assert rows[0] == ("sex F", "class0", "0.750", "0.250", "0.000")
    assert [row[:2] for row in rows if row[0] == "sex M"] == [("sex M", "class0"), ("sex M", "class1")]


def test_the_worst_group_has_a_band_that_holds_for_all() -> None:
    result = run(tabled({"a": (80, 10, 20, 90), "b": (90, 10, 10, 90), "c": (85, 10, 15, 90), "d": (0, 0, 5, 5)}))
    worst, alone = found(result, "worst_group_sensitivity", column="sex"), found(result, "sensitivity", sex="a")
    assert worst.value == alone.value == 0.8
    assert worst.low is not None
    assert alone.low is not None
    assert worst.low < alone.low
    assert worst.interval.endswith("a, of 3 groups")
    forest = next(one for one in result.charts if isinstance(one, Forest))
    assert "sex a, 0.800" in forest.alt
    assert "37 negative patients (specificity 0.902)" in table(result, "Who is in the data").alt


def test_many_columns_are_corrected_by_holm() -> None:
    counts = {"a": (85, 10, 15, 90), "b": (68, 10, 32, 90)}
    alone = found(run(tabled(counts), permutations=999), "sensitivity_any_gap_holm_p", column="sex").value
    rng = np.random.default_rng(1)
    more = tabled(counts, **{f"c{place}": rng.choice(["x", "y"], 400) for place in range(5)})
    together = run(more, permutations=999)
    raw = found(together, "sensitivity_any_gap_p", column="sex").value
    assert alone is not None
    assert raw is not None
    assert found(together, "sensitivity_any_gap_holm_p", column="sex").value == pytest.approx(
        12 * raw
    )  # 6 columns, both rates
    assert any("of the 24 such families" in caveat for caveat in together.caveats)


def test_a_gap_by_how_images_were_taken_is_said_beside_patient_groups() -> None:
    counts = {"A": (95, 10, 5, 90), "B": (70, 10, 30, 90)}
    plain = tabled(counts, "site")
    both = tabled(counts, "site", sex=np.random.default_rng(0).choice(["F", "M"], 400))
    assert run(plain, permutations=499).summary.startswith("Gap shown. Sensitivity is 0.250")
    said = run(both, permutations=499).summary
    assert said.startswith("No gap between patient groups is shown.")
    assert " By how images were taken: Sensitivity is 0.250" in said


def test_a_gap_by_acquisition_that_may_be_chance_is_not_in_the_summary() -> None:
    """A gap of its own family whose test, corrected for eight columns, is above 0.05."""
    rng = np.random.default_rng(3)
    more = {f"c{place}": rng.choice(["x", "y"], 400) for place in range(7)}
    audit = tabled({"A": (90, 10, 10, 90), "B": (78, 10, 22, 90)}, "site", **more)
    result = run(audit, permutations=999)
    assert verdicts(result)["A", "Sensitivity"] == "gap shown"
    assert (found(result, "sensitivity_any_gap_holm_p", column="site").value or 0.0) > 0.05
    assert "By how images were taken" not in result.summary
    alone = run(tabled({"A": (90, 10, 10, 90), "B": (60, 10, 40, 90)}, "site"), permutations=999)
    assert "By how images were taken" not in alone.summary


def test_smallest_gaps_are_those_of_the_comparison_that_is_made() -> None:
    """Against the rest, at a level that all three share."""
    result = run(tabled(dict.fromkeys("abc", (80, 10, 20, 90))))
    least = detectable_difference(0.8, 100, 200, power=0.8, family=3)
    assert table(result, "Who is in the data").rows[0][6] == f"{least:.3f}"


def test_the_largest_groups_of_a_column_are_shown_and_missing_ones_explain_no_prevalence() -> None:
    sizes = {f"g{place:02d}": (place + 1, 1, 1, place + 1) for place in range(40)}
    rows = table(run(tabled(sizes)), "Who is in the data").rows
    assert [row[1] for row in rows] == [f"g{place:02d}" for place in range(10, 40)]
    result = run(tabled({"a": (400, 50, 100, 450), "b": (80, 90, 20, 810), "unknown": (300, 10, 10, 20)}))
    notes = {
        row[0]: str(row[4]) for row in table(result, "What may be said of each difference").rows if row[1] == "PPV"
    }
    assert notes["sex unknown, against known"] == ""
    left = notes["sex a, against b"].split("at equal prevalence ")[1]
    assert left.startswith("0.000")
    known = {"a": (400, 50, 100, 450), "b": (80, 90, 20, 810), "c": (200, 90, 100, 500)}
    said = []
    for counts in (known, known | {"unknown": (900, 5, 10, 20)}):
        rows = table(run(tabled(counts)), "What may be said of each difference").rows
        said.append(
            [str(row[4]).split("(")[0] for row in rows if row[1] == "PPV" and row[0] != "sex unknown, against known"]
        )
    assert said[0] == said[1]


def test_a_tuned_threshold_widens_intervals_and_keeps_values() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 400)
    scores = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 0.75, 1.0)))
    fixed = scored(scores, labels, columns={"sex": np.tile(["F", "M"], 200)})
    tuning = Judged(scores[:60], labels[:60] == 1, np.arange(60))
    tuned = replace(fixed, operating=OperatingPoint("chosen", Rule("sensitivity", 0.8), tuning, seed=1))
    one, other = run(fixed), run(tuned)
    for name, where in (("sensitivity", {"sex": "F"}), ("specificity", {"sex": "M"})):
        plain, chosen = found(one, name, **where), found(other, name, **where)
        assert plain.value == chosen.value
        assert None not in (plain.low, plain.high, chosen.low, chosen.high)
        assert chosen.high - chosen.low > plain.high - plain.low
        assert "re-tuned" in chosen.interval
    gap = next(item for item in other.metrics if item.name == "sensitivity_difference")
    assert "re-tuned" in gap.interval


def test_differences_at_a_tuned_threshold_hold_together_over_three_groups() -> None:
    rng = np.random.default_rng(4)
    labels, group = rng.integers(0, 2, 600), np.tile(["a", "b", "c"], 200)
    scores = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 0.75, 1.0)))
    point = OperatingPoint(
        "chosen", Rule("sensitivity", 0.8), Judged(scores[:60], labels[:60] == 1, np.arange(60)), seed=1
    )
    audit = replace(scored(scores, labels, columns={"sex": group}), operating=point)
    gap = found(run(audit), "sensitivity_difference", sex="a", against="rest")
    first, second = (
        Judged(scores[side], labels[side] == 1, audit.patients[side]) for side in (group == "a", group != "a")
    )
    level = 1 - 0.05 / 3
    expected = tuned_differences(first, second, 0.5, point.thresholds, level=level)["sensitivity"]
    assert (gap.value, gap.low, gap.high) == pytest.approx(expected[:3])


@pytest.mark.parametrize(("strength", "shown"), [(0.6, True), (0.0, False)])
def test_a_planted_contrast_gap_is_shown_and_its_clean_twin_is_not(strength: float, shown: bool) -> None:
    settings = PhantomSettings(
        n=1600, seed=5, size=32, contrast=0.6, visits=2, fractions=(0.4, 0.1, 0.5), contrast_gap=strength
    )
    data = phantom_dataset(settings)
    audit = Audit(pooled_model(data), data, Decision(1, 0.5, True), 3, Engine(), ("sex",))
    result = run(audit)
    assert ("Gap shown. Sensitivity" in result.summary) == shown
    gap = found(result, "sensitivity_difference", sex="F", against="M")
    assert gap.high is not None
    assert (gap.high < 0) == shown


def test_a_gap_that_the_corrected_tests_do_not_show_is_said_to_be_perhaps_chance() -> None:
    two = {"a": (80, 10, 20, 90), "b": (66, 10, 34, 90)}
    result = run(tabled(two), permutations=1999)
    own = [found(result, f"{name}_any_gap_p", column="sex").value for name in ("sensitivity", "specificity")]
    corrected = found(result, "sensitivity_any_gap_holm_p", column="sex")
    assert own[0] is not None
    assert own[0] < 0.05 < 2 * own[0]
    assert (corrected.value, corrected.interval[-14:]) == (2 * own[0], "Holm over 2 tests"[-14:])
    assert "Gap shown. Sensitivity" in result.summary
    assert result.summary.endswith("no test is at or below 0.05: it may be chance.")
    assert any("of the 4 such families here" in caveat for caveat in result.caveats)
    large = run(tabled({**two, "b": (30, 10, 70, 90)}), permutations=1999)
    assert "may be chance" not in large.summary


def test_one_case_alone_is_shown() -> None:
    result = run(scored(np.array([0.9]), np.array([1]), columns={"sex": np.array(["F"])}))
    assert found(result, "sensitivity", sex="F").value == 1.0
