"""The run folder: written so that it is readable at every instant, read without torch and without trusting it.

Every file is written beside its final name, flushed to disk and renamed, so a kill or a power cut leaves the old file or
the new one. ``checksums.txt`` holds the SHA-256 of every file; ``review.jsonl`` is a chain, each line holding the hash of the
one before, so that a removed or altered note is found.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from xvision import archives, codec, images
from xvision.errors import RunError
from xvision.result import (
    NOT_JUDGED,
    PILLARS,
    SCHEMA,
    UNTESTED,
    Case,
    Finding,
    Judgement,
    MapVerdict,
    Record,
    Result,
    RunInfo,
    StoredCase,
)

_CHECKSUMS, _REVIEW, _LOCK, _WORK = "checksums.txt", "review.jsonl", ".lock", "work"
METRIC_COLUMNS = ("analysis", "name", "value", "low", "high", "n", "unit", "better", "where", "reason", "interval")


def write_atomic(path: Path, content: bytes) -> None:
    """The whole content or nothing, also through a power cut. Raises RunError when the disk refuses it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise RunError(
            f"{path}: cannot be written ({problem.strerror}). Free space or choose another --out, then run the same command again."
        ) from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_run(path: Path) -> bool:
    return (path / "run.json").is_file()


class Writer:
    """The only writer of a run folder, while ``locked``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one process; the lock ends with the process, however that ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.path}: another process is writing this run. Wait for it, or choose another --out."
                ) from None
            for leftover in self.path.rglob(".*.tmp"):
                leftover.unlink(missing_ok=True)
            yield  # the file stays: removing it would let two later writers lock two different files

    @property
    def work(self) -> Path:
        """Parts of unfinished work; removed when the run is complete."""
        return self.path / _WORK

    def info(self, info: RunInfo) -> None:
        self._json("run.json", info)

    def judgement(self, judgement: Judgement) -> None:
        self._json("findings.json", judgement)

    def table(self, name: str, rows: pd.DataFrame) -> None:
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        write_atomic(self.path / "tables" / f"{name}.parquet", buffer.getvalue())

    def result(self, record: Record, result: Result) -> Record:
        """Writes pictures and tables first and the record last, so that a record never points at nothing."""
        for name, rows in result.tables.items():
            self.table(name, rows)
        stored = replace(
            record,
            summary=result.summary,
            metrics=result.metrics,
            charts=result.charts,
            caveats=result.caveats,
            tables=tuple(result.tables),
            map_verdicts=result.map_verdicts,
            cases=tuple(self._case(record.analysis, case) for case in result.cases),
        )
        self.record(stored)
        return stored

    def record(self, record: Record) -> None:
        self._json(f"results/{record.analysis}.json", record)

    def log(self, event: Mapping[str, object]) -> None:
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n")

    def review(self, entry: Mapping[str, object]) -> None:
        """Appends a note; each line holds the hash of the line before, the first that of ``run.json``."""
        path = self.path / _REVIEW
        lines = path.read_bytes().splitlines() if path.exists() else []
        previous = hashlib.sha256(lines[-1]).hexdigest() if lines else sha256(self.path / "run.json")
        with path.open("ab") as file:
            file.write(json.dumps({**entry, "previous": previous}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.checksums()

    def checksums(self) -> None:
        """Hashes every file as it is now; the last thing written."""
        lines = [f"{sha256(path)}  {path.relative_to(self.path).as_posix()}" for path in _files(self.path)]
        write_atomic(self.path / _CHECKSUMS, ("\n".join(lines) + "\n").encode())

    def _json(self, name: str, value: object) -> None:
        write_atomic(self.path / name, codec.dumps(codec.plain(value)).encode())

    def _case(self, analysis: str, case: Case) -> StoredCase:
        stem = f"cases/{analysis}/{_short(case.id, 12)}"
        pictures = {name: f"{stem}-{_short(name, 6)}.png" for name in case.pictures}
        for name, relative in pictures.items():
            write_atomic(self.path / relative, images.png(case.pictures[name]))
        if not case.maps:
            return StoredCase(case.id, case.facts, pictures)
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: np.asarray(values, dtype=np.float32) for name, values in case.maps.items()}
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(self.path / f"{stem}.npz", buffer.getvalue())
        mapped = tuple(name for name in case.pictures if name in case.maps)
        return StoredCase(case.id, case.facts, pictures, f"{stem}.npz", mapped)


def _short(name: str, length: int) -> str:
    """A file name that any id may have and no id can misuse."""
    return hashlib.sha256(name.encode()).hexdigest()[:length]


def open_run(path: str | Path) -> Run:
    """A finished or unfinished run folder, read only. Raises RunError when it is not one."""
    return Run(Path(path))


class Run:
    """A run folder, read only. Every property reads lazily and raises RunError that names the file it cannot use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_run(path):
            raise RunError(
                f"{path}: not a run folder (it has no run.json). Give the folder that `xvision audit` printed."
            )

    @cached_property
    def info(self) -> RunInfo:
        data = self._load("run.json")
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise RunError(
                f"{self.path / 'run.json'}: schema {found!r}, but this version of xvision reads schema {SCHEMA}."
            )
        return codec.read(RunInfo, data, str(self.path / "run.json"), RunError)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """All results, in the order of the pillars; the one a pillar is named after comes first."""
        found = [self._record(path) for path in sorted((self.path / "results").glob("*.json"))]
        return tuple(sorted(found, key=_place))

    def record(self, analysis: str) -> Record:
        for record in self.records:
            if record.analysis == analysis:
                return record
        raise RunError(f"{self.path}: this run has no result of {analysis!r}.")

    @cached_property
    def judgement(self) -> Judgement:
        if not (self.path / "findings.json").exists():
            return NOT_JUDGED
        return codec.read(Judgement, self._load("findings.json"), str(self.path / "findings.json"), RunError)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.judgement.findings

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One tidy table of every number in the run."""
        rows = [{"analysis": record.analysis, **asdict(metric)} for record in self.records for metric in record.metrics]
        return pd.DataFrame(rows, columns=list(METRIC_COLUMNS))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        return self.table("predictions")

    def table(self, name: str) -> pd.DataFrame:
        path = self.path / "tables" / f"{name}.parquet"
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as problem:
            raise RunError(
                f"{path}: cannot be read ({type(problem).__name__}). Run `xvision verify {self.path}`."
            ) from None

    @property
    def cases(self) -> Mapping[str, Mapping[str, StoredCase]]:
        """Stored cases by id and analysis."""
        found: dict[str, dict[str, StoredCase]] = {}
        for record in self.records:
            for case in record.cases:
                found.setdefault(case.id, {})[record.analysis] = case
        return found

    def map_verdict(self, name: str) -> MapVerdict:
        """Whether the maps of a method, by its label, may be relied on; where analyses disagree, the one that warns counts."""
        return self.map_verdicts.get(name, UNTESTED)

    @cached_property
    def map_verdicts(self) -> Mapping[str, MapVerdict]:
        """Every method that this run judged or drew a map of, by its label."""
        drawn = {name: UNTESTED for record in self.records for case in record.cases for name in case.mapped}
        found: dict[str, MapVerdict] = {}
        for record in self.records:
            for name, verdict in record.map_verdicts.items():
                found[name] = min(found.get(name, verdict), verdict, key=_caution)
        return found | {name: verdict for name, verdict in drawn.items() if name not in found}

    def file(self, relative: str) -> Path:
        """A file inside the run; RunError when the name leads out of it."""
        path = (self.path / relative).resolve()
        if not path.is_relative_to(self.path.resolve()):
            raise RunError(f"{self.path}: {relative!r} leads out of the run folder; the run was tampered with.")
        return path

    def picture(self, case: StoredCase, name: str) -> bytes:
        """PNG bytes of one picture of a case."""
        try:
            return self.file(case.pictures[name]).read_bytes()
        except (KeyError, OSError):
            raise RunError(
                f"{self.path}: the picture {name!r} of case {case.id!r} is missing. Run `xvision verify {self.path}`."
            ) from None

    def maps(self, case: StoredCase) -> Mapping[str, np.ndarray]:
        """The maps of a case as numbers, by name, each float64, finite and (H, W).

        Among them may be "pixels", the image's grey values, and "mask", the reference mask. RunError with one reason when the
        file is missing, or is not what a run writes.
        """
        if case.maps is None:
            return {}
        try:
            return archives.read_maps(self.file(case.maps))
        except archives.DAMAGE as problem:
            why = str(problem) if isinstance(problem, ValueError) else type(problem).__name__
            raise RunError(
                f"{self.path / case.maps}: the maps of case {case.id!r} cannot be read ({why}). Run `xvision verify {self.path}`."
            ) from None

    def reviews(self) -> tuple[Mapping[str, Any], ...]:
        """The auditor's notes, oldest first; RunError when a line is not one."""
        found = [_entry(line) for line in self._review_lines()]
        if None in found:
            raise RunError(
                f"{self.path / _REVIEW}: line {found.index(None) + 1} is not a note. Run `xvision verify {self.path}`."
            )
        return tuple(entry for entry in found if entry is not None)

    def problems(self) -> tuple[str, ...]:
        """What `xvision verify` reports: files that changed, went missing or were added since the run was written."""
        listing = self.path / _CHECKSUMS
        if not listing.exists():
            return (f"{_CHECKSUMS} is missing: the run was not finished, or it was removed.",)
        pairs = [line.split("  ", 1) for line in listing.read_text("utf-8", errors="replace").splitlines()]
        expected = {pair[1]: pair[0] for pair in pairs if len(pair) == 2}
        present = {path.relative_to(self.path).as_posix(): path for path in _files(self.path)}
        missing = [f"{name} is missing." for name in sorted(expected.keys() - present.keys())]
        added = [f"{name} was added." for name in sorted(present.keys() - expected.keys())]
        shared = sorted(expected.keys() & present.keys())
        changed = [f"{name} was changed." for name in shared if sha256(present[name]) != expected[name]]
        return (*missing, *added, *changed, *self._broken_chain())

    def _broken_chain(self) -> tuple[str, ...]:
        previous = sha256(self.path / "run.json")
        for number, line in enumerate(self._review_lines(), start=1):
            if (_entry(line) or {}).get("previous") != previous:
                return (f"{_REVIEW} line {number} does not follow from the line before it.",)
            previous = hashlib.sha256(line).hexdigest()
        return ()

    def _review_lines(self) -> list[bytes]:
        path = self.path / _REVIEW
        return path.read_bytes().splitlines() if path.exists() else []

    def _record(self, path: Path) -> Record:
        return codec.read(Record, self._load(f"results/{path.name}"), str(path), RunError)

    def _load(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as problem:
            raise RunError(
                f"{path}: cannot be read ({type(problem).__name__}). Run `xvision verify {self.path}`."
            ) from None


_PILLARS = {name: place for place, name in enumerate(PILLARS)}


def _caution(verdict: MapVerdict) -> int:
    """Warnings first, then what was decided."""
    return 0 if verdict.stamp else 1 + (verdict.word == "not decided")


def _entry(line: bytes) -> dict[str, Any] | None:
    """A line of ``review.jsonl``, None when it is not one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _files(root: Path) -> list[Path]:
    """Every regular file of the run, links not followed, unfinished work and the list itself left out."""
    found = []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        if path.is_symlink() or not path.is_file() or relative.parts[0] in {_WORK, _LOCK, _CHECKSUMS}:
            continue
        found.append(path)
    return found


def _place(record: Record) -> tuple[int, bool, str]:
    named = record.pillar.lower()
    return _PILLARS.get(record.pillar, len(_PILLARS)), record.analysis != named, record.analysis
