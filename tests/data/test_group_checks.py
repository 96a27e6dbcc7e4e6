"""What is wrong with group columns is said before the audit, by name and number, and reaches the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import xvision
from tests.data.test_preflight import PHANTOMS, Planted, changed, faults, named
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.data.preflight import preflight
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.result import Check

MANY = phantom_dataset(PhantomSettings(1500, size=32, visits=1, fractions=(0.1, 0.1, 0.8)))


def checked(data: AuditDataset, acquisition: Sequence[str] = ("site", "scanner")) -> tuple[Check, ...]:
    return preflight(Planted(), data, sample=4, acquisition=acquisition)


def test_sound_columns() -> None:
    check = named(checked(PHANTOMS), "groups")
    assert check.status == "ok"
    assert check.sentence == "4 group columns looked at: sex, age_band, site, scanner."
    assert "groups" not in [check.name for check in checked(replace(PHANTOMS, groups=()))]


def test_a_patient_with_two_sexes_is_named_and_one_at_two_sites_is_not() -> None:
    patients = PHANTOMS.table["patient"]
    several = patients[patients.duplicated()].iloc[0]
    first = patients.index[patients == several][0]
    table = PHANTOMS.table.copy()
    for column, value in (("sex", {"F": "M", "M": "F"}), ("site", {"A": "B", "B": "A"})):
        table.loc[first, column] = value[table.loc[first, column]]
    checks = checked(replace(PHANTOMS, table=table))
    check = named(checks, "patients_in_two_groups")
    assert faults(checks) == {"patients_in_two_groups": "warning"}
    assert check.evidence == (f"{several}: sex F and M",)
    assert "Images of the same patient disagree about sex (1 patient)" in check.sentence
    assert "intervals, which are by patient, stay valid" in check.sentence
    both = named(checked(replace(PHANTOMS, table=table), ()), "patients_in_two_groups")
    assert f"{several}: site A and B" in both.evidence
    table.loc[first, ["sex", "site"]] = "unknown"
    assert faults(checked(replace(PHANTOMS, table=table), ())) == {}


def test_a_thousand_levels() -> None:
    levels = [f"ward {number % 1000}" for number in range(len(MANY))]
    checks = checked(replace(MANY, table=MANY.table.assign(sex=levels)))
    assert faults(checks) == {"many_levels": "warning"}
    check = named(checks, "many_levels")
    audited = len({level for level, split in zip(levels, MANY.table["split"], strict=True) if split == "test"})
    assert check.evidence == (f"sex: {audited} of {audited} levels",)
    assert "fewer than 10 audited patients cannot be compared" in check.sentence


def test_a_column_of_one_level() -> None:
    checks = checked(changed("sex", ["F", *["unknown"] * (len(PHANTOMS) - 2), "F"]))
    assert named(checks, "one_level").evidence[0].startswith("sex: ")
    assert faults(checked(changed("sex", "F"))) == {"one_level": "warning"}
    assert named(checked(changed("sex", "F")), "one_level").evidence == ("sex: F is all that is known",)
    assert named(checked(changed("sex", "unknown")), "one_level").evidence == ("sex: nothing is all that is known",)


def test_a_column_that_is_the_label() -> None:
    told = {"normal": "ward 1", "lesion": "ward 2"}
    same = MANY.table["label"].map(told)
    check = named(checked(replace(MANY, table=MANY.table.assign(site=same))), "column_tells_label")
    assert check.status == "warning"
    cases = len(MANY.audited)
    assert check.evidence == (f"site: the commonest label of the level is that of {cases} of {cases} cases",)
    rng = np.random.default_rng(0)
    for share, warned in ((0.005, True), (0.05, False)):
        other = same.mask(rng.random(len(same)) < share, "ward 1")
        found = faults(checked(replace(MANY, table=MANY.table.assign(site=other))))
        assert ("column_tells_label" in found) == warned
    one_each = MANY.table.assign(site=MANY.table.index)
    assert "column_tells_label" not in faults(checked(replace(MANY, table=one_each)))


def test_bands_that_nobody_named_and_missing_labels_and_groups(tmp_path: Path, phantoms: Path) -> None:
    table = pd.read_csv(phantoms / "manifest.csv", dtype=str, keep_default_na=False)
    rng = np.random.default_rng(1)
    table["age"] = [f"{age:03d}Y" for age in rng.integers(20, 90, len(table))]
    women = table.index[table["sex"] == "F"]
    table.loc[women[:3], "label"] = ""
    table.loc[women[3:6], "sex"] = ""
    table.drop(columns="mask").to_csv(tmp_path / "manifest.csv", index=False)
    lesion = rng.random(len(table))
    scores = pd.DataFrame({"id": table["id"], "prob:normal": 1 - lesion, "prob:lesion": lesion})
    scores.to_csv(tmp_path / "scores.csv", index=False)
    data = load_data(tmp_path, groups=["age", "sex"], images_required=False)
    run = xvision.run_audit(
        xvision.load_model(tmp_path / "scores.csv"), data, out=tmp_path / "run", only=["performance"], positive="lesion"
    )
    checks = {check.name: check for check in run.info.checks}
    bands = data.bands["age"]
    assert checks["bands"].evidence == (
        f"age = [{', '.join(f'{edge:g}' for edge in bands.edges)}] ({', '.join(bands.names)})",
    )
    assert "Name the edges beforehand under [data.bands], such as age = [40, 60]" in checks["bands"].sentence
    assert checks["missing_labels"].sentence.startswith(f"3 of {len(table)} cases have no label and were left out.")
    assert f"sex: F 3 of {len(women) - 3}" in checks["missing_labels"].evidence
    levels = {group.level: group.cases for group in run.info.composition if group.column == "age"}
    assert set(levels) <= set(bands.names)
    known = [group for group in run.info.composition if group.column == "sex"]
    audited = data.audited.table["sex"]
    assert {group.level: group.cases for group in known} == audited.value_counts().to_dict()
