"""What an audit knows of cases beside the audited ones: other splits, the place the model comes from, images from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import xvision
from xvision.audit import Audit, Outside, apart
from xvision.config import load_plan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_outside
from xvision.engine import Engine
from xvision.errors import ConfigError
from xvision.methods.decision import Decision


@pytest.fixture
def audit(phantoms: Path, checkpoint: Path) -> Audit:
    data = xvision.load_data(phantoms, groups=["sex", "site"])
    model = xvision.load_model(checkpoint, device="cpu")
    return Audit(model, data, Decision(1, 0.5, True), 0, Engine(part=16), ("sex",), ("site",))


def test_another_split_is_the_same_model_on_other_cases(audit: Audit) -> None:
    tuning = audit.tuning
    assert tuning is not None
    assert set(tuning.data.table["split"]) == {"validation"}
    assert not set(tuning.ids) & set(audit.ids)
    assert tuning.decision == audit.decision
    whole = replace(audit, everything=replace(audit.everything, table=audit.everything.table.assign(split="all")))
    place = {name: row for row, name in enumerate(whole.ids)}
    rows = [place[name] for name in tuning.ids]
    np.testing.assert_allclose(tuning.predictions.logits, whole.predictions.logits[rows], atol=1e-5)
    np.testing.assert_allclose(tuning.embeddings, whole.embeddings[rows], atol=1e-4)
    assert audit.tuning is tuning  # computed once
    assert audit.on_split("nowhere") is None


def test_the_reference_is_the_named_data_else_a_split(audit: Audit) -> None:
    assert audit.reference is audit.tuning
    table = audit.everything.table
    trained = replace(audit.everything, table=table[table["split"] != "validation"])
    without = replace(audit, everything=trained, shared={})
    assert without.reference is not None
    assert without.reference.called == "the split 'train'"
    named = replace(audit, outside=Outside(reference=audit.everything.split("train")), shared={})
    assert named.reference is not None
    assert named.reference.called == "the reference data"
    alone = replace(audit, everything=audit.everything.split("test"), shared={})
    assert alone.reference is None
    untested = replace(audit, everything=replace(audit.everything, table=table[table["split"] != "test"]), shared={})
    assert untested.reference is None  # everything is audited


def test_images_without_labels_can_be_shown_to_the_model(audit: Audit, phantoms: Path, tmp_path: Path) -> None:
    shown = replace(audit, outside=Outside(far={"odd": _unlabelled(phantoms, tmp_path)}))
    odd = shown.far["odd"]
    assert not odd.labelled
    assert audit.labelled
    assert odd.predictions.probabilities.shape == (5, 2)
    assert odd.groups == ()


def test_sets_from_elsewhere_are_named_apart_from_the_model_and_the_data(audit: Audit) -> None:
    train = audit.everything.split("train")
    found = Outside(reference=train, near={"model": train}, far={"data": train}).fingerprints
    assert found == dict.fromkeys(("far data", "near model", "reference"), train.fingerprint)


def _unlabelled(phantoms: Path, folder: Path) -> AuditDataset:
    images = sorted(phantoms.rglob("*.png"))[:5]
    for image in images:
        (folder / image.name).write_bytes(image.read_bytes())
    (folder / "manifest.csv").write_text("image\n" + "\n".join(image.name for image in images))
    return load_outside(str(folder))


def test_a_plan_names_images_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        '[data]\npath = "d"\nmodality = "xray"\n[model]\npath = "m"\n[shift]\nreference = "../a"\n[shift.near]\nlateral = "n"\n'
    )
    plan = load_plan(tmp_path / "plan.toml")
    assert plan.data.modality == "xray"
    assert plan.shift.reference == str(tmp_path / "../a")
    assert plan.shift.near == {"lateral": str(tmp_path / "n")}
    (tmp_path / "plan.toml").write_text(
        '[data]\npath = "d"\n[model]\npath = "m"\n[shift.near]\nx = "n"\n[shift.far]\nx = "f"\n'
    )
    with pytest.raises(ConfigError, match="one name"):
        load_plan(tmp_path / "plan.toml")


def test_no_two_columns_share_a_key() -> None:
    columns = ("sex", "class", "group class", "group group class", "group sex")
    keys = [apart(column, "class", "against") for column in columns]
    assert keys == ["sex", "group class", "group group class", "group group group class", "group sex"]
