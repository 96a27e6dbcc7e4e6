"""Everything that is measured about the maps of one batch, so that each pass through the model serves every figure.

The maps are those of each case's decision: many methods show what speaks for a class and nothing of what speaks against.

Per-case rows are named ``figure|method`` or ``figure|method|operator``. A figure that is undefined for a case is NaN.
Shapes: B batch, C H W image, P units, S copies or masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from xvision.engine import Batch, Rows
from xvision.errors import ConfigError
from xvision.explain.maps import Explainer, explained, likeness, where_defined
from xvision.explain.method import Maps
from xvision.explain.token_methods import needs_tokens
from xvision.methods.complexity import entropy, gini
from xvision.methods.faithfulness import (
    Curves,
    aopc,
    as_probability,
    curves_of,
    deletion_auc,
    faithfulness_correlation,
    infidelity,
    insertion_auc,
    srg,
)
from xvision.methods.map_stability import (
    average_sensitivity,
    changes_of,
    max_sensitivity,
    noise_of,
    relative_input_stability,
    relative_output_stability,
)
from xvision.methods.perturbation import bernoulli_bank
from xvision.methods.randomisation import bottom_up, efficient_mprt, structural_similarity
from xvision.methods.randomness import case_generator, case_seed
from xvision.methods.removal import pixel_evaluator
from xvision.methods.token_attribution import irremovable, token_evaluator
from xvision.methods.units import Evaluate

Removed = Literal["mean", "blur", "black", "data mean", "road", "tokens"]
"""What comes in the place of a removed unit: a fill of the pixels, or nothing where the model can do without the token."""


@dataclass(frozen=True)
class Probes:
    """What is done to each image.

    removals: what comes in the place of what is removed. steps: of each removal curve. bank: random masks for scoring, drawn apart
    from those that methods are fitted on. copies, radius: noisy copies, each pixel moved by at most ``radius``. shuffles:
    steps in which the weights are shuffled, from the input up; the last is the whole network.
    """

    removals: tuple[Removed, ...]
    steps: int
    bank: int
    copies: int
    radius: float
    shuffles: int

    def __post_init__(self) -> None:
        for name, least in (("steps", 2), ("bank", 2), ("copies", 1), ("shuffles", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"found {name} = {getattr(self, name)}: it must be at least {least}")
        if not self.removals or not 0.0 < self.radius <= 1.0:
            raise ConfigError(
                f"found removals {self.removals} and radius = {self.radius}: one at least, and above 0 up to 1"
            )


def measured(explainer: Explainer, batch: Batch, probes: Probes) -> Rows:
    """The per-case rows of a batch."""
    maps = explainer.maps(batch)
    values = {name: explainer.units.sums(found.values) for name, found in maps.items()}
    broken = {name: ~np.isfinite(found).all(axis=1) for name, found in values.items()}
    ranked = {name: np.where(broken[name][:, None], 0.0, found) for name, found in values.items()}
    rows = _faithful(explainer, batch, ranked, probes)
    rows |= _concentrated(ranked)
    rows |= _stable(explainer, batch, values, probes)
    rows |= _randomised(explainer, batch, maps, probes)
    rows |= _told_apart(explainer, batch, maps)
    for key, found in rows.items():
        found[broken[key.split("|")[1]]] = np.nan
    return rows


def removable(model: Any) -> str | None:
    """Why no token of a model can be left out, or None where they can."""
    return needs_tokens(model) or irremovable(model.token_map)


def _evaluator(explainer: Explainer, batch: Batch, operator: Removed) -> Evaluate:
    asked = explainer.asked(batch)
    if operator == "tokens":
        return token_evaluator(asked.model, asked.pixels, asked.targets, batch=asked.settings.batch)
    references = explainer.references.to(batch.pixels.device) if operator == "data mean" else None
    return pixel_evaluator(
        asked.score,
        asked.pixels,
        asked.targets,
        asked.units,
        operator,
        seeds=asked.seeds,
        batch=asked.settings.batch,
        references=references,
    )


def _faithful(explainer: Explainer, batch: Batch, values: Mapping[str, np.ndarray], probes: Probes) -> Rows:
    """Removal curves of every method under every operator, and the fit to random removals."""
    rows: Rows = {}
    for operator in probes.removals:
        evaluate = _evaluator(explainer, batch, operator)
        found = curves_of(evaluate, values, steps=probes.steps)
        for name, curves in found.items():
            rows |= _from_curves(curves, f"{name}|{operator}")
        if operator == probes.removals[0]:
            seeds = [case_seed(explainer.audit.seed, "scoring", case) for case in batch.ids]
            drawn = bernoulli_bank(evaluate, seeds, explainer.units, masks=probes.bank, purpose="scoring")
            for name, each in values.items():
                rows[f"faithfulness_correlation|{name}"] = faithfulness_correlation(each, drawn.removed, drawn.drops)
                rows[f"infidelity|{name}"] = infidelity(each, drawn.removed, drawn.drops, normalised=True)
    return rows


def _from_curves(curves: Curves, key: str) -> Rows:
    probability = as_probability(curves)
    return {
        f"srg|{key}": srg(probability),
        f"srg_log_odds|{key}": srg(curves),
        f"deletion_auc|{key}": deletion_auc(probability),
        f"insertion_auc|{key}": insertion_auc(probability),
        f"aopc|{key}": aopc(probability),
        f"most_first|{key}": probability.most_first,
        f"least_first|{key}": probability.least_first,
    }


def _concentrated(values: Mapping[str, np.ndarray]) -> Rows:
    found: Rows = {}
    for name, each in values.items():
        found[f"gini|{name}"] = gini(np.abs(each))
        found[f"entropy|{name}"] = entropy(np.abs(each))
    return found


def _stable(explainer: Explainer, batch: Batch, values: Mapping[str, np.ndarray], probes: Probes) -> Rows:
    """Change of the maps under noise too small to be seen; copies that are decided otherwise are left out."""
    noisy = torch.stack([_noisy(batch, explainer, copy, probes.radius) for copy in range(probes.copies)], dim=1)
    flat = noisy.flatten(0, 1)
    with torch.inference_mode():
        moved = batch.model.logits(flat).double().cpu().numpy().reshape(len(batch.ids), probes.copies, -1)
    pixels, copies = batch.pixels.cpu().numpy(), noisy.cpu().numpy()
    noise = noise_of(pixels, copies, explainer.logits(batch), moved, decision=explainer.audit.decision)
    rows: Rows = {}
    for method in explainer.everything:
        again = [
            explainer.units.sums(explained(method, explainer.asked(batch, pixels=noisy[:, copy])).values)
            for copy in range(probes.copies)
        ]
        changes = changes_of(np.abs(values[method.name]), np.abs(np.stack(again, axis=1)))
        for figure in _STABILITY:
            rows[f"{figure.__name__}|{method.name}"] = figure(changes, noise)
    return rows


_STABILITY = (max_sensitivity, average_sensitivity, relative_input_stability, relative_output_stability)


def _noisy(batch: Batch, explainer: Explainer, copy: int, radius: float) -> torch.Tensor:
    noise = [
        torch.rand(image.shape, generator=case_generator(case_seed(explainer.audit.seed, f"noise {copy}", name)))
        for name, image in zip(batch.ids, batch.pixels, strict=True)
    ]
    moved = batch.pixels + radius * (2 * torch.stack(noise).to(batch.pixels.device) - 1)
    return moved.clamp(0.0, 1.0)


def _randomised(explainer: Explainer, batch: Batch, maps: Mapping[str, Maps], probes: Probes) -> Rows:
    """Likeness to the maps of the same network with ever more of its weights shuffled, from the input up."""
    parts = getattr(batch.model, "parts", None)
    if parts is None:
        return {}
    steps = [list(parts[: -(-len(parts) * step // probes.shuffles)]) for step in range(1, probes.shuffles + 1)]
    found: dict[str, list[np.ndarray]] = {method.name: [] for method in explainer.everything}
    rows: Rows = {}
    for step, chosen in enumerate(steps, start=1):
        twin = batch.model.randomised(explainer.audit.seed, chosen)
        for method in explainer.everything:
            name, before = method.name, maps[method.name].values
            after = explained(method, explainer.asked(batch, model=twin)).values
            found[name].append(likeness(explainer.units, before, after))
            if step == len(steps):
                rows[f"randomisation_similarity|{name}"] = found[name][-1]
                rows[f"randomisation_ssim|{name}"] = _paired(structural_similarity, before, after)
                rows[f"entropy_rise|{name}"] = _paired(efficient_mprt, before, after)
    for name, steps_taken in found.items():
        rows[f"bottom_up_similarity|{name}"] = bottom_up(np.stack(steps_taken, axis=1))
    return rows


def _told_apart(explainer: Explainer, batch: Batch, maps: Mapping[str, Maps]) -> Rows:
    """Likeness to the map of the least likely class; nothing with two classes, where it is the same map turned.

    Not of the second in line: log-odds set the first against it, so the maps of these two are nearly each other's reverse.
    """
    if len(explainer.audit.classes) == 2:
        return {}
    last = torch.from_numpy(explainer.logits(batch).argmin(axis=1)).to(batch.pixels.device)
    other = replace(explainer.asked(batch), targets=last)
    return {
        f"random_logit|{method.name}": likeness(
            explainer.units, maps[method.name].values, explained(method, other).values
        )
        for method in explainer.everything
    }


def _paired(
    figure: Callable[[np.ndarray, np.ndarray], np.ndarray], before: np.ndarray, after: np.ndarray
) -> np.ndarray:
    return where_defined(before + after, lambda at: figure(before[at], after[at]))
