"""What the head's tokens attend to, weighted by the gradient of the score: per token, from weights and gradients of a pass.

Layers are given first to last. Nothing here runs a model. Shapes: B batch, A heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from xvision.errors import ModelError
from xvision.methods.rollout import (
    HeadFusion,
    carried,
    fused,
    readout_row,
    require_layer,
    require_residual,
    require_same_tokens,
    require_softmax,
)


def layer_gradients(scores: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Gradient of each score (B,) with respect to the weights (B, A, T, T) beside it; one score is meant for all layers.

    Images are independent, so the gradient of the sum holds each image's own. Raises ModelError where none arrives.
    """
    try:
        if len(scores) == 1:
            return torch.autograd.grad(scores[0].sum(), tuple(weights))
        pairs = zip(scores, weights, strict=True)
        return tuple(torch.autograd.grad(score.sum(), layer, retain_graph=True)[0] for score, layer in pairs)
    except RuntimeError as error:
        if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
            raise
        raise ModelError(
            "no gradient of the score reaches the attention weights: they are a copy of what the model used, so explain it "
            "by attention_rollout, corrected_rollout or token_ablation"
        ) from error


def raw_attention(
    weights: Sequence[torch.Tensor], readout: np.ndarray, *, head_fusion: HeadFusion = "mean"
) -> np.ndarray:
    """Attention of the last layer in the row that the head reads, (B, T) float64; rows sum to one for the mean of heads.

    It leaves out all layers but one, the values that are attended to, and the class: it is the same for every class.

    Args:
        weights: post-softmax attention per layer, each (B, A, T, T).
        readout: (T,) non-negative weights of the tokens the head reads, summing to one.
        head_fusion: how the heads become one matrix.

    Raises:
        ModelError: no layer gave weights, or weights that did not come out of a softmax.
        ConfigError: an unknown fusion.
    """
    last = len(weights) - 1
    if last < 0:
        raise ModelError("the model returned no attention weights: load it with eager attention")
    layer = fused(weights[last], head_fusion, last)
    return _row_times(readout_row(readout, layer), layer).numpy()


def gradient_attention(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], readout: np.ndarray
) -> np.ndarray:
    """Attention of the last layer times its positive gradient, mean over heads, in the row that the head reads, (B, T).

    Where the last layer looks and looking there speaks for the class. All earlier layers are left out. Not negative;
    all zero where no gradient is positive. Arguments and errors as ``chefer_relevance``.
    """
    layers = _weighted(weights[-1:], gradients[-1:], first=len(weights) - 1)
    return _row_times(readout_row(readout, layers[0]), layers[0]).numpy()


def gradient_rollout(
    weights: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    readout: np.ndarray,
    *,
    residual: float = 0.5,
) -> np.ndarray:
    """Rollout of attention times its positive gradient, (B, T) float64 with rows that sum to one.

    Each layer is row-normalised(residual I + (1 - residual) mean over heads of max(0, gradient × attention)). The skip
    connection is not weighted by a gradient, so scaling the score changes the map, and where gradients are small nearly
    all stays on the tokens that the head reads. Under a causal mask it favours early tokens, as ``rollout`` does.

    Args:
        residual: share of the skip connection in each layer, from 0 to below 1.

    Other arguments and errors as ``chefer_relevance``.
    """
    require_residual(residual)
    layers = _weighted(weights, gradients)
    row = readout_row(readout, layers[0])
    for index in reversed(range(len(layers))):
        row = carried(row, layers[index], residual, index)
    return row.numpy()


def chefer_relevance(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], readout: np.ndarray
) -> np.ndarray:
    """Relevance of each token to the score, carried through all layers, (B, T) float64 (Chefer et al. 2021, ICCV).

    R = (I + M_L) ... (I + M_1), where M is the mean over heads of max(0, gradient × attention), clamped before the mean
    and never row-normalised; the map is what the head reads of R - I, so a token's own share by skip connections alone is
    left out. It tells support for the class only, in no unit: do not compare its size between images. All zero where
    no gradient is positive.

    Args:
        weights: post-softmax attention per layer, first layer first, each (B, A, T, T).
        gradients: of the score with respect to ``weights``, in the same shapes.
        readout: (T,) non-negative weights of the tokens the head reads, summing to one.

    Raises:
        ModelError: weights that did not come out of a softmax, gradients that do not match them or are not finite.
    """
    layers = _weighted(weights, gradients)
    start = readout_row(readout, layers[0])
    row = torch.zeros_like(start)
    for layer in reversed(layers):
        row = row + _row_times(start + row, layer)
    return row.numpy()


def legrad(gradients: Sequence[torch.Tensor], allowed: np.ndarray) -> np.ndarray:
    """How much more attention to a token would raise each layer's own score, (B, T) float64 (Bousselham et al. 2024).

    The score of a layer is that of the head put on what the layer passes on. Positive parts of its gradient, mean over
    heads, attending tokens and layers; attention itself is not multiplied in, so a token may count that nothing attends
    to. Not negative; all zero where no gradient is positive.

    Args:
        gradients: per layer, of that layer's own score with respect to that layer's weights, each (B, A, T, T).
        allowed: (T, T) bool, row may attend to column; a gradient where the mask forbids attention says nothing.

    Raises:
        ModelError: no layer, gradients of another shape than the mask or not finite.
    """
    if len(gradients) == 0:
        raise ModelError("the model returned no attention weights: load it with eager attention")
    mask = torch.as_tensor(np.asarray(allowed, dtype=np.float64))
    layers = []
    for index, gradient in enumerate(gradients):
        heads = _finite(require_layer(gradient, index), index)
        if heads.shape[-2:] != mask.shape:
            raise ModelError(
                f"attention of layer {index} has {heads.shape[-1]} tokens but the mask {tuple(mask.shape)}"
            )
        layers.append((heads.clamp(min=0.0).mean(dim=1).cpu().double() * mask).mean(dim=1))
    return torch.stack(layers).mean(dim=0).numpy()


def _weighted(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], *, first: int = 0
) -> list[torch.Tensor]:
    """Per layer the mean over heads of max(0, gradient × attention), (B, T, T) float64 on the CPU."""
    if len(weights) == 0 or len(weights) != len(gradients):
        raise ModelError(
            f"found attention of {len(weights)} layers and gradients of {len(gradients)}: one gradient for each of at "
            "least one layer"
        )
    layers: list[torch.Tensor] = []
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True), start=first):
        heads, slopes = require_layer(weight, index), _finite(require_layer(gradient, index), index)
        if heads.shape != slopes.shape:
            raise ModelError(
                f"attention of layer {index} has shape {tuple(heads.shape)} but its gradient {tuple(slopes.shape)}"
            )
        require_softmax(heads, index)
        layers.append(fused((slopes * heads).clamp(min=0.0), "mean", index))
        require_same_tokens(layers[0][:, 0], layers[-1], index)
    return layers


def _finite(gradient: torch.Tensor, index: int) -> torch.Tensor:
    low, high = torch.aminmax(gradient)  # NaN shows in both
    if not (float(low) > -np.inf and float(high) < np.inf):
        raise ModelError(
            f"the gradient of the score for the attention of layer {index} is NaN or infinite: check the model for "
            "overflow or a division by zero"
        )
    return gradient


def _row_times(row: torch.Tensor, layer: torch.Tensor) -> torch.Tensor:
    return torch.bmm(row.unsqueeze(1), layer).squeeze(1)
