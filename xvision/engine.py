"""Per-case work in parts: each part is written atomically, found again after a kill, and made smaller when memory runs out.

Results do not depend on the number of parts, on where they ran, or on how often the work was interrupted.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from xvision import cluster
from xvision.data.dataset import AuditDataset
from xvision.errors import RunError
from xvision.models.metered import Meter, MeteredClassifier
from xvision.models.protocols import Classifier
from xvision.store import write_atomic

Rows = dict[str, np.ndarray]
"""Per-case values by name; the first axis of every array is the case."""
EngineKind = Literal["local", "ray"]
_FORWARD, _BACKWARD = "forward passes", "backward passes"


class Batch(NamedTuple):
    """What a measure gets: ids, pixels (B, C, H, W) in [0, 1] on the model's device, labels (B,) class indices, the model."""

    ids: tuple[str, ...]
    pixels: torch.Tensor
    labels: torch.Tensor
    model: MeteredClassifier


Measure = Callable[[Batch], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Progress:
    """Cases done, of how many, and the estimated seconds left (None before the first part)."""

    task: str
    done: int
    total: int
    seconds_left: float | None


@dataclass(frozen=True)
class Work:
    """One measure over a list of cases."""

    name: str
    measure: Measure
    model: Classifier
    data: AuditDataset
    ids: tuple[str, ...]
    labels: np.ndarray
    options: Mapping[str, Any]
    seed: int
    fingerprints: tuple[str, str]
    """Of the model and of the data; given, because hashing weights and images takes time."""
    part: int | None = None
    """Images of one part, for a measure that fills its own batches; the engine's own unless given."""

    @cached_property
    def key(self) -> str:
        """Equal keys mean equal results: data, model, options, seed, cases and the code that computes."""
        parts = {
            "name": self.name, "options": self.options, "seed": self.seed, "ids": self.ids, "code": code_version(),
            "fingerprints": self.fingerprints, "device": self.model.device.type, "part": self.part,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass
class Engine:
    """Runs work part by part. ``folder`` keeps finished parts; without one nothing survives the process."""

    folder: Path | None = None
    kind: EngineKind = "local"
    part: int = 64
    """Images of one part, and the largest batch."""
    progress: Callable[[Progress], None] = lambda _: None
    meter: Meter = field(default_factory=Meter)

    def map(self, work: Work) -> Rows:
        """The measure's rows for all cases, in their order."""
        part = work.part or self.part
        cuts = [slice(start, start + part) for start in range(0, len(work.ids), part)]
        stored = {place: rows for place in range(len(cuts)) if (rows := self._stored(work, place)) is not None}
        missing = [place for place in range(len(cuts)) if place not in stored]
        started, fresh = time.monotonic(), 0
        done = sum(len(work.ids[cuts[place]]) for place in stored)
        self.progress(Progress(work.name, done, len(work.ids), None))
        for place, rows in self._computed(work, [(place, cuts[place]) for place in missing]):
            stored[place] = rows
            self._store(work, place, rows)
            fresh += len(work.ids[cuts[place]])
            left = (time.monotonic() - started) / fresh * (len(work.ids) - done - fresh)
            self.progress(Progress(work.name, done + fresh, len(work.ids), left))
        return self._merged([stored[place] for place in range(len(cuts))])

    def _computed(self, work: Work, parts: list[tuple[int, slice]]) -> Iterator[tuple[int, Rows]]:
        if self.kind == "ray" and parts:
            yield from cluster.tasks(compute, work, parts)
        else:
            for place, cut in parts:
                yield place, compute(work, cut)

    def _merged(self, parts: Sequence[Rows]) -> Rows:
        for rows in parts:
            self.meter.forward += int(rows[_FORWARD])
            self.meter.backward += int(rows[_BACKWARD])
        names = [name for name in parts[0] if name not in {_FORWARD, _BACKWARD}] if parts else []
        return {name: np.concatenate([rows[name] for rows in parts]) for name in names}

    def _path(self, work: Work, place: int) -> Path | None:
        return self.folder / work.key[:24] / f"{place:06d}.npz" if self.folder else None

    def _stored(self, work: Work, place: int) -> Rows | None:
        path = self._path(work, place)
        if path is None or not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def _store(self, work: Work, place: int, rows: Rows) -> None:
        path = self._path(work, place)
        if path is not None:
            buffer = io.BytesIO()
            arrays: dict[str, Any] = rows
            np.savez(buffer, allow_pickle=False, **arrays)
            write_atomic(path, buffer.getvalue())


def compute(work: Work, cut: slice) -> Rows:
    """One part, in smaller batches when memory runs out."""
    meter = Meter()
    model = MeteredClassifier(work.model, meter)
    rows = _measured(work, model, list(range(len(work.ids)))[cut])
    return {**rows, _FORWARD: np.array(meter.forward), _BACKWARD: np.array(meter.backward)}


def _measured(work: Work, model: MeteredClassifier, places: list[int]) -> Rows:
    ids = tuple(work.ids[place] for place in places)
    try:
        pixels = torch.from_numpy(work.data.pixels(ids, model.input)).to(model.device)
        labels = torch.from_numpy(work.labels[places]).to(model.device)
        rows = _asked(work, Batch(ids, pixels, labels, model))
    except (MemoryError, torch.OutOfMemoryError):
        if len(places) == 1:
            raise RunError(
                f"{work.name}: memory ran out on the single image {ids[0]!r}. Use a larger machine or device."
            ) from None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = len(places) // 2
        halves = (_measured(work, model, places[:half]), _measured(work, model, places[half:]))
        return {name: np.concatenate([part[name] for part in halves]) for name in halves[0]}
    for name, values in rows.items():
        if values.ndim == 0 or len(values) != len(places):
            raise TypeError(f"{work.name}: the measure gave {values.shape} for {name!r} and {len(places)} cases")
    return rows


def _asked(work: Work, batch: Batch) -> Rows:
    """The measure's rows. With texts, case by case with the case's own bound, so that a measure may repeat its images."""
    if not batch.model.takes_text or "text" not in work.data.table.columns:
        return {name: np.asarray(values) for name, values in work.measure(batch).items()}
    texts = work.data.table.loc[list(batch.ids), "text"]
    parts = [
        work.measure(Batch((name,), batch.pixels[[place]], batch.labels[[place]], batch.model.with_text([str(text)])))
        for place, (name, text) in enumerate(zip(batch.ids, texts, strict=True))
    ]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


@cache
def code_version() -> str:
    """SHA-256 over the library's own source: parts computed by other code are not used again."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
