"""What every benchmark shares: its two options, its rows, the facts of the machine, and an exit code that means something."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from xvision import provenance

Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "numpy", "scikit-learn", "torchao", "onnxruntime")


def row(check: str, figure: Any, target: str, holds: bool, how: str) -> Row:
    """One line of a benchmark: what was looked at, what came out, what was wanted, whether it holds, how it was measured."""
    return {"check": check, "figure": figure, "target": target, "holds": bool(holds), "how": how}


def main(
    name: str,
    measure: Callable[[bool], Iterator[Row]],
    left_out: Callable[[bool], list[str]],
    packages: tuple[str, ...] = PACKAGES,
) -> int:
    """Runs a benchmark; 0 only when every row holds. left_out: what this machine or ``--quick`` did not measure.

    packages: those whose versions belong to the figures; one that is not installed is None.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="at most a minute; says what it left out")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for found in measure(parsed.quick):
        rows.append(found)
        print(
            f"{'holds' if found['holds'] else 'FAILS':<6} {found['check']:<58} {found['figure']!s:<28} {found['target']:<9}"
            f" {found.get('evaluations', '')}".rstrip(),
            flush=True,
        )
    skipped = left_out(parsed.quick)
    for what in skipped:
        print(f"left out: {what}")
    if parsed.json:
        facts = {
            "benchmark": name, "quick": parsed.quick, "machine": provenance.hardware(torch.device("cpu")),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "versions": {package: _version(package) for package in packages},
            "rows": rows, "left_out": skipped,
        }  # fmt: skip
        parsed.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 0 if all(found["holds"] for found in rows) else 1


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def quietly() -> Iterator[None]:
    """Progress bars of libraries out of the way."""
    from xvision.models.loading import quiet

    with quiet():
        yield


class Silent:
    """A console that shows nothing."""

    def update(self, title: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def say(self, sentence: str) -> None:
        """Nothing."""


if __name__ == "__main__":
    sys.exit("Run one of the benchmarks: classifier, explanations, gpu.")
