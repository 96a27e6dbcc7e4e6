"""Whether a case keeps its diagnosis when it is asked about again."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import nn

from xvision import images, text
from xvision.audit import Audit, mean_metric, metric
from xvision.charts import Axis, Bars, Chart, Forest, Images, Mark, Table
from xvision.data.dataset import AuditDataset
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, ModelError
from xvision.methods.decision import decide
from xvision.methods.intervals import not_estimable, proportion
from xvision.methods.repeats import (
    DOUBLE,
    IMAGE_REPEATS,
    PASS_REPEATS,
    RESAMPLING,
    Changes,
    ImageRepeat,
    Repeat,
    answered_differently,
    changes_of,
    in_double,
    margins,
    repeated,
    turned,
)
from xvision.models.loading import reason as told
from xvision.models.metered import MeteredClassifier
from xvision.models.protocols import InputSpec
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, spoken

_REPEATS: tuple[Repeat, ...] = (*IMAGE_REPEATS, RESAMPLING, DOUBLE, *PASS_REPEATS)
_ANY = "any"
_SAME_PIXELS = {"same_image": "the same image again", "alone": "a batch of one", "batch_order": "another batch order"}
"""Repeats under which no logit should move at all."""
_PRECISIONS = ("bfloat16", "float16", DOUBLE.name)
_LARGEST_TWIN = 512 * 2**20
_PICTURED = 6


@analysis("Repeatability", pillar="Robustness", need="pixels", passes="at most 20 + draws forward")
def repeatability(audit: Audit, *, cases: int = 200, draws: int = 5) -> Result:
    """How many diagnoses flip when nothing of clinical meaning changes?

    Every case is asked about again: the same pixels, one grey level up, down and at random (``draws`` times), one pixel to
    each side, stored as 8-bit PNG and as JPEG of quality 95, read with another resizing filter, computed in other number
    formats, alone and in another batch order. ``flip_rate`` is the share of cases whose deployed decision changes at least once,
    right or wrong, under one repeat or (``any``) under at least one of them; ``logits_differ`` is the share whose logits move by
    more than 1e-4 (of the largest one, where that is above 1) although the pixels are the same. A logit that is not finite is
    no decision and counts as a flip. A grey level is 1/255 of the full range, which is 16 levels of a 12-bit image. No flip
    here says nothing about other changes, and a decision that never flips may still be wrong.
    """
    if draws < 1:
        raise ConfigError(f"analysis.repeatability.draws is {draws}: at least 1 draw is needed.")
    positions = audit.sample(cases)
    measure = partial(_measure, data=audit.data, seed=audit.seed, draws=draws)
    rows = audit.map(measure, positions=positions, options={"draws": draws})
    found = _Found(audit, positions, rows)
    metrics = _metrics(found)
    stored = _cases(found)
    return Result(
        _summary(found, metrics),
        metrics,
        _charts(found, metrics, stored),
        stored,
        {"repeatability": _table(found)},
        _caveats(found),
    )


def _measure(batch: Batch, *, data: AuditDataset, seed: int, draws: int) -> Rows:
    """Logits (B, K) of the images and (B, T, K) of each repeat; why a case could not be asked, "" where it was."""
    forward = batch.model.logits
    with torch.inference_mode():
        clean = forward(batch.pixels)
        rows: Rows = {"clean": clean.cpu().numpy()}
        for repeat in IMAGE_REPEATS:
            again = [
                forward(repeated(batch.pixels, repeat, batch.ids, seed=seed, draw=draw))
                for draw in range(repeat.times or draws)
            ]
            rows |= _rows(repeat.name, torch.stack(again, dim=1), np.full(len(batch.ids), ""))
        for each in PASS_REPEATS:
            few = f"a batch held fewer than {each.fewest} images" if len(batch.ids) < each.fewest else ""
            rows |= _asked(each.name, clean, few, partial(each.ask, forward, batch.pixels))
        rows |= _asked(DOUBLE.name, clean, "", partial(_double, batch))
        rows |= _resampled(batch, data, clean)
    return rows


def _rows(name: str, again: torch.Tensor, why: np.ndarray) -> Rows:
    return {name: again.float().cpu().numpy(), f"why not {name}": why}


def _asked(name: str, clean: torch.Tensor, why: str, ask: Callable[[], torch.Tensor]) -> Rows:
    """Rows of a repeat that a model may refuse; the reason is kept, and memory that ran out is the engine's to mend."""
    again = clean
    if not why:
        try:
            again = ask()
        except torch.OutOfMemoryError:
            raise
        except (ModelError, RuntimeError, TypeError, ValueError) as problem:
            why = f"the model does not run so: {told(problem)}"
    return _rows(name, again[:, None], np.full(len(clean), why))


def _double(batch: Batch) -> torch.Tensor:
    module = getattr(batch.model.inner, "module", None)
    if not isinstance(module, nn.Module):
        raise ModelError("it is no torch module whose weights could be cast")
    twin = copy(batch.model.inner)
    with warnings.catch_warnings():  # copying an exported program meets torch's own deprecations
        warnings.simplefilter("ignore", FutureWarning)
        twin.module = in_double(module, most_bytes=_LARGEST_TWIN)  # type: ignore[attr-defined]  # found above
    return MeteredClassifier(twin, batch.model.meter).logits(batch.pixels)


def _resampled(batch: Batch, data: AuditDataset, clean: torch.Tensor) -> Rows:
    other = torch.from_numpy(data.pixels(batch.ids, _other_filter(batch.model.input))).to(batch.pixels)
    resized = (other != batch.pixels).flatten(1).any(dim=1).cpu().numpy()
    again = batch.model.logits(other) if resized.any() else clean
    return _rows(RESAMPLING.name, again[:, None], np.where(resized, "", "the image is not resized for the model"))


def _other_filter(spec: InputSpec) -> InputSpec:
    return replace(spec, resample="bilinear" if spec.resample == "bicubic" else "bicubic")


@dataclass(frozen=True)
class _Seen:
    """One repeat of all N cases. tested: (N,); why: the reason where none was. flipped, missed, alarm: (N,)."""

    repeat: Repeat
    tested: np.ndarray
    why: str
    changes: Changes
    flipped: np.ndarray
    missed: np.ndarray
    alarm: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """(N,) the largest change of a probability; NaN where the case was not asked or no logit was finite."""
        return np.where(self.tested, np.fmax.reduce(self.changes.probability, axis=1), np.nan)

    @property
    def finite(self) -> np.ndarray:
        """(N,) whether every logit was."""
        return np.asarray(np.isfinite(self.changes.logit).all(axis=1))


class _Found:
    """The decisions of every repeat beside those of the images themselves."""

    def __init__(self, audit: Audit, positions: np.ndarray, rows: Rows) -> None:
        self.audit, self.positions = audit, positions
        self.labels, self.patients = audit.labels[positions], audit.patients[positions]
        self.logits = rows["clean"].astype(np.float64)
        self.decided = decide(self.logits, audit.decision)
        self.margins = margins(self.logits, audit.decision)
        self.repeats = tuple(self._seen(repeat, rows) for repeat in _REPEATS)
        self.flipped = np.any([each.flipped for each in self.repeats], axis=0)
        self.missed = np.any([each.missed for each in self.repeats], axis=0)
        self.alarm = np.any([each.alarm for each in self.repeats], axis=0)
        self.largest = np.asarray(np.fmax.reduce([each.largest for each in self.repeats]))
        self.random = answered_differently(self.logits, self.named("same_image").changes)

    def _seen(self, repeat: Repeat, rows: Rows) -> _Seen:
        again, reasons = rows[repeat.name], rows[f"why not {repeat.name}"]
        tested, why = reasons == "", next((str(each) for each in reasons if each), "")
        if repeat.name in _PRECISIONS and tested.any() and np.array_equal(again[:, 0], rows["clean"]):
            tested, why = np.zeros_like(tested), "it changes no logit, so the model may not follow it"
        decision = self.audit.decision
        changes = changes_of(self.logits, again.astype(np.float64), decision)
        flipped = (changes.decided != self.decided[:, None]).any(axis=1) & tested
        missed, alarm = turned(changes.decided, self.decided, self.labels, decision.healthy)
        return _Seen(repeat, tested, why, changes, flipped, missed & tested, alarm & tested)

    def named(self, name: str) -> _Seen:
        return next(each for each in self.repeats if each.repeat.name == name)

    def differ(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(N,) whether the same pixels got other logits, and where that can be told: of a random model, nothing of its batch."""
        if name == "same_image":
            return self.random, np.ones_like(self.random)
        seen = self.named(name)
        told_apart = seen.tested & ~self.random
        return answered_differently(self.logits, seen.changes) & told_apart, told_apart


def _metrics(found: _Found) -> tuple[Metric, ...]:
    healthy = found.audit.decision.healthy
    metrics = [_share("flip_rate", found, found.flipped, np.ones_like(found.flipped), _ANY, "no cases")]
    metrics += [
        _share("flip_rate", found, seen.flipped, seen.tested, seen.repeat.name, seen.why) for seen in found.repeats
    ]
    if healthy is not None:
        ill = found.labels != healthy
        metrics.append(_share("flips_to_missed_disease", found, found.missed, ill, _ANY, "no ill cases"))
        metrics.append(_share("flips_to_false_alarm", found, found.alarm, ~ill, _ANY, "no healthy cases"))
    for name in _SAME_PIXELS:
        why = found.named(name).why or "the model is random"
        metrics.append(_share("logits_differ", found, *found.differ(name), name, why))
    where = {"corruption": _ANY}
    change = mean_metric(found.audit, "probability_change", found.largest, found.positions, better="lower", where=where)
    return (*metrics, change)


def _share(name: str, found: _Found, hits: np.ndarray, among: np.ndarray, repeat: str, why: str) -> Metric:
    estimate = proportion(hits[among], found.patients[among]) if among.any() else not_estimable(why)
    return metric(name, estimate, better="lower", where={"corruption": repeat})


def _charts(found: _Found, metrics: tuple[Metric, ...], stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    charts: tuple[Chart, ...] = (_forest(found, metrics), _near(found), _overview(found))
    if not stored:
        return charts
    alt = "One row per case: the image, the same image seen again and decided otherwise, and the change, magnified."
    pictures = tuple(stored[0].pictures)
    names = tuple(case.id for case in stored)
    return (*charts, Images("Cases whose decision flips, the surest first", alt, names, pictures))


def _forest(found: _Found, metrics: tuple[Metric, ...]) -> Forest:
    by = {item.where["corruption"]: item for item in metrics if item.name == "flip_rate"}
    marks = [Mark("At least one of them", by[_ANY].value, by[_ANY].low, by[_ANY].high, _count(found.flipped))]
    for seen in found.repeats:
        item = by[seen.repeat.name]
        note = _count(seen.flipped[seen.tested]) if seen.tested.any() else f"not tested ({seen.why})"
        marks.append(Mark(seen.repeat.title, item.value, item.low, item.high, note))
    return Forest(
        "Decisions that flip when the image is seen again",
        f"Under at least one repeat, {spoken(by[_ANY])} of the decisions change.",
        Axis("Share of decisions", low=0, high=1),
        tuple(marks),
    )


def _count(hits: np.ndarray) -> str:
    return f"{int(hits.sum())} of {len(hits)}"


def _near(found: _Found) -> Bars:
    """Flips by how near the threshold the decision was, in quarters of equally many cases."""
    parts = [part for part in np.array_split(np.argsort(found.margins, kind="stable"), 4) if len(part)]
    shares = tuple(float(found.flipped[part].mean()) for part in parts)
    names = (f"{text.number(found.margins[part[0]])} to {text.number(found.margins[part[-1]])}" for part in parts)
    return Bars(
        "Flips near the threshold and far from it",
        f"Of the quarter of cases nearest the threshold {shares[0]:.3f} flip, of the farthest {shares[-1]:.3f}.",
        tuple(f"{place + 1}: {name}" for place, name in enumerate(names)),
        Axis("Share of decisions", low=0, high=1),
        {"flip under at least one repeat": shares},
        Axis("Quarter of the cases: distance from the threshold in log-odds"),
    )


def _overview(found: _Found) -> Table:
    return Table(
        "What each repeat changes",
        "One row per repeat: what it stands for, how many decisions flip, and how far probabilities and logits move.",
        (
            "Repeat", "Stands for", "Cases", "Flips", "To missed disease", "To false alarm",
            "Median change of probability", "Largest change of probability", "Largest change of a logit",
        ),
        tuple(_overview_row(seen, directed=found.audit.decision.healthy is not None) for seen in found.repeats),
    )  # fmt: skip


def _overview_row(seen: _Seen, *, directed: bool) -> tuple[str | int | float | None, ...]:
    names = (seen.repeat.title, seen.repeat.stands_for)
    if not seen.tested.any():
        return (*names, 0, *[None] * 6)
    moved, steps = seen.largest[np.isfinite(seen.largest)], seen.changes.logit[seen.tested & seen.finite]
    return (
        *names, int(seen.tested.sum()), int(seen.flipped.sum()),
        int(seen.missed.sum()) if directed else None, int(seen.alarm.sum()) if directed else None,
        float(np.median(moved)) if len(moved) else None, float(moved.max()) if len(moved) else None,
        float(steps.max()) if len(steps) else None,
    )  # fmt: skip


def _cases(found: _Found) -> tuple[Case, ...]:
    """Flipped cases, those farthest from the threshold first."""
    audit, flipped = found.audit, np.flatnonzero(found.flipped)
    stored = []
    for place in flipped[np.argsort(-found.margins[flipped], kind="stable")][:_PICTURED]:
        position = found.positions[place]
        seen, draw = _worst(found, place)
        decided = int(seen.changes.decided[place, draw])
        facts = {
            **audit.facts(position),
            "flips under": seen.repeat.title,
            "decision there": audit.classes[decided] if decided >= 0 else "none",
            "distance from the threshold": float(found.margins[place]),
        }
        before = audit.pixels([position])
        after = _shown(audit, seen.repeat, draw, str(audit.ids[position]), before)
        pictures = {
            "image": images.photograph(before[0]),
            "seen again": images.photograph(after[0]),
            "change, magnified": images.difference(after[0], before[0]),
        }
        shown = {name: images.enlarged(picture) for name, picture in pictures.items()}
        stored.append(Case(str(audit.ids[position]), facts, shown))
    return tuple(stored)


def _worst(found: _Found, place: int) -> tuple[_Seen, int]:
    """The repeat, and which time of it, that flips this case with the largest change of a logit."""
    options = [
        (seen, int(time))
        for seen in found.repeats
        if seen.flipped[place]
        for time in np.flatnonzero(seen.changes.decided[place] != found.decided[place])
    ]
    return max(options, key=lambda option: float(option[0].changes.logit[place, option[1]]))


def _shown(audit: Audit, repeat: Repeat, draw: int, key: str, pixels: np.ndarray) -> np.ndarray:
    """(1, C, H, W) what the model was shown; the pixels themselves where only the asking differs."""
    if repeat is RESAMPLING:
        return audit.data.pixels([key], _other_filter(audit.model.input))
    if isinstance(repeat, ImageRepeat):
        return np.asarray(repeated(torch.from_numpy(pixels), repeat, [key], seed=audit.seed, draw=draw).numpy())
    return pixels


def _table(found: _Found) -> pd.DataFrame:
    """One row per (case, repeat)."""
    frames = [
        pd.DataFrame(
            {
                "id": found.audit.ids[found.positions], "repeat": seen.repeat.name, "tested": seen.tested,
                "margin": found.margins, "flipped": seen.flipped, "to_missed_disease": seen.missed,
                "to_false_alarm": seen.alarm, "finite": seen.finite, "probability_change": seen.largest,
                "logit_change": np.where(seen.tested & seen.finite, seen.changes.logit.max(axis=1), np.nan),
            }
        )
        for seen in found.repeats
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _summary(found: _Found, metrics: tuple[Metric, ...]) -> str:
    rates = [item for item in metrics if item.name == "flip_rate"]
    known = [(item, seen) for item, seen in zip(rates[1:], found.repeats, strict=True) if item.value is not None]
    worst, seen = max(known, key=lambda pair: pair[0].value or 0.0)
    first = f"On {text.plural(len(found.labels), 'image')}, {spoken(rates[0])} of the decisions flip under at least one repeat"
    most = f"; most under “{seen.repeat.title}”: {spoken(worst)}." if worst.value else "."
    return " ".join([first + most, *_signs(found)])


def _signs(found: _Found) -> list[str]:
    """What must not happen to the same pixels."""
    signs = []
    for name, words in _SAME_PIXELS.items():
        differ, told_apart = found.differ(name)
        if differ.any():
            moved = float(found.named(name).changes.logit[differ].max())
            size = f"move by up to {text.number(moved)}" if np.isfinite(moved) else "are not all finite"
            kind = "The model is random" if name == "same_image" else "The model's answers depend on the batch"
            signs.append(f"{kind}: for {words}, the logits of {_count(differ[told_apart])} cases {size}.")
    return signs


def _caveats(found: _Found) -> tuple[str, ...]:
    signs = _signs(found)
    caveats = ["A flip counts whether the decision was right or wrong before.", *signs]
    if signs:
        caveats.append("What happens to the same pixels is contained in the flips of every other repeat.")
    for seen in found.repeats:
        odd = int((~seen.finite).sum())
        if odd:
            caveats.append(
                f"{seen.repeat.title}: logits of {text.plural(odd, 'case')} are not finite, counted as flips."
            )
        if not seen.tested.any():
            caveats.append(f"{seen.repeat.title}: not tested, {seen.why}.")
    return tuple(caveats)
