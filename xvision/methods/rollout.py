"""Attention rollout in row form, and the reference that tells information from the shape of the mask.

Source: Abnar and Zuidema (2020), "Quantifying attention flow in transformers". Layers are given first to last. Shapes:
B batch, A heads, T tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from xvision.errors import ConfigError, ModelError

HeadFusion = Literal["mean", "max", "min"]

_UNREACHABLE = 1e-6
_FUSIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda heads: heads.mean(dim=1),
    "max": lambda heads: heads.amax(dim=1),
    "min": lambda heads: heads.amin(dim=1),
}


def rollout(
    weights: Sequence[torch.Tensor],
    readout: np.ndarray,
    *,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    start_layer: int = 0,
    discard: float = 0.0,
) -> np.ndarray:
    """How much of each token is mixed into what the head reads, if attention were the only thing mixing tokens.

    Each layer is row-normalised(residual I + (1 - residual) fused attention); the read-out row is carried from the last
    layer down to ``start_layer``, which gives the read-out row of the matrix product at a fraction of its cost. Rows of
    ``weights`` that sum to less than one, as when a sink column was dropped, are thereby renormalised.

    It does not say that a token pushes the prediction up or down, and under a causal mask it favours early tokens
    whatever the image shows: read it only relative to ``uninformative``, see ``corrected``.

    Args:
        weights: post-softmax attention per layer, first layer first, each (B, A, T, T).
        readout: (T,) non-negative weights of the tokens the head reads, summing to one.
        residual: share of the skip connection in each layer, from 0 to below 1.
        head_fusion: how the heads of a layer become one matrix.
        start_layer: first layer used, counted from 0.
        discard: share of the fused weights between different tokens that is set to zero in each layer, the smallest
            first, from 0 to below 1. A token's own weight and the largest of its others always stay. There is no
            reference for what is left, so ``corrected`` does not apply.

    Returns:
        (B, T) float64, each row non-negative and summing to one.

    Raises:
        ModelError: no layer gave weights, or the weights are not finite, not non-negative or not (B, A, T, T).
        ConfigError: an option is out of range.
    """
    layers = _used_layers(weights, start_layer)
    require_residual(residual)
    if not 0.0 <= discard < 1.0:
        raise ConfigError(f"found discard = {discard}: the share of weights set to zero must be from 0 to below 1")
    row = readout_row(readout, layers[0])
    for index in reversed(range(len(layers))):
        layer = fused(layers[index], head_fusion, start_layer + index)
        require_same_tokens(row, layer, start_layer + index)
        row = carried(row, without_smallest(layer, discard) if discard else layer, residual, start_layer + index)
    return row.numpy()


def uninformative(allowed: np.ndarray, layers: int, readout: np.ndarray, *, residual: float = 0.5) -> np.ndarray:
    """The rollout row of attention that ignores the image: uniform over the tokens each row may attend to.

    It depends on the mask alone. With a causal mask, 196 tokens and 12 layers it puts nearly half of its mass on the
    first token, so an uncorrected causal rollout lights up the top of every image.

    Args:
        allowed: (T, T) bool, row may attend to column.
        layers: number of layers that the rollout to be compared went through.
        readout: (T,) as in ``rollout``.
        residual: as in ``rollout``.

    Returns:
        (T,) float64, summing to one.
    """
    if layers < 1:
        raise ConfigError(f"found layers = {layers} for the reference row: give the number of layers used, at least 1")
    require_residual(residual)
    mask = torch.as_tensor(np.asarray(allowed, dtype=np.float64))
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise ModelError(f"the attention mask has shape {tuple(mask.shape)}: it must be (T, T), rows attending")
    uniform = mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    row = readout_row(readout, uniform.unsqueeze(0))
    for index in reversed(range(layers)):
        row = carried(row, uniform.unsqueeze(0), residual, index)
    return row.squeeze(0).numpy()


def corrected(row: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rollout over the reference: 1 means no more than the mask alone explains, 2 twice as much.

    A token that the mask makes unreachable has neither, and counts as 1.

    Args:
        row: (B, T) from ``rollout``.
        reference: (T,) from ``uninformative`` with the same mask, layers, readout and residual.

    Returns:
        (B, T) float64.

    Raises:
        ModelError: attention reaches a token that the mask says it cannot reach.
    """
    unreachable = reference == 0.0
    leaked = float(row[:, unreachable].max(initial=0.0))
    if leaked > _UNREACHABLE:
        raise ModelError(
            f"a token that the attention mask makes unreachable holds {leaked:.2g} of the rollout: the token map's"
            " `allowed` does not describe this model"
        )
    ratio = np.ones_like(row)
    np.divide(row, reference, out=ratio, where=~unreachable[None, :])
    return ratio


def image_mass(row: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Share of the rollout that falls on image tokens, (B,); the rest went to text, class or register tokens.

    A heat map scaled to its own maximum hides this number: show both. ``image`` holds the indices of the image tokens.
    """
    mass: np.ndarray = row[:, image].sum(axis=1) / row.sum(axis=1)
    return mass


def to_pixels(values: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Paint one value per token on its pixel box: (B, P) to (B, H, W) float32.

    Each pixel takes the value of its token, not the value divided by the box area; where boxes overlap, their mean;
    where there is no box, 0.

    Args:
        values: (B, P).
        boxes: (P, 4) left, top, right, bottom in pixels, exclusive ends.
        height, width: of the image.

    Raises:
        ModelError: the boxes do not match the values or leave the image.
    """
    corners = np.asarray(boxes, dtype=np.int64)
    if corners.shape != (values.shape[1], 4):
        raise ModelError(
            f"found {values.shape[1]} token values but boxes of shape {corners.shape}: they must be (P, 4)"
        )
    left, top, right, bottom = corners.T
    inside = (left >= 0) & (top >= 0) & (left < right) & (top < bottom) & (right <= width) & (bottom <= height)
    if not inside.all():
        worst = int(np.argmin(inside))
        raise ModelError(
            f"the pixel box of image token {worst}, {corners[worst].tolist()}, is empty or leaves the"
            f" {height} x {width} image: correct the model's token map"
        )
    total = np.zeros((values.shape[0], height, width))
    covered = np.zeros((height, width))
    for patch, (x0, y0, x1, y1) in enumerate(corners):
        total[:, y0:y1, x0:x1] += values[:, patch, None, None]
        covered[y0:y1, x0:x1] += 1.0
    return (total / np.maximum(covered, 1.0)).astype(np.float32)


def _used_layers(weights: Sequence[torch.Tensor], start_layer: int) -> Sequence[torch.Tensor]:
    if len(weights) == 0:
        raise ModelError(
            "the model returned no attention weights: load it with eager attention, fused attention keeps none"
        )
    if not 0 <= start_layer < len(weights):
        raise ConfigError(f"found start_layer = {start_layer}: the model has layers 0 to {len(weights) - 1}")
    return weights[start_layer:]


def require_residual(residual: float) -> None:
    """Raise ConfigError for a share of the skip connection outside [0, 1)."""
    if not 0.0 <= residual < 1.0:
        raise ConfigError(f"found residual = {residual}: the share of the skip connection must be from 0 to below 1")


def readout_row(readout: np.ndarray, layer: torch.Tensor) -> torch.Tensor:
    """(B, T) float64: where what is carried through the layers starts, the same for every image of ``layer``.

    Raises ModelError for a readout that is not one non-negative weight per token, summing to one.
    """
    tokens = layer.shape[-1]
    row = torch.as_tensor(np.asarray(readout, dtype=np.float64))
    if row.shape != (tokens,) or bool((row < 0).any()) or abs(float(row.sum()) - 1.0) > 1e-6:
        raise ModelError(
            f"the readout has shape {tuple(row.shape)} and sums to {float(row.sum()):.6g} for {tokens} tokens: it must"
            " hold one non-negative weight per token and sum to 1"
        )
    return row.expand(layer.shape[0], -1)


def require_same_tokens(row: torch.Tensor, layer: torch.Tensor, index: int) -> None:
    """Raise ModelError unless the fused layer (B, T, T) has the images and tokens of the row (B, T)."""
    if layer.shape[:2] != row.shape:
        raise ModelError(
            f"attention of layer {index} has {layer.shape[0]} images of {layer.shape[1]} tokens but another layer"
            f" {row.shape[0]} of {row.shape[1]}: the same tokens are needed in every layer"
        )


def fused(layer: torch.Tensor, head_fusion: HeadFusion, index: int) -> torch.Tensor:
    """Heads (B, A, T, T) as one (B, T, T) float64 matrix on the CPU: products of layers are not left to half precision.

    Heads are joined in float32, which reads the weights once; what follows is A times smaller. Raises ModelError for
    weights that did not come out of a softmax, ConfigError for an unknown fusion.
    """
    heads = require_layer(layer, index)
    if head_fusion not in _FUSIONS:
        raise ConfigError(f"found head_fusion = {head_fusion!r}: it must be 'mean', 'max' or 'min'")
    one = _FUSIONS[head_fusion](heads) if heads.shape[1] > 1 else heads.squeeze(1)
    # A mean keeps what NaN, infinities and negative scores do to it; a maximum or minimum may hide them.
    require_softmax(one if head_fusion == "mean" else heads, index)
    return one.cpu().double()


def require_layer(layer: torch.Tensor, index: int) -> torch.Tensor:
    """The layer (B, A, T, T) off the graph, in float32 or float64; ModelError for another shape."""
    if layer.ndim != 4 or layer.shape[-1] != layer.shape[-2]:
        raise ModelError(f"attention of layer {index} has shape {tuple(layer.shape)}: it must be (B, A, T, T)")
    return layer.detach() if layer.dtype == torch.float64 else layer.detach().float()


def require_softmax(weights: torch.Tensor, index: int) -> None:
    """Raise ModelError unless the weights of layer ``index`` are finite and not negative."""
    low, high = torch.aminmax(weights)  # NaN shows in both
    if not (float(low) >= 0.0 and float(high) < np.inf):
        raise ModelError(
            f"attention of layer {index} holds negative or non-finite weights: the weights after softmax are needed"
        )


def without_smallest(layer: torch.Tensor, discard: float) -> torch.Tensor:
    """The fused layer (B, T, T) without the smallest share of what tokens give each other; see ``rollout``.

    The share is of the weights above zero, so that a mask does not use it up. Equal weights go in the order of places.
    """
    images, tokens, _ = layer.shape
    others = layer.masked_fill(torch.eye(tokens, dtype=torch.bool), 0.0)
    number = (discard * (others > 0).sum(dim=(1, 2))).long()
    safe = torch.nn.functional.one_hot(others.argmax(dim=2), tokens).bool()
    candidates = others.masked_fill(safe | (others == 0), torch.inf).flatten(1)
    place = candidates.argsort(dim=1, stable=True).argsort(dim=1)
    gone = (place < number[:, None]) & candidates.isfinite()
    return layer.masked_fill(gone.reshape(images, tokens, tokens), 0.0)


def carried(row: torch.Tensor, layer: torch.Tensor, residual: float, index: int) -> torch.Tensor:
    """(B, T) row times row-normalised(residual I + (1 - residual) layer), without building that matrix.

    Raises ModelError for a row of ``layer`` that is all zero where the residual is 0 as well.
    """
    norm = residual + (1.0 - residual) * layer.sum(dim=2)
    if float(norm.min()) == 0.0:
        raise ModelError(f"a token of layer {index} attends to nothing and residual is 0: raise residual above 0")
    share = (row / norm).unsqueeze(1)
    mixed = torch.baddbmm(share, share, layer, beta=residual, alpha=1.0 - residual)
    return mixed.squeeze(1)
