from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.training.augment import ROTATION, SCALE, SHIFT, TONE, augment


def images(count: int, channels: int = 1, height: int = 24, width: int = 24) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(5)), start=st.integers(0, 4), seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_an_image_does_not_depend_on_its_batch(order: list[int], start: int, seed: int, epoch: int) -> None:
    pixels, examples = images(5), [7, 3, 11, 0, 2]
    whole = augment(pixels, examples, seed=seed, epoch=epoch)
    chosen = order[: 5 - start]
    part = augment(pixels[chosen], [examples[index] for index in chosen], seed=seed, epoch=epoch)
    assert torch.equal(part, whole[chosen])


def test_images_change_with_seed_and_epoch_and_stay_in_range() -> None:
    pixels = images(3, channels=3, height=16, width=32)
    found = [augment(pixels, [0, 1, 2], seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for result in found:
        assert result.shape == pixels.shape
        assert result.dtype == torch.float32
        assert 0 <= float(result.min()) <= float(result.max()) <= 1
        assert not torch.allclose(result, pixels, atol=0.02)
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def centroids(pixels: torch.Tensor) -> np.ndarray:
    """Centre of mass (B, 2) of what is brighter than the middle, as row and column from the image's centre."""
    mass = np.clip(pixels[:, 0].numpy() - 0.5, 0, None)
    rows, columns = np.indices(mass.shape[1:])
    weights = mass.sum(axis=(1, 2))
    middle = (np.array(mass.shape[1:]) - 1) / 2
    return np.stack([(mass * axis).sum(axis=(1, 2)) / weights for axis in (rows, columns)], axis=1) - middle


def test_a_spot_keeps_its_side_and_moves_as_far_as_stated() -> None:
    """For a spot at distance r the shift, turn and scaling add up to at most the sum of their largest effects."""
    side, count = 64, 200
    rows, columns = np.indices((side, side))
    spot = np.exp(-((rows - 28) ** 2 + (columns - 14) ** 2) / 18).astype(np.float32)
    pixels = torch.from_numpy(spot)[None, None].expand(count, 1, side, side)
    before = centroids(pixels[:1])
    moved = centroids(augment(pixels, range(count), seed=0, epoch=0)) - before
    distance, reach = np.hypot(*before[0]), np.hypot(moved[:, 0], moved[:, 1])
    bound = (1 + SCALE) * (np.sqrt(2) * SHIFT * side + 2 * np.sin(ROTATION / 2) * distance) + SCALE * distance
    assert reach.max() <= bound + 0.5
    assert reach.max() > 0.5 * bound
    assert (before[:, 1] + moved[:, 1] < 0).all(), "a flip would bring the spot to the other side"
    assert np.abs(moved.mean(axis=0)).max() < 0.5


def test_a_flat_image_changes_in_tone_only() -> None:
    """Moving leaves it flat; brightness, contrast and gamma bound the new value by their three largest effects."""
    level = 0.6
    found = augment(torch.full((100, 1, 16, 16), level), range(100), seed=0, epoch=0).mean(dim=(1, 2, 3))
    low = (level - 0.1 * TONE - TONE) ** (1 + TONE)
    high = (level + 0.1 * TONE + TONE) ** (1 - TONE)
    assert low - 0.01 < float(found.min()) < level - 0.05
    assert level + 0.05 < float(found.max()) < high + 0.01


def test_a_wide_image_is_turned_without_being_sheared() -> None:
    """Rotation must know the aspect: a round spot stays round."""
    rows, columns = np.indices((32, 96))
    spot = np.exp(-((rows - 16) ** 2 + (columns - 48) ** 2) / 18).astype(np.float32)
    pixels = torch.from_numpy(spot)[None, None].expand(50, 1, 32, 96)
    for image in augment(pixels, range(50), seed=1, epoch=0)[:, 0].numpy():
        mass = np.clip(image - 0.4, 0, None)
        points = np.stack([rows.ravel(), columns.ravel()])
        large, small = np.linalg.eigvalsh(np.cov(points, aweights=mass.ravel()))[::-1]
        assert large / small < 1.15


def test_a_flip_mirrors_half_of_the_images_and_only_when_asked() -> None:
    """A spot on the left ends on the right exactly where the flip was drawn."""
    side, count = 64, 400
    rows, columns = np.indices((side, side))
    spot = np.exp(-((rows - 28) ** 2 + (columns - 14) ** 2) / 18).astype(np.float32)
    pixels = torch.from_numpy(spot)[None, None].expand(count, 1, side, side)
    right = centroids(augment(pixels, range(count), seed=0, epoch=0, flip=True))[:, 1] > 0
    assert abs(right.mean() - 0.5) < 0.1
    plain, flipped = (augment(pixels, range(count), seed=0, epoch=0, flip=flip) for flip in (False, True))
    assert torch.equal(plain[torch.from_numpy(~right)], flipped[torch.from_numpy(~right)])
