"""The model's answers on the audited images, on stand-ins made from them, and on images from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from xvision.audit import Audit
from xvision.engine import Batch, Rows
from xvision.methods.decision import probabilities
from xvision.methods.stand_ins import STAND_INS
from xvision.result import Where

CLEAN = "audited"
_NO_TOP = ("histology", "dermoscopy")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one kind and what the model says of them; only cases whose numbers are all finite.

    kind: "audited", "near", "far" or "stand-in". ids, patients: (N,). logits: (N, K). embeddings: (N, D), None without any.
    lost: how many cases had a number that is not finite. fixed: all are one picture and one answer.
    """

    name: str
    title: str
    kind: str
    ids: np.ndarray
    patients: np.ndarray
    logits: np.ndarray
    embeddings: np.ndarray | None
    lost: int = 0
    fixed: bool = False

    @cached_property
    def sureness(self) -> np.ndarray:
        """(N,) the largest probability."""
        return np.asarray(probabilities(self.logits).max(axis=1))

    @property
    def embedded(self) -> np.ndarray:
        return np.zeros((len(self.ids), 0)) if self.embeddings is None else self.embeddings

    @property
    def where(self) -> Where:
        return {"set": self.name, "kind": self.kind}

    @property
    def key(self) -> str:
        return f"{self.kind} {self.name}"


class Fitted(NamedTuple):
    """Cases that scores may be fitted on. labels: (M,) class indices, None where they are not known."""

    called: str
    embeddings: np.ndarray
    logits: np.ndarray
    labels: np.ndarray | None


def stand_ins_for(audit: Audit) -> tuple[str, ...]:
    """All but those that mean nothing for images without a top."""
    return tuple(name for name, each in STAND_INS.items() if not (each.upright and audit.modality in _NO_TOP))


def audited_and_made(audit: Audit, cases: int, embeds: bool) -> tuple[ImageSet, ...]:
    """The audited images, at most ``cases`` of them, and the stand-ins made from each."""
    names, positions = stand_ins_for(audit), audit.sample(cases)
    measure = partial(_made, names=names, embeds=embeds, seed=audit.seed)
    options = {"measure": "stand-ins", "names": names, "embeds": embeds}
    rows = audit.map(measure, positions=positions, options=options)
    clean = {"logits clean": audit.predictions.logits[positions], **rows}
    found = [_kept(CLEAN, "audited images", "audited", audit, positions, clean)]
    for name in names:
        each = STAND_INS[name]
        answers = {
            f"{what} clean": rows[f"{what} {name}"] for what in ("logits", "embeddings") if f"{what} {name}" in rows
        }
        found.append(_kept(name, each.title, "stand-in", audit, positions, answers, fixed=each.fixed))
    return tuple(found)


def from_elsewhere(kind: str, audits: Mapping[str, Audit], cases: int, embeds: bool) -> Iterator[ImageSet]:
    """The named sets, at most ``cases`` images of each."""
    for name, other in audits.items():
        rows, positions = _answers(other, cases, embeds)
        yield _kept(name, name, kind, other, positions, rows)


def to_fit_on(audit: Audit, most: int) -> Fitted | None:
    """At most ``most`` cases of the training or else the validation images of the model, never audited ones; None without any.

    These are of the data named as the reference, if there are any, else of the audited data's own splits.
    """
    named = audit.reference if audit.outside.reference is not None else None
    if named is not None and named.data.fingerprint == audit.data.fingerprint:
        named = None
    home = audit if named is None else named
    reference = home.on_split("train") or home.on_split("validation") or named
    if reference is None or (
        home is audit and np.isin(reference.ids, audit.ids).any()
    ):  # without a split "test", all are audited
        return None
    rows, positions = _answers(reference, most, True)
    kept = np.isfinite(rows["embeddings clean"]).all(axis=1) & np.isfinite(rows["logits clean"]).all(axis=1)
    labels = reference.labels[positions[kept]] if reference.labelled else None
    called = f"{reference.called} of the reference data" if named not in (None, reference) else reference.called
    return Fitted(called, rows["embeddings clean"][kept], rows["logits clean"][kept], labels)


def _answers(other: Audit, most: int, embeds: bool) -> tuple[Rows, np.ndarray]:
    positions = other.sample(most)
    options = {"measure": "answers", "embeds": embeds}
    return other.map(partial(_shown, embeds=embeds), positions=positions, options=options), positions


def _kept(
    name: str, title: str, kind: str, audit: Audit, positions: np.ndarray, rows: Mapping[str, np.ndarray],
    *, fixed: bool = False,
) -> ImageSet:  # fmt: skip
    logits, embeddings = rows["logits clean"], rows.get("embeddings clean")
    finite = np.isfinite(logits).all(axis=1)
    if embeddings is not None:
        finite &= np.isfinite(embeddings).all(axis=1)
        embeddings = embeddings[finite]
    places, logits = positions[finite], logits[finite].astype(np.float64)
    one_answer = fixed and bool((logits == logits[:1]).all())  # a text beside the picture makes several
    lost = int((~finite).sum())
    return ImageSet(name, title, kind, audit.ids[places], audit.patients[places], logits, embeddings, lost, one_answer)


def _made(batch: Batch, *, names: tuple[str, ...], embeds: bool, seed: int) -> Rows:
    """Logits (B, K) and embeddings (B, D) of each stand-in, embeddings of the images themselves.

    A picture that is the same for every case is shown once and its answer copied.
    """
    rows: Rows = {}
    with torch.inference_mode():
        if embeds:
            rows["embeddings clean"] = batch.model.embed(batch.pixels).float().cpu().numpy()
        for name in names:
            each = STAND_INS[name]
            few = 1 if each.fixed else len(batch.ids)
            pixels = each.make(batch.pixels[:few], batch.ids[:few], seed)
            rows |= _seen(batch, pixels, name, embeds)
    return rows


def _shown(batch: Batch, *, embeds: bool) -> Rows:
    """Logits, and embeddings if there are any, of the images themselves."""
    with torch.inference_mode():
        return _seen(batch, batch.pixels, "clean", embeds)


def _seen(batch: Batch, pixels: torch.Tensor, name: str, embeds: bool) -> Rows:
    copies = len(batch.ids) // len(pixels)
    rows = {f"logits {name}": batch.model.logits(pixels).float().cpu().numpy().repeat(copies, axis=0)}
    if embeds:
        rows[f"embeddings {name}"] = batch.model.embed(pixels).float().cpu().numpy().repeat(copies, axis=0)
    return rows
