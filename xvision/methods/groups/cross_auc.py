"""Whether scores of one group can be ranked against those of another: cross-group AUROC. Shapes: N cases.

Two groups may both be ranked perfectly while every score of one is higher: then one threshold treats them differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.groups.gaps import Gap, sides
from xvision.methods.intervals import Estimate, binary, not_estimable
from xvision.methods.scores import Scored, auroc, auroc_difference, ranked


class Cross(NamedTuple):
    """The ranking of a group against another, which is again a group, ``"rest"`` or ``"known"``.

    of_positives: chance that a positive of the group scores above a negative of the other. of_negatives: chance that a
    positive of the other scores above a negative of the group. difference: the first minus the second, above 0 where the
    group is scored higher than the other; at ``level``. ranked: False for missing group values.
    """

    group: str
    reference: str
    of_positives: Estimate
    of_negatives: Estimate
    difference: Estimate
    level: float
    family: int
    ranked: bool

    @property
    def shown(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        _, low, high = self.difference[:3]
        return low is not None and high is not None and not low <= 0 <= high


def cross_auroc(first: Scored, second: Scored, *, level: float = 0.95) -> Estimate:
    """xAUC of Kallus and Zhou (2019): chance that a positive of the first scores above a negative of the second.

    Ties count half. The variance is that of :func:`~xvision.methods.scores.auroc`, by patient, whoever is in both.
    """
    mixed = _mixed(first, second)
    return auroc(mixed.scores, mixed.labels, mixed.patients, level=level)


def cross_auroc_difference(first: Scored, second: Scored, *, level: float = 0.95) -> Estimate:
    """xAUC of first and second minus xAUC of second and first; 0 where both are scored alike, and it can contain 0.

    Above 0: the first are scored higher, so that one threshold finds more of their positives and alarms at more of
    their negatives. Joined as in :func:`~xvision.methods.scores.auroc_difference`, patients of both groups included.
    """
    return auroc_difference(_mixed(first, second), _mixed(second, first), level=level)


def cross_gaps(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    gaps: Sequence[Gap],
    *,
    level: float = 0.95,
) -> tuple[Cross, ...]:
    """The comparisons that ``gaps`` makes of AUROCs, made across the groups: same pairs, same families, same reasons.

    scores, labels, groups, patients: (N,). gaps: ``group_gaps(..., metric="auroc")`` of the same cases. level: of the
    two xAUCs; their difference has that of its gap.
    """
    truth, named = binary(labels, "labels"), np.asarray(groups).astype(str)
    if named.shape != truth.shape:
        raise DataError(f"{len(truth)} labels came with groups of shape {named.shape}; give one group per case")
    cases = Scored(ranked(scores, len(truth)), truth, np.asarray(patients))
    return tuple(_crossed(cases, named, gap, level) for gap in gaps)


def _crossed(cases: Scored, groups: np.ndarray, gap: Gap, level: float) -> Cross:
    if gap.difference.reason:
        missing = not_estimable(gap.difference.reason, gap.difference.n)
        return Cross(gap.group, gap.reference, missing, missing, missing, gap.level, gap.family, gap.ranked)
    first, second = (_part(cases, side) for side in sides(groups, gap))
    return Cross(
        gap.group,
        gap.reference,
        cross_auroc(first, second, level=level),
        cross_auroc(second, first, level=level),
        cross_auroc_difference(first, second, level=gap.level),
        gap.level,
        gap.family,
        gap.ranked,
    )


def _part(cases: Scored, member: np.ndarray) -> Scored:
    return Scored(cases.scores[member], cases.labels[member], cases.patients[member])


def _mixed(first: Scored, second: Scored) -> Scored:
    """The positives of the first beside the negatives of the second."""
    found, missed = (binary(part.labels, "labels") for part in (first, second))
    return Scored(
        np.concatenate([np.asarray(first.scores)[found], np.asarray(second.scores)[~missed]]),
        np.concatenate([found[found], missed[~missed]]),
        np.concatenate([np.asarray(first.patients)[found], np.asarray(second.patients)[~missed]]),
    )
