"""Artefacts of computed tomography against the sizes and shapes that they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.methods.corruptions.pictures import chest, flat, one, strength

WINDOW = 400.0


def hounsfield(kind: str, severity: int) -> float:
    return strength(kind, severity, "ct") / WINDOW


def radius_map(side: int) -> torch.Tensor:
    offsets = torch.arange(side) - (side - 1) / 2
    return (offsets[:, None] ** 2 + offsets[None] ** 2).sqrt()


@pytest.mark.parametrize("severity", [1, 2, 3])
@pytest.mark.parametrize("shape", [(64, 64), (224, 200), (45, 33)])
def test_dose_noise_has_the_stated_hounsfield_deviation_and_no_mean(severity: int, shape: tuple[int, int]) -> None:
    pixels = torch.full((24, 1, *shape), 0.5)
    noise = one(pixels, "ct_dose", severity, modality="ct") - pixels
    assert float(noise.std()) == pytest.approx(hounsfield("ct_dose", severity), rel=0.02)
    assert float(noise.mean(dim=(2, 3)).abs().max()) < 1e-3


def test_dose_noise_is_correlated_over_neighbours_and_as_strong_at_the_border() -> None:
    noise = (one(flat(0.5, 224, batch=16), "ct_dose", 2) - 0.5)[:, 0]
    beside = float(np.corrcoef(noise[..., 1:].flatten(), noise[..., :-1].flatten())[0, 1])
    assert 0.3 < beside < 0.7
    assert float(noise[:, 0].std()) == pytest.approx(float(noise[:, 112].std()), rel=0.05)
    power = torch.fft.rfft2(noise).abs().square().mean(dim=0)
    assert float(power[0, 1:3].mean()) < 0.2 * float(power[0, 18:25].mean())
    assert float(power[0, 90:].mean()) < 0.2 * float(power[0, 18:25].mean())


def test_rings_are_round_about_the_middle_and_as_strong_as_stated() -> None:
    side = 224
    rings = (one(flat(0.5, side, batch=64), "ct_rings", 3) - 0.5)[:, 0]
    near = radius_map(side).round().long()
    for case in rings[:4]:
        mean = (
            torch.zeros(int(near.max()) + 1).scatter_add_(0, near.flatten(), case.flatten()) / near.flatten().bincount()
        )
        assert float((case - mean[near]).square().mean()) < 0.15 * float(case.square().mean())
    straight = rings[:, side // 2, side // 2 :: 2]
    share = float((straight.abs() > 0.02 * hounsfield("ct_rings", 3)).float().mean())
    assert 0.15 < share < 0.45
    assert float(rings.std()) == pytest.approx(hounsfield("ct_rings", 3) * (0.2 * 2 / 3) ** 0.5, rel=0.1)


def test_metal_is_white_with_straight_rays_that_fade() -> None:
    side = 224
    images = one(flat(0.5, side, batch=12), "ct_metal", 2)[:, 0]
    offsets = torch.arange(side) - (side - 1) / 2
    for image in images:
        metal = torch.nonzero(image >= 1.0 - 1e-6).float()
        centre = metal.mean(dim=0)
        assert (abs(centre - (side - 1) / 2) < side / 4 + 2).all()
        distance = (
            (offsets[:, None] + (side - 1) / 2 - centre[0]) ** 2 + (offsets + (side - 1) / 2 - centre[1]) ** 2
        ).sqrt()
        assert float(image[distance < 7].min()) == 1.0
        ring = [image[(distance > low) & (distance < low + 3)] for low in (12, 40)]
        assert float(ring[0].std()) > 2.0 * float(ring[1].std())
    near = (images - 0.5)[:, ::3, ::3].abs()
    assert 0.0 < float(near.median()) < hounsfield("ct_metal", 2)


def test_cupping_is_deepest_in_the_middle_and_nothing_at_the_rim() -> None:
    change = (one(flat(0.8, 65), "ct_cupping", 4, modality="ct") - 0.8)[0, 0]
    assert float(change[32, 32]) == pytest.approx(-hounsfield("ct_cupping", 4), rel=1e-4)
    assert float(change[0, 32]) == pytest.approx(0.0, abs=0.02)
    assert float(change[0, 0]) == 0.0
    halfway = float(change[32, 32 - 16])
    assert halfway == pytest.approx(-0.75 * hounsfield("ct_cupping", 4), rel=0.03)


@pytest.mark.parametrize("severity", [1, 5])
def test_kernels_keep_flat_tissue_and_change_edges_in_opposite_ways(severity: int) -> None:
    for kind in ("ct_sharp_kernel", "ct_soft_kernel"):
        torch.testing.assert_close(one(flat(0.37), kind, severity), flat(0.37), rtol=0, atol=1e-6)
    edge = 0.4 + 0.2 * (torch.arange(224) > 111).float().expand(1, 1, 224, 224)
    sharp, soft = (one(edge, kind, severity)[0, 0, 0] for kind in ("ct_sharp_kernel", "ct_soft_kernel"))
    assert float(sharp.max()) > 0.61
    assert float(sharp.min()) < 0.39
    assert float(soft.max()) <= 0.6 + 1e-6
    assert float((soft - edge[0, 0, 0]).abs().max()) > 0.02


def test_artefacts_stay_apart_in_their_randomness() -> None:
    two = torch.cat([chest(), chest()])
    for kind in ("ct_dose", "ct_rings", "ct_metal"):
        result = one(two, kind, 3)
        assert not torch.equal(result[0], result[1])
