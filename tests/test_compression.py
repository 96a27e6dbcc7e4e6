"""What compressing a model cost: the audit before and after, margins and heat maps."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from xvision import codec
from xvision.compression import CompressReport, compress_and_audit
from xvision.config import DataPlan, ModelPlan, Plan
from xvision.errors import RunError
from xvision.store import open_run
from xvision.training.agreement import map_agreement
from xvision.training.compress import compress


@pytest.fixture(scope="module")
def plan(phantoms: Path, checkpoint: Path) -> Plan:
    """Over all 150 phantoms."""
    data = DataPlan(str(phantoms), groups=("sex",))
    return Plan(data, ModelPlan(str(checkpoint), device="cpu"), name="small", only=("performance",), case_images=False)


@pytest.fixture(scope="module")
def report(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressReport, Path]:
    out = tmp_path_factory.mktemp("compress") / "out"
    return compress_and_audit(plan, "prune-structured", out, amount=0.5, steps=4, plan_file="plan.toml"), out


def test_the_report_is_what_the_runs_say(report: tuple[CompressReport, Path]) -> None:
    found, out = report
    before, after = open_run(out / "before"), open_run(out / "after")
    (accuracy,) = [cell for cell in found.comparison.paired if cell.name == "accuracy" and not cell.where]
    assert accuracy.a == pytest.approx((before.predictions["decision"] == before.predictions["label"]).mean())
    assert accuracy.b == pytest.approx((after.predictions["decision"] == after.predictions["label"]).mean())
    first, second = before.predictions, after.predictions
    positive = (first["label"] == "lesion").to_numpy()
    odds = [frame["logit:lesion"] - frame["logit:normal"] for frame in (first, second)]
    change = (odds[1] - odds[0]).to_numpy() * (2 * positive - 1)
    mean, size_of_change = found.margins[:2]
    assert mean.value == pytest.approx(change.mean(), abs=1e-5)
    assert size_of_change.value == pytest.approx(abs(change).mean(), abs=1e-5)
    assert found.margins[-1].value == pytest.approx((change < 0).mean())
    assert found.comparison.largest_logit_change == pytest.approx(
        max(abs(second[name] - first[name]).max() for name in ("logit:normal", "logit:lesion"))
    )
    assert after.info.command == f"xvision audit plan.toml --model {out / 'compressed'} --out {out / 'after'}"
    assert before.info.seed == after.info.seed


def test_every_number_has_an_interval(report: tuple[CompressReport, Path]) -> None:
    found, _ = report
    for item in (*found.margins, *found.attributions):
        assert item.value is not None
        assert item.low is not None
        assert item.n
    assert {item.where["method"] for item in found.attributions} == {"integrated_gradients", "saliency"}
    assert all(0 < (item.value or 0) < 1 for item in found.attributions)


def test_comparison_json_is_the_report(report: tuple[CompressReport, Path]) -> None:
    found, out = report
    data = json.loads((out / "comparison.json").read_text())
    assert codec.read(CompressReport, data, "comparison.json", RunError) == found
    lines = "\n".join(found.lines())
    assert "prune-structured, 50 %" in lines
    assert "Operations per image" in lines
    assert "Attribution agreement (method saliency)" in lines
    assert "Holm" in lines


def test_the_same_call_goes_on_where_it_stopped(plan: Plan, report: tuple[CompressReport, Path]) -> None:
    found, out = report
    (out / "comparison.json").unlink()
    started = open_run(out / "before").info.started
    again = compress_and_audit(plan, "prune-structured", out, amount=0.5, steps=4, plan_file="plan.toml")
    assert again == found
    assert open_run(out / "before").info.started == started


def test_maps_of_the_same_model_agree_perfectly(plan: Plan, report: tuple[CompressReport, Path]) -> None:
    run = open_run(report[1] / "before")
    for item in map_agreement(plan, run, run, (plan.model.path, plan.model.path), cases=20, steps=2):
        assert item.value == pytest.approx(1.0)


def test_without_gradients_the_reason_is_given(plan: Plan, tmp_path: Path) -> None:
    found = compress_and_audit(plan, "int8-dynamic", tmp_path / "out", steps=2)
    assert found.amount is None
    assert [item.value for item in found.attributions] == [None, None]
    assert "gives no gradients (black-box access)" in str(found.attributions[0].reason)
    assert found.size_after.flops is None
    assert found.size_after.bytes < 0.55 * found.size_before.bytes
    assert all(math.isfinite(item.value or 0.0) for item in found.margins)


def test_maps_agree_less_the_more_is_cut(plan: Plan, report: tuple[CompressReport, Path], tmp_path: Path) -> None:
    run, agreed = open_run(report[1] / "before"), []
    for amount in (0.05, 0.9):
        pruned = compress(plan.model.path, "prune-magnitude", tmp_path / f"{amount}", amount=amount)
        agreed.append(map_agreement(plan, run, run, (plan.model.path, str(pruned)), cases=31, steps=2))
    for little, much in zip(*agreed, strict=True):
        assert (little.low or 0) > 0.8
        assert (much.high or 1) < (little.low or 0)
