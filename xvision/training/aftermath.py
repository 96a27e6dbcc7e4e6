"""What training did: gained on validation and test, forgotten elsewhere, owed to the language model, warned of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xvision import text
from xvision.config import Plan
from xvision.data.dataset import AuditDataset
from xvision.models.evidence import Figure, SiteMatrix, Start, TrainingEvidence, sees_images, verdict
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.open import load_model
from xvision.models.protocols import Classifier
from xvision.training import state
from xvision.training.controls import printed, run_controls
from xvision.training.evaluation import (
    before_after,
    cases_of,
    image_blind,
    predict,
    site_matrix_of_logits,
)
from xvision.training.inputs import Inputs
from xvision.training.record import Progress, TrainingSummary

_MOST_SITES = 12
"""Levels of a column above which it is no column of sites."""


@dataclass(frozen=True)
class After:
    """A trained model with all that is known of its training. before: logits of the earlier classifier by split, if any."""

    model: Classifier
    plan: Plan
    classes: tuple[str, ...]
    inputs: Inputs
    old: AuditDataset | None
    before: Mapping[str, np.ndarray]
    summary: TrainingSummary


def evidence_of(
    after: After, build: Callable[[], LlmImageClassifier], out: Path, *, progress: Callable[[str, Progress], None]
) -> TrainingEvidence:
    """Everything that travels with the checkpoint as ``evaluation.json``."""
    plan, seed = after.plan, after.plan.training.seed
    logits = {name: predict(after.model, after.inputs.splits[name]) for name in ("validation", "test")}
    group = plan.training.groups.column
    parts = []
    for name, found in logits.items():
        data = after.inputs.splits[name]
        levels = None if group is None else data.table[group].to_numpy(dtype=str)
        cases = cases_of(data, after.classes)
        parts.append(before_after(name, found, after.before.get(name), cases, group=group, levels=levels, seed=seed))
    test = after.inputs.splits["test"]
    controls = None
    if plan.training.controls:
        patients = test.table["patient"].to_numpy(dtype=str)
        arrays = after.inputs.arrays
        train = arrays["train"].without_last(after.inputs.old)  # controls start anew and have nothing to remember
        controls = run_controls(
            plan.training, plan.backbone, after.classes, train, arrays["validation"], arrays["test"], patients,
            logits["test"], build=build, folder=state.folder_of(out).with_name(f"{out.name}.controls"), progress=progress,
        )  # fmt: skip
    return TrainingEvidence(
        fingerprint=after.model.fingerprint,
        classes=after.classes,
        start=_start(plan),
        policy=plan.training.policy,
        splits=tuple(parts),
        controls=controls,
        sites=tuple(_matrices(after, logits["test"])),
        blind=image_blind(after.model, test, after.classes, seed=seed, logits=logits["test"]),
        warnings=tuple(_warnings(after)),
    )


def lines_of(evidence: TrainingEvidence) -> Iterator[str]:
    """The evidence as the command prints it."""
    for part in evidence.splits:
        if part.change is not None:
            measure = text.label(part.change.measure)
            yield f"{part.split.capitalize()} {measure}, after minus before: {_said(part.change.figure)}"
    for matrix in evidence.sites:
        for site, change in zip(matrix.sites, matrix.changes, strict=False):
            said = f"{text.label(change.measure)} {_said(change.figure)}: {verdict(change.figure)}"
            yield f"  {matrix.column} {site}: {said}"
    if evidence.blind is not None:
        yield f"Images exchanged between patients: {sees_images(evidence.blind)}"
    if evidence.controls is not None:
        yield "Does the language model contribute?"
        yield printed(evidence.controls)
    for warning in evidence.warnings:
        yield f"Warning: {warning}."


def _said(figure: Figure) -> str:
    return text.value(figure.value, figure.low, figure.high, reason=figure.reason)


def _start(plan: Plan) -> Start:
    if plan.backbone.start:
        return "earlier checkpoint"
    return "pretrained language model" if plan.backbone.pretrained else "random weights"


def _matrices(after: After, logits: np.ndarray) -> Iterator[SiteMatrix]:
    """Models × sites, for each acquisition column, and for the earlier data beside these where they were rehearsed."""
    test, seed = after.inputs.splits["test"], after.plan.training.seed
    cases = cases_of(test, after.classes)
    rows = {"before": after.before["test"], "after": logits} if after.before else {"after": logits}
    for column in after.plan.data.acquisition:
        levels = test.table[column].to_numpy(dtype=str)
        if 1 < len(set(levels)) <= _MOST_SITES:
            yield site_matrix_of_logits(rows, cases, levels, column=column, seed=seed)
    if after.old is not None and after.before and after.plan.backbone.start:
        earlier = after.old.audited
        models = {"before": load_model(after.plan.backbone.start), "after": after.model}
        both = {name: np.concatenate((predict(model, earlier), rows[name])) for name, model in models.items()}
        known = cases_of(earlier, after.classes)
        joined = type(cases)(
            np.concatenate((known.labels, cases.labels)),
            np.concatenate(([f"earlier {name}" for name in known.patients], cases.patients)),
        )
        levels = np.array(["earlier data"] * len(earlier) + ["these data"] * len(test))
        yield site_matrix_of_logits(both, joined, levels, column="data", seed=seed)


def _warnings(after: After) -> Iterator[str]:
    """What a reader must not overlook."""
    summary = after.summary
    best, baseline = summary.validation.auroc, summary.baseline_auroc
    if not summary.beats_majority:
        yield "no better than always answering the commonest class"
    if best is not None and baseline is not None and best <= baseline:
        yield "no better than a logistic regression on plain pixels; the network adds nothing here"
    if best is None:
        yield f"the best epoch was chosen by loss, because validation AUROC cannot be estimated ({summary.validation.reason})"
    if after.inputs.cut:
        yield f"{text.plural(after.inputs.cut, 'text')} had more than {after.plan.backbone.text_tokens} tokens and were cut"
