"""Where the read-out token takes its information from, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from xvision import images, text
from xvision.audit import Audit, mean_metric
from xvision.charts import Axis, Chart, Images, Lines, Series
from xvision.engine import Batch, Rows
from xvision.methods.localisation import mass_lift
from xvision.methods.rollout import corrected, image_mass, rollout, to_pixels, uninformative
from xvision.registry import analysis
from xvision.result import Case, Metric, Result, spoken

HeadFusion = Literal["mean", "max", "min"]


@analysis("Attention", pillar="Explanation", need="attention", passes="1 forward")
def attention(audit: Audit, *, cases: int = 256, residual: float = 0.5, head_fusion: HeadFusion = "mean") -> Result:
    """Through which patches does information reach the decision, beyond what the attention mask alone would give?

    Attention rollout (Abnar & Zuidema 2020) follows attention from the read-out token back to the patches, each layer mixed with
    the residual stream. In a causal model rollout favours the first tokens even when attention is uniform, so maps show the
    *ratio* to the rollout of uninformative attention under the same mask: 1 is no information. ``image_mass`` is the share of
    rollout on image tokens before any normalisation. ``information`` is the Kullback-Leibler divergence from the uninformative
    rollout in bits; 0 means the attention pattern says nothing. ``mass_lift`` compares the ratio map with reference masks.
    Attention says where information could flow, not that it decided anything.
    """
    positions = audit.sample(cases)
    known = {str(name) for name, has in audit.data.has_mask.items() if has}

    def measure(batch: Batch) -> Rows:
        rows, ratio = _rollout(batch, residual, head_fusion)
        lifts = np.full(len(batch.ids), np.nan)
        places = [place for place, name in enumerate(batch.ids) if name in known]
        if places:
            masks = audit.data.masks([batch.ids[place] for place in places], batch.model.input)
            lifts[places] = mass_lift(ratio[places], masks)
        return {**rows, "lift": lifts}

    options = {"residual": residual, "head_fusion": head_fusion}
    rows = audit.map(measure, positions=positions, options=options)
    metrics = (
        mean_metric(audit, "image_mass", rows["image_mass"], positions, where={"method": "rollout"}),
        mean_metric(audit, "information", rows["information"], positions, unit="bits", where={"method": "rollout"}),
        mean_metric(
            audit,
            "mass_lift",
            rows["lift"],
            positions,
            better="higher",
            where={"method": "corrected_rollout"},
            reason="no mask or box in the data",
        ),
    )
    stored = _cases(audit, residual, head_fusion, options)
    return Result(
        _summary(metrics, rows["layers"].shape[1], len(positions)), metrics, _charts(rows["layers"], stored), stored
    )


def _rollout(batch: Batch, residual: float, head_fusion: HeadFusion) -> tuple[Rows, np.ndarray]:
    """Per-case figures and the (B, H, W) ratio map."""
    with torch.no_grad():
        found = batch.model.attention(batch.pixels)
    tokens = found.tokens
    row = rollout(found.weights, tokens.readout, residual=residual, head_fusion=head_fusion)
    reference = uninformative(tokens.allowed, len(found.weights), tokens.readout, residual=residual)
    ratio = corrected(row, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(row > 0, row * np.log2(row / reference), 0.0).sum(axis=1)
    maps = to_pixels(ratio[:, tokens.image], tokens.boxes, *batch.pixels.shape[2:])
    readout = torch.from_numpy(np.asarray(tokens.readout, dtype=np.float32)).to(found.weights[0].device)
    heads = torch.stack([torch.einsum("t,batk->bk", readout, layer) / layer.shape[1] for layer in found.weights], 1)
    shares = heads.cpu().numpy()
    image, first = tokens.image, int(tokens.image[0])
    own = np.flatnonzero(np.asarray(tokens.readout) > 0)
    other = np.setdiff1d(own, image)
    layers = np.stack([shares[:, :, image].sum(-1), shares[:, :, first], shares[:, :, other].sum(-1)], axis=-1)
    return {"image_mass": image_mass(row, image), "information": information, "layers": layers}, maps


def _cases(audit: Audit, residual: float, head_fusion: HeadFusion, options: Mapping[str, object]) -> tuple[Case, ...]:
    def measure(batch: Batch) -> Rows:
        return {"map": _rollout(batch, residual, head_fusion)[1]}

    maps = audit.map(measure, positions=audit.showcase, options=options)["map"]
    stored = []
    for position, pixels, values in zip(audit.showcase, audit.pixels(audit.showcase), maps, strict=True):
        excess = np.maximum(values - 1.0, 0.0)
        pictures = {
            "image": images.photograph(pixels),
            "corrected rollout": images.overlay(pixels, excess, signed=False),
        }
        shown = {key: images.enlarged(picture) for key, picture in pictures.items()}
        stored.append(Case(str(audit.ids[position]), audit.facts(position), shown, {"corrected rollout": values}))
    return tuple(stored)


def _charts(layers: np.ndarray, stored: tuple[Case, ...]) -> tuple[Chart, ...]:
    depth = tuple(float(layer + 1) for layer in range(layers.shape[1]))
    means = layers.mean(axis=0)
    names = ("all image tokens", "first image token (sink)", "read-out token itself")
    lines = Lines(
        title="What the read-out token attends to, by layer",
        alt="In the last layer, "
        + ", ".join(f"{means[-1, place]:.3f} on {name}" for place, name in enumerate(names))
        + ".",
        x=Axis("Layer", ticks=tuple((value, f"{value:.0f}") for value in depth)),
        y=Axis("Share of attention", low=0, high=1),
        series=tuple(Series(name, depth, tuple(map(float, means[:, place]))) for place, name in enumerate(names)),
    )
    grid = Images(
        title="Rollout beyond the uninformative reference, selected cases",
        alt="One row per case: the image, and where rollout exceeds what the attention mask alone would give.",
        cases=tuple(case.id for case in stored),
        pictures=("image", "corrected rollout"),
    )
    return (lines, grid) if stored else (lines,)


def _summary(metrics: tuple[Metric, ...], layers: int, cases: int) -> str:
    return (
        f"Over {text.plural(layers, 'layer')} and {text.plural(cases, 'image')}, {spoken(metrics[0])} of rollout falls on image tokens; "
        f"the pattern carries {spoken(metrics[1])} beyond uninformative attention."
    )
