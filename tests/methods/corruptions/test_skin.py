"""Hair, rulers, ink, bubbles and corners against their stated sizes and numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.measure import label

from tests.methods.corruptions import colour_laws as laws
from xvision.methods.corruptions import drawing, skin

KINDS = laws.kinds_by_name(skin.KINDS)
SKIN = (0.85, 0.68, 0.60)


@pytest.mark.parametrize("share", [1.0, 0.95, 0.9, 0.5])
@pytest.mark.parametrize("shape", [(100, 100), (100, 160), (161, 101)])
def test_the_open_circle_has_the_stated_radius(shape: tuple[int, int], share: float) -> None:
    result = KINDS["black_corner"].apply(torch.ones(1, 1, *shape), share, [0])[0, 0].clamp(0.0, 1.0)
    reach = share * min(shape) / 2.0
    assert float(result.sum()) == pytest.approx(math.pi * reach**2, rel=0.002)
    y, x = np.indices(shape) + 0.5
    distance = np.hypot(y - shape[0] / 2.0, x - shape[1] / 2.0)
    assert (result.numpy()[distance < reach - 0.5] == 1.0).all()
    assert (result.numpy()[distance > reach + 0.5] == 0.0).all()


def test_a_circle_larger_than_the_side_cuts_the_corners_only() -> None:
    side, share = 200, 1.1
    half, reach = side / 2.0, share * side / 2.0
    result = KINDS["black_corner"].apply(torch.ones(1, 1, side, side), share, [0])[0, 0].clamp(0.0, 1.0)
    segment = reach**2 * math.acos(half / reach) - half * math.sqrt(reach**2 - half**2)
    assert float(result.sum()) == pytest.approx(math.pi * reach**2 - 4.0 * segment, rel=0.001)


@pytest.mark.parametrize("loss", [0.2, 0.85])
def test_the_vignette_takes_the_stated_share_in_the_corner(loss: float) -> None:
    result = KINDS["vignette"].apply(torch.ones(1, 1, 301, 201), loss, [0])[0, 0]
    assert float(result[150, 100]) == 1.0
    assert float(result[0, 0]) == pytest.approx(1.0 - loss, abs=0.01)
    assert float(result[0, 100]) == pytest.approx(1.0 - loss * 301**2 / (301**2 + 201**2), abs=0.01)


@pytest.mark.parametrize("length", [0.05, 0.17])
def test_the_ruler_lies_along_one_edge_with_ticks_of_the_stated_size(length: float) -> None:
    side = 224
    edges = set()
    for seed in range(24):
        darker = 1.0 - KINDS["ruler"].apply(torch.ones(1, 1, side, side), length, [seed])[0, 0]
        cover = darker / (1.0 - 0.06114)  # the luma of the ink
        places = {"up": cover[0], "down": cover[-1], "left": cover[:, 0], "right": cover[:, -1]}
        edge = max(places, key=lambda name: float(places[name].sum()))
        edges.add(edge)
        ticks = places[edge].numpy()
        assert label(ticks > 0.2).max() in (32, 33)  # 224 / 7, and one that the border cuts
        assert float(places[edge].sum()) == pytest.approx(1.5 * 32, abs=1.5)
        assert float(cover.sum()) == pytest.approx(1.5 * 32 * length * side, rel=0.04)
    assert edges == {"up", "down", "left", "right"}


def test_hairs_are_dark_thin_and_as_many_as_stated() -> None:
    side = 224
    lengths = []
    for seed in range(30):
        one = KINDS["hair"].apply(laws.flat((1.0,), side, side), 1, [seed])[0, 0]
        cover = (1.0 - one) / (1.0 - one).max()
        assert float(one.min()) == pytest.approx(1.0 - 0.9 * (1.0 - 0.0997), abs=0.02)
        assert label(cover.numpy() > 0.5, connectivity=2).max() == 1
        lengths.append(float(cover.sum()) / 2.0)
    assert max(lengths) < 1.35 * side
    assert np.mean(lengths) > 0.55 * side
    few, many = (KINDS["hair"].apply(laws.flat(SKIN, side, side), count, [3])[0] for count in (6, 16))
    assert bool((many <= few + 1e-6).all())
    assert float((many < few - 0.1).float().sum()) > 0.0


@pytest.mark.parametrize("turn", [0.0, 0.25, 0.6])
def test_a_stroke_runs_from_its_start_over_its_bend_to_its_end(turn: float) -> None:
    start, length, bend = np.array([110.0, 112.0]), 80.0, 0.25
    across, down = math.cos(2.0 * math.pi * turn), math.sin(2.0 * math.pi * turn)
    shape = (torch.tensor(start)[None, None], torch.tensor([[turn]]), torch.tensor([[length]]), torch.tensor([[bend]]))
    cover = drawing.strokes(torch.zeros(1, 1, 224, 224), *shape, 4.0)[0, 0]
    for along, aside in ((0.0, 0.0), (0.25, 0.75 * bend), (0.5, bend), (1.0, 0.0)):
        row, column = start + length * (along * np.array([down, across]) + aside * np.array([across, -down]))
        assert float(cover[int(row), int(column)]) > 0.9
    row, column = start + 0.5 * length * np.array([down, across])
    assert float(cover[int(row), int(column)]) == 0.0
    u = np.linspace(0.0, 1.0, 2001)
    arc = length * np.hypot(np.diff(u), np.diff(4.0 * bend * u * (1.0 - u))).sum()
    assert float(cover.sum()) == pytest.approx(4.0 * arc + math.pi * 4.0, rel=0.03)


def test_hairs_scale_with_the_image() -> None:
    covered = []
    for side in (112, 448):
        after = KINDS["hair"].apply(laws.flat((1.0,), side, side, batch=6), 10, list(range(6)))
        covered.append(float((1.0 - after).mean()))
    assert covered[0] == pytest.approx(covered[1], rel=0.02)


@pytest.mark.parametrize("width", [3.0, 10.0])
def test_ink_is_a_third_of_a_circle_that_filters_the_skin(width: float) -> None:
    side = 224
    after = KINDS["ink"].apply(laws.flat(SKIN, side, side), width, [4])[0]
    through = (after / torch.tensor(SKIN).view(3, 1, 1)).double()
    np.testing.assert_allclose(
        through.flatten(1).amin(dim=1), 1.0 - 0.85 * (1.0 - np.array([0.28, 0.14, 0.60])), atol=1e-5
    )
    cover = (1.0 - through[1]) / (1.0 - through[1]).max()
    y, x = np.indices((side, side)) + 0.5 - side / 2.0
    ring = float((np.hypot(y, x) * cover.numpy()).sum() / cover.sum())
    assert 0.29 * side < ring < 0.43 * side
    caps = math.pi * (width / 2.0) ** 2
    assert float(cover.sum()) == pytest.approx(2.0 * math.pi * ring / 3.0 * width + caps, rel=0.03)


def test_ink_on_a_grey_image_takes_the_luma_of_its_colour() -> None:
    after = KINDS["ink"].apply(laws.flat((0.8,)), 22.0, [0])
    assert float(after.min()) == pytest.approx(0.8 * (1.0 - 0.85 * (1.0 - (0.299 * 0.28 + 0.587 * 0.14 + 0.114 * 0.6))))


def test_gel_bubbles_are_as_many_as_stated_and_bright() -> None:
    side, found = 896, []
    for seed in range(5):
        after = KINDS["gel_bubbles"].apply(torch.zeros(1, 1, side, side), 6, [seed])[0, 0]
        found.append(int(label(after.numpy() > 0.1).max()))
        assert float(after.max()) == pytest.approx(0.8)
    assert max(found) == 6
    assert min(found) >= 4  # some touch
    one = next(
        image
        for seed in range(50)
        if float((image := KINDS["gel_bubbles"].apply(torch.zeros(1, 1, side, side), 1, [seed])[0, 0])[:, :40].sum())
        == 0.0
        and float(image[:, -40:].sum() + image[:40].sum() + image[-40:].sum()) == 0.0
    )
    glowing = float((one > 0.1).sum())
    assert glowing == pytest.approx(math.pi * (24.0 + 3.0) ** 2, rel=0.03)
    assert float(((one > 0.1) & (one < 0.2)).sum()) == pytest.approx(math.pi * (24.0 - 3.0) ** 2, rel=0.05)
