"""The engine that runs rows of an attack in full batches: what it counts, carries forward and leaves alone."""

from __future__ import annotations

import copy
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


class _NotANumber(torch.autograd.Function):
    """Passes values on, and NaN as the slope of the rows whose first value is above 0.99."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, values: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(values)
        return values.clone()

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, slope: torch.Tensor) -> torch.Tensor:
        (values,) = context.saved_tensors
        return torch.where(values[:, :1, :1, :1] > 0.99, torch.nan, slope)


@pytest.mark.parametrize("where", ["logits", "slopes"])
@pytest.mark.parametrize("walker", [MarginPGD(6), APGD("margin", 12), APGD("cross_entropy", 12)])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_one_case_that_is_not_a_number_does_not_touch_the_others(walker: Walker, norm: Norm, where: str) -> None:
    pixels = images_of(6)
    pixels[:, 0, 0, 0] = 0.5
    pixels[2, 0, 0, 0] = 1.0

    def sick(images: torch.Tensor) -> torch.Tensor:
        if where == "slopes":
            return curved(_NotANumber.apply(images))
        return torch.where(images[:, 0, 0, :1] > 0.99, torch.nan, curved(images))

    whole = decided(pixels)
    budget = budget_of(norm, (0.004, 0.009), pixels)
    healthy = pursue(whole, budget, walker, width=4)
    found = pursue(replace(whole, forward=sick), budget, walker, width=4)
    others = torch.tensor([0, 1, 3, 4, 5])
    assert found.nonfinite.tolist() == [False, False, True, False, False, False]
    assert bool(torch.isfinite(found.images).all())
    same(Found(*(values[others] for values in healthy)), Found(*(values[others] for values in found)), torch.arange(5))
    if where == "logits":
        assert math.isinf(found.size[2].item())


class Sloped(Stairs):
    """The same steps, asking for slopes."""

    loss = "margin"


@pytest.mark.parametrize("walker", [Stairs(4), Sloped(4)])
def test_a_logit_that_is_not_a_number_on_the_way_is_noted(walker: Walker) -> None:
    def holed(images: torch.Tensor) -> torch.Tensor:
        first = images[:, :, 0, 0]
        return torch.where((first > 0.35) & (first < 0.45), torch.nan, first) - images[:, :, 0, 1]

    cases = replace(gaps([0.95, 0.95, 0.55]), forward=holed)
    found = pursue(cases, budget_of("linf", (0.8,), cases.pixels), walker, width=2)
    assert found.nonfinite.tolist() == [True, True, True]
    assert found.size.tolist() == pytest.approx([math.inf, math.inf, 0.6])
    other = pursue(cases, budget_of("linf", (0.3,), cases.pixels), walker, width=2)
    assert not other.nonfinite.any()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("walker", [MarginPGD(6), APGD("margin", 12)])
def test_a_pixel_without_a_slope_does_not_stop_the_others(walker: Walker, norm: Norm) -> None:
    def holed(images: torch.Tensor) -> torch.Tensor:
        first = (images[:, 0, 0, :1] - 0.5).abs().sqrt()  # its slope at 0.5 is not finite
        return 0.1 * first + images[:, 0, 0, 1:2] - 0.6

    pixels = torch.full((1, 1, 1, 2), 0.5)
    cases = cases_of(
        holed, pixels, class_goal(torch.zeros(1, dtype=torch.long), 2, Decision(1, 0.5)), keys=["a"], seed=0
    )
    found = pursue(cases, budget_of(norm, (0.2,), pixels), walker, width=1)
    assert found.nonfinite.tolist() == [True]
    assert math.isfinite(float(found.size))


def test_a_flat_first_slope_is_noted() -> None:
    def saturated(images: torch.Tensor) -> torch.Tensor:
        first = images[:, 0, 0, :1]
        return torch.where(first > 0.5, first * 0.0, first) - 2.0

    pixels = torch.full((2, 1, 1, 1), 0.25)
    pixels[1] = 0.75
    goal = class_goal(torch.zeros(2, dtype=torch.long), 2, Decision(1, 0.5))
    cases = cases_of(saturated, pixels, goal, keys=["slope", "flat"], seed=0)
    budget = budget_of("linf", (0.1,), pixels)
    assert pursue(cases, budget, MarginPGD(3), width=2).flat.tolist() == [False, True]
    started = pursue(cases, budget, MarginPGD(3), width=2, attempts=[[Attempt(1)]] * 2)
    later = pursue(cases, budget_of("linf", (0.9,), pixels), MarginPGD(5), width=2)
    assert later.flat.tolist() == [False, True]  # the first case walks into the flat part
    assert started.flat.tolist() == [False, False]  # only the slope at the image itself says so


def test_the_last_look_asks_for_no_gradient() -> None:
    asked = []

    def recording(images: torch.Tensor) -> torch.Tensor:
        asked.append(images.requires_grad)
        return images.flatten(1)[:, :1] - 9.0

    pixels = torch.full((2, 1, 2, 2), 0.5)
    cases = cases_of(recording, pixels, class_goal(torch.tensor([0, 0]), 2, Decision(1, 0.5)), keys=["a", "b"], seed=0)
    pursue(cases, budget_of("linf", (0.1,), pixels), MarginPGD(4), width=2)
    assert asked == [True, True, True, False]


def test_a_model_that_takes_one_image_at_a_time() -> None:
    def single(images: torch.Tensor) -> torch.Tensor:
        assert len(images) == 1
        return curved(images)

    cases = decided(images_of(5))
    budget = budget_of("linf", (0.01, 0.05), cases.pixels)
    one = pursue(replace(cases, forward=single), budget, MarginPGD(5), width=1)
    same(pursue(cases, budget, MarginPGD(5), width=64), one, torch.arange(5))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(mode: type[torch.no_grad]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
    ).train()
    model[0].weight.requires_grad_(False)
    model[3].bias.grad = torch.full_like(model[3].bias, 7.0)
    before, required = copy.deepcopy(model.state_dict()), [each.requires_grad for each in model.parameters()]
    pixels = images_of(4)
    kept = pixels.clone()
    with torch.no_grad():
        logits = model(pixels)
    cases = cases_of(model, pixels, class_goal(logits.argmax(1), 3, Decision()), keys=list("abcd"), seed=0)
    with mode():
        pursue(cases, budget_of("l2", (0.01, 0.1), pixels), APGD("margin", 10), width=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == required
    assert model.training
    assert [each.grad is None for each in model.parameters()] == [True, True, True, False]
    assert bool((model[3].bias.grad == 7.0).all())
    assert torch.equal(pixels, kept)
    assert torch.equal(cases.pixels, kept)


def test_one_class_and_constant_logits_break_nothing() -> None:
    pixels = images_of(3)
    goal = class_goal(torch.tensor([1, 1, 1]), 2, Decision())
    cases = cases_of(lambda x: torch.tensor([[0.0, 1.0]]).expand(len(x), 2), pixels, goal, keys=list("abc"), seed=0)
    budget = budget_of("l2", (0.1, 0.5), pixels)
    found = pursue(cases, budget, APGD("margin", 5), width=2, attempts=attempts(cases, cases.forward(pixels), 2, 9))
    assert found.looks.tolist() == [10, 10, 10]
    assert found.flat.tolist() == [True] * 3
    assert bool(torch.isinf(found.size).all())
