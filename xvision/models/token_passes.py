"""A model's sequence of tokens before its first layer: which may be left out, and how the rest is sent on."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

from xvision.errors import ModelError
from xvision.models.protocols import TokenMap


def places_of(tokens: torch.Tensor, kept: torch.Tensor | None, known: TokenMap) -> torch.Tensor:
    """(B, T') int64, the place of each token (B, T', D) in the token map.

    Raises ModelError for places that are not of these tokens, not ascending, or that leave out a token which the head
    reads, or a learned one, which no layer can do without.
    """
    count = len(known.names)
    if tokens.ndim != 3 or (kept is None and tokens.shape[1] != count):
        raise ModelError(
            f"The tokens have shape {tuple(tokens.shape)}; this model has (B, {count}, D), or say which are kept."
        )
    if kept is None:
        return torch.arange(count, device=tokens.device).expand(len(tokens), -1)
    if kept.dtype != torch.int64 or kept.shape != tokens.shape[:2]:
        raise ModelError(
            f"The kept places are {kept.dtype} of shape {tuple(kept.shape)}; {tuple(tokens.shape[:2])} tokens need int64."
        )
    kept = kept.to(tokens.device)
    if kept.numel() and bool((kept.diff(dim=1) <= 0).any() or kept.min() < 0 or kept.max() >= count):
        raise ModelError(f"The kept places must ascend within 0 to {count - 1}.")
    _check_needed(kept, known)
    return kept


def _check_needed(kept: torch.Tensor, known: TokenMap) -> None:
    virtual = np.array(known.names) == "virtual"
    for needed, why in ((known.readout > 0, "the head reads it"), (virtual, "it belongs to every layer")):
        for place in np.flatnonzero(needed):
            if not bool((kept == int(place)).any(dim=1).all()):
                raise ModelError(f"Token {place} ({known.names[place]}) was left out but {why}: keep it.")


def body_of_places(backbone: nn.Module, places: torch.Tensor, first: int) -> Any:
    """The output of a language model's body on empty tokens at these places (B, T'); a hook puts tokens in their place.

    first: the number of the first position. Raises ModelError for gaps where the body counts positions by itself.
    """
    batch, count = places.shape
    words: Any = backbone.get_input_embeddings()  # type: ignore[operator]  # a transformers model has it
    empty = words.weight.new_zeros(batch, count, words.embedding_dim)
    # All are there, and saying so matters: without a mask, a gap in the positions reads as the start of another text.
    given = {"attention_mask": torch.ones_like(places)}
    if "position_ids" in inspect.signature(backbone.forward).parameters:
        given["position_ids"] = places + first
    elif bool((places != torch.arange(count, device=places.device)).any()):
        raise ModelError(
            f"{type(backbone).__name__} counts positions by itself, so that no token can be left out: use methods that "
            "change pixels."
        )
    return backbone(inputs_embeds=empty, **given)
