"""One vision-language model asked several questions: each is what loading it with that prompt would give."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xvision.config import PromptPlan
from xvision.errors import ConfigError
from xvision.models.vlm.classifier import VlmClassifier
from xvision.models.vlm.prompts import fill, placeholders, read_question, read_template

from .vlm_builders import WORDS, load, pixels

OTHER = {**WORDS, "nodule": "few words"}


@pytest.fixture(scope="module")
def model(saved_vlm: Path) -> VlmClassifier:
    return load(saved_vlm)


@pytest.mark.parametrize("normalise", ["sum", "mean", "pmi"])
def test_another_question_is_another_prompt_at_load(saved_vlm: Path, normalise: str) -> None:
    first, second = (
        load(saved_vlm, normalise=normalise),
        load(saved_vlm, OTHER, template="radiology", normalise=normalise),
    )
    asked = first.with_question(fill(read_template("radiology"), OTHER), OTHER)
    assert asked.asked == second.asked
    assert asked.module is first.module
    assert asked.fingerprint == second.fingerprint != first.fingerprint
    assert {**asked.description, "notes": ""} == {**second.description, "notes": ""}
    assert torch.equal(asked.logits(pixels()), second.logits(pixels()))
    assert not torch.allclose(asked.logits(pixels()), first.logits(pixels()))
    assert first.asked == load(saved_vlm).asked


def test_the_same_question_changes_nothing(model: VlmClassifier) -> None:
    again = model.with_question(read_question(model.plan), model.plan.labels)
    assert torch.equal(again.logits(pixels()), model.logits(pixels()))
    assert again.fingerprint == model.fingerprint


def test_the_order_of_the_options_is_not_that_of_the_classes(model: VlmClassifier) -> None:
    turned = tuple(reversed(WORDS))
    question = fill(read_template("finding"), WORDS, turned)
    assert "nodule, oedema in both lungs, pneumonia, pleural effusion or clear lungs." in question.text
    assert model.with_question(question, WORDS).classes == model.classes
    two = {"clear": "no", "pneumonia": "yes"}
    question = fill(read_template("yes-no"), two, ("pneumonia", "clear"))
    assert question.text == "Does this image show pneumonia? Answer yes or no."
    assert placeholders(read_template("yes-no")) == {"options", "finding"}
    assert placeholders(read_template("open")) == set()


def test_questions_that_cannot_be_asked_are_refused(model: VlmClassifier) -> None:
    question = read_question(PromptPlan(labels=WORDS))
    for labels, message in (
        (dict(reversed(WORDS.items())), r"found words for \['nodule', .*in this order"),
        ({**WORDS, "nodule": " "}, r"prompt.labels.nodule is empty"),
        ({**WORDS, "nodule": "pneumonia"}, r"have the same tokens"),
        ({**WORDS, "nodule": "clear lungs both"}, r"starts with all of"),
        ({**WORDS, "nodule": "nodule " * 250}, r"longest label has \d+ tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.with_question(question, labels)
    with pytest.raises(ConfigError, match="reads as a command"):
        model.with_question(question._replace(text="Is this <image>?"), WORDS)
