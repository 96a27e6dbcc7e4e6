"""Attacks of foolbox: what must stay untouched, one case apart from another, what may fail, what is counted."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.attacks.foolbox_cases import (
    DECIDED,
    MINIMAL,
    SIDE,
    case,
    least,
    linear_cases,
    network_cases,
    run,
)
from xvision.attacks.balls import Norm
from xvision.attacks.cases import budget_of
from xvision.attacks.foolbox_attacks import decision_based, minimal_norm
from xvision.attacks.foolbox_model import View
from xvision.attacks.goals import class_goal
from xvision.errors import ModelError
from xvision.methods.decision import Decision


@pytest.mark.parametrize(("attack", "norm"), [*MINIMAL, *DECIDED])
@pytest.mark.parametrize("inference", [False, True])
def test_the_model_and_the_generators_are_left_as_they_were(attack: str, norm: Norm, inference: bool) -> None:
    model, cases = network_cases()
    frozen = model.body[0].weight
    frozen.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    drawn, counted = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with torch.inference_mode(inference):
        found = run(cases, attack, norm, {"hop_skip_jump": 100, "boundary": 100, "cw": 60}.get(attack, 12))
    assert torch.isfinite(found.size).any()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False, True, True, True, True, True]
    assert not any(module.training for module in model.modules())
    assert not cases.pixels.requires_grad
    assert cases.pixels.grad is None
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert (np.random.get_state()[1] == counted).all()


@pytest.mark.parametrize(("attack", "norm"), [*MINIMAL, *DECIDED])
def test_a_case_does_not_depend_on_its_neighbours(attack: str, norm: Norm) -> None:
    _, cases = network_cases(6)
    effort = 150 if (attack, norm) in DECIDED else 20
    together = run(cases, attack, norm, effort)
    order = torch.tensor([4, 1, 3])
    apart = run(cases.rows(order), attack, norm, effort)
    torch.testing.assert_close(apart.size, together.size[order], rtol=1e-3, atol=1e-6)
    if attack != "deepfool":  # which looks on until its whole batch is broken
        assert torch.equal(apart.looks, together.looks[order])


def test_width_changes_no_result() -> None:
    _, cases = network_cases(5)
    budget = least(cases, "l2")
    for wide, narrow in (
        (
            minimal_norm(cases, budget, attack="ddn", steps=30, width=64),
            minimal_norm(cases, budget, attack="ddn", steps=30, width=2),
        ),
        (
            decision_based(cases, budget, attack="hop_skip_jump", queries=250, width=64),
            decision_based(cases, budget, attack="hop_skip_jump", queries=250, width=1),
        ),
    ):
        torch.testing.assert_close(wide.size, narrow.size, rtol=1e-4, atol=0)
        assert torch.equal(wide.looks, narrow.looks)


def test_the_seed_changes_what_is_drawn_and_nothing_else_does() -> None:
    cases, _, _ = linear_cases(2)
    torch.manual_seed(0)
    first = run(cases, "hop_skip_jump", "l2", 300)
    torch.manual_seed(1)
    assert torch.equal(run(cases, "hop_skip_jump", "l2", 300).images, first.images)
    assert not torch.equal(run(replace(cases, seed=6), "hop_skip_jump", "l2", 300).images, first.images)


@pytest.mark.parametrize(("attack", "norm"), [*MINIMAL, *DECIDED])
def test_looks_are_the_images_shown_to_the_model(attack: str, norm: Norm) -> None:
    _, cases = network_cases(3)
    shown = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        shown.append(len(images))
        return cases.forward(images)

    found = run(replace(cases, forward=counted), attack, norm, 150 if (attack, norm) in DECIDED else 15)
    assert int(found.looks.sum()) == sum(shown)
    if (attack, norm) in DECIDED:
        assert found.looks.max() <= 150
        assert found.looks.min() > 50


@pytest.mark.parametrize(("attack", "norm"), [("fmn", "linf"), ("hop_skip_jump", "linf")])
def test_cases_known_to_break_within_the_smallest_budget_are_left_alone(attack: str, norm: Norm) -> None:
    cases, _, _ = linear_cases(4)
    budget = budget_of(norm, [1 / 255, 8 / 255], cases.pixels)
    budget = replace(budget, reached=torch.tensor([1 / 255, 2 / 255, 0.0, math.inf], dtype=torch.float64))
    run_it = minimal_norm if attack == "fmn" else decision_based
    effort: dict[str, int] = {"steps": 20} if attack == "fmn" else {"queries": 200}
    found = run_it(cases, budget, attack=attack, **effort)
    assert (found.looks > 0).tolist() == [False, True, False, True]
    assert torch.isinf(found.size[[0, 2]]).all()
    nothing_left = run_it(cases, replace(budget, reached=torch.zeros(4, dtype=torch.float64)), attack=attack, **effort)
    assert nothing_left.looks.sum() == 0


@pytest.mark.parametrize(("attack", "norm"), [("ddn", "l2"), ("hop_skip_jump", "l2")])
def test_what_is_broken_already_needs_no_change(attack: str, norm: Norm) -> None:
    cases, _, _ = linear_cases(3)
    turned = class_goal(cases.goal.ways(cases.forward(cases.pixels)).argmax(dim=1), 2, Decision())
    found = run(replace(cases, goal=turned), attack, norm)
    assert found.size.tolist() == [0.0, 0.0, 0.0]
    assert found.looks.tolist() == [1, 1, 1]
    assert torch.equal(found.images, cases.pixels)
    mixed = class_goal(torch.tensor([1, 1, 1]), 2, Decision())
    assert run(replace(cases, goal=mixed), attack, "l2").looks[1] == 1


@pytest.mark.parametrize(("attack", "norm"), MINIMAL)
@pytest.mark.parametrize("how", ["nan", "raises"])
def test_one_bad_case_does_not_end_the_others(attack: str, norm: Norm, how: str) -> None:
    """The model gives no answer for any change of the third image, which is brighter where that changes no margin."""
    plain, _, weight = linear_cases(5)
    mark = torch.ones(SIDE * SIDE) - (weight.sum() / weight.norm() ** 2).float() * weight.float()
    pixels = plain.pixels.clone()
    pixels[2] += 0.2 * mark.view(1, SIDE, SIDE)
    cases = case(plain.forward, pixels, plain.goal)
    third = (pixels[2].flatten() @ mark).item()

    def forward(images: torch.Tensor) -> torch.Tensor:
        off = (images.flatten(1) @ mark > third - 4.0) & (images != pixels[2]).flatten(1).any(dim=1)
        if how == "raises" and bool(off.any()):
            raise ValueError("this is no radiograph")
        logits: torch.Tensor = plain.forward(images) / (~off[:, None]).float()
        return logits

    found = run(replace(cases, forward=forward), attack, norm, 15)
    assert found.nonfinite.tolist() == [False, False, True, False, False]
    kept = torch.tensor([0, 1, 3, 4])
    plain_run = run(cases, attack, norm, 15)
    torch.testing.assert_close(found.size[kept], plain_run.size[kept], rtol=1e-3, atol=0)
    if how == "nan" and attack != "deepfool":  # nothing was done twice for it
        assert torch.equal(found.looks[kept], plain_run.looks[kept])


def test_a_model_that_takes_no_image_at_all_is_an_error_and_no_result() -> None:
    cases, _, _ = linear_cases(2)

    def forward(images: torch.Tensor) -> torch.Tensor:
        raise ValueError("wrong shape")

    for attack in ("ddn", "hop_skip_jump"):
        with pytest.raises(ValueError, match="wrong shape"):
            run(replace(cases, forward=forward), attack, "l2")


def test_running_out_of_memory_and_our_own_errors_are_passed_on() -> None:
    cases, _, _ = linear_cases(2)
    for error in (torch.OutOfMemoryError("too large"), ModelError("no class is named")):

        def forward(images: torch.Tensor, error: Exception = error) -> torch.Tensor:
            if len(images) != len(cases) or not torch.equal(images, cases.pixels):
                raise error
            return cases.forward(images)

        with pytest.raises(type(error)):
            run(replace(cases, forward=forward), "ddn", "l2")


def test_decisions_that_fail_on_the_way_keep_what_was_found() -> None:
    cases, _, _ = linear_cases(2)
    shown = 0

    def forward(images: torch.Tensor) -> torch.Tensor:
        nonlocal shown
        before, shown = shown, shown + len(images)
        if before <= 100 < shown:
            raise ValueError("busy")
        return cases.forward(images)

    found = run(replace(cases, forward=forward), "hop_skip_jump", "l2", 300)
    assert found.nonfinite.tolist() == [True, False]
    assert torch.isfinite(found.size).all()


def test_what_foolbox_sees_of_a_case() -> None:
    """Margins are scaled and bounded, slopes are scaled only; nothing that is not finite gets through."""
    cases, margins, weight = linear_cases(2)
    view = View(cases, "l2", scale=torch.tensor([1.0, 1e6]), cap=10.0)
    seen, slopes = view.slopes(cases.pixels)
    torch.testing.assert_close(seen.double(), torch.tensor([-margins[0], -10.0]), rtol=1e-4, atol=0)
    turned = torch.tensor([-1.0, 1e6])[:, None] * weight.float()
    torch.testing.assert_close(slopes.flatten(1), turned, rtol=1e-5, atol=0)
    odd = View(replace(cases, forward=lambda x: cases.forward(x) / 0.0), "l2")
    seen, slopes = odd.slopes(cases.pixels)
    assert (seen < 0).all()
    assert (slopes == 0).all()
    assert odd.found.nonfinite.all()
    assert odd.found.looks.tolist() == [1, 1]
