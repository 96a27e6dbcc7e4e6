"""Repeatability of planted models: constant, linear, random, tied to their batch, and near the threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, linear_model, subject
from xvision.audit import Audit
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
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


def resized_data(pixels: np.ndarray) -> AuditDataset:
    ids = [f"case-{place:02d}" for place in range(len(pixels))]
    table = pd.DataFrame(
        {"label": ["normal", "lesion"] * (len(ids) // 2), "patient": ids, "split": "all", "image": ids},
        index=pd.Index(ids, name="id"),
    )
    return AuditDataset(table, (), ArraySource(ids, pixels[:, None]))


def test_another_resizing_filter_is_asked_where_images_are_resized() -> None:
    large = np.random.default_rng(0).random((CASES, 3 * SIDE, 3 * SIDE)).astype(np.float32)
    data = resized_data(large)
    weights = np.random.default_rng(1).normal(size=(SIDE, SIDE))
    weights -= weights.mean()
    made = replace(audited(linear_model(weights), random_pixels()), everything=data)
    spec = made.model.input
    before, after = (
        (data.pixels(data.ids, replace(spec, resample=name)) * weights).sum(axis=(1, 2, 3))
        for name in ("bilinear", "bicubic")
    )
    result = run(made)
    assert np.array_equal(flips(result, "resampling"), (before >= 0) != (after >= 0))
    assert flips(result, "resampling").any()
    assert rate(result, "resampling").n == CASES
    bicubic = linear_model(weights)
    bicubic.facts = replace(bicubic.facts, input=replace(spec, resample="bicubic"))
    assert np.array_equal(flips(run(replace(made, model=bicubic)), "resampling"), flips(result, "resampling"))
    untouched = run(audited(linear_model(weights), random_pixels(8)))
    assert rate(untouched, "resampling").reason == "the image is not resized for the model"


def test_an_image_read_with_another_filter_is_shown_as_it_was_read() -> None:
    """Only the height of a bright block depends on the filter here: bicubic rises higher than bilinear."""
    large = np.full((4, 3 * SIDE, 3 * SIDE), 0.3, dtype=np.float32)
    large[:, 24:27, 24:27] = 0.8
    data = resized_data(large)
    spec = InputSpec(1, SIDE, SIDE)
    before, after = (
        float(data.pixels(data.ids[:1], replace(spec, resample=name)).max()) for name in ("bilinear", "bicubic")
    )
    middle = (before + after) / 2
    model = Planted(lambda pixels: 100 * (pixels.amax(dim=(1, 2, 3)) - middle))
    result = run(replace(audited(model, random_pixels(4)), everything=data))
    assert flips(result, "resampling").all()
    for case in result.cases:
        assert case.facts["flips under"] == "Read with another resizing filter"
        assert case.pictures["image"].max() == round(before * 255)
        assert case.pictures["seen again"].max() == round(after * 255)


def test_eight_bit_images_survive_a_png_file_to_the_last_bit() -> None:
    result = run(audited(linear_model(np.ones((SIDE, SIDE))), random_pixels()))
    table = result.tables["repeatability"]
    assert table.loc[table["repeat"] == "png", "logit_change"].max() == 0.0
    assert table.loc[table["repeat"] == "jpeg", "logit_change"].max() > 0.0


def test_intervals_are_by_patient() -> None:
    made = audited(of_mean(0.5), flat_images(0.5 + (np.arange(8) // 2 - 1.5) / 255))
    table = made.everything.table.assign(patient=[f"p{place // 2}" for place in range(8)])
    result = run(replace(made, everything=replace(made.everything, table=table)))
    found = rate(result, "any")
    assert (found.n, found.interval) == (4, "Wilson, patient-clustered")


def test_neither_parts_nor_order_change_a_case() -> None:
    pixels, weights = random_pixels(), np.random.default_rng(2).normal(size=(SIDE, SIDE)) * 0.05
    whole, parts = (run(audited(linear_model(weights), pixels, part=part)) for part in (64, 3))
    columns = ["id", "repeat", "flipped"]
    same = ~whole.tables["repeatability"]["repeat"].isin(["alone", "batch_order"])
    assert whole.tables["repeatability"].loc[same, columns].equals(parts.tables["repeatability"].loc[same, columns])
    assert flips(whole, "level_random").any()


def test_more_draws_only_add_flips_and_none_is_refused() -> None:
    pixels, weights = random_pixels(), np.random.default_rng(2).normal(size=(SIDE, SIDE)) * 0.05
    few, many = (run(audited(linear_model(weights), pixels), draws=draws) for draws in (1, 10))
    assert not (flips(few, "level_random") & ~flips(many, "level_random")).any()
    assert flips(many, "level_random").sum() > flips(few, "level_random").sum()
    moved = [
        table.loc[table["repeat"] == "level_random", "probability_change"].to_numpy()
        for table in (few.tables["repeatability"], many.tables["repeatability"])
    ]
    assert (moved[1] >= moved[0]).all()
    assert moved[1].mean() > moved[0].mean()
    with pytest.raises(ConfigError, match="at least 1 draw"):
        run(audited(linear_model(weights), pixels), draws=0)


def test_kept_parts_of_other_draws_are_not_used_again(tmp_path: Path) -> None:
    weights = np.random.default_rng(2).normal(size=(SIDE, SIDE)) * 0.05
    kept = replace(audited(linear_model(weights), random_pixels()), engine=Engine(tmp_path))
    run(kept, draws=1)
    before = kept.engine.meter.forward
    run(kept, draws=3)
    assert kept.engine.meter.forward - before >= 22 * CASES
    fresh = audited(linear_model(weights), random_pixels())
    assert np.array_equal(flips(run(kept, draws=3), "level_random"), flips(run(fresh, draws=3), "level_random"))


def test_a_case_costs_as_many_passes_as_is_said() -> None:
    made = audited(linear_model(np.ones((SIDE, SIDE))), random_pixels())
    assert not run(made).cases
    assert made.engine.meter.forward == 24 * CASES
    assert analyses()["repeatability"].passes == "at most 20 + draws forward"


def test_flipped_cases_are_shown_the_surest_first() -> None:
    margins = np.array([0.1, 0.9, 0.5, 3.0, 0.3, 0.7, 0.2, 0.8]) / 255
    result = run(audited(of_mean(0.5), flat_images(0.5 + margins)))
    assert [case.id for case in result.cases] == [f"case-{place:02d}" for place in (1, 7, 5, 2, 4, 6)]
    assert "most under “One grey level down”: 0.875" in result.summary
    case = result.cases[0]
    assert case.facts["flips under"] == "One grey level down"
    assert (case.facts["decision"], case.facts["decision there"]) == ("lesion", "normal")
    before, after = (case.pictures[name].astype(int) for name in ("image", "seen again"))
    assert (before - after == 1).all()
    assert result.charts[-1].cases == tuple(case.id for case in result.cases)  # type: ignore[union-attr]  # the pictures


def test_the_draw_that_moved_a_case_most_is_shown() -> None:
    """Differences of neighbours: nothing in a flat image, about one level where each pixel's sign is drawn."""

    def odds(pixels: torch.Tensor) -> torch.Tensor:
        return 100 * ((pixels[..., 1:] - pixels[..., :-1]).abs().mean(dim=(1, 2, 3)) * 255 - 0.5)

    result = run(audited(Planted(odds), flat_images(np.full(6, 100 / 255))))
    table = result.tables["repeatability"]
    moved = table[table["repeat"] == "level_random"].set_index("id")["logit_change"]
    assert result.cases
    for case in result.cases:
        assert case.facts["flips under"] == "One grey level, random sign"
        picture = case.pictures["seen again"]
        shown = torch.from_numpy(picture[:: len(picture) // SIDE, :: len(picture) // SIDE, 0] / np.float32(255))
        assert float(odds(shown[None, None])) + 50 == pytest.approx(moved[case.id], abs=0.01)


def test_flips_are_told_apart_by_their_distance_from_the_threshold() -> None:
    """The half nearest the threshold lies within one level, the rest does not."""
    margins = np.concatenate((np.linspace(0.1, 0.8, 20), np.linspace(2.0, 9.0, 20))) / 255
    result = run(audited(of_mean(0.5), flat_images(0.5 + margins)))
    (chart,) = [item for item in result.charts if item.kind == "bars"]
    assert tuple(chart.series["flip under at least one repeat"]) == (1.0, 1.0, 0.0, 0.0)
    assert len(set(chart.categories)) == 4


def test_three_classes_flip_too_and_need_a_healthy_one_for_a_direction() -> None:
    class Three(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            level = 1000 * (pixels.mean(dim=(1, 2, 3)) - 0.5)
            return torch.stack((level, torch.zeros_like(level), -1e4 - level), dim=1)

    facts = Facts(("lesion", "normal", "other"), False, InputSpec(1, SIDE, SIDE), "Three", "a test", "three")
    made = audited(NetworkClassifier(Three(), facts, torch.device("cpu")), flat_images(0.5 + np.full(8, 0.5 / 255)))
    plain = run(replace(made, decision=Decision()))
    assert rate(plain, "level_down").value == 1.0
    assert not [item for item in plain.metrics if item.name == "flips_to_missed_disease"]
    directed = run(replace(made, decision=Decision(no_disease=1)))
    assert rate(directed, "any", "flips_to_missed_disease").value == 1.0
    assert rate(directed, "any", "flips_to_false_alarm").value == 0.0
