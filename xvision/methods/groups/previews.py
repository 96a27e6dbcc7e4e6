"""What a changed threshold or a recalibration would decide: fitted on tuning cases, never applied to the model.

Shapes: N cases. Scores are log-odds of the positive class, on which every rule here is a threshold or a mixture of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit, logit

from xvision import text
from xvision.errors import ConfigError, DataError
from xvision.methods.decision import TIE
from xvision.methods.groups.cases import known_levels
from xvision.methods.groups.fairlearn_thresholds import Constraint, Mixture, fairlearn_mixtures
from xvision.methods.intervals import binary
from xvision.methods.operating_point import Judged, Rule, chosen_thresholds
from xvision.methods.recalibration import platt, temperature

Aim = Literal["sensitivity", "specificity", "both"]
Recalibration = Literal["platt", "temperature"]
GROUP_THRESHOLDS, NEW_THRESHOLD, RECALIBRATION = "group thresholds", "one new threshold", "group recalibration"
_RANDOMISED: dict[str, tuple[Constraint, Aim]] = {
    "equal sensitivity": ("true_positive_rate_parity", "sensitivity"),
    "equal false alarms": ("false_positive_rate_parity", "specificity"),
    "equalised odds": ("equalized_odds", "both"),
}
PREVIEWS = (GROUP_THRESHOLDS, NEW_THRESHOLD, RECALIBRATION, *_RANDOMISED)


class Tuning(NamedTuple):
    """Cases to fit on, none of them audited. scores: (N,) log-odds. labels: (N,) booleans. groups, patients: (N,)."""

    scores: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    patients: np.ndarray


class Line(NamedTuple):
    """Recalibrated log-odds = intercept + slope × log-odds. own: fitted on that group alone, not on all cases."""

    intercept: float
    slope: float
    own: bool
    words: str


class GroupRule(NamedTuple):
    """How a preview decides.

    mixtures: by group. others: for every other group, the unknown among them; None leaves them the deployed decision.
    aim: the rate that it is meant to even out. by_group: whether it needs a patient's group. lines, shared: of a
    recalibration, by group and for all others.
    """

    name: str
    aim: Aim
    mixtures: Mapping[str, Mixture]
    others: Mixture | None
    by_group: bool
    lines: Mapping[str, Line] = {}
    shared: Line | None = None

    @property
    def randomised(self) -> bool:
        """Whether it may draw decisions by lot."""
        return self.name in _RANDOMISED

    def mixture(self, group: str) -> Mixture | None:
        """How a group is decided; None as deployed."""
        return self.mixtures.get(group, self.others)

    def chance(self, scores: np.ndarray, groups: np.ndarray, deployed: np.ndarray) -> np.ndarray:
        """Probability of a positive decision (N,). scores: (N,) log-odds. groups: (N,). deployed: (N,) decisions of 0 or 1."""
        found = np.asarray(deployed, float).copy()
        for name in np.unique(groups):
            mixture, member = self.mixture(str(name)), groups == name
            if mixture is not None:
                found[member] = mixture.chance(scores[member])
        return found

    def recalibrated(self, scores: np.ndarray, group: str) -> np.ndarray:
        """Log-odds (N,) of one group after a recalibration; as they were where there is none."""
        line = self.lines.get(group, self.shared)
        return scores if line is None else line.intercept + line.slope * scores

    def ignored(self, groups: np.ndarray) -> np.ndarray:
        """Chance (N,) that a case is decided whatever its image shows."""
        mixtures = {str(name): self.mixture(str(name)) for name in np.unique(groups)}
        shares = {name: mixture.ignored if mixture else 0.0 for name, mixture in mixtures.items()}
        return np.array([shares[str(name)] for name in groups])


class Fitted(NamedTuple):
    """rules: by name, in the order of :data:`PREVIEWS`. target: the sensitivity to reach. eligible: groups that were
    fitted on. refused: other known groups with the reason, which keep the deployed threshold."""

    rules: Mapping[str, GroupRule]
    target: float
    eligible: tuple[str, ...]
    refused: Mapping[str, str]


def threshold_mixture(probability: float) -> Mixture:
    """The rule of one threshold on the probability, which counts a score at the threshold as positive."""
    at = float(logit(probability)) - TIE
    return Mixture((at, at))


def fit_previews(
    tuning: Tuning,
    threshold: float,
    *,
    target: float = 0.0,
    minimum: int = 20,
    recalibration: Recalibration = "platt",
    cases: int = 200,
    events: int = 50,
) -> Fitted:
    """Every preview, fitted on tuning cases.

    threshold: the deployed one, on the probability. target: sensitivity that the new thresholds reach; 0 is that of the
    best group at the deployed threshold. minimum: positive patients and negative ones that a group needs; fewer leave
    it the deployed threshold. cases, events: fewer cases, or fewer of either label, refuse a group its own recalibration
    and give it the one shared by all. Raises DataError when fewer than two groups can be fitted on.
    """
    if not 0 <= target <= 1:
        raise ConfigError(f"target is {target}: give a sensitivity from 0 to 1, where 0 is that of the best group")
    if minimum < 1:
        raise ConfigError(f"{minimum} patients are asked of a group to fit on: at least 1 is needed")
    tuning = tuning._replace(labels=binary(tuning.labels, "labels"), groups=np.asarray(tuning.groups).astype(str))
    refused = {name: reason for name in known_levels(tuning.groups) if (reason := _short(tuning, name, minimum))}
    eligible = tuple(name for name in known_levels(tuning.groups) if name not in refused)
    if len(eligible) < 2:
        raise DataError(
            f"{len(eligible)} of {len(known_levels(tuning.groups))} groups have {minimum} positive and {minimum} negative"
            " patients among the cases to fit on; two are needed"
        )
    deployed = threshold_mixture(threshold)
    reached = {name: _sensitivity(tuning, name, deployed) for name in eligible}
    aim = target or max(reached.values())
    best = [name for name in eligible if not target and reached[name] >= aim]
    thresholds = {name: deployed if name in best else _reaching(tuning, name, aim) for name in eligible}
    lowest = min(thresholds.values(), key=lambda mixture: mixture.thresholds[0])
    rules = [
        GroupRule(GROUP_THRESHOLDS, "sensitivity", thresholds, None, True),
        GroupRule(NEW_THRESHOLD, "sensitivity", {}, lowest, False),
        _recalibrated(tuning, deployed, recalibration, cases, events),
        *_randomised(tuning, eligible),
    ]
    return Fitted({rule.name: rule for rule in rules}, aim, eligible, refused)


def _short(tuning: Tuning, name: str, minimum: int) -> str | None:
    """Why a group cannot be fitted on."""
    for label, noun in ((True, "positive"), (False, "negative")):
        found = len(np.unique(tuning.patients[(tuning.groups == name) & (tuning.labels == label)]))
        if found < minimum:
            return f"{text.plural(found, f'{noun} patient')} to fit on, fewer than {minimum}"
    return None


def _sensitivity(tuning: Tuning, name: str, mixture: Mixture) -> float:
    return float(mixture.chance(tuning.scores[(tuning.groups == name) & tuning.labels]).mean())


def _reaching(tuning: Tuning, name: str, target: float) -> Mixture:
    """The highest threshold at which so large a share of the group's positive cases is found."""
    member = tuning.groups == name
    cases = Judged(expit(tuning.scores[member]), tuning.labels[member], tuning.patients[member])
    return threshold_mixture(float(chosen_thresholds(Rule("sensitivity", target), cases)[0]))


def _randomised(tuning: Tuning, eligible: tuple[str, ...]) -> list[GroupRule]:
    among = np.isin(tuning.groups, eligible)
    return [
        GroupRule(
            name,
            aim,
            fairlearn_mixtures(tuning.scores[among], tuning.labels[among], tuning.groups[among], constraint),
            None,
            True,
        )
        for name, (constraint, aim) in _RANDOMISED.items()
    ]


def _recalibrated(tuning: Tuning, deployed: Mixture, how: Recalibration, cases: int, events: int) -> GroupRule:
    """Each group's own line where it has enough cases, else the temperature shared by all; the threshold stays."""
    everyone = np.ones_like(tuning.labels)
    shared = _line(tuning, everyone, "temperature", own=False)
    lines: dict[str, Line] = {}
    for name in known_levels(tuning.groups):
        member = tuning.groups == name
        positives = int((member & tuning.labels).sum())
        enough = member.sum() >= cases and min(positives, int(member.sum()) - positives) >= events
        line = (_line(tuning, member, how, own=True) if enough else None) or shared
        if line:
            lines[name] = line
    mixtures = {name: _moved(deployed, line) for name, line in lines.items()}
    others = _moved(deployed, shared) if shared else None
    return GroupRule(RECALIBRATION, "both", mixtures, others, any(line.own for line in lines.values()), lines, shared)


def _moved(deployed: Mixture, line: Line) -> Mixture:
    """The threshold on the raw log-odds that decides as the deployed one does on the recalibrated."""
    at = (deployed.thresholds[0] - line.intercept) / line.slope
    return Mixture((at, at))


def _line(tuning: Tuning, member: np.ndarray, how: Recalibration, *, own: bool) -> Line | None:
    """The fit of these cases; None where there is none, or one that would turn the ranking round."""
    scores, labels, patients = tuning.scores[member], tuning.labels[member], tuning.patients[member]
    whose = "" if own else "shared "
    if how == "temperature":
        logits = np.column_stack([np.zeros(len(scores)), scores])
        found = temperature(logits, labels.astype(int), patients)
        if found.value is None:
            return None
        return Line(0.0, 1 / found.value, own, f"{whose}temperature {found.value:.2f}")
    fit = platt(expit(scores), labels, patients)
    slope, intercept = fit.slope.value, fit.intercept.value
    if slope is None or intercept is None or slope <= 0:
        return None
    return Line(intercept, slope, own, f"slope {slope:.2f}, shift {intercept:+.2f}")
