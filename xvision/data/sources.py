"""Where pixels come from: files decoded on demand, or arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from xvision.data.images import box_mask, check_header, fit, fit_mask, image_size, read_image, read_mask
from xvision.data.paths import resolve_inside
from xvision.errors import DataError

if TYPE_CHECKING:
    from xvision.models.protocols import InputSpec

Box = tuple[float, float, float, float]


class FileSource:
    """Images, mask files and boxes under one folder; nothing is kept but the names and the hashes once computed.

    images, masks: id → path relative to ``root``. boxes: id → (x, y, width, height) in pixels of the image as
    displayed; a mask file wins over a box.
    """

    def __init__(
        self, root: Path, images: Mapping[str, str], masks: Mapping[str, str], boxes: Mapping[str, Box]
    ) -> None:
        self._root = root.resolve()
        self._images = images
        self._masks = masks
        self._boxes = boxes
        self._digests: dict[Path, str] = {}

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1]; raises DataError naming a file that cannot be read."""
        pixels = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.float32)
        for row, case in enumerate(ids):
            pixels[row] = read_image(self._path(case, "image"), spec)
        return pixels

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Masks (B, H, W) bool; raises DataError for a mask or box that does not fit its image."""
        masks = np.empty((len(ids), spec.height, spec.width), dtype=bool)
        for row, case in enumerate(ids):
            size = image_size(self._path(case, "image"))
            if case in self._masks:
                masks[row] = read_mask(self._path(case, "mask"), size, spec)
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
                check_header(self._path(case, "image"))
            except DataError as error:
                sentences.append(str(error))
        return tuple(sentences)

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        """SHA-256 of each file, computed once per path; "" for a case without such a file."""
        known = self._images if content == "image" else self._masks
        return tuple(self._digest(self._path(case, content)) if case in known else "" for case in ids)

    def _path(self, case: str, content: Literal["image", "mask"]) -> Path:
        known = self._images if content == "image" else self._masks
        if case not in known:
            raise DataError(f"Case {case!r} has no {content} file.")
        return resolve_inside(self._root, known[case])

    def _box(self, case: str, size: tuple[int, int], spec: InputSpec) -> np.ndarray:
        try:
            return box_mask(self._boxes[case], size, spec)
        except DataError as error:
            raise DataError(f"Case {case!r}: {error}") from error

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            try:
                with path.open("rb") as stream:
                    self._digests[path] = hashlib.file_digest(stream, "sha256").hexdigest()
            except FileNotFoundError:  # data for a model's stored scores may come without images
                return ""
            except OSError as error:
                raise DataError(f"{path} cannot be read ({type(error).__name__}): restore the file.") from error
        return self._digests[path]


class ArraySource:
    """Images in memory. ids: N case ids. pixels: (N, 1 or 3, H, W) float32 in [0, 1]. masks: (N, H, W) bool or None."""

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
        pixels = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.float32)
        for position, case in enumerate(ids):
            pixels[position] = fit(self._pixels[self._row(case)], spec)
        return pixels

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

    def digests(self, ids: Sequence[str], content: Literal["image", "mask"]) -> tuple[str, ...]:
        """SHA-256 of shape, type and bytes of each array; "" where there are no masks."""
        arrays = self._pixels if content == "image" else self._masks
        return tuple("" if arrays is None else _array_digest(arrays[self._row(case)]) for case in ids)

    def _row(self, case: str) -> int:
        if case not in self._rows:
            raise DataError(f"Case {case!r} has no image.")
        return self._rows[case]


def _array_digest(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
