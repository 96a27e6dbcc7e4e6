"""Attention rollout in row form, and the reference that tells information from the shape of the mask.

Source: Abnar and Zuidema (2020), "Quantifying attention flow in transformers". Layers are given first to last. Shapes:
B batch, A heads, T tokens, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from xvision.errors import ConfigError, ModelError

HeadFusion = Literal["mean", "max", "min"]

_UNREACHABLE = 1e-6


def rollout(
    weights: Sequence[torch.Tensor],
    readout: np.ndarray,
    *,
    residual: float = 0.5,
    head_fusion: HeadFusion = "mean",
    start_layer: int = 0,
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

    Returns:
        (B, T) float64, each row non-negative and summing to one.

    Raises:
        ModelError: no layer gave weights, or the weights are not finite, not non-negative or not (B, A, T, T).
        ConfigError: an option is out of range.
    """
    layers = _used_layers(weights, start_layer)
    _require_residual(residual)
    first = _fused(layers[0], head_fusion, start_layer)
    row = _readout_row(readout, first.shape[-1]).expand(first.shape[0], -1)
    for index in reversed(range(len(layers))):
        layer = _fused(layers[index], head_fusion, start_layer + index)
        if layer.shape != first.shape:
            raise ModelError(
                f"attention of layer {start_layer + index} fuses to shape {tuple(layer.shape)} but that of layer"
                f" {start_layer} to {tuple(first.shape)}: rollout needs the same tokens in every layer"
            )
        row = _through(row, layer, residual, start_layer + index)
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
    _require_residual(residual)
    mask = torch.as_tensor(np.asarray(allowed, dtype=np.float64))
    if mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        raise ModelError(f"the attention mask has shape {tuple(mask.shape)}: it must be (T, T), rows attending")
    uniform = mask / mask.sum(dim=1, keepdim=True).clamp(min=1.0)
    row = _readout_row(readout, mask.shape[0]).unsqueeze(0)
    for index in reversed(range(layers)):
        row = _through(row, uniform.unsqueeze(0), residual, index)
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


def _require_residual(residual: float) -> None:
    if not 0.0 <= residual < 1.0:
        raise ConfigError(f"found residual = {residual}: the share of the skip connection must be from 0 to below 1")


def _readout_row(readout: np.ndarray, tokens: int) -> torch.Tensor:
    row = torch.as_tensor(np.asarray(readout, dtype=np.float64))
    if row.shape != (tokens,) or bool((row < 0).any()) or abs(float(row.sum()) - 1.0) > 1e-6:
        raise ModelError(
            f"the readout has shape {tuple(row.shape)} and sums to {float(row.sum()):.6g} for {tokens} tokens: it must"
            " hold one non-negative weight per token and sum to 1"
        )
    return row


def _fused(layer: torch.Tensor, head_fusion: HeadFusion, index: int) -> torch.Tensor:
    """One (B, T, T) float64 matrix on the CPU: the products of many layers are not left to half precision."""
    if layer.ndim != 4 or layer.shape[-1] != layer.shape[-2]:
        raise ModelError(f"attention of layer {index} has shape {tuple(layer.shape)}: it must be (B, A, T, T)")
    heads = layer.detach().float() if layer.dtype != torch.float64 else layer.detach()
    if not bool(torch.isfinite(heads).all()) or bool((heads < 0).any()):
        raise ModelError(
            f"attention of layer {index} holds negative or non-finite weights: rollout needs the weights after softmax"
        )
    if head_fusion == "mean":
        fused = heads.mean(dim=1)
    elif head_fusion == "max":
        fused = heads.amax(dim=1)
    elif head_fusion == "min":
        fused = heads.amin(dim=1)
    else:
        raise ConfigError(f"found head_fusion = {head_fusion!r}: it must be 'mean', 'max' or 'min'")
    return fused.cpu().double()


def _through(row: torch.Tensor, layer: torch.Tensor, residual: float, index: int) -> torch.Tensor:
    """(B, T) row times row-normalised(residual I + (1 - residual) layer), without building that matrix."""
    norm = residual + (1.0 - residual) * layer.sum(dim=2)
    if bool((norm == 0).any()):
        raise ModelError(f"a token of layer {index} attends to nothing and residual is 0: raise residual above 0")
    share = row / norm
    return residual * share + (1.0 - residual) * torch.einsum("bi,bij->bj", share, layer)
