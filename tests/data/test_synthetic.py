"""Phantoms: what is planted is there, in the strength set; what is off is off to the last bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from xvision.data.anatomy import Anatomy, chests
from xvision.data.manifest import load_data
from xvision.data.synthetic import (
    GROUPS,
    Phantoms,
    PhantomSettings,
    carriers,
    generate,
    marker_box,
    phantom_dataset,
    write_phantoms,
)
from xvision.errors import ConfigError, DataError
from xvision.models.protocols import InputSpec

PLAIN = PhantomSettings(600, seed=4)


@pytest.fixture(scope="module")
def plain() -> Phantoms:
    return generate(PLAIN)


def without_box(pixels: np.ndarray) -> np.ndarray:
    left, top, right, bottom = marker_box(pixels.shape[-1])
    blanked = pixels.copy()
    blanked[..., top:bottom, left:right] = 0
    return blanked


def test_shapes_and_values(plain: Phantoms) -> None:
    assert plain.pixels.shape == (600, 1, 64, 64)
    assert plain.pixels.dtype == np.float32
    assert 0.0 <= plain.pixels.min() < 0.05 < 0.9 < plain.pixels.max() <= 1.0
    assert set(np.unique(plain.pixels)) <= set((np.arange(256) / np.float32(255)).astype(np.float32))
    assert plain.masks.dtype == bool
    lesion = (plain.table["label"] == "lesion").to_numpy()
    np.testing.assert_array_equal(plain.masks.any(axis=(1, 2)), lesion)
    np.testing.assert_array_equal(plain.table["mask"] != "", lesion)
    sizes = plain.masks[lesion].sum(axis=(1, 2))
    assert sizes.min() > 15
    assert sizes.max() < 200


def test_the_same_seed_gives_the_same_bytes_and_another_another(plain: Phantoms) -> None:
    again = generate(PLAIN)
    assert again.pixels.tobytes() == plain.pixels.tobytes()
    assert again.masks.tobytes() == plain.masks.tobytes()
    pd.testing.assert_frame_equal(again.table, plain.table)
    other = generate(replace(PLAIN, seed=5))
    assert (other.pixels != plain.pixels).any(axis=(1, 2, 3)).all()
    assert not other.table.equals(plain.table)


def test_patients_have_one_to_three_images_one_split_and_one_of_everything_else(plain: Phantoms) -> None:
    patients = plain.table.groupby("patient")
    assert set(patients.size()) == {1, 2, 3}
    assert (patients[["split", "label", "sex", "age_band", "site", "scanner"]].nunique() == 1).all(axis=None)
    shares = patients["split"].first().value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx({"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.005)
    single = generate(PhantomSettings(50, visits=1)).table
    assert single["patient"].is_unique


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 1000), train=st.floats(0, 1), part=st.floats(0, 1))
def test_splits_are_of_whole_patients_whatever_the_fractions(n: int, seed: int, train: float, part: float) -> None:
    fractions = (train, (1 - train) * part, 1 - train - (1 - train) * part)
    table = generate(PhantomSettings(n, seed=seed, size=32, fractions=fractions)).table
    assert len(table) == n
    assert (table.groupby("patient")["split"].nunique() == 1).all()


def test_columns_without_effect_are_independent_of_the_label() -> None:
    table = generate(PhantomSettings(6000, size=32)).table.drop_duplicates("patient")
    lesion = table["label"] == "lesion"
    assert lesion.mean() == pytest.approx(0.5, abs=0.04)
    for column in GROUPS:
        rates = lesion.groupby(table[column]).mean()
        assert rates.max() - rates.min() < 0.08
        assert table[column].value_counts(normalize=True).min() > 0.8 / table[column].nunique()


def test_the_marker_is_where_the_site_is_and_follows_the_label_as_set() -> None:
    strength = 0.6
    phantoms = generate(PhantomSettings(6000, size=32, shortcut=strength))
    left, top, right, bottom = marker_box(32)
    bright = phantoms.pixels[:, 0, top:bottom, left:right].max(axis=(1, 2)) > 0.8
    np.testing.assert_array_equal(bright, phantoms.table["site"] == "B")
    patients = phantoms.table.drop_duplicates("patient")
    for split, expected in (("train", strength), ("validation", strength), ("test", 0.0)):
        part = patients[patients["split"] == split]
        phi = np.corrcoef(part["site"] == "B", part["label"] == "lesion")[0, 1]
        assert phi == pytest.approx(expected, abs=4 / np.sqrt(len(part)))


def test_the_shortcut_changes_nothing_but_marker_and_site(plain: Phantoms) -> None:
    marked = generate(replace(PLAIN, shortcut=0.8))
    np.testing.assert_array_equal(without_box(marked.pixels), without_box(plain.pixels))
    np.testing.assert_array_equal(marked.masks, plain.masks)
    pd.testing.assert_frame_equal(marked.table.drop(columns="site"), plain.table.drop(columns="site"))
    test = plain.table["split"] == "test"
    assert (marked.table["site"] == plain.table["site"])[test].all()
    assert (marked.table["site"] != plain.table["site"]).any()
    unmarked = (marked.table["site"] == "A").to_numpy()
    np.testing.assert_array_equal(marked.pixels[unmarked], plain.pixels[unmarked])
    assert (marked.pixels[~unmarked] != plain.pixels[~unmarked]).any(axis=(1, 2, 3)).all()


def test_the_contrast_gap_changes_lesions_of_women_and_nothing_else(plain: Phantoms) -> None:
    gapped = generate(replace(PLAIN, contrast_gap=0.45))
    pd.testing.assert_frame_equal(gapped.table, plain.table)
    np.testing.assert_array_equal(gapped.masks, plain.masks)
    changed = gapped.pixels[:, 0] != plain.pixels[:, 0]
    women = (plain.table["sex"] == "F").to_numpy()
    assert not changed[~plain.masks].any()
    assert not changed[~women].any()
    assert changed[women & plain.masks.any(axis=(1, 2))].any(axis=(1, 2)).all()


def test_the_contrast_gap_has_the_size_that_was_set(plain: Phantoms) -> None:
    bare = generate(replace(PLAIN, contrast=0.0))
    assert not bare.masks.any()
    women = (plain.table["sex"] == "F").to_numpy()
    full = plain.pixels[:, 0] - bare.pixels[:, 0]
    for gap in (0.3, 1.0):
        lesion = generate(replace(PLAIN, contrast_gap=gap)).pixels[:, 0] - bare.pixels[:, 0]
        inside = plain.masks & women[:, None, None]
        # Gamma makes the loss in pixels a little different from the loss in attenuation.
        assert 1 - lesion[inside].mean() / full[inside].mean() == pytest.approx(gap, abs=0.03)
        inside = plain.masks & ~women[:, None, None]
        np.testing.assert_array_equal(lesion[inside], full[inside])


def test_label_noise_flips_training_labels_only(plain: Phantoms) -> None:
    noisy = generate(replace(PLAIN, label_noise=0.2))
    np.testing.assert_array_equal(noisy.pixels, plain.pixels)
    np.testing.assert_array_equal(noisy.masks, plain.masks)
    flipped = noisy.table["label"] != plain.table["label"]
    train = plain.table["split"] == "train"
    assert not flipped[~train].any()
    assert flipped[train].mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / train.sum()))
    pd.testing.assert_frame_equal(noisy.table.drop(columns="label"), plain.table.drop(columns="label"))


def test_the_hidden_device_is_in_the_images_of_its_carriers_alone_and_in_no_column(plain: Phantoms) -> None:
    chosen = replace(PLAIN, hidden=0.3)
    hidden, carried = generate(chosen), carriers(chosen)
    pd.testing.assert_frame_equal(hidden.table, plain.table)
    np.testing.assert_array_equal(hidden.masks, plain.masks)
    changed = hidden.pixels[:, 0] != plain.pixels[:, 0]
    assert not changed[~carried].any()
    bright = (changed & (hidden.pixels[:, 0] > 0.75)).sum(axis=(1, 2))
    assert bright[carried].min() > 20
    assert (pd.Series(carried).groupby(plain.table["patient"].to_numpy()).nunique() == 1).all()
    assert not carriers(PLAIN).any()
    assert carriers(replace(PLAIN, hidden=1.0)).all()


def test_the_hidden_device_goes_with_nothing() -> None:
    chosen = PhantomSettings(6000, size=32, hidden=0.25)
    table = generate(replace(chosen, hidden=0.0)).table
    table["carried"] = carriers(chosen)
    patients = table.drop_duplicates("patient")
    assert patients["carried"].mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.1875 / len(patients)))
    for column in ("label", "split", *GROUPS):
        shares = patients.groupby(column)["carried"].agg(["mean", "size"])
        assert ((shares["mean"] - 0.25).abs() < 4 * np.sqrt(0.1875 / shares["size"])).all(), column


def test_lesions_keep_a_fifth_of_their_contrast_beside_the_device(plain: Phantoms) -> None:
    wired = generate(replace(PLAIN, hidden=1.0)).pixels[:, 0]
    bare, alone = (generate(replace(PLAIN, contrast=0.0, hidden=share)).pixels[:, 0] for share in (0.0, 1.0))
    free = plain.masks & (np.abs(bare - alone) < 0.5 / 255)
    kept = (wired - alone)[free].mean() / (plain.pixels[:, 0] - bare)[free].mean()
    assert kept == pytest.approx(0.2, abs=0.02)


def test_the_site_shift_changes_the_images_of_one_site_of_the_test_split_as_stated(plain: Phantoms) -> None:
    shifted = generate(replace(PLAIN, site_shift=1.0))
    pd.testing.assert_frame_equal(shifted.table, plain.table)
    np.testing.assert_array_equal(shifted.masks, plain.masks)
    elsewhere = ((plain.table["split"] == "test") & (plain.table["site"] == "B")).to_numpy()
    np.testing.assert_array_equal(shifted.pixels[~elsewhere], plain.pixels[~elsewhere])
    before, after = plain.pixels[elsewhere], shifted.pixels[elsewhere]
    told = after - 0.5 * before**1.8
    bright = before > 0.7
    assert told[bright].mean() == pytest.approx(0.0, abs=0.002)
    assert told[bright].std() == pytest.approx(0.06, abs=0.002)


def test_flaws_do_not_meddle_with_each_other() -> None:
    marked, noisy = replace(PLAIN, shortcut=0.8), replace(PLAIN, label_noise=0.2)
    both = generate(replace(PLAIN, shortcut=0.8, label_noise=0.2))
    np.testing.assert_array_equal(both.pixels, generate(marked).pixels)
    assert (both.table["site"] == generate(marked).table["site"]).all()
    assert (both.table["label"] == generate(noisy).table["label"]).all()
    told = carriers(replace(PLAIN, hidden=0.4))
    np.testing.assert_array_equal(carriers(replace(PLAIN, hidden=0.4, shortcut=0.8, contrast_gap=0.5)), told)


def test_lesions_lie_in_the_lungs() -> None:
    phantoms = generate(PhantomSettings(2000, seed=1))
    covered = phantoms.masks[phantoms.masks.any(axis=(1, 2))].mean(axis=0)
    rows, columns = np.nonzero(covered > 0)
    assert covered[:8].max() == covered[46:].max() == 0.0
    assert (rows.min(), rows.max()) == pytest.approx((11, 43), abs=4)
    assert covered[:, 30:34].max() < 0.01
    assert (covered[:, :32].sum(), covered[:, 32:].sum()) == pytest.approx((covered.sum() / 2,) * 2, rel=0.15)
    assert columns.min() > 4


def test_lungs_are_dark_and_air_is_black() -> None:
    ones = np.ones(1, dtype=np.float32)
    average = Anatomy(0 * ones, 0 * ones, ones, ones, ones, ones, ones, 0 * ones, ones)
    image = chests(average, np.zeros((1, 12, 12), dtype=np.float32), 64)[0]
    assert image[:6, :10].max() == 0.0
    left_lung, mediastinum, abdomen = image[20:40, 12:22].mean(), image[20:60, 31:33].mean(), image[55:, 20:44].mean()
    assert left_lung < 0.35 < 0.55 < abdomen < mediastinum
    big = chests(average, np.zeros((1, 12, 12), dtype=np.float32), 128)[0]
    np.testing.assert_allclose(big.reshape(64, 2, 64, 2).mean(axis=(1, 3)), image, atol=0.03)


def test_the_lesion_is_hard_but_not_impossible_for_a_linear_model() -> None:
    phantoms = generate(PhantomSettings(2500, size=32))
    flat = phantoms.pixels.reshape(2500, -1)
    flat = (flat - flat.mean(axis=0)) / (flat.std(axis=0) + 1e-3)
    labels, train = phantoms.table["label"] == "lesion", phantoms.table["split"] == "train"
    model = LogisticRegression(C=1e-3).fit(flat[train], labels[train])
    assert 0.75 < roc_auc_score(labels[~train], model.decision_function(flat[~train])) < 0.95


@pytest.mark.parametrize("spec", [InputSpec(1, 64, 64), InputSpec(3, 48, 40, "bicubic")])
def test_written_phantoms_load_as_they_were(tmp_path: Path, spec: InputSpec) -> None:
    chosen = PhantomSettings(40, seed=2, shortcut=0.5, contrast_gap=0.4, label_noise=0.1)
    memory = phantom_dataset(chosen)
    folder = write_phantoms(chosen, tmp_path / "new" / "phantoms")
    loaded = load_data(folder, groups=GROUPS)
    assert list((tmp_path / "new").iterdir()) == [folder]
    pd.testing.assert_frame_equal(loaded.table, memory.table)
    assert loaded.groups == memory.groups
    np.testing.assert_array_equal(loaded.pixels(loaded.ids, spec), memory.pixels(memory.ids, spec))
    marked = memory.has_mask.index[memory.has_mask].tolist()
    np.testing.assert_array_equal(loaded.masks(marked, spec), memory.masks(marked, spec))


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    with pytest.raises(DataError, match="used exists and is not empty: choose another folder"):
        write_phantoms(PhantomSettings(2), tmp_path / "used")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="exists and is not empty"):
        write_phantoms(PhantomSettings(2), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert (write_phantoms(PhantomSettings(2), tmp_path / "empty") / "manifest.csv").is_file()


def test_a_kill_leaves_no_half_written_folder(tmp_path: Path) -> None:
    script = (
        "import os, pandas; from xvision.data import synthetic; "
        "pandas.DataFrame.to_csv = lambda *arguments: os._exit(9); "
        f"synthetic.write_phantoms(synthetic.PhantomSettings(3), {str(tmp_path / 'phantoms')!r})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not (tmp_path / "phantoms").exists()
    assert write_phantoms(PhantomSettings(3), tmp_path / "phantoms").is_dir()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "n is 0 but must be at least 1"),
        ({"seed": -1}, "seed is -1 but must be at least 0"),
        ({"size": 16}, "size is 16 but must be at least 32"),
        ({"visits": 0}, "visits is 0 but must be at least 1"),
        ({"shortcut": 1.5}, "shortcut is 1.5 but must lie between 0 and 1"),
        ({"contrast_gap": -0.1}, "contrast_gap is -0.1 but must lie"),
        ({"label_noise": float("nan")}, "label_noise is nan but must lie"),
        ({"hidden": 1.1}, "hidden is 1.1 but must lie"),
        ({"site_shift": -1.0}, "site_shift is -1.0 but must lie"),
        ({"fractions": (0.5, 0.2, 0.2)}, "must not be negative and must add up to 1"),
        ({"fractions": (1.5, -0.5, 0.0)}, "must not be negative"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhantomSettings(**wrong)
