"""Random numbers as a pure function of seed, epoch and example.

Nothing has to be skipped or replayed to continue a run, and neither batch size nor number of workers changes what an
example is given. Counter-based generator Philox (Salmon et al., 2011).
"""

from __future__ import annotations

import numpy as np

_ORDER, _EXAMPLE = 0, 1


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The (count,) indices of one epoch, each once."""
    return _generator(seed, epoch, _ORDER, 0).permutation(count)


def example_stream(seed: int, epoch: int, example: int) -> np.random.Generator:
    """The random numbers of one example in one epoch."""
    return _generator(seed, epoch, _EXAMPLE, example)


def _generator(seed: int, epoch: int, purpose: int, example: int) -> np.random.Generator:
    # The generator counts up from the lowest word, so streams that differ in a higher word never meet.
    counter = np.array([0, 0, purpose, example], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64), counter=counter))
