"""Of more than two classes: what the cases of each are called in each group, and the mean share found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from xvision import text
from xvision.audit import Audit, apart, metric
from xvision.charts import Table
from xvision.methods.groups.multilabel import Confusion, confusions
from xvision.result import Metric
from xvision.targets import MOST_CLASSES

_MOST_ROWS = 30
Confused = Mapping[str, tuple[Confusion, ...]]
"""Column → its groups."""


def confused(audit: Audit, columns: tuple[str, ...], resamples: int) -> Confused:
    """Empty for two classes, whose rates say it all."""
    if audit.decision.positive is not None:
        return {}
    decisions = audit.predictions.decisions
    return {
        column: confusions(
            audit.labels, decisions, audit.column(column), audit.patients, audit.classes,
            rng=audit.rng(f"confusion {column}"), resamples=resamples,
        )
        for column in columns
    }  # fmt: skip


def macro(found: Confused) -> Iterator[Metric]:
    """The mean share found over the classes that a group has; its ``interval`` names them."""
    for column, groups in found.items():
        for each in groups:
            over = f"{each.macro.method}, over {', '.join(each.present)}"
            key = apart(column, "class", "against", "column")
            yield metric(
                "macro_sensitivity", each.macro._replace(method=over), better="higher", where={key: each.group}
            )


def table(audit: Audit, found: Confused) -> Iterator[Table]:
    """Row by row, as shares of the cases of the true class; only while the classes fit a page."""
    if not found or len(audit.classes) > MOST_CLASSES:
        return
    rows = [
        (text.condition({column: each.group}), name, *(text.number(share.value) for share in each.rows[code]))
        for column, groups in found.items()
        for each in groups
        for code, name in enumerate(audit.classes)
        if name in each.present
    ]
    more = f" The first {_MOST_ROWS} of {len(rows)} rows are shown." if len(rows) > _MOST_ROWS else ""
    yield Table(
        "What the cases of each class are called, by group",
        "Shares of the cases of the class in the row. Groups with other classes present cannot be compared by their mean share"
        f" found.{more}",
        ("Group", "Class", *(f"called {name}" for name in audit.classes)),
        tuple(rows[:_MOST_ROWS]),
    )
