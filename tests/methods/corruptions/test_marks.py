"""Letters, borders and lines against what they promise."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.corruptions.pictures import flat, one, strength


@pytest.mark.parametrize("severity", range(1, 6))
def test_the_side_marker_is_a_white_r_in_the_upper_left(severity: int) -> None:
    result = one(flat(0.0, 224), "burnt_in_text", severity)[0, 0]
    rows, columns = torch.nonzero(result > 0.5, as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == round(strength("burnt_in_text", severity) * 224)
    assert int(rows.max()) < 112
    assert int(columns.max()) < 112
    letter = result[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
    height, width = letter.shape
    assert float(letter[:, 1].min()) == 1.0
    assert float(letter[1, width // 2]) == 1.0
    assert float(letter[round(0.25 * height), width // 2]) == 0.0
    assert float(letter[-1, -2]) == 1.0
    assert float(letter[-2, width // 2]) == 0.0


@pytest.mark.parametrize("severity", range(1, 6))
def test_collimation_closes_the_stated_border_and_nothing_else(severity: int) -> None:
    result = one(flat(1.0, 100), "collimation", severity)[0, 0]
    width = 100 * strength("collimation", severity)
    assert float(result.sum()) == pytest.approx((100 - 2 * width) ** 2, rel=1e-5)
    closed, opened = math.floor(width), math.ceil(width)
    assert float(result[:closed].sum() + result[:, -closed:].sum()) == 0.0
    assert (result[opened : 100 - opened, opened : 100 - opened] == 1.0).all()


@pytest.mark.parametrize("side", [64, 224])
def test_grid_lines_are_straight_regular_and_as_deep_as_stated(side: int) -> None:
    result = one(flat(0.8, side, batch=12), "grid_lines", 4)[:, 0]
    upright = (result == result[:, :1]).all(dim=2).all(dim=1)
    lying = (result == result[:, :, :1]).all(dim=2).all(dim=1)
    assert (upright ^ lying).all()
    assert upright.any()
    assert lying.any()
    assert float(result.max()) <= 0.8
    assert float(result.min()) == pytest.approx(0.8 * (1.0 - strength("grid_lines", 4)), abs=0.8 * 0.02)
    profiles = torch.where(upright[:, None], result[:, 0], result[:, :, 0])
    found = torch.fft.rfft(profiles - profiles.mean(dim=1, keepdim=True)).abs().argmax(dim=1)
    assert set(found.tolist()) <= {round(side / max(3.0, 8 * side / 224)) + step for step in (-1, 0, 1)}
