"""Where the maps fall: in what the reference marks, and on the parts of the image that should decide nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from xvision import text
from xvision.audit import Audit, mean_metric
from xvision.charts import Axis, Chart, Forest, HeatMap, Mark, Reference
from xvision.engine import Batch, Rows
from xvision.explain.maps import Explainer, prepared
from xvision.explain.pictures import side_by_side
from xvision.methods.localisation import Localisation, ranked_family, region_lift, regions
from xvision.registry import analysis
from xvision.result import Metric, Result, spoken

_SCORES = Localisation._fields
_HITS = ("pointing_game", "hit_rate")
_MOST_LEVELS = 8
"""Of one acquisition column; the commonest are reported."""


@analysis("Localisation", pillar="Explanation", need="pixels", passes="those of the methods")
def localisation(
    audit: Audit,
    *,
    cases: int = 100,
    methods: tuple[str, ...] = (),
    corner: float = 0.2,
    border: float = 0.1,
    tolerance: float = 0.05,
) -> Result:
    """Do the maps point at what the reference marks, or at the frame of the image?

    Scores of a map against the reference mask or box, higher is better; chance is what a constant map reaches, a the mask's
    share of the area. ``pointing_game``: is the maximum inside (chance a); ``hit_rate``: inside or nearer to it than
    ``tolerance`` of the shorter side. ``relevance_mass``: share of the positive attribution inside (chance a);
    ``mass_lift``: that over a (chance 1). ``relevance_rank_accuracy``: share of the highest pixels, as many as are marked,
    that are marked (chance a); ``iou_top``: their overlap with the mask. ``pixel_auroc`` (chance 0.5) and ``pixel_auprc``
    (chance a): the map as a ranking of pixels. ``iou_otsu``: overlap with the region that Otsu's threshold draws.
    ``region_lift`` is the share of positive attribution in a corner (``corner`` of each side) or in the frame (``border`` of
    the shorter side) over its share of the area, for all cases and for each level of how the images were taken: 1 is
    chance; far more at one site alone is how a burnt-in marker shows. Controls, which know nothing of the model, are
    beside the methods: a bright marker attracts edges too. Good localisation does not say that a map describes the model,
    and a model may rightly look beside the mask.
    """
    explainer = prepared(audit, methods)
    positions = explainer.sample(cases)
    spec = audit.model.input
    places = regions(spec.height, spec.width, corner=corner, border=border)
    known = {str(name) for name, has in audit.data.has_mask.items() if has}
    pixels = tolerance * min(spec.height, spec.width)

    def measure(batch: Batch) -> Rows:
        marked = np.array([name in known for name in batch.ids])
        masks = np.zeros((len(batch.ids), spec.height, spec.width), dtype=bool)
        if marked.any():
            masks[marked] = audit.data.masks([name for name in batch.ids if name in known], spec)
        rows: Rows = {"area": np.where(marked, masks.mean(axis=(1, 2)), np.nan)}
        for name, found in explainer.maps(batch).items():
            finite = np.isfinite(found.values).all(axis=(1, 2))
            values = np.where(finite[:, None, None], found.values, 0.0).astype(np.float32)
            scores = np.stack(ranked_family(values, masks, tolerance=pixels), axis=1)
            lifts = np.stack([region_lift(values, region) for region in places.values()], axis=1)
            rows[f"scores {name}"] = np.where((finite & marked)[:, None], scores, np.nan)
            rows[f"regions {name}"] = np.where(finite[:, None], lifts, np.nan)
        return rows

    options = {"corner": corner, "border": border, "tolerance": tolerance, **explainer.options}
    rows = audit.map(measure, positions=positions, options=options)
    figures = _Figures(audit, explainer, tuple(places), positions, rows)
    stored = explainer.cases()
    labels = [method.label for method in explainer.methods]
    return Result(
        figures.summary(),
        figures.metrics,
        (*figures.charts(), *side_by_side("Maps of selected cases, the mask outlined in green", labels, stored)),
        stored,
        {"localisation": figures.table()},
        figures.caveats(),
    )


class _Figures:
    """Per-case rows and what is said of them.

    scores: by score and method. lifts: by region, method and level in words, which is empty for all cases.
    """

    def __init__(
        self, audit: Audit, explainer: Explainer, places: tuple[str, ...], positions: np.ndarray, rows: Rows
    ) -> None:
        self.audit, self.explainer, self.regions = audit, explainer, places
        self.positions, self.rows = positions, rows
        self.names = tuple(method.name for method in explainer.everything)
        self.methods = self.names[: len(explainer.methods)]
        self.levels = {f"{column} {level}": (column, level) for column, level in self._levels()}
        self.scores = {(score, name): self._score(score, name) for name in self.names for score in _SCORES}
        self.lifts = {
            (region, name, level): self._lift(region, name, level)
            for name in self.names
            for region in self.regions
            for level in ("", *self.levels)
        }

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (*self.scores.values(), *self.lifts.values())

    def _levels(self) -> Iterator[tuple[str, str]]:
        for column in self.audit.acquisition:
            levels, counts = np.unique(self.audit.column(column)[self.positions], return_counts=True)
            commonest = sorted(np.argsort(-counts, kind="stable")[:_MOST_LEVELS])
            yield from ((column, str(levels[place])) for place in commonest)

    def _score(self, score: str, name: str) -> Metric:
        values = self.rows[f"scores {name}"][:, _SCORES.index(score)]
        where = {"method": name}
        return mean_metric(
            self.audit, score, values, self.positions, better="higher", where=where, reason=self._missing(),
            hits=score in _HITS,
        )  # fmt: skip

    def _missing(self) -> str:
        area = self.rows["area"]
        if np.isnan(area).all():
            return "no mask or box in the data"
        if not np.nanmax(area) > 0.0:
            return "every mask is empty at the model's input size"
        return "undefined for every marked case: maps that are constant, without positive attribution or not finite"

    def _lift(self, region: str, name: str, level: str) -> Metric:
        values = self.rows[f"regions {name}"][:, self.regions.index(region)]
        members = np.ones(len(values), dtype=bool)
        where: dict[str, str | int | float] = {"method": name, "region": region}
        if level:
            column, value = self.levels[level]
            members = self.audit.column(column)[self.positions] == value
            where[f"{column} column" if column in where else column] = value
        return mean_metric(
            self.audit, "region_lift", values[members], self.positions[members], better="lower", where=where,
            reason="no map has positive attribution",
        )  # fmt: skip

    def strongest(self) -> tuple[str, str, str] | None:
        """Region, method and level whose lift is surely largest: by the lower end of its interval."""
        known = {key: item.low for key, item in self.lifts.items() if key[1] in self.methods and item.low is not None}
        return max(known, key=lambda key: known[key]) if known else None

    def best(self, names: tuple[str, ...]) -> str | None:
        """The method with the largest mass lift."""
        known = {name: value for name in names if (value := self.scores["mass_lift", name].value) is not None}
        return max(known, key=lambda name: known[name]) if known else None

    def summary(self) -> str:
        found = [self._pointing()]
        if key := self.strongest():
            region, name, level = key
            at = f" at {level}" if level else ""
            lift = spoken(self.lifts[key])
            found.append(
                f"The strongest region is the {region}{at}: {self.label(name)} puts {lift} times its share there."
            )
        return " ".join(found)

    def _pointing(self) -> str:
        best, blind = self.best(self.methods), self.best(self.names[len(self.methods) :])
        count = text.plural(len(self.positions), "image")
        if best is None:
            reason = self.scores["mass_lift", self.methods[0]].reason
            return f"On {count} no localisation can be given: {reason}."
        lift = self.scores["mass_lift", best]
        said = (
            f"On {count}, {self.label(best)} points best at the reference: mass lift {spoken(lift)}, where 1 is chance"
        )
        if blind is None:
            return f"{said}."
        control = self.scores["mass_lift", blind]
        less = "no better than" if (control.value or 0.0) >= (lift.value or 0.0) else "against"
        return f"{said}, {less} {spoken(control)} of the control {self.label(blind)}."

    def label(self, name: str) -> str:
        return self.explainer.label(name)

    def charts(self) -> Iterator[Chart]:
        if self.best(self.names) is not None:
            yield self._forest()
            yield self._matrix()
        labels = tuple(map(self.label, self.names))
        yield HeatMap(
            "Attribution on the frame and the corners over their share of the area: 1 is chance",
            f"Lift of every method and control on {len(self.regions)} regions. {self.summary().split('. ')[-1]}",
            self.regions,
            labels,
            tuple(tuple(self.lifts[region, name, ""].value for region in self.regions) for name in self.names),
            "Region",
            "Method",
            low=0.0,
            better="lower",
        )
        key = self.strongest()
        if key and self.levels:
            yield self._by_level(key[1])

    def _forest(self) -> Forest:
        items = [(name, self.scores["mass_lift", name]) for name in self.names]
        return Forest(
            "Attribution inside the mask over the mask's share of the area",
            "; ".join(f"{self.label(name)} {spoken(item)}" for name, item in items) + ".",
            Axis("Mass lift", low=0.0),
            tuple(
                Mark(
                    self.label(name), item.value, item.low, item.high,
                    f"n = {item.n}" if item.n else "not estimable",
                )
                for name, item in items
            ),
            (Reference("chance", 1.0, "x"),),
        )  # fmt: skip

    def _matrix(self) -> HeatMap:
        shown = tuple(score for score in _SCORES if score != "mass_lift")
        return HeatMap(
            "Localisation of every method; the controls at the end know nothing of the model",
            f"Mean of {len(shown)} scores between 0 and 1 for every method and control; higher is better.",
            tuple(map(text.label, shown)),
            tuple(map(self.label, self.names)),
            tuple(tuple(self.scores[score, name].value for score in shown) for name in self.names),
            "Score",
            "Method",
            low=0.0,
            high=1.0,
            better="higher",
        )

    def _by_level(self, name: str) -> HeatMap:
        return HeatMap(
            f"Attribution of {self.label(name)} by how the image was taken: 1 is chance",
            "Lift on each region for each level of the acquisition columns; a region that stands out at one level alone "
            "speaks for a marker or another trace of how the image was taken.",
            tuple(self.levels),
            self.regions,
            tuple(tuple(self.lifts[region, name, level].value for level in self.levels) for region in self.regions),
            "How the image was taken",
            "Region",
            low=0.0,
            better="lower",
        )

    def table(self) -> pd.DataFrame:
        """One row per case and method."""
        ids = self.audit.ids[self.positions]
        parts = []
        for name in self.names:
            part = pd.DataFrame(self.rows[f"scores {name}"], columns=list(_SCORES))
            part[[f"lift {region}" for region in self.regions]] = self.rows[f"regions {name}"]
            part.insert(0, "method", name)
            part.insert(0, "id", ids)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def caveats(self) -> tuple[str, ...]:
        area = self.rows["area"]
        found = ["Localisation is not faithfulness: a map may fall on the finding and still not describe the model."]
        marked, empty = int(np.isfinite(area).sum()), int((area == 0.0).sum())
        if 0 < marked < len(area):
            found.append(f"Scores are of the {marked} of {len(area)} cases that have a mask or box.")
        if empty:
            found.append(f"Left out: {text.plural(empty, 'mask')} without a pixel at the model's input size.")
        for column in self.audit.acquisition:
            count = len(np.unique(self.audit.column(column)[self.positions]))
            if count > _MOST_LEVELS:
                found.append(f"Of {count} levels of {column}, the {_MOST_LEVELS} commonest are reported.")
        return tuple(found)
