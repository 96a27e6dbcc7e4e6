"""What missing group values could hide: bounds by brute force, and a test of who they are missing for."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, fisher_exact

from xvision.errors import ConfigError, DataError
from xvision.methods.groups.gaps import group_gaps
from xvision.methods.groups.missing import Missingness, missing_bounds, missingness
from xvision.methods.groups.table import group_table
from xvision.methods.intervals import Sample, difference


def people(count: int) -> np.ndarray:
    return np.array([f"p{place}" for place in range(count)])


def hidden(cases: int, share: float, seed: int) -> tuple[np.ndarray, ...]:
    """labels, decisions, true groups, the same with a share unknown."""
    rng = np.random.default_rng(seed)
    groups, labels = rng.choice(["F", "M"], cases), rng.random(cases) < 0.5
    decisions = rng.random(cases) < np.where(labels, np.where(groups == "F", 0.7, 0.85), 0.1)
    return labels, decisions, groups, np.where(rng.random(cases) < share, "unknown", groups)


def test_a_tenth_of_the_groups_missing_is_a_row_and_the_bounds_hold_the_gap_of_all() -> None:
    """T37."""
    labels, decisions, true, seen = hidden(2000, 0.1, 0)
    rows = group_table(labels, decisions, labels.astype(float), seen, people(2000))
    assert [row.group for row in rows] == ["F", "M", "unknown"]
    assert sum(row.cases for row in rows) == 2000
    for metric in ("sensitivity", "specificity", "ppv", "selection_rate"):
        whole = group_gaps(labels, decisions, labels.astype(float), true, people(2000), metric=metric)[0]
        found = missing_bounds(
            labels, decisions, seen, people(2000), metric=metric, group=whole.group, reference=whole.reference
        )
        assert found.lowest.value is not None
        assert found.highest.value is not None
        assert found.lowest.value < (whole.difference.value or 0) < found.highest.value


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.booleans(), st.booleans(), st.sampled_from(["F", "M", "O", "unknown"])), min_size=3, max_size=9
    )
)
def test_no_assignment_of_the_unknown_lies_outside_the_bounds_and_two_lie_on_them(
    rows: list[tuple[bool, bool, str]],
) -> None:
    labels, decisions, groups = (np.array(column) for column in zip(*rows, strict=True))
    known = set(groups)
    if not {"F", "M"} <= known:
        return
    found = missing_bounds(
        labels, decisions, groups, people(len(rows)), metric="selection_rate", group="F", reference="M"
    )
    gaps = []
    for names in product(*(["F", "M", "O"] if name == "unknown" else [name] for name in groups)):
        side = np.array(names)
        gaps.append(decisions[side == "F"].mean() - decisions[side == "M"].mean())
    assert found.lowest.value == pytest.approx(min(gaps), abs=1e-12)
    assert found.highest.value == pytest.approx(max(gaps), abs=1e-12)
    assert min(gaps) - 1e-12 <= (found.observed.value or 0) <= max(gaps) + 1e-12


def test_without_unknown_cases_all_three_are_the_gap() -> None:
    labels, decisions, groups, _ = hidden(400, 0.0, 1)
    found = missing_bounds(labels, decisions, groups, people(400), metric="sensitivity", group="F")
    assert found.unknown == 0
    assert found.lowest == found.highest == found.observed
    gap = group_gaps(labels, decisions, labels.astype(float), groups, people(400), metric="sensitivity")[0]
    assert (gap.group, gap.reference) == ("M", "F") or found.observed == gap.difference


def test_by_hand() -> None:
    """F finds 8 of 10, M 6 of 10, and of 4 unknown diseased 3 were found."""
    hits = np.array([True] * 8 + [False] * 2 + [True] * 6 + [False] * 4 + [True] * 3 + [False])
    groups = np.array(["F"] * 10 + ["M"] * 10 + ["unknown"] * 4)
    found = missing_bounds(np.ones(24), hits, groups, people(24), metric="sensitivity", group="F", reference="M")
    assert found.observed.value == pytest.approx(0.2)
    assert found.highest.value == pytest.approx(11 / 13 - 6 / 11)
    assert found.lowest.value == pytest.approx(8 / 11 - 9 / 13)
    assert found.unknown == 4
    specificity = missing_bounds(np.ones(24), hits, groups, people(24), metric="specificity", group="F")
    assert specificity.observed.reason == "no negative cases in one of the groups"


def test_a_name_that_is_none_is_refused() -> None:
    rows = np.array([0, 1]), np.array([0, 1]), np.array(["F", "M"]), people(2)
    with pytest.raises(DataError, match="no group 'X'; the known groups are F, M"):
        missing_bounds(*rows, metric="fpr", group="X")
    with pytest.raises(ConfigError, match="Did you mean 'sensitivity'"):
        missing_bounds(*rows, metric="sensitivty", group="F")


def counts(unknown: tuple[int, int], known: tuple[int, int], images: int = 1) -> Missingness:
    """Patients with and without the outcome, where the group is unknown and known, each with so many images."""
    outcome = np.repeat([1, 0, 1, 0], [*unknown, *known])
    groups = np.repeat(["unknown", "unknown", "F", "M"], [*unknown, *known])
    patients = np.repeat(people(len(outcome)), images)
    return missingness(np.repeat(outcome, images), np.repeat(groups, images), patients)


def test_chi_square_by_its_formula_and_by_patient() -> None:
    a, b, c, d = 30, 20, 120, 230
    found = counts((a, b), (c, d))
    statistic = 400 * (a * d - b * c) ** 2 / ((a + b) * (c + d) * (a + c) * (b + d))
    assert found.p_value == pytest.approx(chi2.sf(statistic, 1), rel=1e-9)
    assert found.test == "chi-square, by patient"
    assert found.unknown.value == pytest.approx(0.6)
    assert found.difference.value == pytest.approx(0.6 - 120 / 350)
    copied = counts((a, b), (c, d), images=5)
    assert copied.p_value == found.p_value
    assert copied.difference[:4] == pytest.approx(found.difference[:4])


def test_few_patients_are_tested_exactly() -> None:
    """Fisher's lady tasting tea: 3 of 4 and 1 of 4."""
    found = counts((3, 1), (1, 3))
    assert found.test == "Fisher, by patient"
    assert found.p_value == pytest.approx(34 / 70)


@pytest.mark.parametrize(
    ("unknown", "known", "reason"),
    [
        ((0, 0), (5, 5), "no group value is missing"),
        ((5, 5), (0, 0), "no patient has a group value"),
        ((5, 0), (5, 0), "all patients have the same outcome"),
    ],
)
def test_no_test_without_two_sides(unknown: tuple[int, int], known: tuple[int, int], reason: str) -> None:
    found = counts(unknown, known)
    assert found.p_value is None
    assert found.reason == reason


def test_a_patient_with_a_group_in_one_image_is_known() -> None:
    patients = np.repeat(people(40), 2)
    groups, outcome = np.tile(["unknown", "F"], 40), np.tile([0, 1], 40)
    assert missingness(outcome, groups, patients).reason == "every patient has a group value in some case"
    groups[:20] = "unknown"
    found = missingness(np.repeat(np.arange(40) % 3 == 0, 2), groups, patients)
    table = np.array([[4, 6], [10, 20]])  # patients 0, 3, 6 and 9 of the ten unknown, ten of the thirty others
    assert found.p_value == pytest.approx(fisher_exact(table).pvalue)
    assert found.unknown.value == pytest.approx((8 + 10) / (20 + 30))


def test_values_missing_at_random_are_rarely_called_otherwise_and_planted_ones_are() -> None:
    rng = np.random.default_rng(3)

    def called(more: float) -> int:
        found = 0
        for _ in range(200):
            outcome = rng.random(300) < 0.3
            groups = np.where(rng.random(300) < np.where(outcome, 0.1 + more, 0.1), "unknown", "F")
            found += (missingness(outcome, groups, people(300)).p_value or 1.0) < 0.05
        return found

    assert called(0.0) <= 10 + 3 * np.sqrt(200 * 0.05 * 0.95)
    assert called(0.25) > 190


def test_each_side_of_the_bounds_has_the_interval_of_its_own_table() -> None:
    labels, decisions, _, seen = hidden(300, 0.2, 5)
    found = missing_bounds(labels, decisions, seen, people(300), metric="sensitivity", group="F", reference="M")
    among = labels & (seen == "unknown")
    first, second = labels & (seen == "F") | among & decisions, labels & (seen == "M") | among & ~decisions
    own = difference(Sample(decisions[first], people(300)[first]), Sample(decisions[second], people(300)[second]))
    assert found.highest == own
