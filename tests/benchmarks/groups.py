"""Groups, hidden slices and shortcuts: `python -m tests.benchmarks.groups [--quick] --json OUT`.

Aequitas comes with ``pip install aequitas==1.1.0``; without it its rows are left out and named. fairlearn is always there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.benchmarks.groups_planted import planted_rows
from tests.benchmarks.groups_shortcuts import shortcut_rows
from tests.benchmarks.groups_slices import slice_rows
from tests.benchmarks.groups_speed import speed_rows
from tests.benchmarks.groups_validity import missing, validity_rows
from tests.benchmarks.harness import Row, main

PACKAGES = ("numpy", "scipy", "scikit-learn", "pandas", "torch", "fairlearn", "aequitas")


def measure(quick: bool) -> Iterator[Row]:
    yield from validity_rows(quick)
    yield from speed_rows()
    if not quick:
        yield from planted_rows()
        yield from shortcut_rows()
        yield from slice_rows()


def left_out(quick: bool) -> list[str]:
    peers = [f"rows against it: {reason}" for reason in [missing()] if reason]
    return [*peers, *(["most of the fair data sets", "phantoms with planted flaws, hidden slices"] if quick else [])]


if __name__ == "__main__":
    sys.exit(main("groups", measure, left_out, PACKAGES))
