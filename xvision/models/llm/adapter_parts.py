"""Where virtual tokens and bottlenecks enter a backbone: hooks that are plain functions and find their weights in the module
they run on, so that copies of a model are independent of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xvision.errors import ModelError
from xvision.models.llm.backbone import first_position

START = 0.02
"""Standard deviation of new prefixes and bottlenecks: small, so that training starts where the model was."""
_VIRTUAL, _BOTTLENECK = "virtual", "bottleneck"


class Bottleneck(nn.Module):
    """Down to a few channels, GELU, up again, added to what came in (Houlsby et al., 2019); at first it adds nothing."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)
        with torch.no_grad():
            self.down.weight.normal_(std=START)
            self.down.bias.zero_()
            self.up.weight.zero_()
            self.up.bias.zero_()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.up(nn.functional.gelu(self.down(hidden)))


def linear_layers(part: nn.Module) -> dict[str, nn.Module]:
    """The matrices of a module by name, in order; GPT-2 calls its own Conv1D."""
    return {name: found for name, found in part.named_modules() if isinstance(found, nn.Linear | Conv1D)}


def outputs(linear: Any) -> int:
    """Channels that a matrix gives."""
    return int(linear.nf if isinstance(linear, Conv1D) else linear.out_features)


def layers_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The backbone's layers, first to last; ModelError where they are no list."""
    count = getattr(backbone.config, "num_hidden_layers", None)
    for part in backbone.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count:
            return part
    raise ModelError(f"{backbone.config.model_type} does not keep its layers in one list: choose another policy.")


def projections(backbone: PreTrainedModel) -> list[nn.Module]:
    """The matrices that bottlenecks go behind: in each part of a layer, the last one that gives the backbone's width.

    Those are the outputs of the attention and of the feed-forward part, before they are added to the stream.
    """
    width, found = backbone.config.hidden_size, []
    for layer in layers_of(backbone):
        for part in layer.children():
            found += [linear for linear in linear_layers(part).values() if outputs(linear) == width][-1:]
    return found


def add_bottlenecks(backbone: PreTrainedModel, width: int) -> None:
    """One behind each projection, as its child "bottleneck"."""
    for linear in projections(backbone):
        linear.add_module(_BOTTLENECK, Bottleneck(outputs(linear), width).to(backbone.device))
        linear.register_forward_hook(_narrow)


def _narrow(linear: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor:
    widened: torch.Tensor = linear.get_submodule(_BOTTLENECK)(output)
    return widened


def counters(backbone: nn.Module) -> Iterator[nn.Parameter]:
    """AdaLoRA's ranks, which peft stores as weights though they are no such thing."""
    for part in backbone.modules():
        if isinstance(held := getattr(part, "ranknum", None), nn.Module):
            yield from held.parameters()


def virtual_of(backbone: nn.Module) -> nn.Module | None:
    """The encoder of prefix or prompt, or None."""
    return getattr(backbone, _VIRTUAL, None)


def add_prompt(backbone: PreTrainedModel, encoder: nn.Module) -> None:
    """Rows (V, D) of ``encoder.embedding`` before what comes in; they leave the last hidden state again, so that the caller
    finds its own tokens where it put them. Attention and inner hidden states keep them, first."""
    _add_virtual(backbone, encoder)
    backbone.register_forward_pre_hook(_with_prompt, with_kwargs=True)
    backbone.register_forward_hook(_without_prompt)


def add_prefix(backbone: PreTrainedModel, encoder: nn.Module) -> None:
    """Keys and values (V, layers × 2 × heads × width) of ``encoder.embedding`` before those of every layer.

    Attention gets rows for them, in which each attends to itself alone: nothing of the image flows into them.
    """
    _add_virtual(backbone, encoder)
    backbone.register_forward_pre_hook(_with_prefix, with_kwargs=True)
    backbone.register_forward_hook(_squared)


def attention_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Layers, heads of keys and values, and channels of each; zeros where there is no attention."""
    heads = getattr(config, "num_attention_heads", None) or 0
    groups = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return getattr(config, "num_hidden_layers", 0), groups, width


def _add_virtual(backbone: PreTrainedModel, encoder: Any) -> None:
    counted = "position_ids" in inspect.signature(backbone.forward).parameters
    encoder.first_position = first_position(backbone)[0] if counted else None
    backbone.add_module(_VIRTUAL, encoder.to(backbone.device))


def _virtual(backbone: Any) -> Any:
    return backbone.virtual


def _rows(backbone: nn.Module) -> torch.Tensor:
    rows: torch.Tensor = _virtual(backbone).embedding.weight
    return rows


def _with_prompt(
    backbone: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tokens, rows = given["inputs_embeds"], _rows(backbone)
    positions = _positions(backbone, tokens, given)
    changed = {
        **given,
        "inputs_embeds": torch.cat((rows.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens), dim=1),
    }
    changed["attention_mask"] = _mask(tokens, given, len(rows))
    if positions is not None:
        # Image tokens keep their places: learned tables may have no others, and pretrained ones were trained with these.
        first = positions.new_full((positions.shape[0], len(rows)), _virtual(backbone).first_position)
        changed["position_ids"] = torch.cat((first, positions), dim=1)
    return args, changed


def _without_prompt(backbone: nn.Module, _: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state[:, len(_rows(backbone)) :]
    return output


def _with_prefix(backbone: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    tokens, rows = given["inputs_embeds"], _rows(backbone)
    layers, heads, width = attention_shape(backbone.config)
    stored = rows.view(len(rows), layers, 2, heads, width).permute(1, 2, 3, 0, 4)
    cache = DynamicCache()
    for layer, (keys, values) in enumerate(stored):
        cache.update(keys.expand(tokens.shape[0], -1, -1, -1), values.expand(tokens.shape[0], -1, -1, -1), layer)
    changed = {**given, "past_key_values": cache, "attention_mask": _mask(tokens, given, len(rows))}
    positions = _positions(backbone, tokens, given)
    return args, changed if positions is None else {**changed, "position_ids": positions}


def _squared(backbone: nn.Module, _: Any, output: Any) -> Any:
    if getattr(output, "attentions", None):
        output.attentions = tuple(_with_own_rows(layer) for layer in output.attentions)
    return output


def _with_own_rows(attention: torch.Tensor) -> torch.Tensor:
    """(B, A, T, V + T) to (B, A, V + T, V + T)."""
    seen, count = attention.shape[-2:]
    own = torch.eye(count - seen, count, dtype=attention.dtype, device=attention.device)
    return torch.cat((own.expand(*attention.shape[:2], -1, -1), attention), dim=2)


def _mask(tokens: torch.Tensor, given: dict[str, Any], count: int) -> torch.Tensor:
    """Which of the virtual and the given tokens exist, (B, V + T). Never None: without it, equal positions would read as
    several sequences packed into one, and encoders would not notice a prefix."""
    mask = given.get("attention_mask")
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
    return torch.cat((mask.new_ones(tokens.shape[0], count), mask), dim=1)


def _positions(backbone: nn.Module, tokens: torch.Tensor, given: dict[str, Any]) -> torch.Tensor | None:
    """Those given, else as the backbone would count without virtual tokens; None where it has no such argument."""
    first, found = _virtual(backbone).first_position, given.get("position_ids")
    if found is None and first is not None:
        return (torch.arange(tokens.shape[1], device=tokens.device) + first)[None]
    return found
