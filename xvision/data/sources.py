"""Where pixels come from: image files decoded on demand, or arrays in memory."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from xvision.data.images import Blob, box_mask, check_header, fit, fit_mask, image_size, read_image, read_mask
from xvision.data.paths import resolve_inside
from xvision.errors import DataError

if TYPE_CHECKING:
    from xvision.models.protocols import InputSpec

Box = tuple[float, float, float, float]
Content = Literal["image", "mask"]


class StoredSource(ABC):
    """Images and masks that are image files, on their own or inside another file; boxes: id → box, a mask wins over it."""

    def __init__(self, boxes: Mapping[str, Box]) -> None:
        self._boxes = boxes
        self._digests: dict[Path, str] = {}

    @abstractmethod
    def _file(self, case: str, content: Content) -> Path | Blob:
        """The file with the image or mask of a case; raises DataError when there is none."""

    @abstractmethod
    def _has(self, case: str, content: Content) -> bool:
        """Whether the case has such a file."""

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1]; raises DataError naming a file that cannot be read."""
        pixels = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.float32)
        for row, case in enumerate(ids):
            pixels[row] = read_image(self._file(case, "image"), spec)
        return pixels

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Masks (B, H, W) bool; raises DataError for a mask or box that does not fit its image."""
        masks = np.empty((len(ids), spec.height, spec.width), dtype=bool)
        for row, case in enumerate(ids):
            size = image_size(self._file(case, "image"))
            if self._has(case, "mask"):
                masks[row] = read_mask(self._file(case, "mask"), size, spec)
            elif case in self._boxes:
                masks[row] = self._box(case, size, spec)
            else:
                raise DataError(f"Case {case!r} has neither a mask nor a box.")
        return masks

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """One sentence per image whose header cannot be read."""
        sentences = []
        for case in ids:
            try:
                check_header(self._file(case, "image"))
            except DataError as error:
                sentences.append(str(error))
        return tuple(sentences)

    def digests(self, ids: Sequence[str], content: Content) -> tuple[str, ...]:
        """SHA-256 of the bytes of each file; "" for a case without such a file."""
        return tuple(self._digest(self._file(case, content)) if self._has(case, content) else "" for case in ids)

    def _box(self, case: str, size: tuple[int, int], spec: InputSpec) -> np.ndarray:
        try:
            return box_mask(self._boxes[case], size, spec)
        except DataError as error:
            raise DataError(f"Case {case!r}: {error}") from error

    def _digest(self, file: Path | Blob) -> str:
        """Computed once per path."""
        if isinstance(file, Blob):
            return hashlib.sha256(file.content).hexdigest()
        if file not in self._digests:
            try:
                with file.open("rb") as stream:
                    self._digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:  # data for a model's stored scores may come without images
                return ""
            except OSError as error:
                raise DataError(f"{file} cannot be read ({type(error).__name__}): restore the file.") from error
        return self._digests[file]


class FileSource(StoredSource):
    """Images, mask files and boxes under one folder; nothing is kept but the names and the hashes once computed.

    images, masks: id → path relative to ``root``. boxes: id → (x, y, width, height) in pixels of the image as
    displayed; a mask file wins over a box.
    """

    def __init__(
        self, root: Path, images: Mapping[str, str], masks: Mapping[str, str], boxes: Mapping[str, Box]
    ) -> None:
        super().__init__(boxes)
        self._root = root.resolve()
        self._names: dict[Content, Mapping[str, str]] = {"image": images, "mask": masks}

    def _has(self, case: str, content: Content) -> bool:
        return case in self._names[content]

    def _file(self, case: str, content: Content) -> Path:
        if not self._has(case, content):
            raise DataError(f"Case {case!r} has no {content} file.")
        return resolve_inside(self._root, self._names[content][case])


class ArraySource:
    """Images in memory. ids: N case ids. pixels: (N, 1 or 3, H, W) float32 in [0, 1] or uint8. masks: (N, H, W) bool."""

    def __init__(self, ids: Sequence[str], pixels: np.ndarray, masks: np.ndarray | None = None) -> None:
        if pixels.ndim != 4 or pixels.shape[0] != len(ids) or pixels.shape[1] not in (1, 3):
            raise DataError(f"Pixels of shape {pixels.shape} do not fit {len(ids)} ids: (N, 1 or 3, H, W) is needed.")
        if masks is not None and masks.shape != (len(ids), *pixels.shape[2:]):
            raise DataError(f"Masks of shape {masks.shape} do not fit pixels of shape {pixels.shape}.")
        self._rows = {case: row for row, case in enumerate(ids)}
        self._pixels = pixels
        self._masks = masks

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1], fitted like those of files."""
        return fit_all(self._pixels[[self._row(case) for case in ids]], spec)

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Masks (B, H, W) bool, fitted like those of files."""
        if self._masks is None:
            raise DataError("These images in memory have no masks.")
        masks = np.empty((len(ids), spec.height, spec.width), dtype=bool)
        for position, case in enumerate(ids):
            masks[position] = fit_mask(self._masks[self._row(case)], spec)
        return masks

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """One sentence per case without an array."""
        return tuple(f"Case {case!r} has no image." for case in ids if case not in self._rows)

    def digests(self, ids: Sequence[str], content: Content) -> tuple[str, ...]:
        """SHA-256 of shape, type and bytes of each array; "" where there are no masks."""
        arrays = self._pixels if content == "image" else self._masks
        return tuple("" if arrays is None else array_digest(arrays[self._row(case)]) for case in ids)

    def _row(self, case: str) -> int:
        if case not in self._rows:
            raise DataError(f"Case {case!r} has no image.")
        return self._rows[case]


def array_digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fit_all(stored: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Planes (B, 1 or 3, H, W), uint8 or float32 in [0, 1], as ``fit`` gives each; at once where none must be resized."""
    scaled = stored.astype(np.float32) / np.float32(255) if stored.dtype == np.uint8 else stored
    channels, *size = stored.shape[1:]
    if size == [spec.height, spec.width] and (channels, spec.channels) in ((1, 1), (3, 3), (1, 3)):
        fitted: np.ndarray = np.clip(np.repeat(scaled, spec.channels // channels, axis=1), 0.0, 1.0, dtype=np.float32)
        return fitted
    pixels = np.empty((len(stored), spec.channels, spec.height, spec.width), dtype=np.float32)
    for row, planes in enumerate(scaled):
        pixels[row] = fit(planes, spec)
    return pixels


def parse_box(text: str, where: str) -> Box:
    """The box of a cell ``x,y,width,height``; raises DataError starting with ``where``."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{where}: bbox_xywh {text!r} is not four numbers 'x,y,width,height': correct it.") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(x, y) < 0 or min(width, height) <= 0:
        raise DataError(f"{where}: bbox_xywh {text!r} is no box: x, y ≥ 0 and width, height > 0 are needed.")
    return x, y, width, height
