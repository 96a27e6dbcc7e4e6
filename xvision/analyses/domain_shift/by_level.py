"""The figures of each site, scanner, view and period, and of all of them together."""

from __future__ import annotations

from xvision import text
from xvision.analyses.domain_shift.part import SIGNIFICANT, Part, name_of, shares_of_classes, spoken_p, where_of, worded
from xvision.audit import Audit, metric
from xvision.charts import Axis, Forest, Mark, Table
from xvision.methods.intervals import Estimate, not_estimable
from xvision.methods.shift.levels import Judged, Key, Level, Together, levels, periods, together
from xvision.result import Better, Metric


def by_level(audit: Audit, reference: Audit | None, column: str, fewest: int, *, over_time: bool) -> Part:
    """The figures of each level of one column and of all of them."""
    of = reference if reference is not None and reference.labelled else audit
    cases, prevalence = _judged(audit), shares_of_classes(of)
    named = periods(audit.column(column)) if over_time else audit.column(column)
    rows = levels(cases, named, prevalence, fewest=fewest)
    part = Part()
    for row in rows:
        for key, estimate in row.figures.items():
            better: Better = "neither" if key[0] == "prevalence" else "higher"
            part.metrics.append(metric(key[0], estimate, better=better, where=where_of(audit, key, {column: row.name})))
    binary = audit.decision.positive is not None
    main = "auroc" if binary else "standardised_accuracy"
    pooled: list[Key] = (
        [(main, None), ("standardised_accuracy", None)] if binary else [(main, None), ("accuracy", None)]
    )
    pooled += [("sensitivity", None), ("specificity", None)] if binary else [("balanced_accuracy", None)]
    found = {key: together(cases, named, rows, key, prevalence, called=column) for key in pooled}
    for key, every in found.items():
        part.metrics += _over_levels(every, key[0], column, over_time)
        part.charts.append(_forest(audit, column, key, rows, every, over_time))
    part.charts.append(_sizes(audit, column, rows))
    part.sentences.append(_said(found[main, None], column, main))
    if any(every.spread is not None and every.spread.places == 2 for every in found.values()):
        part.caveats.append(f"{text.label(column)}: with two levels, next to nothing is known of levels in general.")
    small = [row.name for row in rows if row.patients < fewest]
    if small:
        part.caveats.append(
            f"{text.label(column)} {text.listing(small)}: fewer than {fewest} patients, so nothing is known there."
        )
    return part


def _over_levels(every: Together, name: str, column: str, over_time: bool) -> list[Metric]:
    where = {"column": column}
    found = [
        metric(f"pooled_{name}", every.pooled, better="higher", where=where),
        metric(f"worst_{name}", every.worst, better="higher", where=where),
    ]
    if not over_time:  # periods follow each other and are no random sample of periods
        found.append(metric(f"new_level_{name}", every.new, better="higher", where=where))
    where = {**where, "of": name}
    names = ("between_level_variance", "i_squared", "heterogeneity_p")
    if every.spread is None:
        return found + [Metric(each, None, where=where, reason=every.pooled.reason) for each in names]
    spread, count = every.spread, every.pooled.n
    variance = Estimate(spread.tau2, *spread.tau2_interval, count, "DerSimonian-Laird, Q-profile, logit scale")
    share = Estimate(spread.i2, *spread.i2_interval, count, "Q-profile")
    if not spread.tau2_interval[1]:
        variance = share = not_estimable(
            "the levels are more alike than chance allows: no spread can be put into figures", count
        )
    found += [metric(each, value, where=where) for each, value in zip(names, (variance, share), strict=False)]
    how = f"Cochran's Q over {spread.places} levels, no control for several figures"
    return [*found, Metric(names[2], spread.p_value, n=count, where=where, interval=how)]


def _forest(audit: Audit, column: str, key: Key, rows: tuple[Level, ...], every: Together, over_time: bool) -> Forest:
    marks = []
    for row in rows:
        found = row.figures[key]
        note = (
            f"{text.plural(row.patients, 'patient')}" if found.value is not None else f"not estimable ({found.reason})"
        )
        marks.append(Mark(row.name, found.value, found.low, found.high, note))
    ends = [("All levels together", every.pooled)] + ([] if over_time else [("A further level", every.new)])
    for label, found in ends:
        note = found.method if found.value is not None else found.reason or ""
        marks.append(Mark(label, found.value, found.low, found.high, note))
    lowest = f"Lowest: {every.worst_level}, {worded(every.worst)}." if every.worst_level else f"{every.pooled.reason}."
    return Forest(
        f"{name_of(audit, key)} by {text.label(column).lower()}",
        lowest,
        Axis(name_of(audit, key), low=0, high=1),
        tuple(marks),
    )


def _sizes(audit: Audit, column: str, rows: tuple[Level, ...]) -> Table:
    keys = list(rows[0].figures)
    return Table(
        f"{text.label(column)}: every figure",
        f"{text.plural(len(rows), 'level')} with the figures of each and their 95 % intervals.",
        (text.label(column), "Images", "Patients", *(name_of(audit, key) for key in keys)),
        tuple((row.name, row.cases, row.patients, *(worded(row.figures[key]) for key in keys)) for row in rows),
    )


def _said(every: Together, column: str, name: str) -> str:
    title = f"{text.label(name)} by {column}"
    if every.spread is None:
        return f"{title}: {every.pooled.reason}."
    count, p_value = every.spread.places, every.spread.p_value
    mean = f"{worded(every.pooled)} over {count} levels, " if count > 2 else ""
    found = "differ by more than chance" if p_value <= SIGNIFICANT else "do not differ by more than chance"
    return (
        f"{title}: {mean}lowest {every.worst_level} with {worded(every.worst)}; levels {found} (p {spoken_p(p_value)})."
    )


def _judged(audit: Audit) -> Judged:
    predictions = audit.predictions
    return Judged(
        audit.labels, predictions.decisions, predictions.probabilities, audit.patients, audit.decision.positive
    )
