"""What the page shows of its numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from xvision import images, text
from xvision.analyses.corruption.figures import PICTURED, SEVERITIES, Figures
from xvision.audit import Audit
from xvision.charts import Axis, Chart, HeatMap, Images, Lines, Series, Table
from xvision.charts import Reference as Line
from xvision.methods.corruptions import CORRUPTIONS, corrupt, severities_of
from xvision.result import Case, Metric


def charts_of(figures: Figures) -> tuple[Chart, ...]:
    judged = tuple(figures.names[kind] for kind in figures.judged)
    maps = [_heat(figures, "flip_rate", "Share of decisions that change", "lower", figures.names)]
    if not judged:
        return (*maps, _strength(figures))
    return (
        _heat(figures, "accuracy", "Accuracy under damage", "higher", judged),
        *maps,
        _worst(figures, judged),
        _heat(figures, "ece", "Calibration error under damage", "lower", judged),
        *_by_group(figures, judged),
        _strength(figures),
    )


def _heat(figures: Figures, name: str, title: str, better: str, kinds: tuple[str, ...]) -> HeatMap:
    values = tuple(tuple(figures.of(name, kind, severity).value for severity in SEVERITIES) for kind in kinds)
    known = {kind: row[-1] for kind, row in zip(kinds, values, strict=True) if row[-1] is not None}
    alt = f"{text.label(name)} for each kind of damage and severity"
    if known:
        end = (min if better == "higher" else max)(known, key=lambda kind: known[kind])
        lowest = "lowest" if better == "higher" else "highest"
        alt += f"; at severity 5 it is {lowest} for {CORRUPTIONS[end].title}, {known[end]:.3f}"
    return HeatMap(
        title,
        f"{alt}.",
        tuple(str(severity) for severity in SEVERITIES),
        tuple(CORRUPTIONS[kind].title for kind in kinds),
        values,
        "Severity",
        "Kind of damage",
        low=0.0,
        high=1.0,
        better="higher" if better == "higher" else "lower",
    )


def _worst(figures: Figures, judged: tuple[str, ...]) -> Lines:
    drops = sorted(judged, key=lambda kind: figures.of("accuracy", kind, 5).value or 0.0)[:4]
    clean = float(figures.grid.clean_hits.mean())
    lowest = figures.of("accuracy", drops[0], 5).value or 0.0
    return Lines(
        title="Accuracy against severity: the most harmful kinds",
        alt=f"Accuracy is {clean:.3f} on clean images and {lowest:.3f} at severity 5 of {CORRUPTIONS[drops[0]].title}.",
        x=Axis("Severity", low=0.5, high=5.5, ticks=tuple((float(s), str(s)) for s in SEVERITIES)),
        y=Axis("Accuracy", low=0, high=1),
        series=tuple(
            _series(kind, [figures.of("accuracy", kind, severity) for severity in SEVERITIES]) for kind in drops
        ),
        references=(Line("clean", clean),),
    )


def _series(kind: str, metrics: list[Metric]) -> Series:
    return Series(
        CORRUPTIONS[kind].title,
        tuple(float(severity) for severity in SEVERITIES),
        tuple(item.value for item in metrics),
        tuple(item.low for item in metrics),
        tuple(item.high for item in metrics),
    )


def _by_group(figures: Figures, judged: tuple[str, ...]) -> Iterator[HeatMap]:
    """Who loses most: decisions that change, by group level."""
    for column in figures.audit.groups:
        own = {
            (str(item.where[figures.key(column)]), str(item.where["corruption"])): item.value
            for item in figures.groups
            if figures.key(column) in item.where and item.name == "flip_rate"
        }
        levels = tuple(sorted({level for level, _ in own}))
        yield HeatMap(
            f"Share of decisions that change at severity {PICTURED}, by {text.label(column).lower()}",
            f"For each kind of damage, the flip rate in each of {len(levels)} levels of {text.label(column).lower()}.",
            levels,
            tuple(CORRUPTIONS[kind].title for kind in judged),
            tuple(tuple(own[level, kind] for level in levels) for kind in judged),
            text.label(column),
            "Kind of damage",
            low=0.0,
            high=1.0,
            better="lower",
        )


def _strength(figures: Figures) -> Table:
    """What each severity is, and how much it changes these images."""
    rows = []
    for kind in figures.names:
        found, values = CORRUPTIONS[kind], severities_of(kind, figures.audit.modality)
        measured = [figures.of("psnr", kind, severity).value for severity in (1, 5)]
        likeness = [figures.of("ssim", kind, severity).value for severity in (1, 5)]
        setting = ", ".join(str(value) for value in values)
        rows.append((found.title, f"{found.parameter} ({found.unit})", setting, *measured, *likeness, found.source))
    return Table(
        title="What the severities are, and how strong they are on these images",
        alt=f"{len(rows)} kinds of damage with their five settings, the median PSNR in dB and SSIM at severities 1 and 5, and the source.",
        columns=("Kind of damage", "Setting", "Severities 1 to 5", "PSNR at 1", "PSNR at 5", "SSIM at 1", "SSIM at 5", "Set by"),
        rows=tuple(rows),
    )  # fmt: skip


def pictured(stored: tuple[Case, ...]) -> tuple[Images, ...]:
    if not stored:
        return ()
    alt, shown = "One row per case: the clean image, then each kind of damage.", tuple(case.id for case in stored[:3])
    return (Images(f"Selected cases at severity {PICTURED}", alt, shown, tuple(stored[0].pictures)),)


def cases_of(audit: Audit, names: tuple[str, ...]) -> tuple[Case, ...]:
    pixels = torch.from_numpy(audit.pixels(audit.showcase))
    keys = [str(audit.ids[position]) for position in audit.showcase]
    pictures: list[dict[str, np.ndarray]] = [
        {"image": images.enlarged(images.photograph(item.numpy()))} for item in pixels
    ]
    for name in names if len(pixels) else ():
        damaged = corrupt(pixels, name, PICTURED, keys, seed=audit.seed, modality=audit.modality)
        for place, item in enumerate(damaged):
            pictures[place][CORRUPTIONS[name].title.lower()] = images.enlarged(images.photograph(item.numpy()))
    return tuple(
        Case(key, audit.facts(position), shown)
        for key, position, shown in zip(keys, audit.showcase, pictures, strict=True)
    )
