"""Image files to float pixels: formats allow-listed, size checked before decoding, bit depth kept.

Colour to grey uses the weights 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601); grey to colour repeats the channel;
transparent pixels are laid on black; only the first frame is read; the EXIF orientation is applied.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from xvision.data.dicom import dicom_size, is_dicom, read_dicom
from xvision.data.limits import MAX_BYTES, MAX_PIXELS, refuse_large_file
from xvision.errors import DataError

if TYPE_CHECKING:
    from xvision.models.protocols import InputSpec

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm"})
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
# What Pillow's readers raise on damaged or hostile files; found by mutating files of every allowed format.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Blob:
    """An image file that is stored inside another file; DICOM is not read from there. name: as messages call it."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


def read_image(path: Path | Blob, spec: InputSpec) -> np.ndarray:
    """Pixels (C, H, W) float32 in [0, 1] of an image file as ``spec`` wants them.

    8-bit values are divided by 255 and 16-bit values by 65535, so 12-bit data stored in 16 bits stays dark. Raises
    DataError naming the file when it is not an allowed format, too large, truncated or damaged.
    """
    return fit(read_dicom(path) if isinstance(path, Path) and is_dicom(path) else _decode(path), spec)


def check_header(path: Path | Blob) -> None:
    """Raise DataError when the header is not one of an allowed image of bearable size; no pixel is decoded."""
    if isinstance(path, Path) and is_dicom(path):
        dicom_size(path)
    else:
        with _opened(path):
            pass


def image_size(path: Path | Blob) -> tuple[int, int]:
    """Width and height in pixels as displayed; raises DataError like ``read_image``.

    A PNG may state its orientation after its pixels, so one without an earlier statement is decoded.
    """
    if isinstance(path, Path) and is_dicom(path):
        return dicom_size(path)
    with _opened(path) as image:
        # Pillow reports TIFF sizes already turned, and those of other formats as stored.
        turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def read_mask(path: Path | Blob, size: tuple[int, int], spec: InputSpec) -> np.ndarray:
    """Mask (H, W) bool of a mask file: every pixel that is not zero, resized by ``fit_mask``.

    size: width and height of the image the mask belongs to. Raises DataError when the mask has another aspect ratio
    or is a JPEG, whose compression turns zeros into small numbers.
    """
    with _opened(path) as image:
        if image.format not in ("PNG", "TIFF", "BMP"):
            raise DataError(f"The mask {path} is a {image.format} file: store masks as PNG, TIFF or BMP.")
        mask = np.asarray(image if image.mode in ("1", "L", "P") else image.convert("L")) != 0
    height, width = mask.shape
    if abs(width * size[1] - height * size[0]) > 0.01 * height * size[0]:
        raise DataError(
            f"The mask {path} is {width}×{height} pixels but its image is {size[0]}×{size[1]}: "
            "a mask must show the same field as its image."
        )
    return fit_mask(mask, spec)


def fit(planes: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Planes (1 or 3, H, W) float32 as (C, H, W) of ``spec``; resampled in float, so that depth is kept."""
    if spec.channels not in (1, 3):
        raise DataError(f"The model wants {spec.channels} channels: images are grey (1) or colour (3).")
    if planes.shape[0] == 3 and spec.channels == 1:
        planes = np.tensordot(LUMA, planes, axes=1)[None]
    if planes.shape[1:] != (spec.height, spec.width):
        size, resample = (spec.width, spec.height), _FILTERS[spec.resample]
        planes = np.stack([np.asarray(Image.fromarray(plane).resize(size, resample)) for plane in planes])
    if planes.shape[0] != spec.channels:
        planes = np.repeat(planes, spec.channels, axis=0)
    return np.ascontiguousarray(np.clip(planes, 0.0, 1.0), dtype=np.float32)


def fit_mask(mask: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Mask (H, W) bool at the size of ``spec``: the pixels of which at least half is covered.

    Where no pixel is half covered, those covered most: a mask that marks something never becomes empty.
    """
    if mask.shape == (spec.height, spec.width):
        return mask
    cover = Image.fromarray(mask.astype(np.float32)).resize((spec.width, spec.height), Image.Resampling.BOX)
    return _covered(np.asarray(cover))


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int], spec: InputSpec) -> np.ndarray:
    """Mask (H, W) bool of a filled box (x, y, width, height) given in pixels of an image of ``size`` (width, height).

    Raises DataError when the box reaches more than one pixel beyond the image.
    """
    x, y, width, height = box
    if x + width > size[0] + 1 or y + height > size[1] + 1:
        raise DataError(f"The box {box} reaches beyond its image of {size[0]}×{size[1]} pixels.")
    across = _overlap(x / size[0], (x + width) / size[0], spec.width)
    down = _overlap(y / size[1], (y + height) / size[1], spec.height)
    return _covered(down[:, None] * across[None, :])


def _overlap(start: float, stop: float, cells: int) -> np.ndarray:
    """Share (cells,) of each of ``cells`` equal parts of [0, 1] that lies between ``start`` and ``stop``."""
    edges = np.linspace(0.0, 1.0, cells + 1)
    shared: np.ndarray = np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start)
    return shared.clip(0.0) * cells


def _covered(cover: np.ndarray) -> np.ndarray:
    top = float(cover.max(initial=0.0))
    # The tolerance keeps a pixel that is covered by exactly half from hanging on the last bit.
    return cover >= min(0.5, top) - 1e-6 if top > 0 else np.zeros(cover.shape, dtype=bool)


def _refuse_large(path: Path | Blob) -> None:
    if isinstance(path, Path):
        refuse_large_file(path)
    elif len(path.content) > MAX_BYTES:
        raise DataError(f"{path} has more than the {MAX_BYTES // 2**20} MiB allowed: reduce it.")


@contextmanager
def _opened(path: Path | Blob) -> Iterator[Image.Image]:
    """An allowed image file of bearable size; whatever goes wrong inside becomes a DataError naming the file."""
    _refuse_large(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that are refused and of damage that it repairs
            # A path would let Pillow map raw TIFF data into memory, which garbles images that are stored turned.
            source = path.open("rb") if isinstance(path, Path) else BytesIO(path.content)
            with source as stream, Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"{path} has {image.width}×{image.height} pixels, more than the {MAX_PIXELS // 10**6} million "
                        "allowed: reduce it."
                    )
                yield image
    except UnidentifiedImageError:
        raise DataError(f"{path} is no readable {', '.join(FORMATS)} or DICOM image: convert it.") from None
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} cannot be decoded ({reason}): the file is damaged, replace it.") from error


def _decode(path: Path | Blob) -> np.ndarray:
    """Planes (1 or 3, H, W) float32 in [0, 1] of the first frame."""
    with _opened(path) as image:
        array = _values(ImageOps.exif_transpose(image), path)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _values(image: Image.Image, path: Path | Blob) -> np.ndarray:
    """Values (H, W) or (H, W, 3) float32 in [0, 1] whatever the mode."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.float32) / np.float32(65535)
    if image.mode in ("I", "F"):
        return _unit_floats(np.asarray(image), path)
    if image.has_transparency_data:
        layers = np.asarray(image.convert("RGBA")).astype(np.float32) / np.float32(255)
        return layers[..., :3] * layers[..., 3:]
    grey = image.mode in ("1", "L")
    return np.asarray(image.convert("L" if grey else "RGB")).astype(np.float32) / np.float32(255)


def _unit_floats(values: np.ndarray, path: Path | Blob) -> np.ndarray:
    if values.dtype != np.float32 or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise DataError(
            f"{path} holds 32-bit values outside [0, 1], whose scale is unknown: store it with 8 or 16 bits."
        )
    return values
