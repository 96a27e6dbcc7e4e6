"""Attention that torch computes in one step, computed openly while a mode is on, so that its weights are in the graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from xvision.errors import ModelError


class OpenAttention(TorchFunctionMode):
    """Replaces ``scaled_dot_product_attention`` by softmax(QKᵀ · scale + mask) V, and keeps the weights.

    weights: (…, L, S) one per call, those of four-dimensional calls to softmax included, which is how a layer attends that
    does without the one step. Whatever calls torch is seen, also an exported program.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.__name__.partition(".")[0], kwargs or {}
        if name == "scaled_dot_product_attention":
            output, weights = attend(*args, **given)
            self.weights.append(weights)
            return output
        output = func(*args, **given)
        if name == "softmax" and output.ndim == 4:
            self.weights.append(output)
        return output


class PrefixRows(TorchFunctionMode):
    """Attention (B, A, T, V + T) over a prefix of V keys as (B, A, V + T, V + T): a prefix attends to itself alone.

    weights: one per layer, of which the model reads the rows of its own tokens, so that they are in the graph.
    """

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.weights: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.__name__ != "softmax" or output.ndim != 4 or output.shape[3] - output.shape[2] != self.prefix:
            return output
        own = torch.eye(self.prefix, output.shape[3], dtype=output.dtype, device=output.device)
        self.weights.append(torch.cat((own.expand(*output.shape[:2], -1, -1), output), dim=2))
        return self.weights[-1][:, :, self.prefix :]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (…, L, E) and weights (…, L, S) in float32 of torch's function with the same arguments.

    A query that may attend to nothing has weights and output of zero, as torch has it. Raises ModelError for dropout:
    a model in training has no one attention.
    """
    if dropout_p:
        raise ModelError("The model drops attention at random: put it in eval mode.")
    if enable_gqa:
        key, value = (item.repeat_interleave(query.shape[-3] // item.shape[-3], dim=-3) for item in (key, value))
    scores = (query @ key.transpose(-2, -1)).float() * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    if is_causal:
        allowed = allowed.tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        scores, allowed = scores + attn_mask, allowed & (attn_mask > -torch.inf)
    some = allowed.any(dim=-1, keepdim=True)
    weights = scores.masked_fill(~allowed & some, -torch.inf).masked_fill(~some, 0.0).softmax(dim=-1) * some
    return weights.to(value.dtype) @ value, weights
