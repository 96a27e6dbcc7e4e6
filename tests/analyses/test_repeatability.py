"""Repeatability of planted models: constant, linear, random, tied to their batch, and near the threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, subject
from xvision.audit import Audit
from xvision.engine import Engine
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec
from xvision.registry import analyses
from xvision.result import Metric, Result

CASES = 40
ZEROS = np.zeros((SIDE, SIDE))


@dataclass
class Planted:
    """Log-odds of any kind, without a module to look into."""

    odds: Callable[[torch.Tensor], torch.Tensor]
    classes = ("normal", "lesion")
    task, bounds, input, access = "binary", (0.0, 1.0), InputSpec(1, SIDE, SIDE), "black-box"
    device, fingerprint, description = torch.device("cpu"), "planted", {"architecture": "Planted"}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        odds = self.odds(pixels).float()
        return torch.stack((torch.zeros_like(odds), odds), dim=1)


def random_pixels(cases: int = CASES, seed: int = 0) -> np.ndarray:
    """(cases, 16, 16) of 8-bit levels away from black and white."""
    levels = np.random.default_rng(seed).integers(40, 216, (cases, SIDE, SIDE))
    return levels.astype(np.float32) / np.float32(255)


def audited(model: Any, pixels: np.ndarray, *, threshold: float = 0.5, part: int = 64) -> Audit:
    made = replace(subject(ZEROS, pixels), model=model, decision=Decision(1, threshold, True), task="repeatability")
    return replace(made, engine=Engine(part=part))


def run(audit: Audit, **options: int) -> Result:
    found = analyses()["repeatability"]
    return found(audit, found.bind(options))


def rate(result: Result, repeat: str, name: str = "flip_rate") -> Metric:
    (found,) = [item for item in result.metrics if item.name == name and item.where == {"corruption": repeat}]
    return found


def flips(result: Result, repeat: str) -> np.ndarray:
    table = result.tables["repeatability"]
    return table.loc[table["repeat"] == repeat, "flipped"].to_numpy()


def of_mean(offset: float, gain: float = 1000.0) -> Planted:
    return Planted(lambda pixels: gain * (pixels.mean(dim=(1, 2, 3)) - offset))


def test_a_constant_model_never_flips() -> None:
    result = run(audited(Planted(lambda pixels: torch.full((len(pixels),), 0.3)), random_pixels()))
    rates = [item for item in result.metrics if item.name in ("flip_rate", "logits_differ") and item.value is not None]
    assert len(rates) > 10
    assert all(item.value == 0.0 for item in rates)
    assert rate(result, "any", "probability_change").value == 0.0
    assert "0.000 (0.000 to 0.088) of the decisions flip under at least one repeat." in result.summary
    assert not result.cases


def test_a_linear_model_flips_by_one_level_exactly_where_its_margin_is_small() -> None:
    rng = np.random.default_rng(1)
    weights = (rng.normal(size=(SIDE, SIDE)) + 1.0).astype(np.float32)
    pixels = random_pixels()
    sums = (pixels * weights).sum(axis=(1, 2), dtype=np.float64)
    step = float(weights.sum(dtype=np.float64)) / 255
    offset = float(np.median(sums))

    def odds(pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels[:, 0].double() * torch.from_numpy(weights)).sum(dim=(1, 2)) - offset) * 0.5

    # cases spread over a few steps to both sides, so that the closed form has something to tell
    shift = (np.linspace(-4, 4, CASES) * step - (sums - offset)) / float(weights.sum(dtype=np.float64))
    moved = (pixels + shift[:, None, None]).astype(np.float32)
    result = run(audited(Planted(odds), moved))
    margin = (moved * weights).sum(axis=(1, 2), dtype=np.float64) - offset
    assert np.array_equal(flips(result, "level_up"), (margin < 0) & (margin + step > 0))
    assert np.array_equal(flips(result, "level_down"), (margin > 0) & (margin - step < 0))
    assert flips(result, "level_up").sum() == 5
    found = rate(result, "level_up")
    assert found.value == pytest.approx(5 / CASES)
    assert (found.n, found.interval) == (CASES, "Wilson")


def test_flips_are_those_of_the_deployed_threshold() -> None:
    """One level is 1 in log-odds: the flips lie where the threshold is."""
    levels = np.linspace(0.48, 0.52, CASES)
    pixels = np.broadcast_to(levels[:, None, None], (CASES, SIDE, SIDE)).astype(np.float32)
    model = Planted(lambda pixels: 255.0 * (pixels.mean(dim=(1, 2, 3)) - 0.5))
    for threshold in (0.5, 0.8):
        result = run(audited(model, pixels, threshold=threshold))
        odds = 255.0 * (levels - 0.5) - np.log(threshold / (1 - threshold))
        assert np.array_equal(flips(result, "level_up"), (odds < 0) & (odds > -1.0))
        assert flips(result, "level_up").any()


def test_missed_disease_and_false_alarm_are_counted_apart() -> None:
    """Even cases are healthy and odd ones ill; all lie half a level from the threshold, each on the side given here."""
    above = np.array([0, 1, 0, 1, 0, 1, 1, 0])
    pixels = np.full((8, SIDE, SIDE), 0.5, dtype=np.float32) + ((above - 0.5) / 255)[:, None, None].astype(np.float32)
    result = run(audited(of_mean(0.5), pixels))
    assert rate(result, "any").value == 1.0
    assert rate(result, "any", "flips_to_missed_disease").value == 0.75
    assert rate(result, "any", "flips_to_false_alarm").value == 0.75
    assert rate(result, "any", "flips_to_false_alarm").n == 4
    table = result.tables["repeatability"]
    up = table[table["repeat"] == "level_up"]
    assert up["to_false_alarm"].tolist() == [True, False, True, False, True, False, False, False]
    assert not up["to_missed_disease"].any()


def test_a_random_model_is_called_random_and_nothing_is_said_of_its_batch() -> None:
    noise = torch.Generator().manual_seed(0)
    model = Planted(lambda pixels: 5 * (pixels.mean(dim=(1, 2, 3)) - 0.5) + torch.randn(len(pixels), generator=noise))
    result = run(audited(model, random_pixels()))
    assert "The model is random: for the same image again, the logits of 40 of 40 cases move by up to" in result.summary
    assert any("The model is random" in caveat for caveat in result.caveats)
    assert any("contained in the flips of every other repeat" in caveat for caveat in result.caveats)
    assert rate(result, "same_image", "logits_differ").value == 1.0
    assert (rate(result, "same_image").value or 0) > 0.5
    assert rate(result, "alone", "logits_differ").reason == "the model is random"
    assert "batch" not in result.summary


def test_noise_below_the_tolerance_is_not_called_random() -> None:
    noise = torch.Generator().manual_seed(0)
    model = Planted(lambda pixels: 0.5 + 1e-5 * torch.rand(len(pixels), generator=noise))
    result = run(audited(model, random_pixels()))
    assert rate(result, "same_image", "logits_differ").value == 0.0
    assert "random" not in result.summary


def test_a_model_that_subtracts_the_mean_of_its_batch_is_called_so() -> None:
    model = Planted(lambda pixels: 100 * (pixels - pixels.mean(dim=0, keepdim=True)).mean(dim=(1, 2, 3)) + 0.5)
    result = run(audited(model, random_pixels()))
    assert "The model's answers depend on the batch: for a batch of one, the logits of" in result.summary
    assert rate(result, "alone", "logits_differ").value == 1.0
    assert rate(result, "alone").value == pytest.approx(float(flips(result, "alone").mean()))
    assert flips(result, "alone").any()
    assert rate(result, "batch_order", "logits_differ").value == 0.0
    assert rate(result, "same_image", "logits_differ").value == 0.0


def test_a_model_that_looks_at_places_in_the_batch_is_called_so() -> None:
    model = Planted(lambda pixels: pixels.mean(dim=(1, 2, 3)) + 0.01 * torch.arange(len(pixels)))
    result = run(audited(model, random_pixels()))
    assert "for another batch order, the logits of 40 of 40 cases move by up to 0.390" in result.summary


def test_one_image_in_a_batch_says_nothing_of_batches() -> None:
    result = run(audited(of_mean(0.5), random_pixels(6), part=1))
    for name in ("alone", "batch_order"):
        assert rate(result, name).value is None
        assert rate(result, name).reason == "a batch held fewer than 2 images"
        assert rate(result, name, "logits_differ").reason == "a batch held fewer than 2 images"
    assert "Batch in reversed order: not tested, a batch held fewer than 2 images." in result.caveats


class OneNumber(nn.Module):
    """weight × the mean of the image, less an offset that is added in float32 whatever the arithmetic."""

    def __init__(self, weight: float, offset: float) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1, bias=False)
        self.offset = offset
        with torch.no_grad():
            self.layer.weight.fill_(weight / 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        sums: torch.Tensor = self.layer(pixels.mean(dim=(1, 2, 3))[:, None].expand(-1, 2))
        return sums.float() - self.offset


def network(module: nn.Module) -> NetworkClassifier:
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Planted", "a test", "planted")
    return NetworkClassifier(module.eval(), facts, torch.device("cpu"))


def flat_images(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values[:, None, None], (len(values), SIDE, SIDE)).astype(np.float32)


def test_margins_below_the_resolution_of_bfloat16_flip_in_it() -> None:
    """Between 0.5 and 1 bfloat16 has steps of 2^-8: what is less than half of one above 0.75 is rounded down to it."""
    values = 0.75 + 2.0**-8 * np.array([0.1, 0.2, 0.3, 0.4, 2.1, 3.2, 4.3, -2.1])
    result = run(audited(network(OneNumber(1.0, 0.75 + 2.0**-14)), flat_images(values)))
    assert flips(result, "bfloat16").tolist() == [True] * 4 + [False] * 4
    assert not flips(result, "float16").any()
    assert rate(result, "float16").value == 0.0
    assert rate(result, "float64").value is None or not flips(result, "float64").any()


def test_float16_that_overflows_is_no_decision() -> None:
    pixels = flat_images(np.array([0.2, 0.4, 0.6, 0.8]))
    result = run(audited(network(OneNumber(1e5, 0.0)), pixels))
    assert flips(result, "float16").tolist() == [False, False, False, True]
    assert rate(result, "float16").value == 0.25
    assert any("float16): logits of 1 case are not finite, counted as flips." in caveat for caveat in result.caveats)
    assert rate(result, "any", "probability_change").value == 0.0
    (overview,) = [item for item in result.charts if item.kind == "table"]
    (row,) = [row for row in overview.rows if row[0] == "16-bit arithmetic (float16)"]
    assert row[2:4] == (4, 1)
    assert row[-1] is not None
    assert float(row[-1]) < 100
    table = result.tables["repeatability"]
    assert table.loc[table["repeat"] == "float16", "logit_change"].isna().tolist() == [False, False, False, True]
    assert table.loc[table["repeat"] == "float16", "finite"].tolist() == [True, True, True, False]


class Cancelling(nn.Module):
    """The sign of float32's rounding: x + 1e8 - 1e8 is 0 in float32 and x in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.tensor(1e8))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return ((pixels.mean(dim=(1, 2, 3)) + self.large) - self.large)[:, None] - 0.1


def test_what_float32_loses_shows_in_float64_and_the_model_stays_as_it_is() -> None:
    model = network(Cancelling())
    before = model.fingerprint
    result = run(audited(model, flat_images(np.array([0.05, 0.2, 0.3, 0.9]))))
    assert flips(result, "float64").tolist() == [False, True, True, True]
    assert model.fingerprint == before
    assert not model.module._forward_pre_hooks


def test_arithmetic_that_changes_nothing_is_not_called_repeatable() -> None:
    result = run(audited(of_mean(0.5), random_pixels()))
    assert rate(result, "bfloat16").reason == "it changes no logit, so the model may not follow it"
    assert "it is no torch module whose weights could be cast" in (rate(result, "float64").reason or "")


class OnlyFloat32(OneNumber):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no kernel for this type")
        return super().forward(pixels)


def test_a_model_that_refuses_a_number_format_gives_its_reason() -> None:
    result = run(audited(network(OnlyFloat32(1.0, 0.5)), random_pixels()))
    for name in ("bfloat16", "float16"):
        assert rate(result, name).reason == "the model does not run so: no kernel for this type"
    assert rate(result, "level_up").value is not None


def test_memory_that_ran_out_is_left_to_the_engine() -> None:
    class Greedy(OneNumber):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            if torch.is_autocast_enabled("cpu") and len(pixels) > 2:
                raise torch.OutOfMemoryError("too many images")
            return super().forward(pixels)

    result = run(audited(network(Greedy(1.0, 0.5)), random_pixels(8)))
    assert rate(result, "bfloat16").value is not None
