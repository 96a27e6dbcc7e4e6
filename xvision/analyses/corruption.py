"""What blur, noise, exposure, compression and burnt-in marks cost, and how far the model may be taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from xvision import images, text
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, HeatMap, Images, Lines, Series, Table
from xvision.charts import Reference as Line
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, XVisionError, nearest
from xvision.methods.corruption_grid import Envelope, Grid, Reference, envelope
from xvision.methods.corruptions import CORRUPTIONS, corrupt, kinds_of, psnr, severities_of, ssim
from xvision.methods.intervals import Estimate
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken
from xvision.store import Run

_SEVERITIES = (1, 2, 3, 4, 5)
_PICTURED = 3
"""The severity that case pictures, groups and the summary speak of."""
_LOOKED_AT = 50
"""Images on which the strength of the damage is measured, at most: it is nearly the same on all."""


@analysis("Corruption", pillar="Shift", need="pixels", passes="5 forward per kind")
def corruption(
    audit: Audit,
    *,
    cases: int = 400,
    kinds: tuple[str, ...] = (),
    agreed_accuracy: float | None = None,
    agreed_sensitivity: float | None = None,
    reference_run: str = "",
    resamples: int = 500,
) -> Result:
    """What do noise, blur, exposure, compression and burnt-in marks cost, and how much of each may be allowed?

    Every image is damaged by every kind that its modality knows, at five severities, the same way whatever batch it is in.
    Severities follow published corruption sets where they exist; the measured peak signal-to-noise ratio (PSNR) and structural
    similarity (SSIM) say how strong each is here. ``retention`` is accuracy over clean accuracy on the same images; ``flip_rate``
    is the share of decisions that change, right or wrong. A side marker or a collimator border carries no diagnosis:
    decisions that flip with it show a shortcut. Kinds that may change the right decision, such as a swap of left and right, give
    flips only.

    The operating envelope says, for ``agreed_accuracy`` or ``agreed_sensitivity``, up to which severity the whole interval
    keeps what was agreed, and from which it misses it. ``reference_run``: the run folder of another model on the same data, for
    the mean corruption error (mCE, Hendrycks and Dietterich 2019) in percent of that model's.
    """
    names = _names(audit, kinds)
    positions = audit.sample(cases)
    looked_at = frozenset(str(name) for name in audit.ids[positions[:: -(-len(positions) // _LOOKED_AT)]])
    measure = partial(_measure, names=names, seed=audit.seed, modality=audit.modality, looked_at=looked_at)
    rows = audit.map(measure, positions=positions, options={"kinds": names, "modality": audit.modality})
    clean = audit.predictions.logits[positions]
    grid = Grid(rows["logits"].astype(float), clean, audit.labels[positions], audit.patients[positions], audit.decision)
    figures = _Figures(audit, grid, rows, positions, names, resamples)
    agreed = {"accuracy": agreed_accuracy, "sensitivity": agreed_sensitivity}
    found = {name: value for name, value in agreed.items() if value is not None}
    if "sensitivity" in found and audit.decision.positive is None:
        raise ConfigError(
            "analysis.corruption.agreed_sensitivity needs a positive class: this model has more than two."
        )
    metrics = (*figures.overall(reference_run), *figures.cells, *figures.groups)
    stored = _cases(audit, names)
    return Result(
        figures.summary(found),
        metrics,
        (*(figures.envelope(name, value) for name, value in found.items()), *_charts(figures), *_pictured(stored)),
        stored,
        caveats=_caveats(audit, bool(found)),
    )


def _names(audit: Audit, kinds: tuple[str, ...]) -> tuple[str, ...]:
    names = kinds or kinds_of(audit.modality)
    for name in names:
        if name not in CORRUPTIONS:
            raise ConfigError(f"analysis.corruption.kinds: unknown kind {name!r}. {nearest(name, CORRUPTIONS)}")
        severities_of(name, audit.modality)  # refuses a kind that makes no sense for the modality
    return names


def _measure(
    batch: Batch, *, names: tuple[str, ...], seed: int, modality: str | None, looked_at: frozenset[str]
) -> Rows:
    """logits (B, kinds, severities, K); psnr and ssim (B, kinds, severities), NaN for images not looked at."""
    shape = (len(batch.ids), len(names), len(_SEVERITIES))
    rows = {name: np.full(shape, np.nan) for name in ("psnr", "ssim")}
    own, logits = [place for place, name in enumerate(batch.ids) if name in looked_at], []
    with torch.inference_mode():
        for kind, name in enumerate(names):
            for place, severity in enumerate(_SEVERITIES):
                damaged = corrupt(batch.pixels, name, severity, batch.ids, seed=seed, modality=modality)
                logits.append(batch.model.logits(damaged))
                if own:
                    rows["psnr"][own, kind, place] = psnr(batch.pixels[own], damaged[own])
                    rows["ssim"][own, kind, place] = ssim(batch.pixels[own], damaged[own])
    return {**rows, "logits": torch.stack(logits, dim=1).view(*shape, -1).cpu().numpy()}


@dataclass(eq=False)
class _Figures:
    """All numbers of the page. cells, groups: made at once, since the charts show them."""

    audit: Audit
    grid: Grid
    rows: Rows
    positions: np.ndarray
    names: tuple[str, ...]
    resamples: int

    def __post_init__(self) -> None:
        self.judged = tuple(place for place, name in enumerate(self.names) if not CORRUPTIONS[name].label_changing)
        self.cells = tuple(
            item for kind in range(len(self.names)) for severity in _SEVERITIES for item in self._cell(kind, severity)
        )
        self.groups = tuple(self._groups())
        self._by = {(item.name, item.where["corruption"], item.where["severity"]): item for item in self.cells}

    def of(self, name: str, kind: str, severity: int) -> Metric:
        return self._by[name, kind, severity]

    def _cell(self, kind: int, severity: int) -> Iterator[Metric]:
        name, column, grid = self.names[kind], severity - 1, self.grid
        where: Where = {"corruption": name, "severity": severity}
        yield metric("flip_rate", grid.flip_rate(kind, column), better="lower", where=where)
        yield _spread("psnr", self.rows["psnr"][:, kind, column], "dB", where)
        yield _spread("ssim", self.rows["ssim"][:, kind, column], "", where)
        if kind not in self.judged:
            return
        draws = {what: self.audit.rng(f"{what} {name} {severity}") for what in ("retention", "ece")}
        yield metric("accuracy", grid.accuracy(kind, column), better="higher", where=where)
        kept = grid.retention(kind, column, resamples=self.resamples, rng=draws["retention"])
        yield metric("retention", kept, better="higher", where=where)
        error = grid.ece(kind, column, resamples=self.resamples, rng=draws["ece"])
        yield metric("ece", error, better="lower", where=where)
        positive = self.audit.decision.positive
        if positive is not None:
            for what, found in (
                ("sensitivity", grid.sensitivity(kind, column, positive)),
                ("specificity", grid.specificity(kind, column, positive)),
                ("auroc", grid.auroc(kind, column, positive)),
            ):
                yield metric(what, found, better="higher", where=where)

    def _groups(self) -> Iterator[Metric]:
        """Flips and accuracy of each level of each group at the pictured severity."""
        for column in self.audit.groups:
            levels = self.audit.column(column)[self.positions]
            for level in sorted(set(levels)):
                for kind in self.judged:
                    where: Where = {column: level, "corruption": self.names[kind], "severity": _PICTURED}
                    chosen = levels == level
                    right = self.grid.accuracy(kind, _PICTURED - 1, chosen)
                    flips = self.grid.flip_rate(kind, _PICTURED - 1, chosen)
                    yield metric("accuracy", right, better="higher", where=where)
                    yield metric("flip_rate", flips, better="lower", where=where)

    def overall(self, reference_run: str) -> Iterator[Metric]:
        """Of all kinds together."""
        if not self.judged:
            return
        draws = self.audit.rng("overall")
        mean = self.grid.mean_accuracy(self.judged, resamples=self.resamples, rng=draws)
        yield metric("accuracy_under_corruption", mean, better="higher")
        if reference_run:
            reference = _reference(reference_run, [self.names[kind] for kind in self.judged])
            for name, relative in (("mce", False), ("relative_mce", True)):
                found = self.grid.corruption_error(
                    self.judged, reference, relative=relative, resamples=self.resamples, rng=draws
                )
                yield metric(name, found, better="lower", unit="%", where={"reference": Path(reference_run).name})

    def envelope(self, name: str, agreed: float) -> Table:
        """Up to which severity of each kind the figure keeps what was agreed."""
        rows = tuple(self._kept_by(self.names[kind], name, agreed) for kind in self.judged)
        return Table(
            title=f"Operating envelope: {text.label(name)} of at least {agreed:g}",
            alt=f"For each of {len(rows)} kinds of damage, up to which severity the whole 95 % interval keeps {agreed:g}.",
            columns=("Kind of damage", "Kept up to severity", "Which is", "Missed from severity"),
            rows=rows,
        )

    def _kept_by(self, kind: str, name: str, agreed: float) -> tuple[str, ...]:
        found = self._envelope(kind, name, agreed)
        value = severities_of(kind, self.audit.modality)[max(found.holds, 1) - 1]
        setting = f"{CORRUPTIONS[kind].parameter} {value}" if found.holds > 0 else "none"
        missed = "at none" if found.crossed is None else str(found.crossed)
        return CORRUPTIONS[kind].title, _up_to(found.holds), setting, missed

    def _envelope(self, kind: str, name: str, agreed: float) -> Envelope:
        clean = self.grid.clean_accuracy() if name == "accuracy" else self.grid.clean_sensitivity(self.audit.positive)
        found = [self.of(name, kind, severity) for severity in _SEVERITIES]
        return envelope(
            [clean, *(Estimate(item.value, item.low, item.high, item.n or 0, "") for item in found)], agreed
        )

    def summary(self, agreed: Mapping[str, float]) -> str:
        at = [self.of("accuracy", self.names[kind], _PICTURED) for kind in self.judged]
        if not at:
            return f"On {text.plural(len(self.positions), 'image')} only kinds were tried that may change the right decision."
        worst = min(at, key=lambda item: 1.0 if item.value is None else item.value)
        title = CORRUPTIONS[str(worst.where["corruption"])].title
        clean = text.number(float(self.grid.clean_hits.mean()))
        said = (
            f"On {text.plural(len(self.positions), 'image')} and {text.plural(len(self.judged), 'kind')} of damage the worst at"
            f" severity {_PICTURED} is {title}: accuracy {spoken(worst)}, {clean} on clean images."
        )
        return " ".join([said, *(self._kept(name, value) for name, value in agreed.items())])

    def _kept(self, name: str, agreed: float) -> str:
        found = {kind: self._envelope(self.names[kind], name, agreed) for kind in self.judged}
        kept = sum(each.holds >= _PICTURED for each in found.values())
        missed = sum(each.crossed is not None and each.crossed <= _PICTURED for each in found.values())
        return (
            f"The agreed {text.label(name).lower()} of {agreed:g} is kept up to severity {_PICTURED} under {kept} of"
            f" {len(found)} kinds, missed by then under {missed} and not decided under {len(found) - kept - missed}."
        )


def _up_to(holds: int) -> str:
    return {-1: "not even on clean images", 0: "clean images only"}.get(holds, str(holds))


def _spread(name: str, values: np.ndarray, unit: str, where: Where) -> Metric:
    """Median and range over images of a measure of likeness."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Metric(name, None, unit=unit, where=where, reason="no image was changed")
    low, middle, high = (float(value) for value in np.quantile(values, (0.025, 0.5, 0.975)))
    return Metric(
        name, middle, low, high, len(values), unit, "neither", where, interval="median and 95 % range over images"
    )


def _reference(path: str, kinds: list[str]) -> Reference:
    """Errors of another model under these kinds, from its run folder. ConfigError where it does not say."""
    try:
        found = Run(Path(path)).metrics
    except XVisionError as problem:
        raise ConfigError(f"analysis.corruption.reference_run: {problem}") from None
    own = found[(found["analysis"] == "corruption") & (found["name"] == "accuracy")]
    cells = {
        (where["corruption"], int(where["severity"])): value
        for where, value in zip(own["where"], own["value"], strict=True)
        if set(where) == {"corruption", "severity"}
    }
    clean = found[(found["analysis"] == "performance") & (found["name"] == "accuracy")]
    overall = [value for where, value in zip(clean["where"], clean["value"], strict=True) if not where]
    missing = [kind for kind in kinds for severity in _SEVERITIES if (kind, severity) not in cells]
    if missing or not overall:
        what = f"no accuracy under {missing[0]!r}" if missing else "no clean accuracy"
        raise ConfigError(
            f"analysis.corruption.reference_run: {path} has {what}. Audit the reference on the same data with the analyses"
            " performance and corruption, all kinds."
        )
    errors = np.array([[1 - cells[kind, severity] for severity in _SEVERITIES] for kind in kinds], dtype=float)
    return Reference(errors, 1 - float(overall[0]))


def _charts(figures: _Figures) -> tuple[Chart, ...]:
    judged = tuple(figures.names[kind] for kind in figures.judged)
    maps = [_heat(figures, "flip_rate", "Share of decisions that change", "lower", figures.names)]
    if not judged:
        return tuple(maps)
    return (
        _heat(figures, "accuracy", "Accuracy under damage", "higher", judged),
        *maps,
        _worst(figures, judged),
        _heat(figures, "ece", "Calibration error under damage", "lower", judged),
        *_by_group(figures, judged),
        _strength(figures),
    )


def _heat(figures: _Figures, name: str, title: str, better: str, kinds: tuple[str, ...]) -> HeatMap:
    values = tuple(tuple(figures.of(name, kind, severity).value for severity in _SEVERITIES) for kind in kinds)
    change = [row[-1] if row[-1] is not None else 0.0 for row in values]
    worst = kinds[int(np.argmin(change) if better == "higher" else np.argmax(change))]
    return HeatMap(
        title,
        f"{text.label(name)} for each kind of damage and severity; {CORRUPTIONS[worst].title} is worst at severity 5.",
        tuple(str(severity) for severity in _SEVERITIES),
        tuple(CORRUPTIONS[kind].title for kind in kinds),
        values,
        "Severity",
        "Kind of damage",
        low=0.0,
        high=1.0,
        better="higher" if better == "higher" else "lower",
    )


def _worst(figures: _Figures, judged: tuple[str, ...]) -> Lines:
    drops = sorted(judged, key=lambda kind: figures.of("accuracy", kind, 5).value or 0.0)[:4]
    clean = float(figures.grid.clean_hits.mean())
    lowest = figures.of("accuracy", drops[0], 5).value or 0.0
    return Lines(
        title="Accuracy against severity: the four most harmful kinds",
        alt=f"Accuracy falls from {clean:.3f} on clean images to {lowest:.3f} for {CORRUPTIONS[drops[0]].title}.",
        x=Axis("Severity", low=0.5, high=5.5, ticks=tuple((float(s), str(s)) for s in _SEVERITIES)),
        y=Axis("Accuracy", low=0, high=1),
        series=tuple(
            _series(kind, [figures.of("accuracy", kind, severity) for severity in _SEVERITIES]) for kind in drops
        ),
        references=(Line("clean", clean),),
    )


def _series(kind: str, metrics: list[Metric]) -> Series:
    return Series(
        CORRUPTIONS[kind].title,
        tuple(float(severity) for severity in _SEVERITIES),
        tuple(item.value for item in metrics),
        tuple(item.low for item in metrics),
        tuple(item.high for item in metrics),
    )


def _by_group(figures: _Figures, judged: tuple[str, ...]) -> Iterator[HeatMap]:
    """Who loses most: decisions that change, by group level."""
    for column in figures.audit.groups:
        own = {
            (str(item.where[column]), str(item.where["corruption"])): item.value
            for item in figures.groups
            if column in item.where and item.name == "flip_rate"
        }
        levels = tuple(sorted({level for level, _ in own}))
        yield HeatMap(
            f"Share of decisions that change at severity {_PICTURED}, by {text.label(column).lower()}",
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


def _strength(figures: _Figures) -> Table:
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


def _pictured(stored: tuple[Case, ...]) -> tuple[Images, ...]:
    if not stored:
        return ()
    alt, shown = "One row per case: the clean image, then each kind of damage.", tuple(case.id for case in stored[:3])
    return (Images(f"Selected cases at severity {_PICTURED}", alt, shown, tuple(stored[0].pictures)),)


def _cases(audit: Audit, names: tuple[str, ...]) -> tuple[Case, ...]:
    pixels = torch.from_numpy(audit.pixels(audit.showcase))
    keys = [str(audit.ids[position]) for position in audit.showcase]
    pictures: list[dict[str, np.ndarray]] = [
        {"image": images.enlarged(images.photograph(item.numpy()))} for item in pixels
    ]
    for name in names if len(pixels) else ():
        damaged = corrupt(pixels, name, _PICTURED, keys, seed=audit.seed, modality=audit.modality)
        for place, item in enumerate(damaged):
            pictures[place][CORRUPTIONS[name].title.lower()] = images.enlarged(images.photograph(item.numpy()))
    return tuple(
        Case(key, audit.facts(position), shown)
        for key, position, shown in zip(keys, audit.showcase, pictures, strict=True)
    )


def _caveats(audit: Audit, agreed: bool) -> tuple[str, ...]:
    said = ["Corruptions are simulated at the model's input size; effects of the scanner itself are not covered."]
    if audit.modality is None:
        said.append(
            "The plan does not say how the images were made (data.modality), so only kinds that make sense for every modality"
            " were tried, at general strengths."
        )
    if not agreed:
        said.append("No operating envelope: agree on an accuracy or a sensitivity before the audit (options agreed_…).")
    return tuple(said)
