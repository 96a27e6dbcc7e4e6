"""Third and fourth rung: whether the embeddings tell a column, and whether the head goes by that."""

from __future__ import annotations

import numpy as np
import torch

from xvision import text
from xvision.analyses.shortcuts.part import Part, columns_of
from xvision.audit import Audit, apart, mean_estimate, metric
from xvision.charts import Axis, Forest, Mark, Reference
from xvision.engine import Batch, Rows
from xvision.methods.decision import decide
from xvision.methods.intervals import Estimate, with_width
from xvision.methods.shortcuts.erasure import Head, read_head, removed_by_others
from xvision.methods.shortcuts.followed import conditional_shift
from xvision.methods.shortcuts.ladder import CROSS_FITTED, Rung, State, shown
from xvision.methods.shortcuts.probe import Probed, probe
from xvision.result import Metric, spoken
from xvision.targets import log_odds, targets

_MOST_MARKS = 20


def inside(audit: Audit, most: int, minimum: int, resamples: int) -> tuple[Part, Part]:
    """What is encoded, and what of that is used."""
    columns, encoded, used = columns_of(audit), Part(), Part()
    names = [target.name for target in targets(audit)]
    reason = audit.can("embeddings")
    if reason:
        for part in (encoded, used):
            part.rungs = {(name, column): Rung("left out", reason) for name in names for column in columns}
        return encoded, used
    positions, values = _embedded(audit, most)
    if len(positions) < len(audit.ids):
        encoded.caveats.append(
            f"Embeddings are of {len(positions)} of {len(audit.ids)} audited images, drawn at random."
        )
    probed = {column: _probed(audit, column, positions, values, minimum, resamples) for column in columns}
    flat = [(column, level) for column in columns for level in probed[column].within_label]
    judged = shown([probed[c].within_label[n] for c, n in flat], null=0.5, above=True, spread=CROSS_FITTED)
    reached = dict(zip(flat, judged, strict=True))
    for column in columns:
        encoded.metrics += _metrics(probed[column], column)
        rung = _encoded(probed[column], {level: yes for (where, level), yes in reached.items() if where == column})
        encoded.rungs |= {(name, column): rung for name in names}
    encoded.charts += _forest(encoded.metrics)
    _use(audit, used, positions, values, probed, {key[1] for key in encoded.shown()}, minimum)
    return encoded, used


def _embedded(audit: Audit, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions and embeddings of at most ``most`` cases; those of all cases are shared with other analyses."""
    positions = audit.sample(most)
    if len(positions) == len(audit.ids):
        return positions, audit.embeddings
    return positions, audit.map(_embed, positions=positions)["embeddings"]


def _embed(batch: Batch) -> Rows:

    with torch.inference_mode():
        return {"embeddings": batch.model.embed(batch.pixels).float().cpu().numpy()}


def _probed(
    audit: Audit, column: str, positions: np.ndarray, values: np.ndarray, minimum: int, resamples: int
) -> Probed:
    return probe(
        values, audit.column(column)[positions], audit.labels[positions], audit.patients[positions], minimum=minimum,
        seed=audit.seed, rng=audit.rng(f"probe {column}"), resamples=resamples,
    )  # fmt: skip


def _metrics(found: Probed, column: str) -> list[Metric]:
    if found.reason:
        return [Metric("probe_auroc", None, where={"column": column}, reason=found.reason)]
    return [
        metric("probe_auroc", estimate, where={apart(column, "among"): level, "among": among})
        for among, by in (("all cases", found.overall), ("same label", found.within_label))
        for level, estimate in by.items()
    ]


def _encoded(found: Probed, reached: dict[str, bool]) -> Rung:
    if found.reason:
        return Rung("left out", found.reason)
    level = max(found.within_label, key=lambda name: (reached[name], found.within_label[name].value or 0.0))
    estimate = found.within_label[level]
    state: State = "left out" if estimate.value is None else "shown" if reached[level] else "not shown"
    return Rung(state, f"probe AUROC of {level}, same label: {spoken(metric('probe_auroc', estimate))}")


def _use(
    audit: Audit, part: Part, positions: np.ndarray, values: np.ndarray, probed: dict[str, Probed], encoded: set[str],
    minimum: int,
) -> None:  # fmt: skip
    """Removes the directions of each column that is encoded, and decides again."""
    head = read_head(values, audit.predictions.logits[positions], audit.patients[positions]) if encoded else ""
    gains: dict[str, Estimate] = {}
    for column in probed:
        if column not in encoded:
            reason = "not shown to be encoded, so there is nothing to remove"
        elif isinstance(head, str):
            reason = head
        else:
            gains[column] = _removed(audit, part, positions, values, probed[column], column, head, minimum)
            continue
        part.metrics.append(Metric("removal_flip_rate", None, where={"column": column}, reason=reason))
        part.rungs |= {(target.name, column): Rung("left out", reason) for target in targets(audit)}
    for (column, gain), yes in zip(gains.items(), shown(list(gains.values()), above=True), strict=True):
        figure = f"decisions that change beyond random directions: {spoken(metric('flips', gain))}"
        state: State = "left out" if gain.value is None else "shown" if yes else "not shown"
        part.rungs |= {(target.name, column): Rung(state, figure) for target in targets(audit)}
    if isinstance(head, Head):
        part.caveats.append(
            f"The head was read off the embeddings by least squares; it explains {head.explained:.3f} of the variance of the logits"
            " of patients it was not fitted on. Removing a direction also removes whatever else lies in it."
        )


def _removed(
    audit: Audit, part: Part, positions: np.ndarray, values: np.ndarray, found: Probed, column: str, head: Head,
    minimum: int,
) -> Estimate:  # fmt: skip
    """Adds the figures of one column and gives the flips beyond those of random directions."""
    kept = found.kept
    own, levels = positions[kept], audit.column(column)[positions[kept]]
    embeddings = values[kept].astype(np.float64)
    without, controls = removed_by_others(
        embeddings, levels, audit.labels[own], found.folds[kept], rng=audit.rng(f"control {column}")
    )
    before, after = head(embeddings), head(without)
    decided = decide(before, audit.decision)
    flips = decide(after, audit.decision) != decided
    placebo = np.mean([decide(head(each), audit.decision) != decided for each in controls], axis=0)
    where = {"column": column}
    estimates = {
        name: mean_estimate(audit, f"{name} {column}", np.asarray(each, float), own)
        for name, each in (("removal", flips), ("control", placebo), ("beyond", flips - placebo))
    }
    rates = {name: with_width(estimates[name], estimates[name].n, 0.95) for name in ("removal", "control")}
    part.metrics.append(metric("removal_flip_rate", rates["removal"], better="lower", where=where))
    part.metrics.append(metric("control_flip_rate", rates["control"], where=where))
    part.metrics.append(metric("removal_beyond_control", estimates["beyond"], better="lower", where=where))
    for target in targets(audit):
        for level in found.within_label:
            first = levels == level
            sides = (target.labels[own], first, ~first, audit.patients[own])
            for name, logits in (("before", before), ("after", after)):
                shift = conditional_shift(log_odds(logits, target.code), *sides, minimum=minimum)
                at = {**target.where, apart(column, "class", "removal"): level, "removal": name}
                part.metrics.append(metric("removal_score_shift", shift, where=at, unit="standard deviations"))
    return estimates["beyond"]


def _forest(metrics: list[Metric]) -> list[Forest]:
    known = [item for item in metrics if item.where.get("among") == "same label" and item.value is not None]
    if not known:
        return []
    best = max(known, key=lambda item: item.value or 0.0)
    chosen = sorted(known, key=lambda item: -(item.value or 0.0))[:_MOST_MARKS]

    def who(item: Metric) -> str:
        return text.condition({key: value for key, value in item.where.items() if key != "among"})

    return [
        Forest(
            "What a probe reads from the embeddings at the same label",
            f"Best: {who(best)}, {spoken(best)}. 0.5 is chance. Encoded is not used.",
            Axis("AUROC of the level, same label", low=0, high=1),
            tuple(
                Mark(who(item), item.value, item.low, item.high, f"n = {item.n}") for item in known if item in chosen
            ),
            (Reference("chance", 0.5, "x"),),
        )
    ]
