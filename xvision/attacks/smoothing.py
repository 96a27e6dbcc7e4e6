"""Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): an L2 radius within which a vote over noisy copies cannot change.

The smoothed classifier asks the deployed decision about many copies of an image, each with Gaussian noise of its own, and
decides what more than half of them decide. It is another classifier than the deployed one: what is certified here holds for
the vote, and says nothing of the decision on the image alone. Noise is not clipped to [0, 1]: the proof needs whole
Gaussians, so the model sees values outside the range of pixels. The proof is about real numbers; rounding in float32 is not
covered (Jin, Ohrimenko and Rubinstein 2022). Shapes: B cases, C H W image, R radii.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv, ndtr, ndtri

from xvision.attacks import balls
from xvision.attacks.cases import Cases, look
from xvision.errors import ConfigError
from xvision.methods.randomness import case_generator, case_seed

_BLOCK = 20
"""Draws made by one generator: a case's noise is made again from its number, so that none has to be kept."""
_FIRST = 100
"""About as many draws as before the first look."""


@dataclass(frozen=True)
class Smoothing:
    """How the smoothed classifier is asked.

    sigma: standard deviation of the noise, in pixel units. draws: votes of a case at most. selection: draws, apart from
    those, that choose what is to be certified. alpha: the chance, for each case, that its certificate is too large. width:
    images in one batch, which changes memory and speed only.
    """

    sigma: float
    draws: int = 1000
    selection: int = 100
    alpha: float = 0.001
    width: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.sigma < math.inf:
            raise ConfigError(f"found a smoothing sigma of {self.sigma}: give a finite one above 0, in pixel units")
        if min(self.draws, self.selection, self.width) < 1 or not 0 < self.alpha < 0.5:
            raise ConfigError(
                f"found {self.draws} draws, {self.selection} for the selection, batches of {self.width} and alpha"
                f" {self.alpha} for smoothing: counts start at 1, and alpha is above 0 and below 0.5"
            )

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of draws after which a case may stop: the last is ``draws``, each other half of the next, the first about 100."""
        count = max(1, round(math.log2(self.draws / _FIRST)) + 1)
        return tuple(math.ceil(self.draws / 2**place) for place in reversed(range(count)))

    @property
    def level(self) -> float:
        """The chance of error at one look: alpha shared out equally (Bonferroni), so that all looks together keep it."""
        return self.alpha / len(self.looks)

    @property
    def ceiling(self) -> float:
        """The largest radius, in L2, that can be certified at all: where every vote agrees."""
        return float(radius_of(lower_share(np.array([self.draws]), self.draws, self.level), self.sigma)[0])


class Certificate(NamedTuple):
    """What the votes say, per case, all (B,) on the CPU.

    kept: what was voted on, that the decision is not broken in a way that counts (True) or that it is. votes: for that, of
    ``draws``. low: lower limit of its probability. radius: float64, in L2: no change of this size or less turns the vote,
    with a chance of error of at most alpha for each case; 0 where abstained.
    """

    kept: np.ndarray
    votes: np.ndarray
    draws: np.ndarray
    low: np.ndarray
    radius: np.ndarray

    @property
    def abstained(self) -> np.ndarray:
        """(B,) bool, not shown that either side has more than half: the smoothed classifier gives no decision."""
        return np.asarray(self.low <= 0.5)


def lower_share(votes: np.ndarray, draws: int, alpha: float) -> np.ndarray:
    """One-sided lower limit (n,) of a probability from votes (n,) out of draws (Clopper and Pearson 1934)."""
    counts = np.asarray(votes, dtype=np.float64)
    safe = np.maximum(counts, 1.0)
    return np.where(counts > 0, betaincinv(safe, draws - safe + 1, alpha), 0.0)


def radius_of(low: np.ndarray, sigma: float) -> np.ndarray:
    """L2 radius (n,) within which a side with at least this probability keeps more than half; 0 where that is not above 1/2.

    sigma × the normal quantile (Cohen 2019, theorem 1, the other side having what is left).
    """
    return np.asarray(sigma * ndtri(np.maximum(low, 0.5)))


def certified_radius(votes: np.ndarray, draws: int, sigma: float, alpha: float) -> np.ndarray:
    """L2 radius (n,) from one look at votes (n,) out of draws; 0 means that the classifier abstains."""
    return radius_of(lower_share(votes, draws, alpha), sigma)


def certify(cases: Cases, smoothing: Smoothing, radii: Sequence[float]) -> Certificate:
    """Certify, for each case, that its decision is not broken in a way that counts, or that it is.

    radii: in L2, what is asked about; that the vote has a majority is always asked. A case is looked at after ``looks``
    draws and leaves as soon as every radius is certified, or is out of reach by the upper limit of its probability or
    because not enough draws are left. Stopping is free to depend on the votes: the limits of all looks hold together with
    probability 1 - alpha (Bonferroni), so the largest of them counts. What is certified is chosen by ``selection`` draws
    of their own, as Cohen does. For two classes the sides are the classes; for more the vote is about being broken or not,
    so that it may be certified as broken without agreeing on a class. A NaN or infinite logit is a vote for neither side.

    Cost: selection + at most draws passes per case, no gradients. Raises ConfigError for a negative radius, and for cases
    with a ``confirm``: the votes are those of ``forward``, which must be the deployed pipeline itself.
    """
    if cases.confirm is not None:
        raise ConfigError("smoothing votes with `forward` alone: give it the deployed pipeline, and no `confirm`")
    if any(not 0 <= radius < math.inf for radius in radii):
        raise ConfigError(f"found the radii {list(radii)} for smoothing: they are finite and not negative")
    chosen = counted(cases, smoothing, "smoothing selection", 0, smoothing.selection)
    kept = chosen[:, 0] > chosen[:, 1]
    return voted(cases, kept, smoothing, (0.0, *radii), "smoothing votes")


def voted(cases: Cases, kept: np.ndarray, smoothing: Smoothing, radii: Sequence[float], purpose: str) -> Certificate:
    """The sequential vote on a side of each case that was chosen beforehand: kept (B,) bool, True that it is not broken.

    purpose: names the noise; it must be another one than that which the side was chosen with.
    """
    looks, count, needed = smoothing.looks, len(cases), ndtr(np.asarray(radii, dtype=np.float64) / smoothing.sigma)
    votes, drawn, low = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count)
    side = np.where(kept, 0, 1)
    active = np.arange(count)
    for first, last in itertools.pairwise((0, *looks)):
        rows = torch.from_numpy(active).to(cases.pixels.device)
        found = counted(cases.rows(rows), smoothing, purpose, first, last)
        votes[active] += found[np.arange(len(active)), side[active]]
        drawn[active] = last
        low[active] = np.maximum(low[active], lower_share(votes[active], last, smoothing.level))
        active = active[_undecided(votes[active], last, low[active], smoothing, needed)]
        if not len(active):
            break
    return Certificate(np.asarray(kept, dtype=bool), votes, drawn, low, radius_of(low, smoothing.sigma))


def _undecided(votes: np.ndarray, drawn: int, low: np.ndarray, smoothing: Smoothing, needed: np.ndarray) -> np.ndarray:
    """(n,) bool: some needed share (R,) is above the lower limit, and may still be reached."""
    high = 1 - lower_share(drawn - votes, drawn, smoothing.level)
    best = lower_share(votes + smoothing.draws - drawn, smoothing.draws, smoothing.level)
    reach = np.minimum(high, best)
    return np.asarray(((low[:, None] <= needed) & (needed < reach[:, None])).any(axis=1))


def counted(cases: Cases, smoothing: Smoothing, purpose: str, first: int, last: int) -> np.ndarray:
    """Votes (B, 2) of the draws first to last, without the last: not broken, broken; in batches of at most ``width``."""
    votes = torch.zeros(len(cases), 2, dtype=torch.int64)
    with torch.no_grad():
        for places, noise in _batches(cases, smoothing, purpose, first, last):
            rows = places.to(cases.pixels.device)
            logits = cases.forward(cases.pixels[rows] + smoothing.sigma * noise.to(cases.pixels.device))
            finite = torch.isfinite(logits).all(dim=1)
            broken = cases.goal.rows(rows).broken(logits)
            votes.index_add_(0, places, torch.stack([finite & ~broken, finite & broken], dim=1).long().cpu())
    return votes.numpy()


def _batches(
    cases: Cases, smoothing: Smoothing, purpose: str, first: int, last: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Places (n,) and standard noise (n, C, H, W), n at most ``width``, case after case."""
    places: list[torch.Tensor] = []
    noises: list[torch.Tensor] = []
    free = smoothing.width
    for place, key in enumerate(cases.keys):
        for drawn in _blocks(cases, purpose, key, first, last):
            rest = drawn
            while len(rest):
                taken, rest = rest[:free], rest[free:]
                places.append(torch.full((len(taken),), place))
                noises.append(taken)
                free -= len(taken)
                if free == 0:
                    yield torch.cat(places), torch.cat(noises)
                    places, noises, free = [], [], smoothing.width
    if places:
        yield torch.cat(places), torch.cat(noises)


def _blocks(cases: Cases, purpose: str, key: str, first: int, last: int) -> Iterator[torch.Tensor]:
    """Standard noise of a case's draws first to last, block by block; what is drawn depends on seed, purpose and key alone."""
    for block in range(first // _BLOCK, -(-last // _BLOCK)):
        generator = case_generator(case_seed(cases.seed, f"{purpose} {block}", key))
        drawn = torch.randn(_BLOCK, *cases.pixels.shape[1:], generator=generator)
        start = block * _BLOCK
        yield drawn[max(first - start, 0) : last - start]


class SmoothedBreak(NamedTuple):
    """images: (B, C, H, W), the smallest change found at which the smoothed classifier is shown to be broken, the clean
    image where none. size: (B,) float64 on the CPU, its L2 size, infinity where none. looks: (B,) images shown to the model.
    """

    images: torch.Tensor
    size: np.ndarray
    looks: np.ndarray


_FURTHER = (0.0, 0.2, 0.6)
"""How far beyond the smallest change that the search found, in sigmas, a break is tried to be shown, one after another."""
_ADJUST, _MEMORY, _REACH = 0.3, 0.75, 2.0
"""Share by which the radius grows or shrinks at first, less and less over the steps; how much of the earlier directions a step keeps;
how far beyond twice what is known the first radius may be, in sigmas: farther, slopes say little of where the boundary is."""


def smoothed_attack(
    cases: Cases, smoothing: Smoothing, known: np.ndarray, *, steps: int = 10, samples: int = 8
) -> SmoothedBreak:
    """Small L2 changes that break the smoothed classifier: upper bounds of what ``certify`` bounds from below.

    known: (B,) L2 radii below which no break is looked for, such as certified ones. Climbs the margin averaged over
    ``samples`` noise draws of each case (Salman 2019), on a sphere that shrinks where most samples are broken and grows where
    not (after Rony 2019); every step draws anew, since a change that is fitted to few draws does not hold for others. A found
    change counts only where fresh votes show, as in ``certify`` and with a chance of error of at most ``alpha`` for
    each case, that more than half of all noisy copies are broken there; it is enlarged a little where they do not. A size
    is an upper bound: smaller changes may exist.

    Cost: steps × samples passes forward and backward per case, and at most 3 × draws for the votes.
    """
    if steps < 2 or samples < 1:
        raise ConfigError(f"found {steps} steps and {samples} samples: at least 2 steps and 1 sample are needed")
    size = max(1, smoothing.width // samples)
    parts = torch.split(torch.arange(len(cases), device=cases.pixels.device), size)
    changes = [
        _searched(cases.rows(rows), smoothing, torch.from_numpy(known)[rows.cpu()], steps, samples) for rows in parts
    ]
    found = _shown(cases, smoothing, torch.cat(changes))
    return found._replace(looks=found.looks + steps * samples)


def _searched(cases: Cases, smoothing: Smoothing, known: torch.Tensor, steps: int, samples: int) -> torch.Tensor:
    """(B, C, H, W), the smallest change in the search that broke most samples; zero where none did."""
    low, high = cases.low - cases.pixels, cases.high - cases.pixels
    start = known.float().to(low.device).clamp(min=smoothing.sigma / 4)
    radius, change, direction = start, torch.zeros_like(low), torch.zeros_like(low)
    best, least = torch.zeros_like(low), torch.full_like(radius, torch.inf)
    for step in range(steps):
        margin, slope, share = _average(cases, change, _drawn(cases, smoothing, samples, step), smoothing.width)
        length, size = _length(slope), change.flatten(1).norm(dim=1)
        hit = share > 0.5
        better = hit & (size < least) & (size > 0)
        best, least = torch.where(_wide(better), change, best), torch.where(better, size, least)
        if step == 0:  # where the average would be broken if it were linear
            radius = torch.minimum(torch.maximum(-margin / length, start), 2 * start + _REACH * smoothing.sigma)
        else:
            factor = _ADJUST * (1 - step / steps)
            radius = torch.where(hit, radius * (1 - factor), radius * (1 + factor))
        direction = _MEMORY * direction + slope / _wide(length)
        moved = change + _wide(radius / _length(direction)) * direction
        change = balls.steepest(moved, low, high, radius, "l2")
    return best


def _average(
    cases: Cases, change: torch.Tensor, noise: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The margin (B,), its slope (B, C, H, W) and the share of broken decisions (B,), each averaged over noise (B, S, C, H, W)."""
    count, samples = noise.shape[:2]
    points = ((cases.pixels + change)[:, None] + noise).flatten(0, 1)
    places = torch.arange(count, device=points.device).repeat_interleave(samples)
    margins, slopes, broken = [], [], []
    for rows in torch.split(torch.arange(len(points), device=points.device), width):
        part = cases.rows(places[rows])
        seen = look(part, points[rows], "margin")
        margins.append(torch.nan_to_num(seen.loss, posinf=0.0, neginf=0.0))
        slopes.append(torch.zeros_like(points[rows]) if seen.gradient is None else torch.nan_to_num(seen.gradient))
        broken.append(part.goal.broken(seen.logits).float())
    shape = (count, samples)
    return (
        torch.cat(margins).view(shape).mean(dim=1),
        torch.cat(slopes).view(*shape, *change.shape[1:]).mean(dim=1),
        torch.cat(broken).view(shape).mean(dim=1),
    )


def _drawn(cases: Cases, smoothing: Smoothing, samples: int, step: int) -> torch.Tensor:
    """(B, S, C, H, W) noise for one step of the search, in pairs of opposite sign: their mean has no slope of its own."""
    shape = (math.ceil(samples / 2), *cases.pixels.shape[1:])
    half = torch.stack([torch.randn(shape, generator=each) for each in cases.generators(f"smoothing search {step}")])
    half = smoothing.sigma * half.to(cases.pixels.device)
    return torch.stack([half, -half], dim=2).flatten(1, 2)[:, :samples]


def _shown(cases: Cases, smoothing: Smoothing, changes: torch.Tensor) -> SmoothedBreak:
    """The changes (B, C, H, W), enlarged where needed, at which fresh votes show a break."""
    low, high = cases.low - cases.pixels, cases.high - cases.pixels
    strict = replace(smoothing, alpha=smoothing.alpha / len(_FURTHER))
    found = SmoothedBreak(cases.pixels.clone(), np.full(len(cases), np.inf), np.zeros(len(cases), np.int64))
    lengths = changes.flatten(1).norm(dim=1)
    for further in _FURTHER:
        open_ones = torch.nonzero((lengths > 0) & torch.from_numpy(np.isinf(found.size)).to(lengths.device)).squeeze(1)
        if not len(open_ones):
            break
        length = lengths[open_ones] + further * smoothing.sigma
        moved = balls.steepest(changes[open_ones], low[open_ones], high[open_ones], length, "l2")
        part = replace(cases.rows(open_ones), pixels=cases.pixels[open_ones] + moved)
        votes = voted(part, np.zeros(len(part), dtype=bool), strict, (0.0,), f"smoothing break {further}")
        places, shown = open_ones.cpu().numpy(), ~votes.abstained
        found.looks[places] += votes.draws
        found.size[places[shown]] = balls.size(part.pixels - cases.pixels[open_ones], "l2").numpy()[shown]
        held = torch.from_numpy(shown).to(lengths.device)
        found.images[open_ones[held]] = part.pixels[held]
    return found


def _wide(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


def _length(values: torch.Tensor) -> torch.Tensor:
    """(B,) Euclidean, never 0."""
    length: torch.Tensor = values.flatten(1).norm(dim=1).clamp(min=1e-30)
    return length
