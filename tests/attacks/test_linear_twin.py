"""The linear twin: attacks that work reach its closed form in every norm, others are caught."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.attacks.planted import SHAPE
from xvision.attacks import check_rules as rules
from xvision.attacks.apgd import APGD
from xvision.attacks.balls import NORMS, Norm, steepest
from xvision.attacks.cases import Budget, Cases, Found
from xvision.attacks.gradient_walks import MarginPGD, single_step
from xvision.attacks.linear_twin import linear_twin
from xvision.attacks.search import pursue
from xvision.errors import ConfigError

CPU = torch.device("cpu")


def pgd(cases: Cases, budget: Budget) -> Found:
    return pursue(cases, budget, MarginPGD(15), width=64)


def shrunk(cases: Cases, budget: Budget) -> Found:
    """Eight ninths of the budget, which is what some libraries' defaults use of it."""
    return pgd(cases, Budget(budget.norm, tuple(each * 8 / 9 for each in budget.radii), budget.reached))


def boastful(cases: Cases, budget: Budget) -> Found:
    """Breaks within a larger budget, told as breaks within the given one."""
    return pgd(cases, Budget(budget.norm, tuple(each * 1.2 for each in budget.radii), budget.reached))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 20, 17)])
def test_an_attack_that_works_reaches_the_closed_form_in_every_norm(norm: Norm, shape: Sequence[int]) -> None:
    found = linear_twin(pgd, norm, shape, count=30, seed=1, device=CPU)
    assert 8 <= found.within.sum() <= len(found.within) - 8
    assert rules.twin(found.within, found.reached).state == "clear"


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
def test_no_loss_is_saturated_on_the_twin(loss: str) -> None:
    def attack(cases: Cases, budget: Budget) -> Found:
        return pursue(cases, budget, APGD(loss, 30), width=64)

    for shape in ((1, 12, 12), (3, 80, 80)):
        found = linear_twin(attack, "linf", shape, count=20, seed=0, device=CPU)
        assert rules.twin(found.within, found.reached).state == "clear"


@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_of_another_size_is_caught(norm: Norm) -> None:
    for attack in (shrunk, boastful):
        found = linear_twin(attack, norm, SHAPE, count=30, seed=0, device=CPU)
        assert rules.twin(found.within, found.reached).state == "broken"


@pytest.mark.parametrize("norm", NORMS)
def test_the_closed_form_of_the_twin_is_the_best_change_within_the_box(norm: Norm) -> None:
    """By the tool's own best change, which knows the box: it must agree with the dual norm, which does not."""
    within: list[bool] = []

    def attack(cases: Cases, budget: Budget) -> Found:
        found = single_step(cases, budget, gradient=None, width=64)
        at = cases.pixels.clone().requires_grad_()
        (slope,) = torch.autograd.grad(cases.goal.margin(cases.forward(at)).sum(), at)
        radius = torch.full((len(cases),), budget.radii[0])
        best = steepest(slope, cases.low - cases.pixels, cases.high - cases.pixels, radius, norm)
        with torch.no_grad():
            margins = cases.goal.margin(cases.forward(cases.pixels))
        within.extend(((best * slope).flatten(1).sum(dim=1) + margins > 0).tolist())
        if norm in ("linf", "l2"):
            assert float((cases.pixels + best).min()) > 0
            assert float((cases.pixels + best).max()) < 1
        return found

    found = linear_twin(attack, norm, SHAPE, count=300, seed=2, device=CPU)
    assert within == found.within.tolist()


def test_the_twin_needs_cases_of_both_kinds() -> None:
    with pytest.raises(ConfigError, match="at least 2"):
        linear_twin(pgd, "linf", SHAPE, count=1, seed=0, device=CPU)
