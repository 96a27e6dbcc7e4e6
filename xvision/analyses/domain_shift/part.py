"""What the parts of this analysis share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from xvision import text
from xvision.audit import Audit
from xvision.charts import Chart
from xvision.methods.intervals import Estimate
from xvision.methods.shift.levels import Key
from xvision.result import Case, Metric, Where

SIGNIFICANT = 0.05


@dataclass
class Part:
    """What one question of this analysis adds to the result."""

    metrics: list[Metric] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)
    cases: tuple[Case, ...] = ()
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)


def shares_of_classes(audit: Audit) -> np.ndarray:
    """(K,) share of each class among the labels."""
    return np.asarray(np.bincount(audit.labels, minlength=len(audit.classes)) / len(audit.labels))


def where_of(audit: Audit, key: Key, where: Where) -> Where:
    """Of whom and under what a figure is."""
    return where if key[1] is None else {**where, "class": audit.classes[key[1]]}


def name_of(audit: Audit, key: Key) -> str:
    """A figure in words."""
    return text.label(key[0]) + ("" if key[1] is None else f" of {audit.classes[key[1]]}")


def worded(estimate: Estimate) -> str:
    """An estimate in words."""
    return text.value(estimate.value, estimate.low, estimate.high, reason=estimate.reason)


def spoken_p(value: float) -> str:
    """A p-value in words."""
    return "below 0.001" if value < 0.001 else text.number(value)
