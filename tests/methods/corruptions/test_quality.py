"""PSNR and SSIM against the definition and scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from tests.methods.corruptions.pictures import colourful, flat, one
from xvision.errors import DataError
from xvision.methods.corruptions import psnr, ssim


def test_psnr_is_the_decibel_of_the_mean_squared_change() -> None:
    clean = flat(0.5, batch=3)
    changed = clean + torch.tensor([0.0, 0.1, 0.01]).view(3, 1, 1, 1)
    np.testing.assert_allclose(psnr(clean, changed), [np.inf, 20.0, 40.0], atol=1e-4)
    with pytest.raises(DataError, match="they must agree"):
        psnr(clean, changed[:1])


@pytest.mark.parametrize("kind", ["gaussian_noise", "gaussian_blur", "contrast_down", "burnt_in_text"])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_scikit_image(kind: str, channels: int) -> None:
    clean = torch.cat([colourful(40), colourful(40).flip(3)])[:, :channels, :33]
    changed = one(clean, kind, 3)
    expected = [
        structural_similarity(before, after, data_range=1.0, channel_axis=0)
        for before, after in zip(clean.double().numpy(), changed.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(ssim(clean, changed), expected, atol=1e-6)


def test_ssim_is_one_for_the_same_image_and_needs_images_of_a_window() -> None:
    np.testing.assert_allclose(ssim(colourful(32), colourful(32)), 1.0, atol=1e-12)
    with pytest.raises(DataError, match="they must agree"):
        ssim(flat(0.5), flat(0.5, 32))
    with pytest.raises(DataError, match="the structural similarity needs 7 a side"):
        ssim(flat(0.5, 6), flat(0.5, 6))
