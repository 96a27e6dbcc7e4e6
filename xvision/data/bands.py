"""Columns of numbers as groups: a few bands, between edges that the plan names or, failing that, at the quartiles."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from xvision.config import check_edges
from xvision.data.dataset import UNKNOWN
from xvision.data.findings import MISSING
from xvision.errors import ConfigError, DataError

MOST_NUMBERS = 12
"""Different numbers from which a column is taken for a measurement and not for a code."""
_YEARS = {"d": 1 / 365.25, "w": 7 / 365.25, "m": 1 / 12, "y": 1.0}
_AGE = re.compile(r"(\d+)\s*([dwmy])", re.IGNORECASE)


@dataclass(frozen=True)
class Bands:
    """edges: ascending; a value equal to an edge belongs to the band above. declared: False where the data chose them."""

    edges: tuple[float, ...]
    declared: bool
    names: tuple[str, ...] = ()
    """From the lowest band to the highest; sorted as text they keep that order."""


def banded(values: pd.Series[str], sheet: str, edges: Sequence[float] | None) -> tuple[pd.Series[str], Bands | None]:
    """Levels of a group column, "unknown" where missing; a column of many numbers, or one with ``edges``, as bands.

    A number may be an age as DICOM writes it (``063Y``, ``018M``), which counts in years. Raises DataError for a column
    with edges that holds something else.
    """
    missing = values.str.lower().isin(MISSING)
    levels = values.mask(missing, UNKNOWN)
    spelt: dict[str, float | None] = {text: _number(text) for text in levels[~missing].unique()}
    strange = [text for text, number in spelt.items() if number is None]
    numbers = {number for number in spelt.values() if number is not None}
    if edges is None and (strange or len(numbers) <= MOST_NUMBERS):
        return levels, None
    if strange:
        raise DataError(
            f"The column {values.name!r} of {sheet} is to be banded but holds {strange[0]!r}, which is no number "
            f"({len(strange)} such values): correct the cells, leave them empty, or remove {values.name!r} from data.bands."
        )
    found = levels[~missing].map(spelt).to_numpy(dtype=float)
    ages = bool(spelt) and all(_AGE.fullmatch(text) for text in spelt)
    whole = ages or all(number == int(number) for number in numbers)
    chosen = tuple(map(float, _quartiles(found, whole) if edges is None else edges))
    names = _names(chosen, whole and min(numbers, default=0.0) >= 0)
    levels[~missing] = np.asarray(names)[np.searchsorted(chosen, found, side="right")]
    return levels, Bands(chosen, edges is not None, names)


def check_bands(bands: Mapping[str, Sequence[float]], groups: Sequence[str]) -> None:
    """Raises ConfigError for edges of a column that is no group, or that make no bands."""
    for column, edges in bands.items():
        if column not in groups:
            raise ConfigError(
                f"data.bands names {column!r}, which is no group or acquisition column: name it there too, or remove it."
            )
        check_edges(column, edges)


def _number(text: str) -> float | None:
    age = _AGE.fullmatch(text)
    if age:
        return int(age[1]) * _YEARS[age[2].lower()]
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _quartiles(found: np.ndarray, whole: bool) -> list[float]:
    """Up to three edges, none of which leaves a band empty."""
    edges = np.quantile(found, (0.25, 0.5, 0.75))
    edges = np.rint(edges) if whole else edges
    kept = [float(edge) for edge in np.unique(edges) if found.min() < edge <= found.max()]
    return kept or [float(found.max())]


def _names(edges: Sequence[float], whole: bool) -> tuple[str, ...]:
    """``0-39``, ``40-59``, ``60+`` for whole numbers from 0 on; else numbered words."""
    if whole and edges[0] > 0 and all(edge == int(edge) for edge in edges):
        width = len(str(int(edges[-1])))
        inner = [(0, edges[0]), *pairwise(edges)]
        for pad in (0, width):
            spans = [(f"{int(low):0{pad}d}", f"{int(high) - 1:0{pad}d}") for low, high in inner]
            names = [*(low if low == high else f"{low}-{high}" for low, high in spans), f"{int(edges[-1])}+"]
            if names == sorted(names):
                return tuple(names)
    between = [f"{low:g} to below {high:g}" for low, high in pairwise(edges)]
    words = [f"below {edges[0]:g}", *between, f"{edges[-1]:g} or more"]
    return tuple(f"{place}: {name}" for place, name in enumerate(words, start=1))
