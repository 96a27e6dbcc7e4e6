"""The agreement page on a linear model, where some methods must agree and others must not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analyses.subjects import SIDE, subject, with_roots
from xvision.analyses.method_agreement import method_agreement
from xvision.charts import HeatMap
from xvision.result import Metric, Result


def weights() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(SIDE, SIDE))


def found(result: Result, name: str, method: str, other: str) -> Metric:
    (metric,) = [
        item for item in result.metrics if item.name == name and item.where == {"method": method, "other": other}
    ]
    return metric


def flat(value: float = 0.5, count: int = 12) -> np.ndarray:
    """Grey images: input × gradient is the gradient times the same number everywhere."""
    return np.full((count, SIDE, SIDE), value)


def test_methods_that_are_equal_on_grey_images_agree_fully() -> None:
    methods = ("saliency", "smooth_grad")
    result = method_agreement(subject(weights(), flat()), methods=methods)
    assert found(result, "rank_correlation", *methods).value == pytest.approx(1.0, abs=0.01)
    assert found(result, "top_overlap", *methods).value == pytest.approx(1.0, abs=0.1)
    assert result.metrics[0].name == "kendall_w"
    assert result.metrics[0].value == pytest.approx(1.0, abs=0.01)
    assert "On 12 images, 1 of 1 pairs of methods surely agree: saliency and smoothed gradient (" in result.summary


def test_signed_methods_are_compared_by_evidence_and_others_by_strength() -> None:
    """With one weight a patch, |x w| ranks as |w| does, whereas evidence for and against are at opposite ends."""
    sign = np.where(np.arange(SIDE) % 2, 1.0, -1.0) * np.linspace(0.5, 1.0, SIDE)
    model = np.broadcast_to(sign, (SIDE, SIDE)).copy()
    result = method_agreement(subject(model, flat()), methods=("saliency", "input_x_gradient", "integrated_gradients"))
    strength = found(result, "rank_correlation", "saliency", "input_x_gradient")
    assert strength.value == pytest.approx(1.0)
    assert found(result, "top_overlap", "saliency", "input_x_gradient").value == pytest.approx(1.0)


def test_controls_stand_beside_but_not_in_the_concordance() -> None:
    methods = ("saliency", "input_x_gradient")
    images = np.random.default_rng(0).uniform(0.2, 0.6, (12, SIDE, SIDE))
    result = method_agreement(subject(weights(), images), methods=methods)
    others = {str(item.where["other"]) for item in result.metrics if "other" in item.where}
    assert "random" in others
    chance = found(result, "rank_correlation", "saliency", "random")
    assert chance.value == pytest.approx(0.0, abs=0.1)
    matrices = [chart for chart in result.charts if isinstance(chart, HeatMap)]
    assert len(matrices) == 2
    assert matrices[0].rows == ("saliency", "input × gradient")
    assert len(matrices[0].columns) == 2 + len(others - set(methods))
    assert matrices[0].values[0][0] == 1.0
    assert matrices[0].values[1][0] == found(result, "rank_correlation", *methods).value
    assert result.cases == (), "the maps are pictured where they are explained"


def test_a_method_that_ranks_as_a_control_does_is_named() -> None:
    """The model reads all pixels alike, so input × gradient is how bright a pixel is: as far from the mean as it can be."""
    rng = np.random.default_rng(0)
    images = np.where(rng.random((12, SIDE, SIDE)) < 0.25, rng.uniform(0.7, 1.0, (12, SIDE, SIDE)), 0.1)
    result = method_agreement(subject(np.ones((SIDE, SIDE)), images), methods=("input_x_gradient",))
    assert found(result, "rank_correlation", "input_x_gradient", "brightness").value == pytest.approx(1.0)
    assert any("as a control does" in caveat and "input × gradient" in caveat for caveat in result.caveats)
    assert result.metrics[0].reason == "only one method of explanation was used"
    assert result.summary.startswith(
        "Only input × gradient was used on 12 images; its rank correlation with the control"
    )


def test_a_map_that_ranks_nothing_has_no_agreement() -> None:
    """A model that reads all pixels alike has the same gradient everywhere."""
    images = np.random.default_rng(0).uniform(0.0, 1.0, (12, SIDE, SIDE))
    result = method_agreement(subject(np.ones((SIDE, SIDE)), images), methods=("saliency", "input_x_gradient"))
    assert found(result, "rank_correlation", "saliency", "input_x_gradient").reason == "one of the two ranks nothing"
    assert result.metrics[0].reason == "in every case one of the methods ranks nothing"
    assert result.summary.startswith("On 12 images, 0 of 1 pairs of methods surely agree.")


def test_an_image_without_a_map_is_left_out() -> None:
    images = np.random.default_rng(0).uniform(0.2, 0.6, (12, SIDE, SIDE))
    images[2, 5, 5] = 0.0
    result = method_agreement(with_roots(subject(weights(), images)), methods=("saliency", "occlusion"))
    assert found(result, "rank_correlation", "saliency", "occlusion").n == 11
    assert found(result, "rank_correlation", "occlusion", "random").n == 12
    assert result.metrics[0].n == 11


def test_cases_are_counted_by_patient() -> None:
    result = method_agreement(subject(weights(), flat()), cases=6, methods=("saliency", "smooth_grad"))
    assert result.metrics[0].n == 6
