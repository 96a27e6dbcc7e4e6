"""From a plan's data to what the loop takes: classes, patient-disjoint splits, images decoded once, codes and text."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from xvision.config import Plan
from xvision.data.dataset import UNKNOWN, AuditDataset
from xvision.errors import ConfigError, DataError, nearest
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.protocols import InputSpec
from xvision.training.record import Arrays
from xvision.training.world import world

SPLITS = ("train", "validation", "test")
_CHUNK = 64
_IN_MEMORY = 2**30
"""Bytes of a split's images above which they are kept in a file beside the checkpoint while training runs."""
_NAMED = 5


class Bar(Protocol):
    """Where progress is shown."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None: ...

    def close(self) -> None: ...

    def say(self, sentence: str) -> None: ...


@dataclass(frozen=True)
class Inputs:
    """The splits of the data as arrays; ``old`` images at the end of the training split are rehearsed.

    cut: texts of all splits that were longer than the model reads.
    """

    splits: Mapping[str, AuditDataset]
    arrays: Mapping[str, Arrays]
    old: int = 0
    cut: int = 0


def classes_of(data: AuditDataset, plan: Plan) -> tuple[str, ...]:
    """Class names in alphabetical order, the declared positive class last; the findings of multi-label data."""
    positive = plan.decision.positive
    found = data.findings if data.multilabel else tuple(sorted(set(data.table["label"])))
    if positive is None or data.multilabel:
        return tuple(found)
    if positive not in found:
        raise ConfigError(f"decision.positive is {positive!r}, but the labels are {', '.join(found)}.")
    return (*[name for name in found if name != positive], positive)


def splits_of(data: AuditDataset) -> dict[str, AuditDataset]:
    """Train, validation and test; DataError when one is missing or two share a patient."""
    found = {name: data.split(name) for name in SPLITS if (data.table["split"] == name).any()}
    missing = [name for name in SPLITS if name not in found]
    if missing:
        have = ", ".join(sorted(set(data.table["split"])))
        raise DataError(
            f"fine-tuning needs the splits train, validation and test; {', '.join(missing)} is missing (found: {have}). "
            "A table [data.split] in the plan makes them."
        )
    owners: dict[str, str] = {}
    for name, part in found.items():
        for patient in set(part.table["patient"]):
            if owners.setdefault(patient, name) != name:
                raise DataError(
                    f"patient {patient!r} is in both {owners[patient]} and {name}: split by patient, or the test says nothing."
                )
    return found


def read_inputs(
    splits: Mapping[str, AuditDataset],
    old: AuditDataset | None,
    model: LlmImageClassifier,
    plan: Plan,
    cache: Path,
    bar: Bar,
) -> Inputs:
    """Every split decoded once at the model's size; ``old`` joins the training split."""
    rehearsed = [] if old is None else [old]
    reader = _Reader(model, plan, cache, bar, _group_levels(plan, [*splits.values(), *rehearsed]))
    arrays = {name: reader.read(name, part, *(rehearsed if name == "train" else ())) for name, part in splits.items()}
    arrays["train"] = arrays["train"]._replace(balance=_balance(splits["train"], plan))
    bar.close()
    return Inputs(splits, arrays, 0 if old is None else len(old), reader.cut)


def texts_of(data: AuditDataset) -> list[str]:
    """The clinical text of every case; DataError when the data have none."""
    if "text" not in data.table.columns:
        raise DataError(
            "backbone.text_tokens asks for clinical text but the data have no column 'text': add one, name it in data.columns, "
            "or set text_tokens to 0."
        )
    return [str(text) for text in data.table["text"]]


class _Reader:
    """Reads one split after another in the same way."""

    def __init__(self, model: LlmImageClassifier, plan: Plan, cache: Path, bar: Bar, levels: Sequence[str]) -> None:
        shape = model.config
        self.spec = InputSpec(shape.num_channels, shape.image_size, shape.image_size)
        self.model, self.plan, self.cache, self.bar, self.levels = model, plan, cache, bar, levels
        self.cut = 0

    def read(self, name: str, *parts: AuditDataset) -> Arrays:
        """The images of all parts in one array, however many they are."""
        pixels = decoded(parts, self.spec, self.cache / name, self.bar)
        classes = self.model.config.classes
        labels = [part.label_matrix(classes) if part.multilabel else part.label_codes(classes) for part in parts]
        groups, texts = ([read(part) for part in parts] for read in (self._groups, self._text))
        return Arrays(pixels, np.concatenate(labels), _joined(groups), _joined(texts))

    def _groups(self, data: AuditDataset) -> np.ndarray | None:
        column = self.plan.training.groups.column
        if column is None:
            return None
        values = data.table[column] if column in data.table.columns else [UNKNOWN] * len(data)
        codes = {level: code for code, level in enumerate(self.levels)}
        return np.array([codes[str(value)] for value in values], dtype=np.int64)

    def _text(self, data: AuditDataset) -> np.ndarray | None:
        vocabulary = self.model.vocabulary
        if vocabulary is None:
            return None
        encoded = vocabulary.encode(texts_of(data))
        self.cut += encoded.cut
        return encoded.rows


def _group_levels(plan: Plan, parts: Sequence[AuditDataset]) -> list[str]:
    column = plan.training.groups.column
    if column is None:
        return []
    columns = parts[0].table.columns
    if column not in columns:
        raise ConfigError(
            f"training.groups.column is {column!r}, which is no group of the data: name it in data.groups. {nearest(column, columns)}"
        )
    return sorted(
        {UNKNOWN, *(str(level) for part in parts if column in part.table.columns for level in part.table[column])}
    )


def _balance(train: AuditDataset, plan: Plan) -> np.ndarray | None:
    """(N,) code of each training image's cell in the columns that are balanced."""
    columns = list(plan.training.groups.balance)
    if not columns:
        return None
    unknown = [name for name in columns if name not in train.table.columns]
    if unknown:
        raise ConfigError(
            f"training.groups.balance names {unknown[0]!r}, which is no column here: name it in data.groups or data.acquisition. "
            f"{nearest(unknown[0], train.table.columns)}"
        )
    codes: np.ndarray = train.table.groupby(columns, sort=True).ngroup().to_numpy(dtype=np.int64)
    return codes


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """All parts in a row; None where one has none."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def decoded(parts: Sequence[AuditDataset], spec: InputSpec, cache: Path, bar: Bar) -> np.ndarray:
    """Pixels (N, C, H, W) uint8, each image read once. Many of them go to a file, which a resumed training reads again.

    Raises DataError that counts and names the images that cannot be read, so that all can be mended at once.
    """
    shape = (sum(map(len, parts)), spec.channels, spec.height, spec.width)
    if math.prod(shape) <= _IN_MEMORY:
        pixels = np.empty(shape, dtype=np.uint8)
        _decode(parts, spec, pixels, bar)
        return pixels
    contents = hashlib.sha256(repr((shape, [part.fingerprint for part in parts])).encode()).hexdigest()[:16]
    path, here = cache.with_name(f"{cache.name}-{contents}.npy"), world()
    if here.first and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.tmp")
        target = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
        _decode(parts, spec, target, bar)
        target.flush()
        os.replace(unfinished, path)
    here.wait()
    stored: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


def _decode(parts: Sequence[AuditDataset], spec: InputSpec, target: np.ndarray, bar: Bar) -> None:
    faults: list[str] = []
    done = 0
    for data in parts:
        for start in range(0, len(data), _CHUNK):
            ids = data.ids[start : start + _CHUNK]
            try:
                target[done : done + len(ids)] = np.rint(data.pixels(ids, spec) * 255.0)
            except DataError:
                faults += _faults(data, ids, spec)
            done += len(ids)
            bar.update("Reading images", done, len(target))
    if faults:
        raise DataError(
            f"{len(faults)} of {len(target)} images cannot be read: {'; '.join(faults[:_NAMED])}. Restore them or take them out."
        )


def _faults(data: AuditDataset, ids: Sequence[str], spec: InputSpec) -> list[str]:
    """What is wrong with each image of a batch that could not be read."""
    found = []
    for case in ids:
        try:
            data.pixels([case], spec)
        except DataError as problem:
            found.append(str(problem).rstrip("."))
    return found
