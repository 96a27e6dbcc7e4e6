"""Two runs on the same cases, cell by cell: better, worse, equivalent or not decided. Reads run folders only, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np

from xvision import codec, text
from xvision.alignment import Aligned, aligned
from xvision.errors import ConfigError
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.paired import (
    IDENTICAL,
    Change,
    Verdict,
    adjusted,
    auroc_change,
    mean_change,
    rate_change,
    unpaired_change,
    verdict,
)
from xvision.result import Better, Metric, Where, spoken
from xvision.store import Run

MULTIPLICITY = (
    "Each interval is a 95 % interval of its own. A cell is called better, worse or changed only when its p-value, "
    "Holm-adjusted over all cells of its table, is also below 0.05. Equivalent is said cell by cell: that all cells named so "
    "are equivalent together needs no correction."
)
_FLOOR = 1e-15
"""Smallest probability that the log-loss charges for, so that one certain error does not make it infinite."""
_LOWER = frozenset({"brier", "log_loss"})


@codec.record
class Cell:
    """One number in both runs. difference is b − a; p_adjusted is Holm's over the cells of the same table."""

    name: str
    where: Where
    analysis: str
    """Empty for the paired cells, which are computed from the predictions of both runs."""
    better: Better
    verdict: Verdict
    a: float | None
    b: float | None
    difference: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    p_adjusted: float | None = None
    interval: str = ""
    reason: str | None = None


@codec.record
class Comparison:
    """What changed from run a to run b. ``paired`` is judged case by case, ``shared`` from both runs' intervals alone."""

    run_a: str
    run_b: str
    model_a: str
    model_b: str
    cases: int
    patients: int
    margin: float
    multiplicity: str
    paired: tuple[Cell, ...]
    shared: tuple[Cell, ...]
    decisions: tuple[Metric, ...]
    """Shares of decisions that changed, became wrong, became right."""
    largest_logit_change: float | None
    """None where a run holds probabilities only."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        return codec.dumps(codec.plain(self))

    def verdicts(self) -> Mapping[Verdict, int]:
        """How many paired cells have which verdict."""
        return Counter(cell.verdict for cell in self.paired)

    def lines(self) -> tuple[str, ...]:
        """For the terminal: every paired cell, what is clear of the rest, and how many cells are not."""
        clear = [cell for cell in self.shared if cell.verdict in {"better", "worse", "changed"}]
        rest = Counter(cell.verdict for cell in self.shared if cell not in clear)
        others = ", ".join(f"{number} {name}" for name, number in sorted(rest.items()))
        logit = text.number(self.largest_logit_change) if self.largest_logit_change is not None else "not known"
        return (
            f"a: {self.run_a} (model {self.model_a[:12]})",
            f"b: {self.run_b} (model {self.model_b[:12]})",
            f"{text.plural(self.cases, 'case')} of {text.plural(self.patients, 'patient')}; differences are b − a; "
            f"equivalent means within ±{self.margin:g}",
            *(f"Note: {note}" for note in self.notes),
            "",
            *(_line(cell) for cell in self.paired),
            "",
            *(f"{text.label(item.name)}: {spoken(item)}" for item in self.decisions),
            f"Largest change of a logit: {logit}",
            "",
            "From both runs' intervals alone (unpaired, conservative):",
            *(_line(cell) for cell in clear),
            *([f"{others} of {len(self.shared)}"] if others else []),
            "",
            self.multiplicity,
        )


def _line(cell: Cell) -> str:
    condition = text.condition(cell.where)
    name = f"{text.label(cell.name)} ({condition})" if condition else text.label(cell.name)
    change = text.value(cell.difference, cell.low, cell.high, "", cell.reason)
    return f"{name:<40} {text.number(cell.a):>7} → {text.number(cell.b):<7} {change:<34} {cell.verdict}"


def compare(run_a: Run, run_b: Run, *, margin: float = 0.02, resamples: int = 2000, seed: int = 0) -> Comparison:
    """What changed from ``run_a`` to ``run_b``, judged on the same cases by patient.

    Paired cells: accuracy, sensitivity, specificity (Tango's score interval), AUROC, Brier score and log-loss (patient
    bootstrap), overall and in every level of the declared columns. All other metrics of the same name, analysis and
    ``where`` are compared from their two intervals, which is conservative; exact counts are left out. margin: the largest
    difference that does not matter, agreed beforehand; it is read in the metric's own unit, and metrics with a unit are
    never called equivalent. Raises RunError when the runs are of other cases, labels, patients or classes.
    """
    if not margin > 0 or resamples < 100:
        raise ConfigError(
            f"margin is {margin} and resamples {resamples}: give a margin above 0 and 100 resamples or more."
        )
    both = aligned(run_a, run_b)
    paired = tuple(_paired_cells(both, margin, resamples, seed))
    known = {(cell.name, _key(cell.where)) for cell in paired}
    return Comparison(
        str(run_a.path),
        str(run_b.path),
        run_a.info.fingerprints.get("model", ""),
        run_b.info.fingerprints.get("model", ""),
        len(both.labels),
        len(np.unique(both.patients)),
        margin,
        MULTIPLICITY,
        paired,
        tuple(_shared_cells(run_a, run_b, known, margin)),
        tuple(_decisions(both)),
        _largest_logit_change(both),
        _notes(run_a, run_b),
    )


def _paired_cells(both: Aligned, margin: float, resamples: int, seed: int) -> Iterator[Cell]:
    found = []
    for where, part in _parts(both):
        for name, extra, change in _changes(part, where, resamples, seed):
            same = part.alike and change.before is not None and change.before == change.after
            found.append((name, {**extra, **where}, _unchanged(change) if same else change))
    for (name, condition, change), p in zip(found, adjusted([change for *_, change in found]), strict=True):
        yield _cell(name, condition, "", "lower" if name in _LOWER else "higher", change, p, margin)


def _parts(both: Aligned) -> Iterator[tuple[Where, Aligned]]:
    """Everyone, then each level of each column."""
    yield {}, both
    for column, levels in both.columns.items():
        for level in np.unique(levels):
            yield {column: str(level)}, both.among(levels == level)


Found = Iterator[tuple[str, Where, Change]]


def _changes(part: Aligned, where: Where, resamples: int, seed: int) -> Found:
    hits = [side.decisions == part.labels for side in (part.a, part.b)]

    def rate(among: np.ndarray, reason: str) -> Change:
        found = rate_change(hits[0][among], hits[1][among], part.patients[among])
        return found if found.before is not None else Change(None, None, not_estimable(reason), None)

    def rng(name: str) -> np.random.Generator:
        """Its own for each cell, so that one cell's numbers do not depend on which others there are."""
        return np.random.default_rng([seed, *f"{name} {dict(where)}".encode()])

    yield "accuracy", {}, rate(np.ones(len(part.labels), bool), "no cases")
    if part.positive:
        positive = part.labels == part.positive
        yield "sensitivity", {}, rate(positive, "no positive cases")
        yield "specificity", {}, rate(~positive, "no negative cases")
    for name in (part.positive,) if part.positive else part.classes:
        member, extra = part.labels == name, {} if part.positive else {"class": name}
        if not part.positive:
            yield "sensitivity", extra, rate(member, f"no cases of {name}")
        before, after = (side.probabilities[:, part.classes.index(name)] for side in (part.a, part.b))
        yield (
            "auroc",
            extra,
            auroc_change(before, after, member, part.patients, rng=rng(f"auroc {name}"), resamples=resamples),
        )
    for name, losses in _losses(part).items():
        yield name, {}, mean_change(*losses, part.patients, rng=rng(name), resamples=resamples)


def _losses(part: Aligned) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Per-case losses (N,) before and after."""
    rows = np.arange(len(part.labels)), part.label_codes
    given = [side.probabilities[rows] for side in (part.a, part.b)]
    found = {"log_loss": (-np.log(np.maximum(given[0], _FLOOR)), -np.log(np.maximum(given[1], _FLOOR)))}
    return {"brier": ((1 - given[0]) ** 2, (1 - given[1]) ** 2), **found} if part.positive else found


def _unchanged(change: Change) -> Change:
    """No uncertainty: the same outputs for every case are the same model, not a lucky sample of two."""
    return change._replace(difference=Estimate(0.0, 0.0, 0.0, change.difference.n, IDENTICAL), p=1.0)


def _shared_cells(run_a: Run, run_b: Run, known: set[tuple[str, frozenset[object]]], margin: float) -> Iterator[Cell]:
    metrics = [
        {(record.analysis, item.name, _key(item.where)): item for record in run.records for item in record.metrics}
        for run in (run_a, run_b)
    ]
    keys = [
        key for key, item in metrics[0].items() if key in metrics[1] and item.unit != "count" and key[1:] not in known
    ]
    pairs = [(key[0], metrics[0][key], metrics[1][key]) for key in keys]
    changes = [unpaired_change(_estimate(first), _estimate(second)) for _, first, second in pairs]
    for (analysis, item, _), change, p in zip(pairs, changes, adjusted(changes), strict=True):
        yield _cell(item.name, item.where, analysis, item.better, change, p, None if item.unit else margin)


def _key(where: Where) -> frozenset[object]:
    return frozenset(where.items())


def _estimate(metric: Metric) -> Estimate:
    return Estimate(metric.value, metric.low, metric.high, metric.n or 0, metric.interval, metric.reason)


def _cell(
    name: str, where: Where, analysis: str, better: Better, change: Change, p: float | None, margin: float | None
) -> Cell:
    found = change.difference
    return Cell(
        name, dict(where), analysis, better, verdict(found, p, better, margin), change.before, change.after,
        found.value, found.low, found.high, found.n, change.p, p, found.method, found.reason,
    )  # fmt: skip


def _decisions(both: Aligned) -> Iterator[Metric]:
    right = [side.decisions == both.labels for side in (both.a, both.b)]
    changed = both.a.decisions != both.b.decisions
    shares: dict[str, tuple[np.ndarray, Better]] = {
        "decision_changed": (changed, "neither"),
        "newly_wrong": (right[0] & ~right[1], "lower"),
        "newly_right": (~right[0] & right[1], "higher"),
    }
    for name, (hits, better) in shares.items():
        found = proportion(hits, both.patients)
        if found.value is None:
            yield Metric(name, None, better=better, reason=found.reason)
        else:
            yield Metric(name, found.value, found.low, found.high, found.n, better=better, interval=found.method)


def _largest_logit_change(both: Aligned) -> float | None:
    if both.a.logits is None or both.b.logits is None or not len(both.labels):
        return None
    return float(np.abs(both.b.logits - both.a.logits).max())


def _notes(run_a: Run, run_b: Run) -> tuple[str, ...]:
    first, second = run_a.info, run_b.info
    other_data = first.fingerprints.get("data") != second.fingerprints.get("data")
    other_threshold = first.decision.get("threshold") != second.decision.get("threshold")
    found = (
        (other_data, "the same cases, but other images or columns: the data fingerprints differ"),
        (other_threshold, "the runs decide at different thresholds; each is judged at its own"),
        (not first.patients_declared, "no patient column was given: intervals are too narrow if patients repeat"),
        ("running" in (first.status, second.status), "a run is not finished: some of its numbers are missing"),
    )
    return tuple(sentence for holds, sentence in found if holds)
