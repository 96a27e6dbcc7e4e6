"""Damage whose effect on a linear model is known, a planted marker, and what the page says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.analyses.subjects import SIDE, subject
from xvision.analyses.corruption import corruption
from xvision.audit import Audit
from xvision.errors import ConfigError
from xvision.methods.corruptions import CORRUPTIONS, kinds_of
from xvision.methods.decision import Decision
from xvision.result import Metric, Result


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
