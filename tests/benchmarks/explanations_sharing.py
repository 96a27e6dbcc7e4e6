"""Metrics of maps against Quantus: what this library works out together, Quantus works out metric by metric."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tests.benchmarks.explanations_models import images
from tests.benchmarks.explanations_peers import Counted, compared, open_quantus, paired, relative, without_warnings
from tests.benchmarks.harness import Row, row
from xvision.methods.faithfulness import curves_of
from xvision.methods.localisation import ranked_family
from xvision.methods.perturbation import bernoulli_bank, patch_ablation
from xvision.methods.removal import pixel_evaluator
from xvision.methods.target import score_of
from xvision.methods.units import grid

MAPS, SIDE, MASK, AUDITED = 64, 224, 40, 6
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


def counted_audit() -> Iterator[Row]:
    """How often the model is asked when several methods are judged by the same figures; no time is claimed for this one.

    Removal curves from both ends, faithfulness correlation over 100 subsets, and the score without each single patch.
    """
    shown = images(2, 1, 32)
    units, subsets = grid(32, 32, 4), 100
    network = Counted(
        lambda pixels: torch.stack((-pixels.mean(dim=(1, 2, 3)), pixels.square().mean(dim=(1, 2, 3))), dim=1)
    )
    rng = np.random.default_rng(0)
    values = {f"method {number}": rng.random((2, units.count)) for number in range(AUDITED)}
    targets = torch.ones(2, dtype=torch.int64)
    evaluate = pixel_evaluator(score_of(network), shown, targets, units, "black", seeds=(0, 1))

    def own() -> None:
        curves_of(evaluate, values, steps=units.count)
        bernoulli_bank(evaluate, (0, 1), units, masks=subsets, purpose="scoring")
        patch_ablation(evaluate, 2, units)

    def peer() -> None:
        quantus = open_quantus()
        steps, black = {"features_in_step": 16, **QUIET}, {"perturb_baseline": 0.0}
        flipping = quantus.PixelFlipping(**steps, **black)
        correlation = quantus.FaithfulnessCorrelation(
            nr_runs=subsets, subset_size=256, return_aggregate=False, **black, **QUIET
        )
        alone = quantus.FaithfulnessEstimate(**steps, **black)
        for found in values.values():
            maps = units.painted(found)[:, None]
            for metric, ranked in ((flipping, maps), (flipping, 1 - maps), (correlation, maps), (alone, maps)):
                with without_warnings():
                    metric(
                        model=network, x_batch=shown.numpy(), y_batch=np.ones(2, dtype=int), a_batch=ranked,
                        channel_first=True, softmax=False,
                    )  # fmt: skip

    (ours, _), (theirs, _) = network.counts(own), network.counts(peer)
    how = f"{AUDITED} methods, {units.count} patches, {subsets} subsets, 2 images: {ours} evaluations, Quantus {theirs}"
    yield row(
        f"Faithfulness of {AUDITED} methods, Quantus: evaluations", round(theirs / ours, 2), "no target", True, how
    )
