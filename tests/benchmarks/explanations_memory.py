"""Attributions of many images: does resident memory grow with their number? Measured in a process of its own.

``python -m tests.benchmarks.explanations_memory IMAGES`` prints what the process held after every tenth of the images.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from tests.benchmarks.explanations_models import bert
from tests.benchmarks.harness import Row, row
from xvision import registry
from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.engine import Engine, Progress
from xvision.methods.decision import Decision
from xvision.models.protocols import InputSpec

ROOT = Path(__file__).parents[2]
SIDE, METHODS = 224, ("saliency", "input_x_gradient", "attention_rollout")
ALLOWED = 30
"""MB that memory may grow from one tenth of the images to all of them: what an allocator keeps, not maps of 200 kB each."""


class MadeOnTheFly:
    """An ImageSource whose images are drawn from their id each time they are asked for, so that nothing is stored."""

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Grey gradients of random direction under noise."""
        across = np.linspace(0.2, 0.8, spec.width, dtype=np.float32)
        found = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.float32)
        for place, name in enumerate(ids):
            rng = np.random.default_rng(int(name))
            noise = rng.random((spec.channels, spec.height, spec.width), dtype=np.float32)
            found[place] = 0.8 * across[:: rng.choice([-1, 1])] + 0.2 * noise
        return found

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """None."""
        return np.zeros((len(ids), spec.height, spec.width), dtype=bool)

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """None of them."""
        return ()

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        """An image is its id."""
        return tuple(hashlib.sha256(name.encode()).hexdigest() if content == "image" else "" for name in ids)


def memory_rows(quick: bool) -> Iterator[Row]:
    """Resident memory after all images less that after the first tenth of them (quick: half of 1,000)."""
    images, first = (1000, "500") if quick else (10_000, "1000")
    command = [sys.executable, "-m", "tests.benchmarks.explanations_memory", str(images)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    held = json.loads(done.stdout.splitlines()[-1])
    early, late = held["after"][first], held["after"][str(images)]
    how = (
        f"attribution analysis of {images:,} images of {SIDE} × {SIDE} by {', '.join(METHODS)}, made on the fly: {early:.0f} MB "
        f"after {int(first):,}, {late:.0f} MB after the last, {held['end']:.0f} MB when all intervals were worked out, where each "
        f"of the {images * len(METHODS):,} maps kept would be {SIDE * SIDE * 4 / 2**20:.2f} MB"
    )
    yield row(
        f"Memory of {images:,} images, MB grown", round(late - early, 1), f"≤ {ALLOWED}", late - early <= ALLOWED, how
    )


def sampled(images: int) -> dict[str, object]:
    """Resident MB after every tenth, and at the end."""
    after: dict[str, float] = {}

    def look(progress: Progress) -> None:
        if progress.total == images and progress.task == "attribution":
            tenth = images // 20
            reached = progress.done // tenth * tenth
            if progress.done and str(reached) not in after:
                after[str(reached)] = resident()

    audit = Audit(
        bert(SIDE, layers=1, width=16, patch=32, stem="linear"), on_the_fly(images), Decision(1, 0.5, True), 0,
        Engine(progress=look), task="attribution",
    )  # fmt: skip
    found = registry.analyses()["attribution"]
    found(audit, found.bind({"cases": images, "methods": METHODS}))
    return {"after": after, "end": resident()}


def on_the_fly(images: int) -> AuditDataset:
    """So many cases without files, every second of them ill."""
    names = [str(number) for number in range(images)]
    columns = {"label": ["normal", "lesion"] * (images // 2), "patient": names, "split": "test"}
    return AuditDataset(
        pd.DataFrame(columns, index=pd.Index(names, name="id", dtype="str"), dtype="str"), (), MadeOnTheFly()
    )


def resident() -> float:
    """MB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(sampled(int(sys.argv[1]))))
