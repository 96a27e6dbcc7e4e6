"""Explanations against their peers: `python -m tests.benchmarks.explanations [--quick] --json OUT`.

quantus and grad-cam come with ``pip install 'xvision[peers]'``; without one, its rows are left out and named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.benchmarks import explanations_maps as maps
from tests.benchmarks import explanations_sharing as sharing
from tests.benchmarks.explanations_peers import missing
from tests.benchmarks.explanations_robustness import robustness
from tests.benchmarks.harness import Row, main

PACKAGES = ("torch", "transformers", "captum", "numpy", "scikit-learn", "quantus", "grad-cam", "opencv-python-headless")
PAIRS = {True: 5, False: 11}
"""Pairs of times, by ``--quick``."""


def measure(quick: bool) -> Iterator[Row]:
    pairs = PAIRS[quick]
    yield from maps.rollout_rows(pairs)
    yield from maps.occlusion_rows(pairs)
    if missing("grad-cam") is None:
        for name in ("ResNet-18", "ResNet-50"):
            yield from maps.grad_cam_rows(name, pairs)
    if missing("quantus") is None:
        yield from robustness(pairs)
        yield from sharing.localisation(pairs)


def left_out(quick: bool) -> list[str]:
    return [reason for package in ("quantus", "grad-cam") if (reason := missing(package))]


if __name__ == "__main__":
    sys.exit(main("explanations", measure, left_out, PACKAGES))
