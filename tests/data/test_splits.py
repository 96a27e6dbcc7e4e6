"""Splits made for the user: whole patients, the shares asked for, alike in the columns named, whatever the row order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from xvision.config import DataPlan, SplitPlan
from xvision.data.dataset import AuditDataset
from xvision.data.plan_data import load_plan_data
from xvision.data.sources import ArraySource
from xvision.data.splits import Problem, cost, divide, make_splits
from xvision.errors import ConfigError, DataError

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


def made(patients: Sequence[object], labels: Sequence[str], **columns: Sequence[str]) -> AuditDataset:
    groups = {name: list(values) for name, values in columns.items() if name != "split"}
    table = pd.DataFrame(
        {
            "label": list(labels),
            "patient": [f"p{patient}" for patient in patients],
            "split": list(columns.get("split", ["all"] * len(labels))),
            **groups,
        },
        index=pd.Index([f"i{row}" for row in range(len(labels))], name="id", dtype="str"),
        dtype="str",
    )
    return AuditDataset(table, tuple(groups), ArraySource((), np.zeros((0, 1, 2, 2), np.float32)))


def drawn(seed: int, patients: int, visits: int, *, mixed: bool = False, rare: float = 0.3) -> AuditDataset:
    """Random patients with up to ``visits`` images; mixed: the label changes within a patient."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), rng.integers(1, visits + 1, patients))
    sick = rng.random(len(owner) if mixed else patients) < rare
    sick = sick if mixed else sick[owner]
    return made(
        owner, np.where(sick, "sick", "well"), site=[f"s{site}" for site in rng.integers(0, 3, patients)[owner]]
    )


def imbalance(data: AuditDataset, split: np.ndarray) -> float:
    """Largest distance of a split's share of the cases, or of its share of a label, from what it ought to be."""
    labels = data.table["label"].to_numpy(dtype=str)
    sizes = [abs((split == name).mean() - share) for name, share in SHARES.items()]
    mixes = [
        abs((labels[split == name] == label).mean() - (labels == label).mean())
        for name in SHARES
        for label in np.unique(labels)
    ]
    return float(max(sizes + mixes))


def test_ten_equal_patients_of_each_class_are_divided_exactly() -> None:
    data = made([*range(20)], ["sick", "well"] * 10)
    counts = make_splits(data, SplitPlan()).table.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        ("train", "sick"): 6, ("train", "well"): 6, ("validation", "sick"): 2, ("validation", "well"): 2,
        ("test", "sick"): 2, ("test", "well"): 2,
    }  # fmt: skip
    shares = SplitPlan(train=0.5, validation=0.1, test=0.4)
    assert make_splits(data, shares).table["split"].value_counts().to_dict() == {
        "train": 10,
        "validation": 2,
        "test": 8,
    }


def test_the_seed_decides_and_nothing_else_of_the_data_changes() -> None:
    data = drawn(1, 60, 3)
    first, again, other = (make_splits(data, SplitPlan(seed=seed)) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(first.table, again.table)
    assert (first.table["split"] != other.table["split"]).any()
    pd.testing.assert_frame_equal(first.table.drop(columns="split"), data.table.drop(columns="split"))
    assert first.source is data.source


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**16), patients=st.integers(15, 60), visits=st.integers(1, 4), mixed=st.booleans())
def test_patients_stay_together_and_shares_hold_whatever_the_order(
    seed: int, patients: int, visits: int, mixed: bool
) -> None:
    data = drawn(seed, patients, visits, mixed=mixed, rare=0.4)
    plan = SplitPlan(seed=seed, stratify=("label", "site"))
    holders = data.table.groupby("label")["patient"].nunique()
    if len(holders) == 2 and holders.min() < 3:
        with pytest.raises(DataError, match="too few for 3 splits"):
            make_splits(data, plan)
        return
    divided = make_splits(data, plan)
    table = divided.table
    assert (table.groupby("patient")["split"].nunique() == 1).all()
    assert set(table["split"]) == set(SHARES)
    largest = table.groupby("patient").size().max()
    for name, share in SHARES.items():
        assert abs((table["split"] == name).sum() - share * len(table)) <= 2 * largest
        assert set(table.loc[table["split"] == name, "label"]) == set(holders.index)
    shuffled = data.subset(list(np.random.default_rng(seed).permutation(data.ids)))
    pd.testing.assert_series_equal(make_splits(shuffled, plan).table["split"].loc[list(data.ids)], table["split"])


def test_as_good_as_the_best_of_all_divisions_of_few_patients() -> None:
    ratios = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        added = rng.integers(0, 4, (7, 3)).astype(float)
        added[:, 0] += 1
        problem = Problem(added, np.outer(list(SHARES.values()), added.sum(axis=0)), np.zeros(3, dtype=bool))
        best = min(cost(problem, np.array(place)) for place in itertools.product(range(3), repeat=7))
        ratios.append(cost(problem, divide(problem, rng)) / best)
    assert np.median(ratios) == pytest.approx(1.0)
    assert max(ratios) < 1.5


def test_cost_in_closed_form() -> None:
    added = np.array([[1.0, 1.0], [1.0, 0.0], [2.0, 1.0]])
    problem = Problem(added, np.outer([0.5, 0.25, 0.25], [4.0, 2.0]), np.array([False, False]))
    # got: (1, 1), (1, 0), (2, 1); due: (2, 1), (1, 0.5), (1, 0.5)
    assert cost(problem, np.array([0, 1, 2])) == pytest.approx(1 / 2 + 0.25 / 0.5 + 1 + 0.25 / 0.5)
    assert cost(problem._replace(everywhere=np.array([True, True])), np.array([0, 1, 2])) > 1e8


@pytest.mark.parametrize(
    ("patients", "visits", "mixed", "rare"), [(60, 4, False, 0.5), (80, 6, True, 0.2), (120, 8, False, 0.1)]
)
def test_better_balanced_than_the_folds_of_scikit_learn(patients: int, visits: int, mixed: bool, rare: float) -> None:
    ours, theirs = [], []
    for seed in range(5):
        data = drawn(seed, patients, visits, mixed=mixed, rare=rare)
        ours.append(imbalance(data, make_splits(data, SplitPlan(seed=seed)).table["split"].to_numpy(dtype=str)))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        split = np.full(
            len(data), "validation", dtype="U10"
        )  # of five folds three are for training, one each for the rest
        parts = [part for _, part in folds.split(data.table, data.table["label"], data.table["patient"])]
        split[np.concatenate(parts[:3])], split[parts[3]] = "train", "test"
        theirs.append(imbalance(data, split))
    assert np.mean(ours) <= np.mean(theirs)
    assert max(ours) < 0.05


def test_columns_named_are_alike_in_every_split_and_together() -> None:
    data = drawn(5, 240, 2)
    table = make_splits(data, SplitPlan(stratify=("label", "site"))).table
    whole = table.groupby(["label", "site"]).size() / len(table)
    for name in SHARES:
        part = table[table["split"] == name]
        shares = part.groupby(["label", "site"]).size() / len(part)
        assert (shares - whole).abs().max() < 0.01
    loose = make_splits(data, SplitPlan(stratify=())).table
    gaps = loose.groupby("split")["label"].value_counts(normalize=True).unstack().std()
    assert gaps.max() > table.groupby("split")["label"].value_counts(normalize=True).unstack().std().max()


def test_findings_are_alike_and_each_is_in_every_split() -> None:
    rng = np.random.default_rng(0)
    held = rng.random((150, 4)) < [0.5, 0.3, 0.1, 0.04]
    cells = ["|".join(np.array(["a", "b", "c", "d"])[row]) for row in held]
    data = replace(made([*range(150)], cells), multilabel=True)
    divided = make_splits(data, SplitPlan())
    for name, share in SHARES.items():
        part = divided.split(name)
        assert part.findings == ("a", "b", "c", "d")
        counts = part.label_matrix("abcd").sum(axis=0)
        assert (abs(counts - share * held.sum(axis=0)) <= 1.5).all()
    rare = replace(made([*range(9)], ["a", "", "a|b", "b", "a", "b", "", "c", "a"]), multilabel=True)
    with pytest.raises(DataError, match="'c' is the label of 1 patients, too few for 3 splits"):
        make_splits(rare, SplitPlan())


def test_levels_that_cannot_be_everywhere_are_divided_all_the_same() -> None:
    site = ["A"] * 28 + ["B", "B"]
    divided = make_splits(made([*range(30)], ["x", "y"] * 15, site=site), SplitPlan(stratify=("label", "site")))
    assert divided.table["split"].value_counts().to_dict() == {"train": 18, "validation": 6, "test": 6}


def test_one_patient_with_most_of_the_images() -> None:
    table = make_splits(made([0] * 50 + [*range(1, 21)], ["x", "y"] * 35), SplitPlan()).table
    assert table.groupby("patient")["split"].nunique().max() == 1
    assert set(table["split"]) == set(SHARES)
    assert set(table.loc[table["patient"] == "p0", "split"]) == {"train"}


def test_what_cannot_be_divided_is_said() -> None:
    with pytest.raises(
        DataError, match="The data has 2 patients, too few for 3 splits: add patients, or name the splits"
    ):
        make_splits(made([0, 0, 1, 1], ["x", "y", "x", "y"]), SplitPlan())
    rare = made([0, 1, 2, 3, 4, 4, 4], ["x", "x", "x", "x", "y", "y", "y"])
    with pytest.raises(DataError, match=r"'y' is the label of 1 patients, too few .* leave \"label\" out"):
        make_splits(rare, SplitPlan())
    assert len(make_splits(rare, SplitPlan(stratify=())).split("test"))
    with pytest.raises(ConfigError, match=r"stratify names 'sit', which is neither .* Did you mean 'site'\?"):
        make_splits(drawn(0, 20, 1), SplitPlan(stratify=("label", "sit")))


def test_classes_that_exclude_each_other_from_a_split_are_said() -> None:
    # Each of the seven lines of the Fano plane is a finding of three patients: with three splits, one line always lacks one.
    lines = ["012", "034", "056", "135", "146", "236", "245"]
    cells = ["|".join(f"f{place}" for place, line in enumerate(lines) if str(patient) in line) for patient in range(7)]
    with pytest.raises(
        DataError, match=r"No division was found in which 'f\d' is in every split; it is missing in .*seed"
    ):
        make_splits(replace(made([*range(7)], cells), multilabel=True), SplitPlan())


def test_splits_of_the_data_are_never_overwritten() -> None:
    data = made([*range(10)], ["x", "y"] * 5, split=["train"] * 7 + ["unknown"] * 3)
    with pytest.raises(ConfigError, match=r"brings its own splits \(train 7\) .* remove \[data.split\] from the plan"):
        make_splits(data, SplitPlan())
    unknown = made([*range(10)], ["x", "y"] * 5, split=["unknown"] * 10)
    assert set(make_splits(unknown, SplitPlan()).table["split"]) == set(SHARES)


def test_many_patients_take_little_time() -> None:
    data = drawn(0, 20_000, 3)
    split = make_splits(data, SplitPlan(stratify=("label", "site"))).table["split"].to_numpy(dtype=str)
    assert imbalance(data, split) < 1e-3


def written(folder: Path) -> DataPlan:
    rows = []
    for number in range(12):
        Image.new("L", (4, 4), 10 * number).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'a|b' if number % 2 else ''},p{number},{'FM'[number % 2]},s{number % 3}\n")
    (folder / "manifest.csv").write_text("image,finding,patient,sex,site\n" + "".join(rows))
    return DataPlan(str(folder), ("sex",), ("site", "sex"), {"label": "finding"}, multilabel=True)


def test_the_data_of_a_plan(tmp_path: Path) -> None:
    plan = written(tmp_path)
    data = load_plan_data(plan)
    assert data.groups == ("sex", "site")
    assert data.findings == ("a", "b")
    assert set(data.table["split"]) == {"all"}
    divided = load_plan_data(replace(plan, split=SplitPlan(stratify=("label", "site"))))
    assert divided.table["split"].value_counts().to_dict() == {"train": 6, "validation": 3, "test": 3}
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match=r"3\.png"):
        load_plan_data(plan)
    assert len(load_plan_data(plan, images_required=False)) == 12
