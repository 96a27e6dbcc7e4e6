"""A classifier that counts the images passed through it: the currency in which audits and their peers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch

from xvision.errors import ModelError
from xvision.models.protocols import (
    Access,
    Attention,
    AttentionClassifier,
    Classifier,
    EmbeddingClassifier,
    InputSpec,
    RandomisableClassifier,
    Task,
    TextClassifier,
)


@dataclass
class Meter:
    """Images passed forward and backward since it was made."""

    forward: int = 0
    backward: int = 0


class MeteredClassifier:
    """The same classifier; every pass is added to the meter. It has attention and embeddings only if the inner one does."""

    def __init__(self, inner: Classifier, meter: Meter) -> None:
        self.inner, self.meter = inner, meter

    @property
    def classes(self) -> tuple[str, ...]:
        return self.inner.classes

    @property
    def task(self) -> Task:
        return self.inner.task

    @property
    def bounds(self) -> tuple[float, float]:
        return self.inner.bounds

    @property
    def input(self) -> InputSpec:
        return self.inner.input

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def access(self) -> Access:
        return self.inner.access

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def description(self) -> dict[str, str | int]:
        return self.inner.description

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._counted(self.inner.logits(pixels))

    def attention(self, pixels: torch.Tensor) -> Attention:
        if not self._offers("attention"):
            raise ModelError(f"{self.description.get('architecture', 'this model')} has no attention that can be read.")
        found = cast(AttentionClassifier, self.inner).attention(pixels)
        self._counted(found.logits)
        return found

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        if not self._offers("embed"):
            raise ModelError(
                f"{self.description.get('architecture', 'this model')} has no embeddings that can be read."
            )
        return self._counted(cast(EmbeddingClassifier, self.inner).embed(pixels))

    @property
    def takes_text(self) -> bool:
        return bool(getattr(self.inner, "takes_text", False))

    def with_text(self, texts: Sequence[str]) -> MeteredClassifier:
        """The model with its text, whose passes go to the same meter."""
        return MeteredClassifier(self._reader.with_text(texts), self.meter)

    def cut_texts(self, texts: Sequence[str]) -> int:
        return self._reader.cut_texts(texts)

    @property
    def _reader(self) -> TextClassifier:
        if not self.takes_text:
            raise ModelError(f"{self.description.get('architecture', 'this model')} reads no text.")
        return cast(TextClassifier, self.inner)

    def randomised(self, seed: int) -> MeteredClassifier:
        """A copy with shuffled weights whose passes go to the same meter."""
        if not self._offers("randomised"):
            raise ModelError(f"the weights of {self.description.get('architecture', 'this model')} cannot be shuffled.")
        return MeteredClassifier(cast(RandomisableClassifier, self.inner).randomised(seed), self.meter)

    def _offers(self, method: str) -> bool:
        # Asking isinstance of a protocol would read every property, and hash all weights with ``fingerprint``.
        return hasattr(type(self.inner), method)

    def _counted(self, output: torch.Tensor) -> torch.Tensor:
        images = len(output)
        self.meter.forward += images
        if output.requires_grad:
            output.register_hook(lambda _: self._went_back(images))
        return output

    def _went_back(self, images: int) -> None:
        self.meter.backward += images
