"""Which images each epoch shows, as a pure function of seed and epoch.

Nothing has to be skipped or replayed to continue a run, and neither batch size nor number of processes changes the order.
Counter-based generator Philox (Salmon et al., 2011).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ORDER, _CELL, _OLD, _MIX = 0, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Sampler:
    """The images of an epoch, drawn from ``count`` new and ``old`` earlier ones (whose indices follow the new ones').

    cells: (count,) cell of each new image; given, every cell is drawn equally often and within a cell every image is
    drawn before one is drawn again. share: of the epoch's images that are old.
    """

    count: int
    seed: int
    cells: np.ndarray | None = None
    old: int = 0
    share: float = 0.0

    @property
    def rehearsed(self) -> int:
        """Old images in an epoch; 0 when there are none."""
        return round(self.count * self.share / (1 - self.share)) if self.old else 0

    def __len__(self) -> int:
        return self.count + self.rehearsed

    def order(self, epoch: int) -> np.ndarray:
        """(len,) indices of one epoch."""
        new = order(self.count, self.seed, epoch) if self.cells is None else self._balanced(epoch, self.cells)
        if not self.rehearsed:
            return new
        earlier = self.count + _cycled(np.arange(self.old), self.rehearsed, self.seed, epoch, _OLD, 0)
        both = np.concatenate((new, earlier))
        return both[_generator(self.seed, epoch, _MIX, 0).permutation(len(both))]

    def _balanced(self, epoch: int, cells: np.ndarray) -> np.ndarray:
        names = np.unique(cells)
        slots = np.resize(names, self.count)
        slots = slots[order(self.count, self.seed, epoch)]
        drawn = np.empty(self.count, dtype=np.int64)
        for place, name in enumerate(names):
            wanted = np.flatnonzero(slots == name)
            drawn[wanted] = _cycled(np.flatnonzero(cells == name), len(wanted), self.seed, epoch, _CELL, place)
        return drawn


def order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The (count,) indices of one epoch, each once."""
    return _generator(seed, epoch, _ORDER, 0).permutation(count)


def _cycled(members: np.ndarray, wanted: int, seed: int, epoch: int, purpose: int, place: int) -> np.ndarray:
    """``wanted`` of the members, in rounds of random order that each go through all of them."""
    generator = _generator(seed, epoch, purpose, place)
    rounds = [generator.permutation(members) for _ in range(-(-wanted // len(members)))]
    return np.concatenate(rounds)[:wanted] if rounds else members[:0]


def _generator(seed: int, epoch: int, purpose: int, place: int) -> np.random.Generator:
    # The generator counts up from the lowest word, so streams that differ in a higher word never meet.
    counter = np.array([0, 0, purpose, place], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], dtype=np.uint64), counter=counter))
