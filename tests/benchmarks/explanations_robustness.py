"""Four figures of robustness from one bank of noisy copies, against Quantus, which explains the copies anew for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.benchmarks.explanations_models import bert, images
from tests.benchmarks.explanations_peers import (
    Counted,
    compared,
    open_quantus,
    paired,
    relative,
    without_warnings,
)
from tests.benchmarks.explanations_sharing import QUIET
from tests.benchmarks.harness import Row
from xvision.methods import map_stability
from xvision.methods.attribution import saliency
from xvision.methods.target import score_of
from xvision.models.metered import Meter, MeteredClassifier

IMAGES, COPIES, SIDE, AT_ONCE = 4, 20, 112, 28
FIGURES = ("max sensitivity", "average sensitivity", "relative input stability", "relative output stability")
FLOOR = 1e-12
"""As good as none, which is the peer's definition: this library's own keeps the faintest pixels from deciding alone."""


def robustness(pairs: int) -> Iterator[Row]:
    """Maximal and average sensitivity, relative input and output stability of the gradient, the same noise for both."""
    model, shown, noise = bert(SIDE), *drawn_images()
    network, meter = Counted(model.logits), Meter()
    own, peer = partial(own_figures, model, shown, noise), partial(peer_figures, network, shown, noise)
    own_figures(MeteredClassifier(model, meter), shown, noise)
    forward, backward = network.counts(peer)
    passes = f"{meter.forward} forward + {meter.backward} backward, peer {forward} + {backward}"
    yield from compared(
        "Robustness family, Quantus", paired(own, peer, pairs), 8, max(map(relative, own(), peer())), 1e-5, passes,
        f"{', '.join(FIGURES)} of the gradient: {IMAGES} images, {COPIES} copies each, BERT body 4 × 128 of 49 tokens; the largest "
        "difference is a share of the largest value of its figure",
    )  # fmt: skip


def drawn_images() -> tuple[torch.Tensor, np.ndarray]:
    """Images (B, C, H, W) and small noise (S, B, C, H, W) for copies of them."""
    shown = 0.1 + 0.8 * images(IMAGES, 1, SIDE)
    noise = 0.02 * np.random.default_rng(0).uniform(-1, 1, (COPIES, *shown.shape)).astype(np.float32)
    return shown, noise


def own_figures(model: Any, shown: torch.Tensor, noise: np.ndarray) -> np.ndarray:
    """One pass forward and back for each image and copy; the logits of that very pass say what was decided."""
    copies = torch.from_numpy((shown.numpy() + noise).swapaxes(0, 1).reshape(-1, *shown.shape[1:]))
    answers: list[torch.Tensor] = []

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        answers.append(model.logits(pixels))
        return answers[-1]

    parts = torch.cat((shown, copies)).split(AT_ONCE)
    maps = np.concatenate([saliency(logits, part, torch.ones(len(part), dtype=torch.int64)).maps for part in parts])
    decided, several = torch.cat(answers).detach().numpy(), (IMAGES, COPIES)
    bank = map_stability.noise_of(
        shown.numpy(), copies.numpy().reshape(*several, *shown.shape[1:]), decided[:IMAGES],
        decided[IMAGES:].reshape(*several, -1), floor=FLOOR,
    )  # fmt: skip
    moved = map_stability.changes_of(maps[:IMAGES], maps[IMAGES:].reshape(*several, *maps.shape[1:]), floor=FLOOR)
    figures = (
        map_stability.max_sensitivity, map_stability.average_sensitivity, map_stability.relative_input_stability,
        map_stability.relative_output_stability,
    )  # fmt: skip
    return np.stack([figure(moved, bank) for figure in figures])


def peer_figures(network: nn.Module, shown: torch.Tensor, noise: np.ndarray) -> np.ndarray:
    quantus = open_quantus()
    kinds = (
        quantus.MaxSensitivity, quantus.AvgSensitivity, quantus.RelativeInputStability, quantus.RelativeOutputStability,
    )  # fmt: skip
    found = []
    for kind in kinds:
        metric = kind(nr_samples=COPIES, perturb_func=drawn(noise), **QUIET)
        with without_warnings():
            found.append(
                metric(
                    model=network, x_batch=shown.numpy(), y_batch=np.ones(IMAGES, dtype=int), a_batch=None,
                    explain_func=gradient, channel_first=True, softmax=False,
                )
            )  # fmt: skip
    return np.array(found)


def drawn(noise: np.ndarray) -> Callable[..., np.ndarray]:
    """The given noise (S, B, C, H, W) copy by copy, as a perturbation for Quantus."""
    left = iter(noise.reshape(len(noise), noise.shape[1], -1))
    return lambda arr, **_: arr + next(left)


def gradient(model: nn.Module, inputs: Any, targets: Any, **_: Mapping[str, Any]) -> np.ndarray:
    """Strength of the gradient of the log-odds: one pass forward and one back, the least that Quantus can be given."""
    shown = torch.as_tensor(inputs, dtype=torch.float32).requires_grad_()
    score = score_of(model)(shown, torch.as_tensor(targets))
    return torch.autograd.grad(score.sum(), shown)[0].abs().numpy()
