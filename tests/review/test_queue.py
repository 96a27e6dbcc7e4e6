"""What the queue holds, in which order, and what it says of its mix."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.review.making import World, copied, read
from xvision.config import DecisionPlan, ModelPlan, SplitPlan
from xvision.engine import Progress
from xvision.errors import ConfigError
from xvision.models.checkpoint import save_model
from xvision.models.llm.classifier import preset
from xvision.review.queue import review_queue


def test_a_queue_of_labelled_cases(world: World, tmp_path: Path) -> None:
    report = review_queue(world.plan, tmp_path / "out", size=50)
    queue = read(tmp_path / "out" / "queue.csv")
    assert queue["rank"].tolist() == [str(rank) for rank in range(1, 51)]
    assert (np.diff(queue["uncertainty"].astype(float)) <= 0).all()
    assert set(queue["split"]) == {"validation", "test"}
    assert queue["patient"].value_counts().max() <= 2
    assert (report.cases, report.pool, report.found.cases) == (50, 500, 50)
    wrong = (queue["label"] != queue["decision"]).sum()
    assert report.found.found.value == pytest.approx(wrong / report.found.errors)
    assert report.found.found.low is not None
    assert report.found.found.low > report.found.by_chance == 0.1
    women = next(share for share in report.mix if (share.column, share.level) == ("sex", "F"))
    assert women.side == "more"
    assert women.queue.value == (queue["sex"] == "F").mean()
    assert str(report).startswith("Review queue: 50 of 500 labelled cases (test, validation), least certain first")
    assert "Mix: sex F is " in str(report)
    assert not (tmp_path / "out" / "work").exists()


def test_cells_that_a_spreadsheet_would_compute_start_with_an_apostrophe(world: World, tmp_path: Path) -> None:
    review_queue(world.plan, tmp_path / "out", size=50)
    assert set(read(tmp_path / "out" / "queue.csv")["site"]) == {"'=A", "B"}
    assert set(read(tmp_path / "out" / "label_issues.csv")["site"]) == {"'=A", "B"}


def test_a_stratified_queue_has_the_mix_of_the_data(world: World, tmp_path: Path) -> None:
    report = review_queue(world.plan, tmp_path / "out", size=60, stratify="sex", per_patient=1)
    women = next(share for share in report.mix if (share.column, share.level) == ("sex", "F"))
    assert women.side == "as the rest"
    assert women.queue.value == pytest.approx(women.everyone.value, abs=1 / 60)
    queue = read(tmp_path / "out" / "queue.csv")
    assert queue["patient"].is_unique
    assert "in the mix of sex, at most 1 of one patient" in str(report)


def test_planted_label_issues_are_listed_first(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path))
    draw = np.random.default_rng(5)
    flipped = draw.choice(np.flatnonzero(table["sex"] == "M"), 30, False)
    table.loc[flipped, "label"] = table.loc[flipped, "label"].map({"clear": "spot", "spot": "clear"})
    manifest = copied(world, tmp_path / "noisy", table, "known")
    plan = replace(world.plan, data=replace(world.plan.data, path=str(manifest)))
    report = review_queue(plan, tmp_path / "out", size=40, cleanlab=True)
    listed = read(tmp_path / "out" / "label_issues.csv")
    planted = set(table.loc[flipped, "image"])
    assert listed["id"][:40].isin(planted).sum() >= 25
    assert (listed["given"] != listed["suggested"])[:30].all()
    assert (np.diff(listed["self_confidence"].astype(float)) >= 0).all()
    assert set(listed["cleanlab"]) <= {"yes", "no"}
    facts = json.loads((tmp_path / "out" / "queue.json").read_text())["label_issues"]
    assert facts["cases"] == 700
    assert report.issues.ranking is not None
    assert facts["estimated_count"] == report.issues.ranking.count
    assert facts["estimated_share"]["low"] < facts["estimated_share"]["value"] < facts["estimated_share"]["high"]


def test_a_queue_of_unlabelled_cases(world: World, tmp_path: Path) -> None:
    report = review_queue(world.plan, tmp_path / "out", size=20, unlabelled=world.unlabelled)
    queue = read(tmp_path / "out" / "queue.csv")
    assert set(queue["id"]) <= set(world.truth)
    assert set(queue["label"]) == {""}
    assert (report.pool, report.found.pool, report.found.cases) == (200, 500, 50)
    wrong = np.array([world.truth[name] for name in queue["id"]]) != queue["decision"]
    assert wrong.mean() > 0.1
    assert not (tmp_path / "out" / "pseudo_labels.csv").exists()
    facts = json.loads((tmp_path / "out" / "queue.json").read_text())
    assert set(facts["fingerprints"]) == {"model", "labelled", "unlabelled", "code"}
    assert facts["settings"]["seed"] == 0


def test_an_interrupted_queue_goes_on_and_ends_the_same(world: World, tmp_path: Path) -> None:
    class Interrupts:
        def started(self, title: str) -> None:
            """Nothing."""

        def progress(self, progress: Progress) -> None:
            if progress.done >= 256:
                raise KeyboardInterrupt

        def close(self) -> None:
            """Nothing."""

    with pytest.raises(KeyboardInterrupt):
        review_queue(world.plan, tmp_path / "broken", listener=Interrupts())
    assert len(list((tmp_path / "broken" / "work").rglob("*.npz"))) == 2
    review_queue(world.plan, tmp_path / "broken")
    review_queue(world.plan, tmp_path / "whole")
    for name in ("queue.csv", "label_issues.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_one_finding_of_a_multilabel_model(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path))
    draw = np.random.default_rng(0)
    table["label"] = [
        "|".join(name for name, there in (("line", line), ("spot", label == "spot")) if there)
        for label, line in zip(table["label"], draw.random(700) < 0.3, strict=True)
    ]
    manifest = copied(world, tmp_path / "many", table, "known")
    module = preset("tiny-qwen3", image_size=16, patch_size=4, classes=("line", "spot"), multilabel=True, seed=0)
    save_model(module, tmp_path / "model")
    data = replace(world.plan.data, path=str(manifest), multilabel=True)
    plan = replace(world.plan, data=data, model=ModelPlan(str(tmp_path / "model"), device="cpu"))
    review_queue(plan, tmp_path / "out", size=20)
    queue = read(tmp_path / "out" / "queue.csv")
    assert set(queue["label"]) | set(queue["decision"]) == {"no spot", "spot"}
    assert set(read(tmp_path / "out" / "label_issues.csv")["given"]) == {"no spot", "spot"}
    with pytest.raises(ConfigError, match=r"name one as decision\.positive, of line, spot"):
        review_queue(replace(plan, decision=DecisionPlan()), tmp_path / "other")
    with pytest.raises(ConfigError, match="pseudo-labels are for models with one label per image"):
        review_queue(plan, tmp_path / "other", unlabelled=world.unlabelled, pseudo_precision=0.9)


def test_predictions_alone_make_a_queue(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path))
    share = np.random.default_rng(0).random(len(table))
    predictions = pd.DataFrame({"image": table["image"], "prob:clear": 1 - share, "prob:spot": share})
    predictions.to_csv(tmp_path / "predictions.csv", index=False)
    table.to_csv(tmp_path / "manifest.csv", index=False)  # without images beside it
    data = replace(world.plan.data, path=str(tmp_path / "manifest.csv"))
    plan = replace(world.plan, data=data, model=ModelPlan(str(tmp_path / "predictions.csv")))
    report = review_queue(plan, tmp_path / "out", size=500, per_patient=1)
    queue = read(tmp_path / "out" / "queue.csv")
    held = table["split"] != "train"
    nearest = table["image"][held].to_numpy()[np.abs(share[held] - 0.5).argmin()]
    assert queue["id"][0] == nearest
    assert "Label issues: not estimable (the model has no embeddings that can be read)" in str(report)


def test_splits_are_made_where_the_plan_asks(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path)).drop(columns="split")
    data = replace(world.plan.data, path=str(copied(world, tmp_path / "known", table, "known")), split=SplitPlan())
    report = review_queue(replace(world.plan, data=data), tmp_path / "out", size=5)
    assert report.splits == ("test", "validation")
    assert report.pool == pytest.approx(280, abs=10)
