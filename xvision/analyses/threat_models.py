"""Other threats than a small change of every pixel: what moves, covers, shades or rewords a case, or serves for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from xvision import images, text
from xvision.attacks.balls import Norm, unit
from xvision.attacks.cases import TOLERANCE, Cases, budget_of, cases_of
from xvision.attacks.goals import class_goal
from xvision.attacks.gradient_walks import MarginPGD
from xvision.attacks.patch import patch
from xvision.attacks.plausible import in_window, low_frequency
from xvision.attacks.search import pursue
from xvision.attacks.spatial import FAMILIES, NONE, Grid, spatial
from xvision.attacks.universal import tuning_half, universal
from xvision.attacks.wording import wording
from xvision.audit import Audit, metric
from xvision.charts import Axis, Chart, Forest, Images, Mark, Table
from xvision.engine import Batch, Measure, Rows
from xvision.methods.decision import Decision
from xvision.methods.intervals import not_estimable, proportion
from xvision.models.metered import MeteredClassifier
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, Where, spoken

_MOVES = (*FAMILIES[:3], "rotation, shift and scale")
_UNIVERSAL, _CONTROL = "universal", "universal control"
_SHADING, _WINDOW, _PATCH = "low frequency", "inside the window", "patch"
_BOUNDED: dict[str, tuple[Norm, str]] = {
    _SHADING: ("l2", "slow shading with a root mean square of at most"),
    _WINDOW: ("linf", "pixels that are neither black nor white changed by at most"),
}
_TRIES, _ONCE, _EACH = range(3)
_NEEDS = ("the decision, some tries", "gradients, for other images", "gradients, for this image")
"""What an attacker must have, the least first; the first kind happens by chance, too."""
_PICTURES = ("image", "broken image", "difference, magnified")
_CHUNK = 32
"""Images of one batch while the universal perturbation is fitted: fixed, so that sums do not follow the engine's parts."""
_TUNING = 200
"""Images held at once, at most, to fit it."""


@dataclass(frozen=True)
class _Plan:
    """The options, the decision and the seed. edits: of the wording, together."""

    decision: Decision
    seed: int
    grid: Grid
    epsilons: tuple[float, ...]
    patch_share: float
    positions: int
    frequencies: float
    steps: int
    synonyms: tuple[tuple[str, str], ...]
    edits: int


class _Threat(NamedTuple):
    """One kind of change up to one size. needs: place in ``_NEEDS``. level: of size within its kind, from 1. of: (R,) bool, which
    of the right cases it was tried on. broken: (R,) bool, None where it was not tried, for the reason given. how: (R,) str.
    """

    where: Where
    allowed: str
    needs: int
    level: int
    of: np.ndarray
    broken: np.ndarray | None = None
    how: np.ndarray | None = None
    reason: str = ""


@analysis(
    "Other threats",
    pillar="Robustness",
    need="pixels",
    passes="58 + combinations forward; with gradients (positions + 4 × epsilons) × steps more, forward and backward",
)
def threat_models(
    audit: Audit,
    *,
    cases: int = 100,
    rotations: tuple[float, ...] = (5.0, 10.0, 15.0),
    shifts: tuple[float, ...] = (0.02, 0.04, 0.08),
    scales: tuple[float, ...] = (0.9, 0.95, 1.05, 1.1),
    combinations: int = 75,
    epsilons: tuple[float, ...] = (2 / 255, 8 / 255),
    patch_share: float = 0.01,
    positions: int = 3,
    frequencies: float = 0.02,
    steps: int = 15,
    synonyms: tuple[tuple[str, str], ...] = (),
    edits: int = 1,
    least: float = 0.1,
) -> Result:
    """What breaks the decision besides a small change of every pixel?

    ``broken_rate`` is the share of right decisions that a threat broke, in the directions that count. Rotations, shifts and scales,
    alone and together, are tried over a grid (severity is the rank of the size among those tried; Engstrom 2019), the border
    repeated; the joint grid is thinned to ``combinations``. "universal" is one perturbation for all images, fitted to half of the
    patients and judged on the others (Moosavi-Dezfooli 2017): its rate on the images it was fitted to flatters it, and
    random signs of the same size are its control. "low frequency" is slow shading, the lowest ``frequencies`` of all (Guo
    2018), epsilon the root mean square change. "inside the window": pixels change by at most epsilon, those at black or white
    stay. "patch": one square, ``patch_share`` of the image, optimised for each image (Brown 2017). "wording": case, blanks,
    full stop, order and the ``synonyms`` given, at most ``edits`` of them at once.

    A rate is what these searches found, so it is a lower bound: not broken by these changes is not safe from others. That
    they leave the diagnosis as it is was assumed, and nobody read the images or texts.
    """
    grid = Grid(rotations, shifts, scales, combinations)
    options = (epsilons, patch_share, positions, frequencies, steps, synonyms, edits)
    plan = _Plan(audit.decision, audit.seed, grid, *options)
    sample = _Sample(audit, plan, audit.sample(cases))
    threats = tuple(sample.threats())
    metrics = tuple(_rate(sample, threat) for threat in threats)
    stored = _pictured(audit, plan)
    return Result(
        _summary(threats, metrics, least, cases=min(cases, len(audit.ids)), right=len(sample.ids)),
        metrics,
        _charts(threats, metrics, stored),
        stored,
        {"threat_models": _table(sample, threats)},
        caveats=(
            "What stands was not broken by these changes; others of the same kind may break it.",
            "That these changes leave the diagnosis as it is was assumed and not checked by a reader.",
        ),
    )


def _right(audit: Audit, positions: np.ndarray) -> np.ndarray:
    """(N,) bool: decided right, in the directions that count, with something to break."""
    goal = class_goal(torch.from_numpy(audit.labels[positions]), len(audit.classes), audit.decision)
    logits = torch.from_numpy(audit.predictions.logits[positions])
    return np.asarray(goal.possible(logits) & ~goal.broken(logits))


def _cases(batch: Batch, plan: _Plan) -> Cases:
    goal = class_goal(batch.labels, len(batch.model.classes), plan.decision)
    return cases_of(batch.model.logits, batch.pixels, goal, keys=batch.ids, seed=plan.seed)


def _moved(batch: Batch, plan: _Plan) -> Rows:
    """place (B, F): the mildest transformation of each family that breaks the case."""
    return {"place": spatial(_cases(batch, plan), plan.grid, width=len(batch.ids)).smallest.numpy()}


def _optimised(cases: Cases, plan: _Plan) -> tuple[Rows, dict[str, torch.Tensor]]:
    """Per threat to single images the smallest epsilon (B,) that breaks each case, infinity where none does, and the images."""
    width = len(cases)
    shaded = low_frequency(cases, plan.epsilons, share=plan.frequencies, steps=plan.steps, width=width)
    window = in_window(cases)
    held = pursue(window, budget_of("linf", plan.epsilons, cases.pixels), MarginPGD(steps=plan.steps), width=width)
    stuck = patch(cases, plan.patch_share, positions=plan.positions, steps=plan.steps, width=width)
    sizes: Rows = {
        _SHADING: shaded.size.numpy() / unit("l2", cases.pixels.shape[1:]),
        _WINDOW: held.size.numpy(),
        _PATCH: np.where(stuck.broken.cpu().numpy(), 0.0, np.inf),
    }
    return sizes, {_SHADING: shaded.images, _WINDOW: held.images, _PATCH: stuck.images}


def _sizes(batch: Batch, plan: _Plan) -> Rows:
    return _optimised(_cases(batch, plan), plan)[0]


def _reworded(batch: Batch, plan: _Plan, texts: Mapping[str, str]) -> Rows:
    """how (B,): the fewest edits that break the case, "" where none do."""
    own = [texts[name] for name in batch.ids]
    cases, synonyms = _cases(batch, plan), dict(plan.synonyms)
    found = wording(batch.model, cases, own, synonyms=synonyms, most=plan.edits, width=_CHUNK)
    return {"how": np.array([", ".join(edits) for edits in found.edits])}


class _Sample:
    """The right decisions among some cases, and what broke them."""

    def __init__(self, audit: Audit, plan: _Plan, positions: np.ndarray) -> None:
        self.audit, self.plan = audit, plan
        self.positions = positions[_right(audit, positions)]
        self.patients, self.ids = audit.patients[self.positions], audit.ids[self.positions]
        self.everyone = np.ones(len(self.positions), dtype=bool)
        lacking = audit.can("gradients")
        self.lacking = f"{lacking}, so this was not tried and what it would break is not known" if lacking else ""

    def threats(self) -> Iterator[_Threat]:
        """Every threat, those that need least first."""
        yield from self._geometry()
        yield self._wording()
        for level in range(1, len(self.plan.epsilons) + 1):
            yield from self._universal(level)
        yield from self._single()

    def _mapped(self, name: str, measure: Measure, among: np.ndarray) -> Rows:
        """The measure over some of the right cases; nothing where there is none."""
        options = {"threats": name, "plan": repr(self.plan)}
        return self.audit.map(measure, positions=self.positions[among], options=options) if among.any() else {}

    def _geometry(self) -> Iterator[_Threat]:
        grid = self.plan.grid
        order = grid.transformations()
        rows = self._mapped("moves", partial(_moved, plan=self.plan), self.everyone)
        places = rows.get("place", np.zeros((0, len(FAMILIES)), dtype=np.int64))
        severities = np.array([*(each.severity for each in order), 0])[places]  # NONE is the last
        words = np.array([*(each.words for each in order), ""])[places]
        for column, (family, name) in enumerate(zip(FAMILIES, _MOVES, strict=True)):
            for level in sorted({each.severity for each in order if family in (each.family, "together")}):
                broken = (severities[:, column] > 0) & (severities[:, column] <= level)
                where: Where = {"attack": name, "severity": level}
                how = np.where(broken, words[:, column], "")
                yield _Threat(where, grid.words(family, level), _TRIES, level, self.everyone, broken, how)

    def _wording(self) -> _Threat:
        edits, table = self.plan.edits, self.audit.data.table
        allowed = f"the text in other words, at most {text.plural(edits, 'edit')}"
        threat = _Threat({"attack": "wording", "edits": edits}, allowed, _TRIES, edits, self.everyone)
        if not getattr(self.audit.model, "takes_text", False):
            return threat._replace(reason="the model reads no text beside the image")
        if "text" not in table.columns:
            return threat._replace(reason="the data have no column text")
        texts = {str(name): str(words) for name, words in table.loc[list(self.ids), "text"].items()}
        worded = np.array([bool(texts[str(name)].strip()) for name in self.ids], dtype=bool)
        rows = self._mapped("wording", partial(_reworded, plan=self.plan, texts=texts), worded)
        how = np.full(len(self.ids), "", dtype=object)
        how[worded] = rows.get("how", [])
        without = "" if worded.any() else "no right decision comes with a text"
        return threat._replace(of=worded, broken=how != "", how=how, reason=without)

    def _universal(self, level: int) -> Iterator[_Threat]:
        epsilon = self.plan.epsilons[level - 1]
        allowed = f"every pixel changed by at most {text.epsilon(epsilon)}, the same change for every image"
        tuning = tuning_half(self.patients, self.audit.rng("universal"), _TUNING)
        kinds = ((_UNIVERSAL, "held out", ~tuning), (_UNIVERSAL, "fitted", tuning), (_CONTROL, "held out", ~tuning))
        threats = [
            _Threat({"attack": attack, "norm": "linf", "epsilon": epsilon, "images": part}, allowed, _ONCE, level, of)
            for attack, part, of in kinds
        ]
        few = "" if tuning.any() else "too few patients have a right decision to fit on half and judge on the others"
        if self.lacking or few:
            yield from (threat._replace(reason=self.lacking or few) for threat in threats)
            return
        fitted, unseen = list(self._batches(tuning)), self._batches(~tuning)
        found = universal(fitted, unseen, "linf", epsilon, steps=self.plan.steps)
        for threat, hits in zip(threats, (found.held_out, found.tuned, found.held_out_control), strict=True):
            broken = np.zeros(len(self.ids), dtype=bool)
            broken[threat.of] = hits.numpy()
            yield threat._replace(broken=broken)

    def _batches(self, among: np.ndarray) -> Iterator[Cases]:
        """The cases in batches, made when they are asked for, each with its own texts."""
        audit, positions = self.audit, self.positions[among]
        model = MeteredClassifier(audit.model, audit.engine.meter)
        reads = model.takes_text and "text" in audit.data.table.columns
        for start in range(0, len(positions), _CHUNK):
            part = positions[start : start + _CHUNK]
            ids = tuple(str(name) for name in audit.ids[part])
            bound = model.with_text([str(each) for each in audit.data.table.loc[list(ids), "text"]]) if reads else model
            pixels = torch.from_numpy(audit.pixels(part)).to(model.device)
            labels = torch.from_numpy(audit.labels[part]).to(model.device)
            yield _cases(Batch(ids, pixels, labels, bound), self.plan)

    def _single(self) -> Iterator[_Threat]:
        plan = self.plan
        rows = {} if self.lacking else self._mapped("single images", partial(_sizes, plan=plan), self.everyone)

        def threat(where: Where, allowed: str, epsilon: float, level: int) -> _Threat:
            broken = rows.get(str(where["attack"]), np.zeros(0)) <= epsilon + TOLERANCE
            found = _Threat(where, allowed, _EACH, level, self.everyone)
            return found._replace(reason=self.lacking) if self.lacking else found._replace(broken=broken)

        for attack, (norm, words) in _BOUNDED.items():
            for level, epsilon in enumerate(plan.epsilons, start=1):
                where: Where = {"attack": attack, "norm": norm, "epsilon": epsilon}
                yield threat(where, f"{words} {text.epsilon(epsilon)}", epsilon, level)
        allowed = f"a square of {100 * plan.patch_share:.3g} % of the image replaced"
        yield threat({"attack": _PATCH, "share": plan.patch_share}, allowed, 0.0, 1)


def _rate(sample: _Sample, threat: _Threat) -> Metric:
    if threat.broken is None or not threat.of.any():
        estimate = not_estimable(threat.reason or "there is no right decision to break")
    else:
        estimate = proportion(threat.broken[threat.of], sample.patients[threat.of])
    return metric("broken_rate", estimate, better="lower", where=threat.where)


def _named(threat: _Threat) -> str:
    rest = {key: value for key, value in threat.where.items() if key not in ("attack", "norm")}
    return f"{text.opening(str(threat.where['attack']))}, {text.condition(rest)}"


def _charts(threats: Sequence[_Threat], metrics: Sequence[Metric], stored: Sequence[Case]) -> tuple[Chart, ...]:
    largest = max((item.value for item in metrics if item.value is not None), default=None)
    forest = Forest(
        "Share of right decisions broken",
        f"One row per threat and size; the largest share broken is {text.number(largest)}.",
        Axis("Share of right decisions broken", low=0, high=1),
        tuple(
            Mark(_named(each), item.value, item.low, item.high, f"n = {item.n}" if item.reason is None else item.reason)
            for each, item in zip(threats, metrics, strict=True)
        ),
    )
    counts = [(None, None) if each.broken is None else (int(each.broken.sum()), int(each.of.sum())) for each in threats]
    table = Table(
        "What each threat may do and what it needs",
        "One row per threat and size: what it may change, what an attacker must have, and how many right decisions it broke.",
        ("Threat", "May", "Needs", "Broken", "Of"),
        tuple(
            (_named(each), each.allowed, _NEEDS[each.needs], *count)
            for each, count in zip(threats, counts, strict=True)
        ),
    )
    gallery = Images(
        "Mildest change found that breaks the decision",
        "One row per case: the image, the image decided otherwise, and the difference, magnified to fill the scale.",
        tuple(case.id for case in stored),
        _PICTURES,
    )
    return (forest, table, gallery) if stored else (forest, table)


def _table(sample: _Sample, threats: Sequence[_Threat]) -> pd.DataFrame:
    """One row per right case and threat that was tried on it."""
    rows = [
        {
            "id": sample.ids[row],
            "threat": _named(each),
            "broken": each.broken[row],
            "how": "" if each.how is None else each.how[row],
        }
        for each in threats
        if each.broken is not None
        for row in np.flatnonzero(each.of)
    ]
    return pd.DataFrame(rows, columns=["id", "threat", "broken", "how"])


def _shown(batch: Batch, plan: _Plan, gradients: bool) -> Rows:
    """image (B, C, H, W): under the mildest transformation that breaks the case, else another threat's; how (B,), "" without any."""
    cases = _cases(batch, plan)
    found = spatial(cases, plan.grid, width=len(cases))
    broken = found.images(cases, "together")
    how = [found.transformations[place].words if place != NONE else "" for place in found.smallest[:, -1].tolist()]
    rest = [row for row, words in enumerate(how) if not words]
    if gradients and rest:
        sizes, others = _optimised(cases.rows(torch.tensor(rest)), plan)
        for attack in reversed(sizes):
            for place in np.flatnonzero(np.isfinite(sizes[attack])):
                how[rest[place]], broken[rest[place]] = attack, others[attack][place]
    return {"image": broken.cpu().numpy(), "how": np.array(how)}


def _pictured(audit: Audit, plan: _Plan) -> tuple[Case, ...]:
    positions = audit.showcase[_right(audit, audit.showcase)]
    if not len(positions):
        return ()
    measure = partial(_shown, plan=plan, gradients=audit.can("gradients") is None)
    rows = audit.map(measure, positions=positions, options={"threats": "pictures", "plan": repr(plan)})
    stored = []
    for position, pixels, broken, how in zip(
        positions, audit.pixels(positions), rows["image"], rows["how"], strict=True
    ):
        if how:
            pictures = (images.photograph(pixels), images.photograph(broken), images.difference(broken, pixels))
            shown = {name: images.enlarged(picture) for name, picture in zip(_PICTURES, pictures, strict=True)}
            stored.append(Case(str(audit.ids[position]), {**audit.facts(position), "broken by": str(how)}, shown))
    return tuple(stored)


def _summary(threats: Sequence[_Threat], metrics: Sequence[Metric], least: float, cases: int, right: int) -> str:
    """Names the threat that needs least among those that break enough."""
    start = f"Of {text.plural(cases, 'image')}, {text.plural(right, 'decision')} can be broken: right, in a direction that counts."
    counted = [
        (each, item, item.value)
        for each, item in zip(threats, metrics, strict=True)
        if item.value is not None and each.where["attack"] != _CONTROL and each.where.get("images") != "fitted"
    ]
    if not counted:
        return f"{start} No threat was tried."
    enough = [found for found in counted if found[2] >= least]
    if enough:
        threat, item, _ = min(enough, key=lambda found: (found[0].needs, found[0].level))
        return (
            f"{start} The cheapest threat that breaks at least {text.number(least)} of them is {threat.where['attack']},"
            f" {threat.allowed}: {spoken(item)} (needs {_NEEDS[threat.needs]})."
        )
    threat, item, _ = max(counted, key=lambda found: found[2])
    return (
        f"{start} No threat breaks {text.number(least)} of them; the most that one broke is {spoken(item)}"
        f" ({threat.where['attack']}, {threat.allowed}). The others were not broken by these changes."
    )
