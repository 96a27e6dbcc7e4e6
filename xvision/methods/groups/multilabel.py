"""Groups where one image has several findings, or one of several classes.

Shapes: N cases, L findings, K classes, G groups, R resamples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xvision.errors import DataError
from xvision.methods.groups.cases import UNKNOWN, Rate, all_levels
from xvision.methods.groups.counts import CELLS, SHARES, patient_cells, quantiles, rate, resampled_cells
from xvision.methods.groups.rest import against_rest, rest_p_values
from xvision.methods.intervals import Estimate, benjamini_hochberg, not_estimable, patient_codes, proportion, with_width


class Left(NamedTuple):
    """Cases of one finding whose label is not known: in all, and by group."""

    cases: int
    by_group: dict[str, int]


class FindingGap(NamedTuple):
    """A rate of one finding in a group less that of the rest. p_value, adjusted: of no difference; None without one."""

    finding: str
    group: str
    difference: Estimate
    p_value: float | None
    adjusted: float | None


@dataclass(frozen=True)
class Findings:
    """One rate of every finding in every group. rates: by finding and group. mean: over findings, by group."""

    metric: Rate
    rates: dict[tuple[str, str], Estimate]
    gaps: tuple[FindingGap, ...]
    mean: dict[str, tuple[Estimate, tuple[str, ...]]]
    left: dict[str, Left]


@dataclass(frozen=True)
class Confusion:
    """What the cases of each true class are called, in one group: shares of the row. rows: (K, K) of estimates.

    present: the classes that the group has cases of; macro: the mean share found over these.
    """

    group: str
    cases: int
    rows: tuple[tuple[Estimate, ...], ...]
    present: tuple[str, ...]
    macro: Estimate


def finding_gaps(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    findings: Sequence[str],
    *,
    metric: Rate,
    rng: np.random.Generator,
    minimum: int = 10,
    resamples: int = 1000,
    level: float = 0.95,
) -> Findings:
    """A rate of each finding by group, each group against the rest, and the mean over findings.

    labels: (N, L) of 0 or 1, NaN where the label is uncertain or missing: that case is left out of that finding, and
    counted. decisions: (N, L) of 0 or 1. groups, patients: (N,). Gaps have Newcombe intervals, each of its own, and
    p-values (Rao and Scott) adjusted over all findings and groups by Benjamini and Hochberg: of the differences called
    so, at most that share is false on average. ``mean`` averages a group's rate over the findings that it has
    ``minimum`` patients for, on resamples shared by all findings, and names them: means over different findings cannot
    be compared.
    """
    truth, decided, named = _checked(labels, decisions, groups, findings)
    codes, _ = patient_codes(patients, len(named))
    levels = all_levels(named)
    places = np.array([levels.index(name) for name in named.tolist()], dtype=int)
    shape = (CELLS, len(findings), len(levels))
    drawn = _drawn(truth, decided, places, codes, shape, rng, resamples)
    work = _Findings(truth, decided, places, codes, list(findings), levels, metric, minimum, level)
    return Findings(metric, work.rates(), work.gaps(), work.means(drawn), work.left())


def _checked(
    labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, findings: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth, decided = np.asarray(labels, float), np.asarray(decisions, float)
    named = np.asarray(groups)
    if truth.ndim != 2 or truth.shape != decided.shape or truth.shape != (len(named), len(findings)):
        raise DataError(
            f"labels of shape {truth.shape} came with decisions {decided.shape}, {len(named)} groups and"
            f" {len(findings)} findings; give one row per case and one column per finding"
        )
    if not (np.isin(truth, (0, 1)) | np.isnan(truth)).all() or not np.isin(decided, (0, 1)).all():
        raise DataError("labels must be 0, 1 or NaN (uncertain or missing), and decisions 0 or 1")
    return truth, decided, named.astype(str)


def _drawn(
    truth: np.ndarray,
    decided: np.ndarray,
    places: np.ndarray,
    codes: np.ndarray,
    shape: tuple[int, int, int],
    rng: np.random.Generator,
    resamples: int,
) -> np.ndarray:
    """Resamples of the confusion counts (4, L, G, R), the same patients for all findings."""
    row, finding = np.nonzero(~np.isnan(truth))
    outcome = (2 * truth[row, finding] + decided[row, finding]).astype(int)
    cells = np.ravel_multi_index((outcome, finding, places[row]), shape)
    matrix = patient_cells(cells, int(np.prod(shape)), codes[row])
    return resampled_cells(matrix, rng=rng, resamples=resamples).reshape(*shape, resamples)


@dataclass(frozen=True, eq=False)
class _Findings:
    truth: np.ndarray
    decided: np.ndarray
    places: np.ndarray
    codes: np.ndarray
    findings: list[str]
    levels: list[str]
    metric: Rate
    minimum: int
    level: float

    def _sample(self, finding: int) -> tuple[np.ndarray, np.ndarray]:
        """Which cases (N,) are in the denominator of a finding, and which of all are hits."""
        known = ~np.isnan(self.truth[:, finding])
        outcome = np.where(known, 2 * self.truth[:, finding] + self.decided[:, finding], -1).astype(int)
        counted, among = SHARES[self.metric]
        return np.isin(outcome, among), np.isin(outcome, counted)

    def rates(self) -> dict[tuple[str, str], Estimate]:
        found = {}
        for at, finding in enumerate(self.findings):
            among, hits = self._sample(at)
            for place, group in enumerate(self.levels):
                inside = among & (self.places == place)
                found[finding, group] = proportion(hits[inside], self.codes[inside], level=self.level)
        return found

    def _people(self, finding: int, places: Sequence[int]) -> int:
        return len(np.unique(self.codes[self._sample(finding)[0] & np.isin(self.places, places)]))

    def gaps(self) -> tuple[FindingGap, ...]:
        """Of known groups, where there are two or more."""
        known = [place for place, name in enumerate(self.levels) if name != UNKNOWN]
        found = [gap for at in range(len(self.findings)) for gap in self._of(at, known)] if len(known) > 1 else []
        tested = [at for at, gap in enumerate(found) if gap.p_value is not None]
        for at, p_value in zip(tested, benjamini_hochberg([found[at].p_value or 0.0 for at in tested]), strict=True):
            found[at] = found[at]._replace(adjusted=float(p_value))
        return tuple(found)

    def _of(self, at: int, known: list[int]) -> Iterator[FindingGap]:
        among, hits = self._sample(at)
        among &= np.isin(self.places, known)
        given = hits[among], self.places[among], self.codes[among]
        estimates = against_rest(*given, count=len(known), level=self.level)
        p_values = rest_p_values(*given, count=len(known))
        for place, estimate, p_value in zip(known, estimates, p_values, strict=True):
            sides = [place], [other for other in known if other != place]
            if min(self._people(at, side) for side in sides) < self.minimum:
                short = not_estimable(f"fewer than {self.minimum} patients in the denominator")
                yield FindingGap(self.findings[at], self.levels[place], short, None, None)
            else:
                yield FindingGap(self.findings[at], self.levels[place], estimate, float(p_value), None)

    def means(self, drawn: np.ndarray) -> dict[str, tuple[Estimate, tuple[str, ...]]]:
        found = {}
        for place, group in enumerate(self.levels):
            kept = [at for at in range(len(self.findings)) if self._people(at, [place]) >= self.minimum]
            names = tuple(self.findings[at] for at in kept)
            if not kept:
                found[group] = (not_estimable(f"no finding with {self.minimum} patients in the denominator"), names)
                continue
            samples = [self._sample(at) for at in kept]
            value = float(np.mean([hits[among & (self.places == place)].mean() for among, hits in samples]))
            draws = rate(drawn[:, kept, place], self.metric).mean(axis=0)
            people = len(np.unique(self.codes[self.places == place]))
            units = min(self._people(at, [place]) for at in kept)
            found[group] = (_bootstrapped(value, draws, people, units, self.level), names)
        return found

    def left(self) -> dict[str, Left]:
        missing = np.isnan(self.truth)
        return {
            finding: Left(
                int(missing[:, at].sum()),
                {group: int(missing[self.places == place, at].sum()) for place, group in enumerate(self.levels)},
            )
            for at, finding in enumerate(self.findings)
        }


def confusions(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    classes: Sequence[str],
    *,
    rng: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[Confusion, ...]:
    """What the cases of each class are called, in each group, with Wilson intervals by patient.

    labels, decisions: (N,) class indices. groups, patients: (N,). ``macro`` is the mean over the classes present of the
    share found, with a patient bootstrap: groups with other classes present cannot be compared by it.
    """
    truth, decided, named = np.asarray(labels), np.asarray(decisions), np.asarray(groups).astype(str)
    codes, _ = patient_codes(patients, len(truth))
    if not truth.shape == decided.shape == named.shape:
        raise DataError(
            f"{len(truth)} labels came with {len(decided)} decisions, {len(named)} groups; give one per case"
        )
    if len(truth) and not 0 <= min(truth.min(), decided.min()) <= max(truth.max(), decided.max()) < len(classes):
        raise DataError(f"labels and decisions must be class indices from 0 to {len(classes) - 1}")
    levels = all_levels(named)
    return tuple(
        _confusion(truth[inside], decided[inside], codes[inside], group, list(classes), rng, resamples, level)
        for group in levels
        for inside in [named == group]
    )


def _confusion(
    truth: np.ndarray,
    decided: np.ndarray,
    codes: np.ndarray,
    group: str,
    classes: list[str],
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> Confusion:
    size = len(classes)
    rows = []
    for code, name in enumerate(classes):
        own = truth == code
        shares = [proportion(decided[own] == other, codes[own], level=level) for other in range(size)]
        rows.append(tuple(share if own.any() else not_estimable(f"no case of {name}") for share in shares))
    present = np.unique(truth)
    drawn = resampled_cells(patient_cells(truth * size + decided, size**2, codes), rng=rng, resamples=resamples)
    drawn = drawn.reshape(size, size, resamples)[present]
    totals = drawn.sum(axis=1)
    hits = np.stack([drawn[at, code] for at, code in enumerate(present)])
    recalls = np.where(totals > 0, hits / np.maximum(totals, 1), np.nan).mean(axis=0)
    value = float(np.mean([(decided[truth == code] == code).mean() for code in present]))
    units = min(len(np.unique(codes[truth == code])) for code in present)
    macro = _bootstrapped(value, recalls, len(np.unique(codes)), units, level)
    return Confusion(group, len(truth), tuple(rows), tuple(classes[code] for code in present), macro)


def _bootstrapped(value: float, draws: np.ndarray, people: int, units: int, level: float) -> Estimate:
    """A percentile interval; Wilson's on so many units where nothing varies, as where everything is right."""
    low, high = quantiles(draws, ((1 - level) / 2, (1 + level) / 2))
    found = Estimate(value, min(float(low), value), max(float(high), value), people, "patient bootstrap")
    return with_width(found, units, level)
