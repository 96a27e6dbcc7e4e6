"""A classifier that counts the images passed through it: the currency in which audits and their peers are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import TypeVar, cast

import torch

from xvision.errors import ModelError
from xvision.models.finding import FindingView
from xvision.models.protocols import (
    Access,
    Attention,
    AttentionClassifier,
    Classifier,
    EmbeddingClassifier,
    FeatureClassifier,
    Features,
    InputSpec,
    Prefix,
    PrefixClassifier,
    RandomisableClassifier,
    Task,
    TextClassifier,
    TokenClassifier,
    TokenMap,
)


@dataclass
class Meter:
    """Images passed forward and backward since it was made."""

    forward: int = 0
    backward: int = 0


class Lacking(ModelError, AttributeError):
    """The classifier does not offer this: an error to whoever uses it, and False to whoever asks with ``hasattr``."""


Bound = TypeVar("Bound", bound=Callable[..., object])


class _if_inner_has:  # noqa: N801  # a decorator
    """Marks a method that is there only where the inner classifier has one of that name. what: for the sentence."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __call__(self, method: Bound) -> Bound:
        return cast(Bound, _Optional(method, self._what))


class _Optional:
    """A method that may be missing, object by object."""

    def __init__(self, method: Callable[..., object], what: str) -> None:
        self._method, self._what = method, what
        self.__doc__ = method.__doc__

    def __get__(self, owner: MeteredClassifier | None, kind: type) -> object:
        if owner is None:
            return self
        owner._require(self._method.__name__, self._what)
        return MethodType(self._method, owner)


class MeteredClassifier:
    """The same classifier; every pass is added to the meter. It offers what the inner one does, and no more."""

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

    @_if_inner_has("no findings beside this one")
    def logits_of_all(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._counted(cast(FindingView, self.inner).logits_of_all(pixels))

    @_if_inner_has("no attention that can be read")
    def attention(self, pixels: torch.Tensor) -> Attention:
        found = cast(AttentionClassifier, self.inner).attention(pixels)
        self._counted(found.logits)
        return found

    @property
    def token_map(self) -> TokenMap:
        self._require("token_map", "no tokens that map to image patches")
        return cast(AttentionClassifier, self.inner).token_map

    @_if_inner_has("no tokens that can be read")
    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """Not counted: no layer is run."""
        return cast(TokenClassifier, self.inner).embedded(pixels)

    @_if_inner_has("no tokens that can be left out")
    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """One pass for each image, however few its tokens are."""
        return self._counted(cast(TokenClassifier, self.inner).from_embedded(tokens, kept))

    @_if_inner_has("no tokens whose keys and values can be kept")
    def prefix(self, tokens: torch.Tensor) -> Prefix:
        found = cast(PrefixClassifier, self.inner).prefix(tokens)
        self._counted(found.logits)
        return found

    @_if_inner_has("no tokens whose keys and values can be kept")
    def from_prefix(self, prefix: Prefix, rows: torch.Tensor, start: int, tokens: torch.Tensor) -> torch.Tensor:
        """One pass for each image, however few its tokens are."""
        return self._counted(cast(PrefixClassifier, self.inner).from_prefix(prefix, rows, start, tokens))

    @_if_inner_has("no head that could read other states")
    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Not counted: no layer is run."""
        return cast(TokenClassifier, self.inner).read_out(hidden)

    @property
    def convolutional(self) -> bool:
        self._require("convolutional", "no layers that are known")
        return cast(FeatureClassifier, self.inner).convolutional

    @_if_inner_has("no feature map that can be read")
    def features(self, pixels: torch.Tensor) -> Features:
        found = cast(FeatureClassifier, self.inner).features(pixels)
        self._counted(found.logits)
        return found

    @_if_inner_has("no embeddings that can be read")
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
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
    def words(self) -> tuple[str, ...]:
        self._require("words", "no text")
        return cast(TextClassifier, self.inner).words

    @property
    def _reader(self) -> TextClassifier:
        if not self.takes_text:
            raise ModelError(f"{self._name} reads no text.")
        return cast(TextClassifier, self.inner)

    @property
    def parts(self) -> tuple[str, ...]:
        self._require("parts", "no parts that can be told apart")
        return cast(RandomisableClassifier, self.inner).parts

    @_if_inner_has("no weights that can be shuffled")
    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> MeteredClassifier:
        """A copy with shuffled weights whose passes go to the same meter."""
        return MeteredClassifier(cast(RandomisableClassifier, self.inner).randomised(seed, parts), self.meter)

    def _require(self, name: str, what: str) -> None:
        # Asking isinstance of a protocol would read every property, and hash all weights with ``fingerprint``.
        if not hasattr(type(self.inner), name):
            raise Lacking(f"{self._name} has {what}.")

    @property
    def _name(self) -> str:
        return str(self.description.get("architecture", "this model"))

    def _counted(self, output: torch.Tensor) -> torch.Tensor:
        images = len(output)
        self.meter.forward += images
        if output.requires_grad:
            output.register_hook(lambda _: self._went_back(images))
        return output

    def _went_back(self, images: int) -> None:
        self.meter.backward += images
