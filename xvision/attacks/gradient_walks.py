"""Random noise, the single step and projected gradient descent on the margin: the attacks that a cascade runs first.

Shapes: n rows, B cases, C H W image. Points are (n, C, H, W) images, slopes the gradient of a loss for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from xvision.attacks.balls import drawn, project, steepest
from xvision.attacks.cases import Budget, Cases, Found, Seen, look
from xvision.attacks.goals import LossName
from xvision.attacks.search import Attempt, Rows, State, Walker, pursue
from xvision.errors import ConfigError

TRAVEL = 2.5
"""How far PGD may go in all, in radii: from any start it reaches any point of the ball, which is 2 radii wide."""


def per_row(values: torch.Tensor) -> torch.Tensor:
    """(n,) as (n, 1, 1, 1)."""
    return values[:, None, None, None]


def reach(rows: Rows) -> State:
    """The bounds that ``landed`` keeps: of the point itself for linf, the ball among them, else of its change."""
    if rows.norm != "linf":
        return {"low": rows.low, "high": rows.high}
    pixels, radius = rows.cases.pixels, per_row(rows.radius)
    return {
        "low": torch.maximum(rows.cases.low, pixels - radius),
        "high": torch.minimum(rows.cases.high, pixels + radius),
    }


def landed(rows: Rows, state: State, points: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The nearest allowed points within ``radius`` (n,), which for linf must be the radius of the rows."""
    if rows.norm == "linf":
        return torch.clamp(points, state["low"], state["high"])
    pixels = rows.cases.pixels
    change = project(points - pixels, state["low"], state["high"], radius, rows.norm)
    return torch.clamp(pixels + change, rows.cases.low, rows.cases.high)


def started(rows: Rows, radius: torch.Tensor) -> torch.Tensor:
    """The image itself for start 0, else a random point within ``radius`` (n,), which case, seed and start alone decide."""
    points = rows.cases.pixels.clone()
    for start in sorted(set(rows.start.tolist()) - {0}):
        index = torch.nonzero(rows.start == start).squeeze(1)
        part = rows.cases.rows(index)
        low, high = part.low - part.pixels, part.high - part.pixels
        change = drawn(low, high, radius[index], rows.norm, part.generators(f"start/{start}"))
        points[index] = torch.clamp(part.pixels + change, part.low, part.high)
    return points


def slope_of(seen: Seen, points: torch.Tensor) -> torch.Tensor:
    """The gradient; zero where the model gave none and where it is not finite, so that no pixel becomes NaN."""
    if seen.gradient is None:
        return torch.zeros_like(points)
    return torch.nan_to_num(seen.gradient, nan=0.0, posinf=0.0, neginf=0.0)


def normalised(slope: torch.Tensor) -> torch.Tensor:
    """Each row's slope at Euclidean length 1, zero where it is zero; slopes of any scale, without over- or underflow."""
    largest = slope.flatten(1).abs().amax(dim=1)
    scaled = slope / per_row(torch.where(largest > 0, largest, torch.ones_like(largest)))
    length = torch.linalg.vector_norm(scaled.flatten(1), dim=1)
    return scaled / per_row(length.clamp(min=1.0))


def at_least_one(steps: int, what: str) -> None:
    """Raise ConfigError for a number of steps below 1."""
    if steps < 1:
        raise ConfigError(f"found {steps} {what} for an attack: it needs at least 1")


class _Once(Walker):
    """A walker of a single look, without gradients."""

    loss: LossName | None = None
    steps: int = 1

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        return state


@dataclass(frozen=True, eq=False)
class SingleStep(_Once):
    """The allowed change that gains most along one slope per case; slope: (B, C, H, W), finite, of the cases pursued."""

    slope: torch.Tensor

    def begin(self, rows: Rows) -> State:
        change = steepest(self.slope[rows.place], rows.low, rows.high, rows.radius, rows.norm)
        return {"at": torch.clamp(rows.cases.pixels + change, rows.cases.low, rows.cases.high)}


class Noise(_Once):
    """One random change as large as the radius allows, of the number that the attempt's start gives."""

    def begin(self, rows: Rows) -> State:
        return {"at": started(rows, rows.radius)}


def single_step(cases: Cases, budget: Budget, *, gradient: torch.Tensor | None, width: int) -> Found:
    """The change that a linear model of slope ``gradient`` (B, C, H, W) would call the worst, in every norm, at every budget.

    In linf it is the fast gradient sign method (Goodfellow et al. 2015). gradient: of the margin at the clean images; None
    to take it here, at one look per case. Everything after looks only forward. A model that hides its slope makes it fail.
    """
    taken = gradient is None
    slope = _slopes(cases, width) if gradient is None else gradient.detach()
    odd = ~torch.isfinite(slope).flatten(1).all(dim=1)
    slope = torch.nan_to_num(slope, nan=0.0, posinf=0.0, neginf=0.0)
    found = pursue(cases, budget, SingleStep(slope), width=width)
    return found._replace(
        looks=found.looks + int(taken),
        nonfinite=found.nonfinite | odd,
        flat=(slope == 0.0).flatten(1).all(dim=1) & ~odd,
    )


def _slopes(cases: Cases, width: int) -> torch.Tensor:
    slopes = []
    with torch.inference_mode(False):
        for start in range(0, len(cases), width):
            part = cases.rows(torch.arange(start, min(start + width, len(cases)), device=cases.pixels.device))
            gradient = look(part, part.pixels, "margin").gradient
            slopes.append(torch.zeros_like(part.pixels) if gradient is None else gradient)
    return torch.cat(slopes)


def noise(cases: Cases, budget: Budget, *, draws: int, width: int) -> Found:
    """``draws`` random changes per case and budget, looked at forward only: the chance that every attack must beat."""
    at_least_one(draws, "draws")
    tries = [[Attempt(start=number) for number in range(1, draws + 1)]] * len(cases)
    return pursue(cases, budget, Noise(), width=width, attempts=tries)


@dataclass(frozen=True)
class MarginPGD(Walker):
    """Projected gradient ascent on the margin; every look is tested, so that the best iterate counts.

    linf: sign steps, l2: normalised steps, each 2.5 radii / steps long, projected exactly onto ball and box (Madry et al.
    2018). l1: steps of 2 / (k + 2) towards the worst change for the slope (Frank and Wolfe 1956), which move few pixels and
    need no projection. l0: the worst change for the mean direction of all slopes so far. steps: looks of one attempt. A
    linear model is broken wherever it can be: the first step is then the best one, in linf and l2 after 2 / 5 of the steps.
    """

    steps: int
    loss: LossName = field(default="margin", init=False)

    def __post_init__(self) -> None:
        at_least_one(self.steps, "steps")

    def begin(self, rows: Rows) -> State:
        state = {"at": started(rows, rows.radius), **reach(rows)}
        return {**state, "slopes": torch.zeros_like(state["at"])} if rows.norm == "l0" else state

    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        slope = slope_of(seen, state["at"])
        if rows.norm in ("l1", "l0"):
            return _towards_worst(rows, state, slope)
        step = per_row(rows.radius * (TRAVEL / self.steps))
        direction = torch.sign(slope) if rows.norm == "linf" else normalised(slope)
        points = landed(rows, state, torch.addcmul(state["at"], step, direction), rows.radius)
        return {**state, "at": points}


def _towards_worst(rows: Rows, state: State, slope: torch.Tensor) -> State:
    cases = rows.cases
    if rows.norm == "l0":
        slope = state["slopes"] + normalised(slope)
    change = steepest(slope, state["low"], state["high"], rows.radius, rows.norm)
    if rows.norm == "l1":
        change = torch.lerp(state["at"] - cases.pixels, change, per_row(2.0 / (rows.step + 2.0)))
    new = {"at": torch.clamp(cases.pixels + change, cases.low, cases.high)}
    return {**state, **new, "slopes": slope} if rows.norm == "l0" else {**state, **new}
