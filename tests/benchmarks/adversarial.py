"""Attacks against their peers and against models that hide: `python -m tests.benchmarks.adversarial [--quick] --json OUT`.

torchattacks and ART come with ``pip install --no-deps torchattacks adversarial-robustness-toolbox six multiprocess dill`` (the first pins a
release of requests that nothing else can use); without one, its rows are left out and named.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tests.benchmarks import adversarial_models as models
from tests.benchmarks.adversarial_peers import Subject, apgd_rows, curve_rows, missing, square_rows
from tests.benchmarks.adversarial_whole import whole_rows
from tests.benchmarks.harness import Row, main, row
from xvision.attacks.cascade import cascade, clean_of
from xvision.attacks.cases import cases_of
from xvision.attacks.catalogue import ATTACKS, Effort, named
from xvision.attacks.checks import examine, verdict
from xvision.attacks.goals import class_goal
from xvision.attacks.transfer import distilled
from xvision.attacks.validity import evidence_of, probed, twin_of
from xvision.methods.decision import Decision

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "foolbox", "torchattacks", "adversarial-robustness-toolbox")
_EPSILONS = tuple(levels / 255 for levels in (1, 2, 4, 8))
_EFFORT = Effort(queries=500)
_EXAMINED = 40


def measure(quick: bool) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        yield from _peers(folder, quick)
        yield from _masked(folder, seeds=1 if quick else 5)
    if not quick:
        yield from whole_rows(1000)


def _peers(folder: Path, quick: bool) -> Iterator[Row]:
    pairs, count = (1, 60) if quick else (5, 200)
    small = models.digits(28)[1]
    plain = Subject("digits CNN", models.digits_cnn(folder), small.pixels[:count], small.labels[:count])
    hard = Subject("hardened digits CNN", models.hardened_digits_cnn(folder), *plain[2:])
    yield from apgd_rows(plain, 24 / 255, wanted=3, slow=False, pairs=pairs)
    yield from apgd_rows(
        hard, 24 / 255, wanted=None, slow=False, pairs=pairs
    )  # what it was trained against: most stand
    yield from apgd_rows(hard, 48 / 255, wanted=1.3, slow=False, pairs=pairs)
    yield from curve_rows(plain, tuple(levels / 255 for levels in (2, 4, 8, 12, 16, 20, 24, 32, 40, 48)), pairs)
    yield from square_rows(plain, 24 / 255)
    if not quick:
        large = models.digits(96)[1]
        slow = Subject("digits transformer", models.digits_transformer(folder), large.pixels[:64], large.labels[:64])
        yield from apgd_rows(slow, 8 / 255, wanted=3, slow=True, pairs=5)


def _masked(folder: Path, *, seeds: int) -> Iterator[Row]:
    """Every twin that misleads gradients, and the two honest networks, over seeds of images and attacks."""
    weak = models.lesion_cnn(folder)
    twins: dict[str, nn.Module] = dict(models.masked(weak))
    honest = {"plain": weak, "hardened": models.hardened_lesion_cnn(folder)}
    for name, network in (twins | honest).items():
        states = [_examined(network, seed) for seed in range(seeds)]
        doubted = sum(state != "supported" for state, _ in states)
        flags = sorted({flag for _, flags in states for flag in flags})
        hidden = name in twins and name != "one logit"
        yield row(
            f"lesion CNN, {name}: doubted", f"{doubted} of {seeds}", f"{seeds if hidden else 0} of {seeds}",
            doubted == (seeds if hidden else 0), f"flags: {', '.join(flags) or 'none'}",
        )  # fmt: skip


def _examined(network: nn.Module, seed: int) -> tuple[str, tuple[str, ...]]:
    """The verdict at the budget where nearest to half stand, on 40 right decisions."""
    torch.manual_seed(seed)
    images = models.lesions(120, seed=1000 + seed)
    goal = class_goal(images.labels, 2, Decision(1, 0.5, True))
    every = cases_of(network, images.pixels, goal, keys=[str(place) for place in range(120)], seed=seed)
    rows = torch.nonzero(~every.broken(images.pixels)).squeeze(1)[:_EXAMINED]
    cases = every.rows(rows)
    clean = clean_of(every, width=64, gradients=True)
    student = distilled(images.pixels, goal.scores(clean.logits), goal).forward
    part = clean_of(cases, width=64, gradients=True, student=student)
    first = cascade(cases, "linf", _EPSILONS, named(("single_step", "pgd")), _EFFORT, part)
    standing = [float((first.smallest > epsilon).mean()) for epsilon in _EPSILONS]
    epsilon = min(zip(standing, _EPSILONS, strict=True), key=lambda pair: abs(pair[0] - 0.5))[1]
    references = torch.cat([images.pixels[images.labels == label][:4] for label in (0, 1)])
    found = probed(cases, "linf", epsilon, _EPSILONS, _EFFORT, part, references)
    twin = twin_of(ATTACKS["apgd_margin"], _EFFORT, "linf", (1, 48, 48), seed=seed, device=torch.device("cpu"))
    said = verdict(examine(evidence_of(found, ways=1, twin=twin)))
    return said.state, said.flags


def left_out(quick: bool) -> list[str]:
    """Peers that are not installed, with what to install, and what takes longer than a minute."""
    peers = [
        f"rows against it: {reason}"
        for package in ("torchattacks", "adversarial-robustness-toolbox")
        if (reason := missing(package))
    ]
    return [*peers, *(["the transformer", "seeds 1 to 4", "1,000 phantoms"] if quick else [])]


if __name__ == "__main__":
    sys.exit(main("adversarial", measure, left_out, PACKAGES))
