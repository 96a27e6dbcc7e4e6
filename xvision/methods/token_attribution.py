"""What single tokens contribute: integrated gradients before the first layer, and tokens left out of the sequence.

A token that is left out is gone, not covered: nothing stands in its place that the model has never seen (Jain et al. 2022).
Shapes: B images, T tokens, T' tokens kept, P image tokens, D width, K classes, N pairs of an image and what is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from xvision.errors import ConfigError, DataError, ModelError
from xvision.methods.attribution import completeness_gap
from xvision.methods.target import checked, gradients_for_pixels, log_odds
from xvision.methods.units import Evaluate

FromEmbedded = Callable[[torch.Tensor], torch.Tensor]
"""Tokens (B, T, D) before the first layer to logits (B, K)."""


class TokenKinds(Protocol):
    """``image``, ``readout`` and ``names`` as ``xvision.models.protocols.TokenMap`` has them."""

    @property
    def image(self) -> np.ndarray: ...
    @property
    def readout(self) -> np.ndarray: ...
    @property
    def names(self) -> tuple[str, ...]: ...


class TokenModel(Protocol):
    """What is asked of a model here; ``xvision.models.protocols.TokenClassifier`` answers it."""

    @property
    def token_map(self) -> TokenKinds: ...
    def embedded(self, pixels: torch.Tensor) -> torch.Tensor: ...
    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor: ...


class TokenAttribution(NamedTuple):
    """values: (B, T) float64 per token. difference, gap: (B,) as ``xvision.methods.attribution.Attribution`` has them."""

    values: np.ndarray
    gap: np.ndarray
    difference: np.ndarray


def embedded_integrated_gradients(
    from_embedded: FromEmbedded,
    tokens: torch.Tensor,
    baseline: torch.Tensor,
    targets: torch.Tensor,
    *,
    steps: int = 32,
    batch: int = 64,
) -> TokenAttribution:
    """Signed share of each token in the change of the log-odds from baseline to tokens (Sundararajan et al. 2017).

    The path is straight between two sequences before the first layer, by Gauss-Legendre quadrature; what the patches
    were made from is not part of it, so a value belongs to the whole patch. Values sum to ``difference`` up to ``gap``.
    A token equal to its baseline gets 0. Cost: ``steps`` forward and backward passes per image and two more forward.

    Args:
        from_embedded: tokens to logits.
        tokens, baseline: (B, T, D) each; see ``baseline_tokens``.
        targets: (B,) class to explain.
        steps: quadrature points.
        batch: most sequences in one pass; changes memory and speed, not the result.

    Raises:
        ConfigError: an option is out of range.
        DataError: shapes that do not match, or a target that is no class of the model.
        ModelError: no gradient reaches the tokens, or one is not finite.
    """
    if steps < 1 or batch < 1:
        raise ConfigError(f"found steps = {steps} and batch = {batch}: both must be at least 1")
    if tokens.ndim != 3 or tokens.shape != baseline.shape or targets.shape != tokens.shape[:1]:
        raise DataError(
            f"found tokens of shape {tuple(tokens.shape)}, a baseline of {tuple(baseline.shape)} and targets of"
            f" {tuple(targets.shape)}: they must be (B, T, D), (B, T, D) and (B,)"
        )
    end, start = tokens.detach().clone().float(), baseline.detach().clone().float()
    explained = targets.to(end.device, torch.int64)
    nodes, shares = _gauss_legendre(steps)
    values = np.zeros(end.shape[:2])
    for pairs in _parts(len(end) * steps, batch):
        rows = torch.as_tensor(pairs // steps, device=end.device)
        slopes = _slopes(from_embedded, start[rows], end[rows], nodes[pairs % steps], explained[rows])
        np.add.at(values, pairs // steps, slopes * shares[pairs % steps, None])
    _require_finite(values)
    parts = list(_parts(len(end), batch))
    difference = np.concatenate([_change(from_embedded, start[part], end[part], explained[part]) for part in parts])
    return TokenAttribution(values, completeness_gap(values, difference), difference)


def baseline_tokens(tokens: torch.Tensor, blank: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Where the path to ``tokens`` (B, T, D) starts: the tokens of the blank image, and for each word the mean word.

    The mean word is the mean over the words of the same text, so the words of an image are compared with each other: what
    all of them share counts for nothing, and a text of one word gets 0. The zero vector is not used: a model that
    normalises its tokens reads it as no direction at all, the score jumps beside it, and no number of steps finds that.

    Args:
        tokens: of the image. blank: of the baseline image, with the same text. names: (T,) as in the token map.
    """
    text = torch.as_tensor(np.array(names) == "text", device=tokens.device)
    start = blank.detach().clone()
    if bool(text.any()):
        start[:, text] = tokens.detach()[:, text].mean(dim=1, keepdim=True)
    return start


def token_evaluator(model: TokenModel, pixels: torch.Tensor, targets: torch.Tensor, *, batch: int = 64) -> Evaluate:
    """The score of images without some of their image tokens, which are gone while the others keep their positions.

    Units are the image tokens in the order of the token map. Every other token stays, also when all units are removed.
    Pairs are passed in groups of equally many tokens, so no pass is padded; the tokens are embedded once.

    Args:
        model: a classifier whose tokens can be left out.
        pixels: (B, C, H, W) in [0, 1]; a row of the answer's questions is one of these images.
        targets: (B,) class to explain.
        batch: most sequences in one pass.

    Raises:
        ModelError: the head reads image tokens, so that none of them can be left out.
        DataError: when asked, for units that are not the image tokens.
    """
    known = model.token_map
    if reason := irremovable(known):
        raise ModelError(reason)
    left_out = _Shortened(model, pixels, targets, batch)

    def evaluate(rows: np.ndarray, removed: np.ndarray) -> np.ndarray:
        if removed.ndim != 2 or removed.shape != (len(rows), len(known.image)):
            raise DataError(
                f"found {len(rows)} rows and removed units of shape {removed.shape}: one of {len(known.image)} image"
                " tokens each is needed"
            )
        kept = np.ones((len(rows), len(known.names)), dtype=bool)
        kept[:, known.image] = ~np.asarray(removed, dtype=bool)
        return left_out.scores(rows, kept)

    return evaluate


def irremovable(known: TokenKinds) -> str | None:
    """Why no image token can be left out of a model, or None where they can."""
    if not bool((known.readout[known.image] > 0).any()):
        return None
    return (
        "the head reads the mean of the image tokens, so leaving one out would change what the mean is of: use"
        " patch_ablation, which fills pixels"
    )


def token_ablation(model: TokenModel, pixels: torch.Tensor, targets: torch.Tensor, *, batch: int = 64) -> np.ndarray:
    """How much the log-odds fall when one image token is left out and the others keep their positions, (B, P) float64.

    Positive: the token spoke for the class. Two tokens that say the same get little each, because one of them suffices.
    Cost: P + 1 forward passes per image. Arguments and errors as ``token_evaluator``.
    """
    if reason := irremovable(model.token_map):
        raise ModelError(reason)
    return _Shortened(model, pixels, targets, batch).falls(model.token_map.image)


def text_attribution(model: TokenModel, pixels: torch.Tensor, targets: torch.Tensor, *, batch: int = 64) -> np.ndarray:
    """How much the log-odds fall when one text token is left out and all else stays, (B, text tokens) float64.

    In the order of the token map, that is of the text. Cost: as many forward passes per image as there are text tokens,
    and one more. Arguments as ``token_evaluator``; ModelError for a model to which no text is bound.
    """
    places = np.flatnonzero(np.array(model.token_map.names) == "text")
    if len(places) == 0:
        raise ModelError("the model reads no text: bind one to a model that takes text before asking for its words")
    return _Shortened(model, pixels, targets, batch).falls(places)


def image_share(values: np.ndarray, token_map: TokenKinds) -> Mapping[str, np.ndarray]:
    """Share of the absolute values (B, T) on each kind of token, by its name in the token map, (B,) each.

    They sum to one over the kinds. Taken before a map is scaled to its own maximum, which hides that the image got little.
    NaN where an image's values are all zero.
    """
    names = np.array(token_map.names)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(f"found values of shape {values.shape} for {len(names)} tokens: they must be (B, T)")
    strength = np.abs(values)
    whole = strength.sum(axis=1)
    kinds = {str(name): strength[:, names == name].sum(axis=1) for name in dict.fromkeys(names)}
    nothing = np.full(len(values), np.nan)
    return {name: np.divide(part, whole, out=nothing.copy(), where=whole > 0) for name, part in kinds.items()}


class _Shortened:
    """The tokens of some images, embedded once, and the scores of sequences with some of them left out."""

    def __init__(self, model: TokenModel, pixels: torch.Tensor, targets: torch.Tensor, batch: int) -> None:
        if batch < 1:
            raise ConfigError(f"found batch = {batch}: it must be at least 1")
        images, self._targets = checked(pixels, targets)
        self._model, self._batch = model, batch
        with torch.no_grad():
            self._tokens = model.embedded(images)  # runs no layer, so it need not be cut into parts

    def scores(self, rows: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """(N,) float64 log-odds of image ``rows[i]`` with the tokens ``kept[i]`` of (N, T) bool."""
        scores = np.zeros(len(rows))
        counts = kept.sum(axis=1)
        for count in np.unique(counts):
            group = np.flatnonzero(counts == count)
            for part in _parts(len(group), self._batch):
                chosen = group[part]
                scores[chosen] = self._passed(rows[chosen], np.nonzero(kept[chosen])[1].reshape(len(chosen), count))
        return scores

    def falls(self, places: np.ndarray) -> np.ndarray:
        """(B, len(places)): the score of each image minus that without the token at each place alone."""
        images, count = self._tokens.shape[:2]
        kept = np.ones((len(places) + 1, count), dtype=bool)
        kept[np.arange(len(places)), places] = False
        scores = self.scores(np.repeat(np.arange(images), len(kept)), np.tile(kept, (images, 1)))
        table = scores.reshape(images, len(kept))
        falls: np.ndarray = table[:, -1:] - table[:, :-1]
        return falls

    @torch.no_grad()
    def _passed(self, rows: np.ndarray, places: np.ndarray) -> np.ndarray:
        device, width = self._tokens.device, self._tokens.shape[-1]
        index, own = torch.as_tensor(places, device=device), torch.as_tensor(rows, device=device)
        tokens = self._tokens[own].gather(1, index.unsqueeze(-1).expand(-1, -1, width))
        return _numbers(log_odds(self._model.from_embedded(tokens, index), self._targets[own]))


def _gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in (0, 1) and their weights, which sum to one; exact for polynomials up to degree 2 steps − 1."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    return (points + 1.0) / 2.0, weights / 2.0


def _slopes(
    from_embedded: FromEmbedded, start: torch.Tensor, end: torch.Tensor, at: np.ndarray, targets: torch.Tensor
) -> np.ndarray:
    """(N, T) float64: the slope of the score along the way of each token, at the points ``at`` (N,) of the way."""
    way = end - start
    with gradients_for_pixels():
        shares = torch.as_tensor(at, dtype=way.dtype, device=way.device)[:, None, None]
        points = (start + shares * way).requires_grad_()
        slopes = torch.autograd.grad(log_odds(from_embedded(points), targets).sum(), points)[0]
    return _numbers((slopes * way).sum(dim=2))


def _change(from_embedded: FromEmbedded, start: torch.Tensor, end: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return _numbers(log_odds(from_embedded(end), targets) - log_odds(from_embedded(start), targets))


def _numbers(values: torch.Tensor) -> np.ndarray:
    numbers: np.ndarray = values.detach().double().cpu().numpy()
    return numbers


def _require_finite(values: np.ndarray) -> None:
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise ModelError(
            f"integrated gradients of tokens: the gradient is NaN or infinite for {int(broken.sum())} of {len(values)}"
            f" images, the first in row {int(np.argmax(broken))}: check the model for overflow or a division by zero"
        )


def _parts(count: int, batch: int) -> Iterator[np.ndarray]:
    for first in range(0, count, batch):
        yield np.arange(first, min(first + batch, count))
