"""Single numbers and tables of a result, by name."""

from __future__ import annotations

from typing import Any

from xvision.charts import Table
from xvision.result import Metric, Result


def found(result: Result, name: str, **where: Any) -> Metric:
    """The only metric of that name with exactly these conditions."""
    (item,) = [one for one in result.metrics if one.name == name and dict(one.where) == where]
    return item


def table(result: Result, beginning: str) -> Table:
    """The only table whose title begins so."""
    (chart,) = [one for one in result.charts if isinstance(one, Table) and one.title.startswith(beginning)]
    return chart
