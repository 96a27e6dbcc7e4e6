"""What FAB's last looks make of a break, on a line where each of them is known."""

from __future__ import annotations

import pytest
import torch

from xvision.attacks.cases import budget_of, cases_of
from xvision.attacks.fab import fab
from xvision.attacks.goals import class_goal
from xvision.methods.decision import Decision


def test_the_last_tenth_of_the_line_to_a_break_is_halved_ten_times() -> None:
    """The second look is 1.05 distances away; nine tenths of that hold nothing, and of 1024 parts of the rest the 537th does."""
    pixels = torch.full((1, 1, 1, 1), 0.5)
    goal = class_goal(torch.tensor([0]), 2, Decision(1, 0.5))
    cases = cases_of(lambda images: images.flatten(1) - 0.7, pixels, goal, keys=["a"], seed=0)
    found = fab(cases, budget_of("l2", (0.1,), pixels), steps=2, targets=1, restarts=1, width=1)
    part = 0.9 + 0.1 * 537 / 1024
    assert part - 0.1 / 1024 < 1 / 1.05 < part
    assert found.size.tolist() == pytest.approx([1.05 * 0.2 * part], rel=1e-5)
    assert found.looks.tolist() == [1 + 2 + 11]
