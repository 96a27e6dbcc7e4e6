"""What is proved: changes that cannot turn a vote over noisy copies, and distances that are exact."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from xvision import text
from xvision.attacks.balls import Norm, unit
from xvision.attacks.bounds import Dense, Space, certified_linf, linear_distance, read_dense
from xvision.attacks.cases import Cases, cases_of
from xvision.attacks.evidence import sample
from xvision.attacks.goals import ClassGoal, class_goal
from xvision.attacks.smoothing import Smoothing, certify, smoothed_attack
from xvision.audit import Audit, count, mean_estimate, metric
from xvision.charts import Axis, Lines, Reference, Series, Table
from xvision.engine import Batch, Rows
from xvision.errors import ConfigError, ModelError
from xvision.methods.decision import Decision
from xvision.methods.intervals import proportion
from xvision.registry import analysis
from xvision.result import Metric, Result, Where, spoken

_CERTIFICATE = ("abstained", "votes", "draws", "low", "radius")
_ORDERS: dict[Norm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
_NO_GRADIENTS = "the attack on the smoothed classifier needs gradients, which the model does not give"
_RELATIVE: dict[Space, str] = {
    "embeddings": "share of the embedding's own size in that norm; says nothing of how small a change of the pixels moves it there",
    "pixels": "epsilon, a change of the pixels themselves",
}


@analysis(
    "Certified",
    pillar="Robustness",
    need="pixels",
    passes="per sigma: selection + at most 2.5 × draws + steps × samples forward, steps × samples backward",
)
def certified(
    audit: Audit,
    *,
    cases: int = 50,
    sigmas: tuple[float, ...] = (0.05, 0.1),
    epsilons: tuple[float, ...] = (0.05 / 255, 0.1 / 255, 0.25 / 255, 0.5 / 255, 1 / 255),
    draws: int = 400,
    selection: int = 100,
    alpha: float = 0.001,
    steps: int = 10,
    samples: int = 8,
) -> Result:
    """Which changes, however they are found, are proved not to turn the decision?

    Randomised smoothing (Cohen 2019): the deployed decision is asked about many copies of an image with Gaussian noise of
    standard deviation sigma, in pixel units and not clipped, and the smoothed classifier decides what more than half of them
    decide. ``certified_accuracy`` is the share of cases on which it is right and no change of epsilon or less, in L2,
    can turn it: a lower bound, each case with a chance of error of ``alpha``, over all looks at its votes. It is zero for a case on
    which it abstains (``abstention_rate``). epsilon is the root mean square change of a pixel: times the root of the number of
    pixel values it is the L2 size.

    The smoothed classifier is another classifier: ``smoothed_accuracy`` is its accuracy without attack, beside
    ``deployed_accuracy`` on the same cases, and nothing here is a certificate of the decision on the image alone. Both ends
    are about the smoothed classifier: ``unbroken_accuracy`` is what an attack on it leaves, an upper bound, with a
    break counted where fresh votes show it and abstentions as unbroken; the truth lies between the two. A case that
    is not certified is not shown to be breakable: more draws certify more, and noise that the model was not
    trained with costs accuracy. Where noise drowns the image the vote is a constant, which is certified on its class.

    ``certified_distance`` is about the deployed classifier: where its last layer is linear, the exact smallest change of the
    *embedding* that turns the decision, as a share of the embedding's size; an embedding is not a picture, and a
    small change of pixels may move it far. Where the whole model is linear or a dense ReLU network, it is a bound in pixels.
    """
    plan = _Plan(tuple(sigmas), tuple(epsilons), draws, selection, alpha, steps, samples)
    positions = sample(audit, cases)
    dense, refused = _readable(audit, positions)
    measure = partial(
        _measure, plan=plan, decision=audit.decision, seed=audit.seed, width=audit.engine.part, dense=dense
    )
    rows = audit.map(measure, positions=positions, options={**asdict(plan), "decision": repr(audit.decision)})
    found = _Found(audit, plan, rows, positions, dense, refused)
    metrics = found.metrics()
    return Result(
        _summary(metrics, plan, len(positions)),
        metrics,
        (_lines(metrics, plan), _votes_table(metrics, plan, found), _distance_table(metrics, found)),
        tables={"certified": found.table()},
        caveats=_caveats(metrics, plan, found),
    )


@dataclass(frozen=True)
class _Plan:
    sigmas: tuple[float, ...]
    epsilons: tuple[float, ...]
    draws: int
    selection: int
    alpha: float
    steps: int
    samples: int

    def __post_init__(self) -> None:
        for name, values in (("sigmas", self.sigmas), ("epsilons", self.epsilons)):
            if not values or not 0 < values[0] <= values[-1] <= 1 or list(values) != sorted(set(values)):
                raise ConfigError(
                    f"analysis.certified.{name} is {values}: give ascending values above 0 and at most 1."
                )
        if self.steps < 2 or self.samples < 1:
            raise ConfigError("analysis.certified: steps must be at least 2 and samples at least 1.")
        self.smoothing(self.sigmas[0])  # refuses what cannot be voted on

    def smoothing(self, sigma: float, width: int = 1) -> Smoothing:
        return Smoothing(sigma, self.draws, self.selection, self.alpha, width)


def _readable(audit: Audit, positions: np.ndarray) -> tuple[Dense | None, str]:
    """The layers behind the decision, or why none can be read."""
    pixels = torch.from_numpy(audit.pixels(positions[:2])).to(audit.model.device)
    try:
        return read_dense(audit.model, pixels), ""
    except ModelError as problem:
        return None, str(problem)


def _measure(batch: Batch, *, plan: _Plan, decision: Decision, seed: int, width: int, dense: Dense | None) -> Rows:
    goal = class_goal(batch.labels, len(batch.model.classes), decision)
    cases = cases_of(batch.model.logits, batch.pixels, goal, keys=batch.ids, seed=seed)
    with torch.no_grad():
        logits = batch.model.logits(batch.pixels)
    possible, broken = goal.possible(logits), goal.broken(logits)
    rows: Rows = {"possible": possible.cpu().numpy(), "right": ~broken.cpu().numpy()}
    rows |= {} if dense is None else _distances(batch, dense, goal, logits)
    most = min(width, 8 * len(batch.ids))  # fewer, too, where memory ran out
    for sigma in plan.sigmas:
        voted = _voted(cases, plan, plan.smoothing(sigma, most), gradients=batch.model.access == "white-box")
        rows |= {f"{name} {sigma:g}": values for name, values in voted.items()}
    return rows


def _voted(cases: Cases, plan: _Plan, smoothing: Smoothing, *, gradients: bool) -> Rows:
    """The certificate, and the L2 size of the smallest break found: 0 where already broken, infinity where none, NaN untried."""
    scale = unit("l2", cases.pixels.shape[1:])
    found = certify(cases, smoothing, [epsilon * scale for epsilon in plan.epsilons])
    rows: Rows = {name: getattr(found, name) for name in ("kept", *_CERTIFICATE)}
    broken = ~found.kept & ~found.abstained
    sizes, places = np.where(broken, 0.0, np.inf if gradients else np.nan), np.flatnonzero(~broken)
    if gradients and len(places):
        part = cases.rows(torch.from_numpy(places).to(cases.pixels.device))
        shown = replace(smoothing, draws=max(1, smoothing.draws // 2))
        known = found.radius[places]
        sizes[places] = smoothed_attack(part, shown, known, steps=plan.steps, samples=plan.samples).size
    return {**rows, "break": sizes}


def _distances(batch: Batch, dense: Dense, goal: ClassGoal, logits: torch.Tensor) -> Rows:
    """Relative to the embedding's size, or in epsilon."""
    with torch.no_grad():
        embed = batch.model.embed if dense.space == "embeddings" else partial(torch.flatten, start_dim=1)
        points = embed(batch.pixels).double().cpu()
    if len(dense.layers) > 1:
        bound = certified_linf(dense, points, goal, low=0.0, high=1.0, largest=1.0)
        return {"distance linf": bound.size.numpy(), "distance_exact": bound.exact.numpy()}
    rows: Rows = {}
    for norm, order in _ORDERS.items():
        size, exact = linear_distance(logits, dense.layers[0], goal, norm)
        rows["distance_exact"] = (exact & (dense.space == "embeddings")).numpy()  # pixels also have a range
        scale: torch.Tensor | float = unit(norm, batch.pixels.shape[1:])
        if dense.space == "embeddings":
            scale = torch.linalg.vector_norm(points, order, dim=1)
        rows[f"distance {norm}"] = (size / scale).numpy()
    return rows


class _Votes(NamedTuple):
    """What was found with one sigma, per case in scope; sizes as epsilons."""

    right: np.ndarray
    abstained: np.ndarray
    draws: np.ndarray
    certified: np.ndarray
    broken_at: np.ndarray
    labels: np.ndarray

    @property
    def constant(self) -> bool:
        """Whether one class alone is right, as it would be if the images were not looked at."""
        return len(np.unique(self.labels)) > 1 == len(np.unique(self.labels[self.right]))

    @property
    def contradictions(self) -> int:
        """Cases with a break within their own certificate, of either side's error."""
        return int((self.right & (self.broken_at < self.certified)).sum())


@dataclass(frozen=True, eq=False)
class _Found:
    """The rows of all cases, and what is made of them."""

    audit: Audit
    plan: _Plan
    rows: Rows
    positions: np.ndarray
    dense: Dense | None
    refused: str

    @property
    def scope(self) -> np.ndarray:
        """(N,) bool, cases that have something to break in the declared directions."""
        return self.rows["possible"]

    @property
    def attacked(self) -> bool:
        return self.audit.model.access == "white-box"

    @property
    def norms(self) -> list[Norm]:
        return [norm for norm in _ORDERS if f"distance {norm}" in self.rows]

    @property
    def scale(self) -> float:
        spec = self.audit.model.input
        return unit("l2", (spec.channels, spec.height, spec.width))

    def of(self, sigma: float) -> Rows:
        return {name: self.rows[f"{name} {sigma:g}"] for name in ("kept", *_CERTIFICATE, "break")}

    def votes(self, sigma: float) -> _Votes:
        part = {name: values[self.scope] for name, values in self.of(sigma).items()}
        right, labels = part["kept"] & ~part["abstained"], self.audit.labels[self.positions][self.scope]
        sizes = part["radius"] / self.scale, part["break"] / self.scale
        return _Votes(right, part["abstained"], part["draws"], *sizes, labels)

    def metrics(self) -> tuple[Metric, ...]:
        right = self.rows["right"][self.scope]
        found = [self._share("deployed_accuracy", right, {})]
        for sigma in self.plan.sigmas:
            votes, where = self.votes(sigma), {"sigma": sigma}
            found.append(self._share("smoothed_accuracy", votes.right, where))
            found.append(self._share("abstention_rate", votes.abstained, where, higher=False))
            for epsilon in self.plan.epsilons:
                found.extend(self._between(sigma, votes, epsilon))
            if self.attacked:
                found.append(count("contradictions", votes.contradictions, where=where))
        return (*found, *self._distances())

    def _between(self, sigma: float, votes: _Votes, epsilon: float) -> list[Metric]:
        where: Where = {"norm": "l2", "sigma": sigma, "epsilon": epsilon}
        ceiling = self.plan.smoothing(sigma).ceiling / self.scale
        if epsilon > ceiling:
            reason = f"{self.plan.draws} draws with sigma {sigma:g} certify at most {text.epsilon(ceiling)}"
            lower = Metric("certified_accuracy", None, better="higher", where=where, reason=reason)
        else:
            lower = self._share("certified_accuracy", votes.right & (votes.certified >= epsilon), where)
        if not self.attacked:
            return [lower, Metric("unbroken_accuracy", None, better="higher", where=where, reason=_NO_GRADIENTS)]
        return [lower, self._share("unbroken_accuracy", votes.broken_at > epsilon, where)]

    def _share(self, name: str, hits: np.ndarray, where: Where, *, higher: bool = True) -> Metric:
        estimate = proportion(hits, self.audit.patients[self.positions][self.scope], exact=True)
        return metric(name, estimate, better="higher" if higher else "lower", where=where)

    def _distances(self) -> list[Metric]:
        """Of the cases in scope that are right."""
        if self.dense is None:
            where: Where = {"space": "embeddings"}
            return [Metric("certified_distance", None, where=where, better="higher", reason=self.refused)]
        metrics, reason = [], "no case is right that could be broken"
        for norm in self.norms:
            values = np.where(self.scope & self.rows["right"], self.rows[f"distance {norm}"], np.nan)
            where = {"norm": norm, "space": self.dense.space}
            mean = mean_estimate(self.audit, f"certified_distance {norm}", values, self.positions, reason)
            metrics.append(metric("certified_distance", mean, better="higher", where=where))
        return metrics

    def table(self) -> pd.DataFrame:
        """One row per (case, sigma)."""
        frames = []
        for sigma in self.plan.sigmas:
            part = self.of(sigma)
            side = np.where(part["abstained"], "abstained", np.where(part["kept"], "right", "wrong"))
            frame = {
                "id": self.audit.ids[self.positions], "sigma": sigma, "in_scope": self.scope, "deployed_right": self.rows["right"],
                "smoothed": side, "votes": part["votes"], "draws": part["draws"], "share_low": part["low"],
                "certified_epsilon": part["radius"] / self.scale, "broken_at_epsilon": part["break"] / self.scale,
            }  # fmt: skip
            distances = {f"distance_{norm}": self.rows[f"distance {norm}"] for norm in self.norms}
            frames.append(pd.DataFrame({**frame, **distances}))
        return pd.concat(frames, ignore_index=True)


def _chosen(metrics: Sequence[Metric], name: str, sigma: float | None = None) -> list[Metric]:
    return [item for item in metrics if item.name == name and (sigma is None or item.where.get("sigma") == sigma)]


def _lines(metrics: tuple[Metric, ...], plan: _Plan) -> Lines:
    deployed, series = metrics[0], []
    for sigma in plan.sigmas:
        start = _chosen(metrics, "smoothed_accuracy", sigma)
        lower = [*start, *_chosen(metrics, "certified_accuracy", sigma)]
        series.append(_series(f"certified, sigma {sigma:g}", (0.0, *plan.epsilons), lower))
        series.append(
            _series(f"left by the attack, sigma {sigma:g}", plan.epsilons, _chosen(metrics, "unbroken_accuracy", sigma))
        )
    first = _chosen(metrics, "smoothed_accuracy")[0]
    ticks = tuple((value, text.epsilon(value)) for value in (0.0, *plan.epsilons))
    return Lines(
        title="The smoothed classifier: what is proved and what an attack leaves",
        alt=f"Accuracy of the smoothed classifier by size of change; without one it is {spoken(first)} with sigma {plan.sigmas[0]:g}. The"
        " truth lies between the certified line and the one left by the attack of the same sigma.",
        x=Axis("Root mean square change (L2)", ticks=ticks),
        y=Axis("Share of cases", low=0, high=1),
        series=tuple(item for item in series if any(value is not None for value in item.y)),
        references=() if deployed.value is None else (Reference("deployed classifier, no attack", deployed.value),),
    )


def _series(name: str, x: tuple[float, ...], metrics: list[Metric]) -> Series:
    values, lows, highs = (tuple(getattr(item, side) for item in metrics) for side in ("value", "low", "high"))
    return Series(name, x, values, lows, highs)


def _votes_table(metrics: tuple[Metric, ...], plan: _Plan, found: _Found) -> Table:
    rows: list[tuple[str | int | float | None, ...]] = []
    for sigma in plan.sigmas:
        votes = found.votes(sigma)
        row = [_chosen(metrics, name, sigma)[0].value for name in ("smoothed_accuracy", "abstention_rate")]
        drawn = float(votes.draws.mean()) if len(votes.draws) else None
        ceiling = text.epsilon(plan.smoothing(sigma).ceiling / found.scale)
        rows.append((f"{sigma:g}", *row, drawn, ceiling, votes.contradictions if found.attacked else None))
    alt = (
        "For each sigma: accuracy and abstention of the smoothed classifier, votes that were needed, the largest change that so many"
        " draws can certify, and breaks that contradict a certificate, of which there should be none."
    )
    columns = ("Sigma", "Right", "Abstains", "Votes per case", "Largest certificate", "Breaks within a certificate")
    return Table("The vote over noisy copies", alt, columns, tuple(rows))


def _distance_table(metrics: tuple[Metric, ...], found: _Found) -> Table:
    title = "Distance of the deployed decision from its boundary"
    measured = _chosen(metrics, "certified_distance")
    if found.dense is None:
        why = (("embeddings", found.refused),)
        return Table(title, f"It cannot be given: {found.refused}.", ("Space", "Why there is none"), why)
    space, layers = found.dense.space, len(found.dense.layers)
    exact = bool(found.rows["distance_exact"].all())
    how = f"{'exact' if exact else 'lower bound'}, {text.plural(layers, 'layer')}"
    rows = tuple(
        (space, text.label(str(item.where["norm"])), how, item.value, text.interval(item.low, item.high) or item.reason)
        for item in measured
    )
    columns = ("Space", "Norm", "How", "Mean", "95 % interval")
    return Table(title, f"Mean over right cases; unit: {_RELATIVE[space]}.", columns, rows)


def _summary(metrics: tuple[Metric, ...], plan: _Plan, cases: int) -> str:
    sigma = max(plan.sigmas, key=lambda sigma: _chosen(metrics, "smoothed_accuracy", sigma)[0].value or 0.0)
    smoothed, abstained = (_chosen(metrics, name, sigma)[0] for name in ("smoothed_accuracy", "abstention_rate"))
    reached = [item for item in _chosen(metrics, "certified_accuracy", sigma) if item.value is not None]
    proved = "no change is small enough for so few draws"
    if reached:
        largest = text.epsilon(float(reached[-1].where["epsilon"]))
        proved = f"on {spoken(reached[-1])} it is right and no L2 change of {largest} can turn it"
    return (
        f"On {text.plural(cases, 'image')} a vote over noisy copies (sigma {sigma:g}) is right on {spoken(smoothed)} and abstains on"
        f" {spoken(abstained)}; {proved}. The vote is another classifier than the deployed one, which is right on {spoken(metrics[0])}."
    )


def _caveats(metrics: tuple[Metric, ...], plan: _Plan, found: _Found) -> tuple[str, ...]:
    notes = [
        "The certificates hold for the smoothed classifier, not for the deployed decision on the image alone.",
        f"Each case's certificate is wrong with a chance of at most {plan.alpha:g}; it is about exact arithmetic, and rounding in float32"
        " is not covered. Noise is not clipped to the range of pixels.",
        "A case that is not certified is not shown to be breakable.",
    ]
    if not found.attacked:
        notes.append(f"There is no upper bound: {_NO_GRADIENTS}.")
    for sigma in plan.sigmas:
        votes, smoothed = found.votes(sigma), _chosen(metrics, "smoothed_accuracy", sigma)[0]
        if votes.contradictions:
            notes.append(
                f"With sigma {sigma:g} {text.plural(votes.contradictions, 'break')} lie within a certificate: one of the two is wrong, "
                f"which should happen to at most {2 * plan.alpha:g} of the cases."
            )
        if votes.constant:
            notes.append(
                f"With sigma {sigma:g} the vote is right on cases of one class alone, as it would be without looking at them: its"
                " certificates are those of a constant."
            )
        cost = (metrics[0].value or 0.0) - (smoothed.value or 0.0)
        if cost > 0.1:
            notes.append(
                f"With sigma {sigma:g} the vote is right less often than the deployed decision, by {cost:.3f} of the cases."
            )
    return tuple(notes)
