"""Manifests and folders: what is read, what is assumed, and one sentence for everything that cannot be used."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xvision.data.manifest import load_data
from xvision.errors import ConfigError, DataError, XVisionError
from xvision.models.protocols import InputSpec

SPEC = InputSpec(1, 4, 4)
REAL = Path(__file__).parents[2].parent / "shared" / "data" / "covid_cxr"


def picture(path: Path, value: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 4), value).save(path)


def manifest(folder: Path, text: str, *, images: str = "abc") -> Path:
    for place, name in enumerate(images):
        picture(folder / f"{name}.png", 50 * place)
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


def refusal(folder: Path, text: str, **options: object) -> str:
    """The sentence with which a manifest is refused."""
    with pytest.raises(XVisionError) as caught:
        load_data(manifest(folder, text), **options)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_columns_groups_and_what_is_missing(tmp_path: Path) -> None:
    text = (
        "image,label,patient,split,sex,device,text,mask,bbox_xywh,extra\n"
        "a.png,sick, p1 ,TEST,F,none,cough,b.png,,1\n"
        "\n"
        'b.png,well,,val,NA,,,,"0,0,4,2",2\n'
        "c.png,well,nan,,unknown,tube,,NA,,3\n"
    )
    data = load_data(manifest(tmp_path, text), groups=["sex", "device"])
    expected = pd.DataFrame(
        {
            "label": ["sick", "well", "well"],
            "patient": ["p1", "b.png", "c.png"],
            "split": ["test", "validation", "unknown"],
            "sex": ["F", "unknown", "unknown"],
            "device": ["none", "unknown", "tube"],
            "image": ["a.png", "b.png", "c.png"],
            "mask": ["b.png", "", ""],
            "bbox_xywh": ["", "0,0,4,2", ""],
            "text": ["cough", "", ""],
        },
        index=pd.Index(["a.png", "b.png", "c.png"], name="id", dtype="str"),
        dtype="str",
    )
    pd.testing.assert_frame_equal(data.table, expected)
    assert data.groups == ("sex", "device")
    assert data.patients_declared
    assert data.without_patient == {"b.png", "c.png"}
    assert data.audited.ids == ("a.png",)
    assert data.has_mask.tolist() == [True, True, False]
    np.testing.assert_array_equal(data.pixels(["c.png"], SPEC), np.full((1, 1, 4, 4), np.float32(100 / 255)))
    np.testing.assert_array_equal(
        data.masks(["b.png"], SPEC)[0], np.outer([True, True, False, False], [True, True, False, False])
    )


def test_without_patient_and_split_columns(tmp_path: Path) -> None:
    data = load_data(manifest(tmp_path, "id,image,label\n1,a.png,x\n2,a.png,y\n"))
    assert data.ids == ("1", "2")
    assert data.table["patient"].tolist() == ["1", "2"]
    assert data.table["split"].tolist() == ["all", "all"]
    assert not data.patients_declared
    assert not data.without_patient
    assert len(data.audited) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "ä.png")
    (tmp_path / "list.csv").write_text("image,label\nä.png,größer\n", encoding=encoding)
    data = load_data(tmp_path / "list.csv")
    assert data.table.loc["ä.png", "label"] == "größer"
    assert data.pixels(data.ids, SPEC).shape == (1, 1, 4, 4)


def test_standard_columns_may_have_other_names(tmp_path: Path) -> None:
    text = "file,finding,label,zone\na.png,sick,ignored,b.png\n"
    data = load_data(
        manifest(tmp_path, text), columns={"image": "file", "label": "finding", "mask": "zone"}, groups=["zone"]
    )
    assert data.table.loc["a.png"].to_dict() == {
        "label": "sick", "patient": "a.png", "split": "all", "zone": "b.png", "image": "a.png", "mask": "b.png",
    }  # fmt: skip


def test_one_split_may_be_chosen_and_its_files_alone_must_exist(tmp_path: Path) -> None:
    text = "image,label,split\na.png,x,Training\ngone.png,y,test\n"
    data = load_data(manifest(tmp_path, text), split="train")
    assert data.ids == ("a.png",)
    assert "No case belongs to the split 'tset'. Did you mean 'test'?" in refusal(tmp_path, text, split="tset")


def test_images_may_be_absent_when_only_scores_are_audited(tmp_path: Path) -> None:
    data = load_data(manifest(tmp_path, "image,label\ngone.png,x\n"), images_required=False)
    assert len(data.fingerprint) == 64
    with pytest.raises(DataError, match=r"gone.png cannot be opened"):
        data.pixels(data.ids, SPEC)
    plain = load_data(manifest(tmp_path, "id,label\n7,x\n"), images_required=False)
    assert plain.ids == ("7",)


def test_columns_that_are_not_there_are_named_with_the_nearest(tmp_path: Path) -> None:
    assert "has no column 'image'" in refusal(tmp_path, "imge,label\na.png,x\n")
    assert "Did you mean 'imge'?" in refusal(tmp_path, "imge,label\na.png,x\n")
    assert "has no column 'label'" in refusal(tmp_path, "image,lable\na.png,x\n")
    assert "Did you mean 'sex'?" in refusal(tmp_path, "image,label,sex\na.png,x,F\n", groups=["sx"])
    assert "Did you mean 'zone'?" in refusal(tmp_path, "image,label,zone\na.png,x,F\n", columns={"mask": "zones"})
    assert "Did you mean 'mask'?" in refusal(tmp_path, "image,label\na.png,x\n", columns={"msk": "label"})
    assert "seems to be separated by semicolons" in refusal(tmp_path, "image;label\na.png;x\n")
    assert "has the column 'label' more than once" in refusal(tmp_path, "image,label,label\na.png,x,y\n")


def test_group_arguments(tmp_path: Path) -> None:
    folder = manifest(tmp_path, "image,label,sex\na.png,x,F\n")
    with pytest.raises(ConfigError, match=r"groups is the text 'sex': give a list of column names, \['sex'\]"):
        load_data(folder, groups="sex")
    with pytest.raises(ConfigError, match="'label' is a standard column and cannot be a group"):
        load_data(folder, groups=["label"])
    assert load_data(folder, groups=["sex", "sex"]).groups == ("sex",)


def test_rows_without_a_label_are_left_out_and_kept_count_of(tmp_path: Path) -> None:
    text = "image,label,patient,split,sex\na.png,x,p1,train,F\nb.png,,p2,test,F\ngone.png,nan,p3,test,\nc.png,y,p4,test,M\n"
    data = load_data(manifest(tmp_path, text), groups=["sex"])
    assert data.ids == ("a.png", "c.png")
    assert data.without_label.to_dict("index") == {
        "b.png": {"image": "b.png", "patient": "p2", "split": "test", "sex": "F"},
        "gone.png": {"image": "gone.png", "patient": "p3", "split": "test", "sex": "unknown"},
    }  # fmt: skip
    assert load_data(manifest(tmp_path, text), groups=["sex"], split="train").without_label.empty
    several = load_data(manifest(tmp_path, "image,label\na.png,x\nb.png,\nc.png,?\n"), multilabel=True)
    assert several.table["label"].tolist() == ["x", ""]
    assert several.without_label.index.tolist() == ["c.png"]


def test_a_label_may_name_several_findings(tmp_path: Path) -> None:
    cells = ["e|d|c|b|a|f", " a | b |a", "", "None", "no finding", "normal", "No Finding"]
    text = "id,image,label\n" + "".join(f"{row},a.png,{cell}\n" for row, cell in enumerate(cells))
    data = load_data(manifest(tmp_path, text), multilabel=True)
    assert data.multilabel
    assert data.table["label"].tolist() == ["a|b|c|d|e|f", "a|b", "", "", "", "normal", ""]
    assert data.findings == (*"abcdef", "normal")
    assert load_data(manifest(tmp_path, "image,label\na.png,a|b\n")).table["label"].tolist() == ["a|b"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("a|", "manifest.csv row 3 has an empty name between the separators of 'a|': remove the separator"),
        ("|", "has an empty name between the separators of '|'"),
        ("a||b", "has an empty name"),
        ("a|None", "manifest.csv row 3 says in 'a|None' that there is none and names a finding: decide for one"),
        ("a|?", "manifest.csv row 3 says in 'a|?' that something is not known and names a finding"),
    ],
)
def test_findings_that_cannot_be_used(tmp_path: Path, cell: str, message: str) -> None:
    assert message in refusal(tmp_path, f"image,label\na.png,x\nb.png,{cell}\n", multilabel=True)


ROWS: Mapping[str, tuple[str, str]] = {
    "no rows": ("image,label\n", "has no data rows"),
    "nothing": ("", "has no data rows"),
    "ragged": ("image,label\na.png,x\nb.png,x,y\n", "manifest.csv row 3 has 3 cells but the header has 2"),
    "quote": ('image,label\n"a.png,x\n', "is no well-formed CSV file"),
    "no label": ("image,label\na.png,\nb.png,nan\n", "row 2 has no label, and so have all other rows"),
    "same image": ("image,label\na.png,x\nb.png,x\na.png,y\n", "row 4 repeats the image 'a.png' of row 2"),
    "same id": ("id,image,label\n1,a.png,x\n1,b.png,x\n", "row 3 repeats the id '1' of row 2"),
    "no id": ("id,image,label\n,a.png,x\n", "row 2 has no id"),
    "no image": ("id,image,label\n1,a.png,x\n2,,x\n", "row 3 has no image"),
    "gone": (
        "image,label\na.png,x\n\ngone.png,x\nlost.png,y\n",
        "row 4: the image file 'gone.png' does not exist under",
    ),
    "more gone": ("image,label\ngone.png,x\nlost.png,y\n", "and 1 further image files are missing"),
    "mask gone": ("image,label,mask\na.png,x,gone.png\n", "row 2: the mask file 'gone.png' does not exist under"),
    "box of three": ('image,label,bbox_xywh\na.png,x,"1,2,3"\n', "row 2: bbox_xywh '1,2,3' is not four numbers"),
    "box of words": ('image,label,bbox_xywh\na.png,x,"1,2,3,x"\n', "is not four numbers"),
    "flat box": ('image,label,bbox_xywh\na.png,x,"1,2,3,0"\n', "is no box: x, y ≥ 0 and width, height > 0"),
    "endless box": ('image,label,bbox_xywh\na.png,x,"1,2,inf,4"\n', "is no box"),
}


@pytest.mark.parametrize(("text", "message"), ROWS.values(), ids=ROWS)
def test_rows_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    assert message in refusal(tmp_path, text)


PATHS: Mapping[str, tuple[str, str]] = {
    "absolute": ("/etc/hostname", "is absolute"),
    "drive": ("C:/a.png", "is absolute"),
    "share": (r"\\server\a.png", "is absolute"),
    "climbing": ("x/../../a.png", "climbs with '..'"),
    "backslash": (r"x\a.png", "holds backslashes"),
    "control": ("a\x07.png", "holds control characters"),
    "decomposed": (unicodedata.normalize("NFD", "ä.png"), "is not in Unicode normal form C"),
    "link": ("link/secret.png", "leads outside the data folder"),
    "linked file": ("link.png", "leads outside the data folder"),
    "loop": ("loop/a.png", "cannot be followed"),
    "endless name": ("x" * 5000 + ".png", "is too long"),
}


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize(("path", "message"), PATHS.values(), ids=PATHS)
def test_paths_that_lead_elsewhere(tmp_path: Path, path: str, message: str, column: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    picture(outside / "secret.png")
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "loop").symlink_to(inside / "loop")
    row = f"{path},x,," if column == "image" else f"a.png,x,{path},"
    sentence = refusal(inside, f"image,label,mask,n\nb.png,x,,\n{row}\n")
    assert f"manifest.csv row 3, {column}: the path" in sentence
    assert message in sentence


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    picture(tmp_path / "real.png", 7)
    (tmp_path / "link.png").symlink_to("real.png")
    data = load_data(manifest(tmp_path, "image,label\nlink.png,x\n"))
    assert data.pixels(data.ids, SPEC).max() == pytest.approx(7 / 255)


def test_a_link_swapped_after_loading_is_not_followed(tmp_path: Path) -> None:
    picture(tmp_path / "outside.png")
    data = load_data(manifest(tmp_path / "inside", "image,label\na.png,x\n"))
    (tmp_path / "inside" / "a.png").unlink()
    (tmp_path / "inside" / "a.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match="leads outside the data folder"):
        data.pixels(data.ids, SPEC)
    assert len(data.source.unreadable(data.ids)) == 1


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no manifest or data folder at .*gone.csv"):
        load_data(tmp_path / "gone.csv")
    (tmp_path / "wide.csv").write_text("image,label\na.png,x\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"wide.csv is not UTF-8 text"):
        load_data(tmp_path / "wide.csv")
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png is not UTF-8 text"):
        load_data(tmp_path / "a.png")


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name in ("well/b.png", "sick/a.png", "sick/.hidden.png", "sick/c.PNG"):
        picture(tmp_path / name)
    (tmp_path / "sick" / "notes.txt").write_text("x")
    data = load_data(tmp_path)
    assert data.ids == ("sick/a.png", "sick/c.PNG", "well/b.png")
    assert data.table["label"].tolist() == ["sick", "sick", "well"]
    assert not data.patients_declared
    with pytest.raises(ConfigError, match=r"has no manifest.csv and so no column 'sex'"):
        load_data(tmp_path, groups=["sex"])


def test_a_folder_of_splits(tmp_path: Path) -> None:
    for name in ("train/well/a.png", "val/sick/b.png", "Test/sick/c.png"):
        picture(tmp_path / name)
    data = load_data(tmp_path)
    assert dict(zip(data.ids, data.table["split"], strict=True)) == {
        "Test/sick/c.png": "test", "train/well/a.png": "train", "val/sick/b.png": "validation",
    }  # fmt: skip
    picture(tmp_path / "p17" / "sick" / "d.png")
    with pytest.raises(DataError, match=r"the folder 'p17' of .* is no split: name it train, validation or test"):
        load_data(tmp_path)


@pytest.mark.parametrize("names", [["a.png"], ["x/a.png", "train/x/b.png"], ["a/b/c/d.png"], []])
def test_a_folder_arranged_otherwise(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        picture(tmp_path / name)
    with pytest.raises(DataError, match=rf"neither manifest.csv nor images as class/image .*\({len(names)} images"):
        load_data(tmp_path)


def test_a_folder_with_a_link_outside(tmp_path: Path) -> None:
    picture(tmp_path / "outside.png")
    picture(tmp_path / "in" / "x" / "a.png")
    (tmp_path / "in" / "x" / "b.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"in, image: the path 'x/b.png' leads outside"):
        load_data(tmp_path / "in")


def test_loading_needs_no_torch(tmp_path: Path) -> None:
    manifest(tmp_path, "image,label\na.png,x\n")
    script = (
        "import sys; sys.modules['torch'] = None; from xvision.data.manifest import load_data; "
        "import xvision.data.preflight, xvision.data.synthetic; "
        f"print(len(load_data({str(tmp_path)!r}).fingerprint))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "64"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real chest X-rays are not beside this repository")
def test_real_chest_x_rays() -> None:
    data = load_data(REAL, columns={"mask": "mask_lesion"}, groups=("sex", "view", "site", "age_band"))
    assert (len(data), data.table["patient"].nunique(), int(data.has_mask.sum())) == (268, 156, 44)
    assert (data.table["sex"] == "unknown").sum() == 268 - 255
    assert data.table["label"].value_counts().to_dict() == {"COVID-19": 194, "other": 74}
    assert data.label_codes(["other", "COVID-19"]).sum() == 194
    marked = data.has_mask.index[data.has_mask].tolist()
    spec = InputSpec(3, 56, 64)
    masks = data.masks(marked, spec)
    assert masks.any(axis=(1, 2)).all()
    pixels = data.pixels(marked[:8], spec)
    assert pixels.shape == (8, 3, 56, 64)
    assert pixels.std() > 0.1
    boxes = load_data(REAL, columns={"bbox_xywh": "right_lung_bbox_xywh"})
    share = boxes.masks(boxes.ids[:40], spec).mean(axis=(1, 2))
    assert share.min() > 0.05
    assert share.max() < 0.6
