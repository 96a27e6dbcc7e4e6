"""Intervals by group beside fairlearn's MetricFrame: the same point estimates, the time of each, and how it grows with groups."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from time import process_time

import numpy as np

from tests.benchmarks.harness import Row, row
from xvision.methods.groups.cases import Rate
from xvision.methods.groups.counts import coded, group_draws, rate, rate_intervals, tabulated

METRICS: tuple[Rate, ...] = ("sensitivity", "fpr", "selection_rate", "ppv", "accuracy")
_ROWS, _GROUPS, _RESAMPLES, _PAIRS = 20_000, 4, 1000, 5
_REPLAYS = 4
"""Resamples that fairlearn is timed on; its time for 1,000 follows in proportion."""
_MANY, _MANY_ROWS = 5000, 100_000


def speed_rows() -> Iterator[Row]:
    yield from _beside_fairlearn()
    yield _many_groups()


def _data(rows: int, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, rows)
    return labels, np.where(rng.random(rows) < 0.8, labels, 1 - labels), rng.integers(0, groups, rows).astype(str)


def _ours(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Point estimates (5, G), after intervals of all of them were made."""
    coding = coded({"group": groups})
    table = tabulated(labels, decisions, coding.codes, coding.count)
    blocks = group_draws(
        labels, decisions, coding.codes, coding.count, np.arange(len(labels)), rng=np.random.default_rng(1),
        resamples=_RESAMPLES,
    )  # fmt: skip
    found = rate_intervals(table, blocks, METRICS)
    return np.stack([found[name].value for name in METRICS])


def _theirs(labels: np.ndarray, decisions: np.ndarray, groups: np.ndarray, resamples: int | None) -> np.ndarray:
    from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score, precision_score

    frame = MetricFrame(
        metrics={
            "sensitivity": true_positive_rate, "fpr": false_positive_rate, "selection_rate": selection_rate,
            "ppv": precision_score, "accuracy": accuracy_score,
        },
        y_true=labels, y_pred=decisions, sensitive_features=groups, n_boot=resamples,
        ci_quantiles=[0.025, 0.975] if resamples else None, random_state=0 if resamples else None,
    )  # fmt: skip
    if resamples:
        _ = frame.by_group_ci
    return np.asarray(frame.by_group[list(METRICS)].to_numpy(float).T)


def _beside_fairlearn() -> Iterator[Row]:
    data = _data(_ROWS, _GROUPS)
    apart = float(np.abs(_ours(*data) - _theirs(*data, None)).max())
    ratios, spent = [], []
    for _ in range(_PAIRS):
        start = process_time()
        _theirs(*data, None)
        once = process_time()
        _theirs(*data, _REPLAYS)
        several = process_time()
        _ours(*data)
        ours = process_time() - several
        each = ((several - once) - (once - start)) / _REPLAYS
        ratios.append(_RESAMPLES * each / ours)
        spent.append(ours)
    how = (
        f"{_ROWS:,} rows × {_GROUPS} groups × 5 metrics, one thread, CPU time, median of {_PAIRS} pairs; ours with"
        f" {_RESAMPLES:,} resamples {median(spent):.3f} s, fairlearn's time EXTRAPOLATED from {_REPLAYS} resamples"
    )
    yield row("point estimates, ours − fairlearn's, largest", f"{apart:.1e}", "≤ 1e-12", apart <= 1e-12, how)
    yield row(
        "intervals, times faster than MetricFrame(n_boot=1000)",
        f"{median(ratios):,.0f}",
        "≥ 1,000",
        median(ratios) >= 1000,
        how,
    )


def _many_groups() -> Row:
    """In a process of its own, so that its memory is its own."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=True)
    seconds, memory = (float(word) for word in done.stdout.split())
    return row(
        f"{_MANY:,} intersections × 5 metrics × 1,000 resamples", f"{seconds:.1f} s, {memory:.2f} GiB", "≤ 10 s, 2 GiB",
        seconds <= 10 and memory <= 2, f"{_MANY_ROWS:,} rows, one thread, CPU seconds and peak memory of the whole process",
    )  # fmt: skip


def _alone() -> None:
    rng = np.random.default_rng(0)
    labels, decisions, _ = _data(_MANY_ROWS, 1)
    columns = {name: rng.integers(0, size, _MANY_ROWS) for name, size in (("a", 50), ("b", 10), ("c", 10))}
    start = process_time()
    coding = coded(columns)
    table = tabulated(labels, decisions, coding.codes, coding.count)
    blocks = group_draws(
        labels, decisions, coding.codes, coding.count, np.arange(_MANY_ROWS), rng=rng, resamples=_RESAMPLES
    )
    found = rate_intervals(table, blocks, METRICS)
    spent = process_time() - start
    same = all(np.array_equal(found[name].value, rate(table, name), equal_nan=True) for name in METRICS)
    if not same or coding.count != _MANY:
        sys.exit(f"{coding.count} groups, point estimates equal: {same}")
    print(spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    _alone()
