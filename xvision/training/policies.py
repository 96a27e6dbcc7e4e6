"""Which weights of a classifier are trained: all, some, or an adapter's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from xvision import codec
from xvision.errors import ConfigError
from xvision.models.huggingface import preprocessing_of
from xvision.models.llm.adapter_parts import counters, layers_of, projections, virtual_of
from xvision.models.llm.adapters import RankSchedule, adapter_weights, attach, misfit, read_adapter
from xvision.models.llm.backbone import seeded
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.loading import DAMAGE, reason
from xvision.models.tokens import layout_of
from xvision.recipe import ADAPTERS, Policy, TrainingPlan

FEWEST_STEPS = 10
"""Updates below which AdaLoRA has no time to measure, cut and settle."""


@dataclass(frozen=True)
class Applied:
    """What a policy made trainable. trainable: names of the weights, in the model's order. notes: what the reader of the
    training report should know. schedule: AdaLoRA's, else None."""

    policy: Policy
    trainable: tuple[str, ...]
    trainable_parameters: int
    total_parameters: int
    notes: tuple[str, ...] = ()
    schedule: RankSchedule | None = None

    def before_step(self) -> None:
        """To be called before each update, when all gradients are there and not yet clipped."""
        if self.schedule is not None:
            self.schedule.before_step()

    def after_step(self, step: int) -> None:
        """To be called after each update, counted from 1, while its gradients are still there."""
        if self.schedule is not None:
            self.schedule.after_step(step)

    def state(self) -> dict[str, torch.Tensor]:
        """What later steps depend on besides weights and optimiser; empty for all policies but AdaLoRA."""
        return {} if self.schedule is None else self.schedule.state()

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what ``state`` gave."""
        if self.schedule is not None:
            self.schedule.load_state(state)


def apply_policy(model: LlmImageClassifier, plan: TrainingPlan, *, steps: int | None = None) -> Applied:
    """Sets ``requires_grad`` of every weight of ``model`` as ``plan.policy`` says, and attaches its adapter if it has none.

    full: everything. head: classifier and its norm, or the label words. norms: all norms and the head. fpt: all but the
    attention and feed-forward matrices of the backbone (Lu et al., 2021). last_k: the last layers of the backbone, its final
    norm and the head. bitfit: all biases and the head (Ben Zaken et al., 2022). Adapters: the adapter and everything outside
    the backbone, with the tokens that only this model has; new adapter weights depend on ``plan.seed`` alone.

    steps: updates of the whole training, which AdaLoRA has to know. Raises ConfigError when the policy does not fit the
    model, and MissingExtra without peft.
    """
    _refuse_other_adapter(model, plan)
    schedule = _adapt(model, plan, steps) if plan.policy in ADAPTERS else None
    wanted = {id(weights) for weights in _select(model, plan)} - {id(weights) for weights in _unused(model)}
    for weights in model.parameters():
        weights.requires_grad_(id(weights) in wanted)
    named = [(name, weights) for name, weights in model.named_parameters() if weights.requires_grad]
    return Applied(
        policy=plan.policy, trainable=tuple(name for name, _ in named),
        trainable_parameters=sum(weights.numel() for _, weights in named),
        total_parameters=sum(weights.numel() for weights in model.parameters()),
        notes=tuple(_notes(model, plan, schedule)), schedule=schedule,
    )  # fmt: skip


def _refuse_other_adapter(model: LlmImageClassifier, plan: TrainingPlan) -> None:
    has = model.config.adapter
    if has is not None and plan.policy in ADAPTERS and codec.plain(_settings(plan)) != codec.plain(read_adapter(has)):
        raise ConfigError(
            f"training.policy is {plan.policy!r}, but the classifier already has another adapter ({_spoken(has)}): train with "
            "that policy and those settings, or with one that adds nothing, such as full or head."
        )


def _spoken(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value not in ([], None))


def _settings(plan: TrainingPlan) -> Any:
    """The adapter that the plan asks for; ConfigError when a value is out of range."""
    asked, policy = plan.adapter, plan.policy
    keys: Mapping[str, tuple[str, ...]] = {
        "ia3": ("targets",), "prefix": ("virtual_tokens",), "prompt": ("virtual_tokens",), "bottleneck": ("width",),
    }  # fmt: skip
    values = {key: getattr(asked, key) for key in keys.get(policy, ("rank", "alpha", "dropout", "targets"))}
    return read_adapter({"kind": policy, **values}, "training.adapter", ConfigError)


def _adapt(model: LlmImageClassifier, plan: TrainingPlan, steps: int | None) -> RankSchedule | None:
    adapter, backbone = _settings(plan), model.backbone
    _check_adapter(model, adapter, plan, steps)
    if model.config.adapter is None:
        with seeded(plan.seed):
            attach(backbone, adapter, "training.adapter")
            _scale_prompt(model, adapter)
        _check_effect(model, adapter.kind)
        model.config.adapter = codec.plain(adapter)
    if adapter.kind != "adalora" or steps is None:
        return None
    return RankSchedule(backbone, adapter, steps)


def _check_adapter(model: LlmImageClassifier, adapter: Any, plan: TrainingPlan, steps: int | None) -> None:
    if model.config.adapter is None and (reason := misfit(model.backbone, adapter)):
        raise ConfigError(f"training.adapter: {reason}")
    if adapter.kind == "prefix" and plan.activation_checkpointing:
        raise ConfigError(
            "training.activation_checkpointing cannot be used with the policy 'prefix', because recomputed layers would not see "
            "the prefix: switch it off, or choose the policy 'prompt'."
        )
    if adapter.kind == "adalora" and (steps is None or steps < FEWEST_STEPS):
        raise ConfigError(
            f"The policy 'adalora' cuts its ranks over the training, and needs {FEWEST_STEPS} updates at least, not {steps}: "
            "train longer, use smaller batches, or choose the policy 'lora'."
        )


def _check_effect(model: LlmImageClassifier, kind: str) -> None:
    """Some backbones cannot run with an adapter, and some run as if it were not there: try one grey image."""
    config, training = model.config, model.training
    grey = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=model.device)
    weights = list(adapter_weights(model.backbone))
    body = config.text_config.model_type
    model.train(False)
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(model(grey).logits.sum(), weights, allow_unused=True)
    except DAMAGE as problem:
        raise ConfigError(
            f"The policy {kind!r} cannot be used with {body} ({reason(problem)}): choose another one."
        ) from problem
    finally:
        model.train(training)
    if any(gradient is None for gradient in found):
        raise ConfigError(f"The policy {kind!r} would do nothing, or not all it should, in {body}: choose another one.")


@torch.no_grad()
def _scale_prompt(model: LlmImageClassifier, adapter: Any) -> None:
    """New prompts start as large as the image tokens that they stand before."""
    if adapter.kind == "prompt" and (virtual := virtual_of(model.backbone)) is not None:
        for weights in virtual.parameters():
            weights.mul_(model.stem.norm.weight.abs().mean())


def _select(model: LlmImageClassifier, plan: TrainingPlan) -> Iterator[nn.Parameter]:
    choose: Mapping[str, Callable[[], Iterator[nn.Parameter]]] = {
        "full": model.parameters,
        "head": lambda: _head(model),
        "norms": lambda: chain(_of(model, _is_norm), _head(model)),
        "fpt": lambda: chain(_outside(model), _of(model.backbone, _is_norm), _of(model.backbone, _is_embedding)),
        "last_k": lambda: chain(_last_layers(model, plan.last_k), _head(model)),
        "bitfit": lambda: chain(_biases(model), _head(model)),
    }
    if plan.policy in choose:
        return choose[plan.policy]()
    return chain(adapter_weights(model.backbone), _outside(model), _words(model).parameters())


def _head(model: LlmImageClassifier) -> Iterator[nn.Parameter]:
    for part in (model.cls_norm, model.classifier):
        yield from part.parameters()


def _outside(model: LlmImageClassifier) -> Iterator[nn.Parameter]:
    """Stem, positions, norm before the head, and head: everything but the backbone."""
    return (weights for name, part in model.named_children() if name != "backbone" for weights in part.parameters())


def _words(model: LlmImageClassifier) -> nn.Module:
    """The table of the read-out and of the words that the model reads."""
    table: nn.Module = model.backbone.get_input_embeddings()
    return table


def _of(part: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[nn.Parameter]:
    return (weights for found in part.modules() if wanted(found) for weights in found.parameters())


def _is_norm(part: nn.Module) -> bool:
    return "Norm" in type(part).__name__


def _is_embedding(part: nn.Module) -> bool:
    return isinstance(part, nn.Embedding)


def _biases(model: LlmImageClassifier) -> Iterator[nn.Parameter]:
    return (weights for name, weights in model.named_parameters() if name.rpartition(".")[2] == "bias")


def _last_layers(model: LlmImageClassifier, count: int) -> Iterator[nn.Parameter]:
    layers = layers_of(model.backbone)
    if count > len(layers):
        raise ConfigError(
            f"training.last_k is {count} but the backbone has {len(layers)} layers: choose at most that many."
        )
    for layer in layers[-count:]:
        yield from layer.parameters()
    inside = {id(part) for part in layers.modules()}
    for name, part in model.backbone.named_modules():
        if _is_norm(part) and id(part) not in inside and "embed" not in name:
            yield from part.parameters()


def _unused(model: LlmImageClassifier) -> Iterator[nn.Parameter]:
    """Weights that no output depends on, or that training must leave alone."""
    if model.config.readout == "mean" and not model.config.text_tokens:
        yield from _words(model).parameters()
    yield from counters(model.backbone)


def _notes(model: LlmImageClassifier, plan: TrainingPlan, schedule: RankSchedule | None) -> Iterator[str]:
    policy, config = plan.policy, model.config
    body = config.text_config.model_type
    if policy == "bitfit" and not any(name.endswith("bias") for name, _ in model.backbone.named_parameters()):
        yield f"the backbone {body} has no biases: bitfit trains those of the image stem, and the head"
    if policy == "ia3" and not plan.adapter.targets:
        yield "IA3 scales the outputs of every linear layer of the backbone, not of keys, values and feed-forward alone"
    if policy == "bottleneck" and (places := len(projections(model.backbone))) != 2 * len(layers_of(model.backbone)):
        yield f"{body} takes {places} bottlenecks in its {len(layers_of(model.backbone))} layers, not two in each"
    if policy in ADAPTERS and config.text_tokens:
        yield f"the {len(config.text_ids)} kept words of the language model are trained with the read-out token"
    if policy not in (*ADAPTERS, "full") and config.adapter is not None:
        yield f"the classifier keeps the adapter it came with ({_spoken(config.adapter)})"
    if policy in ("prefix", "prompt") and layout_of(model, preprocessing_of(config).input) is None:
        yield f"the attention of {body} does not reach over image and virtual tokens: it cannot be read as a map"
    if schedule is not None:
        yield schedule.spoken()
        if plan.ema:
            yield "the moving average mixes ranks from before and after their cut: what is saved has more of them"
