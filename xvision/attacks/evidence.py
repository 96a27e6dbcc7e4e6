"""What the attacks of one audit found: run once per norm and shared by the analyses that speak of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from xvision.attacks.balls import NORMS, Norm
from xvision.attacks.cascade import Outcome, cascade, clean_of, columns, first_breakers
from xvision.attacks.cases import TOLERANCE, Cases, Forward, cases_of
from xvision.attacks.catalogue import Attack, Effort, named
from xvision.attacks.expectation import FEWEST, JUDGED, expected, majority
from xvision.attacks.goals import class_goal
from xvision.attacks.straight_through import borrowed_gradient
from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.intervals import proportion
from xvision.models.open import load_model
from xvision.models.protocols import Classifier

TASK = "attacks"
"""Names the parts that several analyses share."""
PARTS = 4
"""Batches of images in one part: the cascade fills its own batches from them."""
_BLACK_BOX = ("noise", "square", "hop_skip_jump")
"""What can be done without gradients, in that order."""


@dataclass(frozen=True)
class AttackPlan:
    """What an audit attacks, with what and how hard: the options of its analysis.

    cases: at most. epsilons: by norm, ascending. attacks: names, () for the standard cascade. agreed: norm's epsilon and the
    share that must stand there, to stop as soon as that is decided; None attacks all cases. examined: right decisions on which
    every attack is run by itself, to see whether the attacks were working. draws, surrogate, borrowed: as ``Approach`` has
    them. minutes: per norm, after which no new part is begun.
    """

    cases: int
    epsilons: Mapping[Norm, tuple[float, ...]]
    attacks: tuple[str, ...]
    effort: Effort
    agreed: tuple[float, float] | None
    examined: int
    draws: int
    surrogate: str
    borrowed: bool
    minutes: float | None

    def __post_init__(self) -> None:
        for norm, ladder in self.epsilons.items():
            if not ladder or list(ladder) != sorted(set(ladder)) or not 0 < ladder[0] <= ladder[-1] <= 1:
                raise ConfigError(
                    f"analysis.adversarial: the epsilons of {norm} are {list(ladder)}: give ascending budgets above 0 and at"
                    " most 1."
                )
        if min(self.cases, self.examined, self.draws, *vars(self.effort).values()) < 1:
            raise ConfigError(
                "analysis.adversarial: cases, steps, restarts, queries, examined and draws must be at least 1."
            )


def plan_of(options: Mapping[str, Any], *, width: int) -> AttackPlan:
    """The options of the analysis *Adversarial* as a plan. ConfigError for a norm that is not known or half an agreement."""
    norms = tuple(options["norms"])
    ladders = {"linf": "epsilons", "l2": "l2_epsilons", "l1": "l1_epsilons", "l0": "l0_epsilons"}
    wanted: dict[Norm, tuple[float, ...]] = {norm: tuple(options[ladders[norm]]) for norm in NORMS if norm in norms}
    if len(wanted) != len(norms) or not norms:
        raise ConfigError(f"analysis.adversarial.norms is {list(norms)}: give some of {', '.join(NORMS)}, each once.")
    epsilon, share = options["agreed_epsilon"], options["agreed_accuracy"]
    if (epsilon is None) != (share is None):
        raise ConfigError("analysis.adversarial: give both agreed_epsilon and agreed_accuracy, or neither.")
    effort = Effort(
        steps=options["steps"], restarts=options["restarts"], queries=options["queries"],
        decision_queries=options["decision_queries"], width=width,
    )  # fmt: skip
    agreed = None if epsilon is None else (float(epsilon), float(share))
    return AttackPlan(
        options["cases"], wanted, tuple(options["attacks"]), effort, agreed, options["examined"],
        options["model_draws"], options["surrogate"], options["borrow_gradient"], options["minutes"],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Attacked:
    """The cases of one norm after the cascade; arrays are per attacked case, N of them.

    positions: (N,) in the audit. level: confidence of each interval, above 0.95 where the attack stopped early, since it
    looked more than once. refused: attack to the reason why it was not run. left: cases of the sample that were not attacked,
    stopped: why.
    """

    norm: Norm
    epsilons: tuple[float, ...]
    positions: np.ndarray
    rows: Rows
    attacks: tuple[Attack, ...]
    refused: Mapping[str, str]
    level: float = 0.95
    left: int = 0
    stopped: str = ""

    @property
    def within_scope(self) -> np.ndarray:
        """(N,) bool, cases that have something to break in the declared directions."""
        return np.asarray(self.rows["possible"])

    @property
    def right(self) -> np.ndarray:
        """(N,) bool, in scope and not broken before any attack."""
        return np.asarray(self.rows["possible"] & ~self.rows["clean_broken"])

    @property
    def smallest(self) -> np.ndarray:
        """(N,) epsilon of the smallest change found that breaks the decision, infinity where none."""
        return np.asarray(self.rows["smallest"])

    @property
    def standing(self) -> np.ndarray:
        """(N, E) bool, right and not broken by these attacks within each epsilon."""
        return np.asarray(self.right[:, None] & ~columns(self.smallest, self.epsilons, self.tolerance))

    @property
    def tolerance(self) -> float:
        return 1e-9 if self.norm == "l0" else TOLERANCE

    @property
    def sizes(self) -> dict[str, np.ndarray]:
        """Attack to (N,), in the order in which they ran."""
        return {attack.name: self.rows[f"size {attack.name}"] for attack in self.attacks}

    def looks(self, attack: str) -> int:
        return int(self.rows[f"looks {attack}"].sum())

    def breakers(self, epsilon: float) -> np.ndarray:
        """(N,) which attack broke each case within epsilon first, "" where none."""
        return first_breakers(self.sizes, epsilon, self.tolerance)


def chosen(audit: Audit, plan: AttackPlan, norm: Norm) -> tuple[tuple[Attack, ...], dict[str, str]]:
    """The attacks to run in a norm on this model, and why the others are not. ConfigError when a named one cannot run."""
    gradients = approach_of(audit, plan).gradients
    ways = len(audit.classes) - 1
    wanted = named(plan.attacks or (() if gradients else _BLACK_BOX))
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
    attacks, refused = chosen(audit, plan, norm)
    positions = sample(audit, plan.cases)
    run = partial(attack_rows, audit, plan, norm, tuple(attack.name for attack in attacks))
    agreed = plan.agreed if norm == next(iter(plan.epsilons)) else None
    if agreed is None and plan.minutes is None:
        return Attacked(norm, plan.epsilons[norm], positions, run(positions), attacks, refused)
    order = np.random.default_rng(audit.seed).permutation(positions)
    parts = [order[start : start + audit.engine.part] for start in range(0, len(order), audit.engine.part)]
    level = 0.95 if agreed is None else 1 - 0.05 / len(parts)
    began, done = time.monotonic(), list[Rows]()
    for look, part in enumerate(parts, start=1):
        done.append(run(part))
        seen = np.concatenate(parts[:look])
        rows = {name: np.concatenate([each[name] for each in done]) for name in done[0]}
        found = Attacked(norm, plan.epsilons[norm], seen, rows, attacks, refused, level, len(order) - len(seen))
        if agreed is not None and _decided(audit, found, *agreed):
            return replace(found, stopped="the agreed question was decided")
        if plan.minutes is not None and time.monotonic() - began > 60 * plan.minutes:
            return replace(found, stopped="the time given was over")
    return found


def _decided(audit: Audit, found: Attacked, epsilon: float, share: float) -> bool:
    """Whether the interval of what stands within epsilon excludes the share."""
    stands = found.right & ~(found.smallest <= epsilon + found.tolerance)
    scope = found.within_scope
    estimate = proportion(stands[scope], audit.patients[found.positions][scope], level=found.level, exact=True)
    return estimate.low is not None and estimate.high is not None and not estimate.low <= share <= estimate.high


def sample(audit: Audit, count: int) -> np.ndarray:
    """Positions of the cases that are attacked: the same whichever analysis asks."""
    task, audit.task = audit.task, TASK
    try:
        return audit.sample(count)
    finally:
        audit.task = task


@dataclass(frozen=True)
class Approach:
    """How a model is reached: what the measures of one audit have in common.

    gradients: the model gives them, or a surrogate lends its own. draws: of a random model, whose answers are averaged over
    them and judged by a majority. surrogate: checkpoint of a similar model. borrowed: its gradients in the place of the model's.
    """

    decision: Decision
    seed: int
    gradients: bool
    draws: int
    surrogate: str
    borrowed: bool

    def cases(self, batch: Batch) -> Cases:
        """The batch as cases of the deployed decision."""
        forward: Forward = batch.model.logits
        if self.borrowed:
            forward = borrowed_gradient(forward, self.lender(batch.model.device.type))
        goal = class_goal(batch.labels, len(batch.model.classes), self.decision)
        if self.draws == 1:
            return cases_of(forward, batch.pixels, goal, keys=batch.ids, seed=self.seed)
        cases = cases_of(
            expected(forward, self.draws, seed=self.seed), batch.pixels, goal, keys=batch.ids, seed=self.seed
        )
        confirm = majority(forward, max(self.draws, FEWEST), seed=self.seed)
        recheck = majority(forward, max(self.draws, JUDGED), seed=self.seed + 1)
        return replace(cases, confirm=confirm, recheck=recheck)

    def lender(self, device: str) -> Forward:
        """The surrogate's logits."""
        return _opened(self.surrogate, device).logits


@cache
def _opened(path: str, device: str) -> Classifier:
    return load_model(path, device=device)


def approach_of(audit: Audit, plan: AttackPlan) -> Approach:
    """Raises ConfigError when gradients are to be borrowed from a surrogate that is not named."""
    if plan.borrowed and not plan.surrogate:
        raise ConfigError("analysis.adversarial.borrow_gradient needs the surrogate that lends it: give its path.")
    gradients = audit.model.access == "white-box" or plan.borrowed
    return Approach(audit.decision, audit.seed, gradients, plan.draws, plan.surrogate, plan.borrowed)


def attack_rows(
    audit: Audit, plan: AttackPlan, norm: Norm, names: tuple[str, ...], positions: np.ndarray, *, keep: bool = False
) -> Rows:
    """The rows of a cascade over some cases. keep: the images, too."""
    approach = approach_of(audit, plan)
    measure = partial(
        _cascade, approach=approach, norm=norm, epsilons=plan.epsilons[norm], names=names, effort=plan.effort, keep=keep
    )
    options = {**tried(plan, approach, norm), "attacks": names, "keep": keep}
    return audit.map(measure, positions=positions, options=options, task=TASK, part=PARTS * audit.engine.part)


def tried(plan: AttackPlan, approach: Approach, norm: Norm) -> dict[str, Any]:
    """What decides the result of an attack, for parts to be found again by."""
    effort = {name: value for name, value in vars(plan.effort).items() if name != "width"}
    return {"norm": norm, "epsilons": plan.epsilons[norm], "approach": repr(approach), **effort}


def _cascade(
    batch: Batch,
    *,
    approach: Approach,
    norm: Norm,
    epsilons: tuple[float, ...],
    names: tuple[str, ...],
    effort: Effort,
    keep: bool,
) -> Rows:
    effort = replace(effort, width=min(effort.width, len(batch.ids)))  # smaller, too, where memory ran out
    cases = approach.cases(batch)
    student = approach.lender(batch.model.device.type) if approach.surrogate else None
    clean = clean_of(cases, width=effort.width, gradients=approach.gradients, student=student)
    return rows_of(cascade(cases, norm, epsilons, named(names), effort, clean), keep=keep)


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
