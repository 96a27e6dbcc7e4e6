"""Shift, calibration and image reliance: `python -m tests.benchmarks.shift [--quick] --json OUT`.

imagecorruptions comes with ``pip install --no-deps imagecorruptions opencv-python-headless numba llvmlite``; without it, its
row is left out and named.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import torch

from tests.benchmarks.adversarial_whole import trained
from tests.benchmarks.explanations_models import images
from tests.benchmarks.harness import Row, main, row
from tests.benchmarks.shift_peers import missing, peer_rows
from tests.benchmarks.shift_planted import planted_rows
from xvision.methods.corruptions import CORRUPTIONS, corrupt, kinds_of
from xvision.models.huggingface import adapt, preprocessing_of
from xvision.models.llm.classifier import preset
from xvision.models.protocols import Classifier

PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-image",
    "pillow",
    "imagecorruptions",
    "opencv-python-headless",
)
_BATCH = 64
_SHARE = 0.30


def measure(quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        model, pixels, _, ids = trained(Path(place), 100 if quick else 1000)
        yield _grid(model, pixels, ids, "phantoms of 64 × 64 on the demonstration's model")
        if not quick:
            large = images(200, 1, 224)
            yield _grid(_larger(), large, [str(name) for name in range(200)], "images of 224 × 224 on its architecture")
    yield from planted_rows()
    if missing() is None:
        yield from peer_rows()


def _grid(model: Classifier, pixels: torch.Tensor, ids: list[str], what: str) -> Row:
    """CPU time of the corruptions as a share of that of the whole grid, corruptions and passes."""
    kinds, spent = kinds_of("xray"), [0.0, 0.0]
    by_kind = dict.fromkeys(kinds, 0.0)
    with torch.inference_mode():
        for start in range(0, len(ids), _BATCH):
            part, keys = pixels[start : start + _BATCH], ids[start : start + _BATCH]
            for kind in kinds:
                for severity in range(1, 6):
                    began = process_time()
                    damaged = corrupt(part, kind, severity, keys, seed=0, modality="xray")
                    made = process_time()
                    model.logits(damaged)
                    spent[0] += made - began
                    spent[1] += process_time() - made
                    by_kind[kind] += made - began
    share = spent[0] / sum(spent)
    slow = sorted(by_kind, key=lambda kind: -by_kind[kind])[:5]
    cost = ", ".join(f"{CORRUPTIONS[kind].name} {1e3 * by_kind[kind] / len(ids) / 5:.2f} ms" for kind in slow)
    return row(
        f"{len(kinds)} kinds × 5 severities on {len(ids)} {what}: share of corruption", round(share, 3), f"≤ {_SHARE:.2f}",
        share <= _SHARE, f"{spent[0]:.0f} of {sum(spent):.0f} CPU-s; dearest per image: {cost}",
    )  # fmt: skip


def _larger() -> Classifier:
    """The demonstration's architecture for 224 px, with random weights: 784 patches of 8 into two layers."""
    module = preset("tiny-qwen3", image_size=224, seed=0).eval()
    return adapt(module, preprocessing_of(module.config), source="random weights")


def left_out(quick: bool) -> list[str]:
    """The peer that is not installed, and what takes longer than a minute."""
    reason = missing()
    peers = [f"rows against it: {reason}"] if reason else []
    return [*peers, *(["1,000 phantoms (100 were measured)", "200 images of 224 × 224"] if quick else [])]


if __name__ == "__main__":
    sys.exit(main("shift", measure, left_out, PACKAGES))
