"""The review queue from a plan: what is written, what is found, what is never touched, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan, SplitPlan
from xvision.data.manifest import load_data
from xvision.engine import Progress
from xvision.errors import ConfigError, DataError, MissingExtra, RunError
from xvision.methods.pseudo_labels import precision_limit
from xvision.models.checkpoint import load_model, save_model
from xvision.models.llm.classifier import preset
from xvision.models.protocols import EmbeddingClassifier
from xvision.recipe import BackbonePlan, TrainingPlan
from xvision.review.queue import review_queue
from xvision.training.run import finetune_plan

CLASSES = ("clear", "spot")


class Quiet:
    """A console that shows nothing."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


class World(NamedTuple):
    """plan: of the labelled data and the model. unlabelled: a manifest in another folder. truth: id → class."""

    plan: Plan
    unlabelled: Path
    truth: dict[str, str]


def write_images(folder: Path, count: int, seed: int, prefix: str) -> pd.DataFrame:
    """Two 16 × 16 images of each patient; a spot is bright in men and hard to see in women, three of ten patients."""
    draw = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    patients = np.repeat(np.arange(count // 2), 2)
    spot = draw.integers(2, size=count // 2)[patients]
    woman = (draw.random(count // 2) < 0.3)[patients]
    pixels = 0.4 + 0.06 * draw.standard_normal((count, 16, 16))
    shown = spot * np.where(woman, 0.14, 0.35) + draw.normal(0, 0.05, count)
    pixels[:, 4:12, 4:12] += shown[:, None, None]
    names = [f"images/{prefix}{place:04d}.png" for place in range(count)]
    for name, image in zip(names, pixels, strict=True):
        Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(folder / name)
    return pd.DataFrame({
        "image": names, "label": np.array(CLASSES)[spot], "patient": [f"{prefix}p{who:03d}" for who in patients],
        "sex": np.where(woman, "F", "M"), "site": draw.choice(["=A", "B"], count),
    })  # fmt: skip


def fitted_checkpoint(folder: Path, table: pd.DataFrame, manifest: Path) -> None:
    """A random body with a head fitted to its embeddings of the training images."""
    module = preset("tiny-qwen3", image_size=16, patch_size=4, classes=CLASSES, seed=0)
    save_model(module, folder)
    model = load_model(folder, device="cpu")
    assert isinstance(model, EmbeddingClassifier)
    data = load_data(manifest).split("train")
    with torch.inference_mode():
        inside = model.embed(torch.from_numpy(data.pixels(data.ids, model.input))).double().numpy()
    head = LogisticRegression(max_iter=5000, C=10.0).fit(inside, data.label_codes(CLASSES))
    with torch.no_grad():
        module.classifier.weight.copy_(torch.from_numpy(np.vstack([np.zeros_like(head.coef_), head.coef_])))
        module.classifier.bias.copy_(torch.tensor([0.0, float(head.intercept_[0])]))
    save_model(module, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("few-labels")
    table = write_images(root / "known", 700, 0, "k")
    people = table["patient"].unique()
    split = dict(zip(people, np.repeat(["train", "validation", "test"], [100, 200, 50]), strict=True))
    table["split"] = table["patient"].map(split)
    table.to_csv(root / "known" / "manifest.csv", index=False)
    fitted_checkpoint(root / "model", table, root / "known" / "manifest.csv")
    waiting = write_images(root / "waiting", 200, 1, "w")
    truth = dict(zip(waiting["image"], waiting["label"], strict=True))
    waiting.drop(columns="label").to_csv(root / "waiting" / "manifest.csv", index=False)
    plan = Plan(
        DataPlan(str(root / "known" / "manifest.csv"), groups=("sex",), acquisition=("site",)),
        ModelPlan(str(root / "model"), device="cpu"),
        decision=DecisionPlan("spot", 0.5),
        batch_size=128,
    )
    return World(plan, root / "waiting" / "manifest.csv", truth)


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copied(world: World, folder: Path, change: pd.DataFrame, which: str = "unlabelled") -> Path:
    """A changed manifest beside links to the same images."""
    source = world.unlabelled.parent if which == "unlabelled" else Path(world.plan.data.path).parent
    (folder / "images").mkdir(parents=True)
    for path in (source / "images").iterdir():
        (folder / "images" / path.name).hardlink_to(path)
    change.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


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
