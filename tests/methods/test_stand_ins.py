"""What stands in an image's place: exactly what it says, for each case alone."""

from __future__ import annotations

import pytest
import torch

from xvision.errors import DataError
from xvision.methods.stand_ins import STAND_INS

KEYS = ["a", "b", "c"]


def pixels(side: int = 8) -> torch.Tensor:
    return torch.rand((3, 1, side, side), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", list(STAND_INS))
def test_none_depends_on_the_batch_and_all_stay_images(name: str) -> None:
    images = pixels()
    made = STAND_INS[name].make(images, KEYS, 1)
    assert made.shape == images.shape
    assert made.dtype == images.dtype
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    alone = STAND_INS[name].make(images[[2]], ["c"], 1)
    assert torch.equal(alone[0], made[2])
    assert STAND_INS[name].fixed == bool(torch.equal(made[0], made[1]))
    assert not torch.equal(made, images)
    assert torch.equal(images, pixels())  # the images themselves are left alone


def test_each_is_what_it_is_called() -> None:
    images = pixels()
    made = {name: each.make(images, KEYS, 1) for name, each in STAND_INS.items()}
    assert (made["black"].max(), made["white"].min()) == (0.0, 1.0)
    assert made["grey"].unique().tolist() == [0.5]
    assert torch.equal(made["inverted"] + images, torch.ones_like(images))
    assert torch.equal(made["upside_down"][:, :, 0], images[:, :, -1])
    assert torch.equal(made["patch_shuffled"].flatten(1).sort().values, images.flatten(1).sort().values)
    assert float(STAND_INS["noise"].make(pixels(64), KEYS, 1).std()) == pytest.approx(1 / 12**0.5, abs=0.01)


def test_noise_is_of_the_case_and_the_seed() -> None:
    noise = STAND_INS["noise"].make
    assert not torch.equal(noise(pixels(), KEYS, 1), noise(pixels(), KEYS, 2))
    assert torch.equal(noise(pixels(), KEYS[::-1], 1)[0], noise(pixels(), KEYS, 1)[2])
    with pytest.raises(DataError, match="one key"):
        noise(pixels(), KEYS[:2], 1)


def test_a_tiny_image_is_shuffled_as_finely_as_it_can_be() -> None:
    small = pixels(2)
    made = STAND_INS["patch_shuffled"].make(small, KEYS, 1)
    assert torch.equal(made.flatten(1).sort().values, small.flatten(1).sort().values)
