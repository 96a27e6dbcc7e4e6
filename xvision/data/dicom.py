"""DICOM files to grey or colour planes; the only door to pydicom.

Nothing but the pixel data and the attributes of ``_ATTRIBUTES`` is read, and neither is quoted in errors: no header
text, hence no name or date of a patient, leaves this file.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.misc import is_dicom as has_magic
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array

from xvision.data.limits import MAX_BYTES, MAX_PIXELS, refuse_large_file
from xvision.errors import DataError

_ATTRIBUTES = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
)
# Deflated syntaxes are left out: a file of one megabyte may inflate to gigabytes before any size can be checked.
_SYNTAXES = frozenset(
    {
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        *uid.RLETransferSyntaxes,
        *uid.JPEGTransferSyntaxes,
        *uid.JPEGLSTransferSyntaxes,
        *uid.JPEG2000TransferSyntaxes,
        uid.HTJ2K,
        uid.HTJ2KLossless,
        uid.HTJ2KLosslessRPCL,
    }
)
# What pydicom raises on damaged or hostile files; found by mutating files.
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    EOFError,
    MemoryError,
    RuntimeError,
    StopIteration,
    struct.error,
    zlib.error,
    BytesLengthException,
    InvalidDicomError,
)
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote header values


def is_dicom(path: Path) -> bool:
    """Whether the name ends in ``.dcm`` or the file carries the DICOM mark."""
    refuse_large_file(path)
    try:
        return path.suffix.lower() == ".dcm" or has_magic(path)
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({type(error).__name__}): make it readable.") from None


def dicom_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone; raises DataError like ``read_dicom``."""
    with _guarded(path):
        header = _header(path)
        return int(header.Columns), int(header.Rows)


def read_dicom(path: Path) -> np.ndarray:
    """Planes (1 or 3, H, W) float32 in [0, 1] of the first frame, shown as on a viewer with bright = dense.

    Grey values pass the modality LUT or rescale slope and intercept, then the first of these that the file has: the
    first VOI LUT, the first window (linear, linear exact or sigmoid; DICOM PS3.3 C.11.2), the full range of the
    stored bits. MONOCHROME1 is inverted. Windows inside the functional groups of enhanced multi-frame objects are
    not looked for. Raises DataError naming the file when its transfer syntax is deflated or unknown, when it is too
    large (checked before decoding), damaged, or has colours other than grey, RGB and YBR.
    """
    with _guarded(path):
        _header(path)
        with path.open("rb") as stream:
            dataset = dcmread(stream, specific_tags=[*_ATTRIBUTES, "PixelData"])
        values = pixel_array(dataset, index=0)
        if int(dataset.SamplesPerPixel) == 3:
            top = np.float32(2 ** int(dataset.BitsStored) - 1)
            return np.moveaxis(values.astype(np.float32) / top, -1, 0)
        shown = _display(values, dataset)
        if not np.isfinite(shown).all():
            raise ValueError("rescaling or window is not finite")
        return (1.0 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown)[None].astype(np.float32)


def _header(path: Path) -> Dataset:
    """The allowed attributes, after the checks that must come before any pixel is decoded."""
    syntax = read_file_meta_info(path).get("TransferSyntaxUID")
    if syntax not in _SYNTAXES:
        raise DataError(
            f"{path} is stored deflated or in an unknown transfer syntax: save it as Explicit VR Little Endian."
        )
    if not get_decoder(syntax).is_available:
        raise DataError(
            f"{path} is compressed as {syntax.name}, for which no decoder is installed: install pylibjpeg with its "
            "plugins or save it uncompressed."
        )
    with path.open("rb") as stream:
        header = dcmread(stream, stop_before_pixels=True, specific_tags=list(_ATTRIBUTES))
    if "Rows" not in header or "Columns" not in header:
        raise DataError(f"{path} is a DICOM file without an image: give the file that holds the image.")
    pixels = int(header.Rows) * int(header.Columns)
    values = pixels * int(header.get("NumberOfFrames") or 1) * int(header.SamplesPerPixel)
    if not 0 < pixels <= MAX_PIXELS or values * int(header.BitsAllocated) // 8 > MAX_BYTES:
        raise DataError(
            f"{path} claims {header.Columns}×{header.Rows} pixels and {values} values: allowed are 1 to "
            f"{MAX_PIXELS // 10**6} million pixels and {MAX_BYTES // 2**20} MiB, reduce it."
        )
    known = {"MONOCHROME1": 1, "MONOCHROME2": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3, "YBR_RCT": 3}
    if known.get(header.PhotometricInterpretation) != header.SamplesPerPixel:
        raise DataError(f"{path} is neither a grey nor an RGB or YBR image: convert it.")
    return header


def _display(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Stored grey values (H, W) as displayed, in [0, 1]."""
    scaled = apply_modality_lut(values, dataset)
    if dataset.get("VOILUTSequence"):
        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return np.asarray(apply_voi(scaled, dataset) / np.float64(2**bits - 1))
    if dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        return _window(scaled.astype(np.float64), dataset)
    low, high = _stored_range(dataset)
    return np.asarray(np.clip((scaled - low) / (high - low), 0.0, 1.0))


def _window(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Values through the first window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3), in [0, 1]."""
    center, width = (float(np.atleast_1d(dataset[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if function == "SIGMOID" and width > 0:
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0))))
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    raise ValueError("the window has no width or an unknown function")


def _stored_range(dataset: Dataset) -> tuple[float, float]:
    """Smallest and largest value that the stored bits can express after the modality step."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(dataset.BitsStored)
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if dataset.PixelRepresentation else [0, 2**bits - 1])
    if "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        ends = ends * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    return float(ends.min()), float(ends.max())


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    """Damage becomes a DataError that names the file and nothing of its header, not even as a cause."""
    refuse_large_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote header values
            yield
    except _DAMAGE as error:
        kind = type(error).__name__
        raise DataError(
            f"{path} cannot be decoded as DICOM ({kind}): the file is damaged or its pixels are of a kind that is not "
            "supported, replace or convert it."
        ) from None
