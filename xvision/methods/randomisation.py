"""Does a heat map change when the weights it should explain are shuffled? Comparisons of maps with those of a twin model.

A map that stays as it is without what the model has learned shows the image, not the model (Adebayo et al. 2018). That
it changes is necessary, not sufficient. Every figure is per case, (B,), and NaN where a map is constant, because then
there is nothing to compare. Compare magnitudes or signed values: the caller decides, for both maps alike. Shapes: maps
(B, H, W), S steps of a cascade.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import entropy, rankdata
from skimage.metrics import structural_similarity as skimage_similarity

from xvision.errors import DataError

BINS = 100
_WINDOW = 7
"""Side of the window of structural similarity (Wang et al. 2004, as scikit-image has it)."""


def randomised_similarity(maps: np.ndarray, twin_maps: np.ndarray) -> np.ndarray:
    """Spearman rank correlation per case between maps of the model and of a twin with re-initialised weights, (B,).

    Near 1: the map hardly depends on what the model has learned, so it explains the image at best (Adebayo et al.
    2018). Near 0 is necessary for a sound method, not sufficient. Ranks of ties are averaged. NaN where either map is
    constant: the caller reports None with that reason.

    Args:
        maps, twin_maps: (B, H, W), same cases in the same order.
    """
    _require_pairs(maps, twin_maps)
    first, second = (_centred_ranks(each.reshape(len(each), -1)) for each in (maps, twin_maps))
    scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    similarity = np.full(len(maps), np.nan)
    np.divide((first * second).sum(axis=1), scale, out=similarity, where=scale > 0)
    return similarity


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = rankdata(values, axis=1) - (values.shape[1] + 1) / 2.0
    return ranks


def structural_similarity(maps: np.ndarray, twin_maps: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of maps, each divided by its own largest magnitude, (B,).

    1 for maps that differ only by a positive factor. Unlike a rank correlation it looks at neighbourhoods of 7 x 7
    pixels (fewer in smaller maps), so two noisy maps score low even when both follow the same coarse pattern. NaN where
    either map is constant.
    """
    _require_pairs(maps, twin_maps)
    if min(maps.shape[1:]) < 3:
        raise DataError(f"found maps of {maps.shape[1]} x {maps.shape[2]}: structural similarity needs 3 x 3 or more")
    return np.array([_structural(one, other) for one, other in zip(maps, twin_maps, strict=True)], dtype=np.float64)


def _structural(first: np.ndarray, second: np.ndarray) -> float:
    if _constant(first) or _constant(second):
        return np.nan
    pair = [each.astype(np.float64) / np.abs(each).max() for each in (first, second)]
    side = min(_WINDOW, *first.shape)
    spread = max(each.max() for each in pair) - min(each.min() for each in pair)
    window = side - 1 + side % 2
    return float(skimage_similarity(*pair, win_size=window, data_range=spread))  # type: ignore[no-untyped-call]  # partly annotated


def efficient_mprt(maps: np.ndarray, randomised_maps: np.ndarray, *, bins: int = BINS) -> np.ndarray:
    """Relative rise of the histogram entropy when all weights are re-initialised, (H' - H) / H, (B,).

    Efficient model parameter randomisation test (Hedström et al. 2024): maps of a model that knows nothing should be
    more disordered, so above 0 is expected of a sound method. It needs one randomised map and no pairing of pixels. It
    says nothing of where the map points, and a map of pure noise before and after scores 0 like one that never changes.
    Bins are of equal width between the smallest and the largest value of each map.
    """
    _require_pairs(maps, randomised_maps)
    before, after = (np.array([_histogram_entropy(each, bins) for each in both]) for both in (maps, randomised_maps))
    return np.asarray((after - before) / before, dtype=np.float64)


def _histogram_entropy(values: np.ndarray, bins: int) -> float:
    return np.nan if _constant(values) else float(entropy(np.histogram(values, bins=bins)[0]))


def bottom_up(similarities: np.ndarray) -> np.ndarray:
    """Mean similarity (B,) over the steps of a cascade that re-initialises the model from its first part upwards.

    similarities: (B, S), one column per randomised model. The model as it is has similarity 1 with itself and is no
    step: leave it out, or every method looks worse by 1 / (S + 1). From the bottom, because maps randomised from the
    top keep what the untouched lower parts show of the image (Hedström et al. 2024). Steps with a constant map are left
    out of the mean; NaN where no step is left.
    """
    if similarities.ndim != 2:
        raise DataError(f"found similarities of shape {similarities.shape}: they must be (B, S)")
    defined = np.isfinite(similarities)
    total = np.where(defined, similarities, 0.0).sum(axis=1)
    mean = np.full(len(similarities), np.nan)
    np.divide(total, defined.sum(axis=1), out=mean, where=defined.any(axis=1))
    return mean


def _constant(values: np.ndarray) -> bool:
    """Nothing to compare: one value everywhere, or a value that is no number."""
    return not bool(np.isfinite(values).all()) or bool(values.min() == values.max())


def _require_pairs(maps: np.ndarray, others: np.ndarray) -> None:
    if maps.shape != others.shape or maps.ndim != 3:
        raise DataError(f"found maps of shape {maps.shape} and {others.shape}: both must be the same (B, H, W)")
