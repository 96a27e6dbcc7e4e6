"""Image archives in the layout of MedMNIST (Yang et al. 2023): ``train_images``, ``train_labels``, and so on in one npz file.

An npz file is a zip of arrays. The sizes in the zip and in each array's header are checked against each other before any
memory is taken, nothing is unpickled, and images are read when they are asked for: mapped from the disk when the file was
written by ``numpy.savez``, unpacked split by split when it was written by ``numpy.savez_compressed``.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from xvision.archives import DAMAGE, fill, npy_header, usual_packing
from xvision.data.findings import SEPARATOR
from xvision.data.limits import MAX_PIXELS
from xvision.data.sheets import Sheet
from xvision.data.sources import Content, array_digest, fit_all
from xvision.errors import ConfigError, DataError

if TYPE_CHECKING:
    from xvision.models.protocols import InputSpec

SPLITS = {"train": "train", "val": "validation", "test": "test"}
MAX_LABEL_BYTES = 256 * 2**20
MAX_UNPACKED = 8 * 2**30
MAX_RATIO = 100
SMALL = 64 * 2**20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


@dataclass(frozen=True)
class Member:
    """One array of the archive: what its headers say, checked, and where its values start when they are not packed.

    stamp: size and time of change of the archive when its headers were read.
    """

    archive: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    header: int
    start: int | None
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def read(self) -> np.ndarray:
        """The values, mapped read-only where they are not packed; raises DataError when the file is no longer as it was."""
        order: Literal["C", "F"] = "F" if self.fortran else "C"
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        try:
            if _stamp(self.archive) != self.stamp:
                raise DataError(f"{self.archive} has changed since it was opened: load the data again.")
            if self.start is not None:
                return np.memmap(self.archive, self.dtype, "r", self.start, self.shape, order)
            with zipfile.ZipFile(self.archive) as archive, archive.open(f"{self.name}.npy") as stream:
                stream.seek(self.header)
                values: np.ndarray = np.empty(self.shape, self.dtype, order)
                fill(stream, values.reshape(-1, order="A").view(np.uint8).data)
                return values
        except (*DAMAGE, KeyError) as problem:
            raise _damaged(self.archive, self.name, problem) from problem


class NpzSource:
    """Images of an npz archive, one array a split. Ids are ``train/0``, ``train/1``, …; there are no masks."""

    def __init__(self, members: Mapping[str, Member]) -> None:
        self._members = members

    def __getstate__(self) -> dict[str, Any]:
        """Without the images: another process reads them again."""
        return {"_members": self._members}

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {}

    def pixels(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Pixels (B, C, H, W) float32 in [0, 1]; values are divided by 255."""
        places = [self._place(case) for case in ids]
        pixels = np.empty((len(ids), spec.channels, spec.height, spec.width), dtype=np.float32)
        for split in dict.fromkeys(split for split, _ in places):
            chosen = [position for position, (of, _) in enumerate(places) if of == split]
            stored = self._images(split)[[places[position][1] for position in chosen]]
            planes = stored[:, None] if stored.ndim == 3 else np.moveaxis(stored, -1, 1)
            pixels[chosen] = fit_all(planes, spec)
        return pixels

    def masks(self, ids: Sequence[str], spec: InputSpec) -> np.ndarray:
        """Always refused."""
        raise DataError("An npz archive holds no masks: write the images to files and name the masks in a manifest.")

    def unreadable(self, ids: Sequence[str]) -> tuple[str, ...]:
        """One sentence per case that is not in the archive; the headers were checked when it was opened."""
        sentences = []
        for case in ids:
            try:
                self._place(case)
            except DataError as error:
                sentences.append(str(error))
        return tuple(sentences)

    def digests(self, ids: Sequence[str], content: Content) -> tuple[str, ...]:
        """SHA-256 of shape, type and bytes of each image; "" for masks."""
        if content == "mask":
            return ("",) * len(ids)
        return tuple(array_digest(self._images(split)[row]) for split, row in map(self._place, ids))

    def _place(self, case: str) -> tuple[str, int]:
        """Split and row of an id."""
        split, _, digits = case.partition("/")
        row = int(digits) if digits.isdecimal() and digits.isascii() and len(digits) < 12 else -1
        if split not in self._members or f"{split}/{row}" != case or not 0 <= row < len(self._members[split]):
            raise DataError(f"Case {case!r} has no image.")
        return split, row

    def _images(self, split: str) -> np.ndarray:
        if split not in self._arrays:
            self._arrays[split] = self._members[split].read()
        return self._arrays[split]


def read_npz(path: Path, groups: tuple[str, ...], columns: Mapping[str, str], multilabel: bool) -> Sheet:
    """The cases of an npz archive. Labels are ``0``, ``1``, … unless ``NAME.labels.json`` beside ``NAME.npz`` names them.

    That file holds an object from number to name, as ``{"0": "normal", "1": "pneumonia"}``. Labels (N, 1) are class
    numbers; labels (N, K) of 0 and 1 are K findings and need ``multilabel``. Raises ConfigError for groups and columns,
    which an archive has not, DataError for an archive that cannot be used.
    """
    asked = [*groups, *columns.values()]
    if asked:
        raise ConfigError(
            f"{path.name} is an npz archive and has no column {asked[0]!r}: write a manifest to name groups."
        )
    members = _members(path)
    images = {split: members[f"{split}_images"] for split in SPLITS if f"{split}_images" in members}
    names = _names(path)
    cells: dict[str, list[str]] = {"id": [], "label": [], "split": []}
    for split, images_of in images.items():
        labels = _labels(path, split, members, len(images_of))
        told = _told(labels, names, multilabel, f"{path.name}: {split}_labels")
        cells["id"] += [f"{split}/{row}" for row in range(len(told))]
        cells["label"] += told
        cells["split"] += [SPLITS[split]] * len(told)
    if not cells["id"]:
        raise DataError(f"{path} holds no images: train_images, val_images or test_images is needed.")
    frame = pd.DataFrame(cells, index=pd.Index(cells["id"]), dtype="str")
    return Sheet(path.name, path.parent.resolve(), frame, tuple(cells), source=NpzSource(images))


def _members(path: Path) -> dict[str, Member]:
    """The arrays of the layout, their headers checked; other members of the archive are not looked at."""
    wanted = [f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    try:
        with zipfile.ZipFile(path) as archive:
            present = [info.filename for info in archive.infolist()]
            repeated = [name for name in wanted if present.count(f"{name}.npy") > 1]
            if repeated:
                raise DataError(f"{path} holds the array {repeated[0]!r} more than once: save it again.")
            found = {name: _member(path, archive, name) for name in wanted if f"{name}.npy" in present}
    except DAMAGE as problem:
        raise DataError(f"{path} is no readable npz archive ({problem}): save it again with numpy.savez.") from problem
    for name in found:
        other = name.replace("images", "labels") if name.endswith("images") else name.replace("labels", "images")
        if other not in found:
            raise DataError(f"{path} holds {name} without {other}: an array of each is needed.")
    if not found:
        names = ", ".join(sorted(name.removesuffix(".npy") for name in present)[:8]) or "nothing"
        raise DataError(f"{path} holds {names}: train_images and train_labels are needed, or those of val or test.")
    return found


def _member(path: Path, archive: zipfile.ZipFile, name: str) -> Member:
    """What the headers say of one array; raises DataError before anything large is read."""
    info = archive.getinfo(f"{name}.npy")
    try:
        _refuse_packing(info, f"{path}: {name}")
        with archive.open(info) as stream:
            shape, fortran, dtype = npy_header(stream)
            header = stream.tell()
        size = math.prod(shape) * dtype.itemsize
        if header + size != info.file_size:
            raise DataError(
                f"{path}: the header of {name} promises {header + size} bytes for the shape {shape}, but the archive holds "
                f"{info.file_size}: the file is damaged, save it again."
            )
        start = None if info.compress_type else _data_start(path, info, header)
    except DAMAGE as problem:
        raise _damaged(path, name, problem) from problem
    member = Member(path.resolve(), name, shape, dtype, fortran, header, start, _stamp(path))
    _check_images(member) if name.endswith("images") else _check_labels(member, size)
    return member


def _refuse_packing(info: zipfile.ZipInfo, where: str) -> None:
    """Neither encrypted, nor packed by an unusual method, nor a bomb."""
    if not usual_packing(info):
        raise DataError(f"{where} is encrypted or packed in an unusual way: save it again with numpy.savez.")
    if info.compress_type == zipfile.ZIP_STORED:
        return
    if info.file_size > MAX_UNPACKED:
        raise DataError(
            f"{where} unpacks to {info.file_size / 2**30:.0f} GiB, more than the {MAX_UNPACKED // 2**30} GiB that are held in "
            "memory: save the archive with numpy.savez, without compression, so that it can be read from the disk."
        )
    if info.file_size > SMALL and info.file_size > MAX_RATIO * info.compress_size:
        raise DataError(
            f"{where} unpacks to more than {MAX_RATIO} times its size ({info.file_size // 2**20} MiB), as no images do: "
            "save the archive with numpy.savez, without compression, if it is meant."
        )


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _data_start(path: Path, info: zipfile.ZipInfo, header: int) -> int:
    """Where in the file the values of an array begin that is not packed."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start: int = info.header_offset + _LOCAL_HEADER.size + name + extra
    if signature != b"PK\x03\x04" or start + info.file_size > os.path.getsize(path):
        raise ValueError("it reaches beyond the end of the file")
    return start + header


def _check_images(member: Member) -> None:
    shape = member.shape
    fits = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
    if not fits or member.dtype != np.uint8 or 0 in shape[1:]:
        raise DataError(
            f"{member.archive}: {member.name} is {member.dtype} of shape {shape}, but uint8 of shape (N, H, W) or "
            "(N, H, W, 3) is needed: volumes and other depths are not read from npz."
        )
    if shape[1] * shape[2] > MAX_PIXELS:
        raise DataError(
            f"{member.archive}: {member.name} has {shape[1]}×{shape[2]} pixels an image, more than the "
            f"{MAX_PIXELS // 10**6} million allowed: reduce them."
        )


def _check_labels(member: Member, size: int) -> None:
    shape = member.shape
    if member.dtype.kind not in "biu" or len(shape) not in (1, 2) or 0 in shape[1:] or size > MAX_LABEL_BYTES:
        raise DataError(
            f"{member.archive}: {member.name} is {member.dtype} of shape {shape}, but whole numbers of shape (N, 1), or "
            "0 and 1 of shape (N, K) for K findings, are needed."
        )


def _labels(path: Path, split: str, members: Mapping[str, Member], count: int) -> np.ndarray:
    """Labels (N, K) of a split."""
    labels = members[f"{split}_labels"].read()
    if len(labels) != count:
        raise DataError(f"{path}: {split}_labels has {len(labels)} rows, but {split}_images has {count} images.")
    return labels[:, None] if labels.ndim == 1 else labels


def _told(labels: np.ndarray, names: Mapping[int, str], multilabel: bool, where: str) -> list[str]:
    """Label cells for labels (N, K)."""
    single = labels.shape[1] == 1
    if single and multilabel:
        raise ConfigError(f"{where} holds one label an image: remove multilabel = true under [data].")
    if not single and not multilabel:
        raise ConfigError(f"{where} holds {labels.shape[1]} labels an image: set multilabel = true under [data].")
    bad = np.argwhere(labels < 0 if single else (labels != 0) & (labels != 1))
    if len(bad):
        row, column = bad[0]
        needed = "a class number from 0 on" if single else "0 or 1"
        raise DataError(f"{where} row {row} is {labels[row, column]}, but {needed} is needed.")
    numbers = labels[:, 0].tolist() if single else range(labels.shape[1])
    unnamed = sorted(set(map(int, numbers)) - set(names)) if names else []
    if unnamed:
        raise DataError(f"{where} holds the class {unnamed[0]}, which the file of class names does not name: add it.")
    if single:
        return [names.get(int(number), str(int(number))) for number in numbers]
    columns = np.array([names.get(number, str(number)) for number in numbers], dtype=object)
    return [SEPARATOR.join(columns[row != 0]) for row in labels]


def _names(path: Path) -> dict[int, str]:
    """Class names by number from the file beside the archive; none when there is no such file."""
    beside = path.with_suffix(".labels.json")
    try:
        text = beside.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as problem:
        raise DataError(f"{beside} cannot be read ({type(problem).__name__}): save it as UTF-8 text.") from problem
    try:
        found = json.loads(text)
        names = {int(number): name.strip() for number, name in found.items()}
    except (ValueError, AttributeError, RecursionError):
        raise DataError(f'{beside} is not an object from class number to name, as {{"0": "normal"}}.') from None
    usable = all(name and SEPARATOR not in name for name in names.values())
    if not usable or len(set(names.values())) != len(found):
        raise DataError(f"{beside}: class names must be filled in, different, and free of {SEPARATOR!r}.")
    return names


def _damaged(path: Path, name: str, problem: Exception) -> DataError:
    reason = str(problem) or type(problem).__name__
    return DataError(f"{path}: the array {name} cannot be read ({reason}): the file is damaged, save it again.")
