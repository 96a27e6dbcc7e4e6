"""Planted flaws of phantoms over five seeds: each is found by the analysis meant for it, and its clean twin raises no alarm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tests.analyses.shifted import phantom_audit
from tests.analyses.test_image_reliance import reading
from tests.benchmarks.harness import Row, row
from xvision.analyses.domain_shift import domain_shift
from xvision.analyses.image_reliance import image_reliance
from xvision.audit import Audit

SEEDS = range(5)
_ALPHA = 0.05


def _noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another detector: less contrast, more noise."""
    return 0.75 * pixels + 0.1 + rng.normal(0, 0.12, pixels.shape)


def _inverted(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
    """Black and white exchanged, as by a photometric interpretation that nobody read."""
    return 1.0 - pixels


def planted_rows() -> Iterator[Row]:
    for name, plant, wanted in (
        ("another detector at a site", _noisy, 5),
        ("inverted at a site", _inverted, 5),
        ("clean twin", None, 0),
    ):
        found = sum(_shifted(phantom_audit(seed, plant)) for seed in SEEDS)
        yield row(
            f"phantoms, {name}: shift found",
            f"{found} of 5",
            f"{wanted} of 5",
            found == wanted,
            "domain_shift, smallest controlled p < 0.05",
        )
    for name, sight, wanted in (("goes by the text alone", 0.0, 5), ("reads the image beside the text", 1000.0, 0)):
        found = sum(_blind(replace(reading(sight), seed=seed)) for seed in SEEDS)
        yield row(
            f"a model that {name}: found blind", f"{found} of 5", f"{wanted} of 5", found == wanted,
            "image_reliance, upper end of the visual reliance below 0.5",
        )  # fmt: skip


def _shifted(audit: Audit) -> bool:
    found = domain_shift(audit, permutations=199, resamples=60)
    return min(item.value for item in found.metrics if item.name == "shift_p" and item.value is not None) < _ALPHA


def _blind(audit: Audit) -> bool:
    (score,) = [
        item for item in image_reliance(audit, resamples=200).metrics
        if item.name == "reliance" and dict(item.where) == {"input": "another_patient"}
    ]  # fmt: skip
    return score.high is not None and score.high < 0.5
