"""Rotations, shifts and scales: exact where they are exact, against scipy between pixels, against brute force as a search."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.spatial import FAMILIES, NONE, Grid, Transformation, moved, spatial
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

SIDE = 12
SMALL = Grid(rotations=(5.0, 15.0), shifts=(0.05, 0.1), scales=(0.9, 1.1), combinations=24)


def pictures(count: int, height: int = SIDE, width: int = SIDE, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def linear_cases(count: int = 14, seed: int = 0) -> Cases:
    """Right cases of a linear model with smooth weights, each a little way from the threshold."""
    rows = torch.linspace(-1.0, 1.0, SIDE)
    weights = (rows[None, :] * 2.0 + torch.sin(3.0 * rows)[:, None] + 0.5 * rows[:, None] * rows[None, :]).flatten()
    pixels = pictures(count, seed=seed)
    clean = pixels.flatten(1) @ weights
    labels = (clean >= 0).long()
    goal = class_goal(labels, 2, Decision(1, 0.5, True))
    keys = [f"case {place}" for place in range(count)]
    return cases_of(lambda images: (images.flatten(1) @ weights)[:, None], pixels, goal, keys=keys, seed=1)


def test_nothing_changed_is_the_same_to_the_last_bit_also_beside_changed_images() -> None:
    images = pictures(3)
    found = moved(images, [Transformation(), Transformation(rotation=5.0), Transformation()])
    assert torch.equal(found[[0, 2]], images[[0, 2]])
    assert not torch.equal(found[1], images[1])


@pytest.mark.parametrize(("turns", "degrees"), [(1, 90.0), (2, 180.0), (3, -90.0)])
@pytest.mark.parametrize("side", [9, 12])
def test_quarter_turns_are_those_of_torch(turns: int, degrees: float, side: int) -> None:
    images = pictures(2, side, side, channels=3)
    found = moved(images, [Transformation(rotation=degrees)] * 2)
    assert (found - torch.rot90(images, turns, (2, 3))).abs().max() <= 1e-5


def test_whole_pixels_are_moved_exactly_and_the_border_is_repeated() -> None:
    images = pictures(1, 10, 16)
    found = moved(images, [Transformation(right=3 / 16, down=-2 / 10)])
    assert (found[..., :-2, 3:] - images[..., 2:, :-3]).abs().max() <= 1e-5
    assert (found[..., :-2, :3] - images[..., 2:, :1]).abs().max() <= 1e-5
    assert (found[..., -2:, 3:] - images[..., -1:, :-3]).abs().max() <= 1e-5


@settings(deadline=None, max_examples=40)
@given(
    rotation=st.floats(-180, 180),
    right=st.floats(-0.4, 0.4),
    down=st.floats(-0.4, 0.4),
    scale=st.floats(0.5, 2.0),
    height=st.integers(5, 14),
    width=st.integers(5, 14),
)
def test_between_pixels_it_is_scipys_bilinear(
    rotation: float, right: float, down: float, scale: float, height: int, width: int
) -> None:
    images = pictures(1, height, width, seed=4)
    found = moved(images, [Transformation(rotation, right, down, scale)])[0, 0].numpy()
    angle = math.radians(rotation)
    # In (row, column), from the new image to the old one; rows grow downwards, so counter-clockwise turns the signs.
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) / scale
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    offset = middle - back @ (middle + np.array([down * height, right * width]))
    expected = ndimage.affine_transform(images[0, 0].double().numpy(), back, offset, order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_declared_grid_is_what_it_says() -> None:
    found = Grid().transformations()
    assert Counter(each.family for each in found) == {"rotation": 6, "shift": 48, "scale": 4, "together": 1656}
    assert len(set(found)) == 7 * 49 * 5 - 1
    assert [each.severity for each in found] == sorted(each.severity for each in found)
    ranks = {each.rotation: each.severity for each in found if each.family == "rotation"}
    assert ranks == {5.0: 1, -5.0: 1, 10.0: 2, -10.0: 2, 15.0: 3, -15.0: 3}
    assert {each.scale: each.severity for each in found if each.family == "scale"} == {0.9: 2, 0.95: 1, 1.05: 1, 1.1: 2}
    assert max(each.severity for each in found) == Grid().severities == 3
    for severity in (1, 2, 3):
        moves = [each.displacement for each in found if each.severity == severity]
        assert moves == sorted(moves)


def test_what_a_severity_allows_in_words() -> None:
    grid = Grid()
    assert [grid.words("rotation", rank) for rank in (1, 3)] == ["rotated by at most 5°", "rotated by at most 15°"]
    assert grid.words("shift", 2) == "shifted by at most 4 % along each axis"
    assert [grid.words("scale", rank) for rank in (1, 2, 3)] == [
        "scaled by at most 5 %", "scaled by at most 10 %", "scaled by at most 10 %"
    ]  # fmt: skip
    assert grid.words("together", 2) == "rotated, shifted and scaled at once, each up to severity 2"


def test_fewer_combinations_are_spread_over_the_severities() -> None:
    joint = [each for each in Grid(combinations=90).transformations() if each.family == "together"]
    assert Counter(each.severity for each in joint) == {1: 30, 2: 30, 3: 30}
    assert len(Grid(combinations=0).transformations()) == 58
    assert len([each for each in Grid(combinations=900).transformations() if each.family == "together"]) == 900
    assert Grid(combinations=5000).transformations() == Grid().transformations()


def test_joint_changes_are_spaced_evenly_from_the_mildest_to_the_most_severe() -> None:
    every, few = (
        [each for each in Grid((5.0,), (0.1,), (), number).transformations() if each.family == "together"]
        for number in (None, 5)
    )
    assert len(every) == 2 * 8
    assert few == [every[place] for place in (0, 4, 8, 11, 15)]  # quarters of 15, rounded


def test_the_highest_severity_is_that_of_the_kind_with_most_sizes() -> None:
    assert Grid((5.0,), (0.1, 0.2, 0.3), (1.1,)).severities == 3
    assert Grid((5.0, 10.0), (), ()).severities == 2
    assert Grid((), (0.1,), (0.8, 0.9, 1.1, 1.2)).severities == 2


def test_the_displacement_is_the_mean_over_the_points_of_a_square() -> None:
    change = Transformation(12.0, 0.03, -0.05, 0.9)
    points = (np.arange(400) + 0.5) / 400 - 0.5
    across, along = np.meshgrid(points, points)
    angle = math.radians(12.0)
    moved_across = 0.9 * (math.cos(angle) * across - math.sin(angle) * along) + 0.03
    moved_along = 0.9 * (math.sin(angle) * across + math.cos(angle) * along) - 0.05
    distance = np.sqrt(np.mean((moved_across - across) ** 2 + (moved_along - along) ** 2))
    assert change.displacement == pytest.approx(distance, rel=1e-4)


def brute_force(cases: Cases, grid: Grid) -> torch.Tensor:
    order = grid.transformations()
    hits = torch.stack([cases.broken(moved(cases.pixels, [each] * len(cases))) for each in order], dim=1)
    first = []
    for family in FAMILIES:
        members = torch.tensor([family in {"together", each.family} for each in order])
        mine = hits & members
        first.append(torch.where(mine.any(dim=1), mine.int().argmax(dim=1), NONE))
    return torch.stack(first, dim=1)


@pytest.mark.parametrize("width", [1, 7, 64])
def test_the_mildest_that_breaks_is_the_one_that_trying_everything_finds(width: int) -> None:
    cases = linear_cases()
    found = spatial(cases, SMALL, width=width)
    assert torch.equal(found.smallest, brute_force(cases, SMALL))
    assert 0 < int(found.broken[:, 0].sum()) < int(found.broken[:, 3].sum()) < len(cases)
    assert (found.looks[~found.broken[:, 3]] == len(found.transformations)).all()


def test_a_broken_case_is_looked_at_no_more() -> None:
    cases = linear_cases()
    found = spatial(cases, SMALL, width=1)
    order = found.transformations
    for row, (first, looks) in enumerate(zip(found.smallest.tolist(), found.looks.tolist(), strict=True)):
        tried = 0
        for family, place in zip(FAMILIES, first, strict=True):
            limit = len(order) if place == NONE else place + 1
            tried += sum(each.family == family for each in order[:limit])
        assert looks == tried, row


def test_white_stays_white() -> None:
    angles = [Transformation(rotation=float(angle), scale=0.93) for angle in range(1, 90)]
    assert float(moved(torch.ones(89, 1, 23, 23), angles).max()) <= 1.0


def test_order_and_company_change_nothing() -> None:
    cases = linear_cases()
    back = torch.arange(len(cases)).flip(0)
    turned, alone = spatial(cases.rows(back), SMALL, width=5), spatial(cases.rows(torch.tensor([3])), SMALL, width=64)
    found = spatial(cases, SMALL, width=64)
    assert torch.equal(turned.smallest, found.smallest[back])
    assert torch.equal(alone.smallest, found.smallest[[3]])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_it_shows_is_broken_by_the_transformation_it_names(family: str) -> None:
    cases = linear_cases()
    found = spatial(cases, SMALL, width=64)
    hit = found.broken[:, FAMILIES.index(family)]
    images = found.images(cases, family)
    assert hit.any()
    assert torch.equal(cases.broken(images), hit)
    assert torch.equal(images[~hit], cases.pixels[~hit])
    severities = found.severity[:, FAMILIES.index(family)]
    assert ((severities > 0) == hit).all()


def test_a_model_that_reads_one_column_falls_to_the_shift_that_leaves_it() -> None:
    pixels = torch.zeros(2, 1, 20, 20)
    pixels[0, 0, :, 8:11] = 1.0
    pixels[1, 0, :, 4:17] = 1.0
    goal = class_goal(torch.tensor([1, 1]), 2, Decision(1, 0.5, True))
    cases = cases_of(lambda images: (images[:, 0, 10, 9] - 0.5)[:, None], pixels, goal, keys=("narrow", "wide"), seed=0)
    found = spatial(cases, Grid(rotations=(), shifts=(0.05, 0.1, 0.2), scales=(), combinations=0), width=8)
    # One pixel keeps the middle of a stripe of three, two pixels do not; thirteen columns outlast four.
    assert found.severity[:, FAMILIES.index("shift")].tolist() == [2, 0]
    change = found.transformations[int(found.smallest[0, 1])]
    assert (abs(change.right), change.down, change.words[:16]) == (0.1, 0.0, "shifted by 10 % ")
    assert not found.broken[:, [0, 2]].any()
    assert torch.equal(found.smallest[:, 3], found.smallest[:, 1])


def test_a_break_counts_only_where_it_is_confirmed() -> None:
    cases = linear_cases()
    nothing = Cases(
        cases.forward, cases.pixels, cases.goal, cases.keys, 0, cases.low, cases.high,
        confirm=lambda images, goal: torch.zeros(len(images), dtype=torch.bool),
    )  # fmt: skip
    assert not spatial(nothing, SMALL, width=64).broken.any()


def test_changes_in_words() -> None:
    assert Transformation(-5.0, -0.02, 0.08, 0.9).words == (
        "rotated by -5°, shifted by 2 % left, shifted by 8 % down, scaled to 0.9"
    )
    assert Transformation().words == Transformation().family == "unchanged"


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotations": (0.0,)},
        {"rotations": (181.0,)},
        {"shifts": (0.0,)},
        {"shifts": (1.0,)},
        {"scales": (1.0,)},
        {"scales": (-1.5,)},
        {"rotations": (), "shifts": (), "scales": ()},
        {"combinations": -1},
    ],
)
def test_what_is_no_grid_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"give .* (above 0|1|shifts or scales)"):
        Grid(**wrong)
