"""Fine-tuning from top to bottom: draw, augment, forward, backward, clip, step; validate, keep the best, go on after a kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xvision import codec
from xvision.errors import ModelError
from xvision.models.checkpoint import recover, refuse_foreign_files, save_model
from xvision.models.huggingface import fingerprint, preprocessing_of
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.loading import quiet
from xvision.recipe import TrainingPlan
from xvision.training import state
from xvision.training.record import (
    LOG,
    Arrays,
    Progress,
    TrainingSummary,
    Validation,
    check_arrays,
    facts,
    log,
    write_run,
)
from xvision.training.scores import majority_rate, pixel_baseline
from xvision.training.step import Stepper
from xvision.training.trackers import Trackers, open_trackers
from xvision.training.validation import validate
from xvision.training.world import World, world

__all__ = ["Arrays", "Progress", "TrainingSummary", "Validation", "finetune"]

REPORT_EVERY = 10
"""Steps between two lines of the log: reading the loss more often would make a GPU wait."""
Listener = Callable[[Progress], None]


@dataclass
class _Run:
    """One training: what it is made of, and what is known of it so far."""

    steps: Stepper
    validation: Arrays
    plan: TrainingPlan
    out: Path
    here: World
    key: str
    before: Validation
    trackers: Trackers
    progress: Listener | None
    best: Validation = Validation(None, "not validated yet", 0.0, math.inf)  # noqa: RUF009  # frozen
    best_epoch: int = 0
    epoch: int = 0
    """Epochs that are finished."""
    images: int = 0
    earlier: float = 0.0
    """Seconds of the processes that were interrupted; ``images`` counts theirs too."""
    started: float = 0.0

    @property
    def total(self) -> int:
        return self.plan.epochs * self.steps.per_epoch

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started


def finetune(
    model: LlmImageClassifier,
    train: Arrays,
    validation: Arrays,
    plan: TrainingPlan,
    out: Path,
    *,
    old: int = 0,
    flip: bool = False,
    resume: bool = False,
    keep_state: bool = False,
    record: Mapping[str, Any] | None = None,
    progress: Listener | None = None,
) -> TrainingSummary:
    """Trains ``model`` as the plan says and leaves it, and the checkpoint folder ``out``, with the weights of the best epoch.

    The best epoch has the best validation score. ``out`` also receives metrics.jsonl (losses as they come, scores of each
    epoch) and run.json (plan, data, versions, result). On one device with one thread the same plan, data and starting
    weights give the same weights to the last bit, also when the process was killed and started again with ``resume``.

    old: number of training images, at the end of ``train``, that are rehearsed. flip: mirroring is harmless in these images.
    keep_state: leave it to the caller to forget the state, when what follows the training is done too. record: further facts
    for run.json. Under torchrun, ``accelerate launch`` or Ray Train every process calls this with the
    same arguments. Raises DataError for images or labels that do not fit the model, ConfigError for a state of another
    training, RunError when the disk refuses a write, and ModelError when the loss stops being finite; the last good
    checkpoint then stays in ``out``.
    """
    for name, arrays in (("training", train), ("validation", validation)):
        check_arrays(name, arrays, model.config)
    recover(out)
    refuse_foreign_files(out)
    data: dict[str, Any] = {"training": {**facts(train), "rehearsed": old}, "validation": facts(validation)}
    here = world()
    with _reproducible(plan, here.device):
        run = _start(model, train, validation, plan, out, here, data, old, flip, resume, progress)
        try:
            while run.epoch < plan.epochs and not _out_of_patience(run):
                _train_epoch(run)
                _end_epoch(run)
        finally:
            run.trackers.close()
        here.wait()
        _take_best(model, run)
        summary = _summarise(run, train)
        if here.first:
            write_run(out, summary, plan, {**data, **(record or {})})
            if not keep_state:
                state.forget(out)
        here.wait()  # a process that left first would cut the others off
    return summary


def _start(
    model: LlmImageClassifier, train: Arrays, validation: Arrays, plan: TrainingPlan, out: Path, here: World,
    data: Mapping[str, Any], old: int, flip: bool, resume: bool, progress: Listener | None,
) -> _Run:  # fmt: skip
    if not resume:
        state.refuse_interrupted(out)
    model.to(here.device)  # type: ignore[arg-type]  # its decorator hides the signature
    parts = {"plan": _lasting(plan), "data": data, "flip": flip}
    key = state.key_of({**parts, "model": fingerprint(model, preprocessing_of(model.config))})
    before = validate(model, validation, plan, here)
    steps = Stepper(model, train, plan, here, old=old, flip=flip)
    run = _Run(steps, validation, plan, out, here, key, before, open_trackers(plan, out, active=here.first), progress)
    found = state.read_state(out, key, here.device) if resume else None
    if found is not None:
        _restore(run, *found)
    elif here.first:
        out.mkdir(parents=True, exist_ok=True)
        (out / LOG).write_text("", encoding="utf-8")
        (out / "run.json").unlink(missing_ok=True)
    here.wait()
    run.started = time.perf_counter()
    return run


def _lasting(plan: TrainingPlan) -> dict[str, Any]:
    """The plan without what changes no weight by more than rounding."""
    return {
        name: value
        for name, value in codec.plain(plan).items()
        if name not in {"threads", "trackers", "state_every", "controls"}
    }


def _train_epoch(run: _Run) -> None:
    recent: list[torch.Tensor] = []
    steps, plan = run.steps, run.plan
    steps.model.train()
    for chosen in steps.batches_left(run.epoch):
        recent.append(steps.take(chosen, run.epoch, run.total))
        run.images += len(chosen)
        last = steps.step % steps.per_epoch == 0
        keep = bool(plan.state_every) and steps.step % plan.state_every == 0 and not last
        if steps.step % REPORT_EVERY == 0 or last or keep:
            _report(run, recent)
            recent.clear()
        if keep:
            _save_state(run)


def _end_epoch(run: _Run) -> None:
    steps = run.steps
    with steps.averaged():
        scores = validate(steps.model, run.validation, run.plan, run.here)
        run.epoch += 1
        if not math.isfinite(scores.loss):
            raise _diverged(run, steps.step)
        _log(run, {"event": "epoch", "epoch": run.epoch, "step": steps.step, **codec.plain(scores)})
        if scores.rank(run.plan.select) > run.best.rank(run.plan.select):
            run.best, run.best_epoch = scores, run.epoch
            if run.here.first:
                save_model(steps.saveable(), run.out, keep=(LOG,))
    _save_state(run)


def _out_of_patience(run: _Run) -> bool:
    return bool(run.plan.patience) and run.epoch - run.best_epoch >= run.plan.patience


def _save_state(run: _Run) -> None:
    if run.here.first:
        numbers = {
            "key": run.key, "step": run.steps.step, "epoch": run.epoch, "best_epoch": run.best_epoch,
            "best": codec.plain(run.best) if run.best_epoch else None, "before": codec.plain(run.before),
            "images": run.images, "seconds": run.seconds, "log": (run.out / LOG).stat().st_size,
        }  # fmt: skip
        state.save_state(run.out, run.steps.tensors(), numbers)
    run.here.wait()


def _restore(run: _Run, tensors: state.Tensors, numbers: Mapping[str, Any]) -> None:
    run.steps.restore(tensors, numbers["step"])
    run.epoch, run.best_epoch = numbers["epoch"], numbers["best_epoch"]
    run.images, run.earlier = numbers["images"], numbers["seconds"]
    run.before = codec.read(Validation, numbers["before"], "state", ModelError)
    if numbers["best"] is not None:
        run.best = codec.read(Validation, numbers["best"], "state", ModelError)
    if run.here.first:
        with (run.out / LOG).open("r+b") as file:  # what came after the state will come again
            file.truncate(numbers["log"])


def _take_best(model: LlmImageClassifier, run: _Run) -> None:
    """The weights of the best epoch, as they were saved: adapters that could be merged are."""
    run.steps.finish()
    with quiet():
        best = LlmImageClassifier.from_pretrained(run.out, local_files_only=True, dtype=torch.float32)
    model.config, model.backbone = best.config, best.backbone.to(run.here.device)
    model.load_state_dict(best.state_dict())
    model.requires_grad_(True).train(False)


def _report(run: _Run, recent: list[torch.Tensor]) -> None:
    values = run.here.add(torch.stack(recent)).cpu()
    values[:, 1] /= run.here.size  # the gradient is already that of all processes
    step, steps = run.steps.step, run.steps
    if not values.isfinite().all():
        first = int((~values.isfinite()).any(dim=1).nonzero()[0])
        raise _diverged(run, step - len(recent) + first + 1)
    loss, length = values.mean(dim=0).tolist()
    speed = run.images / run.seconds
    left = run.seconds / step * (run.total - step)
    mfu = steps.flops * speed / (steps.rate * run.here.size)
    _log(run, {
        "event": "steps", "epoch": run.epoch + 1, "step": step, "loss": loss, "learning_rate": steps.learning_rate,
        "gradient_norm": length, "images_per_second": speed, "mfu": mfu,
    })  # fmt: skip
    if run.progress is not None and run.here.first:
        run.progress(Progress(run.epoch + 1, step, run.total, loss, speed, left, mfu))


def _log(run: _Run, line: Mapping[str, Any]) -> None:
    if run.here.first:
        log(run.out, line)
        run.trackers.log(line)


def _diverged(run: _Run, step: int) -> ModelError:
    """The error; the state goes too, because continuing would diverge at the same step again."""
    if run.here.first:
        state.forget(run.out)
    kept = f"the checkpoint of epoch {run.best_epoch} is in {run.out}" if run.best_epoch else "no checkpoint was saved"
    return ModelError(
        f"Training diverged: the loss or its gradient was not finite at step {step} of {run.total}; {kept}. "
        "Lower training.learning_rate or check the images."
    )


def _summarise(run: _Run, train: Arrays) -> TrainingSummary:
    seconds = run.seconds
    steps, best, device = run.steps, run.best, run.here.device
    classes = len(steps.model.config.classes)
    baseline = pixel_baseline(train, run.validation, classes, run.plan.seed)
    majority = majority_rate(train.labels, run.validation.labels, classes)
    speed = run.images / seconds
    return TrainingSummary(
        best_epoch=run.best_epoch, epochs=run.epoch, steps=steps.step, validation=best, before=run.before,
        baseline_auroc=baseline.value, baseline_reason=baseline.reason, majority_accuracy=majority,
        beats_majority=best.accuracy > majority, parameters=sum(weights.numel() for weights in steps.model.parameters()),
        trained_parameters=steps.trained_parameters, seconds=seconds, images_per_second=speed, flops=steps.flops,
        matrix_rate=steps.rate, mfu=steps.flops * speed / (steps.rate * run.here.size),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu", processes=run.here.size,
        notes=steps.notes,
    )  # fmt: skip


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
