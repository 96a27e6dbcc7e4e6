"""Repeats of reading a file, and what the page shows of flips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, linear_model
from tests.analyses.test_repeatability import (
    CASES,
    Planted,
    audited,
    flat_images,
    flips,
    of_mean,
    random_pixels,
    rate,
    run,
)
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec
from xvision.registry import analyses


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
    assert result.charts[-1].cases == tuple(case.id for case in result.cases)


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
