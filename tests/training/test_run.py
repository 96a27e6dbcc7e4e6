"""From a plan to a checkpoint: what is trained, on whom it is tested, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import xvision
from tests.models.builders import save_folder, vit
from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan
from xvision.data.synthetic import PhantomSettings, phantom_dataset, write_phantoms
from xvision.errors import ConfigError, DataError, ModelError
from xvision.models.evidence import read_evaluation
from xvision.recipe import BackbonePlan, GroupPlan, RehearsalPlan, SearchPlan, TrainingPlan
from xvision.training import inputs
from xvision.training.run import finetune_data, finetune_plan

DATA = phantom_dataset(PhantomSettings(n=120, seed=5, contrast=0.7))


STILL = TrainingPlan(epochs=1, learning_rate=1e-9, controls=False, rehearsal=RehearsalPlan(share=0.0))


class Quiet:
    """A console that shows nothing."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        assert 0 <= done <= total

    def close(self) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


def plan(**changes: object) -> Plan:
    base = Plan(DataPlan("given"), ModelPlan("given"), training=TrainingPlan(epochs=1, controls=False))
    return replace(base, **changes)


def test_a_checkpoint_is_tested_on_patients_it_never_saw(tmp_path: Path) -> None:
    report = finetune_data(DATA, plan(), tmp_path / "out", console=Quiet())
    test = DATA.split("test")
    assert report.test_accuracy.n == test.table["patient"].nunique()
    model = xvision.load_model(tmp_path / "out", device="cpu")
    stored = read_evaluation(tmp_path / "out", fingerprint=model.fingerprint)
    assert stored is not None
    assert stored.split("test").after.auroc.value == report.test_auroc.value
    assert model.classes == ("lesion", "normal")
    assert "never trained on" in str(report)


def test_the_declared_positive_class_is_the_last(tmp_path: Path) -> None:
    finetune_data(DATA, plan(decision=DecisionPlan("lesion", 0.5)), tmp_path / "out", console=Quiet())
    assert xvision.load_model(tmp_path / "out", device="cpu").classes == ("normal", "lesion")


def test_training_goes_on_from_an_earlier_classifier(tmp_path: Path) -> None:
    first = plan(
        backbone=BackbonePlan(image_size=32),
        training=TrainingPlan(epochs=2, learning_rate=1e-6, seed=1, controls=False),
    )
    before = finetune_data(DATA, first, tmp_path / "first", console=Quiet())
    second = plan(backbone=BackbonePlan(start=str(tmp_path / "first")), training=STILL)
    after = finetune_data(DATA, second, tmp_path / "second", console=Quiet())
    assert after.test_auroc.value == pytest.approx(before.test_auroc.value, abs=1e-3)
    assert xvision.load_model(tmp_path / "second", device="cpu").input.height == 32


def test_an_earlier_classifier_of_other_classes_is_refused(tmp_path: Path) -> None:
    finetune_data(DATA, plan(), tmp_path / "first", console=Quiet())
    other = plan(
        backbone=BackbonePlan(start=str(tmp_path / "first")), decision=DecisionPlan("lesion", 0.5), training=STILL
    )
    with pytest.raises(ModelError, match="has the classes lesion, normal, the data normal, lesion"):
        finetune_data(DATA, other, tmp_path / "second", console=Quiet())


def test_a_patient_in_two_splits_is_refused(tmp_path: Path) -> None:
    table = DATA.table.copy()
    owner = table.loc[table["split"] == "train", "patient"].iloc[0]
    table.loc[table.index[table["split"] == "test"][0], "patient"] = owner
    with pytest.raises(DataError, match=f"patient '{owner}' is in both train and test"):
        finetune_data(replace(DATA, table=table), plan(), tmp_path / "out", console=Quiet())


def test_a_positive_class_that_is_no_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decision\.positive is 'tumour', but the labels are lesion, normal"):
        finetune_data(DATA, plan(decision=DecisionPlan("tumour", 0.5)), tmp_path / "out", console=Quiet())


def test_rehearsal_is_the_default_and_finds_the_earlier_data_by_the_checkpoints_own_record(tmp_path: Path) -> None:
    first, second = (
        write_phantoms(PhantomSettings(n=120, seed=seed, contrast=0.7), tmp_path / str(seed)) for seed in (5, 6)
    )
    small = BackbonePlan(image_size=32)
    quick = TrainingPlan(epochs=1, controls=False)
    base = plan(backbone=small, training=quick, data=DataPlan(str(first)), model=ModelPlan(str(tmp_path / "first")))
    finetune_plan(base, console=Quiet())
    again = replace(
        base, data=DataPlan(str(second)), model=ModelPlan(str(tmp_path / "second")),
        backbone=BackbonePlan(start=str(tmp_path / "first")),
    )  # fmt: skip
    report = finetune_plan(again, console=Quiet())
    run = json.loads((tmp_path / "second" / "run.json").read_text())
    old = xvision.load_data(first).split("train")
    assert run["data"]["training"]["rehearsed"] == len(old)
    assert run["data"]["training"]["images"] == len(old) + len(xvision.load_data(second).split("train"))
    assert not Path(run["data"]["source"]["path"]).is_absolute()
    (matrix,) = report.evidence.sites
    assert (matrix.column, matrix.models, matrix.sites) == ("data", ("before", "after"), ("earlier data", "these data"))
    assert "data earlier data: AUROC" in str(report)
    (first / "manifest.csv").unlink()
    with pytest.raises(ConfigError, match=r"cannot be rehearsed .*set training\.rehearsal\.share to 0"):
        finetune_plan(replace(again, model=ModelPlan(str(tmp_path / "third"))), console=Quiet())


def test_a_checkpoint_without_a_record_has_nothing_to_rehearse(tmp_path: Path) -> None:
    finetune_data(DATA, plan(backbone=BackbonePlan(image_size=32)), tmp_path / "first", console=Quiet())
    (tmp_path / "first" / "run.json").unlink()
    again = plan(backbone=BackbonePlan(start=str(tmp_path / "first")))
    with pytest.raises(ConfigError, match=r"does not say what it was trained on.*training\.rehearsal\.data"):
        finetune_data(DATA, again, tmp_path / "second", console=Quiet())


def test_before_and_after_are_measured_on_validation_and_test(tmp_path: Path) -> None:
    first = finetune_data(DATA, plan(backbone=BackbonePlan(image_size=32)), tmp_path / "first", console=Quiet())
    again = plan(backbone=BackbonePlan(start=str(tmp_path / "first")), training=STILL)
    second = finetune_data(DATA, again, tmp_path / "second", console=Quiet())
    part = second.evidence.split("test")
    assert part is not None
    assert part.before is not None
    assert part.before.auroc.value == first.test_auroc.value
    assert "Test AUROC, after minus before: 0.000" in str(second)
    assert first.evidence.split("test").before is None


def test_the_controls_stand_beside_the_model(tmp_path: Path) -> None:
    quick = plan(backbone=BackbonePlan(image_size=32), training=TrainingPlan(epochs=1))
    report = finetune_data(DATA, quick, tmp_path / "out", console=Quiet())
    names = [row.name for row in report.evidence.controls.rows]
    assert names == ["majority class", "pixel logistic regression", "stem only", "frozen random body"]
    assert all(name in str(report) for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_label_words_are_trained_and_kept(tmp_path: Path) -> None:
    words = BackbonePlan(image_size=32, head="label words", label_words={"lesion": "nodule", "normal": "clear"})
    finetune_data(DATA, plan(backbone=words), tmp_path / "out", console=Quiet())
    module = xvision.load_model(tmp_path / "out", device="cpu").module
    assert module.config.label_words == {"lesion": "nodule", "normal": "clear"}


def test_clinical_text_is_read_and_what_is_cut_is_said(tmp_path: Path) -> None:
    table = DATA.table.copy()
    table["text"] = ["woman with cough" if sex == "F" else "man" for sex in table["sex"]]
    reading = plan(backbone=BackbonePlan(image_size=32, text_tokens=2))
    report = finetune_data(replace(DATA, table=table), reading, tmp_path / "out", console=Quiet())
    cut = int((table["sex"] == "F").sum())
    assert f"{cut} texts had more than 2 tokens and were cut" in str(report)
    assert xvision.load_model(tmp_path / "out", device="cpu").takes_text
    with pytest.raises(DataError, match="no column 'text': add one"):
        finetune_data(DATA, reading, tmp_path / "other", console=Quiet())


def test_several_findings_are_fine_tuned(tmp_path: Path) -> None:
    table = DATA.table.copy()
    table["label"] = [
        "|".join(filter(None, ("a" if label == "lesion" else "", "b" if sex == "F" else "")))
        for label, sex in zip(table["label"], table["sex"], strict=True)
    ]
    several = replace(DATA, table=table, multilabel=True)
    report = finetune_data(several, plan(backbone=BackbonePlan(image_size=32)), tmp_path / "out", console=Quiet())
    assert report.evidence.classes == ("a", "b")
    assert xvision.load_model(tmp_path / "out", device="cpu").task == "multilabel"


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            GroupPlan(column="scaner"),
            r"groups\.column is 'scaner', which is no group of the data.*Did you mean 'scanner'",
        ),
        (GroupPlan(balance=("label", "cite")), r"balance names 'cite', which is no column here.*Did you mean 'site'"),
    ],
)
def test_columns_of_groups_must_be_there(groups: GroupPlan, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune_data(DATA, plan(training=TrainingPlan(groups=groups)), tmp_path / "out", console=Quiet())


def test_missing_splits_name_the_table_that_makes_them(tmp_path: Path) -> None:
    table = DATA.table.copy()
    table["split"] = "all"
    with pytest.raises(DataError, match=r"train, validation, test is missing .*\[data\.split\] in the plan makes them"):
        finetune_data(replace(DATA, table=table), plan(), tmp_path / "out", console=Quiet())


def test_every_image_that_cannot_be_read_is_named_before_training(tmp_path: Path) -> None:
    folder = write_phantoms(PhantomSettings(n=60, seed=2), tmp_path / "data")
    images = sorted(folder.rglob("*.png"))
    names = set(xvision.load_data(folder).split("train").table["image"])
    chosen = [path for path in images if path.relative_to(folder).as_posix() in names][:2]
    for path in chosen:
        path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of \d+ images cannot be read: .*Restore them or take them out"):
        finetune_plan(plan(data=DataPlan(str(folder)), model=ModelPlan(str(tmp_path / "out"))), console=Quiet())
    assert not (tmp_path / "out").exists()


def test_many_images_go_to_a_file_that_is_removed_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = plan(backbone=BackbonePlan(image_size=32))
    whole = finetune_data(DATA, small, tmp_path / "a", console=Quiet())
    monkeypatch.setattr(inputs, "_IN_MEMORY", 1000)
    paged = finetune_data(DATA, small, tmp_path / "b", console=Quiet())
    assert paged.evidence.fingerprint == whole.evidence.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_the_search_tries_recipes_and_trains_the_best(tmp_path: Path) -> None:
    space = SearchPlan(
        trials=3, space={"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "policy": ["full", "head"]}
    )
    wanted = plan(backbone=BackbonePlan(image_size=32), search=space)
    finetune_data(DATA, wanted, tmp_path / "out", console=Quiet(), searching=True)
    found = json.loads((tmp_path / "out.search" / "search.json").read_text())
    assert len(found["trials"]) == 3
    assert found["score"] == max(trial["score"] for trial in found["trials"])
    used = json.loads((tmp_path / "out" / "run.json").read_text())["plan"]
    assert {key: used[key] for key in ("learning_rate", "policy")} == found["best"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, r"\[search\] needs at least one trial and a table"),
        ({"learning_rate": 0.1}, r"search\.space\.learning_rate is 0\.1: give a list of choices"),
        ({"learning_rates": [0.1]}, r"search\.space: unknown key 'learning_rates'\. Did you mean 'learning_rate'"),
        ({"adapter.rank": [0]}, r"adapter\.rank is 0: give a whole number of at least 1"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, object], message: str, tmp_path: Path) -> None:
    wanted = plan(search=SearchPlan(space=space), backbone=BackbonePlan(image_size=32))
    with pytest.raises(ConfigError, match=message):
        finetune_data(DATA, wanted, tmp_path / "out", console=Quiet(), searching=True)


def test_only_a_classifier_of_this_kind_can_be_trained_on(tmp_path: Path) -> None:
    save_folder(tmp_path / "vit", vit())
    other = plan(backbone=BackbonePlan(start=str(tmp_path / "vit")), training=STILL)
    with pytest.raises(
        ModelError, match="only a classifier made by xvision can be trained on, this is ViTForImageClassification"
    ):
        finetune_data(DATA, other, tmp_path / "out", console=Quiet())


def test_laterality_of_the_data_decides_about_flips(tmp_path: Path) -> None:
    found = []
    for laterality in (True, False):
        recipe = TrainingPlan(epochs=1, augment=True, controls=False)
        wanted = plan(
            backbone=BackbonePlan(image_size=32), training=recipe, data=DataPlan("given", laterality=laterality)
        )
        found.append(finetune_data(DATA, wanted, tmp_path / str(laterality), console=Quiet()).evidence.fingerprint)
    assert found[0] != found[1]


def test_killed_during_the_controls_the_training_is_not_done_again(tmp_path: Path) -> None:
    quick = plan(backbone=BackbonePlan(image_size=32), training=TrainingPlan(epochs=2))
    whole = finetune_data(DATA, quick, tmp_path / "whole", console=Quiet())

    class Killed(Quiet):
        def update(self, title: str, done: float, total: float, note: str = "") -> None:
            if title.startswith("stem only"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune_data(DATA, quick, tmp_path / "cut", console=Killed())
    steps: list[str] = []

    class Watching(Quiet):
        def update(self, title: str, done: float, total: float, note: str = "") -> None:
            steps.append(title)

    again = finetune_data(DATA, quick, tmp_path / "cut", console=Watching(), resume=True)
    assert not any(title.startswith("Fine-tuning") for title in steps)
    assert again.evidence.fingerprint == whole.evidence.fingerprint
    assert again.evidence.controls == whole.evidence.controls
    assert again.summary.images_per_second > 0
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}


def test_the_report_says_what_the_epoch_was_chosen_by(tmp_path: Path) -> None:
    for select, words in (("auroc", "by validation AUROC"), ("worst group", "by validation the worst group's AUROC")):
        recipe = TrainingPlan(epochs=1, controls=False, groups=GroupPlan(column="sex"), select=select)
        small = plan(backbone=BackbonePlan(image_size=32), training=recipe)
        assert words in str(finetune_data(DATA, small, tmp_path / select, console=Quiet()))
