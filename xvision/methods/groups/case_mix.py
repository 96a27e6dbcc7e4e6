"""How groups compare once they have the same cases: exact weights, no matching and no drawing of lots.

A case of stratum s and label y counts p_target(s | y) / p_group(s | y), and for figures that follow prevalence also
p_target(y) / p_group(y). This is the expectation of drawing the cases again until the mixes are equal, without its noise.
Shapes: N cases, P patients, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xvision.errors import ConfigError, DataError
from xvision.methods.groups.cases import Rate, checked_cases
from xvision.methods.groups.mixes import RATES, Replay, Target, paired_levels, replayed
from xvision.methods.groups.standardised import Adjusted, Held, Sides
from xvision.methods.intervals import Estimate, not_estimable, proportion


@dataclass(frozen=True, eq=False)
class Step:
    """What is made equal: prevalence, and within each label the mix of ``strata`` (N,), names; None: nothing at all.

    after: position of the step that the change is measured from.
    """

    strata: np.ndarray | None
    after: int = 0


@dataclass(frozen=True)
class MixStep:
    """covered: the share of the target mix that both sides have cases of, among (negative, positive) cases."""

    figures: Mapping[Rate, Adjusted]
    covered: tuple[Estimate, Estimate]
    strata: int


@dataclass(frozen=True)
class Compared:
    """A group with ``reference``: another group, "rest" or, for missing values, "known"; one entry per step.

    ranked: False for missing group values. levels: of the intervals of each figure, shared out over ranked comparisons.
    """

    group: str
    reference: str
    ranked: bool
    levels: Mapping[Rate, float]
    steps: tuple[MixStep, ...]


def case_mix(
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray,
    patients: np.ndarray,
    steps: Sequence[Step],
    *,
    draws: np.ndarray,
    target: Target = "pooled",
    minimum: int = 10,
    floor: float = 0.5,
    level: float = 0.95,
    most: int = 12,
) -> tuple[Compared, ...]:
    """Gaps between groups as found and at equal mixes: one comparison for two groups, else each group with the rest.

    labels, decisions: (N,) of 0 or 1. groups, patients: (N,). steps: the first has no strata. draws: see
    :func:`~xvision.methods.groups.mixes.patient_draws`. target: the mix is that of all cases whose group is known, or of
    the reference. Strata in which one side has no case of a label are left out of both sides; where less than ``floor`` of
    the target mix remains, or a side is worth fewer than ``minimum`` patients, there is no estimate. Of more than ``most``
    groups the largest are compared.

    Intervals of sensitivity and specificity: Wilson's of every stratum, joined (MOVER), and beside it how the mixes vary
    over patient resamples; that of a change is never smaller than its resamples show. Other figures: the variance over
    resamples, in each of which the weights are made anew, as an effective number of patients never above Kish's. As found,
    gaps are those of :func:`~xvision.methods.groups.gaps.group_gaps`.
    """
    cases = checked_cases(labels, decisions, groups, patients)
    count = int(cases.patients.max(initial=-1)) + 1
    if draws.ndim != 2 or draws.shape[1] != count:
        raise DataError(f"draws of shape {draws.shape} are not of {count} patients; make them with patient_draws")
    if not steps or steps[0].strata is not None:
        raise ConfigError("the first step of a case-mix comparison must have no strata: it is the gap as found")
    codes, pairs = paired_levels(cases, most)
    chosen = [Sides.of(cases, codes, pair, target, minimum, floor) for pair in pairs]
    levels = {rate: _shared(level, chosen, rate) for rate in RATES}
    strata = [_numbered(step.strata, len(codes)) for step in steps]
    replays = [
        replayed(cases, codes, pairs, (own, strata[step.after]), draws, target)
        for own, step in zip(strata, steps, strict=True)
    ]
    compared = []
    for place, sides in enumerate(chosen):
        own = _steps(sides, steps, strata, [each[place] for each in replays], levels)
        compared.append(Compared(sides.pair.group, sides.pair.reference, sides.pair.ranked, levels, own))
    return tuple(compared)


def _numbered(strata: np.ndarray | None, cases: int) -> np.ndarray | None:
    if strata is None:
        return None
    if np.shape(strata) != (cases,):
        raise DataError(f"{cases} cases came with strata of shape {np.shape(strata)}; give one stratum per case")
    return np.unique(np.asarray(strata).astype(str), return_inverse=True)[1]


def _shared(level: float, chosen: list[Sides], rate: Rate) -> float:
    """Level of one interval, so that all ranked ones with enough patients hold together (Bonferroni)."""
    family = sum(sides.pair.ranked and sides.few(rate) is None for sides in chosen)
    return 1 - (1 - level) / max(family, 1)


def _steps(
    sides: Sides,
    steps: Sequence[Step],
    strata: list[np.ndarray | None],
    replays: list[Replay],
    levels: Mapping[Rate, float],
) -> tuple[MixStep, ...]:
    found: list[MixStep] = []
    for step, within, replay in zip(steps, strata, replays, strict=True):
        there = sides.there(within)
        before = (strata[step.after], replays[step.after])
        figures = {}
        for rate in RATES:
            held = Held(sides, rate, there, within, replay, before, levels[rate])
            earlier = found[step.after].figures[rate].gap if found else not_estimable("nothing comes before it")
            figures[rate] = held.adjusted(earlier)
        among = [sides.aim & (sides.cases.labels == label) for label in (False, True)]
        negative, positive = (proportion(there[each], sides.cases.patients[each]) for each in among)
        number = 1 if within is None else len(np.unique(within[sides.aim]))
        found.append(MixStep(figures, (negative, positive), number))
    return tuple(found)
