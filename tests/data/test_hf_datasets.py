"""Data sets that were saved with Hugging Face datasets: columns, splits, lazily decoded images, and hostile folders."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as Picture

from xvision.data.manifest import load_data
from xvision.errors import ConfigError, DataError, MissingExtra, XVisionError
from xvision.models.protocols import InputSpec

SPEC = InputSpec(1, 6, 5)
GREY = np.random.default_rng(0).integers(0, 256, (4, 6, 5), dtype=np.uint8)
SEX = ClassLabel(names=["F", "M"])
LABEL = ClassLabel(names=["well", "sick"])


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    datasets.disable_progress_bars()


def png(picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Picture.fromarray(picture).save(stream, "PNG")
    return stream.getvalue()


def stored(pictures: np.ndarray = GREY) -> list[dict[str, Any]]:
    return [{"bytes": png(picture), "path": None} for picture in pictures]


def table(**columns: tuple[Any, Sequence[Any]]) -> Dataset:
    """Four images with labels; a column is its type and its values, and None leaves it out."""
    found = {"image": (Image(), stored()), "label": (LABEL, [0, 1, 1, 0]), **columns}
    found = {name: column for name, column in found.items() if column is not None}
    features = Features({name: feature for name, (feature, _) in found.items()})
    return Dataset.from_dict({name: list(values) for name, (_, values) in found.items()}, features=features)


def saved(folder: Path, data: Dataset | DatasetDict) -> Path:
    shutil.rmtree(folder / "set", ignore_errors=True)
    data.save_to_disk(folder / "set")
    return folder / "set"


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(XVisionError) as caught:
        load_data(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_columns_groups_and_what_is_missing(tmp_path: Path) -> None:
    data = load_data(
        saved(
            tmp_path,
            table(
                patient=(Value("string"), ["p", "p", None, "q"]),
                split=(Value("string"), ["Training", "val", "test", "test"]),
                sex=(SEX, [0, 1, None, -1]),
                device=(Value("string"), ["tube", "none", " ", "NA"]),
                site=(Value("int32"), [1, 2, None, 2]),
                unused=(List(Value("float32")), [[0.1]] * 4),
            ),
        ),
        groups=["sex", "device", "site"],
    )
    assert data.ids == ("0", "1", "2", "3")
    assert data.table["label"].tolist() == ["well", "sick", "sick", "well"]
    assert data.table["patient"].tolist() == ["p", "p", "2", "q"]
    assert data.without_patient == {"2"}
    assert data.table["split"].tolist() == ["train", "validation", "test", "test"]
    assert data.table["sex"].tolist() == ["F", "M", "unknown", "unknown"]
    assert data.table["device"].tolist() == ["tube", "none", "unknown", "unknown"]
    assert data.table["site"].tolist() == ["1", "2", "unknown", "2"]
    np.testing.assert_array_equal(
        data.pixels(["3", "0"], SPEC)[:, 0], GREY[[3, 0]].astype(np.float32) / np.float32(255)
    )
    assert data.source.unreadable(data.ids) == ()


def test_the_tables_of_a_dict_are_the_splits(tmp_path: Path) -> None:
    rest = table(patient=(Value("string"), list("abcd")))
    folder = saved(
        tmp_path, DatasetDict({"train": table(split=(Value("string"), ["test"] * 4)), "dev": rest, "test": rest})
    )
    data = load_data(folder)
    assert data.ids[:5] == ("train/0", "train/1", "train/2", "train/3", "dev/0")
    assert data.table["split"].tolist() == ["train"] * 4 + ["validation"] * 4 + ["test"] * 4
    assert data.without_patient == {"train/0", "train/1", "train/2", "train/3"}
    np.testing.assert_array_equal(data.pixels(["dev/2"], SPEC), data.pixels(["test/2"], SPEC))
    assert load_data(folder, split="dev").ids == ("dev/0", "dev/1", "dev/2", "dev/3")
    with pytest.raises(ConfigError, match="the tables of a DatasetDict are its splits; remove split from columns"):
        load_data(folder, columns={"split": "patient"})


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    data = load_data(
        saved(
            tmp_path,
            table(
                image=None,
                label=None,
                img=(Image(), stored()),
                finding=(Value("int64"), [0, 1, 0, 1]),
                case=(Value("string"), ["a", "b", "c", "d"]),
            ),
        ),
        columns={"image": "img", "label": "finding", "id": "case"},
    )
    assert data.ids == ("a", "b", "c", "d")
    np.testing.assert_array_equal(data.label_codes(["well", "sick"]), [0, 1, 0, 1])
    np.testing.assert_array_equal(data.pixels(["c"], SPEC)[0, 0], GREY[2].astype(np.float32) / np.float32(255))
    yes = load_data(saved(tmp_path, table(label=(Value("bool"), [True, False, True, True]))))
    assert yes.label_codes(["well", "sick"]).tolist() == [1, 0, 1, 1]


def test_masks_and_boxes(tmp_path: Path) -> None:
    mask = np.zeros((6, 5), np.uint8)
    mask[1:3, 2:4] = 255
    folder = saved(
        tmp_path,
        table(
            mask=(Image(), [{"bytes": png(mask), "path": "m.png"}, None, None, None]),
            bbox_xywh=(List(Value("float64")), [[0, 0, 5, 6], [0, 0, 2, 3], None, None]),
        ),
    )
    data = load_data(folder)
    assert data.has_mask.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(data.masks(["0"], SPEC)[0], mask > 0)
    assert data.masks(["1"], SPEC)[0].sum() == 6
    assert [digest != "" for digest in data.source.digests(data.ids, "mask")] == [True, False, False, False]
    with pytest.raises(DataError, match="Case '2' has neither a mask nor a box"):
        data.masks(["2"], SPEC)
    flat = saved(tmp_path, table(bbox_xywh=(Value("string"), ["", "1,2,3,0", "", ""])))
    assert "set row 1: bbox_xywh '1,2,3,0' is no box" in refusal(flat)


def test_lists_of_findings(tmp_path: Path) -> None:
    names = List(ClassLabel(names=["cyst", "oedema"]))
    folder = saved(tmp_path, table(label=(names, [[1, 0], [], [1], [0, 0]])))
    assert "the column 'label' holds lists: set multilabel = true" in refusal(folder)
    data = load_data(folder, multilabel=True)
    assert data.table["label"].tolist() == ["cyst|oedema", "", "oedema", "cyst"]
    np.testing.assert_array_equal(data.label_matrix(["oedema", "cyst"]), [[1, 1], [0, 0], [1, 0], [0, 1]])
    words = saved(tmp_path, table(label=(List(Value("string")), [["a"], [], ["b", "a"], ["b"]])))
    assert load_data(words, multilabel=True).findings == ("a", "b")
    for cell in (None, [None], [0, None], [-1]):
        gap = saved(tmp_path, table(label=(names, [[0], cell, [1], [1]])))
        left = load_data(gap, multilabel=True)
        assert (len(left), len(left.without_label)) == (3, 1)
    odd = saved(tmp_path, table(label=(List(Value("string")), [["a|b"], [], [], []])))
    assert "set: row 0: the finding 'a|b' holds '|'" in refusal(odd, multilabel=True)
    flags = saved(tmp_path, table(label=(List(Value("int64")), [[0, 1], [0, 0], [1, 1], [0, 1]])))
    assert "the column 'label' is List(Value('int64')), but text, numbers or ClassLabel" in refusal(
        flags, multilabel=True
    )
    text = saved(tmp_path, table(label=(Value("string"), ["b|a", "none", "", "a"])))
    assert load_data(text, multilabel=True).table["label"].tolist() == ["a|b", "", "", "a"]


def test_columns_that_are_not_there_or_cannot_be_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, table(sex=(SEX, [0, 1, 0, 1]), scans=(List(Value("int8")), [[1]] * 4)))
    assert "set has no column 'sx'. Did you mean 'sex'?" in refusal(folder, groups=["sx"])
    assert "the column 'scans' is List(Value('int8')), but text" in refusal(folder, groups=["scans"])
    assert "set has no column 'image'" in refusal(saved(tmp_path, table(image=None, imge=(SEX, [0] * 4))))
    assert "Did you mean 'lable'?" in refusal(saved(tmp_path, table(label=None, lable=(SEX, [0] * 4))))
    paths = saved(tmp_path, table(image=(Value("string"), ["a.png"] * 4)))
    assert "the column 'image' is Value('string'), but Image is needed: cast_column it" in refusal(paths)
    assert len(load_data(saved(tmp_path, table(label=(LABEL, [0, 1, None, 1])))).without_label) == 1
    assert "set row 3 repeats the id 'a' of row 0" in refusal(
        saved(tmp_path, table(id=(Value("string"), list("abca"))))
    )
    ages = [
        table(age=(Value("float64"), [start, start + 1, start + 2, start + 3])) for start in (1.5, 11.5, 21.5, 31.5)
    ]
    many = load_data(saved(tmp_path, datasets.concatenate_datasets(ages)), groups=["age"], bands={"age": [20]})
    assert many.table["age"].value_counts().to_dict() == {"1: below 20": 8, "2: 20 or more": 8}
    some = DatasetDict({"train": table(sex=(SEX, [0] * 4)), "test": table()})
    assert "set, test has no column 'sex'" in refusal(saved(tmp_path, some), groups=["sex"])
    empty = saved(tmp_path, table().select([]))
    assert "lists nothing under '_data_files': the data set is empty or damaged" in refusal(empty)
    empty = saved(tmp_path, table())
    rewrite(empty, lambda whole: whole[:0])
    assert "set has no rows: a data set needs at least one" in refusal(empty)


def test_images_are_decoded_by_our_own_decoder_and_only_when_asked_for(tmp_path: Path) -> None:
    junk = [{"bytes": content, "path": "x.png"} for content in (png(GREY[0]), b"GIF89a", png(GREY[1])[:60], b"")]
    data = load_data(saved(tmp_path, table(image=(Image(), junk))))
    assert data.pixels(["0"], SPEC).shape == (1, 1, 6, 5)
    for case in ("1", "2", "3"):
        with pytest.raises(DataError, match=rf"The image of case '{case}' in .*set (is no readable|cannot be decoded)"):
            data.pixels([case], SPEC)
    assert [sentence[:24] for sentence in data.source.unreadable(data.ids)] == [
        "The image of case '1' in", "The image of case '3' in",
    ]  # fmt: skip
    with pytest.raises(DataError, match="Case 'z' has no image"):
        data.pixels(["z"], SPEC)


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Picture.new("1", (8000, 8000)).save(stream, "PNG")
    images = [{"bytes": stream.getvalue(), "path": None}, *stored(GREY[1:])]
    data = load_data(saved(tmp_path, table(image=(Image(), images))))
    with pytest.raises(DataError, match="has 8000×8000 pixels, more than the 50 million allowed"):
        data.pixels(["0"], SPEC)


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Put a changed table in the place of the one that was saved."""
    (arrow,) = folder.glob("*.arrow")
    with pa.memory_map(str(arrow)) as source:
        whole = change(pa.ipc.open_stream(source).read_all())
        with pa.OSFile(str(folder / "new"), "wb") as sink, pa.ipc.new_stream(sink, whole.schema) as out:
            out.write_table(whole)
    (folder / "new").replace(arrow)


def with_a_path(folder: Path, path: str) -> Path:
    """A data set whose last image is a path. ``save_to_disk`` never leaves one, so the files are changed afterwards."""
    images = [*stored(GREY[:3]), {"bytes": None, "path": path}]
    made = saved(folder, table(image=({"bytes": Value("binary"), "path": Value("string")}, images)))
    info = json.loads((made / "dataset_info.json").read_text())
    info["features"]["image"] = {"_type": "Image"}
    (made / "dataset_info.json").write_text(json.dumps(info))
    rewrite(made, lambda whole: whole.replace_schema_metadata(None))
    return made


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/etc/hostname", "is absolute"),
        ("../secret.png", "climbs with '..'"),
        ("link.png", "leads outside the data folder"),
        ("gone.png", "the image file 'gone.png' does not exist"),
        ("https://example.org/a.png", "does not exist"),
    ],
)
def test_paths_that_lead_elsewhere(tmp_path: Path, path: str, message: str) -> None:
    Picture.fromarray(GREY[3]).save(tmp_path / "secret.png")
    folder = with_a_path(tmp_path, path)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    sentence = refusal(folder)
    assert sentence.startswith("set row 3")
    assert message in sentence


def test_images_that_are_files_in_the_folder(tmp_path: Path) -> None:
    folder = with_a_path(tmp_path, "pictures/d.png")
    assert len(load_data(folder, images_required=False)) == 4
    (folder / "pictures").mkdir()
    Picture.fromarray(GREY[3]).save(folder / "pictures" / "d.png")
    data = load_data(folder)
    np.testing.assert_array_equal(data.pixels(["3"], SPEC)[0, 0], GREY[3].astype(np.float32) / np.float32(255))
    empty = with_a_path(tmp_path, "")
    assert "set row 3 has no image" in refusal(empty)
    data = load_data(empty, images_required=False)
    with pytest.raises(DataError, match="Case '3' has no image"):
        data.pixels(["3"], SPEC)
    assert data.source.digests(["3"], "image") == ("",)


STATES = {
    "climbing": ({"_data_files": [{"filename": "../other/data.arrow"}]}, "climbs with '..'"),
    "absolute": ({"_data_files": [{"filename": "/etc/hostname"}]}, "is absolute"),
    "no files": ({"_data_files": []}, "state.json lists nothing under '_data_files'"),
    "no names": ({"_data_files": [{}]}, "state.json lists nothing"),
    "a number": ([], "state.json lists nothing"),
    "gone": ({"_data_files": [{"filename": "gone.arrow"}]}, "is no readable saved data set"),
    "format": ({"_format_type": "pickle"}, "is no readable saved data set"),
}


@pytest.mark.parametrize(("state", "message"), STATES.values(), ids=STATES)
def test_folders_that_point_elsewhere_or_were_damaged(tmp_path: Path, state: Any, message: str) -> None:
    folder = saved(tmp_path, table())
    found = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(found | state if isinstance(state, dict) else state))
    assert message in refusal(folder)


def test_dicts_that_point_elsewhere_or_were_damaged(tmp_path: Path) -> None:
    folder = saved(tmp_path, DatasetDict({"train": table()}))
    for content, message in {
        '{"splits": ["../other"]}': "dataset_dict.json: the path '../other' climbs with '..'",
        '{"splits": []}': "dataset_dict.json lists nothing under 'splits'",
        '{"splits": [1]}': "lists nothing under 'splits'",
        "{": "dataset_dict.json is no readable JSON file",
        '{"splits": ["gone"]}': "state.json is no readable JSON file (FileNotFoundError)",
    }.items():
        (folder / "dataset_dict.json").write_text(content)
        assert message in refusal(folder)


def test_a_damaged_table_is_no_traceback(tmp_path: Path) -> None:
    folder = saved(tmp_path, table(sex=(SEX, [0, 1, 0, 1])))
    (arrow,) = folder.glob("*.arrow")
    content, rng = arrow.read_bytes(), np.random.default_rng(0)
    for trial in range(60):
        hurt = bytearray(content if trial % 2 else content[: rng.integers(1, len(content))])
        for place in rng.integers(0, len(hurt), 4):
            hurt[place] = rng.integers(0, 256)
        arrow.write_bytes(hurt)
        try:
            data = load_data(folder, groups=["sex"])
            data.pixels(data.ids, SPEC)
        except (DataError, ConfigError):
            continue
    for name in ("dataset_info.json", "state.json"):
        (folder / name).write_text("[")
    assert "state.json is no readable JSON file" in refusal(folder)


def test_text_that_is_none_is_said(tmp_path: Path) -> None:
    folder = saved(tmp_path, table(label=(Value("string"), ["ab", "cd", "ef", "gh"])))

    def spoilt(whole: pa.Table) -> pa.Table:
        buffers = whole["label"].chunk(0).buffers()
        label = pa.Array.from_buffers(pa.string(), 4, [None, buffers[1], pa.py_buffer(b"ab\xff\xfeefgh")])
        return whole.set_column(1, whole.schema.field("label"), label)

    rewrite(folder, spoilt)
    assert "set: the column 'label' is damaged (" in refusal(folder)


def test_the_fingerprint_sees_images_and_survives_a_pickle(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, table()))
    original = data.fingerprint
    copied = pickle.loads(pickle.dumps(data.source))  # noqa: S301  # ours: as a cluster sends it
    np.testing.assert_array_equal(copied.pixels(data.ids, SPEC), data.pixels(data.ids, SPEC))
    other = GREY.copy()
    other[2, 0, 0] ^= 1
    assert load_data(saved(tmp_path, table(image=(Image(), stored(other))))).fingerprint != original
    assert load_data(saved(tmp_path, table())).fingerprint == original


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, table())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'datasets', .* pip install 'xvision\[datasets\]'"):
        load_data(folder)
