"""Pixel attributions, never without the results that say whether to believe them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from xvision import images, text
from xvision.audit import Audit, mean_metric, metric
from xvision.charts import Chart, Images, Table
from xvision.engine import Batch, Rows
from xvision.methods.attribution import (
    SMALLEST_DIFFERENCE,
    Attribution,
    integrated_gradients,
    randomised_similarity,
    saliency,
)
from xvision.methods.controls import random_maps, sobel_edges
from xvision.methods.intervals import bootstrap
from xvision.methods.localisation import border_area, border_mass, mass_lift
from xvision.methods.randomness import case_seed
from xvision.methods.target import Logits
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, spoken

Baseline = Literal["black", "mean", "blur"]
_METHODS = ("integrated_gradients", "saliency")
_CONTROLS = ("edges", "random")
_DEPENDS_LITTLE = 0.5
"""Similarity with the maps of random weights above which a map is called a picture of the image, not of the model."""


@analysis(
    "Attribution", pillar="Explanation", need="gradients", passes="2 × (steps + 4) forward, 2 × (steps + 1) backward"
)
def attribution(
    audit: Audit, *, cases: int = 100, steps: int = 50, baseline: Baseline = "blur", border: float = 0.1
) -> Result:
    """Which pixels move the score, and do the maps describe the model rather than the image?

    Explained is the log-odds of the positive class (of the decided class with more than two). Integrated gradients
    (Sundararajan 2017) adds up to the change from the baseline; ``completeness_gap`` is the share it misses, pooled over cases.
    ``randomisation_similarity`` is the rank correlation with the map of the same network with shuffled weights (after Adebayo
    2018): near 1 means the map shows the image whatever the model learned. ``mass_lift`` is the share of positive attribution
    inside the reference mask or box over the mask's share of the area: 1 is chance. ``border_lift`` is the same for the
    outer frame of the image, where no anatomy should decide. The edge and random controls know nothing of the model; a method
    that does not beat them explains nothing. A map shows where the score is sensitive, not why, and not what a reader would see.
    """
    positions = audit.sample(cases)
    targets = _targets(audit)
    masks = _Masks(audit)

    def measure(batch: Batch) -> Rows:
        chosen = _chosen(batch, targets)
        twin = batch.model.randomised(audit.seed)
        maps = _maps(batch.pixels, chosen, batch.model.logits, baseline, steps)
        twins = _maps(batch.pixels, chosen, twin.logits, baseline, steps)
        moved = np.abs(np.asarray(maps["integrated_gradients"].difference, dtype=np.float64))
        gap = np.asarray(maps["integrated_gradients"].gap, dtype=np.float64)
        rows: Rows = {"missed": gap * np.maximum(moved, SMALLEST_DIFFERENCE), "moved": moved}
        for name in _METHODS:
            rows[f"similarity {name}"] = randomised_similarity(np.abs(maps[name].maps), np.abs(twins[name].maps))
        arrays = {name: maps[name].maps for name in _METHODS}
        arrays |= {"edges": sobel_edges(batch.pixels), "random": _random(batch, audit.seed)}
        for name, values in arrays.items():
            rows[f"lift {name}"] = masks.lift(batch.ids, values)
            rows[f"border {name}"] = border_mass(values, border) / border_area(values.shape[1], values.shape[2], border)
        return rows

    rows = audit.map(measure, positions=positions, options={"steps": steps, "baseline": baseline, "border": border})
    metrics = _metrics(audit, rows, positions)
    stored = _cases(audit, targets, baseline, steps)
    return Result(
        _summary(metrics, len(positions)),
        metrics,
        _charts(metrics, stored),
        stored,
        caveats=_caveats(metrics, baseline),
    )


class _Masks:
    """Reference masks of those cases that have one."""

    def __init__(self, audit: Audit) -> None:
        self.data, self.spec = audit.data, audit.model.input
        self.known = {str(name) for name, has in audit.data.has_mask.items() if has}

    def lift(self, ids: tuple[str, ...], maps: np.ndarray) -> np.ndarray:
        """(B,) mass lift, NaN for a case without mask."""
        lifts = np.full(len(ids), np.nan)
        places = [place for place, name in enumerate(ids) if name in self.known]
        if places:
            lifts[places] = mass_lift(maps[places], self.data.masks([ids[place] for place in places], self.spec))
        return lifts


def _targets(audit: Audit) -> Mapping[str, int]:
    """The class whose log-odds are explained, by case."""
    if audit.decision.positive is not None:
        return dict.fromkeys(map(str, audit.ids), audit.positive)
    return {str(name): int(code) for name, code in zip(audit.ids, audit.predictions.decisions, strict=True)}


def _chosen(batch: Batch, targets: Mapping[str, int]) -> torch.Tensor:
    return torch.tensor([targets[name] for name in batch.ids], device=batch.pixels.device)


def _maps(
    pixels: torch.Tensor, targets: torch.Tensor, logits: Logits, baseline: Baseline, steps: int
) -> dict[str, Attribution]:
    return {
        "integrated_gradients": integrated_gradients(logits, pixels, targets, baseline=baseline, steps=steps),
        "saliency": saliency(logits, pixels, targets),
    }


def _random(batch: Batch, seed: int) -> np.ndarray:
    """A random map of its own for every case, whatever batch it is in."""
    height, width = batch.pixels.shape[2:]
    return random_maps([case_seed(seed, "random map", name) for name in batch.ids], height, width)


def _metrics(audit: Audit, rows: Rows, positions: np.ndarray) -> tuple[Metric, ...]:
    pooled = bootstrap(
        lambda weights: (weights @ rows["missed"]) / np.maximum(weights @ rows["moved"], 1e-12),
        audit.patients[positions],
        rng=audit.rng("gap"),
    )
    found = [metric("completeness_gap", pooled, better="lower", where={"method": "integrated_gradients"})]
    for name in _METHODS:
        values = rows[f"similarity {name}"]
        found.append(
            mean_metric(audit, "randomisation_similarity", values, positions, better="lower", where={"method": name})
        )
    for name in (*_METHODS, *_CONTROLS):
        where = {"method": name}
        lift, frame = rows[f"lift {name}"], rows[f"border {name}"]
        found.append(
            mean_metric(
                audit, "mass_lift", lift, positions, better="higher", where=where, reason="no mask or box in the data"
            )
        )
        found.append(mean_metric(audit, "border_lift", frame, positions, better="lower", where=where))
    return tuple(found)


def _cases(audit: Audit, targets: Mapping[str, int], baseline: Baseline, steps: int) -> tuple[Case, ...]:
    def measure(batch: Batch) -> Rows:
        maps = _maps(batch.pixels, _chosen(batch, targets), batch.model.logits, baseline, steps)
        return {name: found.maps for name, found in maps.items()}

    rows = audit.map(measure, positions=audit.showcase, options={"steps": steps, "baseline": baseline})
    known = set(_Masks(audit).known)
    stored = []
    for place, (position, pixels) in enumerate(zip(audit.showcase, audit.pixels(audit.showcase), strict=True)):
        name = str(audit.ids[position])
        original = images.photograph(pixels)
        if name in known:
            original = images.outline(original, audit.data.masks([name], audit.model.input)[0])
        ig, gradient = rows["integrated_gradients"][place], rows["saliency"][place]
        pictures = {
            "image": original,
            "integrated gradients": images.overlay(pixels, ig, signed=True),
            "saliency": images.overlay(pixels, gradient, signed=False),
        }
        shown = {key: images.enlarged(picture) for key, picture in pictures.items()}
        stored.append(Case(name, audit.facts(position), shown, {"integrated gradients": ig, "saliency": gradient}))
    return tuple(stored)


def _charts(metrics: tuple[Metric, ...], stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    columns = ("randomisation_similarity", "mass_lift", "border_lift")
    by = {(item.name, item.where["method"]): item for item in metrics}
    rows = tuple(
        (text.label(name), *(spoken(by[column, name]) if (column, name) in by else "–" for column in columns))
        for name in (*_METHODS, *_CONTROLS)
    )
    sanity = Table(
        title="May these maps be believed?",
        alt="Sanity results of each method beside two controls that know nothing of the model.",
        columns=(
            "Method",
            "Similarity with random weights (0 is good)",
            "Lift inside mask (1 is chance)",
            "Lift on border (1 is chance)",
        ),
        rows=rows,
    )
    grid = Images(
        title="Maps of selected cases: orange speaks for the explained class, blue against; the mask is outlined in green",
        alt="One row per case: the image, integrated gradients and saliency drawn over it.",
        cases=tuple(case.id for case in stored),
        pictures=("image", "integrated gradients", "saliency"),
    )
    return (sanity, grid) if stored else (sanity,)


def _summary(metrics: tuple[Metric, ...], cases: int) -> str:
    gap, similarity = metrics[0], metrics[1]
    return (
        f"Integrated gradients on {text.plural(cases, 'image')} miss {spoken(gap)} of the score change and agree with the maps of "
        f"random weights at {spoken(similarity)}."
    )


def _caveats(metrics: tuple[Metric, ...], baseline: Baseline) -> tuple[str, ...]:
    found = [
        f"Attributions are relative to a {baseline} baseline: what equals the baseline gets no attribution however much it matters."
    ]
    for item in metrics:
        if item.name == "randomisation_similarity" and item.value is not None and item.value > _DEPENDS_LITTLE:
            found.append(
                f"Do not rely on {text.label(str(item.where['method'])).lower()} maps: they change little when the weights are random."
            )
        if (
            item.name == "completeness_gap" and item.value is not None and item.value > 0.05
        ):  # 5 %: field's customary bound
            found.append("The completeness gap is above 5 %: raise the number of steps before reading the maps.")
    return tuple(found)
