"""One update of the weights: losses of every image, their gradient over all parts and processes, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xvision.errors import DataError
from xvision.models.huggingface import preprocessing_of
from xvision.models.llm.adapters import MERGEABLE, merged
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.recipe import TrainingPlan
from xvision.training import state
from xvision.training.augment import augment
from xvision.training.batches import Batches, precision
from xvision.training.objectives import GroupWeights, balanced_weights, batch_weight, example_losses
from xvision.training.optimiser import MovingAverage, learning_rate, optimiser
from xvision.training.policies import apply_policy
from xvision.training.record import Arrays
from xvision.training.robust import robust_losses
from xvision.training.sampler import Sampler
from xvision.training.speed import flops, matrix_rate
from xvision.training.world import World

_SEEDS = 1_000_003
"""Spreads the seeds of steps and processes; prime, so that no two plans of small seeds meet soon."""


class Stepper:
    """Model, data and optimizer of a training, and the one way to move the weights."""

    def __init__(
        self, model: LlmImageClassifier, train: Arrays, plan: TrainingPlan, here: World, *, old: int, flip: bool
    ) -> None:
        self.model, self.plan, self.here, self.flip = model, plan, here, flip
        self.batches = Batches(train, preprocessing_of(model.config), here.device)
        self.sampler = _sampler(train, plan, old)
        self.per_epoch = math.ceil(len(self.sampler) / plan.batch_size)
        self.policy = apply_policy(model, plan, steps=plan.epochs * self.per_epoch)
        if plan.activation_checkpointing:
            model.activation_checkpointing_enable()
        self.trained = [weights for weights in model.parameters() if weights.requires_grad]
        self._moving = frozenset(self.policy.trainable) | {name for name, _ in model.named_buffers()}
        self.optimizer = optimiser(model, plan)
        self.average = MovingAverage(model, plan.ema) if plan.ema else None
        self._weigh(train)
        self.network: nn.Module = torch.compile(model) if plan.compile else model  # type: ignore[assignment]  # a module, typed as a function
        if here.size > 1:
            ids = [here.device] if here.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=ids, broadcast_buffers=False)  # constants
        self.step, self.learning_rate = 0, 0.0
        self.rate = matrix_rate(here.device, torch.bfloat16 if plan.precision == "bfloat16" else torch.float32)
        self.flops = self._flops()

    def _weigh(self, train: Arrays) -> None:
        plan, device = self.plan, self.here.device
        classes = len(self.model.config.classes)
        self.balance = balanced_weights(train.labels, classes) if plan.class_weights else None
        self.class_weights = None if self.balance is None else torch.from_numpy(self.balance).to(device)
        self.cells = _cells(train) if plan.groups.dro else None
        self.groups = (
            GroupWeights(int(self.cells.max()) + 1, plan.groups.dro_rate, device) if self.cells is not None else None
        )

    @property
    def trained_parameters(self) -> int:
        return sum(weights.numel() for weights in self.trained)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of how the weights were chosen."""
        return self.policy.notes

    def batches_left(self, epoch: int) -> Iterator[np.ndarray]:
        """The index batches of an epoch that have not been taken yet."""
        indices, size = self.sampler.order(epoch), self.plan.batch_size
        for place in range(self.step - epoch * self.per_epoch, self.per_epoch):
            yield indices[place * size : (place + 1) * size]

    def take(self, chosen: np.ndarray, epoch: int, total: int) -> torch.Tensor:
        """One update; this process's share of the loss, and the gradient's length before clipping, still on the device."""
        self.learning_rate = learning_rate(self.step, total, self.plan)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        torch.manual_seed((self.plan.seed * _SEEDS + self.step) * _SEEDS + self.here.rank)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(chosen, epoch)
        self.policy.before_step()
        length = nn.utils.clip_grad_norm_(self.trained, self.plan.clip)
        self.optimizer.step()
        self.step += 1
        self.policy.after_step(self.step)
        if self.average is not None:
            self.average.update(self.step)
        return torch.stack((loss, length.detach()))

    def _backward(self, chosen: np.ndarray, epoch: int) -> torch.Tensor:
        """Adds the gradient of the whole batch to the weights, part by part."""
        weights = _Weights(self, chosen)
        mine = self.here.share(chosen)
        silent = 0.0 if not len(mine) else 1.0  # the last batch may have fewer images than there are processes
        parts = [part for part in np.array_split(mine if silent else chosen[:1], self.plan.accumulate) if len(part)]
        loss = torch.zeros((), device=self.here.device)
        for place, part in enumerate(parts):
            with self._together(last=place + 1 == len(parts)):
                losses = self._losses(part, epoch)
                share = silent * (losses * weights.of(part)).sum()
                (share * self.here.size).backward()  # type: ignore[no-untyped-call]  # several processes are averaged
            weights.note(part, silent * losses.detach())
            loss += share.detach()
        weights.finish()
        return loss

    def _losses(self, part: np.ndarray, epoch: int) -> torch.Tensor:
        """(B,) of one part."""
        pixels, labels = self.batches.pixels(part), self.batches.labels(part)
        text, plan = self.batches.text(part), self.plan
        if plan.augment:
            pixels = augment(pixels, part, seed=plan.seed, epoch=epoch, flip=self.flip)
        measure = partial(example_losses, labels=labels, plan=plan, class_weights=self.class_weights)
        return robust_losses(partial(self._logits, text=text), measure, pixels, plan.attack)

    def _logits(self, pixels: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
        # An attack differentiates by the pixels only: processes must not wait for each other there.
        network = self.model if pixels.requires_grad or not torch.is_grad_enabled() else self.network
        repeated = text if text is None or len(text) == len(pixels) else torch.cat((text, text))
        with precision(self.plan, pixels.device):
            normalised = self.batches.normalised(pixels)
            logits: torch.Tensor = (
                network(normalised) if repeated is None else network(normalised, text=repeated)
            ).logits
        return logits

    def _together(self, *, last: bool) -> AbstractContextManager[None]:
        """Processes add their gradients up once, after the last part."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return nullcontext()

    def averaged(self) -> AbstractContextManager[None]:
        """The moving average in place of the weights, where the plan keeps one."""
        return nullcontext() if self.average is None else self.average.applied()

    def saveable(self) -> LlmImageClassifier:
        """The model as it is saved: adapters merged where they can be, so that loading it needs no further package."""
        adapter = self.model.config.adapter
        return merged(self.model) if adapter is not None and adapter["kind"] in MERGEABLE else self.model

    def finish(self) -> None:
        """Frees what only training needs."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.plan.activation_checkpointing:
            self.model.activation_checkpointing_disable()  # type: ignore[no-untyped-call]  # partly annotated

    def tensors(self) -> state.Tensors:
        """Everything that decides later steps."""
        moved = {name: weights for name, weights in self.model.state_dict().items() if name in self._moving}
        kept = state.under("model", moved) | state.under("optimizer", state.optimizer_tensors(self.optimizer))
        kept |= state.under("policy", self.policy.state())
        if self.average is not None:
            kept |= state.under("average", {str(place): mean for place, mean in enumerate(self.average.means)})
        if self.groups is not None:
            kept |= {"groups/weights": self.groups.weights}
        return kept

    def restore(self, tensors: state.Tensors, step: int) -> None:
        """Takes back what ``tensors`` gave."""
        state.restore_weights(self.model, state.within("model", tensors), self._moving)
        self.policy.load_state(state.within("policy", tensors))
        state.restore_optimizer(self.optimizer, state.within("optimizer", tensors))
        if self.average is not None:
            self.average.means = [
                value for _, value in sorted(state.within("average", tensors).items(), key=lambda pair: int(pair[0]))
            ]
        if self.groups is not None:
            self.groups.weights = tensors["groups/weights"]
        self.step = step

    def _flops(self) -> int:
        """Of training on one image, counted on two."""
        part = np.arange(min(2, len(self.batches.arrays.labels)))
        counted = flops(lambda: self._uncompiled(part)) // len(part)
        self.optimizer.zero_grad(set_to_none=True)
        return counted

    def _uncompiled(self, part: np.ndarray) -> None:
        network, self.network = self.network, self.model
        try:
            self._losses(part, 0).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        finally:
            self.network = network


class _Weights:
    """How much each image of a batch counts: alike, by class, or by group."""

    def __init__(self, steps: Stepper, chosen: np.ndarray) -> None:
        self.steps = steps
        if steps.cells is None or steps.groups is None:
            labels = steps.batches.arrays.labels[chosen]
            self.whole = batch_weight(labels, steps.balance)
            return
        size, device = len(steps.groups.weights), steps.here.device
        self.counts = torch.from_numpy(np.bincount(steps.cells[chosen], minlength=size)).to(device)
        self.sums = torch.zeros(size, device=device)

    def of(self, part: np.ndarray) -> torch.Tensor | float:
        if self.steps.groups is None:
            return 1.0 / self.whole
        return self.steps.groups.example_weights(self._codes(part), self.counts)

    def note(self, part: np.ndarray, losses: torch.Tensor) -> None:
        if self.steps.groups is not None:
            self.sums.index_add_(0, self._codes(part), losses.float())

    def finish(self) -> None:
        if self.steps.groups is not None:
            self.steps.groups.update(self.steps.here.add(self.sums), self.counts)

    def _codes(self, part: np.ndarray) -> torch.Tensor:
        cells = self.steps.cells
        if cells is None:
            raise DataError("group-robust training needs the group column of every training image.")
        return torch.from_numpy(cells[part]).to(self.steps.here.device)


def _cells(train: Arrays) -> np.ndarray:
    """(N,) code of each image's label and group together."""
    if train.groups is None:
        raise DataError("training.groups.column was given but the training images bring no groups.")
    labels = train.labels if train.labels.ndim == 1 else (train.labels > 0).any(axis=1).astype(np.int64)
    pairs = np.stack((labels, train.groups), axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _sampler(train: Arrays, plan: TrainingPlan, old: int) -> Sampler:
    return Sampler(len(train.labels) - old, plan.seed, train.balance, old, plan.rehearsal.share if old else 0.0)
