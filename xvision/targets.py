"""One class against the rest: what every comparison of groups is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from xvision.audit import Audit
from xvision.result import Where

MOST_CLASSES = 10
"""Classes that are taken in turn at most: the most frequent ones."""


@dataclass(frozen=True, eq=False)
class Target:
    """One class against the rest. positive: the class. name: the same, but "" for the positive class of two.

    labels, decisions: (N,) bool. scores: (N,) probabilities.
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
    frequent = np.argsort(-np.bincount(audit.labels, minlength=len(audit.classes)), kind="stable")[:MOST_CLASSES]
    for code in [audit.positive] if binary else frequent.tolist():
        yield Target(
            code,
            audit.classes[code],
            "" if binary else audit.classes[code],
            audit.labels == code,
            found.decisions == code,
            found.probabilities[:, code],
            log_odds(found.logits, code),
        )


def log_odds(logits: np.ndarray, code: int) -> np.ndarray:
    """(N,) of one class against all others, for logits (N, K)."""
    return np.asarray(logits[:, code] - logsumexp(np.delete(logits, code, axis=1), axis=1))
