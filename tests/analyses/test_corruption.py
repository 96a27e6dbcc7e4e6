"""Damage whose effect on a linear model is known, a planted marker, and what the page says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.analyses.subjects import SIDE, subject
from tests.factories import write_run
from xvision.analyses.corruption import corruption
from xvision.audit import Audit
from xvision.charts import HeatMap, Table
from xvision.errors import ConfigError
from xvision.methods.corruptions import CORRUPTIONS, kinds_of
from xvision.methods.decision import Decision
from xvision.registry import analyses
from xvision.result import Metric, Record, Result
from xvision.store import Run, Writer


def bright(cases: int = 40) -> Audit:
    """The mean brightness decides, with a margin of 0.2 around the middle grey."""
    labels = np.arange(cases) % 2
    levels = np.where(labels == 1, 0.6, 0.4)
    pixels = np.clip(levels[:, None, None] + np.linspace(-0.2, 0.2, SIDE)[None, None, :] * np.ones((1, SIDE, 1)), 0, 1)
    weights = np.full((SIDE, SIDE), 50.0 / SIDE**2, dtype=np.float32)
    audit = replace(subject(weights, pixels), task="corruption", groups=("site",), acquisition=())
    return replace(audit, decision=Decision(1, 1 / (1 + np.exp(-25.0)), True), modality="xray")


def found(result: Result, name: str, **where: str | int) -> Metric:
    (one,) = [item for item in result.metrics if item.name == name and dict(item.where) == where]
    return one


def reference(folder: Path, audit: Audit, result: Result) -> Path:
    """The run folder of an audit with this page."""
    info = Run(write_run(folder)).info
    writer = Writer(folder)
    writer.info(replace(info, fingerprints={**info.fingerprints, "data": audit.fingerprints[1]}))
    asked = analyses()["corruption"]
    record = Record("corruption", asked.title, asked.pillar, asked.question, "ok", "key", {}, 0.0)
    writer.result(record, result)
    return folder


def test_what_changes_no_mean_costs_a_model_of_the_mean_nothing() -> None:
    result = corruption(bright(), kinds=("contrast_down", "gaussian_blur", "inversion"), resamples=50)
    for severity in range(1, 6):
        assert found(result, "accuracy", corruption="contrast_down", severity=severity).value == 1.0
        assert found(result, "flip_rate", corruption="gaussian_blur", severity=severity).value == 0.0
    turned = found(result, "accuracy", corruption="inversion", severity=5)
    assert turned.value == 0.0  # bright and dark change places
    assert found(result, "retention", corruption="inversion", severity=5).value == 0.0
    assert found(result, "sensitivity", corruption="inversion", severity=5).value == 0.0


def test_brightness_flips_what_it_lifts_over_the_threshold() -> None:
    """A darker exposure moves the mean by a known amount: the bright images fall, the dark ones stay."""
    result = corruption(bright(), kinds=("gamma_up",), agreed_accuracy=0.9, resamples=50)
    sensitivity = [found(result, "sensitivity", corruption="gamma_up", severity=level).value for level in range(1, 6)]
    ramp = 0.6 + np.linspace(-0.2, 0.2, SIDE)
    wanted = [float((ramp**gamma).mean() > 0.5) for gamma in CORRUPTIONS["gamma_up"].values("xray")]
    assert sensitivity == wanted
    assert set(wanted) == {0.0, 1.0}
    first = wanted.index(0.0) + 1
    (table,) = [chart for chart in result.charts if chart.kind == "table" and "envelope" in chart.title]
    assert table.rows[0][0] == "Darker exposure"
    assert table.rows[0][3] == str(first)
    assert "agreed accuracy of 0.9" in result.summary


def test_only_kinds_of_the_modality_are_tried_and_an_undeclared_one_is_said() -> None:
    audit = bright(8)
    result = corruption(replace(audit, modality=None), resamples=10)
    tried = {str(item.where["corruption"]) for item in result.metrics if "corruption" in item.where}
    assert tried == set(kinds_of(None))
    assert any("data.modality" in caveat for caveat in result.caveats)
    with pytest.raises(ConfigError, match="makes no sense for"):
        corruption(audit, kinds=(next(name for name in CORRUPTIONS if name not in kinds_of("xray")),))
    with pytest.raises(ConfigError, match="unknown kind"):
        corruption(audit, kinds=("gauss",))


def test_a_swap_of_sides_gives_flips_and_no_accuracy() -> None:
    result = corruption(bright(8), kinds=("laterality_flip", "gamma_up"), resamples=10)
    names = {item.name for item in result.metrics if item.where.get("corruption") == "laterality_flip"}
    assert names == {"flip_rate", "psnr", "ssim"}


def test_figures_do_not_depend_on_the_part() -> None:
    audit = bright(12)
    kinds = ("gaussian_noise", "motion_blur")
    whole = corruption(audit, kinds=kinds, resamples=20)
    audit.engine.part = 5
    again = corruption(replace(audit, shared={}), kinds=kinds, resamples=20)
    assert [item.value for item in whole.metrics] == pytest.approx([item.value for item in again.metrics], nan_ok=True)


def test_another_model_is_read_from_its_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reference_run"):
        corruption(bright(8), kinds=("gamma_up",), reference_run=str(tmp_path), resamples=10)


def test_groups_are_told_apart() -> None:
    audit = bright(40)
    sites = np.where(np.arange(40) % 4 < 2, "A", "B")
    table = audit.everything.table.assign(site=sites)
    split = replace(audit, everything=replace(audit.everything, table=table))
    result = corruption(split, kinds=("inversion",), resamples=10)
    assert found(result, "flip_rate", site="A", corruption="inversion", severity=3).n == 20


def test_a_group_called_severity_is_told_apart_from_the_severity_of_the_damage() -> None:
    audit = bright(40)
    table = audit.everything.table.assign(severity=np.where(np.arange(40) % 4 < 2, "mild", "grave"))
    split = replace(audit, everything=replace(audit.everything, table=table), groups=("severity",))
    result = corruption(split, kinds=("inversion", "inversion"), resamples=10)
    keys = [(item.name, *sorted(item.where.items())) for item in result.metrics]
    assert len(keys) == len(set(keys))
    (heat,) = [chart for chart in result.charts if isinstance(chart, HeatMap) and "by severity" in chart.title]
    assert heat.columns == ("grave", "mild")


def test_no_interval_over_all_kinds_is_without_width() -> None:
    result = corruption(bright(10), kinds=("contrast_down",), resamples=20)
    overall, kept = (
        found(result, "accuracy_under_corruption"),
        found(result, "retention", corruption="contrast_down", severity=5),
    )
    assert overall.value == kept.value == 1.0
    assert overall.low == kept.low == pytest.approx(0.722, abs=1e-3)  # Wilson for ten of ten


def test_an_envelope_without_a_figure_says_so_and_one_without_kinds_is_not_drawn() -> None:
    audit = bright(10)
    healthy = replace(
        audit, everything=replace(audit.everything, table=audit.everything.table.assign(label="normal")), shared={}
    )
    result = corruption(healthy, kinds=("gamma_up",), agreed_sensitivity=0.9, resamples=10)
    (table,) = [chart for chart in result.charts if isinstance(chart, Table) and "envelope" in chart.title]
    assert table.rows[0][1:] == ("not estimable", "none", "not estimable")
    only = corruption(bright(10), kinds=("laterality_flip",), agreed_accuracy=0.9, resamples=10)
    assert not any("envelope" in chart.title for chart in only.charts)
    without = replace(audit, decision=Decision())
    with pytest.raises(ConfigError, match="decision has none"):
        corruption(without, agreed_sensitivity=0.9)
    with pytest.raises(ConfigError, match="at least 1"):
        corruption(audit, cases=0)


def test_the_reference_is_compared_on_the_same_images_and_no_other_data(tmp_path: Path) -> None:
    """Clean errors of all images beside damaged ones of a sample would not give 100 for the reference itself."""
    sound = bright(40)
    labels = np.where(np.arange(40) < 8, "lesion", sound.everything.table["label"])  # four of them are dark
    weak = replace(sound, everything=replace(sound.everything, table=sound.everything.table.assign(label=labels)))
    kinds = ("gamma_up", "brightness_down")
    run = reference(tmp_path / "run", weak, corruption(weak, cases=9, kinds=kinds, resamples=10))
    again = corruption(weak, cases=9, kinds=kinds, reference_run=str(run), resamples=10)
    assert found(again, "clean_accuracy").value != pytest.approx(float(weak.correct.mean()))
    for name in ("mean_corruption_error", "relative_mean_corruption_error"):
        assert found(again, name, reference="run").value == pytest.approx(100.0)
    with pytest.raises(ConfigError, match="other data"):
        corruption(bright(20), cases=9, kinds=kinds, reference_run=str(run), resamples=10)
