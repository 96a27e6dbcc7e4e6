"""The peers that explanations are compared with: opening them, timing in pairs, counting what passes through a model."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tests.benchmarks.harness import Row, row

EXTRA = "pip install 'xvision[peers]'"
_MODULES = {"quantus": "quantus", "grad-cam": "pytorch_grad_cam"}


def missing(package: str) -> str | None:
    """None where the peer is installed, else what to install."""
    found = importlib.util.find_spec(_MODULES[package])
    return None if found else f"{package} is not installed: {EXTRA}"


@cache
def open_quantus() -> Any:
    """The module, without the warnings it gives for each of its settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import quantus
    return quantus


@cache
def open_grad_cam() -> Any:
    """The module, without the warnings of its own imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
    return pytorch_grad_cam


class Paired(NamedTuple):
    """The same work by a peer and by this library, in turn. ratio: median of peer over own; seconds: medians."""

    ratio: float
    lowest: float
    highest: float
    own: float
    peer: float
    pairs: int

    @property
    def words(self) -> str:
        return (
            f"{self.own:.3f} s against {self.peer:.3f} s, one thread, median of {self.pairs} pairs in alternating order, "
            f"range {self.lowest:.1f} to {self.highest:.1f}"
        )


def compared(
    check: str, timed: Paired, at_least: float, difference: float, at_most: float, evaluations: str, how: str
) -> list[Row]:
    """Two rows: both sides give the same, then how many times faster this one is, with what each asked of the model.

    at_least: 0 where the figure is told without a target.
    """
    target = f"≥ {at_least:g}" if at_least else "no target"
    faster = row(check, round(timed.ratio, 2), target, timed.ratio >= at_least, f"{how}; {timed.words}")
    return [
        row(f"{check}: equal", float(f"{difference:.2g}"), f"≤ {at_most:g}", difference <= at_most, how),
        {**faster, "evaluations": evaluations},
    ]


def paired(own: Callable[[], object], peer: Callable[[], object], pairs: int) -> Paired:
    """Times both in each pair, the second pair in the other order; one untimed pass of each first, which allocates."""
    own()
    peer()
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            theirs, ours = seconds(peer), seconds(own)
        else:
            ours, theirs = seconds(own), seconds(peer)
        times.append((ours, theirs))
    ratios = sorted(theirs / ours for ours, theirs in times)
    middle = [median(side) for side in zip(*times, strict=True)]
    return Paired(median(ratios), ratios[0], ratios[-1], middle[0], middle[1], pairs)


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = perf_counter()
    work()
    return perf_counter() - started


def relative(own: np.ndarray, peer: np.ndarray) -> float:
    """Largest difference as a share of the largest absolute value of the peer; infinite when one is not finite."""
    own, peer = np.asarray(own, dtype=np.float64), np.asarray(peer, dtype=np.float64)
    if own.shape != peer.shape or not (np.isfinite(own).all() and np.isfinite(peer).all()):
        return float("inf")
    return float(np.abs(own - peer).max() / max(np.abs(peer).max(), 1e-300))


class Counted(nn.Module):
    """A module of pixels to logits that counts the images sent forward and those whose gradient came back."""

    def __init__(self, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.run, self.forwards, self.backwards = run, 0, 0
        self.eval()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.run(pixels)
        self.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._back(len(gradient)))
        return logits

    def _back(self, images: int) -> None:
        self.backwards += images

    def counts(self, work: Callable[[], object]) -> tuple[int, int]:
        """Images forward and back during one call of the work."""
        before = self.forwards, self.backwards
        work()
        return self.forwards - before[0], self.backwards - before[1]


@contextmanager
def without_warnings() -> Iterator[None]:
    """Peers warn of their own deprecations at every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
