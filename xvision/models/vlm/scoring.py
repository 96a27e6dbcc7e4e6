"""Scores of answers under a vision-language model: the log-probability of each label's words after one prompt.

The prompt, image included, passes through the model once; its keys and values are shared by all labels. ``score_naive``
encodes everything again for every label, without a cache: slow, and what the shared way is checked against.

Shapes: B images, T prompt tokens, K labels, N words' tokens after the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

Tail = tuple[int, ...]
"""The tokens of one label's words, which follow the prompt."""
Normalisation = Literal["sum", "mean", "pmi"]


class Prompt(NamedTuple):
    """Token numbers (B, T), and where they are tokens (1) and where padding on the left (0)."""

    tokens: torch.Tensor
    mask: torch.Tensor


class Family(Protocol):
    """What a kind of vision-language model is given beside the tokens."""

    def image_inputs(self, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named inputs of one pass over ``tokens`` (B, T) that hold the normalised pixels (B, C, H, W)."""

    def positions(self, module: PreTrainedModel, prompt: Prompt, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Position numbers of the prompt, (B, T), or (3, B, T) where tokens have a place in time, height and width."""


def unpadded(tokens: Sequence[int], images: int, device: torch.device) -> Prompt:
    """The same prompt for every image."""
    rows = torch.tensor(tokens, device=device).expand(images, -1)
    return Prompt(rows, torch.ones_like(rows))


def score_shared(
    module: PreTrainedModel, family: Family, pixels: torch.Tensor, prompt: Prompt, tails: Sequence[Tail]
) -> torch.Tensor:
    """Log-probabilities (B, K) of the labels after the prompt, which is encoded once; differentiable in the pixels.

    pixels: normalised (B, C, H, W). Labels of one token need no second pass. Memory of the second pass grows as B × K.
    """
    inputs = family.image_inputs(pixels, prompt.tokens)
    positions = family.positions(module, prompt, inputs)
    longer = [index for index, tail in enumerate(tails) if len(tail) > 1]
    output = module(
        input_ids=prompt.tokens, attention_mask=prompt.mask, position_ids=positions, use_cache=bool(longer),
        logits_to_keep=1, **inputs,
    )  # fmt: skip
    first = F.log_softmax(output.logits[:, -1].float(), dim=-1)
    scores = first[:, [tail[0] for tail in tails]]
    if not longer:
        return scores
    rest = _score_rest(module, output.past_key_values, prompt.mask, positions, [tails[index] for index in longer])
    return scores.index_add(1, torch.tensor(longer, device=scores.device), rest)


def score_naive(
    module: PreTrainedModel, family: Family, pixels: torch.Tensor, tokens: torch.Tensor, tails: Sequence[Tail]
) -> torch.Tensor:
    """The same (B, K) with a full pass for every label, no cache, and positions left to the model.

    tokens: (B, T) without padding.
    """
    return torch.stack([_score_whole(module, family, pixels, tokens, tail) for tail in tails], dim=1)


def normalise(
    scores: torch.Tensor, lengths: Sequence[int], how: Normalisation, prior: torch.Tensor | None = None
) -> torch.Tensor:
    """Scores (B, K) as they compete: as they are, per token, or less ``prior`` (K,), the scores without content.

    The sum favours short labels, the mean long and predictable ones. The difference to the prior estimates the pointwise
    mutual information of image and label (Holtzman et al., 2021), with the prior of an input without content (Zhao et
    al., 2021): it is only as good as that input is empty.
    """
    if how == "mean":
        return scores / torch.tensor(lengths, device=scores.device)
    if how == "pmi":
        if prior is None:
            raise ValueError("pmi needs the scores of an image without content")
        return scores - prior.to(scores.device)
    return scores


def _score_rest(
    module: PreTrainedModel, cache: object, mask: torch.Tensor, positions: torch.Tensor, tails: Sequence[Tail]
) -> torch.Tensor:
    """Log-probabilities (B, K) of everything after the first token, in one pass over the cached prompt.

    The pass extends the cache in place, so that it cannot be used a second time.
    """
    images, labels = len(mask), len(tails)
    given, wanted, real = (rows.to(mask.device) for rows in _padded(tails))
    steps = torch.arange(given.shape[1], device=mask.device)
    # Padding has smaller positions than the last token, and an image's places in height and width may reach furthest.
    start = (positions if positions.ndim == 2 else positions.amax(0)).amax(-1) + 1
    places = start.repeat_interleave(labels)[:, None] + steps
    cache.batch_repeat_interleave(labels)  # type: ignore[attr-defined]  # a transformers Cache; not exported as a type
    output = module(
        input_ids=given.repeat(images, 1),
        attention_mask=torch.cat((mask.repeat_interleave(labels, dim=0), real.repeat(images, 1)), dim=1),
        position_ids=places if positions.ndim == 2 else places.expand(len(positions), -1, -1),
        past_key_values=cache,
        use_cache=True,
    )
    likely = _gathered(output.logits, wanted.repeat(images, 1))
    return (likely * real.repeat(images, 1)).sum(1).view(images, labels)


def _score_whole(
    module: PreTrainedModel, family: Family, pixels: torch.Tensor, tokens: torch.Tensor, tail: Tail
) -> torch.Tensor:
    words = torch.tensor(tail, device=tokens.device).expand(len(tokens), -1)
    whole = torch.cat((tokens, words), dim=1)
    inputs = family.image_inputs(pixels, whole)
    logits = module(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False, **inputs).logits
    return _gathered(logits[:, tokens.shape[1] - 1 : -1], words).sum(1)


def _gathered(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (rows, N) of the wanted tokens under logits (rows, N, vocabulary)."""
    return F.log_softmax(logits.float(), dim=-1).gather(-1, wanted[..., None])[..., 0]


def _padded(tails: Sequence[Tail]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Given tokens, the tokens that should follow them, and where there is one: (K, N) each, padded on the right."""
    width = max(map(len, tails)) - 1
    rows = [[*tail, *[0] * (width + 1 - len(tail))] for tail in tails]
    whole = torch.tensor(rows)
    real = torch.tensor([[int(step < len(tail) - 1) for step in range(width)] for tail in tails])
    return whole[:, :-1], whole[:, 1:], real
