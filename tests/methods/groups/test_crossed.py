"""Combinations of group columns: counts by hand, the difference that group_gaps gives, false alarms, planted cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError
from xvision.methods.groups.crossed import Cell, Crossed, crossed
from xvision.methods.groups.gaps import Gap
from xvision.methods.intervals import Sample, difference

Columns = dict[str, np.ndarray]


def world(rng: np.random.Generator, size: int, drop: float = 0.0) -> tuple[np.ndarray, np.ndarray, Columns, np.ndarray]:
    """Labels, decisions, columns and patients; old women are missed more often by ``drop``."""
    columns = {
        "sex": rng.choice(["F", "M"], size),
        "age": rng.choice(["young", "middle", "old"], size),
        "origin": rng.choice(["a", "b"], size, p=[0.7, 0.3]),
    }
    labels = rng.random(size) < 0.4
    hidden = (columns["sex"] == "F") & (columns["age"] == "old") & labels
    return labels, rng.random(size) < np.where(labels, 0.8, 0.15) - drop * hidden, columns, np.arange(size)


def excludes_zero(gap: Gap) -> bool:
    return gap.difference.value is not None and ((gap.difference.low or 0) > 0 or (gap.difference.high or 0) < 0)


def at(found: Crossed, *levels: str) -> Cell:
    (cell,) = [cell for cell in found.cells if cell.levels == levels]
    return cell


def test_cells_are_counted_and_compared_with_the_rest_of_their_columns() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, columns, _ = world(rng, 900)
    columns["age"] = np.where(np.arange(900) < 100, "unknown", columns["age"])
    patients = rng.integers(0, 500, 900)
    found = crossed(labels, decisions, columns, patients, rng=rng, resamples=100)
    assert len(found.cells) == 2 * 4 + 2 * 2 + 4 * 2
    assert (found.empty_cells, found.left_out) == (0, 0)
    inside = (columns["sex"] == "F") & (columns["age"] == "old")
    cell, known = at(found, "F", "old"), columns["age"] != "unknown"
    assert (cell.columns, cell.cases, cell.positives) == (("sex", "age"), inside.sum(), (inside & labels).sum())
    assert cell.patients == len(np.unique(patients[inside]))
    sides = [Sample(decisions[side], patients[side]) for side in (inside & labels, known & ~inside & labels)]
    gap = cell.gaps["sensitivity"]
    assert gap.difference[:4] == pytest.approx(difference(*sides, level=found.level)[:4])
    assert (gap.cases, gap.reference_cases, gap.reference) == (len(sides[0].hits), len(sides[1].hits), "rest")
    assert cell.rates["specificity"].value == pytest.approx((~decisions)[inside & ~labels].mean())
    unknown = at(found, "F", "unknown")
    assert (unknown.known, unknown.gaps["sensitivity"].difference.reason) == (False, "a level is unknown")
    assert found.family == 2 * sum(cell.known for cell in found.cells)
    assert 0.95 < found.level <= 1 - 0.05 / found.family


def test_small_and_empty_cells_have_reasons_and_the_rest_of_a_full_one_too() -> None:
    sex, age = np.repeat(["F", "F", "M"], [30, 4, 3]), np.repeat(["old", "young", "old"], [30, 4, 3])
    labels = np.arange(37) % 2 == 0
    found = crossed(labels, labels, {"sex": sex, "age": age}, np.arange(37), rng=np.random.default_rng(0))
    assert [(each.columns, each.levels) for each in found.empty] == [(("sex", "age"), ("M", "young"))]
    assert found.empty_cells == 1
    reasons = {cell.levels: cell.gaps["sensitivity"].difference.reason for cell in found.cells}
    assert reasons == {
        ("F", "old"): "fewer than 10 positive patients in the rest",
        ("F", "young"): "fewer than 10 positive patients",
        ("M", "old"): "fewer than 10 positive patients",
    }
    assert (found.family, found.level) == (0, 0.95)
    few = crossed(labels, labels, {"sex": sex, "age": age}, np.arange(37), rng=np.random.default_rng(0), most=1)
    assert ([cell.levels for cell in few.cells], few.left_out) == ([("F", "old")], 2)


def test_fair_cells_rarely_show_a_gap_and_a_planted_one_does() -> None:
    rng = np.random.default_rng(0)
    alarms = []
    for _ in range(60):
        labels, decisions, columns, patients = world(rng, 500)
        del columns["origin"]
        found = crossed(labels, decisions, columns, patients, rng=rng, resamples=100)
        alarms.append(any(excludes_zero(gap) for cell in found.cells for gap in cell.gaps.values()))
    assert np.mean(alarms) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    found = crossed(*world(rng, 2000, 0.35), rng=rng, depth=3)
    assert (at(found, "F", "old").gaps["sensitivity"].difference.high or 0) < 0
    assert not any(excludes_zero(cell.gaps["specificity"]) for cell in found.cells)
    assert {len(cell.columns) for cell in found.cells} == {2, 3}


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6))
def test_the_order_of_rows_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, decisions, columns, _ = world(rng, 300)
    patients, shuffle = rng.integers(0, 200, 300), rng.permutation(300)
    first, second = (
        crossed(
            labels[order], decisions[order], {name: column[order] for name, column in columns.items()}, patients[order],
            rng=np.random.default_rng(1), resamples=50,
        )
        for order in (np.arange(300), shuffle)
    )  # fmt: skip
    assert first.level == second.level
    for cell, same in zip(first.cells, second.cells, strict=True):
        assert (cell.levels, cell.cases) == (same.levels, same.cases)
        for name, gap in cell.gaps.items():
            if gap.difference.value is not None:
                assert gap.difference[:3] == pytest.approx(same.gaps[name].difference[:3], abs=1e-9)


def test_an_impossible_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="depth is 4 with 3 columns: give a number from 2 to that of the columns"):
        crossed(*world(np.random.default_rng(0), 50), rng=np.random.default_rng(0), depth=4)
