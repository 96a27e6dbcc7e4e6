"""A transformer of one layer and one head whose every figure can be written down.

A patch of mean m becomes the token (m, sharpness × m), a word the token (w, 0), the read-out (0, 0). The read-out attends
with the softmax of the second numbers, every other token to itself; the logits are 0 and gain × the read-out's first number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from xvision.models.protocols import Attention, InputSpec, TokenMap

SIDE = 4
BOXES = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [0, 2, 2, 4], [2, 2, 4, 4]])


@dataclass
class OneLayer:
    """Tokens: words, four patches, read-out; or patches alone, of which the head reads the mean."""

    words: tuple[float, ...] = ()
    gain: float = 2.0
    sharpness: float = 1.0
    pooled: bool = False
    access: str = "white-box"
    calls: int = 0
    input = InputSpec(1, SIDE, SIDE)
    description = {"architecture": "OneLayer"}  # noqa: RUF012  # as a model's property reads

    @property
    def token_map(self) -> TokenMap:
        names = ("text",) * len(self.words) + ("image",) * 4 + (() if self.pooled else ("readout",))
        image = np.flatnonzero(np.array(names) == "image")
        readout = np.eye(len(names))[-1]
        if self.pooled:
            readout = np.isin(np.arange(len(names)), image) / 4
        return TokenMap(image, BOXES, readout, np.ones((len(names), len(names)), dtype=bool), names)

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        means = torch.stack([pixels[:, 0, y0:y1, x0:x1].mean(dim=(1, 2)) for x0, y0, x1, y1 in BOXES], dim=1)
        patches = torch.stack((means, self.sharpness * means), dim=2)
        words = torch.tensor([[word, 0.0] for word in self.words]).reshape(-1, 2).expand(len(pixels), -1, -1)
        nothing = torch.zeros(len(pixels), 0 if self.pooled else 1, 2)
        return torch.cat((words, patches, nothing), dim=1)

    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += len(tokens)
        if kept is not None:
            assert bool((kept[:, -1] == len(self.token_map.names) - 1).all())
        return self._headed(self._mixed(tokens, self._weights(tokens))[:, -1])

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._headed(hidden[:, -1])

    def attention(self, pixels: torch.Tensor) -> Attention:
        start = pixels if pixels.requires_grad else pixels.detach().requires_grad_()
        tokens = self.embedded(start)
        weights = self._weights(tokens)
        hidden = self._mixed(tokens, weights)
        return Attention((weights,), self._headed(hidden[:, -1]), self.token_map, (hidden,))

    def _weights(self, tokens: torch.Tensor) -> torch.Tensor:
        count = tokens.shape[1]
        own = torch.eye(count)[:-1].expand(len(tokens), -1, -1)
        return torch.cat((own, tokens[:, None, :, 1].softmax(dim=2)), dim=1)[:, None]

    def _mixed(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return tokens + weights[:, 0] @ tokens

    def _headed(self, state: torch.Tensor) -> torch.Tensor:
        odds = self.gain * state[:, :1]
        return torch.cat((torch.zeros_like(odds), odds), dim=1)


def images_of(means: list[list[float]]) -> torch.Tensor:
    """(B, 1, 4, 4): four patches of these grey values."""
    patches = torch.tensor(means).reshape(-1, 1, 2, 2)
    return patches.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def shares(values: list[float], sharpness: float = 1.0) -> np.ndarray:
    """What the read-out gives patches of these means, words and itself as zeros among ``values``."""
    powers = np.exp(sharpness * np.array(values))
    return powers / powers.sum()
