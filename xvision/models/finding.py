"""A model of several findings as a binary model of one of them: an audit looks at one finding at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from xvision.errors import ConfigError, nearest
from xvision.models.predictions import PredictionsClassifier
from xvision.models.protocols import Access, Attention, Classifier, Features, InputSpec, Task, TokenMap


def finding_view(model: Classifier, name: str | None) -> Classifier:
    """The binary classifier ("no NAME", NAME) with the logits (0, z) of one finding of a multi-label model.

    It has shuffled weights, embeddings, features, attention, tokens and text where the model has them. Raises ConfigError, with the
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
    offered = tuple(kind for kind in _OFFERS if all(hasattr(type(model), need) for need in kind.needs))
    return _view(offered)(model, name)


def whole_model(model: Classifier) -> Classifier | None:
    """The model of several findings of which ``model`` is one; None for any other model."""
    inner: Classifier | None = model.inner if isinstance(model, FindingView | PredictionsClassifier) else None
    return inner


class FindingView:
    """One finding of ``inner``. What only some models offer is in the classes below, so that nothing is offered in vain."""

    needs: tuple[str, ...] = ()
    """What a model must have for a view to be of this class, too."""
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

    def logits_of_all(self, pixels: torch.Tensor) -> torch.Tensor:
        """The log-odds (B, L) of all findings of the model."""
        odds: torch.Tensor = self.inner.logits(pixels)
        return odds

    @property
    def takes_text(self) -> bool:
        return bool(getattr(self.inner, "takes_text", False))

    def with_text(self, texts: Sequence[str]) -> Classifier:
        """The same finding of the model that reads these texts."""
        return type(self)(self.inner.with_text(texts), self.name)

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of the texts are too long for the model."""
        return int(self.inner.cut_texts(texts))

    def __reduce__(self) -> tuple[object, ...]:
        return finding_view, (self.inner, self.name)

    def _of(self, logits: torch.Tensor) -> torch.Tensor:
        odds = logits[:, self._place : self._place + 1]
        return torch.cat((torch.zeros_like(odds), odds), dim=1)


class ShuffledFindingView(FindingView):
    """Of a model whose weights can be shuffled."""

    needs = ("randomised",)

    @property
    def parts(self) -> tuple[str, ...]:
        parts: tuple[str, ...] = self.inner.parts
        return parts

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> Classifier:
        """The same finding of the model with shuffled weights."""
        return type(self)(self.inner.randomised(seed, parts), self.name)


class EmbeddingFindingView(FindingView):
    """Of a model with embeddings, which all findings share."""

    needs = ("embed",)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) in float32."""
        embeddings: torch.Tensor = self.inner.embed(pixels)
        return embeddings


class FeatureFindingView(FindingView):
    """Of a model that may have a feature map, which all findings share."""

    needs = ("convolutional", "features")

    @property
    def convolutional(self) -> bool:
        return bool(self.inner.convolutional)

    def features(self, pixels: torch.Tensor) -> Features:
        """The feature map in the autograd graph, with the finding's logits."""
        found: Features = self.inner.features(pixels)
        return Features(found.maps, self._of(found.logits))


class AttentionFindingView(FindingView):
    """Of a model with attention, which all findings share; only the logits are the finding's own."""

    needs = ("attention", "token_map")

    @property
    def token_map(self) -> TokenMap:
        tokens: TokenMap = self.inner.token_map
        return tokens

    def attention(self, pixels: torch.Tensor) -> Attention:
        """Attention in the autograd graph, with the finding's logits."""
        found: Attention = self.inner.attention(pixels)
        return replace(found, logits=self._of(found.logits))


class TokenFindingView(FindingView):
    """Of a model whose tokens can be read and sent on."""

    needs = ("embedded", "from_embedded", "read_out")

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, T, D) float32, what the first layer reads."""
        tokens: torch.Tensor = self.inner.embedded(pixels)
        return tokens

    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """The finding's logits (B, 2) for such tokens."""
        return self._of(self.inner.from_embedded(tokens, kept))

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """The finding's logits (B, 2) if the head were put on the states of some layer."""
        return self._of(self.inner.read_out(hidden))


class WordsFindingView(FindingView):
    """Of a model that can say what it reads."""

    needs = ("words",)

    @property
    def words(self) -> tuple[str, ...]:
        words: tuple[str, ...] = self.inner.words
        return words


_OFFERS: tuple[type[FindingView], ...] = (
    ShuffledFindingView, EmbeddingFindingView, FeatureFindingView, AttentionFindingView, TokenFindingView, WordsFindingView,
)  # fmt: skip


@cache
def _view(offered: tuple[type[FindingView], ...]) -> type[FindingView]:
    """The view that offers all of these."""
    return type("FindingView", (*offered, FindingView), {})
