"""Questions about images of which a causal model runs only the tokens from the first change on.

Sorted, so that little is run that did not change. Shapes: B images, N questions, T tokens, D width.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from xvision.methods.target import log_odds

CPU_TOKENS, CPU_IDLE = 1600, 48
"""Found by trying: more tokens in one pass leave the caches of a CPU, and as many as idle cost as much as a pass."""
IDLE_ELSEWHERE = 4096
"""Tokens that another device runs in the time that it takes to start a pass."""
PREFIX_BYTES = 2**31
"""Most memory of kept keys and values; images beyond it are passed again with every question."""


class Part(NamedTuple):
    """Questions of one image that are run together, from position ``start`` on. questions: their numbers, (n,)."""

    row: int
    start: int
    questions: np.ndarray


class Effort(NamedTuple):
    """What one pass may be. images: most in it. tokens: most of them together. idle: as many tokens as a pass costs.

    A part grows while the tokens that it runs although they did not change stay below ``idle``: beyond, two passes are
    cheaper than one.
    """

    images: int
    tokens: int
    idle: int


def parts_of(rows: np.ndarray, starts: np.ndarray, count: int, effort: Effort) -> Iterator[Part]:
    """Questions (N,) about images ``rows``, of which the first changed position is ``starts``, by image and position.

    count: positions of a sequence.
    """
    order = np.lexsort((-starts, rows))
    first = 0
    while first < len(order):
        row, last, idle = rows[order[first]], first + 1, 0
        while last < len(order) and last - first < effort.images and rows[order[last]] == row:
            start, size = starts[order[last]], last - first
            idle += size * (starts[order[last - 1]] - start)
            if idle > effort.idle or (size + 1) * (count - start) > effort.tokens:
                break
            last += 1
        yield Part(int(row), int(starts[order[last - 1]]), order[first:last])
        first = last


class LaterTokens:
    """Images whose tokens up to the first change are passed once, and what the model says when later ones are others.

    Raises ModelError, with the reason, for a model of which later tokens change earlier ones.
    """

    def __init__(self, model: Any, tokens: torch.Tensor, targets: torch.Tensor, effort: Effort) -> None:
        """model: with ``prefix`` and ``from_prefix``. tokens: (B, T, D) of the images. targets: (B,) classes to explain."""
        self.tokens, self._model, self._targets, self._effort = tokens, model, targets, effort
        first = model.prefix(tokens[:1])
        fitting = max(1, PREFIX_BYTES // first.size)
        self._clean = lru_cache(maxsize=fitting)(lambda row: first if row == 0 else model.prefix(tokens[row : row + 1]))

    @torch.inference_mode()
    def scores(self, rows: np.ndarray, starts: np.ndarray, tokens: Callable[[Part], torch.Tensor]) -> np.ndarray:
        """(N,) scores of images ``rows`` that first differ at ``starts``, T where they do not.

        tokens: what a part runs, (n, T - start, D).
        """
        scores, count = np.empty(len(rows)), self.tokens.shape[1]
        same = np.flatnonzero(starts == count)
        for row in np.unique(rows[same]):
            scores[same[rows[same] == row]] = float(
                log_odds(self._clean(int(row)).logits, self._targets[row : row + 1])
            )
        asked = np.flatnonzero(starts < count)
        for part in parts_of(rows[asked], starts[asked], count, self._effort):
            here = part._replace(questions=asked[part.questions])
            scores[here.questions] = self._scored(here, tokens(here)).double().cpu().numpy()
        return scores

    def _scored(self, part: Part, tokens: torch.Tensor) -> torch.Tensor:
        row = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        logits = self._model.from_prefix(self._clean(part.row), row, part.start, tokens)
        return log_odds(logits, self._targets[part.row].expand(len(tokens)))


def effort_on(device: torch.device, images: int) -> Effort:
    """The effort of one pass on a device, of at most so many images."""
    return Effort(images, CPU_TOKENS, CPU_IDLE) if device.type == "cpu" else Effort(images, sys.maxsize, IDLE_ELSEWHERE)
