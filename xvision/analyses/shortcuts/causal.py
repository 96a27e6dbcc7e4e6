"""Last rung: a suspected mark is put into images without it and taken out of images with it, beside a placebo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from xvision import images
from xvision.analyses.shortcuts.edges import Looked
from xvision.analyses.shortcuts.part import Key, Part, by_id, columns_of
from xvision.audit import Audit, apart, mean_estimate, metric
from xvision.charts import Axis, Chart, Forest, Images, Mark, Reference
from xvision.data.dataset import AuditDataset
from xvision.engine import Batch, Rows
from xvision.methods.decision import decide
from xvision.methods.groups.cases import UNKNOWN
from xvision.methods.intervals import Estimate, proportion
from xvision.methods.shortcuts.cues import Box, checked_box, differences, donors, edited, find_cue, mcnemar
from xvision.methods.shortcuts.ladder import Rung, State, shown
from xvision.methods.shortcuts.places import CELLS, ring
from xvision.methods.shortcuts.probe import known_levels_of
from xvision.result import Case, Metric, Where, spoken
from xvision.targets import Target, log_odds, targets

_RING = 0.25
"""How far from the edge, as a share of the side, the middle of a mark is looked for."""
_MOST_CUES = 3
_FOUND = 0.05
_MATTERS = 0.1
"""Standard deviations of the log-odds at the same label below which an effect is no finding, however sure."""
_EDITS = ("insertion", "removal", "both")


@dataclass(frozen=True)
class Cue:
    """A place that goes with a level of a column. name: "found", or "box 1" for the first box of the plan."""

    column: str
    level: str
    box: Box
    name: str


def suspected(
    audit: Audit, seen: Looked, boxes: tuple[tuple[float, ...], ...], suspects: tuple[str, ...]
) -> tuple[list[Cue], dict[str, str]]:
    """The marks to try, and why there is none for a column."""
    named = [checked_box(edges) for edges in boxes]
    cues, reasons = [], {}
    for column in suspects[:_MOST_CUES]:
        searched = _strongest(audit, seen, column, min(len(suspects), _MOST_CUES))
        if isinstance(searched, Cue):
            cues.append(searched)
        else:
            reasons[column] = searched
    for place, box in enumerate(named, start=1):
        found = _carrying(audit, seen, box, f"box {place}")
        if found is not None:
            cues.append(found)
        else:
            reasons[""] = "no column with two levels says which images carry what is in the boxes"
    return cues, reasons


def _levels(seen: Looked, column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    levels = seen.source.data.table[column].to_numpy(dtype=str)[seen.positions]
    names = known_levels_of(levels, seen.source.patients[seen.positions], minimum=5)
    return levels, names


def _strongest(audit: Audit, seen: Looked, column: str, looked_at: int) -> Cue | str:
    levels, names = _levels(seen, column)
    best: tuple[float, Cue] | None = None
    compared = names[1:] if len(names) == 2 else names
    for name in compared:
        known = levels != UNKNOWN
        found = find_cue(
            seen.fields[known], (levels == name)[known], seen.source.labels[seen.positions][known],
            seen.source.patients[seen.positions][known], ring(CELLS, _RING), rng=audit.rng(f"cue {column} {name}"),
        )  # fmt: skip
        if found is not None and (best is None or found.p < best[0]):
            carrier = name if found.brighter or len(names) > 2 else names[0]
            best = found.p, Cue(column, carrier, found.box, "found")
    if best is None:
        return "fewer than two levels with 5 patients among the images that were searched"
    if best[0] * len(compared) * looked_at > _FOUND:
        return "at no place near the edge do the levels' mean images differ by more than chance"
    return best[1]


def _carrying(audit: Audit, seen: Looked, box: Box, name: str) -> Cue | None:
    """The level whose images differ most from others inside the box."""
    left, top, right, bottom = box.pixels(CELLS, CELLS)
    best: tuple[float, Cue] | None = None
    for column in audit.acquisition or audit.groups:
        levels, names = _levels(seen, column)
        known = levels != UNKNOWN
        for level in names if len(names) > 1 else ():
            labels = seen.source.labels[seen.positions][known]
            inside = differences(seen.fields[known], (levels == level)[known][None], labels)[0, top:bottom, left:right]
            size = float(
                (inside if len(names) == 2 else np.abs(inside)).max()
            )  # of two, the brighter one carries the mark
            if best is None or size > best[0]:
                best = size, Cue(column, level, box, name)
    return None if best is None else best[1]


def caused(audit: Audit, cues: list[Cue], reasons: dict[str, str], cases: int) -> Part:
    """What putting each mark in and taking it out does, and a rung for every class and column."""
    part = Part()
    effects: dict[tuple[Key, str], tuple[Estimate, str, Cue]] = {}
    for cue in cues:
        tried = _Tried.of(audit, cue, cases)
        for target in targets(audit):
            effects[(target.name, cue.column), cue.name] = (*tried.figures(part, target), cue)
        part.cases += tried.pictured()
        part.caveats += tried.caveats()
    reached = shown([effect for effect, _, _ in effects.values()], null=_MATTERS, above=True)
    for ((key, _), (effect, said, cue)), yes in zip(effects.items(), reached, strict=True):
        state: State = "left out" if effect.value is None else "shown" if yes else "not shown"
        if part.rungs.get(key, Rung("left out")).state != "shown":
            part.rungs[key] = Rung(state, f"mark of {cue.level} at {cue.box}: {said}")
    for key in ((target.name, column) for target in targets(audit) for column in columns_of(audit)):
        if key not in part.rungs:
            reason = reasons.get(key[1]) or reasons.get("", "neither available nor followed, and no box was named")
            part.rungs[key] = Rung("left out", reason)
            where: Where = {**({"class": key[0]} if key[0] else {}), "column": key[1]}
            part.metrics.append(Metric("cue_beyond_placebo", None, where=where, reason=reason))
    part.charts += _charts(part.metrics, part.cases)
    if cues:
        part.caveats.append(
            f"Marks were put in and taken out with patches of other patients, of the same label where there was one, on at most {cases}"
            " images each; a patch that does not fit its surroundings moves the score by itself, which the placebo shows."
        )
    return part


@dataclass(frozen=True, eq=False)
class _Tried:
    """One mark on the cases that could be edited. rows: logits with the cue and with the placebo."""

    audit: Audit
    cue: Cue
    positions: np.ndarray
    carriers: np.ndarray
    partner: dict[str, str]
    rows: Rows

    @classmethod
    def of(cls, audit: Audit, cue: Cue, cases: int) -> _Tried:
        levels, ids = audit.column(cue.column), audit.ids
        found = donors(
            ids,
            audit.patients,
            audit.labels,
            levels == cue.level,
            levels != UNKNOWN,
            seed=audit.seed_of(f"donor {cue.name}"),
        )
        positions = by_id(audit, audit.sample(cases))
        positions = positions[found[positions] >= 0]
        partner = {str(ids[place]): str(ids[found[place]]) for place in positions}
        seed = audit.seed_of(f"edit {cue.column} {cue.name}")
        measure = partial(_edit, data=audit.data, partner=partner, box=cue.box, seed=seed)
        options = {"measure": "edit", "box": tuple(cue.box), "seed": seed, "column": cue.column, "level": cue.level}
        rows = audit.map(measure, positions=positions, options=options) if len(positions) else {}
        return cls(audit, cue, positions, levels[positions] == cue.level, partner, rows)

    def figures(self, part: Part, target: Target) -> tuple[Estimate, str]:
        """Adds the metrics of one class; gives the size of the effect in standard deviations, and the effect in words."""
        audit, cue = self.audit, self.cue
        where: Where = {**target.where, apart(cue.column, "class", "cue", "edit", "patch"): cue.level, "cue": cue.name}
        if not len(self.positions):
            reason = f"no other patient's image could be taken for {cue.column} {cue.level}"
            part.metrics += [
                Metric("cue_beyond_placebo", None, where={**where, "edit": edit}, reason=reason) for edit in _EDITS
            ]
            return Estimate(None, None, None, 0, "", reason), reason
        clean = target.log_odds[self.positions]
        changes = {
            name: (log_odds(self.rows[name], target.code) - clean) * np.where(self.carriers, -1.0, 1.0)
            for name in ("cue", "placebo")
        }
        decided = audit.predictions.decisions[self.positions]
        flips = {name: decide(self.rows[name], audit.decision) != decided for name in changes}
        for edit, chosen in zip(_EDITS, (~self.carriers, self.carriers, np.ones(len(clean), bool)), strict=True):
            part.metrics += self._edit_metrics({**where, "edit": edit}, chosen, changes, flips)
        beyond = mean_estimate(audit, f"beyond {dict(where)} both", changes["cue"] - changes["placebo"], self.positions)
        rates = [proportion(flips[name], audit.patients[self.positions]).value or 0.0 for name in ("cue", "placebo")]
        said = (
            f"{spoken(metric('effect', beyond))} log-odds beyond placebo, flips {rates[0]:.3f} against {rates[1]:.3f}"
        )
        return _in_deviations(beyond, self._spread(clean)), said

    def _edit_metrics(
        self, where: Where, chosen: np.ndarray, changes: dict[str, np.ndarray], flips: dict[str, np.ndarray]
    ) -> Iterator[Metric]:
        """Changes are those of the mark's presence: for a removal the sign is turned."""
        audit, places = self.audit, self.positions[chosen]
        patients = audit.patients[places]
        for patch in ("cue", "placebo"):
            share = proportion(flips[patch][chosen], patients)
            yield metric("flip_rate", share, better="lower", where={**where, "patch": patch})
            effect = mean_estimate(audit, f"{patch} {dict(where)}", changes[patch][chosen], places)
            yield metric(f"{patch}_effect", effect, where=where, unit="log-odds")
        beyond = (changes["cue"] - changes["placebo"])[chosen]
        yield metric(
            "cue_beyond_placebo", mean_estimate(audit, f"beyond {dict(where)} {where['edit']}", beyond, places),
            where=where, unit="log-odds",
        )  # fmt: skip
        p, more, less = mcnemar(flips["cue"][chosen], flips["placebo"][chosen], patients)
        if p is None:
            yield Metric("mcnemar_p", None, where=where, reason="no cases")
        else:
            how = f"exact McNemar, {more} decisions changed by the cue alone and {less} by the placebo alone"
            yield Metric("mcnemar_p", p, n=len(np.unique(patients)), where=where, interval=how)

    def caveats(self) -> list[str]:
        """How alike the placebo is."""
        if not len(self.positions):
            return []
        energy = float(np.median(self.rows["energy"]))
        of = f"{self.cue.column} {self.cue.level}, {self.cue.box}"
        return [f"Mark of {of}: the placebo changes the image {energy:.2g} times as much (median, squared)."]

    def _spread(self, clean: np.ndarray) -> float:
        """Standard deviation of the log-odds at the same label."""
        labels = self.audit.labels[self.positions]
        centred = clean - np.array([clean[labels == label].mean() for label in labels])
        return float(centred.std())

    def pictured(self) -> list[Case]:
        """Two insertions and two removals that change the score most."""
        if not len(self.positions) or not self.audit.pictures:
            return []
        code = next(targets(self.audit)).code
        change = log_odds(self.rows["cue"], code) - log_odds(self.audit.predictions.logits[self.positions], code)
        found = []
        for side in (False, True):
            own = np.flatnonzero(self.carriers == side)
            found += [
                self._case(int(place), float(change[place])) for place in own[np.argsort(-np.abs(change[own]))][:2]
            ]
        return found

    def _case(self, place: int, change: float) -> Case:
        audit, position = self.audit, self.positions[place]
        name = str(audit.ids[position])
        own = torch.from_numpy(audit.pixels([position]))
        given = torch.from_numpy(audit.data.pixels([self.partner[name]], audit.model.input))
        made = edited(own, given, (name,), self.cue.box, seed=audit.seed_of(f"edit {self.cue.column} {self.cue.name}"))
        shown_ = {"image": own, "mark changed": made.cue, "placebo": made.placebo}
        facts = dict(audit.facts(position)) | {
            self.cue.column: str(audit.column(self.cue.column)[position]), "change of log-odds": change,
            "edit": "mark taken out" if self.carriers[place] else "mark put in",
        }  # fmt: skip
        return Case(
            name, facts, {key: images.enlarged(images.photograph(each[0].numpy())) for key, each in shown_.items()}
        )


def _edit(batch: Batch, *, data: AuditDataset, partner: dict[str, str], box: Box, seed: int) -> Rows:
    given = torch.from_numpy(data.pixels([partner[name] for name in batch.ids], batch.model.input))
    made = edited(batch.pixels, given.to(batch.pixels.device), batch.ids, box, seed=seed)
    with torch.inference_mode():
        found = {
            name: batch.model.logits(each).float().cpu().numpy()
            for name, each in made._asdict().items()
            if name != "energy"
        }
    return {**{name: values.astype(np.float64) for name, values in found.items()}, "energy": made.energy}


def _in_deviations(effect: Estimate, spread: float) -> Estimate:
    """The size of an effect, whatever its sign, in standard deviations."""
    if effect.value is None or effect.low is None or effect.high is None:
        return effect
    if spread == 0:
        return Estimate(None, None, None, effect.n, "", "all scores of a label are equal")
    ends = (effect.low, effect.high) if effect.value >= 0 else (-effect.high, -effect.low)
    return effect._replace(value=abs(effect.value) / spread, low=ends[0] / spread, high=ends[1] / spread)


def _charts(metrics: list[Metric], cases: list[Case]) -> Iterator[Chart]:
    known = [item for item in metrics if item.name in {"cue_effect", "placebo_effect"} and item.value is not None]
    marks = [item for item in known if item.where["edit"] != "both"]
    if marks:
        largest = max(marks, key=lambda item: abs(item.value or 0.0))
        yield Forest(
            "Change of the log-odds with the mark, beside the placebo",
            f"Largest: {_row(largest)}, {spoken(largest)}.",
            Axis("Log-odds with the mark less without it"),
            tuple(Mark(_row(item), item.value, item.low, item.high, f"n = {item.n}") for item in marks[:20]),
            (Reference("no change", 0.0, "x"),),
        )
    if cases:
        yield Images(
            "Images as they are, with the mark put in or taken out, and with the placebo",
            "One row per case: the image, the changed mark, the same change elsewhere.",
            tuple(dict.fromkeys(case.id for case in cases))[:4],
            ("image", "mark changed", "placebo"),
        )


def _row(item: Metric) -> str:
    level = next(f"{key} {value}" for key, value in item.where.items() if key not in {"class", "cue", "edit"})
    of = f"{item.where['class']}, " if "class" in item.where else ""
    what = "mark" if item.name == "cue_effect" else "placebo"
    return f"{of}{level}, {item.where['edit']} of the {what}"
