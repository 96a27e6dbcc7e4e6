"""Smaller networks by leaving out: single weights that are near zero, or whole hidden units of the feed-forward blocks."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from xvision.errors import ModelError
from xvision.models.llm.classifier import LlmImageClassifier
from xvision.models.loading import DAMAGE, reason
from xvision.models.quantised import linear_layers

# Feed-forward blocks by the names of their layers: those that make the hidden units, and the one that reads them.
_BLOCKS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("intermediate.dense",), "output.dense"),
    (("c_fc",), "c_proj"),
    (("fc1",), "fc2"),
)
_WIDTHS = ("intermediate_size", "n_inner")
"""What configurations call the number of hidden units, the same for all blocks."""


class _Block(NamedTuple):
    """Names of the layers into the hidden units of a feed-forward block, and of the one out of them."""

    makers: tuple[str, ...]
    reader: str


@torch.no_grad()
def prune_weights(module: PreTrainedModel, amount: float) -> None:
    """Sets the smallest ``amount`` of all weights in linear layers but the head to 0, in place, whichever layer they are in.

    Global magnitude pruning (Han et al., 2015). Nothing gets smaller or faster by itself: zeros are stored and multiplied
    like other numbers. It shows what could be left out, not what was saved.
    """
    weights: list[Any] = [part.weight for _, part in linear_layers(module)]
    if not weights:
        raise ModelError(f"{type(module).__name__} has no linear layer beside its head: there is nothing to prune.")
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    gone = torch.zeros_like(sizes, dtype=torch.bool)
    gone[sizes.argsort(stable=True)[: int(amount * len(sizes))]] = True
    for weight, part in zip(weights, torch.split(gone, [weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view_as(weight), 0.0)


@torch.no_grad()
def without_units(module: PreTrainedModel, amount: float) -> PreTrainedModel:
    """A copy whose feed-forward blocks have ``amount`` fewer hidden units: truly smaller matrices, fewer operations.

    Every block loses equally many, because the configuration has one width for all: those whose weights in and out have
    the smallest norms. Attention is left alone. Raises ModelError for an
    architecture whose blocks are not known, or whose width is not one number of its configuration.
    """
    blocks = _blocks(module)
    name = type(module).__name__
    widths = {_units(module, block) for block in blocks}
    if len(widths) != 1:
        found = f"blocks of {sorted(widths)} hidden units" if widths else "no feed-forward block of a known kind"
        raise ModelError(f"{name} has {found}: structured pruning needs blocks of one width; use prune-magnitude.")
    width = widths.pop()
    kept_units = max(1, round(width * (1 - amount)))
    state = dict(module.state_dict())
    for block in blocks:
        kept = _importance(module, block).argsort(descending=True, stable=True)[:kept_units].sort().values
        _cut(module, block, kept, state)
    return _rebuilt(module, _narrower(module, width, kept_units), state)


def _blocks(module: PreTrainedModel) -> list[_Block]:
    linear = {name for name, _ in linear_layers(module)}
    found = []
    for prefix, _ in module.named_modules():
        for makers, reader in _BLOCKS:
            names = [f"{prefix}.{name}" for name in (*makers, reader)]
            if linear.issuperset(names):
                found.append(_Block(tuple(names[:-1]), names[-1]))
    return found


def _out_in(part: nn.Module) -> torch.Tensor:
    """The weight as (out, in), sharing memory; GPT-2 keeps it the other way round."""
    weight: Any = part.weight
    matrix: torch.Tensor = weight.t() if isinstance(part, Conv1D) else weight
    return matrix


def _units(module: PreTrainedModel, block: _Block) -> int:
    return _out_in(module.get_submodule(block.reader)).shape[1]


def _importance(module: PreTrainedModel, block: _Block) -> torch.Tensor:
    """(U,) product of the norms of each hidden unit's weights in, bias included, and out: 0 where it does nothing.

    A product, because a unit whose weights in are doubled and out are halved does the same.
    """
    norms = [_out_in(module.get_submodule(block.reader)).square().sum(dim=0)]
    for name in block.makers:
        part: Any = module.get_submodule(name)
        bias = 0.0 if part.bias is None else part.bias.square()
        norms.append(_out_in(part).square().sum(dim=1) + bias)
    return torch.stack(norms).sqrt().prod(dim=0)


def _cut(module: PreTrainedModel, block: _Block, kept: torch.Tensor, state: dict[str, Any]) -> None:
    """The block's tensors with the kept hidden units (U,) only."""
    for name in block.makers:
        part = module.get_submodule(name)
        state[f"{name}.weight"] = state[f"{name}.weight"].index_select(1 if isinstance(part, Conv1D) else 0, kept)
        if part.bias is not None:
            state[f"{name}.bias"] = state[f"{name}.bias"][kept]
    part = module.get_submodule(block.reader)
    axis = 0 if isinstance(part, Conv1D) else 1
    state[f"{block.reader}.weight"] = state[f"{block.reader}.weight"].index_select(axis, kept)


def _narrower(module: PreTrainedModel, width: int, units: int) -> PreTrainedConfig:
    """The configuration with another width of its feed-forward blocks."""
    config: PreTrainedConfig = deepcopy(module.config)
    part = "text_config" if isinstance(module, LlmImageClassifier) else "vision_config"
    body: Any = getattr(config, part, config)
    for key in _WIDTHS:
        if hasattr(body, key) and getattr(body, key) in (width, None):
            setattr(body, key, units)
            return config
    raise ModelError(
        f"the configuration of {type(module).__name__} does not state the width {width} of its feed-forward blocks as one "
        "number, so smaller ones cannot be saved: use prune-magnitude."
    )


def _rebuilt(module: PreTrainedModel, config: PreTrainedConfig, state: dict[str, Any]) -> PreTrainedModel:
    try:
        built: Any = type(module)(config)
        built.load_state_dict(state, strict=True)
    except DAMAGE as problem:
        raise ModelError(
            f"{type(module).__name__} cannot be built with narrower blocks ({reason(problem)}): use prune-magnitude."
        ) from problem
    if isinstance(module, LlmImageClassifier):
        built.vocabulary = module.vocabulary
    moved: PreTrainedModel = built.to(module.device).eval()
    return moved
