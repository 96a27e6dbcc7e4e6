"""One class against the rest: what every comparison of groups is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from xvision import text
from xvision.audit import Audit
from xvision.methods.intervals import Estimate
from xvision.result import Where

MOST_CLASSES = 10
"""Classes that are taken in turn at most: the most frequent ones."""
NO_COLUMNS = "no group or acquisition columns were declared; name them in the plan or with --groups"
THRESHOLD_AS_GIVEN = "Intervals here take the threshold as given, although it was chosen on cases."


@dataclass(frozen=True, eq=False)
class Target:
    """One class against the rest. code, positive: the class. name: the same, but "" for the positive class of two.

    labels, decisions: (N,) bool. scores: (N,) probabilities. log_odds: (N,) of the class against all others.
    """

    code: int
    positive: str
    name: str
    labels: np.ndarray
    decisions: np.ndarray
    scores: np.ndarray
    log_odds: np.ndarray

    @property
    def where(self) -> Where:
        return {"class": self.name} if self.name else {}

    def __str__(self) -> str:
        """To end a title with."""
        return f", {self.name} against the rest" if self.name else ""


def targets(audit: Audit) -> Iterator[Target]:
    """The positive class of two, else each of the ``MOST_CLASSES`` most frequent classes in turn, the most frequent first."""
    binary, found = audit.decision.positive is not None, audit.predictions
    for code in [audit.positive] if binary else frequent_classes(audit):
        yield Target(
            code,
            audit.classes[code],
            "" if binary else audit.classes[code],
            audit.labels == code,
            found.decisions == code,
            found.probabilities[:, code],
            log_odds(found.logits, code),
        )


def frequent_classes(audit: Audit, most: int = MOST_CLASSES) -> list[int]:
    """Codes of the classes with most cases, the most frequent first."""
    return [
        int(code) for code in np.argsort(-np.bincount(audit.labels, minlength=len(audit.classes)), kind="stable")[:most]
    ]


def declared_columns(audit: Audit) -> tuple[str, ...]:
    """Those that say who the patients are, then those that say how images were taken."""
    return tuple(dict.fromkeys((*audit.groups, *audit.acquisition)))


def caveats_of_gaps(audit: Audit, gaps: Iterable[Estimate], minimum: int) -> Iterator[str]:
    """What holds of every page that compares rates of groups."""
    yield "A difference may come from case mix, prevalence or label quality as well as from the model."
    short = sum(gap.value is None for gap in gaps)
    if short:
        yield f"{text.plural(short, 'comparison')} had fewer than {minimum} patients in a denominator: nothing is known there."
    if audit.fairness.margin is None:
        yield "No margin was agreed ([fairness] margin), so no difference can be called equivalent or small enough."


def log_odds(logits: np.ndarray, code: int) -> np.ndarray:
    """(N,) of one class against all others, for logits (N, K)."""
    return np.asarray(logits[:, code] - logsumexp(np.delete(logits, code, axis=1), axis=1))
