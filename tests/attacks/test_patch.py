"""A patch: brute force on linear models, a planted place that only trying can find, and nothing changed outside it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.patch import candidates, inside, patch, promise
from xvision.attacks.plausible import in_window
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

HEIGHT, WIDTH, CHANNELS = 9, 11, 2
WEIGHTS = torch.randn(CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))
SIDE = 3
SHARE = SIDE**2 / (HEIGHT * WIDTH)
ILL = Decision(1, 0.5, True, ("missed disease",))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, CHANNELS, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def linear_cases(bias: float = 8.0, count: int = 40, pixels: torch.Tensor | None = None) -> Cases:
    images = pictures(count) if pixels is None else pixels
    goal = class_goal(torch.ones(len(images), dtype=torch.int64), 2, ILL)
    keys = [str(place) for place in range(len(images))]
    return cases_of(lambda each: (each * WEIGHTS).sum((1, 2, 3))[:, None] + bias, images, goal, keys=keys, seed=0)


def best_by_hand(cases: Cases, row: int) -> tuple[float, tuple[int, int]]:
    """The largest fall of the logit that a patch can cause, and where: every place, every pixel at its better end."""
    low, high, image = (each[row].double() for each in (cases.low, cases.high, cases.pixels))
    fall = torch.maximum(-WEIGHTS * (high - image), -WEIGHTS * (low - image)).sum(0)
    places = itertools.product(range(HEIGHT - SIDE + 1), range(WIDTH - SIDE + 1))
    return max((float(fall[top : top + SIDE, left : left + SIDE].sum()), (top, left)) for top, left in places)


def test_on_a_linear_model_it_is_the_best_place_and_content_of_all() -> None:
    cases = linear_cases()
    found = patch(cases, SHARE, positions=1, steps=1, width=16)
    logits = cases.forward(cases.pixels)[:, 0]
    by_hand = [best_by_hand(cases, row) for row in range(len(cases))]
    expected = torch.tensor([gain for gain, _ in by_hand]) > logits
    assert (found.side, found.share) == (SIDE, pytest.approx(SHARE))
    assert torch.equal(found.broken, expected)
    assert 0 < int(expected.sum()) < len(cases)
    for row in range(len(cases)):
        assert found.corner[row].tolist() == (list(by_hand[row][1]) if expected[row] else [-1, -1])
    hit = found.broken
    falls = logits[hit] - cases.forward(found.images[hit])[:, 0]
    gains = torch.tensor([gain for gain, _ in by_hand])[hit]
    torch.testing.assert_close(falls, gains, atol=1e-4, rtol=0)


@pytest.mark.parametrize("width", [1, 64])
def test_nothing_outside_the_patch_changes(width: int) -> None:
    cases = linear_cases()
    found = patch(cases, SHARE, positions=3, steps=2, width=width)
    for row in range(len(cases)):
        top, left = found.corner[row].tolist()
        changed = (found.images[row] != cases.pixels[row]).any(0)
        if found.broken[row]:
            changed[top : top + SIDE, left : left + SIDE] = False
        assert not changed.any()
    assert torch.equal(cases.broken(found.images), found.broken)
    assert float(found.images.min()) >= 0.0
    assert float(found.images.max()) <= 1.0


def test_pixels_that_must_stay_do_so_within_the_patch_and_promise_nothing() -> None:
    free = linear_cases(bias=7.0, count=30)
    may = torch.rand(30, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(9)) < 0.5
    held = in_window(free, may)
    found = patch(held, SHARE, positions=1, steps=2, width=64)
    expected = [best_by_hand(held, row)[0] for row in range(30)]
    logits = held.forward(held.pixels)[:, 0]
    assert torch.equal(found.broken, torch.tensor(expected) > logits)
    assert not ((found.images != held.pixels) & ~may).any()
    assert int(patch(free, SHARE, positions=1, steps=2, width=64).broken.sum()) > int(found.broken.sum()) > 0


def two_places(images: torch.Tensor) -> torch.Tensor:
    """The slope promises most at the left end, where the fall is soon over; at the right end it goes on."""
    left = images[:, 0, 3:6, 0:3].mean((1, 2))
    right = images[:, 0, 3:6, 8:11].mean((1, 2))
    return (0.2 - 0.1 * torch.tanh(20.0 * left) - 0.4 * right)[:, None]


def test_a_second_place_is_tried_where_the_first_promised_too_much() -> None:
    pixels = torch.zeros(2, CHANNELS, HEIGHT, WIDTH)
    goal = class_goal(torch.tensor([1, 1]), 2, ILL)
    cases = cases_of(two_places, pixels, goal, keys=("a", "b"), seed=0)
    assert not patch(cases, SHARE, positions=1, steps=10, width=8).broken.any()
    found = patch(cases, SHARE, positions=8, steps=10, width=8)
    assert found.broken.all()
    assert found.corner[0, 1] >= 6


def test_each_case_keeps_its_own_slope_where_another_broke_before() -> None:
    """The first breaks at the first pixel; the second at the second pixel alone, which must fall where the first case would raise it."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        first, second, _, kind = images[:, 0, 0].T
        one = 0.1 - first - 0.01 * second
        other = 0.2 - 0.1 * torch.tanh(20.0 * first) + 0.5 * (second - 0.5)
        return torch.where(kind.detach() < 0.5, one, other)[:, None]

    pixels = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.0, 0.5, 0.5, 1.0]])[:, None, None, :]
    cases = cases_of(forward, pixels, class_goal(torch.tensor([1, 1]), 2, ILL), keys=("a", "b"), seed=0)
    found = patch(cases, 0.25, positions=2, steps=1, width=8)
    assert found.corner.tolist() == [[0, 0], [0, 1]]
    assert found.images[:, 0, 0].tolist() == [[1.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.5, 1.0]]


def test_a_share_below_one_pixel_is_one_pixel() -> None:
    assert patch(linear_cases(count=2), 1e-4, positions=1, steps=1, width=8).side == 1


def test_content_between_black_and_white_is_found_by_climbing() -> None:
    """The decision breaks only near 0.6, which the corner of the box passes by."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        return ((images[:, 0, :3, :3] - 0.6).square().mean((1, 2)) - 0.01)[:, None]

    pixels = torch.zeros(1, CHANNELS, HEIGHT, WIDTH)
    cases = cases_of(forward, pixels, class_goal(torch.tensor([1]), 2, ILL), keys=("a",), seed=0)
    found = patch(cases, SHARE, positions=1, steps=25, width=8)
    assert found.broken.tolist() == [True]
    assert (found.images[0, 0, :3, :3] - 0.6).abs().max() < 0.15
    assert not patch(cases, SHARE, positions=1, steps=1, width=8).broken.any()


def test_order_and_company_change_nothing_and_looks_are_bounded() -> None:
    cases = linear_cases()
    back = torch.arange(len(cases)).flip(0)
    found, turned = (patch(each, SHARE, positions=2, steps=3, width=16) for each in (cases, cases.rows(back)))
    assert torch.equal(found.images[back], turned.images)
    assert torch.equal(found.corner[back], turned.corner)
    assert int(found.looks.max()) <= 1 + 2 * (3 + 1)
    # The clean image, the corner of the box at each of two places, and what climbing adds.
    assert (found.looks[~found.broken] == 1 + 2 * 4).all()
    once = patch(cases, SHARE, positions=1, steps=3, width=16)
    assert torch.equal(found.corner[once.broken], once.corner[once.broken])
    assert (found.looks[once.broken] == 2).all()
    assert int(found.broken.sum()) >= int(once.broken.sum())


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 9999), side=st.integers(1, 5), count=st.integers(1, 12))
def test_candidates_are_apart_and_fall_in_promise(seed: int, side: int, count: int) -> None:
    promises = torch.rand(2, 7, 6, generator=torch.Generator().manual_seed(seed))
    found = candidates(promises, side, count)
    for row, corners in zip(promises, found.tolist(), strict=True):
        there = [tuple(corner) for corner in corners if corner[0] >= 0]
        values = [float(row[corner]) for corner in there]
        assert values[0] == float(row.max())
        assert values == sorted(values, reverse=True)
        for one, other in itertools.combinations(there, 2):
            assert max(abs(one[0] - other[0]), abs(one[1] - other[1])) >= side / 2
        assert corners[len(there) :] == [[-1, -1]] * (count - len(there))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("side", "places"), [(1, [0, 1, 2, 3]), (2, [0, 1, 2, 3]), (3, [0, 2, 4]), (4, [0, 2, 4]), (5, [0, 3])]
)
def test_half_a_patch_apart_is_far_enough(side: int, places: list[int], turned: bool) -> None:
    line = torch.arange(6, 0, -1.0)
    found = candidates(line.view(1, 6, 1) if turned else line.view(1, 1, 6), side, len(places))
    assert found[0].tolist() == [[place, 0] if turned else [0, place] for place in places]


def test_the_promise_is_the_sum_over_the_square() -> None:
    cases = linear_cases(count=3)
    slope = -WEIGHTS.expand(3, -1, -1, -1)
    found = promise(cases, slope, SIDE)
    assert found.shape == (3, HEIGHT - SIDE + 1, WIDTH - SIDE + 1)
    for row in range(3):
        gain, (top, left) = best_by_hand(cases, row)
        assert float(found[row].max()) == pytest.approx(gain, rel=1e-5)
        assert math.isclose(float(found[row, top, left]), gain, rel_tol=1e-5)


def test_a_patch_over_the_whole_image_frees_all_of_it() -> None:
    cases = linear_cases(count=2)
    square = Cases(
        cases.forward,
        cases.pixels[..., :HEIGHT],
        cases.goal,
        cases.keys,
        0,
        cases.low[..., :HEIGHT],
        cases.high[..., :HEIGHT],
    )
    free = inside(square, torch.zeros(2, 2, dtype=torch.int64), HEIGHT)
    assert torch.equal(free.low, square.low)
    assert torch.equal(free.high, square.high)


@pytest.mark.parametrize(
    ("share", "positions", "steps", "reason"),
    [
        (0.0, 1, 1, "give a share"),
        (1.0, 1, 1, "give a share"),
        (0.95, 1, 1, "make it smaller"),
        (0.1, 0, 1, "at least 1"),
        (0.1, 1, 0, "at least 1"),
    ],
)
def test_what_is_no_patch_is_refused(share: float, positions: int, steps: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        patch(linear_cases(count=2), share, positions=positions, steps=steps, width=8)
