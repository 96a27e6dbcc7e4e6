"""Does the language model contribute? Tasks that a stem alone can and cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from xvision.models.evidence import ControlTable, contribution
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.recipe import BackbonePlan, TrainingPlan
from xvision.training.controls import printed, random_body, run_controls, stem_only
from xvision.training.loop import Arrays, Progress, finetune
from xvision.training.policies import apply_policy
from xvision.training.scores import majority_rate, pixel_logits
from xvision.training.validation import predict

CLASSES = ("normal", "lesion")
PLAN = TrainingPlan(epochs=5, batch_size=16, learning_rate=2e-3)
PRESETS = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")


def build(name: str = "tiny-qwen3", classes: tuple[str, ...] = CLASSES) -> LlmImageClassifier:
    return preset(name, image_size=16, patch_size=4, stem="linear", attention="bidirectional", classes=classes, seed=0)


def bright(count: int, seed: int) -> Arrays:
    """A lesion brightens the whole image: no patch has to know of another."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = generator.integers(60, 120, (count, 1, 16, 16)) + (40 * labels)[:, None, None, None]
    return Arrays(pixels.astype(np.uint8), labels)


def alike(count: int, seed: int) -> Arrays:
    """Two opposite corners are both bright or both dark (lesion), or differ: neither corner says anything alone."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    pixels = generator.integers(60, 120, (count, 1, 16, 16))
    first = generator.integers(0, 2, count)
    second = np.where(labels == 1, first, 1 - first)
    pixels[:, :, :4, :4] += 120 * first[:, None, None, None]
    pixels[:, :, 12:, 12:] += 120 * second[:, None, None, None]
    return Arrays(pixels.astype(np.uint8), labels)


def controlled(
    make: object, tmp_path: Path, *, plan: TrainingPlan = PLAN, backbone: BackbonePlan | None = None, test: int = 200
) -> ControlTable:
    train, validation, tested = (make(count, seed) for count, seed in ((300, 0), (60, 1), (test, 2)))
    model = build()
    finetune(model, train, validation, plan, tmp_path / "model")
    folder = tmp_path / "controls"
    found = run_controls(
        plan, backbone or BackbonePlan(), CLASSES, train, validation, tested, np.arange(test),
        predict(model, tested, plan), build=build, folder=folder,
    )  # fmt: skip
    assert not folder.exists()
    return found


def said(table: ControlTable) -> dict[str, str]:
    return {row.name: contribution(row) for row in table.rows}


def test_where_patches_must_be_compared_the_body_adds(tmp_path: Path) -> None:
    table = controlled(alike, tmp_path)
    found = said(table)
    assert found["stem only"] == "the body adds"
    assert found["pixel logistic regression"] == "the network adds to plain pixels"
    assert found["majority class"] == "the model beats it"
    assert "frozen pretrained body" not in found
    stem = table.row("stem only")
    assert stem is not None
    assert stem.auroc.low is not None
    assert stem.auroc.low < 0.5 < (stem.auroc.high or 0)
    assert stem.gain.figure.value == pytest.approx((table.auroc.value or 0) - (stem.auroc.value or 0))
    lines = printed(table).splitlines()
    assert len(lines) == 2 + len(table.rows)
    assert lines[4].startswith("stem only")
    assert lines[4].endswith("the body adds")


def test_where_one_patch_is_enough_the_body_adds_nothing(tmp_path: Path) -> None:
    seen: list[str] = []
    train, validation, test = bright(200, 0), bright(60, 1), bright(800, 2)
    plan, model = replace(PLAN, epochs=3), build()
    finetune(model, train, validation, plan, tmp_path / "model")

    def progress(control: str, where: Progress) -> None:
        seen.append(control)

    table = run_controls(
        plan, BackbonePlan(), CLASSES, train, validation, test, np.arange(800), predict(model, test, plan),
        build=build, progress=progress,
    )  # fmt: skip
    found = said(table)
    assert found["stem only"] == "no better than stem only"
    assert found["pixel logistic regression"] == "no better than pixel logistic regression"
    assert list(dict.fromkeys(seen)) == ["stem only", "frozen random body"]


def test_frozen_bodies_keep_their_attention_and_feed_forward_weights(tmp_path: Path) -> None:
    model = random_body(build(), seed=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = replace(PLAN, epochs=1, policy="fpt")
    finetune(model, bright(64, 0), bright(32, 1), plan, tmp_path / "out")
    after = model.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "classifier.weight" in moved
    assert "stem.project.0.weight" in moved
    assert not [name for name in moved if "_proj" in name]


def test_the_trained_weights_of_each_control_are_counted(tmp_path: Path) -> None:
    table = controlled(bright, tmp_path, plan=replace(PLAN, epochs=1), backbone=BackbonePlan(start="earlier"), test=40)
    frozen = random_body(build(), 0)
    expected = apply_policy(frozen, replace(PLAN, policy="fpt")).trainable_parameters
    stem = sum(weights.numel() for weights in stem_only(build()).parameters() if weights.requires_grad)
    assert [row.trained for row in table.rows] == [0, 32 * 32 + 1, stem, expected, expected]
    assert table.rows[-1].name == "frozen pretrained body"
    assert table.rows[-1].note == "body of an earlier checkpoint"
    assert "went on from an earlier checkpoint" in table.note
    assert printed(table).endswith(table.note)


@pytest.mark.parametrize("name", PRESETS)
def test_a_stem_alone_mixes_no_patches_in_any_body(name: str) -> None:
    """With what each patch gives held fixed, the logits do not depend on which patches meet."""
    whole = build(name)
    model = stem_only(whole).eval()
    assert whole.config.text_config.num_hidden_layers == 2
    assert model.config.text_config.num_hidden_layers == 0
    assert sum(weights.numel() for weights in model.parameters()) < 10_000
    generator = torch.Generator().manual_seed(0)
    base, one, other = torch.randn(3, 1, 1, 16, 16, generator=generator)
    body: list[torch.Tensor] = []
    model.cls_norm.register_forward_pre_hook(lambda _, inputs: body.append(inputs[0]))
    pictures = [base.clone() for _ in range(4)]
    for index, picture in enumerate(pictures):
        if index & 1:
            picture[..., :4, :4] = one[..., :4, :4]
        if index & 2:
            picture[..., 12:, 12:] = other[..., 12:, 12:]
    with torch.no_grad():
        model(torch.cat(pictures))
    pooled = body[0]
    assert torch.allclose(pooled[3] - pooled[2], pooled[1] - pooled[0], atol=1e-5)


def test_a_control_that_diverges_is_a_row_with_the_reason(tmp_path: Path) -> None:
    train, validation, test = bright(32, 0), bright(16, 1), bright(40, 2)
    plan = replace(PLAN, epochs=1, learning_rate=1e38, clip=1e38, warmup=0.0, batch_size=8)
    table = run_controls(
        plan, BackbonePlan(), CLASSES, train, validation, test, np.arange(40), predict(build(), test, plan), build=build
    )
    assert [row.name for row in table.rows][-1] == "frozen random body"
    reason = table.rows[-1].auroc.reason
    assert reason is not None
    assert reason.startswith("its training failed: Training diverged")
    assert contribution(table.rows[-1]).startswith("not decided (its training failed")


def test_logits_of_pixels_know_classes_that_training_lacks() -> None:
    train, test = alike(60, 0), bright(80, 1)
    three = Arrays(train.pixels, np.arange(60) % 3)
    assert pixel_logits(three, test, 3, seed=0).shape == (80, 3)
    assert pixel_logits(Arrays(train.pixels, np.ones(60, dtype=np.int64)), test, 2, seed=0).argmax(axis=1).all()
    floats = test._replace(pixels=(test.pixels / 255).astype(np.float32))
    assert np.allclose(pixel_logits(train, floats, 2, seed=0), pixel_logits(train, test, 2, seed=0), atol=1e-4)


def test_findings_have_controls_of_their_own(tmp_path: Path) -> None:
    """Finding 0 is brightness; finding 1 occurs once in training and never in the test."""
    parts = []
    for count, seed in ((64, 0), (32, 1), (60, 2)):
        plain = bright(count, seed)
        labels = np.stack((plain.labels, np.arange(count) < (seed == 0)), axis=1).astype(np.float32)
        parts.append(Arrays(plain.pixels, labels))
    logits = pixel_logits(parts[0], parts[2], 2, seed=0)
    assert roc_auc_score(parts[2].labels[:, 0], logits[:, 0]) > 0.99
    assert (logits[:, 1] < 0).all()
    table = run_controls(
        replace(PLAN, epochs=1), BackbonePlan(), CLASSES, *parts, np.arange(60), logits,
        build=lambda: _multilabel(build()),
    )  # fmt: skip
    assert [row.auroc.reason for row in table.rows] == [None] * 4
    assert table.auroc.method.endswith("mean of 1 of 2 classes")
    majority = table.row("majority class")
    assert majority is not None
    assert majority.accuracy.value == pytest.approx(majority_rate(parts[0].labels, parts[2].labels, 2))


def test_controls_of_a_model_that_reads_text(tmp_path: Path) -> None:
    """The stem alone reads none; the frozen body reads what the model reads, and here the text gives the label away."""
    texts = ("clear", "opacity")
    parts = []
    for count, seed in ((96, 0), (32, 1), (40, 2)):
        plain = bright(count, seed)
        grey = np.full_like(plain.pixels, 90)
        words = plain.labels[:, None] + 1  # row 0 is every unknown word
        parts.append(Arrays(grey, plain.labels, text=words))
    plan = replace(PLAN, epochs=6)

    def reader() -> LlmImageClassifier:
        return preset("tiny-qwen3", image_size=16, patch_size=4, texts=texts, text_tokens=1, seed=0)

    logits = np.eye(2)[parts[2].labels] * 5
    table = run_controls(plan, BackbonePlan(), CLASSES, *parts, np.arange(40), logits, build=reader)
    stem, body = table.row("stem only"), table.row("frozen random body")
    assert stem is not None
    assert body is not None
    assert stem.note == "reads no text"
    assert stem.auroc.value == 0.5
    assert body.auroc.value is not None
    assert body.auroc.value > 0.9


def _multilabel(model: LlmImageClassifier) -> LlmImageClassifier:
    model.config.problem_type = "multi_label_classification"
    return model
