"""Do the attacks' survivors say something about the model, or were the attacks misled? All checks on one set of cases, and a verdict.

Shapes: N cases that are decided rightly and all attacked by every attack, E budgets, S steps, K logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from xvision.attacks import check_rules as rules
from xvision.attacks.check_table import RULES, Check, Rule, State, not_run
from xvision.errors import ConfigError

__all__ = ["CAVEAT", "RULES", "Check", "Evidence", "Rule", "State", "Verdict", "examine", "verdict"]

CAVEAT = (
    "The list is neither necessary nor sufficient (Carlini et al. 2019): no sign is no proof that the attacks were strong enough,"
    " and a sign is no proof that they were not."
)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What an audit has gathered; None where it has not, and the checks that need it are then not run. All (N,) bool unless said.

    Broken at one epsilon by each attack by itself, all attacks on the same cases: noise, single_step, pgd; longer, restarted: PGD
    with twice the steps, from 5 starts; cross_entropy, margin: one attack on each loss; transfer; white_box: any gradient attack;
    black_box: any attack on scores or decisions.
    unbounded: broken where every image is allowed, best with restarts. half: broken within L∞ 0.5. grey: mid-grey breaks it.
    curve: (N, E), PGD at each budget by itself. paths: (N, S) float, the loss that ``path_broken``'s attack climbed.
    silent: an iterate broke what the attack reports as unbroken, which cannot happen where every iterate is tested. found, held: broken,
    and still so when shown alone in float32.
    ways: the most ways of breaking that a case has. met_nonfinite: a value was not finite during an attack.
    The rest is as the functions of ``probes`` name it. within, reached: (n,) of the linear twin, whose cases are its own.
    refused: id of a check to the reason why it is not run.
    """

    noise: np.ndarray | None = None
    single_step: np.ndarray | None = None
    pgd: np.ndarray | None = None
    white_box: np.ndarray | None = None
    black_box: np.ndarray | None = None
    transfer: np.ndarray | None = None
    cross_entropy: np.ndarray | None = None
    margin: np.ndarray | None = None
    longer: np.ndarray | None = None
    restarted: np.ndarray | None = None
    unbounded: np.ndarray | None = None
    half: np.ndarray | None = None
    grey: np.ndarray | None = None
    curve: np.ndarray | None = None
    paths: np.ndarray | None = None
    path_broken: np.ndarray | None = None
    silent: np.ndarray | None = None
    found: np.ndarray | None = None
    held: np.ndarray | None = None
    ways: int | None = None
    met_nonfinite: np.ndarray | None = None
    zero_slope: np.ndarray | None = None
    tiny_slope: np.ndarray | None = None
    cross_entropy_zero: np.ndarray | None = None
    nonfinite: np.ndarray | None = None
    cut: np.ndarray | None = None
    logits: np.ndarray | None = None
    spread: np.ndarray | None = None
    changed: np.ndarray | None = None
    change: np.ndarray | None = None
    unexplained: np.ndarray | None = None
    reachable: np.ndarray | None = None
    still: np.ndarray | None = None
    company: np.ndarray | None = None
    training: np.ndarray | None = None
    dynamic: np.ndarray | None = None
    along_slope: np.ndarray | None = None
    at_random: np.ndarray | None = None
    cosine: np.ndarray | None = None
    double: np.ndarray | None = None
    within: np.ndarray | None = None
    reached: np.ndarray | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.refused) - set(RULES))
        if unknown:
            raise ConfigError(f"found reasons for the checks {', '.join(unknown)}: known are {', '.join(RULES)}")


class _Examined(NamedTuple):
    """A rule, the evidence it needs, and what else it takes where that is there."""

    rule: Callable[..., Check]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


def _nonfinite_or_cut(nonfinite: np.ndarray, cut: np.ndarray, met: np.ndarray | None) -> Check:
    return rules.nonfinite_or_cut(nonfinite if met is None else np.logical_or(nonfinite, met), cut)


_PLAIN = ("single_step", "cross_entropy", "margin")
"""What breaks cases beside PGD without more effort."""
_EXAMINED: Mapping[str, _Examined] = {
    "M1": _Examined(partial(rules.weaker_wins, "M1"), ("single_step", "pgd")),
    "M2": _Examined(partial(rules.weaker_wins, "M2"), ("black_box", "white_box")),
    "M3": _Examined(partial(rules.weaker_wins, "M3"), ("transfer", "white_box")),
    "M4": _Examined(rules.unbounded_survivors, ("unbounded", "reachable"), ("half", "grey")),
    "M5": _Examined(rules.monotone, ("curve",)),
    "M6": _Examined(rules.zero_gradients, ("zero_slope", "tiny_slope", "still")),
    "M7": _Examined(rules.losses_disagree, ("cross_entropy", "margin", "cross_entropy_zero", "zero_slope", "ways")),
    "M8": _Examined(_nonfinite_or_cut, ("nonfinite", "cut"), ("met_nonfinite",)),
    "M9": _Examined(rules.unstable_loss, ("change", "unexplained")),
    "M10": _Examined(rules.not_converged, ("paths", "path_broken")),
    "M11": _Examined(partial(rules.more_helps, "M11"), ("longer", "pgd"), _PLAIN),
    "M12": _Examined(partial(rules.more_helps, "M12"), ("restarted", "pgd"), _PLAIN),
    "M13": _Examined(rules.silent_success, ("silent",)),
    "M14": _Examined(rules.not_transferred, ("found", "held")),
    "M15": _Examined(rules.random_model, ("spread", "changed")),
    "M16": _Examined(rules.probabilities_given, ("logits",)),
    "M17": _Examined(rules.dynamic_defence, ("dynamic",)),
    "M18": _Examined(rules.surface, ("along_slope", "at_random")),
    "M19": _Examined(partial(rules.weaker_wins, "M19"), ("noise", "pgd")),
    "M20": _Examined(rules.batch_dependence, ("company", "training")),
    "M21": _Examined(rules.finite_differences, ("cosine", "double")),
    "M22": _Examined(rules.twin, ("within", "reached")),
}


_REPEATABLE = ("M20", "M21")
"""What compares two answers to find their difference, which says nothing of a model that never answers alike."""


def examine(evidence: Evidence) -> tuple[Check, ...]:
    """Every check, in the order of ``RULES``; "not run" with its reason where the evidence is missing or the cases are too few."""
    checks = {id_: _examined(evidence, id_, entry) for id_, entry in _EXAMINED.items()}
    if checks["M15"].state == "flagged":
        reason = "the model answers the same batch differently each time, which hides what is looked for"
        checks |= {id_: not_run(id_, reason) for id_ in _REPEATABLE}
    return tuple(checks.values())


def _examined(evidence: Evidence, id_: str, entry: _Examined) -> Check:
    if id_ in evidence.refused:
        return not_run(id_, evidence.refused[id_])
    given: list[Any] = [getattr(evidence, name) for name in entry.needs]
    missing = [name for name, value in zip(entry.needs, given, strict=True) if value is None]
    if missing:
        return not_run(id_, f"nothing was gathered on {_listed(missing)}")
    cases, fewest = len(given[0]), RULES[id_].fewest
    if cases < fewest:
        return not_run(id_, f"{cases} cases are too few, since no figure could be significant below {fewest}")
    return entry.rule(*given, *(getattr(evidence, name) for name in entry.takes))


class Verdict(NamedTuple):
    """flags: id and name of every check that is broken or flagged. missing: of every mandatory one that was not run."""

    state: Literal["supported", "inconclusive", "broken"]
    flags: tuple[str, ...]
    missing: tuple[str, ...]
    sentence: str


def verdict(checks: Sequence[Check]) -> Verdict:
    """May the share that stands be believed? "broken" where a check proves that the attacks failed, "inconclusive" where one is flagged
    or a mandatory one was not run, else "supported": the model was not broken by these attacks, and nothing shows that they were misled.
    """
    broken, flagged = (tuple(each for each in checks if each.state == state) for state in ("broken", "flagged"))
    ran = {each.id for each in checks if each.state != "not run"}
    missing = tuple(f"{id_} {rule.name}" for id_, rule in RULES.items() if rule.mandatory and id_ not in ran)
    flags = tuple(f"{each.id} {each.name}" for each in (*broken, *flagged))
    if broken:
        said = f"The attacks failed ({_listed(flags)}): what they left standing says nothing about the model."
        return Verdict("broken", flags, missing, f"{said} {CAVEAT}")
    if flagged or missing:
        doubts = [f"flagged: {_listed(flags)}"] * bool(flags) + [f"not run: {_listed(missing)}"] * bool(missing)
        said = f"Inconclusive ({'; '.join(doubts)}): a better attack may break what stands."
        return Verdict("inconclusive", flags, missing, f"{said} {CAVEAT}")
    return Verdict("supported", (), (), f"None of {len(ran)} checks shows that the attacks were misled. {CAVEAT}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", " ") for name in names)
