"""Planted leaks, copies, wrong labels and shortcuts are found and counted; clean data are left in peace."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d

from tests.analyses.reading import found, table
from tests.analyses.scored import scored
from xvision.analyses.data_quality import data_quality
from xvision.audit import Audit
from xvision.charts import Images
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.data.synthetic import PhantomSettings, generate
from xvision.errors import ConfigError
from xvision.methods.decision import Decision
from xvision.models.protocols import InputSpec
from xvision.result import Result

CLASSES = ("normal", "lesion")


class CornerReader:
    """Decides by the brightness of the lower right corner; its embedding is the image at 8 × 8 pixels."""

    access, task, classes, bounds = "black-box", "binary", CLASSES, (0.0, 1.0)
    input, device, fingerprint, description = (
        InputSpec(1, 64, 64),
        torch.device("cpu"),
        "corner",
        {"architecture": "Corner"},
    )

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        odds = 8 * (pixels[:, 0, -8:, -8:].mean(dim=(1, 2)) - 0.5)
        return torch.stack((torch.zeros_like(odds), odds), dim=1)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool2d(pixels, 8).flatten(1)


@dataclass
class Made:
    """Images whose corner tells the true label, and their table."""

    pixels: np.ndarray
    table: pd.DataFrame

    def of(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.table["split"] == split)

    def write(self, row: int, column: str, value: str) -> None:
        self.table.iloc[row, self.table.columns.get_loc(column)] = value

    def audit(self, order: np.ndarray | None = None) -> Audit:
        rows = np.arange(len(self.table)) if order is None else order
        table = self.table.iloc[rows]
        data = AuditDataset(table, ("sex", "site"), ArraySource(tuple(table.index), self.pixels[rows]))
        return Audit(
            CornerReader(), data, Decision(1, 0.5, True), 3, groups=("sex",), acquisition=("site",), task="data_quality"
        )


def made(count: int = 300) -> Made:
    phantoms = generate(PhantomSettings(n=count, seed=2))
    table = phantoms.table.drop(columns=["image", "mask"])
    rng = np.random.default_rng(0)
    pixels = phantoms.pixels.copy()
    bright = np.where(table["label"] == "lesion", 0.8, 0.2)[:, None, None]
    pixels[:, 0, -8:, -8:] = np.clip(bright + 0.1 * rng.standard_normal((count, 8, 8)), 0, 1)
    return Made(pixels, table)


def run(audit: Audit) -> Result:
    return data_quality(audit, permutations=49)


@pytest.fixture(scope="module")
def clean() -> Result:
    return run(made().audit())


@pytest.fixture(scope="module")
def planted() -> tuple[Made, Result]:
    """Test images: 0 is a train image's bytes, 1 a validation image as JPEG, 2 is 3 moved a pixel with the other label; 4 to 6
    have wrong labels; 7 is constant."""
    data = made()
    test, train, validation = data.of("test"), data.of("train"), data.of("validation")
    data.pixels[test[0]] = data.pixels[train[5]]
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * data.pixels[validation[9], 0]).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    data.pixels[test[1], 0] = np.asarray(Image.open(buffer), np.float32) / 255
    data.pixels[test[2]] = np.roll(data.pixels[test[3]], 1, axis=2)
    data.write(test[2], "label", "normal")
    data.write(test[3], "label", "lesion")
    for row in test[4:7]:
        data.write(row, "label", CLASSES[int(data.table["label"].iloc[row] == "normal")])
    data.pixels[test[7]] = 0.5
    for row in (0, 1):  # their labels stay right
        source = train[5] if row == 0 else validation[9]
        data.write(test[row], "label", data.table["label"].iloc[source])
    return data, run(data.audit())


def test_clean_data_are_left_in_peace(clean: Result) -> None:
    for by in ("any", "patient", "content", "hash", "embedding"):
        assert found(clean, "leaked_images", by=by).value == 0
        share = found(clean, "leaked_share", by=by)
        assert (share.value, share.low) == (0, 0)
        assert 0 < (share.high or 0) < 0.15
    for by in ("content", "hash", "embedding"):
        for among in ("same label", "other label"):
            assert found(clean, "repeated_images", by=by, among=among).value == 0
    for copy in ("jpeg", "shift_left"):
        assert found(clean, "copies_found", copy=copy).value == 1.0
    assert found(clean, "suspected_labels", by="scores").value == 0
    assert found(clean, "label_noise", by="scores").value == 0
    assert "No audited image was found in another split." in clean.summary
    assert not [case for case in clean.cases if "its likeness" in case.pictures]


def test_planted_copies_are_found_where_they_are(planted: tuple[Made, Result]) -> None:
    data, result = planted
    test = data.of("test")
    ids = data.table.index[test]
    assert found(result, "leaked_images", by="content").value == 1
    assert found(result, "leaked_images", by="hash").value == 2
    assert found(result, "leaked_images", by="any").value == 2
    assert found(result, "leaked_share", by="hash").value == pytest.approx(2 / (len(test) - 1))  # one is constant
    assert found(result, "repeated_images", by="hash", among="other label").value == 2
    rows = table(result, "Images that are nearly the same").rows
    pairs = {tuple(sorted(row[:2])) for row in rows if row[6] == "hash"}
    assert len(pairs) == sum(row[6] == "hash" for row in rows)
    names = data.table.index
    assert pairs == {
        tuple(sorted((ids[0], names[data.of("train")[5]]))),
        tuple(sorted((ids[1], names[data.of("validation")[9]]))),
        tuple(sorted((ids[2], ids[3]))),
    }
    assert "1 by same bytes, 2 by nearly the same image" in result.summary
    images = next(chart for chart in result.charts if isinstance(chart, Images) and "Pairs" in chart.title)
    assert {ids[0], ids[1]} <= set(images.cases)
    assert found(result, "faulty_images", fault="constant").value == 1
    assert table(result, "Images that show").rows == ((ids[7], "test", "constant"),)


def test_planted_wrong_labels_are_listed_first(planted: tuple[Made, Result]) -> None:
    data, result = planted
    wrong = set(data.table.index[data.of("test")[4:7]])
    ranked = result.tables["data_quality"]
    assert len(ranked) == len(data.of("test"))
    first = set(ranked["id"].head(4))
    assert len(wrong & first) == 3
    rows = {row[0]: row for row in table(result, "Labels to read again").rows}
    for name in wrong:
        assert {rows[name][1], rows[name][2]} == set(CLASSES)
    assert all(row[1] != row[2] for row in rows.values())
    noise = found(result, "label_noise", by="scores")
    assert (noise.low or 0) <= 4 / len(data.of("test")) <= (noise.high or 0)


def test_without_pictures_none_is_made(planted: tuple[Made, Result]) -> None:
    result = run(replace(planted[0].audit(), pictures=False))
    assert result.cases == ()
    assert not [chart for chart in result.charts if isinstance(chart, Images)]
    assert result.metrics == planted[1].metrics


def test_neither_order_nor_parts_change_anything(planted: tuple[Made, Result]) -> None:
    data, result = planted
    audit = data.audit(np.random.default_rng(1).permutation(len(data.table)))
    audit.engine.part = 17
    again = run(audit)
    for one, other in zip(result.metrics, again.metrics, strict=True):
        assert (one.name, one.where, one.reason) == (other.name, other.where, other.reason)
        # Folds are dealt in the order of the cases, so what is fitted in folds may differ a little.
        folded = one.name == "metadata_auroc" or one.where.get("by") == "embeddings"
        if not folded and one.value is not None:
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-6)


def test_a_patient_in_two_splits_and_one_with_two_labels() -> None:
    count = 60
    people = np.array([f"p{number:02d}" for number in range(count)])
    people[31], people[33] = people[0], people[32]
    split = np.where(np.arange(count) < 30, "train", "test")
    labels = np.arange(count) % 2
    labels[33] = 1 - labels[32]
    result = run(scored(np.where(labels, 0.8, 0.2), labels, split=split, patients=people))
    assert found(result, "leaked_images", by="patient").value == 1
    assert found(result, "leaked_share", by="any").value == pytest.approx(1 / 30)
    assert found(result, "contradicted_patients").value == 1
    assert found(result, "patients_with_several_images").value == 1
    assert found(result, "most_images_of_a_patient").value == 2
    assert found(result, "leaked_images", by="hash").reason == "only predictions were given, no model"
    assert "1 by same patient" in result.summary


def test_a_shortcut_in_the_columns_is_found_in_the_split_where_it_is() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    split = np.where(np.arange(600) < 400, "train", "test")
    tied = np.where(rng.random(600) < 0.9, labels, 1 - labels)
    site = np.where(split == "train", np.array(["A", "B"])[tied], rng.choice(["A", "B"], 600))
    age = rng.choice(["<40", "60+", "unknown"], 600)
    result = run(scored(rng.random(600), labels, split=split, columns={"site": site, "age": age}))
    assert found(result, "metadata_auroc", column="site", split="train").value == pytest.approx(0.9, abs=0.04)
    assert found(result, "metadata_auroc", column="all columns", split="train").value == pytest.approx(0.9, abs=0.04)
    for name in ("site", "all columns"):
        test = found(result, "metadata_auroc", column=name, split="audited")
        assert (test.low or 0) < 0.5 + 0.08
    assert "site predicts the label in the train split" in result.summary or "all columns predict the" in result.summary
    assert (found(result, "association_p", column="site", **{"with": "label"}).value or 0) > 0.05
    assert found(result, "association", column="age", **{"with": "split"}).value == pytest.approx(0, abs=0.12)
    missing = found(result, "missing_share", column="age")
    assert missing.value == pytest.approx((age[split == "test"] == "unknown").mean())
    rows = table(result, "Who is in which split").rows
    whole = next(row for row in rows if row[:3] == ("audited", "", "all"))
    assert whole[3:] == (200, 200, 1.0, int((labels[400:] == 0).sum()), int((labels[400:] == 1).sum()))


def test_each_of_many_copies_is_counted() -> None:
    """More copies than the nearest images that are looked at."""
    data = made()
    rows = data.of("test")[:15]
    for step, row in enumerate(rows):
        data.pixels[row] = np.clip(data.pixels[rows[0]], 0, 0.98) + 0.001 * step
        data.write(row, "label", "normal")
    assert found(run(data.audit()), "repeated_images", by="hash", among="same label").value == 15


@pytest.mark.parametrize(("filled", "reason"), [(0.3, "all embeddings are equal"), (np.nan, "are not finite")])
def test_embeddings_that_say_nothing_give_reasons(filled: float, reason: str) -> None:
    class Blind(CornerReader):
        def embed(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.full((len(pixels), 8), filled)

    result = run(replace(made(60).audit(), model=Blind()))
    assert reason in (found(result, "label_noise", by="embeddings").reason or "")
    assert found(result, "leaked_images", by="embedding").value is None


@pytest.mark.parametrize("kind", ["ten", "equal", "one split"])
def test_little_data_gives_reasons(kind: str) -> None:
    data = made(60)
    if kind == "ten":
        keep = np.r_[data.of("test")[:6], data.of("train")[:4]]
        data = Made(data.pixels[keep], data.table.iloc[keep])
    elif kind == "equal":
        data.table["label"] = "normal"
    else:
        data.table["split"] = "all"
    audit = data.audit()
    if kind == "ten":
        audit = replace(audit, groups=(), acquisition=())
    result = run(audit)
    assert result.summary.endswith(".")
    if kind == "ten":
        assert "20 are needed" in (found(result, "leaked_images", by="hash").reason or "")
        assert not [item for item in result.metrics if item.name == "association"]
        assert any("No group or acquisition columns" in caveat for caveat in result.caveats)
    elif kind == "equal":
        assert found(result, "label_noise", by="scores").reason == "all labels are the same"
        assert found(result, "metadata_auroc", column="sex", split="audited").reason == "no positive cases"
    else:
        assert (found(result, "leaked_share", by="any").reason or "").startswith("not applicable")
        assert found(result, "repeated_images", by="content", among="same label").value == 0


def test_a_cap_is_kept_and_told() -> None:
    result = data_quality(made().audit(), cases=30, embeddings=25, permutations=9)
    told = next(caveat for caveat in result.caveats if "by hash" in caveat)
    assert "30 of" in told
    assert found(result, "leaked_share", by="hash").value == 0
    with pytest.raises(ConfigError, match="at least 1 image must be looked at"):
        data_quality(made(60).audit(), cases=0)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6))
def test_counts_do_not_hang_on_the_order_of_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chances, labels, split = rng.random(50), rng.integers(0, 2, 50), rng.choice(["train", "test"], 50)
    people, order = rng.integers(0, 35, 50), rng.permutation(50)
    site = rng.choice(["A", "B", "unknown"], 50)
    first, second = (
        run(scored(chances[who], labels[who], split=split[who], patients=people[who], columns={"site": site[who]}))
        for who in (np.arange(50), order)
    )
    for one, other in zip(first.metrics, second.metrics, strict=True):
        assert (one.name, one.where) == (other.name, other.where)
        if one.name != "metadata_auroc" and one.value is not None:
            assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9)
