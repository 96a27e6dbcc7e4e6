"""What stands in an image's place: the same whatever the batch, and exactly what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.errors import ConfigError
from xvision.methods.image_inputs import border_only, centre_only, partners, patch_shuffled


def images(count: int, height: int, width: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(count))


def names(count: int) -> list[str]:
    return [f"case {place}" for place in range(count)]


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(6, 21), st.integers(6, 21), st.sampled_from([1, 3]))
def test_shuffled_patches_are_the_same_patches(grid: int, height: int, width: int, channels: int) -> None:
    pixels = images(3, height, width, channels)
    shuffled = patch_shuffled(pixels, names(3), grid=grid, seed=1)
    tall, wide = height // grid, width // grid

    def patches(image: torch.Tensor) -> list[bytes]:
        cut = [
            image[:, row * tall : (row + 1) * tall, column * wide : (column + 1) * wide]
            for row in range(grid)
            for column in range(grid)
        ]
        return sorted(patch.contiguous().numpy().tobytes() for patch in cut)

    for place in range(3):
        assert patches(shuffled[place]) == patches(pixels[place])
    assert torch.equal(shuffled[:, :, grid * tall :], pixels[:, :, grid * tall :])
    assert torch.equal(shuffled[:, :, :, grid * wide :], pixels[:, :, :, grid * wide :])
    alone = torch.cat([patch_shuffled(pixels[[row]], [f"case {row}"], grid=grid, seed=1) for row in (2, 0, 1)])
    assert torch.equal(alone, shuffled[[2, 0, 1]])


def test_orders_differ_between_cases_and_seeds() -> None:
    pixels = images(1, 16, 16).expand(20, 1, 16, 16)
    shuffled = patch_shuffled(pixels, names(20), grid=4, seed=0)
    assert len({image.numpy().tobytes() for image in shuffled}) == 20
    assert not torch.equal(shuffled, patch_shuffled(pixels, names(20), grid=4, seed=1))
    with pytest.raises(ConfigError, match="patches a side"):
        patch_shuffled(pixels, names(20), grid=17, seed=0)


def test_border_and_centre_share_the_image() -> None:
    pixels = images(2, 20, 30) + 0.1
    border, centre = border_only(pixels, 0.15), centre_only(pixels, 0.15)
    assert torch.equal(border + centre, pixels)
    assert int((centre[0, 0] > 0).sum()) == (20 - 6) * (30 - 6)
    with pytest.raises(ConfigError, match="border"):
        border_only(pixels, 0.5)


@given(st.integers(0, 50), st.sampled_from(["any", "same class", "other class"]))
def test_partners_are_other_patients_of_the_right_class_in_any_order(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    count = 17
    keys, patients = np.array(names(count)), np.array([f"p{place}" for place in rng.integers(0, 7, count)])
    labels = rng.integers(0, 3, count)
    found = partners(list(keys), patients, labels, kind=kind, seed=seed)
    for place, other in enumerate(found):
        fits = patients != patients[place]
        if kind != "any":
            fits &= (labels == labels[place]) == (kind == "same class")
        assert (other >= 0) == fits.any()
        assert other < 0 or fits[other]
    order = rng.permutation(count)
    again = partners(list(keys[order]), patients[order], labels[order], kind=kind, seed=seed)
    named = np.where(again < 0, "", keys[order][again])
    assert named.tolist() == np.where(found < 0, "", keys[found])[order].tolist()


def test_every_other_patient_may_be_drawn() -> None:
    keys = names(400)
    patients = np.array(["a", "b", "c", "d"])[np.arange(400) % 4]
    found = partners(keys, patients, np.zeros(400), kind="any", seed=3)
    seen = np.bincount(found % 4, minlength=4)
    assert seen.min() > 60
