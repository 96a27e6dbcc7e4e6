"""How concentrated is a map? Of its magnitudes, per case, (B,); NaN for a map of zeros or with a value that is no number.

A concentrated map is easier to read, not truer: a single arbitrary pixel is the most concentrated map of all.
"""

from __future__ import annotations

import numpy as np
from scipy.special import xlogy


def gini(maps: np.ndarray) -> np.ndarray:
    """Gini index of the magnitudes (Hurley and Rickard 2009): 0 for a constant map, (n - 1) / n for one of n pixels.

    maps: (B, ...), pixels or units, n of them per case.
    """
    shares = np.sort(_shares(maps), axis=1)
    count = shares.shape[1]
    ranks = 2.0 * np.arange(1, count + 1) - count - 1.0
    return np.asarray((shares * ranks).sum(axis=1) / count)


def entropy(maps: np.ndarray) -> np.ndarray:
    """Entropy of the shares of the magnitude (Bhatt et al. 2020), in nats: ln n for a constant map, 0 for one pixel."""
    shares = _shares(maps)
    return np.asarray(np.abs(xlogy(shares, shares).sum(axis=1)))


def _shares(maps: np.ndarray) -> np.ndarray:
    """(B, n) magnitudes that sum to 1 per case; NaN where they cannot."""
    sizes = np.abs(maps.reshape(len(maps), -1).astype(np.float64))
    total = sizes.sum(axis=1)
    shares = np.full(sizes.shape, np.nan)
    usable = (total > 0) & np.isfinite(total)
    np.divide(sizes, total[:, None], out=shares, where=usable[:, None])
    return shares
