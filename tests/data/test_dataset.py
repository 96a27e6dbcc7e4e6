"""The data set: labels, splits, subsets, masks, and a fingerprint that sees every change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xvision.data.dataset import AuditDataset
from xvision.data.images import fit
from xvision.data.manifest import load_data
from xvision.data.sources import ArraySource
from xvision.errors import ConfigError, DataError
from xvision.models.protocols import InputSpec

IDS = ("a", "b", "c", "d")
PIXELS = np.random.default_rng(0).random((4, 1, 6, 5), dtype=np.float32)
MASKS = PIXELS[:, 0] > 0.5
SPEC = InputSpec(1, 6, 5)


def made(**columns: list[str]) -> AuditDataset:
    table = {
        "label": ["well", "sick", "well", "sick"],
        "patient": ["p", "p", "q", "r"],
        "split": ["train", "train", "test", "test"],
        "sex": ["F", "F", "M", "unknown"],
    } | columns
    frame = pd.DataFrame(table, index=pd.Index(IDS, name="id"), dtype="str")
    return AuditDataset(frame, ("sex",), ArraySource(IDS, PIXELS, MASKS))


def test_the_test_split_is_audited_where_there_is_one() -> None:
    assert made().audited.ids == ("c", "d")
    assert made(split=["all"] * 4).audited.ids == IDS
    assert made().split("train").ids == ("a", "b")
    with pytest.raises(ConfigError, match=r"No case belongs to the split 'tests'. Did you mean 'test'"):
        made().split("tests")


def test_subsets_keep_the_order_asked_for() -> None:
    chosen = made().subset(["d", "a"])
    assert chosen.ids == ("d", "a")
    np.testing.assert_array_equal(chosen.pixels(chosen.ids, SPEC), PIXELS[[3, 0]])
    with pytest.raises(DataError, match=r"no case with the id 'z' \(1 of 2 ids are unknown\)"):
        made().subset(["a", "z"])
    with pytest.raises(DataError, match="The id 'a' occurs more than once"):
        made().subset(["a", "a"])


def test_columns_that_are_promised_must_be_there() -> None:
    with pytest.raises(DataError, match=r"The data table has no column 'sexx'. Did you mean 'sex'"):
        AuditDataset(made().table, ("sexx",), made().source)


def test_labels_are_names_or_positions_and_names_win() -> None:
    np.testing.assert_array_equal(made().label_codes(["well", "sick"]), [0, 1, 0, 1])
    assert made().label_codes(["well", "sick"]).dtype == np.int64
    np.testing.assert_array_equal(made(label=["0", "1", "2", "sick"]).label_codes(["well", "sick", "x"]), [0, 1, 2, 1])
    np.testing.assert_array_equal(made(label=["0", "1", "0", "1"]).label_codes(["1", "0"]), [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["well", "sik", "2", "well"], r"Case 'b' has the label 'sik', .* \(2 of 4 cases .* Did you mean 'sick'"),
        (["well", "-1", "well", "well"], r"Case 'b' has the label '-1'.*Known: sick, well"),
    ],
)
def test_an_unknown_label_names_case_value_and_nearest_class(labels: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        made(label=labels).label_codes(["well", "sick"])


def several(*cells: str) -> AuditDataset:
    return replace(made(label=list(cells)), multilabel=True)


def test_findings_and_their_matrix() -> None:
    data = several("cyst|oedema", "", "oedema", "air")
    assert data.findings == ("air", "cyst", "oedema")
    assert data.subset(["b", "c"]).findings == ("oedema",)
    matrix = data.label_matrix(["oedema", "air", "cyst", "shadow"])
    np.testing.assert_array_equal(matrix, [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(
        several("1|0", "", "2", "0").label_matrix(["x", "0", "y"]), [[0, 1, 0], [0] * 3, [0, 0, 1], [0, 1, 0]]
    )
    with pytest.raises(
        DataError, match=r"Case 'a' has the finding 'oedema', .* \(2 of 4 cases have it\). Did you mean 'edema'"
    ):
        data.label_matrix(["edema", "air", "cyst"])


def test_one_finding_is_a_binary_view() -> None:
    data = several("cyst|oedema", "", "oedema", "cyst")
    view = data.finding("cyst")
    assert view.table["label"].tolist() == ["cyst", "no cyst", "no cyst", "cyst"]
    assert not view.multilabel
    np.testing.assert_array_equal(view.label_codes(["no cyst", "cyst"]), [1, 0, 0, 1])
    pd.testing.assert_frame_equal(view.table.drop(columns="label"), data.table.drop(columns="label"))
    assert view.groups == data.groups
    np.testing.assert_array_equal(view.pixels(IDS, SPEC), PIXELS)
    marked = replace(data, table=data.table.assign(mask=["m", "", "", ""]))
    np.testing.assert_array_equal(marked.finding("oedema").masks(["a"], SPEC), MASKS[:1])
    assert data.finding("oedema").audited.ids == ("c", "d")
    with pytest.raises(DataError, match=r"No case has the finding 'cysts'. Did you mean 'cyst'"):
        data.finding("cysts")


def test_fingerprints_tell_findings_and_kinds_of_labels_apart() -> None:
    data = several("a|b", "", "a|b", "a|b")
    seen = {part.fingerprint for part in (data, data.finding("a"), data.finding("b"), replace(data, multilabel=False))}
    assert len(seen) == 4


def test_labels_are_classes_or_findings_but_not_both() -> None:
    with pytest.raises(
        DataError, match=r"several findings at once, .* choose one finding \(decision.positive .* Found: a, b"
    ):
        several("a|b", "", "a", "b").label_codes(["a", "b"])
    for use in (lambda: made().findings, lambda: made().finding("sick"), lambda: made().label_matrix(["sick"])):
        with pytest.raises(DataError, match="These labels name one class each, no findings: set multilabel = true"):
            use()


def test_whole_numbers_in_memory_are_scaled() -> None:
    levels = np.random.default_rng(1).integers(0, 256, (4, 3, 6, 5), dtype=np.uint8)
    source = ArraySource(IDS, levels)
    floats = ArraySource(IDS, levels.astype(np.float32) / np.float32(255))
    for spec in (InputSpec(3, 6, 5), InputSpec(1, 6, 5), InputSpec(3, 9, 4), InputSpec(1, 3, 3)):
        np.testing.assert_array_equal(source.pixels(["d", "a"], spec), floats.pixels(["d", "a"], spec))
        one_by_one = [fit(levels[row].astype(np.float32) / np.float32(255), spec) for row in (3, 0)]
        np.testing.assert_array_equal(source.pixels(["d", "a"], spec), np.stack(one_by_one))
    with pytest.raises(DataError, match="The model wants 4 channels"):
        source.pixels(["a"], InputSpec(4, 6, 5))


def test_masks_are_given_only_where_the_table_promises_one() -> None:
    data = made(mask=["", "m", "", ""], bbox_xywh=["", "", "", "0,0,1,1"])
    assert data.has_mask.to_dict() == {"a": False, "b": True, "c": False, "d": True}
    assert not made().has_mask.any()
    np.testing.assert_array_equal(data.masks(["b"], SPEC), MASKS[1:2])
    with pytest.raises(DataError, match=r"Case 'a' has neither a mask nor a box \(2 of 3 asked for\)"):
        data.masks(["b", "a", "z"], SPEC)


def test_arrays_are_fitted_and_checked() -> None:
    assert made().pixels(IDS, InputSpec(3, 9, 8)).shape == (4, 3, 9, 8)
    assert made().pixels([], SPEC).shape == (0, 1, 6, 5)
    with pytest.raises(DataError, match="Case 'z' has no image"):
        made().pixels(["z"], SPEC)
    with pytest.raises(DataError, match=r"Pixels of shape \(4, 6, 5\) do not fit 4 ids"):
        ArraySource(IDS, PIXELS[:, 0])
    with pytest.raises(DataError, match=r"Masks of shape \(3, 6, 5\) do not fit"):
        ArraySource(IDS, PIXELS, MASKS[:3])
    with pytest.raises(DataError, match="These images in memory have no masks"):
        ArraySource(IDS, PIXELS).masks(["a"], SPEC)
    assert ArraySource(IDS, PIXELS).unreadable(["a", "z"]) == ("Case 'z' has no image.",)


def written(folder: Path) -> Path:
    for name, value in {"a": 10, "b": 20, "m": 255}.items():
        Image.new("L", (6, 5), value).save(folder / f"{name}.png")
    (folder / "manifest.csv").write_text("image,label,sex,mask\na.png,x,F,m.png\nb.png,y,M,\n")
    return folder


def test_the_fingerprint_sees_every_change(tmp_path: Path) -> None:
    folder = written(tmp_path)

    def fingerprint() -> str:
        return load_data(folder, groups=["sex"]).fingerprint

    original = fingerprint()
    assert fingerprint() == original
    seen = {original}
    for name in ("b.png", "m.png"):
        content = (folder / name).read_bytes()
        Image.new("L", (6, 5), 77).save(folder / name)
        seen.add(fingerprint())
        (folder / name).write_bytes(content)
    text = (folder / "manifest.csv").read_text()
    for old, new in {"b.png,y,M": "b.png,y,F", "a.png,x": "a.png,y", "m.png": ""}.items():
        (folder / "manifest.csv").write_text(text.replace(old, new))
        seen.add(fingerprint())
    (folder / "manifest.csv").write_text(text)
    assert fingerprint() == original
    data = load_data(folder, groups=["sex"])
    seen |= {data.subset(["a.png"]).fingerprint, data.subset(["b.png", "a.png"]).fingerprint}
    assert len(seen) == 8


def test_the_fingerprint_sees_ids() -> None:
    renamed = ("a", "b", "c", "e")
    other = AuditDataset(made().table.set_axis(pd.Index(renamed, name="id")), (), ArraySource(renamed, PIXELS, MASKS))
    assert other.fingerprint != made().fingerprint


def test_a_mask_file_wins_over_a_box(tmp_path: Path) -> None:
    folder = written(tmp_path)
    Image.fromarray(MASKS[0]).save(folder / "m.png")
    (folder / "manifest.csv").write_text('image,label,mask,bbox_xywh\na.png,x,m.png,"0,0,5,6"\n')
    Image.new("L", (5, 6)).save(folder / "a.png")
    np.testing.assert_array_equal(load_data(folder).masks(["a.png"], SPEC), MASKS[:1])


def test_a_mask_that_does_not_fit_names_its_case_or_file(tmp_path: Path) -> None:
    folder = written(tmp_path)
    (folder / "manifest.csv").write_text('image,label,bbox_xywh\na.png,x,"0,0,7,9"\nb.png,y,\n')
    data = load_data(folder)
    with pytest.raises(DataError, match=r"Case 'a.png': The box \(0.0, 0.0, 7.0, 9.0\) reaches beyond"):
        data.masks(["a.png"], SPEC)
    with pytest.raises(DataError, match=r"Case 'b.png' has neither a mask nor a box"):
        data.source.masks(["b.png"], SPEC)
    with pytest.raises(DataError, match="Case 'z' has no image file"):
        data.pixels(["z"], SPEC)
