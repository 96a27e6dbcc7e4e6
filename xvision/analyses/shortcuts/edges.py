"""What stands outside the anatomy: whether it tells the label, and whether the model decides by it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from xvision import text
from xvision.analyses.shortcuts.part import Key, Part, by_id
from xvision.audit import Audit, apart, mean_metric, metric
from xvision.charts import Table
from xvision.engine import Batch, Rows
from xvision.methods.attribution import input_x_gradient
from xvision.methods.decision import Decision, decide
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.intervals import Estimate
from xvision.methods.scores import auroc
from xvision.methods.shift.image_statistics import image_statistics
from xvision.methods.shortcuts.ladder import Rung, State, shown
from xvision.methods.shortcuts.metadata import stratified_auroc
from xvision.methods.shortcuts.places import coarse, edge_places, edge_statistics
from xvision.methods.shortcuts.probe import known_levels_of
from xvision.result import Metric, spoken
from xvision.targets import Target, log_odds, targets

OUTSIDE = "what is outside the anatomy"
_MARKED = 0.9
"""Share of each class that must have a mask before masks say where the anatomy is: a mask of the ill alone tells who is ill."""
_EXPLAINED = 50
_TOLD = 8


@dataclass(frozen=True, eq=False)
class Looked:
    """M images of one split, without a pass through the model. statistics: (M,) by name; fields: (M, G, G)."""

    source: Audit
    positions: np.ndarray
    statistics: dict[str, np.ndarray]
    fields: np.ndarray
    split: str


def looked(audit: Audit, most: int, border: float) -> Looked:
    """At most ``most`` images of the split that the model learned from; of the audited images where there is no other."""
    others = (audit.on_split(name) for name in ("train", "validation"))
    audited = set(audit.ids)
    fits = (other for other in others if other is not None and other.labelled and not audited & set(other.ids))
    source = next(fits, audit)
    positions = by_id(source, source.sample(most))
    rows = source.map(partial(_look, border=border), positions=positions, options={"measure": "look", "border": border})
    fields = rows.pop("fields")
    split = "audited" if source is audit else str(source.data.table["split"].iloc[0])
    return Looked(source, positions, rows, fields, split)


def _look(batch: Batch, *, border: float) -> Rows:
    pixels = batch.pixels.cpu().numpy()
    whole = {f"whole image, {name}": values for name, values in image_statistics(pixels).items()}
    return {**whole, **edge_statistics(pixels, border), "fields": coarse(pixels)}


def at_the_edge(audit: Audit, seen: Looked) -> Part:
    """How well each trivial figure alone tells the label; those of the edge alone count as available without the disease."""
    part, found = Part(), {}
    for target in targets(audit):
        labels = seen.source.labels[seen.positions] == target.code
        for name, values in seen.statistics.items():
            estimate = auroc(values, labels, seen.source.patients[seen.positions])
            found[target.name, name] = estimate
            where = {**target.where, "statistic": name, "split": seen.split}
            part.metrics.append(metric("statistic_auroc", estimate, where=where))
    edge = [key for key in found if not key[1].startswith("whole image")]
    reached = dict(zip(edge, shown([found[key] for key in edge], null=0.5), strict=True))
    for target in targets(audit):
        own = [key for key in edge if key[0] == target.name and found[key].value is not None]
        part.rungs[target.name, OUTSIDE] = _available(own, found, reached)
    part.charts += _table(found)
    return part


def _available(own: list[Key], found: dict[Key, Estimate], reached: dict[Key, bool]) -> Rung:
    if not own:
        return Rung("left out", "no label of both kinds")
    best = max(own, key=lambda key: (reached[key], abs((found[key].value or 0.5) - 0.5)))
    state: State = "shown" if reached[best] else "not shown"
    return Rung(state, f"{best[1]}: AUROC of the label {spoken(metric('statistic', found[best]))}")


def _table(found: dict[Key, Estimate]) -> list[Table]:
    known = sorted(
        ((key, item) for key, item in found.items() if item.value is not None),
        key=lambda pair: -abs((pair[1].value or 0.5) - 0.5),
    )
    if not known:
        return []
    (name, best), item = known[0]
    return [
        Table(
            "Trivial figures of the image that tell the label best",
            f"Furthest from 0.5: {best}{f' of {name}' if name else ''}, {spoken(metric('auroc', item))}. The disease itself may change"
            " figures of the whole image, seldom those of the edge.",
            ("Figure", "AUROC of the label, no model"),
            tuple(
                (f"{figure} ({label})" if label else figure, spoken(metric("auroc", estimate)))
                for (label, figure), estimate in known[:_TOLD]
            ),
        )
    ]


@dataclass(frozen=True, eq=False)
class Region:
    """name: what counts as inside. masked: ids whose mask says so, empty where the frame is the outside. places: outside (H, W)."""

    name: str
    masked: frozenset[str]
    border: np.ndarray

    def inside(self, audit_masks: Callable[[list[str]], np.ndarray], ids: tuple[str, ...]) -> np.ndarray:
        """(B, H, W) bool."""
        if self.masked:
            return audit_masks(list(ids))
        return np.repeat(~self.border[None], len(ids), axis=0)


def region_of(audit: Audit, border: float) -> Region:
    """The masks where nearly every case of every class has one, else the frame."""
    spec = audit.model.input
    frame = edge_places(spec.height, spec.width, border)["border"]
    marked = audit.data.has_mask.to_numpy()
    shares = [marked[audit.labels == code].mean() for code in np.unique(audit.labels)]
    if min(shares) >= _MARKED:
        return Region("mask", frozenset(audit.ids[marked]), frame)
    return Region("border", frozenset(), frame)


def alone(audit: Audit, cases: int, border: float, suspects: set[str], minimum: int, resamples: int) -> Part:
    """The model on images of which only the outside, and only the inside, is left."""
    region = region_of(audit, border)
    positions = by_id(audit, audit.sample(cases))
    if region.masked:
        positions = positions[[str(name) in region.masked for name in audit.ids[positions]]]
    masks = partial(audit.data.masks, spec=audit.model.input)
    rows = audit.map(
        partial(_alone, region=region, masks=masks), positions=positions,
        options={"measure": "alone", "border": border, "region": region.name},
    )  # fmt: skip
    part = Part()
    found: list[tuple[str, str, Estimate]] = []
    for target in targets(audit):
        found.append((target.name, "label", _ranked(audit, part, target, positions, rows, region)))
        apart_ = _told_apart(audit, target, positions, rows, region, suspects, minimum, resamples)
        part.metrics += [item for _, item in apart_]
        found += [(target.name, level, _estimate(item)) for level, item in apart_]
    reached = shown([estimate for *_, estimate in found], null=0.5)
    for name in dict.fromkeys(name for name, *_ in found):
        own = [(what, each, yes) for (of, what, each), yes in zip(found, reached, strict=True) if of == name]
        part.rungs[name, OUTSIDE] = _followed(own, "what is outside the masks" if region.masked else "the frame")
    part.metrics += _attributed(audit, positions, region, masks)
    part.caveats += _caveats(audit, region, border, len(positions))
    return part


def _estimate(item: Metric) -> Estimate:
    return Estimate(item.value, item.low, item.high, item.n or 0, item.interval, item.reason)


def _followed(own: list[tuple[str, Estimate, bool]], seen: str) -> Rung:
    """The label first, then the level that the score on the outside alone tells best."""
    known = [each for each in own if each[1].value is not None]
    if not known:
        return Rung("left out", own[0][1].reason or "")
    what, estimate, yes = max(known, key=lambda each: (each[2], each[0] == "label", abs((each[1].value or 0.5) - 0.5)))
    of = "the label" if what == "label" else f"{what} at the same label"
    return Rung(
        "shown" if yes else "not shown",
        f"the model on {seen} alone, AUROC of {of}: {spoken(metric('a', estimate))}",
    )


def _alone(batch: Batch, *, region: Region, masks: Callable[[list[str]], np.ndarray]) -> Rows:
    inside = torch.from_numpy(region.inside(masks, batch.ids)).to(batch.pixels.device)[:, None]
    with torch.inference_mode():
        both = [batch.model.logits(batch.pixels * kept).float().cpu().numpy() for kept in (~inside, inside)]
    return {"outside": both[0].astype(np.float64), "inside": both[1].astype(np.float64)}


def _ranked(audit: Audit, part: Part, target: Target, positions: np.ndarray, rows: Rows, region: Region) -> Estimate:
    """Adds the AUROC of the model on either side and gives that of the outside."""
    found = {}
    for side in ("outside", "inside"):
        found[side] = auroc(log_odds(rows[side], target.code), target.labels[positions], audit.patients[positions])
        where = {**target.where, "region": region.name}
        part.metrics.append(metric(f"{side}_auroc", found[side], where=where))
    return found["outside"]


def _told_apart(
    audit: Audit,
    target: Target,
    positions: np.ndarray,
    rows: Rows,
    region: Region,
    suspects: set[str],
    minimum: int,
    resamples: int,
) -> list[tuple[str, Metric]]:
    """Level in words and figure: how well the score on the outside alone tells the levels of suspected columns apart at the same label."""
    found = []
    for column in sorted(suspects):
        levels = audit.column(column)[positions]
        people, kept = audit.patients[positions], levels != UNKNOWN
        names = known_levels_of(levels, people, minimum=minimum)
        for name in names[1:] if len(np.unique(levels[kept])) == 2 else names:
            if len(np.unique(people[kept & (levels != name)])) < minimum:
                continue
            estimate = stratified_auroc(
                log_odds(rows["outside"], target.code)[kept], (levels == name)[kept], audit.labels[positions][kept],
                people[kept], rng=audit.rng(f"outside {column} {name} {target.name}"),
                resamples=resamples,
            )  # fmt: skip
            where = {**target.where, apart(column, "class", "region"): name, "region": region.name}
            found.append((f"{column} {name}", metric("outside_level_auroc", estimate, where=where)))
    return found


def _attributed(
    audit: Audit, positions: np.ndarray, region: Region, masks: Callable[[list[str]], np.ndarray]
) -> list[Metric]:
    """Where gradient × input falls; a hint only."""
    where, reason = {"region": region.name}, audit.can("gradients")
    names = ("attribution_outside", "area_outside")
    if reason:
        return [Metric(name, None, where=where, reason=reason) for name in names]
    chosen = positions[:: max(1, -(-len(positions) // _EXPLAINED))]
    rows = audit.map(
        partial(_explained, region=region, masks=masks, decision=audit.decision), positions=chosen,
        options={"measure": "attributed", "region": region.name},
    )  # fmt: skip
    return [mean_metric(audit, name, rows[name], chosen, where=where) for name in names]


def _explained(batch: Batch, *, region: Region, masks: Callable[[list[str]], np.ndarray], decision: Decision) -> Rows:
    outside = ~region.inside(masks, batch.ids)
    with torch.inference_mode():
        decided = decide(batch.model.logits(batch.pixels).float().cpu().numpy(), decision)
    maps = np.abs(input_x_gradient(batch.model.logits, batch.pixels, torch.from_numpy(decided)).maps.astype(np.float64))
    total = maps.sum(axis=(1, 2))
    share = np.divide((maps * outside).sum(axis=(1, 2)), total, out=np.full(len(total), np.nan), where=total > 0)
    return {"attribution_outside": share, "area_outside": outside.mean(axis=(1, 2))}


def _caveats(audit: Audit, region: Region, border: float, count: int) -> list[str]:
    said = f"The model was shown the outside and the inside alone for {text.plural(count, 'image')}"
    if region.masked:
        return [f"{said}; the hole that a mask leaves has the mask's shape, which may tell the label by itself."]
    frame = f"{said}; outside is the frame, {100 * border:.0f} % of the shorter side wide, which may hold anatomy"
    if audit.data.has_mask.any():
        return [f"{frame}. Masks were not used: not every class has them, so that they tell the label."]
    return [f"{frame}."]
