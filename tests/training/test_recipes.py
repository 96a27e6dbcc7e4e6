"""What the parts of a recipe do to the gradient, the weights and the choice of the best epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_loop import lines, small, spots, weights
from xvision.errors import DataError, MissingExtra
from xvision.recipe import AttackPlan, GroupPlan, RehearsalPlan, TrainingPlan
from xvision.training.loop import Arrays, finetune
from xvision.training.optimiser import MovingAverage, optimiser
from xvision.training.speed import flops, matrix_rate
from xvision.training.validation import predict, validate
from xvision.training.world import World

ROOT = Path(__file__).parents[2]
ONE = TrainingPlan(epochs=1, batch_size=64, learning_rate=1e-3)


def grouped(count: int = 64, seed: int = 0) -> Arrays:
    plain = spots(count, seed)
    return plain._replace(groups=np.arange(count, dtype=np.int64) // 2 % 3)


def gradient(plan: TrainingPlan, out: Path, arrays: Arrays) -> float:
    finetune(small(), arrays, spots(seed=1), plan, out)
    return float(lines(out, "steps")[0]["gradient_norm"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"class_weights": True}, {"groups": GroupPlan("sex", dro=True)}, {"loss": "focal", "label_smoothing": 0.1}],
)
def test_accumulation_has_the_gradient_of_one_large_batch(changes: dict[str, Any], tmp_path: Path) -> None:
    """1 × 64, 4 × 16 and 8 × 8: the same length of the gradient, and the same weights after the step."""
    arrays = grouped()
    arrays = arrays._replace(labels=np.array([0] * 40 + [1] * 24))
    found = [gradient(replace(ONE, accumulate=parts, **changes), tmp_path / str(parts), arrays) for parts in (1, 4, 8)]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_the_moving_average_by_hand() -> None:
    """Decay is min(given, (1 + t)/(10 + t)): 2/11 at the first step, 3/12 at the second."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = MovingAverage(model, 0.99)
    expected = 1.0
    for step, value in ((1, 5.0), (2, -3.0)):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
    with average.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == -3.0


def test_the_average_is_what_is_validated_and_saved(tmp_path: Path) -> None:
    plan = replace(ONE, batch_size=8, epochs=1, learning_rate=3e-3)
    models = [small(), small()]
    summaries = [
        finetune(model, spots(), spots(seed=1), replace(plan, ema=ema), tmp_path / str(ema))
        for model, ema in zip(models, (0.0, 0.9), strict=True)
    ]
    assert summaries[0].validation.loss != summaries[1].validation.loss
    assert not torch.equal(weights(models[0]), weights(models[1]))
    assert validate(models[1], spots(seed=1), plan) == summaries[1].validation


def test_sgd_takes_one_step_as_written() -> None:
    model = torch.nn.Linear(2, 1)
    plan = replace(ONE, optimizer="sgd", weight_decay=0.1, momentum=0.0)
    steps = optimiser(model, plan)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    steps.step()
    assert torch.allclose(model.weight, before - plan.learning_rate * (torch.ones(1, 2) + 0.1 * before))


def test_the_worst_group_chooses_the_epoch(tmp_path: Path) -> None:
    arrays = grouped(90, seed=2)
    for select in ("auroc", "worst group"):
        plan = replace(ONE, batch_size=16, epochs=5, groups=GroupPlan("sex"), select=select, learning_rate=2e-3)
        summary = finetune(small(), grouped(), arrays, plan, tmp_path / select)
        epochs = lines(tmp_path / select, "epoch")
        key = "auroc" if select == "auroc" else "worst_group"
        best = max(range(5), key=lambda place: (epochs[place][key], -epochs[place]["loss"]))
        assert summary.best_epoch == best + 1
    by_group = [validate_group(tmp_path, arrays, code) for code in range(3)]
    assert summary.validation.worst_group == pytest.approx(min(by_group))


def validate_group(folder: Path, arrays: Arrays, code: int) -> float:
    from xvision.models.checkpoint import load_model

    chosen = arrays.groups == code
    area = validate(
        load_model(folder / "worst group").module, Arrays(arrays.pixels[chosen], arrays.labels[chosen]), ONE
    ).auroc
    assert area is not None
    return area


def test_balance_draws_the_rare_cell_as_often(tmp_path: Path) -> None:
    """With weights that stand still, the mean loss of an epoch is that of its draws."""
    labels = np.array([0] * 60 + [1] * 4)
    arrays = Arrays(spots(64).pixels, labels, balance=labels)
    model = small()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([2.0, 0.0]))
    finetune(model, arrays, spots(seed=1), replace(ONE, learning_rate=1e-12), tmp_path)
    common, rare = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    assert lines(tmp_path, "steps")[0]["loss"] == pytest.approx((common + rare) / 2, rel=1e-4)


def test_rehearsal_shows_the_stated_share_of_old_images(tmp_path: Path) -> None:
    labels = np.array([0] * 32 + [1] * 32)
    model = small()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([2.0, 0.0]))
    plan = replace(ONE, learning_rate=1e-12, rehearsal=RehearsalPlan(share=0.2), batch_size=40)
    finetune(model, Arrays(spots(64).pixels, labels), spots(seed=1), plan, tmp_path, old=32)
    common, rare = np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0))
    assert lines(tmp_path, "steps")[0]["loss"] == pytest.approx(0.8 * common + 0.2 * rare, rel=1e-4)


def test_group_robust_training_serves_the_group_that_loses(tmp_path: Path) -> None:
    """Planted: in a third of the images the labels are turned around. ERM sacrifices them, group DRO cannot."""

    def turned(arrays: Arrays) -> Arrays:
        return arrays._replace(labels=np.where(arrays.groups == 2, 1 - arrays.labels, arrays.labels))

    train, held = turned(grouped(720)), turned(grouped(180, seed=7))
    plan = replace(ONE, batch_size=24, epochs=4, groups=GroupPlan("sex", dro_rate=0.3), learning_rate=1e-3)
    losses = {}
    for dro in (False, True):
        model = small()
        used = replace(plan, groups=replace(plan.groups, dro=dro))
        finetune(model, train, held, used, tmp_path / str(dro))
        logits = torch.from_numpy(predict(model, held, used))
        each = torch.nn.functional.cross_entropy(logits, torch.from_numpy(held.labels), reduction="none").numpy()
        losses[dro] = each[held.groups == 2].mean()
    assert losses[True] < losses[False] - 0.1


def test_groups_that_training_minds_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"groups\.column was given but the training images bring no groups"):
        finetune(small(), spots(), spots(seed=1), replace(ONE, groups=GroupPlan("sex", dro=True)), tmp_path / "out")


def test_adversarial_training_costs_clean_accuracy_nothing_here_and_resists_more(tmp_path: Path) -> None:
    from xvision.training.robust import robust_losses

    train, held = spots(160), spots(80, seed=1)
    plan = replace(ONE, batch_size=16, epochs=6, learning_rate=2e-3)
    attack = AttackPlan("pgd", epsilon=0.06, steps=5)
    losses = {}
    for method in ("none", "fgsm-rs", "pgd", "trades"):
        model = small()
        finetune(model, train, held, replace(plan, attack=replace(attack, method=method)), tmp_path / method)
        pixels, labels = torch.from_numpy(held.pixels).float() / 255, torch.from_numpy(held.labels)
        torch.manual_seed(0)
        found = robust_losses(
            lambda images: model((images - 0.5) / 0.5).logits,  # noqa: B023  # used at once
            lambda logits: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),  # noqa: B023  # used at once
            pixels, attack,
        )  # fmt: skip
        losses[method] = found.detach().mean().item()
    assert max(losses["fgsm-rs"], losses["pgd"], losses["trades"]) < losses["none"]


def test_several_findings_are_trained_and_scored(tmp_path: Path) -> None:
    from xvision.models.llm.classifier import preset

    arrays = spots(80)
    labels = np.stack((arrays.labels, 1 - arrays.labels, np.arange(80) % 4 == 0), axis=1).astype(np.float32)
    model = preset("tiny-qwen3", image_size=16, patch_size=8, classes=("a", "b", "c"), multilabel=True, seed=0)
    plan = replace(ONE, batch_size=8, epochs=8, learning_rate=2e-3)
    summary = finetune(model, arrays._replace(labels=labels), arrays._replace(labels=labels), plan, tmp_path)
    assert summary.validation.auroc is not None
    assert summary.validation.auroc > summary.before.auroc
    assert summary.majority_accuracy == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    with pytest.raises(DataError, match=r"labels must be float32 of shape \(N, 3\)"):
        finetune(model, arrays, arrays, plan, tmp_path / "other")


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path) -> None:
    found = []
    for name, changes in (("plain", {}), ("checkpointed", {"activation_checkpointing": True})):
        model = small()
        finetune(model, spots(), spots(seed=1), replace(ONE, batch_size=8, **changes), tmp_path / name)
        found.append(weights(model))
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_flops_of_a_matrix_product_are_counted_and_the_rate_is_a_rate() -> None:
    left, right = torch.randn(8, 16), torch.randn(16, 4)
    assert flops(lambda: left @ right) == 2 * 8 * 16 * 4
    assert matrix_rate(torch.device("cpu"), torch.float32, seconds=0.02) > 1e8


def test_mfu_is_flops_times_speed_over_the_rate(tmp_path: Path) -> None:
    summary = finetune(small(), spots(), spots(seed=1), ONE, tmp_path)
    assert summary.flops > 0
    assert summary.mfu == pytest.approx(summary.flops * summary.images_per_second / summary.matrix_rate)
    assert 0 < summary.mfu < 1


def test_curves_go_to_tensorboard_and_wandb_on_this_machine(tmp_path: Path) -> None:
    plan = replace(ONE, batch_size=8, trackers=("tensorboard",))
    finetune(small(), spots(), spots(seed=1), plan, tmp_path / "out")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "out.tracking" / "tensorboard"))
    events.Reload()
    assert {"training/loss", "validation/auroc"} <= set(events.Tags()["scalars"])
    (value,) = (event.value for event in events.Scalars("validation/auroc"))
    assert value == pytest.approx(lines(tmp_path / "out", "epoch")[0]["auroc"], rel=1e-6)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"wandb.*pip install 'xvision\[tracking\]'"):
        finetune(small(), spots(), spots(seed=1), replace(ONE, trackers=("wandb",)), tmp_path / "out")


TWO = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.training.test_recipes import ONE, grouped
from tests.training.test_loop import small
from xvision.training.loop import finetune
plan = replace(ONE, batch_size=12, epochs=2, augment=True)
parts = replace(plan, optimizer="sgd", learning_rate=0.05, accumulate=2, class_weights=True, ema=0.9)
finetune(small(), grouped(50), grouped(30, 1), plan, Path(sys.argv[1]) / "adamw")
finetune(small(), grouped(50), grouped(30, 1), parts, Path(sys.argv[1]) / "sgd")
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """torchrun with gloo on the CPU: batches of 12 and a last one of 2; weights after training equal to 1e-5."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    script = tmp_path / "two.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{TWO}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for start, out in (([sys.executable], "one"), (launcher, "two")):
        command = [*start, str(script), str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
    for name, tolerance in (("adamw", 1e-5), ("sgd", 1e-6)):
        one, two = (load_file(tmp_path / out / name / "model.safetensors") for out in ("one", "two"))
        assert max(float((one[key] - two[key]).abs().max()) for key in one) < tolerance
        assert json.loads((tmp_path / "two" / name / "run.json").read_text())["result"]["processes"] == 2
        epochs = [lines(tmp_path / out / name, "epoch") for out in ("one", "two")]
        assert [line["step"] for line in epochs[1]] == [5, 10]
        assert [line["auroc"] for line in epochs[1]] == pytest.approx([line["auroc"] for line in epochs[0]], abs=1e-6)


def test_processes_share_a_batch_and_give_each_image_to_one() -> None:
    shares = [World(rank, 3, torch.device("cpu")).share(np.arange(10)) for rank in range(3)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_every_step_drops_other_units(tmp_path: Path) -> None:
    """Two images and weights that stand still: with the same units dropped there could be two losses, one for each order."""
    from xvision.models.llm.classifier import preset

    model = preset("tiny-qwen3", image_size=16, patch_size=8, dropout=0.5, seed=0)
    finetune(model, spots(2), spots(seed=1), replace(ONE, epochs=6, learning_rate=1e-12, batch_size=2), tmp_path)
    assert len({round(line["loss"], 6) for line in lines(tmp_path, "steps")}) == 6


def test_adalora_is_told_of_every_step(tmp_path: Path) -> None:
    """At the first step only its orthogonality penalty moves the outer matrices; by the end most ranks are cut."""
    model, kept = small(), []
    plan = replace(ONE, batch_size=6, epochs=10, policy="adalora", learning_rate=1e-3, ema=0.0)

    def count(_: Any) -> None:
        kept.append(sum(int((weights != 0).sum()) for name, weights in model.named_parameters() if "lora_E" in name))

    finetune(model, spots(), spots(seed=1), plan, tmp_path, progress=count)
    assert kept[-1] < max(kept)


def test_the_penalty_of_adalora_is_in_the_gradient() -> None:
    from xvision.training.step import Stepper

    model = small()
    plan = replace(ONE, policy="adalora", batch_size=24, epochs=20, warmup=0.0)
    steps = Stepper(model, spots(), plan, World(0, 1, torch.device("cpu")), old=0, flip=False)
    before = {name: weights.detach().clone() for name, weights in model.named_parameters() if "lora_A" in name}
    steps.take(np.arange(24), 0, 20)
    moved = [
        float((weights.detach() - before[name]).abs().max())
        for name, weights in model.named_parameters()
        if name in before
    ]
    assert min(moved) > 0.5 * plan.learning_rate, "the loss itself has no gradient here while the ranks are zero"


def test_images_are_mirrored_only_where_that_is_harmless(tmp_path: Path) -> None:
    found = []
    for flip in (False, True):
        model = small()
        finetune(
            model, spots(), spots(seed=1), replace(ONE, batch_size=8, augment=True), tmp_path / str(flip), flip=flip
        )
        found.append(weights(model))
    assert not torch.equal(*found)
