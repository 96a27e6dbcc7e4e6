"""Typed records to and from plain data: the only pydantic door.

Plans, criteria and run folders are read strictly: an unknown key is an error that names the nearest known one, a value
of the wrong type is an error that names its place, and nothing is converted silently.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from xvision.errors import XVisionError, nearest

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def record(cls: type[T]) -> type[T]:
    """A frozen dataclass that refuses unknown keys when it is read from data."""
    frozen = dataclass(frozen=True)(cls)
    frozen.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # type: ignore[attr-defined]  # pydantic's documented hook
    return frozen


def told_apart_by(name: str) -> Any:
    """For ``Annotated[A | B, …]``: the field whose literal value says which record it is, so that errors name the right one."""
    return Field(discriminator=name)


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_LONGEST = 80
_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Built once per type: building is a hundred times dearer than using."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def read(kind: type[T], data: object, where: str, error: Callable[[str], XVisionError]) -> T:
    """``data`` (what JSON or TOML gives) as ``kind``; raises ``error`` with a sentence that starts with ``where``."""
    try:
        result: T = _adapter(kind).validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as problem:
        raise error(f"{where}: {_sentence(kind, problem)}") from None
    return result


def plain(value: object) -> Any:
    """A record as JSON-ready data: dicts, lists, strings, numbers and None."""
    return _adapter(type(value)).dump_python(value, mode="json", warnings="error")


def dumps(value: object) -> str:
    """JSON text of plain data: keys in the order given, two spaces, and never NaN (raises ValueError)."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _sentence(kind: Any, problem: ValidationError) -> str:
    # A misspelt key is both unknown and missing: the unknown one tells the reader more.
    first = min(problem.errors(include_url=False), key=lambda error: error["type"] not in _UNKNOWN)
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] in _UNKNOWN:
        key = str(first["loc"][-1])
        known = _fields_at(kind, first["loc"][:-1])
        return f"unknown key {place!r}. {nearest(key, known)}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"the key {place!r} is missing."
    if first["type"] == "value_error":
        return f"{place or 'the value'}: {first['ctx']['error']}."
    found = repr(first["input"])
    shown = found if len(found) <= _LONGEST else found[:_LONGEST] + "…"
    return f"{place or 'the value'} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}."


def _fields_at(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """Field names of the record that the location inside ``kind`` points at."""
    for part in location:
        kind = _step(kind, part)
    kind = next((item for item in (kind, *get_args(kind)) if is_dataclass(item)), None)
    return [field.name for field in fields(kind)] if kind is not None else []


def _step(kind: Any, part: int | str) -> Any:
    """The type one step further into the data: a field of a record, a record by its kind, or what a container holds."""
    records = [item for item in (kind, *_inside(kind)) if is_dataclass(item)]
    for item in records:
        if getattr(item, "kind", None) == part:
            return item
    if records and isinstance(part, str):
        return get_type_hints(records[0], include_extras=True).get(part, kind)
    held = [item for item in _inside(kind) if item is not Ellipsis]
    return held[-1] if held else kind


def _inside(kind: Any) -> tuple[Any, ...]:
    """What a container, a union or an annotated union is made of."""
    parts = get_args(kind)
    return get_args(parts[0]) or parts[:1] if hasattr(kind, "__metadata__") else parts
