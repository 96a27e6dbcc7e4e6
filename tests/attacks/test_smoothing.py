"""Randomised smoothing against published values, a linear model whose radius is known, and simulated coverage."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from xvision.attacks import balls
from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.goals import class_goal, finding_goal
from xvision.attacks.smoothing import Smoothing, certified_radius, certify, lower_share, smoothed_attack
from xvision.errors import ConfigError
from xvision.methods.decision import Decision

SIDE = 6
BINARY = Decision(1, 0.5)


def linear(count: int, *, seed: int = 0, scale: float = 1.0, threshold: float = 0.5) -> tuple[Cases, np.ndarray]:
    """Cases of a linear log-odds that are decided rightly, and the exact L2 distance of each from the boundary."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(SIDE * SIDE, generator=generator)
    pixels = 0.3 + 0.4 * torch.rand(count, 1, SIDE, SIDE, generator=generator)
    shift = -(pixels.flatten(1) @ weights).mean()
    logit = math.log(threshold / (1 - threshold))

    def forward(images: torch.Tensor) -> torch.Tensor:
        return scale * (images.flatten(1) @ weights + shift)[:, None]

    odds = forward(pixels)[:, 0] - logit
    goal = class_goal((odds >= 0).long(), 2, Decision(1, threshold))
    keys = [f"case {place}" for place in range(count)]
    return cases_of(forward, pixels, goal, keys=keys, seed=5), (odds.abs() / (scale * weights.norm())).double().numpy()


def fine(smoothing: Smoothing) -> tuple[float, ...]:
    """Radii so close to each other that certificates are made as large as the draws allow."""
    return tuple(np.linspace(0, smoothing.ceiling, 300).tolist())


@pytest.mark.parametrize(
    ("draws", "ceiling"), [(100, 1.50048), (1_000, 2.46326), (10_000, 3.19858), (100_000, 3.81146)]
)
def test_ceilings_where_every_vote_agrees(draws: int, ceiling: float) -> None:
    assert certified_radius(np.array([draws]), draws, 1.0, 0.001)[0] == pytest.approx(ceiling, abs=5e-6)
    assert certified_radius(np.array([draws]), draws, 0.25, 0.001)[0] == pytest.approx(ceiling / 4, abs=5e-6)


def test_a_published_value_and_abstention() -> None:
    assert lower_share(np.array([990]), 1000, 0.001)[0] == pytest.approx(0.976036, abs=5e-7)
    assert certified_radius(np.array([990]), 1000, 1.0, 0.001)[0] == pytest.approx(1.97801, abs=5e-6)
    assert certified_radius(np.array([0, 500, 540]), 1000, 1.0, 0.001).tolist() == [0.0, 0.0, 0.0]
    assert certified_radius(np.array([560]), 1000, 1.0, 0.001)[0] > 0


@given(draws=st.integers(1, 400), share=st.floats(0, 1), alpha=st.floats(1e-4, 0.4))
def test_the_limit_is_where_so_many_votes_have_the_chance_alpha(draws: int, share: float, alpha: float) -> None:
    votes = round(share * draws)
    low = lower_share(np.array([votes]), draws, alpha)[0]
    assert 0 <= low <= votes / draws
    if votes:
        assert binom.sf(votes - 1, draws, low) == pytest.approx(alpha, rel=1e-6)


@given(draws=st.integers(1, 200_000))
def test_looks_double_up_to_the_draws_and_share_alpha(draws: int) -> None:
    smoothing = Smoothing(0.5, draws)
    looks = smoothing.looks
    assert looks[-1] == draws
    assert looks[0] <= 2 * 100
    assert all(low < high <= 2 * low for low, high in itertools.pairwise(looks))
    assert smoothing.level * len(looks) == pytest.approx(0.001)


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
def test_a_certificate_never_exceeds_the_distance_of_a_linear_model_and_comes_close_to_it(sigma: float) -> None:
    cases, true = linear(30)
    settings = Smoothing(sigma, 4000, width=2000)
    found = certify(cases, settings, fine(settings))
    assert (found.radius <= true).all()
    certain = ~found.abstained
    assert found.kept[certain].all()
    within = certain & (true < 2 * sigma)  # farther than the ceiling nothing comes close
    assert within.any()
    assert (true[within] - found.radius[within]).max() < 0.25 * sigma
    assert (found.draws == 4000)[within].all()


def test_a_threshold_and_a_scale_of_the_logits_are_taken_into_account() -> None:
    cases, true = linear(20, threshold=0.7, scale=300.0)
    settings = Smoothing(0.1, 2000, width=2000)
    found = certify(cases, settings, fine(settings))
    close = true < 0.2
    assert (found.radius <= true).all()
    assert close.any()
    assert (true - found.radius)[close].max() < 0.03


def test_noise_is_not_clipped() -> None:
    # At a white image all clipped noise points downwards: the vote would turn although the boundary is above 1.
    pixels = torch.ones(1, 1, SIDE, SIDE)
    goal = class_goal(torch.tensor([1]), 2, BINARY)
    inside = cases_of(lambda images: images.mean((1, 2, 3))[:, None] - 0.98, pixels, goal, keys=["a"], seed=0)
    found = certify(inside, Smoothing(0.5, 2000), (0.01 * SIDE, 0.02 * SIDE))
    share = norm.cdf(0.02 * SIDE / 0.5)
    assert found.votes[0] / found.draws[0] == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))


def test_a_case_at_the_boundary_abstains_and_a_wrong_one_is_certified_as_broken() -> None:
    cases, _ = linear(2)
    turned = replace(cases, goal=replace(cases.goal, wrong=~cases.goal.wrong))
    found = certify(turned, Smoothing(0.01, 400), ())
    assert not found.kept.any()
    assert not found.abstained.any()
    level = cases_of(
        lambda images: images.mean((1, 2, 3))[:, None] - 0.5,
        torch.full((1, 1, SIDE, SIDE), 0.5), class_goal(torch.tensor([1]), 2, BINARY), keys=["a"], seed=0,
    )  # fmt: skip
    even = certify(level, Smoothing(0.5, 4000, width=1000), ())
    assert even.abstained.all()
    assert even.radius.tolist() == [0.0]


def test_a_logit_that_is_not_a_number_is_a_vote_for_neither_side() -> None:
    def forward(images: torch.Tensor) -> torch.Tensor:
        value = images.mean((1, 2, 3))[:, None]
        return torch.where(value > 0.5, torch.full_like(value, torch.nan), value + 10)

    cases = cases_of(
        forward, torch.full((1, 1, SIDE, SIDE), 0.5), class_goal(torch.tensor([1]), 2, BINARY), keys=["a"], seed=0
    )
    found = certify(cases, Smoothing(0.5, 1000), ())
    assert found.abstained.all()
    assert abs(found.votes[0] / found.draws[0] - 0.5) < 0.1


def test_several_classes_and_several_findings_are_voted_on_by_what_counts() -> None:
    pixels = torch.full((2, 1, SIDE, SIDE), 0.5)

    def grades(images: torch.Tensor) -> torch.Tensor:
        """Grade 0 below a mean of 0.49, 1 up to 0.9, then 2."""
        value = images.mean((1, 2, 3))
        return torch.stack([0.49 - value, torch.zeros_like(value), value - 0.9], dim=1)

    exact = class_goal(torch.tensor([1, 1]), 3, Decision())
    far = class_goal(torch.tensor([1, 2]), 3, Decision(off_by=2))
    settings = Smoothing(0.1, 2000, width=1000)
    cases = cases_of(grades, pixels, exact, keys=["a", "b"], seed=1)
    close = certify(cases, settings, fine(settings))
    assert close.radius.max() <= 0.01 * SIDE
    assert close.radius.min() > 0
    # From grade 2 the wrong grade is 0 alone, from grade 1 none: it is never broken.
    apart = certify(replace(cases, goal=far), settings, fine(settings))
    assert apart.radius[0] == pytest.approx(settings.ceiling)
    assert apart.radius[1] == pytest.approx(close.radius[1], abs=0.01)
    assert apart.kept.all()
    findings = finding_goal(torch.tensor([[True, False], [True, False]]), (0.5, 0.5), chosen=(0,))
    several = cases_of(
        lambda images: torch.stack([images.mean((1, 2, 3)) - 0.45, images.mean((1, 2, 3)) + 5], dim=1),
        pixels, findings, keys=["a", "b"], seed=1,
    )  # fmt: skip
    found = certify(several, settings, fine(settings))
    assert (found.radius <= 0.05 * SIDE).all()
    assert (found.radius > 0.038 * SIDE).all()


def test_batches_and_order_change_nothing_and_the_seed_does() -> None:
    cases, _ = linear(9)
    whole = certify(cases, Smoothing(0.2, 150, width=64), (0.1,))
    backwards = torch.arange(8, -1, -1)
    turned = certify(cases.rows(backwards), Smoothing(0.2, 150, width=7), (0.1,))
    for one, other in zip(whole, turned, strict=True):
        assert one.tolist() == other[::-1].tolist()
    alone = certify(cases.rows(torch.tensor([4])), Smoothing(0.2, 150, width=1000), (0.1,))
    assert alone.votes[0] == whole.votes[4]
    other = certify(replace(cases, seed=6), Smoothing(0.2, 150), (0.1,))
    assert other.votes.tolist() != whole.votes.tolist()


def test_draws_of_selection_and_votes_and_of_two_looks_are_different() -> None:
    seen: list[torch.Tensor] = []

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.clone())
        return images.mean((1, 2, 3))[:, None] - 0.5

    cases = cases_of(
        forward, torch.full((1, 1, SIDE, SIDE), 0.5), class_goal(torch.tensor([1]), 2, BINARY), keys=["a"], seed=0
    )
    certify(cases, Smoothing(0.3, 390, selection=50, width=33), (0.1,))
    drawn = torch.cat(seen).flatten(1)
    assert max(len(batch) for batch in seen) <= 33
    assert len(drawn) == 50 + 390
    assert len(torch.unique(drawn, dim=0)) == len(drawn)
    assert ((drawn - 0.5) / 0.3).std().item() == pytest.approx(1.0, abs=0.03)


def test_a_decided_case_leaves_early_and_an_undecided_one_stays() -> None:
    cases, true = linear(20)
    far, near = int(true.argmax()), int(true.argmin())
    settings = Smoothing(0.05, 10_000, width=2000)
    asked = certify(cases, settings, (0.02,))
    assert asked.radius[far] >= 0.02  # certified
    assert asked.draws[far] == settings.looks[0]
    assert true[near] < 0.02
    refused = certify(cases.rows(torch.tensor([near])), settings, (0.1,))
    assert refused.draws[0] < 10_000  # far out of reach: not all draws are spent on the refusal
    # With another seed: at a share of 0.56 a hundred draws may choose the wrong side, which then gives up early.
    undecided = certify(replace(cases.rows(torch.tensor([near])), seed=6), settings, (float(true[near]),))
    assert undecided.draws[0] == 10_000
    beyond = certify(cases.rows(torch.tensor([far])), settings, (1.01 * settings.ceiling,))
    assert beyond.draws[0] == settings.looks[0]  # no number of votes reaches it


def test_a_certificate_once_made_is_kept() -> None:
    cases, _ = linear(60)
    settings = Smoothing(0.3, 1600, width=2000)
    early, late = certify(cases, settings, ()), certify(cases, settings, fine(settings))
    assert (late.draws >= early.draws).all()
    assert (late.low >= early.low).all()
    assert (late.draws > early.draws).any()


def test_stopping_when_it_suits_does_not_raise_the_error() -> None:
    # 3,000 repeated cases whose true radius is just below what is asked about: stopping at the first success is what could go
    # wrong, and does where every look keeps alpha for itself.
    alpha, repeats, sigma = 0.1, 3000, 1.0
    true = 0.4
    pixels = torch.full((repeats, 1, 1, 1), 0.5)
    goal = class_goal(torch.ones(repeats, dtype=torch.int64), 2, BINARY)
    keys = [f"repeat {place}" for place in range(repeats)]
    cases = cases_of(lambda images: images.flatten(1) - 0.5 + true, pixels, goal, keys=keys, seed=11)
    settings = Smoothing(sigma, 1600, selection=20, alpha=alpha, width=20_000)
    found = certify(cases, settings, (true + 1e-6,))
    errors = int((found.radius > true).sum())
    assert errors <= binom.ppf(0.999, repeats, alpha)
    assert errors > 0  # the limit is not idle


def test_certificate_and_attack_enclose_the_truth() -> None:
    cases, true = linear(24)
    for sigma in (0.05, 0.25):
        settings = Smoothing(sigma, 1000, width=512)
        found = certify(cases, settings, fine(settings))
        broken = smoothed_attack(cases, settings, found.radius, steps=10)
        assert (found.radius <= true).all()
        assert (broken.size >= true - 1e-6).all()
        reached = np.isfinite(broken.size)
        assert reached.mean() > 0.8
        assert np.median(broken.size[reached] - true[reached]) < 0.6 * sigma
        change = broken.images - cases.pixels
        sizes = balls.size(change, "l2").numpy()
        assert np.where(reached, broken.size, 0.0) == pytest.approx(sizes, abs=1e-9)
        assert broken.images.min() >= 0
        assert broken.images.max() <= 1


def curved(count: int = 16) -> Cases:
    """A small network with two hidden layers, decided as it decides."""
    generator = torch.Generator().manual_seed(2)
    first = torch.randn(SIDE * SIDE, 16, generator=generator) / 3
    second = torch.randn(16, 3, generator=generator)
    pixels = torch.rand(count, 1, SIDE, SIDE, generator=generator)

    def forward(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = torch.tanh((images.flatten(1) - 0.5) @ first) @ second
        return logits

    goal = class_goal(forward(pixels).argmax(dim=1), 3, Decision())
    return cases_of(forward, pixels, goal, keys=[str(place) for place in range(count)], seed=3)


def test_on_a_curved_model_no_break_is_smaller_than_its_certificate() -> None:
    cases = curved()
    settings = Smoothing(0.15, 1000, width=256)
    found = certify(cases, settings, fine(settings))
    broken = smoothed_attack(cases, settings, found.radius, steps=12)
    reached = np.isfinite(broken.size)
    assert reached.mean() > 0.7
    assert (broken.size >= found.radius).all()
    # An independent vote at the broken images agrees.
    again = certify(replace(cases, pixels=broken.images, seed=99), settings, ())
    assert not (again.kept & ~again.abstained)[reached].any()


def test_the_attack_depends_on_a_case_alone_and_leaves_the_box_closed() -> None:
    cases = curved(7)
    held = replace(cases, low=cases.pixels.clone())  # pixels may only become brighter
    settings = Smoothing(0.1, 200, width=64)
    known = np.zeros(7)
    whole = smoothed_attack(held, settings, known, steps=6, samples=4)
    parts = [
        smoothed_attack(held.rows(torch.tensor(rows)), replace(settings, width=9), known[: len(rows)], steps=6, samples=4)
        for rows in ([0, 1], [2, 3, 4, 5, 6])
    ]  # fmt: skip
    assert np.concatenate([part.size for part in parts]) == pytest.approx(whole.size, rel=1e-4)
    assert (whole.images >= held.pixels - 1e-6).all()
    assert np.isfinite(whole.size).any()
    assert (whole.looks >= 6 * 4).all()


def test_trying_three_sizes_does_not_raise_the_error() -> None:
    """A coin toss at every image is broken nowhere; three tries with all of alpha each would say so far too often."""
    alpha, repeats = 0.1, 1500

    def tossed(images: torch.Tensor) -> torch.Tensor:
        values = images.flatten(1)
        return torch.sin(1000.0 * values.detach()) - 0.001 * values

    pixels = torch.full((repeats, 1, 1, 1), 0.5)
    goal = class_goal(torch.ones(repeats, dtype=torch.int64), 2, BINARY)
    cases = cases_of(tossed, pixels, goal, keys=[f"repeat {place}" for place in range(repeats)], seed=4)
    found = smoothed_attack(cases, Smoothing(0.02, 200, alpha=alpha, width=20_000), np.zeros(repeats), steps=8)
    errors = int(np.isfinite(found.size).sum())
    assert 0 < errors <= binom.ppf(0.999, repeats, alpha)


def test_a_model_without_slope_is_not_broken_and_not_an_error() -> None:
    cases = cases_of(
        lambda images: torch.ones(len(images), 1),
        torch.rand(3, 1, SIDE, SIDE), class_goal(torch.ones(3, dtype=torch.int64), 2, BINARY), keys=list("abc"), seed=0,
    )  # fmt: skip
    broken = smoothed_attack(cases, Smoothing(0.1, 100), np.full(3, 0.1), steps=4)
    assert np.isinf(broken.size).all()
    assert torch.equal(broken.images, cases.pixels)


def test_what_cannot_be_asked_is_refused() -> None:
    cases, _ = linear(2)
    for wrong in ({"sigma": 0.0}, {"sigma": math.inf}, {"draws": 0}, {"selection": 0}, {"alpha": 0.5}, {"width": 0}):
        with pytest.raises(ConfigError, match="smoothing"):
            Smoothing(**{"sigma": 0.1, **wrong})
    with pytest.raises(ConfigError, match="radii"):
        certify(cases, Smoothing(0.1), (-1.0,))
    confirmed = replace(cases, confirm=lambda images, goal: torch.ones(len(images), dtype=torch.bool))
    with pytest.raises(ConfigError, match="confirm"):
        certify(confirmed, Smoothing(0.1), ())
    with pytest.raises(ConfigError, match="steps"):
        smoothed_attack(cases, Smoothing(0.1), np.zeros(2), steps=1)
