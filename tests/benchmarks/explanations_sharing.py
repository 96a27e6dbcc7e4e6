"""Metrics of maps against Quantus: what this library works out together, Quantus works out metric by metric."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.benchmarks.explanations_peers import compared, open_quantus, paired, relative, without_warnings
from tests.benchmarks.harness import Row
from xvision.methods.localisation import ranked_family

MAPS, SIDE, MASK = 64, 224, 40
QUIET = {"normalise": False, "abs": False, "disable_warnings": True, "display_progressbar": False}
"""Quantus divides by the largest value of the whole batch unless told not to: an image's score would depend on others."""


def localisation(pairs: int) -> Iterator[Row]:
    """Relevance rank accuracy, pixel AUROC and the top k of 64 maps, all masks of k pixels."""
    rng = np.random.default_rng(0)
    maps = rng.random((MAPS, SIDE, SIDE), dtype=np.float32)
    masks = np.zeros(maps.shape, dtype=bool)
    for mask, (top, left) in zip(masks, rng.integers(0, SIDE - MASK, (MAPS, 2)), strict=True):
        mask[top : top + MASK, left : left + MASK] = True

    def own() -> np.ndarray:
        found = ranked_family(maps, masks)
        return np.stack((found.relevance_rank_accuracy, found.pixel_auroc, found.iou_top))

    def peer() -> np.ndarray:
        quantus = open_quantus()
        chosen = (quantus.RelevanceRankAccuracy(**QUIET), quantus.AUC(**QUIET))
        given = {
            "model": None, "x_batch": np.zeros((MAPS, 1, SIDE, SIDE)), "y_batch": np.ones(MAPS, dtype=int),
            "a_batch": maps[:, None], "s_batch": masks[:, None], "channel_first": True,
        }  # fmt: skip
        with without_warnings():
            accuracy, auroc = (np.array(metric(**given)) for metric in chosen)
            top = np.array(quantus.TopKIntersection(k=MASK * MASK, **QUIET)(**given))
        return np.stack(
            (accuracy, auroc, top / (2 - top))
        )  # the overlap of two sets of k pixels as a share of their union

    yield from compared(
        "Localisation family, Quantus", paired(own, peer, pairs), 15, relative(own(), peer()), 1e-5,
        "no pass on either side",
        f"rank accuracy, AUROC, top {MASK * MASK} of {MAPS} maps of {SIDE} × {SIDE}; this library's six other scores are in its time",
    )  # fmt: skip
