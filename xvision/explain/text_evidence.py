"""What a model that reads clinical text takes from the text, and how much it leaves to the image."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np

from xvision.audit import Audit, mean_metric
from xvision.charts import Table
from xvision.engine import Batch, Rows
from xvision.explain.maps import Explainer
from xvision.explain.token_methods import needs_tokens, token_integral
from xvision.methods.token_attribution import image_share, text_attribution
from xvision.result import Metric

_KINDS = ("image", "text")
_MOST = 5
"""Pieces of text listed for one case."""


class TextEvidence(NamedTuple):
    """What a page says of the texts; both empty for a model, or data, without."""

    metrics: tuple[Metric, ...] = ()
    tables: tuple[Table, ...] = ()


def text_evidence(explainer: Explainer, positions: np.ndarray) -> TextEvidence:
    """Shares of image and text in the evidence, and the pieces of text that move the pictured cases most.

    Shares are of absolute integrated gradients over all tokens, before any map is scaled to its own maximum. What a piece
    adds is the fall of the log-odds when it is left out. The texts themselves are shown only where pictures are.
    """
    audit = explainer.audit
    if not getattr(audit.model, "takes_text", False) or "text" not in audit.data.table.columns:
        return TextEvidence()
    if audit.model.access != "white-box" or not hasattr(type(audit.model), "embedded"):
        return TextEvidence()
    options = {**explainer.options, "text": True}
    rows = audit.map(lambda batch: _shares(explainer, batch), positions=positions, options=options)
    metrics = tuple(
        mean_metric(
            audit, "evidence_share", rows[kind], positions, where={"tokens": kind}, reason="no case has evidence in any token"
        )
        for kind in _KINDS
    )  # fmt: skip
    return TextEvidence(metrics, _table(explainer, audit) if audit.pictures else ())


def _shares(explainer: Explainer, batch: Batch) -> Rows:
    """NaN where a text has no known place, as where several texts of different lengths are bound."""
    if needs_tokens(batch.model):
        return {kind: np.full(len(batch.ids), np.nan) for kind in _KINDS}
    shares = image_share(token_integral(explainer.asked(batch)).values, batch.model.token_map)
    nothing = np.zeros(len(batch.ids))
    return {kind: shares.get(kind, nothing) for kind in _KINDS}


def _table(explainer: Explainer, audit: Audit) -> tuple[Table, ...]:
    options = {**explainer.options, "text": "words"}
    rows = audit.map(lambda batch: _words(explainer, batch), positions=audit.showcase, options=options)
    listed = []
    for position, found in zip(audit.showcase, rows.get("words", ()), strict=True):
        pieces = sorted(json.loads(str(found)), key=lambda piece: -abs(piece[1]))[:_MOST]
        listed += [(str(audit.ids[position]), word, value) for word, value in pieces]
    if not listed:
        return ()
    return (
        Table(
            title="What pieces of the text add to the explained class",
            alt="Fall of the log-odds when one piece of the text is left out and all else stays; below zero it spoke against.",
            columns=("Case", "Piece of text", "Adds to the log-odds"),
            rows=tuple(listed),
        ),
    )


def _words(explainer: Explainer, batch: Batch) -> Rows:
    """(B,) the pieces with what each adds, as JSON: texts differ in length."""
    words = () if needs_tokens(batch.model) else batch.model.words
    if not words:
        return {"words": np.full(len(batch.ids), "[]")}
    asked = explainer.asked(batch)
    values = text_attribution(asked.model, asked.pixels, asked.targets, batch=asked.settings.batch)
    pairs = [json.dumps([[word, float(value)] for word, value in zip(words, row, strict=True)]) for row in values]
    return {"words": np.array(pairs)}
