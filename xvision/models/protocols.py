"""What an audit asks of a model. Shapes: B batch, C channels, H W image, K classes, L layers, A heads, T tokens, P patches.

Pixels are always in ``bounds`` = (0, 1) and normalisation happens inside the model, so that every epsilon, blur and
heat map is stated in pixel space. Outputs are always logits, never "logits or probabilities".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

Task = Literal["binary", "multiclass", "multilabel"]
Access = Literal["scores", "black-box", "white-box"]


@dataclass(frozen=True)
class InputSpec:
    """How an image file becomes the model's pixels: (channels, height, width) and the resampling filter."""

    channels: int
    height: int
    width: int
    resample: Literal["bilinear", "bicubic", "lanczos", "nearest"] = "bilinear"


@runtime_checkable
class Classifier(Protocol):
    """An image classifier under audit."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the logits; two for a binary model, also when it has one output."""

    @property
    def task(self) -> Task: ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest pixel value, (0, 1)."""

    @property
    def input(self) -> InputSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def access(self) -> Access: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, configuration and preprocessing."""

    @property
    def description(self) -> dict[str, str | int]:
        """Facts for the report: architecture, parameters, source."""

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) in float32 for pixels (B, C, H, W) in ``bounds``; differentiable for white-box access."""


@dataclass(frozen=True)
class TokenMap:
    """Which attention token is which.

    image: (P,) indices of the image tokens. boxes: (P, 4) their pixel boxes (left, top, right, bottom), exclusive ends,
    at the model's input size. readout: (T,) non-negative weights, summing to 1, of the tokens the head reads
    (one-hot for a CLS or last token, uniform over pooled tokens). allowed: (T, T) bool, row may attend to column.
    names: (T,) "image", "cls", "register", "readout", "text", or "virtual" for a learned token that stands for no word.
    """

    image: np.ndarray
    boxes: np.ndarray
    readout: np.ndarray
    allowed: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Attention:
    """Post-softmax attention, one (B, A, T, T) float32 tensor per layer, and the class logits of the same pass.

    hidden: (B, T, D) what each layer passes on, first layer first, in the same graph; as many as ``weights``.
    """

    weights: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    tokens: TokenMap
    hidden: tuple[torch.Tensor, ...] = ()


@runtime_checkable
class AttentionClassifier(Classifier, Protocol):
    """A classifier whose attention can be read."""

    @property
    def token_map(self) -> TokenMap:
        """Which token is which, known without a pass; for a model that reads text, with the text that is bound."""

    def attention(self, pixels: torch.Tensor) -> Attention:
        """Attention in the autograd graph; raises ModelError when any layer yields no weights."""


@runtime_checkable
class TokenClassifier(AttentionClassifier, Protocol):
    """A classifier whose sequence of tokens can be read before its first layer, changed, shortened and sent on."""

    def embedded(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, T, D) float32, what the first layer reads, in the graph of the pixels."""

    def from_embedded(self, tokens: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, K) for such tokens. ``kept``: (B, T') int64 ascending, the original places of the tokens given.

        A token left out is gone, the others keep their positions: its key, value and query do not exist. The read-out
        tokens must be kept; ModelError otherwise.
        """

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) if the head were put on the tokens (B, T, D) that some layer passes on."""


@dataclass(frozen=True)
class Prefix:
    """A clean pass of R images. keys, values: one tensor of each layer, images first, then heads, T tokens and widths.

    hidden: (R, T, D) the last states. logits: (R, K).
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    hidden: torch.Tensor
    logits: torch.Tensor

    @property
    def size(self) -> int:
        """Bytes held."""
        return sum(each.nbytes for each in (self.hidden, *self.keys, *self.values))


@runtime_checkable
class PrefixClassifier(TokenClassifier, Protocol):
    """A classifier that need not run again what precedes the first change; for inference, outside the graph."""

    def prefix(self, tokens: torch.Tensor) -> Prefix:
        """The clean pass of ``embedded`` tokens (R, T, D); ModelError, with the reason, where later ones change earlier ones."""

    def from_prefix(self, prefix: Prefix, rows: torch.Tensor, start: int, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) as of ``from_embedded``, of the images rows (B,) with these tokens (B, T - start, D) from ``start`` on."""


@dataclass(frozen=True)
class Features:
    """The last spatial feature map of a convolutional network (B, D, h, w), and the logits computed from it."""

    maps: torch.Tensor
    logits: torch.Tensor


@runtime_checkable
class FeatureClassifier(Classifier, Protocol):
    """A classifier that may be a convolutional network."""

    @property
    def convolutional(self) -> bool:
        """Whether the logits come from a spatial feature map through no attention; found once, with one image."""

    def features(self, pixels: torch.Tensor) -> Features:
        """The feature map as a node of the graph, so that the logits can be differentiated by it; ModelError without one."""


@runtime_checkable
class EmbeddingClassifier(Classifier, Protocol):
    """A classifier whose last representation before the head can be read."""

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) in float32."""


@runtime_checkable
class TextClassifier(Classifier, Protocol):
    """A classifier that may read clinical text before the image; until a text is bound it reads none."""

    @property
    def takes_text(self) -> bool:
        """Whether it does: False for the same class of model trained without text."""

    def with_text(self, texts: Sequence[str]) -> Classifier:
        """The same model with one text for every image, or one for each: ModelError when the numbers do not match."""

    def cut_texts(self, texts: Sequence[str]) -> int:
        """How many of the texts are too long, so that their ends are not read."""

    @property
    def words(self) -> tuple[str, ...]:
        """The bound text as the model reads it, one word or piece per text token; empty when none is bound."""


@runtime_checkable
class RandomisableClassifier(Classifier, Protocol):
    """A classifier that can show what its architecture does without what it learned."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The blocks that together hold every parameter, in the order in which an image meets them."""

    def randomised(self, seed: int, parts: Sequence[str] | None = None) -> Classifier:
        """A copy with every weight tensor of these parts (None: of all) shuffled, each in its own order."""
