"""FAB, which looks for the smallest change that breaks a decision and needs no budget (Croce and Hein 2020).

Shapes: n rows, B cases, C H W image. A row is one case, one start and one way of breaking that it aims at.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import torch

from xvision.attacks.apgd import attempts
from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Budget, Cases, Found, Seen, look, nonfinite, nothing
from xvision.attacks.gradient_walks import at_least_one, per_row, slope_of, started
from xvision.attacks.search import Attempt, Rows, State
from xvision.errors import ConfigError

OVERSHOOT = 1.05
"""How far a step goes, in distances to the linear boundary."""
BIAS = 0.1
"""The largest weight of the step from the clean image, which keeps the search near it."""
BACK = 0.9
"""Where a broken point is pulled back to, on the line from the clean image."""
HALVINGS = 10
"""Looks that narrow the line between the clean image and the smallest break at the end."""


def fab(cases: Cases, budget: Budget, *, steps: int, targets: int, restarts: int, width: int) -> Found:
    """The smallest change found per case, of any size: budgets only say which cases are worth it.

    Each step takes the aimed margin as linear, goes to the nearest point in the box where it is 0 and a little beyond, and is
    drawn towards the nearest such point of the clean image. steps: looks of one row. targets: ways of breaking aimed at, those
    nearest at the clean image. restarts: starts, of which the first is the image itself and the others are random within half
    of what is known to break. A case ends with its first break within the smallest budget; a case that is known to break there
    is not looked at. One look serves as test and as gradient, where the source takes two. width: images in one look;
    what is found does not depend on it.

    Raises ConfigError for l0 and for counts below 1. A size is an upper bound on the distance to the boundary.
    """
    if budget.norm == "l0":
        raise ConfigError("FAB does not bound the number of changed pixel values (l0): use pgd, or another norm")
    at_least_one(steps, "steps")
    at_least_one(targets, "targets")
    found = nothing(cases)
    waiting = deque(_tries(cases, budget, found, restarts, targets, width))
    state: State = {}
    while waiting or state:
        state = _refilled(cases, budget, state, waiting, width)
        part = _part(cases, state)
        seen, broken = _looked(part, state["at"], width)
        _note(found, state, seen)
        _improve(found, part, state, broken, budget.norm)
        points = stepped(part, state["at"], seen, broken, budget.norm)
        moved = (points != state["at"]).flatten(1).any(dim=1)
        closed = (budget.columns(found.size) == 0).to(moved.device)[state["place"]]
        keep = torch.nonzero(moved & ~closed & (state["step"] < steps - 1)).squeeze(1)
        state = {**state, "at": points, "step": state["step"] + 1}
        state = {name: values[keep] for name, values in state.items()} if len(keep) else {}
    return _narrowed(cases, budget, found, width)


def _tries(
    cases: Cases, budget: Budget, found: Found, restarts: int, targets: int, width: int
) -> list[tuple[int, list[Attempt]]]:
    """The cases worth looking at, with their rows; the clean images are shown once for them."""
    worth = torch.nonzero(budget.columns(budget.reached) > 0).squeeze(1)
    waiting = []
    for start in range(0, len(worth), width):
        places = worth[start : start + width]
        part = cases.rows(places.to(cases.pixels.device))
        logits = look(part, part.pixels, None).logits
        found.looks[places] += 1
        waiting += list(zip(places.tolist(), attempts(part, logits, restarts, targets), strict=True))
    return [(place, tries) for place, tries in waiting if tries]


def _refilled(
    cases: Cases, budget: Budget, state: State, waiting: deque[tuple[int, list[Attempt]]], width: int
) -> State:
    """The rows with those of waiting cases: all of a case or none, so that they go on in step whatever the width."""
    count = len(state["place"]) if state else 0
    fresh: list[tuple[int, Attempt]] = []
    while waiting and (count + len(fresh) == 0 or count + len(fresh) + len(waiting[0][1]) <= width):
        number, tries = waiting.popleft()
        fresh += [(number, attempt) for attempt in tries]
    if not fresh:
        return state
    device = cases.pixels.device
    place = torch.tensor([number for number, _ in fresh], device=device)
    new = {
        "place": place,
        "start": torch.tensor([attempt.start for _, attempt in fresh], device=device),
        "target": torch.tensor([attempt.target for _, attempt in fresh], device=device),
        "step": torch.zeros_like(place),
    }
    known = budget.reached.to(device, torch.float32)[place].clamp(max=budget.radii[-1])
    rows = Rows(_part(cases, new), budget.norm, 0.5 * known, new["step"], new["start"], place, new["step"])
    new["at"] = started(rows, rows.radius)
    return {name: torch.cat([state[name], new[name]]) for name in new} if state else new


def _part(cases: Cases, state: State) -> Cases:
    part = cases.rows(state["place"])
    return replace(part, goal=part.goal.aimed(state["target"]))


def _looked(part: Cases, points: torch.Tensor, width: int) -> tuple[Seen, torch.Tensor]:
    """What points (n, C, H, W) show, ``width`` of them at a time, and which are broken, unconfirmed."""
    seen = []
    for rows in torch.split(torch.arange(len(part), device=points.device), width):
        seen.append(look(part.rows(rows), points[rows], "margin"))
    logits, losses = torch.cat([each.logits for each in seen]), torch.cat([each.loss for each in seen])
    gradients = [each.gradient for each in seen if each.gradient is not None]
    return Seen(logits, losses, torch.cat(gradients)), part.goal.broken(logits)


def _note(found: Found, state: State, seen: Seen) -> None:
    place = state["place"]
    found.looks.index_add_(0, place.cpu(), torch.ones(len(place), dtype=torch.int64))
    found.nonfinite[place[nonfinite(seen)]] = True
    if seen.gradient is not None:
        first = (state["step"] == 0) & (state["start"] == 0)
        found.flat[place[first & (seen.gradient == 0.0).flatten(1).all(dim=1)]] = True


def _improve(found: Found, part: Cases, state: State, broken: torch.Tensor, norm: Norm) -> None:
    """Takes note of the breaks that are smaller than what their case has, confirmed."""
    hits = torch.nonzero(broken).squeeze(1)
    sizes = size(state["at"][hits] - part.pixels[hits], norm)
    smaller = sizes < found.size[state["place"][hits].cpu()]
    hits, sizes = hits[smaller.to(hits.device)], sizes[smaller]
    if len(hits) == 0:
        return
    held = part.rows(hits).confirmed(state["at"][hits], torch.ones_like(hits, dtype=torch.bool)).tolist()
    for number, (row, place) in enumerate(zip(hits.tolist(), state["place"][hits].tolist(), strict=True)):
        if held[number] and sizes[number] < found.size[place]:
            found.size[place] = sizes[number]
            found.images[place] = state["at"][row]


def stepped(part: Cases, at: torch.Tensor, seen: Seen, broken: torch.Tensor, norm: Norm) -> torch.Tensor:
    """(n, C, H, W) the next points after a look at ``at``: unmoved where the slope is zero."""
    slope, clean = slope_of(seen, at), part.pixels
    pulled = torch.where(per_row(broken), torch.lerp(clean, at, BACK), at)
    there = _nearest_zero(part, pulled, at, seen.loss, slope, norm)
    home = _nearest_zero(part, clean, at, seen.loss, slope, norm)
    far, far_home = _length(there, norm), _length(home, norm)
    tiny = torch.finfo(far.dtype).tiny
    weight = per_row((far / (far + far_home).clamp(min=tiny)).clamp(max=BIAS))
    points = torch.lerp(pulled + OVERSHOOT * there, clean + OVERSHOOT * home, weight)
    moved = (slope != 0).flatten(1).any(dim=1)
    return torch.where(per_row(moved), torch.clamp(points, part.low, part.high), at)


def _nearest_zero(
    part: Cases, points: torch.Tensor, at: torch.Tensor, loss: torch.Tensor, slope: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The smallest change of ``points`` to where a loss (n,) of this slope at ``at`` would be 0; none where it is above 0."""
    missing = -(loss + (slope * (points - at)).flatten(1).sum(dim=1))
    return smallest_change(slope, missing, part.low - points, part.high - points, norm)


def smallest_change(
    slope: torch.Tensor, gain: torch.Tensor, low: torch.Tensor, high: torch.Tensor, norm: Norm
) -> torch.Tensor:
    """The smallest change (n, C, H, W) whose scalar product with ``slope`` is ``gain`` (n,), between the bounds; exact.

    linf, l2 or l1; low <= 0 <= high. No change for a gain that is not above 0; the largest gain there is where the bounds
    do not allow more.
    """
    flat = slope.flatten(1)
    largest = flat.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(flat.dtype).tiny)
    strength = flat.abs() / largest
    wanted = torch.nan_to_num(gain[:, None] / largest, nan=0.0)
    room = torch.where(flat > 0, high.flatten(1), -low.flatten(1)).clamp(min=0.0)
    if norm == "l1":
        moved = _steepest_first(strength, room, wanted)
    else:
        moved = _level(strength, torch.ones_like(strength) if norm == "linf" else strength, room, wanted)
    return (moved * flat.sign()).view_as(slope)


def _steepest_first(strength: torch.Tensor, room: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(n, D) the steepest values moved by all their room, one after another, until the gain is reached."""
    order = strength.argsort(dim=1, descending=True, stable=True)
    steep, caps = strength.gather(1, order), room.gather(1, order)
    gains = steep * caps
    left = (wanted - (gains.cumsum(dim=1) - gains)).clamp(min=0.0)
    moves = torch.minimum(left / steep.clamp(min=torch.finfo(steep.dtype).tiny), caps)
    return torch.zeros_like(room).scatter(1, order, moves)


def _level(strength: torch.Tensor, rate: torch.Tensor, room: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(n, D) min(level × rate, room) with the level (n, 1) at which the gain is reached.

    Values that reach their bound are taken out one set after another: the level only grows, so the sets only grow, and when
    none is added the gain is exact.
    """
    bound = room <= 0
    while True:
        fixed = torch.where(bound, strength * room, torch.zeros_like(room)).sum(dim=1, keepdim=True)
        free = torch.where(bound, torch.zeros_like(room), strength * rate).sum(dim=1, keepdim=True)
        level = torch.where(free > 0, (wanted - fixed).clamp(min=0.0) / free, torch.zeros_like(free))
        moves = torch.where(bound, room, torch.minimum(level * rate, room))
        more = ~bound & (level * rate >= room)
        if not bool(more.any()):
            return moves
        bound = bound | more


def _length(change: torch.Tensor, norm: Norm) -> torch.Tensor:
    order = {"linf": torch.inf, "l2": 2.0, "l1": 1.0}[norm]
    length: torch.Tensor = torch.linalg.vector_norm(change.flatten(1), order, dim=1)
    return length


def _narrowed(cases: Cases, budget: Budget, found: Found, width: int) -> Found:
    """Breaks above the smallest budget moved towards their clean image as far as they hold, by bisection of the line."""
    open_ones = torch.nonzero(torch.isfinite(found.size) & (budget.columns(found.size) > 0)).squeeze(1)
    for start in range(0, len(open_ones), width):
        places = open_ones[start : start + width]
        rows = places.to(cases.pixels.device)
        part, ends = cases.rows(rows), found.images[rows].clone()
        low, high = torch.zeros(len(rows), device=rows.device), torch.ones(len(rows), device=rows.device)
        middle = torch.full_like(low, BACK)
        for _ in range(1 + HALVINGS):
            points = torch.lerp(part.pixels, ends, per_row(middle)).clamp(part.low, part.high)
            held = part.broken(points)
            found.images[rows[held]] = points[held]
            low, high = torch.where(held, low, middle), torch.where(held, middle, high)
            middle = (low + high) / 2
        found.size[places] = size(found.images[rows] - part.pixels, budget.norm)
        found.looks[places] += 1 + HALVINGS
    return found
