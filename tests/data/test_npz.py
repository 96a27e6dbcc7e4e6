"""Archives in the layout of MedMNIST: what is read, what is never unpacked, and real X-rays."""

from __future__ import annotations

import io
import json
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xvision.data import npz
from xvision.data.dataset import AuditDataset
from xvision.data.manifest import load_data
from xvision.errors import ConfigError, DataError, XVisionError
from xvision.models.protocols import InputSpec

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "pneumonia_mnist_variant"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 5, 4), dtype=np.uint8)
LABELS = np.array([[0], [1], [1], [0], [2], [1]], dtype=np.uint8)


def arrays(**changed: Any) -> dict[str, np.ndarray]:
    """Three splits of two images each; a change of None leaves an array out."""
    found: dict[str, Any] = {}
    for place, split in enumerate(("train", "val", "test")):
        found[f"{split}_images"] = IMAGES[2 * place : 2 * place + 2]
        found[f"{split}_labels"] = LABELS[2 * place : 2 * place + 2]
    return {name: array for name, array in (found | changed).items() if array is not None}


def saved(folder: Path, *, packed: bool = False, **changed: Any) -> Path:
    path = folder / "set.npz"
    (np.savez_compressed if packed else np.savez)(path, **arrays(**changed))
    return path


def zipped(folder: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """An archive with these members, whatever they hold, beside a sound pair of arrays."""
    path = folder / "made.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version, allow_pickle=True)
    return stream.getvalue()


def header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """The header of an array without its values."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(XVisionError) as caught:
        load_data(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_splits_labels_and_pixels(tmp_path: Path, packed: bool) -> None:
    data = load_data(saved(tmp_path, packed=packed))
    assert data.ids == ("train/0", "train/1", "val/0", "val/1", "test/0", "test/1")
    assert data.table["label"].tolist() == ["0", "1", "1", "0", "2", "1"]
    assert data.table["split"].tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert data.table["patient"].tolist() == list(data.ids)
    assert not data.patients_declared
    assert data.audited.ids == ("test/0", "test/1")
    chosen = ["test/1", "train/0", "val/0", "test/0"]
    pixels = data.pixels(chosen, InputSpec(1, 5, 4))
    np.testing.assert_array_equal(pixels[:, 0], IMAGES[[5, 0, 2, 4]].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(data.pixels(chosen, InputSpec(3, 5, 4)), np.repeat(pixels, 3, axis=1))
    assert data.pixels([], InputSpec(1, 5, 4)).shape == (0, 1, 5, 4)
    assert not data.has_mask.any()


def test_pixels_are_those_of_the_same_images_as_files(tmp_path: Path) -> None:
    from PIL import Image

    colour = RNG.integers(0, 256, (3, 7, 9, 3), dtype=np.uint8)
    rows = ["image,label"]
    for row, picture in enumerate(colour):
        Image.fromarray(picture).save(tmp_path / f"{row}.png")
        rows.append(f"{row}.png,x")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    files = load_data(tmp_path)
    np.savez(tmp_path / "set.npz", train_images=colour, train_labels=np.zeros((3, 1), np.int64))
    archive = load_data(tmp_path / "set.npz")
    for spec in (InputSpec(3, 7, 9), InputSpec(1, 7, 9), InputSpec(3, 5, 11), InputSpec(1, 14, 14, "bicubic")):
        np.testing.assert_array_equal(archive.pixels(archive.ids, spec), files.pixels(files.ids, spec))


def test_orders_depths_and_versions_of_arrays(tmp_path: Path) -> None:
    spec = InputSpec(1, 5, 4)
    expected = load_data(saved(tmp_path)).pixels(["train/0", "train/1"], spec)
    for packed in (False, True):
        path = saved(tmp_path, packed=packed, train_images=np.asfortranarray(IMAGES[:2]))
        np.testing.assert_array_equal(load_data(path).pixels(["train/0", "train/1"], spec), expected)
        path = saved(tmp_path, packed=packed, train_images=IMAGES[:2, ..., None], train_labels=np.array([0, 1]))
        np.testing.assert_array_equal(load_data(path).pixels(["train/0", "train/1"], spec), expected)
        path = saved(tmp_path, packed=packed, val_images=IMAGES[:0], val_labels=LABELS[:0])
        assert load_data(path).table["split"].value_counts().to_dict() == {"train": 2, "test": 2}
    path = zipped(tmp_path, {"train_images": npy(IMAGES[:2], (2, 0)), "train_labels": npy(LABELS[:2])})
    np.testing.assert_array_equal(load_data(path).pixels(["train/0", "train/1"], spec), expected)


def test_names_of_classes_lie_beside_the_archive(tmp_path: Path) -> None:
    path = saved(tmp_path)
    names = {"0": "normal", "1": " bacterial ", "2": "viral"}
    (tmp_path / "set.labels.json").write_text(json.dumps(names))
    assert load_data(path).table["label"].tolist() == [
        "normal",
        "bacterial",
        "bacterial",
        "normal",
        "viral",
        "bacterial",
    ]
    (tmp_path / "set.labels.json").write_text('{"0": "normal", "1": "bacterial"}')
    assert "test_labels holds the class 2, which the file of class names does not name" in refusal(path)
    for text in ("[]", "{", '{"a": "b"}', '{"0": 1}'):
        (tmp_path / "set.labels.json").write_text(text)
        assert "set.labels.json is not an object from class number to name" in refusal(path)
    for text in ('{"0": "a|b", "1": "c"}', '{"0": "a", "1": "a"}', '{"0": " "}'):
        (tmp_path / "set.labels.json").write_text(text)
        assert "class names must be filled in, different, and free of '|'" in refusal(path)
    (tmp_path / "set.labels.json").write_bytes(b"\xff\xfe")
    assert "set.labels.json cannot be read" in refusal(path)


def test_labels_of_several_findings(tmp_path: Path) -> None:
    flags = np.array([[1, 0, 1], [0, 0, 0]])
    path = saved(tmp_path, train_labels=flags, val_labels=flags, test_labels=flags[::-1])
    assert "set.npz: train_labels holds 3 labels an image: set multilabel = true" in refusal(path)
    data = load_data(path, multilabel=True)
    assert data.table["label"].tolist() == ["0|2", "", "0|2", "", "", "0|2"]
    np.testing.assert_array_equal(data.label_matrix("012"), np.concatenate([flags, flags, flags[::-1]]))
    (tmp_path / "set.labels.json").write_text('{"0": "oedema", "1": "effusion", "2": "No Finding"}')
    assert "row train/0 says in 'oedema|No Finding' that there is none" in refusal(path, multilabel=True)
    (tmp_path / "set.labels.json").write_text('{"0": "oedema", "1": "effusion", "2": "cyst"}')
    assert load_data(path, multilabel=True).findings == ("cyst", "oedema")
    path = saved(tmp_path, train_labels=flags * 2)
    assert "train_labels row 0 is 2, but 0 or 1 is needed" in refusal(path, multilabel=True)
    assert "train_labels holds one label an image: remove multilabel" in refusal(saved(tmp_path), multilabel=True)


def test_groups_and_columns_are_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set.npz is an npz archive and has no column 'sex': write a manifest"):
        load_data(saved(tmp_path), groups=["sex"])
    with pytest.raises(ConfigError, match="has no column 'who'"):
        load_data(saved(tmp_path), columns={"patient": "who"})


LAYOUTS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"val_labels": None}, "holds val_images without val_labels"),
    "no images": ({"test_images": None}, "holds test_labels without test_images"),
    "nothing": (dict.fromkeys(arrays()) | {"x": IMAGES}, "holds x: train_images and train_labels are needed"),
    "empty": (
        {f"{s}_{k}": (IMAGES if k == "images" else LABELS)[:0] for s in ("train", "val", "test") for k in ("images", "labels")},
        "holds no images",
    ),
    "count": ({"train_labels": LABELS}, "train_labels has 6 rows, but train_images has 2 images"),
    "volumes": ({"train_images": np.zeros((2, 5, 5, 5), np.uint8)}, r"is uint8 of shape \(2, 5, 5, 5\)"),
    "floats": ({"train_images": IMAGES[:2] / 255}, "train_images is float64 .* but uint8"),
    "flat": ({"train_images": np.zeros((2, 0, 4), np.uint8)}, "but uint8 of shape"),
    "huge": ({"train_images": np.zeros((0, 10_000, 10_000), np.uint8)}, "10000×10000 pixels an image, more than the 50 million"),
    "fractions": ({"train_labels": np.array([0.5, 1])}, "train_labels is float64 .* but whole numbers"),
    "cubes": ({"train_labels": np.zeros((2, 1, 1), int)}, "but whole numbers of shape"),
    "negative": ({"train_labels": np.array([1, -1])}, "train_labels row 1 is -1, but a class number from 0 on is needed"),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_that_cannot_be_used(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(saved(tmp_path, **changed))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, ("unpickled",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    hostile = np.empty((2, 1), dtype=object)
    hostile[0, 0] = Bomb()
    path = zipped(tmp_path, {"train_images": npy(IMAGES[:2]), "train_labels": npy(hostile)})
    assert "train_labels" in refusal(path)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "is no readable npz archive" in refusal(path)


def test_a_header_that_promises_terabytes_takes_no_memory(tmp_path: Path) -> None:
    for shape in ((2**40, 28, 28), (2**62, 2**62, 3)):
        path = zipped(tmp_path, {"train_images": header(shape), "train_labels": npy(LABELS)})
        start = time.monotonic()
        assert "the header of train_images promises" in refusal(path)
        assert time.monotonic() - start < 1
    path = zipped(tmp_path, {"train_images": header((-1, 5, 4)), "train_labels": npy(LABELS)})
    assert "the array train_images cannot be read (the shape (-1, 5, 4))" in refusal(path)
    path = zipped(tmp_path, {"train_images": npy(IMAGES), "train_labels": header((2**50, 1), "<i8")})
    assert "the header of train_labels promises" in refusal(path)


def test_an_index_that_promises_more_than_the_file_has_is_refused(tmp_path: Path) -> None:
    promised = header((2**20, 64, 32))
    path = zipped(tmp_path, {"train_images": promised, "train_labels": npy(LABELS)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    struct.pack_into("<II", content, content.index(b"PK\x01\x02") + 20, *[len(promised) + 2**31] * 2)
    path.write_bytes(content)
    assert "train_images cannot be read (it reaches beyond the end of the file)" in refusal(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = np.zeros((300, 500, 500), np.uint8)
    path = zipped(tmp_path, {"train_images": npy(zeros), "train_labels": npy(np.zeros((300, 1), int))})
    assert path.stat().st_size < 2**20
    assert "train_images unpacks to more than 100 times its size (71 MiB)" in refusal(path)
    monkeypatch.setattr(npz, "MAX_UNPACKED", 2**20)
    assert "that are held in memory: save the archive with numpy.savez, without compression" in refusal(path)
    plain = zipped(
        tmp_path, {"train_images": npy(zeros), "train_labels": npy(np.zeros((300, 1), int))}, zipfile.ZIP_STORED
    )
    assert len(load_data(plain)) == 300


def test_archives_packed_or_locked_in_other_ways(tmp_path: Path) -> None:
    members = {"train_images": npy(IMAGES), "train_labels": npy(LABELS)}
    assert "packed in an unusual way" in refusal(zipped(tmp_path, members, zipfile.ZIP_LZMA))
    content = bytearray(zipped(tmp_path, members).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1
    (tmp_path / "locked.npz").write_bytes(content)
    assert "is encrypted or packed in an unusual way" in refusal(tmp_path / "locked.npz")
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive:
        archive.writestr("train_images.npy", members["train_images"])
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("train_images.npy", members["train_images"])
    assert "holds the array 'train_images' more than once" in refusal(tmp_path / "twice.npz")
    other = npy(IMAGES).replace(b"NUMPY\x01", b"NUMPY\x09", 1)
    assert "array format 9.0" in refusal(zipped(tmp_path, members | {"train_images": other}))


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_or_shortened_file_is_named(tmp_path: Path, packed: bool) -> None:
    path = saved(tmp_path, packed=packed)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(60):
        hurt = bytearray(content if trial % 2 else content[: rng.integers(1, len(content))])
        for place in rng.integers(0, len(hurt), 8):
            hurt[place] = rng.integers(0, 256)
        path.write_bytes(hurt)
        try:
            again = load_data(path)
            again.pixels(again.ids, InputSpec(1, 5, 4))
        except (DataError, ConfigError):
            continue


def test_a_file_that_changes_after_loading_is_not_read(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path))
    saved(tmp_path, packed=True)
    with pytest.raises(DataError, match=r"set.npz has changed since it was opened: load the data again"):
        data.pixels(["train/0"], InputSpec(1, 5, 4))
    (tmp_path / "set.npz").unlink()
    with pytest.raises(DataError, match=r"train_images cannot be read"):
        data.pixels(["train/0"], InputSpec(1, 5, 4))


def test_an_offset_beyond_the_end_is_refused(tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path).read_bytes())
    struct.pack_into("<H", content, 28, 60_000)  # length of the extra field in the first local header
    (tmp_path / "set.npz").write_bytes(content)
    assert "train_images cannot be read" in refusal(tmp_path / "set.npz")


def test_ids_that_are_not_there(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path))
    for case in ("train/2", "train/-1", "train/00", "train/0/0", "valid/0", "train", "train/" + "9" * 5000, "train/²"):
        with pytest.raises(DataError, match="has no image"):
            data.pixels([case], InputSpec(1, 5, 4))
    assert data.source.unreadable(["train/0", "train/9"]) == ("Case 'train/9' has no image.",)
    with pytest.raises(DataError, match="An npz archive holds no masks"):
        data.source.masks(["train/0"], InputSpec(1, 5, 4))
    assert data.source.digests(["train/0"], "mask") == ("",)


def test_the_fingerprint_sees_pixels_and_survives_a_pickle(tmp_path: Path) -> None:
    original = load_data(saved(tmp_path)).fingerprint
    assert load_data(saved(tmp_path, packed=True)).fingerprint == original
    brighter = IMAGES[:2].copy()
    brighter[1, 0, 0] ^= 1
    assert load_data(saved(tmp_path, train_images=brighter)).fingerprint != original
    data = load_data(saved(tmp_path, packed=True))
    data.pixels(data.ids, InputSpec(1, 5, 4))
    before = len(pickle.dumps(load_data(tmp_path / "set.npz").source))
    assert len(pickle.dumps(data.source)) == before
    copied: AuditDataset = pickle.loads(pickle.dumps(data.source))  # noqa: S301  # ours: as a cluster sends it
    np.testing.assert_array_equal(
        copied.pixels(data.ids, InputSpec(1, 5, 4)), data.pixels(data.ids, InputSpec(1, 5, 4))
    )


def test_only_the_splits_asked_for_are_unpacked(tmp_path: Path) -> None:
    many = RNG.integers(0, 256, (2, 200, 200), dtype=np.uint8)  # so many that the header is not all that is unpacked
    path = saved(tmp_path, packed=True, train_images=many)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        stop = archive.getinfo("train_labels.npy").header_offset
    path.write_bytes(content[: stop - 20] + bytes(20) + content[stop:])
    data = load_data(path)
    assert data.pixels(data.audited.ids, InputSpec(1, 5, 4)).shape == (2, 1, 5, 4)
    with pytest.raises(DataError, match=r"set.npz: the array train_images cannot be read \(.*\): the file is damaged"):
        data.pixels(["train/0"], InputSpec(1, 5, 4))


@pytest.mark.skipif(not REAL.is_dir(), reason="the real chest X-rays are not beside this repository")
def test_real_chest_x_rays() -> None:
    data = load_data(next(REAL.glob("*.npz")))
    counts = data.table.groupby(["split", "label"]).size().to_dict()
    assert counts == {
        ("train", "0"): 388, ("train", "1"): 3494, ("validation", "0"): 135, ("validation", "1"): 389,
        ("test", "0"): 234, ("test", "1"): 390,
    }  # fmt: skip
    train = data.split("train")
    start = time.monotonic()
    pixels = data.pixels(train.ids, InputSpec(1, 28, 28))
    assert time.monotonic() - start < 1.0
    assert pixels.shape == (3882, 1, 28, 28)
    assert 0.4 < pixels.mean() < 0.7
    assert pixels.std(axis=(1, 2, 3)).min() > 0.01
