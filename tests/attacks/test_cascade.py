"""The cascade against exact answers: linear models of every kind of decision, a grid in two pixels, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xvision.attacks import probes
from xvision.attacks.balls import Norm, size, steepest, unit
from xvision.attacks.cascade import Outcome, cascade, clean_of, columns, first_breakers
from xvision.attacks.cases import Cases, budget_of, cases_of
from xvision.attacks.catalogue import ATTACKS, Effort, named
from xvision.attacks.goals import Goal, class_goal, finding_goal
from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.decision import Decision

EFFORT = Effort(draws=4, pgd_steps=20, steps=40, queries=40, width=16)
SHAPE = (1, 4, 5)
EPSILONS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


def linear(seed: int, classes: int) -> tuple[nn.Module, torch.Tensor]:
    """A linear model of so many logits and its weights (K, D)."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(math.prod(SHAPE), classes)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
        layer.bias.copy_(-0.5 * layer.weight.sum(dim=1) + 0.3 * torch.randn(classes, generator=generator))
    return nn.Sequential(nn.Flatten(), layer), layer.weight.detach()


def images_of(seed: int, count: int, *, spread: float = 1.0) -> torch.Tensor:
    """Images over the whole range, so that the box binds, or within ``spread`` of the middle, so that it does not."""
    return 0.5 + spread * (torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.5)


def attacked(model: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, goal: Goal, norm: Norm) -> Outcome:
    return run(cases_of(model, pixels, goal, keys=[f"case {place}" for place in range(len(pixels))], seed=1), norm)


def run(cases: Cases, norm: Norm, names: tuple[str, ...] = (), effort: Effort = EFFORT) -> Outcome:
    clean = clean_of(cases, width=16, gradients=True)
    ways = int((cases.goal.ways(clean.logits) > -torch.inf).sum(dim=1).max())
    chosen = [each for each in named(names) if each.refuse(norm, ways, gradients=True) is None]
    return cascade(cases, norm, EPSILONS, chosen, effort, clean)


def exact(ways: torch.Tensor, slopes: torch.Tensor, pixels: torch.Tensor, norm: Norm) -> np.ndarray:
    """(B,) smallest epsilon, inf where the box allows none. ways: (B, M) at the clean image. slopes: (B, M, D)."""
    best = np.full(len(pixels), np.inf)
    for way in range(ways.shape[1]):
        slope = slopes[:, way].double().view(-1, *SHAPE)
        low, high = torch.zeros(len(pixels), dtype=torch.float64), torch.ones(len(pixels), dtype=torch.float64)
        gap = -ways[:, way].double()
        box = (-pixels.double(), 1 - pixels.double())

        def gain(epsilon: torch.Tensor) -> torch.Tensor:
            moved = steepest(slope, *box, epsilon * unit(norm, SHAPE), norm)  # noqa: B023  # called within the loop only
            return (moved * slope).flatten(1).sum(dim=1)  # noqa: B023

        reachable = gain(high) >= gap
        for _ in range(60):
            middle = (low + high) / 2
            enough = gain(middle) >= gap
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        found = torch.where(reachable & torch.isfinite(gap), high, torch.full_like(high, torch.inf))
        best = np.minimum(best, found.numpy())
    return best


def check(outcome: Outcome, smallest: np.ndarray) -> None:
    """Every verdict is the exact one, but where an epsilon is within 1 % of the exact answer."""
    ladder = np.asarray(EPSILONS)
    judged = np.abs(smallest[:, None] / ladder[None, :] - 1) > 0.01
    right = outcome.attacked[:, None] & judged
    found = columns(outcome.smallest, EPSILONS, 1e-6)
    assert (found == (smallest[:, None] <= ladder[None, :]))[right].all()
    assert right.any(axis=0).sum() >= 3  # the budgets lie where cases break
    assert (outcome.smallest[outcome.attacked] >= smallest[outcome.attacked] * (1 - 1e-4) - 1e-6).all()


def class_case(
    classes: int, seed: int, spread: float
) -> tuple[nn.Module, torch.Tensor, Goal, torch.Tensor, torch.Tensor]:
    """Model, images, goal, ways at the clean images and the slope of every way, labels as the model decides."""
    model, weights = linear(seed, classes)
    pixels = images_of(seed + 1, 24, spread=spread)
    with torch.no_grad():
        logits = model(pixels)
    decision = Decision(1, 0.6, True) if classes <= 2 else Decision()
    if classes == 1:
        logits, weights = (
            torch.cat([torch.zeros_like(logits), logits], 1),
            torch.cat([torch.zeros_like(weights), weights]),
        )
    every = class_goal(torch.zeros(len(pixels), dtype=torch.int64), max(classes, 2), decision)
    labels = every.scores(logits).argmax(dim=1)
    goal = class_goal(labels, max(classes, 2), decision)
    return model, pixels, goal, goal.ways(logits), weights[None] - weights[labels][:, None]


@pytest.mark.parametrize("spread", [0.2, 1.0], ids=["free", "box binds"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_linear_models_are_broken_exactly_where_they_can_be(classes: int, norm: Norm, spread: float) -> None:
    model, pixels, goal, ways, slopes = class_case(classes, 11 * classes, spread)
    check(attacked(model, pixels, goal, norm), exact(ways, slopes, pixels, norm))


@pytest.mark.parametrize("classes", [2, 5])
def test_the_fewest_pixel_values_are_found_on_linear_models(classes: int) -> None:
    model, pixels, goal, ways, slopes = class_case(classes, 7, 1.0)
    smallest = exact(ways, slopes, pixels, "l0")
    outcome = attacked(model, pixels, goal, "l0")
    found = columns(outcome.smallest, EPSILONS, 0.0)
    expected = np.ceil(smallest[:, None] * 20 - 1e-6) / 20 <= np.asarray(EPSILONS)[None, :] + 1e-9
    assert (found <= expected)[outcome.attacked].all()
    assert (found == expected)[outcome.attacked].mean() > (0.99 if classes == 2 else 0.9)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_findings_are_broken_exactly_where_one_of_them_can_be(norm: Norm) -> None:
    model, weights = linear(5, 4)
    pixels = images_of(6, 24)
    thresholds = (0.3, 0.5, 0.6, 0.8)
    with torch.no_grad():
        present = torch.sigmoid(model(pixels)) >= torch.tensor(thresholds)
        goal = finding_goal(present, thresholds)
        ways = goal.ways(model(pixels))
    slopes = torch.where(present, -1.0, 1.0)[..., None] * weights[None]
    check(attacked(model, pixels, goal, norm), exact(ways, slopes, pixels, norm))


def test_grades_and_directions_are_broken_exactly_where_they_can_be() -> None:
    model, weights = linear(3, 5)
    pixels = images_of(4, 30)
    with torch.no_grad():
        logits = model(pixels)
    labels = logits.argmax(dim=1)
    for decision in (Decision(off_by=2), Decision(directions=("missed disease",), no_disease=0)):
        goal = class_goal(labels, 5, decision)
        scores = logits[:, :, None] - logits[:, None, :]  # way t against every answer kept
        smallest = _harder(goal.wrong, scores, weights, pixels)
        outcome = attacked(model, pixels, goal, "linf")
        found = columns(outcome.smallest, EPSILONS, 1e-6)
        judged = outcome.attacked[:, None] & (np.abs(smallest[:, None] / np.asarray(EPSILONS) - 1) > 0.05)
        expected = smallest[:, None] <= np.asarray(EPSILONS)[None, :]
        assert (found <= expected)[judged].all()
        assert (found == expected)[judged].mean() > 0.97
        assert not np.isfinite(outcome.smallest[~outcome.possible]).any()


def _harder(wrong: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor, pixels: torch.Tensor) -> np.ndarray:
    """A way that must pass several kept answers at once, by a linear program in L∞."""
    from scipy.optimize import linprog

    found = np.full(len(pixels), np.inf)
    for place, image in enumerate(pixels.flatten(1).double().numpy()):
        for way in np.flatnonzero(wrong[place].numpy()):
            kept = np.flatnonzero(~wrong[place].numpy())
            rows = [np.append((weights[one] - weights[way]).double().numpy(), 0.0) for one in kept]
            limits = [float(scores[place, way, one]) for one in kept]
            count = len(image)
            balls = [np.append(sign * np.eye(count)[pixel], -1.0) for pixel in range(count) for sign in (1, -1)]
            answer = linprog(
                np.append(np.zeros(count), 1.0), np.array(rows + balls), np.array(limits + [0.0] * (2 * count)),
                bounds=[(-value, 1 - value) for value in image] + [(0, None)],
            )  # fmt: skip
            if answer.success:
                found[place] = min(found[place], float(answer.fun))
    return found


class Curved(nn.Module):
    """Two pixels and a wavy border between the classes."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        first, second = pixels.flatten(1)[:, 0], pixels.flatten(1)[:, 1]
        height = second - 0.5 - 0.15 * torch.sin(9 * first) - 0.2 * (first - 0.5)
        return torch.stack([torch.zeros_like(height), 4 * height], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_curved_border_in_two_pixels_is_found_as_by_a_fine_grid(norm: Norm) -> None:
    model, pixels = Curved(), torch.rand(24, 1, 1, 2, generator=torch.Generator().manual_seed(2))
    labels = model(pixels).argmax(dim=1)
    cases = cases_of(model, pixels, class_goal(labels, 2, Decision()), keys=[str(n) for n in range(24)], seed=1)
    outcome = run(cases, norm, effort=replace(EFFORT, restarts=4))
    axis = torch.linspace(0, 1, 401)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    decided = model(grid).argmax(dim=1)
    for place in range(len(pixels)):
        other = grid[decided != labels[place]]
        nearest = float(size(other - pixels[place], norm).min()) / unit(norm, (1, 1, 2))
        for epsilon in EPSILONS:
            if abs(nearest - epsilon) > 0.01:
                assert (outcome.smallest[place] <= epsilon + 1e-6) == (nearest <= epsilon), (place, epsilon, nearest)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 9999),
    shape=st.sampled_from([(1, 3, 3), (3, 4, 2), (1, 1, 7), (3, 5, 5)]),
    norm=st.sampled_from(["linf", "l2", "l1", "l0"]),
    frozen=st.booleans(),
)
def test_every_example_is_in_its_ball_and_its_bounds(
    seed: int, shape: tuple[int, int, int], norm: Norm, frozen: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    with torch.no_grad():
        model[1].weight.normal_(generator=generator)
        model[1].bias.uniform_(-0.5, 0.5, generator=generator)
    pixels = torch.rand(6, *shape, generator=generator)
    labels = model(pixels).argmax(dim=1)
    cases = cases_of(model, pixels, class_goal(labels, 3, Decision()), keys=[str(n) for n in range(6)], seed=seed)
    if frozen:
        still = torch.rand(6, *shape, generator=generator) < 0.4
        cases = replace(cases, low=torch.where(still, pixels, 0.0), high=torch.where(still, pixels, 1.0))
    outcome = run(cases, norm)
    change = outcome.images - pixels
    broken = np.isfinite(outcome.smallest)
    assert (outcome.images >= cases.low - 1e-6).all()
    assert (outcome.images <= cases.high + 1e-6).all()
    sizes = size(change, norm).numpy() / unit(norm, shape)
    assert np.abs(sizes - outcome.smallest)[broken].max(initial=0) <= 1e-6
    assert (sizes[~broken] == 0).all()
    assert (outcome.smallest[broken] <= EPSILONS[-1] + 1e-6).all()
    assert cases.broken(outcome.images)[torch.from_numpy(broken)].all()


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(20, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(pixels)
        return logits


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_model_is_left_exactly_as_found(norm: Norm) -> None:
    torch.manual_seed(0)
    model = Watched().eval()
    model.layers[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [each.requires_grad for each in model.parameters()]
    pixels = images_of(1, 8)
    attacked(model, pixels, class_goal(model(pixels).argmax(dim=1), 2, Decision()), norm)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.requires_grad for each in model.parameters()] == flags
    assert all(each.grad is None for each in model.parameters())
    assert not model.training


def test_verdicts_do_not_depend_on_the_batch_or_the_order() -> None:
    model, pixels, goal, _, _ = class_case(3, 21, 1.0)
    keys = [f"case {place}" for place in range(len(pixels))]
    whole = run(cases_of(model, pixels, goal, keys=keys, seed=1), "linf").smallest
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    mixed = cases_of(model, pixels[order], goal.rows(order), keys=[keys[place] for place in order], seed=1)
    np.testing.assert_allclose(run(mixed, "linf").smallest, whole[order.numpy()], rtol=1e-4)
    single = [
        run(cases_of(model, pixels[[n]], goal.rows(torch.tensor([n])), keys=[keys[n]], seed=1), "linf").smallest[0]
        for n in range(5)
    ]
    np.testing.assert_allclose(single, whole[:5], rtol=1e-4)


def test_more_attacks_never_break_fewer() -> None:
    torch.manual_seed(3)
    model = Watched().eval()
    pixels = images_of(9, 16)
    cases = cases_of(
        model, pixels, class_goal(model(pixels).argmax(dim=1), 2, Decision()), keys=[str(n) for n in range(16)], seed=0
    )
    smallest = np.full(16, np.inf)
    for count in range(1, len(named(())) + 1):
        found = run(cases, "linf", tuple(each.name for each in named(())[:count])).smallest
        assert (found <= smallest).all()
        smallest = found


def test_logits_of_any_scale_give_the_same_verdicts() -> None:
    model, pixels, goal, _, _ = class_case(2, 4, 1.0)
    goal = class_goal(goal.wrong.int().argmin(dim=1), 2, Decision())
    plain = attacked(model, pixels, goal, "linf").smallest
    for scale in (1e-3, 1e3, 1e6):
        found = attacked(lambda images, scale=scale: scale * model(images), pixels, goal, "linf").smallest
        assert (columns(found, EPSILONS, 1e-6) == columns(plain, EPSILONS, 1e-6)).all()


def test_within_half_of_the_range_lies_the_grey_image() -> None:
    """Linf at 0.5: no more can stand than are decided as the mid-grey image is."""
    model, pixels, goal, _, _ = class_case(2, 8, 1.0)
    grey = torch.full_like(pixels, 0.5)
    outcome = attacked(model, pixels, goal, "linf")
    with torch.no_grad():
        other = goal.broken(model(grey)).numpy()
    assert (outcome.smallest[outcome.attacked & other] <= 0.64).all()


def test_a_constant_model_stands_at_every_budget_where_it_is_right() -> None:
    pixels = images_of(2, 6)
    goal = class_goal(torch.tensor([0, 0, 1, 1, 0, 1]), 2, Decision())
    outcome = attacked(
        lambda images: torch.tensor([[1.0, 0.0]]).repeat(len(images), 1) + 0 * images.sum(), pixels, goal, "linf"
    )
    assert outcome.clean_broken.tolist() == [False, False, True, True, False, True]
    assert not np.isfinite(outcome.smallest).any()
    assert outcome.flat.tolist() == [True, True, False, False, True, False]


def test_an_image_without_a_gradient_is_said_and_the_others_are_attacked() -> None:
    model, pixels, goal, _, _ = class_case(2, 5, 0.2)
    pixels[0] = 0.0

    def rooted(images: torch.Tensor) -> torch.Tensor:
        return model(images) + 0.0 * images.sqrt().flatten(1).sum(dim=1, keepdim=True)

    goal = class_goal(rooted(pixels).argmax(dim=1), 2, Decision())
    outcome = attacked(rooted, pixels, goal, "linf")
    assert outcome.nonfinite.tolist() == [True, *[False] * 23]
    assert np.isfinite(outcome.smallest[1:]).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_lies_beyond_the_largest_budget_is_not_reported(norm: Norm) -> None:
    """A minimal attack finds the smallest change wherever it is; half of these lie beyond."""
    model, pixels, goal, ways, slopes = class_case(2, 5, 0.2)
    distances = exact(ways, slopes, pixels, norm)
    most = float(np.median(distances))
    cases = cases_of(model, pixels, goal, keys=[str(place) for place in range(len(pixels))], seed=0)
    outcome = cascade(cases, norm, [most], named(("fab",)), EFFORT, clean_of(cases, width=16, gradients=True))
    found = np.isfinite(outcome.smallest)
    assert 0.3 < found.mean() < 0.7
    assert (outcome.smallest[found] <= most + 1e-6).all()


def test_a_model_that_fails_when_asked_for_a_gradient_is_attacked_without_one() -> None:
    model, pixels, goal, _, _ = class_case(2, 5, 0.2)

    def overwrites(images: torch.Tensor) -> torch.Tensor:
        images.mul_(1.0)  # which torch refuses for pixels that want a gradient
        return model(images)

    outcome = attacked(overwrites, pixels, goal, "linf")
    assert outcome.flat.all()
    assert np.isfinite(outcome.smallest).any()
    found = probes.slopes(cases_of(overwrites, pixels, goal, keys=[str(place) for place in range(len(pixels))], seed=0))
    assert found.cut.all()


@pytest.mark.parametrize("side", [7, 14, 28])
def test_a_budget_of_so_many_values_holds_so_many(side: int) -> None:
    """Shares of values times their number may round below the whole number that is meant."""
    for count in (1, 3, 5):
        budget = budget_of("l0", [count / side**2], torch.zeros(2, 1, side, side))
        assert budget.columns(torch.tensor([float(count), count + 1.0])).tolist() == [0, 1]


def test_which_attack_broke_a_case_first() -> None:
    sizes = {"noise": np.array([np.inf, 0.3, np.inf]), "pgd": np.array([0.1, 0.1, np.inf])}
    assert first_breakers(sizes, 0.2, 0.0).tolist() == ["pgd", "pgd", ""]
    assert first_breakers(sizes, 0.3, 0.0).tolist() == ["pgd", "noise", ""]


def test_bad_input_is_refused_in_a_sentence() -> None:
    model, pixels, goal, _, _ = class_case(2, 5, 0.2)
    with pytest.raises(DataError, match="finite and in"):
        cases_of(model, pixels + 1, goal, keys=["a"] * 24, seed=0)
    with pytest.raises(ConfigError, match="above 0"):
        budget_of("linf", [0.0, 0.1], pixels)
    with pytest.raises(ConfigError, match="rising"):
        budget_of("linf", [0.2, 0.1], pixels)
    cases = cases_of(lambda images: model(images) * math.nan, pixels, goal, keys=[str(n) for n in range(24)], seed=0)
    with pytest.raises(ModelError, match="NaN"):
        clean_of(cases, width=8, gradients=True)
    with pytest.raises(ConfigError, match="does not bound l1"):
        cascade(cases_of(model, pixels, goal, keys=[str(n) for n in range(24)], seed=0), "l1", [0.1], [ATTACKS["square"]], EFFORT,
                clean_of(cases_of(model, pixels, goal, keys=[str(n) for n in range(24)], seed=0), width=8, gradients=True))  # fmt: skip
    with pytest.raises(ConfigError, match="apgd_margin"):
        named(["apgd_margn"])
