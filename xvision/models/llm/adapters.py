"""Small added weights inside a frozen language model; the only file that knows the peft library.

LoRA (Hu et al., 2021), DoRA (Liu et al., 2024), AdaLoRA (Zhang et al., 2023) and IA3 (Liu et al., 2022) are peft's layers;
prefix tuning (Li and Liang, 2021) and prompt tuning (Lester et al., 2021) use peft's encoders, placed by hooks of our own,
because peft's wrapper drops position ids and hides the backbone; bottleneck adapters (Houlsby et al., 2019), which peft does
not have, are our own. All of them change the backbone in place and leave everything else of a classifier alone: whatever is
not in the backbone is saved, loaded and trained as without an adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xvision import codec
from xvision.errors import MissingExtra, ModelError, XVisionError
from xvision.models.llm.adapter_parts import (
    START,
    Bottleneck,
    add_bottlenecks,
    add_prefix,
    add_prompt,
    attention_shape,
    linear_layers,
    projections,
    virtual_of,
)
from xvision.models.loading import reason

if TYPE_CHECKING:
    from xvision.models.llm.classifier import LlmImageClassifier

Kind = Literal["lora", "dora", "adalora", "ia3", "prefix", "prompt", "bottleneck"]
MERGEABLE: tuple[Kind, ...] = ("lora", "dora", "adalora", "ia3")
"""Kinds that can be multiplied into the weights they adapt, so that nothing of them is left to load."""
_NAME = "default"
_TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MOST_TARGETS, _LONGEST_TARGET, _MOST_TOKENS = 4096, 200, 1024


@codec.record
class LowRank:
    """A product of two thin matrices beside each target. targets: endings of module names; none means every linear layer."""

    kind: Literal["lora", "dora", "adalora"]
    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require("rank", self.rank, 1, 2**20)
        _require("alpha", self.alpha, 1e-6, 1e6)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, and must be from 0 to below 1")
        _require_targets(self.targets)


@codec.record
class Scales:
    """One factor for each output of each target."""

    kind: Literal["ia3"]
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require_targets(self.targets)


@codec.record
class Virtual:
    """Learned tokens before the text and the image: "prompt" at the input, "prefix" as keys and values of every layer."""

    kind: Literal["prefix", "prompt"]
    virtual_tokens: int

    def __post_init__(self) -> None:
        _require("virtual_tokens", self.virtual_tokens, 1, _MOST_TOKENS)


@codec.record
class Narrow:
    """A narrow residual layer behind the attention and behind the feed-forward part of every layer."""

    kind: Literal["bottleneck"]
    width: int

    def __post_init__(self) -> None:
        _require("width", self.width, 1, 2**20)


Adapter = LowRank | Scales | Virtual | Narrow
_ANY: Any = Annotated[Adapter, codec.told_apart_by("kind")]


def read_adapter(
    data: object, where: str = "config.json: adapter", error: Callable[[str], XVisionError] = ModelError
) -> Adapter:
    """Untrusted settings: known kinds, known keys, values in range, or ``error`` with a sentence that starts with ``where``."""
    if not isinstance(data, Mapping):
        raise error(f"{where} is {data!r:.80}: give the settings of one adapter, or nothing.")
    found: Adapter = codec.read(_ANY, dict(data), where, error)
    return found


def virtual_tokens(data: object) -> int:
    """How many tokens the settings of ``config.adapter`` put before a model's own."""
    return int(data["virtual_tokens"]) if isinstance(data, dict) and "virtual_tokens" in data else 0


def _require(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{name} is {value}, and must be from {low:g} to {high:g}")


def _require_targets(targets: tuple[str, ...]) -> None:
    if len(targets) > _MOST_TARGETS:
        raise ValueError(f"targets holds {len(targets)} names, and may hold {_MOST_TARGETS}")
    for name in targets:
        if len(name) > _LONGEST_TARGET or not _TARGET.fullmatch(name):
            raise ValueError(f"targets holds {name[:_LONGEST_TARGET]!r}, which is no name of a module")


def misfit(backbone: PreTrainedModel, adapter: Adapter) -> str | None:
    """Why an adapter cannot be attached to this backbone, in one sentence; None when it can."""
    width = backbone.config.hidden_size
    if isinstance(adapter, LowRank) and adapter.rank > width:
        return f"rank is {adapter.rank} but the backbone is {width} wide: choose a smaller rank."
    if isinstance(adapter, Narrow) and adapter.width > width:
        return f"width is {adapter.width} but the backbone itself is {width} wide: choose a smaller width."
    if isinstance(adapter, LowRank | Scales):
        return _unmatched(backbone, adapter.targets)
    if adapter.kind == "prefix" and not all(attention_shape(backbone.config)):
        return f"{backbone.config.model_type} has no attention that a prefix could go before: choose another policy."
    if isinstance(adapter, Narrow) and not projections(backbone):
        return f"no layer of {backbone.config.model_type} ends as bottlenecks need it: choose another policy."
    return None


def _unmatched(backbone: PreTrainedModel, targets: tuple[str, ...]) -> str | None:
    names = linear_layers(backbone)
    if not names:
        return f"{backbone.config.model_type} has no linear layers to adapt: choose another policy."
    for target in targets:
        if not any(_ends(name, target) for name in names):
            endings = sorted({name.rpartition(".")[2] for name in names})
            return f"targets names {target!r}, which no linear layer of the backbone ends with: it has {', '.join(endings)}."
    return None


def attach(backbone: PreTrainedModel, adapter: Adapter, where: str = "config.json: adapter") -> None:
    """Adds the adapter's weights to ``backbone``, in place, and freezes all of the backbone's own.

    A fresh adapter does next to nothing yet. Raises MissingExtra without peft, and ModelError, with a sentence that starts
    with ``where``, when it does not fit the backbone.
    """
    if unfit := misfit(backbone, adapter):
        raise ModelError(f"{where}: {unfit}")
    backbone.requires_grad_(False)
    if isinstance(adapter, Narrow):
        add_bottlenecks(backbone, adapter.width)
    elif isinstance(adapter, Virtual):
        _add_virtual_tokens(backbone, adapter)
    else:
        peft = _peft(adapter.kind)
        try:
            peft.inject_adapter_in_model(_peft_config(backbone, adapter), backbone)
        except ValueError as problem:
            raise ModelError(f"{where}: {reason(problem)} Choose another policy or other targets.") from None


def attach_configured(model: LlmImageClassifier) -> None:
    """What ``model.config.adapter`` says, which may be nothing."""
    if model.config.adapter is not None:
        attach(model.backbone, read_adapter(model.config.adapter))


def adapter_weights(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """Every weight that an adapter added and that training may change."""
    for part in backbone.modules():
        for name in getattr(part, "adapter_layer_names", ()):
            if isinstance(held := getattr(part, name, None), nn.Module):
                yield from held.parameters()
        if isinstance(part, Bottleneck):
            yield from part.parameters()
    if (virtual := virtual_of(backbone)) is not None:
        yield from virtual.parameters()


def merged(model: LlmImageClassifier) -> LlmImageClassifier:
    """A copy to ship. LoRA, DoRA, AdaLoRA and IA3 are multiplied into the weights, and a plain classifier remains, which
    loads without peft; prefix, prompt and bottleneck have no such form and stay. Raises ModelError for weights that are not
    finite."""
    twin = deepcopy(model)
    settings = None if model.config.adapter is None else read_adapter(model.config.adapter)
    if settings is None or settings.kind not in MERGEABLE:
        return twin
    for name, layer in list(twin.backbone.named_modules()):
        if hasattr(layer, "adapter_layer_names"):
            parent, _, own = name.rpartition(".")
            setattr(twin.backbone.get_submodule(parent), own, _merged_layer(name, layer))
    vars(twin.backbone).pop("peft_config", None)
    twin.config.adapter = None
    return twin


def _merged_layer(name: str, layer: Any) -> nn.Module:
    try:
        layer.merge(safe_merge=True)
    except ValueError as problem:
        raise ModelError(f"The adapter of {name} cannot be merged ({problem}): train again at a lower rate.") from None
    plain: nn.Module = layer.get_base_layer()
    return plain.requires_grad_(True)


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _peft(kind: str) -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", "peft", f"The adapter {kind!r}") from None
    return peft


def _add_virtual_tokens(backbone: PreTrainedModel, adapter: Virtual) -> None:
    peft, count = _peft(adapter.kind), adapter.virtual_tokens
    if adapter.kind == "prompt":
        words = backbone.get_input_embeddings()
        settings = peft.PromptTuningConfig(
            num_virtual_tokens=count, token_dim=words.embedding_dim, num_transformer_submodules=1,
            prompt_tuning_init="RANDOM",
        )  # fmt: skip
        add_prompt(backbone, peft.PromptEmbedding(settings, words))
        return
    layers, heads, width = attention_shape(backbone.config)
    encoder = peft.PrefixEncoder(
        peft.PrefixTuningConfig(num_virtual_tokens=count, token_dim=heads * width, num_layers=layers)
    )
    with torch.no_grad():
        encoder.embedding.weight.mul_(START)
    add_prefix(backbone, encoder)


def _peft_config(backbone: PreTrainedModel, adapter: LowRank | Scales) -> Any:
    """The targets are full names, never endings: peft would match those inside other names too."""
    peft, names = _peft(adapter.kind), linear_layers(backbone)
    targets = [name for name in names if not adapter.targets or any(_ends(name, ending) for ending in adapter.targets)]
    # GPT-2 keeps its matrices the other way round.
    turned = any(isinstance(backbone.get_submodule(name), Conv1D) for name in targets)
    if isinstance(adapter, Scales):
        return peft.IA3Config(target_modules=targets, feedforward_modules=[], fan_in_fan_out=turned)
    shared: dict[str, Any] = {
        "lora_alpha": adapter.alpha, "lora_dropout": adapter.dropout, "target_modules": targets, "fan_in_fan_out": turned,
    }  # fmt: skip
    if adapter.kind == "adalora":
        start = first_rank(adapter)
        return peft.AdaLoraConfig(init_r=start, target_r=adapter.rank, total_step=1, **shared)
    return peft.LoraConfig(r=adapter.rank, use_dora=adapter.kind == "dora", **shared)


def first_rank(adapter: LowRank) -> int:
    """What AdaLoRA starts with: half as much again as it may keep, as its authors do."""
    return math.ceil(1.5 * adapter.rank)


class RankSchedule:
    """AdaLoRA's budget: ranks start half as large again as they may stay, and the least important ones go.

    steps: updates of the whole training. A tenth of them passes before the first cut and the last three tenths after the
    last one, in which what was cut stays cut.
    """

    def __init__(self, backbone: nn.Module, adapter: LowRank, steps: int) -> None:
        peft = _peft("adalora")
        from peft.tuners.adalora import RankAllocator

        self.steps, self.last = steps, steps - round(0.3 * steps)
        self.config = peft.AdaLoraConfig(
            init_r=first_rank(adapter),
            target_r=adapter.rank,
            tinit=round(0.1 * steps),
            tfinal=steps - self.last,
            total_step=steps,
        )
        self._backbone = backbone
        self._allocator = RankAllocator(backbone, self.config, _NAME)
        self._kept: dict[str, list[bool]] = {}

    def after_step(self, step: int) -> None:
        """To be called after each update, counted from 1, before its gradients are cleared."""
        if step <= self.last:
            _, kept = self._allocator.update_and_allocate(self._backbone, step, force_mask=step == self.last)
            self._kept = kept or self._kept
        else:
            self._allocator.mask_using_rank_pattern(self._backbone, self._kept)

    def before_step(self) -> None:
        """To be called before each update, when the gradients of the loss are there and before they are clipped: adds that of
        the penalty, by hand, so that neither accumulation nor several processes count it twice."""
        weights = [weights for side in ("lora_A", "lora_B") for _, weights in self._of(side)]
        for vectors, gradient in zip(weights, torch.autograd.grad(self.penalty(), weights), strict=True):
            vectors.grad = gradient if vectors.grad is None else vectors.grad + gradient

    def penalty(self) -> torch.Tensor:
        """How far the adapters' singular vectors are from orthogonal: ranks are only comparable when they are not copies of
        each other. A scalar, the mean of ‖PPᵀ - I‖ over all right and left vectors, times peft's weight for it."""
        right = [weights @ weights.T for _, weights in self._of("lora_A")]
        left = [weights.T @ weights for _, weights in self._of("lora_B")]
        terms = [
            torch.linalg.norm(product - torch.eye(len(product), device=product.device)) for product in right + left
        ]
        return float(self.config.orth_reg_weight) * torch.stack(terms).mean()

    def _of(self, part: str) -> Iterator[tuple[str, nn.Parameter]]:
        """Matrix → its adapter's lora_A (rank, in), lora_B (out, rank) or lora_E (rank, 1)."""
        for name, weights in self._backbone.named_parameters():
            matrix, found, _ = name.partition(f".{part}.{_NAME}")
            if found:
                yield matrix, weights

    def spoken(self) -> str:
        """The schedule in words, for the report."""
        first, kept = self.config.init_r, self.config.target_r
        return f"AdaLoRA starts at rank {first} and cuts to {kept} on average, from update {self.config.tinit + 1} to {self.last}"

    def ranks(self) -> dict[str, int]:
        """Matrix → rank that its adapter has left."""
        return {matrix: int(weights.count_nonzero()) for matrix, weights in self._of("lora_E")}

    def state(self) -> dict[str, torch.Tensor]:
        """What later cuts depend on; ``load_state`` takes it back."""
        held = {"importance": self._allocator.exp_avg_ipt, "uncertainty": self._allocator.exp_avg_unc}
        kept = {f"kept/{name}": torch.tensor(rows) for name, rows in self._kept.items()}
        return kept | {f"{kind}/{name}": value for kind, values in held.items() for name, value in values.items()}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Takes back what ``state`` gave, so that later cuts are the same."""
        parts: dict[str, dict[str, torch.Tensor]] = {"kept": {}, "importance": {}, "uncertainty": {}}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            parts[kind][name] = value
        self._kept = {name: rows.tolist() for name, rows in parts["kept"].items()}
        self._allocator.exp_avg_ipt, self._allocator.exp_avg_unc = parts["importance"], parts["uncertainty"]
        # Its keys say which weights have been seen; its values are overwritten before they are read.
        self._allocator.ipt = dict(parts["importance"])
