"""What cannot be asked of the queue, each with one sentence."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.review.making import World, copied, read
from xvision.config import DataPlan, DecisionPlan, ModelPlan
from xvision.errors import ConfigError, DataError, MissingExtra, RunError
from xvision.models.checkpoint import save_model
from xvision.models.llm.classifier import preset
from xvision.review.queue import review_queue


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size is 0 with 2 cases per patient: give at least 1 of each"),
        ({"pseudo_precision": 0.9}, "--pseudo-precision needs images without a label: name their manifest"),
        ({"pseudo_precision": 95.0}, r"--pseudo-precision is 95\.0: give a share above 0 and below 1"),
        ({"stratify": "sexe"}, r"manifest\.csv has no column 'sexe'\. Did you mean 'sex'"),
        ({"stratify": "label"}, "'label' is a standard column and cannot be a group"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    world: World, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        review_queue(world.plan, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_without_cleanlab_nothing_is_begun(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(MissingExtra, match=r"pip install 'xvision\[labels\]'"):
        review_queue(world.plan, tmp_path / "out", cleanlab=True)
    assert not (tmp_path / "out").exists()


def test_other_content_is_never_overwritten(world: World, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"notes holds 'notes\.txt', which is no part of a review queue"):
        review_queue(world.plan, tmp_path / "notes")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"file is a file\. Choose another --out"):
        review_queue(world.plan, tmp_path / "file")
    review_queue(world.plan, tmp_path / "out", size=5)
    with pytest.raises(RunError, match="out holds a finished review queue, perhaps with a reader's notes"):
        review_queue(world.plan, tmp_path / "out", size=5)


def refused(world: World, folder: Path, table: pd.DataFrame, out: Path) -> pytest.ExceptionInfo[Exception]:
    manifest = copied(world, folder, table)
    with pytest.raises((ConfigError, DataError)) as caught:
        review_queue(world.plan, out, unlabelled=manifest, pseudo_precision=0.9)
    return caught


def test_unlabelled_manifests_that_cannot_be_used(world: World, tmp_path: Path) -> None:
    table = read(world.unlabelled)
    nothing = refused(world, tmp_path / "a", table.assign(label="spot"), tmp_path / "out")
    assert "all 200 cases of the unlabelled manifest have a label: nothing is to be done" in str(nothing.value)
    pathless = refused(world, tmp_path / "b", table.drop(columns="image"), tmp_path / "out")
    assert "manifest.csv has no column 'image': an unlabelled manifest needs the images' paths" in str(pathless.value)
    groupless = refused(world, tmp_path / "c", table.drop(columns="sex"), tmp_path / "out")
    assert "manifest.csv has no column 'sex'" in str(groupless.value)
    with pytest.raises(DataError, match=r"holds no manifest\.csv: list the unlabelled images in one"):
        review_queue(world.plan, tmp_path / "out", unlabelled=tmp_path)


def test_labels_that_pseudo_labels_cannot_be_shown_on(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path))

    def ask(change: pd.DataFrame, groups: Sequence[str] = ("sex",)) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        data = DataPlan(str(copied(world, folder, change, "known")), groups=tuple(groups))
        plan = replace(world.plan, data=data)
        waiting = copied(world, folder / "waiting", read(world.unlabelled).assign(confidence="high"))
        review_queue(plan, folder / "out", unlabelled=waiting, pseudo_precision=0.9)

    with pytest.raises(DataError, match=r"need labelled cases of the split validation.*found: test, train"):
        ask(table.replace({"split": {"validation": "test"}}))
    with pytest.raises(ConfigError, match=r"the column 'confidence' has the name of a column of pseudo_labels\.csv"):
        ask(table.assign(confidence="high"), ["sex", "confidence"])


def test_a_class_that_is_a_formula_gets_no_pseudo_labels(world: World, tmp_path: Path) -> None:
    module = preset("tiny-qwen3", image_size=16, patch_size=4, classes=("clear", "=1+1"), seed=0)
    save_model(module, tmp_path / "model")
    table = read(Path(world.plan.data.path)).replace({"label": {"spot": "=1+1"}})
    data = replace(world.plan.data, path=str(copied(world, tmp_path / "known", table, "known")))
    plan = replace(
        world.plan, data=data, model=ModelPlan(str(tmp_path / "model"), device="cpu"), decision=DecisionPlan()
    )
    with pytest.raises(ConfigError, match=r"the class '=1\+1' starts with a sign that spreadsheets take for a formula"):
        review_queue(plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)


def test_too_few_labels_for_issues_are_said(world: World, tmp_path: Path) -> None:
    table = read(Path(world.plan.data.path))
    few = pd.concat([table[table["label"] == "clear"].iloc[:20], table[table["label"] == "spot"].iloc[:2]])
    data = replace(world.plan.data, path=str(copied(world, tmp_path / "few", few, "known")))
    report = review_queue(replace(world.plan, data=data), tmp_path / "out", size=5)
    assert "Label issues: not estimable (the label 'spot' has 1 patients, too few to leave some out" in str(report)
    assert not (tmp_path / "out" / "label_issues.csv").exists()
    facts = json.loads((tmp_path / "out" / "queue.json").read_text())
    assert facts["label_issues"]["reason"].startswith("the label 'spot' has 1 patients")
