from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xvision.data.synthetic import PhantomSettings, generate
from xvision.errors import DataError, ModelError
from xvision.models.checkpoint import load_model
from xvision.models.huggingface import preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.recipe import TrainingPlan
from xvision.training.loop import Arrays, Progress, finetune
from xvision.training.optimiser import learning_rate, parameter_groups
from xvision.training.policies import apply_policy
from xvision.training.validation import validate

PLAN = TrainingPlan(epochs=2, batch_size=8, ema=0.0)


def small(seed: int = 0) -> LlmImageClassifier:
    return preset("tiny-qwen3", image_size=16, patch_size=8, seed=seed)


def spots(count: int = 24, seed: int = 0, size: int = 16) -> Arrays:
    """A bright square in half of the images."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    pixels = generator.integers(60, 140, (count, 1, size, size), dtype=np.uint8)
    for index in np.flatnonzero(labels):
        row, column = generator.integers(0, size - 5, 2)
        pixels[index, 0, row : row + 5, column : column + 5] += 100
    return Arrays(pixels, labels)


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


def weights(model: LlmImageClassifier) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_it_learns_phantoms(tmp_path: Path) -> None:
    """Lesions of easy contrast: chance is 0.5, and the best epoch is what is saved."""
    phantoms = generate(PhantomSettings(n=400, size=32, contrast=1.0, visits=1, fractions=(0.7, 0.3, 0.0)))
    table = phantoms.table
    labels = (table["label"] == "lesion").to_numpy().astype(np.int64)
    train, validation = (
        Arrays(phantoms.pixels[chosen], labels[chosen])
        for chosen in ((table["split"] == name).to_numpy() for name in ("train", "validation"))
    )
    model = preset("tiny-qwen3", image_size=32, seed=0)
    plan = TrainingPlan(epochs=8, batch_size=16, learning_rate=2e-3)
    summary = finetune(model, train, validation, plan, tmp_path / "out")
    assert summary.validation.auroc is not None
    assert summary.validation.auroc > 0.9
    assert summary.beats_majority
    saved = load_model(tmp_path / "out")
    pixels = torch.from_numpy(validation.pixels)
    with torch.no_grad():
        own = model(preprocessing_of(model.config).normalise(pixels.to(model.device))).logits
    assert (saved.logits(pixels.to(saved.device)) - own).abs().max() == 0.0
    assert validate(model, validation, plan) == summary.validation
    epochs = lines(tmp_path / "out", "epoch")
    assert max(entry["auroc"] for entry in epochs) == summary.validation.auroc
    assert epochs[summary.best_epoch - 1]["loss"] == summary.validation.loss


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(tmp_path: Path) -> None:
    plan, results = replace(PLAN, augment=True), []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(len(results))  # what the caller drew before must not matter
        model = preset("tiny-gpt2", image_size=16, seed=0)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.2
        finetune(model, spots(), spots(seed=1), replace(plan, seed=seed), tmp_path / name)
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("changes", [{}, {"class_weights": True}, {"label_smoothing": 0.2}])
def test_loss_and_gradient_of_one_step_by_hand(changes: dict[str, Any], tmp_path: Path) -> None:
    train = Arrays(spots().pixels[:20], np.array([0] * 15 + [1] * 5))
    plan = replace(PLAN, epochs=1, batch_size=20, learning_rate=1e-12, **changes)
    model = small()
    pixels = torch.from_numpy(train.pixels).float() / 255
    logits = model((pixels - 0.5) / 0.5).logits
    balance = torch.tensor([20 / (2 * 15), 20 / (2 * 5)]) if plan.class_weights else None
    loss = F.cross_entropy(logits, torch.from_numpy(train.labels), weight=balance, label_smoothing=plan.label_smoothing)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    finetune(model, train, spots(seed=1), plan, tmp_path)
    (entry,) = lines(tmp_path, "steps")
    assert entry["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert entry["gradient_norm"] == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradients)), rel=1e-4)


def test_each_epoch_has_its_own_order_and_augmentation(tmp_path: Path) -> None:
    """With weights that stand still, the loss over an epoch tells what its images were, and over half of it, which."""
    plan = replace(PLAN, learning_rate=1e-12)
    halves = {}
    for augmented in (False, True):
        finetune(small(), spots(160), spots(seed=1), replace(plan, augment=augmented), tmp_path)
        losses = [entry["loss"] for entry in lines(tmp_path, "steps")]
        halves[augmented] = np.array(losses).reshape(2, 2)
    plain, changed = halves[False], halves[True]
    assert abs(plain[0, 0] - plain[1, 0]) > 1e-4
    assert plain[0].sum() == pytest.approx(plain[1].sum(), abs=1e-6)
    assert abs(changed[0].sum() - plain[0].sum()) > 1e-4
    assert abs(changed[0].sum() - changed[1].sum()) > 1e-5


def test_learning_rate_rises_in_a_line_and_falls_in_a_cosine() -> None:
    plan = TrainingPlan(learning_rate=2.0, warmup=0.1)
    found = [learning_rate(step, 100, plan) for step in range(100)]
    np.testing.assert_allclose(found[:10], np.linspace(0.2, 2.0, 10))
    assert found[10] == 2.0
    assert found[55] == pytest.approx(1.0)
    assert found[99] == pytest.approx(1 - math.cos(math.pi / 90))
    assert learning_rate(0, 1, plan) == 2.0


def test_weight_decay_spares_norms_biases_positions_and_the_readout() -> None:
    model = preset("tiny-bert", seed=0)
    decayed, spared = parameter_groups(model, 0.05)
    names = {id(value): name for name, value in model.named_parameters()}
    first, second = ({names[id(value)] for value in group["params"]} for group in (decayed, spared))
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert first | second == set(names.values())
    assert not first & second
    assert all(name.endswith("weight") for name in first)
    assert {"classifier.weight", "stem.project.0.weight"} <= first
    assert {"classifier.bias", "cls_norm.weight", "positions.row.weight"} <= second
    assert {"backbone.embeddings.word_embeddings.weight", "backbone.embeddings.position_embeddings.weight"} <= second


def test_weight_decay_spares_the_factors_of_an_adapter() -> None:
    for policy, factor in (("ia3", "ia3_l"), ("adalora", "lora_E")):
        model = small()
        apply_policy(model, replace(PLAN, policy=policy), steps=100)
        decayed, spared = ({id(value) for value in group["params"]} for group in parameter_groups(model, 0.05))
        factors = {id(value) for name, value in model.named_parameters() if factor in name}
        assert factors
        assert factors <= spared
        assert decayed | spared == {id(value) for value in model.parameters() if value.requires_grad}


def test_training_stops_when_patience_ends(tmp_path: Path) -> None:
    shuffled = Arrays(spots().pixels, np.random.default_rng(0).permutation(spots().labels))
    summary = finetune(small(), shuffled, spots(seed=1), replace(PLAN, epochs=30, patience=2), tmp_path)
    assert summary.epochs == summary.best_epoch + 2 < 30
    assert summary.steps == 3 * summary.epochs == lines(tmp_path, "steps")[-1]["step"]
    assert len(lines(tmp_path, "epoch")) == summary.epochs


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[Progress] = []
    finetune(small(), spots(80), spots(seed=1), PLAN, tmp_path, progress=seen.append)
    assert [update.step for update in seen] == [10, 20]
    assert [update.epoch for update in seen] == [1, 2]
    assert {update.total for update in seen} == {20}
    assert seen[0].seconds_left > 0 == seen[1].seconds_left
    assert all(math.isfinite(update.loss) and update.images_per_second > 0 for update in seen)


@pytest.mark.parametrize(("images", "step"), [(160, "31 of 60"), (80, "20 of 30")])  # seen in a step, in validation
def test_divergence_names_the_step_and_keeps_the_last_checkpoint(images: int, step: str, tmp_path: Path) -> None:
    model = small()

    def poison(update: Progress) -> None:
        if update.epoch == 2:
            with torch.no_grad():
                model.classifier.weight[0, 0] = torch.nan

    with pytest.raises(ModelError, match=f"not finite at step {step}; the checkpoint of epoch 1 is in .*Lower"):
        finetune(model, spots(images), spots(seed=1), replace(PLAN, epochs=3), tmp_path / "out", progress=poison)
    assert load_model(tmp_path / "out").classes == ("normal", "lesion")
    assert not (tmp_path / "out" / "run.json").exists()
    with pytest.raises(ModelError, match=r"not finite at step \d+ of 6; no checkpoint was saved"):
        finetune(small(), spots(), spots(seed=1), replace(PLAN, learning_rate=1e30), tmp_path / "other")


def test_gradients_are_clipped_and_cleared(tmp_path: Path) -> None:
    model, lengths = small(), []

    def measure(_: Progress) -> None:
        lengths.append(math.sqrt(sum(float(value.grad.square().sum()) for value in model.parameters())))

    finetune(model, spots(), spots(seed=1), replace(PLAN, clip=0.01), tmp_path, progress=measure)
    assert lengths == pytest.approx([0.01, 0.01], rel=1e-3)
    assert all(value.grad is None for value in model.parameters())
    assert not model.training


def test_the_run_is_written_down(tmp_path: Path) -> None:
    summary = finetune(small(), spots(), spots(12, seed=1), PLAN, tmp_path)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["plan"]["epochs"] == 2
    assert run["result"]["best_epoch"] == summary.best_epoch
    assert run["result"]["validation"]["auroc"] == summary.validation.auroc
    assert run["data"]["training"]["images"] == 24
    assert len(run["data"]["validation"]["sha256"]) == 64
    assert run["data"]["validation"]["sha256"] != run["data"]["training"]["sha256"]
    assert set(run["versions"]) == {"xvision", "python", "torch", "transformers", "numpy", "scikit-learn"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "preprocessor_config.json",
        "run.json",
    }


def test_scores_that_cannot_be_estimated_are_none_with_a_reason(tmp_path: Path) -> None:
    healthy = Arrays(spots().pixels[::2], spots().labels[::2])
    summary = finetune(small(), spots(), healthy, PLAN, tmp_path)
    assert (summary.validation.auroc, summary.validation.reason) == (None, "no image of class 1")
    assert (summary.baseline_auroc, summary.baseline_reason) == (None, "no image of class 1")
    assert summary.majority_accuracy == 1.0
    assert not summary.beats_majority


def test_the_callers_threads_and_random_numbers_are_left_alone(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    inside: list[int] = []
    torch.set_num_threads(3)
    try:
        torch.manual_seed(4)
        expected = torch.rand(3)
        torch.manual_seed(4)
        finetune(
            small(), spots(), spots(seed=1), PLAN, tmp_path, progress=lambda _: inside.append(torch.get_num_threads())
        )
        assert torch.equal(torch.rand(3), expected)
        assert torch.get_num_threads() == 3
        assert set(inside) == {PLAN.threads}
    finally:
        torch.set_num_threads(before)


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        plan = TrainingPlan(epochs=2, batch_size=8, precision=precision)
        losses.append(finetune(small(), spots(), spots(seed=1), plan, tmp_path / precision).validation.loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_floats_and_bytes_train_alike(tmp_path: Path) -> None:
    floats = Arrays((spots().pixels / 255).astype(np.float32), spots().labels)
    models = [small(), small()]
    for name, model, train in (("bytes", models[0], spots()), ("floats", models[1], floats)):
        finetune(model, train, spots(seed=1), PLAN, tmp_path / name)
    torch.testing.assert_close(weights(models[0]), weights(models[1]))


def test_a_loaded_model_can_be_trained_again(tmp_path: Path) -> None:
    finetune(small(), spots(), spots(seed=1), PLAN, tmp_path)
    module = load_model(tmp_path).module
    before = weights(module).clone()
    finetune(module, spots(), spots(seed=1), PLAN, tmp_path)
    assert not torch.equal(weights(module), before)


def with_pixels(pixels: np.ndarray) -> Arrays:
    return Arrays(pixels, spots().labels)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (with_pixels(spots().pixels[..., :8]), r"training images have shape \(24, 1, 16, 8\) for 24 labels"),
        (with_pixels(spots().pixels[:-1]), r"have shape \(23, 1, 16, 16\) for 24 labels"),
        (Arrays(spots().pixels[:0], spots().labels[:0]), "needs at least one image"),
        (with_pixels(spots().pixels.astype(np.float32)), r"are float32: give uint8, or float32 in \[0, 1\]"),
        (with_pixels(np.full((24, 1, 16, 16), np.nan, dtype=np.float32)), "are float32: give uint8"),
        (with_pixels(spots().pixels.astype(np.float64)), "are float64: give uint8"),
        (Arrays(spots().pixels, spots().labels + 1), "training labels must be int64 from 0 to 1"),
        (Arrays(spots().pixels, spots().labels.astype(np.int32)), "training labels must be int64"),
        (Arrays(spots().pixels, spots().labels * 0), "no training image of the class 'lesion'"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_written(
    train: Arrays, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        finetune(small(), train, spots(seed=1), PLAN, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"notes\.txt is no part of a checkpoint"):
        finetune(small(), spots(), spots(seed=1), PLAN, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
