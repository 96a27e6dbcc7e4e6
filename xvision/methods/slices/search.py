"""The search: candidates from one half of the patients, checked on the other half. Shapes: N cases.

A candidate is confirmed when, on patients who had no part in finding it, it errs more than the rest both among cases of the
same label and among cases with the same score, after correction for all candidates, when the same search of data without any
slice seldom finds as much, and when the search finds it again from other starting points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri

from xvision.errors import ConfigError
from xvision.methods.intervals import holm
from xvision.methods.slices.cases import SliceCases, dealt_anew, halves, score_strata
from xvision.methods.slices.columns import ColumnSlice, column_slices
from xvision.methods.slices.evidence import Evidence, Strata, evidence, standing, strata, surplus_p
from xvision.methods.slices.proposers import Groups, Kind, answers, clusters, coordinates, direction, strengths

FEWEST_PATIENTS = 30
"""Fewer patients than this are not searched."""
FEWEST_ERRORS = 5
_ALPHA = 0.05
_KEPT = 2
"""Candidates of each source that are checked."""
_COARSE = 5
"""Groups are formed twice: so few, for slices that many groups would cut in pieces, and as many as patients allow."""
_FITTED = 2000
"""Cases on which groups are formed, at most."""
_SHARE = 0.1
"""Share of the cases at the far end of a direction that are a slice."""
_RUNS = 5
_AGAIN = 0.8
_SEEN = 0.6
_SAME = 0.5

Verdict = Literal[
    "confirmed", "part of another slice", "told by the score", "as much by chance", "not found again", "not confirmed"
]


class Candidate(NamedTuple):
    """members: (N,) by columns or by the embedding alone. form: (N,) as it was found. typical: (N,) how clearly a case belongs."""

    kind: Kind | Literal["columns"]
    name: str
    members: np.ndarray
    form: Callable[[], np.ndarray]
    typical: np.ndarray
    standing: float


@dataclass(frozen=True, eq=False)
class Slice:
    """A candidate with what both halves say. p_value: within label, and score_p: among cases with the same score, on the
    confirm half; adjusted: the larger of both, over all candidates (Holm). null_p: how often the search of data without slices
    found as much. stability: share of repeated searches that found it again; None where nothing was repeated."""

    candidate: Candidate
    found: Evidence
    checked: Evidence
    p_value: float
    score_p: float
    adjusted: float
    verdict: Verdict
    null_p: float | None = None
    stability: float | None = None


@dataclass(frozen=True, eq=False)
class Search:
    """discover: (N,) bool. slices: all that were checked, the confirmed first. groups: formed by each method; 0 without any.

    level: of each interval, so that all hold together. reason: why nothing was searched.
    """

    discover: np.ndarray
    slices: tuple[Slice, ...]
    groups: int
    level: float
    reason: str | None = None

    @property
    def confirmed(self) -> tuple[Slice, ...]:
        return tuple(found for found in self.slices if found.verdict == "confirmed")


@dataclass(frozen=True, eq=False)
class _Ground:
    """What every run of a search shares: who finds, on whom groups are formed, coordinates, columns and settings."""

    discover: np.ndarray
    fit: np.ndarray
    places: np.ndarray
    columns: Mapping[str, np.ndarray]
    patients: np.ndarray
    groups: int
    minimum: int
    weight: float

    def enough(self, members: np.ndarray) -> bool:
        """Whether there are enough patients inside and outside in both halves."""
        return all(
            np.count_nonzero(np.bincount(self.patients[half & side])) >= self.minimum
            for half in (self.discover, ~self.discover)
            for side in (members, ~members)
        )


def find_slices(
    cases: SliceCases,
    columns: Mapping[str, np.ndarray],
    *,
    rng: np.random.Generator,
    most: int = 25,
    minimum: int = 10,
    weight: float = 3.0,
    permutations: int = 39,
) -> Search:
    """Slices that err more than the rest. columns: name → levels (N,).

    most: groups that each method forms, at most. minimum: patients of a slice in each half. weight: of label and answer
    beside the embedding when groups are formed; with large ones, such as 10, groups follow the errors and fall apart on
    other patients. permutations: searches of data without slices. Results depend on the order of the cases: sort them.
    """
    if most < 2 or minimum < 1 or permutations < 19 or not 0 <= weight < np.inf:
        raise ConfigError(
            f"a search with {most} groups, {minimum} patients, weight {weight} and {permutations} permutations: give at least 2"
            " groups, 1 patient, a weight of 0 or more and 19 permutations"
        )
    reason = _unsearchable(cases)
    if reason:
        return Search(np.zeros(len(cases.labels), dtype=bool), (), 0, 1 - _ALPHA, reason)
    ground = _ground(cases, columns, rng, most, minimum, weight)
    candidates = _candidates(cases, ground, int(rng.integers(2**31)))
    if not candidates:
        return Search(ground.discover, (), ground.groups, 1 - _ALPHA)
    level = 1 - _ALPHA / len(candidates)
    slices = _checked(cases, ground, candidates, level, rng)
    if any(item.verdict == "confirmed" for item in slices):
        slices = _challenged(cases, ground, slices, permutations, rng)
    order = sorted(slices, key=lambda item: (item.verdict != "confirmed", item.adjusted, item.p_value))
    return Search(ground.discover, tuple(_distinct(cases, ground, order, rng)), ground.groups, level)


def _unsearchable(cases: SliceCases) -> str | None:
    count, wrong = len(np.unique(cases.patients)), len(np.unique(cases.patients[cases.errors]))
    if count < FEWEST_PATIENTS:
        return f"{count} patients are too few to search: at least {FEWEST_PATIENTS} are needed"
    if wrong < FEWEST_ERRORS:
        return f"the model errs in {wrong} patients: at least {FEWEST_ERRORS} are needed to search for a pattern"
    return None


def _ground(
    cases: SliceCases,
    columns: Mapping[str, np.ndarray],
    rng: np.random.Generator,
    most: int,
    minimum: int,
    weight: float,
) -> _Ground:
    discover = halves(cases.labels, cases.errors, cases.patients, rng)
    own = np.flatnonzero(discover)
    fit = np.sort(rng.choice(own, _FITTED, replace=False)) if len(own) > _FITTED else own
    groups = int(np.clip(len(np.unique(cases.patients[own])) // (3 * minimum), 2, most))
    places = coordinates(cases.embeddings, fit)
    return _Ground(discover, fit, places, columns, cases.patients, groups if places.shape[1] else 0, minimum, weight)


def _candidates(cases: SliceCases, ground: _Ground, seed: int) -> list[Candidate]:
    """At most ``_KEPT`` of each source, those that stand out most in the discover half, each seen once."""
    half = ground.discover
    given = strata(cases.errors[half], cases.labels[half], cases.patients[half])

    def judged(members: np.ndarray) -> float:
        return standing(members[half], given)

    always = np.zeros(len(half))
    kept: list[Candidate] = []
    described = column_slices(ground.columns, ground.enough, judged)
    _keep(kept, [_by_columns(item, always) for item in described])
    for formed in _formed(cases, ground, ground.fit, seed):
        _keep(kept, list(_grouped(formed, ground, judged)))
    return kept


def _by_columns(found: ColumnSlice, typical: np.ndarray) -> Candidate:
    return Candidate("columns", found.name, found.members, lambda: found.members, typical, found.standing)


def _by_embedding(formed: Groups, group: int, members: np.ndarray, typical: np.ndarray, stands: float) -> Candidate:
    return Candidate(formed.kind, "", members, lambda: formed.form() == group, typical, stands)


def _formed(cases: SliceCases, ground: _Ground, fit: np.ndarray, seed: int) -> Iterator[Groups]:
    """Groups by each method, formed on the cases at ``fit``."""
    if not ground.groups:
        return
    told = answers(cases.labels, cases.probabilities, ground.weight)
    for count in sorted({min(_COARSE, ground.groups), ground.groups}):
        yield from clusters(ground.places, told, fit, count, seed)
    surplus, errors = np.zeros(len(cases.labels)), cases.errors[fit]
    for alike in (cases.labels[fit], score_strata(cases.probabilities[fit], cases.decisions[fit])):
        surplus[fit] += strata(errors, alike, cases.patients[fit]).surplus
    share = max(_SHARE, 1.5 * ground.minimum / max(len(np.unique(cases.patients[fit])), 1))
    yield direction(ground.places, surplus, fit, min(share, 0.5))


def _grouped(formed: Groups, ground: _Ground, judged: Callable[[np.ndarray], float]) -> Iterator[Candidate]:
    best, clear = strengths(formed.assign(ground.places))
    for group in range(formed.count):
        members = best == group
        if ground.enough(members):
            yield _by_embedding(formed, group, members, clear, judged(members))


def _keep(kept: list[Candidate], offered: list[Candidate]) -> None:
    """Adds the ``_KEPT`` that stand out most and are not there yet."""
    room = _KEPT
    for candidate in sorted(offered, key=lambda item: -item.standing):
        if not room or candidate.standing <= 0:
            return
        if all(overlap(candidate.members, other.members) < _SAME for other in kept):
            kept.append(candidate)
            room -= 1


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard index of two sets of cases (N,)."""
    return float((one & other).sum() / max(int((one | other).sum()), 1))


def _confirm_strata(cases: SliceCases, ground: _Ground) -> tuple[Strata, Strata]:
    """Of the confirm half: by label, and by score."""
    other = ~ground.discover
    errors, patients = cases.errors[other], cases.patients[other]
    alike = score_strata(cases.probabilities[other], cases.decisions[other])
    return strata(errors, cases.labels[other], patients), strata(errors, alike, patients)


def _checked(
    cases: SliceCases, ground: _Ground, candidates: list[Candidate], level: float, rng: np.random.Generator
) -> list[Slice]:
    half, other = ground.discover, ~ground.discover
    by_label, by_score = _confirm_strata(cases, ground)
    within = [surplus_p(item.members[other], by_label, rng=rng) for item in candidates]
    beyond = [surplus_p(item.members[other], by_score, rng=rng) for item in candidates]
    alone, both = holm(within), holm(np.maximum(within, beyond))
    made = []
    for place, item in enumerate(candidates):
        found = _evidence(cases, item.form(), half, level)
        checked = _evidence(cases, item.members, other, level)
        shown = checked.difference.low is not None and checked.difference.low > 0
        verdict: Verdict = "not confirmed"
        if both[place] <= _ALPHA and shown:
            verdict = "confirmed"
        elif alone[place] <= _ALPHA and shown:
            verdict = "told by the score"
        made.append(Slice(item, found, checked, within[place], beyond[place], float(both[place]), verdict))
    return made


def _evidence(cases: SliceCases, members: np.ndarray, half: np.ndarray, level: float) -> Evidence:
    return evidence(members[half], cases.errors[half], cases.labels[half], cases.patients[half], level=level)


def _challenged(
    cases: SliceCases, ground: _Ground, slices: list[Slice], permutations: int, rng: np.random.Generator
) -> list[Slice]:
    """What seemed confirmed, held against searches of data without slices and searches from other starting points."""
    by_chance = np.array([_strongest(dealt_anew(cases, rng), ground, rng) for _ in range(permutations)])
    again = [_repeated(cases, ground, rng) for _ in range(_RUNS)]
    strata_of = _confirm_strata(cases, ground)
    made = []
    for item in slices:
        if item.verdict != "confirmed":
            made.append(item)
            continue
        own = _standing(item.candidate.members[~ground.discover], strata_of)
        null_p = (1 + int((by_chance >= own).sum())) / (1 + permutations)
        stable = _stability(item.candidate, again)
        verdict: Verdict = "confirmed"
        if null_p > _ALPHA:
            verdict = "as much by chance"
        elif stable is not None and stable < _SEEN:
            verdict = "not found again"
        made.append(replace(item, null_p=null_p, stability=stable, verdict=verdict))
    return made


def _distinct(cases: SliceCases, ground: _Ground, order: list[Slice], rng: np.random.Generator) -> Iterator[Slice]:
    """Confirmed slices, each only where its cases outside those before it err more than the rest, too; then all others."""
    other, covered = ~ground.discover, np.zeros(len(cases.labels), dtype=bool)
    for item in order:
        own = item.candidate.members & ~covered
        if item.verdict == "confirmed" and covered.any():
            left = other & ~covered
            given = strata(
                cases.errors[left], np.unique(cases.labels[left], return_inverse=True)[1], cases.patients[left]
            )
            if surplus_p(own[left], given, rng=rng) > _ALPHA:
                yield replace(item, verdict="part of another slice")
                continue
        if item.verdict == "confirmed":
            covered = covered | own
        yield item


def _standing(members: np.ndarray, strata_of: tuple[Strata, Strata]) -> float:
    return min(standing(members, given) for given in strata_of)


def _strongest(cases: SliceCases, ground: _Ground, rng: np.random.Generator) -> float:
    """How much the best candidate of a whole search stands out on the confirm half."""
    strata_of = _confirm_strata(cases, ground)
    found = _candidates(cases, ground, int(rng.integers(2**31)))
    return max((_standing(item.members[~ground.discover], strata_of) for item in found), default=-np.inf)


def _repeated(cases: SliceCases, ground: _Ground, rng: np.random.Generator) -> list[tuple[Kind, np.ndarray]]:
    """The group of each case by each method and number of groups, formed anew on four fifths of the patients from another start."""
    chosen = rng.random(int(cases.patients.max()) + 1) < _AGAIN
    fit = ground.fit[chosen[cases.patients[ground.fit]]]
    fit = fit if len(fit) > ground.groups else ground.fit
    formed = _formed(cases, ground, fit, int(rng.integers(2**31)))
    return [(item.kind, strengths(item.assign(ground.places))[0]) for item in formed]


def _stability(candidate: Candidate, again: list[list[tuple[Kind, np.ndarray]]]) -> float | None:
    """Share of the repeated searches in which a group of the same method holds mostly the same cases."""
    if candidate.kind == "columns":
        return None
    seen = [
        any(
            overlap(candidate.members, formed == group) >= _SAME
            for kind, formed in run
            if kind == candidate.kind
            for group in np.unique(formed)
        )
        for run in again
    ]
    return float(np.mean(seen))


def detectable(patients: int, rate: float, candidates: int, *, share: float, power: float = 0.8) -> float | None:
    """Error rate at which a slice of that share of the confirm half's patients would be confirmed with that power.

    rate: of the rest. Normal approximation at the level of one of ``candidates`` comparisons. None where no rate is enough.
    """
    inside = share * patients
    if inside < 1:
        return None
    reach = float(-ndtri(_ALPHA / (2 * max(candidates, 1)))) * np.sqrt(rate * (1 - rate) / inside)
    rates = np.arange(np.ceil(100 * rate) / 100, 1.0001, 0.01)
    enough = rates - rate >= reach + float(ndtri(power)) * np.sqrt(np.clip(rates * (1 - rates), 0, None) / inside)
    return float(rates[enough][0]) if enough.any() else None
