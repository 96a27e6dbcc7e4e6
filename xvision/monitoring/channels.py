"""What is watched: numbers of each image, its output and its place among the embeddings. Shapes: N images, K classes, D channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from xvision.data.dataset import AuditDataset
from xvision.errors import DataError
from xvision.methods.decision import Decision, decide, probabilities
from xvision.methods.intervals import patient_codes
from xvision.methods.shift.image_statistics import STATISTICS, image_statistics
from xvision.models.protocols import Classifier, TextClassifier

_PART = 64
AXES = 8
"""Principal axes of the embeddings that are watched, at most."""
_HELD = 0.5
"""An axis is watched when other patients vary along it by this share of what those vary by whom it was found with."""


class Seen(NamedTuple):
    """ids, patients: (N,). logits: (N, K). statistics: (N, S). embeddings: (N, E) or None. unreadable: a sentence per image left out."""

    ids: np.ndarray
    patients: np.ndarray
    logits: np.ndarray
    statistics: np.ndarray
    embeddings: np.ndarray | None
    unreadable: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Axes:
    """Directions in which the reference's embeddings vary most, and other patients' as well: along a direction that only fits the
    reference's own noise, every new image would seem to have moved. mean: (E,), directions: (A, E).
    """

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray, patients: np.ndarray) -> Axes:
        """From embeddings (N, E) of at least two patients (N,)."""
        kept = _directions(embeddings)[: _holding(embeddings, patients)]
        signs = np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(axis=1)])
        return cls(embeddings.mean(axis=0), kept * signs[:, None])

    def places(self, embeddings: np.ndarray) -> np.ndarray:
        """(N, A)."""
        return np.asarray((embeddings - self.mean) @ self.directions.T)


def _directions(embeddings: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.svd(embeddings - embeddings.mean(axis=0), full_matrices=False)[2][:AXES])


def _holding(embeddings: np.ndarray, patients: np.ndarray) -> int:
    """How many of the first axes hold for other patients: found with either half of the patients, judged on the other."""
    codes, _ = patient_codes(patients, len(embeddings))
    halves = embeddings[codes % 2 == 0], embeddings[codes % 2 == 1]
    held = []
    for own, other in (halves, halves[::-1]):
        found = _directions(own).T
        spread = (own @ found).var(axis=0)
        held.append(np.where(spread > 1e-12, (other @ found).var(axis=0) / np.maximum(spread, 1e-12), 0.0))
    count = min(len(each) for each in held)
    return int(np.cumprod((held[0][:count] + held[1][:count]) / 2 >= _HELD).sum())


def reads_text(model: Classifier, data: AuditDataset) -> bool:
    """Whether the model gets a text with each of these images, as in an audit of them."""
    return isinstance(model, TextClassifier) and model.takes_text and "text" in data.table.columns


def look(model: Classifier, data: AuditDataset, *, embeddings: bool, texts: bool) -> Seen:
    """Every image once through the model, with its text if so asked; images that cannot be read are named and left out.

    DataError when none can be read.
    """
    found: list[tuple[np.ndarray, ...]] = []
    unreadable: list[str] = []
    for start in range(0, len(data), _PART):
        for part in _readable(data, data.ids[start : start + _PART], model, unreadable):
            reader = _with_texts(model, data, part[0]) if texts else model
            found.append(_passed(reader, *part, embeddings=embeddings))
    if not found:
        raise DataError(
            f"none of the {len(data)} images can be read. {unreadable[0] if unreadable else 'The set is empty.'}"
        )
    ids, logits, statistics = (np.concatenate([each[place] for each in found]) for place in range(3))
    vectors = np.concatenate([each[3] for each in found]) if embeddings else None
    patients = data.table.loc[list(ids), "patient"].to_numpy(dtype=str)
    return Seen(ids, patients, logits, statistics, vectors, tuple(unreadable))


def _with_texts(model: Classifier, data: AuditDataset, ids: Sequence[str]) -> Classifier:
    return model.with_text([str(text) for text in data.table.loc[list(ids), "text"]])  # type: ignore[attr-defined,no-any-return]  # asked for by the caller


def _readable(
    data: AuditDataset, ids: Sequence[str], model: Classifier, unreadable: list[str]
) -> list[tuple[Sequence[str], np.ndarray]]:
    """The images of a part together, or one by one where some cannot be read."""
    try:
        return [(ids, data.pixels(ids, model.input))]
    except DataError as problem:
        if len(ids) == 1:
            unreadable.append(str(problem))
            return []
    return [part for name in ids for part in _readable(data, [name], model, unreadable)]


def _passed(model: Classifier, ids: Sequence[str], pixels: np.ndarray, *, embeddings: bool) -> tuple[np.ndarray, ...]:
    with torch.inference_mode():
        shown = torch.from_numpy(pixels).to(model.device)
        logits = model.logits(shown).double().cpu().numpy()
        vectors = model.embed(shown).double().cpu().numpy() if embeddings else np.zeros((len(ids), 0))  # type: ignore[attr-defined]  # asked for by the caller
    measured = image_statistics(pixels)
    return np.array(ids, dtype=str), logits, np.stack([measured[name] for name in STATISTICS], axis=1), vectors


def channels(
    seen: Seen, classes: Sequence[str], decision: Decision, axes: Axes | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Names, and values (N, D): probabilities, confidence, image statistics, places along the axes."""
    found = probabilities(seen.logits)
    watched = [decision.positive] if decision.positive is not None else range(len(classes))
    names = [f"probability of {classes[code]}" for code in watched] + ["confidence"]
    columns = [found[:, list(watched)], found.max(axis=1, keepdims=True), seen.statistics]
    names += [f"image: {title}" for title in STATISTICS.values()]
    if axes is not None and seen.embeddings is not None:
        columns.append(axes.places(seen.embeddings))
        names += [f"embedding, axis {place + 1}" for place in range(len(axes.directions))]
    return tuple(names), np.concatenate(columns, axis=1)


def decided(seen: Seen, decision: Decision) -> np.ndarray:
    """(N,) class indices as deployed."""
    return decide(seen.logits, decision)
