"""Whether sets of classes with a promised coverage keep the promise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from xvision import text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Bars, Chart, Forest, Mark, Reference, Table
from xvision.errors import ConfigError, nearest
from xvision.methods.conformal import (
    SCORE_NAMES,
    Chance,
    Quantile,
    ScoreName,
    coverage_by_chance,
    fitted,
    rank_of,
    sets,
    strangeness,
    too_low_p,
)
from xvision.methods.intervals import Estimate, bootstrap, holm, not_estimable, proportion
from xvision.registry import analysis
from xvision.result import Metric, NotApplicable, Result, Where, spoken
from xvision.tuning import tuning_cases

_SIGNIFICANT = 0.05
_LARGEST_SHOWN = 6
_LEAST = 10
"""Patients that a group needs before it is tested."""


@analysis("Conformal sets", pillar="Calibration", need="scores", passes="1 forward per case of the split validation")
def conformal(
    audit: Audit,
    *,
    alpha: float = 0.1,
    scores: tuple[str, ...] = ("lac", "aps"),
    by_class: bool = False,
    penalty: float = 0.1,
    free_ranks: int = 1,
    resamples: int = 500,
) -> Result:
    """Does a set of classes with a promised coverage keep the promise, for every group?

    Split conformal prediction turns probabilities into sets of classes that hold the true one in 1 - ``alpha`` of the cases. The
    threshold is fitted on the split "validation", never on audited cases: it is the ceil((n + 1)(1 - alpha))-th smallest score of
    its n true classes. ``lac`` gives the smallest sets on average, ``aps`` sets that grow on hard cases (with one random draw per
    case), ``raps`` is aps with ``penalty`` for each rank beyond ``free_ranks``. ``coverage`` is the share of audited cases whose
    set holds the true class; ``coverage_by_chance`` is what cases like those of validation would show over draws of these (Beta
    distribution). The promise is for all cases together: nothing promises it to a class, a group or a site, and there
    ``coverage`` says who pays. ``by_class`` fits each class its own threshold and so extends the promise to classes (Mondrian). A
    set with every class is always right and says nothing: read coverage beside ``set_size`` and ``singleton_share``. An
    empty set means that no class fits.
    """
    names = _names(scores)
    tuning = _tuning(audit)
    rank_of(len(tuning.ids), alpha)  # refuses an alpha that is no share
    found = tuple(_Sets(audit, tuning, name, alpha, by_class, penalty, free_ranks, resamples) for name in names)
    metrics = tuple(item for each in found for item in each.metrics)
    charts: tuple[Chart, ...] = (_overview(found), *(_forest(each) for each in found), _sizes(found), _broken(found))
    table = pd.concat([each.table for each in found], ignore_index=True)
    return Result(_summary(found), metrics, charts, tables={"conformal": table}, caveats=_caveats(found, tuning))


def _names(scores: tuple[str, ...]) -> tuple[ScoreName, ...]:
    for name in scores:
        if name not in SCORE_NAMES:
            raise ConfigError(f"analysis.conformal.scores: unknown score {name!r}. {nearest(name, SCORE_NAMES)}")
    if not scores or len(set(scores)) < len(scores):
        raise ConfigError(f"analysis.conformal.scores is {list(scores)}: name one or more of {', '.join(SCORE_NAMES)}.")
    return tuple(name for name in SCORE_NAMES if name in scores)


def _tuning(audit: Audit) -> Audit:
    """The cases to fit on, with predictions."""
    tuning = tuning_cases(audit)
    if isinstance(tuning, str):
        raise NotApplicable(f"conformal sets are fitted on cases that are not audited: {tuning}")
    return tuning


class _Part(NamedTuple):
    """Some of the audited cases: all, a class, or a level of a column. p: of so low a coverage, None where not tested."""

    label: str
    where: Where
    members: np.ndarray
    covered: Estimate
    p: float | None


class _Sets:
    """The sets of one score for all audited cases."""

    def __init__(
        self,
        audit: Audit,
        tuning: Audit,
        name: ScoreName,
        alpha: float,
        by_class: bool,
        penalty: float,
        free_ranks: int,
        resamples: int,
    ) -> None:
        self.audit, self.tuning, self.name, self.alpha, self.by_class = audit, tuning, name, alpha, by_class
        self.resamples = resamples

        def strange(of: Audit) -> np.ndarray:
            return strangeness(
                of.predictions.probabilities,
                name,
                list(of.ids),
                seed=audit.seed,
                penalty=penalty,
                free_ranks=free_ranks,
            )

        self.thresholds = fitted(strange(tuning), tuning.labels, alpha, by_class=by_class)
        self.held = sets(strange(audit), self.thresholds)
        self.covered = self.held[np.arange(len(audit.ids)), audit.labels]
        self.size = self.held.sum(axis=1)
        self.parts = tuple(self._parts())
        self.metrics = tuple(self._metrics())

    @property
    def calibrated(self) -> int:
        """Patients behind the threshold: the independent units."""
        return len(set(self.tuning.patients))

    @property
    def chance(self) -> Chance:
        return coverage_by_chance(len(self.tuning.ids), self.alpha, units=self.calibrated)

    @property
    def broken(self) -> tuple[_Part, ...]:
        """Parts covered less than promised, beyond chance; Holm-adjusted over all parts that were tested."""
        tested = [part for part in self.parts if part.p is not None]
        adjusted = holm([part.p or 0.0 for part in tested])
        return tuple(part for part, p in zip(tested, adjusted, strict=True) if self._below(part) and p < _SIGNIFICANT)

    def _below(self, part: _Part) -> bool:
        return part.covered.value is not None and part.covered.value < 1 - self.alpha

    def _parts(self) -> Iterator[_Part]:
        audit = self.audit
        whole = np.ones(len(self.tuning.ids), dtype=bool)
        yield self._part("All cases", {}, np.ones(len(audit.ids), dtype=bool), whole)
        for code, name in enumerate(audit.classes):
            fitted_on = self.tuning.labels == code if self.by_class else whole
            yield self._part(f"class {name}", {"class": name}, audit.labels == code, fitted_on)
        for column in (*audit.groups, *audit.acquisition):
            for level in sorted(set(audit.column(column))):
                members = audit.column(column) == level
                yield self._part(f"{text.label(column)} {level}", {column: level}, members, whole)

    def _part(self, label: str, where: Where, members: np.ndarray, fitted_on: np.ndarray) -> _Part:
        """fitted_on: which of the calibration cases the threshold comes from."""
        covered = proportion(self.covered[members], self.audit.patients[members], exact=True)
        if covered.value is None:
            return _Part(label, where, members, covered._replace(reason="no such case is audited"), None)
        cases, units = int(fitted_on.sum()), len(set(self.tuning.patients[fitted_on]))
        p = too_low_p(covered.value, covered.n, cases, self.alpha, units=units) if covered.n >= _LEAST else None
        return _Part(label, where, members, covered, p)

    def _metrics(self) -> Iterator[Metric]:
        for part in self.parts:
            yield metric("coverage", part.covered, better="higher", where={"score": self.name, **part.where})
        how = f"mean and central 95 % over draws of {text.plural(self.calibrated, 'calibration patient')}"
        yield Metric("coverage_by_chance", *self.chance, self.calibrated, where={"score": self.name}, interval=how)
        for part in self.parts:
            yield metric("set_size", self._mean_size(part), better="lower", where={"score": self.name, **part.where})
        for name, count in (("singleton_share", 1), ("empty_share", 0)):
            estimate = proportion(self.size == count, self.audit.patients)
            yield metric(name, estimate, better="higher" if count else "lower", where={"score": self.name})

    def _mean_size(self, part: _Part) -> Estimate:
        sizes = self.size[part.members].astype(float)
        if not len(sizes):
            return not_estimable("no such case is audited")
        return bootstrap(
            lambda weights: (weights @ sizes) / weights.sum(axis=1),
            self.audit.patients[part.members],
            rng=self.audit.rng(f"size {self.name} {part.label}"),
            resamples=self.resamples,
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row per case: its set, whether that holds the true class."""
        names = np.array(self.audit.classes)
        held = ["|".join(names[row]) for row in self.held]
        return pd.DataFrame(
            {"id": self.audit.ids, "score": self.name, "set": held, "size": self.size, "covered": self.covered}
        )

    def called(self, name: str) -> Metric:
        return next(item for item in self.metrics if item.name == name)


def _overview(found: tuple[_Sets, ...]) -> Table:
    rows = []
    for each in found:
        shown = each.thresholds if each.by_class else each.thresholds[:1]
        for code, threshold in enumerate(shown):
            of = each.audit.classes[code] if each.by_class else "all"
            rows.append((each.name.upper(), of, threshold.cases, threshold.rank, _limit(threshold)))
    return Table(
        "Where the thresholds come from",
        f"Fitted on {found[0].tuning.called}; the threshold is the score of that rank.",
        ("Score", "Class", "Calibration cases", "Rank", "Threshold"),
        tuple(rows),
    )


def _limit(threshold: Quantile) -> float | None:
    return threshold.threshold if np.isfinite(threshold.threshold) else None


def _forest(found: _Sets) -> Forest:
    marks = tuple(
        Mark(
            part.label, part.covered.value, part.covered.low, part.covered.high,
            f"n = {text.number(part.covered.n, 'count')}, mean size {text.number(_size(found, part))}"
            if part.covered.value is not None else f"not estimable ({part.covered.reason})",
        )
        for part in found.parts
    )  # fmt: skip
    known = [part for part in found.parts if part.covered.value is not None]
    lowest = min(known, key=lambda part: part.covered.value or 0.0)
    return Forest(
        f"Coverage of {found.name.upper()} sets",
        f"Lowest for {lowest.label}: {text.value(lowest.covered.value, lowest.covered.low, lowest.covered.high)}.",
        Axis("Share of cases whose set holds the true class", low=0, high=1),
        marks,
        (Reference("promise", 1 - found.alpha, "x"),),
    )


def _size(found: _Sets, part: _Part) -> float:
    return float(found.size[part.members].mean())


def _sizes(found: tuple[_Sets, ...]) -> Bars:
    most = len(found[0].audit.classes)
    bins = range(min(most, _LARGEST_SHOWN) + 1)
    last = f"{bins[-1]} or more" if most > _LARGEST_SHOWN else str(bins[-1])
    shares = {
        each.name.upper(): tuple(float((each.size.clip(max=bins[-1]) == size).mean()) for size in bins)
        for each in found
    }
    largest = ", ".join(f"{name} {values[1]:.3f}" for name, values in shares.items())
    return Bars(
        "How many classes the sets hold",
        f"Share of cases with a single class: {largest}.",
        (*(str(size) for size in bins[:-1]), last),
        Axis("Share of cases", low=0, high=1),
        shares,
        Axis("Classes in the set"),
    )


def _broken(found: tuple[_Sets, ...]) -> Table:
    rows = []
    for each in found:
        broken = {part.label for part in each.broken}
        for part in each.parts:
            covered = part.covered
            word = (
                "not tested"
                if part.p is None
                else "below the promise"
                if part.label in broken
                else "no sign against it"
            )
            rows.append(
                (each.name.upper(), part.label, covered.n, covered.value, covered.low, covered.high, part.p, word)
            )
    return Table(
        "Is the promise kept?",
        "One row per score and part of the cases; p is the chance of so low a coverage among cases like those of calibration. "
        f"The word follows from p after Holm's correction over the parts; fewer than {_LEAST} patients are not tested.",
        ("Score", "Cases", "Patients", "Coverage", "Low", "High", "p", "Promise"),
        tuple(rows),
    )


def _summary(found: tuple[_Sets, ...]) -> str:
    return " ".join(_sentence(each) for each in found)


def _sentence(found: _Sets) -> str:
    overall, size = found.called("coverage"), found.called("set_size")
    said = (
        f"{found.name.upper()} sets promise {text.number(1 - found.alpha)} and hold the true class in {spoken(overall)} of the "
        f"cases ({text.interval(found.chance.low, found.chance.high)} by chance), with {spoken(size)} classes on average"
    )
    if not found.broken:
        return f"{said}; nowhere is coverage below the promise beyond chance."
    shown = [item for item in found.metrics if item.name == "coverage"]
    by = {part.label: item for part, item in zip(found.parts, shown, strict=True)}
    worst = sorted(found.broken, key=lambda part: part.covered.value or 0.0)
    places = text.listing([f"{part.label} {spoken(by[part.label])}" for part in worst], most=3)
    return f"{said}; below the promise beyond chance: {places}."


def _caveats(found: tuple[_Sets, ...], tuning: Audit) -> tuple[str, ...]:
    caveats = [
        "The promise holds for cases drawn like those of validation; another site, scanner or prevalence is not covered by it.",
    ]
    if not found[0].by_class:
        caveats.append(
            "Nothing promises the coverage to a class or a group: low coverage there breaks no theorem, but may harm."
        )
    if found[0].calibrated < len(tuning.ids):
        caveats.append(
            f"The {len(tuning.ids)} calibration cases are of {text.plural(found[0].calibrated, 'patient')}: ranges by chance count "
            "patients, and the theorem, which wants independent cases, holds only roughly."
        )
    full = sorted(
        {
            "every class" if not each.by_class else each.audit.classes[code]
            for each in found
            for code, threshold in enumerate(each.thresholds)
            if threshold.rank > threshold.cases
        }
    )
    if full:
        caveats.append(
            f"Too few calibration cases for alpha {found[0].alpha:g}: {text.listing(full)} {'is' if len(full) == 1 else 'are'} in "
            "every set, which says nothing."
        )
    absent = [name for code, name in enumerate(tuning.classes) if not (tuning.labels == code).any()]
    if absent:
        rests = "" if found[0].by_class else ": what they promise rests on other classes"
        caveats.append(f"No calibration case is of class {text.listing(absent)}{rests}.")
    return tuple(caveats)
