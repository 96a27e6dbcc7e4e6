"""What a page says of the texts that a model reads beside the image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.analyses.subjects import linear_model
from xvision.analyses.attribution import attribution
from xvision.analyses.explanation_quality import explanation_quality
from xvision.audit import Audit
from xvision.charts import Table
from xvision.data.dataset import AuditDataset
from xvision.data.sources import ArraySource
from xvision.engine import Engine
from xvision.explain.catalogue import units_of
from xvision.explain.maps import prepared
from xvision.explain.text_evidence import text_evidence
from xvision.methods.attribution import input_x_gradient
from xvision.methods.decision import Decision
from xvision.methods.faithfulness import curves_of, srg
from xvision.methods.token_attribution import text_attribution, token_evaluator
from xvision.models.huggingface import HuggingFaceClassifier, adapt, preprocessing_of
from xvision.models.llm.classifier import preset

TEXTS = ("fever and cough", "no fever", "", "cough")


@pytest.fixture(scope="module")
def model() -> HuggingFaceClassifier:
    module = preset("tiny-qwen3", image_size=16, patch_size=8, text_tokens=3, texts=list(TEXTS), seed=0)
    with torch.no_grad():
        module.classifier.weight.mul_(20.0)
    return adapt(module, preprocessing_of(module.config), source="a test")


@pytest.fixture
def audit(model: HuggingFaceClassifier) -> Audit:
    ids = [f"case-{place}" for place in range(8)]
    table = pd.DataFrame(
        {"label": ["normal", "lesion"] * 4, "patient": ids, "split": "all", "image": ids, "text": [*TEXTS, *TEXTS]},
        index=pd.Index(ids, name="id"),
    )
    pixels = np.random.default_rng(0).random((8, 1, 16, 16)).astype(np.float32)
    data = AuditDataset(table, (), ArraySource(ids, pixels, None))
    return Audit(model, data, Decision(1, 0.5, True), 3, Engine(part=5), task="attribution")


def test_image_and_text_share_the_evidence(audit: Audit) -> None:
    found = text_evidence(prepared(audit, ("saliency",), with_controls=False), np.arange(8))
    image, words = (item.value for item in found.metrics)
    assert [dict(item.where) for item in found.metrics] == [{"tokens": "image"}, {"tokens": "text"}]
    assert 0.0 < (words or 0.0) < 1.0
    assert (image or 0.0) + (words or 0.0) == pytest.approx(1.0, abs=0.02)  # the rest is on the read-out token


def test_pieces_of_text_are_listed_with_what_they_add(audit: Audit, model: HuggingFaceClassifier) -> None:
    (table,) = text_evidence(prepared(audit, ("saliency",), with_controls=False), np.arange(8)).tables
    case, text = "case-0", TEXTS[0]
    if case not in {row[0] for row in table.rows}:
        case, text = "case-4", TEXTS[0]
    bound = model.with_text([text])
    pixels = torch.from_numpy(audit.pixels([int(case.removeprefix("case-"))]))
    expected = dict(zip(bound.words, text_attribution(bound, pixels, torch.tensor([1]))[0], strict=True))
    listed = {word: value for name, word, value in table.rows if name == case}
    assert listed == pytest.approx(expected)
    strengths = [abs(value) for name, _, value in table.rows if name == case]
    assert strengths == sorted(strengths, reverse=True)
    assert "case-2" not in {row[0] for row in table.rows}, "a case without text has no pieces"


def test_texts_are_not_shown_where_pictures_are_not(audit: Audit) -> None:
    found = text_evidence(prepared(replace(audit, pictures=False), ("saliency",), with_controls=False), np.arange(8))
    assert found.tables == ()
    assert len(found.metrics) == 2


def test_without_texts_nothing_is_said(audit: Audit) -> None:
    without = replace(audit, everything=replace(audit.data, table=audit.data.table.drop(columns="text")))
    assert text_evidence(prepared(without, ("saliency",)), np.arange(8)) == ((), ())
    other = replace(audit, model=linear_model(np.ones((16, 16), np.float32)))
    assert text_evidence(prepared(other, ("saliency",)), np.arange(8)) == ((), ())


def test_tokens_may_be_taken_away_instead_of_filled(audit: Audit, model: HuggingFaceClassifier) -> None:
    """The gain of the analysis equals removal curves of the model with each case's own text, computed apart."""
    result = explanation_quality(
        audit, methods=("input_x_gradient",), removals=("tokens",), steps=2, bank=2, copies=1, shuffles=1
    )
    gains = []
    for place, text in enumerate((*TEXTS, *TEXTS)):
        bound = model.with_text([text])
        pixels = torch.from_numpy(audit.pixels([place]))
        target = torch.tensor([int(audit.predictions.decisions[place])])
        values = units_of(bound).sums(input_x_gradient(bound.logits, pixels, target).maps)
        gains.append(srg(curves_of(token_evaluator(bound, pixels, target), {"map": values}, steps=2)["map"])[0])
    found = next(
        item for item in result.metrics if item.name == "srg_log_odds" and item.where["method"] == "input_x_gradient"
    )
    assert found.value == pytest.approx(np.mean(gains), rel=1e-4)


def test_the_page_of_attributions_has_them(audit: Audit) -> None:
    result = attribution(audit, methods=("saliency",), cases=4)
    assert {"image", "text"} == {str(item.where["tokens"]) for item in result.metrics if item.name == "evidence_share"}
    assert any("pieces of the text" in chart.title for chart in result.charts if isinstance(chart, Table))
