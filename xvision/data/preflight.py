"""What must hold before an audit's numbers mean anything, checked on the labels, the images and the model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from xvision.data.dataset import AuditDataset
from xvision.data.group_checks import group_checks
from xvision.errors import ConfigError, DataError, XVisionError
from xvision.result import Check

if TYPE_CHECKING:
    from xvision.models.protocols import Classifier

EXAMPLES = 5
BATCH = 16
SAME = 1e-6
INVARIANCE = 1e-3
NARROW = 0.10
FLAT = 0.01


def preflight(
    model: Classifier,
    data: AuditDataset,
    *,
    sample: int = 64,
    seed: int = 0,
    allow_leakage: bool = False,
    acquisition: Sequence[str] = (),
) -> tuple[Check, ...]:
    """Findings about ``data`` (all its splits) and about ``model`` on a random sample of the audited split.

    "error" means that numbers would be meaningless, "warning" that a reader must know. A patient in several splits is
    an error unless ``allow_leakage``. acquisition: group columns that say how an image was taken. A model known by its
    scores only gets the checks of the table. Findings are returned, never raised. "ok" says that this check saw nothing,
    in the sample where it names one.
    """
    if sample < 1:
        raise ConfigError(f"sample is {sample} but at least one image must be looked at.")
    if not len(data):
        return (Check("split", "error", "The data has no case: nothing can be audited."),)
    checks = [
        _split(data),
        *_labels(model.classes, data),
        _patients(data, allow_leakage),
        *group_checks(data, acquisition),
    ]
    if model.access == "scores":
        return (*checks, *_matched(model, data))
    readable = _readable(data)
    checks.append(readable)
    if readable.status == "error":
        return tuple(checks)
    checks.append(_duplicates(data))
    ids = data.audited.ids
    rng = np.random.default_rng(seed)
    chosen = [ids[place] for place in np.sort(rng.choice(len(ids), min(sample, len(ids)), replace=False))]
    return (*checks, *_sampled(model, data, chosen))


def _matched(model: Classifier, data: AuditDataset) -> Iterator[Check]:
    """Predictions and cases belong together."""
    from xvision.data.scores import match  # loads torch, which reading a table does not need
    from xvision.models.predictions import PredictionsClassifier

    if isinstance(model, PredictionsClassifier):
        yield match(model, data)
    yield Check("images", "ok", "The model is known by its scores only: images were not looked at.")


def _split(data: AuditDataset) -> Check:
    counts = data.table["split"].value_counts()
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return Check("split", "ok", f"{len(data.audited)} of {len(data)} cases are audited (cases per split: {told}).")


def _labels(classes: Sequence[str], data: AuditDataset) -> Iterator[Check]:
    """Labels of all splits name classes of the model, and every class is in the audited one."""
    try:
        data.label_codes(classes)
    except DataError as error:
        yield Check("labels", "error", str(error))
        return
    yield Check("labels", "ok", f"Every label is one of the model's {len(classes)} classes.")
    codes = data.audited.label_codes(classes)
    counts = np.bincount(codes, minlength=len(classes))
    absent = tuple(name for name, count in zip(classes, counts, strict=True) if not count)
    if len(absent) == len(classes) - 1:
        only = classes[int(counts.argmax())]
        yield Check("classes", "error", f"Every audited case is {only!r}: add cases of another class.", absent)
    elif absent:
        sentence = f"{len(absent)} of {len(classes)} classes have no audited case: nothing can be said of them."
        yield Check("classes", "warning", sentence, absent)
    else:
        yield Check("classes", "ok", f"Every class has audited cases (fewest: {counts.min()}).")


def _patients(data: AuditDataset, allow_leakage: bool) -> Check:
    """No patient is in two splits, as far as patients are known."""
    if not data.patients_declared:
        sentence = (
            "The data names no patients, so every image counts as a patient of its own: intervals may be too narrow "
            "and leakage between splits cannot be seen."
        )
        return Check("patients", "warning", sentence)
    splits = data.table.groupby("patient", sort=False)["split"].nunique()
    shared = splits.index[splits > 1]
    if len(shared):
        sentence = (
            f"{len(shared)} of {len(splits)} patients are in more than one split: the audited numbers are optimistic. "
            "Split by patient, or allow leakage in the plan to audit all the same."
        )
        return Check("patients", "warning" if allow_leakage else "error", sentence, _examples(shared))
    lacking = [case for case in data.ids if case in data.without_patient]
    if lacking:
        sentence = f"{len(lacking)} of {len(data)} cases have no patient and count as patients of their own."
        return Check("patients", "warning", sentence, _examples(lacking))
    return Check("patients", "ok", f"No patient is in two splits ({len(splits)} patients).")


def _readable(data: AuditDataset) -> Check:
    faults = data.source.unreadable(data.ids)
    if faults:
        sentence = f"{len(faults)} of {len(data)} images cannot be read; the first: {faults[0]}"
        return Check("images", "error", sentence, _examples(faults))
    return Check("images", "ok", f"The headers of all {len(data)} images were read; pixels only of the sample below.")


def _duplicates(data: AuditDataset) -> Check:
    """No image file is there twice; copies are told by their bytes, so a re-compressed copy is not seen."""
    table = pd.DataFrame(
        {"split": data.table["split"], "digest": data.source.digests(data.ids, "image")}, index=data.table.index
    )
    across = table.groupby("digest")["split"].transform("nunique") > 1
    within = data.audited.table.index
    repeated = table.loc[within, "digest"].duplicated(keep=False)
    if across.any():
        sentence = f"{across.sum()} images have a byte-for-byte copy in another split: the numbers may be optimistic."
        return Check("duplicates", "warning", sentence, _examples(table.index[across]))
    if repeated.any():
        sentence = f"{repeated.sum()} audited images are byte-for-byte copies of one another: they count repeatedly."
        return Check("duplicates", "warning", sentence, _examples(within[repeated]))
    return Check("duplicates", "ok", f"No two of {len(data)} images are byte-for-byte equal within or across splits.")


def _sampled(model: Classifier, data: AuditDataset, ids: Sequence[str]) -> Iterator[Check]:
    """Pixels and outputs of the sampled cases, in batches."""
    pixels: list[np.ndarray] = []
    faults = []
    for case in ids:
        try:
            pixels.append(data.pixels([case], model.input)[0])
        except DataError as error:
            faults.append(str(error))
    if faults:
        sentence = f"{len(faults)} of {len(ids)} sampled images cannot be decoded; the first: {faults[0]}"
        yield Check("pixels", "error", sentence, _examples(faults))
        return
    yield Check("pixels", "ok", f"{len(ids)} randomly drawn audited images were decoded in full.")
    yield _value_range(np.stack(pixels), ids)
    yield from _masks(model, data, ids)
    yield from _outputs(model, np.stack(pixels), ids)


def _value_range(pixels: np.ndarray, ids: Sequence[str]) -> Check:
    """pixels (N, C, H, W) use a fair part of [0, 1], each image and all together."""
    name = "value_range"
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        return Check(name, "error", "Pixels of the sample lie outside [0, 1]: scale the images.")
    flat = pixels.reshape(len(pixels), -1).std(axis=1) < FLAT
    if flat.any():
        sentence = f"{flat.sum()} of {len(ids)} sampled images are almost uniform: look at them."
        return Check(
            name, "warning", sentence, _examples([case for case, is_flat in zip(ids, flat, strict=True) if is_flat])
        )
    low, high = np.percentile(pixels, (1, 99))
    span = f"from {low:.3f} to {high:.3f}"
    if high - low < NARROW:
        sentence = f"98 % of the sample's pixels lie {span}, less than a tenth of [0, 1]: the window or bit depth may be wrong."
        return Check(name, "warning", sentence)
    return Check(name, "ok", f"98 % of the sample's pixels lie {span} of [0, 1].")


def _masks(model: Classifier, data: AuditDataset, ids: Sequence[str]) -> Iterator[Check]:
    """Masks and boxes of the sampled cases that have one."""
    marked = [case for case in ids if data.has_mask[case]]
    faults, empty = [], []
    for case in marked:
        try:
            if not data.masks([case], model.input).any():
                empty.append(case)
        except DataError as error:
            faults.append(str(error))
    if faults:
        sentence = f"{len(faults)} of {len(marked)} sampled masks cannot be used; the first: {faults[0]}"
        yield Check("masks", "error", sentence, _examples(faults))
    elif empty:
        sentence = (
            f"{len(empty)} of {len(marked)} sampled masks mark nothing: leave the cell empty where there is none."
        )
        yield Check("masks", "warning", sentence, _examples(empty))
    elif marked:
        yield Check("masks", "ok", f"{len(marked)} masks or boxes of the sample were decoded and fit their images.")


def _outputs(model: Classifier, pixels: np.ndarray, ids: Sequence[str]) -> Iterator[Check]:
    """Logits of the sample: right shape, finite, varying, not probabilities, independent of the batch."""
    try:
        logits = np.concatenate([_logits(model, pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)])
        alone = _logits(model, pixels[:1])
    except (XVisionError, RuntimeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        yield Check("logits", "error", f"The model cannot be run on the sample: {first}")
        return
    fault = _fault(model, logits, len(pixels))
    if fault:
        yield Check("logits", "error", fault)
        return
    yield Check("logits", "ok", f"The logits of {len(ids)} sampled images are finite and differ between images.")
    yield _probabilities(logits)
    difference = float(np.abs(alone[0] - logits[0]).max())
    sentence = f"The logits of {ids[0]!r} alone and in a batch differ by {difference:.2g}"
    if difference > INVARIANCE:
        yield Check("batch", "warning", f"{sentence}: is the model in evaluation mode?")
    else:
        yield Check("batch", "ok", f"{sentence}.")


def _logits(model: Classifier, pixels: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(model.logits(torch.from_numpy(pixels).to(model.device)).float().cpu(), dtype=np.float64)


def _fault(model: Classifier, logits: np.ndarray, count: int) -> str:
    """Why the outputs cannot be logits of these images, or ""."""
    if logits.shape != (count, len(model.classes)):
        return f"The model's output has shape {logits.shape} for {count} images and {len(model.classes)} classes."
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits)).any(axis=1).sum())
        return f"The logits of {bad} of {count} sampled images are not finite: check the weights and the precision."
    if count > 1 and float(np.ptp(logits, axis=0).max()) <= SAME:
        return "The model gives the same output for every image: check value range and normalisation."
    return ""


def _probabilities(logits: np.ndarray) -> Check:
    bounded = logits.min() >= 0 and logits.max() <= 1
    if bounded and np.allclose(logits.sum(axis=1), 1.0, atol=1e-4):
        sentence = "The outputs lie in [0, 1] and sum to 1: they look like probabilities where logits are expected."
        return Check("probabilities", "warning", sentence)
    return Check("probabilities", "ok", "The outputs do not look like probabilities.")


def _examples(values: Sequence[str] | pd.Index[str]) -> tuple[str, ...]:
    return tuple(str(value) for value in values[:EXAMPLES])
