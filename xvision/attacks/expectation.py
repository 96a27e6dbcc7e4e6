"""Models that draw at random: their mean answer to search along, and a majority of fresh draws to judge by.

Source: expectation over transformation, Athalye et al. 2018. Shapes: n images, C H W image, K logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from xvision.attacks.cases import Confirm, Forward
from xvision.attacks.goals import Goal
from xvision.errors import ConfigError

FEWEST = 20
"""Draws below which a majority says too little: a decision that is a coin toss gets 15 of 20 once in 48 times."""
JUDGED = 100
"""Draws by which a break is judged when the search is over: a decision broken in two of five draws passes once in 60 times."""


def expected(forward: Forward, draws: int, *, seed: int) -> Forward:
    """The mean logits of ``draws`` passes, each of which draws afresh, so that a slope is that of the mean.

    The passes are made one after another on the whole batch: a model that draws once per batch would give one draw where the
    rows were repeated. Memory and time of a gradient: ``draws`` times those of one pass.

    Draws come from torch's generators, which are as before afterwards, seeded by ``seed`` and the images shown: the same
    batch gives the same answer, and every step of a search has new draws. Which draw meets which row is up to the model, so a
    row's answer depends on the rows beside it, as it does without this function. A model that draws from elsewhere, NumPy
    or Python, is averaged too, but not repeatable.

    The mean margin is what an attack climbs; a case is broken where ``majority`` says so, never for one lucky draw. Raises
    ConfigError for fewer than 1 draw.
    """
    if draws < 1:
        raise ConfigError(f"found {draws} draws of a random model: at least 1 is needed")

    def mean(images: torch.Tensor) -> torch.Tensor:
        with _drawing(images, seed, "search"):
            return torch.stack([forward(images) for _ in range(draws)]).mean(dim=0)

    return mean


def majority(forward: Forward, draws: int, *, seed: int) -> Confirm:
    """Whether the decision is broken in more than half of ``draws`` passes, other draws than those of ``expected``.

    Tells (n, C, H, W) images and their goal to (n,) bool, the ``confirm`` of cases of a random model. Images are shown one
    by one, so that the answer for an image depends on it and ``seed`` alone; once more than half agree the rest is not drawn.

    A decision that is broken in just half of all draws passes two times in five, and a search asks at every step: what a search
    found is judged once more, with another seed and ``JUDGED`` draws (``Cases.recheck``). Raises ConfigError for fewer than 20 draws.
    """
    if draws < FEWEST:
        raise ConfigError(f"found {draws} draws to judge a random model by: at least {FEWEST} are needed")

    def confirm(images: torch.Tensor, goal: Goal) -> torch.Tensor:
        rows = [torch.tensor([row], device=images.device) for row in range(len(images))]
        held = [_mostly_broken(forward, images[row], goal.rows(row), draws, seed) for row in rows]
        return torch.tensor(held, dtype=torch.bool, device=images.device)

    return confirm


def _mostly_broken(forward: Forward, image: torch.Tensor, goal: Goal, draws: int, seed: int) -> bool:
    broken = 0
    with torch.no_grad(), _drawing(image, seed, "judge"):
        for drawn in range(1, draws + 1):
            broken += int(goal.broken(forward(image)))
            if 2 * broken > draws or 2 * (drawn - broken) >= draws:
                break
    return 2 * broken > draws


@contextmanager
def _drawing(images: torch.Tensor, seed: int, purpose: str) -> Iterator[None]:
    """torch's generators of the CPU and of CUDA, seeded by what is shown, and as they were afterwards."""
    flat = images.detach().flatten(1).float()
    places = torch.linspace(1.0, 2.0, flat.shape[1], device=flat.device)
    shown = torch.stack([flat.sum(dim=1), (flat * places).sum(dim=1)]).cpu().numpy().tobytes()
    digest = hashlib.blake2b(f"{seed}\x1f{purpose}\x1f".encode() + shown, digest_size=8).digest()
    with torch.random.fork_rng(range(torch.cuda.device_count()), device_type="cuda"):
        torch.manual_seed(int.from_bytes(digest, "big") >> 1)
        yield
