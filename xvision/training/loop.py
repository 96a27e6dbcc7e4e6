"""Fine-tuning from top to bottom: shuffle, augment, forward, backward, clip, step; validate, keep the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from xvision.errors import ModelError
from xvision.models.checkpoint import refuse_foreign_files, save_model
from xvision.models.huggingface import preprocessing_of
from xvision.models.llm_classifier import LlmImageClassifier
from xvision.models.preprocessing import Preprocessing
from xvision.recipe import TrainingPlan
from xvision.training.augment import augment
from xvision.training.record import LOG, Arrays, Progress, TrainingSummary, Validation, check_arrays, log, write_run
from xvision.training.sampler import order
from xvision.training.scores import Auroc, auroc, majority_rate, pixel_baseline

__all__ = ["Arrays", "Progress", "TrainingSummary", "Validation", "finetune"]

REPORT_EVERY = 10
"""Steps between two lines of the log: reading the loss more often would make a GPU wait."""


@dataclass
class _State:
    """What moves during training; with the plan it decides every later step."""

    model: LlmImageClassifier
    optimizer: torch.optim.AdamW
    preprocessing: Preprocessing
    class_weights: torch.Tensor | None
    total: int
    step: int = 0
    images: int = 0
    best: Validation = Validation(None, "not validated yet", 0.0, math.inf)  # noqa: RUF009  # frozen
    best_epoch: int = 0
    started: float = field(default_factory=time.perf_counter)


def finetune(
    model: LlmImageClassifier,
    train: Arrays,
    validation: Arrays,
    plan: TrainingPlan,
    out: Path,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> TrainingSummary:
    """Trains every weight of ``model`` and leaves it, and the checkpoint folder ``out``, with those of the best epoch.

    The best epoch has the largest validation AUROC. ``out`` also receives metrics.jsonl (losses as they come, scores
    of each epoch) and run.json (plan, data, versions, result). On one device with one thread the same plan, data and
    starting weights give the same weights to the last bit. Raises DataError for images or labels that do not fit the
    model and ModelError when the loss stops being finite; the last good checkpoint then stays in ``out``.
    """
    for name, arrays in (("training", train), ("validation", validation)):
        check_arrays(name, arrays, model.config)
    _open_folder(out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with _reproducible(plan, device):
        state = _start(model, device, train, plan)
        for epoch in range(plan.epochs):
            _train_epoch(state, train, plan, epoch, out, progress)
            scores = validate(model, validation, plan)
            if not math.isfinite(scores.loss):
                raise _diverged(state, state.step, out)
            log(out, {"event": "epoch", "epoch": epoch + 1, "step": state.step, **asdict(scores)})
            if scores.rank > state.best.rank:
                state.best, state.best_epoch = scores, epoch + 1
                save_model(model, out, keep=(LOG,))
            elif plan.patience and epoch + 1 - state.best_epoch >= plan.patience:
                break
        state.optimizer.zero_grad(set_to_none=True)
        model.load_state_dict(load_file(out / "model.safetensors", device=str(device)))
        summary = _summarise(state, train, validation, plan, epoch + 1, device)
    write_run(out, summary, plan, train, validation)
    return summary


@torch.inference_mode()
def validate(model: LlmImageClassifier, arrays: Arrays, plan: TrainingPlan) -> Validation:
    """AUROC, accuracy of the largest logit, and mean cross-entropy without label smoothing or class weights."""
    model.train(False)
    preprocessing = preprocessing_of(model.config)
    parts = []
    for start in range(0, len(arrays.labels), 4 * plan.batch_size):
        pixels = _pixels(arrays, np.arange(start, min(start + 4 * plan.batch_size, len(arrays.labels))), model.device)
        with _precision(plan, model.device):
            parts.append(model(preprocessing.normalise(pixels)).logits.float())
    logits, labels = torch.cat(parts).cpu(), torch.from_numpy(arrays.labels)
    area = auroc(logits.softmax(dim=1).numpy(), arrays.labels) if logits.isfinite().all() else Auroc(None, "not finite")
    accuracy = float(np.mean(logits.argmax(dim=1).numpy() == arrays.labels))
    return Validation(area.value, area.reason, accuracy, float(F.cross_entropy(logits, labels)))


def _train_epoch(
    state: _State,
    train: Arrays,
    plan: TrainingPlan,
    epoch: int,
    out: Path,
    progress: Callable[[Progress], None] | None,
) -> None:
    state.model.train()
    recent: list[torch.Tensor] = []
    indices = order(len(train.labels), plan.seed, epoch)
    for start in range(0, len(indices), plan.batch_size):
        chosen = indices[start : start + plan.batch_size]
        pixels = _pixels(train, chosen, state.model.device)
        if plan.augment:
            pixels = augment(pixels, chosen, seed=plan.seed, epoch=epoch)
        labels = torch.from_numpy(train.labels[chosen]).to(pixels.device)
        recent.append(_step(state, pixels, labels, plan))
        state.images += len(chosen)
        if state.step % REPORT_EVERY == 0 or start + len(chosen) == len(indices):
            _report(state, recent, epoch, out, progress)
            recent.clear()


def _step(state: _State, pixels: torch.Tensor, labels: torch.Tensor, plan: TrainingPlan) -> torch.Tensor:
    """One update; the loss and the length of the gradient before clipping, both still on the device."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, state.total, plan)
    with _precision(plan, pixels.device):
        logits = state.model(state.preprocessing.normalise(pixels)).logits
    loss = F.cross_entropy(logits.float(), labels, weight=state.class_weights, label_smoothing=plan.label_smoothing)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    length = nn.utils.clip_grad_norm_(state.model.parameters(), plan.clip)
    state.optimizer.step()
    state.step += 1
    return torch.stack((loss.detach(), length.detach()))


def learning_rate(step: int, total: int, plan: TrainingPlan) -> float:
    """Linear warm-up over the plan's share of the steps, then half a cosine down to 0."""
    warmup = max(1, round(plan.warmup * total))
    if step < warmup:
        return plan.learning_rate * (step + 1) / warmup
    return plan.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and filters; none for biases, norms, positions and the read-out token."""
    embedded = {
        id(weights) for part in model.modules() if isinstance(part, nn.Embedding) for weights in part.parameters()
    }
    decayed = [weights for weights in model.parameters() if weights.ndim > 1 and id(weights) not in embedded]
    others = [weights for weights in model.parameters() if weights.ndim <= 1 or id(weights) in embedded]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _start(model: LlmImageClassifier, device: torch.device, train: Arrays, plan: TrainingPlan) -> _State:
    model.to(device).requires_grad_(True)  # type: ignore[arg-type]  # its decorator hides the signature
    weights = None
    if plan.class_weights:
        counts = np.bincount(train.labels, minlength=len(model.config.classes))
        weights = torch.tensor(len(train.labels) / (len(counts) * counts), dtype=torch.float32, device=model.device)
    # A shorter memory of squared gradients than the default: with 0.999, training collapsed at twice the learning rate.
    optimizer = torch.optim.AdamW(parameter_groups(model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.95))
    total = plan.epochs * math.ceil(len(train.labels) / plan.batch_size)
    return _State(model, optimizer, preprocessing_of(model.config), weights, total)


def _pixels(arrays: Arrays, chosen: np.ndarray, device: torch.device) -> torch.Tensor:
    pixels = torch.from_numpy(arrays.pixels[chosen]).to(device, non_blocking=True)
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels


def _precision(plan: TrainingPlan, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=plan.precision == "bfloat16")


def _report(
    state: _State, recent: list[torch.Tensor], epoch: int, out: Path, progress: Callable[[Progress], None] | None
) -> None:
    values = torch.stack(recent).cpu()
    if not values.isfinite().all():
        first = int((~values.isfinite()).any(dim=1).nonzero()[0])
        raise _diverged(state, state.step - len(recent) + first + 1, out)
    loss, length = values.mean(dim=0).tolist()
    elapsed = time.perf_counter() - state.started
    speed, left = state.images / elapsed, elapsed / state.step * (state.total - state.step)
    rate = state.optimizer.param_groups[0]["lr"]
    log(out, {
        "event": "steps", "epoch": epoch + 1, "step": state.step, "loss": loss, "learning_rate": rate,
        "gradient_norm": length, "images_per_second": speed,
    })  # fmt: skip
    if progress is not None:
        progress(Progress(epoch + 1, state.step, state.total, loss, speed, left))


def _diverged(state: _State, step: int, out: Path) -> ModelError:
    kept = f"the checkpoint of epoch {state.best_epoch} is in {out}" if state.best_epoch else "no checkpoint was saved"
    return ModelError(
        f"Training diverged: the loss or its gradient was not finite at step {step} of {state.total}; {kept}. "
        "Lower training.learning_rate or check the images."
    )


def _summarise(
    state: _State, train: Arrays, validation: Arrays, plan: TrainingPlan, epochs: int, device: torch.device
) -> TrainingSummary:
    seconds = time.perf_counter() - state.started
    best, classes = state.best, len(state.model.config.classes)
    baseline = pixel_baseline(train, validation, classes, plan.seed)
    majority = majority_rate(train.labels, validation.labels, classes)
    return TrainingSummary(
        best_epoch=state.best_epoch, epochs=epochs, steps=state.step, validation=best, baseline_auroc=baseline.value,
        baseline_reason=baseline.reason, majority_accuracy=majority, beats_majority=best.accuracy > majority,
        parameters=sum(weights.numel() for weights in state.model.parameters()), seconds=seconds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    )  # fmt: skip


def _open_folder(out: Path) -> None:
    refuse_foreign_files(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).write_text("", encoding="utf-8")
    (out / "run.json").unlink(missing_ok=True)


@contextmanager
def _reproducible(plan: TrainingPlan, device: torch.device) -> Iterator[None]:
    """The plan's threads and seed inside; the caller's own before and after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(plan.seed)
            yield
    finally:
        torch.set_num_threads(threads)
