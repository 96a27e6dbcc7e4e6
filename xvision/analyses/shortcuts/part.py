"""What the rungs share: one class against the rest, and what a rung adds to the page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp

from xvision.audit import Audit
from xvision.charts import Chart
from xvision.methods.shortcuts.ladder import Rung
from xvision.result import Case, Metric, Where

Key = tuple[str, str]
"""Class ("" for a binary model) and column or region."""
MOST_CLASSES = 10


@dataclass
class Part:
    """What one rung adds. rungs: by class and column, under the rung's own name."""

    metrics: list[Metric] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    rungs: dict[Key, Rung] = field(default_factory=dict)

    def shown(self) -> set[Key]:
        """Where the rung was reached."""
        return {key for key, rung in self.rungs.items() if rung.state == "shown"}


@dataclass(frozen=True, eq=False)
class Target:
    """One class against the rest. log_odds: (N,) of the class; labels, decisions: (N,) bool."""

    code: int
    name: str
    labels: np.ndarray
    decisions: np.ndarray
    log_odds: np.ndarray

    @property
    def where(self) -> Where:
        return {"class": self.name} if self.name else {}

    def __str__(self) -> str:
        return f", {self.name} against the rest" if self.name else ""


def targets(audit: Audit) -> Iterator[Target]:
    """The positive class, or each of at most ten classes in turn when there are more than two."""
    binary = audit.decision.positive is not None
    predictions = audit.predictions
    for code in [audit.positive] if binary else range(min(len(audit.classes), MOST_CLASSES)):
        name = "" if binary else audit.classes[code]
        yield Target(
            code, name, audit.labels == code, predictions.decisions == code, log_odds(predictions.logits, code)
        )


def log_odds(logits: np.ndarray, code: int) -> np.ndarray:
    """(N,) of one class."""
    rest = np.delete(logits, code, axis=1)
    return np.asarray(logits[:, code] - logsumexp(rest, axis=1))


def columns_of(audit: Audit) -> tuple[str, ...]:
    """Every declared column, acquisition first."""
    return tuple(dict.fromkeys((*audit.acquisition, *audit.groups)))


def by_id(audit: Audit, positions: np.ndarray) -> np.ndarray:
    """The positions in the order of the ids, so that the order of the rows decides nothing."""
    return np.asarray(positions[np.argsort(audit.ids[positions], kind="stable")])
