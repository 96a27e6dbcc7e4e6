"""The attacks by name: what each needs, costs and cannot do, and the order in which a cascade runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch

from xvision.attacks.apgd import APGD, attempts
from xvision.attacks.balls import Norm
from xvision.attacks.cases import Budget, Cases, Forward, Found
from xvision.attacks.fab import fab
from xvision.attacks.foolbox_attacks import decision_based, minimal_norm
from xvision.attacks.gradient_walks import MarginPGD, noise, single_step
from xvision.attacks.search import pursue
from xvision.attacks.square import Square
from xvision.attacks.transfer import transferred
from xvision.errors import ConfigError, nearest

Kind = Literal["control", "gradients", "scores", "decisions", "transfer"]
"""What an attack may see of the model; "control" is chance, which every attack must beat."""


@dataclass(frozen=True)
class Effort:
    """How hard the attacks of a cascade try. Counts, all at least 1.

    draws: of the noise control. pgd_steps: of PGD. steps: of APGD, FAB and the minimal-norm attacks. restarts: starting points
    of APGD and FAB, the image itself and random ones. targets: ways of breaking that targeted attacks try, those nearest at
    the clean image. queries: of Square. decision_queries: of the label-only attacks. width: rows in one batch, which
    changes memory and speed only.
    """

    draws: int = 10
    pgd_steps: int = 20
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    queries: int = 1000
    decision_queries: int = 1000
    width: int = 64


class Clean(NamedTuple):
    """The model at the unchanged images, shared by all attacks. logits: (B, K). gradient: (B, C, H, W) the margin's slope,
    None where the model gives none. student: a surrogate of the model that gives gradients, None where there is none.
    """

    logits: torch.Tensor
    gradient: torch.Tensor | None
    student: Forward | None = None


Run = Callable[[Cases, Budget, Effort, Clean], Found]


@dataclass(frozen=True)
class Attack:
    """name: as in plans and metrics. label: as on pages. norms: what it can bound. source: author and year. passes: cost per
    case and budget tried, in words. order: its place in the standard cascade, None when it runs only where named.
    ways: the fewest ways of breaking with which it does something that no attack before it does. minimal: it looks for the
    smallest change, and so runs below the smallest budget, too.
    """

    name: str
    label: str
    kind: Kind
    norms: tuple[Norm, ...]
    source: str
    passes: str
    run: Run
    order: int | None = None
    ways: int = 1
    minimal: bool = False

    def refuse(self, norm: Norm, ways: int, *, gradients: bool) -> str | None:
        """None where it may be used, else why not."""
        if norm not in self.norms:
            return f"{self.label} does not bound {norm}; it bounds {', '.join(self.norms)}"
        if ways < self.ways:
            return f"{self.label} needs {self.ways} ways to be wrong and there are {ways}: the margin attack is the same there"
        if self.kind == "gradients" and not gradients:
            return f"{self.label} needs gradients, which the model does not give"
        return None


def _noise(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    return noise(cases, budget, draws=effort.draws, width=effort.width)


def _single_step(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    return single_step(cases, budget, gradient=clean.gradient, width=effort.width)


def _pgd(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    return pursue(cases, budget, MarginPGD(steps=effort.pgd_steps), width=effort.width)


def _apgd(
    cases: Cases, budget: Budget, effort: Effort, clean: Clean, *, loss: Literal["cross_entropy", "margin", "dlr"]
) -> Found:
    targets = effort.targets if loss == "dlr" else 0
    tries = attempts(cases, clean.logits, effort.restarts, targets)
    return pursue(cases, budget, APGD(loss=loss, steps=effort.steps), attempts=tries, width=effort.width)


def _fab(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    return fab(cases, budget, steps=effort.steps, targets=effort.targets, restarts=effort.restarts, width=effort.width)


def _square(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    return pursue(cases, budget, Square(steps=effort.queries), width=effort.width)


def _minimal(cases: Cases, budget: Budget, effort: Effort, clean: Clean, *, attack: str) -> Found:
    return minimal_norm(cases, budget, attack=attack, steps=effort.steps, width=effort.width)


def _decision(cases: Cases, budget: Budget, effort: Effort, clean: Clean, *, attack: str) -> Found:
    return decision_based(cases, budget, attack=attack, queries=effort.decision_queries, width=effort.width)


def _transfer(cases: Cases, budget: Budget, effort: Effort, clean: Clean) -> Found:
    if clean.student is None:
        raise ConfigError("transfer needs a surrogate, and none was made or given")
    return transferred(cases, budget, clean.student, steps=effort.pgd_steps, width=effort.width)


_EVERY: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
_SMOOTH: tuple[Norm, ...] = ("linf", "l2", "l1")
ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack("noise", "Random noise", "control", _EVERY, "", "draws", _noise, 0),
        Attack("single_step", "Single gradient step", "gradients", _EVERY, "Goodfellow 2015", "1", _single_step, 1),
        Attack("pgd", "PGD on the margin", "gradients", _EVERY, "Madry 2018", "pgd_steps", _pgd, 2),
        Attack(
            "apgd_ce", "APGD, cross-entropy", "gradients", _SMOOTH, "Croce and Hein 2020", "steps × restarts",
            partial(_apgd, loss="cross_entropy"), 3,
        ),
        Attack(
            "apgd_margin", "APGD, margin", "gradients", _SMOOTH, "Croce and Hein 2020", "steps × restarts",
            partial(_apgd, loss="margin"), 4,
        ),
        Attack(
            "apgd_targeted", "APGD, targeted", "gradients", _SMOOTH, "Croce and Hein 2020", "steps × restarts × targets",
            partial(_apgd, loss="dlr"), 5, ways=2,
        ),
        Attack("fab", "FAB, targeted", "gradients", _SMOOTH, "Croce and Hein 2020", "steps × restarts × targets", _fab, 6, minimal=True),
        Attack("fmn", "FMN", "gradients", ("linf", "l1", "l0"), "Pintor 2021", "steps", partial(_minimal, attack="fmn"), minimal=True),
        Attack("ddn", "DDN", "gradients", ("l2",), "Rony 2019", "steps", partial(_minimal, attack="ddn"), minimal=True),
        Attack(
            "deepfool", "DeepFool", "gradients", ("linf", "l2"), "Moosavi-Dezfooli 2016", "steps",
            partial(_minimal, attack="deepfool"), minimal=True,
        ),
        Attack("cw", "Carlini-Wagner", "gradients", ("l2",), "Carlini and Wagner 2017", "steps × 5",
            partial(_minimal, attack="cw"), minimal=True),
        Attack("ead", "Elastic net", "gradients", ("l1",), "Chen 2018", "steps × 5", partial(_minimal, attack="ead"), minimal=True),
        Attack("square", "Square", "scores", ("linf", "l2"), "Andriushchenko 2020", "queries", _square, 7),
        Attack("transfer", "Transfer from a surrogate", "transfer", _EVERY, "Papernot 2017", "1", _transfer),
        Attack(
            "boundary", "Boundary attack", "decisions", ("l2",), "Brendel 2018", "decision_queries",
            partial(_decision, attack="boundary"),
        ),
        Attack(
            "hop_skip_jump", "HopSkipJump", "decisions", ("linf", "l2"), "Chen 2020", "decision_queries",
            partial(_decision, attack="hop_skip_jump"),
        ),
    )
}  # fmt: skip


def named(names: Sequence[str]) -> tuple[Attack, ...]:
    """The attacks of these names, in the order given; the standard cascade for none. ConfigError for an unknown name."""
    for name in names:
        if name not in ATTACKS:
            raise ConfigError(f"found the attack {name!r}. {nearest(name, ATTACKS)} Known: {', '.join(ATTACKS)}.")
    if names:
        return tuple(ATTACKS[name] for name in names)
    return tuple(
        sorted((each for each in ATTACKS.values() if each.order is not None), key=lambda each: each.order or 0)
    )
