"""Were the attacks of an audit working? The checks on some of its right decisions, once per norm, for every analysis that speaks of them.

Shapes: B cases, N examined, E budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from xvision.attacks import probes
from xvision.attacks.balls import Norm
from xvision.attacks.cascade import clean_of
from xvision.attacks.cases import Budget, Cases, Forward, Found
from xvision.attacks.catalogue import Attack, Clean, Effort
from xvision.attacks.checks import RULES, Check, Evidence, Verdict, examine, verdict
from xvision.attacks.evidence import PARTS, TASK, Approach, Attacked, AttackPlan, approach_of, tried
from xvision.attacks.goals import class_goal
from xvision.attacks.independent import alone
from xvision.attacks.linear_twin import Twin, linear_twin
from xvision.attacks.transfer import Student, distilled
from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.methods.intervals import Estimate, proportion

_TWINS = 16
_STUDENT = 300
"""Images that the surrogate is distilled from, at most."""
_REFERENCES = 4
"""Images of each class that are tried as what a case may become."""
_DRAWS, _TIMES = 20, 5


class Examination(NamedTuple):
    """epsilon: the budget at which the attacks were compared, where nearest to half of the right decisions stood. examined: cases.
    unconfirmed: breaks of the search that were none when checked again, and are not counted. likeness: on what share of images the
    linear surrogate of M3 decides as the model does, fitted without them; None where another one was given. chance: what deciding
    always alike would reach.
    """

    norm: Norm
    epsilon: float
    examined: int
    checks: tuple[Check, ...]
    verdict: Verdict
    unconfirmed: int = 0
    likeness: Estimate | None = None
    chance: Estimate | None = None


def examined_norm(audit: Audit, plan: AttackPlan, attacked: Attacked) -> Examination:
    """The checks of one norm; done once per run for equal plans."""
    key = f"examined/{attacked.norm}/{plan!r}"
    if key not in audit.shared:
        audit.shared[key] = _examined(audit, plan, attacked)
    found: Examination = audit.shared[key]
    return found


def _examined(audit: Audit, plan: AttackPlan, attacked: Attacked) -> Examination:
    right = attacked.positions[attacked.right]
    order = np.random.default_rng(audit.seed).permutation(right)
    positions = np.sort(order[: plan.examined])
    stands = attacked.standing[attacked.right].mean(axis=0) if len(right) else np.ones(len(attacked.epsilons))
    epsilon = attacked.epsilons[int(np.abs(stands - 0.5).argmin())]
    if not len(positions):
        nothing = examine(Evidence(refused=dict.fromkeys(RULES, "no decision is right and open to attack")))
        return Examination(attacked.norm, epsilon, 0, nothing, verdict(nothing))
    student = None if plan.surrogate else _student(audit)
    rows = _measured(audit, plan, attacked, epsilon, positions, student and student[0].forward)
    twin = _own_twin(audit, plan, attacked)
    found = examine(evidence_of(rows, ways=len(audit.classes) - 1, twin=twin))
    unconfirmed = int(attacked.rows["unconfirmed"].sum())
    examination = Examination(attacked.norm, epsilon, len(positions), found, verdict(found), unconfirmed)
    if student is None:
        return examination
    decided, patients = audit.predictions.decisions[student[1]], audit.patients[student[1]]
    likeness = proportion(student[0].same.numpy(), patients)
    chance = proportion(decided == np.bincount(decided).argmax(), patients)
    return examination._replace(likeness=likeness, chance=chance)


def _measured(
    audit: Audit, plan: AttackPlan, attacked: Attacked, epsilon: float, positions: np.ndarray, student: Forward | None
) -> Rows:
    approach = approach_of(audit, plan)
    measure = partial(
        _probed, approach=approach, norm=attacked.norm, epsilon=epsilon, epsilons=attacked.epsilons, effort=plan.effort,
        references=_references(audit), student=student,
    )  # fmt: skip
    options = {**tried(plan, approach, attacked.norm), "epsilon": epsilon}
    return audit.map(measure, positions=positions, options=options, task=TASK, part=PARTS * audit.engine.part)


def _references(audit: Audit) -> np.ndarray:
    places = [np.flatnonzero(audit.labels == code)[:_REFERENCES] for code in range(len(audit.classes))]
    return audit.pixels(np.concatenate(places))


def _student(audit: Audit) -> tuple[Student, np.ndarray] | None:
    """A surrogate learned from the model's own answers, and the positions of its images; None where there are too few for one."""
    places = np.sort(np.random.default_rng(audit.seed).permutation(len(audit.ids))[:_STUDENT])
    if len(places) < 3:
        return None
    pixels = torch.from_numpy(audit.pixels(places)).to(audit.model.device)
    logits = torch.from_numpy(audit.predictions.logits[places]).to(audit.model.device)
    labels = torch.from_numpy(audit.labels[places]).to(audit.model.device)
    return distilled(pixels, logits, class_goal(labels, len(audit.classes), audit.decision)), places


def _probed(
    batch: Batch,
    *,
    approach: Approach,
    norm: Norm,
    epsilon: float,
    epsilons: tuple[float, ...],
    effort: Effort,
    references: np.ndarray,
    student: Forward | None,
) -> Rows:
    cases = approach.cases(batch)
    effort = replace(effort, width=min(effort.width, len(cases)))
    surrogate = approach.lender(batch.model.device.type) if approach.surrogate else student
    clean = clean_of(cases, width=effort.width, gradients=approach.gradients, student=surrogate)
    return probed(cases, norm, epsilon, epsilons, effort, clean, torch.from_numpy(references))


def probed(
    cases: Cases,
    norm: Norm,
    epsilon: float,
    epsilons: tuple[float, ...],
    effort: Effort,
    clean: Clean,
    references: torch.Tensor,
) -> Rows:
    """Everything that the checks look at, on right decisions ``cases``: rows by name, those missing that need a gradient.

    Probes run in batches of ``effort.width``; cost per case about 150 passes, and those of ``alone``.
    """
    found = alone(cases, norm, epsilon, epsilons, effort, clean)
    rows = _compared(found.success)
    named = {
        "curve": found.curve,
        "paths": found.paths,
        "silent": found.silent,
        "unbounded": found.unbounded,
        "half": found.half,
        "grey": found.grey,
    }
    rows |= {name: values for name, values in named.items() if values is not None}
    rows |= {"found": found.found, "held": probes.held_alone(cases, found.images) & found.found}
    parts = torch.split(torch.arange(len(cases), device=cases.pixels.device), effort.width)
    measured = [
        _by_probe(cases.rows(part), epsilon, references, gradients=clean.gradient is not None) for part in parts
    ]
    return rows | {name: np.concatenate([each[name] for each in measured]) for name in measured[0]}


def _by_probe(cases: Cases, epsilon: float, references: torch.Tensor, *, gradients: bool) -> Rows:
    rows: Rows = {
        **probes.repeats(cases, times=_TIMES)._asdict(),
        **probes.reach(cases, references)._asdict(),
        **probes.company(cases)._asdict(),
        "dynamic": probes.dynamic(cases),
    }
    if not gradients:
        return rows
    slopes = probes.slopes(cases)
    rows |= slopes._asdict()
    if slopes.cut.any():
        return rows
    twin = probes.in_double(cases)
    return {
        **rows,
        **probes.steadiness(cases, draws=_DRAWS)._asdict(),
        **probes.surface(cases, epsilon)._asdict(),
        **probes.differences(cases, twin)._asdict(),
    }


_GRADIENTS = ("single_step", "pgd", "longer", "restarted", "apgd_ce", "apgd_margin")
_BLACK_BOX = ("square", "hop_skip_jump")
_LOSSES = {"apgd_ce": "cross_entropy", "apgd_margin": "margin"}


def _compared(success: Mapping[str, np.ndarray]) -> Rows:
    """What each attack broke by itself, under the names that the checks have for it."""
    rows: Rows = {_LOSSES.get(name, name): hits for name, hits in success.items() if name not in _BLACK_BOX}
    for name, members in (("white_box", _GRADIENTS), ("black_box", _BLACK_BOX)):
        there = [success[each] for each in members if each in success]
        if there:
            rows[name] = np.logical_or.reduce(there)
    return rows


def evidence_of(rows: Rows, *, ways: int, twin: Twin | None) -> Evidence:
    """The rows of ``probed`` as the checks read them. ways: the most ways of breaking of a case."""
    gathered: dict[str, Any] = {
        **rows, "ways": ways, "path_broken": rows.get("found"),
        "within": twin and twin.within, "reached": twin and twin.reached,
    }  # fmt: skip
    return Evidence(**gathered)


def _own_twin(audit: Audit, plan: AttackPlan, attacked: Attacked) -> Twin | None:
    """The strongest gradient attack that ran, on a linear model whose images have the same size; None where none ran."""
    walked = [each for each in attacked.attacks if each.kind == "gradients" and each.name != "single_step"]
    if not walked:
        return None
    best = next((each for each in walked if each.name == "apgd_margin"), walked[-1])
    shape = (audit.model.input.channels, audit.model.input.height, audit.model.input.width)
    return twin_of(best, plan.effort, attacked.norm, shape, seed=audit.seed, device=audit.model.device)


def twin_of(
    attack: Attack, effort: Effort, norm: Norm, shape: tuple[int, int, int], *, seed: int, device: torch.device
) -> Twin:
    """An attack of the catalogue on the linear twin."""

    def run(cases: Cases, budget: Budget) -> Found:
        return attack.run(cases, budget, effort, clean_of(cases, width=effort.width, gradients=True))

    return linear_twin(run, norm, shape, count=_TWINS, seed=seed, device=device)
