"""Compression, coarse grids and fewer levels against what they promise."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.methods.corruptions.pictures import chest, flat, one, strength


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_is_what_pillow_writes_and_reads(channels: int, severity: int) -> None:
    pixels = torch.rand(2, channels, 24, 40, generator=torch.Generator().manual_seed(0))
    levels = np.rint(255 * pixels.numpy()).astype(np.uint8)
    expected = []
    for case in levels:
        image = Image.fromarray(case[0] if channels == 1 else case.transpose(1, 2, 0))
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=int(strength("jpeg", severity)))
        read = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
        expected.append(read[None] if channels == 1 else read.transpose(2, 0, 1))
    np.testing.assert_array_equal(np.rint(255 * one(pixels, "jpeg", severity).numpy()), np.stack(expected))


def test_low_resolution_removes_what_the_coarse_grid_cannot_hold() -> None:
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    slow = 0.5 + 0.4 * torch.sin(torch.arange(64) / 64 * 2 * torch.pi).expand(1, 1, 64, 64)
    assert float(one(stripes, "low_resolution", 5)[..., 4:-4].std()) < 0.2 * float(stripes.std())
    assert float((one(slow, "low_resolution", 5) - slow)[..., 4:-4].abs().max()) < 0.01


@pytest.mark.parametrize("modality", ["natural", "histology", "ultrasound"])
def test_pixelate_is_pillows_box_filter_where_blocks_fit(modality: str) -> None:
    for severity in range(1, 6):
        side = 40
        count = strength("pixelate", severity, modality) * side
        if not count.is_integer() or side % count:
            continue
        pixels = chest(side)
        image = Image.fromarray(pixels[0, 0].numpy())
        small = image.resize((int(count), int(count)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((side, side), Image.Resampling.NEAREST))
        np.testing.assert_allclose(one(pixels, "pixelate", severity, modality=modality)[0, 0], expected, atol=1e-6)


def test_pixelate_keeps_the_mean_and_shows_blocks() -> None:
    result = one(chest(40), "pixelate", 5, modality="natural")
    assert float(result.mean()) == pytest.approx(float(chest(40).mean()), abs=1e-6)
    blocks = result[0, 0].unfold(0, 4, 4).unfold(1, 4, 4).flatten(2)
    assert float((blocks - blocks[..., :1]).abs().max()) < 1e-6
    assert float((one(flat(0.37, 45), "pixelate", 3) - 0.37).abs().max()) < 1e-6


def test_resizing_without_antialiasing_lets_fine_stripes_through_that_antialiasing_removes() -> None:
    stripes = (torch.arange(66) % 2).float().expand(1, 1, 66, 66)
    smooth, aliased = one(stripes, "low_resolution", 5), one(stripes, "resampling", 5)
    assert float(aliased[..., 6:-6].std()) > 2.0 * float(smooth[..., 6:-6].std())


@pytest.mark.parametrize("severity", range(1, 6))
def test_fewer_bits_leave_so_many_levels_black_and_white_included(severity: int) -> None:
    ramp = torch.linspace(0, 1, 4096).reshape(1, 1, 64, 64)
    result = one(ramp, "bit_depth", severity)
    levels = 2 ** int(strength("bit_depth", severity))
    np.testing.assert_allclose(result.unique(), np.arange(levels) / (levels - 1), atol=1e-6)
    assert float((result - ramp).abs().max()) <= 0.5 / (levels - 1) + 1e-6
