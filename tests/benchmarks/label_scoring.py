"""Label scoring with a shared prompt against full re-encoding: the same numbers, and how much faster for ten labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from tests.models.vlm_builders import FAMILIES, TEN, load, pixels, save_vlm
from xvision.models.vlm.classifier import VlmClassifier

EQUAL, FASTER = 1e-5, 4.0
IMAGES = 4


def rows(quick: bool) -> list[dict[str, Any]]:
    """One row for the equality and two for the cost of each family; quick measures 5 pairs of times, else 15."""
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder, _one_thread():
        for name in FAMILIES:
            model = load(save_vlm(Path(folder) / name, name), TEN)
            found += [_equality(name, model), _tokens(name, model), _time(name, model, 5 if quick else 15)]
    return found


@torch.no_grad()
def _equality(name: str, model: VlmClassifier) -> dict[str, Any]:
    images = pixels(IMAGES)
    figure = float((model.scores(images) - model.naive_scores(images)).abs().max())
    how = f"largest |difference| of log-probabilities, {IMAGES} images × 10 labels, tiny random {name}"
    return _row(f"{name}: shared equals naive", figure, f"≤ {EQUAL:g}", figure <= EQUAL, how)


@torch.no_grad()
def _tokens(name: str, model: VlmClassifier) -> dict[str, Any]:
    counted: list[int] = []
    hook = model.module.register_forward_pre_hook(
        lambda _, __, given: counted.append(given["input_ids"].numel()), with_kwargs=True
    )
    images = pixels(IMAGES)
    model.scores(images)
    shared = sum(counted)
    counted.clear()
    model.naive_scores(images)
    hook.remove()
    figure = sum(counted) / shared
    how = f"tokens read by the language model for 10 labels, naive {sum(counted)} over shared {shared}"
    return _row(f"{name}: fewer tokens", figure, f"≥ {FASTER:g}", figure >= FASTER, how)


@torch.no_grad()
def _time(name: str, model: VlmClassifier, pairs: int) -> dict[str, Any]:
    images = pixels(IMAGES)
    _seconds(model, images)  # the first pass allocates
    ratios = sorted(slow / fast for fast, slow in (_seconds(model, images) for _ in range(pairs)))
    figure = median(ratios)
    how = (
        f"wall time naive over shared, 10 labels, {IMAGES} images, one CPU thread; median of {pairs} pairs, "
        f"range {ratios[0]:.1f} to {ratios[-1]:.1f}"
    )
    return _row(f"{name}: faster", figure, f"≥ {FASTER:g}", figure >= FASTER, how)


def _seconds(model: VlmClassifier, images: torch.Tensor) -> tuple[float, float]:
    start = perf_counter()
    model.scores(images)
    middle = perf_counter()
    model.naive_scores(images)
    return middle - start, perf_counter() - middle


def _row(check: str, figure: float, target: str, holds: bool, how: str) -> dict[str, Any]:
    return {"check": check, "figure": figure, "target": target, "holds": holds, "how": how}


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
