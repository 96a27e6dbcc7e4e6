"""A new batch without labels beside a baseline: has anything moved, what most, and what might it mean for accuracy?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from xvision import codec
from xvision.data.dataset import AuditDataset
from xvision.errors import ConfigError
from xvision.methods.intervals import Estimate
from xvision.methods.shift.label_free import FAILS, Answered, expected_accuracy, recalibrated
from xvision.methods.shift.prevalence import Decided, label_shift
from xvision.methods.shift.windows import Cases, unlike
from xvision.models.protocols import Classifier
from xvision.monitoring.baseline import WINDOWS, Baseline
from xvision.monitoring.channels import channels, decided, look, reads_text
from xvision.store import write_atomic

Verdict = Literal["stable", "drift", "not enough data"]
FEWEST = 30
"""New images below which nothing is said."""
_METHOD = "CBPE"


@codec.record
class Channel:
    """distance: of distribution functions (of the decisions: total variation), in [0, 1]. usual: of windows of the reference, on
    average. p: that any channel of a window is as unlike. moved: mean of the new images less that of the reference, in standard
    deviations of the reference; None for the decisions.
    """

    name: str
    distance: float
    usual: float
    p: float
    moved: float | None
    alarm: bool


@codec.record
class Figure:
    """An estimate without labels, or the reason why there is none."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    reason: str | None


@codec.record
class Drift:
    """What a comparison found. unreadable: a sentence for each image that could not be read. window: images of a reference
    window. channels: the most unlike first. shares: of each decision, in the reference and now.
    """

    verdict: Verdict
    images: int
    unreadable: tuple[str, ...]
    window: int
    alarms: float
    least: float
    channels: tuple[Channel, ...]
    shares: dict[str, tuple[float, float]]
    expected: tuple[Figure, ...]
    promised: tuple[Figure, ...]
    note: str


def drift(baseline: Baseline, model: Classifier, data: AuditDataset, *, seed: int) -> Drift:
    """The new images beside the baseline. A batch from the same place raises an alarm with a chance of at most ``alarms``.

    Stable says that nothing watched has moved beyond that chance: a change of what the images mean leaves no trace here.
    Raises ConfigError for a seed below 0, and for images without texts where the audited ones had them.
    """
    record = baseline.record
    if seed < 0:
        raise ConfigError(f"found the seed {seed}: give 0 or more")
    if record.texts and not reads_text(model, data):
        raise ConfigError(
            "the model read a text with each audited image: give the new images texts, too, in the column text"
        )
    seen = look(model, data, embeddings=baseline.axes is not None, texts=record.texts)
    names, values = channels(seen, record.classes, baseline.decision, baseline.axes)
    current = Cases(values, decided(seen, baseline.decision), seen.patients)
    rng = np.random.default_rng(seed)
    found = unlike(baseline.cases, current, len(record.classes), windows=WINDOWS, rng=rng)
    spread = np.maximum(baseline.cases.values.std(axis=0), 1e-12)
    moved = [*((values.mean(axis=0) - baseline.cases.values.mean(axis=0)) / spread), None]
    rows = [
        Channel(
            name, float(distance), float(usual), float(p), None if step is None else float(step),
            bool(p <= record.alarms and distance >= record.least),
        )
        for name, distance, usual, p, step in zip(
            (*names, "decisions"), found.distances, found.usual, found.adjusted, moved, strict=True
        )
    ]  # fmt: skip
    rows.sort(key=lambda row: (row.p, -row.distance, row.name))
    enough = len(seen.ids) >= FEWEST
    verdict: Verdict = "not enough data" if not enough else "drift" if any(row.alarm for row in rows) else "stable"
    promised = tuple(Figure(each.name, each.value, each.low, each.high, None) for each in record.promised)
    return Drift(
        verdict, len(seen.ids), seen.unreadable, found.window, record.alarms, record.least, tuple(rows),
        _shares(baseline, current), tuple(_expected(baseline, current, seen.logits, rng)) if enough else (), promised, FAILS,
    )  # fmt: skip


def _shares(baseline: Baseline, current: Cases) -> dict[str, tuple[float, float]]:
    classes = baseline.record.classes
    before, now = (
        np.bincount(each.decisions, minlength=len(classes)) / len(each.decisions) for each in (baseline.cases, current)
    )
    return {name: (float(before[code]), float(now[code])) for code, name in enumerate(classes)}


def _expected(baseline: Baseline, current: Cases, logits: np.ndarray, rng: np.random.Generator) -> list[Figure]:
    """Accuracy, sensitivity, specificity that calibrated probabilities expect, and the prevalence that the decisions imply."""
    own, positive = baseline.cases, baseline.decision.positive
    before = Answered(
        recalibrated(baseline.logits, baseline.labels, baseline.logits), own.decisions, baseline.labels, own.patients
    )
    now = Answered(recalibrated(baseline.logits, baseline.labels, logits), current.decisions, None, current.patients)
    found = [
        _figure(f"expected {each.figure}", each.estimate)
        for each in expected_accuracy(before, now, positive=positive, rng=rng)
        if each.method == _METHOD
    ]
    mixed = label_shift(
        Decided(own.decisions, own.patients), baseline.labels, Decided(current.decisions, current.patients),
        len(baseline.record.classes), rng=rng,
    )  # fmt: skip
    names = baseline.record.classes
    return found + [
        _figure(f"expected prevalence of {name}", each) for name, each in zip(names, mixed.prevalence, strict=True)
    ]


def _figure(name: str, estimate: Estimate) -> Figure:
    return Figure(name, estimate.value, estimate.low, estimate.high, estimate.reason)


def lines(found: Drift) -> list[str]:
    """What a person reads."""
    said = {
        "stable": f"Stable: none of {len(found.channels)} channels moved beyond what windows of {found.window} images show.",
        "drift": f"Drift: {', '.join(row.name for row in found.channels if row.alarm)}.",
        "not enough data": f"Not enough data: {found.images} images, {FEWEST} are needed.",
    }[found.verdict]
    rows = [
        f"  {row.name:<44} distance {row.distance:.3f} (usual {row.usual:.3f}), p {row.p:.3f}{_moved(row)}"
        for row in found.channels[:6]
    ]
    shares = [f"  decided {name}: {before:.3f} then, {now:.3f} now" for name, (before, now) in found.shares.items()]
    figures = [
        f"  {each.name}: {each.reason or f'{each.value:.3f} ({each.low:.3f}–{each.high:.3f})'}"
        for each in found.expected
    ]
    left = [f"{len(found.unreadable)} images could not be read: {found.unreadable[0]}"] if found.unreadable else []
    note = [found.note] if figures else []
    return [said, *rows, *shares, *figures, *note, *left]


def _moved(row: Channel) -> str:
    return "" if row.moved is None else f", mean moved {row.moved:+.2f} sd"


_VERDICTS: tuple[Verdict, ...] = ("stable", "drift", "not enough data")


def write_prometheus(found: Drift, path: Path) -> None:
    """The text format that a node exporter's textfile collector reads, whole or not at all."""
    gauges: dict[str, list[tuple[dict[str, str], float]]] = {
        "verdict 1 for the verdict of the last comparison.": [
            ({"verdict": each}, float(each == found.verdict)) for each in _VERDICTS
        ],
        "images Images that were compared.": [({}, float(found.images))],
        "unreadable Images that could not be read.": [({}, float(len(found.unreadable)))],
        "distance Distance of each channel from the baseline, 0 to 1.": [
            ({"channel": row.name}, row.distance) for row in found.channels
        ],
        "p Chance that any channel of a reference window is as unlike.": [
            ({"channel": row.name}, row.p) for row in found.channels
        ],
        "decided_share Share of images decided as each class.": [
            ({"class": name}, now) for name, (_, now) in found.shares.items()
        ],
        "expected Figures expected without labels, which fail without a sign.": [
            ({"figure": each.name}, each.value) for each in found.expected if each.value is not None
        ],
    }
    lines = []
    for told, rows in gauges.items():
        name, _, meaning = told.partition(" ")
        lines += [f"# HELP xvision_drift_{name} {meaning}", f"# TYPE xvision_drift_{name} gauge"]
        lines += [f"xvision_drift_{name}{_labels(own)} {value:.9g}" for own, value in rows]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def _labels(own: dict[str, str]) -> str:
    if not own:
        return ""
    escaped = {key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in own.items()}
    return "{" + ",".join(f'{key}="{value}"' for key, value in escaped.items()) + "}"
