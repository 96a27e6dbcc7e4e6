"""What blur, noise, exposure, compression and burnt-in marks cost."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from xvision import images, text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, HeatMap, Images, Lines, Reference, Series
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, nearest
from xvision.methods.corruptions import CORRUPTIONS, corrupt, psnr
from xvision.methods.decision import decide, probabilities
from xvision.methods.intervals import bootstrap, proportion
from xvision.methods.scores import auroc
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken

_SEVERITIES = (1, 2, 3, 4, 5)
_PICTURED = 3
"""The severity that case pictures and the summary speak of."""


@analysis("Corruption", pillar="Shift", need="pixels", passes="5 forward per kind")
def corruption(audit: Audit, *, cases: int = 400, kinds: tuple[str, ...] = (), resamples: int = 500) -> Result:
    """What do noise, blur, exposure, compression and burnt-in marks cost?

    Every image is damaged by every kind at five severities, the same way whatever batch it is in; severities follow published
    X-ray corruption sets where they exist, and the measured peak signal-to-noise ratio (PSNR) says how strong each is here.
    ``retention`` is accuracy over clean accuracy on the same images; ``flip_rate`` is the share of decisions that change,
    right or wrong. A side marker or a collimator border carries no diagnosis: decisions that flip with it show a shortcut. The
    corruptions are simulated; real scanners differ in more ways than these.
    """
    names = kinds or tuple(CORRUPTIONS)
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"analysis.corruption.kinds: unknown kind {name!r}. {nearest(name, CORRUPTIONS)}")
    positions = audit.sample(cases)
    rows = audit.map(partial(_measure, names=names, seed=audit.seed), positions=positions, options={"kinds": names})
    grid = _Grid(audit, rows, positions, names, resamples)
    metrics = tuple(item for name in names for severity in _SEVERITIES for item in grid.cell(name, severity))
    stored = _cases(audit, names)
    return Result(
        _summary(metrics, len(positions)),
        metrics,
        _charts(grid, metrics, stored),
        stored,
        caveats=(
            "Corruptions are simulated at the model's input size; effects of the scanner itself are not covered.",
        ),
    )


def _measure(batch: Batch, *, names: tuple[str, ...], seed: int) -> Rows:
    """logits (B, kinds, severities, K) and psnr (B, kinds, severities)."""
    logits, noise = [], []
    with torch.inference_mode():
        for name in names:
            damaged = [corrupt(batch.pixels, name, severity, batch.ids, seed=seed) for severity in _SEVERITIES]
            logits.append(torch.stack([batch.model.logits(pixels) for pixels in damaged], dim=1))
            noise.append(np.stack([psnr(batch.pixels, pixels) for pixels in damaged], axis=1))
    return {"logits": torch.stack(logits, dim=1).cpu().numpy(), "psnr": np.stack(noise, axis=1)}


class _Grid:
    """Decisions under every corruption beside the clean ones."""

    def __init__(self, audit: Audit, rows: Rows, positions: np.ndarray, names: tuple[str, ...], resamples: int) -> None:
        self.audit, self.names, self.resamples = audit, names, resamples
        self.labels, self.patients = audit.labels[positions], audit.patients[positions]
        self.clean = audit.predictions.decisions[positions]
        self.logits, self.psnr = rows["logits"].astype(np.float64), rows["psnr"]

    def cell(self, name: str, severity: int) -> list[Metric]:
        """All metrics of one kind at one severity."""
        logits = self.logits[:, self.names.index(name), severity - 1]
        decisions = decide(logits, self.audit.decision)
        where: Where = {"corruption": name, "severity": severity}
        hits, clean_hits = decisions == self.labels, self.clean == self.labels
        retention = bootstrap(
            partial(_ratio, above=hits.astype(float), below=clean_hits.astype(float)),
            self.patients,
            resamples=self.resamples,
            rng=self.audit.rng(f"retention {name} {severity}"),
        )
        found = [
            metric("accuracy", proportion(hits, self.patients), better="higher", where=where),
            metric("flip_rate", proportion(decisions != self.clean, self.patients), better="lower", where=where),
            metric("retention", retention, better="higher", where=where),
            self._psnr(name, severity, where),
        ]
        if self.audit.decision.positive is not None:
            scores = probabilities(logits)[:, self.audit.positive]
            estimate = auroc(scores, self.labels == self.audit.positive, self.patients)
            found.append(metric("auroc", estimate, better="higher", where=where))
        return found

    def _psnr(self, name: str, severity: int, where: Where) -> Metric:
        values = self.psnr[:, self.names.index(name), severity - 1]
        values = values[np.isfinite(values)]
        if not len(values):
            return Metric("psnr", None, unit="dB", where=where, reason="no image was changed")
        low, middle, high = (float(value) for value in np.quantile(values, (0.025, 0.5, 0.975)))
        return Metric(
            "psnr", middle, low, high, len(values), "dB", "neither", where, interval="median and 95 % range over images"
        )


def _ratio(weights: np.ndarray, *, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """(R,) weighted ratio, NaN where nothing was right before."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: np.ndarray = np.where(weights @ below > 0, (weights @ above) / (weights @ below), np.nan)
    return ratio


def _charts(grid: _Grid, metrics: tuple[Metric, ...], stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    values = {(item.name, item.where["corruption"], item.where["severity"]): item for item in metrics}
    titles = tuple(CORRUPTIONS[name].title for name in grid.names)
    clean = float((grid.clean == grid.labels).mean())

    def heat(metric_name: str, title: str, better: str) -> HeatMap:
        rows = tuple(
            tuple(values[metric_name, name, severity].value for severity in _SEVERITIES) for name in grid.names
        )
        worst = max(
            grid.names,
            key=lambda name: abs((values[metric_name, name, 5].value or 0) - (clean if better == "higher" else 0)),
        )
        return HeatMap(
            title,
            f"{text.label(metric_name)} for each kind of damage and severity; {CORRUPTIONS[worst].title} changes it most.",
            tuple(str(severity) for severity in _SEVERITIES),
            titles,
            rows,
            "Severity",
            "Kind of damage",
            low=0.0,
            high=1.0,
            better="higher" if better == "higher" else "lower",
        )

    drops = sorted(grid.names, key=lambda name: values["accuracy", name, 5].value or 0.0)[:4]
    lowest = values["accuracy", drops[0], 5].value or 0.0
    lines = Lines(
        title="Accuracy against severity: the four most harmful kinds",
        alt=f"Accuracy falls from {clean:.3f} on clean images to {lowest:.3f} for {CORRUPTIONS[drops[0]].title}.",
        x=Axis("Severity", low=0.5, high=5.5, ticks=tuple((float(s), str(s)) for s in _SEVERITIES)),
        y=Axis("Accuracy", low=0, high=1),
        series=tuple(_series(name, [values["accuracy", name, severity] for severity in _SEVERITIES]) for name in drops),
        references=(Reference("clean", clean),),
    )
    charts: list[Chart] = [
        heat("accuracy", "Accuracy under damage", "higher"),
        heat("flip_rate", "Share of decisions that change", "lower"),
        lines,
    ]
    if stored:
        pictures = tuple(stored[0].pictures)
        alt = "One row per case: the clean image and the image under each kind of damage."
        charts.append(
            Images(f"Selected cases at severity {_PICTURED}", alt, tuple(case.id for case in stored[:3]), pictures)
        )
    return tuple(charts)


def _series(name: str, metrics: list[Metric]) -> Series:
    return Series(
        CORRUPTIONS[name].title,
        tuple(float(severity) for severity in _SEVERITIES),
        tuple(item.value for item in metrics),
        tuple(item.low for item in metrics),
        tuple(item.high for item in metrics),
    )


def _cases(audit: Audit, names: tuple[str, ...]) -> tuple[Case, ...]:
    pixels = torch.from_numpy(audit.pixels(audit.showcase))
    keys = [str(audit.ids[position]) for position in audit.showcase]
    pictures: list[dict[str, np.ndarray]] = [
        {"image": images.enlarged(images.photograph(item.numpy()))} for item in pixels
    ]
    for name in names:
        for place, item in enumerate(corrupt(pixels, name, _PICTURED, keys, seed=audit.seed) if len(pixels) else []):
            pictures[place][CORRUPTIONS[name].title.lower()] = images.enlarged(images.photograph(item.numpy()))
    return tuple(
        Case(key, audit.facts(position), shown)
        for key, position, shown in zip(keys, audit.showcase, pictures, strict=True)
    )


def _summary(metrics: tuple[Metric, ...], cases: int) -> str:
    at = [
        item
        for item in metrics
        if item.name == "accuracy" and item.where["severity"] == _PICTURED and item.value is not None
    ]
    worst = min(at, key=lambda item: item.value or 0.0)
    title = CORRUPTIONS[str(worst.where["corruption"])].title
    return (
        f"On {text.plural(cases, 'image')} the worst kind at severity {_PICTURED} is {title}: accuracy {spoken(worst)}."
    )
