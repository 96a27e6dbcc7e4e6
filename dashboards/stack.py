"""The image, the mask and the maps of a case as numbers of one size, gathered from all analyses that keep maps of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xvision import images
from xvision.errors import RunError
from xvision.result import MapVerdict, StoredCase
from xvision.store import Run

_CHOSEN, _MOST_SIDE, _MOST_PNG = 3, 1024, 4096
_BEST_FIRST = ("describes the model", "not decided", "not tested", "no better than a control", "fails randomisation")
_OWN = ("pixels", "mask")  # arrays beside the maps


class Map(NamedTuple):
    """values: (H, W). verdict: on the method that drew it."""

    values: np.ndarray
    verdict: MapVerdict

    @property
    def signed(self) -> bool:
        """Whether it tells evidence against from evidence for: a map without a negative value gives strength only."""
        return bool((self.values < 0).any())


@dataclass(frozen=True, eq=False)
class Stack:
    """What the viewer shows of a case, all of one size: pixels (C, H, W) in [0, 1], mask (H, W), maps by name."""

    pixels: np.ndarray
    mask: np.ndarray | None
    maps: Mapping[str, Map]
    remarks: tuple[str, ...]

    def best(self) -> list[str]:
        """Names of at most three maps, all of the best verdict there is."""
        ranks = {name: _BEST_FIRST.index(found.verdict.said) for name, found in self.maps.items()}
        return [name for name, rank in ranks.items() if rank == min(ranks.values())][:_CHOSEN]


def stacked(run: Run, stored: Mapping[str, StoredCase]) -> Stack | None:
    """Image, mask and maps of a case; None where no analysis keeps maps. Raises RunError for damaged files.

    The first analysis with maps gives the image and the mask. Of an image of more than 1024 pixels on a side, every
    second, third, … row and column is taken.
    """
    kept = {analysis: run.maps(case) for analysis, case in stored.items() if case.mapped}
    maps = dict(_maps(run, stored, kept))
    if not maps:
        return None
    shape = next(iter(maps.values())).values.shape
    same = {name: found for name, found in maps.items() if found.values.shape == shape}
    analysis = next(name for name, arrays in kept.items() if arrays)
    step = -(-max(shape) // _MOST_SIDE)
    mask = kept[analysis].get("mask")
    pixels = _pixels(run, stored[analysis], kept[analysis], shape)
    return Stack(
        pixels[:, ::step, ::step],
        mask[::step, ::step] > 0 if mask is not None and mask.shape == shape else None,
        {name: Map(found.values[::step, ::step], found.verdict) for name, found in same.items()},
        tuple(_remarks(shape, step, [name for name in maps if name not in same])),
    )


def _maps(
    run: Run, stored: Mapping[str, StoredCase], kept: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[tuple[str, Map]]:
    """Every map by the name of its method; another map of the same method carries the analysis it comes from."""
    titles = {record.analysis: record.title for record in run.records}
    seen: dict[str, np.ndarray] = {}
    for analysis, arrays in kept.items():
        for name in stored[analysis].mapped:
            if name not in arrays or name in _OWN:
                continue
            values = arrays[name]
            if name not in seen or not np.array_equal(seen[name], values):
                yield (f"{name} ({titles[analysis]})" if name in seen else name), Map(values, run.map_verdict(name))
            seen.setdefault(name, values)


def _remarks(shape: tuple[int, ...], step: int, others: list[str]) -> Iterator[str]:
    for name in others:
        yield f"{name} has another size than the other maps and is not shown here."
    if step > 1:
        yield f"Of {shape[0]} × {shape[1]} pixels, one in {step} of every row and column is shown."


def _pixels(run: Run, case: StoredCase, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The image (C, H, W): as numbers where they are kept, else from its picture, else black."""
    kept = arrays.get("pixels")
    if kept is not None and kept.shape == shape:
        grey: np.ndarray = np.clip(kept, 0.0, 1.0)[None]
        return grey
    if "image" not in case.pictures:
        return np.zeros((1, *shape))
    try:
        picture = images.read_png(run.picture(case, "image"), _MOST_PNG)
    except ValueError as problem:
        raise RunError(f"{case.pictures['image']}: {problem}. Run `xvision verify {run.path}`.") from None
    pixels: np.ndarray = np.moveaxis(images.reduced(picture, *shape), -1, 0) / 255.0
    return pixels
