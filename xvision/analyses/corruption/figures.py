"""All numbers of the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xvision import text
from xvision.audit import Audit, apart, metric
from xvision.charts import Table
from xvision.engine import Rows
from xvision.errors import ConfigError, XVisionError
from xvision.methods.corruption_grid import Envelope, Grid, Reference, envelope
from xvision.methods.corruptions import CORRUPTIONS, severities_of
from xvision.methods.intervals import Estimate
from xvision.result import Metric, Where, spoken
from xvision.store import Run

SEVERITIES = (1, 2, 3, 4, 5)
PICTURED = 3
"""The severity that case pictures, groups and the summary speak of."""


@dataclass(eq=False)
class Figures:
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
            item for kind in range(len(self.names)) for severity in SEVERITIES for item in self._cell(kind, severity)
        )
        self.groups = tuple(self._groups())
        self._by = {(item.name, item.where["corruption"], item.where["severity"]): item for item in self.cells}

    def of(self, name: str, kind: str, severity: int) -> Metric:
        return self._by[name, kind, severity]

    def key(self, column: str) -> str:
        """Of a group column in ``where``."""
        return apart(column, "corruption", "severity")

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
                    where: Where = {self.key(column): level, "corruption": self.names[kind], "severity": PICTURED}
                    chosen = levels == level
                    right = self.grid.accuracy(kind, PICTURED - 1, chosen)
                    flips = self.grid.flip_rate(kind, PICTURED - 1, chosen)
                    yield metric("accuracy", right, better="higher", where=where)
                    yield metric("flip_rate", flips, better="lower", where=where)

    def overall(self, reference_run: str) -> Iterator[Metric]:
        """Of all kinds together."""
        if not self.judged:
            return
        draws = self.audit.rng("overall")
        mean = self.grid.mean_accuracy(self.judged, resamples=self.resamples, rng=draws)
        yield metric("accuracy_under_corruption", mean, better="higher")
        yield metric("clean_accuracy", self.grid.clean_accuracy(), better="higher")
        if reference_run:
            kinds = [self.names[kind] for kind in self.judged]
            reference = _reference(reference_run, kinds, self.audit.fingerprints[1])
            for name, relative in (("mean_corruption_error", False), ("relative_mean_corruption_error", True)):
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
        if self.of(name, kind, 1).value is None:
            return CORRUPTIONS[kind].title, "not estimable", "none", "not estimable"
        return CORRUPTIONS[kind].title, _up_to(found.holds), setting, missed

    def _envelope(self, kind: str, name: str, agreed: float) -> Envelope:
        clean = self.grid.clean_accuracy() if name == "accuracy" else self.grid.clean_sensitivity(self.audit.positive)
        found = [self.of(name, kind, severity) for severity in SEVERITIES]
        return envelope(
            [clean, *(Estimate(item.value, item.low, item.high, item.n or 0, "") for item in found)], agreed
        )

    def summary(self, agreed: Mapping[str, float]) -> str:
        at = [self.of("accuracy", self.names[kind], PICTURED) for kind in self.judged]
        if not at:
            return f"On {text.plural(len(self.positions), 'image')} only kinds were tried that may change the right decision."
        worst = min(at, key=lambda item: 1.0 if item.value is None else item.value)
        title = CORRUPTIONS[str(worst.where["corruption"])].title
        clean = text.number(float(self.grid.clean_hits.mean()))
        said = (
            f"On {text.plural(len(self.positions), 'image')} and {text.plural(len(self.judged), 'kind')} of damage the worst at"
            f" severity {PICTURED} is {title}: accuracy {spoken(worst)}, {clean} on clean images."
        )
        return " ".join([said, *(self._kept(name, value) for name, value in agreed.items())])

    def _kept(self, name: str, agreed: float) -> str:
        found = {kind: self._envelope(self.names[kind], name, agreed) for kind in self.judged}
        kept = sum(each.holds >= PICTURED for each in found.values())
        missed = sum(each.crossed is not None and each.crossed <= PICTURED for each in found.values())
        return (
            f"The agreed {text.label(name).lower()} of {agreed:g} is kept up to severity {PICTURED} under {kept} of"
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


def _reference(path: str, kinds: list[str], data: str) -> Reference:
    """Errors of another model under these kinds, from its run folder. ConfigError where it does not say, or of other data."""
    try:
        run = Run(Path(path))
        found, other = run.metrics, run.info.fingerprints.get("data") != data
    except XVisionError as problem:
        raise ConfigError(f"analysis.corruption.reference_run: {problem}") from None
    if other:
        raise ConfigError(
            f"analysis.corruption.reference_run: {path} is an audit on other data, so errors cannot be compared."
        )
    own = found[(found["analysis"] == "corruption") & (found["name"] == "accuracy")]
    cells = {
        (where["corruption"], int(where["severity"])): value
        for where, value in zip(own["where"], own["value"], strict=True)
        if set(where) == {"corruption", "severity"}
    }
    clean = found[(found["analysis"] == "corruption") & (found["name"] == "clean_accuracy")]
    overall = list(clean["value"])
    missing = [kind for kind in kinds for severity in SEVERITIES if (kind, severity) not in cells]
    if missing or not overall:
        what = f"no accuracy under {missing[0]!r}" if missing else "no clean accuracy"
        raise ConfigError(
            f"analysis.corruption.reference_run: {path} has {what}. Audit the reference on the same data with the analysis"
            " corruption, all kinds."
        )
    errors = np.array([[1 - cells[kind, severity] for severity in SEVERITIES] for kind in kinds], dtype=float)
    return Reference(errors, 1 - float(overall[0]))
