"""What one section of the page says."""

from __future__ import annotations

from dataclasses import dataclass

from xvision.charts import Chart
from xvision.result import Case, Metric

ACROSS = "another split"
SAME, OTHER = "same label", "other label"


@dataclass(frozen=True)
class Part:
    """sentences: for the summary, where there is something to say."""

    metrics: tuple[Metric, ...] = ()
    charts: tuple[Chart, ...] = ()
    cases: tuple[Case, ...] = ()
    caveats: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
