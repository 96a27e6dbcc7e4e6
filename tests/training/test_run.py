"""From a plan to a checkpoint: what is trained, on whom it is tested, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import xvision
from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.errors import ConfigError, DataError, ModelError
from xvision.models.evidence import read_evaluation
from xvision.recipe import BackbonePlan, RehearsalPlan, TrainingPlan
from xvision.training.run import finetune_data

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
    return replace(base, **changes)  # type: ignore[arg-type]  # fields of a plan by name


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
