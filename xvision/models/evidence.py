"""What the party that trained a model recorded beside its weights: ``evaluation.json`` and ``metrics.jsonl``.

Both come with a checkpoint and are as trustworthy as whoever wrote them: they are read strictly, within limits, and
are bound to the weights by the model's fingerprint. Verdicts are never read; they follow from the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from xvision import codec
from xvision.errors import ModelError
from xvision.models.folder import read_json
from xvision.store import write_atomic

EVIDENCE, CURVE = "evaluation.json", "metrics.jsonl"
SCHEMA = 1
MARGIN = 0.02
"""Differences this small do not matter, unless the reader says otherwise."""
MAX_BYTES = 4 * 2**20
MAX_CURVE_BYTES = 32 * 2**20
_MOST, _MOST_CLASSES, _LONGEST, _LARGEST = 64, 10_000, 500, 10**9

Measure = Literal["auroc", "accuracy"]
Verdict = Literal["better", "worse", "equivalent", "not decided"]
Start = Literal["random weights", "pretrained language model", "earlier checkpoint"]
ControlName = Literal[
    "majority class", "pixel logistic regression", "stem only", "frozen random body", "frozen pretrained body"
]
_ADDS: dict[ControlName, str] = {
    "majority class": "the model beats it",
    "pixel logistic regression": "the network adds to plain pixels",
    "stem only": "the body adds",
    "frozen random body": "the body's trained weights add",
    "frozen pretrained body": "tuning the body adds",
}


@codec.record
class Figure:
    """A number with its interval and n (patients), or None with the reason why there is none."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    reason: str | None = None

    def __post_init__(self) -> None:
        _short(self.method, self.reason or "")
        numbers = [number for number in (self.value, self.low, self.high) if number is not None]
        if not 0 <= self.n <= _LARGEST or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"{numbers} with n = {self.n} is no finite estimate")
        if self.value is None:
            if not self.reason or numbers:
                raise ValueError("a missing value needs a reason and has no interval")
        elif self.low is None or self.high is None or not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value} does not lie in the interval from {self.low} to {self.high}")
        elif not self.n or not self.method:
            raise ValueError(f"{self.value} needs n and the method of its interval")


@codec.record
class WorstGroup:
    """The group of a column in which the model does worst; the smallest of ``groups`` figures, so it is pessimistic."""

    column: str
    level: str
    measure: Measure
    figure: Figure
    groups: int

    def __post_init__(self) -> None:
        _short(self.column, self.level)


@codec.record
class Evaluation:
    """One model on one set of cases."""

    auroc: Figure
    accuracy: Figure
    balanced_accuracy: Figure
    cases: int
    worst_group: WorstGroup | None = None


@codec.record
class Change:
    """How much a measure differs between two models on the same cases."""

    measure: Measure
    figure: Figure


@codec.record
class BeforeAfter:
    """A split, before and after training; ``change`` is after minus before."""

    split: str
    after: Evaluation
    before: Evaluation | None = None
    change: Change | None = None

    def __post_init__(self) -> None:
        _short(self.split)


@codec.record
class Control:
    """Something simpler than the model, trained and tested on the same cases; ``gain`` is the model minus it."""

    name: ControlName
    auroc: Figure
    accuracy: Figure
    gain: Change
    trained: int = 0
    """Weights that were trained."""
    note: str = ""

    def __post_init__(self) -> None:
        _short(self.note)
        if not 0 <= self.trained <= 10**15:
            raise ValueError(f"{self.trained} is no number of weights")


@codec.record
class ControlTable:
    """Does the language model contribute? The model, and what is reached without parts of it."""

    auroc: Figure
    accuracy: Figure
    rows: tuple[Control, ...]
    note: str = ""

    def __post_init__(self) -> None:
        _short(self.note)
        if len({row.name for row in self.rows}) != len(self.rows):
            raise ValueError("a control is named twice")

    def row(self, name: ControlName) -> Control | None:
        return next((row for row in self.rows if row.name == name), None)


@codec.record
class SiteMatrix:
    """Models (rows, oldest first) on sites (columns): what re-tuning forgets.

    changes: one per site, the last model minus the one before it; their intervals hold together (Bonferroni).
    """

    column: str
    models: tuple[str, ...]
    sites: tuple[str, ...]
    cells: tuple[tuple[Evaluation, ...], ...]
    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        _few(self.models, self.sites)
        _short(self.column, *self.models, *self.sites)
        if len(self.cells) != len(self.models) or any(len(row) != len(self.sites) for row in self.cells):
            raise ValueError(f"the cells are not {len(self.models)} models by {len(self.sites)} sites")
        if len(self.changes) != (len(self.sites) if len(self.models) > 1 else 0):
            raise ValueError(f"{len(self.changes)} changes were given for {len(self.sites)} sites")
        for names in (self.models, self.sites):
            if len(set(names)) != len(names):
                raise ValueError(f"a name occurs twice in {list(names)}")


@codec.record
class Blind:
    """Accuracy when every case is given the image of another patient. chance: expected when images say nothing.

    drop: accuracy with the right image minus accuracy with the wrong one.
    """

    accuracy: Figure
    shuffled: Figure
    chance: float
    drop: Figure

    def __post_init__(self) -> None:
        if not 0 <= self.chance <= 1:
            raise ValueError(f"chance is {self.chance}: a share from 0 to 1")


@codec.record
class TrainingEvidence:
    """``evaluation.json``: what was gained, what was forgotten, and whether the language model contributes."""

    fingerprint: str
    """Of the weights, configuration and preprocessing that all of this is about."""
    classes: tuple[str, ...]
    start: Start
    policy: str
    splits: tuple[BeforeAfter, ...]
    controls: ControlTable | None = None
    sites: tuple[SiteMatrix, ...] = ()
    blind: Blind | None = None
    warnings: tuple[str, ...] = ()
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _few(self.splits, self.sites, self.warnings)
        _few(self.classes, most=_MOST_CLASSES)
        _short(self.fingerprint, self.policy, *self.classes, *self.warnings)
        names = [part.split for part in self.splits]
        columns = [matrix.column for matrix in self.sites]
        if len(set(names)) != len(names) or len(set(columns)) != len(columns):
            raise ValueError(f"a split or column occurs twice in {names + columns}")

    def split(self, name: str) -> BeforeAfter | None:
        return next((part for part in self.splits if part.split == name), None)


class Point(NamedTuple):
    """A place on the learning curve; ``epoch`` counts from 1 and has a fraction within an epoch."""

    epoch: float
    value: float


class LearningCurve(NamedTuple):
    """loss: of training, as it was logged. auroc: of validation, at the end of each epoch."""

    loss: tuple[Point, ...]
    auroc: tuple[Point, ...]


def verdict(difference: Figure, margin: float = MARGIN) -> Verdict:
    """What a difference (larger is better) says.

    "equivalent": its whole interval lies within ± margin, whether or not it is clear of 0. "better", "worse": its
    interval is clear of 0. Else "not decided", which is no evidence of sameness.
    """
    if difference.low is None or difference.high is None:
        return "not decided"
    if -margin <= difference.low and difference.high <= margin:
        return "equivalent"
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "not decided"


def contribution(control: Control, margin: float = MARGIN) -> str:
    """What the model's gain over a control says: "the body adds", "no better than stem only", "not decided"."""
    figure = control.gain.figure
    said = verdict(figure, margin)
    if said == "better":
        return _ADDS[control.name]
    if said == "worse":
        return f"worse than {control.name}"
    if figure.high is not None and figure.high <= margin:
        return f"no better than {control.name}"
    return f"not decided ({figure.reason})" if figure.reason else "not decided"


def sees_images(blind: Blind) -> str:
    """What shuffled images say of a model: it must lose what it knows, and fall to chance, give or take ``MARGIN``."""
    if blind.shuffled.low is None or blind.drop.low is None:
        return f"not decided ({blind.shuffled.reason or blind.drop.reason})"
    if blind.shuffled.low > blind.chance + MARGIN:
        return "with the wrong image it stays better than chance: it answers from something else"
    if blind.drop.low > 0:
        return "it falls to chance with the wrong image: its answers come from the image"
    return "it does no better with the right image than with a wrong one"


def write_evaluation(folder: Path, evidence: TrainingEvidence) -> None:
    """Writes the evidence beside the weights it is about."""
    write_atomic(folder / EVIDENCE, codec.dumps(codec.plain(evidence)).encode())


def read_evaluation(folder: Path, *, fingerprint: str | None = None) -> TrainingEvidence | None:
    """The evidence in a checkpoint folder, None without any.

    Raises ModelError for a file that is too large, malformed, of another version, or (``fingerprint`` given) about
    other weights.
    """
    path = folder / EVIDENCE
    if not path.exists():
        return None
    _refuse_size(path, MAX_BYTES)
    data = read_json(path)
    if data.get("schema") != SCHEMA:
        raise ModelError(
            f"{path}: schema {_shown(data.get('schema'))}, but this version reads schema {SCHEMA}: train again."
        )
    evidence = codec.read(TrainingEvidence, data, str(path), ModelError)
    if fingerprint is not None and evidence.fingerprint != fingerprint:
        raise ModelError(
            f"{path} is about other weights (fingerprint {evidence.fingerprint[:12]}…, the model's is "
            f"{fingerprint[:12]}…): it says nothing about this model."
        )
    return evidence


def read_curve(folder: Path) -> LearningCurve | None:
    """The learning curve in ``metrics.jsonl``, None without one. Raises ModelError, naming the line, for a broken one."""
    path = folder / CURVE
    if not path.exists():
        return None
    _refuse_size(path, MAX_CURVE_BYTES)
    entries = [_entry(path, number, line) for number, line in enumerate(path.read_bytes().splitlines(), start=1)]
    steps = [entry for entry in entries if entry.get("event") == "steps"]
    epochs = [entry for entry in entries if entry.get("event") == "epoch" and entry.get("auroc") is not None]
    last = {_number(path, entry, "epoch"): _number(path, entry, "step") for entry in steps}
    started = {epoch: max((last[other] for other in last if other < epoch), default=0.0) for epoch in last}
    loss = [_within_epoch(path, entry, started, last) for entry in steps]
    auroc = [Point(_number(path, entry, "epoch"), _number(path, entry, "auroc")) for entry in epochs]
    return LearningCurve(tuple(loss), tuple(auroc)) if loss or auroc else None


def _within_epoch(path: Path, entry: dict[str, Any], started: dict[float, float], last: dict[float, float]) -> Point:
    epoch, step = _number(path, entry, "epoch"), _number(path, entry, "step")
    share = (step - started[epoch]) / max(last[epoch] - started[epoch], 1.0)
    return Point(epoch - 1 + min(max(share, 0.0), 1.0), _number(path, entry, "loss"))


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: line {number} is no JSON object; the learning curve cannot be shown.")
    return found


def _number(path: Path, entry: dict[str, Any], key: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ModelError(f"{path}: {key} is {_shown(value)}, not a number; the learning curve cannot be shown.")
    return float(value)


def _refuse_size(path: Path, most: int) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is no regular file: remove it.")
    if path.stat().st_size > most:
        raise ModelError(f"{path} has more than {most // 2**20} MiB: it is no record of a training, remove it.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _short(*words: str) -> None:
    for word in words:
        if len(word) > _LONGEST:
            raise ValueError(f"{word[:40]!r}… has {len(word)} characters, at most {_LONGEST} are read")


def _few(*parts: Iterable[object], most: int = _MOST) -> None:
    for part in parts:
        if len(list(part)) > most:
            raise ValueError(f"{len(list(part))} entries were given, at most {most} are read")
