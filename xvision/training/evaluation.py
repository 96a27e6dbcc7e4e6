"""After training: how good the model is, what was gained and forgotten, and whether it looks at the image at all.

The figures are measured by the party that trained the model and travel with the checkpoint (``evaluation.json``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from xvision.data.dataset import AuditDataset
from xvision.errors import ConfigError, DataError
from xvision.methods.answers import (
    Answers,
    accuracy,
    answers,
    balanced_accuracy,
    macro_auroc,
    paired_difference,
)
from xvision.methods.intervals import Estimate, not_estimable, proportion
from xvision.methods.paired import rate_change
from xvision.models.evidence import (
    BeforeAfter,
    Blind,
    Change,
    Evaluation,
    Figure,
    Measure,
    SiteMatrix,
    TrainingEvidence,
    WorstGroup,
    read_evaluation,
    write_evaluation,
)
from xvision.models.protocols import Classifier, TextClassifier

__all__ = [
    "BeforeAfter", "Blind", "Cases", "Change", "Evaluation", "Figure", "SiteMatrix", "TrainingEvidence",
    "before_after", "cases_of", "change", "evaluate", "evaluate_logits", "image_blind", "image_blind_logits", "predict",
    "read_evaluation", "site_matrix", "site_matrix_of_logits", "sites_of", "write_evaluation",
]  # fmt: skip

BATCH = 64
MEASURES: tuple[Measure, ...] = ("auroc", "accuracy")
_LEVEL = 0.95
_FEWEST = 10
"""Patients of a group, below which it is not called the worst."""


class Cases(NamedTuple):
    """Labels (N,) class indices, or (N, K) of 0 and 1; patients (N,)."""

    labels: np.ndarray
    patients: np.ndarray


def cases_of(data: AuditDataset, classes: Sequence[str]) -> Cases:
    """Labels and patients of a data set, in the order of its table."""
    labels = data.label_matrix(classes) if data.multilabel else data.label_codes(classes)
    return Cases(labels, data.table["patient"].to_numpy(dtype=str))


def predict(model: Classifier, data: AuditDataset, *, order: np.ndarray | None = None) -> np.ndarray:
    """Logits (N, K) of the cases of ``data``, with their texts where the model reads text.

    order: (N,) the positions whose images are shown instead of the cases' own; texts stay.
    """
    own = [str(name) for name in data.ids]
    shown = own if order is None else [own[place] for place in order]
    found = []
    with torch.inference_mode():
        for start in range(0, len(own), BATCH):
            pixels = torch.from_numpy(data.pixels(shown[start : start + BATCH], model.input)).to(model.device)
            found.append(_with_text(model, data, own[start : start + BATCH]).logits(pixels).cpu())
    return torch.cat(found).double().numpy()


def _with_text(model: Classifier, data: AuditDataset, ids: Sequence[str]) -> Classifier:
    if not isinstance(model, TextClassifier) or not model.takes_text or "text" not in data.table.columns:
        return model
    return model.with_text([str(text) for text in data.table.loc[list(ids), "text"]])


def evaluate(
    model: Classifier, data: AuditDataset, classes: Sequence[str], *, group: str | None = None, seed: int = 0
) -> Evaluation:
    """AUROC (of the last of two classes, else the mean over classes), accuracy and balanced accuracy of a model.

    group: a group column; the level with the lowest figure is named. Raises DataError for labels that are no classes.
    """
    levels = None if group is None else data.table[group].to_numpy(dtype=str)
    return evaluate_logits(predict(model, data), cases_of(data, classes), group=group, levels=levels, seed=seed)


def evaluate_logits(
    logits: np.ndarray,
    cases: Cases,
    *,
    group: str | None = None,
    levels: np.ndarray | None = None,
    seed: int = 0,
) -> Evaluation:
    """As ``evaluate`` for logits (N, K) already made. levels: (N,) of the column called ``group``."""
    found, patients = answers(logits, cases.labels), cases.patients
    worst = None if group is None or levels is None else _worst_group(found, patients, group, levels, seed)
    return Evaluation(
        auroc=figure(macro_auroc(found, patients, rng=_rng(seed, "auroc"))),
        accuracy=figure(accuracy(found, patients)),
        balanced_accuracy=figure(balanced_accuracy(found, patients, rng=_rng(seed, "balanced accuracy"))),
        cases=len(patients),
        worst_group=worst,
    )


def change(
    after: np.ndarray,
    before: np.ndarray,
    cases: Cases,
    *,
    measures: Sequence[Measure] = MEASURES,
    level: float = _LEVEL,
    seed: int = 0,
) -> Change:
    """Logits (N, K) after minus before, in the first measure that the labels allow: a site may have only one class."""
    found = [answers(logits, cases.labels) for logits in (after, before)]
    for measure in measures:
        estimate = paired_difference(
            found[0], found[1], cases.patients, measure=measure, rng=_rng(seed, measure), level=level
        )
        if estimate.value is not None:
            return Change(measure, figure(estimate))
    return Change(measure, figure(estimate))


def before_after(
    split: str,
    after: np.ndarray,
    before: np.ndarray | None,
    cases: Cases,
    *,
    group: str | None = None,
    levels: np.ndarray | None = None,
    seed: int = 0,
) -> BeforeAfter:
    """One split before and after training, from logits (N, K); before is None where there was nothing to start from."""
    evaluated = evaluate_logits(after, cases, group=group, levels=levels, seed=seed)
    if before is None:
        return BeforeAfter(split, evaluated)
    earlier = evaluate_logits(before, cases, group=group, levels=levels, seed=seed)
    return BeforeAfter(split, evaluated, earlier, change(after, before, cases, seed=seed))


def sites_of(data: AuditDataset, column: str) -> Mapping[str, AuditDataset]:
    """The data of each level of a column, in alphabetical order. Raises ConfigError for a column that is not there."""
    if column not in data.table.columns:
        raise ConfigError(f"the data have no column {column!r} to tell sites apart: name it as a group of the data.")
    levels = data.table[column].to_numpy(dtype=str)
    ids = np.array(data.ids)
    return {level: data.subset([str(name) for name in ids[levels == level]]) for level in sorted(set(levels))}


def site_matrix(
    models: Mapping[str, Classifier],
    sites: Mapping[str, AuditDataset],
    classes: Sequence[str],
    *,
    column: str = "site",
    seed: int = 0,
) -> SiteMatrix:
    """Every model (oldest first, the trained one last) on every site, and what the last step changed at each.

    sites: named data sets, or the levels of a column (``sites_of``). column: what the sites are called.
    """
    rows = [{site: predict(model, data) for site, data in sites.items()} for model in models.values()]
    return _matrix(column, tuple(models), {site: cases_of(data, classes) for site, data in sites.items()}, rows, seed)


def site_matrix_of_logits(
    logits: Mapping[str, np.ndarray], cases: Cases, levels: np.ndarray, *, column: str, seed: int = 0
) -> SiteMatrix:
    """As ``site_matrix`` from logits (N, K) of every model on the same cases. levels: (N,) the site of each case."""
    sites = sorted(set(levels.tolist()))
    parts = {site: Cases(cases.labels[levels == site], cases.patients[levels == site]) for site in sites}
    rows = [{site: found[levels == site] for site in sites} for found in logits.values()]
    return _matrix(column, tuple(logits), parts, rows, seed)


def _matrix(
    column: str, models: Sequence[str], cases: Mapping[str, Cases], rows: Sequence[Mapping[str, np.ndarray]], seed: int
) -> SiteMatrix:
    """rows: for each model, its logits (N, K) by site."""
    cells = tuple(tuple(evaluate_logits(row[site], part, seed=seed) for site, part in cases.items()) for row in rows)
    level = 1 - (1 - _LEVEL) / max(len(cases), 1)
    changes: tuple[Change, ...] = ()
    for earlier, later in pairwise(rows[-2:]):
        changes = tuple(
            change(later[site], earlier[site], part, level=level, seed=seed) for site, part in cases.items()
        )
    return SiteMatrix(column, tuple(models), tuple(cases), cells, changes)


def image_blind(
    model: Classifier, data: AuditDataset, classes: Sequence[str], *, seed: int = 0, logits: np.ndarray | None = None
) -> Blind:
    """Accuracy when each case is shown another patient's image. logits: (N, K) of the right images, where known."""
    cases = cases_of(data, classes)
    order = other_patients(cases.patients, seed)
    known = predict(model, data) if logits is None else logits
    return image_blind_logits(known, None if order is None else predict(model, data, order=order), cases)


def image_blind_logits(logits: np.ndarray, shuffled: np.ndarray | None, cases: Cases) -> Blind:
    """As ``image_blind`` from logits (N, K) of the right and of the wrong images; None when none could be exchanged.

    A model without text gives the wrong image's logits exactly: then ``shuffled`` is ``logits[other_patients(…)]``.
    """
    right = answers(logits, cases.labels)
    intact = accuracy(right, cases.patients)
    chance = _agreement_by_chance(right, logits, cases.labels)
    if shuffled is None:
        missing = figure(not_estimable("one patient has more than half of the images", intact.n))
        return Blind(figure(intact), missing, chance, missing)
    wrong = answers(shuffled, cases.labels)
    parts = [found.decisions(cases.patients) for found in (wrong, right)]
    drop = rate_change(parts[0].hits, parts[1].hits, parts[0].patients).difference
    return Blind(figure(intact), figure(proportion(*parts[0])), chance, figure(drop))


def other_patients(patients: np.ndarray, seed: int) -> np.ndarray | None:
    """(N,) for each case the position of an image of another patient, each image used once; None if there is no such order.

    Patients are put in random order and everything is moved on by the images of the patient who has most.
    """
    _, codes, sizes = np.unique(patients, return_inverse=True, return_counts=True)
    most = int(sizes.max(initial=0))
    if not most or 2 * most > len(codes):
        return None
    rank = _rng(seed, "other patients").permutation(len(sizes))
    places = np.argsort(rank[codes], kind="stable")
    order = np.empty(len(codes), dtype=np.int64)
    order[places] = np.roll(places, -most)
    return order


def figure(estimate: Estimate) -> Figure:
    """An estimate as it is recorded."""
    value, low, high = (None if number is None else float(number) for number in estimate[:3])
    return Figure(value, low, high, int(estimate.n), estimate.method, estimate.reason)


def _agreement_by_chance(found: Answers, logits: np.ndarray, labels: np.ndarray) -> float:
    """Expected accuracy over all exchanges of images between two different cases."""
    cases = len(labels)
    if cases < 2:
        raise DataError(f"{cases} images cannot be exchanged: give at least two")
    if labels.ndim == 2:
        called, true = (np.asarray(logits) > 0).mean(axis=0), (labels > 0.5).mean(axis=0)
        expected = float(np.mean(called * true + (1 - called) * (1 - true)))
    else:
        size = np.shape(logits)[1]
        called, true = (np.bincount(codes, minlength=size) / cases for codes in (np.argmax(logits, axis=1), labels))
        expected = float(called @ true)
    return min(max((cases * expected - float(found.hits.mean())) / (cases - 1), 0.0), 1.0)


def _worst_group(found: Answers, patients: np.ndarray, column: str, levels: np.ndarray, seed: int) -> WorstGroup | None:
    """The level with the lowest AUROC, or accuracy where no level gives an AUROC; None without two groups to compare."""
    names = [name for name in sorted(set(levels)) if len(np.unique(patients[levels == name])) >= _FEWEST]
    level = 1 - (1 - _LEVEL) / max(len(names), 1)
    for measure in MEASURES:
        rows = []
        for name in names:
            part = found.among(levels == name)
            who = patients[levels == name]
            estimate = (
                macro_auroc(part, who, rng=_rng(seed, f"{column} {name}"), level=level)
                if measure == "auroc"
                else accuracy(part, who, level=level)
            )
            if estimate.value is not None:
                rows.append((estimate.value, name, estimate))
        if len(rows) > 1:
            _, name, estimate = min(rows, key=lambda row: row[:2])
            return WorstGroup(column, name, measure, figure(estimate), len(rows))
    return None


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])
