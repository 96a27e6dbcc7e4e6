"""Verdicts on maps whose worth is known: exact ones, ones that ignore the weights, and ones of a model that hardly reacts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.analyses.subjects import SIDE, square, subject
from xvision.analyses.explanation_quality import explanation_quality
from xvision.charts import HeatMap, Table
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec
from xvision.result import Metric, NotApplicable, Result

QUICK = {"steps": 4, "bank": 30, "copies": 2, "shuffles": 1, "path_steps": 4}


def pictures(count: int = 14) -> np.ndarray:
    return np.random.default_rng(1).random((count, SIDE, SIDE)).astype(np.float32)


def planted(height: float) -> np.ndarray:
    """A model that reads 25 pixels and nothing else, as strongly as said."""
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size=(SIDE, SIDE))
    return (height * signs * square(9, 2, 5)).astype(np.float32)


@cache
def quality(height: float, *removals: str) -> Result:
    """For black removal, w · x is the exact answer; for removal to the mean, it is not."""
    audit = subject(planted(height), pictures())
    methods = ("input_x_gradient", "integrated_gradients", "saliency")
    return explanation_quality(audit, methods=methods, removals=removals or ("black",), baseline="black", **QUICK)


def found(result: Result, name: str, **where: str) -> Metric:
    return next(item for item in result.metrics if item.name == name and dict(item.where) == where)


def test_exact_maps_describe_the_model() -> None:
    result = quality(4.0)
    for label in ("input × gradient", "integrated gradients"):
        verdict = result.map_verdicts[label]
        assert (verdict.word, verdict.stamp) == ("describes the model", "")
    assert result.summary.startswith("Describes the model: input × gradient")


def test_a_method_must_win_under_every_removal() -> None:
    verdict = quality(4.0, "black", "mean").map_verdicts["input × gradient"]
    assert verdict.word == "no better than a control"
    assert "(mean removal)" in verdict.sentence


def test_exact_maps_fit_every_removal() -> None:
    result = quality(4.0)
    assert found(result, "faithfulness_correlation", method="input_x_gradient").value == pytest.approx(1.0, abs=1e-4)
    assert found(result, "infidelity", method="input_x_gradient").value == pytest.approx(0.0, abs=1e-6)
    random = found(result, "faithfulness_correlation", method="random")
    assert random.low is not None
    assert random.low < 0.0 < (random.high or 0.0)


def test_the_gain_is_the_area_between_the_curves_of_a_linear_model() -> None:
    """The log-odds that are left, by hand, for the decided class."""
    weights, steps = planted(4.0), 4
    gains = []
    for image in pictures():
        parts = (weights * image).ravel().astype(np.float64)
        parts = parts if parts.sum() > 0 else -parts
        counts = np.arange(steps + 1) * parts.size // steps
        most = [parts.sum() - np.sort(parts)[::-1][:count].sum() for count in counts]
        least = [parts.sum() - np.sort(parts)[:count].sum() for count in counts]
        gains.append(np.trapezoid(np.array(least) - np.array(most), dx=1 / steps))
    item = found(quality(4.0), "srg_log_odds", method="input_x_gradient", removal="black")
    assert item.value == pytest.approx(np.mean(gains), rel=1e-4)


def test_advantages_are_paired_differences_of_gains() -> None:
    result = quality(4.0, "black", "mean")
    gap = found(result, "srg_advantage", method="saliency", control="random", removal="mean")
    one, other = (found(result, "srg", method=name, removal="mean").value for name in ("saliency", "random"))
    assert gap.value == pytest.approx((one or 0.0) - (other or 0.0), abs=1e-9)


def test_maps_of_a_model_that_hardly_reacts_are_no_better_than_a_control() -> None:
    for verdict in quality(0.004).map_verdicts.values():
        assert verdict.word == "no better than a control"
        assert verdict.stamp == "do not rely on this map"
    assert any(caveat.startswith("Do not rely on saliency maps") for caveat in quality(0.004).caveats)


def test_maps_that_survive_shuffling_fail() -> None:
    """All weights are equal, so shuffling them changes nothing and the map shows the image."""
    audit = subject(np.full((SIDE, SIDE), 0.5, np.float32), pictures())
    result = explanation_quality(audit, methods=("input_x_gradient",), removals=("black",), baseline="black", **QUICK)
    assert result.map_verdicts["input × gradient"].word == "fails randomisation"
    assert found(result, "randomisation_similarity", method="input_x_gradient").value == pytest.approx(1.0)


def test_maps_that_rank_nothing_are_not_decided() -> None:
    audit = subject(np.zeros((SIDE, SIDE), np.float32), pictures())
    result = explanation_quality(audit, methods=("patch_ablation",), removals=("black",), baseline="black", **QUICK)
    assert result.map_verdicts["patch ablation"].word == "not decided"
    gain = found(result, "srg", method="patch_ablation", removal="black")
    assert gain.value is None
    assert "constant or not finite" in str(gain.reason)


def test_few_patients_decide_nothing() -> None:
    audit = subject(planted(4.0), pictures(6))
    result = explanation_quality(audit, methods=("input_x_gradient",), removals=("black",), baseline="black", **QUICK)
    assert result.map_verdicts["input × gradient"].word == "not decided"
    assert any("More cases may decide it" in caveat for caveat in result.caveats)


def test_controls_stand_beside_every_figure() -> None:
    """The edges of an image are what they are, whatever the weights."""
    result = quality(4.0)
    assert found(result, "randomisation_similarity", method="edges").value == pytest.approx(1.0)
    assert found(result, "max_sensitivity", method="random").value == 0.0
    names = {item.name for item in result.metrics}
    for name in names - {"srg_advantage"}:
        methods = {item.where["method"] for item in result.metrics if item.name == name}
        assert {"random", "edges", "centre", "brightness", "saliency"} <= methods


def test_insertion_less_deletion_is_the_gain() -> None:
    parts = (
        found(quality(4.0), name, method="saliency", removal="black").value or 0.0
        for name in ("insertion_auc", "deletion_auc", "srg")
    )
    insertion, deletion, gain = parts
    assert insertion - deletion == pytest.approx(gain)


def test_with_two_classes_the_other_class_says_nothing() -> None:
    item = found(quality(4.0), "random_logit", method="saliency")
    assert item.value is None
    assert "sign turned" in str(item.reason)


class Three(nn.Module):
    """Three classes, each reading rows of its own."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([pixels[:, 0, 5 * k : 5 * k + 5].flatten(1).sum(dim=1) for k in range(3)], dim=1)


def test_with_three_classes_the_map_of_the_least_likely_is_another() -> None:
    facts = Facts(("normal", "lesion", "scar"), False, InputSpec(1, SIDE, SIDE), "Three", "a test", "three")
    audit = replace(
        subject(planted(1.0), pictures()),
        model=NetworkClassifier(Three(), facts, torch.device("cpu")),
        decision=Decision(None, None, True),
    )
    result = explanation_quality(audit, methods=("input_x_gradient",), removals=("black",), baseline="black", **QUICK)
    item = found(result, "random_logit", method="input_x_gradient")
    assert item.value is not None
    assert item.value < 0.9
    assert found(result, "random_logit", method="edges").value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("option", "value"), [("steps", 1), ("bank", 1), ("copies", 0), ("shuffles", 0), ("removals", ()), ("radius", 0.0)]
)
def test_options_out_of_range_are_refused(option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=option):
        explanation_quality(subject(planted(4.0), pictures()), methods=("saliency",), **{**QUICK, option: value})


def test_removal_of_tokens_needs_tokens() -> None:
    with pytest.raises(NotApplicable, match=r"removal of tokens is refused: .*patch_ablation"):
        explanation_quality(subject(planted(4.0), pictures()), methods=("saliency",), removals=("tokens",), **QUICK)


class Root(nn.Module):
    """Log-odds without a finite gradient where the image is black."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return 4.0 * pixels[:, :, 9:14, 2:7].flatten(1).sum(dim=1, keepdim=True).sqrt() - 14.0


def test_an_image_without_gradient_is_left_out_alone() -> None:
    dark = pictures()
    dark[3] = 0.0
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Root", "a test", "root")
    audit = replace(subject(planted(1.0), dark), model=NetworkClassifier(Root(), facts, torch.device("cpu")))
    result = explanation_quality(audit, methods=("saliency",), removals=("black",), baseline="black", **QUICK)
    assert found(result, "srg", method="saliency", removal="black").n == len(dark) - 1


def test_the_table_leads_with_the_verdict() -> None:
    table = next(chart for chart in quality(4.0).charts if isinstance(chart, Table))
    assert table.columns[:2] == ("Method", "Verdict")
    assert {row[0]: row[1] for row in table.rows}["input × gradient"] == "describes the model"


def test_figures_are_compared_by_how_they_rank_the_methods() -> None:
    heat = next(chart for chart in quality(4.0).charts if isinstance(chart, HeatMap))
    table = np.array(heat.values, dtype=float)
    np.testing.assert_allclose(np.diag(table), 1.0)
    np.testing.assert_allclose(table, table.T)


def test_the_batch_changes_nothing() -> None:
    def run(part: int) -> Result:
        audit = subject(planted(4.0), pictures())
        audit.engine.part = part
        return explanation_quality(audit, methods=("smooth_grad",), removals=("mean",), **QUICK)

    parts, whole = ([item.value or 0.0 for item in run(part).metrics] for part in (3, 14))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)
