"""First rung: whether something other than the anatomy tells the label."""

from __future__ import annotations

import numpy as np

from xvision.analyses.shortcuts.part import Part, columns_of
from xvision.audit import Audit, metric
from xvision.methods.intervals import Estimate
from xvision.methods.shortcuts.ladder import CROSS_FITTED, Rung, State, shown
from xvision.methods.shortcuts.metadata import metadata_auroc, stratified_auroc
from xvision.result import spoken
from xvision.targets import Target, targets


def from_columns(audit: Audit, resamples: int) -> Part:
    """How well each declared column alone tells the label over all splits, and how the model ranks within its levels."""
    part, found = Part(), {}
    for target in targets(audit):
        for column in columns_of(audit):
            found[target.name, column] = _alone(audit, target, column, resamples)
            within = stratified_auroc(
                target.log_odds, target.labels, audit.column(column), audit.patients,
                rng=audit.rng(f"within {column}"), resamples=resamples,
            )  # fmt: skip
            where = {**target.where, "column": column}
            part.metrics.append(metric("auroc_within", within, better="higher", where=where))
            where = {**where, "split": "all"}
            part.metrics.append(metric("metadata_auroc", found[target.name, column], better="lower", where=where))
    reached = shown(list(found.values()), null=0.5, above=True, spread=CROSS_FITTED)
    for (key, estimate), yes in zip(found.items(), reached, strict=True):
        state: State = "left out" if estimate.value is None else "shown" if yes else "not shown"
        part.rungs[key] = Rung(state, f"AUROC of the label {spoken(metric('metadata_auroc', estimate))}")
    return part


def _alone(audit: Audit, target: Target, column: str, resamples: int) -> Estimate:
    everything = audit.everything
    labels = everything.label_codes(audit.classes) == target.code
    levels, patients = (everything.table[name].to_numpy(dtype=str) for name in (column, "patient"))
    rng = audit.rng(f"metadata {column} {target.code}")
    return metadata_auroc(np.asarray(levels), labels, patients, rng=rng, resamples=resamples)
