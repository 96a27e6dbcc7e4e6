"""Gradients against central differences: honest ones agree in both precisions, borrowed ones do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.attacks.planted import (
    PIXELS,
    SEEDS,
    SHAPE,
    Change,
    Planted,
    linear,
    linear_cases,
    network,
    of,
    planted,
    right,
)
from xvision.attacks import check_rules as rules
from xvision.attacks.probes import differences, in_double


@pytest.mark.parametrize("seed", SEEDS)
def test_an_honest_gradient_is_the_slope_in_both_precisions(seed: int) -> None:
    cases = right(network(seed, 0.0), seed)
    exact, rough = differences(cases, in_double(cases)), differences(cases, None)
    assert exact.double.all()
    assert not rough.double.any()
    assert (exact.cosine > 0.99).mean() > 0.9
    assert rules.finite_differences(exact.cosine, exact.double).state == "clear"
    assert rules.finite_differences(rough.cosine, rough.double).state == "clear"


def _other_gradient(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    mirrored = images.flip(-1)
    return inner(images.detach() + mirrored - mirrored.detach())


def _straight_through(inner: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return inner(images + ((images * 8).round() / 8 - images).detach())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("change", [_other_gradient, _straight_through])
def test_the_gradient_of_another_function_is_seen(seed: int, change: Change) -> None:
    cases = planted(seed, change)
    for twin in (in_double(cases), None):
        found = differences(cases, twin)
        assert rules.finite_differences(found.cosine, found.double).state == "flagged"


def test_what_rounding_hides_is_not_measured() -> None:
    constant = of(
        lambda images: torch.ones(len(images), 1) + 0 * images.flatten(1)[:, :1],
        torch.rand(8, *SHAPE),
        torch.ones(8).long(),
    )
    assert np.isnan(differences(constant, None).cosine).all()
    steep = linear(torch.full((PIXELS,), 1e-7), bias=100.0)
    assert np.isnan(differences(of(steep, torch.rand(8, *SHAPE), torch.ones(8).long()), None).cosine).all()
    odd = of(lambda images: images.flatten(1)[:, :1] * torch.nan, torch.rand(8, *SHAPE), torch.ones(8).long())
    assert np.isnan(differences(odd, None).cosine).all()


def test_float64_is_a_copy_of_modules_that_can_be_run_in_it() -> None:
    honest = right(network(0, 0.0), 0)
    twin = in_double(honest)
    assert twin is not None
    assert twin(honest.pixels.double()).dtype == torch.float64
    assert all(each.dtype == torch.float32 for each in network(0, 0.0).parameters())
    torch.testing.assert_close(
        twin(honest.pixels.double()).float(), honest.forward(honest.pixels), atol=1e-4, rtol=1e-4
    )
    method = Planted(network(0, 0.0), lambda inner, images: inner(images)).answer
    assert in_double(of(method, honest.pixels, torch.ones(24).long())) is not None
    for refused in (lambda inner, images: inner(images.float()), lambda inner, images: inner(images).float()):
        assert in_double(planted(0, refused)) is None
    assert in_double(linear_cases(0)[1]) is None
