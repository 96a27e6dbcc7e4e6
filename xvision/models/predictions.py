"""Predictions in a CSV file, audited without the model that made them: the *scores* tier."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from xvision.errors import ModelError
from xvision.models.network import two_sided_names
from xvision.models.protocols import Access, InputSpec, Task

SMALLEST = 1e-12
"""A probability of 0 counts as this much: its logarithm, and so its logit, must be finite."""
ROUNDING = 0.01
"""Probabilities of a case are written rounded; a sum this close to 1 is one."""
_EXCLUSIVE, _TOGETHER = "prob:", "finding:"


@dataclass(frozen=True, eq=False)
class PredictionsClassifier:
    """A Classifier that knows its answers by the name of the case and nothing else.

    key: what names a case, the column ``id`` or ``image``. probabilities: (N, K) in [0, 1]; rows sum to 1 unless the
    findings may occur together (``multilabel``). inner: the predictions of all findings, of which these are one.
    """

    path: str
    key: Literal["id", "image"]
    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    multilabel: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    access: Access = "scores"
    inner: PredictionsClassifier | None = None

    @property
    def input(self) -> InputSpec:
        """Nothing: no image is looked at."""
        return InputSpec(0, 0, 0)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def task(self) -> Task:
        if self.multilabel:
            return "multilabel"
        return "binary" if len(self.classes) == 2 else "multiclass"

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, the classes and the probabilities, those of all findings where these are one."""
        if self.inner is not None:
            return hashlib.sha256(f"{self.inner.fingerprint} {self.classes[1]}".encode()).hexdigest()
        digest = hashlib.sha256(repr((self.key, self.names, self.classes, self.multilabel)).encode())
        digest.update(np.ascontiguousarray(self.probabilities, dtype=np.float64).tobytes())
        return digest.hexdigest()

    @property
    def description(self) -> dict[str, str | int]:
        return {"architecture": "predictions file", "source": self.path, "predictions": len(self.names)}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Raises ModelError: there is no model that could look at pixels."""
        raise ModelError(f"{self.path} holds predictions, not a model: it cannot be run on {len(pixels)} images.")

    def predicted(self, names: Sequence[str]) -> np.ndarray:
        """Logits (N, K) of the named cases: log p, whose softmax is p again, divided by the sum where that was rounded.

        Log-odds for findings that may occur together. Raises ModelError for a case without a prediction.
        """
        places = {name: place for place, name in enumerate(self.names)}
        missing = [name for name in names if name not in places]
        if missing:
            raise ModelError(
                f"{self.path} has no prediction for {missing[0]!r} ({len(missing)} of {len(names)} lack one)."
            )
        chosen = np.maximum(self.probabilities[[places[name] for name in names]], SMALLEST)
        if not self.multilabel:
            return np.asarray(np.log(chosen))
        return np.asarray(np.log(chosen) - np.log(np.maximum(1.0 - chosen, SMALLEST)))

    def finding(self, name: str) -> PredictionsClassifier:
        """The predictions of one finding as those of a binary model."""
        positive = self.probabilities[:, self.classes.index(name)]
        both = np.stack((1.0 - positive, positive), axis=1)
        return replace(self, classes=(f"no {name}", name), probabilities=both, multilabel=False, inner=self)


def load_predictions(path: Path) -> PredictionsClassifier:
    """Reads ``id`` or ``image`` and one column ``prob:CLASS`` per class; with one such column, the rest is "not CLASS".

    Columns ``finding:NAME`` instead hold independent probabilities of findings that may occur together. Other columns are
    not read. Raises ModelError, with the row, for a name that is empty or repeated and for what is no probability.
    """
    header, rows = _table(path)
    key = _key(header, path)
    exclusive, together = (_columns(header, prefix) for prefix in (_EXCLUSIVE, _TOGETHER))
    titles = [header[place] for place in (*exclusive, *together)]
    usable = len(set(titles)) == len(titles) and all((*exclusive.values(), *together.values()))
    if bool(exclusive) == bool(together) or not usable:
        raise ModelError(
            f"{path} has {len(exclusive)} columns {_EXCLUSIVE}CLASS and {len(together)} columns {_TOGETHER}NAME: give one "
            "column for each class, all of one kind and each once."
        )
    chosen = exclusive or together
    places = list(chosen)
    names = _names(rows, header.index(key), key, path)
    values = np.array(
        [[_probability(row[place], header[place], number, path) for place in places] for number, row in rows]
    )
    classes = two_sided_names(tuple(chosen.values()), len(places))
    if len(classes) > len(places):
        values = np.concatenate((1.0 - values, values), axis=1)
    if not together or len(places) == 1:
        _check_sums(values, rows, path)
    multilabel = len(together) > 1
    return PredictionsClassifier(str(path), key, names, classes, values, multilabel)


Row = tuple[int, list[str]]


def _table(path: Path) -> tuple[list[str], list[Row]]:
    """The header and the rows with their numbers; the header is row 1."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(lines, [])]
            rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(lines, start=2) if row]
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file. Give a CSV file of predictions, or a model.") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ModelError(f"{path} is no well-formed CSV file in UTF-8 ({problem}): save it again.") from None
    except OSError as problem:
        raise ModelError(f"{path} cannot be read ({problem.strerror}): make it readable.") from None
    for number, row in rows:
        if len(row) != len(header):
            raise ModelError(
                f"{path} row {number} has {len(row)} cells but the header has {len(header)}: correct the row."
            )
    if not rows:
        raise ModelError(f"{path} has no rows: give a header and one row for each case.")
    return header, rows


def _key(header: list[str], path: Path) -> Literal["id", "image"]:
    if "id" in header:
        return "id"
    if "image" in header:
        return "image"
    raise ModelError(
        f"{path} has neither a column id nor image (found: {', '.join(header[:8])}): say whose each row is."
    )


def _columns(header: list[str], prefix: str) -> dict[int, str]:
    """Place → class of the columns with a prefix."""
    return {place: name.removeprefix(prefix).strip() for place, name in enumerate(header) if name.startswith(prefix)}


def _names(rows: list[Row], place: int, key: str, path: Path) -> tuple[str, ...]:
    seen: dict[str, int] = {}
    for number, row in rows:
        name = row[place]
        if not name or name in seen:
            what = f"repeats the {key} {name!r} of row {seen[name]}" if name else f"has no {key}"
            raise ModelError(f"{path} row {number} {what}: give each case one row.")
        seen[name] = number
    return tuple(seen)


def _probability(text: str, column: str, number: int, path: Path) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise ModelError(f"{path} row {number}, {column}: {text!r} is no probability; give a number from 0 to 1.")
    return value


def _check_sums(values: np.ndarray, rows: list[Row], path: Path) -> None:
    sums = values.sum(axis=1)
    wrong = np.flatnonzero(np.abs(sums - 1.0) > ROUNDING)
    if len(wrong):
        raise ModelError(
            f"{path} row {rows[wrong[0]][0]}: the probabilities sum to {sums[wrong[0]]:.4g}, not 1 ({len(wrong)} rows do not). "
            f"Give softmax probabilities; for findings that may occur together, name the columns {_TOGETHER}NAME."
        )
