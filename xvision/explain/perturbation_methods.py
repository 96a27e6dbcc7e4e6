"""Methods that only need scores: parts are taken away, and what the score loses is drawn.

Every pixel carries its unit's value, divided by nothing: adding up a map counts each unit by its area.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xvision.errors import ModelError
from xvision.explain.method import Asked, Maps, Method, needs_nothing
from xvision.methods.perturbation import (
    Bank,
    bernoulli_bank,
    kernel_shap,
    patch_ablation,
    rise,
    shapley_bank,
    window_ablation,
    windows,
)
from xvision.methods.removal import embedding_evaluator
from xvision.methods.units import Evaluate, Units, superpixels

SUPERPIXELS = 50
MASKS_PER_UNIT = 4
"""Fewest masks of KernelSHAP for each unit: below 2 they cannot tell units apart, near it the noise decides."""
_FITTING = "explanation"


def _evaluate(asked: Asked, units: Units) -> Evaluate:
    settings = asked.settings
    return embedding_evaluator(
        asked.model, asked.pixels, asked.targets, units, settings.baseline,
        seeds=asked.seeds, batch=settings.batch, references=asked.references,
    ).evaluate  # fmt: skip


def _patch_ablation(asked: Asked) -> Maps:
    values = patch_ablation(_evaluate(asked, asked.units), len(asked.pixels), asked.units)
    return _drawn(values, asked.units, "patch ablation")


def _occlusion(asked: Asked) -> Maps:
    """Windows two patches wide, one patch apart."""
    height, width = asked.units.labels.shape
    side = int((asked.units.labels[0] == asked.units.labels[0, 0]).sum())
    sliding = windows(height, width, window=min(2 * side, height, width), stride=min(side, height, width))
    values = window_ablation(_evaluate(asked, sliding.units), len(asked.pixels), sliding)
    return _drawn(values, sliding.units, "occlusion")


def _kernel_shap(asked: Asked) -> Maps:
    values = kernel_shap(_shapley(asked, asked.units))
    return _drawn(values, asked.units, "KernelSHAP")


def _kernel_shap_superpixels(asked: Asked) -> Maps:
    """Every image has regions of its own, so each is asked alone."""
    found = []
    for row in range(len(asked.pixels)):
        alone = asked.alone(row)
        units = superpixels(alone.pixels[0].detach().cpu().numpy(), min(SUPERPIXELS, asked.units.labels.size))
        found.append(units.painted(kernel_shap(_shapley(alone, units)))[0])
    return _finite(np.stack(found), "KernelSHAP on superpixels")


def _rise(asked: Asked) -> Maps:
    """Less the mean over all masks: the level of a log-odds says nothing of a place."""
    bank = bernoulli_bank(
        _evaluate(asked, asked.units), asked.seeds, asked.units, masks=asked.settings.masks, purpose=_FITTING
    )
    return _drawn(rise(bank) - bank.scores.mean(axis=1, keepdims=True), asked.units, "RISE")


def _shapley(asked: Asked, units: Units) -> Bank:
    masks = max(asked.settings.masks, MASKS_PER_UNIT * units.count)
    return shapley_bank(_evaluate(asked, units), asked.seeds, units, masks=masks, purpose=_FITTING)


def _drawn(values: np.ndarray, units: Units, label: str) -> Maps:
    return _finite(units.painted(values), label)


def _finite(maps: np.ndarray, label: str) -> Maps:
    broken = ~np.isfinite(maps).all(axis=(1, 2))
    if broken.any():
        raise ModelError(
            f"{label}: the score is NaN or infinite for {int(broken.sum())} of {len(maps)} images with parts removed,"
            f" the first in row {int(np.argmax(broken))}: check the model for overflow or a division by zero"
        )
    return Maps(maps.astype(np.float32))


def _method(
    name: str, label: str, passes: str, source: str, run: Callable[[Asked], Maps], *, chosen: int | None = None
) -> Method:
    return Method(name, label, "perturbation", True, passes, source, needs_nothing, run, chosen=chosen)


METHODS: tuple[Method, ...] = (
    _method(
        "patch_ablation", "patch ablation", "1 forward per patch and 1", "Zeiler and Fergus 2014", _patch_ablation,
        chosen=40,
    ),
    _method("occlusion", "occlusion", "1 forward per patch and 1", "Zeiler and Fergus 2014", _occlusion),
    _method(
        "kernel_shap", "KernelSHAP", "masks forward, at least 4 per patch, and 2",
        "Lundberg and Lee 2017, closed form of Covert and Lee 2021", _kernel_shap,
    ),
    _method(
        "kernel_shap_superpixels", "KernelSHAP on superpixels", "masks forward, at least 4 per superpixel, and 2",
        "Lundberg and Lee 2017 on the regions of Achanta et al. 2012", _kernel_shap_superpixels,
    ),
    _method("rise", "RISE", "masks forward and 2", "after Petsiuk et al. 2018: masks of whole patches", _rise),
)  # fmt: skip
