"""Corruptions beside imagecorruptions 1.1.2, which does not run as released and is repaired here for the comparison.

As released it asks setuptools for ``pkg_resources``, which is gone, and calls scikit-image and NumPy by names that are gone. The
repair names them again: it changes no arithmetic. medmnistc 0.1.0 needs ImageMagick's library to be imported at all and is
compared nowhere.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch

from tests.benchmarks.harness import Row, row
from xvision.methods.corruptions import CORRUPTIONS, corrupt

SIDE, IMAGES, PAIRS, SEVERITY = 224, 16, 5, 3
_NAMES = {
    "gaussian_noise": "gaussian_noise", "shot_noise": "shot_noise", "impulse_noise": "impulse_noise",
    "speckle_noise": "speckle_noise", "gaussian_blur": "gaussian_blur", "defocus_blur": "defocus_blur",
    "motion_blur": "motion_blur", "zoom_blur": "zoom_blur", "glass_blur": "glass_blur", "contrast_down": "contrast",
    "brightness_up": "brightness", "saturation_up": "saturate", "jpeg": "jpeg_compression", "pixelate": "pixelate",
    "elastic": "elastic_transform", "fog": "fog", "snow": "snow", "spatter": "spatter",
}  # fmt: skip
"""Our name → its name."""


def missing() -> str | None:
    """None where the peer is installed, else what to install."""
    there = importlib.util.find_spec("imagecorruptions") and importlib.util.find_spec("cv2")
    return (
        None
        if there
        else (
            "imagecorruptions is not installed: pip install --no-deps imagecorruptions opencv-python-headless numba llvmlite"
        )
    )


def opened() -> Callable[[np.ndarray, str, int], np.ndarray]:
    """(H, W, 3) uint8, name, severity to (H, W, 3), with the repair."""
    if importlib.util.find_spec("pkg_resources") is None:
        stand_in = types.ModuleType("pkg_resources")
        stand_in.resource_filename = lambda package, path: path
        sys.modules["pkg_resources"] = stand_in
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import imagecorruptions.corruptions as theirs
        from skimage.filters import gaussian

    def named(image: np.ndarray, *positional: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
        return np.asarray(gaussian(image, *positional, channel_axis=-1 if multichannel else None, **options))

    theirs.gaussian = named
    theirs.np.float_ = np.float64  # the name that NumPy 2 dropped

    def damaged(image: np.ndarray, name: str, severity: int) -> np.ndarray:
        from PIL import Image

        return np.asarray(getattr(theirs, name)(Image.fromarray(image), severity))

    return damaged


def peer_rows() -> Iterator[Row]:
    """Both on the same 224 × 224 colour images, one thread, alternately; ours in one batch, theirs image by image."""
    theirs = opened()
    levels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 255
    keys = [str(place) for place in range(IMAGES)]
    ratios: dict[str, float] = {}
    failed = []
    for own, name in _NAMES.items():
        if own not in CORRUPTIONS:
            continue
        times: list[list[float]] = [[], []]
        try:
            for _ in range(PAIRS):
                times[0].append(
                    _seconds(lambda own=own: corrupt(pixels, own, SEVERITY, keys, seed=0, modality="natural"))
                )
                times[1].append(_seconds(lambda name=name: [theirs(image, name, SEVERITY) for image in levels]))
        except Exception as problem:  # noqa: BLE001  # the peer's own failure is a row of the table
            failed.append(f"{name} ({type(problem).__name__})")
            continue
        ratios[own] = median(times[1]) / median(times[0])
    whole = float(np.exp(np.mean(np.log(list(ratios.values())))))
    how = ", ".join(f"{name} {value:.1f}" for name, value in sorted(ratios.items(), key=lambda pair: -pair[1]))
    fails = f"; fail on current versions: {', '.join(failed)}" if failed else ""
    yield row(
        f"{len(ratios)} kinds beside imagecorruptions 1.1.2, repaired, 224 px: times faster", round(whole, 1), "≥ 3",
        whole >= 3, f"geometric mean of medians of {PAIRS}; {how}{fails}",
    )  # fmt: skip


def _seconds(work: Callable[[], Any]) -> float:
    started = process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work()
    return process_time() - started
