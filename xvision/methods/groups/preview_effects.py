"""Whom a preview would help and harm, judged on cases that it was not fitted on. Shapes: N cases, P patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.groups.cases import UNKNOWN, all_levels, checked_cases, known_levels
from xvision.methods.groups.expected import Chances, expected_combination, expected_share
from xvision.methods.groups.previews import Aim
from xvision.methods.intervals import Estimate, not_estimable


class Counts(NamedTuple):
    """Expected confusion counts of cases."""

    tp: float
    fp: float
    fn: float
    tn: float


class Moves(NamedTuple):
    """Chance (N,) that a case is found that was missed, missed that was found, and for false alarms spared and new."""

    found: np.ndarray
    missed: np.ndarray
    spared: np.ndarray
    alarmed: np.ndarray


class Rates(NamedTuple):
    """A rate as deployed, under the preview, and the paired difference."""

    before: Estimate
    after: Estimate
    change: Estimate


@dataclass(frozen=True)
class GroupEffect:
    """What a preview does to one group. before, after: expected counts; moves: their expected number by kind.

    aim: change of what the preview evens out, at a level at which it holds for all known groups together. helped: share
    of patients with a case found that was missed or a false alarm spared; harmed: the reverse; a patient with several
    images can be in both. randomised: share of cases that two seeds decide differently. drawn: share whose decision is
    drawn at all. ignored: share decided whatever the image shows.
    """

    group: str
    cases: int
    patients: int
    before: Counts
    after: Counts
    moves: Moves
    sensitivity: Rates
    specificity: Rates
    aim: Estimate
    helped: Estimate
    harmed: Estimate
    randomised: Estimate
    drawn: Estimate
    ignored: Estimate


def moves(labels: np.ndarray, deployed: np.ndarray, chance: np.ndarray) -> Moves:
    """labels, deployed: (N,) booleans. chance: (N,) of a positive decision under the preview."""
    up, down = ~deployed * chance, deployed * (1 - chance)
    return Moves(labels * up, labels * down, ~labels * down, ~labels * up)


def group_effects(
    labels: np.ndarray,
    deployed: np.ndarray,
    chance: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    *,
    aim: Aim,
    ignored: np.ndarray | None = None,
    level: float = 0.95,
) -> tuple[GroupEffect, ...]:
    """The effect on every group, by name, ``"unknown"`` last.

    labels, deployed: (N,) of 0 or 1. chance: (N,) of a positive decision under the preview. groups, patients: (N,).
    ignored: (N,) chance that a decision ignores the image. The preview is taken as fitted: that other tuning cases would
    have given another one is not in the intervals.
    """
    cases = checked_cases(labels, deployed, groups, patients)
    after = np.asarray(chance, float)
    unread = np.zeros(len(after)) if ignored is None else np.asarray(ignored, float)
    if not after.shape == unread.shape == cases.labels.shape:
        raise DataError(f"{len(cases.labels)} labels came with {len(after)} chances; give one per case")
    joint = 1 - (1 - level) / max(len(known_levels(cases.groups)), 1)
    found = []
    for name in all_levels(cases.groups):
        member = cases.groups == name
        judged = _Judged(cases.labels[member], cases.decisions[member], after[member], cases.patients[member])
        found.append(_effect(name, judged, unread[member], aim, level, joint))
    return tuple(found)


def levels_down(effects: Sequence[GroupEffect]) -> bool:
    """Whether no known group surely gains in what the preview is meant to even out, and at least one surely loses."""
    changes = [effect.aim for effect in effects if effect.group != UNKNOWN]
    gains = any(change.low is not None and change.low > 0 for change in changes)
    return not gains and any(change.high is not None and change.high < 0 for change in changes)


class _Judged(NamedTuple):
    labels: np.ndarray
    deployed: np.ndarray
    chance: np.ndarray
    patients: np.ndarray

    def right(self, label: bool) -> tuple[Chances, Chances]:
        """Chances of a right decision after and before, of the cases with this label."""
        among = self.labels == label
        pair = (self.chance[among], self.deployed[among].astype(float))
        after, before = (values if label else 1 - values for values in pair)
        return Chances(after, self.patients[among]), Chances(before, self.patients[among])


def _effect(name: str, judged: _Judged, ignored: np.ndarray, aim: Aim, level: float, joint: float) -> GroupEffect:
    moved, (codes, count) = moves(judged.labels, judged.deployed, judged.chance), _codes(judged.patients)
    people = np.arange(count)

    def share(values: np.ndarray) -> Estimate:
        return expected_share(Chances(values, judged.patients), level=level)

    def ever(values: np.ndarray) -> Estimate:
        none = np.ones(count)
        np.multiply.at(none, codes, 1 - values)
        return expected_share(Chances(1 - none, people), level=level)

    chance = judged.chance
    return GroupEffect(
        name,
        len(judged.labels),
        count,
        _counts(judged.labels, judged.deployed),
        _counts(judged.labels, chance),
        moved,
        _rates(judged, True, level),
        _rates(judged, False, level),
        _aimed(judged, aim, joint),
        ever(moved.found + moved.spared),
        ever(moved.missed + moved.alarmed),
        share(2 * chance * (1 - chance)),
        share(((chance > 0) & (chance < 1)).astype(float)),
        share(ignored),
    )


def _codes(patients: np.ndarray) -> tuple[np.ndarray, int]:
    levels, codes = np.unique(patients, return_inverse=True)
    return codes, len(levels)


def _counts(labels: np.ndarray, chance: np.ndarray) -> Counts:
    positive, negative = labels * chance, labels * (1 - chance)
    alarms, calm = ~labels * chance, ~labels * (1 - chance)
    return Counts(*(float(each.sum()) for each in (positive, alarms, negative, calm)))


def _rates(judged: _Judged, label: bool, level: float) -> Rates:
    after, before = judged.right(label)
    if not len(after.values):
        missing = not_estimable(f"no {'positive' if label else 'negative'} cases")
        return Rates(missing, missing, missing)
    change = expected_combination((after, before), (1.0, -1.0), level=level)
    return Rates(expected_share(before, level=level), expected_share(after, level=level), change)


def _aimed(judged: _Judged, aim: Aim, level: float) -> Estimate:
    sides = [label for label, name in ((True, "sensitivity"), (False, "specificity")) if aim in (name, "both")]
    samples = [sample for label in sides for sample in judged.right(label)]
    if not all(len(sample.values) for sample in samples):
        return not_estimable("cases of one class only")
    return expected_combination(samples, [sign / len(sides) for _ in sides for sign in (1.0, -1.0)], level=level)
