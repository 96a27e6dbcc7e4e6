"""Attribution of a linear model, where every figure has a closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from tests.analyses.subjects import SIDE, square, subject
from xvision.analyses.attribution import attribution
from xvision.charts import Table
from xvision.errors import ConfigError
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.protocols import InputSpec
from xvision.result import Metric, NotApplicable, Result


def pictures(count: int = 12) -> np.ndarray:
    return np.random.default_rng(1).random((count, SIDE, SIDE)).astype(np.float32)


WEIGHTS = np.random.default_rng(2).normal(size=(SIDE, SIDE)).astype(np.float32)


def run(**options: object) -> Result:
    return attribution(subject(WEIGHTS, pictures()), **{"methods": ("integrated_gradients", "saliency"), **options})


def found(result: Result, name: str, **where: str) -> Metric:
    return next(item for item in result.metrics if item.name == name and dict(item.where) == where)


@pytest.mark.parametrize("baseline", ["black", "mean", "blur", "data mean"])
def test_integrated_gradients_of_a_linear_model_miss_nothing(baseline: str) -> None:
    gap = found(run(baseline=baseline, steps=2), "completeness_gap", method="integrated_gradients")
    assert gap.value == pytest.approx(0.0, abs=1e-4)
    assert (gap.n, gap.better) == (12, "lower")


def test_baselines_agree_as_far_as_their_maps_do() -> None:
    agreement = found(run(baseline="black"), "baseline_agreement", method="integrated_gradients", baseline="data mean")
    mean = pictures().mean(axis=0)
    expected = [
        spearmanr(np.abs(WEIGHTS * image).ravel(), np.abs(WEIGHTS * (image - mean)).ravel()).statistic
        for image in pictures()
    ]
    assert agreement.value == pytest.approx(np.mean(expected), abs=0.02)  # ties in float32 may fall otherwise


def test_the_other_baselines_have_gaps_of_their_own() -> None:
    result = run(baseline="black")
    for kind in ("blur", "data mean"):
        assert found(result, "completeness_gap", method="integrated_gradients", baseline=kind).value == pytest.approx(
            0.0, abs=1e-4
        )
    assert not [item for item in result.metrics if item.where.get("baseline") == "black"]


def test_mass_on_the_border_is_compared_with_its_area() -> None:
    inside = square(4, 4, 8).astype(np.float32)
    result = attribution(subject(inside, pictures()), methods=("saliency",), border=0.1)
    assert found(result, "border_lift", method="saliency").value == 0.0
    result = attribution(subject(np.ones((SIDE, SIDE), np.float32), pictures()), methods=("saliency",), border=0.1)
    assert found(result, "border_lift", method="saliency").value == pytest.approx(1.0)


def test_a_model_that_ignores_the_image_has_no_concentration() -> None:
    result = attribution(subject(np.zeros((SIDE, SIDE), np.float32), pictures()), methods=("patch_ablation",))
    for name in ("gini", "entropy"):
        item = found(result, name, method="patch_ablation")
        assert item.value is None
        assert "zero everywhere" in str(item.reason)


def test_refusals_are_on_the_page_with_what_to_use() -> None:
    tables = {chart.title: chart for chart in run().charts if isinstance(chart, Table)}
    refused = dict(tables["Methods refused for this model"].rows)
    assert "use integrated_gradients" in refused["Deeplift"]
    assert "Corrected rollout" in refused
    assert "Saliency" not in refused


def test_every_map_is_pictured_under_its_label() -> None:
    result = run()
    assert result.cases
    for case in result.cases:
        assert set(case.pictures) == {"image", "integrated gradients", "saliency"}
        assert {"integrated gradients", "saliency", "pixels"} <= set(case.maps)


def test_a_wrong_method_is_refused_before_any_work() -> None:
    with pytest.raises(ConfigError, match="deeplift is refused"):
        run(methods=("deeplift",))
    with pytest.raises(NotApplicable, match="chefer is refused"):
        run(methods=("chefer",))


def test_the_note_of_a_method_is_a_caveat() -> None:
    assert not [caveat for caveat in run().caveats if caveat.startswith("Patch ablation")]
    assert run().caveats[0].startswith("Attributions are relative to a blur baseline")


class SquareRoot(nn.Module):
    """Log-odds of the square root of the sum of the pixels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1).sum(dim=1, keepdim=True).sqrt()


def test_the_gap_is_a_share_of_the_change() -> None:
    """One node half-way: the gradient there, times the way, is √½ of the change, whatever the image."""
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "SquareRoot", "a test", "square root")
    audit = replace(subject(WEIGHTS, pictures()), model=NetworkClassifier(SquareRoot(), facts, torch.device("cpu")))
    result = attribution(audit, methods=("integrated_gradients",), baseline="black", baselines=(), steps=1)
    gap = found(result, "completeness_gap", method="integrated_gradients")
    assert gap.value == pytest.approx(1 - np.sqrt(0.5), abs=1e-4)
    assert any("above 5 %" in caveat for caveat in result.caveats)
