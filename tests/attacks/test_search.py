"""The engine that runs rows of an attack in full batches: what it counts, carries forward and leaves alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.attacks.apgd import APGD, attempts
from xvision.attacks.balls import Norm
from xvision.attacks.cases import Budget, Cases, Found, Seen, budget_of, cases_of
from xvision.attacks.goals import Goal, class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import Attempt, Rows, State, Walker, pursue
from xvision.methods.decision import Decision

quick = settings(deadline=None, max_examples=40)
RUNGS = (0.1, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Stairs(Walker):
    """Raises the first pixel in equal steps up to the radius; starts 2, 4, … are 2, 3, … times as fast, and an odd start lowers
    it instead, which breaks nothing.
    """

    steps: int
    loss = None
    factor: float = 1.0

    def begin(self, rows: Rows) -> State:
        return {"at": self._point(rows, torch.zeros_like(rows.step))}

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        return {"at": self._point(rows, rows.step + 1)}

    def _point(self, rows: Rows, step: torch.Tensor) -> torch.Tensor:
        up = torch.where(rows.start % 2 == 0, 1.0, -1.0)
        points = rows.cases.pixels.clone()
        share = ((step + 1) * (1 + rows.start // 2)).clamp(max=self.steps) / self.steps
        points[:, 0, 0, 0] += up * self.factor * rows.radius * share
        return points.clamp(0.0, 1.0)


def gaps(sizes: Sequence[float]) -> Cases:
    """Cases that break as soon as the first pixel has risen by so much: one logit, first pixel less the second."""
    pixels = torch.zeros(len(sizes), 1, 1, 2)
    pixels[:, 0, 0, 1] = torch.tensor(sizes)
    goal = class_goal(torch.zeros(len(sizes), dtype=torch.long), 2, Decision(1, 0.5))
    keys = [f"case {number}" for number in range(len(sizes))]
    return cases_of(lambda x: x[:, :, 0, 0] - x[:, :, 0, 1], pixels, goal, keys=keys, seed=0)


def expected(gap: float, budget: Budget, steps: int, reached: float) -> tuple[int, float]:
    """Looks and smallest size of ``Stairs`` on one case, one case at a time."""
    radii, looks, smallest = budget.radii, 0, math.inf
    failed, broken = -1, next((column for column, radius in enumerate(radii) if reached <= radius), len(radii))
    while broken - failed > 1:
        column = broken - 1
        for step in range(1, steps + 1):
            looks, size = looks + 1, radii[column] * step / steps
            if size >= gap:
                smallest = size
                broken = next(number for number, radius in enumerate(radii) if size <= radius + 1e-6)
                break
        else:
            failed = column
    return looks, smallest


@pytest.mark.parametrize(
    ("reached", "looks", "size"),
    [
        (math.inf, 2 + 4, 0.4),  # at 0.8 the second look is at 0.4; at 0.2 four looks break nothing
        (0.4, 4, math.inf),  # 0.4 is known: 0.2 alone is open
        (0.05, 0, math.inf),  # the smallest budget is known: nothing is open
    ],
)
def test_looks_are_those_counted_by_hand(reached: float, looks: int, size: float) -> None:
    cases = gaps([0.35])
    budget = replace(budget_of("linf", RUNGS, cases.pixels), reached=torch.tensor([reached], dtype=torch.float64))
    found = pursue(cases, budget, Stairs(4), width=8)
    assert found.looks.tolist() == [looks]
    assert found.size.tolist() == pytest.approx([size])


@quick
@given(
    # off the grid of sizes that are looked at, so that no comparison hangs on rounding
    numbers=st.lists(st.integers(0, 98), min_size=1, max_size=9),
    steps=st.integers(1, 5),
    width=st.integers(1, 12),
    known=st.sampled_from([math.inf, 0.8, 0.2]),
)
def test_looks_and_sizes_are_those_of_one_case_at_a_time(
    numbers: list[int], steps: int, width: int, known: float
) -> None:
    sizes = [0.01 * number + 0.00517 for number in numbers]
    cases = gaps(sizes)
    reached = torch.full((len(sizes),), known, dtype=torch.float64)
    budget = replace(budget_of("linf", RUNGS, cases.pixels), reached=reached)
    found = pursue(cases, budget, Stairs(steps), width=width)
    wanted = [expected(gap, budget, steps, known) for gap in sizes]
    assert found.looks.tolist() == [looks for looks, _ in wanted]
    assert found.size.tolist() == pytest.approx([size for _, size in wanted], abs=1e-6)


def test_images_are_the_smallest_change_found_and_clean_where_none() -> None:
    cases = gaps([0.35, 0.95])
    found = pursue(cases, budget_of("linf", RUNGS, cases.pixels), Stairs(4), width=8)
    torch.testing.assert_close(found.images[0, 0, 0], torch.tensor([0.4, 0.35]))
    assert torch.equal(found.images[1], cases.pixels[1])


def test_a_break_outside_the_budget_tried_does_not_count() -> None:
    """Twice the radius in four steps: only the first two looks are within the budget."""
    cases = gaps([0.15, 0.25])
    found = pursue(cases, budget_of("linf", (0.2,), cases.pixels), Stairs(4, factor=2.0), width=8)
    assert found.size.tolist() == pytest.approx([0.2, math.inf])


def test_attempts_of_a_case_go_no_further_than_the_first_break() -> None:
    cases, tries = gaps([0.35, 0.9]), [[Attempt(1), Attempt(0), Attempt(3)]] * 2
    budget = budget_of("linf", (0.8,), cases.pixels)
    together = pursue(cases, budget, Stairs(4), width=8, attempts=tries)
    assert together.looks.tolist() == [3 * 2, 3 * 4]  # the second look is at 0.4
    alone = pursue(cases, budget, Stairs(4), width=1, attempts=tries)
    assert alone.looks.tolist() == [4 + 2 + 2, 3 * 4]  # the first attempt ran to its end before
    assert alone.size.tolist() == together.size.tolist() == pytest.approx([0.4, math.inf])


@pytest.mark.parametrize("width", [1, 2, 64])
@pytest.mark.parametrize("starts", [(0, 2), (2, 0), (0, 2, 4), (4, 2, 0)])
@pytest.mark.parametrize(
    ("gap", "by_starts", "size"),
    [
        (
            0.45,
            2,
            0.6,
        ),  # the second is there first, at its third look of 0.2, 0.4, 0.6; the first at 0.5 with its fifth
        (0.35, 3, 0.4),  # the second and the third with their second looks, 0.4 and 0.6
    ],
)
def test_the_first_break_counts_and_of_several_the_smallest(
    gap: float, by_starts: int, size: float, starts: tuple[int, ...], width: int
) -> None:
    if len(starts) == by_starts:
        cases = gaps([gap])
        tries = [[Attempt(start) for start in starts]]
        found = pursue(cases, budget_of("linf", (0.8,), cases.pixels), Stairs(8), width=width, attempts=tries)
        assert found.size.tolist() == pytest.approx([size])


@pytest.mark.parametrize("width", [1, 3, 64])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_which_attempt_breaks_a_case_does_not_depend_on_the_width(norm: Norm, width: int) -> None:
    cases = decided(images_of(6))
    budget = budget_of(norm, {"linf": (0.03, 0.1), "l2": (0.04, 0.1), "l1": (0.02, 0.05)}[norm], cases.pixels)
    tries = attempts(cases, curved(cases.pixels), 3, 2)
    wide = pursue(cases, budget, APGD("margin", 10), width=1000, attempts=tries)
    found = pursue(cases, budget, APGD("margin", 10), width=width, attempts=tries)
    assert torch.isfinite(wide.size).any()
    torch.testing.assert_close(found.size, wide.size, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.images, wide.images, atol=1e-5, rtol=1e-5)


def test_a_budget_has_failed_when_its_last_attempt_has() -> None:
    cases = gaps([0.9])
    found = pursue(
        cases,
        budget_of("linf", RUNGS, cases.pixels),
        Stairs(4),
        width=2,
        attempts=[[Attempt(), Attempt(1), Attempt(2)]],
    )
    assert found.looks.tolist() == [3 * 4]  # the largest alone: what fails there fails below


def test_a_case_without_attempts_is_not_looked_at() -> None:
    cases = gaps([0.3, 0.3])
    found = pursue(cases, budget_of("linf", RUNGS, cases.pixels), Stairs(4), width=2, attempts=[[], [Attempt()]])
    assert found.looks.tolist()[0] == 0
    assert found.size.tolist() == pytest.approx([math.inf, 0.4])


def test_what_is_not_confirmed_is_not_broken() -> None:
    def never_the_first(images: torch.Tensor, goal: Goal) -> torch.Tensor:
        return images[:, 0, 0, 1] > 0.32

    cases = replace(gaps([0.3, 0.35]), confirm=never_the_first)
    found = pursue(cases, budget_of("linf", RUNGS, cases.pixels), Stairs(4), width=4)
    assert found.size.tolist() == pytest.approx([math.inf, 0.4])


def test_watch_sees_every_look() -> None:
    cases, seen_by_case = gaps([0.35, 0.05, 0.9]), torch.zeros(3, dtype=torch.int64)

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        assert len(rows) == len(state["at"]) == len(seen.logits) <= 2
        seen_by_case.index_add_(0, rows.place, torch.ones_like(rows.place))

    found = pursue(cases, budget_of("linf", RUNGS, cases.pixels), Stairs(4), width=2, watch=watch)
    assert torch.equal(seen_by_case, found.looks)


def test_batches_stay_full_until_nothing_waits() -> None:
    cases, widths = gaps([0.05 * number + 0.017 for number in range(10)]), []

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        widths.append(len(rows))

    found = pursue(cases, budget_of("linf", RUNGS, cases.pixels), Stairs(5), width=3, watch=watch)
    assert widths == sorted(widths, reverse=True)
    assert len(widths) < int(found.looks.sum()) / 3 + 10


def curved(images: torch.Tensor) -> torch.Tensor:
    """Three logits, whose rounding does not depend on the other rows: products and sums of one row only."""
    weights = torch.randn(3, 1, 36, generator=torch.Generator().manual_seed(3))
    flat = images.flatten(1)
    return torch.stack(
        [(torch.tanh(flat * 2 * weight) + (flat - 0.4).square() * weight).sum(1) for weight in weights], 1
    )


def images_of(count: int, seed: int = 0) -> torch.Tensor:
    pixels = torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    pixels[::3] = pixels[::3].round()  # images at the bounds
    return pixels


def decided(pixels: torch.Tensor, seed: int = 0) -> Cases:
    goal = class_goal(curved(pixels).argmax(dim=1), 3, Decision())
    return cases_of(curved, pixels, goal, keys=[f"case {number}" for number in range(len(pixels))], seed=seed)


def same(first: Found, second: Found, order: torch.Tensor) -> None:
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left[order], right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("walker", [MarginPGD(8), APGD("margin", 12), APGD("cross_entropy", 12)])
def test_width_and_order_change_nothing(walker: Walker, norm: Norm) -> None:
    cases = decided(images_of(10))
    epsilons = {"linf": (0.01, 0.03, 0.1), "l2": (0.01, 0.04, 0.1), "l1": (0.005, 0.02, 0.05)}[norm]
    budget, tries = budget_of(norm, epsilons, cases.pixels), [[Attempt(2)]] * 10
    found = pursue(cases, budget, walker, width=64, attempts=tries)
    assert len(set(budget.columns(found.size).tolist())) > 1
    for width in (1, 3):
        same(found, pursue(cases, budget, walker, width=width, attempts=tries), torch.arange(10))
    order = torch.tensor([7, 2, 9, 0, 4])
    same(found, pursue(cases.rows(order), budget.rows(order), walker, width=3, attempts=tries[:5]), order)


def test_refilled_rows_in_linf_are_the_same_to_the_last_bit() -> None:
    cases = decided(images_of(12))
    budget = budget_of("linf", (0.01, 0.03, 0.1), cases.pixels)
    wide, narrow = (pursue(cases, budget, APGD("margin", 12), width=width) for width in (64, 3))
    assert all(torch.equal(left, right) for left, right in zip(wide, narrow, strict=True))
