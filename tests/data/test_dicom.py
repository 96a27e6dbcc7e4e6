"""DICOM: the display pipeline against closed forms and pydicom, refusals before decoding, no header text anywhere."""

from __future__ import annotations

import logging
import random
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import UID

from xvision.data.dicom import dicom_size, read_dicom
from xvision.data.images import image_size, read_image
from xvision.errors import DataError
from xvision.models.protocols import InputSpec

VALUES = np.random.default_rng(0).integers(0, 4096, (9, 14), dtype=np.uint16)
NAME = "Zyxwvut^Planted"


def dataset(values: np.ndarray, **attributes: Any) -> Dataset:
    made = Dataset()
    made.PatientName = NAME
    made.PatientComments = NAME
    made.add_new(0x00091001, "LO", NAME)
    made.Rows, made.Columns = values.shape[-2:] if values.ndim < 4 else values.shape[1:3]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 12, 11
    made.PixelRepresentation = 0
    made.PixelData = values.tobytes()
    for name, value in attributes.items():
        setattr(made, name, value)
    made["PixelData"].VR = "OW"
    return made


def written(path: Path, made: Dataset, syntax: UID = uid.ExplicitVRLittleEndian) -> Path:
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(path, enforce_file_format=True)
    return path


def shown(path: Path, **attributes: Any) -> np.ndarray:
    plane: np.ndarray = read_dicom(written(path / "a.dcm", dataset(VALUES, **attributes)))[0]
    return plane


def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path) -> None:
    np.testing.assert_allclose(shown(tmp_path), VALUES / 4095, atol=1e-7)
    rescaled = shown(tmp_path, RescaleSlope=-2, RescaleIntercept=100)
    np.testing.assert_allclose(rescaled, 1 - VALUES / 4095, atol=1e-6)


def test_signed_values(tmp_path: Path) -> None:
    values = (VALUES.astype(np.int16) - 2048).astype(np.int16)
    path = written(tmp_path / "a.dcm", dataset(values, PixelRepresentation=1))
    np.testing.assert_allclose(read_dicom(path)[0], VALUES / 4095, atol=1e-6)


def test_monochrome1_is_the_inverse_of_monochrome2(tmp_path: Path) -> None:
    direct = shown(tmp_path)
    inverted = written(tmp_path / "i.dcm", dataset(4095 - VALUES, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(read_dicom(inverted)[0], direct, atol=1e-6)
    window = {"WindowCenter": 2047.5, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    windowed = dataset(4095 - VALUES, PhotometricInterpretation="MONOCHROME1", **window)
    np.testing.assert_allclose(
        read_dicom(written(tmp_path / "w.dcm", windowed))[0], shown(tmp_path, **window), atol=1e-6
    )


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
def test_windows_agree_with_pydicom(tmp_path: Path, function: str | None) -> None:
    window = {"WindowCenter": [1800, 5], "WindowWidth": [900, 7]} | ({"VOILUTFunction": function} if function else {})
    ours = shown(tmp_path, **window)
    theirs = apply_windowing(VALUES, dataset(VALUES, **window)) / 4095
    assert ours.std() > 0.2
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_window_is_stated_in_rescaled_units(tmp_path: Path) -> None:
    plain = shown(tmp_path, WindowCenter=2000, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")
    doubled = shown(
        tmp_path,
        WindowCenter=3000,
        WindowWidth=2000,
        VOILUTFunction="LINEAR_EXACT",
        RescaleSlope=2,
        RescaleIntercept=-1000,
    )
    np.testing.assert_allclose(doubled, plain, atol=1e-6)


def test_a_window_of_width_one_is_a_step(tmp_path: Path) -> None:
    np.testing.assert_array_equal(shown(tmp_path, WindowCenter=2000, WindowWidth=1), VALUES > 1999.5)


@pytest.mark.parametrize("window", [{"WindowWidth": 0}, {"WindowWidth": 100, "VOILUTFunction": "STRANGE"}])
def test_an_impossible_window_is_refused(tmp_path: Path, window: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"a.dcm cannot be decoded as DICOM \(ValueError\)"):
        shown(tmp_path, WindowCenter=2000, **window)


def lookup(first: int, bits: int, entries: np.ndarray) -> Dataset:
    table = Dataset()
    table.add_new(0x00283002, "US", [len(entries), first, bits])
    table.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
    return table


def test_lookup_tables_come_before_windows(tmp_path: Path) -> None:
    entries = np.arange(4096)[::-1] // 4
    table = lookup(0, 10, entries)
    np.testing.assert_allclose(
        shown(tmp_path, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2), entries[VALUES] / 1023, atol=1e-6
    )
    modality = lookup(0, 16, entries * 64)
    np.testing.assert_allclose(shown(tmp_path, ModalityLUTSequence=[modality]), entries[VALUES] * 64 / 65535, atol=1e-6)


def test_colour_and_the_first_frame(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    made = dataset(
        frames,
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        NumberOfFrames=2,
    )
    path = written(tmp_path / "a.dcm", made)
    np.testing.assert_allclose(read_dicom(path), np.moveaxis(frames[0] / 255, -1, 0), atol=1e-7)
    assert image_size(path) == (8, 6)
    assert read_image(path, InputSpec(1, 3, 4)).shape == (1, 3, 4)


def test_dicom_is_known_by_its_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "no_suffix", dataset(VALUES))
    np.testing.assert_allclose(read_image(path, InputSpec(1, 9, 14))[0], VALUES / 4095, atol=1e-6)


def relabelled(path: Path, syntax: UID) -> Path:
    """The same file, whose header claims another transfer syntax."""
    meta = read_file_meta_info(path)
    body = path.read_bytes()[132 + 12 + meta.FileMetaInformationGroupLength :]
    meta.TransferSyntaxUID = syntax
    head = DicomBytesIO()
    write_file_meta_info(head, meta)
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + body)
    return path


@pytest.mark.parametrize("read", [read_dicom, dicom_size])
def test_deflated_and_unknown_transfer_syntaxes_are_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    deflated = written(tmp_path / "d.dcm", dataset(VALUES), uid.DeflatedExplicitVRLittleEndian)
    unknown = relabelled(written(tmp_path / "u.dcm", dataset(VALUES)), UID("1.2.3.4.5"))
    for path in (deflated, unknown):
        with pytest.raises(DataError, match=f"{path.name} is stored deflated or in an unknown transfer syntax"):
            read(path)


def test_a_missing_decoder_is_named(tmp_path: Path) -> None:
    if get_decoder(uid.JPEGLSLossless).is_available:
        pytest.skip("a JPEG-LS decoder is installed")
    path = relabelled(written(tmp_path / "a.dcm", dataset(VALUES)), uid.JPEGLSLossless)
    with pytest.raises(DataError, match=r"compressed as JPEG-LS Lossless.*no decoder is installed: install pylibjpeg"):
        read_dicom(path)


@pytest.mark.parametrize(
    "claims",
    [
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 7000, "Columns": 7000, "NumberOfFrames": 1000},
        {"Rows": 0},
    ],
)
def test_claimed_sizes_are_checked_before_decoding(tmp_path: Path, claims: dict[str, int]) -> None:
    path = written(tmp_path / "a.dcm", dataset(VALUES, **claims))
    for read in (read_dicom, dicom_size):
        with pytest.raises(DataError, match=r"a.dcm claims \d+×\d+ pixels .* reduce it"):
            read(path)


def test_palettes_and_files_without_an_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.dcm is neither a grey nor an RGB or YBR image"):
        shown(tmp_path, PhotometricInterpretation="PALETTE COLOR")
    bare = dataset(VALUES)
    del bare.Rows
    with pytest.raises(DataError, match=r"b.dcm is a DICOM file without an image"):
        dicom_size(written(tmp_path / "b.dcm", bare))


def test_what_is_called_dicom_and_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"text" * 100)
    with pytest.raises(DataError, match=r"a.dcm cannot be decoded as DICOM \(InvalidDicomError\)"):
        read_dicom(tmp_path / "a.dcm")


def test_text_in_a_number_is_not_quoted(tmp_path: Path) -> None:
    path = written(tmp_path / "a.dcm", dataset(VALUES, WindowCenter=2000, WindowWidth=900))
    content = path.read_bytes()
    assert content.count(b"2000") == 1
    path.write_bytes(content.replace(b"2000", b"Zyxw"))
    with pytest.raises(DataError, match=r"a.dcm cannot be decoded as DICOM \(ValueError\)") as caught:
        read_dicom(path)
    assert "Zyxw" not in "".join(traceback.format_exception(caught.value))


def test_no_header_text_leaves_however_the_file_is_damaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rng = random.Random(0)
    content = written(tmp_path / "whole.dcm", dataset(VALUES, WindowCenter=2000, WindowWidth=900)).read_bytes()
    start = content.index(NAME.encode())
    path = tmp_path / "a.dcm"
    told = []
    for turn in range(400):
        changed = bytearray(content[: rng.randrange(140, len(content))] if turn % 4 == 0 else content)
        for _ in range(rng.choice((1, 2, 8))):
            place = rng.randrange(132, min(len(changed), start + 400))
            changed[place] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            pixels = read_dicom(path)
            assert 0.0 <= pixels.min() <= pixels.max() <= 1.0
        except DataError as error:
            told += [str(error), *traceback.format_exception(error)]
    output = capfd.readouterr()
    assert len(told) > 100
    everything = "".join([*told, output.out, output.err, caplog.text])
    for piece in (NAME, "Zyxwvut", "Planted"):
        assert piece not in everything
