"""What a rung adds to the page."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from xvision.audit import Audit
from xvision.charts import Chart
from xvision.methods.shortcuts.ladder import Rung
from xvision.result import Case, Metric

Key = tuple[str, str]
"""Class ("" for a binary model) and column or region."""


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


def columns_of(audit: Audit) -> tuple[str, ...]:
    """Every declared column, acquisition first."""
    return tuple(dict.fromkeys((*audit.acquisition, *audit.groups)))


def by_id(audit: Audit, positions: np.ndarray) -> np.ndarray:
    """The positions in the order of the ids, so that the order of the rows decides nothing."""
    return np.asarray(positions[np.argsort(audit.ids[positions], kind="stable")])
