"""Many rows of one attack at once: broken rows leave the batch, waiting rows take their place, budgets are walked down.

A row is one attempt on one case at one budget: a starting point and, for targeted attacks, a way of breaking. The batch holds
up to ``width`` rows however many cases are left, so that a model runs on full batches until the last rows. Once one row broke
its case, the others of the case stop at the same step; a break at a size counts at every larger budget, so the case is tried
again at a smaller one only. What is found depends on the case and its attempts alone, not on the width or the rows beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from xvision.attacks.balls import Norm, size
from xvision.attacks.cases import Budget, Cases, Found, Seen, look, nonfinite, nothing
from xvision.attacks.goals import LossName

State = dict[str, torch.Tensor]
"""What a walker knows of each row; the first axis of every tensor is the row, and "at" is where to look next."""


class Attempt(NamedTuple):
    """start: 0 for the image itself, else the number of a random start. target: a column of the goal's ways, -1 for any."""

    start: int = 0
    target: int = -1


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows in the batch. cases: (n,) with the goal aimed as each row wants. radius: (n,). step: (n,) looks so far.
    start: (n,) number of the starting point. place: (n,) the case, column: (n,) the budget each row is about.
    """

    cases: Cases
    norm: Norm
    radius: torch.Tensor
    step: torch.Tensor
    start: torch.Tensor
    place: torch.Tensor
    column: torch.Tensor

    def __len__(self) -> int:
        return len(self.place)

    @property
    def low(self) -> torch.Tensor:
        """(n, C, H, W) the most negative change allowed."""
        return self.cases.low - self.cases.pixels

    @property
    def high(self) -> torch.Tensor:
        """(n, C, H, W) the most positive change allowed."""
        return self.cases.high - self.cases.pixels


class Walker(ABC):
    """How a row moves. loss: what its gradient is of, None for an attack without gradients. steps: looks of one attempt."""

    loss: LossName | None
    steps: int

    @abstractmethod
    def begin(self, rows: Rows) -> State:
        """The state of new rows; ``state["at"]`` (n, C, H, W) is their first point."""

    @abstractmethod
    def learn(self, rows: Rows, state: State, seen: Seen) -> State:
        """The next state after a look at ``state["at"]``, which broke nothing for the rows that go on."""


Watch = Callable[[Rows, State, Seen], None]


def pursue(
    cases: Cases,
    budget: Budget,
    walker: Walker,
    *,
    width: int,
    attempts: Sequence[Sequence[Attempt]] | None = None,
    watch: Watch | None = None,
) -> Found:
    """Every attempt on every case until it breaks or nothing is left to try.

    attempts: per case, all of them in the batch together; the image itself with no target unless given. A case is tried at
    one budget after another as ``Budget`` says, an attempt that fails at one counting as failed below it. watch: called
    after every look, before broken rows leave.
    """
    with torch.inference_mode(False):  # tensors made in inference mode could not be used for gradients
        hunt = _Hunt(cases, budget, attempts or [[Attempt()]] * len(cases))
        found = nothing(cases)
        rows, state = hunt.refilled(walker, None, {}, width)
        while rows is not None:
            more = bool((rows.step < walker.steps - 1).any())
            seen = look(rows.cases, state["at"], walker.loss if more else None)
            broken = rows.cases.confirmed(state["at"], rows.cases.goal.broken(seen.logits))
            _note(found, rows, seen)
            if watch is not None:
                watch(rows, state, seen)
            keep = hunt.judged(rows, state["at"], broken, found, walker.steps)
            state = walker.learn(rows, state, seen) if bool(keep.any()) else state
            rows, state = _kept(rows, state, keep)
            rows, state = hunt.refilled(walker, rows, state, width)
    return found


def _note(found: Found, rows: Rows, seen: Seen) -> None:
    found.looks.index_add_(0, rows.place.cpu(), torch.ones(len(rows), dtype=torch.int64))
    if seen.gradient is None or not bool(torch.isfinite(seen.gradient.sum())):  # a sum shows cheaply that none is
        found.nonfinite[rows.place[nonfinite(seen)]] = True
    else:
        found.nonfinite[rows.place[~torch.isfinite(seen.logits).all(dim=1)]] = True
    first = torch.nonzero((rows.step == 0) & (rows.start == 0)).squeeze(1)
    if seen.gradient is not None and len(first):
        found.flat[rows.place[first[(seen.gradient[first] == 0.0).flatten(1).all(dim=1)]]] = True


def _kept(rows: Rows, state: State, keep: torch.Tensor) -> tuple[Rows | None, State]:
    if bool(keep.all()):
        return replace(rows, step=rows.step + 1), state
    index = torch.nonzero(keep).squeeze(1)
    if len(index) == 0:
        return None, {}
    left = Rows(
        rows.cases.rows(index),
        rows.norm,
        rows.radius[index],
        rows.step[index] + 1,
        rows.start[index],
        rows.place[index],
        rows.column[index],
    )
    return left, {name: values[index] for name, values in state.items()}


class _Hit(NamedTuple):
    """The best break of a case at the budget tried, in this order, so that it does not matter which row came first."""

    step: int
    size: float
    start: int
    target: int
    column: int
    image: torch.Tensor


class _Hunt:
    """Which budget of which case is to be tried next, and with what."""

    def __init__(self, cases: Cases, budget: Budget, attempts: Sequence[Sequence[Attempt]]) -> None:
        self._cases, self._budget, self._attempts = cases, budget, attempts
        self._failed = [-1] * len(cases)
        self._broken = budget.columns(budget.reached).tolist()
        self._trying = [-1] * len(cases)
        self._open = [0] * len(cases)
        self._hits: dict[int, _Hit] = {}
        self._queue: deque[tuple[int, Attempt]] = deque()
        for place in range(len(cases)):
            self._next(place)

    def _next(self, place: int) -> None:
        low, high = self._failed[place], self._broken[place]
        if high - low <= 1 or not self._attempts[place]:
            return
        self._trying[place] = high - 1
        self._open[place] = len(self._attempts[place])
        self._queue.extend((place, attempt) for attempt in self._attempts[place])

    def judged(self, rows: Rows, points: torch.Tensor, broken: torch.Tensor, found: Found, steps: int) -> torch.Tensor:
        """Takes note of what broke and what ended; (n,) bool, the rows that go on.

        When a row breaks its case, the others of that case go no further than its step, but as far: which is the first to
        break then does not depend on when each of them found a place in the batch.
        """
        hits = torch.nonzero(broken).squeeze(1)
        over = rows.step >= steps - 1
        if len(hits) == 0 and not self._hits and not bool(over.any()):
            return ~over
        self._take(rows, points, hits)
        places, step, last = rows.place.tolist(), rows.step.tolist(), over.tolist()
        keep = [
            not last[row] and (place not in self._hits or step[row] < self._hits[place].step)
            for row, place in enumerate(places)
        ]
        for place in (place for row, place in enumerate(places) if not keep[row]):
            self._open[place] -= 1
            if self._open[place] == 0:
                self._close(place, found)
        return torch.tensor(keep, device=broken.device)

    def _take(self, rows: Rows, points: torch.Tensor, hits: torch.Tensor) -> None:
        """Keeps the hits that are within the budget tried and the best of their case."""
        sizes = size(points[hits] - rows.cases.pixels[hits], rows.norm)
        target = rows.cases.goal.target
        for number, (row, column) in enumerate(zip(hits.tolist(), self._budget.columns(sizes).tolist(), strict=True)):
            place, measured = int(rows.place[row]), float(sizes[number])
            if column <= self._trying[place]:
                order = (int(rows.step[row]), measured, int(rows.start[row]), int(target[row]))
                if place not in self._hits or order < self._hits[place][:4]:
                    self._hits[place] = _Hit(*order, column, points[row].clone())

    def _close(self, place: int, found: Found) -> None:
        """All attempts on a case at one budget have ended."""
        hit = self._hits.pop(place, None)
        if hit is None:
            self._failed[place] = self._trying[place]
        else:
            self._broken[place] = hit.column
            found.size[place], found.images[place] = hit.size, hit.image
        self._next(place)

    def refilled(self, walker: Walker, rows: Rows | None, state: State, width: int) -> tuple[Rows | None, State]:
        """The rows with new ones from the queue in the free places."""
        free = width - (0 if rows is None else len(rows))
        fresh = [self._queue.popleft() for _ in range(min(free, len(self._queue)))]
        if not fresh:
            return rows, state
        new = self._rows(fresh)
        begun = walker.begin(new)
        if rows is None:
            return new, begun
        return self._joined(rows, new), {name: torch.cat([state[name], begun[name]]) for name in begun}

    def _rows(self, fresh: Sequence[tuple[int, Attempt]]) -> Rows:
        device = self._cases.pixels.device
        places = torch.tensor([place for place, _ in fresh], device=device)
        columns = torch.tensor([self._trying[place] for place, _ in fresh], device=device)
        radii = torch.tensor(self._budget.radii, dtype=torch.float32, device=device)
        part = self._cases.rows(places)
        target = torch.tensor([attempt.target for _, attempt in fresh], device=device)
        return Rows(
            replace(part, goal=part.goal.aimed(target)),
            self._budget.norm,
            radii[columns],
            torch.zeros_like(places),
            torch.tensor([attempt.start for _, attempt in fresh], device=device),
            places,
            columns,
        )

    def _joined(self, rows: Rows, new: Rows) -> Rows:
        places = torch.cat([rows.place, new.place])
        part = self._cases.rows(places)
        target = torch.cat([rows.cases.goal.target, new.cases.goal.target])
        return Rows(
            replace(part, goal=part.goal.aimed(target)),
            rows.norm,
            torch.cat([rows.radius, new.radius]),
            torch.cat([rows.step, new.step]),
            torch.cat([rows.start, new.start]),
            places,
            torch.cat([rows.column, new.column]),
        )
