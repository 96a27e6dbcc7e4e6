"""Answers that may stand in for labels: where, for whom, and what is never touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.review.making import CLASSES, Quiet, World, copied, digests, read
from xvision.config import ModelPlan
from xvision.data.manifest import load_data
from xvision.methods.pseudo_labels import precision_limit
from xvision.models.checkpoint import load_model
from xvision.recipe import BackbonePlan, TrainingPlan
from xvision.review.queue import review_queue
from xvision.training.run import finetune_plan


def test_pseudo_labels_keep_their_promise_and_touch_nothing(world: World, tmp_path: Path) -> None:
    before = digests(world.unlabelled.parent), digests(Path(world.plan.data.path).parent)
    report = review_queue(world.plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)
    assert (digests(world.unlabelled.parent), digests(Path(world.plan.data.path).parent)) == before
    rows = read(tmp_path / "out" / "pseudo_labels.csv")
    right = [world.truth[name] == label for name, label in zip(rows["source"], rows["label"], strict=True)]
    assert len(rows) > 50
    assert np.mean(right) >= 0.9
    assert set(rows["pseudo"]) == {"true"}
    assert set(rows["split"]) == {"train"}
    floors = {
        (floor["group"], floor["class"]): floor
        for floor in json.loads((tmp_path / "out" / "queue.json").read_text())["pseudo_labels"]["floors"]
    }
    assert set(floors) == {(sex, name) for sex in "FM" for name in CLASSES}
    for (sex, name), floor in floors.items():
        members = rows[(rows["sex"] == sex) & (rows["label"] == name)]
        if floor["floor"] is None:
            assert members.empty
            assert floor["reason"]
        else:
            assert floor["precision"]["low"] >= 0.9
            assert (members["confidence"].astype(float) >= floor["floor"] - 1e-6).all()
    assert floors["M", "spot"]["floor"] is not None
    assert "sex M, spot: from confidence" in str(report)


def test_a_floor_is_what_the_validation_split_shows(world: World, tmp_path: Path) -> None:
    review_queue(world.plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)
    floors = json.loads((tmp_path / "out" / "queue.json").read_text())["pseudo_labels"]["floors"]
    floor = next(row for row in floors if (row["group"], row["class"]) == ("M", "clear"))
    data = load_data(world.plan.data.path, groups=["sex"]).split("validation")
    model = load_model(world.plan.model.path, device="cpu")
    with torch.inference_mode():
        shares = model.logits(torch.from_numpy(data.pixels(data.ids, model.input))).softmax(1).double().numpy()
    taken = (shares[:, 0] > 0.5) & (shares[:, 0] >= floor["floor"] - 1e-6) & (data.table["sex"] == "M").to_numpy()
    shown = precision_limit((data.label_codes(CLASSES) == 0)[taken], data.table["patient"].to_numpy()[taken])
    assert floor["precision"]["value"] == pytest.approx(shown.value)
    assert floor["precision"]["low"] == pytest.approx(shown.low)


def test_both_manifests_are_read_like_any_other(world: World, tmp_path: Path) -> None:
    review_queue(world.plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)
    pseudo = load_data(tmp_path / "out" / "pseudo_labels.csv", groups=["sex", "pseudo"])
    joined = load_data(tmp_path / "out" / "training.csv", groups=["sex", "pseudo"])
    given = load_data(world.plan.data.path, groups=["sex"])
    assert len(joined) == len(pseudo) + len(given)
    assert set(joined.table["pseudo"][joined.table["split"] != "train"]) == {"false"}
    kept = joined.table[joined.table["pseudo"] == "false"]
    assert kept["label"].tolist() == given.table["label"].tolist()
    assert kept["split"].tolist() == given.table["split"].tolist()
    spec = load_model(world.plan.model.path, device="cpu").input
    assert np.array_equal(joined.pixels(kept.index[:5].tolist(), spec), given.pixels(given.ids[:5], spec))


def test_the_plans_own_column_names_are_kept(world: World, tmp_path: Path) -> None:
    names = {"label": "Finding", "patient": "PatientID", "mask": "Mask"}
    table = read(Path(world.plan.data.path)).rename(columns=names).assign(Mask="")
    waiting = read(world.unlabelled).rename(columns=names)
    data = replace(world.plan.data, path=str(copied(world, tmp_path / "known", table, "known")), columns=names)
    unlabelled = copied(world, tmp_path / "waiting", waiting)
    plan = replace(world.plan, data=data)
    review_queue(plan, tmp_path / "out", unlabelled=unlabelled, pseudo_precision=0.9)
    assert {"Finding", "PatientID", "Mask"} <= set(read(tmp_path / "out" / "training.csv"))
    assert len(load_data(tmp_path / "out" / "training.csv", groups=["sex"], columns=names)) > 700


def test_given_labels_in_the_unlabelled_manifest_are_left_alone(world: World, tmp_path: Path) -> None:
    waiting = read(world.unlabelled)
    waiting["label"] = [CLASSES[0]] * 50 + [""] * 149 + ["n/a"]
    manifest = copied(world, tmp_path / "waiting", waiting)
    report = review_queue(world.plan, tmp_path / "out", unlabelled=manifest, pseudo_precision=0.9)
    assert report.pool == 150
    labelled = set(waiting["image"][:50])
    for name in ("queue.csv", "pseudo_labels.csv"):
        rows = read(tmp_path / "out" / name)
        assert not labelled & set(rows["source" if "source" in rows else "id"])


def test_nobody_who_is_tested_on_gets_a_pseudo_label(world: World, tmp_path: Path) -> None:
    known, waiting = read(Path(world.plan.data.path)), read(world.unlabelled)
    waiting.loc[:99, "patient"] = known.loc[known["split"] == "test", "patient"].iloc[0]
    manifest = copied(world, tmp_path / "waiting", waiting)
    tested = known.loc[known["split"] == "validation", "image"].iloc[0]
    same = tmp_path / "waiting" / waiting["image"].iloc[150]
    same.unlink()
    same.write_bytes((Path(world.plan.data.path).parent / tested).read_bytes())
    report = review_queue(world.plan, tmp_path / "out", unlabelled=manifest, pseudo_precision=0.8)
    rows = read(tmp_path / "out" / "pseudo_labels.csv")
    assert not set(waiting["image"][:100]) & set(rows["source"])
    assert waiting["image"].iloc[150] not in set(rows["source"])
    assert report.pseudo is not None
    assert report.pseudo.left["their patient is in the validation or test split"] == 100
    assert report.pseudo.left["the same image is in the validation or test split"] == 1
    assert len(report.pseudo.chosen) + sum(report.pseudo.left.values()) == 200


def test_without_case_images_no_picture_is_brought_along(world: World, tmp_path: Path) -> None:
    plan = replace(world.plan, case_images=False)
    report = review_queue(plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "label_issues.csv", "pseudo_labels.csv", "queue.csv", "queue.json",
    ]  # fmt: skip
    rows = read(tmp_path / "out" / "pseudo_labels.csv")
    assert rows["image"].tolist() == rows["source"].tolist()
    assert "put pseudo_labels.csv beside the unlabelled manifest" in str(report)


def test_the_joined_manifest_can_be_trained_on(world: World, tmp_path: Path) -> None:
    review_queue(world.plan, tmp_path / "out", unlabelled=world.unlabelled, pseudo_precision=0.9)
    plan = replace(
        world.plan,
        data=replace(world.plan.data, path=str(tmp_path / "out" / "training.csv")),
        model=ModelPlan(str(tmp_path / "tuned"), device="cpu"),
        backbone=BackbonePlan(image_size=16, patch_size=4),
        training=TrainingPlan(epochs=1, controls=False),
    )
    finetune_plan(plan, console=Quiet())
    assert load_model(tmp_path / "tuned", device="cpu").classes == CLASSES
