"""The classifier and its loop: `python -m tests.benchmarks.classifier [--quick] --json OUT`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from tests.benchmarks import label_scoring, review_queue
from tests.benchmarks.harness import Row, Silent, main, row
from xvision.config import DataPlan, DecisionPlan, ModelPlan, Plan
from xvision.data.manifest import load_data
from xvision.data.synthetic import PhantomSettings, phantom_dataset
from xvision.models.checkpoint import save_model
from xvision.models.huggingface import preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier, preset
from xvision.models.open import load_model
from xvision.recipe import ADAPTERS, BackbonePlan, TrainingPlan
from xvision.training.controls import printed
from xvision.training.loop import Arrays
from xvision.training.optimiser import optimiser
from xvision.training.policies import apply_policy
from xvision.training.run import FinetuneReport, finetune_data
from xvision.training.step import Stepper
from xvision.training.world import World

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "pneumonia_mnist_variant" / "pneumoniamnist_imbalanced_train.npz"
PRESETS = ("tiny-qwen3", "tiny-llama", "tiny-gemma3", "tiny-gpt2", "tiny-bert")
POLICIES = ("full", "head", "norms", "fpt", "last_k", "bitfit", *ADAPTERS)
PHANTOMS, SEEDS, KILLS, PAIRS = 5000, (0, 1, 2), 20, 60


def measure(quick: bool) -> Iterator[Row]:
    with TemporaryDirectory() as folder:
        place = Path(folder)
        yield from _overhead(15 if quick else PAIRS)
        yield from _round_trips(place)
        yield from _kills(place, 2 if quick else KILLS)
        if not quick:
            yield from _two_processes(place)
            yield from _phantoms(place)
            yield from _real(place)
            yield from label_scoring.rows(quick)
            yield from review_queue.rows(quick)


def left_out(quick: bool) -> list[str]:
    missing = [] if REAL.exists() else ["real 28 × 28 X-rays: the archive is not on this machine"]
    if quick:
        missing = [
            "phantoms at three seeds",
            "real X-rays",
            "two processes",
            "label scoring",
            "review queue",
            f"{KILLS - 2} of {KILLS} kills",
        ]
    return missing


def trained(data: Any, place: Path, **plan: Any) -> tuple[FinetuneReport, float]:
    """The report and its CPU seconds."""
    started = time.process_time()
    wanted = Plan(DataPlan("benchmark"), ModelPlan("benchmark"), **plan)
    report = finetune_data(data, wanted, place, console=Silent())
    return report, time.process_time() - started


def _phantoms(place: Path) -> Iterator[Row]:
    how = f"{PHANTOMS} phantoms of 64 × 64 pixels, 60 % of the patients in training, tiny-qwen3, default recipe, one thread"
    lesion = DecisionPlan("lesion", 0.5)
    for seed in SEEDS:
        data = phantom_dataset(PhantomSettings(n=PHANTOMS, seed=seed))
        plain = TrainingPlan(seed=seed, controls=False)
        report, seconds = trained(data, place / f"p{seed}", decision=lesion, training=plain)
        found = report.test_accuracy.value or 0.0
        yield row(f"phantoms, seed {seed}: test accuracy", round(found, 4), "≥ 0.96", found >= 0.96, how)
        yield row(f"phantoms, seed {seed}: CPU seconds", round(seconds, 1), "≤ 60", seconds <= 60, how)
        blind = report.evidence.blind
        if blind is not None and blind.shuffled.value is not None:
            chance = blind.shuffled.low is not None and blind.shuffled.low <= blind.chance
            yield row(f"phantoms, seed {seed}: accuracy with another patient's image", round(blind.shuffled.value, 3),
                      f"interval reaches chance, {blind.chance:.3f}", chance, "images exchanged between patients")  # fmt: skip
        words, _ = trained(
            data, place / f"w{seed}", decision=lesion, training=plain, backbone=BackbonePlan(head="label words")
        )
        found = words.test_accuracy.value or 0.0
        yield row(f"label words, seed {seed}: test accuracy", round(found, 4), "≥ 0.94", found >= 0.94, how)
    report, _ = trained(data, place / "controls", decision=lesion, training=TrainingPlan(seed=SEEDS[-1]))
    table = report.evidence.controls
    print(printed(table) if table else "")
    yield row(
        "controls stand beside the model",
        len(table.rows) if table else 0,
        "4 controls",
        bool(table),
        f"seed {SEEDS[-1]}",
    )


def _real(place: Path) -> Iterator[Row]:
    if not REAL.exists():
        return
    data = load_data(REAL)
    how = "28 × 28 chest X-rays, 3,882 / 524 / 624 as given, class-weighted, augmented; logistic regression on the same pixels"
    spent = 0.0
    for seed in SEEDS:
        recipe = TrainingPlan(
            epochs=12, seed=seed, class_weights=True, augment=True, ema=0.99, learning_rate=2e-3, controls=False
        )
        shape = BackbonePlan(image_size=28, patch_size=4)
        report, seconds = trained(
            data, place / f"real{seed}", training=recipe, backbone=shape, decision=DecisionPlan("1", 0.5)
        )
        spent += seconds
        test = report.evidence.split("test")
        area, balanced = (
            (getattr(test.after, name).value for name in ("auroc", "balanced_accuracy")) if test else (0.0, 0.0)
        )
        yield row(f"real X-rays, seed {seed}: test AUROC", round(area, 4), "≥ 0.93", area >= 0.93, how)
        yield row(f"real X-rays, seed {seed}: balanced accuracy", round(balanced, 4), "stated", True, how)
    yield row("real X-rays: CPU seconds in all", round(spent), "≤ 600", spent <= 600, how)
    area = _logistic_regression(data)
    yield row(
        "real X-rays: logistic regression, test AUROC",
        round(area, 4),
        "stated",
        True,
        "784 standardised pixels, C = 0.01",
    )


def _logistic_regression(data: Any) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from xvision.models.protocols import InputSpec

    spec, parts = InputSpec(1, 28, 28), {}
    for name in ("train", "test"):
        part = data.split(name)
        parts[name] = part.pixels(list(part.ids), spec).reshape(len(part), -1), part.label_codes(("0", "1"))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, class_weight="balanced"))
    model.fit(*parts["train"])
    return float(roc_auc_score(parts["test"][1], model.predict_proba(parts["test"][0])[:, 1]))


def _overhead(pairs: int) -> Iterator[Row]:
    """Steps of the loop and of a bare loop in turn: same model, batch and optimizer."""
    rng = np.random.default_rng(0)
    arrays = Arrays(rng.integers(0, 255, (512, 1, 64, 64), dtype=np.uint8), np.arange(512, dtype=np.int64) % 2)
    plan = TrainingPlan(epochs=100)
    ours, bare = (preset("tiny-qwen3", seed=0) for _ in range(2))
    stepper = Stepper(ours, arrays, plan, World(0, 1, torch.device("cpu")), old=0, flip=False)
    ours.train(), bare.train()
    steps = optimiser(bare, plan)
    chosen = np.arange(plan.batch_size)
    pixels = preprocessing_of(bare.config).normalise(torch.from_numpy(arrays.pixels[chosen]).float() / 255)
    labels = torch.from_numpy(arrays.labels[chosen])

    def simple() -> None:
        steps.zero_grad(set_to_none=True)
        F.cross_entropy(bare(pixels).logits, labels).backward()
        steps.step()

    ratios = []
    for place in range(pairs + 3):
        times = []
        for work in (lambda: stepper.take(chosen, 0, 1000), simple):
            started = time.process_time()
            work()
            times.append(time.process_time() - started)
        if place >= 3:
            ratios.append(times[0] / times[1])
    figure = median(ratios)
    how = f"CPU time of a step over that of forward, backward and step alone, median of {pairs} pairs, batch 32 of 64 × 64 pixels"
    yield row("loop overhead", round(figure, 3), "≤ 1.10", figure <= 1.10, how)


@torch.no_grad()
def _round_trips(place: Path) -> Iterator[Row]:
    worst, merged, count = 0.0, 0.0, 0
    pixels = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for name in PRESETS:
        for policy in POLICIES:
            model = preset(name, image_size=16, patch_size=8, seed=0)
            apply_policy(model, TrainingPlan(policy=policy), steps=100)
            _disturb(model)
            before = model(preprocessing_of(model.config).normalise(pixels)).logits
            whole = _merged(model)
            merged = max(
                merged, float((whole(preprocessing_of(model.config).normalise(pixels)).logits - before).abs().max())
            )
            for kept in (model, whole):
                save_model(kept, place / "round")
                own = kept.eval()(preprocessing_of(kept.config).normalise(pixels)).logits
                worst = max(worst, float((load_model(place / "round", device="cpu").logits(pixels) - own).abs().max()))
                count += 1
    how = f"{len(PRESETS)} presets × {len(POLICIES)} policies, adapters merged and unmerged: {count} saves"
    yield row("save → load: largest change of a logit", worst, "0.0", worst == 0.0, how)
    yield row("merged and unmerged adapters: largest difference", merged, "≤ 1e-5", merged <= 1e-5, how)


def _disturb(model: LlmImageClassifier) -> None:
    """New adapters start as nothing: move them, so that there is something to keep."""
    generator = torch.Generator().manual_seed(1)
    for weights in model.parameters():
        if weights.requires_grad:
            weights.add_(0.02 * torch.randn(weights.shape, generator=generator))
    model.eval()


def _merged(model: LlmImageClassifier) -> LlmImageClassifier:
    from xvision.models.llm.adapters import MERGEABLE, merged

    adapter = model.config.adapter
    return merged(model) if adapter is not None and adapter["kind"] in MERGEABLE else model


def _kills(place: Path, count: int) -> Iterator[Row]:
    """Runs the training in a process of its own and kills it after a random number of steps; then it is finished here."""
    from tests.training.test_resume import KILLED, PLAN, logged_lines
    from tests.training.test_resume import trained as resumed

    plan = replace(PLAN, state_every=3)
    assert plan.augment
    whole = resumed(place / "whole", PLAN)
    chance, equal = random.Random(0), 0
    for number in range(count):
        out = place / f"cut{number}"
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(out)], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        log, wanted = out / "metrics.jsonl", chance.randint(1, 16)
        while child.poll() is None:
            if logged_lines(log) >= wanted:
                time.sleep(chance.random() * 0.05)
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.001)
        child.wait()
        equal += bool(torch.equal(resumed(out, PLAN, resume=True), whole))
    how = "SIGKILL after a random number of steps, augmentation on, state saved every 2 steps; weights compared bit by bit"
    yield row("killed and resumed equals unbroken", f"{equal} of {count}", "all", equal == count, how)


def _two_processes(place: Path) -> Iterator[Row]:
    from safetensors.torch import load_file

    from tests.training.test_recipes import TWO

    script = place / "two.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{TWO}")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for start, out in (([sys.executable], "one"), (launcher, "two")):
        subprocess.run(
            [*start, str(script), str(place / out)],
            check=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    for name in ("adamw", "sgd"):
        one, two = (load_file(place / out / name / "model.safetensors") for out in ("one", "two"))
        worst = max(float((one[key] - two[key]).abs().max()) for key in one)
        yield row(
            f"two processes equal one, {name}: largest difference of a weight",
            worst,
            "≤ 1e-5",
            worst <= 1e-5,
            "torchrun, gloo, 10 steps",
        )


if __name__ == "__main__":
    sys.exit(main("classifier", measure, left_out))
