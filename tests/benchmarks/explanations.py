"""Explanations against their peers: `python -m tests.benchmarks.explanations [--quick] --json OUT`.

quantus and grad-cam come with ``pip install 'xvision[peers]'``; without one, its rows are left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.benchmarks import explanations_maps as maps
from tests.benchmarks import explanations_sharing as sharing
from tests.benchmarks import explanations_trust as trust
from tests.benchmarks.explanations_memory import memory_rows
from tests.benchmarks.explanations_peers import missing
from tests.benchmarks.explanations_robustness import robustness
from tests.benchmarks.harness import Row, main

PACKAGES = (
    "torch", "transformers", "captum", "numpy", "scipy", "scikit-learn", "quantus", "grad-cam", "opencv-python-headless",
)  # fmt: skip


def measure(quick: bool) -> Iterator[Row]:
    pairs = 5 if quick else 11
    yield from maps.rollout_rows(pairs)
    if not quick:
        yield from maps.occlusion_rows(pairs)
    for name in ("ResNet-18",) if quick else ("ResNet-18", "ResNet-50"):
        yield from maps.layer_rows(name)
        if missing("grad-cam") is None:
            yield from maps.grad_cam_rows(name, pairs)
    if missing("quantus") is None:
        yield from sharing.localisation(pairs)
        yield from sharing.counted_audit()
        yield from robustness(pairs)
    yield from trust.marker_rows(quick)
    yield from memory_rows(quick)
    if not quick:
        yield from trust.cost_rows()
        yield from trust.trained_rows()


def left_out(quick: bool) -> list[str]:
    """Peers that are not installed, with what to install, and what takes longer than a minute."""
    peers = [f"rows against it: {reason}" for package in ("quantus", "grad-cam") if (reason := missing(package))]
    long = [
        "ResNet-50",
        "patch occlusion",
        "10,000 images (1,000 were measured)",
        "the cost of explanation_quality",
        "trained classifiers",
    ]
    return [*peers, *(long if quick else [])]


if __name__ == "__main__":
    sys.exit(main("explanations", measure, left_out, PACKAGES))
