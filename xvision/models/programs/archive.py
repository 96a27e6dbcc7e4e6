"""A .pt2 archive is untrusted: it is taken apart as data and put together again from the parts that were checked.

What torch would unpickle (sample inputs, pickled weights, custom objects) or run (compiled libraries) is refused or left
out, and torch reads our own copy, so that no difference between two zip readers can bring anything back.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from xvision.errors import ModelError
from xvision.models.programs.program import Program, checked_program

MAX_BYTES = 16 * 2**30
MAX_JSON_BYTES = 128 * 2**20
MAX_MEMBERS = 100_000
_PROGRAM = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_WANTED = re.compile(r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/[\w.-]+")
_SMALL = frozenset({"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"})
_UNREAD = "data/sample_inputs/model.pt"  # always a pickle; torch manages without it
_REASONS = (
    (r"data/aotinductor/.*", "a compiled library, which would run"),
    (r"data/(weights|constants)/(model\.pt|custom_obj_.*|opaque_obj_.*)", "a pickled object, which can run code"),
    (r"models/.*", "a second program, and it is not said which one counts"),
)
_WIDTH = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2}
"""Bytes of one number, by torch's code of its type."""
_STRIDED = 7
_CPU = {"type": "cpu", "index": None}


class Archive(NamedTuple):
    """content: a clean archive for ``torch.export.load``. extra: texts that came along, by name."""

    content: bytes
    program: Program
    extra: dict[str, str]


def open_archive(source: Path | io.BytesIO, where: str) -> Archive:
    """The checked parts of a .pt2 archive; ModelError, with the reason, for all that could run code or fill memory."""
    try:
        with zipfile.ZipFile(source) as archive:
            members = _members(archive, where)
            program = checked_program(_json(archive, members[_PROGRAM], where), where)
            configs = {name: _checked_config(archive, members, name, where) for name in _CONFIGS}
            extra = {
                name.removeprefix("extra/"): _bytes(archive, info, MAX_JSON_BYTES, where).decode("utf-8", "replace")
                for name, info in members.items()
                if name.startswith("extra/")
            }
            return Archive(_rebuilt(archive, members, {_PROGRAM: program.document, **configs}, where), program, extra)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as problem:
        raise ModelError(
            f"{where} is no readable .pt2 archive ({problem}): save it again with torch.export.save."
        ) from None
    except FileNotFoundError:
        raise ModelError(f"{where}: no such file. Give a .pt2 archive written by torch.export.save.") from None
    except OSError as problem:
        raise ModelError(f"{where} cannot be read ({problem.strerror}): make it readable.") from None


def _members(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The members that are wanted, by their names below the root; ModelError for any other."""
    found = archive.infolist()
    _check_sizes(archive, found, where)
    roots = {info.filename.partition("/")[0] for info in found}
    if "serialized_exported_program.json" in roots:
        raise ModelError(f"{where} is of the layout before torch 2.8, which holds pickles: export the model again.")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in found:
        name = info.filename.partition("/")[2]
        if len(roots) > 1 or not name or ".." in name.split("/") or "\\" in name or name in members:
            raise ModelError(
                f"{where} holds {info.filename!r}, outside its one folder or twice: it is no .pt2 archive."
            )
        if name != _UNREAD:
            members[_allowed(name, where)] = info
    if missing := [name for name in (_PROGRAM, *_CONFIGS) if name not in members]:
        raise ModelError(f"{where} has no {missing[0]}: save it again with torch.export.save.")
    return members


def _check_sizes(archive: zipfile.ZipFile, found: list[zipfile.ZipInfo], where: str) -> None:
    """Members are stored, not compressed, and together no larger than the file: so none can unfold into memory."""
    for info in found:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise ModelError(f"{where} holds {info.filename!r} compressed or encrypted, which torch never writes.")
    stream = archive.fp
    length = stream.seek(0, io.SEEK_END) if stream is not None else 0
    total = sum(info.file_size for info in found)
    if total > min(length, MAX_BYTES) or len(found) > MAX_MEMBERS:
        raise ModelError(
            f"{where} holds {len(found)} members of {total} bytes in a file of {length}; at most {MAX_BYTES // 2**30} GiB, "
            f"{MAX_MEMBERS} members and the file's own size are read."
        )


def _allowed(name: str, where: str) -> str:
    if name in {_PROGRAM, *_CONFIGS} or name in _SMALL or _WANTED.fullmatch(name):
        return name
    for form, what in _REASONS:
        if re.fullmatch(form, name):
            raise ModelError(f"{where} holds {name}, {what}: export the model alone, with torch.export.save.")
    raise ModelError(f"{where} holds {name[:80]!r}, which is no part of an exported program: export the model again.")


def _bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int, where: str) -> bytes:
    if info.file_size > limit:
        raise ModelError(f"{where}: {info.filename} has {info.file_size} bytes; at most {limit} are read.")
    return archive.read(info)


def _json(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> dict[str, Any]:
    try:
        data = json.loads(_bytes(archive, info, MAX_JSON_BYTES, where))
    except (ValueError, RecursionError) as problem:
        raise ModelError(
            f"{where}: {info.filename} is not readable JSON ({problem}): export the model again."
        ) from None
    if not isinstance(data, dict):
        raise ModelError(
            f"{where}: {info.filename} holds a {type(data).__name__}, not an object: export the model again."
        )
    return data


def _checked_config(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], name: str, where: str
) -> dict[str, Any]:
    """The table of weights or constants: plain tensors in members that are there and large enough, on the CPU."""
    folder = name.rpartition("/")[0]
    try:
        entries = _json(archive, members[name], where)["config"].items()
        return {
            "config": {item: _payload(members, folder, entry, f"{where}: {item[:80]!r}") for item, entry in entries}
        }
    except (AttributeError, KeyError, TypeError, ValueError) as problem:
        raise ModelError(
            f"{where}: {name} is damaged ({type(problem).__name__}: {problem}): export it again."
        ) from None


def _payload(members: dict[str, zipfile.ZipInfo], folder: str, entry: dict[str, Any], where: str) -> dict[str, Any]:
    """An entry of such a table; the numbers named by sizes, strides and offset must all lie inside the member."""
    if entry["use_pickle"]:
        raise ModelError(f"{where} is pickled, which can run code: export the model with plain tensors.")
    meta, info = entry["tensor_meta"], members.get(f"{folder}/{entry['path_name']}")
    sizes, strides = ([int(axis["as_int"]) for axis in meta[key]] for key in ("sizes", "strides"))
    offset, width = int(meta["storage_offset"]["as_int"]), _WIDTH.get(meta["dtype"])
    if info is None or width is None or len(sizes) != len(strides) or min((*sizes, *strides, offset)) < 0:
        raise ModelError(f"{where} names a payload that is not there or no plain tensor: export the model again.")
    needed = (offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1) * width
    if math.prod(sizes) and needed > info.file_size:
        raise ModelError(f"{where} needs {needed} bytes but has {info.file_size}: the archive is damaged.")
    tensor = {
        "dtype": meta["dtype"], "sizes": [{"as_int": size} for size in sizes], "requires_grad": False, "device": _CPU,
        "strides": [{"as_int": step} for step in strides], "storage_offset": {"as_int": offset}, "layout": _STRIDED,
    }  # fmt: skip
    return {
        "path_name": entry["path_name"],
        "is_param": bool(entry["is_param"]),
        "use_pickle": False,
        "tensor_meta": tensor,
    }


def _rebuilt(
    archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], documents: dict[str, Any], where: str
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as clean:
        for name, info in sorted(members.items()):
            if name in documents:
                clean.writestr(_entry(name), json.dumps(documents[name]))
            elif not name.startswith("extra/"):
                limit = 256 if name in _SMALL else MAX_BYTES
                clean.writestr(_entry(name), _bytes(archive, info, limit, where))
        clean.writestr(_entry(_UNREAD), b"")
    return stream.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    """A member without a date, so that equal models give equal bytes."""
    return zipfile.ZipInfo(f"model/{name}")
