"""What the attacks of one audit found: run once per norm and shared by the analyses that speak of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from xvision.attacks.balls import Norm
from xvision.attacks.cascade import Outcome, cascade, clean_of, columns, first_breakers
from xvision.attacks.cases import TOLERANCE, Cases, cases_of
from xvision.attacks.catalogue import Attack, Effort, named
from xvision.attacks.goals import class_goal
from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.intervals import proportion

TASK = "attacks"
"""Names the parts that several analyses share."""
_PARTS = 4
"""Batches of images in one part: the cascade fills its own batches from them."""
_BLACK_BOX = ("noise", "square", "hop_skip_jump")
"""What can be done without gradients, in that order."""


@dataclass(frozen=True)
class AttackPlan:
    """What an audit attacks, with what and how hard: the options of its analysis.

    cases: at most. epsilons: by norm, ascending. attacks: names, () for the standard cascade. agreed: norm's epsilon and the
    share that must stand there, to stop as soon as that is decided; None attacks all cases. examined: right decisions on which
    every attack is run by itself, to see whether the attacks were working.
    """

    cases: int
    epsilons: Mapping[Norm, tuple[float, ...]]
    attacks: tuple[str, ...]
    effort: Effort
    agreed: tuple[float, float] | None
    examined: int

    def __post_init__(self) -> None:
        for norm, ladder in self.epsilons.items():
            if not ladder or list(ladder) != sorted(set(ladder)) or not 0 < ladder[0] <= ladder[-1] <= 1:
                raise ConfigError(
                    f"analysis.adversarial: the epsilons of {norm} are {list(ladder)}: give ascending budgets above 0 and at"
                    " most 1."
                )
        if min(self.cases, self.examined, *vars(self.effort).values()) < 1:
            raise ConfigError("analysis.adversarial: cases, steps, restarts, queries and examined must be at least 1.")


@dataclass(frozen=True, eq=False)
class Attacked:
    """The cases of one norm after the cascade; arrays are per attacked case, N of them.

    positions: (N,) in the audit. level: confidence of each interval, above 0.95 where the attack stopped early, since it
    looked more than once. refused: attack to the reason why it was not run.
    """

    norm: Norm
    epsilons: tuple[float, ...]
    positions: np.ndarray
    rows: Rows
    attacks: tuple[Attack, ...]
    refused: Mapping[str, str]
    level: float = 0.95

    @property
    def within_scope(self) -> np.ndarray:
        """(N,) bool, cases that have something to break in the declared directions."""
        return self.rows["possible"]

    @property
    def right(self) -> np.ndarray:
        """(N,) bool, in scope and not broken before any attack."""
        return np.asarray(self.rows["possible"] & ~self.rows["clean_broken"])

    @property
    def smallest(self) -> np.ndarray:
        """(N,) epsilon of the smallest change found that breaks the decision, infinity where none."""
        return self.rows["smallest"]

    @property
    def standing(self) -> np.ndarray:
        """(N, E) bool, right and not broken by these attacks within each epsilon."""
        return self.right[:, None] & ~columns(self.smallest, self.epsilons, self.tolerance)

    @property
    def tolerance(self) -> float:
        return 0.0 if self.norm == "l0" else TOLERANCE

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """Attack to (N,), in the order in which they ran."""
        return {attack.name: self.rows[f"size {attack.name}"] for attack in self.attacks}

    def looks(self, attack: str) -> int:
        return int(self.rows[f"looks {attack}"].sum())

    def breakers(self, epsilon: float) -> np.ndarray:
        """(N,) which attack broke each case within epsilon first, "" where none."""
        return first_breakers(self.sizes, epsilon, self.tolerance)


def chosen(audit: Audit, norm: Norm, names: tuple[str, ...]) -> tuple[tuple[Attack, ...], dict[str, str]]:
    """The attacks to run in a norm on this model, and why the others are not. ConfigError when a named one cannot run."""
    gradients = audit.model.access == "white-box"
    ways = len(audit.classes) - 1
    wanted = named(names or (() if gradients else _BLACK_BOX))
    reasons = {attack.name: attack.refuse(norm, ways, gradients=gradients) for attack in wanted}
    kept = tuple(attack for attack in wanted if reasons[attack.name] is None)
    if not kept:
        raise ConfigError(f"analysis.adversarial: none of {', '.join(reasons)} can be run in {norm} on this model.")
    return kept, {name: reason for name, reason in reasons.items() if reason}


def attacked(audit: Audit, plan: AttackPlan, norm: Norm) -> Attacked:
    """The cascade over the audit's sample in one norm; done once per run for equal plans."""
    key = f"attacked/{norm}/{plan!r}"
    if key not in audit.shared:
        audit.shared[key] = _attacked(audit, plan, norm)
    found: Attacked = audit.shared[key]
    return found


def _attacked(audit: Audit, plan: AttackPlan, norm: Norm) -> Attacked:
    attacks, refused = chosen(audit, norm, plan.attacks)
    positions = sample(audit, plan.cases)
    run = partial(_rows, audit, plan, norm, tuple(attack.name for attack in attacks))
    if plan.agreed is None:
        return Attacked(norm, plan.epsilons[norm], positions, run(positions), attacks, refused)
    epsilon, share = plan.agreed
    order = np.random.default_rng(audit.seed).permutation(positions)
    parts = np.array_split(order, max(1, len(order) // (_PARTS * audit.engine.part)))
    level = 1 - 0.05 / len(parts)
    done: list[Rows] = []
    for look in range(len(parts)):
        done.append(run(parts[look]))
        seen = np.concatenate(parts[: look + 1])
        rows = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
        found = Attacked(norm, plan.epsilons[norm], seen, rows, attacks, refused, level)
        stands = found.right & ~(found.smallest <= epsilon + found.tolerance)
        estimate = proportion(
            stands[found.within_scope], audit.patients[seen][found.within_scope], level=level, exact=True
        )
        if estimate.low is not None and estimate.high is not None and not estimate.low <= share <= estimate.high:
            break
    return found


def sample(audit: Audit, count: int) -> np.ndarray:
    """Positions of the cases that are attacked: the same whichever analysis asks."""
    task, audit.task = audit.task, TASK
    try:
        return audit.sample(count)
    finally:
        audit.task = task


def _rows(audit: Audit, plan: AttackPlan, norm: Norm, names: tuple[str, ...], positions: np.ndarray) -> Rows:
    return attack_rows(audit, norm, plan.epsilons[norm], names, plan.effort, positions)


def attack_rows(
    audit: Audit,
    norm: Norm,
    epsilons: tuple[float, ...],
    names: tuple[str, ...],
    effort: Effort,
    positions: np.ndarray,
    *,
    keep: bool = False,
) -> Rows:
    """The rows of a cascade over some cases. keep: the images, too."""
    gradients = audit.model.access == "white-box"
    measure = partial(
        _cascade,
        decision=audit.decision, norm=norm, epsilons=epsilons, names=names, effort=effort, seed=audit.seed, gradients=gradients, keep=keep,
    )  # fmt: skip
    tries: dict[str, Any] = {name: value for name, value in vars(effort).items() if name != "width"}
    options = {
        "norm": norm,
        "epsilons": epsilons,
        "attacks": names,
        "keep": keep,
        "decision": repr(audit.decision),
        **tries,
    }
    return audit.map(measure, positions=positions, options=options, task=TASK, part=_PARTS * audit.engine.part)


def cases_in(batch: Batch, decision: Decision, seed: int) -> Cases:
    """The batch as cases of the deployed decision."""
    goal = class_goal(batch.labels, len(batch.model.classes), decision)
    return cases_of(batch.model.logits, batch.pixels, goal, keys=batch.ids, seed=seed)


def _cascade(
    batch: Batch,
    *,
    decision: Decision,
    norm: Norm,
    epsilons: tuple[float, ...],
    names: tuple[str, ...],
    effort: Effort,
    seed: int,
    gradients: bool,
    keep: bool,
) -> Rows:
    effort = replace(effort, width=min(effort.width, len(batch.ids)))  # smaller, too, where memory ran out
    cases = cases_in(batch, decision, seed)
    clean = clean_of(cases, width=effort.width, gradients=gradients)
    outcome = cascade(cases, norm, epsilons, named(names), effort, clean)
    return rows_of(outcome, keep=keep)


def rows_of(outcome: Outcome, *, keep: bool) -> Rows:
    rows: Rows = {
        name: getattr(outcome, name)
        for name in ("clean_broken", "possible", "smallest", "nonfinite", "flat", "unconfirmed")
    }
    for name in outcome.sizes:
        rows[f"size {name}"] = outcome.sizes[name]
        rows[f"looks {name}"] = outcome.looks[name]
    if keep:
        rows["images"] = outcome.images.to(torch.float32).cpu().numpy()
    return rows
