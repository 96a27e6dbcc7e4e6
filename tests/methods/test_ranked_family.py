"""All localisation scores from one sort, on maps whose scores are known and beside independent implementations."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu
from sklearn.metrics import average_precision_score, roc_auc_score

from xvision.errors import ConfigError, DataError
from xvision.methods.localisation import Localisation, ranked_family


def quarter(batch: int = 1) -> np.ndarray:
    """Masks of the upper left quarter of 8 × 8 pixels."""
    masks = np.zeros((batch, 8, 8), dtype=bool)
    masks[:, :4, :4] = True
    return masks


def scores(found: Localisation) -> dict[str, float]:
    """The scores of a single case."""
    return {name: float(values[0]) for name, values in found._asdict().items()}


def test_a_constant_map_scores_what_chance_scores() -> None:
    found = scores(ranked_family(np.full((1, 8, 8), 3.0), quarter()))
    otsu = found.pop("iou_otsu")
    assert np.isnan(otsu)
    assert found == pytest.approx({
        "pointing_game": 0.25, "hit_rate": 0.25, "relevance_mass": 0.25, "mass_lift": 1.0,
        "relevance_rank_accuracy": 0.25, "pixel_auroc": 0.5, "pixel_auprc": 0.25, "iou_top": 0.25 / 1.75,
    })  # fmt: skip


def test_a_map_equal_to_the_mask_scores_one() -> None:
    found = scores(ranked_family(quarter().astype(np.float32), quarter()))
    assert found.pop("mass_lift") == 4.0
    assert found == dict.fromkeys(found, 1.0)
    assert len(found) == 8


def test_a_map_of_zeros_has_no_mass_and_ranks_nothing() -> None:
    found = ranked_family(np.zeros((1, 8, 8)), quarter())
    assert np.isnan([found.relevance_mass, found.mass_lift, found.iou_otsu]).all()
    assert found.pixel_auroc == 0.5
    assert found.relevance_rank_accuracy == 0.25


def test_an_empty_mask_is_never_a_hit() -> None:
    found = ranked_family(np.ones((1, 8, 8)), np.zeros((1, 8, 8), dtype=bool), tolerance=100.0)
    assert np.isnan(np.array(found)).all()


def test_a_mask_of_everything_cannot_be_ranked() -> None:
    maps = np.random.default_rng(0).random((1, 8, 8))
    found = scores(ranked_family(maps, np.ones((1, 8, 8), dtype=bool)))
    assert np.isnan(found.pop("pixel_auroc"))
    assert 0.0 < found.pop("iou_otsu") < 1.0
    assert found == dict.fromkeys(found, 1.0)


def test_no_cases_give_no_scores() -> None:
    found = ranked_family(np.zeros((0, 8, 8)), np.zeros((0, 8, 8), dtype=bool))
    assert all(values.shape == (0,) for values in found)


def test_four_pixels_by_hand() -> None:
    """Values 4, 3, 2, 1 with the second and the fourth marked."""
    found = ranked_family(np.array([[[4.0, 3.0], [2.0, 1.0]]]), np.array([[[False, True], [False, True]]]))
    assert found.pixel_auroc == 0.25
    assert found.pixel_auprc == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert found.relevance_rank_accuracy == 0.5
    assert found.iou_top == pytest.approx(1 / 3)
    assert found.relevance_mass == pytest.approx(0.4)


def test_pixels_tied_at_the_edge_of_the_top_share_its_places() -> None:
    """Two places for the top: one value above, three tied of which one is marked and takes a third of the last place."""
    found = ranked_family(np.array([[[5.0, 1.0, 1.0, 1.0, 0.0]]]), np.array([[[True, True, False, False, False]]]))
    assert found.relevance_rank_accuracy == pytest.approx((1 + 1 / 3) / 2)


def test_minus_zero_ties_with_zero() -> None:
    maps = np.array([[[0.0, -0.0], [0.0, -0.0]]], dtype=np.float32)
    assert ranked_family(maps, np.array([[[True, False], [True, False]]])).pixel_auroc == 0.5


def test_negative_and_tiny_values_keep_their_order() -> None:
    ascending = np.array([[[-1e38, -2.0, -1e-45, 0.0, 1e-45, 1e-40, 3.0, 1e38]]], dtype=np.float32)
    found = ranked_family(ascending, np.array([[[False] * 4 + [True] * 4]]))
    assert found.pixel_auroc == 1.0
    assert found.relevance_rank_accuracy == 1.0


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 3, 8, 1000]), marked=st.floats(0.05, 0.9))
def test_areas_equal_those_of_scikit_learn_with_ties(seed: int, levels: int, marked: float) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.integers(-levels, levels, (2, 9, 7)).astype(np.float32) / 3
    masks = rng.random((2, 9, 7)) < marked
    masks[:, 0, 0], masks[:, 0, 1] = True, False
    found = ranked_family(maps, masks)
    flat = [(mask.ravel(), values.ravel()) for mask, values in zip(masks, maps, strict=True)]
    np.testing.assert_allclose(found.pixel_auroc, [roc_auc_score(*pair) for pair in flat], rtol=1e-12)
    np.testing.assert_allclose(found.pixel_auprc, [average_precision_score(*pair) for pair in flat], rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000))
def test_the_top_equals_a_plain_sort_of_places(seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps, masks = rng.permutation(63).reshape(1, 9, 7).astype(np.float32), rng.random((1, 9, 7)) < 0.3
    masks[0, 0, 0] = True
    top = set(np.argsort(-maps.ravel())[: masks.sum()].tolist())
    wanted = set(np.flatnonzero(masks).tolist())
    found = ranked_family(maps, masks)
    assert found.relevance_rank_accuracy == pytest.approx(len(top & wanted) / len(wanted))
    assert found.iou_top == pytest.approx(len(top & wanted) / len(top | wanted))


def test_overlap_at_otsu_equals_scikit_image_on_the_positive_part() -> None:
    rng = np.random.default_rng(8)
    maps, masks = rng.normal(size=(3, 30, 30)).astype(np.float32), rng.random((3, 30, 30)) < 0.2
    wanted = []
    for values, mask in zip(np.maximum(maps.astype(np.float64), 0), masks, strict=True):
        drawn = values > threshold_otsu(values)
        wanted.append((drawn & mask).sum() / (drawn | mask).sum())
    np.testing.assert_allclose(ranked_family(maps, masks).iou_otsu, wanted, rtol=1e-12)


def test_the_tolerance_is_a_distance_from_the_nearest_marked_pixel() -> None:
    maps = np.zeros((1, 9, 9))
    maps[0, 6, 7] = 1.0  # three rows and four columns from the corner of the mask
    masks = np.zeros((1, 9, 9), dtype=bool)
    masks[0, :4, :4] = True
    assert [float(ranked_family(maps, masks, tolerance=t).hit_rate[0]) for t in (0.0, 4.99, 5.0)] == [0.0, 0.0, 1.0]
    assert ranked_family(maps, masks, tolerance=5.0).pointing_game == 0.0


def test_tied_maxima_hit_by_their_share_within_the_tolerance() -> None:
    rng = np.random.default_rng(2)
    maps, masks = rng.integers(0, 3, (4, 12, 11)).astype(float), rng.random((4, 12, 11)) < 0.03
    masks[:, 5, 5] = True
    peaks = maps == 2
    near = np.stack([distance_transform_edt(~mask) <= 2.5 for mask in masks])
    wanted = (peaks & near).sum(axis=(1, 2)) / peaks.sum(axis=(1, 2))
    np.testing.assert_allclose(ranked_family(maps, masks, tolerance=2.5).hit_rate, wanted)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), power=st.integers(-8, 8))
def test_neither_scale_nor_the_rest_of_the_batch_matters(seed: int, power: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(5, 6, 7)).astype(np.float32)
    masks = rng.random((5, 6, 7)) < 0.3
    together = np.array(ranked_family(maps, masks, tolerance=1.0))
    np.testing.assert_array_equal(np.array(ranked_family(maps * 2.0**power, masks, tolerance=1.0)), together)
    alone = [np.array(ranked_family(maps[[i]], masks[[i]], tolerance=1.0))[:, 0] for i in range(5)]
    np.testing.assert_array_equal(np.stack(alone, axis=1), together)


def test_the_maps_and_masks_are_left_as_they_were() -> None:
    rng = np.random.default_rng(1)
    maps, masks = rng.normal(size=(2, 6, 7)).astype(np.float32), rng.random((2, 6, 7)) < 0.5
    before = maps.copy(), masks.copy()
    ranked_family(maps, masks, tolerance=1.0)
    np.testing.assert_array_equal(maps, before[0])
    np.testing.assert_array_equal(masks, before[1])


def test_faster_than_one_score_by_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    maps, masks = rng.normal(size=(8, 224, 224)).astype(np.float32), rng.random((8, 224, 224)) < 0.1

    def ours() -> None:
        ranked_family(maps, masks)

    def peer() -> None:
        for mask, values in zip(masks, maps, strict=True):
            roc_auc_score(mask.ravel(), values.ravel())

    assert min(_seconds(ours) for _ in range(3)) < min(_seconds(peer) for _ in range(3))


def _seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def test_unusable_input_is_an_error() -> None:
    with pytest.raises(DataError, match=r"masks of shape \(1, 4, 5\)"):
        ranked_family(np.ones((1, 4, 4)), np.ones((1, 4, 5), dtype=bool))
    with pytest.raises(DataError, match="type uint8"):
        ranked_family(np.ones((1, 4, 4)), np.ones((1, 4, 4), dtype=np.uint8))
    with pytest.raises(DataError, match="heat map in row 0 holds NaN"):
        ranked_family(np.full((1, 4, 4), np.nan), np.ones((1, 4, 4), dtype=bool))
    with pytest.raises(DataError, match="heat map in row 0 holds NaN or infinity"):
        ranked_family(np.full((1, 4, 4), 1e300), np.ones((1, 4, 4), dtype=bool))
    with pytest.raises(ConfigError, match=r"found tolerance = -1\.0"):
        ranked_family(np.ones((1, 4, 4)), np.ones((1, 4, 4), dtype=bool), tolerance=-1.0)
