"""Slow shading against scipy's transform and closed forms; the display window keeps what is saturated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, optimize

from xvision.attacks.balls import size, unit
from xvision.attacks.cases import Cases, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.plausible import dct_matrix, in_window, low_frequency, low_pass
from xvision.attacks.search import pursue
from xvision.errors import ConfigError, DataError
from xvision.methods.decision import Decision

SHAPE = (1, 8, 12)
WEIGHTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(6))
CPU = torch.device("cpu")
ILL = Decision(1, 0.5, True, ("missed disease",))


def cases(pixels: torch.Tensor, bias: float = 0.0) -> Cases:
    """Ill cases of a linear model, missed where its logit falls below 0."""
    goal = class_goal(torch.ones(len(pixels), dtype=torch.int64), 2, ILL)

    def forward(points: torch.Tensor) -> torch.Tensor:
        return ((points - 0.5) * WEIGHTS).sum((1, 2, 3))[:, None] + bias

    return cases_of(forward, pixels, goal, keys=[str(place) for place in range(len(pixels))], seed=0)


def with_gaps(gaps: torch.Tensor) -> Cases:
    """Near grey, their logits the gaps (B,)."""
    return cases(0.5 + gaps[:, None, None, None] * WEIGHTS / WEIGHTS.square().sum())


@pytest.mark.parametrize("side", [1, 2, 7, 16])
def test_the_cosines_are_orthonormal_and_those_of_scipy(side: int) -> None:
    matrix = dct_matrix(side)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(side, dtype=torch.float64), atol=1e-12, rtol=0)
    values = np.random.default_rng(side).normal(size=side)
    np.testing.assert_allclose(matrix.numpy() @ values, fft.dct(values, norm="ortho"), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(height=st.integers(1, 9), width=st.integers(1, 9), share=st.floats(0.01, 1.0))
def test_a_low_pass_keeps_the_lowest_rows_and_columns_and_nothing_twice(height: int, width: int, share: float) -> None:
    basis = low_pass(height, width, share, CPU)
    images = torch.randn(2, 1, height, width, generator=torch.Generator().manual_seed(1))
    found = basis.projected(images)
    every = fft.dctn(images.double().numpy(), axes=(2, 3), norm="ortho")
    rows, columns = basis.coefficients(images).shape[2:]
    every[:, :, rows:], every[..., columns:] = 0.0, 0.0
    np.testing.assert_allclose(found.numpy(), fft.idctn(every, axes=(2, 3), norm="ortho"), atol=1e-5)
    torch.testing.assert_close(basis.projected(found), found, atol=1e-5, rtol=0)
    lengths = basis.coefficients(images).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, found.flatten(1).norm(dim=1), atol=1e-5, rtol=1e-5)
    assert basis.share == pytest.approx(rows * columns / (height * width))


def test_all_frequencies_are_the_image_itself() -> None:
    images = torch.rand(1, 3, 8, 12)
    torch.testing.assert_close(low_pass(8, 12, 1.0, CPU).projected(images), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("share", "rows", "columns"), [(0.35, 6, 12), (0.3, 5, 11), (1e-4, 1, 1), (1.0, 10, 20)])
def test_each_side_keeps_the_root_of_the_share_rounded_and_at_least_one(share: float, rows: int, columns: int) -> None:
    basis = low_pass(10, 20, share, CPU)
    assert (basis.rows.shape, basis.columns.shape) == ((rows, 10), (columns, 20))


def test_steps_are_two_and_a_half_radii_over_their_number() -> None:
    gain = 0.01 * unit("l2", SHAPE) * float(low_pass(8, 12, 0.25, CPU).projected(WEIGHTS).norm())
    found = low_frequency(with_gaps(gain * torch.tensor([0.2, 0.7, 0.99])), (0.01,), share=0.25, steps=10, width=4)
    assert found.looks.tolist() == [2, 4, 5]  # at 0, 0.25, 0.5, 0.75 and 1 radius


@pytest.mark.parametrize(("white", "sign"), [(True, 1.0), (False, -1.0)])
def test_an_image_at_the_end_of_its_range_is_shaded_away_from_there(white: bool, sign: float) -> None:
    """The mean decides, which shading moves by its root mean square at most."""
    pixels = torch.full((1, *SHAPE), float(white))

    def forward(points: torch.Tensor) -> torch.Tensor:
        return sign * (points.mean((1, 2, 3)) - float(white))[:, None] + 0.05

    subject = cases_of(forward, pixels, class_goal(torch.tensor([1]), 2, ILL), keys=["a"], seed=0)
    found = low_frequency(subject, (0.049, 0.051), share=0.1, steps=5, width=1)
    assert 0.05 * unit("l2", SHAPE) <= float(found.size) <= 0.0511 * unit("l2", SHAPE)


def test_shading_leaves_pixels_that_must_stay() -> None:
    mask = torch.zeros(SHAPE[1:], dtype=torch.bool)
    mask[2:6, 3:9] = True
    held = in_window(with_gaps(torch.tensor([0.02, 0.03])), mask)
    found = low_frequency(held, (0.1,), share=0.3, steps=10, width=2)
    assert torch.isfinite(found.size).all()
    assert torch.equal(found.images[..., ~mask], held.pixels[..., ~mask])


@pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
def test_a_linear_model_falls_by_the_radius_times_its_low_frequencies(share: float) -> None:
    epsilon = 0.01
    gain = epsilon * unit("l2", SHAPE) * float(low_pass(8, 12, share, CPU).projected(WEIGHTS).norm())
    gaps = gain * torch.tensor([0.5, 0.9, 0.99, 1.01, 1.1, 2.0])
    found = low_frequency(with_gaps(gaps), (epsilon,), share=share, steps=7, width=16)
    assert torch.isfinite(found.size).tolist() == [True, True, True, False, False, False]


def test_the_change_has_no_other_frequencies_and_keeps_its_budget() -> None:
    basis = low_pass(8, 12, 0.1, CPU)
    subject = with_gaps(torch.full((5,), 0.05))
    found = low_frequency(subject, (0.002, 0.01, 0.05), share=0.1, steps=10, width=3)
    assert torch.isfinite(found.size).all()
    change = found.images - subject.pixels
    torch.testing.assert_close(basis.projected(change), change, atol=1e-6, rtol=0)
    torch.testing.assert_close(size(change, "l2"), found.size)
    assert (found.size <= 0.05 * unit("l2", SHAPE) + 1e-5).all()


def test_where_the_box_binds_it_still_finds_nearly_the_best() -> None:
    """Half of the pixels are at the end of their range, in the direction in which they would have to move."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.where(torch.rand(1, *SHAPE, generator=generator) < 0.5, (WEIGHTS < 0).float()[None], 0.5)
    basis = low_pass(8, 12, 0.1, CPU)
    count, start = basis.coefficients(pixels).numel(), pixels[0]
    radius = 0.1 * unit("l2", SHAPE)

    def fall(flat: np.ndarray) -> float:
        change = basis.images(torch.from_numpy(flat).float().view(basis.coefficients(start).shape))
        return float((((start + change).clamp(0, 1) - start) * WEIGHTS).sum())

    inside = {"type": "ineq", "fun": lambda flat: radius**2 - flat @ flat}
    tries = [
        optimize.minimize(fall, draw, method="SLSQP", constraints=inside, options={"eps": 1e-3})
        for draw in np.random.default_rng(0).normal(size=(4, count)) * radius * 0.3
    ]
    best = min(each.fun for each in tries)
    clean = float(cases(pixels).forward(pixels))
    within, beyond = (
        low_frequency(cases(pixels, -clean - share * best), (0.1,), share=0.1, steps=60, width=4)
        for share in (0.97, 1.03)
    )
    assert torch.isfinite(within.size).all()
    assert not torch.isfinite(beyond.size).any()
    unbound = radius * float(basis.projected(WEIGHTS).norm())
    assert -best < 0.8 * unbound  # the box did bind
    assert float(within.images.min()) >= 0.0
    assert float(within.images.max()) <= 1.0


def test_a_larger_share_or_budget_never_breaks_less() -> None:
    gaps = torch.linspace(0.02, 2.0, 24)
    counts = [
        int(torch.isfinite(low_frequency(with_gaps(gaps), (epsilon,), share=share, steps=12, width=8).size).sum())
        for epsilon, share in ((0.01, 0.05), (0.01, 0.3), (0.02, 0.3), (0.02, 1.0))
    ]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]


def test_what_is_saturated_stays_whatever_attacks() -> None:
    pixels = torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(7))
    pixels[:, :, :3], pixels[:, :, 5:, :4] = 0.0, 1.0
    clean = cases(pixels).forward(pixels)[:, 0]
    held = in_window(cases(pixels, 0.01 - float(clean.min())))
    found = pursue(held, budget_of("linf", (0.5,), pixels), MarginPGD(steps=10), width=8)
    assert torch.isfinite(found.size).all()
    saturated = (held.pixels == 0.0) | (held.pixels == 1.0)
    assert saturated[:, :, :3].all()
    assert torch.equal(found.images[saturated], held.pixels[saturated])
    assert ((found.images != held.pixels) & ~saturated).any()


def test_a_mask_holds_what_it_does_not_name() -> None:
    pixels = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(8))
    pixels[0, 0, 4, 4] = 1.0
    mask = torch.zeros(1, 1, *SHAPE[1:], dtype=torch.bool)
    mask[..., 4:6, 4:6] = True
    held = in_window(cases(pixels), mask)
    free = held.low < held.high
    assert free.sum(dim=(1, 2, 3)).tolist() == [3, 4]
    assert not (free & ~mask).any()
    assert (held.low[free] == 0.0).all()
    assert (held.high[free] == 1.0).all()
    twice = in_window(held)
    assert torch.equal(twice.low, held.low)


def test_what_does_not_fit_is_refused() -> None:
    subject = with_gaps(torch.tensor([1.0]))
    with pytest.raises(DataError, match=r"a mask of shape \(3, 3\)"):
        in_window(subject, torch.ones(3, 3, dtype=torch.bool))
    for share in (0.0, 1.01):
        with pytest.raises(ConfigError, match=r"share of .* of the frequencies"):
            low_frequency(subject, (0.1,), share=share, steps=3, width=4)
    with pytest.raises(ConfigError, match="needs at least 1"):
        low_frequency(subject, (0.1,), share=0.1, steps=0, width=4)
