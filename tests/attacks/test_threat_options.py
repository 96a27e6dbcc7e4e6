"""The options of the analysis of other threats reach the attacks: on even images, which no move and no patch changes enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.analyses.subjects import SIDE, as_black_box, linear_model, subject
from xvision.analyses.threat_models import threat_models
from xvision.attacks.spatial import Grid
from xvision.audit import Audit
from xvision.models.network import NetworkClassifier
from xvision.result import Result

COUNT = 8
GRID = Grid((10.0,), (0.1,), (0.9,), 8)
OPTIONS: dict[str, Any] = {
    "rotations": GRID.rotations,
    "shifts": GRID.shifts,
    "scales": GRID.scales,
    "combinations": GRID.combinations,
    "epsilons": (0.04,),
    "patch_share": 1 / SIDE**2,
}


class _Between(nn.Module):
    """Breaks the decision where the mean of an image has gone 0.022 to 0.028 further from a half, and not beyond."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        mean = pixels.flatten(1).mean(dim=1, keepdim=True)
        lesion, normal = (mean - 0.625).abs() - 0.003, 0.003 - (mean - 0.375).abs()
        return torch.where(mean > 0.5, lesion, normal)


def between() -> Audit:
    pixels = np.full((COUNT, SIDE, SIDE), 0.4, dtype=np.float32)
    pixels[1::2] = 0.6
    facts = linear_model(np.ones((SIDE, SIDE), dtype=np.float32)).facts
    audit = replace(
        subject(np.ones((SIDE, SIDE)), pixels), model=NetworkClassifier(_Between(), facts, torch.device("cpu"))
    )
    audit.task = "threat_models"
    return audit


def rate(result: Result, attack: str) -> float | None:
    return next(item.value for item in result.metrics if item.where["attack"] == attack)


def test_so_many_steps_are_taken_that_what_lies_between_is_met() -> None:
    """Of two looks the second is at the radius; of eight the third is at 0.625 radii, which is 0.025."""
    for steps, broken in ((2, 0.0), (8, 1.0)):
        result = threat_models(between(), **OPTIONS, steps=steps)
        assert (rate(result, "low frequency"), rate(result, "inside the window")) == (broken, broken)
        assert (rate(result, "rotation"), rate(result, "patch")) == (0.0, 0.0)
        assert [case.facts["broken by"] for case in result.cases] == ["low frequency"] * (6 if broken else 0)


def test_a_model_without_gradients_is_shown_the_moves_alone() -> None:
    audit = between()

    blind = as_black_box(audit)
    result = threat_models(blind, **OPTIONS, steps=8)
    assert not result.cases
    assert blind.engine.meter.forward == COUNT + len(GRID.transformations()) * (COUNT + 6)
