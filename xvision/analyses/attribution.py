"""Pixel attributions by every method that fits the model, each shown with the verdict on its maps."""

from __future__ import annotations

import numpy as np

from xvision import text
from xvision.audit import Audit, mean_metric, metric
from xvision.charts import Chart, HeatMap, Table
from xvision.engine import Batch, Rows
from xvision.explain.catalogue import refusals
from xvision.explain.maps import Explainer, explained, likeness, prepared, where_defined
from xvision.explain.method import Settings
from xvision.explain.pictures import side_by_side
from xvision.explain.text_evidence import text_evidence
from xvision.methods.attribution import SMALLEST_DIFFERENCE, Baseline
from xvision.methods.complexity import entropy, gini
from xvision.methods.intervals import bootstrap
from xvision.methods.localisation import border_area, border_mass
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, spoken

_PATH = "integrated_gradients"
_GAP = 0.05
"""Share of the score's change that a sum of attributions may miss; customary in the field."""


@analysis(
    "Attribution",
    pillar="Explanation",
    need="pixels",
    passes="those of its methods, and of integrated gradients again for each further baseline",
)
def attribution(
    audit: Audit,
    *,
    cases: int = 100,
    methods: tuple[str, ...] = (),
    baseline: Baseline = "blur",
    baselines: tuple[Baseline, ...] = ("black", "blur", "data mean"),
    steps: int = 50,
    samples: int = 16,
    masks: int = 256,
    noise: float = 0.1,
    border: float = 0.1,
) -> Result:
    """Which parts of the image move the score, and how much of that is a matter of the method?

    Explained is the log-odds of the positive class (of the decided class with more than two). Methods are those that fit the
    model; the others are refused, with the reason, because a map that means nothing looks like any other. Whether a method's maps
    describe this model is not decided here but by explanation quality, and is printed with every map.

    ``completeness_gap`` is the share of the score's change from baseline to image that a map's sum misses, pooled over cases.
    ``baseline_agreement`` is the rank correlation of integrated gradients (Sundararajan 2017) from two baselines, by patch: far
    below 1, the map is as much about the baseline as about the image. ``gini`` and ``entropy`` (in nats) say how concentrated a map
    is; neither says that it is right. ``border_lift`` is the share of positive attribution in the outer frame of the image over the
    frame's share of the area: 1 is chance, and no anatomy should decide there. For a model that also reads text,
    ``evidence_share`` is the share of image and of text in the absolute integrated gradients of all tokens. A map shows where the
    score is sensitive, not why, and not what a reader would see.
    """
    settings = Settings(baseline=baseline, steps=steps, samples=samples, masks=masks, noise=noise)
    explainer = prepared(audit, methods, with_controls=False, settings=settings)
    others = _other_baselines(explainer, baselines)
    positions = explainer.sample(cases)

    def measure(batch: Batch) -> Rows:
        rows: Rows = {}
        for name, maps in explainer.maps(batch).items():
            rows |= _shape(explainer, name, maps.values, border)
            rows |= _completeness(maps.gap, maps.difference, name)
            if name == _PATH:
                for other in others:
                    found = explained(other.methods[0], other.asked(batch))
                    kind = other.settings.baseline
                    rows |= _completeness(found.gap, found.difference, f"{_PATH} {kind}")
                    rows[f"agreement {kind}"] = likeness(explainer.units, maps.values, found.values)
        return rows

    rows = audit.map(
        measure, positions=positions, options={**explainer.options, "border": border, "baselines": list(baselines)}
    )
    texts = text_evidence(explainer, positions)
    metrics = (*_metrics(audit, explainer, rows, positions), *texts.metrics)
    stored = explainer.cases()
    charts = (*_charts(explainer, metrics, stored), *texts.tables)
    return Result(
        _summary(explainer, metrics, len(positions)), metrics, charts, stored, caveats=_caveats(explainer, metrics)
    )


def _shape(explainer: Explainer, name: str, values: np.ndarray, border: float) -> Rows:
    """How concentrated the maps (B, H, W) are, and how much of them lies in the frame of the image."""
    units = np.abs(explainer.units.sums(values))
    area = border_area(values.shape[1], values.shape[2], border)
    return {
        f"gini {name}": where_defined(units, lambda at: gini(units[at])),
        f"entropy {name}": where_defined(units, lambda at: entropy(units[at])),
        f"border {name}": where_defined(values, lambda at: border_mass(values[at], border) / area),
    }


def _other_baselines(explainer: Explainer, baselines: tuple[Baseline, ...]) -> tuple[Explainer, ...]:
    """Integrated gradients from those baselines that were not chosen, where it is among the methods."""
    if _PATH not in {method.name for method in explainer.methods}:
        return ()
    chosen = explainer.settings
    return tuple(
        prepared(
            explainer.audit,
            (_PATH,),
            with_controls=False,
            settings=Settings(baseline=kind, steps=chosen.steps, batch=chosen.batch),
        )
        for kind in dict.fromkeys(baselines)
        if kind != chosen.baseline
    )


def _completeness(gap: np.ndarray | None, difference: np.ndarray | None, name: str) -> Rows:
    if gap is None or difference is None:
        return {}
    moved = np.abs(difference)
    return {f"missed {name}": gap * np.maximum(moved, SMALLEST_DIFFERENCE), f"moved {name}": moved}


def _metrics(audit: Audit, explainer: Explainer, rows: Rows, positions: np.ndarray) -> tuple[Metric, ...]:
    found = []
    for key in rows:
        if key.startswith("missed "):
            name, _, kind = key.removeprefix("missed ").partition(" ")
            where = {"method": name} | ({"baseline": kind} if kind else {})
            found.append(_gap(audit, rows, positions, key.removeprefix("missed "), where))
        if key.startswith("agreement "):
            where = {"method": _PATH, "baseline": key.removeprefix("agreement ")}
            found.append(mean_metric(audit, "baseline_agreement", rows[key], positions, better="higher", where=where))
    for method in explainer.methods:
        where = {"method": method.name}
        for name in ("gini", "entropy"):
            unit = "nats" if name == "entropy" else ""
            found.append(
                mean_metric(audit, name, rows[f"{name} {method.name}"], positions, where=where, unit=unit, reason=_FLAT)
            )
        values = rows[f"border {method.name}"]
        found.append(mean_metric(audit, "border_lift", values, positions, better="lower", where=where, reason=_NOTHING))
    return tuple(found)


_FLAT = "every map is zero everywhere or not finite"
_NOTHING = "no map has positive attribution"


def _gap(audit: Audit, rows: Rows, positions: np.ndarray, key: str, where: dict[str, str]) -> Metric:
    missed, moved = rows[f"missed {key}"], rows[f"moved {key}"]
    defined = np.isfinite(missed) & np.isfinite(moved)
    if not defined.any():
        return Metric("completeness_gap", None, better="lower", where=where, reason="no case has a finite map")
    pooled = bootstrap(
        lambda weights: (weights @ missed[defined]) / np.maximum(weights @ moved[defined], 1e-12),
        audit.patients[positions[defined]],
        rng=audit.rng(f"gap {key}"),
    )
    return metric("completeness_gap", pooled, better="lower", where=where)


def _charts(explainer: Explainer, metrics: tuple[Metric, ...], stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    labels = [method.label for method in explainer.methods]
    title = (
        "Maps of selected cases: orange speaks for the explained class, blue against; maps without sign show strength"
    )
    charts: list[Chart] = list(side_by_side(title, labels, stored))
    agreement = [item for item in metrics if item.name == "baseline_agreement"]
    if agreement:
        charts.append(
            HeatMap(
                title="Does the map depend on the baseline?",
                alt="Rank correlation of integrated gradients from the chosen baseline with those from others.",
                columns=tuple(str(item.where["baseline"]) for item in agreement),
                rows=(explainer.settings.baseline,),
                values=(tuple(item.value for item in agreement),),
                x_label="Other baseline",
                y_label="Chosen",
                low=-1,
                high=1,
                better="higher",
            )
        )
    return (*charts, _used(explainer), _refused(explainer))


def _used(explainer: Explainer) -> Table:
    rows = tuple((item.label, item.family, item.passes, item.source, item.note) for item in explainer.methods)
    return Table(
        "Methods used",
        "What each method costs for one image, where it comes from, and what must be known when using it.",
        ("Method", "Family", "Passes", "Source", "Note"),
        rows,
    )


def _refused(explainer: Explainer) -> Table:
    rows = tuple((text.label(name), text.opening(reason)) for name, reason in refusals(explainer.audit.model).items())
    return Table(
        "Methods refused for this model",
        "A map that does not mean what it seems to mean is not drawn.",
        ("Method", "Why, and what to use instead"),
        rows,
    )


def _summary(explainer: Explainer, metrics: tuple[Metric, ...], cases: int) -> str:
    used = text.listing([method.label for method in explainer.methods], most=8)
    lead = f"{text.plural(cases, 'image')} explained by {used}."
    gap = next((item for item in metrics if item.name == "completeness_gap" and "baseline" not in item.where), None)
    if gap is None:
        return lead
    return f"{lead} {text.opening(explainer.label(str(gap.where['method'])))} miss {spoken(gap)} of the score's change."


def _caveats(explainer: Explainer, metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    found = [
        f"Attributions are relative to a {explainer.settings.baseline} baseline: what equals it gets none however much it matters."
    ]
    found += [f"{text.opening(method.label)}: {method.note}" for method in explainer.methods if method.note]
    found += [
        f"The completeness gap of {explainer.label(str(item.where['method']))} is above 5 %: raise `steps` before reading the maps."
        for item in metrics
        if item.name == "completeness_gap" and "baseline" not in item.where and (item.value or 0.0) > _GAP
    ]
    return tuple(found)
