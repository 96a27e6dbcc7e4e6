"""Attacks beside those of torchattacks, ART and foolbox: same model, images, budgets and steps; verdicts per case, passes, then time."""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from statistics import median
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from tests.benchmarks.harness import Row, row
from xvision.attacks.cascade import cascade, clean_of
from xvision.attacks.cases import cases_of
from xvision.attacks.catalogue import Effort, named
from xvision.attacks.goals import class_goal
from xvision.attacks.search import pursue
from xvision.attacks.square import Square
from xvision.methods.decision import Decision
from xvision.methods.intervals import clopper_pearson

EXTRA = "pip install --no-deps torchattacks adversarial-robustness-toolbox six multiprocess dill"
STEPS = 100
_MODULES = {"torchattacks": "torchattacks", "adversarial-robustness-toolbox": "art"}


def missing(package: str) -> str | None:
    """None where the peer is installed, else what to install."""
    return None if importlib.util.find_spec(_MODULES[package]) else f"{package} is not installed: {EXTRA}"


class Subject(NamedTuple):
    """A trained model, images (N, C, H, W) in [0, 1] and labels (N,), and how it is called."""

    name: str
    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor


class Counted(nn.Module):
    """The model, with the images that pass forward through it and, by a hook on its output, backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_passes = self.backward_passes = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.forward_passes += len(pixels)
        logits: torch.Tensor = self.model(pixels)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, gradient: torch.Tensor) -> None:
        self.backward_passes += len(gradient)

    @property
    def passes(self) -> int:
        return self.forward_passes + self.backward_passes


class Attempted(NamedTuple):
    """broken: (N,) or (N, E) bool. passes: images forward plus backward. seconds: CPU time."""

    broken: np.ndarray
    passes: int
    seconds: float


def run(subject: Subject, attack: Callable[[nn.Module], np.ndarray]) -> Attempted:
    """One attack on a fresh counter."""
    counted = Counted(subject.model).eval()
    started = process_time()
    broken = attack(counted)
    return Attempted(broken, counted.passes, process_time() - started)


def own(
    subject: Subject, names: Sequence[str], epsilons: Sequence[float], effort: Effort
) -> Callable[[nn.Module], np.ndarray]:
    """(N, E) broken, clean errors included, by a cascade of these attacks in L∞."""

    def attack(model: nn.Module) -> np.ndarray:
        goal = class_goal(subject.labels, _classes(subject), Decision())
        keys = [f"case {place}" for place in range(len(subject.images))]
        cases = cases_of(model, subject.images, goal, keys=keys, seed=0)
        clean = clean_of(cases, width=effort.width, gradients=True)
        found = cascade(cases, "linf", epsilons, named(names), effort, clean)
        within = found.smallest[:, None] <= np.asarray(epsilons)[None, :] + 1e-6
        return np.asarray(within | found.clean_broken[:, None])

    return attack


def _classes(subject: Subject) -> int:
    with torch.no_grad():
        return int(subject.model(subject.images[:1]).shape[1])


def torchattacks_apgd(subject: Subject, epsilon: float) -> Callable[[nn.Module], np.ndarray]:
    def attack(model: nn.Module) -> np.ndarray:
        import torchattacks

        apgd = torchattacks.APGD(model, norm="Linf", eps=epsilon, steps=STEPS, loss="ce", n_restarts=1, seed=0)
        found = [apgd(*part) for part in _parts(subject)]
        return _wrong(subject, torch.cat(found))

    return attack


def art_apgd(subject: Subject, epsilon: float) -> Callable[[nn.Module], np.ndarray]:
    def attack(model: nn.Module) -> np.ndarray:
        from art.attacks.evasion import AutoProjectedGradientDescent
        from art.estimators.classification import PyTorchClassifier

        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            wrapped = PyTorchClassifier(
                model, nn.CrossEntropyLoss(), tuple(subject.images.shape[1:]), _classes(subject), clip_values=(0.0, 1.0), device_type="cpu",
            )  # fmt: skip
            apgd = AutoProjectedGradientDescent(
                wrapped, norm=np.inf, eps=epsilon, eps_step=2 * epsilon, max_iter=STEPS, nb_random_init=1, batch_size=64,
                loss_type="cross_entropy", verbose=False,
            )  # fmt: skip
            found = apgd.generate(subject.images.numpy(), np.eye(_classes(subject))[subject.labels.numpy()])
        return _wrong(subject, torch.from_numpy(found))

    return attack


def foolbox_curve(subject: Subject, epsilons: Sequence[float], steps: int) -> Callable[[nn.Module], np.ndarray]:
    """(N, E) broken by foolbox's PGD run at every epsilon, with steps that cross the ball, from the image itself."""

    def attack(model: nn.Module) -> np.ndarray:
        import foolbox

        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        pgd = foolbox.attacks.LinfPGD(steps=steps, rel_stepsize=2.5 / steps, random_start=False)
        found = [pgd(wrapped, *part, epsilons=list(epsilons))[2].numpy() for part in _parts(subject)]
        return np.concatenate(found, axis=1).T

    return attack


def _parts(subject: Subject) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    yield from zip(subject.images.split(64), subject.labels.split(64), strict=True)


def _wrong(subject: Subject, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return np.asarray((subject.model(images).argmax(dim=1) != subject.labels).numpy())[:, None]


_PEERS = {"torchattacks": torchattacks_apgd, "adversarial-robustness-toolbox": art_apgd}


def apgd_rows(subject: Subject, epsilon: float, *, wanted: float | None, slow: bool, pairs: int) -> Iterator[Row]:
    """APGD on the cross-entropy, 100 looks, one start, beside the same attack of a peer. slow: a pass costs 10 ms or more."""
    effort = Effort(steps=STEPS, width=64)
    for package, build in _PEERS.items():
        if missing(package):
            continue
        mine, theirs = _paired(subject, own(subject, ("apgd_ce",), (epsilon,), effort), build(subject, epsilon), pairs)
        what = f"APGD-CE, {subject.name} at {255 * epsilon:.3g}/255, beside {package}"
        left, right = 1 - mine[0].broken.mean(), 1 - theirs[0].broken.mean()
        low, high = clopper_pearson(float((~theirs[0].broken).sum()), len(theirs[0].broken))
        differ = int((mine[0].broken != theirs[0].broken).sum())
        yield row(
            f"{what}: robust accuracy", f"{left:.3f} against {right:.3f}", f"≤ {high:.3f}", left <= high,
            f"{len(subject.images)} cases, {differ} verdicts differ; the peer's interval {low:.3f} to {high:.3f}",
        )  # fmt: skip
        ratio = theirs[0].passes / mine[0].passes
        yield row(
            f"{what}: passes",
            round(ratio, 2),
            f"≥ {wanted}" if wanted else "none",
            ratio >= (wanted or 0.0),
            f"{theirs[0].passes} against {mine[0].passes}",
        )
        time = median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True))
        yield row(
            f"{what}: time", round(time, 2), "≥ 1" if slow else "none", time >= 1 or not slow,
            f"median of {pairs} pairs, {median(each.seconds for each in mine):.2f} s",
        )  # fmt: skip


def curve_rows(subject: Subject, epsilons: Sequence[float], pairs: int) -> Iterator[Row]:
    """A curve of ten budgets, 40 steps each, beside foolbox, which runs every budget from the beginning.

    Own: PGD on the margin and, where it fails, APGD on the cross-entropy that foolbox's PGD climbs.
    """
    steps = 40
    mine, theirs = _paired(
        subject,
        own(subject, ("pgd", "apgd_ce"), epsilons, Effort(pgd_steps=steps + 1, steps=steps + 1, width=64)),
        foolbox_curve(subject, epsilons, steps),
        pairs,
    )
    what = f"PGD curve of {len(epsilons)} budgets, {subject.name}, beside foolbox"
    left, right = (~mine[0].broken).mean(axis=0), (~theirs[0].broken).mean(axis=0)
    yield row(
        f"{what}: largest robust accuracy above its own", round(float((left - right).max()), 4), "≤ 0", bool((left <= right).all()),
        f"own {np.round(left, 3).tolist()}, foolbox {np.round(right, 3).tolist()}",
    )  # fmt: skip
    ratio = theirs[0].passes / mine[0].passes
    yield row(f"{what}: passes", round(ratio, 2), "≥ 2", ratio >= 2, f"{theirs[0].passes} against {mine[0].passes}")
    time = median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True))
    yield row(f"{what}: time", round(time, 2), "≥ 2", time >= 2, f"median of {pairs} pairs")


def square_rows(subject: Subject, epsilon: float, queries: int = 1000) -> Iterator[Row]:
    """Square with broken rows leaving the batch, and the same search that goes on to the last query for all."""
    counted = Counted(subject.model).eval()
    goal = class_goal(subject.labels, _classes(subject), Decision())
    keys = [f"case {place}" for place in range(len(subject.images))]
    cases = cases_of(counted, subject.images, goal, keys=keys, seed=0)
    right = torch.nonzero(~cases.broken(subject.images)).squeeze(1)
    counted.forward_passes = 0
    from xvision.attacks.cases import budget_of

    part = cases.rows(right)
    found = pursue(part, budget_of("linf", [epsilon], part.pixels), Square(steps=queries), width=64)
    hits = int(torch.isfinite(found.size).sum())
    per_success, whole = counted.forward_passes / max(hits, 1), queries * len(right) / max(hits, 1)
    yield row(
        f"Square, {queries} queries, {subject.name} at {255 * epsilon:.3g}/255: queries per success", round(whole / per_success, 2), "≥ 2",
        whole >= 2 * per_success, f"{per_success:.0f} against {whole:.0f}; {hits} of {len(right)} broken",
    )  # fmt: skip


def _paired(
    subject: Subject, first: Callable[[nn.Module], Any], second: Callable[[nn.Module], Any], pairs: int
) -> tuple[list[Attempted], list[Attempted]]:
    mine, theirs = [], []
    for _ in range(pairs):
        mine.append(run(subject, first))
        theirs.append(run(subject, second))
    return mine, theirs
