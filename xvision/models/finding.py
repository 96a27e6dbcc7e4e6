"""A model of several findings as a binary model of one of them: an audit looks at one finding at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from xvision.errors import ConfigError, nearest
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import Access, Attention, Classifier, InputSpec, Task


def finding_view(model: Classifier, name: str | None) -> Classifier:
    """The binary classifier ("no NAME", NAME) with the logits (0, z) of one finding of a multi-label model.

    It has shuffled weights, embeddings, attention and text where the model has them. Raises ConfigError, with the
    findings, for a finding that is not named or that the model does not know.
    """
    if name is None:
        raise ConfigError(
            "the model decides on several findings, which are audited one at a time: name one as decision.positive, "
            f"of {', '.join(model.classes)}."
        )
    if name not in model.classes:
        raise ConfigError(
            f"decision.positive is {name!r}, not a finding of the model ({', '.join(model.classes)}). "
            f"{nearest(name, model.classes)}"
        )
    if isinstance(model, PredictionsClassifier):
        return model.finding(name)
    kinds = (AttentionFindingView, EmbeddingFindingView, ShuffledFindingView, FindingView)
    return next(kind for kind in kinds if all(hasattr(type(model), method) for method in kind.needs))(model, name)


class FindingView:
    """One finding of ``inner``. What only some models offer is in the classes below, so that nothing is offered in vain."""

    needs: tuple[str, ...] = ()
    task: Task = "binary"

    def __init__(self, inner: Classifier, name: str) -> None:
        self.inner: Any = inner
        self.name = name
        self.classes = (f"no {name}", name)
        self._place = inner.classes.index(name)

    @property
    def bounds(self) -> tuple[float, float]:
        bounds: tuple[float, float] = self.inner.bounds
        return bounds

    @property
    def input(self) -> InputSpec:
        spec: InputSpec = self.inner.input
        return spec

    @property
    def device(self) -> torch.device:
        device: torch.device = self.inner.device
        return device

    @property
    def access(self) -> Access:
        access: Access = self.inner.access
        return access

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's fingerprint and the finding's name."""
        return hashlib.sha256(f"{self.inner.fingerprint} {self.name}".encode()).hexdigest()

    @property
    def description(self) -> dict[str, str | int]:
        """The model's own, the finding, and all findings."""
        return {**self.inner.description, "finding": self.name, "findings": ", ".join(self.inner.classes)}

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, 2): 0 and the finding's log-odds."""
        return self._of(self.inner.logits(pixels))

    @property
    def takes_text(self) -> bool:
        return bool(getattr(self.inner, "takes_text", False))

    def with_text(self, texts: Sequence[str]) -> Classifier:
        """The same finding of the model that reads these texts."""
        return type(self)(self.inner.with_text(texts), self.name)

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of the texts are too long for the model."""
        return int(self.inner.cut_texts(texts))

    def _of(self, logits: torch.Tensor) -> torch.Tensor:
        odds = logits[:, self._place : self._place + 1]
        return torch.cat((torch.zeros_like(odds), odds), dim=1)


class ShuffledFindingView(FindingView):
    """Of a model whose weights can be shuffled."""

    needs: tuple[str, ...] = ("randomised",)

    def randomised(self, seed: int) -> Classifier:
        """The same finding of the model with shuffled weights."""
        return type(self)(self.inner.randomised(seed), self.name)


class EmbeddingFindingView(ShuffledFindingView):
    """Of a model with embeddings, which all findings share."""

    needs: tuple[str, ...] = ("randomised", "embed")

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) in float32."""
        embeddings: torch.Tensor = self.inner.embed(pixels)
        return embeddings


class AttentionFindingView(EmbeddingFindingView):
    """Of a model with attention, which all findings share; only the logits are the finding's own."""

    needs: tuple[str, ...] = ("randomised", "embed", "attention")

    def attention(self, pixels: torch.Tensor) -> Attention:
        """Attention in the autograd graph, with the finding's logits."""
        found: Attention = self.inner.attention(pixels)
        return Attention(found.weights, self._of(found.logits), found.tokens)
