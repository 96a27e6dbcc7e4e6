"""Train, validation and test made for the user: whole patients, alike in the columns named.

What is optimised. Each patient adds to a list of counts: cases, patients, cases and patients of every level of every
column named, and cases of every pair of levels of two columns. A split ought to get its share of each count; the cost of a
division is the sum over splits and counts of (got − due)² / due, so that a rare level weighs as much as a common one, and a
split that lacks a level which could be in all three is worse than any such sum. Patients who add the same are first dealt
out in proportion; the rest go, largest first, where they cost least; then single patients are moved and pairs exchanged
while that lowers the cost; of several such attempts the cheapest counts. That is a good division, not the best of all.

scikit-learn's StratifiedGroupKFold answers a similar question with folds of equal size, one column and no exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision.config import SplitPlan
from xvision.data.dataset import ALL, UNKNOWN, AuditDataset
from xvision.data.findings import names_in
from xvision.errors import ConfigError, DataError, nearest

SPLITS = ("train", "validation", "test")
LABEL = "label"
NO_FINDING = ""
_LACKING = 1e9
_EXCHANGED = 400
_ROUNDS = 40
_ATTEMPTS = 10
_MANY = 2000


class Problem(NamedTuple):
    """What is to be divided. added: (P, F) what each patient adds to each count. due: (S, F) what each split ought to get.

    everywhere: (F,) whether no split may lack that count.
    """

    added: np.ndarray
    due: np.ndarray
    everywhere: np.ndarray


def make_splits(data: AuditDataset, plan: SplitPlan) -> AuditDataset:
    """The same cases with the splits train, validation and test; no patient is in two of them.

    The same patients, seed and plan give the same splits whatever the order of the rows. Without known patients every
    image is divided on its own. Raises ConfigError when the data brings splits of its own or a column to stratify by is
    not there; DataError when there are fewer than three patients, or a class whose patients cannot be in all three.
    """
    _refuse_earlier_splits(data)
    _check_columns(data, plan.stratify)
    patients = np.unique(data.table["patient"].to_numpy(dtype=str))
    if len(patients) < len(SPLITS):
        raise DataError(
            f"The data has {len(patients)} patients, too few for {len(SPLITS)} splits: add patients, or name the splits in "
            "a split column and remove [data.split] from the plan."
        )
    levels = _levels(data, plan.stratify)
    _refuse_rare_classes(data, levels)
    place = divide(_problem(data, levels, patients, plan), np.random.default_rng(plan.seed))
    made = pd.Series(np.asarray(SPLITS)[place], index=patients)
    table = data.table.assign(split=data.table["patient"].map(made).astype("str"))
    divided = replace(data, table=table)
    _refuse_lacking_classes(divided, levels)
    return divided


def cost(problem: Problem, place: np.ndarray) -> float:
    """Cost of a division; place: (P,) split of each patient."""
    got = np.stack([problem.added[place == split].sum(axis=0) for split in range(len(problem.due))])
    return float(_costs(problem, got).sum())


def divide(problem: Problem, rng: np.random.Generator) -> np.ndarray:
    """Split (P,) of each patient, at low cost: the best of a few attempts, of one where there are many patients."""
    attempts = _ATTEMPTS if len(problem.added) <= _MANY else 1
    found = [_attempt(problem, rng, sort=attempt == 0) for attempt in range(attempts)]
    return min(found, key=lambda place: cost(problem, place))


def _attempt(problem: Problem, rng: np.random.Generator, sort: bool) -> np.ndarray:
    """One division; sort: hand out the largest patients first."""
    order = rng.permutation(len(problem.added))
    place = _dealt(problem, order)
    rest = order[place[order] < 0]
    if sort:
        rest = rest[np.argsort(-problem.added[rest].sum(axis=1), kind="stable")]
    got = np.stack([problem.added[place == split].sum(axis=0) for split in range(len(problem.due))])
    for patient in rest:
        change = _costs(problem, got + problem.added[patient]) - _costs(problem, got)
        place[patient] = int(change.argmin())
        got[place[patient]] += problem.added[patient]
    mobile = np.concatenate([rest[::-1], order[~np.isin(order, rest)]])[:_EXCHANGED]  # the small ones fit best
    for _ in range(_ROUNDS):
        if sum(_improve(problem, place, got, patient, mobile) for patient in mobile) == 0:
            break
    return place


def _dealt(problem: Problem, order: np.ndarray) -> np.ndarray:
    """Split (P,) of each patient dealt out in proportion to those who add the same, −1 for those left over."""
    kind = np.unique(problem.added, axis=0, return_inverse=True)[1].reshape(-1)
    shares = problem.due[:, 0] / problem.due[:, 0].sum()
    place = np.full(len(order), -1)
    for members in _grouped(kind, order):
        ends = np.cumsum(np.floor(len(members) * shares + 1e-9).astype(int))
        for split, (start, stop) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            place[members[start:stop]] = split
    return place


def _grouped(kind: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The patients of each kind, in the given order."""
    ranked = order[np.argsort(kind[order], kind="stable")]
    return np.split(ranked, np.flatnonzero(np.diff(kind[ranked])) + 1)


def _costs(problem: Problem, got: np.ndarray) -> np.ndarray:
    """Cost of each split (S,) or (M, S) whose counts are (S, F) or (M, S, F)."""
    return _cost_of(problem, got, slice(None))


def _cost_of(problem: Problem, got: np.ndarray, split: slice | int) -> np.ndarray:
    due = problem.due[split]
    spread = ((got - due) ** 2 / due).sum(axis=-1)
    costs: np.ndarray = spread + _LACKING * ((got == 0) & problem.everywhere).sum(axis=-1)
    return costs


def _improve(problem: Problem, place: np.ndarray, got: np.ndarray, patient: int, mobile: np.ndarray) -> bool:
    """Move a patient, or exchange it with one of ``mobile``, where that lowers the cost most; changes the arrays in place."""
    here, before = place[patient], _costs(problem, got)
    best, target, partner = -1e-9, -1, -1
    for there in range(len(got)):
        others = mobile[place[mobile] == there] if there != here else mobile[:0]
        if there == here:
            continue
        shift = np.vstack([problem.added[patient], problem.added[patient] - problem.added[others]])
        change = _cost_of(problem, got[here] - shift, int(here)) + _cost_of(problem, got[there] + shift, there)
        change = change - before[here] - before[there]
        found = int(change.argmin())
        if change[found] < best:
            best, target, partner = float(change[found]), there, int(others[found - 1]) if found else -1
    if target < 0:
        return False
    _place(problem, place, got, patient, target)
    if partner >= 0:
        _place(problem, place, got, partner, int(here))
    return True


def _place(problem: Problem, place: np.ndarray, got: np.ndarray, patient: int, split: int) -> None:
    got[place[patient]] -= problem.added[patient]
    got[split] += problem.added[patient]
    place[patient] = split


def _levels(data: AuditDataset, columns: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Column → level → who has it (N,) bool; of findings a case may have several or none."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for column in columns:
        cells = data.table[column].to_numpy(dtype=str)
        if column == LABEL and data.multilabel:
            held = {cell: set(names_in(cell)) for cell in np.unique(cells)}
            having = {name: np.array([name in held[cell] for cell in cells]) for name in data.findings}
            found[column] = {**having, NO_FINDING: cells == ""} if (cells == "").any() else having
        else:
            found[column] = {str(level): cells == level for level in np.unique(cells)}
    return found


def _problem(
    data: AuditDataset, levels: dict[str, dict[str, np.ndarray]], patients: np.ndarray, plan: SplitPlan
) -> Problem:
    owner = np.searchsorted(patients, data.table["patient"].to_numpy(dtype=str))
    cases = [np.bincount(owner, who, len(patients)) for column in levels.values() for who in column.values()]
    pairs = [
        np.bincount(owner, first & second, len(patients))
        for one, other in combinations(levels.values(), 2)
        for first in one.values()
        for second in other.values()
    ]
    ones = np.ones(len(patients))
    having = [(counts > 0).astype(float) for counts in cases]
    added = np.stack([np.bincount(owner, minlength=len(patients)), ones, *cases, *having, *pairs], axis=1).astype(float)
    added = added[:, added.any(axis=0)]
    holders = (added > 0).sum(axis=0)
    everywhere = np.zeros(added.shape[1], dtype=bool)
    everywhere[: 2 + len(cases)] = holders[: 2 + len(cases)] >= len(SPLITS)
    shares = np.array([plan.train, plan.validation, plan.test])
    return Problem(added, np.outer(shares, added.sum(axis=0)), everywhere)


def _refuse_earlier_splits(data: AuditDataset) -> None:
    counts = data.table["split"].value_counts()
    own = counts[~counts.index.isin([ALL, UNKNOWN])]
    if len(own):
        told = ", ".join(f"{name} {count}" for name, count in own.items())
        raise ConfigError(
            f"The data brings its own splits ({told}) and the plan asks for new ones: remove [data.split] from the plan, or "
            "the splits from the data."
        )


def _check_columns(data: AuditDataset, columns: Sequence[str]) -> None:
    known = (LABEL, *data.groups)
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"data.split.stratify names {column!r}, which is neither the label nor a column under groups or acquisition. "
                f"{nearest(column, known)}"
            )


def _refuse_rare_classes(data: AuditDataset, levels: dict[str, dict[str, np.ndarray]]) -> None:
    patients = data.table["patient"].to_numpy(dtype=str)
    for name, who in levels.get(LABEL, {}).items():
        count = len(np.unique(patients[who]))
        if name != NO_FINDING and count < len(SPLITS):
            raise DataError(
                f"{name!r} is the label of {count} patients, too few for {len(SPLITS)} splits: add patients, join the class "
                'with another one, or leave "label" out of data.split.stratify.'
            )


def _refuse_lacking_classes(data: AuditDataset, levels: dict[str, dict[str, np.ndarray]]) -> None:
    splits = data.table["split"].to_numpy(dtype=str)
    for name, who in levels.get(LABEL, {}).items():
        lacking = [split for split in SPLITS if not (splits[who] == split).any()]
        if name != NO_FINDING and lacking:
            raise DataError(
                f"No division was found in which {name!r} is in every split; it is missing in {lacking[0]}: try another "
                'data.split.seed, join the class with another one, or leave "label" out of data.split.stratify.'
            )
