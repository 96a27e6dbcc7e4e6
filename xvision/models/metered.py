"""A classifier that counts the images passed through it: the currency in which audits and their peers are compared."""

from __future__ import annotations

from dataclasses import dataclass

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
        if not isinstance(self.inner, AttentionClassifier):
            raise ModelError(f"{self.description.get('architecture', 'this model')} has no attention that can be read.")
        found = self.inner.attention(pixels)
        self._counted(found.logits)
        return found

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        if not isinstance(self.inner, EmbeddingClassifier):
            raise ModelError(
                f"{self.description.get('architecture', 'this model')} has no embeddings that can be read."
            )
        return self._counted(self.inner.embed(pixels))

    def randomised(self, seed: int) -> MeteredClassifier:
        """A copy with shuffled weights whose passes go to the same meter."""
        if not isinstance(self.inner, RandomisableClassifier):
            raise ModelError(f"the weights of {self.description.get('architecture', 'this model')} cannot be shuffled.")
        return MeteredClassifier(self.inner.randomised(seed), self.meter)

    def _counted(self, output: torch.Tensor) -> torch.Tensor:
        images = len(output)
        self.meter.forward += images
        if output.requires_grad:
            output.register_hook(lambda _: self._went_back(images))
        return output

    def _went_back(self, images: int) -> None:
        self.meter.backward += images
