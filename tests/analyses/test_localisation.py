"""The localisation page on a linear model whose maps, and so whose scores, are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from statsmodels.stats.proportion import proportion_confint

from tests.analyses.subjects import SIDE, linear_model, square, subject, with_roots
from xvision.analyses.localisation import localisation
from xvision.audit import Audit
from xvision.charts import Forest, HeatMap, Images
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.methods.localisation import Localisation
from xvision.models.protocols import InputSpec
from xvision.result import Metric, NotApplicable, Result

METHODS = ("saliency", "input_x_gradient")


def pixels(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.2, 0.6, (count, SIDE, SIDE))


def found(result: Result, name: str, **where: str) -> Metric:
    (metric,) = [item for item in result.metrics if item.name == name and item.where == where]
    return metric


def marked(mask: np.ndarray, count: int = 12) -> np.ndarray:
    return np.broadcast_to(mask, (count, SIDE, SIDE)).copy()


def test_the_map_of_a_model_that_reads_the_mask_alone_scores_one() -> None:
    mask = square(4, 5, 6)
    result = localisation(subject(mask.astype(float), pixels(), marked(mask)), methods=("saliency",))
    for score in Localisation._fields:
        metric = found(result, score, method="saliency")
        assert metric.value == pytest.approx(SIDE * SIDE / 36 if score == "mass_lift" else 1.0)
        assert metric.n == 11  # the twelfth case has no mask
        assert metric.better == "higher"
        if score in ("pointing_game", "hit_rate"):  # Wilson's, for eleven hits of eleven
            assert metric.low == pytest.approx(proportion_confint(11, 11, method="wilson")[0])
    assert "saliency points best at the reference: mass lift 7.111" in result.summary
    assert "Scores are of the 11 of 12 cases that have a mask or box." in result.caveats


def test_controls_stand_beside_the_methods_and_score_less() -> None:
    mask = square(1, 1, 4)
    result = localisation(subject(mask.astype(float), pixels(), marked(mask)), methods=METHODS)
    controls = {str(item.where["method"]) for item in result.metrics} - set(METHODS)
    assert len(controls) >= 3
    for control in controls:
        value = found(result, "pixel_auprc", method=control).value
        assert value is not None
        assert value < 0.5
    (forest,) = [chart for chart in result.charts if isinstance(chart, Forest)]
    assert len(forest.marks) == len(METHODS) + len(controls)


def test_a_control_that_points_better_is_said_to() -> None:
    """The model reads a corner and the lesion is in the middle, where the centre prior points whatever the model reads."""
    result = localisation(subject(square(0, 0, 3) + 0.1, pixels(), marked(square(6, 6, 4))), methods=("saliency",))
    lift = 0.1 * 256 / (9 * 1.1 + 247 * 0.1)
    assert found(result, "mass_lift", method="saliency").value == pytest.approx(lift)
    assert "where 1 is chance, no better than" in result.summary
    assert "of the control centre prior." in result.summary


def test_region_lift_of_a_model_that_reads_one_corner() -> None:
    """A corner of 3 × 3 of the 16 × 16 pixels holds all of the map: 256 / 9 times its share."""
    corner = square(0, 13, 3)
    result = localisation(subject(corner.astype(float), pixels()), methods=METHODS)
    for method in METHODS:
        assert found(result, "region_lift", method=method, region="upper right corner").value == pytest.approx(256 / 9)
        assert found(result, "region_lift", method=method, region="lower left corner").value == 0.0
    assert "The strongest region is the upper right corner" in result.summary
    assert "28.444" in result.summary


def test_a_marker_of_one_site_shows_as_lift_at_that_site_alone() -> None:
    """The model reads the corner and the rest alike; a bright marker is in the corner of every image of site B."""
    images, sites = np.full((12, SIDE, SIDE), 0.1), ("A",) * 6 + ("B",) * 6
    images[6:, :3, :3] = 1.0
    result = localisation(subject(np.ones((SIDE, SIDE)), images, sites=sites), methods=("input_x_gradient",))
    where = {"method": "input_x_gradient", "region": "upper left corner"}
    assert found(result, "region_lift", **where, site="A").value == pytest.approx(1.0)
    at_b = 9 / (9 + 247 * 0.1) * 256 / 9
    assert found(result, "region_lift", **where, site="B").value == pytest.approx(at_b)
    assert found(result, "region_lift", **where).value == pytest.approx((1 + at_b) / 2)
    assert "The strongest region is the upper left corner at site B" in result.summary
    levels = [chart for chart in result.charts if isinstance(chart, HeatMap) and chart.columns == ("site A", "site B")]
    assert len(levels) == 1
    assert levels[0].values[1] == pytest.approx((1.0, at_b))


def test_without_masks_only_regions_are_reported_with_the_reason_for_the_rest() -> None:
    result = localisation(subject(np.ones((SIDE, SIDE)), pixels()), methods=METHODS)
    for item in result.metrics:
        assert (item.value is None) == (item.name != "region_lift")
        assert item.value is not None or item.reason == "no mask or box in the data"
    assert result.summary.startswith("On 12 images no localisation can be given: no mask or box in the data.")
    assert not any(isinstance(chart, Forest) for chart in result.charts)


def test_empty_masks_are_no_hit_and_are_named() -> None:
    mask = square(4, 5, 6)
    masks = marked(mask)
    masks[:3] = False
    result = localisation(subject(mask.astype(float), pixels(), masks), methods=("saliency",))
    assert found(result, "pointing_game", method="saliency").n == 8
    assert found(result, "pointing_game", method="saliency").value == 1.0
    assert "Left out: 3 masks without a pixel at the model's input size." in result.caveats
    nothing = localisation(subject(mask.astype(float), pixels(), marked(mask & False)), methods=("saliency",))
    assert found(nothing, "hit_rate", method="saliency").reason == "every mask is empty at the model's input size"


def test_maps_without_positive_attribution_have_no_mass() -> None:
    result = localisation(subject(-np.ones((SIDE, SIDE)), pixels(), marked(square(4, 5, 6))), methods=METHODS)
    lift = found(result, "mass_lift", method="input_x_gradient")
    assert lift.value is None
    assert lift.reason is not None
    assert lift.reason.startswith("undefined for every marked case")
    region = found(result, "region_lift", method="input_x_gradient", region="border")
    assert region.reason == "no map has positive attribution"
    assert found(result, "mass_lift", method="saliency").value == pytest.approx(1.0)


def test_an_image_without_a_map_is_left_out_of_every_figure() -> None:
    images = pixels()
    images[2, 5, 5] = 0.0
    audit = with_roots(subject(np.ones((SIDE, SIDE)), images, marked(square(4, 5, 6))))
    result = localisation(audit, methods=("saliency",))
    assert found(result, "pixel_auroc", method="saliency").n == 10
    assert found(result, "region_lift", method="saliency", region="border").n == 11
    assert found(result, "pixel_auroc", method="random").n == 11
    (grid,) = [chart for chart in result.charts if isinstance(chart, Images)]
    assert "case-02" not in grid.cases


def test_the_tolerance_is_a_share_of_the_shorter_side() -> None:
    """The model reads a patch three pixels from the mask; a quarter of 16 pixels is four, a tenth is less than two."""
    audit = subject(square(10, 5, 1).astype(float), pixels(), marked(square(2, 5, 6)))
    for tolerance, hit in ((0.1, 0.0), (0.25, 1.0)):
        result = localisation(audit, methods=("saliency",), tolerance=tolerance)
        assert found(result, "hit_rate", method="saliency").value == hit
        assert found(result, "pointing_game", method="saliency").value == 0.0


def test_the_commonest_levels_are_reported_when_there_are_many() -> None:
    sites = (*(f"s{place}" for place in range(9)), "s0", "s1", "s2")
    audit = subject(np.ones((SIDE, SIDE)), pixels(), sites=sites)
    result = localisation(audit, methods=("saliency",))
    levels = {item.where["site"] for item in result.metrics if "site" in item.where}
    assert levels == {f"s{place}" for place in range(8)}
    assert "Of 9 levels of site, the 8 commonest are reported." in result.caveats


def test_a_column_named_as_a_key_keeps_its_levels() -> None:
    audit = subject(np.ones((SIDE, SIDE)), pixels(), sites=("A", "B") * 6)
    table = audit.everything.table.rename(columns={"site": "region"})
    audit = replace(audit, everything=replace(audit.everything, table=table, groups=()), acquisition=("region",))
    result = localisation(audit, methods=("saliency",))
    where = {"method": "saliency", "region": "border", "region column": "B"}
    assert found(result, "region_lift", **where).n == 6


def test_cases_and_tables_hold_what_is_reported() -> None:
    mask = square(4, 5, 6)
    result = localisation(subject(mask.astype(float), pixels(), marked(mask)), methods=METHODS)
    table = result.tables["localisation"]
    assert isinstance(table, pd.DataFrame)
    saliency = table[table["method"] == "saliency"]
    assert len(saliency) == 12
    assert saliency["mass_lift"].mean() == pytest.approx(found(result, "mass_lift", method="saliency").value)
    (grid,) = [chart for chart in result.charts if isinstance(chart, Images)]
    assert grid.pictures == ("image", "saliency", "input × gradient")
    assert set(grid.cases) == {case.id for case in result.cases}


def test_unusable_options_are_errors() -> None:
    audit = subject(np.ones((SIDE, SIDE)), pixels())
    with pytest.raises(ConfigError, match="found corner = 0"):
        localisation(audit, methods=("saliency",), corner=0.7)
    with pytest.raises(ConfigError, match="found tolerance = -"):
        localisation(audit, methods=("saliency",), tolerance=-0.1)
    with pytest.raises(ConfigError, match="no method of explanation 'salency'"):
        localisation(audit, methods=("salency",))
    with pytest.raises(NotApplicable, match="raw_attention is refused"):
        localisation(audit, methods=("raw_attention",))


def test_a_shortcut_that_a_classifier_learned_shows_on_the_marker() -> None:
    """Logistic regression on phantoms whose site B carries a letter and holds every lesion of the training data."""
    data = phantom_dataset(PhantomSettings(n=240, seed=5, size=32, visits=1, shortcut=1.0))
    train, spec = data.split("train"), InputSpec(1, 32, 32)
    images = train.pixels(train.ids, spec).reshape(len(train), -1)
    learned = LogisticRegression(C=0.1, max_iter=300).fit(images, train.table["label"] == "lesion")
    model = linear_model(learned.coef_.reshape(32, 32))
    audit = Audit(model, data, Decision(1, 0.5, True), 0, Engine(), (), ("site",), task="localisation")
    result = localisation(audit, methods=("input_x_gradient",))
    where = {"method": "input_x_gradient", "region": "upper left corner"}
    at_a, at_b = (found(result, "region_lift", **where, site=site) for site in ("A", "B"))
    assert at_b.low is not None
    assert at_a.high is not None
    assert at_b.low > max(5.0, at_a.high)
    assert "The strongest region is the upper left corner at site B" in result.summary
