"""Does a case keep its map under changes that no reader would notice?"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from xvision import text
from xvision.audit import Audit, mean_metric
from xvision.charts import Chart, HeatMap
from xvision.engine import Batch, Rows
from xvision.explain.maps import Explainer, explained, likeness, prepared
from xvision.explain.method import Asked, Maps, Method, Settings
from xvision.methods.attribution import Baseline
from xvision.methods.corruptions import corrupt
from xvision.registry import analysis
from xvision.result import Metric, Result, spoken

_ALIKE = 0.7
"""Similarity below which two maps of one case are named in a caveat as telling different stories."""


@analysis(
    "Explanation stability", pillar="Explanation", need="pixels", passes="7 × those of its methods, and 5 forward"
)
def explanation_stability(
    audit: Audit,
    *,
    cases: int = 32,
    methods: tuple[str, ...] = (),
    shift: int = 1,
    baseline: Baseline = "blur",
    steps: int = 50,
    samples: int = 16,
    masks: int = 256,
) -> Result:
    """Does the same case get the same map when nothing that matters has changed?

    Changes: a shift by ``shift`` pixels (the map is shifted back), exposure by 2 %, contrast by 2 %, JPEG of the mildest severity,
    another seed for methods that draw, and 16-bit floating-point arithmetic (bfloat16). ``map_similarity`` is the rank correlation
    by patch, 1 where the map is the same; cases whose decision changed are left out and counted by ``decision_kept``. A stable map
    is not thereby right: a map of edges is as stable as the image.
    """
    explainer = prepared(audit, methods, with_controls=False, settings=Settings(baseline, steps, samples, masks))
    positions = explainer.sample(cases)
    changes = _changes(explainer, shift)

    def measure(batch: Batch) -> Rows:
        maps = explainer.maps(batch)
        clean = _decided(batch.model.logits, batch.pixels)
        rows: Rows = {}
        for name, change in changes.items():
            kept = change.kept(batch, clean)
            rows[f"kept {name}"] = kept.astype(np.float64)
            for method in explainer.methods:
                again = change.map(method, batch)
                alike = likeness(explainer.units, maps[method.name].values, again.values)
                rows[f"{method.name} {name}"] = np.where(kept, alike, np.nan)
        return rows

    rows = audit.map(measure, positions=positions, options={**explainer.options, "shift": shift})
    metrics = _metrics(audit, explainer, rows, positions, tuple(changes))
    return Result(
        _summary(explainer, metrics),
        metrics,
        (_chart(explainer, metrics, tuple(changes)),),
        caveats=_caveats(explainer, metrics),
    )


class _Change:
    """The same cases, seen again. ``edit`` changes the pixels, ``back`` undoes it on the map."""

    def __init__(
        self,
        explainer: Explainer,
        *,
        edit: Callable[[Batch], torch.Tensor] = lambda batch: batch.pixels,
        back: Callable[[np.ndarray], np.ndarray] = lambda values: values,
        copy: int = 0,
        half: bool = False,
    ) -> None:
        self.explainer, self.edit, self.back, self.copy, self.half = explainer, edit, back, copy, half

    def map(self, method: Method, batch: Batch) -> Maps:
        asked = self.explainer.asked(batch, pixels=self.edit(batch), copy=self.copy)
        found = self._explained(method, asked)
        return found._replace(values=self.back(found.values))

    def kept(self, batch: Batch, clean: np.ndarray) -> np.ndarray:
        """(B,) whether the decision is the one of the unchanged image."""
        with torch.autocast(batch.pixels.device.type, dtype=torch.bfloat16, enabled=self.half):
            kept: np.ndarray = _decided(batch.model.logits, self.edit(batch)) == clean
        return kept

    def _explained(self, method: Method, asked: Asked) -> Maps:
        with torch.autocast(asked.pixels.device.type, dtype=torch.bfloat16, enabled=self.half):
            return explained(method, asked)


def _changes(explainer: Explainer, shift: int) -> Mapping[str, _Change]:
    seed = explainer.audit.seed

    def moved(batch: Batch) -> torch.Tensor:
        return torch.roll(batch.pixels, shifts=(shift, shift), dims=(2, 3))

    def moved_back(values: np.ndarray) -> np.ndarray:
        return np.roll(values, (-shift, -shift), (1, 2))

    return {
        f"shift by {text.plural(shift, 'pixel')}": _Change(explainer, edit=moved, back=moved_back),
        "exposure + 2 %": _Change(explainer, edit=lambda batch: (batch.pixels * 1.02).clamp(0, 1)),
        "contrast − 2 %": _Change(explainer, edit=lambda batch: 0.5 + (batch.pixels - 0.5) * 0.98),
        "mild JPEG": _Change(explainer, edit=lambda batch: corrupt(batch.pixels, "jpeg", 1, batch.ids, seed=seed)),
        "another seed": _Change(explainer, copy=1),
        "16-bit arithmetic": _Change(explainer, half=True),
    }  # fmt: skip


def _decided(logits: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = logits(pixels).argmax(dim=1).cpu().numpy()
    return found


def _metrics(
    audit: Audit, explainer: Explainer, rows: Rows, positions: np.ndarray, changes: tuple[str, ...]
) -> tuple[Metric, ...]:
    found = [
        mean_metric(
            audit, "decision_kept", rows[f"kept {name}"], positions, better="higher", where={"change": name}, hits=True
        )
        for name in changes
    ]
    reason = "no case kept its decision and has maps that vary"
    for method in explainer.methods:
        for name in changes:
            where = {"method": method.name, "change": name}
            values = rows[f"{method.name} {name}"]
            found.append(
                mean_metric(audit, "map_similarity", values, positions, better="higher", where=where, reason=reason)
            )
    return tuple(found)


def _chart(explainer: Explainer, metrics: tuple[Metric, ...], changes: tuple[str, ...]) -> Chart:
    by = {(item.where["method"], item.where["change"]): item.value for item in metrics if item.name == "map_similarity"}
    return HeatMap(
        title="Similarity of a case's maps before and after a harmless change",
        alt="Mean rank correlation by patch; 1 is the same map, 0 an unrelated one.",
        columns=changes,
        rows=tuple(method.label for method in explainer.methods),
        values=tuple(tuple(by[method.name, name] for name in changes) for method in explainer.methods),
        x_label="Change",
        y_label="Method",
        low=0,
        high=1,
        better="higher",
    )


def _summary(explainer: Explainer, metrics: tuple[Metric, ...]) -> str:
    known = [item for item in metrics if item.name == "map_similarity" and item.value is not None]
    if not known:
        return "No map could be compared: no case kept its decision and has maps that vary."
    worst = min(known, key=lambda item: item.value or 0.0)
    label = explainer.label(str(worst.where["method"]))
    return f"The map that changes most is that of {label} under {worst.where['change']}: similarity {spoken(worst)}."


def _caveats(explainer: Explainer, metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    telling = [
        (text.opening(explainer.label(str(item.where["method"]))), item)
        for item in metrics
        if item.name == "map_similarity" and item.high is not None and item.high < _ALIKE
    ]
    return tuple(
        f"{label} tells another story after {item.where['change']}: similarity {spoken(item)}."
        for label, item in telling
    )
