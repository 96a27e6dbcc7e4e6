"""Where the read-out token takes its information from, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from xvision import text
from xvision.audit import Audit, mean_estimate, mean_metric
from xvision.charts import Axis, Chart, HeatMap, Lines, Series
from xvision.engine import Batch, Rows
from xvision.explain.maps import prepared
from xvision.explain.method import Settings
from xvision.explain.pictures import side_by_side
from xvision.methods.attention_maps import raw_attention
from xvision.methods.localisation import mass_lift
from xvision.methods.rollout import corrected, image_mass, rollout, to_pixels, uninformative
from xvision.models.protocols import Attention, TokenMap
from xvision.registry import analysis
from xvision.result import Metric, Result, spoken

HeadFusion = Literal["mean", "max", "min"]
FIRST = "first token"
_KINDS = ("image", "cls", "register", "text", "virtual", "readout", FIRST)
"""Of tokens, by their names in a token map; the first token is also of one of the other kinds."""
_SHOWN = ("corrected_rollout", "raw_attention")
_NO_SHARE = "in every case a layer's heads have no token in common"
_MUCH = 0.2
"""Share of attention on class and register tokens above which a reader is told what that means for the maps."""


@analysis("Attention", pillar="Explanation", need="attention", passes="1 forward")
def attention(audit: Audit, *, cases: int = 256, residual: float = 0.5, head_fusion: HeadFusion = "mean") -> Result:
    """Through which patches does information reach the decision, beyond what the attention mask alone would give?

    Attention rollout (Abnar & Zuidema 2020) follows attention from the read-out token back to the patches, each layer mixed with
    the residual stream. In a causal model rollout favours the first tokens even when attention is uniform, so maps show the
    *ratio* to the rollout of uninformative attention under the same mask: 1 is no information. ``image_mass`` is the share of
    rollout on image tokens before any normalisation, ``rollout_share`` that on the other kinds of tokens. ``attention_share``
    is what the read-out token gives to each kind, heads joined by ``head_fusion``, averaged over layers. The first token often
    takes what attention has to spare (a sink); class and register tokens gather from the whole image, so a map does not show where
    that came from. ``information`` is the Kullback-Leibler divergence from the uninformative rollout in bits; 0 means the
    attention pattern says nothing. ``mass_lift`` compares the ratio map with reference masks. Attention says where information
    could flow, not that it decided anything.
    """
    positions = audit.sample(cases)
    known = {str(name) for name, has in audit.data.has_mask.items() if has}

    def measure(batch: Batch) -> Rows:
        with torch.no_grad():
            found = batch.model.attention(batch.pixels)
        rows, ratio = _rollout(found, residual, head_fusion)
        maps = to_pixels(ratio, found.tokens.boxes, *batch.pixels.shape[2:])
        lifts = np.full(len(batch.ids), np.nan)
        places = [place for place, name in enumerate(batch.ids) if name in known]
        if places:
            masks = audit.data.masks([batch.ids[place] for place in places], batch.model.input)
            lifts[places] = mass_lift(maps[places], masks)
        return {**rows, **_by_layer(found, head_fusion), "lift": lifts}

    options = {"residual": residual, "head_fusion": head_fusion}
    rows = audit.map(measure, positions=positions, options=options)
    metrics = _metrics(audit, rows, positions)
    explainer = prepared(
        audit, _SHOWN, with_controls=False, settings=Settings(residual=residual, head_fusion=head_fusion)
    )
    stored = explainer.cases()
    labels = [method.label for method in explainer.methods]
    grid = side_by_side("Attention beyond the uninformative reference, and as it is", labels, stored)
    return Result(
        _summary(metrics, rows["layers"].shape[1], len(positions)),
        metrics,
        (*_charts(audit, rows, positions), *grid),
        stored,
        caveats=_caveats(metrics),
    )


def _rollout(found: Attention, residual: float, head_fusion: HeadFusion) -> tuple[Rows, np.ndarray]:
    """Per-case figures of rollout, and its ratio to the reference by image token (B, P)."""
    tokens = found.tokens
    row = rollout(found.weights, tokens.readout, residual=residual, head_fusion=head_fusion)
    reference = uninformative(tokens.allowed, len(found.weights), tokens.readout, residual=residual)
    ratio = corrected(row, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.where(row > 0, row * np.log2(row / reference), 0.0).sum(axis=1)
    rows = {"image_mass": image_mass(row, tokens.image), "information": information, "kinds": row @ _members(tokens).T}
    return rows, ratio[:, tokens.image]


def _by_layer(found: Attention, head_fusion: HeadFusion) -> Rows:
    """Shares of what the read-out token attends to.

    layers: (B, L, kinds) by kind of token, heads joined. heads: (B, L, A) on the image, NaN where a layer has fewer
    heads. present: (B, kinds) whether there are such tokens.
    """
    tokens = found.tokens
    members, readout = _members(tokens), torch.from_numpy(np.asarray(tokens.readout))
    heads = np.full((len(found.logits), len(found.weights), max(layer.shape[1] for layer in found.weights)), np.nan)
    layers = np.zeros((len(found.logits), len(found.weights), len(_KINDS)))
    for place, layer in enumerate(found.weights):
        fused = raw_attention(found.weights[: place + 1], tokens.readout, head_fusion=head_fusion)
        layers[:, place] = _divided(fused @ members.T, fused.sum(axis=1, keepdims=True))
        rows = torch.einsum("t,batk->bak", readout.to(layer), layer).double().cpu().numpy()
        heads[:, place, : layer.shape[1]] = _divided(rows @ members[0], rows.sum(axis=2))
    present = np.broadcast_to(members.any(axis=1), (len(found.logits), len(_KINDS)))
    return {"layers": layers, "heads": heads, "present": present.copy()}


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where nothing is there to be shared, as when the least of the heads is zero everywhere."""
    found = np.full(part.shape, np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def _members(tokens: TokenMap) -> np.ndarray:
    """(kinds, T) which tokens are of which kind, 0 or 1."""
    names = np.array(tokens.names)
    members = np.stack([names == kind for kind in _KINDS]).astype(np.float64)
    members[_KINDS.index(FIRST), 0] = 1.0
    return members


def _metrics(audit: Audit, rows: Rows, positions: np.ndarray) -> tuple[Metric, ...]:
    found = [
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
    ]
    over_layers = rows["layers"].mean(axis=1)
    for place in _present(rows):
        kind = {"tokens": _KINDS[place]}
        shares = over_layers[:, place]
        found.append(mean_metric(audit, "attention_share", shares, positions, where=kind, reason=_NO_SHARE))
        if place:  # that of the image is image_mass
            found.append(mean_metric(audit, "rollout_share", rows["kinds"][:, place], positions, where=kind))
    return tuple(found)


def _present(rows: Rows) -> list[int]:
    """Places of the kinds that some case has."""
    return [int(place) for place in np.flatnonzero(rows["present"].any(axis=0))]


def _charts(audit: Audit, rows: Rows, positions: np.ndarray) -> Iterator[Chart]:
    layers, kinds = rows["layers"], _present(rows)
    depth = tuple(float(layer + 1) for layer in range(layers.shape[1]))
    last = [text.number(item) for item in _means(layers[:, -1])]
    yield Lines(
        title="What the read-out token attends to, by layer",
        alt=f"In the last layer, {', '.join(f'{last[place]} on {_words(_KINDS[place])}' for place in kinds)}.",
        x=Axis("Layer", ticks=tuple((value, f"{value:.0f}") for value in depth)),
        y=Axis("Share of attention", low=0, high=1),
        series=tuple(_series(audit, place, layers[:, :, place], positions) for place in kinds),
    )
    heads = [_means(layer) for layer in rows["heads"].swapaxes(0, 1)]
    most, head, layer = max(
        (value or 0.0, head, layer) for layer, row in enumerate(heads) for head, value in enumerate(row)
    )
    yield HeatMap(
        title="Share of each head's attention on the image, from the read-out token",
        alt=f"The head that looks at the image most is {head + 1} of layer {layer + 1}, {text.number(most)}.",
        columns=tuple(str(place + 1) for place in range(len(heads[0]))),
        rows=tuple(f"{place:.0f}" for place in depth),
        values=tuple(heads),
        x_label="Head",
        y_label="Layer",
        low=0.0,
        high=1.0,
    )


def _means(values: np.ndarray) -> tuple[float | None, ...]:
    """Means over cases of (N, columns), None where no case has a value."""
    columns = (column[np.isfinite(column)] for column in values.T)
    return tuple(float(column.mean()) if len(column) else None for column in columns)


def _series(audit: Audit, kind: int, values: np.ndarray, positions: np.ndarray) -> Series:
    """Mean share of one kind in each layer, values (N, L), with intervals by patient."""
    name = _KINDS[kind]
    found = [
        mean_estimate(audit, f"layer {layer} {name}", values[:, layer], positions) for layer in range(values.shape[1])
    ]
    depth = tuple(float(layer + 1) for layer in range(values.shape[1]))
    shares, lows, highs = (tuple(getattr(item, side) for item in found) for side in ("value", "low", "high"))
    return Series(_words(name), depth, shares, lows, highs)


def _words(kind: str) -> str:
    return {
        "image": "all image tokens", "cls": "class token", "register": "register tokens", "text": "text tokens",
        "virtual": "learned tokens", "readout": "read-out token itself", FIRST: "first token (sink)",
    }[kind]  # fmt: skip


def _summary(metrics: tuple[Metric, ...], layers: int, cases: int) -> str:
    sink = next(item for item in metrics if item.where.get("tokens") == FIRST)
    return (
        f"Over {text.plural(layers, 'layer')} and {text.plural(cases, 'image')}, {spoken(metrics[0])} of rollout falls on image tokens; "
        f"the pattern carries {spoken(metrics[1])} beyond uninformative attention. "
        f"The first token takes {spoken(sink)} of the attention of the read-out token."
    )


def _caveats(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    found = ["Attention says where information could flow, not that it decided anything."]
    shares = {str(item.where["tokens"]): item.value or 0.0 for item in metrics if item.name == "attention_share"}
    gathered = shares.get("cls", 0.0) + shares.get("register", 0.0)
    if gathered > _MUCH:
        found.append(
            f"{gathered:.3f} of attention goes to class and register tokens, which gather from the whole image: the maps do not show "
            "where that came from."
        )
    return tuple(found)
