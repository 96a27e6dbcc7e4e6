"""What a review queue found: as the command prints it, and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xvision import codec, provenance, text
from xvision.engine import code_version
from xvision.methods.intervals import Estimate
from xvision.methods.label_issues import LabelIssues
from xvision.methods.review import Measure, Share, Yield
from xvision.review.pseudo import PseudoLabels


@dataclass(frozen=True)
class QueueSettings:
    """What was asked for.

    size: most cases in the queue. stratify: column whose mix the queue keeps. per_patient: most cases of one patient.
    precision: share of pseudo-labels that must be right, or None for no pseudo-labels.
    """

    size: int
    stratify: str | None
    per_patient: int
    measure: Measure
    precision: float | None
    seed: int


@dataclass(frozen=True)
class Issues:
    """Label issues, or None with the reason; ``second`` is cleanlab's opinion (N,) where it was asked for."""

    ranking: LabelIssues | None
    reason: str | None
    second: np.ndarray | None = None


@dataclass(frozen=True)
class QueueReport:
    """What was found; ``str`` is what the command prints.

    cases, pool: in the queue, and those it was drawn from. labelled: whether these have labels. splits: of the labelled
    cases the model was not trained on, on which ``found`` is measured for a queue of the same share. fingerprints: of
    the model and the data.
    """

    out: Path
    settings: QueueSettings
    cases: int
    pool: int
    labelled: bool
    splits: tuple[str, ...]
    mix: tuple[Share, ...]
    found: Yield
    issues: Issues
    fingerprints: Mapping[str, str]
    pseudo: PseudoLabels | None = None

    def __str__(self) -> str:
        pseudo = [] if self.pseudo is None else [str(self.pseudo)]
        return "\n".join([self._queue(), self._errors(), *self._sides(), self._issues(), *pseudo])

    def _queue(self) -> str:
        what = f"labelled cases ({', '.join(self.splits)})" if self.labelled else "unlabelled cases"
        kept = f", in the mix of {self.settings.stratify}" if self.settings.stratify else ""
        most = f"at most {self.settings.per_patient} of one patient"
        return (
            f"Review queue: {_count(self.cases)} of {_count(self.pool)} {what}, least certain first{kept}, {most}: "
            f"{self.out / 'queue.csv'}"
        )

    def _errors(self) -> str:
        seen = self.found
        return (
            f"Errors: the {_count(seen.cases)} least certain of {_count(seen.pool)} labelled cases hold "
            f"{_shown(seen.found)} of the {_count(seen.errors)} errors; as many at random, {text.number(seen.by_chance)}"
        )

    def _sides(self) -> list[str]:
        sided = [share for share in self.mix if share.side in ("more", "fewer")]
        if self.mix and not sided:
            return [
                f"Mix: no difference between the queue and the rest is shown in {text.plural(len(self.mix), 'group')}"
            ]
        return [
            f"Mix: {share.column} {share.level} is {_shown(share.queue)} of the queue and {_shown(share.everyone)} of all cases"
            f" ({'over' if share.side == 'more' else 'under'}-represented)"
            for share in sided
        ]

    def _issues(self) -> str:
        ranking = self.issues.ranking
        if ranking is None:
            return f"Label issues: not estimable ({self.issues.reason})"
        return (
            f"Label issues: a share of {_shown(ranking.share)} of {_count(len(ranking.order))} given labels is probably wrong: "
            f"{self.out / 'label_issues.csv'}"
        )


def facts(report: QueueReport) -> dict[str, Any]:
    """The report as plain data, with everything that decides its numbers."""
    return {
        "settings": codec.plain(report.settings),
        "fingerprints": {**report.fingerprints, "code": code_version()},
        "versions": provenance.versions(),
        "made": provenance.now(),
        "queue": {
            "cases": report.cases,
            "pool": report.pool,
            "labelled": report.labelled,
            "mix": [_share(share) for share in report.mix],
        },
        "errors": _errors(report),
        "label_issues": _issues(report.issues),
        "pseudo_labels": None if report.pseudo is None else _pseudo(report.pseudo),
    }


def _share(share: Share) -> dict[str, Any]:
    return {
        "column": share.column,
        "level": share.level,
        "queue": share.queue._asdict(),
        "everyone": share.everyone._asdict(),
        "queue_less_rest": share.difference._asdict(),
        "side": share.side,
    }


def _errors(report: QueueReport) -> dict[str, Any]:
    seen = report.found
    return {
        "splits": list(report.splits),
        "cases": seen.cases,
        "pool": seen.pool,
        "errors": seen.errors,
        "share_found": seen.found._asdict(),
        "share_by_chance": seen.by_chance,
        "error_rate_inside": seen.inside._asdict(),
        "error_rate_outside": seen.outside._asdict(),
    }


def _issues(issues: Issues) -> dict[str, Any]:
    ranking = issues.ranking
    if ranking is None:
        return {"reason": issues.reason}
    return {
        "method": "self-confidence of 5-fold patient-wise logistic regression on the model's embeddings",
        "cases": len(ranking.order),
        "estimated_share": ranking.share._asdict(),
        "estimated_count": ranking.count,
        "suspect": int(ranking.suspect.sum()),
        "cleanlab": None if issues.second is None else int(issues.second.sum()),
    }


def _pseudo(found: PseudoLabels) -> dict[str, Any]:
    return {
        "precision": found.precision,
        "column": found.column,
        "labels": len(found.chosen),
        "left_out": dict(found.left),
        "copied_images": found.copied,
        "note": found.note,
        "floors": [
            {
                "group": group,
                "class": label,
                "floor": floor.value,
                "reason": floor.reason,
                "labelled_cases": floor.cases,
                "labelled_patients": floor.patients,
                "precision": floor.precision._asdict(),
            }
            for (group, label), floor in sorted(found.floors.items())
        ],
    }


def _shown(estimate: Estimate) -> str:
    return text.value(estimate.value, estimate.low, estimate.high, reason=estimate.reason)


def _count(number: int) -> str:
    return text.number(number, "count")
