"""APGD against a plain loop over one image written from the papers, on scaled logits, and against PGD."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from xvision.attacks.apgd import APGD, attempts
from xvision.attacks.balls import Norm, project
from xvision.attacks.cases import Cases, Found, Seen, budget_of, cases_of
from xvision.attacks.goals import class_goal, finding_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.search import Attempt, Rows, State, pursue
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

Function = Callable[[torch.Tensor], torch.Tensor]


class Image:
    """One image, a loss of it and its slope, and the nearest allowed image, for the loops below."""

    def __init__(self, pixels: torch.Tensor, loss: Function, norm: Norm) -> None:
        self.pixels, self._loss, self._norm = pixels, loss, norm

    def look(self, at: torch.Tensor) -> tuple[float, torch.Tensor]:
        point = at.clone().requires_grad_()
        loss = self._loss(point)
        (slope,) = torch.autograd.grad(loss, point)
        return float(loss.detach()), slope

    def nearest(self, at: torch.Tensor, radius: float) -> torch.Tensor:
        low, high, size = -self.pixels[None], 1 - self.pixels[None], torch.tensor([radius])
        return self.pixels + project(at[None] - self.pixels, low, high, size, self._norm)[0]


def by_the_paper(image: Image, norm: Norm, radius: float, steps: int, start: torch.Tensor) -> list[torch.Tensor]:
    """All images that algorithm 1 of Croce and Hein (2020) looks at."""
    visited = [start]
    loss, slope = image.look(start)
    best, best_loss, best_slope = start, loss, slope
    losses, step = [loss], 2 * radius
    interval = max(int(0.22 * steps), 1)
    next_check, halved, loss_at_check = interval, True, loss
    before, at = start, start
    for number in range(1, steps):
        direction = torch.sign(slope) if norm == "linf" else slope / slope.norm()
        stepped = image.nearest(at + step * direction, radius)
        share = 1.0 if number == 1 else 0.75
        mixed = image.nearest(at + share * (stepped - at) + (1 - share) * (at - before), radius)
        before, at = at, mixed
        visited.append(at)
        loss, slope = image.look(at)
        losses.append(loss)
        if loss > best_loss:
            best, best_loss, best_slope = at, loss, slope
        if number == next_check:
            window = losses[-interval - 1 :]
            rises = sum(later > earlier for earlier, later in itertools.pairwise(window))
            few = rises <= 0.75 * interval or (not halved and best_loss == loss_at_check)
            if few:
                step, at, slope = step / 2, best, best_slope
            halved, loss_at_check = few, best_loss
            interval = max(interval - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
            next_check += interval
    return visited


def in_l1(image: Image, radius: float, steps: int, start: torch.Tensor) -> list[torch.Tensor]:
    """All images that APGD in l1 (Croce and Hein 2021) looks at, over balls of 3, 2 and 1 radii."""
    visited: list[torch.Tensor] = []
    third, every = int(0.3 * steps + 1e-9), max(int(0.04 * steps), 1)
    at = start
    for wide, looks in ((3 * radius, third), (2 * radius, third), (radius, steps - 2 * third)):
        at = image.nearest(at, wide)
        best = at
        best_loss, best_slope = -math.inf, torch.zeros_like(at)
        support = int((at != image.pixels).sum())
        moving, old = (support * 2 // 3, support) if support else (at.numel() // 5, at.numel())
        step = wide
        for number in range(looks):
            visited.append(at)
            loss, slope = image.look(at)
            if loss > best_loss:
                best, best_loss, best_slope = at, loss, slope
            if number and number % every == 0:
                support = int((best != image.pixels).sum())
                shrinks = support < 0.95 * old
                moving = support * 2 // 3
                step = wide if shrinks else max(step / 1.5, wide / 10)
                old = support
                if shrinks:
                    at, slope = best, best_slope
            movable = torch.where(slope > 0, at < 1, at > 0)
            strength = slope.abs() * movable
            ranked = strength.flatten().sort(descending=True).values
            least = ranked[max(moving, 1) - 1]
            sign = torch.sign(slope) * (strength >= least) * (strength > 0)
            at = image.nearest(at + step * sign / max(float(sign.abs().sum()), 1.0), wide)
        at = best
    return visited


def folded(images: torch.Tensor) -> torch.Tensor:
    """Three piecewise linear logits: steps overshoot their peaks, and slopes do not hang on the last bits."""
    generator = torch.Generator().manual_seed(3)
    weights, peaks = torch.randn(3, 1, 25, generator=generator), torch.rand(3, 1, 25, generator=generator)
    flat = images.flatten(1)
    return torch.stack([((flat - peak).abs() * weight).sum(1) for weight, peak in zip(weights, peaks, strict=True)], 1)


def hard_cases() -> Cases:
    """Cases whose attempts run to their end, since no break is confirmed, but for the second, which is broken at once.

    The images are those on which the loss rises in exactly 3 of 4 steps before a checkpoint (the first and the third) and
    rises often without a new best (the third and the fourth, in l2).
    """
    images = [torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (38, 0, 39, 42)]
    pixels = torch.stack(images)
    goal = class_goal(folded(pixels).argmax(dim=1), 3, Decision())
    goal.wrong[1] = True
    keys = [f"case {number}" for number in range(4)]
    cases = cases_of(folded, pixels, goal, keys=keys, seed=0)
    return replace(cases, confirm=lambda images, goal: goal.wrong.all(dim=1))


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 100])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_row_visits_the_images_that_a_plain_loop_visits(norm: Norm, steps: int) -> None:
    """In a batch of 4, two rows are replaced after their first look, so that the others are one step ahead."""
    cases = hard_cases()
    budget = budget_of(norm, ({"linf": 0.2, "l2": 0.15, "l1": 0.08}[norm],), cases.pixels)
    visited: dict[tuple[int, int], list[torch.Tensor]] = {}

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        for row, key in enumerate(zip(rows.place.tolist(), rows.start.tolist(), strict=True)):
            visited.setdefault(key, []).append(state["at"][row])

    tries = [[Attempt(0), Attempt(1)]] * 4
    found = pursue(cases, budget, APGD("margin", steps), width=4, attempts=tries, watch=watch)
    assert found.looks.tolist() == [2 * steps, 2, 2 * steps, 2 * steps]
    del visited[1, 0], visited[1, 1]
    assert len(visited) == 6
    for (place, _), points in visited.items():
        goal = cases.goal.rows(torch.tensor([place]))
        image = Image(cases.pixels[place], lambda x, goal=goal: goal.margin(folded(x[None]))[0], norm)
        radius = budget.radii[0]
        wanted = (
            in_l1(image, radius, steps, points[0])
            if norm == "l1"
            else by_the_paper(image, norm, radius, steps, points[0])
        )
        assert len(points) == len(wanted) == steps
        torch.testing.assert_close(torch.stack(points), torch.stack(wanted), atol=2e-4, rtol=0)


class Net(torch.nn.Module):
    """A small convolutional network, trained in a second on blobs: bright, dark or hollow."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool2d(2),
            torch.nn.Flatten(), torch.nn.Linear(64, 3),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits


@pytest.fixture(scope="module")
def trained() -> tuple[Net, torch.Tensor, torch.Tensor]:
    """The network with the images that it decides rightly, 60 of them, and their labels."""
    torch.manual_seed(0)
    count, side = 300, 12
    labels = torch.randint(0, 3, (count,))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centres = torch.randint(3, side - 3, (count, 2, 1, 1))
    squared = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2).float()
    blobs = torch.stack([torch.exp(-squared / 3), -torch.exp(-squared / 3), torch.exp(-((squared.sqrt() - 3) ** 2))], 1)
    images = (0.3 + 0.3 * torch.rand(count, side, side) + 0.35 * blobs[torch.arange(count), labels]).clamp(0, 1)
    net, pixels = Net(), images[:, None]
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(15):
        for batch in torch.randperm(count).split(50):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(pixels[batch]), labels[batch]).backward()
            optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    with torch.no_grad():
        right = torch.nonzero(net(pixels).argmax(dim=1) == labels).squeeze(1)[:60]
    assert len(right) == 60
    return net.eval(), pixels[right], labels[right]


def of_net(trained: tuple[Net, torch.Tensor, torch.Tensor], scale: float = 1.0) -> Cases:
    net, pixels, labels = trained
    keys = [f"case {number}" for number in range(len(labels))]
    return cases_of(lambda x: net(x) * scale, pixels, class_goal(labels, 3, Decision()), keys=keys, seed=0)


LADDERS: dict[str, tuple[float, ...]] = {"linf": (0.02, 0.05), "l2": (0.01, 0.03), "l1": (0.006, 0.01)}


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_no_positive_scale_of_the_logits_changes_a_verdict_on_the_margin(
    trained: tuple[Net, torch.Tensor, torch.Tensor], norm: Norm
) -> None:
    budget = budget_of(norm, LADDERS[norm], trained[1])
    walker = APGD("margin", 20)
    plain = pursue(of_net(trained), budget, walker, width=64)
    verdicts = budget.columns(plain.size)
    assert set(verdicts.tolist()) == {0, 1, 2}
    for power in (-3, 2, 6):
        assert torch.equal(
            budget.columns(pursue(of_net(trained, 10.0**power), budget, walker, width=64).size), verdicts
        )
    doubled = pursue(of_net(trained, 2.0**30), budget, walker, width=64)
    assert torch.equal(doubled.images, plain.images)


def test_saturated_logits_blind_the_cross_entropy_and_not_the_margin(
    trained: tuple[Net, torch.Tensor, torch.Tensor],
) -> None:
    """The planted effect: the same decisions, logits a million times as large."""
    budget = budget_of("linf", (0.1,), trained[1])

    def broken(scale: float, walker: APGD) -> Found:
        return pursue(of_net(trained, scale), budget, walker, width=64)

    plain, blind = (broken(scale, APGD("cross_entropy", 20)) for scale in (1.0, 1e6))
    seeing = broken(1e6, APGD("margin", 20))
    assert torch.isfinite(blind.size).sum() < 0.5 * torch.isfinite(plain.size).sum()
    assert torch.isfinite(seeing.size).sum() >= torch.isfinite(plain.size).sum() - 1
    assert int(blind.flat.sum()) > 30
    assert not seeing.flat.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_breaks_at_least_what_pgd_breaks(trained: tuple[Net, torch.Tensor, torch.Tensor], norm: Norm) -> None:
    budget = budget_of(norm, LADDERS[norm], trained[1])
    cases = of_net(trained)

    def reached(found: Found) -> list[int]:
        return [int((budget.columns(found.size) <= column).sum()) for column in range(len(budget.radii))]

    pgd = reached(pursue(cases, budget, MarginPGD(20), width=64))
    tries = attempts(cases, cases.forward(cases.pixels).detach(), 1, 2)
    for found in (
        pursue(cases, budget, APGD("margin", 40), width=64),
        pursue(cases, budget, APGD("dlr", 40), width=64, attempts=tries),
    ):
        assert all(apgd >= first - 1 for apgd, first in zip(reached(found), pgd, strict=True))
        assert sum(reached(found)) >= sum(pgd)
    assert 0 < pgd[0] < 60


def test_a_targeted_attempt_breaks_where_the_largest_margin_leads_astray() -> None:
    """Class 1 is nearest and can never win; class 2 wins after a while: the margin alone climbs class 1."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        first, second = images[:, 0, 0, 0], images[:, 0, 0, 1]
        return torch.stack([torch.zeros_like(first), -0.1 - (first - 0.5).square(), 3 * second - 2.0], dim=1)

    pixels = torch.tensor([0.2, 0.5]).view(1, 1, 1, 2)
    cases = cases_of(forward, pixels, class_goal(torch.tensor([0]), 3, Decision()), keys=["a"], seed=0)
    budget = budget_of("linf", (0.3,), pixels)
    logits = forward(pixels)
    aimless = attempts(cases, logits, 1, 0)
    nearest = attempts(cases, logits, 1, 1)
    both = attempts(cases, logits, 1, 2)
    assert (aimless, nearest) == ([[Attempt(0, -1)]], [[Attempt(0, 1)]])
    assert both == [[Attempt(0, 1), Attempt(0, 2)]]
    for walker in (APGD("margin", 20), APGD("dlr", 20), MarginPGD(20)):
        sizes = [pursue(cases, budget, walker, width=4, attempts=tries).size for tries in (aimless, nearest, both)]
        assert [math.isfinite(float(size)) for size in sizes] == [False, False, True]


def test_attempts_are_starts_times_the_nearest_ways() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 5.0, 5.0, 1.0]])
    pixels = torch.zeros(2, 1, 1, 1)
    cases = cases_of(lambda x: logits, pixels, class_goal(torch.tensor([0, 3]), 4, Decision()), keys=["a", "b"], seed=0)
    assert attempts(cases, logits, 2, 2) == [
        [Attempt(0, 2), Attempt(0, 1), Attempt(1, 2), Attempt(1, 1)],
        [Attempt(0, 1), Attempt(0, 2), Attempt(1, 1), Attempt(1, 2)],  # equal ways in their order
    ]
    assert attempts(cases, logits, 3, 0) == [[Attempt(0), Attempt(1), Attempt(2)]] * 2
    assert [len(tries) for tries in attempts(cases, logits, 1, 9)] == [3, 3]
    goal = finding_goal(torch.tensor([[True, False], [True, True]]), [0.5, 0.5], directions=("false alarm",))
    two = cases_of(lambda x: logits[:, :2], pixels, goal, keys=["a", "b"], seed=0)
    assert attempts(two, logits[:, :2], 2, 9) == [[Attempt(0, 1), Attempt(1, 1)], []]
    assert attempts(two, logits[:, :2], 1, 0) == [[Attempt(0)], []]
    with pytest.raises(ConfigError, match="found 0 restarts"):
        attempts(cases, logits, 0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_random_start_leaves_an_image_at_which_the_slope_is_zero(norm: Norm) -> None:
    pixels = torch.full((3, 1, 1, 2), 0.5)
    cases = cases_of(
        lambda x: (x[:, :, 0, 0] - 0.5).square() * 100 - 1,
        pixels,
        class_goal(torch.tensor([0, 0, 0]), 2, Decision(1, 0.5)),
        keys=list("abc"),
        seed=0,
    )
    budget = budget_of(norm, (0.2,), pixels)
    one, two = (
        pursue(cases, budget, APGD("margin", 20), width=4, attempts=attempts(cases, cases.forward(pixels), starts, 0))
        for starts in (1, 2)
    )
    assert bool(one.size.isinf().all())
    assert one.flat.tolist() == two.flat.tolist() == [True] * 3
    assert bool(two.size.isfinite().all())


def test_l0_and_steps_below_one_are_refused() -> None:
    cases = hard_cases()
    with pytest.raises(ConfigError, match="does not bound the number of changed pixel values"):
        pursue(cases, budget_of("l0", (0.5,), cases.pixels), APGD("margin", 5), width=2)
    with pytest.raises(ConfigError, match="found 0 steps"):
        APGD("margin", 0)
