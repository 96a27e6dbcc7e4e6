"""The shortcut ladder on images whose cue is known, and on data that cannot be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from tests.analyses.marked import SIDE, STEP, Scene, marked_audit, scene
from tests.analyses.scored import scored as stored
from xvision.analyses.shortcuts import shortcuts
from xvision.audit import Audit
from xvision.charts import Images, Table
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.predictions import PredictionsClassifier
from xvision.result import Metric, NotApplicable, Result


def run(audit: Audit, **options: object) -> Result:
    return shortcuts(audit, **{"resamples": 60, "cases": 120, **options})


def one(result: Result, name: str, **where: object) -> Metric:
    (found,) = [item for item in result.metrics if item.name == name and where.items() <= dict(item.where).items()]
    return found


def dependence(result: Result) -> float | None:
    """Of the site, whichever of its two levels was taken first."""
    (found,) = [item for item in result.metrics if item.name == "dependence" and "site" in item.where]
    return None if found.value is None else abs(found.value)


def conclusions(result: Result) -> Mapping[str, str]:
    (table,) = [chart for chart in result.charts if chart.title == "Shortcut ladder"]
    assert isinstance(table, Table)
    return {str(row[0]): str(row[-1]) for row in table.rows}


@pytest.fixture(scope="module")
def square() -> Result:
    """Reads the square alone; at the audited hospital the site says nothing of the label."""
    return run(marked_audit(Scene(), square=8.0))


@pytest.fixture(scope="module")
def spot() -> Result:
    """Reads the spot alone, on the same images."""
    return run(marked_audit(Scene(), spot=8.0))


def test_a_model_that_reads_the_mark_is_caught_with_the_effect_that_it_has(square: Result) -> None:
    assert square.summary.startswith("Shortcut shown (causal): site (mark of B at 0 % to ")
    both = {"site": "B", "cue": "found", "edit": "both"}
    assert one(square, "cue_effect", **both).value == pytest.approx(8 * STEP, abs=0.05)
    assert one(square, "flip_rate", **both, patch="cue").value == 1.0
    assert one(square, "placebo_effect", **both).value == pytest.approx(0.0, abs=0.02)
    assert one(square, "flip_rate", **both, patch="placebo").value == 0.0
    assert one(square, "cue_beyond_placebo", **both).value == pytest.approx(8 * STEP, abs=0.05)
    p = one(square, "mcnemar_p", **both)
    assert p.value == pytest.approx(2.0 ** (1 - 120))
    assert "120 decisions changed by the cue alone and 0 by the placebo alone" in p.interval
    assert dependence(square) == pytest.approx(1.0)
    followed = {item.name: item.value for item in square.metrics if "site" in item.where and "against" in item.where}
    assert followed["score_shift"] == pytest.approx(2 * (followed["dependence"] or 0.0), abs=0.05)
    assert one(square, "removal_flip_rate", column="site").value == pytest.approx(0.5, abs=0.1)
    assert one(square, "aligned_accuracy_difference", column="site").value == pytest.approx(1.0)
    assert one(square, "worst_cell_accuracy", column="site").value == 0.0


def test_a_model_that_reads_the_disease_is_not(spot: Result) -> None:
    """The square is in its embeddings and goes with the label in training; its head does not read it."""
    found = conclusions(spot)
    assert found["site"] == "available, not shown to be followed"
    assert found["sex"] == "nothing found"
    assert spot.summary.startswith("Available, not shown to be followed: ")
    both = {"site": "B", "cue": "found", "edit": "both"}
    assert one(spot, "cue_effect", **both).value == pytest.approx(0.0, abs=1e-5)
    assert one(spot, "flip_rate", **both, patch="cue").value == 0.0
    assert one(spot, "flip_rate", **both, patch="placebo").value == pytest.approx(0.0, abs=0.05)
    assert one(spot, "probe_auroc", site="B", among="same label").value == 1.0
    assert one(spot, "removal_flip_rate", column="site").value == 0.0
    assert one(spot, "metadata_auroc", column="site").value == pytest.approx(0.7, abs=0.03)


def test_encoded_and_unused_is_said_so() -> None:
    result = run(marked_audit(Scene(learned=0.5), spot=8.0))
    assert conclusions(result)["site"] == "encoded, not shown to be used"
    assert result.summary.startswith("Encoded, not shown to be used: site (probe AUROC of B, same label: 1.000")


def test_pictures_show_the_mark_and_the_placebo(square: Result) -> None:
    (grid,) = [chart for chart in square.charts if isinstance(chart, Images)]
    assert 2 <= len(grid.cases) <= 4
    case = square.cases[0]
    image, changed, placebo = (case.pictures[name].astype(int) for name in grid.pictures)
    corner = slice(None, len(image) // 8)
    assert (np.abs(changed - image)[corner, corner] > 100).all()
    assert (np.abs(placebo - image)[corner, corner] == 0).all()
    assert case.facts["edit"] == "mark put in"


def test_the_outside_alone_is_enough_for_a_model_that_reads_it() -> None:
    agreed = Scene(agreement=1.0)
    for weights, outside, inside in (({"square": 8.0}, 1.0, 0.5), ({"spot": 8.0}, 0.5, 1.0)):
        result = run(marked_audit(agreed, **weights))
        assert one(result, "outside_auroc").value == pytest.approx(outside, abs=0.001)
        assert one(result, "inside_auroc").value == pytest.approx(inside, abs=0.001)


def test_levels_of_few_patients_are_not_told_apart_on_the_outside() -> None:
    audit = marked_audit(Scene(agreement=1.0), square=8.0)
    table = audit.everything.table.copy()
    table.loc[table.index[table["split"] == "test"][:6], "site"] = "C"
    result = run(replace(audit, everything=replace(audit.everything, table=table)))
    assert {item.where["site"] for item in result.metrics if item.name == "outside_level_auroc"} == {"A", "B"}


def test_attribution_outside_is_the_share_that_the_weights_give() -> None:
    audit = marked_audit(Scene(masks=True), spot=6.0, square=2.0)
    result = run(audit, cases=50)
    positions = np.sort(audit.rng("sample").choice(120, 50, replace=False))
    pixels = audit.pixels(positions)[:, 0]
    at_square, at_spot = 2.0 * pixels[:, :4, :4].sum(axis=(1, 2)), 6.0 * pixels[:, 12:16, 12:16].sum(axis=(1, 2))
    share = one(result, "attribution_outside", region="mask")
    assert share.value == pytest.approx(float((at_square / (at_square + at_spot)).mean()), abs=1e-5)
    assert one(result, "area_outside", region="mask").value == pytest.approx(1 - (24 / SIDE) ** 2)
    assert any("the hole that a mask leaves" in caveat for caveat in result.caveats)


def test_masks_of_the_ill_alone_are_not_used() -> None:
    data = scene(Scene(masks=True))
    table = data.table.assign(mask=np.where(data.table["label"] == "lesion", data.table["mask"], ""))
    result = run(replace(marked_audit(Scene(), spot=8.0), everything=replace(data, table=table)))
    assert one(result, "inside_auroc").where["region"] == "border"
    assert any("Masks were not used" in caveat for caveat in result.caveats)


def test_the_order_of_the_rows_decides_nothing() -> None:
    """Patients have two images, of which exact tests and the search for marks take one."""
    audit = marked_audit(Scene(), square=8.0, spot=8.0)
    table = audit.everything.table.assign(patient=[f"p{place // 2}" for place in range(240)])
    results = []
    for order in (np.arange(240), np.random.default_rng(0).permutation(240)):
        results.append(run(replace(audit, everything=replace(audit.everything, table=table.iloc[order]))))
    for first, second in zip(results[0].metrics, results[1].metrics, strict=True):
        assert (first.name, first.where, first.value is None) == (second.name, second.where, second.value is None)
        if first.name == "mcnemar_p":
            assert first.interval == second.interval
        if first.value is not None and first.name not in {"auroc_within", "metadata_auroc"}:
            exact = first.name.startswith(("cue", "placebo", "flip_rate", "mcnemar", "outside_auroc", "dependence"))
            assert second.value == pytest.approx(first.value, abs=1e-6 if exact else 0.03), first


def test_a_box_of_the_plan_is_tried_without_any_suspicion() -> None:
    audit = marked_audit(Scene(learned=0.5), square=8.0, spot=24.0)
    quiet = run(marked_audit(Scene(learned=0.5), spot=8.0), boxes=((0.0, 0.0, 0.125, 0.125),))
    assert one(quiet, "cue_effect", cue="box 1", edit="both").value == pytest.approx(0.0, abs=1e-5)
    result = run(audit, boxes=((0.0, 0.0, 0.125, 0.125),))
    assert one(result, "cue_effect", cue="box 1", edit="insertion").value == pytest.approx(8 * STEP, abs=0.05)
    assert one(result, "flip_rate", cue="box 1", edit="both", patch="cue").value == 0.0
    assert conclusions(result)["site"] == "shortcut shown (causal)"
    with pytest.raises(ConfigError, match=r"analysis.shortcuts.boxes"):
        run(audit, boxes=((0.5, 0.0, 0.2, 0.1),))


def test_more_classes_are_taken_one_against_the_rest() -> None:
    audit = marked_audit(Scene(), square=8.0)
    result = run(replace(audit, decision=Decision()))
    assert set(conclusions(result)) == {
        f"{what} ({name})" for what in ("site", "sex", "what is outside the anatomy") for name in ("normal", "lesion")
    }
    normal, lesion = (one(result, "cue_effect", **{"class": name}, edit="both") for name in ("normal", "lesion"))
    assert normal.value == pytest.approx(-(lesion.value or 0.0))


def with_column(values: object, name: str = "site") -> Audit:
    audit = marked_audit(Scene(), spot=8.0)
    return replace(audit, everything=replace(audit.everything, table=audit.everything.table.assign(**{name: values})))


def test_columns_that_say_nothing_have_reasons_and_stop_nothing() -> None:
    alone = run(with_column("A"))
    assert one(alone, "metadata_auroc", column="site").reason == "only one level"
    assert one(alone, "probe_auroc", column="site").reason == "fewer than two levels with 10 patients"
    many = run(with_column([f"s{number}" for number in range(240)]))
    assert conclusions(many)["site"] == "nothing found"
    missing = run(with_column("unknown"))
    assert one(missing, "cue_beyond_placebo", column="site").reason
    sizes = next(chart for chart in missing.charts if isinstance(chart, Table))
    assert sizes.rows[0][:3] == ("site", "unknown", 120)


def test_cases_of_one_class_have_reasons() -> None:
    audit = marked_audit(Scene(), square=8.0)
    table = audit.everything.table.assign(label="normal")
    result = run(replace(audit, everything=replace(audit.everything, table=table)), boxes=((0.0, 0.0, 0.125, 0.125),))
    assert one(result, "outside_auroc").reason == "no positive cases"
    assert one(result, "metadata_auroc", column="site").reason == "no positive cases"
    assert dependence(result) is None
    assert one(result, "cue_effect", cue="box 1", edit="both").value == pytest.approx(8 * STEP, abs=0.05)


def test_without_columns_only_the_images_are_looked_at() -> None:
    audit = replace(marked_audit(Scene(agreement=1.0), square=8.0), groups=(), acquisition=())
    result = run(audit)
    assert set(conclusions(result)) == {"what is outside the anatomy"}
    assert result.summary.startswith("The decision follows what is outside the anatomy, cause not shown")
    assert "no group or acquisition columns" in result.caveats[-1]


def test_predictions_alone_leave_out_what_needs_the_model() -> None:
    audit = marked_audit(Scene(), square=8.0)
    names = tuple(str(name) for name in audit.ids)
    given = PredictionsClassifier("p.csv", "id", names, audit.classes, audit.predictions.probabilities)
    scored = replace(audit, model=given)
    result = run(scored)
    assert conclusions(result)["site"] == "the decision follows it, cause not shown"
    assert dependence(result) == pytest.approx(1.0)
    with pytest.raises(NotApplicable, match="no group or acquisition columns"):
        run(replace(scored, groups=(), acquisition=()))


def test_a_level_called_known_is_a_level_like_others() -> None:
    rng = np.random.default_rng(1)
    labels, level = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, 200), 0.01, 0.99)
    names = (np.array(["a", "b"]), np.array(["known", "rest"]))
    shifts = [run(stored(scores, labels, columns={"sex": each[level]})) for each in names]
    first, second = (one(result, "score_shift") for result in shifts)
    assert first.value is not None
    assert (first.value, first.low, first.n) == (second.value, second.low, second.n)
