"""Smallest changes of affine classifiers: by hand, by the dual norm, by linear programming, root finding and brute force."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog, minimize

from tests.attacks.exact_linear import smallest, toward
from xvision.attacks.balls import NORMS, Norm, size, steepest
from xvision.errors import ConfigError, DataError

FREE = {"low": -math.inf, "high": math.inf}
DUAL: dict[Norm, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}
SEEDS = st.integers(0, 2**20)


class Plane(NamedTuple):
    """slope, low, high: (B, D); gap: (B,), a share of what the box allows."""

    slope: np.ndarray
    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray


def plane(seed: int, values: int, shares: list[float]) -> Plane:
    """Pixels of which a third are black or white and a tenth may not move; slopes of which a fifth are 0 and many equal."""
    chance = np.random.default_rng(seed)
    full = (len(shares), values)
    pixels = np.where(chance.random(full) < 1 / 3, chance.integers(0, 2, full), chance.random(full))
    frozen = chance.random(full) < 0.1
    slope = chance.standard_normal(full) * (chance.random(full) > 0.2)
    slope = np.where(chance.random(full) < 0.3, np.sign(slope), slope)
    low, high = np.where(frozen, 0.0, -pixels), np.where(frozen, 0.0, 1.0 - pixels)
    return Plane(slope, np.array(shares) * np.maximum(slope * low, slope * high).sum(axis=1), low, high)


@st.composite
def planes(draw: st.DrawFn, largest: int = 12) -> Plane:
    shares = draw(st.lists(st.sampled_from([1e-9, 0.01, 0.3, 0.7, 0.95, 0.9999]), min_size=1, max_size=4))
    return plane(draw(SEEDS), draw(st.integers(1, largest)), shares)


def by_programming(slope: np.ndarray, gap: float, low: np.ndarray, high: np.ndarray, norm: Norm) -> float:
    """linf and l1 as linear programmes, in the parts of a change above and below 0 and its largest value."""
    count, both = len(slope), np.concatenate([slope, -slope])
    bounds = [*zip(np.zeros(count), high, strict=True), *zip(np.zeros(count), -low, strict=True)]
    if norm == "l1":
        return float(linprog(np.ones(2 * count), A_ub=-both[None], b_ub=[-gap], bounds=bounds).fun)
    rows = np.concatenate([np.eye(2 * count), -np.ones((2 * count, 1))], axis=1)
    matrix = np.concatenate([np.append(-both, 0.0)[None], rows])
    limits = np.append(-gap, np.zeros(2 * count))
    goal = np.append(np.zeros(2 * count), 1.0)
    return float(linprog(goal, A_ub=matrix, b_ub=limits, bounds=[*bounds, (0, None)]).fun)


def by_root(slope: np.ndarray, gap: float, low: np.ndarray, high: np.ndarray) -> float:
    """l2: the nearest point has d = clip(factor × slope); the factor is found by bracketing."""

    def short(logarithm: float) -> float:
        return float(slope @ np.clip(10.0**logarithm * slope, low, high) - gap)

    factor = 10.0 ** brentq(short, -20, 20, xtol=1e-14, rtol=1e-14)
    return float(np.linalg.norm(np.clip(factor * slope, low, high)))


def test_one_plane_by_hand() -> None:
    weights, bias = np.array([[0.0, 0.0, 0.0], [3.0, -4.0, 0.0]]), np.array([0.0, 0.1])
    pixels = np.array([[0.5, 0.2, 0.9], [0.5, 0.5, 0.5]])
    wrong = np.array([[True, False], [False, True]])  # f = 1.5 - 0.8 + 0.1 = 0.8 and -0.4
    expected = {"linf": [0.8 / 7, 0.4 / 7], "l2": [0.8 / 5, 0.4 / 5], "l1": [0.8 / 4, 0.4 / 4], "l0": [1.0, 1.0]}
    for norm in NORMS:
        found = smallest(weights, bias, pixels, wrong, norm, low=0.0, high=1.0)
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(expected[norm], rel=1e-12)


def test_a_bound_that_binds_by_hand() -> None:
    # the second value may rise by 0.1 only; slope 3 and 4, gap 1
    slope, room, gap = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.5, 0.1]]), torch.tensor([1.0])
    expected = {"linf": 0.2, "l2": math.hypot(0.2, 0.1), "l1": 0.3, "l0": 1.0}
    for norm in NORMS:
        assert toward(slope, gap, -room, room, norm).item() == pytest.approx(expected[norm], rel=1e-6)
        assert toward(slope, gap * 1.89, -room, room, norm).item() < math.inf
        assert toward(slope, gap * 1.91, -room, room, norm).item() == math.inf
    assert toward(slope, gap * 1.6, -room, room, "l0").item() == 2.0


@pytest.mark.parametrize("norm", list(DUAL))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS, classes=st.integers(2, 5), count=st.integers(1, 9))
def test_where_no_bound_binds_it_is_the_nearest_plane_in_the_dual_norm(
    norm: Norm, seed: int, classes: int, count: int
) -> None:
    chance = np.random.default_rng(seed)
    weights, bias = chance.standard_normal((classes, count)), chance.standard_normal(classes)
    pixels = chance.random((6, count))
    scores = pixels @ weights.T + bias
    right = scores.argmax(axis=1)
    wrong = np.arange(classes) != right[:, None]
    expected = [
        min(
            (scores[row, y] - scores[row, j]) / np.linalg.norm(weights[j] - weights[y], DUAL[norm])
            for j in range(classes)
            if j != y
        )
        for row, y in enumerate(right)
    ]
    np.testing.assert_allclose(smallest(weights, bias, pixels, wrong, norm, **FREE), expected, rtol=1e-10)
    shares = smallest(weights, bias, pixels, wrong, norm, low=pixels - 1e3, high=1e3)
    np.testing.assert_allclose(shares, expected, rtol=1e-10)


@pytest.mark.parametrize("norm", ["linf", "l1"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(given_=planes())
def test_with_bounds_it_is_the_linear_programme(norm: Norm, given_: Plane) -> None:
    found = toward(*given_, norm)
    for row, (slope, gap, low, high) in enumerate(zip(*given_, strict=True)):
        wanted = by_programming(slope, gap, low, high, norm) if gap > 0 else 0.0
        assert found[row].item() == pytest.approx(wanted, rel=1e-7, abs=2e-7)  # what the solver keeps to


@settings(max_examples=60, deadline=None, derandomize=True)
@given(given_=planes())
def test_with_bounds_the_l2_size_is_that_of_the_nearest_point(given_: Plane) -> None:
    found = toward(*given_, "l2")
    for row, (slope, gap, low, high) in enumerate(zip(*given_, strict=True)):
        wanted = by_root(slope, gap, low, high) if gap > 0 else 0.0
        assert found[row].item() == pytest.approx(wanted, rel=1e-9)


def test_the_l2_size_is_that_of_quadratic_programming() -> None:
    for seed in range(10):
        given_ = plane(seed, 8, [0.3, 0.7, 0.95])
        found = toward(*given_, "l2")
        for row, (slope, gap, low, high) in enumerate(zip(*given_, strict=True)):
            reach = {"type": "ineq", "fun": lambda d, w=slope, g=gap: w @ d - g, "jac": lambda d, w=slope: w}
            solved = minimize(
                lambda d: d @ d / 2,
                np.where(slope > 0, high, low),
                jac=lambda d: d,
                bounds=list(zip(low, high, strict=True)),
                constraints=[reach],
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            assert solved.success
            assert found[row].item() == pytest.approx(np.linalg.norm(solved.x), rel=1e-5)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(given_=planes(largest=7))
def test_the_number_of_values_is_that_of_brute_force(given_: Plane) -> None:
    found = toward(*given_, "l0")
    for row, (slope, gap, low, high) in enumerate(zip(*given_, strict=True)):
        gains = np.maximum(slope * low, slope * high)
        sets = itertools.chain.from_iterable(
            itertools.combinations(range(len(gains)), k) for k in range(len(gains) + 1)
        )
        wanted = min(len(chosen) for chosen in sets if gains[list(chosen)].sum() >= gap * (1 - 1e-12))
        assert found[row].item() == wanted


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(given_=planes(largest=40))
def test_the_best_change_of_that_size_gets_there_and_of_a_smaller_one_does_not(norm: Norm, given_: Plane) -> None:
    found = toward(*given_, norm)
    slope, gap, low, high = (torch.as_tensor(each) for each in given_)
    gained = (slope * steepest(slope, low, high, found, norm)).sum(dim=1)
    assert bool((gained >= gap * (1 - 1e-9) - 1e-15).all())
    below = found - 1 if norm == "l0" else found * (1 - 1e-6)
    short = (slope * steepest(slope, low, high, below.clamp(min=0), norm)).sum(dim=1)
    assert bool((short[gap > 0] < gap[gap > 0]).all())


@pytest.mark.parametrize("norm", list(DUAL))
def test_the_share_that_one_step_breaks_is_the_share_that_is_this_near(norm: Norm) -> None:
    chance = np.random.default_rng(4)
    weights, bias = torch.tensor(np.stack([np.zeros(30), chance.standard_normal(30)])), torch.zeros(2)
    pixels = torch.tensor(0.5 + 0.1 * chance.standard_normal((400, 30)))  # away from the box
    scores = pixels @ weights[1]
    wrong = torch.stack([scores > 0, scores <= 0], dim=1)
    near = smallest(weights, bias, pixels, wrong, norm, low=0.0, high=1.0)
    slope = -torch.sign(scores)[:, None] * weights[1]
    for radius in near.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist():
        change = steepest(slope, -pixels, 1 - pixels, torch.full((400,), radius), norm)
        broken = ((pixels + change) @ weights[1] > 0) != (scores > 0)
        assert torch.equal(broken, near < radius)
        assert 60 < int(broken.sum()) < 340


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_that_uses_eight_ninths_of_its_budget_is_seen(norm: Norm) -> None:
    """As foolbox's default PGD in linf does: the exact size is what gives it away."""
    given_ = plane(5, 200, [0.2, 0.4])
    found = toward(*given_, norm)
    slope, gap, low, high = (torch.as_tensor(each) for each in given_)
    weak = steepest(slope, low, high, 8 / 9 * found, norm)
    assert bool(((slope * weak).sum(dim=1) < gap).all())
    assert bool((size(weak, norm) < found).all())


@pytest.mark.parametrize("norm", NORMS)
def test_already_wrong_out_of_reach_and_nothing_to_break(norm: Norm) -> None:
    weights, bias = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), np.array([0.0, 0.5, 3.0])
    pixels = np.array([[0.1, 0.2], [0.4, 0.3], [0.4, 0.3]])
    wrong = np.array([[False, True, True], [False, False, False], [True, True, False]])
    found = smallest(weights, bias, pixels, wrong, norm, low=0.0, high=1.0)
    assert found.tolist() == [0.0, math.inf, math.inf]  # class 2 leads everywhere in the box


@pytest.mark.parametrize("norm", NORMS)
def test_the_corner_of_the_box_is_within_reach_and_nothing_beyond(norm: Norm) -> None:
    weights, pixels, wrong = np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[0.5, 0.5]]), np.array([[False, True]])

    def at(bias: float) -> float:
        return smallest(weights, np.array([0.0, bias]), pixels, wrong, norm, low=0.0, high=1.0).item()

    assert at(-2.0) == pytest.approx({"linf": 0.5, "l2": 0.5**0.5, "l1": 1.0, "l0": 2.0}[norm])
    assert at(-2.0 - 1e-9) == math.inf
    assert at(-1.0) == 0.0


def test_equal_weights_are_out_of_reach() -> None:
    weights = np.array([[1.0, 2.0], [1.0, 2.0]])
    for norm in NORMS:
        found = smallest(weights, np.array([1.0, 0.0]), np.array([[0.5, 0.5]]), np.array([[False, True]]), norm, **FREE)
        assert found.item() == math.inf


def test_some_pixels_free_and_some_held() -> None:
    low = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    high = torch.tensor([[math.inf, 0.25, 0.0, math.inf]])
    slope, gap = torch.tensor([[1.0, 2.0, 9.0, 0.0]]), torch.tensor([1.5])
    expected = {"linf": 1.0, "l2": math.hypot(1.0, 0.25), "l1": 1.25, "l0": 1.0}
    for norm in NORMS:
        assert toward(slope, gap, low, high, norm).item() == pytest.approx(expected[norm])


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_does_not_depend_on_its_batch_nor_on_who_holds_the_numbers(norm: Norm) -> None:
    given_ = plane(9, 50, [0.1, 0.5, 0.9])
    together = toward(*given_, norm)
    tensors = toward(*(torch.tensor(each) for each in given_), norm)
    alone = torch.cat([toward(*(each[row : row + 1] for each in given_), norm) for row in range(3)])
    assert torch.equal(together, tensors)
    torch.testing.assert_close(alone, together, rtol=1e-12, atol=0)


def test_what_does_not_fit_is_refused() -> None:
    weights, bias, pixels = np.eye(3), np.zeros(3), np.full((1, 3), 0.5)
    one = np.array([[False, True, True]])
    with pytest.raises(ConfigError, match="exactly one right class"):
        smallest(weights, bias, pixels, np.array([[False, False, True]]), "l2", low=0.0, high=1.0)
    with pytest.raises(ConfigError, match="exactly one right class"):
        smallest(weights, bias, pixels, np.array([[True, True, True]]), "l2", low=0.0, high=1.0)
    for parts in (
        (weights[:, :2], bias, pixels, one),
        (weights, bias[:2], pixels, one),
        (weights, bias, pixels, one[:, :2]),
    ):
        with pytest.raises(DataError, match=r"give \(K, D\)"):
            smallest(*parts, "l2", low=0.0, high=1.0)
    for bounds in ({"low": 0.6, "high": 1.0}, {"low": 0.0, "high": 0.4}):
        with pytest.raises(DataError, match="outside low and high"):
            smallest(weights, bias, pixels, one, "l2", **bounds)
