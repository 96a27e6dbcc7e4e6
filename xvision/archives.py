"""npz archives of somebody else: a zip of arrays, read without trusting a size that is written in it.

The sizes in the zip and in each array's header are checked against each other before any memory is taken, and nothing is
unpickled.
"""

from __future__ import annotations

import math
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
"""What reading a damaged archive may raise."""
MOST_ARRAYS, MOST_SIDE, MOST_PIXELS = 64, 4096, 64 * 2**20
"""Of an archive of maps: arrays, pixels on a side, and pixels of all arrays together (256 MiB as they are stored)."""
_MAP_TYPES = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.bool_))
_END = struct.Struct("<4s8xI4xH")  # of a zip: signature, bytes of the list of members, bytes of a comment
_LOCATOR = 20  # bytes before the end, in which a larger archive says where another list of members is
_LONGEST_LIST = 2**16


def usual_packing(info: zipfile.ZipInfo) -> bool:
    """Whether a member is neither encrypted nor packed by a method that numpy does not use."""
    return not info.flag_bits & 1 and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type; raises ValueError for what is no header of an array."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # headers written by Python 2 are read all the same
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"array format {version[0]}.{version[1]}")
    if any(length < 0 for length in shape):
        raise ValueError(f"the shape {shape}")
    return shape, fortran, dtype


def fill(stream: IO[bytes], target: memoryview) -> None:
    """Read exactly as many bytes as ``target`` has; with the last of them zipfile compares the checksum."""
    done = 0
    while done < len(target):
        part = stream.read(min(2**24, len(target) - done))
        if not part:
            raise EOFError("the values end early")
        target[done : done + len(part)] = part
        done += len(part)


def read_maps(path: Path) -> Mapping[str, np.ndarray]:
    """Every array of an archive by name, each float64, finite and (H, W).

    Raises one of ``DAMAGE`` whose message says which array is refused and why, before memory is taken for it.
    """
    facts = path.stat()
    most = MOST_PIXELS * np.dtype(np.float64).itemsize
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        raise ValueError(f"it is no file of at most {most} bytes")
    _refuse_long_list(path, facts.st_size)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [info.filename.removesuffix(".npy") for info in members]
        if len(members) > MOST_ARRAYS:
            raise ValueError(f"it holds {len(members)} arrays, more than {MOST_ARRAYS}")
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"it holds {repeated[0]!r} more than once")
        if sum(_pixels(archive, info) for info in members) > MOST_PIXELS:
            raise ValueError(f"its arrays hold more than {MOST_PIXELS} pixels")
        return {name: _map(archive, info) for name, info in zip(names, members, strict=True)}


def _refuse_long_list(path: Path, size: int) -> None:
    """Refuses a list of members that is too long before zipfile reads it; numpy writes neither a comment nor a second list."""
    with path.open("rb") as file:
        file.seek(max(0, size - _END.size - _LOCATOR))
        tail = file.read(_END.size + _LOCATOR)
    signature, listed, comment = _END.unpack(tail[-_END.size :].rjust(_END.size))
    if signature != b"PK\x05\x06" or comment or tail.startswith(b"PK\x06\x07"):
        raise ValueError("it does not end as an archive of maps does")
    if listed > _LONGEST_LIST:
        raise ValueError(f"its list of arrays has {listed} bytes, more than {_LONGEST_LIST}")


def _pixels(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """How many pixels an array has; raises ValueError unless its headers describe a map."""
    if not info.filename.endswith(".npy") or not usual_packing(info):
        raise ValueError(f"{info.filename!r} is no array, encrypted, or packed in an unusual way")
    with archive.open(info) as stream:
        try:
            shape, _, dtype = npy_header(stream)
        except ValueError as problem:
            raise ValueError(f"{info.filename!r} has no header of an array ({problem})") from None
        header = stream.tell()
    if len(shape) != 2 or not all(0 < side <= MOST_SIDE for side in shape) or dtype not in _MAP_TYPES:
        raise ValueError(
            f"{info.filename!r} is {dtype} of shape {shape}, but a map is float32, float64 or bool of shape (H, W) with "
            f"at most {MOST_SIDE} pixels on a side"
        )
    count = math.prod(shape)
    if header + count * dtype.itemsize != info.file_size:
        raise ValueError(
            f"{info.filename!r} has {info.file_size} bytes, but its header promises {header + count * dtype.itemsize}"
        )
    return count


def _map(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as stream:
        shape, fortran, dtype = npy_header(stream)
        values: np.ndarray = np.empty(shape, dtype, "F" if fortran else "C")
        fill(stream, values.reshape(-1, order="A").view(np.uint8).data)
    if not np.isfinite(values).all():
        raise ValueError(f"{info.filename!r} holds a value that is not finite")
    return values.astype(np.float64)
