"""Square: never beyond what is possible on a linear model, the source's patterns, one stream of draws per case."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xvision.attacks.balls import Norm, within
from xvision.attacks.cases import Cases, Forward, Seen, budget_of, cases_of
from xvision.attacks.goals import Goal, class_goal, finding_goal
from xvision.attacks.search import Attempt, Rows, State, pursue
from xvision.attacks.square import Square
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

PLAIN = Decision()
DUAL: dict[Norm, float] = {"linf": 1.0, "l2": 2.0}


def images(count: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return 0.3 + 0.4 * torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def weights(shape: tuple[int, ...], outputs: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(math.prod(shape), outputs, generator=torch.Generator().manual_seed(seed))


def linear(weight: torch.Tensor) -> Forward:
    return lambda pixels: (pixels - 0.5).flatten(1) @ weight


def hidden(outputs: int) -> Forward:
    """Any margin but a break: the goal can never be reached."""
    return lambda pixels: torch.cat([torch.ones(len(pixels), 1), torch.zeros(len(pixels), outputs - 1)], dim=1)


def cases(forward: Forward, pixels: torch.Tensor, goal: Goal) -> Cases:
    return cases_of(forward, pixels, goal, keys=[f"case {place}" for place in range(len(pixels))], seed=4)


def small(norm_shape: tuple[int, ...] = (1, 6, 5), outputs: int = 3, count: int = 20) -> tuple[Cases, torch.Tensor]:
    """Right cases of a linear model and their exact distance to each way of breaking as a function of the norm's dual."""
    weight, pixels = weights(norm_shape, outputs), images(count, norm_shape)
    forward = linear(weight)
    labels = forward(pixels).argmax(dim=1)
    return cases(forward, pixels, class_goal(labels, outputs, PLAIN)), labels


def distances(part: Cases, weight: torch.Tensor, labels: torch.Tensor, norm: Norm) -> torch.Tensor:
    logits = part.forward(part.pixels)
    own = logits.gather(1, labels[:, None])
    slopes = weight.T[None] - weight.T[labels][:, None]
    far = (own - logits) / torch.linalg.vector_norm(slopes, DUAL[norm], dim=2)
    nearest: torch.Tensor = far.scatter(1, labels[:, None], torch.inf).amin(dim=1)
    return nearest


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_breaks_what_can_be_broken_and_nothing_else(norm: Norm) -> None:
    part, labels = small()
    exact = distances(part, weights((1, 6, 5), 3), labels, norm).double()
    budget = budget_of(norm, [0.01, 0.03, 0.2], part.pixels)
    found = pursue(part, budget, Square(steps=1000), width=20)
    assert bool((found.size >= exact * (1 - 1e-4)).all())
    shares = []
    for radius in budget.radii:
        broken, possible = found.size <= radius + budget.slack, exact <= radius
        assert not bool((broken & ~possible & (exact > radius * (1 + 1e-4))).any())
        shares.append((broken.sum().item(), possible.sum().item()))
    assert shares[-1][0] == shares[-1][1] == len(part)
    assert sum(share[0] for share in shares) >= 0.6 * sum(share[1] for share in shares)


@given(
    norm=st.sampled_from(["linf", "l2"]),
    shape=st.sampled_from([(1, 1, 1), (1, 1, 7), (2, 9, 3), (3, 4, 4), (1, 3, 12)]),
    epsilon=st.sampled_from([0.001, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_every_look_is_within_ball_and_bounds(norm: Norm, shape: tuple[int, ...], epsilon: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(3, *shape, generator=generator).round(decimals=1)
    part = cases(linear(weights(shape, 2, seed)), pixels, class_goal(torch.zeros(3, dtype=torch.long), 2, PLAIN))
    stay = torch.rand(pixels.shape, generator=generator) < 0.3
    part = replace(part, low=torch.where(stay, pixels, part.low), high=torch.where(stay, pixels, part.high))
    budget, looks = budget_of(norm, [epsilon], pixels), []

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        at = state["at"]
        looks.append(len(rows))
        assert bool((at >= rows.cases.low).all() & (at <= rows.cases.high).all())
        assert bool(within(at - rows.cases.pixels, rows.low, rows.high, rows.radius, norm).all())

    pursue(part, budget, Square(steps=40), width=2, watch=watch)
    assert looks


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_does_not_depend_on_batch_or_order(norm: Norm) -> None:
    part, _ = small(count=16)
    budget = budget_of(norm, [0.01, 0.02, 0.04], part.pixels)
    straight, shuffle = torch.arange(16), torch.randperm(16, generator=torch.Generator().manual_seed(8))
    base = pursue(part, budget, Square(steps=40), width=64)
    assert 0 < int(torch.isfinite(base.size).sum()) < len(part)
    for order, width in ((straight, 1), (straight, 7), (shuffle, 64)):
        other = pursue(part.rows(order), budget.rows(order), Square(steps=40), width=width)
        torch.testing.assert_close(other.images, base.images[order], atol=1e-6, rtol=0)
        assert torch.equal(other.looks, base.looks[order])


def test_every_start_draws_its_own_squares() -> None:
    part, _ = small(count=2)
    tries = [[Attempt(start=start) for start in range(3)]] * 2
    firsts: list[torch.Tensor] = []
    budget = budget_of("linf", [0.001], part.pixels)
    pursue(
        part,
        budget,
        Square(steps=1),
        width=6,
        attempts=tries,
        watch=lambda rows, state, _: firsts.append((state["at"] - rows.cases.pixels).flatten(1).sign()),
    )
    assert len(torch.unique(firsts[0], dim=0)) == 6


def proposals(
    norm: Norm, shape: tuple[int, ...], queries: int, *, epsilon: float = 0.1, count: int = 2
) -> torch.Tensor:
    """(queries, count, C, H, W) bool: where each proposal differs from the image held, of a model nothing can move."""
    pixels = torch.full((count, *shape), 0.5)
    part = cases(hidden(2), pixels, class_goal(torch.zeros(count, dtype=torch.long), 2, PLAIN))
    differs: list[torch.Tensor] = []
    first: list[torch.Tensor] = []

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        if not first:
            first.append(state["at"].clone())
        differs.append((state["at"] - first[0]).abs() > 1e-6)

    pursue(part, budget_of(norm, [epsilon], pixels), Square(steps=queries + 1), width=count, watch=watch)
    return torch.stack(differs[1:])


def sides(differs: torch.Tensor) -> list[int]:
    """The side of the smallest box around what each proposal changes."""
    rows, columns = differs.any(dim=(1, 3)), differs.any(dim=(1, 2))
    spans = [[int(line.nonzero().max() - line.nonzero().min()) + 1 for line in part] for part in (rows, columns)]
    return [max(pair) for pair in zip(*spans, strict=True)]


def test_squares_shrink_as_in_the_source() -> None:
    differs = proposals("linf", (8, 20, 20), 1100)
    changed = [max(pair) for pair in zip(sides(differs[:, 0]), sides(differs[:, 1]), strict=True)]
    halved = [sum(query > milestone for milestone in (10, 50, 200, 500, 1000)) for query in range(1100)]
    assert changed == [max(round(math.sqrt(0.8 / 2**number * 400)), 1) for number in halved]


def test_squares_reach_every_pixel_evenly_and_each_row_has_its_own() -> None:
    differs = proposals("linf", (1, 7, 9), 2500)[1001:, :, 0]
    assert bool(differs.flatten(2).any(dim=2).all())  # a single channel is turned rather than proposed as it is
    same = (differs[:, 0] == differs[:, 1]).flatten(1).all(dim=1).float().mean().item()
    assert same < 0.1
    counts = differs[:, 0].sum(dim=0).double()  # squares of one pixel here
    assert counts.sum() == len(differs)
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert chi_square < 105  # 62 degrees of freedom: a probability of 0.0005


@pytest.mark.parametrize(("shape", "largest"), [((1, 4, 60), (4, 48)), ((1, 60, 4), (48, 4))])
def test_on_a_narrow_image_squares_keep_their_area(shape: tuple[int, ...], largest: tuple[int, int]) -> None:
    first = proposals("linf", shape, 1, count=60)[0, :, 0]
    for axis, length in ((2, largest[0]), (1, largest[1])):
        spans = [int(line.nonzero().max() - line.nonzero().min()) + 1 for line in first.any(dim=axis)]
        assert max(spans) == length


def eta(side: int) -> np.ndarray:
    """The bump of the source, by its own recipe: boxes that grow around the centre of each half."""
    pattern = np.zeros((side, side))
    for start, height, sign in ((0, side // 2, 1.0), (side // 2, side - side // 2, -1.0)):
        half = np.zeros((height, side))
        row, column = height // 2, side // 2
        for counter in range(max(height // 2, side // 2) + 1):
            box = slice(max(row - counter, 0), row + counter + 1), slice(max(column - counter, 0), column + counter + 1)
            half[box] += 1.0 / (counter + 1) ** 2
        pattern[start : start + height] = sign * half / np.sqrt((half**2).sum())
    return np.asarray(pattern / np.sqrt((pattern**2).sum()))


@pytest.mark.parametrize("side", [4, 5])
def test_the_first_l2_change_has_the_bump_of_the_source_in_every_tile(side: int) -> None:
    shape, count = (2, 5 * side, 5 * side + 2), 6
    pixels = torch.full((count, *shape), 0.5)
    rows: list[torch.Tensor] = []
    part = cases(hidden(2), pixels, class_goal(torch.zeros(count, dtype=torch.long), 2, PLAIN))
    budget = budget_of("l2", [0.05], pixels)
    pursue(part, budget, Square(steps=1), width=count, watch=lambda _, state, __: rows.append(state["at"] - 0.5))
    change, seen = rows[0].numpy(), set()
    for tile in np.ndindex(count, 2, 5, 5):
        block = change[tile[0], tile[1], tile[2] * side : (tile[2] + 1) * side, tile[3] * side : (tile[3] + 1) * side]
        block = block / np.sqrt((block**2).sum())
        kinds = [(turn, sign) for turn in (0, 1) for sign in (1, -1)]
        fits = [np.abs(sign * (eta(side).T if turn else eta(side)) - block).max() < 1e-4 for turn, sign in kinds]
        assert sum(fits) == 1
        seen.add(fits.index(True))
    assert seen == {0, 1, 2, 3}
    torch.testing.assert_close(rows[0].flatten(1).norm(dim=1), torch.full((count,), budget.radii[0]))


def shifts(change: np.ndarray, side: int) -> np.ndarray:
    """(M, C, H, W) every l2 proposal of the source from a change (C, H, W), by its own recipe, without its final scaling."""
    C, H, W = change.shape
    corners = list(itertools.product(range(H - side + 1), range(W - side + 1)))
    found = []
    for to, away in itertools.product(corners, corners):
        first, second = ((slice(None), slice(y, y + side), slice(x, x + side)) for y, x in (to, away))
        either = np.zeros_like(change)
        either[first] = either[second] = 1.0
        free = np.sqrt(((change * either) ** 2).sum(axis=(1, 2), keepdims=True))
        old = change[first] / np.sqrt((change[first] ** 2).sum(axis=(1, 2), keepdims=True))
        for pattern, signs in itertools.product((eta(side), eta(side).T), itertools.product((1, -1), repeat=C)):
            fresh = pattern * np.array(signs)[:, None, None] + old
            proposal = change.copy()
            proposal[second] = 0.0
            proposal[first] = fresh / np.sqrt((fresh**2).sum(axis=(1, 2), keepdims=True)) * free
            found.append(proposal)
    return np.stack(found)


@pytest.mark.parametrize(
    ("shape", "queries", "side"),
    [
        ((2, 7, 7), range(60, 66), 3),
        ((1, 8, 8), range(60, 66), 5),
        ((1, 7, 8), range(510, 516), 3),
        ((1, 4, 11), range(6), 4),
    ],
)
def test_an_l2_proposal_is_one_of_the_source(shape: tuple[int, ...], queries: range, side: int) -> None:
    pixels = torch.full((2, *shape), 0.5)
    part = cases(hidden(2), pixels, class_goal(torch.zeros(2, dtype=torch.long), 2, PLAIN))
    changes: list[np.ndarray] = []
    budget = budget_of("l2", [0.02], pixels)
    pursue(
        part,
        budget,
        Square(steps=queries.stop + 1),
        width=2,
        watch=lambda _, state, __: changes.append((state["at"] - 0.5).double().numpy()),
    )
    chosen = []
    for row, query in itertools.product(range(2), queries):
        possible = shifts(changes[0][row], side)
        far = np.abs(possible - changes[query + 1][row]).reshape(len(possible), -1).max(axis=1)
        assert far.min() < 1e-6
        chosen.append(far.argmin())
    corners = (shape[1] - side + 1) * (shape[2] - side + 1)
    to, away, lies, signs = np.unravel_index(chosen, (corners, corners, 2, 2 ** shape[0]))
    assert min(len(set(to)), len(set(away))) >= 4
    assert (to != away).sum() >= 6
    assert len(set(lies)) == 2
    assert len(set(signs)) == 2 ** shape[0]


def test_each_channel_and_window_turns_by_itself() -> None:
    pixels = torch.full((1, 3, 6, 6), 0.5)
    part = cases(hidden(2), pixels, class_goal(torch.zeros(1, dtype=torch.long), 2, PLAIN))
    signs: list[torch.Tensor] = []
    pursue(
        part,
        budget_of("linf", [0.1], pixels),
        Square(steps=60),
        width=1,
        watch=lambda _, state, __: signs.append((state["at"][0, :, 3, 3] > 0.5).long()),
    )
    assert len(torch.unique(torch.stack(signs), dim=0)) == 8


def test_an_l2_change_uses_the_whole_radius_where_pixels_cannot_go_lower() -> None:
    pixels = torch.zeros(4, 1, 15, 15)
    part = cases(hidden(2), pixels, class_goal(torch.zeros(4, dtype=torch.long), 2, PLAIN))
    budget, lengths = budget_of("l2", [0.05], pixels), []
    pursue(
        part,
        budget,
        Square(steps=50),
        width=4,
        watch=lambda _, state, __: lengths.append(state["at"].flatten(1).norm(dim=1)),
    )
    torch.testing.assert_close(torch.stack(lengths), torch.full((50, 4), budget.radii[0]))


def test_l2_takes_the_change_from_one_window_and_gives_it_to_another() -> None:
    differs = proposals("l2", (1, 30, 30), 300, epsilon=0.02)[201:]
    shares = differs.flatten(2).float().mean(dim=2)  # windows of 9 x 9 pixels, 0.8 / 8 of 900
    assert 81 / 900 < shares.max().item() <= 2 * 81 / 900 + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_proposal_is_kept_only_where_the_margin_rises(norm: Norm) -> None:
    part, _ = small(count=8)
    best = torch.full((8,), -torch.inf)

    def watch(rows: Rows, state: State, seen: Seen) -> None:
        held, margin = rows.cases.goal.margin(rows.cases.forward(state["held"])), seen.loss
        best[rows.place] = torch.maximum(best[rows.place], torch.where(rows.step > 0, held, margin))
        torch.testing.assert_close(torch.where(rows.step > 0, held, margin), best[rows.place], atol=1e-5, rtol=1e-5)

    pursue(part, budget_of(norm, [0.002], part.pixels), Square(steps=80), width=8, watch=watch)
    clean = part.goal.margin(part.forward(part.pixels))
    assert bool((best > clean).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_never_break_less(norm: Norm) -> None:
    part, _ = small()
    budget = budget_of(norm, [0.06], part.pixels)
    few, many = (pursue(part, budget, Square(steps=steps), width=64) for steps in (40, 200))
    broken = torch.isfinite(few.size)
    assert 0 < int(broken.sum()) < int(torch.isfinite(many.size).sum())
    assert torch.equal(few.images[broken], many.images[broken])
    assert torch.equal(few.looks[broken], many.looks[broken])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("scale", [1e-4, 1e6])
def test_the_scale_of_the_logits_changes_nothing(norm: Norm, scale: float) -> None:
    part, _ = small(count=10)
    budget = budget_of(norm, [0.05], part.pixels)
    found = pursue(part, budget, Square(steps=80), width=10)
    scaled = replace(part, forward=lambda pixels: scale * part.forward(pixels))
    other = pursue(scaled, budget, Square(steps=80), width=10)
    assert torch.equal(torch.isfinite(found.size), torch.isfinite(other.size))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 0])
def test_every_kind_of_answer_is_broken(norm: Norm, outputs: int) -> None:
    """0: findings."""
    shape = (1, 5, 6)
    pixels, weight = images(12, shape), weights(shape, outputs or 3)
    logits = linear(weight)(pixels)
    goal: Goal = finding_goal(logits >= 0, [0.5] * (outputs or 3))
    if outputs:
        labels = (logits[:, 0] >= 0).long() if outputs == 1 else logits.argmax(dim=1)
        decision = Decision(1, 0.5) if outputs == 2 else PLAIN
        goal = class_goal(labels, max(outputs, 2), decision)
    part = cases(linear(weight), pixels, goal)
    found = pursue(part, budget_of(norm, [0.3], pixels), Square(steps=300), width=5)
    assert int(torch.isfinite(found.size).sum()) >= 11
    hit = torch.nonzero(torch.isfinite(found.size)).squeeze(1)
    assert bool(part.rows(hit).broken(found.images[hit]).all())


def test_l1_is_refused() -> None:
    part, _ = small(count=2)
    with pytest.raises(ConfigError, match="linf and l2, not l1"):
        pursue(part, budget_of("l1", [0.1], part.pixels), Square(steps=2), width=2)


def test_the_model_stays_as_it_is_and_is_asked_without_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 2))
    before = {name: values.clone() for name, values in model.state_dict().items()}
    asked: list[bool] = []

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        asked.append(torch.is_grad_enabled())
        logits: torch.Tensor = model(pixels)
        return logits

    pixels = images(4, (1, 5, 6))
    part = cases(forward, pixels, class_goal(model(pixels).argmax(dim=1), 2, PLAIN))
    pursue(part, budget_of("linf", [0.1], pixels), Square(steps=30), width=4)
    assert not any(asked)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert all(values.grad is None and values.requires_grad for values in model.parameters())


def test_broken_rows_leave_which_saves_most_queries() -> None:
    part, _ = small(count=30)
    budget = budget_of("linf", [0.1], part.pixels)
    found = pursue(part, budget, Square(steps=500), width=30)
    broken = torch.isfinite(found.size)
    per_success = found.looks.sum().item() / broken.sum().item()
    everything = 500 * len(part) / broken.sum().item()
    assert everything >= 2 * per_success
