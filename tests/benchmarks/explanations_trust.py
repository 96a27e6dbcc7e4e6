"""Whether the verdicts on maps are right where the truth was planted, and what an audit of maps costs beside its passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from torch import nn

from tests.benchmarks.explanations_models import bert
from tests.benchmarks.harness import Row, Silent, row
from xvision.audit import Audit
from xvision.config import DataPlan, ModelPlan, Plan
from xvision.data.dataset import AuditDataset
from xvision.data.synthetic import PhantomSettings, marker_box, phantom_dataset
from xvision.engine import Engine
from xvision.explain.catalogue import controls
from xvision.methods.decision import Decision
from xvision.models.network import Facts, NetworkClassifier
from xvision.models.open import load_model
from xvision.models.protocols import Classifier, InputSpec
from xvision.recipe import BackbonePlan, RehearsalPlan, TrainingPlan
from xvision.registry import analyses
from xvision.result import Result
from xvision.training.run import finetune_data

SIDE, SEEDS, IMAGES, REPEATS = 64, (0, 1, 2), 64, 40
CORNER, MARKED = "upper left corner", "B"
METHODS = (
    "integrated_gradients", "saliency", "attention_rollout", "chefer", "token_grad_cam", "patch_ablation",
)  # fmt: skip
BARE = ("fails randomisation", "no better than a control")


def marker_rows(quick: bool) -> Iterator[Row]:
    """Attribution on the corner where the marker is, at the site that has one, by a model that looks nowhere else."""
    data = phantom_dataset(PhantomSettings(n=300 if quick else 600, seed=1, shortcut=0.95))
    yield from _corner(marker_reader(), data, "a model that reads the marker's place alone", 1.5)


def trained_rows() -> Iterator[Row]:
    """The story of the demonstration: trained well, re-tuned where a marker follows the label; then all weights shuffled."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        clean = phantom_dataset(PhantomSettings(n=3000, seed=1000))
        flawed = phantom_dataset(PhantomSettings(n=3000, seed=0, shortcut=0.95))
        _finetuned(clean, place / "first", BackbonePlan(), TrainingPlan(controls=False))
        _finetuned(
            flawed, place / "retuned", BackbonePlan(start=str(place / "first")),
            TrainingPlan(epochs=3, controls=False, rehearsal=RehearsalPlan(share=0.0)),
        )  # fmt: skip
        retuned, first = (load_model(place / name, device="cpu") for name in ("retuned", "first"))
        yield from _corner(retuned, flawed, "the re-tuned classifier", 1.0)
        # What the re-tuned model reads was planted; of the other nobody knows how much of it a map of patches can show.
        for model, data, what, least in ((retuned, flawed, "Re-tuned", 1), (first, clean, "First", 0)):
            found = _verdicts(model, data)
            describing = sum(word == "describes the model" for word in found.values())
            target = f"≥ {least}" if least else "no target"
            yield row(
                f"{what} classifier: methods that describe it", describing, target, describing >= least, _said(found)
            )
        for seed in SEEDS:
            found = _verdicts(first.randomised(seed), clean)
            wrong = [label for label, word in found.items() if word not in BARE]
            yield row(
                f"Shuffled weights, seed {seed}: maps that pass or are undecided",
                len(wrong),
                "0",
                not wrong,
                _said(found),
            )


def cost_rows() -> Iterator[Row]:
    """The whole analysis against the forward and backward passes it counts, were they run bare in batches of 64."""
    model, data, engine = bert(SIDE, patch=8), phantom_dataset(PhantomSettings(n=5 * IMAGES + 40, seed=1)), Engine()
    before = _of_one_batch(model)
    started = process_time()
    _asked("explanation_quality", model, data, engine, cases=IMAGES, methods=METHODS)
    whole, meter = process_time() - started, engine.meter
    after = _of_one_batch(model)
    ahead, back = ((first + second) / 2 for first, second in zip(before, after, strict=True))
    bare = ((meter.forward - meter.backward) * ahead + meter.backward * back) / IMAGES
    how = (
        f"{len(METHODS)} methods and 4 controls, 14 figures, {IMAGES} images of {SIDE} × {SIDE}, BERT body 4 × 128 of 64 tokens, "
        f"default options: {whole:.1f} CPU s against {bare:.1f}; a bare batch of {IMAGES} takes {ahead:.3f} s forward and {back:.3f} "
        f"s forward and back, median of {REPEATS} before and {REPEATS} after"
    )
    found = row("explanation_quality over its bare passes", round(whole / bare, 3), "≤ 1.25", whole <= 1.25 * bare, how)
    yield {**found, "evaluations": f"{meter.forward} forward + {meter.backward} backward"}


def _of_one_batch(model: Classifier) -> tuple[float, float]:
    """Median CPU seconds of 64 images forward, and of 64 forward and back to their pixels."""
    pixels = torch.rand(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def back() -> None:
        shown = pixels.clone().requires_grad_()
        torch.autograd.grad(model.logits(shown)[:, 1].sum(), shown)

    def ahead() -> None:
        with torch.inference_mode():
            model.logits(pixels)

    times = [(_cpu_seconds(ahead), _cpu_seconds(back)) for _ in range(REPEATS)]
    forward, both = zip(*times, strict=True)
    return median(forward), median(both)


def _cpu_seconds(work: Callable[[], None]) -> float:
    """Of one thread: minutes apart, wall times would compare how busy the machine was."""
    started = process_time()
    work()
    return process_time() - started


def _corner(model: Classifier, data: AuditDataset, which: str, above: float) -> Iterator[Row]:
    found = _asked("localisation", model, data, Engine(), cases=200)
    lifts = {
        str(item.where["method"]): item
        for item in found.metrics
        if item.name == "region_lift" and item.where["region"] == CORNER and item.where.get("site") == MARKED
    }
    best = max((name for name in lifts if name not in controls()), key=lambda name: lifts[name].low or 0.0)
    item = lifts[best]
    low, value = item.low or 0.0, item.value or 0.0
    how = f"{which}; {best}, interval {low:.2f} to {item.high or 0.0:.2f}, 1 is chance; strongest of {len(lifts)} methods and controls"
    yield row(
        f"Lift on the {CORNER} at site {MARKED}, {which}", round(value, 2), f"interval > {above:g}", low > above, how
    )


def _verdicts(model: Classifier, data: AuditDataset) -> dict[str, str]:
    found = _asked("explanation_quality", model, data, Engine(), cases=200, copies=1, shuffles=1, steps=8, bank=20)
    return {label: verdict.word for label, verdict in found.map_verdicts.items()}


def _said(found: Mapping[str, str]) -> str:
    return "; ".join(f"{label}: {word}" for label, word in found.items())


def _asked(name: str, model: Classifier, data: AuditDataset, engine: Engine, **options: Any) -> Result:
    audit = Audit(model, data, Decision(1, 0.5, True), 0, engine, ("sex",), ("site",), task=name)
    asked = analyses()[name]
    return asked(audit, asked.bind(options))


def _finetuned(data: AuditDataset, place: Path, backbone: BackbonePlan, training: TrainingPlan) -> None:
    plan = Plan(DataPlan("phantoms"), ModelPlan("checkpoint"), backbone=backbone, training=training)
    finetune_data(data, plan, place, console=Silent())


def marker_reader() -> NetworkClassifier:
    """Log-odds from the brightness of the marker's place; every other pixel has no weight at all."""
    layer = nn.Linear(SIDE * SIDE, 1)
    left, top, right, bottom = marker_box(SIDE)
    weights = torch.zeros(SIDE, SIDE)
    weights[top:bottom, left:right] = 20.0 / ((bottom - top) * (right - left))
    with torch.no_grad():
        layer.weight.copy_(weights.reshape(1, -1))
        layer.bias.fill_(-3.0)
    facts = Facts(("normal", "lesion"), False, InputSpec(1, SIDE, SIDE), "Marker reader", "by hand", "linear")
    return NetworkClassifier(nn.Sequential(nn.Flatten(), layer), facts, torch.device("cpu"))
