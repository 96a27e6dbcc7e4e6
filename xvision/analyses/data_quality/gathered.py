"""The images of all splits, in one line: hashes, faults and embeddings, part by part and never all images at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.methods.image_faults import ImageFacts, faults, image_facts
from xvision.methods.near_duplicates import difference_hashes, hash_distances, shifted_hashes
from xvision.methods.repeats import IMAGE_REPEATS, repeated

COPIES = ("jpeg", "shift_left")
"""Copies that are made on purpose, to see whether they would be found."""


@dataclass(frozen=True)
class Gathered:
    """M images: those audited first. audits: one per split; owner, position: (M,) which of them, and where in it."""

    audits: tuple[Audit, ...]
    owner: np.ndarray
    position: np.ndarray
    rows: Rows

    @cached_property
    def ids(self) -> np.ndarray:
        return self._each(lambda audit: audit.ids)

    @cached_property
    def patients(self) -> np.ndarray:
        return self._each(lambda audit: audit.patients)

    @cached_property
    def splits(self) -> np.ndarray:
        return self._each(lambda audit: audit.data.table["split"].to_numpy(dtype=str))

    @cached_property
    def labels(self) -> np.ndarray:
        """(M,) names, as the data has them."""
        return self._each(lambda audit: audit.data.table["label"].to_numpy(dtype=str))

    @property
    def audited(self) -> np.ndarray:
        """(M,) bool."""
        found: np.ndarray = self.owner == 0
        return found

    @cached_property
    def faults(self) -> np.ndarray:
        """(M,) the fault of each image, "" for none."""
        return faults(ImageFacts(*(self.rows[name] for name in ImageFacts._fields)))

    def kept(self, chosen: np.ndarray) -> Gathered:
        """Those of the images for which ``chosen`` (M,) is true."""
        rows = {name: values[chosen] for name, values in self.rows.items()}
        return Gathered(self.audits, self.owner[chosen], self.position[chosen], rows)

    def pixels(self, place: int) -> np.ndarray:
        """(C, H, W)"""
        return np.asarray(self.audits[self.owner[place]].pixels([self.position[place]])[0])

    def looked_at(self) -> str:
        """How many of how many images of each split."""
        found = []
        for place, audit in enumerate(self.audits):
            seen, there = int((self.owner == place).sum()), len(audit.ids)
            found.append(f"{seen} of {there} {'audited' if place == 0 else audit.data.table['split'].iloc[0]}")
        return ", ".join(found)

    def _each(self, values: Callable[[Audit], np.ndarray]) -> np.ndarray:
        parts = [values(audit)[self.position[self.owner == place]] for place, audit in enumerate(self.audits)]
        return np.concatenate(parts)


def all_splits(audit: Audit) -> tuple[Audit, ...]:
    """The audited images, and those of every split that is not among them."""
    audited = set(audit.data.table["split"])
    names = sorted(set(audit.everything.table["split"]) - audited)
    return (audit, *(other for name in names if (other := audit.on_split(name)) is not None))


def hashed(audits: tuple[Audit, ...], cases: int) -> Gathered:
    """Hashes and facts of at most ``cases`` images of each split; no pass through the model."""
    return _gathered(audits, cases, _hashes)


def embedded(audits: tuple[Audit, ...], cases: int) -> Gathered:
    """Embeddings of at most ``cases`` images of each split."""
    return _gathered(audits, cases, _embeddings)


def _gathered(audits: tuple[Audit, ...], cases: int, measure: Callable[[Batch], Rows]) -> Gathered:
    places = [audit.sample(cases) for audit in audits]
    rows = [audit.map(measure, positions=chosen) for audit, chosen in zip(audits, places, strict=True)]
    owner = np.repeat(np.arange(len(audits)), [len(chosen) for chosen in places])
    merged = {name: np.concatenate([part[name] for part in rows]) for name in rows[0]}
    return Gathered(audits, owner, np.concatenate(places), merged)


def _hashes(batch: Batch) -> Rows:
    return {"hashes": shifted_hashes(batch.pixels), **image_facts(batch.pixels)._asdict()}


def _embeddings(batch: Batch) -> Rows:
    with torch.inference_mode():
        return {"embeddings": batch.model.embed(batch.pixels).float().cpu().numpy()}


def copies(batch: Batch) -> Rows:
    """Bits between each image and known copies of it, by the name of the copy."""
    own = shifted_hashes(batch.pixels)
    made = {each.name: each for each in IMAGE_REPEATS if each.name in COPIES}
    return {
        name: hash_distances(own, difference_hashes(repeated(batch.pixels, each, batch.ids, seed=0))[:, None]).min(
            axis=1
        )
        for name, each in made.items()
    }
