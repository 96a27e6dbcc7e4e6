"""Faults of images on images whose fault is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xvision.errors import DataError
from xvision.methods.image_faults import faults, image_facts


def test_each_fault_is_named_and_good_images_have_none() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((5, 1, 20, 30))
    images[1] = 0.4
    images[2] = 0.5 + 0.005 * rng.standard_normal((1, 20, 30))
    images[3] = 0.0
    images[3, :, 5:10, 6:12] = rng.random((1, 5, 6))
    images[4, :, :2] = 0.0
    images[4, :, 9:12] = 0.0  # a flat band inside is no border
    facts = image_facts(torch.from_numpy(images))
    assert faults(facts).tolist() == ["", "constant", "almost uniform", "mostly border", ""]
    assert facts.content == pytest.approx([1.0, 0.0, 1.0, 5 / 20 * 6 / 30, 18 / 20])
    assert facts.deviation == pytest.approx(images.std(axis=(1, 2, 3)))


def test_a_grey_level_of_noise_is_constant_and_colour_is_averaged() -> None:
    rng = np.random.default_rng(0)
    noise = 0.5 + rng.integers(0, 2, (1, 1, 16, 16)) / 255
    assert faults(image_facts(torch.from_numpy(noise))).tolist() == ["constant"]
    colour = torch.from_numpy(np.stack([rng.random((16, 16))] * 3)[None])
    assert image_facts(colour).span == pytest.approx(image_facts(colour[:, :1]).span)
    assert faults(image_facts(torch.zeros(0, 1, 16, 16))).tolist() == []
    with pytest.raises(DataError, match=r"found pixels of shape \(3, 4, 4\)"):
        image_facts(torch.zeros(3, 4, 4))
