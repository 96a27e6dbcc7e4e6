"""Numbers as groups: the edges named are kept, edges nobody named are said to be chosen, and the names sort."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvision.config import load_plan
from xvision.data.bands import Bands, banded
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.data.plan_data import load_plan_data
from xvision.data.unlabelled import load_unlabelled
from xvision.errors import ConfigError, DataError


def loaded(tmp_path: Path, ages: Sequence[object], **options: object) -> AuditDataset:
    rows = "".join(f"{number},{number},x,{age}\n" for number, age in enumerate(ages))
    (tmp_path / "manifest.csv").write_text(f"id,image,label,age\n{rows}", encoding="utf-8")
    return load_data(tmp_path, groups=["age"], images_required=False, **options)


@pytest.mark.parametrize("spelling", ["{}", "{}Y", "{:03d}Y", "{:03d}y", "{}.0"])
def test_ages_between_the_edges_that_were_named(tmp_path: Path, spelling: str) -> None:
    ages = [0, 39, 40, 59, 60, 101]
    data = loaded(tmp_path, [*(spelling.format(age) for age in ages), "", "unknown"], bands={"age": [40, 60]})
    expected = ["0-39", "0-39", "40-59", "40-59", "60+", "60+", "unknown", "unknown"]
    assert data.table["age"].tolist() == expected
    assert data.bands == {"age": Bands((40.0, 60.0), True, ("0-39", "40-59", "60+"))}
    assert data.table["age as given"].tolist()[0] == spelling.format(0)
    assert data.groups == ("age",)


def test_dicom_ages_in_days_weeks_and_months_are_years(tmp_path: Path) -> None:
    data = loaded(tmp_path, ["011M", "012M", "051W", "053W", "364D", "366D", "018Y"], bands={"age": [1, 18]})
    assert data.table["age"].tolist() == ["0", "1-17", "0", "1-17", "0", "1-17", "18+"]


def test_many_numbers_without_edges_are_divided_at_their_quartiles(tmp_path: Path) -> None:
    ages = np.random.default_rng(0).permutation(np.arange(20, 84))
    data = loaded(tmp_path, ages.tolist())
    edges = data.bands["age"].edges
    assert not data.bands["age"].declared
    np.testing.assert_allclose(edges, np.quantile(ages, [0.25, 0.5, 0.75]), atol=0.5)
    counts = data.table["age"].value_counts()
    assert counts.min() >= 15
    assert sorted(counts.index) == list(data.bands["age"].names)
    codes = pd.cut(ages, [-np.inf, *edges, np.inf], right=False, labels=False)
    assert data.table["age"].tolist() == [data.bands["age"].names[code] for code in codes]


def test_a_few_numbers_are_codes_and_words_stay_words(tmp_path: Path) -> None:
    twelve = loaded(tmp_path, range(12))
    assert (twelve.table["age"].nunique(), twelve.bands) == (12, {})
    assert loaded(tmp_path, range(13)).table["age"].nunique() == 4
    assert loaded(tmp_path, [f"s{number}" for number in range(40)]).table["age"].nunique() == 40
    assert loaded(tmp_path, [*range(40), "old"]).table["age"].nunique() == 41


def test_almost_every_value_alike_leaves_no_empty_band(tmp_path: Path) -> None:
    skewed = loaded(tmp_path, [1] * 200 + list(range(2, 16)))
    assert set(skewed.table["age"]) == set(skewed.bands["age"].names)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8, unique=True).map(sorted),
    st.lists(st.integers(-50, 150) | st.floats(-1e3, 1e3), min_size=1, max_size=30),
)
def test_names_sort_as_the_numbers_do(edges: list[float], numbers: list[float]) -> None:
    levels, bands = banded(pd.Series([str(number) for number in numbers], dtype="str", name="x"), "a.csv", edges)
    assert bands is not None
    assert list(bands.names) == sorted(bands.names)
    order = np.argsort(numbers, kind="stable")
    told = [bands.names.index(levels.iloc[place]) for place in order]
    assert told == sorted(told)
    assert told == [sum(number >= edge for edge in edges) for number in np.asarray(numbers)[order]]


def test_what_makes_no_bands(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'age' of manifest.csv is to be banded but holds 'old', which is no number"):
        loaded(tmp_path, [40, "old"], bands={"age": [50]})
    with pytest.raises(ConfigError, match=r"data.bands names 'size', which is no group or acquisition column"):
        loaded(tmp_path, [40], bands={"size": [50]})
    for edges in ([], [60, 40], [40, 40], [float("nan")], list(range(9))):
        with pytest.raises(ConfigError, match=r"the edges of 'age' are .*: give 1 to 8 different numbers in ascending"):
            loaded(tmp_path, [40], bands={"age": edges})


def test_bands_of_a_plan_hold_for_unlabelled_images_too(tmp_path: Path) -> None:
    loaded(tmp_path, [30, 50])
    (tmp_path / "plan.toml").write_text(
        '[data]\npath = "manifest.csv"\ngroups = ["age"]\nbands = { age = [40] }\n[model]\npath = "none.csv"\n', "utf-8"
    )
    plan = load_plan(tmp_path / "plan.toml")
    data = load_plan_data(plan.data, images_required=False)
    assert data.table["age"].tolist() == ["0-39", "40+"]
    (tmp_path / "new.csv").write_text("image,age\nmanifest.csv,39\n", encoding="utf-8")
    waiting = load_unlabelled(tmp_path / "new.csv", groups=["age"], bands=plan.data.bands)
    assert waiting.table["age"].tolist() == ["0-39"]
    (tmp_path / "plan.toml").write_text(
        '[data]\npath = "manifest.csv"\ngroups = ["age"]\nbands = { age = [60, 40] }\n[model]\npath = "x"\n', "utf-8"
    )
    with pytest.raises(ConfigError, match="the edges of 'age' are"):
        load_plan(tmp_path / "plan.toml")


def test_other_edges_are_other_data(tmp_path: Path) -> None:
    prints = [loaded(tmp_path, [30, 50], bands={"age": edges}).fingerprint for edges in ([40], [45], [20, 40], [40])]
    assert len(set(prints)) == 3
    assert prints[0] == prints[3]


def test_bands_of_unequal_digits_still_sort(tmp_path: Path) -> None:
    data = loaded(tmp_path, [2, 5, 17, 18, 64, 65], bands={"age": [5, 18, 65]})
    assert data.table["age"].tolist() == ["00-04", "05-17", "05-17", "18-64", "18-64", "65+"]
