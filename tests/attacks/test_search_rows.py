"""Rows of the engine one by one: which of several equal breaks is kept, in which order they run, and what each aims at."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from xvision.attacks.cases import Cases, Seen, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import Attempt, Rows, State, Walker, pursue
from xvision.methods.decision import Decision

SIDE = 4


@dataclass(frozen=True)
class Pixel(Walker):
    """From its second look on it raises the pixel of its start in the first line and that of its target, -1 the last, in the second."""

    steps: int = 4
    loss = None

    def begin(self, rows: Rows) -> State:
        return {"at": self._point(rows, rows.step)}

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        return {"at": self._point(rows, rows.step + 1)}

    def _point(self, rows: Rows, step: torch.Tensor) -> torch.Tensor:
        points, every = rows.cases.pixels.clone(), torch.arange(len(rows))
        up = rows.radius * (step >= 1)
        points[every, 0, 0, rows.start] += up
        points[every, 0, 1, rows.cases.goal.target] += up
        return points


def brighter(count: int = 1) -> Cases:
    """Grey images of three classes that are broken by any pixel above 0.6, but for the last of a row."""
    pixels = torch.full((count, 1, 2, SIDE), 0.5)

    def forward(images: torch.Tensor) -> torch.Tensor:
        most = images[..., :-1].flatten(1).amax(dim=1) - 0.6
        return torch.stack([torch.zeros_like(most), most, most], dim=1)

    goal = class_goal(torch.zeros(count, dtype=torch.long), 3, Decision())
    return cases_of(forward, pixels, goal, keys=[str(number) for number in range(count)], seed=0)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("tries", list(itertools.permutations([Attempt(0, 2), Attempt(1, 0), Attempt(1, 1)])))
def test_of_breaks_of_equal_step_and_size_the_first_start_and_then_the_first_target_is_kept(
    tries: tuple[Attempt, ...], width: int
) -> None:
    cases = brighter()
    budget = budget_of("linf", (0.25,), cases.pixels)
    for allowed, (start, target) in ((tries, (0, 2)), ([each for each in tries if each.start], (1, 0))):
        found = pursue(cases, budget, Pixel(), width=width, attempts=[allowed])
        raised = torch.nonzero(found.images[0, 0] != 0.5).tolist()
        assert raised == [[0, start], [1, target]]


def test_where_one_row_fits_the_attempts_run_in_their_order() -> None:
    """The first breaks with its second look, and spares the other all but two; the other one, first, runs to its end."""
    cases = brighter()
    budget = budget_of("linf", (0.25,), cases.pixels)
    breaks, fails = Attempt(0, -1), Attempt(SIDE - 1, -1)
    looks = [
        pursue(cases, budget, Pixel(), width=1, attempts=[tries]).looks.item()
        for tries in ([breaks, fails], [fails, breaks])
    ]
    assert looks == [2 + 2, 4 + 2]


def test_every_row_keeps_its_own_target_when_others_join_it() -> None:
    """Two places for five attempts: the first never breaks, and the others come and go beside it."""
    cases = brighter(3)
    tries = [[Attempt(SIDE - 1, -1)], [Attempt(0, 1), Attempt(1, 2)], [Attempt(2, 1), Attempt(1, 0)]]
    met: set[tuple[int, int, int]] = set()
    sizes = []

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        sizes.append(sorted(set(rows.step.tolist())))
        met.update(zip(rows.place.tolist(), rows.start.tolist(), rows.cases.goal.target.tolist(), strict=True))

    pursue(cases, budget_of("linf", (0.25,), cases.pixels), Pixel(), width=2, attempts=tries, watch=watch)
    assert any(len(steps) > 1 for steps in sizes)  # rows of different age were together
    assert met == {(place, *attempt) for place, each in enumerate(tries) for attempt in each}


def test_an_infinite_logit_beside_the_aim_is_noted_where_the_slope_is_finite() -> None:
    """The looks are at 0.5, 0.5625, 0.6 and 0.6, of the second case below 0.5, away from the hole."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, 0, 0]
        third = torch.where((first > 0.55) & (first < 0.58), torch.inf, -first)
        return torch.stack([torch.zeros_like(first), first - 9.0, third], dim=1)

    pixels = torch.full((2, 1, 1, 1), 0.5)
    goal = class_goal(torch.zeros(2, dtype=torch.long), 3, Decision())
    cases = cases_of(forward, pixels, goal, keys=["a", "b"], seed=0)
    tries = [[Attempt(0, 1)], [Attempt(0, 2)]]
    found = pursue(cases, budget_of("linf", (0.1,), pixels), MarginPGD(4), width=2, attempts=tries)
    assert found.nonfinite.tolist() == [True, False]
