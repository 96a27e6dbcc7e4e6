"""APGD, a gradient attack without a step size to choose (Croce and Hein 2020; in l1 Croce and Hein 2021).

Shapes: n rows, B cases, K logits, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from xvision.attacks.cases import Cases, Seen
from xvision.attacks.goals import LossName
from xvision.attacks.gradient_walks import at_least_one, landed, normalised, per_row, reach, slope_of, started
from xvision.attacks.search import Attempt, Rows, State, Walker
from xvision.errors import ConfigError

MOMENTUM = 0.75
"""Weight of the new point; the rest continues the last move."""
RISING = 0.75
"""Share of the steps since the last checkpoint above which the loss must have risen for the step size to stay."""
ONE_IN = 5
"""l1: the first steps move one in so many pixel values; later ones two in three of those that the best change moves."""
SMALLER = 1.5
"""l1: how many times smaller a step gets."""
SETTLED = 0.95
"""l1: share of its size that the support of the best change keeps when it has settled; then the step size falls."""
SMALLEST = 0.1
"""l1: the smallest step, in radii."""
WIDER = (3.0, 2.0, 1.0)
"""l1: the radii searched one after another, in radii of the budget; the first two for 3 of 10 steps each."""


@dataclass(frozen=True)
class APGD(Walker):
    """Projected gradient ascent with momentum that halves its step and goes back to its best point when it stops to climb.

    loss: what is climbed; margin and dlr aim at ``Attempt.target`` where it is given. steps: looks of one attempt. linf: sign
    steps, l2: normalised steps, projected exactly onto ball and box. l1: sparse sign steps whose support adapts, in balls of
    3, 2 and 1 radii; only looks within the budget count as breaks. Steps follow nothing but the slope's direction and whether
    the loss rose, so that on the margin any positive scale of the logits gives the same attack. ConfigError for l0.
    """

    loss: LossName
    steps: int

    def __post_init__(self) -> None:
        at_least_one(self.steps, "steps")

    def begin(self, rows: Rows) -> State:
        if rows.norm == "l0":
            raise ConfigError("APGD does not bound the number of changed pixel values (l0): use pgd, or another norm")
        radius = _radius(rows, rows.step, self.steps)
        points, none = started(rows, radius), torch.full_like(rows.radius, -torch.inf)
        state = {
            **reach(rows),
            "at": points,
            "best": points,
            "best_slope": torch.zeros_like(points),
            "best_loss": none,
            "age": torch.zeros_like(rows.place),
            "since": torch.zeros_like(rows.place),
        }
        if rows.norm == "l1":
            return {**state, **_sparsity(rows, points, radius)}
        return {
            **state,
            "last": points,
            "last_loss": none,
            "step": 2.0 * radius,
            "interval": torch.full_like(rows.place, max(self.steps * 22 // 100, 1)),
            "rises": torch.zeros_like(rows.place),
            "halved": torch.ones_like(rows.place, dtype=torch.bool),
            "checked_loss": none,
        }

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        slope = slope_of(seen, state["at"])
        state = _remembered(state, slope, seen.loss)
        if rows.norm == "l1":
            state, slope = _sparser(rows, state, slope, self.steps)
            return _narrowed(rows, _sparse_move(rows, state, slope, self.steps), self.steps)
        state, slope = _checked(state, slope, self.steps)
        return _moved(rows, state, slope)


def attempts(cases: Cases, clean_logits: torch.Tensor, restarts: int, targets: int) -> list[list[Attempt]]:
    """Per case, every start with every way of breaking that is among the ``targets`` nearest at the clean image.

    clean_logits: (B, K). restarts: starts, of which the first is the image itself. targets: 0 for attempts that aim at no
    way in particular. A case with nothing to break gets no attempt.
    """
    at_least_one(restarts, "restarts")
    ways = cases.goal.ways(clean_logits)
    order = ways.argsort(dim=1, descending=True, stable=True).tolist()
    counts = (ways > -torch.inf).sum(dim=1).tolist()
    tries: list[list[Attempt]] = []
    for nearest, count in zip(order, counts, strict=True):
        aims: Sequence[int] = nearest[: min(count, targets)] if targets else [-1][:count]
        tries.append([Attempt(start, aim) for start in range(restarts) for aim in aims])
    return tries


def _remembered(state: State, slope: torch.Tensor, loss: torch.Tensor) -> State:
    """The best point with its slope, and whether the loss rose."""
    loss = torch.where(torch.isfinite(loss), loss, -torch.inf)
    first = state["age"] == 0
    better = first | (loss > state["best_loss"])
    where = per_row(better)
    known = {
        "best": torch.where(where, state["at"], state["best"]),
        "best_slope": torch.where(where, slope, state["best_slope"]),
        "best_loss": torch.where(better, loss, state["best_loss"]),
        "since": state["since"] + ~first,
    }
    if "rises" in state:
        known |= {"rises": state["rises"] + (~first & (loss > state["last_loss"])), "last_loss": loss}
    return {**state, **known}


def _checked(state: State, slope: torch.Tensor, steps: int) -> tuple[State, torch.Tensor]:
    """At a checkpoint: half the step, from the best point, where the loss rose too rarely or the best has not changed."""
    due = state["since"] >= state["interval"]
    if not bool(due.any()):
        return state, slope
    rarely = state["rises"] <= RISING * state["interval"]
    stuck = ~state["halved"] & (state["checked_loss"] >= state["best_loss"])
    halve = due & (rarely | stuck)
    shorter = (state["interval"] - max(steps * 3 // 100, 1)).clamp(min=max(steps * 6 // 100, 1))
    zero = torch.zeros_like(state["since"])
    where = per_row(halve)
    checked = {
        "at": torch.where(where, state["best"], state["at"]),
        "step": torch.where(halve, state["step"] / 2.0, state["step"]),
        "interval": torch.where(due, shorter, state["interval"]),
        "since": torch.where(due, zero, state["since"]),
        "rises": torch.where(due, zero, state["rises"]),
        "halved": torch.where(due, halve, state["halved"]),
        "checked_loss": torch.where(due, state["best_loss"], state["checked_loss"]),
    }
    return {**state, **checked}, torch.where(where, state["best_slope"], slope)


def _moved(rows: Rows, state: State, slope: torch.Tensor) -> State:
    """A step along the slope, mixed with the last move; the first step is not mixed."""
    at = state["at"]
    direction = torch.sign(slope) if rows.norm == "linf" else normalised(slope)
    stepped = landed(rows, state, torch.addcmul(at, per_row(state["step"]), direction), rows.radius)
    weight = torch.where(state["age"] == 0, 1.0, MOMENTUM)
    ahead = torch.lerp(state["last"], at, 2.0)
    points = landed(rows, state, torch.lerp(ahead, stepped, per_row(weight)), rows.radius)
    return {**state, "at": points, "last": at, "age": state["age"] + 1}


def _radius(rows: Rows, step: torch.Tensor, steps: int) -> torch.Tensor:
    """(n,) the radius in which each row searches at its step."""
    if rows.norm != "l1":
        return rows.radius
    third = steps * 3 // 10
    stage = (step >= third).long() + (step >= 2 * third).long()
    return rows.radius * torch.tensor(WIDER, dtype=rows.radius.dtype, device=rows.radius.device)[stage]


def _sparsity(rows: Rows, points: torch.Tensor, radius: torch.Tensor) -> State:
    """How many values the next steps move, and how far, where a search in an l1 ball starts at ``points``."""
    support, count = _support(rows, points), points[0].numel()
    return {
        "moving": torch.where(support > 0, _fewer(support), max(count // ONE_IN, 1)),
        "support": torch.where(support > 0, support, count),
        "step": radius,
    }


def _support(rows: Rows, points: torch.Tensor) -> torch.Tensor:
    """(n,) how many values differ from the image's."""
    return (points != rows.cases.pixels).flatten(1).sum(dim=1)


def _fewer(support: torch.Tensor) -> torch.Tensor:
    return (support * 2 // 3).clamp(min=1)


def _sparser(rows: Rows, state: State, slope: torch.Tensor, steps: int) -> tuple[State, torch.Tensor]:
    """At a checkpoint: fewer values, from the best point with full steps where its support still shrinks, else smaller steps."""
    due = state["since"] >= max(steps * 4 // 100, 1)
    if not bool(due.any()):
        return state, slope
    radius = _radius(rows, rows.step, steps)
    support = _support(rows, state["best"])
    shrinks = due & (support < SETTLED * state["support"])
    smaller = torch.maximum(state["step"] / SMALLER, SMALLEST * radius)
    where = per_row(shrinks)
    sparser = {
        "at": torch.where(where, state["best"], state["at"]),
        "moving": torch.where(due, _fewer(support), state["moving"]),
        "support": torch.where(due, support, state["support"]),
        "step": torch.where(due, torch.where(shrinks, radius, smaller), state["step"]),
        "since": torch.where(due, torch.zeros_like(state["since"]), state["since"]),
    }
    return {**state, **sparser}, torch.where(where, state["best_slope"], slope)


def _sparse_move(rows: Rows, state: State, slope: torch.Tensor, steps: int) -> State:
    """An equal step in each of the values with the steepest slope that have room left to go there."""
    at, cases = state["at"], rows.cases
    room = torch.where(slope > 0, at < cases.high, at > cases.low)
    strength = (slope.abs() * room).flatten(1)
    ranked = strength.topk(int(state["moving"].max()), dim=1).values
    least = ranked.gather(1, state["moving"][:, None] - 1).clamp(min=torch.finfo(strength.dtype).tiny)
    chosen = (strength >= least).view_as(slope) * torch.sign(slope)
    length = chosen.abs().flatten(1).sum(dim=1).clamp(min=1.0)
    points = torch.addcmul(at, per_row(state["step"] / length), chosen)
    return {**state, "at": landed(rows, state, points, _radius(rows, rows.step, steps)), "age": state["age"] + 1}


def _narrowed(rows: Rows, state: State, steps: int) -> State:
    """Where the next look belongs to a smaller ball, a new search there from the best point of the last one."""
    radius = _radius(rows, rows.step + 1, steps)
    turns = radius != _radius(rows, rows.step, steps)
    if not bool(turns.any()):
        return state
    points = torch.where(per_row(turns), landed(rows, state, state["best"], radius), state["at"])
    fresh = _sparsity(rows, points, radius)
    zero = torch.zeros_like(state["age"])
    return {
        **state,
        **{name: torch.where(turns, values, state[name]) for name, values in fresh.items()},
        "at": points,
        "age": torch.where(turns, zero, state["age"]),
        "since": torch.where(turns, zero, state["since"]),
    }
