"""Allowed changes: optimal by linear programming, duality and brute force; inside ball and box whatever is asked."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog, minimize_scalar

from xvision.attacks.balls import NORMS, Norm, drawn, project, size, steepest, unit, within

RADII = [0.0, 1e-12, 1e-6, 0.03, 0.3, 1.0, 2.5, 7.0, 1e3, 1e30]
CONVEX: tuple[Norm, ...] = ("linf", "l2", "l1")
SHAPES = st.tuples(st.sampled_from([1, 3]), st.integers(1, 4), st.integers(1, 5))
SEEDS = st.integers(0, 2**20)


class Problem(NamedTuple):
    """pixels, low, high, change: (B, C, H, W); radius: (B,)."""

    pixels: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    change: torch.Tensor
    radius: torch.Tensor


def problem(
    seed: int, shape: tuple[int, int, int], radii: list[float], *, scale: float = 1.0, kind: torch.dtype = torch.float32
) -> Problem:
    """Pixels of which a third are black or white and a tenth may not move; changes of which a fifth are 0 and many are equal."""
    chance = np.random.default_rng(seed)
    full = (len(radii), *shape)
    pixels = np.where(chance.random(full) < 1 / 3, chance.integers(0, 2, full), chance.random(full))
    frozen = chance.random(full) < 0.1
    change = scale * chance.standard_normal(full) * (chance.random(full) > 0.2)
    change = np.where(chance.random(full) < 0.3, np.sign(change) * scale, change)
    image = torch.tensor(pixels, dtype=torch.float32).to(kind)
    stays = torch.tensor(frozen)
    return Problem(
        image,
        torch.where(stays, image, 0.0) - image,
        torch.where(stays, image, 1.0) - image,
        torch.tensor(change, dtype=torch.float32).to(kind),
        torch.tensor(radii, dtype=kind),
    )


@st.composite
def problems(draw: st.DrawFn, kind: torch.dtype = torch.float32) -> Problem:
    radii = draw(st.lists(st.sampled_from(RADII), min_size=1, max_size=4))
    scale = draw(st.sampled_from([1e-3, 0.3, 1.0, 30.0, 1e4]))
    return problem(draw(SEEDS), draw(SHAPES), radii, scale=scale, kind=kind)


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + place) for place in range(count)]


def every_change(given_: Problem, norm: Norm, seed: int = 0) -> list[torch.Tensor]:
    _, low, high, change, radius = given_
    return [
        project(change, low, high, radius, norm),
        steepest(change, low, high, radius, norm),
        drawn(low, high, radius, norm, generators(len(radius), seed)),
    ]


def double_rows(given_: Problem) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]:
    """change, low, high (D,) and radius of each row."""
    flat = [each.double().flatten(1).numpy() for each in (given_.change, given_.low, given_.high)]
    return [(*values, float(radius)) for *values, radius in zip(*flat, given_.radius, strict=True)]


def most(slope: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float, norm: Norm) -> float:
    """An upper bound of slope · d over ball and box that some d attains: linear programming, or the dual problem for l2."""
    radius = min(radius, 1e3)
    if norm == "l2":

        def dual(logarithm: float) -> float:
            weight = 10.0**logarithm
            best = np.clip(slope / (2 * weight), low, high)
            return float(weight * radius**2 + (slope * best - weight * best**2).sum())

        search = minimize_scalar(dual, bounds=(-14, 14), method="bounded", options={"xatol": 1e-9, "maxiter": 300})
        return min(float(search.fun), float(np.maximum(slope * low, slope * high).sum()))
    if norm == "linf":
        bounds = list(zip(np.maximum(low, -radius), np.minimum(high, radius), strict=True))
        return -float(linprog(-slope, bounds=bounds).fun)
    bounds = [*zip(np.zeros_like(high), high, strict=True), *zip(np.zeros_like(low), -low, strict=True)]
    both = np.concatenate([-slope, slope])
    return -float(linprog(both, A_ub=np.ones((1, 2 * len(slope))), b_ub=[radius], bounds=bounds).fun)


def nearest(change: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float, norm: Norm) -> np.ndarray:
    """The projection by a root of the one multiplier there is, found by bracketing."""
    if norm == "linf":
        return np.clip(change, np.maximum(low, -radius), np.minimum(high, radius))

    def at(multiplier: float) -> np.ndarray:
        if norm == "l2":
            return np.clip(change * (1 - multiplier), low, high)
        return np.clip(np.sign(change) * np.maximum(np.abs(change) - multiplier, 0), low, high)

    def excess(multiplier: float) -> float:
        found = at(multiplier)
        return float((np.linalg.norm(found) if norm == "l2" else np.abs(found).sum()) - radius)

    if excess(0.0) <= 0:
        return at(0.0)
    return at(brentq(excess, 0.0, 1.0 if norm == "l2" else np.abs(change).max(), xtol=1e-15, rtol=1e-15))


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(given_=st.one_of(problems(), problems(torch.float64)), seed=SEEDS)
def test_every_change_stays_in_the_ball_and_on_the_image(norm: Norm, given_: Problem, seed: int) -> None:
    pixels, low, high, _, radius = given_
    for found in every_change(given_, norm, seed):
        assert (found.shape, found.dtype) == (pixels.shape, pixels.dtype)
        assert bool(((found >= low) & (found <= high)).all())
        assert bool((size(found, norm) <= radius.double() * (1 + 1e-6)).all())
        assert bool(((pixels + found >= 0.0) & (pixels + found <= 1.0)).all())
        assert bool(within(found, low, high, radius, norm).all())


@pytest.mark.parametrize("norm", CONVEX)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(given_=problems(torch.float64))
def test_no_allowed_change_is_nearer_than_the_projection(norm: Norm, given_: Problem) -> None:
    _, low, high, change, radius = given_
    exact = project(change, low, high, radius, norm)
    single = project(change.float(), low.float(), high.float(), radius.float(), norm)
    for row, (wanted, floor, ceiling, size_of) in enumerate(double_rows(given_)):
        found = exact[row].flatten().numpy()
        np.testing.assert_allclose(found, nearest(wanted, floor, ceiling, size_of, norm), rtol=0, atol=1e-9)
        towards = wanted - found  # x is nearest exactly where no allowed y is further in the direction v - x
        further = most(towards, floor, ceiling, size_of, norm) - towards @ found
        assert further <= 1e-7 * (1 + np.abs(towards).max())
        rounding = 1e-6 * max(1.0, 0.2 * np.abs(wanted).max())  # of the change itself in float32
        np.testing.assert_allclose(single[row].flatten().numpy(), found, rtol=0, atol=rounding)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=SEEDS, count=st.integers(0, 7), scale=st.sampled_from([0.3, 1.0, 1e3]))
def test_l0_projection_and_best_change_are_those_of_brute_force(seed: int, count: int, scale: float) -> None:
    given_ = problem(seed, (1, 2, 3), [count + 0.9, count], scale=scale, kind=torch.float64)
    _, low, high, change, radius = given_
    nearer = project(change, low, high, radius, "l0").flatten(1).numpy()
    better = steepest(change, low, high, radius, "l0").flatten(1).numpy()
    for row, (wanted, floor, ceiling, _) in enumerate(double_rows(given_)):
        clipped = np.clip(wanted, floor, ceiling)
        gains = np.maximum(wanted * floor, wanted * ceiling)
        chosen = [list(each) for each in itertools.combinations(range(6), min(count, 6))]
        left = [np.square(wanted).sum() - (wanted**2 - (wanted - clipped) ** 2)[each].sum() for each in chosen]
        assert np.square(wanted - nearer[row]).sum() == pytest.approx(min(left), rel=1e-9)
        assert wanted @ better[row] == pytest.approx(max(gains[each].sum() for each in chosen), rel=1e-9)
        assert np.count_nonzero(nearer[row]) <= count
        assert np.count_nonzero(better[row]) <= count


@pytest.mark.parametrize("norm", CONVEX)
@settings(max_examples=50, deadline=None, derandomize=True)
@given(given_=problems())
def test_no_allowed_change_gains_more_than_the_steepest(norm: Norm, given_: Problem) -> None:
    _, low, high, slope, radius = given_
    found = steepest(slope, low, high, radius, norm).double().flatten(1).numpy()
    for row, (way, floor, ceiling, size_of) in enumerate(double_rows(given_)):
        if norm == "l2" and size_of < 1e-3:
            continue  # the dual's multiplier is too large to search; see the unbounded closed form below
        best = most(way, floor, ceiling, size_of, norm)
        assert way @ found[row] == pytest.approx(best, rel=2e-6, abs=1e-9 * np.abs(way).max())


@pytest.mark.parametrize("radius", [1e-12, 1e-6, 1e-3, 0.05])
def test_the_best_change_where_no_bound_binds_is_the_dual_norm(radius: float) -> None:
    slope = torch.tensor([[[[3.0, -4.0, 0.0, 0.5]]]])
    room = torch.ones_like(slope)
    expected = {"linf": slope.sign(), "l2": slope / slope.norm(), "l1": torch.tensor([[[[0.0, -1.0, 0.0, 0.0]]]])}
    for norm in CONVEX:
        found = steepest(slope, -room, room, torch.tensor([radius]), norm)
        torch.testing.assert_close(found / radius, expected[norm])


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(given_=problems(), seed=SEEDS)
def test_what_is_allowed_is_left_to_the_last_bit(norm: Norm, given_: Problem, seed: int) -> None:
    _, low, high, change, radius = given_
    once = project(change, low, high, radius, norm)  # on the sphere, up to rounding
    torch.testing.assert_close(project(once, low, high, radius, norm), once, atol=1e-6, rtol=1e-6)
    inside = drawn(low, high, radius, norm, generators(len(radius), seed))
    inside = inside if norm == "l0" else 0.9 * inside
    larger = radius if norm == "l0" else radius + 1e-30
    assert torch.equal(project(inside, low, high, larger, norm), inside)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(given_=problems(), seed=SEEDS)
def test_a_row_does_not_depend_on_its_batch(norm: Norm, given_: Problem, seed: int) -> None:
    assume(len(given_.radius) > 1)
    together = every_change(given_, norm, seed)
    for row in range(len(given_.radius)):
        pick = slice(row, row + 1)
        _, low, high, change, radius = (each[pick] for each in given_)
        alone = [
            project(change, low, high, radius, norm),
            steepest(change, low, high, radius, norm),
            drawn(low, high, radius, norm, generators(row + 1, seed)[pick]),
        ]
        for one, all_ in zip(alone, together, strict=True):
            torch.testing.assert_close(one, all_[pick], atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("norm", ["l1", "l0"])
def test_of_equal_slopes_the_earlier_moves_first(norm: Norm) -> None:
    slope, room = torch.full((1, 1, 4, 5), 2.0), torch.full((1, 1, 4, 5), 0.5)
    slope[0, 0, 1, 1] = 3.0
    radius, last = (1.75, 0.25) if norm == "l1" else (4.0, 0.5)
    found = steepest(slope, -room, room, torch.tensor([radius]), norm).flatten()
    assert found.tolist() == [0.5, 0.5, last, 0.0, 0.0, 0.0, 0.5] + 13 * [0.0]


@pytest.mark.parametrize("norm", NORMS)
def test_slopes_of_zero_or_not_a_number_move_nothing(norm: Norm) -> None:
    slope = torch.tensor([[[[0.0, float("nan"), -2.0, 0.0]]], [[[0.0, float("nan"), 0.0, 0.0]]]])
    room = torch.ones_like(slope)
    found = steepest(slope, -room, room, torch.tensor([5.0, 5.0]), norm).flatten(1)
    assert found.tolist() == [[0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("factor", [1e-36, 1e-20, 1e20, 1e36])
def test_the_length_of_the_slope_does_not_matter(norm: Norm, factor: float) -> None:
    _, low, high, slope, radius = problem(3, (3, 4, 5), [0.4, 2.0, 9.0])
    expected = steepest(slope, low, high, radius, norm)
    torch.testing.assert_close(steepest(slope * factor, low, high, radius, norm), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_the_smallest_numbers_there_are_point_the_same_way(norm: Norm) -> None:
    """A model whose logits are saturated has such slopes."""
    slope = torch.arange(-7.0, 8.0).view(1, 1, 3, 5)
    room = torch.full_like(slope, 0.5)
    for radius in (torch.tensor([0.3]), torch.tensor([1.6]), torch.tensor([9.0])):
        expected = steepest(slope, -room, room, radius, norm)
        torch.testing.assert_close(steepest(slope * 2.0**-145, -room, room, radius, norm), expected)


def test_a_ball_that_ends_in_the_corner_of_the_strong_slopes_leaves_nothing_for_the_weak() -> None:
    room = torch.rand((20_000, 1, 1, 3), generator=torch.Generator().manual_seed(0))
    room[..., 2] = 1.0
    slope = torch.tensor([10.0, 1.0, 1e-12]).expand_as(room)
    radius = size(room[..., :2], "l2").float()  # up to rounding, which must not show
    found = steepest(slope, -room, room, radius, "l2")
    torch.testing.assert_close(found[..., :2], room[..., :2], atol=1e-6, rtol=0)
    assert found[..., 2].min() >= 0.0
    assert found[..., 2].max() < 1e-3  # the root of rounding


@pytest.mark.parametrize("strongest", [1.0, 1e30, float("inf")])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_weak_slopes_share_what_the_strongest_leaves(strongest: float, kind: torch.dtype) -> None:
    weak = 1e-25 if strongest == 1.0 else 1.0
    slope = torch.tensor([[[[strongest, weak, -weak]]]], dtype=kind)
    room = torch.ones_like(slope)
    found = steepest(slope, -room, room, torch.tensor([1.2]), "l2").flatten().double()
    assert float(torch.linalg.vector_norm(found)) <= 1.2 * (1 + 1e-6)
    if kind == torch.float32 or strongest < float("inf"):  # float64 has no room below 1e-308 of an infinite slope
        torch.testing.assert_close(found, torch.tensor([1.0, 0.22**0.5, -(0.22**0.5)]).double(), atol=1e-6, rtol=0)


def test_values_that_meet_their_bound_one_after_another_are_all_found() -> None:
    slope = (0.5 ** torch.arange(40, dtype=torch.float32)).view(1, 1, 8, 5)
    room = (0.7 ** torch.arange(40, dtype=torch.float32)).view(1, 1, 8, 5)
    for share in (0.9, 0.99, 0.999, 0.999999):
        radius = share * size(room, "l2").float()
        found = steepest(slope, -room, room, radius, "l2")
        assert size(found, "l2").item() == pytest.approx(radius.item(), rel=3e-7)
        factor, free = found / slope, found < room
        assert torch.allclose(factor[free], factor[free].max(), rtol=1e-5)  # one factor for all that are free
        assert 0 < int(free.sum()) < 40
        assert (room / slope)[~free].max() <= factor[free].max() * (1 + 1e-5)


def test_a_threshold_too_large_for_the_number_format_still_gives_the_ball() -> None:
    change = torch.tensor([[[[1e6, 1e6 - 0.0625, 5.0]]], [[[1e9, 1e9, 1e9]]]])
    room = torch.ones_like(change)
    found = project(change, -room, room, torch.tensor([0.1, 0.3]), "l1").flatten(1)
    torch.testing.assert_close(found, torch.tensor([[0.08125, 0.01875, 0.0], [0.1, 0.1, 0.1]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_large_images_are_as_exact_as_small_ones(norm: Norm) -> None:
    shape = (3, 224, 224)
    for found in every_change(given_ := problem(8, shape, [0.02 * unit(norm, shape)], scale=0.5), norm)[:2]:
        wanted = given_.radius.double().floor() if norm == "l0" else given_.radius.double()
        torch.testing.assert_close(size(found, norm), wanted, atol=0, rtol=3e-7)
    if norm != "l0":
        found = project(given_.change, given_.low, given_.high, given_.radius, norm).flatten().numpy()
        np.testing.assert_allclose(found, nearest(*double_rows(given_)[0], norm), rtol=0, atol=2e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_a_change_that_is_not_a_number_is_not_allowed(norm: Norm) -> None:
    change = torch.tensor([[[[0.0, float("nan")]]], [[[0.0, 0.1]]]])
    room = torch.ones_like(change)
    radius = torch.tensor([1.0, 1.0])
    assert within(change, -room, room, radius, norm).tolist() == [False, True]
    project(change, -room, room, radius, norm)  # comes to an end


@pytest.mark.parametrize("norm", NORMS)
def test_within_forgives_a_millionth_and_no_more(norm: Norm) -> None:
    room = torch.full((5, 1, 10, 10), 0.9, dtype=torch.float64)
    base = {"linf": 0.5, "l2": 0.5 * 10, "l1": 0.5 * 100, "l0": 100.0}[norm]
    change = torch.full_like(room, 0.5)
    factors = torch.tensor([0.5, 1 - 1e-5, 1 - 1e-7, 1.0, 2.0], dtype=torch.float64)
    assert within(change, -room, room, base * factors, norm).tolist() == [False, False, True, True, True]
    change[0, 0, 0, 0], change[1, 0, 0, 0], change[2, 0, 0, 0], change[3, 0, 0, 0] = (
        0.90001,
        -0.90001,
        0.9000001,
        -0.9000001,
    )
    assert within(change, -room, room, torch.full((5,), 1e3), norm).tolist() == [False, False, True, True, True]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(given_=problems())
def test_sizes_are_those_of_numpy_and_epsilon_is_a_mean(given_: Problem) -> None:
    flat = given_.change.double().flatten(1).numpy()
    everywhere, shape = torch.full_like(given_.change, 0.25), given_.change.shape[1:]
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1), ("l0", 0)):
        found = size(given_.change, norm)
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), np.linalg.norm(flat, ord=order, axis=1), rtol=1e-12)
        share = 1.0 if norm == "l0" else 0.25
        np.testing.assert_allclose(size(everywhere, norm).numpy(), share * unit(norm, shape), rtol=1e-12)


@pytest.mark.parametrize("norm", CONVEX)
def test_a_random_change_is_as_large_as_its_radius_and_keeps_its_direction(norm: Norm) -> None:
    room = torch.full((3, 3, 4, 5), 1e3)
    small, large = (drawn(-room, room, torch.full((3,), radius), norm, generators(3)) for radius in (0.01, 2.0))
    torch.testing.assert_close(small / 0.01, large / 2.0, atol=1e-7, rtol=1e-5)
    if norm != "linf":
        torch.testing.assert_close(size(large, norm), torch.full((3,), 2.0, dtype=torch.float64), atol=0, rtol=1e-6)
    assert not torch.allclose(large[0], large[1])


@pytest.mark.parametrize("norm", CONVEX)
def test_a_random_change_that_meets_a_bound_is_the_projection_of_the_free_one(norm: Norm) -> None:
    _, low, high, _, radius = problem(6, (3, 4, 5), [0.3, 4.0, 20.0])
    room = torch.full_like(low, 1e3)
    free = drawn(-room, room, radius, norm, generators(3))
    held = drawn(low, high, radius, norm, generators(3))
    torch.testing.assert_close(held, project(free, low, high, radius, norm), atol=1e-6, rtol=0)
    assert not torch.equal(held, free)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(given_=problems(), seed=SEEDS)
def test_random_l0_changes_move_as_many_values_as_they_may_and_more_at_larger_radii(given_: Problem, seed: int) -> None:
    _, low, high, _, _ = given_
    movable = ((high > 0) | (low < 0)).flatten(1).sum(dim=1).double()
    before = torch.zeros_like(low)
    for count in (0.0, 1.0, 3.4, 8.0, 1e6):
        radius = torch.full((len(low),), count)
        found = drawn(low, high, radius, "l0", generators(len(low), seed))
        assert torch.equal(size(found, "l0"), torch.minimum(radius.double().floor(), movable))
        assert bool(((found == 0) | (found == low) | (found == high)).all())
        assert torch.equal(torch.where(before != 0, found, 0.0), before)
        before = found


def test_random_changes_have_the_distribution_they_claim() -> None:
    count = 60_000
    room = torch.full((1, 1, 200, 300), 1e6)

    def one(norm: Norm, radius: float) -> torch.Tensor:
        return drawn(-room, room, torch.tensor([radius]), norm, generators(1, 7)).double().flatten()

    def quantiles(values: torch.Tensor) -> list[float]:
        return torch.quantile(values, torch.tensor([0.1, 0.5, 0.9]).double()).tolist()

    assert quantiles(one("linf", 1.0)) == pytest.approx([-0.8, 0.0, 0.8], abs=0.02)
    assert quantiles(one("l2", count**0.5)) == pytest.approx([-1.2816, 0.0, 1.2816], abs=0.03)
    spacings = one("l1", float(count))
    assert quantiles(spacings.abs()) == pytest.approx([0.1054, 0.6931, 2.3026], abs=0.05)
    assert (spacings > 0).double().mean() == pytest.approx(0.5, abs=0.01)
    moved = one("l0", 6000.0)
    assert (moved > 0).sum() == pytest.approx(3000, abs=200)
    assert (moved[: count // 2] != 0).sum() == pytest.approx(3000, abs=200)
