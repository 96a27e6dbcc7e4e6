"""Two runs in one order of cases, or a clear refusal. Reads run folders only, without torch. Shapes: N cases, K classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import text
from xvision.errors import RunError
from xvision.store import Run

ARITHMETIC = 1e-5
"""Outputs this close are the same number computed by two programs."""
_PROBABILITY, _LOGIT = "prob:", "logit:"


class Outputs(NamedTuple):
    """One run's view of the cases. probabilities, logits: (N, K), logits None where not stored; decisions: (N,) names."""

    probabilities: np.ndarray
    logits: np.ndarray | None
    decisions: np.ndarray

    def among(self, chosen: np.ndarray) -> Outputs:
        logits = None if self.logits is None else self.logits[chosen]
        return Outputs(self.probabilities[chosen], logits, self.decisions[chosen])


class Aligned(NamedTuple):
    """Two runs on the same cases. ids, labels, patients: (N,) names; columns: levels (N,) by declared column.

    classes: in the order of the outputs of both. positive: empty for more than two classes.
    """

    ids: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    columns: Mapping[str, np.ndarray]
    classes: tuple[str, ...]
    positive: str
    a: Outputs
    b: Outputs

    def among(self, chosen: np.ndarray) -> Aligned:
        """The same for some of the cases; chosen: (N,) booleans."""
        columns = {name: levels[chosen] for name, levels in self.columns.items()}
        ids, labels, patients = self.ids[chosen], self.labels[chosen], self.patients[chosen]
        return Aligned(
            ids, labels, patients, columns, self.classes, self.positive, self.a.among(chosen), self.b.among(chosen)
        )

    @property
    def alike(self) -> bool:
        """Same decisions, and every output of every case the same to 1e-5: one model, up to the noise of arithmetic.

        Judged on the logits where both runs have them, else on the probabilities.
        """
        first, second = self.a.logits, self.b.logits
        if first is None or second is None:
            first, second = self.a.probabilities, self.b.probabilities
        same = np.allclose(first, second, rtol=0, atol=ARITHMETIC)
        return bool(same and np.array_equal(self.a.decisions, self.b.decisions))

    @property
    def label_codes(self) -> np.ndarray:
        """(N,) class indices."""
        return np.array([self.classes.index(name) for name in self.labels], dtype=int)


def aligned(run_a: Run, run_b: Run) -> Aligned:
    """Both runs' predictions in one order; RunError when cases, labels, patients, classes or the positive class differ."""
    frames = [_predictions(run) for run in (run_a, run_b)]
    classes, others = (_classes(frame) for frame in frames)
    if set(classes) != set(others):
        raise RunError(
            f"{run_a.path} has the classes {', '.join(classes)}, {run_b.path} {', '.join(others)}: only runs with the same "
            "classes can be compared."
        )
    positive = _positive(run_a, run_b)
    shared = frames[0].index.intersection(frames[1].index)
    if not len(frames[0]) == len(frames[1]) == len(shared):
        raise RunError(
            f"{run_a.path} has {len(frames[0])} cases, {run_b.path} {len(frames[1])}, and {len(shared)} are in both: audit "
            "both models on the same data, then compare."
        )
    frames[1] = frames[1].loc[frames[0].index]
    for column in ("label", "patient"):
        _refuse_other(run_a, run_b, column, frames)
    declared = dict.fromkeys((*run_a.info.groups, *run_a.info.acquisition))
    columns = {name: frames[0][name].to_numpy(str) for name in declared if name in frames[0]}
    labels, patients = (frames[0][name].to_numpy(str) for name in ("label", "patient"))
    _refuse_unknown_labels(run_a, labels, classes)
    a, b = (_outputs(frame, classes) for frame in frames)
    return Aligned(frames[0].index.to_numpy(str), labels, patients, columns, classes, positive, a, b)


def _predictions(run: Run) -> pd.DataFrame:
    """Predictions by case id, checked as far as they are used here."""
    frame, where = run.predictions, run.path / "tables" / "predictions.parquet"
    missing = sorted({"id", "patient", "label", "decision"} - set(frame.columns))
    if not missing and not _classes(frame):
        missing = [f"{_PROBABILITY}<class>"]
    if missing:
        raise RunError(f"{where}: the column {missing[0]!r} is missing. Run `xvision verify {run.path}`.")
    indexed = frame.set_index(frame["id"].astype(str))
    if not indexed.index.is_unique:
        twice = indexed.index[indexed.index.duplicated()][0]
        raise RunError(f"{where}: the case {twice!r} is in it twice. Run `xvision verify {run.path}`.")
    return indexed


def _classes(frame: pd.DataFrame) -> tuple[str, ...]:
    names = (str(name) for name in frame.columns)
    return tuple(name.removeprefix(_PROBABILITY) for name in names if name.startswith(_PROBABILITY))


def _positive(run_a: Run, run_b: Run) -> str:
    first, second = (str(run.info.decision.get("positive", "")) for run in (run_a, run_b))
    if first != second:
        raise RunError(
            f"{run_a.path} calls {first!r} positive, {run_b.path} {second!r}: audit both for the same finding."
        )
    return first


def _refuse_other(run_a: Run, run_b: Run, column: str, frames: list[pd.DataFrame]) -> None:
    """RunError naming the first case whose ``column`` is not the same in both."""
    first, second = (frame[column].astype(str) for frame in frames)
    other = first != second
    if other.any():
        name = first.index[other][0]
        raise RunError(
            f"case {name!r} has the {column} {first[name]!r} in {run_a.path} and {second[name]!r} in {run_b.path} "
            f"({text.plural(int(other.sum()), 'such case')}): audit both models on the same data, then compare."
        )


def _refuse_unknown_labels(run: Run, labels: np.ndarray, classes: tuple[str, ...]) -> None:
    if unknown := sorted(set(labels.tolist()) - set(classes)):
        raise RunError(
            f"{run.path}: the label {unknown[0]!r} is no class of the predictions ({', '.join(classes)}). "
            f"Run `xvision verify {run.path}`."
        )


def _outputs(frame: pd.DataFrame, classes: tuple[str, ...]) -> Outputs:
    probabilities = frame[[_PROBABILITY + name for name in classes]].to_numpy(float)
    names = [_LOGIT + name for name in classes]
    logits = frame[names].to_numpy(float) if set(names) <= set(frame.columns) else None
    return Outputs(probabilities, logits, frame["decision"].to_numpy(str))
