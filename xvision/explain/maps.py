"""The maps of an audit's cases: made once, shared by the analyses, never more of them in memory than a fixed amount.

Shapes: B batch, C H W image, P units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from xvision import images
from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.errors import ModelError
from xvision.explain.catalogue import chosen, controls, units_of
from xvision.explain.method import Asked, Maps, Method, Settings
from xvision.methods.randomisation import randomised_similarity
from xvision.methods.randomness import case_seed
from xvision.methods.units import Units
from xvision.result import Case

REFERENCES = 32
"""Images of the audited data that baselines drawn from it come from."""
MEMORY = 256 * 2**20
"""Bytes of maps kept for the next analysis; what is beyond is made again."""


class _Kept(NamedTuple):
    """One image's map: values (H, W), gap and difference or None."""

    values: np.ndarray
    gap: float | None
    difference: float | None


@dataclass
class _Memory:
    """Maps by method, options and case, as long as there is room."""

    kept: dict[tuple[str, str, str], _Kept] = field(default_factory=dict)
    size: int = 0

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()  # a worker elsewhere starts with an empty one

    def keep(self, key: tuple[str, str, str], found: _Kept) -> None:
        if key not in self.kept and self.size + found.values.nbytes <= MEMORY:
            self.kept[key] = found
            self.size += found.values.nbytes


@dataclass(frozen=True, eq=False)
class Explainer:
    """Methods and controls, ready to be asked about an audit's cases; see ``prepared``."""

    audit: Audit
    methods: tuple[Method, ...]
    controls: tuple[Method, ...]
    units: Units
    settings: Settings
    decided: bool = False
    """Explain each case's decision, instead of the positive class in every case."""

    @property
    def everything(self) -> tuple[Method, ...]:
        """Methods, then controls."""
        return (*self.methods, *self.controls)

    @property
    def options(self) -> dict[str, Any]:
        """What decides the maps, for ``Audit.map``."""
        return {
            "methods": [method.name for method in self.everything],
            "decided": self.decided,
            **asdict(self.settings),
        }

    def label(self, name: str) -> str:
        """The method's name on pages."""
        return next(method.label for method in self.everything if method.name == name)

    def sample(self, cases: int) -> np.ndarray:
        """Positions of at most this many cases, the same for all analyses of explanations, a smaller sample within a larger."""
        count = len(self.audit.ids)
        order = np.random.default_rng([self.audit.seed, 0xE7]).permutation(count)
        return np.sort(order[:cases])

    @cached_property
    def targets(self) -> Mapping[str, int]:
        """The class whose log-odds are explained, by case: the positive one of two, or the decided one."""
        ids = map(str, self.audit.ids)
        if self.audit.decision.positive is not None and not self.decided:
            return dict.fromkeys(ids, self.audit.positive)
        return {name: int(code) for name, code in zip(ids, self.audit.predictions.decisions, strict=True)}

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {str(name): place for place, name in enumerate(self.audit.ids)}

    def logits(self, batch: Batch) -> np.ndarray:
        """(B, K) float64 of the clean images, which the audit has already."""
        logits: np.ndarray = self.audit.predictions.logits[[self._places[name] for name in batch.ids]]
        return logits

    @cached_property
    def references(self) -> torch.Tensor:
        """(R, C, H, W) images of the audited data, drawn once."""
        count = len(self.audit.ids)
        places = np.random.default_rng([self.audit.seed, 0xEF]).permutation(count)[:REFERENCES]
        return torch.from_numpy(self.audit.pixels(np.sort(places)))

    def asked(self, batch: Batch, *, model: Any = None, pixels: torch.Tensor | None = None, copy: int = 0) -> Asked:
        """The question put to a method; another model or other pixels of the same cases may stand in.

        copy: set it to draw anew whatever a method draws.
        """
        targets = torch.tensor([self.targets[name] for name in batch.ids], device=batch.pixels.device)
        seeds = tuple(case_seed(self.audit.seed, f"explanation {copy}", name) for name in batch.ids)
        references = self.references.to(batch.pixels.device) if self._wants_references else None
        shown = batch.pixels if pixels is None else pixels
        return Asked(model or batch.model, shown, targets, seeds, self.units, self.settings, references)

    def maps(self, batch: Batch) -> dict[str, Maps]:
        """The maps (B, H, W) of a batch by method and control. An image that a method cannot explain has a map of NaN."""
        return {method.name: self._remembered(method, batch) for method in self.everything}

    def cases(self) -> tuple[Case, ...]:
        """The cases that every analysis pictures, with one picture per method, named by its label."""

        def measure(batch: Batch) -> Rows:
            return {method.name: self._remembered(method, batch).values for method in self.methods}

        audit = self.audit
        rows = audit.map(measure, positions=audit.showcase, options={**self.options, "pictures": True})
        known = {str(name) for name, has in audit.data.has_mask.items() if has}
        found = []
        for place, (position, pixels) in enumerate(zip(audit.showcase, audit.pixels(audit.showcase), strict=True)):
            name = str(audit.ids[position])
            mask = audit.data.masks([name], audit.model.input)[0] if name in known else None
            maps = {method.label: rows[method.name][place] for method in self.methods}
            found.append(self._case(name, position, pixels, maps, mask))
        return tuple(found)

    def _case(
        self, name: str, position: int, pixels: np.ndarray, maps: dict[str, np.ndarray], mask: np.ndarray | None
    ) -> Case:
        original = images.photograph(pixels)
        pictures = {"image": original if mask is None else images.outline(original, mask)}
        numbers = {"pixels": pixels.mean(axis=0)} | ({} if mask is None else {"mask": mask})
        for method in self.methods:
            values = maps[method.label]
            if np.isfinite(values).all():
                numbers[method.label] = _telling(method, values)
                pictures[method.label] = images.overlay(pixels, numbers[method.label], signed=method.signed)
        shown = {label: images.enlarged(picture) for label, picture in pictures.items()}
        return Case(name, self.audit.facts(position), shown, numbers)

    @property
    def _wants_references(self) -> bool:
        named = {method.name for method in self.methods}
        return self.settings.baseline == "data mean" or "expected_gradients" in named

    def _remembered(self, method: Method, batch: Batch) -> Maps:
        """From memory where a case is there, the others computed together."""
        memory: _Memory = self.audit.shared.setdefault("maps", _Memory())
        keys = [(method.name, f"{self.targets[name]} {self.settings}", name) for name in batch.ids]
        missing = [place for place, key in enumerate(keys) if key not in memory.kept]
        fresh: dict[int, _Kept] = {}
        if missing:
            chosen_ids = tuple(batch.ids[place] for place in missing)
            part = Batch(chosen_ids, batch.pixels[missing], batch.labels[missing], batch.model)
            found = explained(method, self.asked(part))
            fresh = {place: _row(found, row) for row, place in enumerate(missing)}
            for place, kept in fresh.items():
                memory.keep(keys[place], kept)
        return _stacked([fresh[place] if place in fresh else memory.kept[key] for place, key in enumerate(keys)])


def prepared(
    audit: Audit,
    methods: Sequence[str] = (),
    *,
    with_controls: bool = True,
    settings: Settings | None = None,
    decided: bool = False,
) -> Explainer:
    """The methods asked for, or the default ones for the audited model.

    Raises ConfigError and NotApplicable as ``xvision.explain.catalogue.chosen``.
    """
    found = chosen(audit.model, methods)
    blind = tuple(controls().values()) if with_controls else ()
    return Explainer(audit, found, blind, units_of(audit.model), settings or Settings(), decided)


def explained(method: Method, asked: Asked) -> Maps:
    """One method's maps. Where it fails for some images, those alone have a map of NaN.

    Raises ModelError when it fails for every image of more than one: then the model is at fault, not an image.
    """
    try:
        return method.run(asked)
    except ModelError as problem:
        count, (height, width) = len(asked.pixels), asked.pixels.shape[2:]
        if count == 1:
            return Maps(np.full((1, height, width), np.nan, np.float32))
        parts = [explained(method, asked.alone(place)) for place in range(count)]
        if not any(np.isfinite(part.values).all() for part in parts):
            raise ModelError(f"{method.label}: {problem}. Leave it out with the option `methods`.") from problem
    return _stacked([_row(part, 0) for part in parts])


def where_defined(values: np.ndarray, score: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(B,) score of the images whose map is finite, NaN for the others. ``score`` gets the places of those images."""
    found = np.full(len(values), np.nan)
    places = np.flatnonzero(np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(places):
        found[places] = score(places)
    return found


def _telling(method: Method, values: np.ndarray) -> np.ndarray:
    """What a map says beyond its neutral value; of a map without sign, what lies below says nothing either."""
    beyond = values - method.neutral
    return beyond if method.signed else np.maximum(beyond, 0.0)


def likeness(units: Units, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(B,) rank correlation by unit of how strong two maps are; noise from pixel to pixel would hide that they are alike."""
    first, second = (np.abs(units.sums(values))[:, None, :] for values in (before, after))
    return where_defined(first + second, lambda at: randomised_similarity(first[at], second[at]))


def _row(maps: Maps, place: int) -> _Kept:
    gap = None if maps.gap is None else float(maps.gap[place])
    difference = None if maps.difference is None else float(maps.difference[place])
    return _Kept(maps.values[place], gap, difference)


def _stacked(rows: Sequence[_Kept]) -> Maps:
    """Maps of several images; a gap where every one of them has a value of it, NaN for an image without map."""
    with_gap = any(row.gap is not None for row in rows)
    gap = np.array([np.nan if row.gap is None else row.gap for row in rows]) if with_gap else None
    moved = np.array([np.nan if row.difference is None else row.difference for row in rows]) if with_gap else None
    return Maps(np.stack([row.values for row in rows]).astype(np.float32), gap, moved)
